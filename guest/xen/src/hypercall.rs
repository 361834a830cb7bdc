// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hypercalls: one raw call behind a trait, typed calls on top of it.
//!
//! The kernel implements [`Hypercall`] with its hypercall page, a test with a
//! `FakeXen` made of plain memory (feature `fake`). [`Xen`] gives every implementation the
//! calls that this project needs, and only those.

use core::fmt;
use core::ptr;

use tdf_abi::{TdfSample, VCPUOP_TDF_SAMPLE};

use crate::abi::*;
use crate::grant::{CopyOp, GrantOpError, GrantStatus};

/// Something that carries hypercalls to Xen.
pub trait Hypercall {
    /// Makes hypercall `number`; the result is negative for an error (`-errno`).
    ///
    /// # Safety
    /// Arguments that Xen takes as addresses must point to what this hypercall expects there, valid
    /// for as long as Xen uses it, and the call's effect on memory (mappings, trap handlers, event
    /// delivery) must be one that the caller allows.
    unsafe fn call(&self, number: u32, args: [usize; 5]) -> isize;
}

/// Why Xen did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XenError {
    /// `EPERM`.
    NotPermitted,
    /// `EFAULT`.
    BadAddress,
    /// `EINVAL`.
    Invalid,
    /// `ENOSYS`.
    NotImplemented,
    /// Any other, with its `errno`.
    Other(i32),
}

impl XenError {
    /// The error that a negative result stands for.
    fn from_result(result: isize) -> Self {
        match -result {
            1 => Self::NotPermitted,
            14 => Self::BadAddress,
            22 => Self::Invalid,
            38 => Self::NotImplemented,
            errno => Self::Other(i32::try_from(errno).unwrap_or(i32::MAX)),
        }
    }
}

impl fmt::Display for XenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPermitted => f.write_str("Xen does not permit this domain to do it (EPERM)"),
            Self::BadAddress => f.write_str("Xen cannot read or write the argument (EFAULT)"),
            Self::Invalid => f.write_str("Xen finds an argument invalid (EINVAL)"),
            Self::NotImplemented => f.write_str("this Xen does not know the call (ENOSYS)"),
            Self::Other(errno) => write!(f, "Xen answered with error number {errno}"),
        }
    }
}

impl core::error::Error for XenError {}

/// Why a domain ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// It is done.
    Poweroff,
    /// It wants to be started again.
    Reboot,
    /// It found itself in a state that must not be.
    Crash,
}

/// The version of the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// 4 of 4.17.5.
    pub major: u16,
    /// 17 of 4.17.5.
    pub minor: u16,
    /// `.5` of 4.17.5, NUL-terminated.
    extra: [u8; EXTRAVERSION_LEN],
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let extra = self.extra.split(|b| *b == 0).next().unwrap_or_default();
        let extra = core::str::from_utf8(extra).unwrap_or("");
        write!(f, "{}.{}{extra}", self.major, self.minor)
    }
}

fn check(result: isize) -> Result<usize, XenError> {
    usize::try_from(result).map_err(|_| XenError::from_result(result))
}

/// Address of an argument that Xen only reads, as a hypercall register.
fn input<T>(value: &T) -> usize {
    ptr::from_ref(value).expose_provenance()
}

/// Address of an argument that Xen writes, as a hypercall register.
fn output<T>(value: &mut T) -> usize {
    ptr::from_mut(value).expose_provenance()
}

/// The hypercalls of this project, for everything that can carry one.
pub trait Xen: Hypercall {
    /// Which Xen this is.
    ///
    /// # Errors
    /// What Xen answers.
    fn version(&self) -> Result<Version, XenError> {
        let nr = NR_XEN_VERSION;
        // SAFETY: takes no address.
        let number = check(unsafe { self.call(nr, [XENVER_VERSION as usize, 0, 0, 0, 0]) })?;
        let mut extra = [0; EXTRAVERSION_LEN];
        let args = [XENVER_EXTRAVERSION as usize, output(&mut extra), 0, 0, 0];
        // SAFETY: Xen writes EXTRAVERSION_LEN bytes to `extra`, which has so many.
        check(unsafe { self.call(nr, args) })?;
        Ok(Version { major: (number >> 16) as u16, minor: number as u16, extra })
    }

