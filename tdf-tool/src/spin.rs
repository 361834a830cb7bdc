// SPDX-License-Identifier: MIT OR Apache-2.0
//! `tdf probe` with `test=changes`: reads a Linux guest's clocks without a pause while dom0 changes
//! the guest's factor, and sleeps again and again.
//!
//! What a clock should say cannot be computed here, because nobody tells the guest when its factor
//! changes. But Xen tells what virtual time is just before and just after a reading. Linux's
//! monotonic clock is virtual time plus a constant, so all readings together must leave room for one
//! constant; and no reading of any thread may be before one that was over when it began.

use std::io;
use std::sync::atomic::{AtomicI64, Ordering};

use tdf_abi::TdfSample;
use tdf_xen::path::PathRow;

use crate::privcmd::Privcmd;
use crate::probe::{self, Clocks, Parameters, ProbeError, split_mix};

/// What one thread saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    reads: i64,
    backward_steps: i64,
    /// The constant between the clock and virtual time is at least and at most this.
    at_least: i128,
    at_most: i128,
    /// By how much virtual time outran real time at most, so many ns to one; at least 1.
    speed: i64,
}

impl Seen {
    const NOTHING: Self =
        Self { reads: 0, backward_steps: 0, at_least: i128::MIN, at_most: i128::MAX, speed: 1 };

    /// The clock said `value` between two samples.
    fn read(&mut self, before: &TdfSample, value: i64, after: &TdfSample) {
        self.reads += 1;
        self.at_least = self.at_least.max(i128::from(value) - i128::from(after.virt_ns));
        self.at_most = self.at_most.min(i128::from(value) - i128::from(before.virt_ns));
        for sample in [before, after] {
            self.speed = self.speed.max(i64::from(sample.den.div_ceil(sample.num.max(1))));
        }
    }

    fn with(self, other: &Self) -> Self {
        Self {
            reads: self.reads + other.reads,
            backward_steps: self.backward_steps + other.backward_steps,
            at_least: self.at_least.max(other.at_least),
            at_most: self.at_most.min(other.at_most),
            speed: self.speed.max(other.speed),
        }
    }

    /// By how much the readings contradict each other, ns.
    fn disagreement(&self) -> i64 {
        let gap = self.at_least.saturating_sub(self.at_most).max(0);
        i64::try_from(gap).unwrap_or(i64::MAX)
    }

    /// What theory allows of it, at each end: 1 ns of rounding; and of 1/TDF ns, which is the grid on
    /// which Xen publishes a point of virtual time, once for the grid, 0.6 for the ticks of the TSC
    /// that the tuple's shift drops, and 0.5 for a rate that is right to 5·10⁻¹⁰ over the second
    /// that may pass until the next point.
    const fn tolerance(&self) -> i64 {
        2 * (1 + (21 * self.speed + 9) / 10)
    }
}

/// Reads `clocks` until `end`; `last` is the latest value that any thread has read.
fn spin(clocks: &mut impl Clocks, end: i64, last: &[AtomicI64; 2]) -> Result<Seen, ProbeError> {
    let mut seen = Seen::NOTHING;
    let step = |which: usize, clock: &mut dyn FnMut() -> i64| {
        let floor = last[which].load(Ordering::Acquire);
        let value = clock();
        last[which].fetch_max(value, Ordering::AcqRel);
        (value, i64::from(value < floor))
    };
    loop {
        let before = clocks.sample()?;
        let (value, back) = step(0, &mut || clocks.monotonic());
        let after = clocks.sample()?;
        seen.read(&before, value, &after);
        seen.backward_steps += back;
        seen.backward_steps += step(1, &mut || clocks.realtime()).1;
        if value >= end {
            return Ok(seen);
        }
    }
}

/// Sleeps until `end` in pieces of up to 4 ms; how often, and how often it woke too early.
fn doze(clocks: &mut impl Clocks, end: i64, mut seed: u64) -> (i64, i64) {
    let (mut sleeps, mut early) = (0, 0);
    loop {
        let now = clocks.monotonic();
        if now >= end {
            return (sleeps, early);
        }
        let deadline = now + (split_mix(&mut seed) >> 42) as i64;
        clocks.sleep_until(deadline);
        sleeps += 1;
        early += i64::from(clocks.monotonic() < deadline);
    }
}

/// The lines to print, and whether all is well.
fn transcript(seen: &Seen, sleeps: i64, early: i64) -> (String, bool) {
    let row = |probe, lo, value, hi| PathRow { path: "CHANGES", probe, lo, value, hi };
    let rows = [
        row("reads", 2, seen.reads, i64::MAX),
        row("backward_steps", 0, seen.backward_steps, 0),
        row("disagreement", 0, seen.disagreement(), seen.tolerance()),
        row("sleeps", 2, sleeps, i64::MAX),
        row("early_sleeps", 0, early, 0),
    ];
    let pass = rows.iter().all(PathRow::pass);
    let mut out: String = rows.iter().map(|row| format!("{row}\n")).collect();
    out.push_str(if pass { "Test result: SUCCESS\n" } else { "Test result: FAILURE\n" });
    (out, pass)
}

