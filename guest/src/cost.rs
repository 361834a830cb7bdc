// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `cost` self-test: how much Xen does for what a guest asks of its clocks and timers.
//!
//! It needs nothing of the dilation, so that it runs on stock Xen, too, and the two can be compared.
//! On a machine whose time is counted in instructions, ticks of the TSC are instructions. Each
//! operation is repeated, and the shortest is what it costs: the longer ones were interrupted.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::hint::black_box;
use core::mem::zeroed;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use spin::Mutex;
use tdf_xen::abi::{RunstateInfo, Vcpu, vcpu_time_info};
use tdf_xen::hypercall::{Hypercall, Xen, XenError};

use crate::machine::{Cpu, Crew, Machine};
use crate::probe::{Outcome, say};

/// How often each operation is measured.
const TIMES: u32 = 1000;
/// Readings of an emulated TSC that are measured as one: what it counts is whole ns.
const READS: u32 = 64;
/// A deadline that is ahead of everything that is measured, ns of system time.
const AHEAD_NS: i64 = 20_000_000_000;

/// The vCPU that measures.
const FIRST: Vcpu = Vcpu(0);

/// What an operation costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cost {
    name: &'static str,
    /// How many operations …
    ops: u32,
    /// … take so many ticks.
    ticks: u64,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, ops, ticks } = self;
        write!(f, "tdf-cost op={name} ops={ops} ticks={ticks}")
    }
}

/// The fewest ticks that `ops` times `operation` take, and the reading of the TSC that ends it.
fn least<X: Hypercall + Cpu>(
    machine: &Machine<'_, X>,
    name: &'static str,
    ops: u32,
    mut operation: impl FnMut() -> Result<(), XenError>,
) -> Result<Cost, XenError> {
    let mut ticks = u64::MAX;
    for _ in 0..TIMES {
        let before = machine.xen.rdtsc();
        for _ in 0..ops {
            operation()?;
        }
        ticks = ticks.min(machine.xen.rdtsc().wrapping_sub(before));
    }
    Ok(Cost { name, ops, ticks })
}

/// Where Xen also writes a vCPU's time record and its runstate, as Linux has it; for ever.
#[derive(Debug)]
struct Areas {
    time: *mut vcpu_time_info,
    runstate: *mut RunstateInfo,
}

impl Areas {
    fn new() -> Self {
        // SAFETY: numbers, of which all-zero is a value.
        let time = Box::leak(Box::new(unsafe { zeroed::<vcpu_time_info>() }));
        Self { time, runstate: Box::leak(Box::default()) }
    }

    /// Gives them to Xen, which writes both at once.
    fn register<X: Hypercall + Cpu>(&self, machine: &Machine<'_, X>) -> Result<(), XenError> {
        self.register_time(machine)?;
        // SAFETY: leaked, and nobody looks at it.
        unsafe { machine.xen.register_runstate_area(machine.vcpu, self.runstate) }
    }

    fn register_time<X: Hypercall + Cpu>(&self, machine: &Machine<'_, X>) -> Result<(), XenError> {
        // SAFETY: as above.
        unsafe { machine.xen.register_time_area(machine.vcpu, self.time) }
    }
}

/// What can be measured with a counter that Xen does not emulate.
fn native<X: Hypercall + Cpu>(machine: &Machine<'_, X>) -> Result<Vec<Cost>, XenError> {
    let (xen, vcpu) = (machine.xen, machine.vcpu);
    let areas = Areas::new();
    areas.register(machine)?;
    let ahead = machine.system_time_ns().saturating_add(AHEAD_NS).cast_unsigned();
    let costs = [
        // Part of each of the others.
        least(machine, "nothing", 1, || Ok(()))?,
        least(machine, "clock_read", 1, || {
            black_box(machine.system_time_ns());
            Ok(())
        })?,
        // Xen writes the record and its copy, whether they change or not.
        least(machine, "time_record", 1, || areas.register_time(machine))?,
        least(machine, "set_singleshot", 1, || xen.set_singleshot_timer(vcpu, ahead))?,
        least(machine, "set_singleshot_past", 1, || xen.set_singleshot_timer(vcpu, 1))?,
        least(machine, "set_timer_op", 1, || xen.set_timer_op(ahead))?,
        least(machine, "get_runstate", 1, || xen.runstate(vcpu).map(drop))?,
    ];
    xen.stop_singleshot_timer(vcpu)?;
    Ok(Vec::from(costs))
}

/// The TSC that Xen emulates, by itself: what it counts is ns, which are ticks where its frequency is
/// a GHz.
fn emulated<X: Hypercall + Cpu>(machine: &Machine<'_, X>) -> Result<Vec<Cost>, XenError> {
    let read = || {
        machine.xen.rdtsc();
        Ok(())
    };
    // The reading that ends it is one of them.
    let Cost { name, ops, ticks } = least(machine, "rdtsc", READS - 1, read)?;
    Ok(Vec::from([Cost { name, ops: ops + 1, ticks }]))
}

