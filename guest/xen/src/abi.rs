// SPDX-License-Identifier: MIT OR Apache-2.0
//! Numbers and layouts of Xen's PV interface.
//!
//! What `xen-sys` has is taken from it (types and constants only: its hypercall veneer loses the
//! fifth argument). What it lacks is here, with the offsets of the public headers asserted. Nothing
//! in this module is ever borrowed from a page that Xen or a peer writes: those are read field by
//! field through raw pointers.

use core::fmt;
use core::mem::offset_of;

pub use xen_sys::{
    __HYPERVISOR_VIRT_START as HYPERVISOR_VIRT_START, __HYPERVISOR_console_io as NR_CONSOLE_IO,
    __HYPERVISOR_event_channel_op as NR_EVENT_CHANNEL_OP, __HYPERVISOR_physdev_op as NR_PHYSDEV_OP,
    __HYPERVISOR_sched_op as NR_SCHED_OP, __HYPERVISOR_set_timer_op as NR_SET_TIMER_OP,
    __HYPERVISOR_set_trap_table as NR_SET_TRAP_TABLE,
    __HYPERVISOR_update_va_mapping as NR_UPDATE_VA_MAPPING, __HYPERVISOR_vcpu_op as NR_VCPU_OP,
    __HYPERVISOR_xen_version as NR_XEN_VERSION,
};
pub use xen_sys::{
    CONSOLEIO_write as CONSOLEIO_WRITE, EVTCHNOP_bind_ipi as EVTCHNOP_BIND_IPI,
    EVTCHNOP_bind_virq as EVTCHNOP_BIND_VIRQ, EVTCHNOP_send as EVTCHNOP_SEND, FLAT_KERNEL_CS,
    FLAT_KERNEL_SS, SCHEDOP_poll as SCHEDOP_POLL, SCHEDOP_shutdown as SCHEDOP_SHUTDOWN,
    SCHEDOP_watchdog as SCHEDOP_WATCHDOG, SHUTDOWN_crash as SHUTDOWN_CRASH,
    SHUTDOWN_poweroff as SHUTDOWN_POWEROFF, SHUTDOWN_reboot as SHUTDOWN_REBOOT, SIF_INITDOMAIN,
    VGCF_IN_KERNEL, VIRQ_TIMER, XEN_ELFNOTE_ENTRY, XEN_ELFNOTE_GUEST_OS, XEN_ELFNOTE_GUEST_VERSION,
    XEN_ELFNOTE_HV_START_LOW, XEN_ELFNOTE_HYPERCALL_PAGE, XEN_ELFNOTE_L1_MFN_VALID,
    XEN_ELFNOTE_LOADER, XEN_ELFNOTE_PADDR_OFFSET, XEN_ELFNOTE_PAE_MODE, XEN_ELFNOTE_VIRT_BASE,
    XEN_ELFNOTE_XEN_VERSION, evtchn_bind_ipi, evtchn_bind_virq, evtchn_send, sched_poll,
    sched_shutdown, sched_watchdog, shared_info, start_info, trap_info, vcpu_guest_context,
    vcpu_info, vcpu_time_info,
};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A frame number in the domain's own, contiguous numbering (`xen_pfn_t` of a PV guest).
    Pfn(u64)
);
number!(
    /// A frame number of the machine.
    Mfn(u64)
);
number!(
    /// A local event channel port (`evtchn_port_t`).
    Port(u32)
);
number!(
    /// A virtual CPU of this domain.
    Vcpu(u32)
);

/// Bytes in a page, and the unit of [`Pfn`] and [`Mfn`].
pub const PAGE_SIZE: usize = 4096;

/// `VCPUOP_initialise`: gives a vCPU its first registers.
pub const VCPUOP_INITIALISE: u32 = 0;
/// `VCPUOP_up`: lets a vCPU run.
pub const VCPUOP_UP: u32 = 1;
/// `VCPUOP_is_up`: whether a vCPU may run, and whether it exists.
pub const VCPUOP_IS_UP: u32 = 3;
/// `VCPUOP_get_runstate_info`.
pub const VCPUOP_GET_RUNSTATE_INFO: u32 = 4;
/// `VCPUOP_set_periodic_timer`.
pub const VCPUOP_SET_PERIODIC_TIMER: u32 = 6;
/// `VCPUOP_stop_periodic_timer`: ends the 100 Hz tick that every PV vCPU starts with.
pub const VCPUOP_STOP_PERIODIC_TIMER: u32 = 7;
/// `VCPUOP_set_singleshot_timer`.
pub const VCPUOP_SET_SINGLESHOT_TIMER: u32 = 8;
/// `VCPUOP_stop_singleshot_timer`.
pub const VCPUOP_STOP_SINGLESHOT_TIMER: u32 = 9;

/// `struct vcpu_set_singleshot_timer`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct SetSingleshotTimer {
    /// Absolute system time, ns.
    pub timeout_abs_ns: u64,
    /// `VCPU_SSHOTTMR_*`.
    pub flags: u32,
}
const _: () = assert!(size_of::<SetSingleshotTimer>() == 16);
const _: () = assert!(offset_of!(SetSingleshotTimer, flags) == 8);

/// `struct vcpu_set_periodic_timer`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct SetPeriodicTimer {
    /// ns.
    pub period_ns: u64,
}

