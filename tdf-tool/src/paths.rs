// SPDX-License-Identifier: MIT OR Apache-2.0
//! `tdf probe` with `test=paths`: the time paths of Xen that a Linux guest uses, each tried once.
//!
//! Linux stands between Xen and this program, so that a row here is about both: its clocks are the
//! time record, its sleeps the single-shot timer. Each number lies between two samples of real and
//! virtual time, and the bounds follow from those and from what theory allows a timer.

use std::arch::x86_64::{__cpuid_count, _mm_lfence, _rdtsc};
use std::os::unix::fs::FileExt;

use tdf_abi::{Tdf, TdfSample};
use tdf_xen::abi::{
    CPUID_TIME, CPUID_TIME_VTSC, RUNSTATE_OFFLINE, RUNSTATE_RUNNABLE, RunstateInfo,
};
use tdf_xen::path::PathRow;

use crate::privcmd::Privcmd;
use crate::probe::{Clocks, Linux, ProbeError, slack_real_ns};
use crate::scenario::TscMode;
use crate::xen::{Errno, runstate};

/// What of the machine is no clock of Linux.
pub trait Machine: Clocks {
    /// What Xen says the first processor has done with its time.
    ///
    /// # Errors
    /// Xen's error number.
    fn runstate(&mut self) -> Result<RunstateInfo, Errno>;
    /// The time stamp counter.
    fn tsc(&mut self) -> u64;
    /// What Xen says of it in CPUID: whether it is emulated, and its frequency in kHz.
    fn tsc_info(&mut self) -> (bool, u32);
    /// A model specific register of the first processor; `None` if it has no such register.
    fn read_msr(&mut self, msr: u32) -> Option<u64>;
    /// Writes one; `None` if it has no such register.
    fn write_msr(&mut self, msr: u32, value: u64) -> Option<()>;
}

/// The paths that must have been tried, whatever the TSC is …
pub const WANTED: [&str; 3] = ["P6", "P9", "P16"];

/// … and those besides that depend on it.
pub const fn of_tsc(mode: TscMode) -> &'static [&'static str] {
    match mode {
        TscMode::Native => &["P1", "P18"],
        TscMode::AlwaysEmulate => &["P2", "P17"],
        TscMode::Default => &[],
    }
}

/// Those that a guest has whose local APIC Xen emulates.
pub const OF_APIC: [&str; 2] = ["H3", "H4"];

/// Real time over which clocks are compared, ns.
const WINDOW_REAL_NS: i64 = 300_000_000;
/// Virtual time of a sleep, ns, but a real time that is neither short nor long.
const SLEEP_NS: i64 = 20_000_000;
const SLEEP_REAL_NS: (i64, i64) = (2_000_000, 500_000_000);
/// Sleeps in all.
const SLEEPS: u32 = 10;
/// The frequency in CPUID and the slope that is published are calibrated at different times.
const CALIBRATIONS_PPM: i128 = 500;

/// Registers of the local APIC: the timer's entry, its counter as it starts and as it is, its divider …
const APIC_LVT_TIMER: u32 = 0x832;
const APIC_INITIAL: u32 = 0x838;
const APIC_CURRENT: u32 = 0x839;
const APIC_DIVIDER: u32 = 0x83e;
/// … and the value of the TSC at which it fires.
const TSC_DEADLINE: u32 = 0x6e0;
/// The timer's entry: no interrupt; a deadline instead of a counter, and a vector for which Linux has no
/// use: it says so and goes on.
const LVT_MASKED: u64 = 1 << 16;
const LVT_DEADLINE: u64 = 2 << 17 | 0x90;
/// The divider that divides by 1, and the ns of a tick then: Xen's bus has 100 MHz.
const DIVIDE_BY_1: u64 = 0b1011;
const APIC_TICK_NS: i64 = 10;
/// The timer's counter has so many values.
const APIC_COUNTS: u64 = 1 << 32;

/// All that is read at about one moment.
struct Moment {
    before: TdfSample,
    monotonic: i64,
    realtime: i64,
    tsc: u64,
    spent: RunstateInfo,
    after: TdfSample,
}

impl Moment {
    fn read(machine: &mut impl Machine) -> Result<Self, ProbeError> {
        Ok(Self {
            before: machine.sample()?,
            monotonic: machine.monotonic(),
            realtime: machine.realtime(),
            tsc: machine.tsc(),
            spent: machine.runstate().map_err(ProbeError::Sample)?,
            after: machine.sample()?,
        })
    }
}

