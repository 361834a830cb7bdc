// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `hostile` self-test: does Xen stand a guest that asks for anything?
//!
//! A storm of the hypercalls that deal with time, on every vCPU at once, with the worst operands that
//! a seed brings up: the ends of every range, times around now, any 64 bits, vCPUs that are not there,
//! addresses that are not. What Xen must answer follows from the operands alone, and is compared.
//! The domain also tries to set factors, its own and others', which Xen must never let it. Now and then,
//! and at the end, it looks at its clocks and at a timer: nothing of what it asked for may have hurt them.

use alloc::vec::Vec;
use core::fmt;
use core::mem::size_of;
use core::ops::RangeInclusive;

use spin::Mutex;
use tdf_abi::{TDF_MAX, Tdf, VCPUOP_TDF_SAMPLE, XEN_DOMCTL_GET_TDF, XEN_DOMCTL_SET_TDF};
use tdf_xen::abi::*;
use tdf_xen::hypercall::{Hypercall, Xen, XenError};

use crate::cmdline::HostileOptions;
use crate::machine::{Cpu, Crew, Machine, Via};
use crate::paths::{LastSeen, Row, print};
use crate::probe::{
    Outcome, Random, TIMER_SLACK_REAL_NS, TestError, grid_ns, reveal, say, to_virtual_up,
};

const EPERM: isize = -1;
const ENOENT: isize = -2;
const ESRCH: isize = -3;
const EACCES: isize = -13;
const EFAULT: isize = -14;
const EINVAL: isize = -22;
const ENOSPC: isize = -28;
/// Xen loses the upper half of that one, as stock Xen does.
const ENOSPC_32: isize = 0xffff_ffe4;

/// Calls between two looks at the clocks.
const LOOK_EVERY: u64 = 64;
/// Real time, at the present factor, after which a poll is woken up whatever its timeout is, ns …
const WAKE_REAL_NS: i64 = 20_000;
/// … but not more virtual time than this: the factor may change meanwhile.
const WAKE_NS: i64 = 1_000_000;
/// A watchdog of the test is longer than any run, s: one that bites ends the domain, and rightly.
const WATCHDOG_S: u64 = 1 << 24;
/// The watchdogs of a domain.
const WATCHDOGS: RangeInclusive<u32> = 1..=2;
/// Real time to the last timer's deadline, ns.
const LAST_LEAD_REAL_NS: i64 = 2_000_000;
/// Shortest and longest period of the periodic timer, ns.
const PERIOD_NS: RangeInclusive<u64> = 1_000_000..=u64::MAX >> 2;
/// Most ports of a poll.
const PORTS_MAX: u32 = 128;
/// Addresses where a domain has nothing: the zero page, beyond what an address can be, Xen's own.
const NOWHERE: [usize; 4] = [0, 1 << 47, usize::MAX - 7, 0xffff_8300_0000_0000];
/// The interface versions of Xen 4.17 to 4.22.
const INTERFACES: u64 = 0x15;
const INTERFACE_COUNT: u64 = 4;
/// Bytes of `struct xen_domctl`.
const DOMCTL_SIZE: usize = 144;
/// Ids from which on there are only special ones.
const DOMID_FIRST_RESERVED: u64 = 0x7ff0;

/// `struct xen_domctl` with the operands of `set_tdf`.
#[repr(C)]
struct Domctl {
    cmd: u32,
    interface: u32,
    domain: u16,
    pad: [u16; 3],
    operands: [u64; (DOMCTL_SIZE - 16) / 8],
}
const _: () = assert!(size_of::<Domctl>() == DOMCTL_SIZE);

/// What one vCPU has found.
#[derive(Debug, Default)]
struct Found {
    calls: i64,
    wrong: i64,
    first_wrong: Option<(Call, isize)>,
    /// Domctls that Xen carried out.
    factors_set: i64,
    backward: i64,
}

/// What of a Xen's answer is right.
type Right = &'static [isize];

/// A call, for who wants to know which answer was wrong: its number and its first operands.
#[derive(Clone, Copy, Debug)]
struct Call {
    number: u32,
    operands: [u64; 3],
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c] = self.operands;
        write!(f, "hypercall {} with {a:#x} {b:#x} {c:#x}", self.number)
    }
}

