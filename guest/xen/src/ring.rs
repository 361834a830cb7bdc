// SPDX-License-Identifier: MIT OR Apache-2.0
//! Byte rings: a producer, a consumer, and memory between strangers.
//!
//! The PV console and xenstore are spoken through them; the switch gives its captured frames away by
//! one.
//!
//! Each side owns one free-running 32-bit index and only reads the other's. The owner keeps its
//! index in private memory and never reads it back from the page, and it checks the peer's with
//! every use: an index that claims more bytes than the ring holds is a [`RingFault`], never an
//! out-of-range access.

use core::fmt;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use crate::abi::{xencons, xenstore};

/// The peer's index claims what cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingFault {
    /// The producer's index.
    pub produced: u32,
    /// The consumer's.
    pub consumed: u32,
}

impl fmt::Display for RingFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { produced, consumed } = self;
        write!(
            f,
            "the ring's peer shows impossible indices ({produced} produced, {consumed} consumed)"
        )
    }
}

impl core::error::Error for RingFault {}

/// Where a ring's bytes and indices are.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    bytes: *mut u8,
    size: u32,
    produced: *mut u32,
    consumed: *mut u32,
}

impl Ring {
    /// A ring of `size` bytes at `bytes`. `None` if the size is no power of two.
    ///
    /// # Safety
    /// All three stay mapped while the ring is used, the indices are aligned, and both sides access
    /// everything atomically.
    pub const unsafe fn new(
        bytes: *mut u8,
        size: u32,
        produced: *mut u32,
        consumed: *mut u32,
    ) -> Option<Self> {
        if size.is_power_of_two() { Some(Self { bytes, size, produced, consumed }) } else { None }
    }

    /// The ring of requests, in the xenstore page at `page`.
    ///
    /// # Safety
    /// As for [`Self::console_out`].
    pub const unsafe fn store_requests(page: *mut u8) -> Self {
        // SAFETY: all offsets lie within the page.
        unsafe {
            Self {
                bytes: page.add(xenstore::REQ),
                size: xenstore::RING_SIZE as u32,
                produced: page.add(xenstore::REQ_PROD).cast(),
                consumed: page.add(xenstore::REQ_CONS).cast(),
            }
        }
    }

    /// The ring of replies and events, in the xenstore page at `page`.
    ///
    /// # Safety
    /// As for [`Self::console_out`].
    pub const unsafe fn store_replies(page: *mut u8) -> Self {
        // SAFETY: all offsets lie within the page.
        unsafe {
            Self {
                bytes: page.add(xenstore::RSP),
                size: xenstore::RING_SIZE as u32,
                produced: page.add(xenstore::RSP_PROD).cast(),
                consumed: page.add(xenstore::RSP_CONS).cast(),
            }
        }
    }

    /// The ring of what a guest prints, in the console page at `page`.
    ///
    /// # Safety
    /// `page` is aligned and stays mapped while the ring is used; both sides access it atomically.
    pub const unsafe fn console_out(page: *mut u8) -> Self {
        // SAFETY: all offsets lie within the page.
        unsafe {
            Self {
                bytes: page.add(xencons::OUT),
                size: xencons::OUT_SIZE as u32,
                produced: page.add(xencons::OUT_PROD).cast(),
                consumed: page.add(xencons::OUT_CONS).cast(),
            }
        }
    }

    /// The ring of what the user types, in the console page at `page`.
    ///
    /// # Safety
    /// As for [`Self::console_out`].
    pub const unsafe fn console_in(page: *mut u8) -> Self {
        // SAFETY: all offsets lie within the page.
        unsafe {
            Self {
                bytes: page.add(xencons::IN),
                size: xencons::IN_SIZE as u32,
                produced: page.add(xencons::IN_PROD).cast(),
                consumed: page.add(xencons::IN_CONS).cast(),
            }
        }
    }

    fn produced(&self) -> &AtomicU32 {
        // SAFETY: the constructor's caller vouches for the page.
        unsafe { AtomicU32::from_ptr(self.produced) }
    }