    /// Writes to Xen's own console. For the initial domain.
    ///
    /// # Errors
    /// What Xen answers.
    fn console_write(&self, text: &[u8]) -> Result<(), XenError> {
        let at = text.as_ptr().expose_provenance();
        let args = [CONSOLEIO_WRITE as usize, text.len(), at, 0, 0];
        // SAFETY: Xen reads `text.len()` bytes from `text`.
        check(unsafe { self.call(NR_CONSOLE_IO, args) }).map(drop)
    }

    /// Maps what `pte` says at `va`, and forgets the old translation.
    ///
    /// # Safety
    /// The page at `va` must belong to the caller, who from now on finds another frame there.
    ///
    /// # Errors
    /// What Xen answers; nothing has changed then.
    unsafe fn update_va_mapping(&self, va: usize, pte: u64) -> Result<(), XenError> {
        let args = [va, pte as usize, UVMF_INVLPG as usize, 0, 0];
        // SAFETY: the caller owns the page whose mapping changes.
        check(unsafe { self.call(NR_UPDATE_VA_MAPPING, args) }).map(drop)
    }

    /// Installs exception handlers; `traps` ends with an entry whose address is 0.
    ///
    /// # Safety
    /// Each address must be an exception entry that expects Xen's frame.
    ///
    /// # Errors
    /// What Xen answers.
    unsafe fn set_trap_table(&self, traps: &[trap_info]) -> Result<(), XenError> {
        let args = [traps.as_ptr().expose_provenance(), 0, 0, 0, 0];
        // SAFETY: Xen reads up to the entry with address 0; the caller vouches for the handlers.
        check(unsafe { self.call(NR_SET_TRAP_TABLE, args) }).map(drop)
    }

    /// Lets the kernel use I/O ports that its domain may touch.
    ///
    /// # Errors
    /// What Xen answers.
    fn set_iopl(&self, iopl: u32) -> Result<(), XenError> {
        let arg = SetIopl { iopl };
        let args = [PHYSDEVOP_SET_IOPL as usize, input(&arg), 0, 0, 0];
        // SAFETY: Xen reads the argument.
        check(unsafe { self.call(NR_PHYSDEV_OP, args) }).map(drop)
    }

    /// A port on which `virq` of `vcpu` arrives.
    ///
    /// # Errors
    /// What Xen answers.
    fn bind_virq(&self, virq: u32, vcpu: Vcpu) -> Result<Port, XenError> {
        let mut arg = evtchn_bind_virq { virq, vcpu: vcpu.0, port: 0 };
        let args = [EVTCHNOP_BIND_VIRQ as usize, output(&mut arg), 0, 0, 0];
        // SAFETY: Xen reads and writes the argument.
        check(unsafe { self.call(NR_EVENT_CHANNEL_OP, args) })?;
        Ok(Port(arg.port))
    }

    /// A port that [`Self::notify`] reaches `vcpu` by.
    ///
    /// # Errors
    /// What Xen answers.
    fn bind_ipi(&self, vcpu: Vcpu) -> Result<Port, XenError> {
        let mut arg = evtchn_bind_ipi { vcpu: vcpu.0, port: 0 };
        let args = [EVTCHNOP_BIND_IPI as usize, output(&mut arg), 0, 0, 0];
        // SAFETY: Xen reads and writes the argument.
        check(unsafe { self.call(NR_EVENT_CHANNEL_OP, args) })?;
        Ok(Port(arg.port))
    }

    /// Notifies the other end of `port`.
    ///
    /// # Errors
    /// What Xen answers.
    fn notify(&self, port: Port) -> Result<(), XenError> {
        let arg = evtchn_send { port: port.0 };
        let args = [EVTCHNOP_SEND as usize, input(&arg), 0, 0, 0];
        // SAFETY: Xen reads the argument.
        check(unsafe { self.call(NR_EVENT_CHANNEL_OP, args) }).map(drop)
    }

