// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a clock said and when, and whether theory allows it.
//!
//! A probe (our kernel, or a process in a Linux guest) reads a clock between two samples of real
//! time and prints the [`Reading`] as one line. Whoever judges, the guest itself or `tdf` in dom0,
//! feeds the readings of one clock to a [`Judge`], which knows the domain's TDF and nothing else.

use core::fmt;

use tdf_abi::Tdf;

/// First word of a reading's line.
const TAG: &str = "tdf-reading";

/// One reading of one clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading<'a> {
    /// `system_time`, `wall_clock`, `tsc`, `timer`, `CLOCK_MONOTONIC` …; no white space.
    pub clock: &'a str,
    /// Real time (Xen's system time) just before the clock was read, ns.
    pub real_before_ns: i64,
    /// Real time just after it was read, ns.
    pub real_after_ns: i64,
    /// What the clock said, ns of virtual time since any fixed origin.
    pub value_ns: i64,
    /// For timers: real ns by which an expiry may be late without being wrong; 0 for clocks.
    pub slack_real_ns: i64,
}

impl fmt::Display for Reading<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{TAG} clock={} real_before_ns={} real_after_ns={} value_ns={} slack_real_ns={}",
            self.clock, self.real_before_ns, self.real_after_ns, self.value_ns, self.slack_real_ns
        )
    }
}

impl<'a> Reading<'a> {
    /// The reading in `line`, `None` if the line is not one.
    ///
    /// The line comes from a guest: a malformed one is no reading, and the order of real times and
    /// the sign of the slack are checked here so that nobody else must.
    pub fn parse(line: &'a str) -> Option<Self> {
        let mut words = line.trim().split(' ');
        if words.next()? != TAG {
            return None;
        }
        let mut field = |name: &str| words.next()?.strip_prefix(name)?.strip_prefix('=');
        let reading = Self {
            clock: field("clock")?,
            real_before_ns: field("real_before_ns")?.parse().ok()?,
            real_after_ns: field("real_after_ns")?.parse().ok()?,
            value_ns: field("value_ns")?.parse().ok()?,
            slack_real_ns: field("slack_real_ns")?.parse().ok()?,
        };
        let sane = reading.real_before_ns <= reading.real_after_ns && reading.slack_real_ns >= 0;
        (words.next().is_none() && sane && !reading.clock.is_empty()).then_some(reading)
    }
}

/// What a [`Judge`] found, of the reading that came nearest to (or went furthest past) its bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Readings judged, the first (the origin of the others) not counted.
    pub readings: u32,
    /// Real time since the first reading, ns, between the middles of the two.
    pub real_ns: i64,
    /// What the clock advanced meanwhile, ns.
    pub virtual_ns: i64,
    /// What it should have: `real_ns`/TDF.
    pub expected_ns: i64,
    /// `virtual_ns - expected_ns`.
    pub error_ns: i64,
    /// Largest |`error_ns`| that theory allows: 1 ns, the reading latency, the 5·10⁻¹⁰ of Xen's
    /// 32-bit TSC multiplier, and for a late timer its slack.
    pub bound_ns: i64,
    /// Whether every reading kept its bound.
    pub pass: bool,
}

/// Judges the readings of one clock against `ΔV = ΔR/TDF`.
#[derive(Clone, Debug)]
pub struct Judge {
    tdf: Tdf,
    first: Option<(i64, i64, i64)>,
    worst: Option<Verdict>,
    readings: u32,
    pass: bool,
}

impl Judge {
    /// A judge for a domain whose TDF does not change meanwhile.
    pub const fn new(tdf: Tdf) -> Self {
        Self { tdf, first: None, worst: None, readings: 0, pass: true }
    }

