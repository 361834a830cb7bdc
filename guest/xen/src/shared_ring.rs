// SPDX-License-Identifier: MIT OR Apache-2.0
//! The rings of requests and responses of Xen's split drivers: both ends, one page between strangers.
//!
//! A frontend writes requests, its backend answers each in the same memory. Both count without end
//! and show two numbers: how far they have written, and when they want to be notified. Each end
//! keeps its own numbers in private memory, reads each of the other's once, and finds a
//! [`RingFault`] in any that cannot be true. Slots are read once, word by word, into private memory.
//!
//! A page is reached through [`Memory`], so that a test can put a model of one under the very same
//! code and try every order of events.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicU32, Ordering, fence};

use crate::abi::PAGE_SIZE;
use crate::ring::RingFault;

/// Words of a page.
const WORDS: usize = PAGE_SIZE / 4;
/// Word of the requests' producer; that of its event follows, then the same two of the responses.
const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 1;
const RSP_PROD: usize = 2;
const RSP_EVENT: usize = 3;
/// The first word of the slots.
const SLOTS: usize = 16;

/// The words of a shared page.
pub trait Memory {
    /// Reads a word.
    fn load(&self, word: usize, order: Ordering) -> u32;

    /// Writes a word.
    fn store(&self, word: usize, value: u32, order: Ordering);

    /// Keeps what was written before from being seen after what is read next.
    fn full_fence(&self);
}

/// A real page.
#[derive(Debug)]
pub struct SharedPage(*mut u32);

impl SharedPage {
    /// The page at `page`.
    ///
    /// # Safety
    /// It is aligned, stays mapped while this value is used, and everybody else accesses it
    /// atomically.
    pub const unsafe fn new(page: *mut u8) -> Self {
        Self(page.cast())
    }

    /// A word; beyond the page, it starts anew.
    fn word(&self, word: usize) -> &AtomicU32 {
        // SAFETY: `new`'s caller vouches for the page, and the word is in it.
        unsafe { AtomicU32::from_ptr(self.0.add(word % WORDS)) }
    }
}

impl Memory for SharedPage {
    fn load(&self, word: usize, order: Ordering) -> u32 {
        self.word(word).load(order)
    }

    fn store(&self, word: usize, value: u32, order: Ordering) {
        self.word(word).store(value, order);
    }

    fn full_fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// Something that lies in a slot, as its words.
pub trait Slot: Sized {
    /// How many they are.
    const WORDS: usize;

    /// Reads each word once.
    fn read(word: impl FnMut(usize) -> u32) -> Self;

    /// Writes each word.
    fn write(&self, word: impl FnMut(usize, u32));
}

impl<const N: usize> Slot for [u32; N] {
    const WORDS: usize = N;

    fn read(word: impl FnMut(usize) -> u32) -> Self {
        core::array::from_fn(word)
    }

    fn write(&self, mut word: impl FnMut(usize, u32)) {
        for (index, value) in self.iter().enumerate() {
            word(index, *value);
        }
    }
}

/// What both ends of a ring agree on.
#[derive(Debug)]
struct Layout<Req, Rsp>(PhantomData<fn() -> (Req, Rsp)>);

impl<Req: Slot, Rsp: Slot> Layout<Req, Rsp> {
    /// Words of a slot: room for either.
    const SLOT: usize = if Req::WORDS > Rsp::WORDS { Req::WORDS } else { Rsp::WORDS };
    /// Slots: the greatest power of two that fits.
    const SIZE: u32 = {
        let fit = (WORDS - SLOTS) / Self::SLOT;
        1 << (usize::BITS - 1 - fit.leading_zeros())
    };

