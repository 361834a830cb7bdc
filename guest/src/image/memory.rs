// SPDX-License-Identifier: MIT OR Apache-2.0
//! The pages that this kernel shares: where they are and how they become visible.

use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};

use tdf_guest::machine::Machine;
use tdf_guest::paging::{self, Mapped, PagingError, Start, Tables};
use tdf_xen::abi::{
    HYPERVISOR_VIRT_START, Mfn, MmuUpdate, PAGE_SIZE, Pfn, Vcpu, shared_info, start_info,
};
use tdf_xen::clock::{TimeArea, WallArea};
use tdf_xen::evtchn::{Events, Upcalls};
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

/// The summary of the events of `vcpu`.
pub fn upcalls(vcpu: Vcpu) -> Upcalls {
    // SAFETY: in the shared info page, which is mapped for ever.
    unsafe { Upcalls::new(&raw mut (*shared()).vcpu_info[vcpu.0 as usize]) }
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

/// The page tables of the start of day, and the frames that may become more of them.
struct Own {
    base: u64,
    frames: *const u64,
}

impl Own {
    fn address(&self, page: Pfn) -> u64 {
        self.base + page.0 * PAGE_SIZE as u64
    }
}

impl Tables for Own {
    fn frame(&self, page: Pfn) -> Mfn {
        // SAFETY: `map_all`, which makes this, promises pages of the domain, which the list has.
        Mfn(unsafe { ptr::read_volatile(self.frames.add(page.0 as usize)) })
    }

    fn read(&self, table: Mfn, index: u64) -> u64 {
        let pages: *const u64 = ptr::with_exposed_provenance(HYPERVISOR_VIRT_START as usize);
        // SAFETY: the frame is one of a page table, which Xen's table names, and which is mapped.
        unsafe {
            let page = Pfn(ptr::read_volatile(pages.add(table.0 as usize)));
            let table: *const u64 = ptr::with_exposed_provenance(self.address(page) as usize);
            ptr::read_volatile(table.add(index as usize))
        }
    }

    fn prepare(&mut self, page: Pfn, index: u64, entry: u64) {
        let table: *mut u64 = ptr::with_exposed_provenance_mut(self.address(page) as usize);
        // SAFETY: the trait promises a mapped page that nobody uses.
        unsafe { ptr::write_volatile(table.add(index as usize), entry) }
    }

    fn protect(&mut self, page: Pfn) -> Result<(), XenError> {
        let flags = paging::WRITABLE & !PageTableFlags::WRITABLE.bits();
        let entry = paging::entry(self.frame(page), flags);
        // SAFETY: nobody uses the page but as a table from now on.
        unsafe { Native.update_va_mapping(self.address(page) as usize, entry) }
    }

    fn install(&mut self, table: Mfn, index: u64, entry: u64) -> Result<(), XenError> {
        let ptr = table.0 * PAGE_SIZE as u64 + index * size_of::<u64>() as u64;
        // SAFETY: nothing was mapped by this entry so far.
        unsafe { Native.mmu_update(&[MmuUpdate { ptr, val: entry }]) }
    }
}

/// Where the list of machine frames is, and how many it has, once [`spare`] has been called.
static FRAMES: (AtomicUsize, AtomicUsize) = (AtomicUsize::new(0), AtomicUsize::new(0));

/// The machine frame of the page at `at`, once all memory is mapped; `None` if it is not the domain's.
pub fn frame_of(at: *const u8) -> Option<Mfn> {
    let base = VirtAddr::from_ptr(&raw const VIRT_BASE).as_u64() as usize;
    let page = at.addr().checked_sub(base)? / PAGE_SIZE;
    if page >= FRAMES.1.load(Ordering::Relaxed) {
        return None;
    }
    let list: *const u64 = ptr::with_exposed_provenance(FRAMES.0.load(Ordering::Relaxed));
    // SAFETY: the list has an entry for every page of the domain.
    Some(Mfn(unsafe { ptr::read_volatile(list.add(page)) }))
}

/// Maps `frames` of Xen's, one after another, at `at`.
///
/// # Safety
/// The address space is the caller's, and its page tables exist.
pub unsafe fn map_frames(at: usize, frames: &[u64]) -> Result<*mut u8, XenError> {
    for (n, frame) in frames.iter().enumerate() {
        let entry = paging::entry(Mfn(*frame), paging::WRITABLE);
        // SAFETY: the caller's promise.
        unsafe { Native.update_va_mapping(at + n * PAGE_SIZE, entry)? };
    }
    Ok(ptr::with_exposed_provenance_mut(at))
}

/// All memory that nobody uses, and some address space.
pub struct Spare {
    /// Where it begins.
    pub memory: *mut u8,
    /// How many pages it has.
    pub pages: usize,
    /// The first of [`paging::WINDOW_PAGES`] pages of address space for the pages of others.
    pub window: usize,
    first: u64,
    frames: *const u64,
}

impl Spare {
    /// The machine frame of one of the pages.
    pub fn frame(&self, page: usize) -> Mfn {
        assert!(page < self.pages);
        // SAFETY: the list has an entry for every page of the domain.
        Mfn(unsafe { ptr::read_volatile(self.frames.add(self.first as usize + page)) })
    }
}

/// Maps all of the domain's memory.
///
/// # Safety
/// `info` is the start of day page. Called once.
pub unsafe fn spare(info: *const start_info) -> Result<Spare, PagingError> {
    let base = VirtAddr::from_ptr(&raw const VIRT_BASE).as_u64();
    // SAFETY: the caller's promise.
    let (info, root) = unsafe { (&*info, page_tables(info)) };
    // Behind the page tables there is the stack that Xen started the kernel on.
    let tables = (info.pt_base - base) / PAGE_SIZE as u64;
    let spare = Pfn(tables + info.nr_pt_frames + 1);
    let frames = ptr::with_exposed_provenance(info.mfn_list as usize);
    FRAMES.0.store(info.mfn_list as usize, Ordering::Relaxed);
    FRAMES.1.store(info.nr_pages as usize, Ordering::Relaxed);
    let start = Start { base, pages: info.nr_pages, root, spare };
    let Mapped { free, window } = paging::map_all(&mut Own { base, frames }, start)?;
    Ok(Spare {
        memory: ptr::with_exposed_provenance_mut((base + free.start * PAGE_SIZE as u64) as usize),
        pages: (free.end - free.start) as usize,
        window: window as usize,
        first: free.start,
        frames,
    })
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
