// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `changes` self-test: is time continuous while dom0 changes its factor?
//!
//! For a span of virtual time every vCPU reads its clocks as fast as it can, each time between two
//! samples of real and virtual time, and has a timer armed meanwhile. What must hold, whenever and
//! however often the factor changes:
//!
//! * no clock goes back, on no vCPU, and no vCPU reads a system time that is before one that another
//!   has read already;
//! * system time is where Xen says it is, between two samples; and between two samples virtual time
//!   advances at a rate between those of the factors at both ends;
//! * no timer fires before its deadline, and none stays away for longer after it than a timer may.

use alloc::vec::Vec;
use core::fmt;

use spin::Mutex;
use tdf_abi::{TDF_MAX, Tdf, TdfSample};
use tdf_xen::clock::TSC_STABLE;
use tdf_xen::hypercall::{Hypercall, Xen};

use crate::cmdline::ChangesOptions;
use crate::machine::{Cpu, Crew, Machine, Via};
use crate::paths::{LastSeen, Row, print};
use crate::probe::{
    Outcome, Random, TIMER_SLACK_REAL_NS, TestError, grid_ns, reveal, say, to_virtual,
    to_virtual_up,
};

/// Real time between two samples up to which the factors at both ends are all there can have been,
/// ns: dom0 needs longer for two changes. Over a longer time, any factor may have been.
const ONE_CHANGE_REAL_NS: i64 = 100_000;
/// Longest real time, as things are when it is armed, from arming a timer to its deadline, ns.
const LEAD_REAL_NS: u64 = 3_000_000;
/// Longest virtual time for which a vCPU sleeps, ns: after a change to the greatest factor this is a
/// second of real time.
const NAP_NS: i64 = 1_000_000;
/// Real time after which a timer is given up that a change has moved too far away, ns.
const PATIENCE_REAL_NS: i64 = 20_000_000;

/// What one vCPU has seen.
#[derive(Debug, Default)]
struct Seen {
    reads: i64,
    timers: i64,
    changes: i64,
    /// Steps back of real time, which are the machine's: then nothing else can be right.
    real_backward: i64,
    backward: i64,
    shared_backward: i64,
    /// How far this vCPU was behind what another had seen, at most, of system time and of real time, ns.
    shared_behind: i64,
    shared_real_behind: i64,
    jumps: i64,
    early: i64,
    lost: i64,
    /// Times at which the record bore the bit that its slope never changes.
    stable: i64,
    /// Timers that were late because this vCPU was kept from running.
    kept_waiting: i64,
    /// The first system time that was not where Xen says it is, between what it says.
    first_jump: Option<(i64, i64, i64)>,
    /// The first timer that was early, and the first that was lost.
    first_early: Option<Mistimed>,
    first_lost: Option<Mistimed>,
}

/// A timer that did not fire in time; real and virtual time, ns.
#[derive(Clone, Copy, Debug)]
struct Mistimed {
    /// How it was waited for.
    how: &'static str,
    armed: TdfSample,
    deadline: i64,
    seen: TdfSample,
    /// Virtual time that was stolen meanwhile, where that counts.
    stolen: i64,
}

impl fmt::Display for Mistimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { how, armed, deadline, seen, stolen } = self;
        write!(
            f,
            "{how}: armed for {deadline} when it was {} (real {}, TDF {}/{}), seen when it was {} \
             (real {}, TDF {}/{}), {stolen} stolen",
            armed.virt_ns,
            armed.real_ns,
            armed.num,
            armed.den,
            seen.virt_ns,
            seen.real_ns,
            seen.num,
            seen.den
        )
    }
}

/// A timer that is armed.
struct Armed {
    deadline: i64,
    /// When it was armed.
    since: TdfSample,
    /// Real time of the first sample at or after the deadline.
    due: Option<i64>,
    /// Whether it must have fired by now.
    overdue: bool,
}

/// One vCPU at work.
struct Watch<'m, X> {
    machine: &'m Machine<'m, X>,
    /// System time and real time, as any vCPU has seen them.
    shared: &'m LastSeen,
    shared_real: &'m LastSeen,
    random: Random,
    seen: Seen,
    last: Option<(TdfSample, Tdf)>,
    /// System time, wall clock and TSC when last read.
    clocks: (i64, i64, u64),
    /// Real time by which a timer may be late, ns.
    slack_real_ns: i64,
}

/// The factor in force in a sample.
fn factor(sample: &TdfSample) -> Result<Tdf, TestError> {
    Tdf::new(sample.num, sample.den).map_err(TestError::Factor)
}

