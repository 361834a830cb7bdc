// SPDX-License-Identifier: MIT OR Apache-2.0
//! A short list that lives in place, for descriptions that must not allocate.

use core::ops::Deref;

/// Up to `N` values.
#[derive(Clone, Copy, Debug)]
pub struct Few<T, const N: usize> {
    values: [T; N],
    len: usize,
}

impl<T: Copy + Default, const N: usize> Few<T, N> {
    /// The values of `from`; `None` if there are more than `N`.
    pub fn new(from: &[T]) -> Option<Self> {
        let mut values = [T::default(); N];
        values.get_mut(..from.len())?.copy_from_slice(from);
        Some(Self { values, len: from.len() })
    }
}

impl<T: Copy + Default, const N: usize> Default for Few<T, N> {
    fn default() -> Self {
        Self { values: [T::default(); N], len: 0 }
    }
}

impl<T, const N: usize> Deref for Few<T, N> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.values[..self.len]
    }
}

impl<T: PartialEq, const N: usize> PartialEq for Few<T, N> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Eq, const N: usize> Eq for Few<T, N> {}

#[cfg(feature = "serde")]
impl<T: serde::Serialize, const N: usize> serde::Serialize for Few<T, N> {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(&**self)
    }
}

#[cfg(feature = "serde")]
impl<'de, T, const N: usize> serde::Deserialize<'de> for Few<T, N>
where
    T: serde::Deserialize<'de> + Copy + Default,
{
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let all = alloc::vec::Vec::<T>::deserialize(from)?;
        Self::new(&all).ok_or_else(|| {
            serde::de::Error::custom(format_args!("at most {N} values are possible"))
        })
    }
}
