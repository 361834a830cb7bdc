// SPDX-License-Identifier: MIT OR Apache-2.0
//! A Xen of plain memory, in which time is a number that only calls advance.
//!
//! It keeps time as Xen does: the TSC is the master, real time is a line through a point that is
//! replaced every second by one with a slightly other slope (calibration), and a domain is shown a
//! line of its own. A [`Fault`] makes one of these wrong, so that a test can show that its checks
//! see it.

pub mod store;

use std::cell::{Cell, RefCell};
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use tdf_abi::{Tdf, TdfSample, VCPUOP_TDF_SAMPLE};

use crate::abi::*;
use crate::clock::{TimeArea, TimeInfo, WallArea};
use crate::evtchn::Events;
use crate::hypercall::Hypercall;

/// One thing that this Xen does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Publishes the slope of real time to a dilated domain.
    SlopeNotScaled,
    /// Publishes a slope that is wrong by so many parts per billion.
    SlopeOff(i64),
    /// System time is ahead by so many ns, always.
    SystemTimeOff(i64),
    /// System time steps by so many ns after two seconds.
    SystemTimeSteps(i64),
    /// The wall clock's base steps by so many ns after two seconds.
    WallClockSteps(i64),
    /// An emulated TSC counts real time.
    TscNotDilated,
    /// The single-shot timer fires so many real ns after its time.
    SingleshotOff(i64),
    /// `set_timer_op` fires so many real ns after its time.
    SetTimerOpOff(i64),
    /// `set_timer_op` does not stop the timer at 0.
    SetTimerOpZero,
    /// What `set_timer_op` does with a deadline too far away to be believed, it does in real time.
    FarTimeoutReal,
    /// The single-shot timer ignores a deadline that has passed.
    SingleshotPast,
    /// The single-shot timer ignores a deadline that is negative.
    SingleshotNegative,
    /// The single-shot timer wraps a deadline beyond what real time can hold.
    SingleshotWraps,
    /// The single-shot timer cannot be stopped.
    SingleshotStop,
    /// `SCHEDOP_poll` times out so many real ns after its time.
    PollOff(i64),
    /// The period of the periodic timer is in real time.
    PeriodReal,
    /// The watchdog counts real time.
    WatchdogReal,
    /// `get_runstate_info` tells real time.
    RunstateReal,
    /// `get_runstate_info` tells real time of the time that others took.
    StealReal,
    /// `get_runstate_info` tells when the vCPU entered its state so many ns too late.
    EntryOff(i64),
    /// The copy of the time record tells real time.
    CopyReal,
    /// `rdmsr` of an emulated TSC gives the host's.
    RdmsrReal,
    /// The frequency of the TSC in CPUID is the host's, or the other way round.
    CpuidFrequency,
    /// The slope of the TSC in CPUID is the host's, or the other way round.
    CpuidSlope,
    /// A change of the factor moves virtual time by so many ns.
    ChangeJumps(i64),
    /// A change of the factor is not published before the next calibration.
    ChangeUnpublished,
    /// A change of the factor leaves the single-shot timer where it was in real time.
    ChangeUnarmed,
    /// A change of the factor leaves the timeout of `SCHEDOP_poll` where it was in real time.
    ChangeUnpolled,
    /// The system time of the second vCPU is behind by so many ns.
    SecondBehind(u64),
}

/// What a [`FakeXen`] is like.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The domain's factor.
    pub tdf: Tdf,
    /// The host's TSC frequency.
    pub frequency_hz: u64,
    /// Whether the domain's TSC is emulated.
    pub emulated_tsc: bool,
    /// What `VCPUOP_tdf_sample` answers: 0 or `-errno`.
    pub sample_answer: isize,
    /// Seed of calibration and latencies.
    pub seed: u64,
    /// Changes the factor each time that so many ns of real time have passed; 0 never does.
    pub change_every_ns: u64,
    /// The factors that it changes to, at random, no one twice in a row.
    pub change_to: &'static [(u32, u32)],
    /// What is wrong.
    pub fault: Option<Fault>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tdf: Tdf::ONE,
            frequency_hz: 2_300_000_000,
            emulated_tsc: false,
            sample_answer: 0,
            seed: 1,
            change_every_ns: 0,
            change_to: &FACTORS,
            fault: None,
        }
    }
}

