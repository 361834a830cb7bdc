// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `paths` self-test: every way by which Xen tells a PV guest the time, or lets it ask for one.
//!
//! Each path is tried once, between two samples of real and virtual time, and gives rows: a number
//! and the two between which it must lie. The bounds are theory: virtual time is exact to the grid of
//! [`grid_ns`], a timer never fires before its deadline and at most [`TIMER_SLACK_REAL_NS`] of real
//! time after it, and between two samples nothing is known but their order. Deadlines are 20 virtual
//! ms ahead, but a real time that can be waited for; where that is too long even so (TDF 1000), what
//! is tried is only that nothing happens too soon. The rows are tried on each vCPU in turn, and are
//! printed at the end, like all readings.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::mem::zeroed;
use core::ops::RangeInclusive;
use core::sync::atomic::{AtomicI64, Ordering};

use spin::Mutex;
use tdf_abi::{Tdf, TdfSample};
use tdf_xen::abi::{RUNSTATE_OFFLINE, RUNSTATE_RUNNABLE, Vcpu, vcpu_time_info};
use tdf_xen::clock::{TSC_STABLE, TimeArea, TimeInfo};
use tdf_xen::hypercall::{Hypercall, Xen};
use tdf_xen::path::PathRow;

use crate::machine::{Cpu, Crew, Machine, Via};
use crate::probe::{
    Outcome, TIMER_SLACK_REAL_NS, TestError, grid_ns, reveal, say, to_virtual, to_virtual_up,
};

/// Virtual time from arming a timer to its deadline, ns, where real time allows it.
const LEAD_NS: i64 = 20_000_000;
/// Real time that a lead may take, ns: long against what arming costs, short for who waits.
const LEAD_REAL_NS: RangeInclusive<i64> = 2_000_000..=500_000_000;
/// Real time over which clocks are compared, ns: 0.3 s, as the table has it.
const WINDOW_REAL_NS: i64 = 300_000_000;
/// Real time that a whole row may wait, ns.
const WAIT_REAL_NS: i64 = 2_000_000_000;
/// Real time before a tick from which on a vCPU spins for it, ns.
const SPIN_REAL_NS: i64 = 20_000_000;
/// Real time for which all vCPUs read the clock together, ns.
const TOGETHER_REAL_NS: i64 = 2_000_000;
/// How far beyond the limit of `set_timer_op`, 2^50 ns, the deadline of the probe `far` lies: more than
/// passes between reading the clock and Xen's looking at it.
const BEYOND_NS: i64 = 5_000_000;
/// `set_timer_op`: a deadline that is negative or too far away means so many ns from now.
const FAR_NS: i64 = 100_000_000;
/// Period of the tick that every PV vCPU starts with, ns.
const TICK_NS: i64 = 10_000_000;
/// Shortest period that Xen takes, and in real time the shortest that it keeps to, ns.
const PERIOD_MIN_NS: i64 = 1_000_000;
/// The TSC's frequency in CPUID and its published slope are calibrated at different times, each
/// within what a platform timer is good to.
const CALIBRATIONS_PPM: i128 = 500;
/// Times that a native TSC is read again because Xen published a new line meanwhile, which it does
/// once in a real second.
const LINES_MAX: u32 = 8;
/// Real time that is waited with one line, ns.
const LINE_REAL_NS: i64 = 100_000_000;

/// The greatest system time that any vCPU has read.
#[derive(Debug)]
pub struct LastSeen(AtomicI64);

impl LastSeen {
    /// One that has seen nothing.
    pub const fn new() -> Self {
        Self(AtomicI64::new(i64::MIN))
    }

    /// Reads a clock; the time, and how far it is behind what another vCPU has seen before, ns.
    pub fn read(&self, clock: impl FnOnce() -> i64) -> (i64, i64) {
        self.watch(clock, |now| *now)
    }

    /// As [`Self::read`], of the time `of` what was read.
    pub fn watch<T>(&self, read: impl FnOnce() -> T, of: impl FnOnce(&T) -> i64) -> (T, i64) {
        let seen = self.0.load(Ordering::SeqCst);
        let read = read();
        let now = of(&read);
        self.0.fetch_max(now, Ordering::SeqCst);
        (read, seen.saturating_sub(now).max(0))
    }
}