impl<'m, X: Hypercall + Cpu> Watch<'m, X> {
    /// Samples both times, and holds them against the sample before.
    fn sample(&mut self) -> Result<TdfSample, TestError> {
        let (now, behind) = self.shared_real.watch(
            || self.machine.xen.tdf_sample(self.machine.vcpu),
            |sample| sample.as_ref().map_or(i64::MIN, |sample| sample.real_ns),
        );
        let now = now?;
        self.seen.shared_real_behind = self.seen.shared_real_behind.max(behind);
        let tdf = factor(&now)?;
        if let Some((last, was)) = self.last.replace((now, tdf)) {
            self.seen.changes += i64::from(tdf != was);
            let (real, virt) = (now.real_ns - last.real_ns, now.virt_ns - last.virt_ns);
            // Both ends are whole ns, and a change is rounded once.
            let grid = grid_ns(tdf).max(grid_ns(was));
            let (least, most) = if real <= ONE_CHANGE_REAL_NS {
                let of = |tdf| (to_virtual(tdf, real), to_virtual_up(tdf, real));
                let ((a, b), (c, d)) = (of(tdf), of(was));
                (a.min(c), b.max(d))
            } else {
                let most = i64::from(TDF_MAX);
                (real / most, real.saturating_mul(most))
            };
            let possible = least - grid..=most.saturating_add(grid);
            self.seen.jumps += i64::from(!possible.contains(&virt));
            self.seen.real_backward += i64::from(real < 0);
            self.seen.backward += i64::from(virt < 0);
        }
        Ok(now)
    }

    /// Reads every clock; the second of the samples around it.
    fn read(&mut self) -> Result<TdfSample, TestError> {
        let machine = self.machine;
        let before = self.sample()?;
        let (system, behind) = self.shared.read(|| machine.system_time_ns());
        let after = self.sample()?;
        let wall = machine.wall_clock_ns();
        let tsc = machine.xen.rdtsc();

        let grid = grid_ns(factor(&before)?).max(grid_ns(factor(&after)?));
        let known = before.virt_ns - grid..=after.virt_ns + grid;
        if !known.contains(&system) {
            self.seen.jumps += 1;
            self.seen.first_jump.get_or_insert((before.virt_ns, system, after.virt_ns));
        }
        self.seen.shared_backward += i64::from(behind > 0);
        self.seen.shared_behind = self.seen.shared_behind.max(behind);
        let (system0, wall0, tsc0) = core::mem::replace(&mut self.clocks, (system, wall, tsc));
        self.seen.backward += i64::from(system < system0 || wall < wall0 || tsc < tsc0);
        self.seen.reads += 1;
        Ok(after)
    }

    fn early(&mut self, timer: Mistimed) {
        self.seen.early += 1;
        self.seen.first_early.get_or_insert(timer);
    }

    fn lost(&mut self, timer: Mistimed) {
        self.seen.lost += 1;
        self.seen.first_lost.get_or_insert(timer);
    }

    /// Whether the wait for the timer is over; counts what is wrong with it.
    fn is_over(&mut self, armed: &mut Armed) -> Result<bool, TestError> {
        // What is pending now was raised before the next sample: a vCPU that may
        // not run for a while finds its timer pending when it does.
        let fired = self.machine.fired();
        let now = self.read()?;
        if fired || armed.overdue {
            let (deadline, since) = (armed.deadline, armed.since);
            let timer = Mistimed { how: "awake", armed: since, deadline, seen: now, stolen: 0 };
            if !fired {
                self.lost(timer);
            } else if now.virt_ns < deadline {
                self.early(timer);
            }
            return Ok(true);
        }
        if now.virt_ns < armed.deadline {
            return Ok(now.real_ns > armed.since.real_ns + PATIENCE_REAL_NS);
        }
        // From here on it is late, by real time that no change of the factor affects.
        let due = *armed.due.get_or_insert(now.real_ns);
        armed.overdue = now.real_ns > due + self.slack_real_ns;
        Ok(false)
    }

    /// Arms a timer and waits for it, awake: it is seen to the instant.
    fn spin(&mut self, via: Via) -> Result<(), TestError> {
        let now = self.read()?;
        let lead = self.random.next(LEAD_REAL_NS).cast_signed();
        let deadline = now.virt_ns.saturating_add(to_virtual_up(factor(&now)?, lead)).max(1);
        self.machine.arm(deadline, via)?;
        let mut armed = Armed { deadline, since: now, due: None, overdue: false };
        while !self.is_over(&mut armed)? {}
        // One that was given up.
        self.machine.xen.stop_singleshot_timer(self.machine.vcpu)?;
        Ok(())
    }

