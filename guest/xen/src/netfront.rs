// SPDX-License-Identifier: MIT OR Apache-2.0
//! The frontend of one network interface: frames to and from another domain's backend.
//!
//! The backend sees pages that were granted to it for good when it was met, and nothing else: what is
//! sent is copied into them, what was received is copied out of them before anybody looks at it. All
//! pages are zeroed first. A response is believed only if it is to a request that has had none; a
//! backend that does what no honest one would costs itself its interface, until it is met anew.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::abi::{DomId, GrantRef, Mfn, PAGE_SIZE};
use crate::grant::{EndError, GrantError, GrantTable};
use crate::netback::Notify;
use crate::netif::{
    Extra, Fault, HEADER_LEN, Refusal, RxRequest, RxResponse, RxWords, SLOTS_MAX, Status, Sums,
    TxRequest, TxResponse, TxWords, rx_flags, tx_flags,
};
use crate::shared_ring::{FrontRing, Memory, SharedPage};

type TxRing<M> = FrontRing<TxWords, TxResponse, M>;
type RxRing<M> = FrontRing<RxRequest, RxWords, M>;

/// Slots of either ring.
const RING: usize = TxRing::<SharedPage>::SIZE as usize;
const _: () = assert!(RING == 256 && RxRing::<SharedPage>::SIZE as usize == RING);

/// A page of one's own, for others to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnPage {
    at: *mut u8,
    frame: Mfn,
}

impl OwnPage {
    /// The page at `at`, whose machine frame is `frame`.
    ///
    /// # Safety
    /// The page is aligned, stays mapped, and is the holder's alone, until he gives it away: then it is
    /// accessed by volatile or atomic means only.
    pub const unsafe fn new(at: *mut u8, frame: Mfn) -> Self {
        Self { at, frame }
    }

    /// Where it is.
    pub fn at(self) -> *mut u8 {
        self.at
    }

    /// The bytes from `offset` on, which is in the page, as atoms of eight and of one.
    fn word(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: the constructor's caller vouches for the page; the offset is aligned and in it.
        unsafe { AtomicU64::from_ptr(self.at.add((offset % PAGE_SIZE) & !7).cast()) }
    }

    fn byte(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: as above.
        unsafe { AtomicU8::from_ptr(self.at.add(offset % PAGE_SIZE)) }
    }

    fn zero(&self) {
        for offset in (0..PAGE_SIZE).step_by(8) {
            self.word(offset).store(0, Ordering::Relaxed);
        }
    }

    /// Copies `bytes` to `offset`; what does not fit into the page is left out.
    fn put(&self, mut offset: usize, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(PAGE_SIZE.saturating_sub(offset))];
        let (head, rest) = bytes.split_at(bytes.len().min(offset.wrapping_neg() % 8));
        let (words, tail) = rest.as_chunks::<8>();
        for byte in head {
            self.byte(offset).store(*byte, Ordering::Relaxed);
            offset += 1;
        }
        for word in words {
            self.word(offset).store(u64::from_ne_bytes(*word), Ordering::Relaxed);
            offset += 8;
        }
        for byte in tail {
            self.byte(offset).store(*byte, Ordering::Relaxed);
            offset += 1;
        }
    }

    /// Copies the bytes from `offset` on, which `bytes` does not lead out of the page.
    fn get(&self, mut offset: usize, bytes: &mut [u8]) {
        let (head, rest) = bytes.split_at_mut(bytes.len().min(offset.wrapping_neg() % 8));
        let (words, tail) = rest.as_chunks_mut::<8>();
        for byte in head {
            *byte = self.byte(offset).load(Ordering::Relaxed);
            offset += 1;
        }
        for word in words {
            *word = self.word(offset).load(Ordering::Relaxed).to_ne_bytes();
            offset += 8;
        }
        for byte in tail {
            *byte = self.byte(offset).load(Ordering::Relaxed);
            offset += 1;
        }
    }
}

/// A page that the backend may use.
#[derive(Clone, Copy, Debug)]
struct Lent {
    page: OwnPage,
    gref: Option<GrantRef>,
}

/// Numbers below `N` that are free, the last given back first.
#[derive(Debug)]
struct Free<const N: usize> {
    ids: [u16; N],
    count: usize,
}

impl<const N: usize> Free<N> {
    fn all() -> Self {
        Self { ids: core::array::from_fn(|id| id as u16), count: N }
    }

    fn take(&mut self) -> Option<u16> {
        self.count = self.count.checked_sub(1)?;
        Some(self.ids[self.count])
    }