fn sum(spent: &RunstateInfo, states: &[usize]) -> i64 {
    let sum = states.iter().fold(0u64, |sum, &state| sum.wrapping_add(spent.time_ns[state]));
    sum.cast_signed()
}

/// H3 and H4: the counter of the local APIC's timer, and its deadline; `None` if there is no local APIC
/// that Linux leaves to us. (Its timer Linux does not use: it has Xen's.)
///
/// # Errors
/// Real time cannot be sampled.
fn apic(
    machine: &mut impl Machine,
    tdf: Tdf,
    khz: u32,
) -> Result<Option<[PathRow<'static>; 2]>, ProbeError> {
    let virt = |real_ns: i64| (-tdf.to_virtual(-i128::from(real_ns))) as i64;
    let grid = 6 + virt(2);
    let started = [(APIC_LVT_TIMER, LVT_MASKED), (APIC_DIVIDER, DIVIDE_BY_1)]
        .into_iter()
        .chain([(APIC_INITIAL, APIC_COUNTS - 1)])
        .try_for_each(|(msr, value)| machine.write_msr(msr, value));
    if started.is_none() {
        return Ok(None);
    }
    let before1 = machine.sample()?;
    let first = machine.read_msr(APIC_CURRENT).unwrap_or(0) as i64;
    let after1 = machine.sample()?;
    let until = machine.monotonic() + virt(WINDOW_REAL_NS);
    machine.sleep_until(until);
    let before2 = machine.sample()?;
    let last = machine.read_msr(APIC_CURRENT).unwrap_or(0) as i64;
    let after2 = machine.sample()?;
    let counted = PathRow {
        path: "H3",
        probe: "apic_counter",
        lo: before2.virt_ns - after1.virt_ns - grid - APIC_TICK_NS,
        value: (first - last) * APIC_TICK_NS,
        hi: after2.virt_ns - before1.virt_ns + grid + APIC_TICK_NS,
    };

    let nap = SLEEP_NS.clamp(virt(SLEEP_REAL_NS.0), virt(SLEEP_REAL_NS.1));
    let ticks = i128::from(nap) * i128::from(khz) / 1_000_000;
    machine.write_msr(APIC_INITIAL, 0);
    machine.write_msr(APIC_LVT_TIMER, LVT_DEADLINE);
    let before = machine.sample()?;
    let deadline = machine.tsc().wrapping_add(ticks as u64);
    machine.write_msr(TSC_DEADLINE, deadline);
    let armed = machine.sample()?;
    // It becomes 0 when the timer fires. Twice what a timer may take is late enough to be called never.
    let late = virt(slack_real_ns(tdf));
    let (mut now, mut last) = (armed, armed);
    let mut waiting = true;
    while waiting && now.virt_ns < armed.virt_ns + nap + 2 * late {
        waiting = machine.read_msr(TSC_DEADLINE).is_some_and(|deadline| deadline != 0);
        (last, now) = (now, machine.sample()?);
    }
    machine.write_msr(APIC_LVT_TIMER, LVT_MASKED);
    let looking = now.virt_ns - last.virt_ns;
    let fired = PathRow {
        path: "H4",
        probe: "tsc_deadline",
        lo: nap - grid,
        value: now.virt_ns - before.virt_ns,
        hi: nap + (armed.virt_ns - before.virt_ns) + late + 2 * looking + grid,
    };
    Ok(Some([counted, fired]))
}

