// SPDX-License-Identifier: MIT OR Apache-2.0
//! Quantities with their units: all that a user writes, as integers.
//!
//! A number without a unit is an error: whether `10` is milliseconds or Mbit/s is what experiments
//! go wrong by. Decimal fractions are taken exactly ("0.1 %" is one thousandth, not a float near
//! it), and a value that is not a whole number of the base unit is refused, not rounded.

use core::{fmt, str::FromStr};

/// Why a text is not the quantity that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitError {
    expected: &'static str,
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Number,
    MissingUnit,
    UnknownUnit,
    Fraction,
    Range,
}

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fault = match self.fault {
            Fault::Number => "no decimal number found",
            Fault::MissingUnit => "the unit is missing",
            Fault::UnknownUnit => "unknown unit",
            Fault::Fraction => "finer than the model's resolution",
            Fault::Range => "out of range",
        };
        write!(f, "{fault}; expected {}", self.expected)
    }
}

impl core::error::Error for UnitError {}

/// `text` as a multiple of the base unit; `units` are (name, base units in one).
fn parse(text: &str, units: &[(&str, u64)], expected: &'static str) -> Result<u64, UnitError> {
    let fail = |fault| Err(UnitError { expected, fault });
    let (mantissa, decimals, unit) = match split(text) {
        Ok(parts) => parts,
        Err(fault) => return fail(fault),
    };
    if unit.is_empty() {
        return fail(Fault::MissingUnit);
    }
    let Some(&(_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        return fail(Fault::UnknownUnit);
    };
    let scaled = u128::from(mantissa) * u128::from(factor);
    match 10u128.checked_pow(decimals) {
        Some(divisor) if scaled.is_multiple_of(divisor) => {
            u64::try_from(scaled / divisor).or(fail(Fault::Range))
        }
        _ => fail(Fault::Fraction),
    }
}

/// Digits without the point, how many of them follow it, and the rest of the text.
fn split(text: &str) -> Result<(u64, u32, &str), Fault> {
    let text = text.trim();
    let (mut mantissa, mut decimals, mut digits, mut point) = (0u64, 0, 0, false);
    let mut end = text.len();
    for (at, c) in text.char_indices() {
        match c {
            '0'..='9' => {
                let digit = u64::from(c as u32 - '0' as u32);
                mantissa = mantissa
                    .checked_mul(10)
                    .and_then(|m| m.checked_add(digit))
                    .ok_or(Fault::Range)?;
                digits += 1;
                decimals += u32::from(point);
            }
            '_' if digits > 0 => {}
            '.' if !point => point = true,
            _ => {
                end = at;
                break;
            }
        }
    }
    if digits == 0 || text[..end].ends_with('.') {
        Err(Fault::Number)
    } else {
        Ok((mantissa, decimals, text[end..].trim_start()))
    }
}

/// A plain decimal number in thousandths.
pub(crate) fn thousandths(text: &str) -> Result<u32, UnitError> {
    const EXPECTED: &str = "a number such as \"2.5\", with at most three decimals";
    let fail = |fault| UnitError { expected: EXPECTED, fault };
    match split(text).map_err(fail)? {
        (mantissa, decimals @ 0..=3, "") => {
            let value = mantissa.checked_mul(10u64.pow(3 - decimals)).ok_or(fail(Fault::Range))?;
            u32::try_from(value).map_err(|_| fail(Fault::Range))
        }
        (_, _, "") => Err(fail(Fault::Fraction)),
        _ => Err(fail(Fault::UnknownUnit)),
    }
}

macro_rules! quantity {
    ($name:ident, $expected:expr) => {
        #[cfg(feature = "serde")]
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                crate::units::text(from, $expected)
            }
        }

        #[cfg(feature = "serde")]
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }
    };
}

