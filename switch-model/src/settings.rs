// SPDX-License-Identifier: MIT OR Apache-2.0
//! Changes to a description as `KEY=VALUE` pairs, as on a command line.
//!
//! The keys are those of the text form. What is a table there is several pairs here, with a point
//! between (`loss.model=bursty`, `loss.burst=10 frames`), a list has commas, and `none` makes a key
//! ideal again. A key that is given replaces all that stood there.

use crate::{PortSpec, spec::Changes};
use alloc::{string::String, vec::Vec};
use core::fmt;
use serde::{
    Deserialize, Deserializer,
    de::{
        DeserializeSeed, Error, IntoDeserializer, MapAccess, Visitor,
        value::{BorrowedStrDeserializer, SeqDeserializer},
    },
    forward_to_deserialize_any,
};

/// Why pairs are not a change that a port can take, as a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingError(String);

impl fmt::Display for SettingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for SettingError {}

impl Error for SettingError {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self(alloc::format!("{text}"))
    }
}

impl PortSpec {
    /// This description with the pairs of key and value applied, and checked as a whole.
    ///
    /// ```
    /// # use switch_model::{PortSpec, Profile, Rate, Size};
    /// let pairs = [("profile", "pica8"), ("rate", "10 Gbit/s"), ("queue", "256 KiB")];
    /// let spec = PortSpec::IDEAL.with_settings(pairs).unwrap();
    /// assert_eq!(spec.rate, Some(Rate::gbit(10)));
    /// assert_eq!(spec.queue_bytes, Some(Size::bytes(256 << 10)));
    /// assert_eq!(spec.latency, Profile::Pica8.port().latency);
    ///
    /// let refused = spec.with_settings([("delay", "50")]).unwrap_err().to_string();
    /// assert!(refused.starts_with("delay: \"50\": the unit is missing"), "{refused}");
    /// ```
    pub fn with_settings<'a>(
        self,
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, SettingError> {
        let pairs = Node::Table(pairs.into_iter().collect());
        let changed = Changes::deserialize(pairs)?.onto(self)?;
        changed.build().map_err(SettingError::custom)?;
        Ok(changed)
    }
}

/// One value, or all that has the same first part of its key.
enum Node<'a> {
    Text(&'a str),
    Table(Vec<(&'a str, &'a str)>),
}

impl<'de> Deserializer<'de> for Node<'de> {
    type Error = SettingError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SettingError> {
        match self {
            Self::Table(rest) => visitor.visit_map(Table { rest, value: None }),
            Self::Text("true") => visitor.visit_bool(true),
            Self::Text("false") => visitor.visit_bool(false),
            Self::Text(text) if text.contains(',') => Self::Text(text).deserialize_seq(visitor),
            Self::Text(text) => match text.parse() {
                Ok(number) => visitor.visit_u64(number),
                Err(_) => visitor.visit_borrowed_str(text),
            },
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SettingError> {
        match self {
            Self::Text(text) => {
                let values = text.split(',').filter(|value| !value.is_empty());
                visitor.visit_seq(SeqDeserializer::new(values.map(BorrowedStrDeserializer::new)))
            }
            Self::Table(_) => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SettingError> {
        match self {
            Self::Text("none") => visitor.visit_none(),
            given => visitor.visit_some(given),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, SettingError> {
        match self {
            Self::Text(text) => {
                BorrowedStrDeserializer::new(text).deserialize_enum(name, variants, visitor)
            }
            Self::Table(_) => self.deserialize_any(visitor),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct tuple tuple_struct map struct identifier ignored_any
    }
}

/// Pairs, and the value whose key was read last.
struct Table<'a> {
    rest: Vec<(&'a str, &'a str)>,
    value: Option<(&'a str, Node<'a>)>,
}

impl<'de> MapAccess<'de> for Table<'de> {
    type Error = SettingError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, SettingError> {
        let Some(&(first, text)) = self.rest.first() else { return Ok(None) };
        let head = first.split_once('.').map_or(first, |(head, _)| head);
        let of_head = |key: &'de str| match key.split_once('.') {
            Some((same, below)) if same == head => Some(below),
            _ => None,
        };
        let table: Vec<_> =
            self.rest.iter().filter_map(|&(key, text)| Some((of_head(key)?, text))).collect();
        let plain = self.rest.iter().filter(|&&(key, _)| key == head).count();
        self.rest.retain(|&(key, _)| key != head && of_head(key).is_none());
        let node = match (plain, table.is_empty()) {
            (1, true) => Node::Text(text),
            (0, _) if table.iter().all(|(key, _)| !key.contains('.')) => Node::Table(table),
            (0, _) => return Err(SettingError::custom(format_args!("{first}: too many points"))),
            _ => return Err(SettingError::custom(format_args!("{head} is given twice"))),
        };
        self.value = Some((head, node));
        seed.deserialize(IntoDeserializer::<SettingError>::into_deserializer(head)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, SettingError> {
        let (key, node) = self.value.take().ok_or_else(|| SettingError::custom("no value"))?;
        seed.deserialize(node).map_err(|e| SettingError::custom(format_args!("{key}: {e}")))
    }
}
