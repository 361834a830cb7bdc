// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where frames are between two ports: chunks of memory that never cross a page.
//!
//! There are two sizes of them. Short frames have the small ones to themselves, many to a page, and the
//! lowest free chunk is always the next: Xen looks a page up once for all copies that follow each other
//! in it, so that frames which come in together should lie together.
//!
//! A frame is a chain of chunks, named by the first one, and lives until everybody who has to send it
//! has done so. All chunks exist from the start; taking and giving back is a bit.

use alloc::boxed::Box;
use core::slice;

use tdf_xen::abi::{Mfn, PAGE_SIZE};
use tdf_xen::grant::Local;
use tdf_xen::netif::Sums;

/// Bytes of a chunk: an ordinary frame fits into one, and two fit into a page.
pub const CHUNK: usize = 2048;
/// Bytes of a small chunk.
pub const SMALL: usize = 256;
/// One page in so many is for small chunks.
const SMALL_SHARE: usize = 16;
/// The end of a chain.
const END: u32 = u32::MAX;

/// A frame in the pool: its first chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameId(pub u32);

/// What is known of a chunk, and, of a first one, of its frame.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    /// The page that it is in.
    page: Mfn,
    next: u32,
    len: u32,
    info: FrameInfo,
    /// Where in the memory it begins.
    place: u32,
}

/// What goes with a frame from port to port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameInfo {
    /// How many have yet to send it.
    pub refs: u16,
    /// The port that it came in by.
    pub port: u8,
    /// Whether the sum of its TCP or UDP is that of the pseudo header only, and whether its sender
    /// vouches for it.
    pub sums: Sums,
}

/// A place for a part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The page.
    pub page: Mfn,
    /// Where in it.
    pub offset: u16,
    /// How many bytes.
    pub len: u16,
}

/// The pool.
#[derive(Debug)]
pub struct Pool {
    memory: *mut u8,
    chunks: Box<[Chunk]>,
    /// The first small chunk; all before it are large.
    small: u32,
    /// Free chunks, the large and the small ones.
    free: [Free; 2],
}

/// Chunks of one size that are free: a bit each.
#[derive(Debug)]
struct Free {
    bits: Box<[u64]>,
    /// No word before this one has a bit.
    first: usize,
    count: u32,
    /// The number of the first chunk, free or not.
    base: u32,
}

impl Free {
    /// All of `count` chunks from `base` on.
    fn all(base: usize, count: usize) -> Self {
        let word = |n: usize| match count - n * 64 {
            left @ ..64 => (1 << left) - 1,
            _ => u64::MAX,
        };
        let bits = (0..count.div_ceil(64)).map(word).collect();
        Self { bits, first: 0, count: count as u32, base: base as u32 }
    }

    /// Takes the lowest.
    #[inline]
    fn take(&mut self) -> Option<u32> {
        loop {
            let word = self.bits.get_mut(self.first)?;
            if *word != 0 {
                let bit = word.trailing_zeros();
                *word &= *word - 1;
                self.count -= 1;
                return Some(self.base.wrapping_add(self.first as u32 * 64).wrapping_add(bit));
            }
            self.first += 1;
        }
    }

    #[inline]
    fn give_back(&mut self, chunk: u32) {
        let n = chunk - self.base;
        let word = n as usize / 64;
        self.bits[word] |= 1 << (n % 64);
        self.first = self.first.min(word);
        self.count += 1;
    }
}

impl Pool {
    /// A pool of `pages` pages at `memory`, whose machine frames `frame` tells.
    ///
    /// # Safety
    /// The memory is aligned to a page, valid for as long as the pool is used, and nobody else's.
    pub unsafe fn new(memory: *mut u8, pages: usize, frame: impl Fn(usize) -> Mfn) -> Self {
        const LARGE: usize = PAGE_SIZE / CHUNK;
        const MANY: usize = PAGE_SIZE / SMALL;
        let large_pages = pages - pages / SMALL_SHARE;
        let small = large_pages * LARGE;
        let count = small + (pages - large_pages) * MANY;
        let chunk = |n: usize| Chunk {
            page: frame(if n < small { n / LARGE } else { large_pages + (n - small) / MANY }),
            next: END,
            len: 0,
            info: FrameInfo::default(),
            place: place(small, n) as u32,
        };
        let chunks = (0..count).map(chunk).collect();
        let free = [Free::all(0, small), Free::all(small, count - small)];
        Self { memory, chunks, small: small as u32, free }
    }

    /// Chunks that are free.
    pub fn available(&self) -> u32 {
        self.free.iter().map(|free| free.count).sum()
    }

    /// All chunks.
    pub fn total(&self) -> u32 {
        self.chunks.len() as u32
    }

    /// Large chunks, free or not.
    pub fn large(&self) -> u32 {
        self.small
    }

