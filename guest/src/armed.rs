// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `armed` self-test: a timer is armed, and half way to its deadline the factor changes.
//!
//! dom0 changes the factor to and fro between a greater and a smaller one. Each time that it has just
//! become greater, one kind of timer is armed for a deadline that is further away than the factor will
//! stay, and the vCPU waits for it. It must fire when virtual time says so, whatever the factor is
//! then: one that kept the real time for which it was armed would be far too late.

use alloc::vec::Vec;
use core::fmt;

use tdf_abi::{Tdf, TdfSample};
use tdf_xen::hypercall::{Hypercall, Xen};

use crate::cmdline::ChangesOptions;
use crate::machine::{Cpu, Machine, Via};
use crate::paths::{Row, print};
use crate::probe::{Outcome, TIMER_SLACK_REAL_NS, TestError, reveal, say, to_virtual_up};

/// Virtual time from arming a timer to its deadline, ns: more than passes until the factor changes,
/// and less than until it changes back.
const LEAD_NS: i64 = 20_000_000;
/// Period of the periodic timer, ns of virtual time.
const PERIOD_NS: i64 = 10_000_000;
/// Virtual time for which periods are watched, ns.
const PERIODS_NS: i64 = 4 * PERIOD_NS;

/// A kind of timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A one-shot timer, waited for awake.
    Awake(Via),
    /// A one-shot timer, waited for asleep.
    Asleep,
    /// The timeout of `SCHEDOP_poll`.
    Poll,
    /// The periodic timer.
    Periodic,
}

/// Names of the rows: how many timers saw a change, and how many of all fired too early or too late.
const ARMED: [&str; 3] = ["armed_then_changed", "armed_too_early", "armed_too_late"];
const ASLEEP: [&str; 3] = ["asleep_then_changed", "asleep_too_early", "asleep_too_late"];

const KINDS: [(Kind, &str, [&str; 3]); 5] = [
    (Kind::Awake(Via::SetTimerOp), "P8", ARMED),
    (Kind::Awake(Via::Singleshot), "P9", ARMED),
    (Kind::Asleep, "P9", ASLEEP),
    (Kind::Periodic, "P11", ARMED),
    (Kind::Poll, "P12", ARMED),
];

/// What became of the timers of one kind.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Those that were armed at a greater factor than they were over at.
    changed: i64,
    early: i64,
    late: i64,
}

struct Probe<'m, X> {
    machine: &'m Machine<'m, X>,
    /// Virtual time at which the test is over.
    end: i64,
    /// Real time by which a timer may be late, ns.
    slack_real_ns: i64,
}

/// Whether the factor of `a` is greater than that of `b`.
fn slower(a: &TdfSample, b: &TdfSample) -> bool {
    u64::from(a.num) * u64::from(b.den) > u64::from(b.num) * u64::from(a.den)
}

impl<X: Hypercall + Cpu> Probe<'_, X> {
    fn sample(&self) -> Result<TdfSample, TestError> {
        Ok(self.machine.xen.tdf_sample(self.machine.vcpu)?)
    }

    /// Virtual time by which a timer may be late at the factor of `sample`.
    fn slack(&self, sample: &TdfSample) -> Result<i64, TestError> {
        let tdf = Tdf::new(sample.num, sample.den).map_err(TestError::Factor)?;
        Ok(to_virtual_up(tdf, self.slack_real_ns))
    }

    /// The first sample after the factor has become greater, `None` if the test is over before.
    fn slowed(&self) -> Result<Option<TdfSample>, TestError> {
        let mut last = self.sample()?;
        while last.virt_ns < self.end {
            let now = self.sample()?;
            if slower(&now, &last) {
                return Ok(Some(now));
            }
            last = now;
        }
        Ok(None)
    }

    /// Waits, awake, for an event that is due at `deadline`: whether it came, and when that was seen.
    ///
    /// What is pending was raised before the next sample; what is not, although a sample before has
    /// shown a time by which it had to be, is too late. So nothing depends on when this vCPU may run.
    fn awake(&self, deadline: i64) -> Result<(bool, TdfSample), TestError> {
        let mut overdue_at = None;
        loop {
            let fired = self.machine.fired();
            let now = self.sample()?;
            if fired {
                return Ok((true, now));
            }
            if overdue_at.is_some_and(|at| now.real_ns > at) {
                // It may have come between the two.
                return Ok((self.machine.fired(), now));
            }
            if now.virt_ns >= deadline {
                overdue_at.get_or_insert(now.real_ns + self.slack_real_ns);
            }
        }
    }

    fn one_shot(&self, via: Via, armed: &TdfSample, seen: &mut Seen) -> Result<(), TestError> {
        let deadline = armed.virt_ns + LEAD_NS;
        self.machine.arm(deadline, via)?;
        let (fired, now) = self.awake(deadline)?;
        seen.early += i64::from(fired && now.virt_ns < deadline);
        seen.late += i64::from(!fired);
        seen.changed += i64::from(slower(armed, &now));
        Ok(self.machine.xen.stop_singleshot_timer(self.machine.vcpu)?)
    }

    /// By the timer, or by the timeout of the sleep itself (`poll`).
    fn asleep(&self, poll: bool, armed: &TdfSample, seen: &mut Seen) -> Result<(), TestError> {
        let deadline = armed.virt_ns + LEAD_NS;
        let stolen = self.machine.stolen_ns()?;
        if poll {
            self.machine.fired();
            self.machine.poll_timer(deadline)?;
        } else {
            self.machine.sleep_until(deadline, Via::Singleshot)?;
        }
        let now = self.sample()?;
        let stolen = self.machine.stolen_ns()?.wrapping_sub(stolen);
        let latest = deadline + self.slack(armed)?.max(self.slack(&now)?) + stolen;
        seen.early += i64::from(now.virt_ns < deadline);
        seen.late += i64::from(now.virt_ns > latest);
        seen.changed += i64::from(slower(armed, &now));
        Ok(())
    }

    /// Ticks, each of which must come a period after the one before.
    fn periodic(&self, armed: &TdfSample, seen: &mut Seen) -> Result<(), TestError> {
        let (xen, vcpu) = (self.machine.xen, self.machine.vcpu);
        self.machine.fired();
        xen.set_periodic_timer(vcpu, PERIOD_NS.cast_unsigned())?;
        let mut last: Option<TdfSample> = None;
        loop {
            let from = last.as_ref().unwrap_or(armed);
            let (fired, now) = self.awake(from.virt_ns + PERIOD_NS)?;
            if !fired {
                seen.late += 1;
                break;
            }
            if let Some(tick) = last {
                // The one before was seen after it came, by as much as any timer may be late.
                let earliest = tick.virt_ns + PERIOD_NS - self.slack(&tick)?;
                seen.early += i64::from(now.virt_ns < earliest);
                seen.changed += i64::from(slower(&tick, &now));
            }
            if now.virt_ns > armed.virt_ns + PERIODS_NS {
                break;
            }
            last = Some(now);
        }
        Ok(xen.stop_periodic_timer(vcpu)?)
    }

    fn all(&self) -> Result<[Seen; KINDS.len()], TestError> {
        let mut all = [Seen::default(); KINDS.len()];
        loop {
            for ((kind, ..), seen) in KINDS.iter().zip(&mut all) {
                let Some(armed) = self.slowed()? else { return Ok(all) };
                match kind {
                    Kind::Awake(via) => self.one_shot(*via, &armed, seen)?,
                    Kind::Asleep => self.asleep(false, &armed, seen)?,
                    Kind::Poll => self.asleep(true, &armed, seen)?,
                    Kind::Periodic => self.periodic(&armed, seen)?,
                }
            }
        }
    }
}