/// vCPUs of the domain.
const VCPUS: u32 = 2;
/// The port that `bind_virq` gives to the first vCPU.
const TIMER_PORT: u32 = 3;
/// The tick that every vCPU starts with, ns.
const TICK_NS: i64 = 10_000_000;
/// Factors that this Xen changes to, unless told otherwise.
const FACTORS: [(u32, u32); 9] =
    [(1, 1000), (1, 10), (1, 2), (1, 1), (5, 2), (7, 3), (10, 1), (100, 1), (1000, 1)];
/// Time of day when system time was 0, ns since 1970.
const WALL_BASE_NS: i64 = 1_704_067_200_000_000_000;
/// Real time at which the domain's first segment starts, and its virtual time there.
const ORIGIN: (i64, i64) = (3_000_000_123, 3_000_000_123);

/// From when on, and how, time is dilated.
#[derive(Clone, Copy)]
struct Segment {
    real_ns: i64,
    virt_ns: i64,
    tdf: Tdf,
}

impl Segment {
    fn to_virtual(self, real_ns: i64) -> i64 {
        self.virt_ns + self.tdf.to_virtual((real_ns - self.real_ns).into()) as i64
    }

    fn to_real(self, virt_ns: i64) -> i64 {
        let since = i128::from(virt_ns) - i128::from(self.virt_ns);
        let real = i128::from(self.real_ns) + self.tdf.to_real(since);
        real.clamp(i64::MIN.into(), i64::MAX.into()) as i64
    }
}

/// When a timer fires.
#[derive(Clone, Copy)]
struct Deadline {
    virt_ns: i64,
    /// Real ns later: Xen's slop, and what is wrong.
    off_ns: i64,
    /// Real time instead of all this.
    real_ns: Option<i64>,
}

/// The timers of a vCPU, and what it did.
#[derive(Clone, Copy)]
struct Timers {
    singleshot: Option<Deadline>,
    /// Period, and when it last fired, in the time that it is kept in.
    periodic: Option<(i64, i64)>,
    blocked_ns: i64,
    entry_ns: i64,
}

struct State {
    random: u64,
    /// The host's TSC.
    tsc: u64,
    /// Real time as a line.
    line: TimeInfo,
    segment: Segment,
    changes_at: i64,
    vcpu: u32,
    vcpus: [Timers; VCPUS as usize],
    watchdog: Option<i64>,
    calibrations: u32,
    /// Where each vCPU wants a copy of its time record.
    copies: [Option<*mut vcpu_time_info>; VCPUS as usize],
}

/// The fake.
pub struct FakeXen {
    config: Config,
    state: RefCell<State>,
    shared: Box<Cell<shared_info>>,
}

/// `num/den` ns a tick as multiplier and shift, the multiplier rounded down to its 32 bits.
fn slope(num: u128, den: u128) -> (u32, i8) {
    for shift in (-60i8..31).rev() {
        let (num, den) = if shift > 0 { (num, den << shift) } else { (num << -shift, den) };
        let mul = (num << 32) / den;
        if mul >= 1 << 31 {
            return (u32::try_from(mul).expect("half of it was too small"), shift);
        }
    }
    panic!("no slope for {num}/{den}");
}

impl FakeXen {
    /// A Xen whose one domain has just been started.
    pub fn new(config: Config) -> Self {
        // SAFETY: integers and arrays of integers: all-zero is a value.
        let shared = Box::new(Cell::new(unsafe { std::mem::zeroed::<shared_info>() }));
        let line = TimeInfo {
            version: 0,
            tsc_timestamp: 777_777,
            system_time_ns: 3_100_000_000,
            mul: 0,
            shift: 0,
            flags: 0,
        };
        let timers = Timers {
            singleshot: None,
            periodic: Some((TICK_NS, ORIGIN.1)),
            blocked_ns: 0,
            entry_ns: ORIGIN.1,
        };
        let every = config.change_every_ns.cast_signed();
        let state = State {
            random: config.seed,
            tsc: 777_777,
            line,
            segment: Segment { real_ns: ORIGIN.0, virt_ns: ORIGIN.1, tdf: config.tdf },
            changes_at: if every == 0 { i64::MAX } else { 3_100_000_000 + every },
            vcpu: 0,
            vcpus: [timers; VCPUS as usize],
            watchdog: None,
            calibrations: 0,
            copies: [None; VCPUS as usize],
        };
        let xen = Self { config, state: RefCell::new(state), shared };
        xen.calibrate();
        xen
    }