/// Tries every path; the lines to print, and whether all is well.
///
/// # Errors
/// Real time cannot be sampled.
pub fn watch(machine: &mut impl Machine) -> Result<(String, bool), ProbeError> {
    let first = machine.sample()?;
    let tdf =
        Tdf::new(first.num, first.den).map_err(|_| ProbeError::Nonsense(first.num, first.den))?;
    let virt = |real_ns: i64| (-tdf.to_virtual(-i128::from(real_ns))) as i64;
    // The line lies on whole ns of real time, and is rounded a few times.
    let grid = 6 + virt(2);
    let (emulated, khz) = machine.tsc_info();
    let mut rows = Vec::new();
    let mut row = |path, probe, lo, value, hi| rows.push(PathRow { path, probe, lo, value, hi });

    let one = Moment::read(machine)?;
    machine.sleep_until(one.monotonic + virt(WINDOW_REAL_NS));
    let two = Moment::read(machine)?;
    let least = two.before.virt_ns - one.after.virt_ns - grid;
    let most = two.after.virt_ns - one.before.virt_ns + grid;
    let record = if emulated { "P2" } else { "P1" };
    row(record, "monotonic", least, two.monotonic - one.monotonic, most);
    row("P6", "realtime", least, two.realtime - one.realtime, most);
    let spent = sum(&two.spent, &[0, 1, 2, 3]).wrapping_sub(sum(&one.spent, &[0, 1, 2, 3]));
    row("P16", "sum", least, spent, most);
    let stolen = |spent: &RunstateInfo| sum(spent, &[RUNSTATE_RUNNABLE, RUNSTATE_OFFLINE]);
    row("P16", "steal", 0, stolen(&two.spent).wrapping_sub(stolen(&one.spent)), most);
    let ticks = i128::from(two.tsc.wrapping_sub(one.tsc).cast_signed());
    let ns = (ticks * 1_000_000 / i128::from(khz.max(1))) as i64;
    if emulated {
        row("P17", "rdtsc", least, ns, most);
    } else {
        let off = (i128::from(most) * CALIBRATIONS_PPM / 1_000_000) as i64;
        row("P18", "rdtsc", least - off, ns, most + off);
    }

    let slack = virt(slack_real_ns(tdf));
    let nap = SLEEP_NS.clamp(virt(SLEEP_REAL_NS.0), virt(SLEEP_REAL_NS.1));
    let (mut earliest, mut latest, mut longest, mut reading) = (i64::MAX, i64::MIN / 2, 0, 0);
    for _ in 0..SLEEPS {
        let before = machine.runstate().map_err(ProbeError::Sample)?;
        let deadline = machine.monotonic() + nap;
        machine.sleep_until(deadline);
        let woken = machine.sample()?;
        let late = machine.monotonic() - deadline;
        // A timer that has fired in time may find the processor taken: Xen says for how long it was.
        let after = machine.runstate().map_err(ProbeError::Sample)?;
        let waited = stolen(&after).wrapping_sub(stolen(&before)).max(0);
        earliest = earliest.min(late);
        if late - waited > latest - longest {
            (latest, longest) = (late, waited);
        }
        // Between waking and looking at the clock.
        reading = reading.max(machine.sample()?.virt_ns - woken.virt_ns);
    }
    row("P9", "earliest_sleep", 0, earliest, slack + reading);
    row("P9", "latest_sleep", 0, latest, slack + longest + reading);
    let before = machine.sample()?;
    let past = machine.monotonic() - 1_000_000;
    machine.sleep_until(past);
    let took = machine.sample()?.virt_ns - before.virt_ns;
    row("P9", "past", 0, took, slack);

    rows.extend(apic(machine, tdf, khz)?.into_iter().flatten());

    let pass = rows.iter().all(PathRow::pass);
    let mut out: String = rows.iter().map(|row| format!("{row}\n")).collect();
    out.push_str(if pass { "Test result: SUCCESS\n" } else { "Test result: FAILURE\n" });
    Ok((out, pass))
}

/// Xen's first CPUID leaf.
const CPUID_BASE: u32 = 0x4000_0000;
/// "XenVMMXenVMM" in ebx, ecx, edx of it.
const SIGNATURE: [u32; 3] = [0x566e_6558, 0x6558_4d4d, 0x4d4d_566e];

/// CPUID behind Xen's prefix for forced emulation, which a PV guest needs.
fn forced_cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let (eax, ebx, ecx, edx);
    // SAFETY: the prefix is an invalid instruction that Xen, on which we run as a PV guest, recognises
    // in programs, too; rbx is kept.
    unsafe {
        std::arch::asm!(
            "mov {keep}, rbx",
            ".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e",
            "cpuid",
            "xchg {keep}, rbx",
            keep = out(reg) ebx,
            inlateout("eax") leaf => eax,
            inlateout("ecx") subleaf => ecx,
            lateout("edx") edx,
        );
    }
    let ebx: u64 = ebx;
    [eax, ebx as u32, ecx, edx]
}

fn plain_cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let answer = __cpuid_count(leaf, subleaf);
    [answer.eax, answer.ebx, answer.ecx, answer.edx]
}