impl Default for LastSeen {
    fn default() -> Self {
        Self::new()
    }
}

/// A [`PathRow`] before it is printed.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    vcpu: Vcpu,
    path: &'static str,
    probe: &'static str,
    value: i64,
    bounds: (i64, i64),
}

impl Row {
    /// A row of `vcpu`; right if `value` is within `bounds`.
    pub const fn new(
        vcpu: Vcpu,
        path: &'static str,
        probe: &'static str,
        value: i64,
        bounds: RangeInclusive<i64>,
    ) -> Self {
        Self { vcpu, path, probe, value, bounds: (*bounds.start(), *bounds.end()) }
    }
}

/// Prints `rows`; [`Outcome::Success`] if every one passes.
pub fn print(rows: &[Row], out: &mut dyn fmt::Write) -> Outcome {
    let mut outcome = Outcome::Success;
    for row in rows {
        let mut probe = String::from(row.probe);
        if row.vcpu != Vcpu(0) {
            // Writing to a string cannot fail.
            let _ = write!(probe, "@{}", row.vcpu);
        }
        let (lo, hi) = row.bounds;
        let line = PathRow { path: row.path, probe: &probe, lo, value: row.value, hi };
        say(out, format_args!("{line}"));
        if !line.pass() {
            outcome = Outcome::Failure;
        }
    }
    outcome
}

/// The rows of one vCPU.
struct Probes<'m, X> {
    machine: &'m Machine<'m, X>,
    tdf: Tdf,
    emulated: bool,
    rows: Vec<Row>,
}

impl<'m, X: Hypercall + Cpu> Probes<'m, X> {
    fn row(
        &mut self,
        path: &'static str,
        probe: &'static str,
        value: i64,
        bounds: RangeInclusive<i64>,
    ) {
        self.rows.push(Row::new(self.machine.vcpu, path, probe, value, bounds));
    }

    fn sample(&self) -> Result<TdfSample, TestError> {
        Ok(self.machine.xen.tdf_sample(self.machine.vcpu)?)
    }

    fn now(&self) -> Result<i64, TestError> {
        Ok(self.sample()?.virt_ns)
    }

    /// Virtual time in so much real time.
    fn real(&self, real_ns: i64) -> i64 {
        to_virtual_up(self.tdf, real_ns)
    }

    /// Virtual time by which a timer may be late.
    fn slack(&self) -> i64 {
        self.real(TIMER_SLACK_REAL_NS)
    }

    fn lead(&self) -> i64 {
        LEAD_NS.clamp(self.real(*LEAD_REAL_NS.start()), self.real(*LEAD_REAL_NS.end()))
    }

    /// Sleeps for so long, by the timer that other rows do not try.
    fn sleep(&self, ns: i64) -> Result<(), TestError> {
        self.machine.sleep_until(self.now()?.saturating_add(ns), Via::Singleshot)?;
        Ok(())
    }

    /// When the timer's event arrived, `None` if it did not until `limit`.
    fn event(&self, limit: i64) -> Result<Option<i64>, TestError> {
        loop {
            if self.machine.fired() {
                return Ok(Some(self.now()?));
            }
            if self.now()? >= limit {
                return Ok(None);
            }
            self.machine.poll_timer(limit)?;
        }
    }

    /// After `arm`, the timer is to fire `after` ns or, if that is `None`, never.
    fn fires(
        &mut self,
        path: &'static str,
        probe: &'static str,
        after: Option<i64>,
        arm: impl FnOnce(&X, i64) -> Result<(), TestError>,
    ) -> Result<(), TestError> {
        self.machine.fired();
        let before = self.now()?;
        arm(self.machine.xen, before)?;
        let armed = self.now()?;
        if let Some(after) = after {
            let hi = after + (armed - before) + self.slack();
            // Twice that is late enough to be called never.
            let event = self.event(armed.saturating_add(after + 2 * self.slack()))?;
            self.row(path, probe, event.map_or(i64::MAX, |at| at - before), after..=hi);
        } else {
            let event = self.event(armed.saturating_add(2 * self.lead()))?;
            self.row(path, probe, event.is_some().into(), 0..=0);
        }
        Ok(self.machine.xen.stop_singleshot_timer(self.machine.vcpu)?)
    }