fn attempt<X: Hypercall + Cpu>(
    machine: &Machine<'_, X>,
    options: ChangesOptions,
    out: &mut dyn fmt::Write,
) -> Result<Outcome, TestError> {
    if let Err(why) = reveal(machine)? {
        say(out, format_args!("{why}: nothing can be tested"));
        return Ok(Outcome::Skip);
    }
    machine.xen.stop_periodic_timer(machine.vcpu)?;
    // For dom0, which need not change anything before.
    say(out, format_args!("changes begin"));
    let start = machine.xen.tdf_sample(machine.vcpu)?.virt_ns;
    let probe = Probe {
        machine,
        end: start.saturating_add_unsigned(options.span_ns),
        slack_real_ns: TIMER_SLACK_REAL_NS.saturating_add_unsigned(options.late_ns),
    };
    let mut rows = Vec::new();
    for ((_, path, names), seen) in KINDS.iter().zip(probe.all()?) {
        let [changed, early, late] = *names;
        let mut row =
            |probe, value, bounds| rows.push(Row::new(machine.vcpu, path, probe, value, bounds));
        row(changed, seen.changed, 1..=i64::MAX);
        row(early, seen.early, 0..=0);
        row(late, seen.late, 0..=0);
    }
    Ok(print(&rows, out))
}

/// Runs the test; everything it has to say goes to `out`, the result last.
pub fn run<X: Hypercall + Cpu>(
    machine: &Machine<'_, X>,
    options: ChangesOptions,
    out: &mut dyn fmt::Write,
) -> Outcome {
    let outcome = attempt(machine, options, out).unwrap_or_else(|error| {
        say(out, format_args!("timers cannot be tested: {error}"));
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
        let config = Config {
            emulated_tsc,
            fault,
            change_every_ns: 100_000_000,
            change_to: &[(10, 1), (2, 1)],
            ..Config::default()
        };
        let xen = FakeXen::new(config);
        let mut out = String::new();
        let options = ChangesOptions { span_ns: 450_000_000, seed: 1, late_ns: 0 };
        let outcome = run(&first_machine(&xen), options, &mut out);
        (outcome, out)
    }

    #[test]
    fn timers_that_follow_virtual_time_pass_and_the_factor_does_change() {
        for emulated in [false, true] {
            let (outcome, out) = test(emulated, None);
            assert_eq!(outcome, Outcome::Success, "{out}");
            assert_eq!(out.lines().filter_map(PathRow::parse).count(), 3 * KINDS.len());
        }
    }

    #[test]
    fn a_timer_that_keeps_to_real_time_turns_its_rows_red() {
        for (fault, rows) in [
            (
                Fault::ChangeUnarmed,
                &["P8 armed_too_late", "P9 armed_too_late", "P9 asleep_too_late"][..],
            ),
            (Fault::ChangeUnpolled, &["P12 armed_too_late"]),
            (Fault::PeriodReal, &["P11 armed_too_early"]),
            (Fault::SetTimerOpOff(-500_000), &["P8 armed_too_early"]),
            (Fault::PollOff(-500_000), &["P12 armed_too_early"]),
        ] {
            let (outcome, out) = test(true, Some(fault));
            assert_eq!(outcome, Outcome::Failure, "{fault:?}: {out}");
            let red: Vec<_> = out
                .lines()
                .filter_map(PathRow::parse)
                .filter(|row| !row.pass())
                .map(|row| format!("{} {}", row.path, row.probe))
                .collect();
            assert_eq!(red, rows, "{fault:?}: {out}");
        }
    }
}
