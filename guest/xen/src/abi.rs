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
    __HYPERVISOR_event_channel_op as NR_EVENT_CHANNEL_OP,
    __HYPERVISOR_grant_table_op as NR_GRANT_TABLE_OP, __HYPERVISOR_mmu_update as NR_MMU_UPDATE,
    __HYPERVISOR_mmuext_op as NR_MMUEXT_OP, __HYPERVISOR_physdev_op as NR_PHYSDEV_OP,
    __HYPERVISOR_sched_op as NR_SCHED_OP, __HYPERVISOR_set_timer_op as NR_SET_TIMER_OP,
    __HYPERVISOR_set_trap_table as NR_SET_TRAP_TABLE,
    __HYPERVISOR_update_va_mapping as NR_UPDATE_VA_MAPPING, __HYPERVISOR_vcpu_op as NR_VCPU_OP,
    __HYPERVISOR_xen_version as NR_XEN_VERSION,
};
pub use xen_sys::{
    __HYPERVISOR_callback_op as NR_CALLBACK_OP, CONSOLEIO_write as CONSOLEIO_WRITE,
    EVTCHNOP_alloc_unbound as EVTCHNOP_ALLOC_UNBOUND,
    EVTCHNOP_bind_interdomain as EVTCHNOP_BIND_INTERDOMAIN, EVTCHNOP_bind_ipi as EVTCHNOP_BIND_IPI,
    EVTCHNOP_bind_virq as EVTCHNOP_BIND_VIRQ, EVTCHNOP_close as EVTCHNOP_CLOSE,
    EVTCHNOP_send as EVTCHNOP_SEND, FLAT_KERNEL_CS, FLAT_KERNEL_SS, SCHEDOP_block as SCHEDOP_BLOCK,
    SCHEDOP_poll as SCHEDOP_POLL, SCHEDOP_shutdown as SCHEDOP_SHUTDOWN,
    SCHEDOP_watchdog as SCHEDOP_WATCHDOG, SCHEDOP_yield as SCHEDOP_YIELD,
    SHUTDOWN_crash as SHUTDOWN_CRASH, SHUTDOWN_poweroff as SHUTDOWN_POWEROFF,
    SHUTDOWN_reboot as SHUTDOWN_REBOOT, SIF_INITDOMAIN, VGCF_IN_KERNEL, VIRQ_TIMER,
    XEN_ELFNOTE_ENTRY, XEN_ELFNOTE_GUEST_OS, XEN_ELFNOTE_GUEST_VERSION, XEN_ELFNOTE_HV_START_LOW,
    XEN_ELFNOTE_HYPERCALL_PAGE, XEN_ELFNOTE_L1_MFN_VALID, XEN_ELFNOTE_LOADER,
    XEN_ELFNOTE_PADDR_OFFSET, XEN_ELFNOTE_PAE_MODE, XEN_ELFNOTE_VIRT_BASE, XEN_ELFNOTE_XEN_VERSION,
    evtchn_bind_ipi, evtchn_bind_virq, evtchn_send, sched_poll, sched_shutdown, sched_watchdog,
    shared_info, start_info, trap_info, vcpu_guest_context, vcpu_info, vcpu_time_info,
};

/// For a guest that asks for what it may not have.
pub use xen_sys::__HYPERVISOR_domctl as NR_DOMCTL;

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
    /// A domain.
    DomId(u16)
);
number!(
    /// An entry of a domain's grant table: the name by which a peer uses a page of it.
    GrantRef(u32)
);
number!(
    /// What Xen calls a grant that this domain has mapped (`grant_handle_t`).
    GrantHandle(u32)
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

/// `DOMID_SELF`: the domain that asks.
pub const DOMID_SELF: DomId = DomId(0x7ff0);

/// `VCPUOP_initialise`: gives a vCPU its first registers.
pub const VCPUOP_INITIALISE: u32 = 0;
/// `VCPUOP_up`: lets a vCPU run.
pub const VCPUOP_UP: u32 = 1;
/// `VCPUOP_is_up`: whether a vCPU may run, and whether it exists.
pub const VCPUOP_IS_UP: u32 = 3;
/// `VCPUOP_get_runstate_info`.
pub const VCPUOP_GET_RUNSTATE_INFO: u32 = 4;
/// `VCPUOP_register_runstate_memory_area`.
pub const VCPUOP_REGISTER_RUNSTATE_AREA: u32 = 5;
/// `VCPUOP_set_periodic_timer`.
pub const VCPUOP_SET_PERIODIC_TIMER: u32 = 6;
/// `VCPUOP_stop_periodic_timer`: ends the 100 Hz tick that every PV vCPU starts with.
pub const VCPUOP_STOP_PERIODIC_TIMER: u32 = 7;
/// `VCPUOP_set_singleshot_timer`.
pub const VCPUOP_SET_SINGLESHOT_TIMER: u32 = 8;
/// `VCPUOP_stop_singleshot_timer`.
pub const VCPUOP_STOP_SINGLESHOT_TIMER: u32 = 9;

/// `VCPUOP_register_vcpu_time_memory_area`.
pub const VCPUOP_REGISTER_TIME_AREA: u32 = 13;

/// `struct vcpu_register_time_memory_area` and `struct vcpu_register_runstate_memory_area`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct RegisterArea {
    /// Where Xen is to write from now on.
    pub address: u64,
}

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