/// Deserialises a quantity from text. A bare number is a text that has no unit, which few take.
#[cfg(feature = "serde")]
pub(crate) fn text<'de, D, T>(from: D, expected: &'static str) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: FromStr<Err = UnitError>,
{
    struct Text<T>(&'static str, core::marker::PhantomData<T>);
    impl<T: FromStr<Err = UnitError>> serde::de::Visitor<'_> for Text<T> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
        fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<T, E> {
            v.parse().map_err(|e| E::custom(format_args!("\"{v}\": {e}")))
        }
        fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<T, E> {
            self.visit_str(&alloc::format!("{v}"))
        }
        fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<T, E> {
            self.visit_str(&alloc::format!("{v}"))
        }
    }
    from.deserialize_any(Text(expected, core::marker::PhantomData))
}

/// Deserialises what is either one quantity as text or a table of several.
#[cfg(feature = "serde")]
pub(crate) fn text_or_table<'de, D, Q, T, V>(
    from: D,
    expected: &'static str,
    simple: impl FnOnce(Q) -> V,
    full: impl FnOnce(T) -> V,
) -> Result<V, D::Error>
where
    D: serde::Deserializer<'de>,
    Q: FromStr<Err = UnitError>,
    T: serde::Deserialize<'de>,
{
    struct Either<Q, T>(&'static str, core::marker::PhantomData<(Q, T)>);
    impl<'de, Q, T> serde::de::Visitor<'de> for Either<Q, T>
    where
        Q: FromStr<Err = UnitError>,
        T: serde::Deserialize<'de>,
    {
        type Value = Result<Q, T>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
        fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<Self::Value, E> {
            v.parse().map(Ok).map_err(|e| E::custom(format_args!("\"{v}\": {e}")))
        }
        fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            T::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(Err)
        }
    }
    match from.deserialize_any(Either::<Q, T>(expected, core::marker::PhantomData))? {
        Ok(quantity) => Ok(simple(quantity)),
        Err(table) => Ok(full(table)),
    }
}

/// Writes `value` in the largest unit that divides it.
fn write_exact(f: &mut fmt::Formatter<'_>, value: u64, descending: &[(&str, u64)]) -> fmt::Result {
    let whole = |&&(_, factor): &&(&str, u64)| value >= factor && value.is_multiple_of(factor);
    match descending.iter().find(whole) {
        Some((name, factor)) => write!(f, "{} {name}", value / factor),
        None => write!(f, "{value} {}", descending[descending.len() - 1].0),
    }
}

/// A length of time in virtual nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(u64);

const SPAN: &str = "a time such as \"50 us\" (ns, us, ms, s)";
const SPANS: [(&str, u64); 5] =
    [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000), ("\u{b5}s", 1_000), ("ns", 1)];
quantity!(Span, SPAN);

impl Span {
    /// No time at all.
    pub const ZERO: Self = Self(0);

    /// `n` nanoseconds.
    pub const fn ns(n: u64) -> Self {
        Self(n)
    }
    /// `n` microseconds.
    pub const fn us(n: u64) -> Self {
        Self(n.saturating_mul(1_000))
    }
    /// `n` milliseconds.
    pub const fn ms(n: u64) -> Self {
        Self(n.saturating_mul(1_000_000))
    }
    /// `n` seconds.
    pub const fn secs(n: u64) -> Self {
        Self(n.saturating_mul(1_000_000_000))
    }
    /// The span in nanoseconds.
    pub const fn as_ns(self) -> u64 {
        self.0
    }
}

impl FromStr for Span {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text, &SPANS, SPAN).map(Self)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_exact(f, self.0, &SPANS)
    }
}

/// Bits per virtual second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(u64);

const RATE: &str = "a rate such as \"10 Gbit/s\" (bit/s, kbit/s, Mbit/s, Gbit/s, Tbit/s)";
const RATES: [(&str, u64); 5] = [
    ("Tbit/s", 1_000_000_000_000),
    ("Gbit/s", 1_000_000_000),
    ("Mbit/s", 1_000_000),
    ("kbit/s", 1_000),
    ("bit/s", 1),
];
quantity!(Rate, RATE);