    /// The first word of the slot that `index` stands for.
    fn slot(index: u32) -> usize {
        SLOTS + (index & (Self::SIZE - 1)) as usize * Self::SLOT
    }
}

fn read<T: Slot>(memory: &impl Memory, at: usize) -> T {
    T::read(|word| memory.load(at + word, Ordering::Relaxed))
}

fn write<T: Slot>(memory: &impl Memory, at: usize, value: &T) {
    value.write(|word, value| memory.store(at + word, value, Ordering::Relaxed));
}

/// Shows all up to `new`; whether the other end wants to know, if it has seen all up to `old`.
fn publish(memory: &impl Memory, prod: usize, event: usize, old: u32, new: u32) -> bool {
    memory.store(prod, new, Ordering::Release);
    // Either this end sees that the other wants to know, or the other sees what is there: a release
    // alone would allow neither.
    memory.full_fence();
    let event = memory.load(event, Ordering::Relaxed);
    new.wrapping_sub(event) < new.wrapping_sub(old)
}

/// There is no room for another request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The end that asks.
#[derive(Debug)]
pub struct FrontRing<Req, Rsp, M = SharedPage> {
    memory: M,
    slots: PhantomData<fn() -> (Req, Rsp)>,
    /// Requests written, and how many of them the backend was shown.
    req_prod: u32,
    shown: u32,
    /// Responses taken, and how many the backend has shown.
    rsp_cons: u32,
    seen: u32,
}

impl<Req: Slot, Rsp: Slot, M: Memory> FrontRing<Req, Rsp, M> {
    /// Slots of the ring.
    pub const SIZE: u32 = Layout::<Req, Rsp>::SIZE;

    /// An empty ring. Nothing of what the page held before is left.
    pub fn new(memory: M) -> Self {
        for word in 0..WORDS {
            let value = if word == REQ_EVENT || word == RSP_EVENT { 1 } else { 0 };
            memory.store(word, value, Ordering::Relaxed);
        }
        memory.full_fence();
        Self { memory, slots: PhantomData, req_prod: 0, shown: 0, rsp_cons: 0, seen: 0 }
    }

    /// Requests that there is room for.
    pub fn room(&self) -> u32 {
        Self::SIZE - self.req_prod.wrapping_sub(self.rsp_cons)
    }

    /// Writes a request, which the backend is not shown yet; its number is the answer.
    ///
    /// # Errors
    /// [`Full`].
    pub fn push(&mut self, request: &Req) -> Result<u32, Full> {
        if self.room() == 0 {
            return Err(Full);
        }
        let index = self.req_prod;
        write(&self.memory, Layout::<Req, Rsp>::slot(index), request);
        self.req_prod = index.wrapping_add(1);
        Ok(index)
    }

    /// Shows the backend what was written. Whether it must be notified.
    #[must_use]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.shown, self.req_prod);
        self.shown = new;
        old != new && publish(&self.memory, REQ_PROD, REQ_EVENT, old, new)
    }

    /// Looks how many responses there are: never more than requests were shown.
    ///
    /// # Errors
    /// [`RingFault`] if the backend claims more, or fewer than before.
    pub fn available(&mut self) -> Result<u32, RingFault> {
        let produced = self.memory.load(RSP_PROD, Ordering::Acquire);
        let new = produced.wrapping_sub(self.rsp_cons);
        let most = self.shown.wrapping_sub(self.rsp_cons);
        if new > most || new < self.seen.wrapping_sub(self.rsp_cons) {
            return Err(RingFault { produced, consumed: self.rsp_cons });
        }
        self.seen = produced;
        Ok(new)
    }

    /// The number of the next response, which is that of the request in whose slot it lies.
    pub fn next(&self) -> u32 {
        self.rsp_cons
    }

    /// Takes the next response.
    ///
    /// # Errors
    /// As [`Self::available`].
    pub fn pop(&mut self) -> Result<Option<Rsp>, RingFault> {
        if self.seen == self.rsp_cons && self.available()? == 0 {
            return Ok(None);
        }
        let response = read(&self.memory, Layout::<Req, Rsp>::slot(self.rsp_cons));
        self.rsp_cons = self.rsp_cons.wrapping_add(1);
        Ok(Some(response))
    }