    /// A port that `remote` may bind its end of a channel to.
    ///
    /// # Errors
    /// What Xen answers.
    fn evtchn_alloc_unbound(&self, remote: DomId) -> Result<Port, XenError> {
        let mut arg = EvtchnAllocUnbound { dom: DOMID_SELF, remote, port: Port(0) };
        let args = [EVTCHNOP_ALLOC_UNBOUND as usize, output(&mut arg), 0, 0, 0];
        // SAFETY: Xen reads and writes the argument.
        check(unsafe { self.call(NR_EVENT_CHANNEL_OP, args) })?;
        Ok(arg.port)
    }

    /// Our end of the channel that `remote` has offered as its port `remote_port`.
    ///
    /// Xen leaves the new port pending once, for what was sent before it was bound.
    ///
    /// # Errors
    /// What Xen answers.
    fn evtchn_bind_interdomain(&self, remote: DomId, remote_port: Port) -> Result<Port, XenError> {
        let mut arg = EvtchnBindInterdomain { remote, remote_port, local_port: Port(0) };
        let args = [EVTCHNOP_BIND_INTERDOMAIN as usize, output(&mut arg), 0, 0, 0];
        // SAFETY: Xen reads and writes the argument.
        check(unsafe { self.call(NR_EVENT_CHANNEL_OP, args) })?;
        Ok(arg.local_port)
    }

    /// Gives a port back.
    ///
    /// # Errors
    /// What Xen answers.
    fn evtchn_close(&self, port: Port) -> Result<(), XenError> {
        let arg = EvtchnClose { port };
        let args = [EVTCHNOP_CLOSE as usize, input(&arg), 0, 0, 0];
        // SAFETY: Xen reads the argument.
        check(unsafe { self.call(NR_EVENT_CHANNEL_OP, args) }).map(drop)
    }

    /// Makes the domain's grant table as many frames long as `frames` is, and says which they are.
    ///
    /// # Errors
    /// What Xen answers.
    fn gnttab_setup_table(&self, frames: &mut [u64]) -> Result<(), GrantOpError> {
        let mut arg = GnttabSetupTable {
            dom: DOMID_SELF,
            nr_frames: u32::try_from(frames.len()).map_err(|_| XenError::Invalid)?,
            status: GrantStatus::UNDONE.0,
            frame_list: frames.as_mut_ptr().expose_provenance() as u64,
        };
        let args = [GNTTABOP_SETUP_TABLE as usize, output(&mut arg), 1, 0, 0];
        // SAFETY: Xen reads and writes the argument, and writes `frames.len()` frames.
        check(unsafe { self.call(NR_GRANT_TABLE_OP, args) })?;
        Ok(GrantStatus(arg.status).result()?)
    }

    /// Frames that the grant table has, and how many it may have.
    ///
    /// # Errors
    /// What Xen answers.
    fn gnttab_query_size(&self) -> Result<(u32, u32), GrantOpError> {
        let status = GrantStatus::UNDONE.0;
        let mut arg = GnttabQuerySize { dom: DOMID_SELF, nr_frames: 0, max_nr_frames: 0, status };
        let args = [GNTTABOP_QUERY_SIZE as usize, output(&mut arg), 1, 0, 0];
        // SAFETY: Xen reads and writes the argument.
        check(unsafe { self.call(NR_GRANT_TABLE_OP, args) })?;
        GrantStatus(arg.status).result()?;
        Ok((arg.nr_frames, arg.max_nr_frames))
    }