    /// P4: the copy of the time record that Xen writes where the vCPU wants it, and keeps for ever.
    fn copy(&mut self) -> Result<(), TestError> {
        let machine = self.machine;
        // SAFETY: numbers, of which all-zero is a value.
        let area: *mut vcpu_time_info = Box::leak(Box::new(unsafe { zeroed() }));
        // SAFETY: leaked, and written by nobody but Xen from now on.
        let copy = unsafe {
            machine.xen.register_time_area(machine.vcpu, area)?;
            TimeArea::new(area)
        };
        self.sleep(self.lead())?;
        let (info, tsc) = machine.tsc();
        let (copied, _) = copy.read(|| tsc);
        // Xen may have published a new line between the two.
        let grid = grid_ns(self.tdf);
        let off = copied.system_time_at(tsc).saturating_sub(info.system_time_at(tsc));
        self.row("P4", "as_record", off, -grid..=grid);
        Ok(())
    }

    /// P1, P2, P3, P6, and P17: clocks that are read twice.
    fn clocks(&mut self) -> Result<(), TestError> {
        let line = if self.emulated { "P2" } else { "P1" };
        let machine = self.machine;
        let read = || -> Result<_, TestError> {
            let before = self.sample()?;
            let (info, tsc) = machine.tsc();
            let wall = machine.wall_clock_ns();
            let base = machine.wall_base_ns();
            let after = self.sample()?;
            Ok((before, info, tsc, wall, base, after))
        };
        let (before1, info1, tsc1, wall1, base1, after1) = read()?;
        self.sleep(self.real(WINDOW_REAL_NS))?;
        let (before2, info2, tsc2, wall2, base2, after2) = read()?;

        let grid = grid_ns(self.tdf);
        let (system1, system2) = (info1.system_time_at(tsc1), info2.system_time_at(tsc2));
        let least = to_virtual(self.tdf, before2.real_ns - after1.real_ns) - grid;
        let most = self.real(after2.real_ns - before1.real_ns) + grid;
        self.row(line, "advance", system2 - system1, least..=most);
        self.row(line, "xen", system2, before2.virt_ns - grid..=after2.virt_ns + grid);
        // Xen's own calibration may find 31 bits enough; what is scaled is normalised.
        let bits = if self.emulated || self.tdf != Tdf::ONE { 31 } else { 30 };
        self.row(line, "mul", info2.mul.into(), 1 << bits..=u32::MAX.into());
        let stable = i64::from(info2.flags & TSC_STABLE);
        self.row("P3", "stable_bit", stable, 0..=(self.tdf == Tdf::ONE).into());

        let (least, most) =
            (before2.virt_ns - after1.virt_ns - grid, after2.virt_ns - before1.virt_ns + grid);
        self.row("P6", "advance", wall2 - wall1, least..=most);
        self.row("P6", "base", base2 - base1, 0..=0);

        if self.emulated {
            // CPUID's kHz are those of the emulation, exactly.
            let khz = i128::from(machine.xen.cpuid_time(0)[2].max(1));
            let ns = i128::from(tsc2.wrapping_sub(tsc1).cast_signed()) * 1_000_000 / khz;
            self.row("P17", "advance", ns as i64, least..=most);
        }
        Ok(())
    }

    /// P18: a native TSC, by the slope that was published for it.
    fn native_tsc(&mut self) -> Result<(), TestError> {
        for _ in 0..LINES_MAX {
            let read = || -> Result<_, TestError> {
                Ok((self.sample()?.real_ns, self.machine.tsc(), self.sample()?.real_ns))
            };
            let (before1, (info1, tsc1), after1) = read()?;
            self.sleep(self.real(LINE_REAL_NS))?;
            let (before2, (info2, tsc2), after2) = read()?;
            if info1.version != info2.version {
                continue;
            }
            let ticks = tsc2.wrapping_sub(tsc1).cast_signed();
            let ns = (info1.exact(ticks).ok_or(TestError::Tsc)? >> 64) as i64;
            let grid = grid_ns(self.tdf);
            let least = to_virtual(self.tdf, before2 - after1) - grid;
            self.row("P18", "advance", ns, least..=self.real(after2 - before1) + grid);
            return Ok(());
        }
        // Lines that last no tenth of a second are wrong by themselves.
        self.row("P18", "lines_of_100ms", 0, 1..=1);
        Ok(())
    }