    fn consumed(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(self.consumed) }
    }

    /// The byte that `index` stands for; the size is a power of two.
    fn byte(&self, index: u32) -> &AtomicU8 {
        // SAFETY: as above, and the masked index is below the size.
        unsafe { AtomicU8::from_ptr(self.bytes.add((index & (self.size - 1)) as usize)) }
    }

    /// Bytes between the indices, if they can be true.
    fn used(&self, produced: u32, consumed: u32) -> Result<u32, RingFault> {
        let used = produced.wrapping_sub(consumed);
        if used > self.size { Err(RingFault { produced, consumed }) } else { Ok(used) }
    }
}

/// The end that writes.
#[derive(Debug)]
pub struct Producer {
    ring: Ring,
    produced: u32,
}

impl Producer {
    /// Goes on where the ring's producer stands.
    pub fn new(ring: Ring) -> Self {
        Self { ring, produced: ring.produced().load(Ordering::Relaxed) }
    }

    /// Bytes that the consumer has yet to take.
    ///
    /// # Errors
    /// [`RingFault`] if the consumer's index is impossible.
    pub fn pending(&self) -> Result<u32, RingFault> {
        self.ring.used(self.produced, self.ring.consumed().load(Ordering::Acquire))
    }

    /// Bytes that can be written now.
    ///
    /// # Errors
    /// [`RingFault`] if the consumer's index is impossible.
    pub fn room(&self) -> Result<u32, RingFault> {
        Ok(self.ring.size - self.pending()?)
    }

    /// Writes as many bytes as there is room for; returns how many.
    ///
    /// # Errors
    /// [`RingFault`] if the consumer's index is impossible; nothing is written then.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, RingFault> {
        let room = self.room()? as usize;
        let count = bytes.len().min(room);
        for byte in &bytes[..count] {
            self.ring.byte(self.produced).store(*byte, Ordering::Relaxed);
            self.produced = self.produced.wrapping_add(1);
        }
        // SeqCst: the caller's notification must not overtake it, nor its later look at `consumed`.
        self.ring.produced().store(self.produced, Ordering::SeqCst);
        Ok(count)
    }
}

/// The end that reads.
#[derive(Debug)]
pub struct Consumer {
    ring: Ring,
    consumed: u32,
}

impl Consumer {
    /// Goes on where the ring's consumer stands.
    pub fn new(ring: Ring) -> Self {
        Self { ring, consumed: ring.consumed().load(Ordering::Relaxed) }
    }

    /// Whether there is not a byte of room for the producer, who may be waiting for some.
    ///
    /// # Errors
    /// [`RingFault`] if the producer's index is impossible.
    pub fn is_full(&self) -> Result<bool, RingFault> {
        let produced = self.ring.produced().load(Ordering::Acquire);
        Ok(self.ring.used(produced, self.consumed)? == self.ring.size)
    }

    /// Takes as many bytes as there are and fit; returns how many.
    ///
    /// # Errors
    /// [`RingFault`] if the producer's index is impossible; nothing is taken then.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, RingFault> {
        let produced = self.ring.produced().load(Ordering::Acquire);
        let used = self.ring.used(produced, self.consumed)? as usize;
        let count = buffer.len().min(used);
        for byte in &mut buffer[..count] {
            *byte = self.ring.byte(self.consumed).load(Ordering::Relaxed);
            self.consumed = self.consumed.wrapping_add(1);
        }
        self.ring.consumed().store(self.consumed, Ordering::SeqCst);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::PAGE_SIZE;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[repr(align(4096))]
    struct Page([u8; PAGE_SIZE]);