    /// Copies all of `ops`, and notes in each how it went.
    ///
    /// # Safety
    /// Each own frame that an op writes to must be memory that the caller may have overwritten, each
    /// that it reads from must hold nothing that the peer may not see.
    ///
    /// # Errors
    /// What Xen answers if it did not get through the list; the ops that it did not reach are still
    /// [`GrantStatus::UNDONE`].
    unsafe fn gnttab_copy(&self, ops: &mut [CopyOp]) -> Result<(), XenError> {
        let at = ops.as_mut_ptr().expose_provenance();
        let args = [GNTTABOP_COPY as usize, at, ops.len(), 0, 0];
        // SAFETY: Xen reads and writes the ops; the caller vouches for the frames.
        check(unsafe { self.call(NR_GRANT_TABLE_OP, args) }).map(drop)
    }

    /// Maps the page that `dom` calls `gref` at `host_addr`, for reading and writing.
    ///
    /// # Safety
    /// The page at `host_addr` must be the caller's, who from now on finds a page there that the peer
    /// writes whenever it likes: it is for volatile or atomic access only. A page table must exist.
    ///
    /// # Errors
    /// What Xen answers; nothing is mapped then.
    unsafe fn gnttab_map(
        &self,
        dom: DomId,
        gref: GrantRef,
        host_addr: usize,
    ) -> Result<GrantHandle, GrantOpError> {
        let mut arg = GnttabMapGrantRef {
            host_addr: host_addr as u64,
            flags: GNTMAP_HOST_MAP,
            gref,
            dom,
            status: GrantStatus::UNDONE.0,
            handle: GrantHandle(0),
            dev_bus_addr: 0,
        };
        let args = [GNTTABOP_MAP_GRANT_REF as usize, output(&mut arg), 1, 0, 0];
        // SAFETY: Xen reads and writes the argument; the caller owns the address.
        check(unsafe { self.call(NR_GRANT_TABLE_OP, args) })?;
        GrantStatus(arg.status).result()?;
        Ok(arg.handle)
    }

    /// Undoes [`Self::gnttab_map`]; nothing is mapped at the address afterwards.
    ///
    /// # Safety
    /// `host_addr` is the address that `handle` was mapped at, and nobody uses it any more.
    ///
    /// # Errors
    /// What Xen answers; the page is still mapped then.
    unsafe fn gnttab_unmap(
        &self,
        handle: GrantHandle,
        host_addr: usize,
    ) -> Result<(), GrantOpError> {
        let mut arg = GnttabUnmapGrantRef {
            host_addr: host_addr as u64,
            dev_bus_addr: 0,
            handle,
            status: GrantStatus::UNDONE.0,
        };
        let args = [GNTTABOP_UNMAP_GRANT_REF as usize, output(&mut arg), 1, 0, 0];
        // SAFETY: Xen reads and writes the argument; the caller gives up the mapping.
        check(unsafe { self.call(NR_GRANT_TABLE_OP, args) })?;
        Ok(GrantStatus(arg.status).result()?)
    }

    /// Writes entries of page tables, in order.
    ///
    /// # Safety
    /// The caller must own every page whose mapping changes.
    ///
    /// # Errors
    /// What Xen answers to the first update that it refuses; those before it are done.
    unsafe fn mmu_update(&self, updates: &[MmuUpdate]) -> Result<(), XenError> {
        let at = updates.as_ptr().expose_provenance();
        let args = [at, updates.len(), 0, DOMID_SELF.0.into(), 0];
        // SAFETY: Xen reads the updates; the caller vouches for what they say.
        check(unsafe { self.call(NR_MMU_UPDATE, args) }).map(drop)
    }

    /// One `MMUEXT_*` operation of this domain.
    ///
    /// # Safety
    /// As the operation demands.
    ///
    /// # Errors
    /// What Xen answers.
    unsafe fn mmuext_op(&self, cmd: u32, arg1: u64) -> Result<(), XenError> {
        let op = MmuextOp { cmd, arg1, arg2: 0 };
        // SAFETY: Xen reads the operation; the caller vouches for it.
        let result = unsafe { self.call(NR_MMUEXT_OP, [input(&op), 1, 0, DOMID_SELF.0.into(), 0]) };
        check(result).map(drop)
    }