    /// P17 or P18: `rdmsr`, between two `rdtsc`.
    fn rdmsr(&mut self) {
        let xen = self.machine.xen;
        let before = xen.rdtsc();
        let between = xen.rdmsr_tsc();
        let after = xen.rdtsc();
        let path = if self.emulated { "P17" } else { "P18" };
        let ticks = |tsc: u64| tsc.wrapping_sub(before).cast_signed();
        self.row(path, "rdmsr_ticks", ticks(between), 0..=ticks(after));
    }

    /// P20: what CPUID says of the TSC, against the published line.
    fn cpuid(&mut self) -> Result<(), TestError> {
        let (info, _) = self.machine.tsc();
        let khz = self.machine.xen.cpuid_time(0)[2];
        let [_, _, mul, shift] = self.machine.xen.cpuid_time(1);
        // The initial domain's are 0: no toolstack has set them.
        if khz == 0 {
            return Ok(());
        }
        let published =
            i64::try_from(info.frequency_hz().ok_or(TestError::Tsc)? / 1000).unwrap_or(i64::MAX);
        let ppm = if self.emulated { 0 } else { CALIBRATIONS_PPM };
        let about = |n: i64| {
            let off = (i128::from(n) * ppm / 1_000_000) as i64 + 1;
            n - off..=n + off
        };
        let clip = |n: i64| n.min(u32::MAX.into());
        let kilohertz = about(published);
        self.row("P20", "khz", khz.into(), clip(*kilohertz.start())..=clip(*kilohertz.end()));
        let leaf = TimeInfo { mul, shift: shift as i8, ..info };
        // Microseconds in 2^40 ticks: enough digits at any factor.
        let us = |info: &TimeInfo| info.exact(1 << 40).map(|ns| ((ns >> 64) / 1000) as i64);
        let (slope, published) = (us(&leaf).unwrap_or(-1), us(&info).ok_or(TestError::Tsc)?);
        self.row("P20", "us_in_2^40_ticks", slope, about(published));
        Ok(())
    }

    /// P8.
    fn set_timer_op(&mut self) -> Result<(), TestError> {
        let lead = self.lead();
        self.fires("P8", "ahead", Some(lead), |xen, now| {
            Ok(xen.set_timer_op((now + lead).cast_unsigned())?)
        })?;
        self.fires("P8", "past", Some(0), |xen, now| {
            Ok(xen.set_timer_op((now - 1_000_000).max(1).cast_unsigned())?)
        })?;
        self.fires("P8", "zero_stops", None, |xen, now| {
            xen.set_timer_op((now + lead).cast_unsigned())?;
            Ok(xen.set_timer_op(0)?)
        })?;
        // In real time, that is.
        let soon = FAR_NS <= self.real(10 * WAIT_REAL_NS);
        // Just beyond the limit, so that it shows in which time Xen takes the difference: in real time
        // the deadline of a domain that lags by more than this is not too far away.
        let far = |now: i64| now.saturating_add((1 << 50) + BEYOND_NS).cast_unsigned();
        if soon {
            self.fires("P8", "far", Some(FAR_NS), |xen, now| Ok(xen.set_timer_op(far(now))?))?;
            self.fires("P8", "negative", Some(FAR_NS), |xen, _| {
                Ok(xen.set_timer_op((-5i64).cast_unsigned())?)
            })
        } else {
            let xen = self.machine.xen;
            for (probe, deadline) in [
                ("far_not_too_soon", far(self.now()?)),
                ("negative_not_too_soon", (-5i64).cast_unsigned()),
            ] {
                self.machine.fired();
                xen.set_timer_op(deadline)?;
                let event = self.event(self.now()? + self.real(WAIT_REAL_NS))?;
                self.row("P8", probe, event.is_some().into(), 0..=0);
                xen.set_timer_op(0)?;
            }
            Ok(())
        }
    }