impl Rate {
    /// `n` bits per second.
    pub const fn bits(n: u64) -> Self {
        Self(n)
    }
    /// `n` megabits per second.
    pub const fn mbit(n: u64) -> Self {
        Self(n.saturating_mul(1_000_000))
    }
    /// `n` gigabits per second.
    pub const fn gbit(n: u64) -> Self {
        Self(n.saturating_mul(1_000_000_000))
    }
    /// The rate in bits per second.
    pub const fn as_bits(self) -> u64 {
        self.0
    }
}

impl FromStr for Rate {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text, &RATES, RATE).map(Self)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_exact(f, self.0, &RATES)
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

const SIZE: &str = "a size such as \"64 kB\" (B, kB, KiB, MB, MiB, GB)";
const SIZES: [(&str, u64); 6] = [
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
];
quantity!(Size, SIZE);

impl Size {
    /// `n` bytes.
    pub const fn bytes(n: u64) -> Self {
        Self(n)
    }
    /// The size in bytes.
    pub const fn as_bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text, &SIZES, SIZE).map(Self)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_exact(f, self.0, &SIZES)
    }
}

/// A number of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frames(u32);

const FRAMES: &str = "a number of frames such as \"100 frames\"";
quantity!(Frames, FRAMES);

impl Frames {
    /// `n` frames.
    pub const fn new(n: u32) -> Self {
        Self(n)
    }
    /// How many.
    pub const fn count(self) -> u32 {
        self.0
    }
}

impl FromStr for Frames {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let n = parse(text, &[("frames", 1), ("frame", 1)], FRAMES)?;
        u32::try_from(n).map(Self).map_err(|_| UnitError { expected: FRAMES, fault: Fault::Range })
    }
}

impl fmt::Display for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} frames", self.0)
    }
}

/// A probability in steps of 2^-32, so that a draw of 32 bits decides it with no error of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Probability(u64);

const PROBABILITY: &str = "a probability such as \"0.1 %\" (%, ppm, or \"1/1000\")";
quantity!(Probability, PROBABILITY);

impl Probability {
    /// Never.
    pub const ZERO: Self = Self(0);
    /// Always.
    pub const ONE: Self = Self(1 << 32);

    /// `num / den`, to the nearest 2^-32; 1 if it is more than that, 0 if `den` is 0.
    pub const fn ratio(num: u64, den: u64) -> Self {
        if den == 0 {
            return Self::ZERO;
        }
        if num >= den {
            return Self::ONE;
        }
        let (num, den) = (num as u128, den as u128);
        Self((((num << 33) + den) / (2 * den)) as u64)
    }
    /// `raw / 2^32`, at most 1.
    pub(crate) const fn from_raw(raw: u64) -> Self {
        if raw > Self::ONE.0 { Self::ONE } else { Self(raw) }
    }
    /// The probability times 2^32: 0 ..= 2^32.
    pub const fn raw(self) -> u64 {
        self.0
    }
    /// The probability of the contrary.
    pub const fn complement(self) -> Self {
        Self(Self::ONE.0 - self.0)
    }
    /// The probability of both, were they independent.
    pub const fn times(self, other: Self) -> Self {
        Self(((self.0 as u128 * other.0 as u128 + (1 << 31)) >> 32) as u64)
    }
    /// Whether a uniform draw of 32 bits falls below it.
    pub(crate) const fn hit(self, draw: u32) -> bool {
        (draw as u64) < self.0
    }
}

impl FromStr for Probability {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let fail = |fault| UnitError { expected: PROBABILITY, fault };
        let (mantissa, decimals, unit) = split(text).map_err(fail)?;
        let (num, den) = match unit {
            "" => return Err(fail(Fault::MissingUnit)),
            "%" => (mantissa, 10u64.checked_pow(decimals).and_then(|d| d.checked_mul(100))),
            "ppm" => (mantissa, 10u64.checked_pow(decimals).and_then(|d| d.checked_mul(1_000_000))),
            _ => {
                let below = unit.strip_prefix('/').ok_or(fail(Fault::UnknownUnit))?;
                match (decimals, split(below).map_err(fail)?) {
                    (0, (den, 0, "")) if den > 0 => (mantissa, Some(den)),
                    _ => return Err(fail(Fault::Number)),
                }
            }
        };
        match den {
            Some(den) if num <= den => Ok(Self::ratio(num, den)),
            Some(_) => Err(fail(Fault::Range)),
            None => Err(fail(Fault::Fraction)),
        }
    }
}