    /// Whether the domain's TSC is emulated.
    pub fn emulated_tsc(&self) -> bool {
        self.config.emulated_tsc
    }

    /// The page that the domain shares with this Xen.
    pub fn shared_info(&self) -> *mut shared_info {
        self.shared.as_ptr()
    }

    /// From now on, this is the vCPU that calls; the answer is the next one's number, if there is one.
    pub fn switch_to(&self, vcpu: Vcpu) -> Option<Vcpu> {
        self.state.borrow_mut().vcpu = vcpu.0;
        (vcpu.0 + 1 < VCPUS).then_some(Vcpu(vcpu.0 + 1))
    }

    /// The time record of a vCPU.
    pub fn time(&self, vcpu: Vcpu) -> TimeArea {
        // SAFETY: in the page, which lives as long as the fake; written by `publish` only.
        unsafe { TimeArea::new(&raw mut (*self.shared_info()).vcpu_info[vcpu.0 as usize].time) }
    }

    /// The wall clock's base.
    pub fn wall(&self) -> WallArea {
        // SAFETY: as above.
        unsafe { WallArea::new(self.shared_info()) }
    }

    /// The event bitmaps.
    pub fn events(&self) -> Events {
        let shared = self.shared_info();
        // SAFETY: in the page, which lives as long as the fake.
        unsafe {
            let pending = &raw mut (*shared).evtchn_pending;
            Events::new(pending.cast(), (&raw mut (*shared).evtchn_mask).cast())
        }
    }

