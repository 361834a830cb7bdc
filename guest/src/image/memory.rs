// SPDX-License-Identifier: MIT OR Apache-2.0
//! The pages that this kernel shares: where they are and how they become visible.

use core::cell::UnsafeCell;
use core::ptr;

use tdf_guest::machine::Machine;
use tdf_xen::abi::{HYPERVISOR_VIRT_START, Mfn, PAGE_SIZE, Pfn, Vcpu, shared_info, start_info};
use tdf_xen::clock::{TimeArea, WallArea};
use tdf_xen::evtchn::Events;
use tdf_xen::hypercall::{Xen, XenError};
use x86_64::structures::paging::PageTableFlags;
use x86_64::{PhysAddr, VirtAddr};

use super::xen::Native;

unsafe extern "C" {
    /// A page of the image, over which the shared info page is mapped.
    static SHARED_INFO: UnsafeCell<shared_info>;
    /// Where the image, and with it pseudo-physical memory, begins.
    static VIRT_BASE: u8;
}

/// The shared info page; a page of zeros until [`machine`] has mapped it.
pub fn shared() -> *mut shared_info {
    UnsafeCell::raw_get(&raw const SHARED_INFO)
}

/// Maps the shared info page.
///
/// # Safety
/// `info` is the start of day page.
pub unsafe fn map_shared(info: *const start_info) -> Result<(), XenError> {
    // SAFETY: the caller's promise.
    let frame = PhysAddr::new(unsafe { (*info).shared_info });
    let flags = PageTableFlags::PRESENT
        | PageTableFlags::WRITABLE
        | PageTableFlags::ACCESSED
        | PageTableFlags::DIRTY;
    // SAFETY: the page is there to be replaced.
    unsafe { Native.update_va_mapping(shared().expose_provenance(), frame.as_u64() | flags.bits()) }
}

/// The machine as `vcpu` sees it, on the shared info page; the caller runs on that vCPU.
pub fn machine(vcpu: Vcpu) -> Result<Machine<'static, Native>, XenError> {
    let shared = shared();
    // SAFETY: the page is mapped for ever. The records in it are Xen's, which keeps the version
    // protocol and accesses the bitmaps atomically.
    unsafe {
        Machine::new(
            &Native,
            vcpu,
            TimeArea::new(&raw mut (*shared).vcpu_info[vcpu.0 as usize].time),
            WallArea::new(shared),
            Events::new(
                (&raw mut (*shared).evtchn_pending).cast(),
                (&raw mut (*shared).evtchn_mask).cast(),
            ),
        )
    }
}

/// Keeps `vcpu`, which does not run yet, from ever being given an upcall.
pub fn mask_upcalls(vcpu: Vcpu) {
    // SAFETY: in the shared info page; Xen accesses the byte atomically.
    unsafe {
        let info = &raw mut (*shared()).vcpu_info[vcpu.0 as usize];
        ptr::write_volatile(&raw mut (*info).evtchn_upcall_mask, 1);
    }
}

/// The machine frame of the page tables.
///
/// # Safety
/// `info` is the start of day page.
pub unsafe fn page_tables(info: *const start_info) -> Mfn {
    // SAFETY: the caller's promise; the list has an entry for each frame of the start of day.
    unsafe {
        let base = VirtAddr::from_ptr(&raw const VIRT_BASE);
        let pfn = (VirtAddr::new((*info).pt_base) - base) / PAGE_SIZE as u64;
        let list: *const u64 = ptr::with_exposed_provenance((*info).mfn_list as usize);
        Mfn(ptr::read_volatile(list.add(pfn as usize)))
    }
}

/// The kernel's command line, up to its NUL.
///
/// # Safety
/// `info` is the start of day page.
pub unsafe fn command_line(info: *const start_info) -> &'static [u8] {
    // SAFETY: the caller's promise; the page stays mapped and is written by nobody.
    let line = unsafe { &*(&raw const (*info).cmd_line).cast::<[u8; 1024]>() };
    line.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Where the page with machine frame `frame` is mapped since the start of day.
///
/// The table from machine to pseudo-physical frames is Xen's and covers the whole machine; what it
/// says is only believed if the domain's own list says the same the other way round. `None` if it is
/// no frame of the start of day, which ends at its page tables.
///
/// # Safety
/// `info` is the start of day page.
pub unsafe fn mapped_at_start(info: *const start_info, frame: Mfn) -> Option<*mut u8> {
    // SAFETY: the caller's promise.
    let info = unsafe { &*info };
    let table: *const u64 = ptr::with_exposed_provenance(HYPERVISOR_VIRT_START as usize);
    let base = VirtAddr::from_ptr(&raw const VIRT_BASE);
    let end = VirtAddr::new(info.pt_base);
    // SAFETY: Xen maps its table for every PV guest; the frame is one that Xen named.
    let pfn = Pfn(unsafe { ptr::read_volatile(table.add(frame.0 as usize)) });
    let address = base + pfn.0.checked_mul(PAGE_SIZE as u64)?;
    if pfn.0 >= info.nr_pages || address >= end {
        return None;
    }
    let list: *const u64 = ptr::with_exposed_provenance(info.mfn_list as usize);
    // SAFETY: the list has an entry for each of `nr_pages` frames.
    let back = Mfn(unsafe { ptr::read_volatile(list.add(pfn.0 as usize)) });
    (back == frame).then(|| ptr::with_exposed_provenance_mut(address.as_u64() as usize))
}