impl fmt::Display for Probability {
    /// In percent, with as many decimals as it takes to come back to the same value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps =
            |unit: u64| ((u128::from(self.0) * u128::from(100 * unit) + (1 << 31)) >> 32) as u64;
        let (mut unit, mut decimals) = (1, 0);
        while decimals < 9 && Self::ratio(steps(unit), 100 * unit) != *self {
            (unit, decimals) = (10 * unit, decimals + 1);
        }
        let steps = steps(unit);
        match decimals {
            0 => write!(f, "{steps} %"),
            _ => write!(f, "{}.{:0decimals$} %", steps / unit, steps % unit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_exact() {
        assert_eq!("10 Gbit/s".parse(), Ok(Rate::gbit(10)));
        assert_eq!("2.5Gbit/s".parse(), Ok(Rate::mbit(2500)));
        assert_eq!("50 us".parse(), Ok(Span::us(50)));
        assert_eq!("0.5 \u{b5}s".parse(), Ok(Span::ns(500)));
        assert_eq!("1_000 ns".parse(), Ok(Span::us(1)));
        assert_eq!("64 KiB".parse(), Ok(Size::bytes(65536)));
        assert_eq!("100 frames".parse(), Ok(Frames::new(100)));
        assert_eq!("0.1 %".parse(), Ok(Probability::ratio(1, 1000)));
        assert_eq!("1/1000".parse(), Ok(Probability::ratio(1, 1000)));
        assert_eq!("250 ppm".parse(), Ok(Probability::ratio(1, 4000)));
        assert_eq!("100 %".parse(), Ok(Probability::ONE));
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        let faults: [(&str, Fault); 6] = [
            ("50", Fault::MissingUnit),
            ("us", Fault::Number),
            ("5. us", Fault::Number),
            ("1 parsec", Fault::UnknownUnit),
            ("0.1 ns", Fault::Fraction),
            ("99999999999999 s", Fault::Range),
        ];
        for (text, fault) in faults {
            assert_eq!(text.parse::<Span>().map_err(|e| e.fault), Err(fault), "{text}");
        }
        // Found by fuzzing: more decimals than a power of ten can have.
        assert!(std::format!("0.{:045} s", 0).parse::<Span>().is_err());
        assert!("101 %".parse::<Probability>().is_err());
        assert!("1/0".parse::<Probability>().is_err());
        assert!("0.5".parse::<Probability>().is_err());
        assert!("-1 us".parse::<Span>().is_err());
    }

    #[test]
    fn text_round_trips() {
        for span in [0, 1, 999, 1000, 1_500_000, 3_000_000_000] {
            assert_eq!(Span::ns(span).to_text().parse(), Ok(Span::ns(span)));
        }
        for raw in [0, 1, 4_294_967, 1 << 31, (1 << 32) - 1, 1 << 32] {
            assert_eq!(Probability(raw).to_text().parse(), Ok(Probability(raw)));
        }
        for (num, den, text) in [(1, 1000, "0.1 %"), (1, 8, "12.5 %"), (1, 1, "100 %")] {
            assert_eq!(Probability::ratio(num, den).to_text(), text);
        }
        assert_eq!(Rate::mbit(2500).to_text(), "2500 Mbit/s");
    }

    trait ToText {
        fn to_text(&self) -> std::string::String;
    }
    impl<T: fmt::Display> ToText for T {
        fn to_text(&self) -> std::string::String {
            std::format!("{self}")
        }
    }
}
