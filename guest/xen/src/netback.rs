// SPDX-License-Identifier: MIT OR Apache-2.0
//! The backend of one network interface: what a driver domain does with its two rings.
//!
//! It moves no bytes. It says which parts of which granted pages a frame lies in, or is to be put
//! into, so that the copies of many interfaces can be made in one hypercall; then it is told how they
//! went. Every request is answered once. A frontend that does what no honest one would costs itself
//! its interface: after a [`Fault`] nothing more is taken or given, until it connects anew.

use crate::abi::{GrantRef, PAGE_SIZE};
use crate::netif::{
    Fault, Refusal, RxRequest, RxResponse, RxWords, Status, Sums, TxFrame, TxResponse, TxSingle,
    TxSource, TxWords, rx_flags,
};
use crate::ring::RingFault;
use crate::shared_ring::{BackRing, Memory, SharedPage, Unasked};

type TxRing<M> = BackRing<TxWords, TxResponse, M>;
type RxRing<M> = BackRing<RxRequest, RxWords, M>;

impl<M: Memory> TxSource for TxRing<M> {
    fn next(&mut self) -> Result<Option<TxWords>, RingFault> {
        self.pop()
    }

    fn excess(&mut self, id: u16) {
        let answer = self.push(&TxResponse { id, status: Status::ERROR });
        debug_assert!(answer.is_ok(), "its request has just been taken");
    }
}

/// Most pages of a frame for the peer.
const RX_PAGES: usize = 3;

/// A page that a part of a frame is to be put into, from its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RxSlot {
    /// The page.
    pub gref: GrantRef,
    /// Bytes of it that are wanted.
    pub size: u16,
}

/// The pages that a frame for the peer is to be put into, and what is owed for them.
#[derive(Debug, PartialEq, Eq)]
pub struct RxFrame {
    slots: [RxSlot; RX_PAGES],
    /// What is owed.
    pub owed: Owed,
}

impl RxFrame {
    /// No pages.
    pub const NONE: Self = {
        let slot = RxSlot { gref: GrantRef(0), size: 0 };
        let owed = Owed { start: 0, ids: [0; RX_PAGES], count: 0 };
        Self { slots: [slot; RX_PAGES], owed }
    };

    /// The pages, in order; their sizes add up to the frame.
    #[inline]
    pub fn slots(&self) -> &[RxSlot] {
        &self.slots[..usize::from(self.owed.count)]
    }
}

/// What is owed for the pages that were taken for a frame for the peer.
///
/// They are to be answered exactly once, so there is no second one of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Owed {
    /// The number of the first request.
    start: u32,
    ids: [u16; RX_PAGES],
    count: u8,
}

/// The same for a single page.
#[derive(Debug, PartialEq, Eq)]
pub struct OwedPage {
    id: u16,
    /// The number of the request, as far as two bytes hold it.
    start: u16,
}

/// What was taken of what the frontend wants to send.
#[derive(Debug, PartialEq, Eq)]
pub enum TakenTx {
    /// There was nothing.
    Nothing,
    /// A frame in a single slot.
    Single(TxSingle),
    /// A frame that is now where the caller wanted it.
    Chain,
}

/// Which event channels are to be notified. They may be the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Notify {
    /// That of the ring of what the frontend sends.
    pub tx: bool,
    /// That of the ring of what it receives.
    pub rx: bool,
}

/// The backend of one network interface.
#[derive(Debug)]
pub struct Netback<M = SharedPage> {
    tx: TxRing<M>,
    rx: RxRing<M>,
    longest_tx: u16,
    longest_rx: u16,
    /// Of one page.
    longest_rx_page: u16,
    refused: [u64; Refusal::COUNT],
    fault: Option<Fault>,
}

impl<M: Memory> Netback<M> {
    /// The backend of the frontend that has made the rings in these pages.
    ///
    /// It takes frames of up to `longest_tx` bytes, and gives such of up to `longest_rx`; one page is
    /// the most that a frontend without `feature-sg` can be given, and three are the most of all.
    pub fn new(tx: M, rx: M, longest_tx: u16, longest_rx: u16) -> Self {
        let (tx, rx) = (TxRing::attach(tx), RxRing::attach(rx));
        let longest_rx = longest_rx.min((RX_PAGES * PAGE_SIZE) as u16);
        let longest_rx_page = longest_rx.min(PAGE_SIZE as u16);
        let refused = [0; Refusal::COUNT];
        Self { tx, rx, longest_tx, longest_rx, longest_rx_page, refused, fault: None }
    }