impl Machine for Linux {
    fn runstate(&mut self) -> Result<RunstateInfo, Errno> {
        runstate(self.hypervisor())
    }

    fn tsc(&mut self) -> u64 {
        // SAFETY: every x86-64 CPU has both; the fence keeps what was read before before.
        unsafe {
            _mm_lfence();
            _rdtsc()
        }
    }

    fn tsc_info(&mut self) -> (bool, u32) {
        // Only where the instruction itself does not show Xen is the guest a PV one.
        let [_, signature @ ..] = plain_cpuid(CPUID_BASE, 0);
        let cpuid = if signature == SIGNATURE { plain_cpuid } else { forced_cpuid };
        let [flags, _, khz, _] = cpuid(CPUID_BASE + CPUID_TIME, 0);
        (flags & CPUID_TIME_VTSC != 0, khz)
    }

    fn read_msr(&mut self, msr: u32) -> Option<u64> {
        let mut value = [0; 8];
        self.msrs()?.read_exact_at(&mut value, msr.into()).ok()?;
        Some(u64::from_ne_bytes(value))
    }

    fn write_msr(&mut self, msr: u32, value: u64) -> Option<()> {
        self.msrs()?.write_all_at(&value.to_ne_bytes(), msr.into()).ok()
    }
}

/// This machine, for a real-time process that stays on the first processor: its runstate is read, and its
/// registers.
///
/// # Errors
/// It is none of Xen's, or this process may not do what it needs.
pub fn this_machine() -> Result<Linux, Box<dyn std::error::Error>> {
    // SAFETY: a set of bits, which may all be zero; it is only read.
    let pinned = unsafe {
        let mut first: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut first);
        libc::sched_setaffinity(0, size_of_val(&first), &raw const first)
    };
    if pinned != 0 {
        let error = std::io::Error::last_os_error();
        return Err(format!("cannot stay on the first processor: {error}").into());
    }
    let mut machine = Linux::new(Privcmd::open()?)
        .map_err(|e| format!("cannot lock memory and take real-time priority: {e}"))?;
    machine.check()?;
    Ok(machine)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wrong with a guest.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Fault {
        None,
        Monotonic,
        Realtime,
        Runstate,
        Steal,
        Tsc,
        WakesEarly,
        WakesLate,
        ApicCounts,
        ApicEarly,
        ApicNever,
    }

    /// A guest at `tdf` in which each operation takes some real time.
    struct Guest {
        tdf: Tdf,
        real: i64,
        emulated: bool,
        fault: Fault,
        /// Since when the local APIC's timer counts, and until when; it has one only with an emulated TSC.
        apic: (i64, u64),
    }

    impl Guest {
        fn virt(&self) -> i64 {
            self.tdf.to_virtual(self.real.into()) as i64
        }

        /// Virtual time, but real time where that is the fault.
        fn time(&mut self, fault: Fault) -> i64 {
            self.real += 800;
            if self.fault == fault { self.real } else { self.virt() }
        }
    }

    impl Clocks for Guest {
        fn sample(&mut self) -> Result<TdfSample, Errno> {
            self.real += 700;
            let (num, den) = (self.tdf.num(), self.tdf.den());
            Ok(TdfSample { real_ns: self.real, virt_ns: self.virt(), num, den })
        }

        fn monotonic(&mut self) -> i64 {
            self.time(Fault::Monotonic)
        }

        fn realtime(&mut self) -> i64 {
            1_700_000_000_000_000_000 + self.time(Fault::Realtime)
        }

        fn sleep_until(&mut self, deadline: i64) {
            let off = match self.fault {
                Fault::WakesEarly => -20_000,
                Fault::WakesLate => 3_000_000,
                _ => 60_000,
            };
            let due = match self.fault {
                Fault::Monotonic => deadline,
                _ => -self.tdf.to_real(-i128::from(deadline)) as i64,
            };
            self.real = self.real.max(due + off);
        }
    }

    impl Machine for Guest {
        fn runstate(&mut self) -> Result<RunstateInfo, Errno> {
            let now = self.time(Fault::Runstate).cast_unsigned();
            let stolen = if self.fault == Fault::Steal { 3 * now } else { now / 1000 };
            let time_ns = [now.wrapping_sub(stolen), stolen, 0, 0];
            Ok(RunstateInfo { time_ns, ..RunstateInfo::default() })
        }

        fn tsc(&mut self) -> u64 {
            let time = self.time(Fault::Tsc);
            let counted = if self.emulated { time } else { self.real };
            // 2 GHz, or slower by a thousandth.
            let slow = if !self.emulated && self.fault == Fault::Tsc { counted / 500 } else { 0 };
            (2 * counted - slow).cast_unsigned()
        }

        fn read_msr(&mut self, msr: u32) -> Option<u64> {
            let now = self.time(Fault::ApicCounts);
            let tsc = self.tsc();
            if tsc >= self.apic.1 && self.fault != Fault::ApicNever {
                self.apic.1 = 0;
            }
            match msr {
                APIC_CURRENT => Some(APIC_COUNTS - 1 - (now - self.apic.0).unsigned_abs() / 10),
                TSC_DEADLINE => Some(self.apic.1),
                other => panic!("{other:#x} is not read"),
            }
        }

        fn write_msr(&mut self, msr: u32, value: u64) -> Option<()> {
            if !self.emulated {
                return None;
            }
            match msr {
                APIC_INITIAL => self.apic.0 = self.time(Fault::ApicCounts),
                TSC_DEADLINE if self.fault == Fault::ApicEarly => self.apic.1 = value - 20_000,
                TSC_DEADLINE => self.apic.1 = value,
                _ => {}
            }
            Some(())
        }

        fn tsc_info(&mut self) -> (bool, u32) {
            let seen = if self.emulated { 1 } else { self.tdf.to_real(1) as u32 };
            (self.emulated, 2_000_000 * seen)
        }
    }

    /// The paths that fail, and whether all is said to be well.
    fn red(tdf: &str, emulated: bool, fault: Fault) -> (Vec<String>, bool) {
        let tdf = tdf.parse().unwrap();
        let mut guest = Guest { tdf, real: 5_000_000_000, emulated, fault, apic: (0, 0) };
        let (text, pass) = watch(&mut guest).unwrap();
        let rows = text.lines().filter_map(PathRow::parse);
        let red = rows.filter(|row| !row.pass()).map(|row| format!("{} {}", row.path, row.probe));
        (red.collect(), pass)
    }

    #[test]
    fn right_paths_pass_at_every_factor_and_in_both_tsc_modes() {
        for (tdf, emulated) in
            [("1", true), ("10", true), ("5/2", true), ("1/2", true), ("1000", true), ("10", false)]
        {
            assert_eq!(red(tdf, emulated, Fault::None), (vec![], true), "{tdf} {emulated}");
        }
    }

    #[test]
    fn what_is_in_real_time_or_wakes_at_the_wrong_time_is_caught_by_its_row() {
        for (emulated, fault, rows) in [
            (true, Fault::Realtime, &["P6 realtime"][..]),
            (true, Fault::Runstate, &["P16 sum"]),
            (true, Fault::Steal, &["P16 steal"]),
            (true, Fault::Tsc, &["P17 rdtsc", "H4 tsc_deadline"]),
            (false, Fault::Tsc, &["P18 rdtsc"]),
            (false, Fault::WakesEarly, &["P9 earliest_sleep", "P9 latest_sleep"]),
            (true, Fault::WakesLate, &["P9 earliest_sleep", "P9 latest_sleep"]),
            (true, Fault::ApicCounts, &["H3 apic_counter"]),
            (true, Fault::ApicEarly, &["H4 tsc_deadline"]),
            (true, Fault::ApicNever, &["H4 tsc_deadline"]),
        ] {
            assert_eq!(
                red("10", emulated, fault),
                (rows.iter().map(|&r| r.into()).collect(), false)
            );
        }
        assert!(red("10", false, Fault::Monotonic).0.contains(&"P1 monotonic".to_owned()));
    }

    #[test]
    fn the_rows_are_those_that_dom0_looks_for() {
        for (emulated, mode) in [(true, TscMode::AlwaysEmulate), (false, TscMode::Native)] {
            let tdf = "10".parse().unwrap();
            let mut guest = Guest { tdf, real: 1, emulated, fault: Fault::None, apic: (0, 0) };
            let (text, _) = watch(&mut guest).unwrap();
            for path in WANTED.iter().chain(of_tsc(mode)) {
                assert!(text.contains(&format!("path={path} ")), "{path}: {text}");
            }
            for path in OF_APIC {
                assert_eq!(text.contains(&format!("path={path} ")), emulated, "{path}: {text}");
            }
        }
    }
}