    /// Makes `frame`, which is mapped nowhere for writing, a page table of `level` (1 to 4) for good.
    ///
    /// # Errors
    /// What Xen answers, above all if an entry of the table is one that it does not allow.
    fn pin_table(&self, level: u32, frame: Mfn) -> Result<(), XenError> {
        let cmd = match level {
            1..=4 => MMUEXT_PIN_L1_TABLE + level - 1,
            _ => return Err(XenError::Invalid),
        };
        // SAFETY: changes no mapping; Xen checks the table.
        unsafe { self.mmuext_op(cmd, frame.0) }
    }

    /// Undoes [`Self::pin_table`].
    ///
    /// # Errors
    /// What Xen answers.
    fn unpin_table(&self, frame: Mfn) -> Result<(), XenError> {
        // SAFETY: changes no mapping; a table that is in use stays one.
        unsafe { self.mmuext_op(MMUEXT_UNPIN_TABLE, frame.0) }
    }

    /// Forgets every translation of this vCPU.
    ///
    /// # Errors
    /// What Xen answers.
    fn flush_tlb(&self) -> Result<(), XenError> {
        // SAFETY: changes no mapping.
        unsafe { self.mmuext_op(MMUEXT_TLB_FLUSH_LOCAL, 0) }
    }

    /// Sleeps until an event is pending on one of `ports`, masked or not; may wake without one.
    ///
    /// # Errors
    /// What Xen answers.
    fn poll(&self, ports: &[Port]) -> Result<(), XenError> {
        self.poll_until(ports, 0)
    }

    /// As [`Self::poll`], but not beyond system time `deadline_ns`, unless that is 0.
    ///
    /// # Errors
    /// What Xen answers.
    fn poll_until(&self, ports: &[Port], deadline_ns: u64) -> Result<(), XenError> {
        let arg = sched_poll {
            // `Port` is transparent over `evtchn_port_t`, and Xen only reads the ports.
            ports: ports.as_ptr().cast_mut().cast(),
            nr_ports: u32::try_from(ports.len()).map_err(|_| XenError::Invalid)?,
            timeout: deadline_ns,
        };
        let args = [SCHEDOP_POLL as usize, input(&arg), 0, 0, 0];
        // SAFETY: Xen reads the argument and `nr_ports` ports.
        check(unsafe { self.call(NR_SCHED_OP, args) }).map(drop)
    }

    /// Unmasks upcalls and sleeps until there is one, in one step: none is missed in between, and it
    /// does not matter for how many ports. The upcall comes before this returns.
    ///
    /// # Safety
    /// [`Self::register_upcall`] has named an entry, and whatever runs until upcalls are masked again,
    /// which taking one does, may be interrupted by it.
    ///
    /// # Errors
    /// What Xen answers.
    unsafe fn block(&self) -> Result<(), XenError> {
        // SAFETY: takes no address; the caller vouches for the upcall.
        check(unsafe { self.call(NR_SCHED_OP, [SCHEDOP_BLOCK as usize, 0, 0, 0, 0]) }).map(drop)
    }

    /// Names the entry for upcalls.
    ///
    /// # Safety
    /// It must be one that expects Xen's frame and returns with everything as it was.
    ///
    /// # Errors
    /// What Xen answers.
    unsafe fn register_upcall(&self, address: u64) -> Result<(), XenError> {
        let arg = CallbackRegister { kind: CALLBACKTYPE_EVENT, flags: 0, address };
        let args = [CALLBACKOP_REGISTER as usize, input(&arg), 0, 0, 0];
        // SAFETY: Xen reads the argument; the caller vouches for the entry.
        check(unsafe { self.call(NR_CALLBACK_OP, args) }).map(drop)
    }

    /// Lets other vCPUs run first.
    ///
    /// # Errors
    /// What Xen answers.
    fn yield_now(&self) -> Result<(), XenError> {
        // SAFETY: takes no address.
        check(unsafe { self.call(NR_SCHED_OP, [SCHEDOP_YIELD as usize, 0, 0, 0, 0]) }).map(drop)
    }

