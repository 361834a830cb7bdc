// SPDX-License-Identifier: MIT OR Apache-2.0
//! The virtual machine as the kernel sees it: its clocks, its timer, and sleep.

use tdf_xen::abi::{Port, VIRQ_TIMER, Vcpu};
use tdf_xen::clock::{TimeArea, TimeInfo, WallArea};
use tdf_xen::evtchn::Events;
use tdf_xen::hypercall::{Hypercall, Xen, XenError};

/// The only vCPU.
pub const VCPU: Vcpu = Vcpu(0);

/// What of the CPU is no hypercall.
pub trait Cpu {
    /// The time stamp counter.
    fn rdtsc(&self) -> u64;
    /// Whether Xen emulates the counter, so that it counts the domain's time instead of the host's.
    fn tsc_is_emulated(&self) -> bool;
}

/// Which call arms the timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// `VCPUOP_set_singleshot_timer`.
    Singleshot,
    /// `set_timer_op`.
    SetTimerOp,
}

/// A running domain with one vCPU and a bound timer.
#[derive(Debug)]
pub struct Machine<'a, X> {
    /// Xen, and the CPU.
    pub xen: &'a X,
    time: TimeArea,
    wall: WallArea,
    events: Events,
    timer: Port,
}

impl<'a, X: Hypercall + Cpu> Machine<'a, X> {
    /// Masks all events, ends the periodic tick, and binds the timer.
    ///
    /// # Errors
    /// What Xen answers.
    pub fn new(
        xen: &'a X,
        time: TimeArea,
        wall: WallArea,
        events: Events,
    ) -> Result<Self, XenError> {
        events.mask_all();
        xen.stop_periodic_timer(VCPU)?;
        let timer = xen.bind_virq(VIRQ_TIMER, VCPU)?;
        Ok(Self { xen, time, wall, events, timer })
    }

    /// The published line and the TSC, read together.
    pub fn tsc(&self) -> (TimeInfo, u64) {
        self.time.read(|| self.xen.rdtsc())
    }

    /// System time: virtual ns since some origin of Xen's.
    pub fn system_time_ns(&self) -> i64 {
        let (info, tsc) = self.tsc();
        info.system_time_at(tsc)
    }

    /// Time of day: virtual ns since 1970.
    pub fn wall_clock_ns(&self) -> i64 {
        self.wall.base_ns().saturating_add(self.system_time_ns())
    }

    /// Sleeps until the timer, armed through `via`, says that system time reached `deadline_ns`.
    ///
    /// Trusts the timer and looks at no clock: this is what the self-test measures.
    ///
    /// # Errors
    /// What Xen answers.
    pub fn sleep_until(&self, deadline_ns: i64, via: Via) -> Result<(), XenError> {
        self.fired();
        self.arm(deadline_ns, via)?;
        while !self.fired() {
            self.xen.poll(&[self.timer])?;
        }
        Ok(())
    }

    /// Sleeps until an event arrives on `port`, but not beyond system time `deadline_ns`.
    ///
    /// # Errors
    /// What Xen answers.
    pub fn wait_for(&self, port: Port, deadline_ns: i64) -> Result<(), XenError> {
        self.arm(deadline_ns, Via::Singleshot)?;
        self.xen.poll(&[port, self.timer])?;
        self.xen.stop_singleshot_timer(VCPU)?;
        self.events.take_all(|_| {});
        Ok(())
    }

    fn arm(&self, deadline_ns: i64, via: Via) -> Result<(), XenError> {
        let deadline = deadline_ns.max(1).cast_unsigned();
        match via {
            Via::Singleshot => self.xen.set_singleshot_timer(VCPU, deadline),
            Via::SetTimerOp => self.xen.set_timer_op(deadline),
        }
    }

    /// Whether the timer is pending; clears everything that is.
    fn fired(&self) -> bool {
        let mut fired = false;
        self.events.take_all(|port| fired |= port == self.timer);
        fired
    }
}