    /// A number below `below`.
    fn random(&self, below: u64) -> u64 {
        let mut state = self.state.borrow_mut();
        state.random = state.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state.random >> 33) % below
    }

    /// Real time now, ns.
    pub fn real_ns(&self) -> i64 {
        let state = self.state.borrow();
        state.line.system_time_at(state.tsc)
    }

    fn segment(&self) -> Segment {
        self.state.borrow().segment
    }

    fn to_virtual(&self, real_ns: i64) -> i64 {
        self.segment().to_virtual(real_ns)
    }

    fn virt_ns(&self) -> i64 {
        self.to_virtual(self.real_ns())
    }

    fn is(&self, fault: Fault) -> bool {
        self.config.fault == Some(fault)
    }

    /// Another factor, at the time that was set for it.
    fn change(&self) {
        let real_ns = self.real_ns();
        let mut virt_ns = self.to_virtual(real_ns);
        if let Some(Fault::ChangeJumps(step)) = self.config.fault {
            virt_ns += step;
        }
        let every = self.config.change_every_ns;
        let gap = every + self.random(every);
        let present = self.segment().tdf;
        let factors = self.config.change_to.iter();
        let factors = factors.map(|(num, den)| Tdf::new(*num, *den).expect("a factor"));
        let others: Vec<Tdf> = factors.filter(|tdf| *tdf != present).collect();
        let tdf = others[self.random(others.len() as u64) as usize];
        let mut state = self.state.borrow_mut();
        if self.is(Fault::ChangeUnarmed) {
            let old = state.segment;
            for vcpu in &mut state.vcpus {
                if let Some(deadline) = &mut vcpu.singleshot {
                    deadline.real_ns.get_or_insert(old.to_real(deadline.virt_ns));
                }
            }
        }
        state.segment = Segment { real_ns, virt_ns, tdf };
        state.changes_at = real_ns + gap.cast_signed();
        drop(state);
        if !self.is(Fault::ChangeUnpublished) {
            self.publish();
        }
    }

    /// A new line for real time, through (almost) the same point.
    fn calibrate(&self) {
        // As on real hosts, the new line starts a little off the end of the old one.
        let step = self.random(300) as i64;
        let wander = self.random(100_000) as i64 - 50_000;
        let real = self.real_ns() + step;
        let mut state = self.state.borrow_mut();
        let parts = u128::from((1_000_000_000 + wander).cast_unsigned());
        let (mul, shift) = slope(parts, self.config.frequency_hz.into());
        let tsc_timestamp = state.tsc;
        let system_time_ns = real.cast_unsigned();
        state.line = TimeInfo { tsc_timestamp, system_time_ns, mul, shift, ..state.line };
        state.calibrations += 1;
        drop(state);
        self.publish();
    }

    fn gtsc(&self, time_ns: i64) -> u64 {
        let ticks = i128::from(time_ns) * i128::from(self.config.frequency_hz);
        (ticks / 1_000_000_000) as u64
    }

    /// Shows the domain its own line.
    fn publish(&self) {
        let (line, calibrations) = (self.state.borrow().line, self.state.borrow().calibrations);
        let fault = self.config.fault;
        let late = calibrations > 2;
        let real = line.system_time_ns.cast_signed();
        let mut system_time = self.to_virtual(real);
        let tdf = self.segment().tdf;
        let (num, den) = (u128::from(tdf.num()), u128::from(tdf.den()));
        let (tsc_timestamp, mul, shift) = if self.config.emulated_tsc {
            let seen = if fault == Some(Fault::TscNotDilated) { real } else { system_time };
            let (mul, shift) = slope(1_000_000_000, self.config.frequency_hz.into());
            (self.gtsc(seen), mul, shift)
        } else if fault == Some(Fault::SlopeNotScaled) {
            (line.tsc_timestamp, line.mul, line.shift)
        } else {
            let off = match fault {
                Some(Fault::SlopeOff(parts)) => parts,
                _ => 0,
            };
            let off = u128::from((1_000_000_000 + off).cast_unsigned());
            // mul·2^(shift−32)·den/num; the host's shift is small and may have either sign.
            let (up, down) = if line.shift < 0 { (0, -line.shift) } else { (line.shift, 0) };
            let (mul, shift) = slope(
                (u128::from(line.mul) * den * off) << up,
                (num * 1_000_000_000) << (32 + down),
            );
            (line.tsc_timestamp, mul, shift)
        };
        let mut wall = WALL_BASE_NS;
        match fault {
            Some(Fault::SystemTimeOff(off)) => system_time += off,
            Some(Fault::SystemTimeSteps(step)) if late => system_time += step,
            Some(Fault::WallClockSteps(step)) if late => wall += step,
            _ => {}
        }
        let shared = self.shared_info();
        // SAFETY: in the page, which lives as long as the fake, on one thread; or where the domain wants it.
        unsafe {
            for vcpu in 0..VCPUS as usize {
                let behind = match fault {
                    Some(Fault::SecondBehind(ns)) if vcpu == 1 => ns,
                    _ => 0,
                };
                let system_time = system_time.cast_unsigned().wrapping_sub(behind);
                let record = (&raw mut (*shared).vcpu_info[vcpu].time, system_time);
                let copied = if fault == Some(Fault::CopyReal) {
                    system_time.wrapping_add_signed(real - self.to_virtual(real))
                } else {
                    system_time
                };
                let copy = self.state.borrow().copies[vcpu].map(|copy| (copy, copied));
                for (time, system_time) in [record].into_iter().chain(copy) {
                    let version = AtomicU32::from_ptr(&raw mut (*time).version);
                    version.fetch_add(1, Ordering::Release);
                    ptr::write_volatile(&raw mut (*time).tsc_timestamp, tsc_timestamp);
                    ptr::write_volatile(&raw mut (*time).system_time, system_time);
                    ptr::write_volatile(&raw mut (*time).tsc_to_system_mul, mul);
                    ptr::write_volatile(&raw mut (*time).tsc_shift, shift);
                    version.fetch_add(1, Ordering::Release);
                }
            }
            let version = AtomicU32::from_ptr(&raw mut (*shared).wc_version);
            version.fetch_add(1, Ordering::Release);
            ptr::write_volatile(&raw mut (*shared).wc_sec, (wall / 1_000_000_000) as u32);
            ptr::write_volatile(&raw mut (*shared).wc_nsec, (wall % 1_000_000_000) as u32);
            version.fetch_add(1, Ordering::Release);
        }
    }

    /// Lets real time pass until `real_ns`, with its calibrations and changes.
    fn advance_to(&self, real_ns: i64) {
        loop {
            let mut state = self.state.borrow_mut();
            let line = state.line;
            let end = line.tsc_timestamp + self.config.frequency_hz;
            let goal = real_ns.min(state.changes_at);
            let missing = i128::from(goal) - i128::from(line.system_time_ns);
            let tick = line.exact(1).expect("the fake's slope is sane");
            let ticks = ((missing.max(0) << 64) / tick) as u64 + 1;
            let wanted = state.tsc.max(line.tsc_timestamp + ticks);
            state.tsc = wanted.min(end);
            let changes_at = state.changes_at;
            drop(state);
            if wanted >= end {
                self.calibrate();
            } else if self.real_ns() >= changes_at {
                self.change();
            } else {
                break;
            }
        }
        self.fire();
    }

    /// Raises what is due.
    fn fire(&self) {
        let (real, virt) = (self.real_ns(), self.virt_ns());
        let current = self.state.borrow().vcpu;
        for vcpu in 0..VCPUS {
            let at = self.fires_at(vcpu);
            let mut state = self.state.borrow_mut();
            // Not more often than each ms of the host's time.
            let least = state.segment.tdf.to_virtual(1_000_000) as i64;
            let timers = &mut state.vcpus[vcpu as usize];
            let mut due = at.is_some_and(|at| at <= real);
            if due {
                timers.singleshot = None;
            }
            let now = if self.is(Fault::PeriodReal) { real } else { virt };
            if let Some((period, last)) = &mut timers.periodic
                && vcpu == current
                && now >= *last + (*period).max(least)
            {
                *last = now;
                due = true;
            }
            drop(state);
            if due {
                self.raise(Port(TIMER_PORT + vcpu));
            }
        }
        let now = if self.is(Fault::WatchdogReal) { real } else { virt };
        assert!(self.state.borrow().watchdog.is_none_or(|at| now < at), "the watchdog bites");
    }

    /// Real time at which the single-shot timer of `vcpu` fires, as things are.
    fn fires_at(&self, vcpu: u32) -> Option<i64> {
        let state = self.state.borrow();
        let deadline = state.vcpus[vcpu as usize].singleshot?;
        let real = deadline.real_ns.unwrap_or_else(|| state.segment.to_real(deadline.virt_ns));
        Some(real.saturating_add(deadline.off_ns))
    }

    fn advance(&self, real_ns: u64) {
        self.advance_to(self.real_ns() + real_ns.cast_signed());
    }

    fn word(&self, port: Port) -> (&AtomicU64, u64) {
        // SAFETY: in the page, which lives as long as the fake.
        let word = unsafe {
            let pending: *mut u64 = (&raw mut (*self.shared_info()).evtchn_pending).cast();
            AtomicU64::from_ptr(pending.add(port.0 as usize / 64))
        };
        (word, 1 << (port.0 % 64))
    }

    fn raise(&self, port: Port) {
        let (word, bit) = self.word(port);
        word.fetch_or(bit, Ordering::SeqCst);
    }

    /// The domain executes `rdtsc`.
    pub fn rdtsc(&self) -> u64 {
        self.advance(10 + self.random(10));
        let real = self.real_ns();
        match (self.config.emulated_tsc, self.config.fault) {
            (false, _) => self.state.borrow().tsc,
            (true, Some(Fault::TscNotDilated)) => self.gtsc(real),
            (true, _) => self.gtsc(self.to_virtual(real)),
        }
    }

    /// `rdmsr` of the same.
    pub fn rdmsr_tsc(&self) -> u64 {
        let tsc = self.rdtsc();
        if self.is(Fault::RdmsrReal) { self.state.borrow().tsc } else { tsc }
    }

    /// CPUID leaf 3 above Xen's base.
    pub fn cpuid_time(&self, subleaf: u32) -> [u32; 4] {
        let scaled = |fault| self.config.emulated_tsc == self.is(fault);
        let tdf = |scaled| if scaled { self.segment().tdf } else { Tdf::ONE };
        let hz = u128::from(self.config.frequency_hz);
        match subleaf {
            0 => {
                let tdf = tdf(scaled(Fault::CpuidFrequency));
                let khz = hz * u128::from(tdf.num()) / u128::from(tdf.den()) / 1000;
                let khz = u32::try_from(khz).unwrap_or(u32::MAX);
                [u32::from(self.config.emulated_tsc), 0, khz, 0]
            }
            1 => {
                let tdf = tdf(scaled(Fault::CpuidSlope));
                let (mul, shift) =
                    slope(1_000_000_000 * u128::from(tdf.den()), hz * u128::from(tdf.num()));
                [0, 0, mul, i32::from(shift).cast_unsigned()]
            }
            _ => [(hz / 1000) as u32, 0, 0, 0],
        }
    }

    fn arm(&self, deadline_ns: i64, off: i64) {
        // Timers may be late by the slop, never early.
        let slop = self.random(50_000) as i64;
        let mut state = self.state.borrow_mut();
        let vcpu = state.vcpu as usize;
        let real_ns =
            (deadline_ns > i64::MAX - 100 && self.is(Fault::SingleshotWraps)).then_some(0);
        let deadline = Deadline { virt_ns: deadline_ns, off_ns: slop + off, real_ns };
        state.vcpus[vcpu].singleshot = Some(deadline);
    }

    fn do_set_timer_op(&self, deadline_ns: i64) {
        let off = match self.config.fault {
            Some(Fault::SetTimerOpOff(off)) => off,
            _ => 0,
        };
        let now = self.virt_ns();
        if deadline_ns == 0 {
            if !self.is(Fault::SetTimerOpZero) {
                self.timers(|timers| timers.singleshot = None);
            }
        } else if deadline_ns < 0 || deadline_ns.saturating_sub(now) > 1 << 50 {
            self.arm(now + 100_000_000, off);
            if self.is(Fault::FarTimeoutReal) {
                let real_ns = self.real_ns() + 100_000_000;
                self.timers(|timers| {
                    if let Some(deadline) = &mut timers.singleshot {
                        deadline.real_ns = Some(real_ns);
                    }
                });
            }
        } else {
            self.arm(deadline_ns, off);
        }
    }

    /// Changes something of the vCPU that calls.
    fn timers(&self, change: impl FnOnce(&mut Timers)) {
        let mut state = self.state.borrow_mut();
        let vcpu = state.vcpu as usize;
        change(&mut state.vcpus[vcpu]);
    }

    fn do_singleshot(&self, deadline_ns: u64) {
        let off = match self.config.fault {
            Some(Fault::SingleshotOff(off)) => off,
            _ => 0,
        };
        let now = self.virt_ns().cast_unsigned();
        if deadline_ns < now {
            if !self.is(Fault::SingleshotPast) {
                self.raise(Port(TIMER_PORT + self.state.borrow().vcpu));
            }
        } else if deadline_ns >> 63 == 0 || !self.is(Fault::SingleshotNegative) {
            self.arm(deadline_ns.cast_signed(), off);
        }
    }

    fn do_runstate(&self) -> RunstateInfo {
        let (real, now) = (self.real_ns(), self.virt_ns());
        let state = self.state.borrow();
        let Timers { blocked_ns, entry_ns, .. } = state.vcpus[state.vcpu as usize];
        let mut running = now - ORIGIN.1 - blocked_ns;
        let (mut stolen, mut entry) = (0, entry_ns);
        match self.config.fault {
            Some(Fault::RunstateReal) => {
                running = real - ORIGIN.0 - blocked_ns;
                entry = state.segment.to_real(entry_ns);
            }
            Some(Fault::StealReal) => {
                stolen = 2 * (now - ORIGIN.1);
                running -= stolen;
            }
            Some(Fault::EntryOff(off)) => entry += off,
            _ => {}
        }
        let time = [running, stolen, blocked_ns, 0].map(i64::cast_unsigned);
        RunstateInfo { state: 0, state_entry_time_ns: entry.cast_unsigned(), time_ns: time }
    }

    fn vcpu_op(&self, op: u32, arg: usize) -> isize {
        match op {
            VCPUOP_STOP_PERIODIC_TIMER => self.timers(|timers| timers.periodic = None),
            VCPUOP_STOP_SINGLESHOT_TIMER => {
                if !self.is(Fault::SingleshotStop) {
                    self.timers(|timers| timers.singleshot = None);
                }
            }
            VCPUOP_SET_SINGLESHOT_TIMER => {
                // SAFETY: the wrapper passes the address of its argument.
                let arg: SetSingleshotTimer =
                    unsafe { ptr::read(ptr::with_exposed_provenance(arg)) };
                self.do_singleshot(arg.timeout_abs_ns);
            }
            VCPUOP_SET_PERIODIC_TIMER => {
                // SAFETY: as above.
                let arg: SetPeriodicTimer = unsafe { ptr::read(ptr::with_exposed_provenance(arg)) };
                let now = if self.is(Fault::PeriodReal) { self.real_ns() } else { self.virt_ns() };
                let period = arg.period_ns.cast_signed();
                self.timers(|timers| timers.periodic = Some((period, now)));
            }
            VCPUOP_GET_RUNSTATE_INFO => {
                let info = self.do_runstate();
                // SAFETY: the wrapper passes the address of its result.
                unsafe { ptr::write(ptr::with_exposed_provenance_mut(arg), info) };
            }
            // Nobody reads what would be there.
            VCPUOP_REGISTER_RUNSTATE_AREA => {}
            VCPUOP_REGISTER_TIME_AREA => {
                // SAFETY: the wrapper passes the address of its argument.
                let arg: RegisterArea = unsafe { ptr::read(ptr::with_exposed_provenance(arg)) };
                let copy = ptr::with_exposed_provenance_mut(arg.address as usize);
                let mut state = self.state.borrow_mut();
                let vcpu = state.vcpu as usize;
                state.copies[vcpu] = Some(copy);
                drop(state);
                self.publish();
            }
            VCPUOP_TDF_SAMPLE => {
                if self.config.sample_answer == 0 {
                    let real_ns = self.real_ns();
                    let segment = self.segment();
                    let sample = TdfSample {
                        real_ns,
                        virt_ns: segment.to_virtual(real_ns),
                        num: segment.tdf.num(),
                        den: segment.tdf.den(),
                    };
                    // SAFETY: the wrapper passes the address of its result.
                    unsafe { ptr::write(ptr::with_exposed_provenance_mut(arg), sample) };
                }
                return self.config.sample_answer;
            }
            other => panic!("vcpu_op {other:#x} is not faked"),
        }
        0
    }

    fn sched_poll(&self, arg: usize) -> isize {
        // SAFETY: the wrapper passes the address of its argument, and `nr_ports` ports.
        let (ports, timeout): (&[Port], u64) = unsafe {
            let arg: sched_poll = ptr::read(ptr::with_exposed_provenance(arg));
            (std::slice::from_raw_parts(arg.ports.cast(), arg.nr_ports as usize), arg.timeout)
        };
        let off = match self.config.fault {
            Some(Fault::PollOff(off)) => off,
            _ => 0,
        };
        let slop = self.random(50_000) as i64 + off;
        let pending = |port: &Port| {
            let (word, bit) = self.word(*port);
            word.load(Ordering::SeqCst) & bit != 0
        };
        let periodic = self.state.borrow().vcpus[self.state.borrow().vcpu as usize].periodic;
        let (start, first) = (self.virt_ns(), self.segment());
        // A vCPU that sleeps gets no ticks.
        self.timers(|timers| timers.periodic = None);
        while !ports.iter().any(pending) {
            let state = self.state.borrow();
            let (vcpu, segment, changes_at) = (state.vcpu, state.segment, state.changes_at);
            drop(state);
            let segment = if self.is(Fault::ChangeUnpolled) { first } else { segment };
            let out =
                (timeout != 0).then(|| segment.to_real(timeout.cast_signed()).saturating_add(slop));
            if out.is_some_and(|at| at <= self.real_ns()) {
                break;
            }
            let at = [self.fires_at(vcpu), out].into_iter().flatten().min();
            let at = at.expect("the domain sleeps for ever");
            self.advance_to(at.min(changes_at));
        }
        let now = self.virt_ns();
        self.timers(|timers| {
            timers.periodic = periodic;
            if now > start {
                timers.blocked_ns += now - start;
                timers.entry_ns = now;
            }
        });
        0
    }

    fn do_watchdog(&self, arg: usize) -> isize {
        // SAFETY: the wrapper passes the address of its argument.
        let arg: sched_watchdog = unsafe { ptr::read(ptr::with_exposed_provenance(arg)) };
        let now = if self.is(Fault::WatchdogReal) { self.real_ns() } else { self.virt_ns() };
        let at = now + 1_000_000_000 * i64::from(arg.timeout);
        self.state.borrow_mut().watchdog = (arg.timeout != 0).then_some(at);
        if arg.id == 0 { 1 } else { 0 }
    }
}