    /// Ends the domain. Returns only if Xen refuses.
    ///
    /// # Errors
    /// What Xen answers.
    fn shutdown(&self, why: Shutdown) -> Result<(), XenError> {
        let arg = sched_shutdown {
            reason: match why {
                Shutdown::Poweroff => SHUTDOWN_POWEROFF,
                Shutdown::Reboot => SHUTDOWN_REBOOT,
                Shutdown::Crash => SHUTDOWN_CRASH,
            },
        };
        let args = [SCHEDOP_SHUTDOWN as usize, input(&arg), 0, 0, 0];
        // SAFETY: Xen reads the argument.
        check(unsafe { self.call(NR_SCHED_OP, args) }).map(drop)
    }

    /// Starts a watchdog (`id` 0; its number is the answer), starts it anew, or ends it (0 seconds).
    ///
    /// # Errors
    /// What Xen answers.
    fn watchdog(&self, id: u32, timeout_s: u32) -> Result<u32, XenError> {
        let arg = sched_watchdog { id, timeout: timeout_s };
        let args = [SCHEDOP_WATCHDOG as usize, input(&arg), 0, 0, 0];
        // SAFETY: Xen reads the argument.
        check(unsafe { self.call(NR_SCHED_OP, args) }).map(|id| id as u32)
    }

    /// Gives `vcpu` its first registers.
    ///
    /// # Safety
    /// What starts there must be code that expects it, on a stack of its own.
    ///
    /// # Errors
    /// What Xen answers.
    unsafe fn initialise_vcpu(
        &self,
        vcpu: Vcpu,
        context: &vcpu_guest_context,
    ) -> Result<(), XenError> {
        let args = [VCPUOP_INITIALISE as usize, vcpu.0 as usize, input(context), 0, 0];
        // SAFETY: Xen reads the argument; the caller vouches for what it says.
        check(unsafe { self.call(NR_VCPU_OP, args) }).map(drop)
    }

    /// Lets `vcpu` run.
    ///
    /// # Errors
    /// What Xen answers.
    fn vcpu_up(&self, vcpu: Vcpu) -> Result<(), XenError> {
        // SAFETY: takes no address; where the vCPU starts was said, and vouched for, before.
        check(unsafe { self.call(NR_VCPU_OP, [VCPUOP_UP as usize, vcpu.0 as usize, 0, 0, 0]) })
            .map(drop)
    }

    /// Whether the domain has a `vcpu`.
    fn vcpu_exists(&self, vcpu: Vcpu) -> bool {
        // SAFETY: takes no address.
        check(unsafe { self.call(NR_VCPU_OP, [VCPUOP_IS_UP as usize, vcpu.0 as usize, 0, 0, 0]) })
            .is_ok()
    }

    /// What `vcpu` has done with its time.
    ///
    /// # Errors
    /// What Xen answers.
    fn runstate(&self, vcpu: Vcpu) -> Result<RunstateInfo, XenError> {
        let mut info = RunstateInfo::default();
        let args = [VCPUOP_GET_RUNSTATE_INFO as usize, vcpu.0 as usize, output(&mut info), 0, 0];
        // SAFETY: Xen writes the argument.
        check(unsafe { self.call(NR_VCPU_OP, args) })?;
        Ok(info)
    }

    /// Lets Xen also write the runstate of `vcpu` to `area`, whenever it changes.
    ///
    /// # Safety
    /// `area` is valid for ever, and nothing else is there.
    ///
    /// # Errors
    /// What Xen answers.
    unsafe fn register_runstate_area(
        &self,
        vcpu: Vcpu,
        area: *mut RunstateInfo,
    ) -> Result<(), XenError> {
        let arg = RegisterArea { address: area.expose_provenance() as u64 };
        let args = [VCPUOP_REGISTER_RUNSTATE_AREA as usize, vcpu.0 as usize, input(&arg), 0, 0];
        // SAFETY: Xen reads the argument; the caller vouches for the area.
        check(unsafe { self.call(NR_VCPU_OP, args) }).map(drop)
    }