    /// A console page whose four indices start at `at`.
    fn page(at: u32) -> Box<Page> {
        let mut page = Box::new(Page([0; PAGE_SIZE]));
        for offset in [xencons::IN_CONS, xencons::IN_PROD, xencons::OUT_CONS, xencons::OUT_PROD] {
            page.0[offset..offset + 4].copy_from_slice(&at.to_ne_bytes());
        }
        page
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(Vec<u8>),
        Read(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..3000).prop_map(Step::Write),
            (0usize..3000).prop_map(Step::Read),
        ];
        proptest::collection::vec(step, 0..30)
    }

    proptest! {
        /// Behaves as a queue of bounded length, wherever the indices stand, 2^32 included.
        #[test]
        fn it_is_a_bounded_queue(
            start in prop_oneof![any::<u32>(), u32::MAX - 4096..=u32::MAX], input: bool, steps in steps()
        ) {
            let mut page = page(start);
            let at = page.0.as_mut_ptr();
            // SAFETY: the page outlives both ends.
            let ring = unsafe { if input { Ring::console_in(at) } else { Ring::console_out(at) } };
            let size = if input { xencons::IN_SIZE } else { xencons::OUT_SIZE };
            let (mut producer, mut consumer) = (Producer::new(ring), Consumer::new(ring));
            let mut model = VecDeque::new();
            for step in steps {
                match step {
                    Step::Write(bytes) => {
                        let count = producer.write(&bytes).unwrap();
                        prop_assert_eq!(count, bytes.len().min(size - model.len()));
                        model.extend(&bytes[..count]);
                    }
                    Step::Read(most) => {
                        let mut buffer = vec![0; most];
                        let count = consumer.read(&mut buffer).unwrap();
                        prop_assert_eq!(count, most.min(model.len()));
                        prop_assert_eq!(&buffer[..count], model.drain(..count).collect::<Vec<_>>());
                    }
                }
                prop_assert_eq!(producer.pending().unwrap() as usize, model.len());
            }
        }

        /// Whatever the peer writes into its index, nothing is written or read past the ring.
        #[test]
        fn an_impossible_index_is_a_fault_and_changes_nothing(start: u32, lie: u32) {
            let mut page = page(start);
            let at = page.0.as_mut_ptr();
            // SAFETY: the page outlives both ends.
            let ring = unsafe { Ring::console_out(at) };
            let (mut producer, mut consumer) = (Producer::new(ring), Consumer::new(ring));
            let size = xencons::OUT_SIZE as u32;

            ring.consumed().store(lie, Ordering::SeqCst);
            let possible = start.wrapping_sub(lie) <= size;
            prop_assert_eq!(producer.write(b"x").is_ok(), possible);
            if !possible {
                prop_assert_eq!(ring.produced().load(Ordering::SeqCst), start);
            }

            ring.produced().store(lie, Ordering::SeqCst);
            let possible = lie.wrapping_sub(start) <= size;
            prop_assert_eq!(consumer.read(&mut [0; 8]).is_ok(), possible);
        }
    }

    #[test]
    fn only_a_power_of_two_is_a_size() {
        let at = core::ptr::null_mut();
        for (size, good) in [(0, false), (1, true), (4096, true), (12_288, false)] {
            // SAFETY: the ring is not used.
            let ring = unsafe { Ring::new(at, size, at.cast(), at.cast()) };
            assert_eq!(ring.is_some(), good, "{size}");
        }
    }

    #[test]
    fn bytes_cross_threads_in_order() {
        const COUNT: u32 = 100_000;
        struct Shared(Ring);
        // SAFETY: each end is used by one thread; the indices are atomic.
        unsafe impl Sync for Shared {}

        let mut page = page(u32::MAX - 5_000);
        // SAFETY: the page outlives the scope.
        let ring = Shared(unsafe { Ring::console_out(page.0.as_mut_ptr()) });
        let ring = &ring;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut producer = Producer::new(ring.0);
                for n in 0..COUNT {
                    while producer.write(&[(n % 251) as u8]).unwrap() == 0 {
                        std::thread::yield_now();
                    }
                }
            });
            let mut consumer = Consumer::new(ring.0);
            let mut n = 0;
            while n < COUNT {
                let mut buffer = [0; 100];
                let count = consumer.read(&mut buffer).unwrap();
                for byte in &buffer[..count] {
                    assert_eq!(u32::from(*byte), n % 251);
                    n += 1;
                }
                if count == 0 {
                    std::thread::yield_now();
                }
            }
        });
    }
}