/// One vCPU at work.
struct Storm<'m, X> {
    machine: &'m Machine<'m, X>,
    shared: &'m LastSeen,
    random: Random,
    found: Found,
    /// System time when last read.
    last: i64,
    /// The factor that was last seen.
    tdf: Tdf,
}

impl<X: Hypercall + Cpu> Storm<'_, X> {
    fn pick<T: Copy, const N: usize>(&mut self, of: [T; N]) -> T {
        of[self.random.next(N as u64) as usize]
    }

    /// Any 64 bits, but those more often at which something may break.
    fn extreme(&mut self) -> u64 {
        let bit = 1u64 << self.random.next(64);
        let near = self.random.next(2_000).wrapping_sub(1_000);
        let any = self.random.next(u64::MAX);
        let now = self.machine.system_time_ns().cast_unsigned();
        match self.random.next(8) {
            0 => self.pick([0, 1, u64::MAX, 1 << 63, u64::MAX >> 1, u64::MAX >> 2]),
            1 => bit,
            2 => bit.wrapping_add(near),
            3 => now.wrapping_add(near),
            4 => now.wrapping_add(any >> 44),
            5 => (u64::MAX >> 1).wrapping_sub(near),
            6 => any >> (any & 63),
            _ => any,
        }
    }

    /// A vCPU, mostly one that exists; whether it is this one, and whether it exists.
    fn vcpu(&mut self) -> (u32, bool, bool) {
        let own = self.machine.vcpu.0;
        let other = self.random.next(4) as u32;
        let any = self.extreme() as u32;
        let vcpu = self.pick([own, own, own, other, any]);
        (vcpu, vcpu == own, vcpu == own || self.machine.xen.vcpu_exists(Vcpu(vcpu)))
    }

    /// Makes a call whose answer must be one of `right`.
    ///
    /// # Safety
    /// As [`Hypercall::call`].
    unsafe fn call(&mut self, number: u32, args: [usize; 3], right: Right) -> isize {
        let [a, b, c] = args;
        // SAFETY: the caller's promise.
        let answer = unsafe { self.machine.xen.call(number, [a, b, c, 0, 0]) };
        self.found.calls += 1;
        if !right.contains(&answer) {
            self.found.wrong += 1;
            let call = Call { number, operands: args.map(|arg| arg as u64) };
            self.found.first_wrong.get_or_insert((call, answer));
        }
        answer
    }

    fn set_timer_op(&mut self) {
        let deadline = self.extreme();
        // SAFETY: takes no address.
        unsafe { self.call(NR_SET_TIMER_OP, [deadline as usize, 0, 0], &[0]) };
    }

    /// A `vcpu_op` with the argument `arg` on some vCPU, which may answer `right` if that exists, and is
    /// this one if `own` is asked for.
    ///
    /// # Safety
    /// `arg` is what the operation expects, or nowhere.
    unsafe fn vcpu_op(&mut self, op: u32, own: bool, arg: usize, right: Right) {
        let (vcpu, is_own, exists) = self.vcpu();
        let right = match (exists, own && !is_own) {
            (false, _) => &[ENOENT],
            (true, true) => &[EINVAL],
            (true, false) => right,
        };
        // SAFETY: the caller's promise.
        unsafe { self.call(NR_VCPU_OP, [op as usize, vcpu as usize, arg], right) };
    }

    fn singleshot(&mut self) {
        let arg =
            SetSingleshotTimer { timeout_abs_ns: self.extreme(), flags: self.extreme() as u32 };
        let at = (&raw const arg).expose_provenance();
        // SAFETY: Xen reads the argument.
        unsafe { self.vcpu_op(VCPUOP_SET_SINGLESHOT_TIMER, true, at, &[0]) };
    }

    fn periodic(&mut self) {
        let arg = SetPeriodicTimer { period_ns: self.extreme() };
        let right: Right = if PERIOD_NS.contains(&arg.period_ns) { &[0] } else { &[EINVAL] };
        let at = (&raw const arg).expose_provenance();
        // SAFETY: Xen reads the argument.
        unsafe { self.vcpu_op(VCPUOP_SET_PERIODIC_TIMER, false, at, right) };
    }

    fn stop(&mut self) {
        let (op, own) =
            self.pick([(VCPUOP_STOP_PERIODIC_TIMER, false), (VCPUOP_STOP_SINGLESHOT_TIMER, true)]);
        let arg = self.extreme() as usize;
        // SAFETY: Xen ignores the argument.
        unsafe { self.vcpu_op(op, own, arg, &[0]) };
    }

    fn ask(&mut self) {
        // Room for the larger of the two answers.
        let mut info = RunstateInfo::default();
        let at = (&raw mut info).expose_provenance();
        let (op, right): (_, Right) =
            self.pick([(VCPUOP_GET_RUNSTATE_INFO, &[0][..]), (VCPUOP_TDF_SAMPLE, &[0, EPERM])]);
        // SAFETY: Xen writes the answer, which is no longer than the argument.
        unsafe { self.vcpu_op(op, false, at, right) };
    }

    fn nowhere(&mut self) {
        let at = self.pick(NOWHERE);
        let (number, op) = self.pick([
            (NR_VCPU_OP, VCPUOP_SET_SINGLESHOT_TIMER),
            (NR_VCPU_OP, VCPUOP_SET_PERIODIC_TIMER),
            (NR_VCPU_OP, VCPUOP_GET_RUNSTATE_INFO),
            (NR_VCPU_OP, VCPUOP_TDF_SAMPLE),
            (NR_SCHED_OP, SCHEDOP_POLL),
            (NR_SCHED_OP, SCHEDOP_WATCHDOG),
        ]);
        let right: Right = if op == VCPUOP_TDF_SAMPLE { &[EFAULT, EPERM] } else { &[EFAULT] };
        let args = match number {
            NR_VCPU_OP => [op as usize, self.machine.vcpu.0 as usize, at],
            _ => [op as usize, at, 0],
        };
        // SAFETY: there is nothing at the address, for Xen neither.
        unsafe { self.call(number, args, right) };
    }

    fn watchdog(&mut self) {
        let id = self.extreme() as u32;
        let id = self.pick([0, 1, 2, 3, id]);
        let long = (self.extreme() | WATCHDOG_S) as u32;
        let (timeout, right) = match id {
            0 => (long, &[1, 2, ENOSPC, ENOSPC_32][..]),
            1 | 2 => (self.pick([long, long, 0]), &[0, EINVAL][..]),
            _ => (self.extreme() as u32, &[EINVAL][..]),
        };
        let arg = sched_watchdog { id, timeout };
        let at = (&raw const arg).expose_provenance();
        // SAFETY: Xen reads the argument.
        unsafe { self.call(NR_SCHED_OP, [SCHEDOP_WATCHDOG as usize, at, 0], right) };
    }

    /// A poll that cannot begin.
    fn wrong_poll(&mut self) {
        let nr_ports = self.extreme() as u32;
        let ports = core::ptr::with_exposed_provenance_mut(self.pick(NOWHERE));
        if nr_ports == 0 {
            return;
        }
        let arg = sched_poll { ports, nr_ports, timeout: self.extreme() };
        let right: Right = if nr_ports > PORTS_MAX { &[EINVAL] } else { &[EFAULT] };
        let at = (&raw const arg).expose_provenance();
        // SAFETY: Xen reads the argument, and the ports from where nothing is.
        unsafe { self.call(NR_SCHED_OP, [SCHEDOP_POLL as usize, at, 0], right) };
    }

    /// A poll with any timeout, from which the timer wakes this vCPU up.
    fn poll(&mut self) -> Result<(), TestError> {
        let now = self.machine.system_time_ns();
        let lead = to_virtual_up(self.tdf, WAKE_REAL_NS).min(WAKE_NS);
        self.machine.arm(now.saturating_add(lead), Via::Singleshot)?;
        let timeout = self.extreme();
        self.machine.poll_timeout(timeout)?;
        self.found.calls += 1;
        Ok(())
    }

    /// Another factor, for whom it may be.
    fn domctl(&mut self) {
        let cmd = self.pick([XEN_DOMCTL_SET_TDF, XEN_DOMCTL_SET_TDF, XEN_DOMCTL_GET_TDF]);
        let domain = self.extreme() as u16;
        let (few, special) = (self.random.next(32), self.random.next(16));
        let domain = self.pick([0, few as u16, (DOMID_FIRST_RESERVED + special) as u16, domain]);
        let interface = (INTERFACES + self.random.next(INTERFACE_COUNT)) as u32;
        let mut operands = [0; (DOMCTL_SIZE - 16) / 8];
        let num = 1 + self.random.next(TDF_MAX.into());
        for operand in operands.iter_mut().skip(1).take(3) {
            *operand = self.extreme();
        }
        let factor = self.extreme();
        // Half of them in order, but for who asks.
        operands[0] = self.pick([1 << 32 | num, factor]);
        if operands[0] != factor {
            operands[1..4].fill(0);
        }
        let arg = Domctl { cmd, interface, domain, pad: [0; 3], operands };
        let at = (&raw const arg).expose_provenance();
        // SAFETY: Xen reads and writes the argument.
        let answer = unsafe { self.call(NR_DOMCTL, [at, 0, 0], &[EPERM, ESRCH, EACCES]) };
        self.found.factors_set += i64::from(answer >= 0);
    }

    /// Time goes on, as it does for every other vCPU.
    fn look(&mut self) -> Result<(), TestError> {
        let (now, behind) = self.shared.read(|| self.machine.system_time_ns());
        self.found.backward += i64::from(behind > 0 || now < self.last);
        self.last = now;
        match self.machine.xen.tdf_sample(self.machine.vcpu) {
            Ok(sample) => {
                self.tdf = Tdf::new(sample.num, sample.den).map_err(TestError::Factor)?;
                self.found.backward += i64::from(sample.virt_ns < now - grid_ns(self.tdf));
            }
            // Dom0 may have taken the permission back.
            Err(XenError::NotPermitted) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn all(&mut self, calls: u64) -> Result<(), TestError> {
        while self.found.calls.cast_unsigned() < calls {
            match self.random.next(16) {
                0..=2 => self.set_timer_op(),
                3..=5 => self.singleshot(),
                6 => self.stop(),
                7..=8 => self.periodic(),
                9..=10 => self.ask(),
                11 => self.nowhere(),
                12 => self.watchdog(),
                13 => self.wrong_poll(),
                14 => self.domctl(),
                _ => self.poll()?,
            }
            if self.found.calls.cast_unsigned().is_multiple_of(LOOK_EVERY) {
                self.look()?;
            }
        }
        Ok(())
    }
}

/// Ends what the storm left on a vCPU, and sees whether a timer still works: by how much it was late, and
/// by how much it might be, in virtual time.
fn calm<X: Hypercall + Cpu>(machine: &Machine<'_, X>) -> Result<(i64, i64), TestError> {
    let (xen, vcpu) = (machine.xen, machine.vcpu);
    for id in WATCHDOGS {
        // Refused for one that is not in use.
        let _ = xen.watchdog(id, 0);
    }
    xen.stop_periodic_timer(vcpu)?;
    let stolen = machine.stolen_ns()?;
    let now = xen.tdf_sample(vcpu)?;
    let tdf = Tdf::new(now.num, now.den).map_err(TestError::Factor)?;
    let deadline = now.virt_ns.saturating_add(to_virtual_up(tdf, LAST_LEAD_REAL_NS));
    machine.sleep_until(deadline, Via::Singleshot)?;
    let late = xen.tdf_sample(vcpu)?.virt_ns - deadline;
    let stolen = machine.stolen_ns()?.wrapping_sub(stolen);
    Ok((late, to_virtual_up(tdf, TIMER_SLACK_REAL_NS).saturating_add(stolen)))
}

fn attempt<X: Hypercall + Cpu>(
    machine: &Machine<'_, X>,
    crew: &dyn Crew<X>,
    options: HostileOptions,
    out: &mut dyn fmt::Write,
) -> Result<Outcome, TestError> {
    let tdf = match reveal(machine)? {
        Ok(tdf) => tdf,
        Err(why) => {
            say(out, format_args!("{why}: nothing can be tested"));
            return Ok(Outcome::Skip);
        }
    };
    let shared = LastSeen::new();
    let (rows, wrong) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let failed = Mutex::new(None);
    crew.run(true, &|machine| {
        let mut storm = Storm {
            machine,
            shared: &shared,
            random: Random(options.seed.wrapping_add(machine.vcpu.0.into())),
            found: Found::default(),
            last: i64::MIN,
            tdf,
        };
        if let Err(error) = storm.all(options.calls) {
            *failed.lock() = Some(error);
        }
        let found = storm.found;
        wrong.lock().extend(found.first_wrong.map(|wrong| (machine.vcpu, wrong)));
        let row = |probe, value, bounds| Row::new(machine.vcpu, "HOSTILE", probe, value, bounds);
        rows.lock().extend([
            row("calls", found.calls, options.calls.cast_signed()..=i64::MAX),
            row("wrong_answers", found.wrong, 0..=0),
            row("factors_set", found.factors_set, 0..=0),
            row("backward_steps", found.backward, 0..=0),
        ]);
    })?;
    // Only now nobody else sets this vCPU's timers.
    crew.run(false, &|machine| match calm(machine) {
        Ok((late, most)) => {
            let row = Row::new(machine.vcpu, "HOSTILE", "timer_afterwards", late, 0..=most);
            rows.lock().push(row);
        }
        Err(error) => *failed.lock() = Some(error),
    })?;
    for (vcpu, (call, answer)) in wrong.into_inner() {
        say(out, format_args!("vCPU {vcpu} was answered {answer} to {call}"));
    }
    let outcome = print(&rows.lock(), out);
    failed.into_inner().map_or(Ok(outcome), Err)
}

/// Runs the test; everything it has to say goes to `out`, the result last.
pub fn run<X: Hypercall + Cpu>(
    machine: &Machine<'_, X>,
    crew: &dyn Crew<X>,
    options: HostileOptions,
    out: &mut dyn fmt::Write,
) -> Outcome {
    let outcome = attempt(machine, crew, options, out).unwrap_or_else(|error| {
        say(out, format_args!("the storm cannot be made: {error}"));
        Outcome::Error
    });
    say(out, format_args!("Test result: {outcome}"));
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Around;
    use core::ptr;
    use tdf_xen::evtchn::Events;
    use tdf_xen::fake::{Config, FakeXen};
    use tdf_xen::path::PathRow;

    /// What this Xen does wrong.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Fault {
        /// Lets a domain set factors.
        SetsFactors,
        /// Takes a period that is too short.
        ShortPeriods,
        /// Takes the timer of another vCPU.
        OthersTimers,
        /// Does not look at addresses.
        AnyAddress,
    }

    /// The fake, behind the checks that Xen makes and that the other tests do not need.
    struct Strict {
        xen: FakeXen,
        fault: Option<Fault>,
        vcpu: core::cell::Cell<u32>,
    }

    impl Strict {
        fn has(&self, fault: Fault) -> bool {
            self.fault == Some(fault)
        }

        fn vcpu_op(&self, op: u32, vcpu: u32, arg: usize) -> Option<isize> {
            let own = vcpu == self.vcpu.get();
            let singleshot = [VCPUOP_SET_SINGLESHOT_TIMER, VCPUOP_STOP_SINGLESHOT_TIMER];
            let takes = ![VCPUOP_STOP_PERIODIC_TIMER, VCPUOP_STOP_SINGLESHOT_TIMER].contains(&op);
            if vcpu > 1 {
                return Some(ENOENT);
            }
            if op == VCPUOP_IS_UP {
                return Some(0);
            }
            if singleshot.contains(&op) && !own && !self.has(Fault::OthersTimers) {
                return Some(EINVAL);
            }
            if takes && NOWHERE.contains(&arg) {
                return Some(if self.has(Fault::AnyAddress) { 0 } else { EFAULT });
            }
            if op == VCPUOP_SET_PERIODIC_TIMER {
                // SAFETY: the storm passes the address of its argument.
                let arg: SetPeriodicTimer = unsafe { ptr::read(ptr::with_exposed_provenance(arg)) };
                if !PERIOD_NS.contains(&arg.period_ns) {
                    return Some(if self.has(Fault::ShortPeriods) { 0 } else { EINVAL });
                }
            }
            (!own).then_some(0)
        }

        fn sched_op(&self, op: u32, at: usize) -> Option<isize> {
            if NOWHERE.contains(&at) {
                return Some(EFAULT);
            }
            if op == SCHEDOP_WATCHDOG {
                // SAFETY: as above.
                let arg: sched_watchdog = unsafe { ptr::read(ptr::with_exposed_provenance(at)) };
                return Some(match arg.id {
                    0 => 1,
                    1 | 2 => 0,
                    _ => EINVAL,
                });
            }
            // SAFETY: as above.
            let arg: sched_poll = unsafe { ptr::read(ptr::with_exposed_provenance(at)) };
            match arg.nr_ports > PORTS_MAX {
                true => Some(EINVAL),
                false => NOWHERE.contains(&arg.ports.addr()).then_some(EFAULT),
            }
        }
    }

    impl Hypercall for Strict {
        unsafe fn call(&self, number: u32, args: [usize; 5]) -> isize {
            let own = match number {
                NR_DOMCTL => Some(if self.has(Fault::SetsFactors) { 0 } else { EPERM }),
                NR_VCPU_OP => self.vcpu_op(args[0] as u32, args[1] as u32, args[2]),
                NR_SCHED_OP => self.sched_op(args[0] as u32, args[1]),
                _ => None,
            };
            // SAFETY: the caller's promise.
            own.unwrap_or_else(|| unsafe { self.xen.call(number, args) })
        }
    }

    impl Around for Strict {
        fn inner(&self) -> &FakeXen {
            &self.xen
        }
    }

    impl Strict {
        fn machine(&self, vcpu: Vcpu) -> Machine<'_, Self> {
            let events: Events = self.xen.events();
            Machine::new(self, vcpu, self.xen.time(vcpu), self.xen.wall(), events).unwrap()
        }
    }

    impl Crew<Self> for Strict {
        fn run(
            &self,
            _together: bool,
            job: &(dyn Fn(&Machine<'_, Self>) + Sync),
        ) -> Result<(), XenError> {
            for vcpu in [0, 1] {
                self.vcpu.set(vcpu);
                self.xen.switch_to(Vcpu(vcpu));
                job(&self.machine(Vcpu(vcpu)));
            }
            Ok(())
        }
    }

    fn test(tdf: &str, fault: Option<Fault>) -> (Outcome, String) {
        let config = Config { tdf: tdf.parse().unwrap(), ..Config::default() };
        let xen = Strict { xen: FakeXen::new(config), fault, vcpu: 0.into() };
        let mut out = String::new();
        let options = HostileOptions { calls: 3_000, seed: 5 };
        let outcome = run(&xen.machine(Vcpu(0)), &xen, options, &mut out);
        (outcome, out)
    }

    #[test]
    fn a_xen_that_checks_everything_stands_it() {
        for tdf in ["1", "10", "1000", "1/1000"] {
            let (outcome, out) = test(tdf, None);
            assert_eq!(outcome, Outcome::Success, "{tdf}: {out}");
            assert_eq!(out.lines().filter_map(PathRow::parse).count(), 10);
        }
    }

    #[test]
    fn what_xen_must_not_take_is_noticed() {
        for fault in
            [Fault::SetsFactors, Fault::ShortPeriods, Fault::OthersTimers, Fault::AnyAddress]
        {
            let (outcome, out) = test("10", Some(fault));
            assert_eq!(outcome, Outcome::Failure, "{fault:?}: {out}");
            assert!(out.contains("was answered 0 to"), "{fault:?}: {out}");
            let set = out.lines().filter_map(PathRow::parse).find(|r| r.probe == "factors_set");
            assert_eq!(set.unwrap().pass(), fault != Fault::SetsFactors, "{out}");
        }
    }
}
