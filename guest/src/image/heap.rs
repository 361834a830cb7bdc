// SPDX-License-Identifier: MIT OR Apache-2.0
//! The heap: a fixed part of the image's own memory, and what else it is given.

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

/// The image's own part, and the other.
struct Heaps {
    own: Heap,
    more: Heap,
}

struct Locked(Mutex<Heaps>);

#[global_allocator]
static HEAP: Locked = Locked(Mutex::new(Heaps { own: Heap::empty(), more: Heap::empty() }));

/// Gives the allocator its memory. Called once, first.
pub fn init() {
    // SAFETY: nobody else uses `MEMORY`, which lives for ever; the heap was empty until now.
    unsafe { HEAP.0.lock().own.init(MEMORY.0.get().cast(), SIZE) }
}

/// Gives the allocator `size` more bytes at `memory`. Called once.
///
/// # Safety
/// The memory is nobody else's, for ever.
pub unsafe fn extend(memory: *mut u8, size: usize) {
    // SAFETY: the caller's promise.
    unsafe { HEAP.0.lock().more.init(memory, size) }
}

/// Bytes that are free.
pub fn free() -> usize {
    let heaps = HEAP.0.lock();
    heaps.own.free() + heaps.more.free()
}

// SAFETY: the heap gives out disjoint blocks of its memory that fit their layouts.
unsafe impl GlobalAlloc for Locked {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut heaps = self.0.lock();
        let block = match heaps.own.allocate_first_fit(layout) {
            Err(()) => heaps.more.allocate_first_fit(layout),
            block => block,
        };
        block.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            let own = MEMORY.0.get().cast::<u8>();
            let mut heaps = self.0.lock();
            let is_own = (own..own.wrapping_add(SIZE)).contains(&block.as_ptr());
            let heap = if is_own { &mut heaps.own } else { &mut heaps.more };
            // SAFETY: the caller got this block from `alloc`, of this heap, for this layout.
            unsafe { heap.deallocate(block, layout) }
        }
    }
}
