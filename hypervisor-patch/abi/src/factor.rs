// SPDX-License-Identifier: MIT OR Apache-2.0
//! The time dilation factor as an exact rational.

use core::fmt;
use core::str::FromStr;

use crate::hypercall::TDF_MAX;

/// Digits that a decimal factor may have behind its point.
const DECIMALS: usize = 6;

/// A time dilation factor: `num` real nanoseconds pass in `den` virtual ones.
///
/// Always in lowest terms and within 1/[`TDF_MAX`] … [`TDF_MAX`]. Written `10`, `2.5`, `5/2`, `1/4`.
///
/// ```
/// let tdf: tdf_abi::Tdf = "2.5".parse().unwrap();
/// assert_eq!((tdf.num(), tdf.den()), (5, 2));
/// assert_eq!(tdf.to_string(), "5/2");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tdf {
    num: u32,
    den: u32,
}

/// Why a text or a pair of integers is no [`Tdf`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TdfError {
    /// Not of the form `10`, `2.5` or `5/2`.
    Syntax,
    /// A number too long to be held: at most 9 digits, of which 6 behind the point.
    Precision,
    /// Outside 1/1000 … 1000, 0 and x/0 included.
    Range,
}

impl fmt::Display for TdfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Syntax => "a TDF is written 10, 2.5 or 5/2",
            Self::Precision => {
                "a TDF has at most 9 digits a number, and 6 digits behind the decimal point"
            }
            Self::Range => "a TDF lies between 1/1000 and 1000",
        })
    }
}

impl core::error::Error for TdfError {}

impl Tdf {
    /// The factor of a domain that is not dilated.
    pub const ONE: Self = Self { num: 1, den: 1 };

    /// The factor `num/den`, reduced.
    ///
    /// # Errors
    /// [`TdfError::Range`] unless `1/TDF_MAX <= num/den <= TDF_MAX`.
    pub const fn new(num: u32, den: u32) -> Result<Self, TdfError> {
        let (n, d, max) = (num as u64, den as u64, TDF_MAX as u64);
        if n == 0 || d == 0 || n > d * max || d > n * max {
            return Err(TdfError::Range);
        }
        let gcd = gcd(num, den);
        Ok(Self { num: num / gcd, den: den / gcd })
    }

    /// Real nanoseconds in [`Self::den`] virtual ones.
    pub const fn num(self) -> u32 {
        self.num
    }

    /// Virtual nanoseconds in [`Self::num`] real ones.
    pub const fn den(self) -> u32 {
        self.den
    }

    /// The virtual nanoseconds that pass in `real_ns`, rounded down (towards −∞), as Xen does it.
    pub const fn to_virtual(self, real_ns: i128) -> i128 {
        (real_ns * self.den as i128).div_euclid(self.num as i128)
    }

    /// The real nanoseconds after which `virtual_ns` have passed, rounded up, as Xen does it.
    pub const fn to_real(self, virtual_ns: i128) -> i128 {
        -(-virtual_ns * self.num as i128).div_euclid(self.den as i128)
    }
}

const fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

fn digits(text: &str) -> Result<u32, TdfError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(TdfError::Syntax);
    }
    if text.len() > 9 {
        return Err(TdfError::Precision);
    }
    text.parse().map_err(|_| TdfError::Syntax)
}

impl FromStr for Tdf {
    type Err = TdfError;

    fn from_str(text: &str) -> Result<Self, TdfError> {
        if let Some((num, den)) = text.split_once('/') {
            return Self::new(digits(num)?, digits(den)?);
        }
        let Some((whole, fraction)) = text.split_once('.') else {
            return Self::new(digits(text)?, 1);
        };
        let (whole, part) = (digits(whole)?, digits(fraction)?);
        if fraction.len() > DECIMALS {
            return Err(TdfError::Precision);
        }
        let den = 10u32.pow(fraction.len() as u32);
        let num = whole.checked_mul(den).and_then(|n| n.checked_add(part));
        Self::new(num.ok_or(TdfError::Range)?, den)
    }
}

impl fmt::Display for Tdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.den {
            1 => write!(f, "{}", self.num),
            den => write!(f, "{}/{den}", self.num),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_written_forms_mean_the_same() {
        for (text, num, den) in
            [("10", 10, 1), ("2.5", 5, 2), ("5/2", 5, 2), ("10/4", 5, 2), ("1/1000", 1, 1000)]
        {
            assert_eq!(text.parse(), Tdf::new(num, den), "{text}");
        }
    }

    #[test]
    fn what_is_no_factor_is_refused_for_the_right_reason() {
        use TdfError::*;
        for (text, why) in [
            ("", Syntax),
            ("-3", Syntax),
            ("+3", Syntax),
            ("abc", Syntax),
            ("1e9", Syntax),
            ("2.", Syntax),
            (".5", Syntax),
            ("1/", Syntax),
            ("1/2/3", Syntax),
            (" 1", Syntax),
            ("0", Range),
            ("1/0", Range),
            ("0/1", Range),
            ("5000", Range),
            ("1000.1", Range),
            ("1/1001", Range),
            ("9999.999999", Range),
            ("1.0000001", Precision),
            ("1000000000/1000000000", Precision),
        ] {
            assert_eq!(text.parse::<Tdf>(), Err(why), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn text_round_trips(num in 1u32..1_000_000, den in 1u32..1_000_000) {
            if let Ok(tdf) = Tdf::new(num, den) {
                prop_assert_eq!(tdf.to_string().parse(), Ok(tdf));
            }
        }

        #[test]
        fn conversions_are_inverse_up_to_their_rounding(
            num in 1u32..=1000, den in 1u32..=1000, t in -(1i64 << 62)..(1i64 << 62)
        ) {
            let (tdf, t) = (Tdf::new(num, den).unwrap(), i128::from(t));
            prop_assert!(tdf.to_virtual(tdf.to_real(t)) >= t);
            prop_assert!(tdf.to_real(tdf.to_virtual(t)) <= t);
        }
    }
}
