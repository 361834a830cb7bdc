// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random early detection, in exact fractions.
//!
//! Between `min` and `max` the chance of a drop (or mark) grows linearly with the averaged queue,
//! and the gap between two drops is spread uniformly, not geometrically: pb / (1 - count * pb).
//! Both are decided by comparing integers, so the gap's distribution is exactly uniform.

use crate::{ConfigError, Probability, Size};

/// Fractional bits of the averaged queue.
const SHIFT: u32 = 16;

/// RED's parameters; the queue is measured in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize, serde::Serialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct RedSpec {
    /// Averaged queue below which nothing happens.
    pub min: Size,
    /// Averaged queue from which every frame is dropped.
    pub max: Size,
    /// Chance just below `max`.
    pub probability: Probability,
    /// The average moves by 2^-weight of the difference with each arrival; 0 is no averaging.
    #[cfg_attr(feature = "serde", serde(default))]
    pub weight: u8,
    /// Mark frames that allow it instead of dropping them, below `max`.
    #[cfg_attr(feature = "serde", serde(default))]
    pub ecn: bool,
}

/// A [`RedSpec`], checked and ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Red {
    min: u64,
    max: u64,
    probability: Probability,
    weight: u8,
    pub(crate) ecn: bool,
}

/// What changes: 12 bytes of a port.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RedState {
    /// Averaged queue in bytes, 16 fractional bits, in two halves so that the struct packs.
    average: [u32; 2],
    /// Frames since the last drop or mark.
    count: u32,
}

/// What RED says to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Early {
    Pass,
    /// By chance: may be a mark.
    Chance,
    /// The averaged queue is at `max` or above.
    Forced,
}

impl Red {
    pub(crate) fn new(spec: &RedSpec) -> Result<Self, ConfigError> {
        let (min, max) = (spec.min.as_bytes(), spec.max.as_bytes());
        if max > u64::from(u32::MAX) {
            return Err(ConfigError::TooLarge("red.max"));
        }
        if min >= max {
            return Err(ConfigError::Inverted("red.min and red.max"));
        }
        if spec.weight > 16 {
            return Err(ConfigError::TooLarge("red.weight"));
        }
        let (probability, ecn) = (spec.probability, spec.ecn);
        Ok(Self { min: min << SHIFT, max: max << SHIFT, probability, weight: spec.weight, ecn })
    }

    /// Judges an arrival that finds `queue` bytes, after `idle` frame times of an empty queue.
    pub(crate) fn judge(&self, state: &mut RedState, queue: u32, idle: u64, draw: u32) -> Early {
        let mut average = u64::from(state.average[0]) << 32 | u64::from(state.average[1]);
        if idle > 0 {
            average = self.decayed(average, idle);
        }
        let queue = u64::from(queue) << SHIFT;
        let up = queue.saturating_sub(average) >> self.weight;
        let down = average.saturating_sub(queue) >> self.weight;
        average = average + up - down;
        state.average = [(average >> 32) as u32, average as u32];
        if average < self.min {
            state.count = 0;
            return Early::Pass;
        }
        if average >= self.max {
            state.count = 0;
            return Early::Forced;
        }
        // pb = n / d; drop iff draw / 2^32 < pb / (1 - count pb), cross-multiplied.
        let n = u128::from(self.probability.raw()) * u128::from(average - self.min);
        let d = u128::from(self.max - self.min) << 32;
        let spared = d.saturating_sub(n * u128::from(state.count));
        if u128::from(draw) * spared < n << 32 {
            state.count = 0;
            Early::Chance
        } else {
            state.count = state.count.saturating_add(1);
            Early::Pass
        }
    }

    /// `average` times (1 - 2^-weight)^idle.
    fn decayed(&self, average: u64, idle: u64) -> u64 {
        let mut power = (1u64 << 32) - (1u64 << (32 - self.weight));
        let mut left = idle;
        let mut factor = 1u64 << 32;
        while left > 0 && factor > 0 {
            if left & 1 == 1 {
                factor = ((u128::from(factor) * u128::from(power)) >> 32) as u64;
            }
            power = ((u128::from(power) * u128::from(power)) >> 32) as u64;
            left >>= 1;
        }
        ((u128::from(average) * u128::from(factor)) >> 32) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn red(weight: u8) -> Red {
        Red::new(&RedSpec {
            min: Size::bytes(5),
            max: Size::bytes(15),
            probability: Probability::ratio(1, 10),
            weight,
            ecn: false,
        })
        .unwrap()
    }

    /// Average 10 between 5 and 15 with at most 10 %: p = 0.05, and the gap is uniform on 1 ..= 20.
    ///
    /// 10^6 gaps: each of the 20 bins holds 50 000 with a standard deviation of 218; a deviation of
    /// 5 sigma (2.2 % of a bin) fails, chance of a false alarm 1e-5.
    #[test]
    fn gaps_are_uniform() {
        let red = red(0);
        let mut state = RedState::default();
        let mut bins = [0u32; 21];
        let (mut gap, mut gaps, mut sum) = (0usize, 0u32, 0usize);
        for n in 0.. {
            let draw = (crate::rng::mix(n) >> 32) as u32;
            gap += 1;
            if red.judge(&mut state, 10, 0, draw) == Early::Chance {
                bins[gap] += 1;
                (gaps, sum, gap) = (gaps + 1, sum + gap, 0);
                if gaps == 1_000_000 {
                    break;
                }
            }
        }
        assert!(bins[1..].iter().all(|&b| b.abs_diff(50_000) < 5 * 218), "{bins:?}");
        // Mean 10.5, sd of the mean 5.77e-3: 5 sigma.
        let mean = sum as f64 / f64::from(gaps);
        assert!((mean - 10.5).abs() < 0.029, "{mean}");
    }

    /// The chance itself, exactly: with count 0 the largest draw that drops is p * 2^32.
    #[test]
    fn chance_is_exact() {
        let red = red(0);
        let first = |queue, draw| red.judge(&mut RedState::default(), queue, 0, draw);
        let p = (Probability::ratio(1, 10).raw() / 2) as u32;
        assert_eq!((first(10, p - 1), first(10, p + 1)), (Early::Chance, Early::Pass));
        assert_eq!((first(4, 0), first(5, 0)), (Early::Pass, Early::Pass));
        assert_eq!((first(14, 0), first(15, u32::MAX)), (Early::Chance, Early::Forced));
        // The 20th frame since the last drop has no way out.
        let mut state = RedState { count: 19, ..RedState::default() };
        assert_eq!(red.judge(&mut state, 10, 0, u32::MAX), Early::Chance);
    }

    #[test]
    fn average_follows_and_decays() {
        let red = red(9);
        let mut state = RedState::default();
        for _ in 0..512 {
            red.judge(&mut state, 8, 0, u32::MAX);
        }
        // 8 (1 - (1 - 2^-9)^512) = 5.0598
        let average = f64::from(state.average[1]) / 65536.0;
        assert!((average - 5.0598).abs() < 0.02, "{average}");
        red.judge(&mut state, 0, 511, u32::MAX);
        // Decayed by 512 frame times in all: 5.06 e^-1.001
        let average = f64::from(state.average[1]) / 65536.0;
        assert!((average - 1.8597).abs() < 0.02, "{average}");
    }
}