    /// Asks to be notified when there are `count` responses; whether there are already.
    ///
    /// # Errors
    /// As [`Self::available`].
    pub fn arm(&mut self, count: u32) -> Result<bool, RingFault> {
        self.memory.store(RSP_EVENT, self.rsp_cons.wrapping_add(count), Ordering::Relaxed);
        self.memory.full_fence();
        Ok(self.available()? >= count)
    }
}

/// There is no request that is without a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unasked;

/// The end that answers.
#[derive(Debug)]
pub struct BackRing<Req, Rsp, M = SharedPage> {
    memory: M,
    slots: PhantomData<fn() -> (Req, Rsp)>,
    /// Requests taken, and how many the frontend has shown.
    req_cons: u32,
    seen: u32,
    /// Responses that count, and how many of them the frontend was shown.
    rsp_prod: u32,
    shown: u32,
}

impl<Req: Slot, Rsp: Slot, M: Memory> BackRing<Req, Rsp, M> {
    /// Slots of the ring.
    pub const SIZE: u32 = Layout::<Req, Rsp>::SIZE;

    /// The ring that a frontend has made; goes on where the last backend has answered, if that has
    /// written no response ahead: it would be read as a request.
    pub fn attach(memory: M) -> Self {
        let at = memory.load(RSP_PROD, Ordering::Acquire);
        Self { memory, slots: PhantomData, req_cons: at, seen: at, rsp_prod: at, shown: at }
    }

    /// Requests that were taken and have no response.
    pub fn unanswered(&self) -> u32 {
        self.req_cons.wrapping_sub(self.rsp_prod)
    }

    /// Looks how many requests there are: never more than slots that hold none.
    ///
    /// # Errors
    /// [`RingFault`] if the frontend claims more, or fewer than before.
    pub fn available(&mut self) -> Result<u32, RingFault> {
        let produced = self.memory.load(REQ_PROD, Ordering::Acquire);
        let new = produced.wrapping_sub(self.req_cons);
        let most = Self::SIZE - self.unanswered();
        if new > most || new < self.seen.wrapping_sub(self.req_cons) {
            return Err(RingFault { produced, consumed: self.req_cons });
        }
        self.seen = produced;
        Ok(new)
    }

    /// The number of the next request.
    pub fn next(&self) -> u32 {
        self.req_cons
    }

    /// Takes the next request.
    ///
    /// # Errors
    /// As [`Self::available`].
    pub fn pop(&mut self) -> Result<Option<Req>, RingFault> {
        if self.seen == self.req_cons && self.available()? == 0 {
            return Ok(None);
        }
        let request = read(&self.memory, Layout::<Req, Rsp>::slot(self.req_cons));
        self.req_cons = self.req_cons.wrapping_add(1);
        Ok(Some(request))
    }

    /// Takes the next request, and writes what `answer` says in its place, as [`Self::draft`] does.
    ///
    /// # Errors
    /// As [`Self::available`].
    #[inline]
    pub fn draft_next(
        &mut self,
        answer: impl FnOnce(&Req) -> Rsp,
    ) -> Result<Option<Req>, RingFault> {
        let at = Layout::<Req, Rsp>::slot(self.req_cons);
        let request = self.pop()?;
        if let Some(request) = &request {
            write(&self.memory, at, &answer(request));
        }
        Ok(request)
    }

    /// Takes up to `count` of the requests that [`Self::available`] has found, and writes what `each`
    /// answers to the first, the second, and so on, in its place, as [`Self::draft`] does.
    #[inline]
    pub fn draft_each(&mut self, count: usize, mut each: impl FnMut(usize, Req) -> Rsp) {
        let start = self.req_cons;
        let count = (count as u32).min(self.seen.wrapping_sub(start));
        self.req_cons = start.wrapping_add(count);
        for n in 0..count {
            let at = Layout::<Req, Rsp>::slot(start.wrapping_add(n));
            let answer = each(n as usize, read(&self.memory, at));
            write(&self.memory, at, &answer);
        }
    }