    fn give(&mut self, id: u16) {
        debug_assert!(self.count < N, "each is free once");
        if let Some(place) = self.ids.get_mut(self.count) {
            *place = id;
            self.count += 1;
        }
    }
}

/// A part of a received frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    id: u16,
    offset: u16,
    size: u16,
}

/// A frame that the backend has put into this end's pages.
///
/// Its pages are to be given back exactly once, so there is no second one of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Received {
    parts: [Part; SLOTS_MAX],
    count: u8,
    total: u16,
    flags: u16,
}

impl Received {
    const NONE: Self = {
        let part = Part { id: 0, offset: 0, size: 0 };
        Self { parts: [part; SLOTS_MAX], count: 0, total: 0, flags: 0 }
    };

    fn parts(&self) -> &[Part] {
        &self.parts[..usize::from(self.count)]
    }

    /// Its bytes.
    pub fn total(&self) -> u16 {
        self.total
    }

    /// What is known of its checksum.
    pub fn sums(&self) -> Sums {
        Sums::of_rx(self.flags)
    }
}

/// What an interface did, and did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames' slots that the backend has taken.
    pub tx_taken: u64,
    /// Such that it says that it could not take, or has dropped.
    pub tx_failed: u64,
    /// Frames that it gave and that were refused, by [`Refusal`].
    pub refused: [u64; Refusal::COUNT],
}

/// The frontend of one network interface, with `N` pages for each direction.
#[derive(Debug)]
pub struct Netfront<const N: usize, M = SharedPage> {
    tx: TxRing<M>,
    rx: RxRing<M>,
    rings: [Lent; 2],
    tx_pages: [Lent; N],
    rx_pages: [Lent; N],
    tx_free: Free<N>,
    rx_free: Free<N>,
    /// Whether the backend has the page.
    tx_asked: [bool; N],
    /// Whether a frame that was given out lies in the page.
    rx_held: [bool; N],
    /// Which page the request in each slot of the receive ring is about.
    rx_at: [u16; RING],
    longest_tx: u16,
    longest_rx: u16,
    counters: Counters,
    fault: Option<Fault>,
}

/// Why an interface could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetupError {
    /// So many pages are needed: two for the rings, and two for each slot.
    Pages(usize),
    /// The grant table refuses.
    Grant(GrantError),
}