/// Watches this Linux's clocks as `parameters` say, on each of its processors; `begun` is called
/// when all is ready.
///
/// # Errors
/// Real time cannot be sampled, or a thread could not do what it needs.
pub fn watch(
    parameters: &Parameters,
    begun: impl FnOnce() -> io::Result<()>,
) -> Result<(String, bool), Box<dyn std::error::Error>> {
    let last = [AtomicI64::new(i64::MIN), AtomicI64::new(i64::MIN)];
    let processors = std::thread::available_parallelism()?.get();
    // Whether it can work at all, before the threads are made; and the origin of the span.
    let mut probe = probe::Linux::ordinary(Privcmd::open()?);
    probe.check()?;
    begun()?;
    let end = probe.monotonic().saturating_add(parameters.span_ns);
    let (seen, (sleeps, early)) = std::thread::scope(|scope| {
        let spinners: Vec<_> = (0..processors)
            .map(|_| {
                scope.spawn(|| {
                    let privcmd = Privcmd::open().map_err(|e| e.to_string())?;
                    let mut clocks = probe::Linux::ordinary(privcmd);
                    spin(&mut clocks, end, &last).map_err(|e| e.to_string())
                })
            })
            .collect();
        // Made after the others, which are not to inherit the priority with which it wakes.
        let slept = probe::Linux::new(Privcmd::open().map_err(|e| e.to_string())?)
            .map(|mut clocks| doze(&mut clocks, end, parameters.seed))
            .map_err(|e| format!("cannot take real-time priority: {e}"));
        let mut seen = Seen::NOTHING;
        for spinner in spinners {
            let result = spinner.join().map_err(|_| "a thread died".to_owned())?;
            seen = seen.with(&result?);
        }
        Ok::<_, String>((seen, slept?))
    })?;
    Ok(transcript(&seen, sleeps, early))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xen::Errno;
    use tdf_abi::Tdf;

    /// A guest whose factor changes at each sample, and whose clock may err.
    struct Guest {
        factors: Vec<Tdf>,
        at: usize,
        real: i64,
        virt: i64,
        /// Added to the hundredth reading of the clock.
        error: i64,
        readings: u32,
        wakes_early: bool,
    }

    impl Guest {
        fn new(error: i64) -> Self {
            let factors = ["10", "1/2", "1000", "1"].map(|t| t.parse().unwrap()).to_vec();
            Self { factors, at: 0, real: 0, virt: 50, error, readings: 0, wakes_early: false }
        }

        fn pass(&mut self, ns: i64) {
            self.real += ns;
            self.virt += self.factors[self.at].to_virtual(ns.into()) as i64;
        }
    }

    impl Clocks for Guest {
        fn sample(&mut self) -> Result<TdfSample, Errno> {
            self.pass(300);
            let tdf = self.factors[self.at];
            self.at = (self.at + 1) % self.factors.len();
            let (num, den) = (tdf.num(), tdf.den());
            Ok(TdfSample { real_ns: self.real, virt_ns: self.virt, num, den })
        }

        fn monotonic(&mut self) -> i64 {
            self.pass(100);
            self.readings += 1;
            let error = if self.readings == 100 { self.error } else { 0 };
            self.virt - 1_000 + error
        }

        fn realtime(&mut self) -> i64 {
            self.pass(100);
            self.virt + 1_700_000_000_000_000_000
        }

        fn sleep_until(&mut self, deadline: i64) {
            self.virt = deadline + 1_000 + i64::from(self.wakes_early) * -100_000;
        }
    }

    fn seen(error: i64) -> Seen {
        let last = [AtomicI64::new(i64::MIN), AtomicI64::new(i64::MIN)];
        spin(&mut Guest::new(error), 100_000, &last).unwrap()
    }

    #[test]
    fn a_clock_that_is_virtual_time_passes_whatever_the_factor_does() {
        let seen = seen(0);
        assert!(seen.reads > 100 && seen.backward_steps == 0, "{seen:?}");
        assert_eq!((seen.disagreement(), seen.speed, seen.tolerance()), (0, 2, 12));
        assert!(transcript(&seen, 5, 0).1);
    }

    #[test]
    fn a_jump_and_a_step_back_are_seen() {
        let jump = seen(5_000);
        assert!(jump.disagreement() > 4_000, "{jump:?}");
        assert!(jump.backward_steps > 0, "the next readings are before it");
        let back = seen(-5_000);
        assert!(back.backward_steps == 1 && back.disagreement() > 4_000, "{back:?}");
        assert!(!transcript(&jump, 5, 0).1 && !transcript(&back, 5, 0).1);
    }

    #[test]
    fn a_thread_is_held_to_what_another_has_read() {
        let last = [AtomicI64::new(5_000), AtomicI64::new(i64::MIN)];
        assert!(spin(&mut Guest::new(0), 100, &last).unwrap().backward_steps > 0);
        let (mut one, mut two) = (seen(0), seen(0));
        (one.at_least, one.at_most, two.at_least, two.at_most) = (0, 10, 40, 50);
        assert_eq!(one.with(&two).disagreement(), 30);
    }

    #[test]
    fn sleeps_that_end_early_and_probes_that_did_nothing_fail() {
        let mut guest = Guest::new(0);
        let (sleeps, early) = doze(&mut guest, 50_000_000, 7);
        assert!(sleeps > 10 && early == 0, "{sleeps}");
        guest = Guest { wakes_early: true, ..Guest::new(0) };
        let slept = doze(&mut Guest { virt: 0, ..guest }, 5_000_000, 7);
        assert!(slept.1 > 0 && !transcript(&seen(0), 5, slept.1).1);
        assert!(!transcript(&Seen::NOTHING, 5, 0).1 && !transcript(&seen(0), 0, 0).1);
    }

    #[test]
    fn the_lines_are_those_that_dom0_looks_for() {
        let (text, _) = transcript(&seen(0), 5, 0);
        let rows: Vec<_> = text.lines().filter_map(PathRow::parse).collect();
        for (path, probe) in probe::CHANGES {
            assert!(rows.iter().any(|row| (row.path, row.probe) == (path, probe)), "{probe}");
        }
    }
}