    /// Lets Xen also write the time record of `vcpu` to `area`, now and whenever it changes.
    ///
    /// # Safety
    /// As [`Self::register_runstate_area`].
    ///
    /// # Errors
    /// What Xen answers.
    unsafe fn register_time_area(
        &self,
        vcpu: Vcpu,
        area: *mut vcpu_time_info,
    ) -> Result<(), XenError> {
        let arg = RegisterArea { address: area.expose_provenance() as u64 };
        let args = [VCPUOP_REGISTER_TIME_AREA as usize, vcpu.0 as usize, input(&arg), 0, 0];
        // SAFETY: as above.
        check(unsafe { self.call(NR_VCPU_OP, args) }).map(drop)
    }

    /// `VIRQ_TIMER` of `vcpu` each `period_ns`, while it runs.
    ///
    /// # Errors
    /// What Xen answers.
    fn set_periodic_timer(&self, vcpu: Vcpu, period_ns: u64) -> Result<(), XenError> {
        let arg = SetPeriodicTimer { period_ns };
        let args = [VCPUOP_SET_PERIODIC_TIMER as usize, vcpu.0 as usize, input(&arg), 0, 0];
        // SAFETY: Xen reads the argument.
        check(unsafe { self.call(NR_VCPU_OP, args) }).map(drop)
    }

    /// Ends the periodic tick of `vcpu`.
    ///
    /// # Errors
    /// What Xen answers.
    fn stop_periodic_timer(&self, vcpu: Vcpu) -> Result<(), XenError> {
        let args = [VCPUOP_STOP_PERIODIC_TIMER as usize, vcpu.0 as usize, 0, 0, 0];
        // SAFETY: takes no address.
        check(unsafe { self.call(NR_VCPU_OP, args) }).map(drop)
    }

    /// `VIRQ_TIMER` when system time reaches `deadline_ns`; replaces the one that was set.
    ///
    /// # Errors
    /// What Xen answers.
    fn set_singleshot_timer(&self, vcpu: Vcpu, deadline_ns: u64) -> Result<(), XenError> {
        let arg = SetSingleshotTimer { timeout_abs_ns: deadline_ns, flags: 0 };
        let args = [VCPUOP_SET_SINGLESHOT_TIMER as usize, vcpu.0 as usize, input(&arg), 0, 0];
        // SAFETY: Xen reads the argument.
        check(unsafe { self.call(NR_VCPU_OP, args) }).map(drop)
    }

    /// Disarms the single-shot timer of `vcpu`.
    ///
    /// # Errors
    /// What Xen answers.
    fn stop_singleshot_timer(&self, vcpu: Vcpu) -> Result<(), XenError> {
        let args = [VCPUOP_STOP_SINGLESHOT_TIMER as usize, vcpu.0 as usize, 0, 0, 0];
        // SAFETY: takes no address.
        check(unsafe { self.call(NR_VCPU_OP, args) }).map(drop)
    }

    /// The older way to the same timer, of the calling vCPU; a deadline of 0 disarms.
    ///
    /// # Errors
    /// What Xen answers.
    fn set_timer_op(&self, deadline_ns: u64) -> Result<(), XenError> {
        // SAFETY: takes no address.
        check(unsafe { self.call(NR_SET_TIMER_OP, [deadline_ns as usize, 0, 0, 0, 0]) }).map(drop)
    }

    /// Real and virtual time in one instant, and the factor between them.
    ///
    /// # Errors
    /// [`XenError::NotPermitted`] if the domain was not given `TDF_REVEAL`,
    /// [`XenError::NotImplemented`] on a Xen without time dilation.
    fn tdf_sample(&self, vcpu: Vcpu) -> Result<TdfSample, XenError> {
        let mut sample = TdfSample::default();
        let args = [VCPUOP_TDF_SAMPLE as usize, vcpu.0 as usize, output(&mut sample), 0, 0];
        // SAFETY: Xen writes the sample.
        check(unsafe { self.call(NR_VCPU_OP, args) })?;
        Ok(sample)
    }
}

