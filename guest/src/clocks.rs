// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `clocks` self-test: does every clock of this domain run at 1/TDF of real time?
//!
//! At seeded points of virtual time each clock is read between two samples of real time. The way
//! from point to point is slept, and each sleep's end is a reading of the timer that ended it. All
//! readings are kept until the end: nothing is printed while anything is measured, because a reader
//! of the console would compete for the CPU with what is measured. Without real time (a Xen without
//! the patch, or a domain that may not know it) only what needs none is checked, and the test is
//! skipped, not passed.

use alloc::vec::Vec;
use core::fmt;

use tdf_abi::{Tdf, TdfSample};
use tdf_xen::hypercall::{Hypercall, Xen, XenError};
use tdf_xen::reading::{Judge, Reading};

use crate::cmdline::ClocksOptions;
use crate::machine::{Cpu, Machine, Via};
use crate::probe::{
    Outcome, ROUNDING_NS, Random, TIMER_SLACK_REAL_NS, TestError, grid_ns, reveal, say,
};
use crate::tsc::{TscClock, TscPoint, TscSpan};

/// Names of the clocks, in the order of their summary.
const CLOCKS: [&str; 5] = ["system_time", "wall_clock", "tsc", "timer", "set_timer_op"];

/// Longest real time between two readings of the TSC, ns: a tenth of what a published line lasts,
/// so that at least four fifths of the time are measured.
const TSC_SLICE_REAL_NS: i128 = 100_000_000;

/// Difference between system time as read and as told by Xen that no latency explains, ns.
const LOST_NS: u64 = 10_000_000_000;

/// Weight of a gap: the longest is three times the shortest.
fn weight(random: &mut Random) -> u64 {
    (1 << 16) + random.next(2 << 16)
}

/// When to read, in ns after the first reading: `samples` rising times, the last of them `span_ns`.
fn points(options: ClocksOptions) -> impl Iterator<Item = i64> {
    let ClocksOptions { span_ns, samples, seed } = options;
    let mut random = Random(seed);
    let total: u64 = (0..samples).map(|_| weight(&mut random)).sum();
    let mut random = Random(seed);
    let mut passed = 0u64;
    (0..samples).map(move |_| {
        passed += weight(&mut random);
        (u128::from(span_ns) * u128::from(passed) / u128::from(total)) as i64
    })
}

/// The test while it runs.
struct Run<'m, X> {
    machine: &'m Machine<'m, X>,
    /// The domain's factor, if it may know real time.
    tdf: Option<Tdf>,
    readings: Vec<Reading<'static>>,
    tsc: TscClock,
    /// The first relation found broken that needs no real time.
    broken: Option<&'static str>,
    /// System time, wall clock, TSC and real time when last read.
    last: (i64, i64, u64, i64),
    /// Real time of the first reading.
    start_real_ns: i64,
    span: TscSpan,
}

impl<'m, X: Hypercall + Cpu> Run<'m, X> {
    fn new(machine: &'m Machine<'m, X>, tdf: Option<Tdf>, samples: u32) -> Self {
        // Per point: three clocks and two timers; and the origins.
        let readings = Vec::with_capacity(5 * (samples as usize + 1));
        let tsc = TscClock::new(machine.xen.tsc_is_emulated());
        let (last, span) = ((i64::MIN, i64::MIN, 0, i64::MIN), TscSpan::default());
        Self { machine, tdf, readings, tsc, broken: None, last, start_real_ns: 0, span }
    }

    fn expect(&mut self, holds: bool, otherwise: &'static str) {
        if !holds && self.broken.is_none() {
            self.broken = Some(otherwise);
        }
    }

    /// Real and virtual time by Xen, or always 0 if they are not to be known.
    fn sample(&self) -> Result<TdfSample, XenError> {
        match self.tdf {
            Some(_) => self.machine.xen.tdf_sample(self.machine.vcpu),
            None => Ok(TdfSample::default()),
        }
    }

    /// Real time, or always 0 if it is not to be known.
    fn real_ns(&self) -> Result<i64, XenError> {
        Ok(self.sample()?.real_ns)
    }