/// `struct vcpu_runstate_info`: what a vCPU has done with its time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RunstateInfo {
    /// `RUNSTATE_*`: index in [`Self::time_ns`].
    pub state: i32,
    /// System time when the vCPU entered it.
    pub state_entry_time_ns: u64,
    /// ns spent running, runnable, blocked and offline.
    pub time_ns: [u64; 4],
}
const _: () = assert!(size_of::<RunstateInfo>() == 48);
const _: () = assert!(offset_of!(RunstateInfo, time_ns) == 16);

/// `RUNSTATE_runnable` of [`RunstateInfo::time_ns`].
pub const RUNSTATE_RUNNABLE: usize = 1;
/// `RUNSTATE_offline` of [`RunstateInfo::time_ns`].
pub const RUNSTATE_OFFLINE: usize = 3;

/// `PHYSDEVOP_set_iopl`.
pub const PHYSDEVOP_SET_IOPL: u32 = 6;

/// `struct physdev_set_iopl`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SetIopl {
    /// The I/O privilege level; a 64-bit PV kernel runs at 1.
    pub iopl: u32,
}

/// `XENVER_version`: `major << 16 | minor`.
pub const XENVER_VERSION: u32 = 0;
/// `XENVER_extraversion`: a string of [`EXTRAVERSION_LEN`] bytes.
pub const XENVER_EXTRAVERSION: u32 = 1;
/// `XEN_EXTRAVERSION_LEN`.
pub const EXTRAVERSION_LEN: usize = 16;

/// `UVMF_INVLPG`: forget the old translation of this one address, on this CPU.
pub const UVMF_INVLPG: u32 = 2;

/// Offsets within `struct xencons_interface`, the page of a PV console.
pub mod xencons {
    /// `in[1024]`: what the user types.
    pub const IN: usize = 0;
    /// Bytes in `in`.
    pub const IN_SIZE: usize = 1024;
    /// `out[2048]`: what the guest prints.
    pub const OUT: usize = 1024;
    /// Bytes in `out`.
    pub const OUT_SIZE: usize = 2048;
    /// `in_cons`, moved by the guest.
    pub const IN_CONS: usize = 3072;
    /// `in_prod`, moved by the console daemon.
    pub const IN_PROD: usize = 3076;
    /// `out_cons`, moved by the console daemon.
    pub const OUT_CONS: usize = 3080;
    /// `out_prod`, moved by the guest.
    pub const OUT_PROD: usize = 3084;
}

/// `XEN_CPUID_LEAF(0x3)` above the hypervisor's base leaf: how the domain's TSC behaves.
pub const CPUID_TIME: u32 = 3;
/// Bit of EAX of [`CPUID_TIME`]: the TSC is emulated.
pub const CPUID_TIME_VTSC: u32 = 1 << 0;

// What xen-sys gives was generated elsewhere: check what the kernel relies on.
const _: () = assert!(size_of::<start_info>() == 1168);
const _: () = assert!(offset_of!(start_info, shared_info) == 40);
const _: () = assert!(offset_of!(start_info, flags) == 48);
const _: () = assert!(offset_of!(start_info, console) == 72);
const _: () = assert!(offset_of!(start_info, pt_base) == 88);
const _: () = assert!(offset_of!(start_info, mfn_list) == 104);
const _: () = assert!(offset_of!(start_info, cmd_line) == 128);
const _: () = assert!(size_of::<vcpu_time_info>() == 32);
const _: () = assert!(offset_of!(vcpu_time_info, tsc_timestamp) == 8);
const _: () = assert!(offset_of!(vcpu_time_info, system_time) == 16);
const _: () = assert!(offset_of!(vcpu_time_info, tsc_to_system_mul) == 24);
const _: () = assert!(offset_of!(vcpu_time_info, tsc_shift) == 28);
const _: () = assert!(size_of::<vcpu_info>() == 64);
const _: () = assert!(offset_of!(vcpu_info, evtchn_upcall_mask) == 1);
const _: () = assert!(offset_of!(vcpu_info, arch) == 16);
const _: () = assert!(offset_of!(vcpu_info, time) == 32);
const _: () = assert!(offset_of!(shared_info, evtchn_pending) == 2048);
const _: () = assert!(offset_of!(shared_info, evtchn_mask) == 2560);
const _: () = assert!(offset_of!(shared_info, wc_version) == 3072);
const _: () = assert!(offset_of!(shared_info, wc_sec_hi) == 3084);
const _: () = assert!(size_of::<vcpu_guest_context>() == 5168);
const _: () = assert!(offset_of!(vcpu_guest_context, user_regs) == 520);
const _: () = assert!(offset_of!(vcpu_guest_context, user_regs.cs) == 520 + 136);
const _: () = assert!(offset_of!(vcpu_guest_context, trap_ctxt) == 720);
const _: () = assert!(offset_of!(vcpu_guest_context, ctrlreg) == 4984);
const _: () = assert!(size_of::<sched_watchdog>() == 8);
const _: () = assert!(size_of::<evtchn_bind_ipi>() == 8);
const _: () = assert!(size_of::<trap_info>() == 16);
const _: () = assert!(size_of::<sched_poll>() == 24);
const _: () = assert!(size_of::<evtchn_bind_virq>() == 12);
const _: () = assert!(xencons::OUT_PROD + 4 <= PAGE_SIZE);
