// SPDX-License-Identifier: MIT OR Apache-2.0
//! The heap: a fixed part of the image's own memory.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};

use linked_list_allocator::Heap;
use spin::Mutex;

/// Bytes of it: the readings of the longest self-test twice over, or rows and the other vCPUs' stacks.
const SIZE: usize = 512 * 1024;

#[repr(C, align(4096))]
struct Memory(UnsafeCell<[MaybeUninit<u8>; SIZE]>);

// SAFETY: touched by the allocator only, which is behind a lock.
unsafe impl Sync for Memory {}

static MEMORY: Memory = Memory(UnsafeCell::new([MaybeUninit::uninit(); SIZE]));

struct Locked(Mutex<Heap>);

#[global_allocator]
static HEAP: Locked = Locked(Mutex::new(Heap::empty()));

/// Gives the allocator its memory. Called once, first.
pub fn init() {
    // SAFETY: nobody else uses `MEMORY`, which lives for ever; the heap was empty until now.
    unsafe { HEAP.0.lock().init(MEMORY.0.get().cast(), SIZE) }
}

// SAFETY: the heap gives out disjoint blocks of its memory that fit their layouts.
unsafe impl GlobalAlloc for Locked {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.lock().allocate_first_fit(layout).map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            // SAFETY: the caller got this block from `alloc` for this layout.
            unsafe { self.0.lock().deallocate(block, layout) }
        }
    }
}