/// A switch from one vCPU to another, and back: each yields as soon as it runs.
///
/// `None` if they do not take turns, or there is only one.
fn switches<X: Hypercall + Cpu>(crew: &dyn Crew<X>) -> Result<Option<Cost>, XenError> {
    let (least, turns) = (AtomicU64::new(u64::MAX), AtomicU32::new(0));
    let (over, failed) = (AtomicBool::new(false), Mutex::new(None));
    crew.run(true, &|machine| {
        let first = machine.vcpu == FIRST;
        let measure = || -> Result<(), XenError> {
            Areas::new().register(machine)?;
            for _ in 0..TIMES {
                let turn = turns.load(Ordering::SeqCst);
                let before = machine.xen.rdtsc();
                machine.xen.yield_now()?;
                let ticks = machine.xen.rdtsc().wrapping_sub(before);
                // The other one has run, and has yielded once.
                if turns.load(Ordering::SeqCst) == turn + 1 {
                    least.fetch_min(ticks, Ordering::SeqCst);
                }
            }
            Ok(())
        };
        let answer = || -> Result<(), XenError> {
            Areas::new().register(machine)?;
            while !over.load(Ordering::SeqCst) {
                turns.fetch_add(1, Ordering::SeqCst);
                machine.xen.yield_now()?;
            }
            Ok(())
        };
        let result = if first { measure() } else { answer() };
        if first {
            over.store(true, Ordering::SeqCst);
        }
        if let Err(error) = result {
            *failed.lock() = Some(error);
        }
    })?;
    if let Some(error) = failed.into_inner() {
        return Err(error);
    }
    let ticks = least.into_inner();
    Ok((ticks != u64::MAX).then_some(Cost { name: "context_switch", ops: 2, ticks }))
}

fn attempt<X: Hypercall + Cpu>(
    machine: &Machine<'_, X>,
    crew: &dyn Crew<X>,
) -> Result<Vec<Cost>, XenError> {
    if machine.xen.tsc_is_emulated() {
        return emulated(machine);
    }
    let mut costs = native(machine)?;
    costs.extend(switches(crew)?);
    Ok(costs)
}

/// Measures; everything it has to say goes to `out`, the result last.
pub fn run<X: Hypercall + Cpu>(
    machine: &Machine<'_, X>,
    crew: &dyn Crew<X>,
    out: &mut dyn fmt::Write,
) -> Outcome {
    let outcome = match attempt(machine, crew) {
        Ok(costs) => {
            costs.iter().for_each(|cost| say(out, format_args!("{cost}")));
            Outcome::Success
        }
        Err(error) => {
            say(out, format_args!("the cost cannot be measured: {error}"));
            Outcome::Error
        }
    };
    say(out, format_args!("Test result: {outcome}"));
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::first_machine;
    use crate::machine::Via;
    use tdf_xen::fake::{Config, FakeXen};

    fn costs(emulated_tsc: bool) -> Vec<String> {
        // Real time is none of its business: on stock Xen nobody can tell.
        let xen = FakeXen::new(Config { emulated_tsc, sample_answer: -38, ..Config::default() });
        let mut out = String::new();
        assert_eq!(run(&first_machine(&xen), &xen, &mut out), Outcome::Success, "{out}");
        let cost = |line: &str| Some(line.strip_prefix("tdf-cost op=")?.split(' ').next()?.into());
        out.lines().filter_map(cost).collect()
    }

    #[test]
    fn every_operation_has_its_line() {
        let native = costs(false);
        for op in ["nothing", "clock_read", "time_record", "set_singleshot", "get_runstate"] {
            assert!(native.iter().any(|name| name == op), "{op}: {native:?}");
        }
        // The fake's vCPUs take no turns.
        assert!(!native.iter().any(|name| name == "context_switch"), "{native:?}");
        assert_eq!(costs(true), ["rdtsc"]);
    }

    #[test]
    fn the_least_of_many_is_the_cost() {
        let xen = FakeXen::new(Config { emulated_tsc: false, ..Config::default() });
        let machine = first_machine(&xen);
        let mut long = false;
        let cost = least(&machine, "x", 1, || {
            long = !long;
            let now = machine.system_time_ns();
            if long { machine.sleep_until(now + 1_000_000, Via::Singleshot) } else { Ok(()) }
        });
        // Nothing that is not slept takes the fake so long.
        let ns = machine.tsc().0.exact(cost.unwrap().ticks.cast_signed()).unwrap() >> 64;
        assert!((1..1_000_000).contains(&ns), "{ns}");
    }
}