    fn push(&mut self, clock: &'static str, before: i64, after: i64, value: i64, slack: i64) {
        if self.tdf.is_some() {
            self.readings.push(Reading {
                clock,
                real_before_ns: before,
                real_after_ns: after,
                value_ns: value,
                slack_real_ns: slack,
            });
        }
    }

    /// Reads the TSC only, so that no line goes by unseen.
    fn follow_tsc(&mut self) -> Result<(), TestError> {
        let before_ns = self.real_ns()?;
        let (info, tsc) = self.machine.tsc();
        let after_ns = self.real_ns()?;
        let point = TscPoint { info, tsc, before_ns, after_ns };
        self.span = self.tsc.add(point).ok_or(TestError::Tsc)?;
        Ok(())
    }

    /// Reads every clock; the value of the first, system time.
    fn read(&mut self) -> Result<i64, TestError> {
        let machine = self.machine;
        let before = self.sample()?;
        let system = machine.system_time_ns();
        let after = self.sample()?;
        let wall = machine.wall_clock_ns();
        let real2 = self.real_ns()?;
        let (info, tsc) = machine.tsc();
        let real3 = self.real_ns()?;
        let (real0, real1) = (before.real_ns, after.real_ns);

        if let Some(tdf) = self.tdf {
            let grid = grid_ns(tdf);
            let known = before.virt_ns - grid..=after.virt_ns + grid;
            self.expect(known.contains(&system), "system time is not what Xen says it is");
        }

        let last = core::mem::replace(&mut self.last, (system, wall, tsc, real3));
        self.expect(system > last.0, "system time does not advance");
        self.expect(wall > last.1, "the wall clock does not advance");
        self.expect(tsc > last.2, "the TSC does not advance");
        let ordered = last.3 <= real0 && real0 <= real1 && real1 <= real2 && real2 <= real3;
        self.expect(ordered, "real time goes back");
        self.expect(wall > system, "the time of day lies before 1970");

        self.push("system_time", real0, real1, system, 0);
        self.push("wall_clock", real1, real2, wall, 0);
        let point = TscPoint { info, tsc, before_ns: real2, after_ns: real3 };
        self.span = self.tsc.add(point).ok_or(TestError::Tsc)?;
        let span = self.span;
        self.push("tsc", span.least_real_ns, span.most_real_ns, span.value_ns(), 0);
        if last.0 == i64::MIN {
            // The timers' origin: what system time was then.
            self.start_real_ns = real0;
            self.push("timer", real0, real1, system, 0);
            self.push("set_timer_op", real0, real1, system, 0);
        }
        Ok(system)
    }

    /// Sleeps until `deadline`; real time just after, and by how much that may be late.
    ///
    /// A vCPU that others keep from running knows nothing of its timer meanwhile: `stolen` is what they
    /// had taken before the deadline was chosen, after which they may take more.
    fn sleep(&mut self, deadline: i64, via: Via, stolen: i64) -> Result<(i64, i64), TestError> {
        self.machine.sleep_until(deadline, via)?;
        let real = self.real_ns()?;
        let stolen = self.machine.stolen_ns()?.wrapping_sub(stolen).max(0);
        let stolen = self.tdf.map_or(0, |tdf| tdf.to_real(stolen.into()));
        let slack = TIMER_SLACK_REAL_NS.saturating_add(i64::try_from(stolen).unwrap_or(i64::MAX));
        let now = self.machine.system_time_ns();
        self.expect(now >= deadline - ROUNDING_NS, "a timer fires early");
        Ok((real, slack))
    }

    /// Sleeps until `target`, in slices, the last two of which are readings of the timers.
    fn travel(&mut self, target: i64) -> Result<(), TestError> {
        let slice = self.tdf.map_or(TSC_SLICE_REAL_NS, |tdf| tdf.to_virtual(TSC_SLICE_REAL_NS));
        let slice = i64::try_from(slice).unwrap_or(i64::MAX).max(1);
        loop {
            let stolen = self.machine.stolen_ns()?;
            let now = self.machine.system_time_ns();
            if target.saturating_sub(now) <= slice.saturating_mul(2) {
                break;
            }
            self.sleep(now.saturating_add(slice), Via::Singleshot, stolen)?;
            self.follow_tsc()?;
        }
        for (clock, via, parts) in
            [("timer", Via::Singleshot, 2), ("set_timer_op", Via::SetTimerOp, 1)]
        {
            let stolen = self.machine.stolen_ns()?;
            let now = self.machine.system_time_ns();
            let deadline = now + target.saturating_sub(now) / parts;
            // A deadline that has passed would be late by no fault of the timer's.
            if deadline > now {
                let (real, slack) = self.sleep(deadline, via, stolen)?;
                self.push(clock, real, real, deadline, slack);
                self.follow_tsc()?;
            }
        }
        Ok(())
    }