    /// Sleeps, by the timer or (`by_poll`) by the timeout of the sleep itself.
    ///
    /// When the factor changes meanwhile is not known, so that only the greatest rate bounds how late
    /// one may be: a lost one is noticed, a late one by [`Self::spin`].
    fn nap(&mut self, by_poll: bool) -> Result<(), TestError> {
        // First: from the moment that the deadline counts from, others may run.
        let stolen = self.machine.stolen_ns()?;
        let now = self.read()?;
        let lead = to_virtual_up(factor(&now)?, self.random.next(LEAD_REAL_NS).cast_signed());
        let deadline = now.virt_ns.saturating_add(lead.min(NAP_NS));
        let latest = i64::from(TDF_MAX) * self.slack_real_ns;
        if by_poll {
            self.machine.fired();
            self.machine.poll_timer(deadline)?;
        } else {
            self.machine.arm(deadline, Via::Singleshot)?;
            self.machine.poll_timer(deadline.saturating_add(2 * latest))?;
        }
        let woken = self.read()?;
        let stolen = self.machine.stolen_ns()?.wrapping_sub(stolen);
        let how = if by_poll { "polling" } else { "asleep" };
        let timer = Mistimed { how, armed: now, deadline, seen: woken, stolen };
        if woken.virt_ns < deadline {
            self.early(timer);
        }
        let in_time = deadline.saturating_add(latest);
        if woken.virt_ns > in_time && woken.virt_ns <= in_time.saturating_add(stolen) {
            self.seen.kept_waiting += 1;
        } else if woken.virt_ns > in_time {
            self.lost(timer);
        }
        self.machine.xen.stop_singleshot_timer(self.machine.vcpu)?;
        Ok(())
    }

    fn all(&mut self, end: i64) -> Result<(), TestError> {
        while self.sample()?.virt_ns < end {
            self.seen.stable += i64::from(self.machine.tsc().0.flags & TSC_STABLE);
            match self.random.next(8) {
                0 => self.nap(false)?,
                1 => self.nap(true)?,
                2 | 3 => self.spin(Via::SetTimerOp)?,
                _ => self.spin(Via::Singleshot)?,
            }
            self.seen.timers += 1;
        }
        Ok(())
    }

    fn rows(&self) -> [Row; 13] {
        let row =
            |probe, value, bounds| Row::new(self.machine.vcpu, "CHANGES", probe, value, bounds);
        let some = 1..=i64::MAX;
        [
            row("real_backward_steps", self.seen.real_backward, 0..=0),
            // Nor can vCPUs agree on anything if Xen's processors do not agree on real time.
            row("shared_real_behind_ns", self.seen.shared_real_behind, 0..=0),
            row("backward_steps", self.seen.backward, 0..=0),
            row("shared_backward_steps", self.seen.shared_backward, 0..=0),
            row("shared_behind_ns", self.seen.shared_behind, 0..=0),
            row("jumps", self.seen.jumps, 0..=0),
            row("early_timers", self.seen.early, 0..=0),
            row("lost_timers", self.seen.lost, 0..=0),
            // What dom0 does for a change, and other vCPUs, take that long now and then.
            row("kept_waiting", self.seen.kept_waiting, 0..=i64::MAX),
            Row::new(self.machine.vcpu, "P3", "stable_bit", self.seen.stable, 0..=0),
            row("timers", self.seen.timers, some.clone()),
            row("reads", self.seen.reads, some),
            // Those that a sample showed; dom0 knows how many there were.
            row("changes_seen", self.seen.changes, 0..=i64::MAX),
        ]
    }
}