    /// How often frames have yet to be sent, all together. It looks at every chunk.
    pub fn refs(&self) -> u64 {
        self.chunks.iter().map(|chunk| u64::from(chunk.info.refs)).sum()
    }

    /// Room for a frame of `len` bytes, which is not 0; `None` if there is not enough.
    #[inline]
    pub fn take(&mut self, len: u32, info: FrameInfo) -> Option<FrameId> {
        let (free, needed) = match len as usize <= SMALL && self.free[1].count > 0 {
            true => (&mut self.free[1], 1),
            false => (&mut self.free[0], len.div_ceil(CHUNK as u32)),
        };
        if needed > free.count || len == 0 {
            return None;
        }
        let first = free.take()?;
        let mut last = first;
        for _ in 1..needed {
            let next = free.take()?; // They were counted.
            self.chunks[last as usize].next = next;
            last = next;
        }
        let chunk = &mut self.chunks[first as usize];
        (chunk.len, chunk.info) = (len, info);
        Some(FrameId(first))
    }

    /// Room for `len` bytes in one piece, from 1 to [`CHUNK`], and where it is. It is a frame when
    /// [`Self::describe`] has said so.
    #[inline(always)]
    pub fn take_piece(&mut self, len: u16) -> Option<(FrameId, Local)> {
        debug_assert!((1..=CHUNK).contains(&usize::from(len)));
        let [large, small] = &mut self.free;
        let short = if usize::from(len) <= SMALL { small.take() } else { None };
        let piece = short.or_else(|| large.take())?;
        let chunk = &self.chunks[piece as usize];
        let offset = (chunk.place as usize % PAGE_SIZE) as u16;
        Some((FrameId(piece), Local { frame: chunk.page, offset }))
    }

    /// The first bytes of a piece.
    #[inline]
    pub fn begin_of<const N: usize>(&self, piece: FrameId) -> &[u8; N] {
        const { assert!(N <= SMALL) };
        let place = self.chunks[piece.0 as usize].place as usize;
        // SAFETY: no chunk is shorter; as in `head`.
        unsafe { &*self.memory.add(place).cast() }
    }

    /// Makes a frame of a piece.
    #[inline]
    pub fn describe(&mut self, piece: FrameId, len: u16, info: FrameInfo) {
        let chunk = &mut self.chunks[piece.0 as usize];
        (chunk.len, chunk.info) = (len.into(), info);
    }

    /// Gives back a piece that is no frame.
    #[inline]
    pub fn release_piece(&mut self, piece: FrameId) {
        debug_assert_eq!(self.chunks[piece.0 as usize].next, END);
        self.free[usize::from(piece.0 >= self.small)].give_back(piece.0);
    }

    /// One of those who had to send the frame has done so.
    #[inline]
    pub fn release(&mut self, frame: FrameId) {
        let chunk = &mut self.chunks[frame.0 as usize];
        chunk.info.refs = chunk.info.refs.saturating_sub(1);
        if chunk.info.refs > 0 {
            return;
        }
        let free = &mut self.free[usize::from(frame.0 >= self.small)];
        let mut at = frame.0;
        while at != END {
            free.give_back(at);
            at = core::mem::replace(&mut self.chunks[at as usize].next, END);
        }
    }

    /// Bytes of the frame.
    #[inline]
    pub fn len(&self, frame: FrameId) -> u32 {
        self.chunks[frame.0 as usize].len
    }

    /// What goes with the frame.
    #[inline]
    pub fn info(&self, frame: FrameId) -> FrameInfo {
        self.chunks[frame.0 as usize].info
    }

    /// The same, to be changed.
    #[inline]
    pub fn info_mut(&mut self, frame: FrameId) -> &mut FrameInfo {
        &mut self.chunks[frame.0 as usize].info
    }

    /// Calls `each` for the places of `len` bytes of the frame from `offset` on.
    #[inline]
    pub fn pieces(&self, frame: FrameId, offset: u32, len: u32, mut each: impl FnMut(Piece)) {
        let mut at = frame.0;
        let mut skip = offset as usize;
        while skip >= CHUNK {
            at = self.chunks[at as usize].next;
            skip -= CHUNK;
        }
        let mut left = len as usize;
        while left > 0 && at != END {
            let chunk = &self.chunks[at as usize];
            let count = left.min(CHUNK - skip);
            let offset = (chunk.place as usize % PAGE_SIZE + skip) as u16;
            each(Piece { page: chunk.page, offset, len: count as u16 });
            left -= count;
            (skip, at) = (0, chunk.next);
        }
    }

    #[inline]
    fn bytes(&self, chunk: u32, len: usize) -> *mut u8 {
        let size = if chunk < self.small { CHUNK } else { SMALL };
        assert!(len <= size);
        let place = self.chunks[chunk as usize].place as usize;
        // SAFETY: `new`'s caller vouches for the memory of every chunk.
        unsafe { self.memory.add(place) }
    }