    /// P9 and P10.
    fn singleshot(&mut self) -> Result<(), TestError> {
        let (lead, vcpu) = (self.lead(), self.machine.vcpu);
        self.fires("P9", "ahead", Some(lead), |xen, now| {
            Ok(xen.set_singleshot_timer(vcpu, (now + lead).cast_unsigned())?)
        })?;
        self.fires("P9", "past", Some(0), |xen, now| {
            Ok(xen.set_singleshot_timer(vcpu, (now - 1_000_000).max(1).cast_unsigned())?)
        })?;
        // As stock Xen: not in the past, compared without sign, but armed with one.
        self.fires("P9", "all_ones", Some(0), |xen, _| {
            Ok(xen.set_singleshot_timer(vcpu, u64::MAX)?)
        })?;
        self.fires("P9", "2^63-16_never", None, |xen, _| {
            Ok(xen.set_singleshot_timer(vcpu, (1 << 63) - 16)?)
        })?;
        self.fires("P10", "stop_singleshot", None, |xen, now| {
            xen.set_singleshot_timer(vcpu, (now + lead).cast_unsigned())?;
            Ok(xen.stop_singleshot_timer(vcpu)?)
        })
    }

    /// When the next tick came, `None` if it is late by a whole period; the last was at `last`.
    fn tick(&self, last: i64, period: i64) -> Result<Option<i64>, TestError> {
        // A vCPU gets ticks only while it runs, but may sleep well before the next is due.
        let spin = last + period - self.real(SPIN_REAL_NS);
        if self.now()? < spin {
            self.machine.poll_timer(spin)?;
        }
        loop {
            let now = self.now()?;
            if self.machine.fired() {
                return Ok(Some(self.now()?));
            }
            if now > last + 2 * period + self.slack() {
                return Ok(None);
            }
        }
    }

    /// Virtual time that others took from this vCPU.
    fn stolen(&self) -> Result<i64, TestError> {
        let info = self.machine.xen.runstate(self.machine.vcpu)?;
        let time = |i: usize| info.time_ns[i];
        Ok(time(RUNSTATE_RUNNABLE).wrapping_add(time(RUNSTATE_OFFLINE)).cast_signed())
    }

    /// P11: ticks after the first, which comes until `last` + `period` and is known as well as a timer
    /// is. Each begins a new period, so that all their delays add up, and those of a vCPU that may not
    /// run.
    fn ticks(&mut self, probe: &'static str, last: i64, period: i64) -> Result<(), TestError> {
        let count = (self.real(WAIT_REAL_NS) / period).clamp(1, 10);
        let first = self.tick(last, period)?;
        let stolen = self.stolen()?;
        let mut last = first;
        for _ in 0..count {
            last = last.map(|last| self.tick(last, period)).transpose()?.flatten();
        }
        let stolen = self.stolen()? - stolen;
        let value = first.zip(last).map_or(i64::MAX, |(first, last)| last - first);
        let hi = count * (period + self.slack()) + stolen;
        self.row("P11", probe, value, count * period - self.slack()..=hi);
        Ok(())
    }

    /// P11: the tick that nobody asked for, and P10: its end.
    fn default_tick(&mut self) -> Result<(), TestError> {
        // Xen keeps no period that is shorter than this in real time.
        let period = TICK_NS.max(self.real(PERIOD_MIN_NS));
        self.machine.fired();
        self.ticks("default_10ms", self.now()?, period)?;
        self.machine.xen.stop_periodic_timer(self.machine.vcpu)?;
        let lead = period.min(self.lead());
        self.machine.fired();
        let mut ticked = false;
        let end = self.now()? + 2 * lead;
        while self.now()? < end {
            ticked |= self.machine.fired();
        }
        self.row("P10", "stop_periodic", ticked.into(), 0..=0);
        Ok(())
    }

    /// P11: a tick of our own.
    fn periodic(&mut self) -> Result<(), TestError> {
        let (period, probe) = if 10 * 5_000_000 <= self.real(WAIT_REAL_NS) {
            (5_000_000, "period_5ms")
        } else {
            (PERIOD_MIN_NS, "period_1ms")
        };
        self.machine.fired();
        self.machine.xen.set_periodic_timer(self.machine.vcpu, period.cast_unsigned())?;
        self.ticks(probe, self.now()?, period.max(self.real(PERIOD_MIN_NS)))?;
        Ok(self.machine.xen.stop_periodic_timer(self.machine.vcpu)?)
    }

