// SPDX-License-Identifier: MIT OR Apache-2.0
//! A Xen of plain memory, in which time is a number that only calls advance.
//!
//! It keeps time as Xen does: the TSC is the master, real time is a line through a point that is
//! replaced every second by one with a slightly other slope (calibration), and a domain is shown a
//! line of its own. A [`Fault`] makes one of these wrong, so that a test can show that its checks
//! see it.

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
            fault: None,
        }
    }
}

/// The port that `bind_virq` gives.
const TIMER_PORT: Port = Port(3);
/// Time of day when system time was 0, ns since 1970.
const WALL_BASE_NS: i64 = 1_704_067_200_000_000_000;
/// Real time at which the domain's segment starts, and its virtual time there.
const ORIGIN: (i64, i64) = (3_000_000_123, 3_000_000_123);

struct State {
    random: u64,
    /// The host's TSC.
    tsc: u64,
    /// Real time as a line.
    line: TimeInfo,
    /// Real time at which the timer fires.
    fires_at: Option<i64>,
    calibrations: u32,
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
        let state =
            State { random: config.seed, tsc: 777_777, line, fires_at: None, calibrations: 0 };
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

    /// The time record of its vCPU.
    pub fn time(&self) -> TimeArea {
        // SAFETY: in the page, which lives as long as the fake; written by `publish` only.
        unsafe { TimeArea::new(&raw mut (*self.shared_info()).vcpu_info[0].time) }
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

    fn to_virtual(&self, real_ns: i64) -> i64 {
        ORIGIN.1 + self.config.tdf.to_virtual((real_ns - ORIGIN.0).into()) as i64
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
        let (num, den) = (u128::from(self.config.tdf.num()), u128::from(self.config.tdf.den()));
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
        // SAFETY: in the page, which lives as long as the fake, on one thread.
        unsafe {
            let time = &raw mut (*shared).vcpu_info[0].time;
            let version = AtomicU32::from_ptr(&raw mut (*time).version);
            version.fetch_add(1, Ordering::Release);
            ptr::write_volatile(&raw mut (*time).tsc_timestamp, tsc_timestamp);
            ptr::write_volatile(&raw mut (*time).system_time, system_time.cast_unsigned());
            ptr::write_volatile(&raw mut (*time).tsc_to_system_mul, mul);
            ptr::write_volatile(&raw mut (*time).tsc_shift, shift);
            version.fetch_add(1, Ordering::Release);
            let version = AtomicU32::from_ptr(&raw mut (*shared).wc_version);
            version.fetch_add(1, Ordering::Release);
            ptr::write_volatile(&raw mut (*shared).wc_sec, (wall / 1_000_000_000) as u32);
            ptr::write_volatile(&raw mut (*shared).wc_nsec, (wall % 1_000_000_000) as u32);
            version.fetch_add(1, Ordering::Release);
        }
    }

    /// Lets real time pass until `real_ns`, with its calibrations.
    fn advance_to(&self, real_ns: i64) {
        loop {
            let mut state = self.state.borrow_mut();
            let line = state.line;
            let end = line.tsc_timestamp + self.config.frequency_hz;
            let missing = i128::from(real_ns) - i128::from(line.system_time_ns);
            let tick = line.exact(1).expect("the fake's slope is sane");
            let ticks = ((missing.max(0) << 64) / tick) as u64 + 1;
            let wanted = state.tsc.max(line.tsc_timestamp + ticks);
            state.tsc = wanted.min(end);
            drop(state);
            if wanted < end {
                break;
            }
            self.calibrate();
        }
        let due = self.state.borrow().fires_at.is_some_and(|at| at <= self.real_ns());
        if due {
            self.state.borrow_mut().fires_at = None;
            self.raise(TIMER_PORT);
        }
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

    fn arm(&self, deadline_ns: u64, off: i64) {
        // Timers may be late by the slop, never early.
        let slop = self.random(50_000) as i64;
        let since = i128::from(deadline_ns) - i128::from(ORIGIN.1);
        let real = i128::from(ORIGIN.0) + self.config.tdf.to_real(since);
        let real = i64::try_from(real).unwrap_or(i64::MAX).saturating_add(slop + off);
        self.state.borrow_mut().fires_at = Some(real);
    }

    fn vcpu_op(&self, op: u32, arg: usize) -> isize {
        match op {
            VCPUOP_STOP_PERIODIC_TIMER => {}
            VCPUOP_STOP_SINGLESHOT_TIMER => self.state.borrow_mut().fires_at = None,
            VCPUOP_SET_SINGLESHOT_TIMER => {
                // SAFETY: the wrapper passes the address of its argument.
                let arg: SetSingleshotTimer =
                    unsafe { ptr::read(ptr::with_exposed_provenance(arg)) };
                let off = match self.config.fault {
                    Some(Fault::SingleshotOff(off)) => off,
                    _ => 0,
                };
                self.arm(arg.timeout_abs_ns, off);
            }
            VCPUOP_TDF_SAMPLE => {
                if self.config.sample_answer == 0 {
                    let real_ns = self.real_ns();
                    let sample = TdfSample {
                        real_ns,
                        virt_ns: self.to_virtual(real_ns),
                        num: self.config.tdf.num(),
                        den: self.config.tdf.den(),
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
        let ports: &[Port] = unsafe {
            let arg: sched_poll = ptr::read(ptr::with_exposed_provenance(arg));
            std::slice::from_raw_parts(arg.ports.cast(), arg.nr_ports as usize)
        };
        let pending = |port: &Port| {
            let (word, bit) = self.word(*port);
            word.load(Ordering::SeqCst) & bit != 0
        };
        if !ports.iter().any(pending) {
            let at = self.state.borrow().fires_at;
            self.advance_to(at.expect("the domain sleeps for ever"));
        }
        0
    }
}

impl Hypercall for FakeXen {
    unsafe fn call(&self, number: u32, args: [usize; 5]) -> isize {
        self.advance(500 + self.random(500));
        let result = match (number, args[0] as u32) {
            (NR_VCPU_OP, op) => self.vcpu_op(op, args[2]),
            (NR_SET_TIMER_OP, _) => {
                let off = match self.config.fault {
                    Some(Fault::SetTimerOpOff(off)) => off,
                    _ => 0,
                };
                self.arm(args[0] as u64, off);
                0
            }
            (NR_SCHED_OP, SCHEDOP_POLL) => self.sched_poll(args[1]),
            (NR_EVENT_CHANNEL_OP, EVTCHNOP_BIND_VIRQ) => {
                let arg: *mut evtchn_bind_virq = ptr::with_exposed_provenance_mut(args[1]);
                // SAFETY: the wrapper passes the address of its argument.
                unsafe { (*arg).port = TIMER_PORT.0 };
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
                    let (info, tsc) = xen.time().read(|| xen.rdtsc());
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
