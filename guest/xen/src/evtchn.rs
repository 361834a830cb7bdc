// SPDX-License-Identifier: MIT OR Apache-2.0
//! Event channels by polling: which ports are pending, and clearing them.
//!
//! The guest takes no upcall while it runs. Ports stay masked; `SCHEDOP_POLL` wakes on masked ports
//! too, and the two-level bitmaps in the shared info page say what happened. But it looks at each port
//! that it is given: who has many of them unmasks them all, and sleeps in `SCHEDOP_BLOCK`, which takes
//! an upcall on its way back, with an entry that does nothing. What happened is read as before.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::abi::{Port, vcpu_info};

/// Words in each bitmap of the two-level ABI.
pub const WORDS: usize = 64;

/// The pending and the mask bitmap of a domain.
#[derive(Clone, Copy, Debug)]
pub struct Events {
    pending: *mut u64,
    mask: *mut u64,
}

impl Events {
    /// The bitmaps in a shared info page, or a test's.
    ///
    /// # Safety
    /// Both point to [`WORDS`] aligned words that stay mapped while this value is used, and that
    /// everybody else accesses atomically.
    pub const unsafe fn new(pending: *mut u64, mask: *mut u64) -> Self {
        Self { pending, mask }
    }

    fn word(map: *mut u64, index: usize) -> Option<&'static AtomicU64> {
        // SAFETY: `new`'s caller vouches for WORDS words at `map`, and `index` is one of them.
        (index < WORDS).then(|| unsafe { AtomicU64::from_ptr(map.add(index)) })
    }

    /// Masks every port, so that no event ever asks for an upcall.
    pub fn mask_all(&self) {
        for word in (0..WORDS).filter_map(|i| Self::word(self.mask, i)) {
            word.store(u64::MAX, Ordering::SeqCst);
        }
    }

    /// Lets the events of every port count for upcalls. One that is pending already does not.
    pub fn unmask_all(&self) {
        for word in (0..WORDS).filter_map(|i| Self::word(self.mask, i)) {
            word.store(0, Ordering::SeqCst);
        }
    }

    /// Whether an event is pending on `port`, which is cleared by asking.
    ///
    /// Cleared before the event is handled: one that arrives meanwhile is seen the next time. A
    /// port beyond the two-level range is never pending.
    pub fn take(&self, port: Port) -> bool {
        let (word, bit) = (port.0 as usize / 64, 1u64 << (port.0 % 64));
        Self::word(self.pending, word)
            .is_some_and(|w| w.fetch_and(!bit, Ordering::SeqCst) & bit != 0)
    }

    /// Clears the pending events of all ports up to `last`, and of those in the same word, and names
    /// the ports that had one, each before it is handled.
    ///
    /// A word without events costs one read: cheaper than asking for each of many ports.
    pub fn take_up_to(&self, last: Port, mut each: impl FnMut(Port)) {
        let words = 0..=last.0 as usize / 64;
        for (index, word) in words.map_while(|i| Some((i, Self::word(self.pending, i)?))) {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = word.swap(0, Ordering::SeqCst);
            while bits != 0 {
                each(Port((index * 64) as u32 + bits.trailing_zeros()));
                bits &= bits - 1;
            }
        }
    }
}

/// A vCPU's own summary of its events, which decides about upcalls.
#[derive(Clone, Copy, Debug)]
pub struct Upcalls(*mut vcpu_info);

impl Upcalls {
    /// That in the record of a vCPU.
    ///
    /// # Safety
    /// It stays mapped while this value is used, and everybody else accesses it atomically.
    pub const unsafe fn new(info: *mut vcpu_info) -> Self {
        Self(info)
    }

    /// Keeps upcalls away.
    pub fn mask(&self) {
        // SAFETY: `new`'s caller vouches for the record.
        let mask = unsafe { AtomicU8::from_ptr(&raw mut (*self.0).evtchn_upcall_mask) };
        mask.store(1, Ordering::SeqCst);
    }