/// `CALLBACKOP_register`.
pub const CALLBACKOP_REGISTER: u32 = 0;
/// `CALLBACKTYPE_event`: the entry for events.
pub const CALLBACKTYPE_EVENT: u16 = 0;

/// `struct callback_register`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct CallbackRegister {
    /// `CALLBACKTYPE_*`.
    pub kind: u16,
    /// None.
    pub flags: u16,
    /// The entry.
    pub address: u64,
}
const _: () = assert!(size_of::<CallbackRegister>() == 16);

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

/// `struct evtchn_alloc_unbound`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct EvtchnAllocUnbound {
    /// [`DOMID_SELF`].
    pub dom: DomId,
    /// Who may bind to the port.
    pub remote: DomId,
    /// Written by Xen.
    pub port: Port,
}
const _: () = assert!(size_of::<EvtchnAllocUnbound>() == 8);

/// `struct evtchn_bind_interdomain`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct EvtchnBindInterdomain {
    /// Who has the other end.
    pub remote: DomId,
    /// The other end's number there.
    pub remote_port: Port,
    /// Written by Xen.
    pub local_port: Port,
}
const _: () = assert!(size_of::<EvtchnBindInterdomain>() == 12);
const _: () = assert!(offset_of!(EvtchnBindInterdomain, remote_port) == 4);

/// `struct evtchn_close`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct EvtchnClose {
    /// The port to give back.
    pub port: Port,
}

/// `GNTTABOP_map_grant_ref`.
pub const GNTTABOP_MAP_GRANT_REF: u32 = 0;
/// `GNTTABOP_unmap_grant_ref`.
pub const GNTTABOP_UNMAP_GRANT_REF: u32 = 1;
/// `GNTTABOP_setup_table`.
pub const GNTTABOP_SETUP_TABLE: u32 = 2;
/// `GNTTABOP_copy`.
pub const GNTTABOP_COPY: u32 = 5;
/// `GNTTABOP_query_size`.
pub const GNTTABOP_QUERY_SIZE: u32 = 6;

/// `GNTMAP_host_map`: at an address of the domain.
pub const GNTMAP_HOST_MAP: u32 = 1 << 1;
/// `GNTMAP_readonly`.
pub const GNTMAP_READONLY: u32 = 1 << 2;

/// `GTF_permit_access`: the entry grants access to its frame.
pub const GTF_PERMIT_ACCESS: u16 = 1;
/// `GTF_readonly`: not for writing.
pub const GTF_READONLY: u16 = 1 << 2;
/// `GTF_reading`, set by Xen: somebody has the frame mapped.
pub const GTF_READING: u16 = 1 << 3;
/// `GTF_writing`, set by Xen: somebody has the frame mapped for writing.
pub const GTF_WRITING: u16 = 1 << 4;

/// `struct grant_entry_v1`, as long as nobody else looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GrantEntry {
    /// `GTF_*`.
    pub flags: u16,
    /// Who may use it.
    pub domid: u16,
    /// Which frame.
    pub frame: u32,
}
const _: () = assert!(size_of::<GrantEntry>() == 8);
/// Entries in a page of the grant table.
pub const GRANTS_PER_PAGE: u32 = (PAGE_SIZE / size_of::<GrantEntry>()) as u32;
/// `GNTTAB_NR_RESERVED_ENTRIES`: the first references, which the toolstack fills.
pub const GRANTS_RESERVED: u32 = 8;