impl<H: Hypercall + ?Sized> Xen for H {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// Notes each call, answers with a fixed result.
    struct Recorder {
        answer: isize,
        calls: RefCell<Vec<(u32, [usize; 5])>>,
    }

    impl Hypercall for Recorder {
        unsafe fn call(&self, number: u32, args: [usize; 5]) -> isize {
            self.calls.borrow_mut().push((number, args));
            self.answer
        }
    }

    fn recorder(answer: isize) -> Recorder {
        Recorder { answer, calls: RefCell::default() }
    }

    #[test]
    fn a_negative_result_is_the_error_of_its_number() {
        for (result, error) in [
            (-1, XenError::NotPermitted),
            (-14, XenError::BadAddress),
            (-22, XenError::Invalid),
            (-38, XenError::NotImplemented),
            (-62, XenError::Other(62)),
            (isize::MIN + 1, XenError::Other(i32::MAX)),
        ] {
            assert_eq!(recorder(result).set_timer_op(1), Err(error));
        }
        assert_eq!(recorder(0).set_timer_op(1), Ok(()));
    }

    #[test]
    fn numbers_and_registers_are_those_of_the_public_headers() {
        let xen = recorder(0);
        xen.set_timer_op(u64::MAX).unwrap();
        xen.stop_periodic_timer(Vcpu(3)).unwrap();
        xen.console_write(b"abc").unwrap();
        let calls = xen.calls.into_inner();
        assert_eq!(calls[0], (15, [usize::MAX, 0, 0, 0, 0]));
        assert_eq!(calls[1], (24, [7, 3, 0, 0, 0]));
        assert_eq!((calls[2].0, &calls[2].1[..2]), (18, &[0, 3][..]));
    }

    #[test]
    fn grants_channels_and_page_tables_are_those_of_the_public_headers() {
        let xen = recorder(0);
        xen.evtchn_alloc_unbound(DomId(7)).unwrap();
        xen.evtchn_bind_interdomain(DomId(7), Port(9)).unwrap();
        xen.evtchn_close(Port(9)).unwrap();
        // SAFETY: the recorder does nothing.
        unsafe {
            xen.gnttab_copy(&mut []).unwrap();
            xen.mmu_update(&[MmuUpdate { ptr: 0, val: 0 }]).unwrap();
        }
        xen.pin_table(1, Mfn(5)).unwrap();
        assert_eq!(xen.pin_table(0, Mfn(5)), Err(XenError::Invalid));
        assert_eq!(xen.pin_table(5, Mfn(5)), Err(XenError::Invalid));
        xen.flush_tlb().unwrap();
        let calls = xen.calls.into_inner();
        let ops: Vec<_> = calls.iter().map(|(number, args)| (*number, args[0])).collect();
        assert_eq!(ops[..4], [(32, 6), (32, 0), (32, 3), (20, 5)]);
        assert_eq!(calls[3].1[2..], [0, 0, 0]);
        assert_eq!((calls[4].0, &calls[4].1[1..]), (1, &[1, 0, 0x7ff0, 0][..]));
        assert_eq!((calls[5].0, &calls[5].1[1..]), (26, &[1, 0, 0x7ff0, 0][..]));
    }

    /// Xen did what it was asked, but says nothing of how it went.
    #[test]
    fn a_grant_that_xen_did_not_reach_is_no_success() {
        let xen = recorder(0);
        let undone = Err(GrantOpError::Status(GrantStatus::UNDONE));
        assert_eq!(xen.gnttab_setup_table(&mut [0; 2]), undone);
        assert_eq!(xen.gnttab_query_size().map(drop), undone);
        // SAFETY: the recorder does nothing.
        unsafe {
            assert_eq!(xen.gnttab_map(DomId(1), GrantRef(8), 4096).map(drop), undone);
            assert_eq!(xen.gnttab_unmap(GrantHandle(1), 4096), undone);
        }
    }
}