    /// Forgets that there were events; to be done before the bitmaps are looked at.
    pub fn clear(&self) {
        // SAFETY: as above.
        let (pending, words) = unsafe {
            (
                AtomicU8::from_ptr(&raw mut (*self.0).evtchn_upcall_pending),
                AtomicU64::from_ptr(&raw mut (*self.0).evtchn_pending_sel),
            )
        };
        pending.store(0, Ordering::SeqCst);
        words.swap(0, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::btree_set;
    use proptest::prelude::*;

    /// Bitmaps in plain memory, and the events on them.
    struct Page {
        pending: Box<[u64; WORDS]>,
        mask: Box<[u64; WORDS]>,
    }

    impl Page {
        fn new(ports: impl IntoIterator<Item = u32>) -> Self {
            let mut pending = Box::new([0; WORDS]);
            for port in ports {
                pending[port as usize / 64] |= 1 << (port % 64);
            }
            Self { pending, mask: Box::new([0; WORDS]) }
        }

        fn events(&mut self) -> Events {
            // SAFETY: the page outlives every use below, on one thread.
            unsafe { Events::new(self.pending.as_mut_ptr(), self.mask.as_mut_ptr()) }
        }
    }

    #[test]
    fn taking_a_port_clears_it_and_no_other() {
        let mut page = Page::new([63, 64]);
        let events = page.events();
        assert!(events.take(Port(64)));
        assert!(!events.take(Port(64)));
        assert!(events.take(Port(63)));
        for port in [4096, u32::MAX] {
            assert!(!events.take(Port(port)), "{port} is out of range");
        }
    }

    #[test]
    fn masking_covers_every_port_and_touches_no_pending_bit() {
        let mut page = Page::new([5]);
        page.events().mask_all();
        assert_eq!(*page.mask, [u64::MAX; WORDS]);
        assert_eq!((page.pending[0], page.pending[1]), (1 << 5, 0));
        page.events().unmask_all();
        assert_eq!((*page.mask, page.pending[0]), ([0; WORDS], 1 << 5));
    }

    #[test]
    fn upcalls_are_masked_and_forgotten_apart() {
        // SAFETY: numbers, of which all-zero is a value.
        let mut info: vcpu_info = unsafe { std::mem::zeroed() };
        (info.evtchn_upcall_pending, info.evtchn_pending_sel) = (1, 1 << 7);
        // SAFETY: the record outlives every use below, on one thread.
        let upcalls = unsafe { Upcalls::new(&raw mut info) };
        upcalls.mask();
        assert_eq!((info.evtchn_upcall_mask, info.evtchn_upcall_pending), (1, 1));
        upcalls.clear();
        assert_eq!((info.evtchn_upcall_mask, info.evtchn_upcall_pending), (1, 0));
        assert_eq!(info.evtchn_pending_sel, 0);
    }

    proptest! {
        #[test]
        fn every_pending_port_is_taken_once(ports in btree_set(0u32..4096, 0..40)) {
            let mut page = Page::new(ports.iter().copied());
            let events = page.events();
            let take = || (0..4096).filter(|p| events.take(Port(*p))).collect::<Vec<_>>();
            prop_assert_eq!(take(), ports.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(take(), Vec::<u32>::new());
        }

        #[test]
        fn all_pending_ports_are_taken_once(
            ports in btree_set(0u32..4096, 0..40), last in 0u32..5000
        ) {
            let mut page = Page::new(ports.iter().copied());
            let events = page.events();
            let take = || {
                let mut taken = Vec::new();
                events.take_up_to(Port(last), |port| taken.push(port.0));
                taken
            };
            let wanted = ports.into_iter().filter(|port| port / 64 <= last / 64);
            prop_assert_eq!(take(), wanted.collect::<Vec<_>>());
            prop_assert_eq!(take(), Vec::<u32>::new());
        }
    }
}