    /// The frame's first bytes: all of them, or a chunk full.
    #[inline]
    pub fn head(&self, frame: FrameId) -> &[u8] {
        let len = (self.len(frame) as usize).min(CHUNK);
        // SAFETY: the pool's own memory, borrowed as long as the pool is; Xen writes to it only during
        // a call, which no borrow outlives.
        unsafe { slice::from_raw_parts(self.bytes(frame.0, len), len) }
    }

    /// The same, to be changed.
    #[inline]
    pub fn head_mut(&mut self, frame: FrameId) -> &mut [u8] {
        let len = (self.len(frame) as usize).min(CHUNK);
        // SAFETY: as above.
        unsafe { slice::from_raw_parts_mut(self.bytes(frame.0, len), len) }
    }

    /// The frame's bytes, chunk by chunk.
    pub fn chunks(&self, frame: FrameId) -> impl Iterator<Item = &[u8]> {
        let (mut at, mut left) = (frame.0, self.len(frame) as usize);
        core::iter::from_fn(move || {
            if left == 0 || at == END {
                return None;
            }
            let len = left.min(CHUNK);
            // SAFETY: as above.
            let bytes = unsafe { slice::from_raw_parts(self.bytes(at, len), len) };
            (at, left) = (self.chunks[at as usize].next, left - len);
            Some(bytes)
        })
    }

    /// The frame's bytes, chunk by chunk, to be changed: calls `each` for all of them.
    pub fn for_each_chunk(&mut self, frame: FrameId, mut each: impl FnMut(&mut [u8])) {
        let (mut at, mut left) = (frame.0, self.len(frame) as usize);
        while left > 0 && at != END {
            let len = left.min(CHUNK);
            // SAFETY: as above, one at a time.
            each(unsafe { slice::from_raw_parts_mut(self.bytes(at, len), len) });
            (at, left) = (self.chunks[at as usize].next, left - len);
        }
    }

    /// A frame with the same bytes that nobody else has; `None` if there is no room.
    pub fn copy(&mut self, frame: FrameId) -> Option<FrameId> {
        let copy = self.take(self.len(frame), FrameInfo { refs: 1, ..self.info(frame) })?;
        let (mut from, mut to) = (frame.0, copy.0);
        let mut left = self.len(frame) as usize;
        while left > 0 {
            let len = left.min(CHUNK);
            // SAFETY: two different chunks of the pool.
            unsafe { self.bytes(from, len).copy_to_nonoverlapping(self.bytes(to, len), len) };
            (from, to) = (self.chunks[from as usize].next, self.chunks[to as usize].next);
            left -= len;
        }
        Some(copy)
    }
}

/// Where in the memory a chunk begins, of which the first `small` are large.
#[inline]
fn place(small: usize, chunk: usize) -> usize {
    match chunk.checked_sub(small) {
        None => chunk * CHUNK,
        Some(n) => small * CHUNK + n * SMALL,
    }
}

/// Memory for tests: pages, and their machine frames.
#[cfg(test)]
pub mod fake {
    use super::*;