    /// P12.
    fn poll(&mut self) -> Result<(), TestError> {
        self.machine.fired();
        let lead = self.lead();
        let before = self.now()?;
        self.machine.poll_timer(before + lead)?;
        let woken = self.now()?;
        self.row("P12", "timeout", woken - before, lead..=lead + self.slack());
        self.row("P12", "events", self.machine.fired().into(), 0..=0);
        Ok(())
    }

    /// P13: a watchdog of 2 s that is petted in time. Wrong, it kills the domain, and there is no row.
    fn watchdog(&mut self) -> Result<(), TestError> {
        let xen = self.machine.xen;
        // In real time long enough that a watchdog in real time would bite, where TDF > 1.
        let nap = 1_500_000_000.min(self.real(2 * WAIT_REAL_NS));
        let before = self.now()?;
        let id = xen.watchdog(0, 2)?;
        self.sleep(nap)?;
        xen.watchdog(id, 2)?;
        self.sleep(nap)?;
        xen.watchdog(id, 0)?;
        let lived = self.now()? - before;
        self.row("P13", "petted", lived, 2 * nap..=2 * (nap + self.slack()) + self.lead());
        Ok(())
    }

    /// P16.
    fn runstate(&mut self) -> Result<(), TestError> {
        let (machine, vcpu) = (self.machine, self.machine.vcpu);
        let before1 = self.now()?;
        let first = machine.xen.runstate(vcpu)?;
        let after1 = self.now()?;
        let deadline = after1 + self.lead();
        machine.sleep_until(deadline, Via::Singleshot)?;
        let before2 = self.now()?;
        let last = machine.xen.runstate(vcpu)?;
        let after2 = self.now()?;
        // Each of four sums is rounded, and real time itself, at both ends.
        let grid = 4 * grid_ns(self.tdf);
        let spent = |i: usize| last.time_ns[i].wrapping_sub(first.time_ns[i]).cast_signed();
        let sum = (0..4).fold(0i64, |sum, i| sum.wrapping_add(spent(i)));
        let (least, most) = (before2 - after1 - grid, after2 - before1 + grid);
        self.row("P16", "sum", sum, least..=most);
        // It slept until the deadline, and has run since.
        let entry = last.state_entry_time_ns.cast_signed();
        self.row("P16", "entry", entry, deadline - grid..=after2 + grid);
        let stolen = spent(RUNSTATE_RUNNABLE).wrapping_add(spent(RUNSTATE_OFFLINE));
        self.row("P16", "steal", stolen, -grid..=most);
        Ok(())
    }

    fn all(&mut self) -> Result<(), TestError> {
        self.default_tick()?;
        self.clocks()?;
        if !self.emulated {
            self.native_tsc()?;
        }
        self.rdmsr();
        self.copy()?;
        self.cpuid()?;
        self.set_timer_op()?;
        self.singleshot()?;
        self.periodic()?;
        self.poll()?;
        self.runstate()?;
        // The domain has them, not the vCPU.
        if self.machine.vcpu == Vcpu(0) {
            self.watchdog()?;
        }
        Ok(())
    }
}

/// All vCPUs read the time at once: none sees one that is earlier than what any has seen.
fn together<X: Hypercall + Cpu>(machine: &Machine<'_, X>, tdf: Tdf, seen: &LastSeen) -> [Row; 2] {
    let (mut back, mut reads) = (0, 0);
    let end = machine.system_time_ns().saturating_add(to_virtual_up(tdf, TOGETHER_REAL_NS));
    loop {
        let (now, behind) = seen.read(|| machine.system_time_ns());
        back += i64::from(behind > 0);
        reads += 1;
        if now >= end {
            break;
        }
    }
    let row = |probe, value, bounds| Row::new(machine.vcpu, "P1", probe, value, bounds);
    [row("shared_backward_steps", back, 0..=0), row("shared_reads", reads, 2..=i64::MAX)]
}