impl core::fmt::Display for SetupError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Pages(wanted) => write!(f, "a network interface needs {wanted} pages"),
            Self::Grant(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for SetupError {}

impl<const N: usize> Netfront<N> {
    /// Pages that an interface needs.
    pub const PAGES: usize = 2 + 2 * N;

    /// Grants [`Self::PAGES`] of `pages` to `back`, and fills the receive ring.
    ///
    /// It sends frames of up to `longest_tx` bytes, and receives such of up to `longest_rx`; one page
    /// is the most that may be sent to a backend without `feature-sg`.
    ///
    /// # Errors
    /// [`SetupError`]; all pages are the caller's then, as before.
    pub fn new(
        pages: impl Iterator<Item = OwnPage>,
        grants: &mut GrantTable,
        back: DomId,
        longest_tx: u16,
        longest_rx: u16,
    ) -> Result<Self, SetupError> {
        Self::with_rings(pages, |page| page, grants, back, longest_tx, longest_rx)
    }
}

impl<const N: usize, M: Memory> Netfront<N, M> {
    /// As [`Self::new`], with the pages of the rings as `memory` makes them.
    ///
    /// # Errors
    /// As there.
    pub fn with_rings(
        mut pages: impl Iterator<Item = OwnPage>,
        memory: impl FnMut(SharedPage) -> M,
        grants: &mut GrantTable,
        back: DomId,
        longest_tx: u16,
        longest_rx: u16,
    ) -> Result<Self, SetupError> {
        const { assert!(0 < N && N <= RING) };
        let mut lend = || {
            let page = pages.next().ok_or(SetupError::Pages(2 + 2 * N))?;
            page.zero();
            Ok(Lent { page, gref: None })
        };
        let nowhere = lend()?;
        let mut rings = [nowhere; 2];
        let (mut tx_pages, mut rx_pages) = ([nowhere; N], [nowhere; N]);
        rings[1] = lend()?;
        for lent in tx_pages.iter_mut().chain(&mut rx_pages) {
            *lent = lend()?;
        }
        // SAFETY: `OwnPage` vouches for the pages, which this value accesses by atomic means only.
        let shared = rings.map(|lent| unsafe { SharedPage::new(lent.page.at) });
        let [tx, rx] = shared.map(memory);
        let mut front = Self {
            tx: TxRing::new(tx),
            rx: RxRing::new(rx),
            rings,
            tx_pages,
            rx_pages,
            tx_free: Free::all(),
            rx_free: Free::all(),
            tx_asked: [false; N],
            rx_held: [false; N],
            rx_at: [0; RING],
            longest_tx,
            longest_rx,
            counters: Counters::default(),
            fault: None,
        };
        if let Err(error) = front.grant(grants, back) {
            // The backend has not heard of them.
            let left = front.close(grants);
            debug_assert_eq!(left, 0);
            return Err(SetupError::Grant(error));
        }
        front.refill();
        Ok(front)
    }

    fn grant(&mut self, grants: &mut GrantTable, back: DomId) -> Result<(), GrantError> {
        let Self { rings, tx_pages, rx_pages, .. } = self;
        let sent = tx_pages.iter_mut().map(|lent| (lent, true));
        let both = rings.iter_mut().chain(rx_pages).map(|lent| (lent, false));
        for (lent, readonly) in both.chain(sent) {
            // SAFETY: the page was zeroed, and is accessed by atomic means.
            let gref = unsafe { grants.grant_access(back, lent.page.frame, readonly) }?;
            lent.gref = Some(gref);
        }
        Ok(())
    }

    /// The references of the transmit and the receive ring, for xenstore.
    pub fn ring_refs(&self) -> [GrantRef; 2] {
        self.rings.map(|lent| lent.gref.unwrap_or(GrantRef(0)))
    }

    /// Takes back what the backend no longer uses; how many pages it still does.
    ///
    /// The interface is over. Until the answer is 0, its pages must not be used for anything else: ask
    /// again later.
    pub fn close(&mut self, grants: &mut GrantTable) -> usize {
        self.fault.get_or_insert(Fault::Closed);
        let Self { rings, tx_pages, rx_pages, .. } = self;
        let mut left = 0;
        for lent in rings.iter_mut().chain(tx_pages).chain(rx_pages) {
            match lent.gref.map(|gref| grants.end_access(gref)) {
                Some(Err(EndError::StillInUse)) => left += 1,
                Some(Ok(()) | Err(EndError::NotGranted)) | None => lent.gref = None,
            }
        }
        left
    }

    /// What the backend did wrong, if it did; or that the interface is closed.
    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// What the interface did so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Pages that are free for sending.
    pub fn free_tx(&self) -> usize {
        self.tx_free.count
    }

    fn sane(&self) -> Result<(), Fault> {
        self.fault.map_or(Ok(()), Err)
    }

    fn check<T, E: Into<Fault>>(&mut self, result: Result<T, E>) -> Result<T, Fault> {
        result.map_err(|fault| *self.fault.get_or_insert(fault.into()))
    }

    /// Offers every free page to the backend.
    fn refill(&mut self) {
        while self.rx.room() > 0
            && let Some(id) = self.rx_free.take()
        {
            let gref = self.rx_pages[usize::from(id)].gref.map_or(0, |gref| gref.0);
            match self.rx.push(&RxRequest { id, gref }) {
                Ok(index) => self.rx_at[index as usize % RING] = id,
                Err(_) => return self.rx_free.give(id),
            }
        }
    }

    /// Takes back the pages of what the backend has sent.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn reap(&mut self) -> Result<(), Fault> {
        self.sane()?;
        let responses = self.tx.available();
        // Not more than there were, however fast the backend is.
        for _ in 0..self.check(responses)? {
            let popped = self.tx.pop();
            let Some(TxResponse { id, status }) = self.check(popped)? else { break };
            let asked = self.tx_asked.get_mut(usize::from(id)).filter(|asked| **asked);
            let known = asked.map(|asked| *asked = false).ok_or(Fault::NotAsked(id));
            self.check(known)?;
            self.tx_free.give(id);
            let count = match status {
                Status::OKAY => &mut self.counters.tx_taken,
                _ => &mut self.counters.tx_failed,
            };
            *count = count.wrapping_add(1);
        }
        Ok(())
    }

    /// Sends a frame, which is all of `parts`. Whether there was room, and it was not too long: then it
    /// is on its way with the next [`Self::publish`].
    ///
    /// # Errors
    /// [`Fault`].
    pub fn send(&mut self, parts: &[&[u8]], sums: Sums) -> Result<bool, Fault> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let slots = total.div_ceil(PAGE_SIZE).max(1);
        if self.tx_free.count < slots || (self.tx.room() as usize) < slots {
            self.reap()?;
        }
        self.sane()?;
        let total = match u16::try_from(total) {
            Ok(total) if total <= self.longest_tx => total,
            _ => return Ok(false),
        };
        if self.tx_free.count < slots || (self.tx.room() as usize) < slots {
            return Ok(false);
        }
        let mut parts = parts.iter();
        let mut part: &[u8] = &[];
        for slot in 0..slots {
            let Some(id) = self.tx_free.take() else { break }; // They were counted.
            let Lent { page, gref } = self.tx_pages[usize::from(id)];
            let mut used = 0;
            while used < PAGE_SIZE {
                if part.is_empty() {
                    let Some(next) = parts.next() else { break };
                    part = next;
                }
                let (now, later) = part.split_at(part.len().min(PAGE_SIZE - used));
                page.put(used, now);
                used += now.len();
                part = later;
            }
            let mut flags = if slot == 0 { sums.tx_flags() } else { 0 };
            if slot + 1 < slots {
                flags |= tx_flags::MORE_DATA;
            }
            let size = if slot == 0 { total } else { used as u16 };
            let gref = gref.map_or(0, |gref| gref.0);
            let pushed = self.tx.push(&TxRequest { gref, offset: 0, flags, id, size }.into());
            debug_assert!(pushed.is_ok(), "the room was counted");
            self.tx_asked[usize::from(id)] = true;
        }
        Ok(true)
    }

    /// The next slot of the receive ring, and the page that its request was about.
    fn slot(&mut self) -> Result<Option<(u16, RxWords)>, Fault> {
        let id = self.rx_at[self.rx.next() as usize % RING];
        let popped = self.rx.pop();
        Ok(self.check(popped)?.map(|words| (id, words)))
    }

    /// Takes a chain of responses to its end. Pages that hold nothing are free at once.
    fn chain(&mut self) -> Result<Option<(Received, Option<Refusal>)>, Fault> {
        let Some((mut id, words)) = self.slot()? else { return Ok(None) };
        let mut response = RxResponse::from(words);
        let mut frame = Received { flags: response.flags, ..Received::NONE };
        let (mut total, mut refusal) = (0u32, None);
        let mut extras = response.flags & rx_flags::EXTRA_INFO != 0;
        while extras {
            let (id, [a, b]) = self.slot()?.ok_or(Fault::Cut)?;
            self.rx_free.give(id);
            let (extra, another) = Extra::parse(a, b)?;
            refusal = match extra {
                Extra::Gso { .. } => Some(Refusal::Segments),
                Extra::Other(_) => refusal.or(Some(Refusal::Extra)),
            };
            extras = another;
        }
        loop {
            let RxResponse { offset, flags, status, .. } = response;
            match u16::try_from(status) {
                Err(_) => {
                    refusal = Some(Refusal::Failed);
                    self.rx_free.give(id);
                }
                Ok(size) if usize::from(offset) + usize::from(size) > PAGE_SIZE => {
                    return Err(Fault::CrossesPage { offset, size });
                }
                Ok(size) => match frame.parts.get_mut(usize::from(frame.count)) {
                    Some(part) => {
                        *part = Part { id, offset, size };
                        self.rx_held[usize::from(id)] = true;
                        frame.count += 1;
                        total += u32::from(size);
                    }
                    None => {
                        refusal = refusal.or(Some(Refusal::Slots));
                        self.rx_free.give(id);
                    }
                },
            }
            if flags & rx_flags::MORE_DATA == 0 {
                break;
            }
            let (next, words) = self.slot()?.ok_or(Fault::Cut)?;
            (id, response) = (next, words.into());
        }
        match u16::try_from(total) {
            Ok(total) if total <= self.longest_rx => frame.total = total,
            _ => refusal = refusal.or(Some(Refusal::Long)),
        }
        if total < u32::from(HEADER_LEN) {
            refusal = refusal.or(Some(Refusal::Short));
        }
        Ok(Some((frame, refusal)))
    }

    /// Takes the next frame that the backend has given. What is refused goes back at once.
    ///
    /// However fast the backend is, it cannot keep a caller in here for more than a ring of frames that
    /// are refused.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn receive(&mut self) -> Result<Option<Received>, Fault> {
        self.sane()?;
        let start = self.rx.next();
        while (self.rx.next().wrapping_sub(start) as usize) < RING {
            let chain = self.chain();
            let Some((frame, refusal)) = self.check(chain)? else { return Ok(None) };
            let Some(why) = refusal else { return Ok(Some(frame)) };
            let count = &mut self.counters.refused[why as usize];
            *count = count.wrapping_add(1);
            self.recycle(frame);
        }
        Ok(None)
    }

    /// Copies bytes of a frame, from its byte `at` on; how many there were.
    pub fn copy(&self, frame: &Received, mut at: usize, into: &mut [u8]) -> usize {
        let mut done = 0;
        for part in frame.parts() {
            let size = usize::from(part.size);
            if at >= size {
                at -= size;
                continue;
            }
            let count = (size - at).min(into.len() - done);
            if let Some(lent) = self.rx_pages.get(usize::from(part.id)) {
                lent.page.get(usize::from(part.offset) + at, &mut into[done..done + count]);
            }
            done += count;
            at = 0;
            if done == into.len() {
                break;
            }
        }
        done
    }

    /// Gives a frame's pages to the backend for another.
    ///
    /// Pages that this interface has not given out, or not since it was made, stay where they are.
    pub fn recycle(&mut self, frame: Received) {
        for part in frame.parts() {
            if let Some(held) = self.rx_held.get_mut(usize::from(part.id)).filter(|held| **held) {
                *held = false;
                self.rx_free.give(part.id);
            }
        }
        self.refill();
    }

    /// Shows the backend all that was written, and says whom to notify.
    pub fn publish(&mut self) -> Notify {
        if self.fault.is_some() {
            return Notify::default();
        }
        Notify { tx: self.tx.publish(), rx: self.rx.publish() }
    }

    /// Asks for an event when there is a frame, and, if one is `waiting` to be sent, when the backend
    /// has taken any. Whether there is such work already: then do not sleep.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn arm(&mut self, waiting: bool) -> Result<bool, Fault> {
        self.sane()?;
        let rx = self.rx.arm(1);
        let mut work = self.check(rx)?;
        if waiting {
            let tx = self.tx.arm(1);
            work |= self.check(tx)?;
        }
        Ok(work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{GRANTS_PER_PAGE, GTF_READING, GTF_READONLY, GTF_WRITING, GrantEntry};
    use crate::netback::Netback;
    use crate::shared_ring::BackRing;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[repr(C, align(4096))]
    struct Page([u8; PAGE_SIZE]);

    const N: usize = 8;
    const FRAMES: usize = Netfront::<N>::PAGES;
    /// The first machine frame of the pages.
    const FIRST: u64 = 0x777;

    /// The frontend, its memory, and Xen's view of both.
    struct World {
        pages: *mut Page,
        table: *mut GrantEntry,
        grants: GrantTable,
        front: Netfront<N>,
    }

    fn world(dirt: u8) -> World {
        // Kept for ever: both ends are raw pointers into it.
        let pages = Box::leak((0..FRAMES).map(|_| Page([dirt; PAGE_SIZE])).collect()).as_mut_ptr();
        let entries = vec![GrantEntry::default(); GRANTS_PER_PAGE as usize].leak();
        let table = entries.as_mut_ptr();
        // SAFETY: nobody else uses the memory.
        let mut grants = unsafe { GrantTable::new(table.cast(), 1) };
        // SAFETY: as above.
        let own = (0..FRAMES)
            .map(|n| unsafe { OwnPage::new(pages.add(n).cast(), Mfn(FIRST + n as u64)) });
        let front = Netfront::new(own, &mut grants, DomId(0), 9018, 9018).unwrap();
        World { pages, table, grants, front }
    }

    impl World {
        /// The page that the backend reaches by a reference, and whether it may write there.
        fn granted(&self, gref: GrantRef) -> (*mut u8, bool) {
            assert!(gref.0 < GRANTS_PER_PAGE);
            // SAFETY: in the table.
            let entry = unsafe { self.table.add(gref.0 as usize).read() };
            assert_eq!((entry.flags & 3, entry.domid), (1, 0), "{gref} is not granted");
            let page = u64::from(entry.frame) - FIRST;
            // SAFETY: a frame of the world.
            let at = unsafe { self.pages.add(page as usize).cast() };
            (at, entry.flags & GTF_READONLY == 0)
        }

        fn shared(&self, gref: GrantRef) -> SharedPage {
            // SAFETY: kept for ever.
            unsafe { SharedPage::new(self.granted(gref).0) }
        }

        fn netback(&self) -> Netback {
            let [tx, rx] = self.front.ring_refs().map(|gref| self.shared(gref));
            Netback::new(tx, rx, 9018, 9018)
        }
    }

    /// All of a frame that was received.
    fn bytes(front: &Netfront<N>, frame: &Received) -> Vec<u8> {
        let mut bytes = vec![0; usize::from(frame.total())];
        // In two pieces.
        let half = bytes.len() / 2;
        assert_eq!(front.copy(frame, 0, &mut bytes[..half]), half);
        let rest = bytes.len() - half;
        assert_eq!(front.copy(frame, half, &mut bytes[half..]), rest);
        assert_eq!(front.copy(frame, half + rest, &mut [0; 8]), 0);
        bytes
    }

    #[derive(Clone, Debug)]
    enum Step {
        Send(u16, bool, bool),
        BackTakes,
        BackGives(u16, bool, bool),
        Receive,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let len = || prop_oneof![14u16..200, 14u16..9100];
        let step = prop_oneof![
            (len(), any::<bool>(), any::<bool>()).prop_map(|(len, a, b)| Step::Send(len, a, b)),
            Just(Step::BackTakes),
            (len(), any::<bool>(), any::<bool>())
                .prop_map(|(len, a, b)| Step::BackGives(len, a, b)),
            Just(Step::Receive),
        ];
        proptest::collection::vec(step, 0..120)
    }

    proptest! {
        /// Frames arrive whole, once and in order in both directions, from our front to our back.
        #[test]
        fn a_frontend_and_a_backend_are_a_wire(steps in steps()) {
            let mut world = world(0xaa);
            let mut back = world.netback();
            let (mut out, mut into) = (VecDeque::new(), VecDeque::new());
            let mut next = 0u8;
            let mut content = |len: u16| {
                next = next.wrapping_add(1);
                (0..len).map(|n| next.wrapping_mul(31).wrapping_add((n % 253) as u8)).collect::<Vec<u8>>()
            };
            for step in steps {
                match step {
                    Step::Send(len, blank, valid) => {
                        let frame = content(len);
                        let (a, rest) = frame.split_at(5);
                        let (b, c) = rest.split_at(rest.len() / 3);
                        let sums = Sums::new(blank, valid);
                        let sent = world.front.send(&[a, b, &[], c], sums).unwrap();
                        prop_assert!(!sent || len <= 9018);
                        if sent {
                            out.push_back((frame, Sums::new(blank, blank || valid)));
                        }
                        let _ = world.front.publish();
                    }
                    Step::BackTakes => {
                        while let Some(frame) = back.take_tx().unwrap() {
                            let mut got = Vec::new();
                            for fragment in frame.fragments() {
                                let (page, writable) = world.granted(fragment.gref);
                                prop_assert!(!writable);
                                let (at, size) = (usize::from(fragment.offset), usize::from(fragment.size));
                                // SAFETY: in the page.
                                got.extend(unsafe { std::slice::from_raw_parts(page.add(at), size) });
                            }
                            prop_assert_eq!((got, frame.sums()), out.pop_front().unwrap());
                            back.answer_tx(frame, Status::OKAY).unwrap();
                        }
                        prop_assert!(out.is_empty());
                        let _ = back.publish();
                    }
                    Step::BackGives(len, blank, valid) => {
                        let frame = content(len);
                        let taken = back.take_rx(len, Sums::new(blank, valid)).unwrap();
                        if let Some(pages) = taken {
                            let mut rest = &frame[..];
                            for slot in pages.slots() {
                                let (page, writable) = world.granted(slot.gref);
                                prop_assert!(writable);
                                let (now, later) = rest.split_at(slot.size.into());
                                // SAFETY: in the page.
                                unsafe { page.copy_from(now.as_ptr(), now.len()) };
                                rest = later;
                            }
                            back.answer_rx(pages.owed, true).unwrap();
                            into.push_back((frame, Sums::new(blank, blank || valid)));
                        }
                        let _ = back.publish();
                    }
                    Step::Receive => {
                        while let Some(frame) = world.front.receive().unwrap() {
                            let got = (bytes(&world.front, &frame), frame.sums());
                            prop_assert_eq!(got, into.pop_front().unwrap());
                            world.front.recycle(frame);
                        }
                        prop_assert!(into.is_empty());
                        let _ = world.front.publish();
                    }
                }
            }
            // Nothing is left anywhere.
            while let Some(frame) = world.front.receive().unwrap() {
                world.front.recycle(frame);
            }
            while let Some(frame) = back.take_tx().unwrap() {
                back.answer_tx(frame, Status::DROPPED).unwrap();
            }
            let _ = back.publish();
            world.front.reap().unwrap();
            prop_assert_eq!((world.front.free_tx(), world.front.rx_free.count), (N, 0));
            prop_assert_eq!((back.owed_tx(), back.owed_rx()), (0, 0));
            prop_assert_eq!(world.front.close(&mut world.grants), 0);
            prop_assert_eq!(world.grants.in_use(), 0);
        }

        /// Any part of a page can be written and read, and nothing else changes.
        #[test]
        fn bytes_land_where_they_belong(offset in 0usize..4096, len in 0usize..200) {
            let mut page = Box::new(Page([7; PAGE_SIZE]));
            // SAFETY: the page outlives it.
            let own = unsafe { OwnPage::new(page.0.as_mut_ptr(), Mfn(0)) };
            let data: Vec<u8> = (0..len as u8).map(|n| n.wrapping_mul(3)).collect();
            own.put(offset, &data);
            let fit = len.min(PAGE_SIZE - offset);
            let mut back = vec![0; fit];
            own.get(offset, &mut back);
            prop_assert_eq!(&back, &data[..fit]);
            prop_assert_eq!(&page.0[offset..offset + fit], &data[..fit]);
            prop_assert!(page.0[..offset].iter().chain(&page.0[offset + fit..]).all(|b| *b == 7));
        }
    }

    #[test]
    fn the_backend_sees_nothing_of_what_was_there() {
        let world = world(0xaa);
        // SAFETY: kept for ever.
        let pages = unsafe { std::slice::from_raw_parts(world.pages, FRAMES) };
        assert!(pages[2..].iter().all(|page| page.0.iter().all(|byte| *byte == 0)));
        assert!(!pages[..2].iter().any(|page| page.0.contains(&0xaa)));
        assert_eq!(world.grants.in_use() as usize, FRAMES);
    }

    /// The rings as a backend that may do anything has them.
    type Rings = (BackRing<TxWords, TxResponse>, BackRing<RxRequest, RxWords>);

    fn rings(world: &World) -> Rings {
        let [tx, rx] = world.front.ring_refs().map(|gref| world.shared(gref));
        (BackRing::attach(tx), BackRing::attach(rx))
    }

    #[test]
    fn an_answer_to_nothing_is_a_fault() {
        for (answers, faulty) in
            [(&[7u16, 6][..], false), (&[7, 7], true), (&[3], true), (&[800], true)]
        {
            let mut world = world(0);
            let (mut tx, _) = rings(&world);
            assert_eq!(world.front.send(&[&[1; 5000]], Sums::default()), Ok(true));
            let _ = world.front.publish();
            while tx.pop().unwrap().is_some() {}
            for id in answers {
                tx.push(&TxResponse { id: *id, status: Status::OKAY }).unwrap();
            }
            let _ = tx.publish();
            let result = world.front.reap();
            assert_eq!(result.is_err(), faulty, "{answers:?}");
            assert_eq!(world.front.receive().is_err(), faulty);
            assert_eq!(world.front.send(&[&[1; 60]], Sums::default()).is_err(), faulty);
        }
    }

    /// Gives the front these responses; what it makes of the first frame.
    fn given(responses: &[RxResponse]) -> (Result<Option<u16>, Fault>, Netfront<N>) {
        let mut world = world(0);
        let (_, mut rx) = rings(&world);
        let _ = world.front.publish();
        for response in responses {
            rx.pop().unwrap().unwrap();
            rx.push(&(*response).into()).unwrap();
        }
        let _ = rx.publish();
        (world.front.receive().map(|frame| frame.map(|frame| frame.total())), world.front)
    }

    #[test]
    fn only_what_lies_in_a_page_is_received() {
        let more = rx_flags::MORE_DATA;
        let response = |offset, flags, status| RxResponse { id: 0, offset, flags, status };
        assert_eq!(given(&[response(2, 0, 60)]).0, Ok(Some(60)));
        assert_eq!(given(&[response(0, more, 4096), response(0, 0, 4)]).0, Ok(Some(4100)));
        let crosses = Fault::CrossesPage { offset: 4036, size: 61 };
        assert_eq!(given(&[response(4036, 0, 61)]).0, Err(crosses));
        assert!(given(&[response(65535, 0, 1)]).0.is_err());
        assert_eq!(given(&[response(0, more, 60)]).0, Err(Fault::Cut));
        let extra = rx_flags::EXTRA_INFO;
        assert_eq!(given(&[response(0, extra, 60)]).0, Err(Fault::Cut));
        let unknown = RxResponse { id: 6, ..response(0, 0, 0) };
        assert_eq!(given(&[response(0, extra, 60), unknown]).0, Err(Fault::ExtraKind(6)));

        for (responses, why) in [
            (&[response(0, 0, -1)][..], Refusal::Failed),
            (&[response(0, 0, 13)], Refusal::Short),
            (
                &[response(0, more, 4096), response(0, more, 4096), response(0, 0, 827)],
                Refusal::Long,
            ),
            (&[response(0, more, 60), response(0, 0, -1)], Refusal::Failed),
            (
                &[response(0, extra, 60), RxResponse { id: 1, ..response(0, 0, 0) }],
                Refusal::Segments,
            ),
            (&[response(0, extra, 60), RxResponse { id: 4, ..response(0, 0, 0) }], Refusal::Extra),
        ] {
            let (result, front) = given(responses);
            assert_eq!(result, Ok(None), "{why}");
            assert_eq!(front.counters().refused[why as usize], 1, "{why}");
            // Every page is with the backend again.
            assert_eq!((front.rx_free.count, front.rx.room() as usize), (0, RING - N));
        }
    }

    #[test]
    fn a_page_that_is_mapped_is_not_given_up() {
        let mut world = world(0);
        let [ring, _] = world.front.ring_refs();
        let flags = GTF_READING | GTF_WRITING;
        // SAFETY: in the table.
        unsafe { (*world.table.add(ring.0 as usize)).flags |= flags };
        assert_eq!(world.front.close(&mut world.grants), 1);
        assert_eq!(world.grants.in_use(), 1);
        assert_eq!(world.front.send(&[&[0; 60]], Sums::default()), Err(Fault::Closed));
        assert_eq!(world.front.publish(), Notify::default());
        // SAFETY: as above.
        unsafe { (*world.table.add(ring.0 as usize)).flags &= !flags };
        assert_eq!(world.front.close(&mut world.grants), 0);
        assert_eq!((world.grants.in_use(), world.front.close(&mut world.grants)), (0, 0));
    }

    #[test]
    fn what_cannot_be_had_is_not_half_taken() {
        let mut page = Box::new(Page([0; PAGE_SIZE]));
        let mut entries = vec![GrantEntry::default(); GRANTS_PER_PAGE as usize];
        // SAFETY: the memory outlives both; the same page over and over is enough here.
        let (own, mut grants) = unsafe {
            let own = OwnPage::new(page.0.as_mut_ptr(), Mfn(1));
            (own, GrantTable::new(entries.as_mut_ptr().cast(), 1))
        };
        let make = |count, grants: &mut GrantTable| {
            let pages = std::iter::repeat_n(own, count);
            Netfront::<N>::new(pages, grants, DomId(0), 1514, 1514).map(drop)
        };
        assert_eq!(make(FRAMES - 1, &mut grants), Err(SetupError::Pages(FRAMES)));
        assert_eq!(grants.in_use(), 0);
        let room = grants.available();
        for _ in 0..room as usize - FRAMES + 1 {
            // SAFETY: as above.
            unsafe { grants.grant_access(DomId(0), Mfn(1), true) }.unwrap();
        }
        let before = grants.in_use();
        assert_eq!(make(FRAMES, &mut grants), Err(SetupError::Grant(GrantError::Full)));
        assert_eq!(grants.in_use(), before);
    }

    #[test]
    fn whoever_waits_is_woken() {
        let mut world = world(0);
        let (mut tx, mut rx) = rings(&world);
        // The requests to receive, of which a backend is told at once.
        assert_eq!(world.front.publish(), Notify { tx: false, rx: true });
        assert_eq!(world.front.arm(false), Ok(false));
        while world.front.send(&[&[0; 60]], Sums::default()).unwrap() {}
        assert_eq!(world.front.free_tx(), 0);
        let _ = world.front.publish();
        assert_eq!(world.front.arm(true), Ok(false));
        let TxRequest { id, .. } = tx.pop().unwrap().unwrap().into();
        tx.push(&TxResponse { id, status: Status::DROPPED }).unwrap();
        assert!(tx.publish());
        assert_eq!(world.front.arm(true), Ok(true));
        assert_eq!(world.front.send(&[&[0; 60]], Sums::default()), Ok(true));
        assert_eq!((world.front.counters().tx_failed, world.front.free_tx()), (1, 0));
        rx.pop().unwrap().unwrap();
        rx.push(&RxResponse { id: 0, offset: 0, flags: 0, status: 60 }.into()).unwrap();
        assert!(rx.publish());
        assert_eq!(world.front.arm(false), Ok(true));
    }
}