    /// Asks to be notified when there are `count` requests; whether there are already.
    ///
    /// # Errors
    /// As [`Self::available`].
    pub fn arm(&mut self, count: u32) -> Result<bool, RingFault> {
        self.memory.store(REQ_EVENT, self.req_cons.wrapping_add(count), Ordering::Relaxed);
        self.memory.full_fence();
        Ok(self.available()? >= count)
    }

    /// Writes a response, which the frontend is not shown yet.
    ///
    /// # Errors
    /// [`Unasked`]; nothing is written then.
    pub fn push(&mut self, response: &Rsp) -> Result<(), Unasked> {
        if self.unanswered() == 0 {
            return Err(Unasked);
        }
        write(&self.memory, Layout::<Req, Rsp>::slot(self.rsp_prod), response);
        self.rsp_prod = self.rsp_prod.wrapping_add(1);
        Ok(())
    }

    /// The same with the first `count` that `response` gives, all or none.
    ///
    /// # Errors
    /// [`Unasked`].
    #[inline]
    pub fn push_each(
        &mut self,
        count: usize,
        mut response: impl FnMut(usize) -> Rsp,
    ) -> Result<(), Unasked> {
        if (self.unanswered() as usize) < count {
            return Err(Unasked);
        }
        let mut at = self.rsp_prod;
        for n in 0..count {
            write(&self.memory, Layout::<Req, Rsp>::slot(at), &response(n));
            at = at.wrapping_add(1);
        }
        self.rsp_prod = at;
        Ok(())
    }

    /// Writes the response that will be number `index`, of a request that was taken and has none, ahead
    /// of its turn. It counts when [`Self::push_drafts`] comes to it, and can be written anew until then.
    ///
    /// # Errors
    /// [`Unasked`]; nothing is written then.
    #[inline]
    pub fn draft(&mut self, index: u32, response: &Rsp) -> Result<(), Unasked> {
        if index.wrapping_sub(self.rsp_prod) >= self.unanswered() {
            return Err(Unasked);
        }
        write(&self.memory, Layout::<Req, Rsp>::slot(index), response);
        Ok(())
    }

    /// Lets the next `count` responses count, which were written ahead.
    ///
    /// # Errors
    /// [`Unasked`] if there are not so many requests without a response; none counts then.
    #[inline]
    pub fn push_drafts(&mut self, count: u32) -> Result<(), Unasked> {
        if count > self.unanswered() {
            return Err(Unasked);
        }
        self.rsp_prod = self.rsp_prod.wrapping_add(count);
        Ok(())
    }

    /// The number of the next response.
    pub fn answered(&self) -> u32 {
        self.rsp_prod
    }