    #[repr(align(4096))]
    #[derive(Clone)]
    struct Page(#[expect(dead_code, reason = "only its place counts")] [u8; PAGE_SIZE]);

    /// A pool and what it is made of.
    pub struct Memory {
        pages: Vec<Page>,
    }

    impl Memory {
        /// So many pages, the first of which has machine frame 1000.
        pub fn new(pages: usize) -> Self {
            Self { pages: vec![Page([0; PAGE_SIZE]); pages] }
        }

        /// Where the page with this machine frame is.
        pub fn page(&mut self, frame: Mfn) -> Option<*mut u8> {
            let at = frame.0.checked_sub(1000)? as usize;
            self.pages.get_mut(at).map(|page| (&raw mut *page).cast())
        }

        /// All of it as a pool.
        pub fn pool(&mut self) -> Pool {
            // SAFETY: the test keeps the memory as long as the pool, and uses it through the pool.
            unsafe {
                Pool::new(
                    self.pages.as_mut_ptr().cast(),
                    self.pages.len(),
                    |n| Mfn(1000 + n as u64),
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fake::Memory;
    use super::*;
    use proptest::prelude::*;

    const ONE: FrameInfo = FrameInfo { refs: 1, port: 0, sums: Sums::new(false, false) };

    fn read(pool: &Pool, frame: FrameId) -> Vec<u8> {
        pool.chunks(frame).flatten().copied().collect()
    }

    #[test]
    fn a_shared_frame_is_free_when_the_last_has_sent_it() {
        let mut memory = Memory::new(4);
        let mut pool = memory.pool();
        assert_eq!((pool.total(), pool.available()), (8, 8));
        let frame = pool.take(9000, FrameInfo { refs: 2, ..ONE }).unwrap();
        assert_eq!(pool.available(), 3);
        assert_eq!(pool.take(3 * CHUNK as u32 + 1, ONE), None);
        pool.release(frame);
        assert_eq!(pool.available(), 3);
        pool.release(frame);
        assert_eq!(pool.available(), 8);
        assert_eq!(pool.take(0, ONE), None);
    }

    #[test]
    fn short_frames_have_pages_of_their_own_until_those_are_full() {
        let mut memory = Memory::new(32);
        let mut pool = memory.pool();
        assert_eq!((pool.large(), pool.total()), (60, 60 + 32));
        let page = |pool: &Pool, frame| {
            let mut pages = Vec::new();
            pool.pieces(frame, 0, pool.len(frame), |piece| pages.push(piece.page));
            pages
        };
        let long = pool.take(SMALL as u32 + 1, ONE).unwrap();
        let short: Vec<_> = (0..33).map(|_| pool.take(SMALL as u32, ONE).unwrap()).collect();
        for (n, frame) in short[..32].iter().enumerate() {
            assert_eq!(page(&pool, *frame), [Mfn(1030 + n as u64 / 16)], "16 to a page");
        }
        assert_eq!(page(&pool, short[32]), page(&pool, long), "a large one when they are gone");
        short.into_iter().chain([long]).for_each(|frame| pool.release(frame));
        assert_eq!(pool.available(), pool.total());
    }

    proptest! {
        /// Frames keep their bytes, whatever else is taken and given back; no piece crosses a page,
        /// and no two frames share a byte.
        #[test]
        fn frames_do_not_disturb_each_other(
            steps in proptest::collection::vec(
                (prop_oneof![1u32..12_000, 1u32..300], any::<u8>(), any::<u16>()), 1..60)
        ) {
            let mut memory = Memory::new(17);
            let mut pool = memory.pool();
            let mut held: Vec<(FrameId, u32, u8)> = Vec::new();
            for (len, byte, which) in steps {
                if which % 3 == 0 && !held.is_empty() {
                    let (frame, ..) = held.swap_remove(usize::from(which) % held.len());
                    pool.release(frame);
                } else if let Some(frame) = pool.take(len, ONE) {
                    pool.for_each_chunk(frame, |bytes| bytes.fill(byte));
                    held.push((frame, len, byte));
                }
                let used: u32 = held.iter().map(|(_, len, _)| len.div_ceil(CHUNK as u32)).sum();
                prop_assert_eq!(pool.available() + used, pool.total());
                let mut places = std::collections::HashSet::new();
                for (frame, len, byte) in &held {
                    prop_assert_eq!(read(&pool, *frame), vec![*byte; *len as usize]);
                    let (mut total, mut whole) = (0, true);
                    pool.pieces(*frame, 0, *len, |piece| {
                        total += u32::from(piece.len);
                        whole &= usize::from(piece.offset) + usize::from(piece.len) <= PAGE_SIZE;
                        whole &= places.insert((piece.page, piece.offset));
                    });
                    prop_assert!(total == *len && whole);
                }
            }
        }

        #[test]
        fn pieces_of_a_part_are_those_of_the_whole(len in 1u32..12_000, from in 0u32..12_000, to in 0u32..12_000) {
            let mut memory = Memory::new(12);
            let mut pool = memory.pool();
            let (from, to) = (from.min(to) % len, (from.max(to) % len).max(from.min(to) % len));
            let frame = pool.take(len, ONE).unwrap();
            let spread = |from: u32, len: u32| {
                let mut bytes = Vec::new();
                pool.pieces(frame, from, len, |piece| {
                    bytes.extend((0..piece.len).map(|n| (piece.page, piece.offset + n)));
                });
                bytes
            };
            prop_assert_eq!(&spread(0, len)[from as usize..to as usize], spread(from, to - from));
        }

        #[test]
        fn a_copy_is_equal_and_apart(len in 1u32..9_000) {
            let mut memory = Memory::new(12);
            let mut pool = memory.pool();
            let frame = pool.take(len, FrameInfo { refs: 3, sums: Sums::new(true, false), ..ONE }).unwrap();
            let mut n = 0u8;
            pool.for_each_chunk(frame, |bytes| bytes.iter_mut().for_each(|byte| {
                n = n.wrapping_add(7);
                *byte = n;
            }));
            let copy = pool.copy(frame).unwrap();
            let bytes = read(&pool, frame);
            prop_assert_eq!(&read(&pool, copy), &bytes);
            prop_assert_eq!(pool.info(copy), FrameInfo { refs: 1, ..pool.info(frame) });
            pool.head_mut(copy)[0] ^= 1;
            prop_assert_eq!(read(&pool, frame), bytes);
        }
    }
}
