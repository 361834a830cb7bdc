// SPDX-License-Identifier: MIT OR Apache-2.0
//! The virtual machine as one of its vCPUs sees it: its clocks, its timer, and sleep.

use tdf_xen::abi::{Port, RUNSTATE_OFFLINE, RUNSTATE_RUNNABLE, VIRQ_TIMER, Vcpu};
use tdf_xen::clock::{TimeArea, TimeInfo, WallArea};
use tdf_xen::evtchn::{Events, Upcalls};
use tdf_xen::hypercall::{Hypercall, Xen, XenError};

/// What of the CPU is no hypercall.
pub trait Cpu {
    /// The time stamp counter.
    fn rdtsc(&self) -> u64;
    /// The same by `rdmsr`, which Xen carries out in the kernel's stead.
    fn rdmsr_tsc(&self) -> u64;
    /// eax, ebx, ecx and edx of leaf 3 above Xen's first CPUID leaf, which tells of the TSC; zeros if
    /// there is none.
    fn cpuid_time(&self, subleaf: u32) -> [u32; 4];
    /// Whether Xen emulates the counter, so that it counts the domain's time instead of the host's.
    fn tsc_is_emulated(&self) -> bool;
}

/// The domain's vCPUs.
pub trait Crew<X> {
    /// Runs `job` on every vCPU, each with its machine: all `together`, or one after another.
    ///
    /// # Errors
    /// What Xen answers.
    fn run(&self, together: bool, job: &(dyn Fn(&Machine<'_, X>) + Sync)) -> Result<(), XenError>;
}

/// Which call arms the timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// `VCPUOP_set_singleshot_timer`.
    Singleshot,
    /// `set_timer_op`.
    SetTimerOp,
}

/// A vCPU of a running domain, with a bound timer.
#[derive(Debug)]
pub struct Machine<'a, X> {
    /// Xen, and the CPU.
    pub xen: &'a X,
    /// Which vCPU it is; the rest may be used on that one only.
    pub vcpu: Vcpu,
    time: TimeArea,
    wall: WallArea,
    events: Events,
    timer: Port,
}

impl<'a, X: Hypercall + Cpu> Machine<'a, X> {
    /// Masks all events, and binds the timer. The periodic tick goes on.
    ///
    /// # Errors
    /// What Xen answers.
    pub fn new(
        xen: &'a X,
        vcpu: Vcpu,
        time: TimeArea,
        wall: WallArea,
        events: Events,
    ) -> Result<Self, XenError> {
        events.mask_all();
        let timer = xen.bind_virq(VIRQ_TIMER, vcpu)?;
        Ok(Self { xen, vcpu, time, wall, events, timer })
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

    /// What has to be added to system time to get the time of day.
    pub fn wall_base_ns(&self) -> i64 {
        self.wall.base_ns()
    }

    /// Time of day: virtual ns since 1970.
    pub fn wall_clock_ns(&self) -> i64 {
        self.wall_base_ns().saturating_add(self.system_time_ns())
    }

    /// Virtual time for which this vCPU could have run and might not, because others did or because the
    /// domain was paused, ns since the domain's beginning.
    ///
    /// # Errors
    /// What Xen answers.
    pub fn stolen_ns(&self) -> Result<i64, XenError> {
        let time = self.xen.runstate(self.vcpu)?.time_ns;
        Ok(time[RUNSTATE_RUNNABLE].wrapping_add(time[RUNSTATE_OFFLINE]).cast_signed())
    }

    /// Sleeps until the timer, armed through `via`, says that system time reached `deadline_ns`.
    ///
    /// Trusts the timer and looks at no clock: this is what the self-test measures.
    ///
    /// # Errors
    /// What Xen answers.
    pub fn sleep_until(&self, deadline_ns: i64, via: Via) -> Result<(), XenError> {
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
        self.xen.stop_singleshot_timer(self.vcpu)?;
        self.fired();
        self.events.take(port);
        Ok(())
    }

    /// Sleeps until an event arrives on `port`, or it seems so.
    ///
    /// # Errors
    /// What Xen answers.
    pub fn listen(&self, port: Port) -> Result<(), XenError> {
        self.xen.poll(&[port])?;
        self.events.take(port);
        Ok(())
    }

    /// Sleeps until the timer is pending, but not beyond system time `deadline_ns`.
    ///
    /// # Errors
    /// What Xen answers.
    pub fn poll_timer(&self, deadline_ns: i64) -> Result<(), XenError> {
        self.poll_timeout(deadline_ns.max(1).cast_unsigned())
    }

    /// As [`Self::poll_timer`], with whatever Xen takes for a timeout.
    ///
    /// # Errors
    /// What Xen answers.
    pub fn poll_timeout(&self, timeout: u64) -> Result<(), XenError> {
        self.xen.poll_until(&[self.timer], timeout)
    }

    /// Arms the timer, and forgets that it may have fired before.
    ///
    /// # Errors
    /// What Xen answers.
    pub fn arm(&self, deadline_ns: i64, via: Via) -> Result<(), XenError> {
        self.fired();
        let deadline = deadline_ns.max(1).cast_unsigned();
        match via {
            Via::Singleshot => self.xen.set_singleshot_timer(self.vcpu, deadline),
            Via::SetTimerOp => self.xen.set_timer_op(deadline),
        }
    }

    /// Sleeps until there is an event on any port, or the timer says that system time reached
    /// `deadline_ns`, or it seems so. What it costs does not depend on how many ports there are.
    ///
    /// # Safety
    /// As for [`Xen::block`]; the caller has unmasked all ports by [`Self::unmask_events`], and cleared
    /// `upcalls` before it last looked for events.
    ///
    /// # Errors
    /// What Xen answers.
    pub unsafe fn block(
        &self,
        upcalls: &Upcalls,
        deadline_ns: Option<u64>,
    ) -> Result<(), XenError> {
        if let Some(deadline) = deadline_ns {
            self.xen.set_singleshot_timer(self.vcpu, deadline)?;
        }
        // SAFETY: the caller's promise.
        let blocked = unsafe { self.xen.block() };
        // If nothing happened, nothing has masked them.
        upcalls.mask();
        blocked
    }

    /// Lets the events of every port count for [`Self::block`].
    pub fn unmask_events(&self) {
        self.events.unmask_all();
    }

    /// Clears the pending events of all ports up to `last`, or a few more, and names those that had one.
    pub fn take_events(&self, last: Port, each: impl FnMut(Port)) {
        self.events.take_up_to(last, each);
    }

    /// Whether the timer is pending, which is cleared by asking.
    pub fn fired(&self) -> bool {
        self.events.take(self.timer)
    }
}