    /// Shows the frontend all responses that count. Whether it must be notified.
    #[must_use]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.shown, self.rsp_prod);
        self.shown = new;
        old != new && publish(&self.memory, RSP_PROD, RSP_EVENT, old, new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[repr(align(4096))]
    struct Page([u32; WORDS]);

    type Front = FrontRing<[u32; 3], [u32; 1]>;
    type Back = BackRing<[u32; 3], [u32; 1]>;

    /// A page, and both ends of a ring in it whose numbers all stand at `at`.
    fn ring(at: u32) -> (Box<Page>, Front, Back) {
        let mut page = Box::new(Page([0; WORDS]));
        let memory = page.0.as_mut_ptr();
        // SAFETY: the tests keep the page as long as both ends.
        let shared = || unsafe { SharedPage::new(memory.cast()) };
        let mut front = Front::new(shared());
        (front.req_prod, front.shown, front.rsp_cons, front.seen) = (at, at, at, at);
        for word in [REQ_PROD, RSP_PROD] {
            shared().store(word, at, Ordering::SeqCst);
        }
        for word in [REQ_EVENT, RSP_EVENT] {
            shared().store(word, at.wrapping_add(1), Ordering::SeqCst);
        }
        let back = Back::attach(shared());
        (page, front, back)
    }

    #[test]
    fn sizes_are_those_of_the_public_header() {
        assert_eq!((Front::SIZE, Back::SIZE), (256, 256));
        assert_eq!(FrontRing::<[u32; 2], [u32; 2], SharedPage>::SIZE, 256);
        assert_eq!(FrontRing::<[u32; 28], [u32; 4], SharedPage>::SIZE, 32);
        // The last slot ends within the page.
        assert!(Layout::<[u32; 28], [u32; 4]>::slot(31) + 28 <= WORDS);
        assert!(Layout::<[u32; 3], [u32; 1]>::slot(u32::MAX) + 3 <= WORDS);
    }

    #[test]
    fn a_new_ring_shows_nothing_of_what_was_there() {
        let mut page = Box::new(Page([0xdead_beef; WORDS]));
        // SAFETY: the page outlives the ring.
        let front = Front::new(unsafe { SharedPage::new(page.0.as_mut_ptr().cast()) });
        assert_eq!((front.room(), front.next()), (256, 0));
        assert_eq!(page.0[..4], [0, 1, 0, 1]);
        assert!(page.0[4..].iter().all(|word| *word == 0));
    }

    #[test]
    fn what_is_written_ahead_counts_in_its_turn() {
        for start in [0, u32::MAX - 1] {
            let (_page, mut front, mut back) = ring(start);
            for n in 0..4 {
                front.push(&[n, 0, 0]).unwrap();
            }
            let _ = front.publish();
            assert_eq!(back.draft(start, &[9]), Err(Unasked), "it has not been taken");
            assert_eq!(back.available(), Ok(4));
            back.draft_each(2, |n, [asked, ..]| [10 * n as u32 + asked]);
            assert_eq!(back.draft_next(|[asked, ..]| [100 + asked]), Ok(Some([2, 0, 0])));
            assert_eq!(back.push_drafts(4), Err(Unasked), "the last has not been taken");
            assert!(!back.publish());
            assert_eq!(front.pop(), Ok(None), "none counts yet");
            back.push_drafts(2).unwrap();
            assert_eq!(back.draft(start, &[9]), Err(Unasked), "it counts already");
            back.draft(start.wrapping_add(2), &[7]).unwrap();
            back.push_drafts(1).unwrap();
            assert!(back.publish());
            let answers: Vec<_> = std::iter::from_fn(|| front.pop().unwrap()).collect();
            assert_eq!((answers, back.unanswered()), (vec![[0], [11], [7]], 0));
            // The number of the next request to come is that of no request that was taken.
            assert_eq!(back.draft(start.wrapping_add(3), &[9]), Err(Unasked));
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Ask(u32),
        ShowAsked,
        Take(u32),
        Answer(u32),
        ShowAnswered,
        TakeAnswer(u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let count = || prop_oneof![4 => 1u32..6, 1 => 1u32..300];
        let step = prop_oneof![
            count().prop_map(Step::Ask),
            Just(Step::ShowAsked),
            count().prop_map(Step::Take),
            count().prop_map(Step::Answer),
            Just(Step::ShowAnswered),
            count().prop_map(Step::TakeAnswer),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        /// Two queues, of which at most SIZE requests are anywhere, wherever the numbers stand.
        #[test]
        fn requests_and_responses_arrive_once_and_in_order(
            at in prop_oneof![any::<u32>(), u32::MAX - 600..=u32::MAX], steps in steps(), ahead: bool,
        ) {
            let (_page, mut front, mut back) = ring(at);
            let (mut asked, mut shown) = (VecDeque::new(), VecDeque::new());
            let (mut answered, mut replied) = (VecDeque::new(), VecDeque::new());
            let (mut next, mut taken) = (0u32, VecDeque::new());
            for step in steps {
                match step {
                    Step::Ask(count) => for _ in 0..count {
                        let everywhere = asked.len() + shown.len() + taken.len()
                            + answered.len() + replied.len();
                        let pushed = front.push(&[next, !next, 7]);
                        prop_assert_eq!(pushed.is_ok(), everywhere < 256);
                        if pushed.is_ok() {
                            asked.push_back(next);
                            next += 1;
                        }
                    },
                    Step::ShowAsked => {
                        let _ = front.publish();
                        shown.append(&mut asked);
                    }
                    Step::Take(count) => for _ in 0..count {
                        // Every other response that is written ahead is wrong at first.
                        let draft = |[n, ..]: &[u32; 3]| [if n % 2 == 0 { *n } else { !n }];
                        let request = if ahead { back.draft_next(draft) } else { back.pop() };
                        let request = request.unwrap();
                        prop_assert_eq!(request, shown.pop_front().map(|n| [n, !n, 7]));
                        taken.extend(request.map(|[n, ..]| n));
                    },
                    Step::Answer(count) => for _ in 0..count {
                        let n = taken.pop_front();
                        let pushed = match n {
                            _ if !ahead => back.push(&[n.unwrap_or(0)]),
                            Some(n) if n % 2 == 1 => back
                                .draft(back.answered(), &[n])
                                .and_then(|()| back.push_drafts(1)),
                            _ => back.push_drafts(1),
                        };
                        prop_assert_eq!(pushed.is_ok(), n.is_some());
                        answered.extend(n);
                    },
                    Step::ShowAnswered => {
                        let _ = back.publish();
                        replied.append(&mut answered);
                    }
                    Step::TakeAnswer(count) => for _ in 0..count {
                        let response = front.pop().unwrap();
                        prop_assert_eq!(response, replied.pop_front().map(|n| [n]));
                    },
                }
            }
        }

        /// Only numbers that can be true are believed.
        #[test]
        fn an_impossible_number_is_a_fault(
            at: u32, asked in 0u32..=256, taken in 0u32..=256, answered in 0u32..=256, lie in 0u32..600,
        ) {
            let (page, mut front, mut back) = ring(at);
            let (taken, answered) = (taken.min(asked), answered.min(taken.min(asked)));
            for n in 0..asked {
                front.push(&[n, 0, 0]).unwrap();
            }
            let _ = front.publish();
            for _ in 0..taken {
                back.pop().unwrap();
            }
            for n in 0..answered {
                back.push(&[n]).unwrap();
            }
            // SAFETY: in the test's page.
            let memory = unsafe { SharedPage::new(page.0.as_ptr().cast_mut().cast()) };

            let lie = at.wrapping_add(lie).wrapping_sub(150);
            memory.store(REQ_PROD, lie, Ordering::SeqCst);
            let known = if taken > 0 { asked } else { 0 };
            let possible = known..=answered + 256;
            prop_assert_eq!(back.available().is_ok(), possible.contains(&lie.wrapping_sub(at)));

            let known = if taken > 0 {
                let _ = back.publish();
                front.available().unwrap()
            } else {
                0
            };
            memory.store(RSP_PROD, lie, Ordering::SeqCst);
            let possible = known..=asked;
            prop_assert_eq!(front.available().is_ok(), possible.contains(&lie.wrapping_sub(at)));
        }

        /// Exactly who asked for it is notified, and only once.
        #[test]
        fn the_event_that_was_asked_for_comes(at: u32, wait in 1u32..20, bunches in proptest::collection::vec(1u32..5, 1..20)) {
            let (_page, mut front, mut back) = ring(at);
            prop_assert!(!back.arm(wait).unwrap());
            let mut total = 0;
            for bunch in bunches {
                for n in 0..bunch {
                    front.push(&[n, 0, 0]).unwrap();
                }
                let due = (total + 1..=total + bunch).contains(&wait);
                prop_assert_eq!(front.publish(), due);
                prop_assert!(!front.publish());
                total += bunch;
            }
            prop_assert_eq!(back.arm(wait).unwrap(), total >= wait);
            while back.pop().unwrap().is_some() {}

            prop_assert!(!front.arm(total).unwrap());
            for n in 0..total {
                back.push(&[n]).unwrap();
                prop_assert_eq!(back.publish(), n + 1 == total);
            }
            prop_assert!(front.arm(total).unwrap());
        }
    }
}