fn attempt<X: Hypercall + Cpu>(
    machine: &Machine<'_, X>,
    crew: &dyn Crew<X>,
    options: ChangesOptions,
    out: &mut dyn fmt::Write,
) -> Result<Outcome, TestError> {
    if let Err(why) = reveal(machine)? {
        say(out, format_args!("{why}: nothing can be tested"));
        return Ok(Outcome::Skip);
    }
    // For dom0, which need not change anything before.
    say(out, format_args!("changes begin"));
    let (shared, shared_real) = (LastSeen::new(), LastSeen::new());
    let (rows, failed) = (Mutex::new(Vec::new()), Mutex::new(None));
    let (jumps, mistimed) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    crew.run(true, &|machine| {
        let mut watch = Watch {
            machine,
            shared: &shared,
            shared_real: &shared_real,
            random: Random(options.seed.wrapping_add(machine.vcpu.0.into())),
            seen: Seen::default(),
            last: None,
            clocks: (i64::MIN, i64::MIN, 0),
            slack_real_ns: TIMER_SLACK_REAL_NS.saturating_add_unsigned(options.late_ns),
        };
        let mut run = || -> Result<(), TestError> {
            machine.xen.stop_periodic_timer(machine.vcpu)?;
            let start = watch.sample()?.virt_ns;
            watch.all(start.saturating_add_unsigned(options.span_ns))
        };
        if let Err(error) = run() {
            *failed.lock() = Some(error);
        }
        rows.lock().extend(watch.rows());
        jumps.lock().extend(watch.seen.first_jump.map(|jump| (machine.vcpu, jump)));
        let early = watch.seen.first_early.map(|timer| (machine.vcpu, "early", timer));
        let lost = watch.seen.first_lost.map(|timer| (machine.vcpu, "late", timer));
        mistimed.lock().extend([early, lost].into_iter().flatten());
    })?;
    for (vcpu, (before, system, after)) in jumps.into_inner() {
        say(
            out,
            format_args!(
                "system time of vCPU {vcpu} was {system} when Xen's was {before} to {after}"
            ),
        );
    }
    for (vcpu, off, timer) in mistimed.into_inner() {
        say(out, format_args!("vCPU {vcpu}: a timer was {off}, {timer}"));
    }
    let outcome = print(&rows.lock(), out);
    failed.into_inner().map_or(Ok(outcome), Err)
}

/// Runs the test; everything it has to say goes to `out`, the result last.
pub fn run<X: Hypercall + Cpu>(
    machine: &Machine<'_, X>,
    crew: &dyn Crew<X>,
    options: ChangesOptions,
    out: &mut dyn fmt::Write,
) -> Outcome {
    let outcome = attempt(machine, crew, options, out).unwrap_or_else(|error| {
        say(out, format_args!("changes cannot be tested: {error}"));
        Outcome::Error
    });
    say(out, format_args!("Test result: {outcome}"));
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::first_machine;
    use tdf_xen::fake::{Config, FakeXen, Fault};
    use tdf_xen::path::PathRow;

    fn test(emulated_tsc: bool, fault: Option<Fault>) -> (Outcome, String) {
        let config =
            Config { emulated_tsc, fault, change_every_ns: 1_000_000, ..Config::default() };
        let xen = FakeXen::new(config);
        let mut out = String::new();
        let options = ChangesOptions { span_ns: 20_000_000_000, seed: 7, late_ns: 0 };
        let outcome = run(&first_machine(&xen), &xen, options, &mut out);
        (outcome, out)
    }

    /// Red rows, of both vCPUs.
    fn red(out: &str) -> Vec<String> {
        let rows = out.lines().filter_map(PathRow::parse);
        rows.filter(|row| !row.pass()).map(|row| row.probe.to_owned()).collect()
    }

    #[test]
    fn continuous_time_passes_and_the_factor_does_change() {
        for emulated in [false, true] {
            let (outcome, out) = test(emulated, None);
            assert_eq!(outcome, Outcome::Success, "{emulated}: {out}");
            let seen =
                |p| out.lines().filter_map(PathRow::parse).find(|r| r.probe == p).unwrap().value;
            assert!(seen("changes_seen") > 10 && seen("timers") > 10, "{out}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_change_is_found() {
        for (fault, must) in [
            (Fault::ChangeJumps(2_000_000_000), "jumps"),
            (Fault::ChangeJumps(-2_000_000), "backward_steps"),
            (Fault::ChangeUnpublished, "jumps"),
            (Fault::ChangeUnarmed, "early_timers"),
            (Fault::ChangeUnarmed, "lost_timers"),
            (Fault::SingleshotOff(3_000_000), "lost_timers"),
            (Fault::SetTimerOpOff(-500_000), "early_timers"),
            (Fault::PollOff(-500_000), "early_timers"),
            (Fault::SecondBehind(1 << 40), "shared_backward_steps@1"),
        ] {
            for emulated in [false, true] {
                // An emulated TSC counts the new time by the old slope, whatever is published.
                if emulated && fault == Fault::ChangeUnpublished {
                    continue;
                }
                let (outcome, out) = test(emulated, Some(fault));
                assert_eq!(outcome, Outcome::Failure, "{fault:?}: {out}");
                assert!(red(&out).iter().any(|p| p == must), "{fault:?} {must}: {out}");
            }
        }
    }
}
