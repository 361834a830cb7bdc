// SPDX-License-Identifier: MIT OR Apache-2.0
//! A clock made of the raw TSC and the frequency that the guest believes it has.
//!
//! Xen corrects the slope of a native TSC about once a second, and restarts its own clock there a
//! little off the end of the old line. So a TSC is followed only while one published line lasts: the
//! ticks of that stretch become ns by that line's slope, without rounding, and the real time between
//! the same two readings is added up next to it. What lies between the last reading on one line and
//! the first on the next is left out of both sums. An emulated TSC is computed from the domain's own
//! time by a slope that never changes; there the stretch lasts as long as the slope does.
//!
//! Real time is known as an interval: of two readings, each taken between two samples, at least
//! `before₁ − after₀` and at most `after₁ − before₀` have passed, and each sample is a whole number
//! of ns, rounded down, which is one more on either side. The sums of these ends are a reading whose
//! bracket is as wide as all stretches together are uncertain, with an exact origin: (0, 0, 0).

use tdf_xen::clock::TimeInfo;

/// One reading of the TSC.
#[derive(Clone, Copy, Debug)]
pub struct TscPoint {
    /// The line that was valid then.
    pub info: TimeInfo,
    /// The counter.
    pub tsc: u64,
    /// Real time before, ns.
    pub before_ns: i64,
    /// Real time after, ns.
    pub after_ns: i64,
}

/// What the TSC has counted, and the real time that this took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TscSpan {
    /// Least real time, ns.
    pub least_real_ns: i64,
    /// Most real time, ns.
    pub most_real_ns: i64,
    /// ns by the TSC, in units of 2⁻⁶⁴ ns.
    exact: i128,
}

impl TscSpan {
    /// ns by the TSC, rounded down.
    pub fn value_ns(&self) -> i64 {
        (self.exact >> 64) as i64
    }

    fn between(first: &TscPoint, last: &TscPoint) -> Option<Self> {
        if first.tsc == last.tsc {
            return Some(Self::default());
        }
        let ticks = last.tsc.wrapping_sub(first.tsc).cast_signed();
        Some(Self {
            least_real_ns: last.before_ns.checked_sub(first.after_ns)?.checked_sub(1)?,
            most_real_ns: last.after_ns.checked_sub(first.before_ns)?.checked_add(1)?,
            exact: first.info.exact(ticks)?,
        })
    }

    fn plus(&self, other: &Self) -> Option<Self> {
        Some(Self {
            least_real_ns: self.least_real_ns.checked_add(other.least_real_ns)?,
            most_real_ns: self.most_real_ns.checked_add(other.most_real_ns)?,
            exact: self.exact.checked_add(other.exact)?,
        })
    }
}

/// Follows the TSC from line to line.
#[derive(Debug)]
pub struct TscClock {
    emulated: bool,
    done: TscSpan,
    stretch: Option<(TscPoint, TscPoint)>,
}

impl TscClock {
    /// A clock that has seen nothing.
    pub const fn new(emulated: bool) -> Self {
        let done = TscSpan { least_real_ns: 0, most_real_ns: 0, exact: 0 };
        Self { emulated, done, stretch: None }
    }

    fn same_line(&self, a: &TimeInfo, b: &TimeInfo) -> bool {
        (a.mul, a.shift) == (b.mul, b.shift) && (self.emulated || a.version == b.version)
    }

    /// Takes the next reading; the sums up to it, `None` if they overflow or a slope is absurd.
    pub fn add(&mut self, point: TscPoint) -> Option<TscSpan> {
        let first = match self.stretch {
            Some((first, _)) if self.same_line(&first.info, &point.info) => first,
            Some((first, last)) => {
                self.done = self.done.plus(&TscSpan::between(&first, &last)?)?;
                point
            }
            None => point,
        };
        self.stretch = Some((first, point));
        self.done.plus(&TscSpan::between(&first, &point)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line on which one tick is `mul`/2^31 ns.
    fn point(version: u32, mul: u32, tsc: u64, before_ns: i64, after_ns: i64) -> TscPoint {
        let info =
            TimeInfo { version, tsc_timestamp: 0, system_time_ns: 0, mul, shift: 1, flags: 0 };
        TscPoint { info, tsc, before_ns, after_ns }
    }

    const ONE: u32 = 1 << 31;

    #[test]
    fn a_stretch_counts_ticks_and_brackets_real_time() {
        let mut clock = TscClock::new(false);
        assert_eq!(clock.add(point(2, ONE, 1_000, 50, 60)), Some(TscSpan::default()));
        let span = clock.add(point(2, ONE, 2_000, 1_052, 1_061)).unwrap();
        assert_eq!(
            (span.value_ns(), span.least_real_ns, span.most_real_ns),
            (1_000, 1_052 - 60 - 1, 1_061 - 50 + 1)
        );
    }

    #[test]
    fn the_gap_between_two_lines_is_in_neither_sum() {
        let mut clock = TscClock::new(false);
        clock.add(point(2, ONE, 1_000, 0, 0)).unwrap();
        clock.add(point(2, ONE, 2_000, 1_000, 1_000)).unwrap();
        // A new line of half the slope; the million ticks up to here are left out.
        let same = clock.add(point(4, ONE / 2, 1_000_000, 9_000_000, 9_000_000)).unwrap();
        assert_eq!((same.value_ns(), same.most_real_ns), (1_000, 1_001));
        let span = clock.add(point(4, ONE / 2, 1_001_000, 9_000_500, 9_000_500)).unwrap();
        assert_eq!((span.value_ns(), span.most_real_ns), (1_500, 1_502));
    }

    #[test]
    fn an_emulated_tsc_goes_on_over_a_new_version_of_the_same_slope() {
        let points = [point(2, ONE, 0, 0, 0), point(4, ONE, 5_000, 5_000, 5_000)];
        for (emulated, value) in [(true, 5_000), (false, 0)] {
            let mut clock = TscClock::new(emulated);
            clock.add(points[0]).unwrap();
            assert_eq!(clock.add(points[1]).unwrap().value_ns(), value);
        }
    }

    #[test]
    fn fractions_of_a_ns_are_not_lost() {
        // Three ticks of a third of a ns (rounded up in the last bit), on 1000 lines.
        let mul = (ONE / 3) + 1;
        let mut clock = TscClock::new(false);
        let mut span = TscSpan::default();
        for n in 0..1000u32 {
            clock.add(point(2 * n, mul, 10 * u64::from(n), 0, 0)).unwrap();
            span = clock.add(point(2 * n, mul, 10 * u64::from(n) + 1, 0, 0)).unwrap();
        }
        assert_eq!(span.value_ns(), 333);
    }

    #[test]
    fn a_tsc_that_goes_back_counts_backwards() {
        let mut clock = TscClock::new(true);
        clock.add(point(2, ONE, 1_000, 0, 0)).unwrap();
        assert_eq!(clock.add(point(2, ONE, 900, 0, 0)).unwrap().value_ns(), -100);
    }
}
