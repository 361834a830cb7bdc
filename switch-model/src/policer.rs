// SPDX-License-Identifier: MIT OR Apache-2.0
//! A token bucket: what may pass at once, and how fast the allowance comes back.
//!
//! Tokens are counted in bit-nanoseconds per second (10^-9 bit), so that a rate in bits per second
//! over whole nanoseconds fills the bucket with no rounding: in every window of length T at most
//! burst + rate * T bytes pass.

use crate::{ConfigError, Rate, Size};

/// Tokens in one byte.
const BYTE: u64 = 8_000_000_000;

/// Rate and burst of a token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize, serde::Serialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct PolicerSpec {
    /// The rate at which the allowance comes back.
    pub rate: Rate,
    /// The allowance of a port that has been silent.
    pub burst: Size,
}

impl PolicerSpec {
    /// How long a source of rate `peak`, silent before, conforms, in whole ns, and the bytes that it
    /// sends in that time; `None` if it conforms for ever.
    pub fn conforming_burst(&self, peak: Rate) -> Option<(u64, u64)> {
        let surplus = u128::from(peak.as_bits().checked_sub(self.rate.as_bits())?);
        let bits = u128::from(self.burst.as_bytes()) * 8;
        let ns = (bits * 1_000_000_000).checked_div(surplus)?;
        let bytes = (bits * u128::from(peak.as_bits())).checked_div(surplus * 8)?;
        Some((u64::try_from(ns).ok()?, u64::try_from(bytes).ok()?))
    }
}

/// A [`PolicerSpec`], checked and ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Policer {
    rate: u64,
    pub(crate) full: u64,
}

impl Policer {
    pub(crate) fn new(spec: &PolicerSpec) -> Result<Self, ConfigError> {
        let full = spec.burst.as_bytes().checked_mul(BYTE).ok_or(ConfigError::Policer)?;
        if spec.rate.as_bits() == 0 {
            return Err(ConfigError::Policer);
        }
        Ok(Self { rate: spec.rate.as_bits(), full })
    }

    /// Whether `len` bytes may pass, `elapsed` ns after `tokens` was last brought up to date.
    #[inline]
    pub(crate) fn admit(&self, tokens: &mut u64, elapsed: u64, len: u32) -> bool {
        let refilled = tokens.saturating_add(self.rate.saturating_mul(elapsed)).min(self.full);
        let price = u64::from(len) * BYTE;
        let pass = price <= refilled;
        *tokens = if pass { refilled - price } else { refilled };
        pass
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: PolicerSpec = PolicerSpec { rate: Rate::mbit(100), burst: Size::bytes(15_000) };

    #[test]
    fn conforming_burst_in_closed_form_and_in_truth() {
        assert_eq!(SPEC.conforming_burst(Rate::gbit(1)), Some((133_333, 16_666)));
        assert_eq!(SPEC.conforming_burst(Rate::mbit(100)), None);
        // One byte every 8 ns, the first at 0: 1 Gbit/s. The first refusal ends the burst.
        let policer = Policer::new(&SPEC).unwrap();
        let mut tokens = policer.full;
        let mut passed = 0u64;
        while policer.admit(&mut tokens, 8 * u64::from(passed > 0), 1) {
            passed += 1;
        }
        assert_eq!(passed, 16_666);
        assert!((133_328..=133_336).contains(&(passed * 8)));
    }

    /// In every window, bytes <= burst + rate * T: checked for all pairs of passed frames.
    #[test]
    fn no_window_gets_more() {
        let policer = Policer::new(&SPEC).unwrap();
        let mut tokens = policer.full;
        let (mut now, mut last) = (0u64, 0u64);
        let mut passed: std::vec::Vec<(u64, u64)> = std::vec::Vec::new();
        let mut refused = 0;
        for i in 0..3000u64 {
            let draw = crate::rng::mix(i);
            now += draw % 100_000;
            let len = 64 + (draw >> 32) as u32 % 1455;
            if policer.admit(&mut tokens, now - last, len) {
                passed.push((now, u64::from(len)));
            } else {
                refused += 1;
            }
            last = now;
        }
        assert!(refused > 100, "the load must exceed the rate for the bound to be tested");
        for (i, &(from, _)) in passed.iter().enumerate() {
            let mut bytes = 0;
            for &(to, len) in &passed[i..] {
                bytes += len;
                // In bit-nanoseconds per second on both sides, exactly.
                assert!(bytes * BYTE <= policer.full + 100_000_000 * (to - from));
            }
        }
    }

    #[test]
    fn long_silence_saturates() {
        let policer = Policer::new(&SPEC).unwrap();
        let mut tokens = 0;
        assert!(policer.admit(&mut tokens, u64::MAX, 15_000));
        assert_eq!(tokens, 0);
        assert!(!policer.admit(&mut tokens, 0, 1));
    }
}