/// `struct gnttab_setup_table`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct GnttabSetupTable {
    /// [`DOMID_SELF`].
    pub dom: DomId,
    /// Frames that the table is to have.
    pub nr_frames: u32,
    /// Written by Xen: `GNTST_*`.
    pub status: i16,
    /// Where Xen writes the machine frames.
    pub frame_list: u64,
}
const _: () = assert!(size_of::<GnttabSetupTable>() == 24);
const _: () = assert!(offset_of!(GnttabSetupTable, frame_list) == 16);

/// `struct gnttab_query_size`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct GnttabQuerySize {
    /// [`DOMID_SELF`].
    pub dom: DomId,
    /// Written by Xen: frames that the table has.
    pub nr_frames: u32,
    /// Written by Xen: frames that it may have.
    pub max_nr_frames: u32,
    /// Written by Xen: `GNTST_*`.
    pub status: i16,
}
const _: () = assert!(size_of::<GnttabQuerySize>() == 16);

/// `struct gnttab_map_grant_ref`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct GnttabMapGrantRef {
    /// The address to map it at.
    pub host_addr: u64,
    /// `GNTMAP_*`.
    pub flags: u32,
    /// What to map.
    pub gref: GrantRef,
    /// Whose it is.
    pub dom: DomId,
    /// Written by Xen: `GNTST_*`.
    pub status: i16,
    /// Written by Xen.
    pub handle: GrantHandle,
    /// Written by Xen.
    pub dev_bus_addr: u64,
}
const _: () = assert!(size_of::<GnttabMapGrantRef>() == 32);
const _: () = assert!(offset_of!(GnttabMapGrantRef, dev_bus_addr) == 24);

/// `struct gnttab_unmap_grant_ref`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct GnttabUnmapGrantRef {
    /// The address that it is mapped at.
    pub host_addr: u64,
    /// 0.
    pub dev_bus_addr: u64,
    /// What mapping it gave.
    pub handle: GrantHandle,
    /// Written by Xen: `GNTST_*`.
    pub status: i16,
}
const _: () = assert!(size_of::<GnttabUnmapGrantRef>() == 24);

/// `struct gnttab_copy_ptr`: one end of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct GnttabCopyPtr {
    /// A grant reference of the domain, or a frame of it.
    pub page: u64,
    /// Whose it is.
    pub domid: DomId,
    /// Where in the page.
    pub offset: u16,
}
const _: () = assert!(size_of::<GnttabCopyPtr>() == 16);
/// `GNTCOPY_source_gref`: the source is a grant.
pub const GNTCOPY_SOURCE_GREF: u16 = 1 << 0;
/// `GNTCOPY_dest_gref`: the destination is a grant.
pub const GNTCOPY_DEST_GREF: u16 = 1 << 1;

/// `MMUEXT_PIN_L1_TABLE`; those for the higher levels follow.
pub const MMUEXT_PIN_L1_TABLE: u32 = 0;
/// `MMUEXT_UNPIN_TABLE`.
pub const MMUEXT_UNPIN_TABLE: u32 = 4;
/// `MMUEXT_TLB_FLUSH_LOCAL`.
pub const MMUEXT_TLB_FLUSH_LOCAL: u32 = 6;

/// `struct mmu_update`: what an entry of a page table is to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct MmuUpdate {
    /// Machine address of the entry; its low bits are the kind of update, 0 for an ordinary one.
    pub ptr: u64,
    /// The entry.
    pub val: u64,
}
const _: () = assert!(size_of::<MmuUpdate>() == 16);

/// `struct mmuext_op`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct MmuextOp {
    /// `MMUEXT_*`.
    pub cmd: u32,
    /// A frame or an address.
    pub arg1: u64,
    /// A number or an address.
    pub arg2: u64,
}
const _: () = assert!(size_of::<MmuextOp>() == 24);
const _: () = assert!(offset_of!(MmuextOp, arg1) == 8);

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

/// Offsets within `struct xenstore_domain_interface`, the page by which a guest reaches xenstore.
pub mod xenstore {
    /// `req[1024]`: requests.
    pub const REQ: usize = 0;
    /// `rsp[1024]`: replies, and watch events.
    pub const RSP: usize = 1024;
    /// Bytes in each.
    pub const RING_SIZE: usize = 1024;
    /// `req_cons`, moved by the daemon.
    pub const REQ_CONS: usize = 2048;
    /// `req_prod`, moved by the guest.
    pub const REQ_PROD: usize = 2052;
    /// `rsp_cons`, moved by the guest.
    pub const RSP_CONS: usize = 2056;
    /// `rsp_prod`, moved by the daemon.
    pub const RSP_PROD: usize = 2060;
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