impl Hypercall for FakeXen {
    unsafe fn call(&self, number: u32, args: [usize; 5]) -> isize {
        self.advance(500 + self.random(500));
        let result = match (number, args[0] as u32) {
            (NR_VCPU_OP, op) => self.vcpu_op(op, args[2]),
            (NR_SET_TIMER_OP, _) => {
                self.do_set_timer_op(args[0].cast_signed() as i64);
                0
            }
            (NR_SCHED_OP, SCHEDOP_POLL) => self.sched_poll(args[1]),
            (NR_SCHED_OP, SCHEDOP_YIELD) => 0,
            (NR_SCHED_OP, SCHEDOP_WATCHDOG) => self.do_watchdog(args[1]),
            (NR_EVENT_CHANNEL_OP, EVTCHNOP_BIND_VIRQ) => {
                let arg: *mut evtchn_bind_virq = ptr::with_exposed_provenance_mut(args[1]);
                // SAFETY: the wrapper passes the address of its argument.
                unsafe { (*arg).port = TIMER_PORT + (*arg).vcpu };
                0
            }
            other => panic!("hypercall {other:?} is not faked"),
        };
        self.advance(500 + self.random(500));
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypercall::{Xen, XenError};

    fn fake(tdf: &str, emulated_tsc: bool) -> FakeXen {
        FakeXen::new(Config { tdf: tdf.parse().unwrap(), emulated_tsc, ..Config::default() })
    }

    /// The published line is the domain's time, for ten seconds, at every factor.
    #[test]
    fn what_the_domain_reads_lies_between_two_samples() {
        for tdf in ["1", "10", "5/2", "1000", "1/2", "1/1000"] {
            for emulated in [false, true] {
                let xen = fake(tdf, emulated);
                for _ in 0..100 {
                    let before = xen.tdf_sample(Vcpu(0)).unwrap();
                    let (info, tsc) = xen.time(Vcpu(0)).read(|| xen.rdtsc());
                    let now = info.system_time_at(tsc);
                    let after = xen.tdf_sample(Vcpu(0)).unwrap();
                    // Below TDF 1 the line inherits the ns grid of real time.
                    let grid = 2 + i64::from(after.den / after.num);
                    assert!(before.virt_ns - grid <= now, "{tdf} {emulated}: {before:?} {now}");
                    assert!(now <= after.virt_ns + grid, "{tdf} {emulated}: {now} {after:?}");
                    xen.advance(100_000_000);
                }
            }
        }
    }

    #[test]
    fn a_timer_wakes_the_poll_not_early_and_within_the_slop() {
        let xen = fake("10", false);
        let port = xen.bind_virq(VIRQ_TIMER, Vcpu(0)).unwrap();
        xen.stop_periodic_timer(Vcpu(0)).unwrap();
        xen.events().take(port);
        for (n, deadline) in (1..20).map(|n| (n, ORIGIN.1 + 10_000_000 + n * 1_000_000)) {
            if n % 2 == 0 {
                xen.set_timer_op(deadline.cast_unsigned()).unwrap();
            } else {
                xen.set_singleshot_timer(Vcpu(0), deadline.cast_unsigned()).unwrap();
            }
            while !xen.events().take(port) {
                xen.poll(&[port]).unwrap();
            }
            let late = xen.tdf_sample(Vcpu(0)).unwrap().virt_ns - deadline;
            assert!((0..=5_000 + 500).contains(&late), "{late}");
        }
    }

    #[test]
    fn a_xen_without_the_call_says_so() {
        let xen = FakeXen::new(Config { sample_answer: -38, ..Config::default() });
        assert_eq!(xen.tdf_sample(Vcpu(0)), Err(XenError::NotImplemented));
    }
}