    /// Takes the next reading; the first becomes the origin of all others.
    pub fn add(&mut self, reading: &Reading<'_>) {
        let Reading { real_before_ns: before, real_after_ns: after, value_ns: value, .. } =
            *reading;
        let Some((before0, after0, value0)) = self.first else {
            self.first = Some((before, after, value));
            return;
        };
        // In half nanoseconds, because the middle of an interval may lie between two.
        let wide = i128::from;
        let real2 = wide(before) + wide(after) - wide(before0) - wide(after0);
        let width2 = wide(after) - wide(before) + wide(after0) - wide(before0);
        let virt = wide(value) - wide(value0);
        let expected = self.tdf.to_virtual(real2).div_euclid(2);
        let error = virt - expected;
        // A timer that is late has let more real time pass than its deadline says: error < 0.
        let slack2 = if error < 0 { 2 * wide(reading.slack_real_ns) } else { 0 };
        let latency = (self.up(width2 + slack2) + 1) / 2;
        let bound = 1 + latency + virt.abs() / 2_000_000_000;
        self.readings += 1;
        self.pass &= error.abs() <= bound;
        let narrow = |x: i128| i64::try_from(x).unwrap_or(i64::MAX);
        let verdict = Verdict {
            readings: 0,
            real_ns: narrow(real2 / 2),
            virtual_ns: narrow(virt),
            expected_ns: narrow(expected),
            error_ns: narrow(error),
            bound_ns: narrow(bound),
            pass: true,
        };
        let share = |v: &Verdict| wide(v.error_ns).abs() * 1_000_000 / wide(v.bound_ns.max(1));
        if self.worst.as_ref().is_none_or(|worst| share(&verdict) >= share(worst)) {
            self.worst = Some(verdict);
        }
    }

    /// Virtual time in `real_ns`, rounded up.
    fn up(&self, real_ns: i128) -> i128 {
        -self.tdf.to_virtual(-real_ns)
    }

    /// The verdict so far; `None` until there are two readings.
    pub fn verdict(&self) -> Option<Verdict> {
        let worst = self.worst?;
        Some(Verdict { readings: self.readings, pass: self.pass, ..worst })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(before: i64, after: i64, value: i64, slack: i64) -> Reading<'static> {
        Reading {
            clock: "system_time",
            real_before_ns: before,
            real_after_ns: after,
            value_ns: value,
            slack_real_ns: slack,
        }
    }

    fn judge(tdf: &str, readings: &[Reading<'_>]) -> Verdict {
        let mut judge = Judge::new(tdf.parse().unwrap());
        readings.iter().for_each(|r| judge.add(r));
        judge.verdict().unwrap()
    }

    #[test]
    fn a_line_round_trips_and_anything_else_is_no_reading() {
        let r = reading(-5, 7, 1 << 60, 50_000);
        let line = r.to_string();
        assert_eq!(Reading::parse(&line), Some(r));
        for bad in [
            "",
            "tdf-reading",
            "tdf-reading clock= real_before_ns=1 real_after_ns=2 value_ns=3 slack_real_ns=0",
            "tdf-reading clock=a real_before_ns=2 real_after_ns=1 value_ns=3 slack_real_ns=0",
            "tdf-reading clock=a real_before_ns=1 real_after_ns=2 value_ns=3 slack_real_ns=-1",
            "tdf-reading clock=a real_before_ns=1 real_after_ns=2 value_ns=x slack_real_ns=0",
        ] {
            assert_eq!(Reading::parse(bad), None, "{bad}");
        }
        assert_eq!(Reading::parse(&format!("{line} more=1")), None);
    }

    #[test]
    fn the_bound_is_one_ns_and_the_latency_of_both_ends() {
        // Widths 20 and 40 real ns: the middles are known to ±30, which are ±3 at TDF 10.
        let exact = [reading(0, 20, 0, 0), reading(10_000, 10_040, 1001, 0)];
        let v = judge("10", &exact);
        assert_eq!((v.expected_ns, v.error_ns, v.bound_ns, v.pass), (1001, 0, 4, true));
        for (value, pass) in [(1005, true), (1006, false), (997, true), (996, false)] {
            let v = judge("10", &[exact[0], reading(10_000, 10_040, value, 0)]);
            assert_eq!(v.pass, pass, "{value}: {v:?}");
        }
    }

    #[test]
    fn a_timer_may_be_late_by_its_slack_and_never_early() {
        let start = reading(0, 0, 0, 0);
        // Armed for V = 1000 at TDF 10, so for R = 10 000.
        for (fired, pass) in [(10_000, true), (10_500, true), (10_521, false), (9_980, false)] {
            let v = judge("10", &[start, reading(fired, fired, 1000, 500)]);
            assert_eq!(v.pass, pass, "{fired}: {v:?}");
        }
    }

    #[test]
    fn one_bad_reading_among_good_ones_fails_and_is_the_one_shown() {
        let v = judge(
            "1",
            &[reading(0, 0, 0, 0), reading(50, 50, 60, 0), reading(1000, 1000, 1000, 0)],
        );
        assert_eq!((v.pass, v.readings, v.error_ns), (false, 2, 10));
    }
}