fn attempt<X: Hypercall + Cpu>(
    machine: &Machine<'_, X>,
    crew: &dyn Crew<X>,
    out: &mut dyn fmt::Write,
) -> Result<Outcome, TestError> {
    let tdf = match reveal(machine)? {
        Ok(tdf) => tdf,
        Err(why) => {
            say(out, format_args!("{why}: nothing can be tested"));
            return Ok(Outcome::Skip);
        }
    };
    let (rows, failed) = (Mutex::new(Vec::new()), Mutex::new(None));
    crew.run(false, &|machine| {
        let emulated = machine.xen.tsc_is_emulated();
        let mut probes = Probes { machine, tdf, emulated, rows: Vec::new() };
        if let Err(error) = probes.all() {
            *failed.lock() = Some(error);
        }
        rows.lock().extend(probes.rows);
    })?;
    let seen = LastSeen::new();
    crew.run(true, &|machine| rows.lock().extend(together(machine, tdf, &seen)))?;
    let outcome = print(&rows.lock(), out);
    failed.into_inner().map_or(Ok(outcome), Err)
}

/// Runs the test; everything it has to say goes to `out`, the result last.
pub fn run<X: Hypercall + Cpu>(
    machine: &Machine<'_, X>,
    crew: &dyn Crew<X>,
    out: &mut dyn fmt::Write,
) -> Outcome {
    let outcome = attempt(machine, crew, out).unwrap_or_else(|error| {
        say(out, format_args!("the paths cannot be tested: {error}"));
        Outcome::Error
    });
    say(out, format_args!("Test result: {outcome}"));
    outcome
}