    /// What the frontend did wrong, if it did.
    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// Gives the interface up for a fault that was found elsewhere.
    pub fn give_up(&mut self, fault: Fault) -> Fault {
        *self.fault.get_or_insert(fault)
    }

    /// Frames of the frontend that were refused for that reason.
    pub fn refused(&self, why: Refusal) -> u64 {
        self.refused[why as usize]
    }

    /// Frames of the frontend that were refused, for whatever reason.
    pub fn refusals(&self) -> u64 {
        self.refused.iter().sum()
    }

    /// Requests to send that were taken and have no answer.
    pub fn owed_tx(&self) -> u32 {
        self.tx.unanswered()
    }

    /// Pages to receive that were taken and have no answer.
    pub fn owed_rx(&self) -> u32 {
        self.rx.unanswered()
    }

    fn sane(&self) -> Result<(), Fault> {
        self.fault.map_or(Ok(()), Err)
    }

    fn check<T, E: Into<Fault>>(&mut self, result: Result<T, E>) -> Result<T, Fault> {
        result.map_err(|fault| self.give_up(fault.into()))
    }

    /// Takes the next frame that the frontend wants to send. What is refused is answered at once, so
    /// [`Self::publish`] after it even if there is no frame.
    ///
    /// However fast the frontend is, it cannot keep a caller in here for more than a ring of frames
    /// that are refused.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn take_tx(&mut self) -> Result<Option<TxFrame>, Fault> {
        let mut frame = TxFrame::EMPTY;
        Ok(self.take_tx_into(&mut frame)?.then_some(frame))
    }

    /// The same, into `frame`, whatever that held before; whether there is one.
    ///
    /// # Errors
    /// [`Fault`].
    #[inline]
    pub fn take_tx_into(&mut self, frame: &mut TxFrame) -> Result<bool, Fault> {
        Ok(self.take_tx_any(0, || frame)? != TakenTx::Nothing)
    }

    /// The same, into what `frame` gives, but a frame in a single slot and of up to `single` bytes is
    /// not put there: whoever forwards many of those has less to look at.
    ///
    /// # Errors
    /// [`Fault`].
    #[inline]
    pub fn take_tx_any<'f>(
        &mut self,
        single: u16,
        frame: impl FnOnce() -> &'f mut TxFrame,
    ) -> Result<TakenTx, Fault> {
        self.sane()?;
        let popped = self.tx.pop();
        let Some(first) = self.check(popped)? else { return Ok(TakenTx::Nothing) };
        match TxSingle::of(first, single.min(self.longest_tx)) {
            Some(single) => Ok(TakenTx::Single(single)),
            None => self.take_chain(first, frame(), single),
        }
    }

    fn take_chain(
        &mut self,
        mut first: TxWords,
        frame: &mut TxFrame,
        single: u16,
    ) -> Result<TakenTx, Fault> {
        let start = self.tx.next().wrapping_sub(1);
        loop {
            let taken = frame.fill_from(first, &mut self.tx);
            match self.check(taken)? {
                Ok(()) if frame.total() <= self.longest_tx => return Ok(TakenTx::Chain),
                Ok(()) => self.refuse(frame, Refusal::Long),
                Err(why) => self.refuse(frame, why),
            }
            if self.tx.next().wrapping_sub(start) >= TxRing::<M>::SIZE {
                return Ok(TakenTx::Nothing);
            }
            let popped = self.tx.pop();
            let Some(next) = self.check(popped)? else { return Ok(TakenTx::Nothing) };
            if let Some(single) = TxSingle::of(next, single.min(self.longest_tx)) {
                return Ok(TakenTx::Single(single));
            }
            first = next;
        }
    }

    #[cold]
    fn refuse(&mut self, frame: &mut TxFrame, why: Refusal) {
        let count = &mut self.refused[why as usize];
        *count = count.wrapping_add(1);
        let answered = self.settle_tx(frame, Status::ERROR);
        debug_assert!(answered.is_ok(), "its requests have just been taken");
    }

    /// Answers all requests of a frame; the frontend is shown it with the next [`Self::publish`].
    ///
    /// # Errors
    /// [`Unasked`] if the frame was not taken from this interface since it was connected.
    pub fn answer_tx(&mut self, mut frame: TxFrame, status: Status) -> Result<(), Unasked> {
        self.settle_tx(&mut frame, status)
    }

    /// The same for a frame that stays where it is, and is owed no answer any more then.
    ///
    /// # Errors
    /// As [`Self::answer_tx`].
    #[inline]
    pub fn settle_tx(&mut self, frame: &mut TxFrame, status: Status) -> Result<(), Unasked> {
        let fragments = frame.fragments();
        if frame.extras > 0
            && (self.tx.unanswered() as usize) < fragments.len() + usize::from(frame.extras)
        {
            return Err(Unasked);
        }
        let answer = |n: usize| TxResponse { id: fragments[n].id, status };
        self.tx.push_each(fragments.len(), answer)?;
        for _ in 0..frame.extras {
            self.tx.push(&TxResponse { id: 0, status: Status::NULL })?;
        }
        frame.clear();
        Ok(())
    }

    /// Answers a frame in a single slot, whose fragment has this `id`.
    ///
    /// # Errors
    /// [`Unasked`] if there is no request without an answer.
    #[inline]
    pub fn settle_single(&mut self, id: u16, status: Status) -> Result<(), Unasked> {
        self.tx.push(&TxResponse { id, status })
    }

    /// The same of so many of them, of which `answer` says the id and how it went.
    ///
    /// # Errors
    /// [`Unasked`] if there are not so many requests without an answer; none is answered then.
    #[inline]
    pub fn settle_singles(
        &mut self,
        count: usize,
        mut answer: impl FnMut(usize) -> (u16, Status),
    ) -> Result<(), Unasked> {
        self.tx.push_each(count, |n| {
            let (id, status) = answer(n);
            TxResponse { id, status }
        })
    }

    /// Pages that a frame of `len` bytes takes.
    fn pages(len: u16) -> u32 {
        u32::from(len).div_ceil(PAGE_SIZE as u32).max(1)
    }

    /// Whether a frame of `len` bytes can ever be given to the frontend.
    pub fn may_give(&self, len: u16) -> bool {
        len <= self.longest_rx
    }

    /// Takes pages for a frame of `len` bytes, if the frontend has as many, or none. What it will be told
    /// of them is written already: `sums` must be so when the frame is there.
    ///
    /// # Errors
    /// [`Fault`].
    #[inline]
    pub fn take_rx(&mut self, len: u16, sums: Sums) -> Result<Option<RxFrame>, Fault> {
        const PAGE: usize = PAGE_SIZE;
        let size = |n| usize::from(len).saturating_sub(n * PAGE).min(PAGE) as u16;
        let mut pages = RxFrame::NONE;
        Ok(self.take_pages(len, sums, &mut pages, size)?.then_some(pages))
    }

    /// Whether a frame of another peer's lies in no more pages than it needs.
    #[inline]
    pub fn is_dense(frame: &TxFrame) -> bool {
        Self::pages(frame.total()) as usize == frame.fragments().len()
    }

    /// Takes pages for such a frame, one for each of its fragments, so that each can be copied in one
    /// piece, if the frontend has as many; whether `pages` are those. As in [`Self::take_rx`], what is
    /// known of its sums is written already.
    ///
    /// # Errors
    /// [`Fault`].
    #[inline]
    pub fn take_rx_like(&mut self, frame: &TxFrame, pages: &mut RxFrame) -> Result<bool, Fault> {
        let size = |n: usize| frame.fragments().get(n).map_or(0, |fragment| fragment.size);
        self.take_pages(frame.total(), frame.sums(), pages, size)
    }

    /// Takes pages for `len` bytes, of which so many go into each; whether there are as many.
    #[inline]
    fn take_pages(
        &mut self,
        len: u16,
        sums: Sums,
        pages: &mut RxFrame,
        size: impl Fn(usize) -> u16,
    ) -> Result<bool, Fault> {
        self.sane()?;
        let wanted = Self::pages(len) as usize;
        let available = self.rx.available();
        if !self.may_give(len) || (self.check(available)? as usize) < wanted {
            return Ok(false);
        }
        // No more than fit: `longest_rx` is not longer.
        (pages.owed.start, pages.owed.count) = (self.rx.next(), wanted as u8);
        let mut places = pages.slots.iter_mut().zip(&mut pages.owed.ids);
        self.rx.draft_each(wanted, |n, RxRequest { id, gref }| {
            let size = size(n);
            if let Some((slot, owed)) = places.next() {
                (*slot, *owed) = (RxSlot { gref: GrantRef(gref), size }, id);
            }
            let more = if n + 1 < wanted { rx_flags::MORE_DATA } else { 0 };
            let flags = more | if n == 0 { sums.rx_flags() } else { 0 };
            // A page's bytes at most.
            RxResponse { id, offset: 0, flags, status: size.cast_signed() }.into()
        });
        Ok(true)
    }

    /// Takes one page for a frame of `len` bytes, which goes to its first byte, as [`Self::take_rx`] does;
    /// `None` if the frontend has none, or one does not do.
    ///
    /// # Errors
    /// [`Fault`].
    #[inline]
    pub fn take_rx_page(
        &mut self,
        len: u16,
        sums: Sums,
    ) -> Result<Option<(GrantRef, OwedPage)>, Fault> {
        self.sane()?;
        if len > self.longest_rx_page {
            return Ok(None);
        }
        let start = self.rx.next() as u16;
        // A page's bytes at most.
        let (flags, status) = (sums.rx_flags(), len.cast_signed());
        let popped = self.rx.draft_next(|RxRequest { id, .. }| {
            RxResponse { id: *id, offset: 0, flags, status }.into()
        });
        let Some(RxRequest { id, gref }) = self.check(popped)? else { return Ok(None) };
        Ok(Some((GrantRef(gref), OwedPage { id, start })))
    }

    /// Answers for the page of a frame that is there, or could not be copied, as [`Self::answer_rx`] does.
    ///
    /// # Errors
    /// As [`Self::answer_rx`].
    #[inline]
    pub fn answer_rx_page(&mut self, page: OwedPage, whole: bool) -> Result<(), Unasked> {
        if self.rx.answered() as u16 != page.start {
            return Err(Unasked);
        }
        if !whole {
            self.fail(&[page.id])?;
        }
        self.rx.push_drafts(1)
    }

    /// Answers for the pages of a frame that is there, or could not be copied; the frontend is shown it
    /// with the next [`Self::publish`].
    ///
    /// Frontends know a page by its place, so frames are answered in the order in which their pages
    /// were taken.
    ///
    /// # Errors
    /// [`Unasked`] if it is not this frame's turn, or it was not taken from this interface since it
    /// was connected.
    #[inline]
    pub fn answer_rx(&mut self, frame: Owed, whole: bool) -> Result<(), Unasked> {
        if self.rx.answered() != frame.start {
            return Err(Unasked);
        }
        if !whole {
            self.fail(&frame.ids[..usize::from(frame.count)])?;
        }
        self.rx.push_drafts(frame.count.into())
    }

    /// Writes anew what is said of the next pages: nothing is in them.
    #[cold]
    fn fail(&mut self, ids: &[u16]) -> Result<(), Unasked> {
        let start = self.rx.answered();
        for (n, id) in (0..).zip(ids) {
            let failed = RxResponse { id: *id, offset: 0, flags: 0, status: Status::ERROR.0 };
            self.rx.draft(start.wrapping_add(n), &failed.into())?;
        }
        Ok(())
    }

    /// Shows the frontend all answers, and says whom to notify.
    pub fn publish(&mut self) -> Notify {
        if self.fault.is_some() {
            return Notify::default();
        }
        Notify { tx: self.tx.publish(), rx: self.rx.publish() }
    }

    /// Asks for an event when the frontend sends, and, with the length of a frame that waits, when
    /// there are pages for it. Whether there is such work already: then do not sleep.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn arm(&mut self, waiting: Option<u16>) -> Result<bool, Fault> {
        self.sane()?;
        let tx = self.tx.arm(1);
        let mut work = self.check(tx)?;
        if let Some(len) = waiting {
            let rx = self.rx.arm(Self::pages(len));
            work |= self.check(rx)?;
        }
        Ok(work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netif::{TxRequest, tx_flags};
    use crate::shared_ring::FrontRing;
    use proptest::prelude::*;

    #[repr(align(4096))]
    struct Page([u8; PAGE_SIZE]);

    /// An interface, whose frontend is the test.
    struct Bench {
        tx: FrontRing<TxWords, TxResponse>,
        rx: FrontRing<RxRequest, RxWords>,
        back: Netback,
        _pages: [Box<Page>; 2],
    }

    fn bench() -> Bench {
        let mut pages = [(); 2].map(|()| Box::new(Page([0; PAGE_SIZE])));
        let [tx, rx] = pages.each_mut().map(|page| page.0.as_mut_ptr());
        // SAFETY: the bench keeps the pages as long as both ends.
        let shared = |page| unsafe { SharedPage::new(page) };
        Bench {
            tx: FrontRing::new(shared(tx)),
            rx: FrontRing::new(shared(rx)),
            back: Netback::new(shared(tx), shared(rx), 9018, 9018),
            _pages: pages,
        }
    }

    fn request(id: u16, size: u16, flags: u16) -> TxWords {
        TxRequest { gref: 1000 + u32::from(id), offset: 0, flags, id, size }.into()
    }

    #[test]
    fn a_frame_goes_in_and_its_answer_comes_out() {
        let Bench { mut tx, mut back, _pages, .. } = bench();
        tx.push(&request(7, 5000, tx_flags::MORE_DATA | tx_flags::CSUM_BLANK)).unwrap();
        tx.push(&request(9, 904, 0)).unwrap();
        assert_eq!(back.take_tx(), Ok(None), "it has not been shown");
        assert!(tx.publish());
        let frame = back.take_tx().unwrap().unwrap();
        assert_eq!((frame.total(), frame.sums()), (5000, Sums::new(true, false)));
        assert_eq!(back.take_tx(), Ok(None));
        assert_eq!(back.owed_tx(), 2);
        back.answer_tx(frame, Status::OKAY).unwrap();
        assert_eq!(tx.pop(), Ok(None), "it has not been shown");
        assert_eq!(back.publish(), Notify { tx: true, rx: false });
        let status = Status::OKAY;
        assert_eq!(tx.pop(), Ok(Some(TxResponse { id: 7, status })));
        assert_eq!(tx.pop(), Ok(Some(TxResponse { id: 9, status })));
        assert_eq!((tx.pop(), back.owed_tx()), (Ok(None), 0));
        assert_eq!(back.publish(), Notify::default());
    }

    #[test]
    fn a_refused_frame_is_answered_at_once_and_the_next_is_taken() {
        let Bench { mut tx, mut back, _pages, .. } = bench();
        tx.push(&request(1, 13, 0)).unwrap();
        tx.push(&request(2, 60, tx_flags::EXTRA_INFO)).unwrap();
        tx.push(&[1, 0, 0]).unwrap();
        for n in 0..20 {
            let size = if n == 0 { 2000 } else { 100 };
            let flags = if n < 19 { tx_flags::MORE_DATA } else { 0 };
            tx.push(&request(100 + n, size, flags)).unwrap();
        }
        let long = request(3, 9019, tx_flags::MORE_DATA);
        tx.push(&long).unwrap();
        tx.push(&request(4, 4096, tx_flags::MORE_DATA)).unwrap();
        tx.push(&request(4, 4096, 0)).unwrap();
        tx.push(&request(5, 60, 0)).unwrap();
        let _ = tx.publish();
        let frame = back.take_tx().unwrap().unwrap();
        assert_eq!(frame.fragments()[0].id, 5);
        for why in [Refusal::Short, Refusal::Segments, Refusal::Slots, Refusal::Long] {
            assert_eq!(back.refused(why), 1, "{why}");
        }
        assert_eq!(back.refused(Refusal::Extra), 0);
        assert_eq!(back.owed_tx(), 1);
        back.answer_tx(frame, Status::OKAY).unwrap();
        let _ = back.publish();
        let mut answers = [0; 200];
        let mut null = 0;
        while let Some(TxResponse { id, status }) = tx.pop().unwrap() {
            match status {
                Status::NULL => null += 1,
                Status::OKAY => assert_eq!(id, 5),
                _ => answers[usize::from(id)] += 1,
            }
        }
        assert_eq!(null, 1);
        assert_eq!((answers[1], answers[2], answers[3], answers[4]), (1, 1, 1, 2));
        assert_eq!(answers[100..120], [1; 20]);
        assert_eq!(tx.room(), 256);
    }

    #[test]
    fn a_fault_ends_everything_until_it_connects_anew() {
        let Bench { mut tx, mut rx, mut back, _pages } = bench();
        rx.push(&RxRequest { id: 0, gref: 8 }).unwrap();
        let _ = rx.publish();
        tx.push(&request(1, 60, tx_flags::MORE_DATA)).unwrap();
        let _ = tx.publish();
        assert_eq!(back.take_tx(), Err(Fault::Cut));
        assert_eq!(back.take_tx(), Err(Fault::Cut));
        assert_eq!(back.take_rx(60, Sums::default()), Err(Fault::Cut));
        assert_eq!(back.arm(None), Err(Fault::Cut));
        assert_eq!(back.publish(), Notify::default());
        assert_eq!(back.fault(), Some(Fault::Cut));
    }

    #[test]
    fn a_stranger_s_frame_is_not_answered() {
        let (mut one, mut other) = (bench(), bench());
        one.tx.push(&request(1, 60, 0)).unwrap();
        let _ = one.tx.publish();
        let frame = one.back.take_tx().unwrap().unwrap();
        assert_eq!(other.back.answer_tx(frame, Status::OKAY), Err(Unasked));
        for bench in [&mut one, &mut other] {
            for id in 0..3 {
                bench.rx.push(&RxRequest { id, gref: 9 }).unwrap();
            }
            let _ = bench.rx.publish();
        }
        let sums = Sums::default();
        let mut take = || one.back.take_rx(60, sums).unwrap().unwrap().owed;
        let (first, second) = (take(), take());
        assert_eq!(one.back.answer_rx(second, false), Err(Unasked), "not its turn");
        let page = one.back.take_rx_page(60, sums).unwrap().unwrap().1;
        assert_eq!(one.back.answer_rx_page(page, false), Err(Unasked), "not its turn");
        assert_eq!(other.back.answer_rx(first, false), Err(Unasked));
    }

    #[test]
    fn whoever_waits_is_woken() {
        let Bench { mut tx, mut rx, mut back, _pages } = bench();
        assert_eq!(back.arm(Some(9000)), Ok(false));
        for id in 0..3 {
            rx.push(&RxRequest { id, gref: 9 }).unwrap();
            assert_eq!(rx.publish(), id == 2, "three pages are wanted");
        }
        assert_eq!(back.arm(Some(9000)), Ok(true));
        assert_eq!(back.arm(None), Ok(false));
        tx.push(&request(1, 60, 0)).unwrap();
        assert!(tx.publish());
        assert_eq!(back.arm(None), Ok(true));
    }

    proptest! {
        /// A frame gets the pages that it needs, in their order, or none; and its answers say so.
        #[test]
        fn pages_are_taken_whole_or_not_at_all(
            pages in 0u16..20, frames in proptest::collection::vec((1u16..=10_000, any::<[bool; 3]>()), 0..8)
        ) {
            let Bench { mut rx, mut back, _pages, .. } = bench();
            for id in 0..pages {
                rx.push(&RxRequest { id, gref: 50 + u32::from(id) }).unwrap();
            }
            let _ = rx.publish();
            let (mut used, mut given) = (0, Vec::new());
            for (len, how) in frames {
                let wanted = len.div_ceil(4096);
                let [_, blank, validated] = how;
                let taken = back.take_rx(len, Sums::new(blank, validated)).unwrap();
                let fits = len <= 9018 && wanted <= pages - used;
                prop_assert_eq!(taken.is_some(), fits);
                if let Some(frame) = taken {
                    let slots = frame.slots();
                    let grefs: Vec<_> = slots.iter().map(|slot| slot.gref.0).collect();
                    let first = 50 + u32::from(used);
                    prop_assert_eq!(grefs, (first..first + u32::from(wanted)).collect::<Vec<_>>());
                    prop_assert_eq!(slots.iter().map(|slot| slot.size).sum::<u16>(), len);
                    used += wanted;
                    given.push((frame, len, how));
                }
            }
            prop_assert_eq!(back.owed_rx(), u32::from(used));
            let mut wanted = Vec::new();
            for (frame, len, [failed, blank, validated]) in given {
                let slots = frame.slots().len();
                back.answer_rx(frame.owed, !failed).unwrap();
                wanted.extend((0..slots).map(|n| {
                    let size = (len - 4096 * n as u16).min(4096) as i16;
                    let more = if n + 1 < slots { 4 } else { 0 };
                    let sum = 2 * u16::from(blank) + u16::from(blank || validated);
                    let sum = if n == 0 { sum } else { 0 };
                    if failed { (-1, 0) } else { (size, more + sum) }
                }));
            }
            let _ = back.publish();
            let mut answers = Vec::new();
            while let Some(words) = rx.pop().unwrap() {
                let RxResponse { id, offset, flags, status } = words.into();
                prop_assert_eq!((usize::from(id), offset), (answers.len(), 0));
                answers.push((status, flags));
            }
            prop_assert_eq!(answers, wanted);
        }
    }
}
