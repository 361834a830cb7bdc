// SPDX-License-Identifier: MIT OR Apache-2.0
//! Controlled delay (RFC 8289): drops by how long frames have waited, at a rate that grows with the
//! square root of their number, computed in integers to the nearest nanosecond.

use crate::{ConfigError, Span};

/// A queue of no more bytes than this is not standing: the longest Ethernet frame, without check sequence.
const MTU: u32 = 1514;

/// CoDel's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize, serde::Serialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields, default))]
pub struct CodelSpec {
    /// Waiting time that is acceptable for ever.
    pub target: Span,
    /// How long the waiting time must stay above `target` before anything is dropped.
    pub interval: Span,
    /// Mark frames that allow it instead of dropping them.
    pub ecn: bool,
}

impl Default for CodelSpec {
    /// 5 ms and 100 ms, as the RFC proposes.
    fn default() -> Self {
        Self { target: Span::ms(5), interval: Span::ms(100), ecn: false }
    }
}

/// A [`CodelSpec`], checked and ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Codel {
    target: u64,
    interval: u64,
    pub(crate) ecn: bool,
}

/// What changes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CodelState {
    /// When the waiting time will have been above target for an interval; 0: it is below.
    first_above: u64,
    drop_next: u64,
    count: u32,
    last_count: u32,
    dropping: bool,
}

impl Codel {
    pub(crate) fn new(spec: &CodelSpec) -> Result<Self, ConfigError> {
        let (target, interval) = (spec.target.as_ns(), spec.interval.as_ns());
        if interval == 0 {
            return Err(ConfigError::Zero("codel.interval"));
        }
        if interval > 1 << 40 {
            return Err(ConfigError::TooLarge("codel.interval"));
        }
        if target > interval {
            return Err(ConfigError::Inverted("codel.target and codel.interval"));
        }
        Ok(Self { target, interval, ecn: spec.ecn })
    }

    /// `interval / sqrt(count)` to the nearest ns.
    fn gap(&self, count: u32) -> u64 {
        let twice = (u128::from(self.interval).pow(2) * 4 / u128::from(count.max(1))).isqrt();
        (twice as u64).div_ceil(2)
    }

    /// Whether the frame that leaves the queue at `now` after `waited` ns is to be dropped;
    /// `left` bytes stay behind it.
    pub(crate) fn drops(&self, state: &mut CodelState, now: u64, waited: u64, left: u32) -> bool {
        let above = if waited < self.target || left <= MTU {
            state.first_above = 0;
            false
        } else if state.first_above == 0 {
            state.first_above = now + self.interval;
            false
        } else {
            now >= state.first_above
        };
        if state.dropping {
            state.dropping = above;
            if above && now >= state.drop_next {
                state.count += 1;
                state.drop_next += self.gap(state.count);
                return true;
            }
            return false;
        }
        if above {
            state.dropping = true;
            // Soon after the last bout: resume near the rate that controlled the queue then.
            let delta = state.count.saturating_sub(state.last_count);
            let recent = now.saturating_sub(state.drop_next) < 16 * self.interval;
            state.count = if delta > 1 && recent { delta } else { 1 };
            state.drop_next = now + self.gap(state.count);
            state.last_count = state.count;
        }
        above
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The queue is held above target and looked at each nanosecond around the drops.
    #[test]
    fn gaps_are_interval_over_root_n() {
        let codel = Codel::new(&CodelSpec::default()).unwrap();
        let mut state = CodelState::default();
        assert!(!codel.drops(&mut state, 1_000, 6_000_000, 100_000));
        assert!(!codel.drops(&mut state, 100_000_999, 6_000_000, 100_000));
        let mut last = 100_001_000;
        assert!(codel.drops(&mut state, last, 6_000_000, 100_000));
        let expected = [
            100_000_000u64,
            70_710_678,
            57_735_027,
            50_000_000,
            44_721_360,
            40_824_829,
            37_796_447,
            35_355_339,
        ];
        let first = last;
        for gap in expected {
            // Find the drop in a window of 3 ns on either side.
            let at = (last + gap - 3..=last + gap + 3)
                .find(|&now| codel.drops(&mut state, now, 6_000_000, 100_000))
                .expect("a drop within 3 ns");
            assert!((at - last).abs_diff(gap) <= 1, "{} {gap}", at - last);
            last = at;
        }
        assert!((last - first).abs_diff(437_143_680) <= 8);
    }

    #[test]
    fn a_short_or_fast_queue_is_left_alone() {
        let codel = Codel::new(&CodelSpec::default()).unwrap();
        let mut state = CodelState::default();
        for ms in 0..1000 {
            assert!(!codel.drops(&mut state, ms * 1_000_000, 4_999_999, 100_000));
            assert!(!codel.drops(&mut state, ms * 1_000_000, 50_000_000, 1514));
        }
    }
}
