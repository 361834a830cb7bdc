// SPDX-License-Identifier: MIT OR Apache-2.0
//! Spans of time with their unit, as people write them.

use std::fmt;

use serde::{Deserialize, Deserializer};

/// A span of time, ns; always more than 0. Written `2 s`, `1.5 ms`; the unit is mandatory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(u64);

/// Largest span: a week.
const MOST: u64 = 7 * 24 * 3600 * 1_000_000_000;

impl Span {
    /// A second.
    pub const SECOND: Self = Self(1_000_000_000);

    /// Nanoseconds.
    pub const fn ns(self) -> i64 {
        self.0 as i64
    }

    /// So many nanoseconds; `None` if that is no span.
    pub fn from_ns(ns: i64) -> Option<Self> {
        u64::try_from(ns).ok().filter(|ns| (1..=MOST).contains(ns)).map(Self)
    }

    /// Reads `2 s` and the like; the error is a sentence.
    ///
    /// # Errors
    /// No number, no unit, or a span that is 0, longer than a week or no whole ns.
    pub fn parse(text: &str) -> Result<Self, String> {
        let refuse = |why: &str| {
            Err(format!(
                "{text:?} is no span of time: {why}; write a number and ns, us, ms or s, such as \"2 s\""
            ))
        };
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = (&text[..split], text[split..].trim_start_matches(' '));
        let scale: u64 = match unit {
            "ns" => 1,
            "us" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "" => return refuse("it has no unit"),
            _ => return refuse("its unit is unknown"),
        };
        let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |text: &str| match text.bytes().all(|b| b.is_ascii_digit()) {
            true => text.parse::<u64>().ok(),
            false => None,
        };
        let (Some(whole), Some(fraction)) = (digits(whole), digits(part)) else {
            return refuse("it has no number that can be read");
        };
        let places = 10u64.checked_pow(part.len() as u32);
        let small = places.and_then(|places| {
            let scaled = fraction.checked_mul(scale)?;
            (scaled % places == 0).then_some(scaled / places)
        });
        let Some(small) = small else { return refuse("it is no whole number of ns") };
        match whole.checked_mul(scale).and_then(|ns| ns.checked_add(small)) {
            Some(0) => refuse("it is 0"),
            Some(ns) if ns <= MOST => Ok(Self(ns)),
            _ => refuse("it is longer than a week"),
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// Nanoseconds as seconds with all nine digits: `-1.000000001`.
pub struct Seconds(pub i64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ns = self.0.unsigned_abs();
        let sign = if self.0 < 0 { "-" } else { "" };
        f.pad(&format!("{sign}{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000))
    }
}

/// Nanoseconds since 1970 as a date in UTC.
pub struct Date(pub i64);

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.div_euclid(1_000_000_000);
        let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        // Years are counted from March, so that the leap day is the last of its year.
        let from_march_0 = days + 719_468;
        let (era, day) = (from_march_0.div_euclid(146_097), from_march_0.rem_euclid(146_097));
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
        write!(
            f,
            "{:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{:09} UTC",
            era * 400 + year + carry,
            second / 3600,
            second / 60 % 60,
            second % 60,
            self.0.rem_euclid(1_000_000_000)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn spans_are_exact_and_need_their_unit() {
        for (text, ns) in [
            ("2 s", 2_000_000_000),
            ("2s", 2_000_000_000),
            ("1.5 ms", 1_500_000),
            ("0.000000001 s", 1),
            ("7 us", 7_000),
            ("1 ns", 1),
        ] {
            assert_eq!(Span::parse(text).map(Span::ns), Ok(ns), "{text}");
        }
        for bad in [
            "",
            "2",
            "s",
            "2 m",
            "2 S",
            "-2 s",
            "0 s",
            "0.0 ms",
            "0.5 ns",
            "1.2.3 s",
            "2 s ",
            "1e3 s",
            ".5 s",
            "5. s",
            "99999999999 s",
            "8 d",
            "0.00000000000000000000001 s",
        ] {
            let error = Span::parse(bad).unwrap_err();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, date) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_400, "2000-02-29 00:00:00"),
            (951_868_800, "2000-03-01 00:00:00"),
            (1_704_067_199, "2023-12-31 23:59:59"),
            (4_107_542_400, "2100-03-01 00:00:00"),
            (-1, "1969-12-31 23:59:59"),
        ] {
            assert_eq!(
                Date(seconds * 1_000_000_000 + 7).to_string(),
                format!("{date}.000000007 UTC")
            );
        }
        assert_eq!(Seconds(-1_000_000_001).to_string(), "-1.000000001");
    }

    proptest! {
        #[test]
        fn any_text_is_a_span_or_a_sentence(text in "\\PC{0,30}") {
            if let Ok(span) = Span::parse(&text) {
                prop_assert!(span.ns() > 0);
            }
        }
    }
}