    fn all(&mut self, options: ClocksOptions) -> Result<(), TestError> {
        let start = self.read()?;
        for after in points(options) {
            self.travel(start.saturating_add(after))?;
            self.read()?;
        }
        Ok(())
    }
}

/// Runs every path once, so that no reading pays for the first time.
///
/// Whether the test can go on: by a system time that is nowhere near Xen's one would sleep for ever.
fn warm_up<X: Hypercall + Cpu>(
    machine: &Machine<'_, X>,
    tdf: Option<Tdf>,
) -> Result<bool, TestError> {
    let mut run = Run::new(machine, tdf, 1);
    let start = run.read()?;
    let lead = match tdf {
        Some(_) if start.abs_diff(run.sample()?.virt_ns) > LOST_NS => return Ok(false),
        Some(tdf) => i64::try_from(tdf.to_virtual(200_000)).unwrap_or(i64::MAX),
        None => 200_000,
    };
    run.travel(start.saturating_add(lead))?;
    run.read()?;
    Ok(true)
}

/// Prints and judges what was read.
fn judge(readings: &[Reading<'_>], tdf: Tdf, out: &mut dyn fmt::Write) -> Outcome {
    let mut outcome = Outcome::Success;
    readings.iter().for_each(|reading| say(out, format_args!("{reading}")));
    for clock in CLOCKS {
        let mut judge = Judge::new(tdf);
        readings.iter().filter(|reading| reading.clock == clock).for_each(|r| judge.add(r));
        let Some(verdict) = judge.verdict() else {
            say(out, format_args!("clock {clock}: no reading; the gaps are too short for it"));
            // A wrong clock outweighs one that was not measured.
            if outcome == Outcome::Success {
                outcome = Outcome::Error;
            }
            continue;
        };
        if !verdict.pass {
            outcome = Outcome::Failure;
        }
        say(
            out,
            format_args!(
                "clock {clock}: {} readings, {}; at worst {} ns in {} ns real, expected {}, \
                 error {}, bound {}",
                verdict.readings,
                if verdict.pass { "right" } else { "WRONG" },
                verdict.virtual_ns,
                verdict.real_ns,
                verdict.expected_ns,
                verdict.error_ns,
                verdict.bound_ns,
            ),
        );
    }
    outcome
}

fn attempt<X: Hypercall + Cpu>(
    machine: &Machine<'_, X>,
    options: ClocksOptions,
    out: &mut dyn fmt::Write,
) -> Result<Outcome, TestError> {
    let tdf = match reveal(machine)? {
        Ok(tdf) => Some(tdf),
        Err(why) => {
            say(out, format_args!("{why}: its clocks are only held against each other"));
            None
        }
    };
    if !warm_up(machine, tdf)? {
        say(out, format_args!("system time is nowhere near what Xen says it is"));
        return Ok(Outcome::Failure);
    }
    let mut run = Run::new(machine, tdf, options.samples);
    run.all(options)?;
    let mut outcome = match tdf {
        Some(tdf) => judge(&run.readings, tdf, out),
        None => Outcome::Skip,
    };
    // Real time is split at each new line of the TSC: say how much of it was looked at.
    let whole = run.last.3 - run.start_real_ns;
    if tdf.is_some() {
        let seen = run.span.most_real_ns;
        say(out, format_args!("the tsc was followed for {seen} of {whole} ns of real time"));
        if outcome == Outcome::Success && seen < whole / 2 {
            say(out, format_args!("that is too little to judge it"));
            outcome = Outcome::Error;
        }
    }
    if let Some(broken) = run.broken {
        say(out, format_args!("{broken}"));
        outcome = Outcome::Failure;
    }
    Ok(outcome)
}

/// Runs the test, and prints its readings, one line for each clock, and the result's line.
pub fn run<X: Hypercall + Cpu>(
    machine: &Machine<'_, X>,
    options: ClocksOptions,
    out: &mut dyn fmt::Write,
) -> Outcome {
    let outcome = attempt(machine, options, out).unwrap_or_else(|error| {
        say(out, format_args!("the clocks cannot be tested: {error}"));
        Outcome::Error
    });
    say(out, format_args!("Test result: {outcome}"));
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::first_machine;
    use proptest::prelude::*;
    use tdf_xen::fake::{Config, FakeXen, Fault};

    /// The test's result on such a Xen, and all that it printed.
    fn test(config: Config, options: ClocksOptions) -> (Outcome, String) {
        let xen = FakeXen::new(config);
        let machine = first_machine(&xen);
        machine.xen.stop_periodic_timer(machine.vcpu).unwrap();
        let mut out = String::new();
        let outcome = run(&machine, options, &mut out);
        assert!(out.ends_with(&format!("Test result: {outcome}\n")), "{out}");
        (outcome, out)
    }

    /// Six real seconds at `tdf`, so that lines change several times.
    fn long(tdf: Tdf) -> ClocksOptions {
        let span_ns = tdf.to_virtual(6_000_000_000) as u64;
        ClocksOptions { span_ns, ..ClocksOptions::default() }
    }

    fn config(tdf: &str, emulated_tsc: bool, fault: Option<Fault>) -> Config {
        Config { tdf: tdf.parse().unwrap(), emulated_tsc, fault, ..Config::default() }
    }

    /// The clocks that were found wrong.
    fn wrong(out: &str) -> Vec<&'static str> {
        let bad = |c: &&str| {
            out.lines().any(|l| l.starts_with(&format!("clock {c}:")) && l.contains("WRONG"))
        };
        CLOCKS.into_iter().filter(bad).collect()
    }

    #[test]
    fn right_clocks_pass_at_every_factor_and_in_both_tsc_modes() {
        for tdf in ["1", "2", "5/2", "10", "100", "1000", "1/2"] {
            for emulated in [false, true] {
                let config = config(tdf, emulated, None);
                let (outcome, out) = test(config, long(config.tdf));
                assert_eq!(outcome, Outcome::Success, "{tdf} {emulated}: {out}");
            }
        }
    }

    /// Each thing done wrong is found, in the clocks that it concerns and in no other.
    #[test]
    fn a_wrong_clock_fails_and_is_named() {
        let lines = &["system_time", "wall_clock", "tsc"][..];
        for (emulated, fault, clocks) in [
            (false, Fault::SlopeOff(20_000), lines),
            (false, Fault::SlopeOff(-20_000), lines),
            (false, Fault::SystemTimeSteps(2_000), &lines[..2]),
            (false, Fault::SystemTimeSteps(-2_000), &lines[..2]),
            (false, Fault::WallClockSteps(2_000), &lines[1..2]),
            (true, Fault::WallClockSteps(-2_000), &lines[1..2]),
            (false, Fault::SingleshotOff(2_000_000), &["timer"]),
            (false, Fault::SingleshotOff(-200_000), &["timer"]),
            (false, Fault::SetTimerOpOff(2_000_000), &["set_timer_op"]),
            (true, Fault::SetTimerOpOff(-200_000), &["set_timer_op"]),
        ] {
            let config = config("10", emulated, Some(fault));
            let (outcome, out) = test(config, long(config.tdf));
            assert_eq!(outcome, Outcome::Failure, "{fault:?}: {out}");
            assert_eq!(wrong(&out), clocks, "{fault:?}: {out}");
        }
    }

    /// Such a system time jumps so far ahead at each new line that hardly any sleep is left.
    #[test]
    fn a_clock_that_is_not_dilated_at_all_is_a_failure_and_no_error() {
        for (emulated, fault) in [(false, Fault::SlopeNotScaled), (true, Fault::TscNotDilated)] {
            let config = config("10", emulated, Some(fault));
            let (outcome, out) = test(config, long(config.tdf));
            assert_eq!(outcome, Outcome::Failure, "{out}");
            assert!(wrong(&out).starts_with(&["system_time", "wall_clock", "tsc"]), "{out}");
        }
    }

    #[test]
    fn without_real_time_the_test_is_skipped_with_one_sentence() {
        for (sample_answer, sentence) in [
            (-38, "this hypervisor has no time dilation: "),
            (-1, "this domain may not know real time: "),
        ] {
            let config = Config { sample_answer, ..config("10", false, None) };
            let (outcome, out) = test(config, long(config.tdf));
            assert_eq!(outcome, Outcome::Skip);
            assert!(out.starts_with(sentence), "{out}");
            assert_eq!(out.lines().count(), 2, "{out}");
        }
    }

    #[test]
    fn without_real_time_a_clock_that_goes_back_still_fails() {
        let fault = Some(Fault::WallClockSteps(-600_000_000));
        let config = Config { sample_answer: -38, ..config("1", false, fault) };
        let (outcome, out) = test(config, long(config.tdf));
        assert_eq!(outcome, Outcome::Failure);
        assert!(out.contains("the wall clock does not advance"), "{out}");
        let fault = Some(Fault::SingleshotOff(-200_000));
        let config = Config { fault, ..config };
        let (outcome, out) = test(config, long(config.tdf));
        assert_eq!(outcome, Outcome::Failure);
        assert!(out.contains("a timer fires early"), "{out}");
    }

    /// A test that slept by such a clock would not come back.
    #[test]
    fn a_system_time_that_is_not_xens_fails_before_anything_sleeps_by_it() {
        let fault = Some(Fault::SystemTimeOff(1 << 62));
        let config = config("1/100", true, fault);
        let (outcome, out) = test(config, long(config.tdf));
        assert_eq!(outcome, Outcome::Failure);
        assert!(out.starts_with("system time is nowhere near what Xen says it is\n"), "{out}");
    }

    #[test]
    fn an_answer_that_is_neither_yes_nor_no_is_an_error() {
        let config = Config { sample_answer: -14, ..config("1", false, None) };
        let (outcome, out) = test(config, long(config.tdf));
        assert_eq!(outcome, Outcome::Error);
        assert!(out.starts_with("the clocks cannot be tested: Xen cannot read or write"), "{out}");
    }

    #[test]
    fn gaps_too_short_for_a_timer_are_an_error_and_no_pass() {
        let options = ClocksOptions { span_ns: 10_000, samples: 1, seed: 1 };
        let (outcome, out) = test(config("1/1000", true, None), options);
        assert_eq!(outcome, Outcome::Error, "{out}");
        assert!(out.contains("clock timer: no reading"), "{out}");
    }

    #[test]
    fn every_line_that_dom0_judges_can_be_parsed_by_it() {
        let config = config("10", false, None);
        let (_, out) = test(config, long(config.tdf));
        let parsed = out.lines().filter_map(Reading::parse).count();
        assert_eq!(parsed, out.lines().filter(|l| l.starts_with("tdf-reading")).count());
        // One origin and 20 samples of 3 clocks and 2 timers.
        assert_eq!(parsed, 5 * 21);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn points_rise_and_end_at_the_span(
            span_ns in 1_000_000u64..1 << 50, samples in 1u32..100, seed: u64
        ) {
            let points: Vec<i64> = points(ClocksOptions { span_ns, samples, seed }).collect();
            prop_assert_eq!(points.len(), samples as usize);
            prop_assert_eq!(points.last().copied(), Some(span_ns as i64));
            let longest = 4 * span_ns as i64 / i64::from(samples);
            let gaps: Vec<i64> = [0].iter().chain(&points).zip(&points).map(|(a, b)| b - a).collect();
            prop_assert!(gaps.iter().all(|gap| (1..=longest).contains(gap)), "{:?}", gaps);
        }

        #[test]
        fn any_seed_of_either_side_passes(seed: u64, host_seed: u64) {
            let config = Config { seed: host_seed, ..config("10", false, None) };
            let options = ClocksOptions { seed, ..long(config.tdf) };
            let (outcome, out) = test(config, options);
            prop_assert_eq!(outcome, Outcome::Success, "{}", out);
        }
    }

    #[test]
    fn another_seed_gives_other_points() {
        let at = |seed| points(ClocksOptions { seed, ..ClocksOptions::default() });
        assert!(at(1).eq(at(1)) && !at(1).eq(at(2)));
    }
}