/// The `watchdog-bite` test: a watchdog of 2 s that nobody pets is to kill the domain.
///
/// Says when it was armed and that the domain still lived just before it was due; only a domain that
/// lives on gets to a result, a bad one.
pub fn watchdog_bite<X: Hypercall + Cpu>(
    machine: &Machine<'_, X>,
    out: &mut dyn fmt::Write,
    flush: impl Fn(),
) -> Outcome {
    const TIMEOUT_NS: i64 = 2_000_000_000;
    // Time to print; a tenth of the timeout.
    const SPARE_NS: i64 = TIMEOUT_NS / 10;
    let wait = |until: i64| machine.sleep_until(until, Via::Singleshot);
    let mut bite = || -> Result<(), TestError> {
        let armed = machine.system_time_ns();
        machine.xen.watchdog(0, 2)?;
        wait(armed + TIMEOUT_NS - SPARE_NS)?;
        let lived = machine.system_time_ns() - armed;
        let bounds = TIMEOUT_NS - SPARE_NS..=TIMEOUT_NS;
        let outcome = print(&[Row::new(machine.vcpu, "P13", "unpetted", lived, bounds)], out);
        flush();
        if outcome == Outcome::Success {
            // Much later than a watchdog may be late, at any factor above 1/1000.
            wait(armed + 2 * TIMEOUT_NS)?;
        }
        Ok(())
    };
    let outcome = match bite() {
        Ok(()) => Outcome::Failure,
        Err(error) => {
            say(out, format_args!("the watchdog cannot be tested: {error}"));
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
    use tdf_xen::fake::{Config, FakeXen, Fault};

    fn config(tdf: &str, emulated_tsc: bool, fault: Option<Fault>) -> Config {
        Config { tdf: tdf.parse().unwrap(), emulated_tsc, fault, ..Config::default() }
    }

    fn test(config: Config) -> (Outcome, String) {
        let xen = FakeXen::new(config);
        let mut out = String::new();
        let outcome = run(&first_machine(&xen), &xen, &mut out);
        assert!(out.ends_with(&format!("Test result: {outcome}\n")), "{out}");
        (outcome, out)
    }

    /// `path probe` of each red row of the first vCPU.
    fn red(out: &str) -> Vec<String> {
        out.lines()
            .filter_map(PathRow::parse)
            .filter(|row| !row.pass() && !row.probe.contains('@'))
            .map(|row| format!("{} {}", row.path, row.probe))
            .collect()
    }

    #[test]
    fn right_paths_pass_at_every_factor_and_in_both_tsc_modes() {
        for tdf in ["1", "5/2", "10", "1000", "1/2", "1/1000"] {
            for emulated in [false, true] {
                let (outcome, out) = test(config(tdf, emulated, None));
                assert_eq!(outcome, Outcome::Success, "{tdf} {emulated}: {out}");
            }
        }
    }

    #[test]
    fn every_row_is_tried_on_every_vcpu_that_has_it() {
        let (_, out) = test(config("10", true, None));
        let rows: Vec<_> = out.lines().filter_map(PathRow::parse).collect();
        assert_eq!(rows.len(), out.lines().count() - 1);
        let of = |second: bool| rows.iter().filter(|r| r.probe.ends_with("@1") == second).count();
        assert_eq!(of(true), of(false) - 1, "{out}");
        for n in [2, 3, 4, 6, 8, 9, 10, 11, 12, 13, 16, 17, 20] {
            assert!(rows.iter().any(|r| r.path == format!("P{n}")), "P{n}: {out}");
        }
    }

    /// Each thing done wrong turns its own rows red, and no other.
    #[test]
    fn a_wrong_path_is_caught_by_its_row() {
        for (emulated, fault, rows) in [
            (
                false,
                Fault::SlopeOff(20_000),
                &["P1 advance", "P1 xen", "P6 advance", "P18 advance"][..],
            ),
            (false, Fault::SystemTimeOff(20_000), &["P1 xen"]),
            (false, Fault::SetTimerOpOff(2_000_000), &["P8 ahead", "P8 far", "P8 negative"]),
            (true, Fault::SetTimerOpOff(-200_000), &["P8 ahead", "P8 far", "P8 negative"]),
            (true, Fault::SetTimerOpZero, &["P8 zero_stops"]),
            (false, Fault::FarTimeoutReal, &["P8 far", "P8 negative"]),
            (true, Fault::SingleshotPast, &["P9 past"]),
            (false, Fault::SingleshotNegative, &["P9 all_ones"]),
            (true, Fault::SingleshotWraps, &["P9 2^63-16_never"]),
            (false, Fault::SingleshotStop, &["P10 stop_singleshot"]),
            (false, Fault::PollOff(2_000_000), &["P12 timeout"]),
            (true, Fault::PollOff(-300_000), &["P12 timeout"]),
            (true, Fault::PeriodReal, &["P11 default_10ms", "P11 period_5ms"]),
            (false, Fault::RunstateReal, &["P16 sum", "P16 entry"]),
            (false, Fault::StealReal, &["P16 steal"]),
            (false, Fault::EntryOff(1_000_000), &["P16 entry"]),
            (true, Fault::EntryOff(-1_000_000), &["P16 entry"]),
            (false, Fault::CopyReal, &["P4 as_record"]),
            (true, Fault::CopyReal, &["P4 as_record"]),
            (true, Fault::RdmsrReal, &["P17 rdmsr_ticks"]),
            (false, Fault::CpuidFrequency, &["P20 khz"]),
            (true, Fault::CpuidFrequency, &["P17 advance", "P20 khz"]),
            (false, Fault::CpuidSlope, &["P20 us_in_2^40_ticks"]),
            (true, Fault::CpuidSlope, &["P20 us_in_2^40_ticks"]),
        ] {
            let (outcome, out) = test(config("5", emulated, Some(fault)));
            assert_eq!(outcome, Outcome::Failure, "{fault:?}: {out}");
            assert_eq!(red(&out), rows, "{fault:?} {emulated}: {out}");
        }
    }

    #[test]
    #[should_panic(expected = "the watchdog bites")]
    fn a_watchdog_in_real_time_kills_the_domain() {
        test(config("10", true, Some(Fault::WatchdogReal)));
    }

    #[test]
    #[should_panic(expected = "the watchdog bites")]
    fn an_unpetted_watchdog_kills_the_domain() {
        let xen = FakeXen::new(config("10", true, None));
        watchdog_bite(&first_machine(&xen), &mut String::new(), || ());
    }

    #[test]
    fn a_vcpu_that_lags_is_caught() {
        let (_, out) = test(config("10", true, Some(Fault::SecondBehind(1 << 30))));
        let row =
            out.lines().filter_map(PathRow::parse).find(|r| r.probe == "shared_backward_steps@1");
        assert!(!row.unwrap().pass(), "{out}");
    }

    #[test]
    fn without_real_time_the_test_is_skipped() {
        let (outcome, out) = test(Config { sample_answer: -1, ..config("1", false, None) });
        assert_eq!(outcome, Outcome::Skip);
        assert!(out.starts_with("this domain may not know real time: "), "{out}");
    }
}
