// SPDX-License-Identifier: MIT OR Apache-2.0
//! No wake-up is lost and no slot is read before it is written: a model checker runs both ends of a
//! ring through every order of events, and every reordering of their accesses that memory allows.
//!
//! The ends are the real ones, on a model of a page. Each check is also shown to see the fault that it
//! is there for: without the full fence a wake-up is lost, without the release a slot is read early.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use loom::sync::Notify;
use loom::sync::atomic::{AtomicU32, fence};
use loom::thread;
use tdf_xen::shared_ring::{BackRing, FrontRing, Memory};

/// Words of the header of a ring, and of the slots that the models use.
const HEADER: usize = 4;
const SLOTS: std::ops::Range<usize> = 16..20;

/// What a page does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weakness {
    None,
    /// Writes may be seen after later reads.
    NoFence,
    /// Slots may be seen after the index that shows them.
    NoRelease,
}

/// A model of a page.
#[derive(Clone)]
struct Page {
    words: Arc<[AtomicU32; HEADER + 4]>,
    weakness: Weakness,
}

impl Page {
    fn new(weakness: Weakness) -> Self {
        Self { words: Arc::new(std::array::from_fn(|_| AtomicU32::new(0))), weakness }
    }

    fn word(&self, word: usize) -> Option<&AtomicU32> {
        let index = if SLOTS.contains(&word) { HEADER + word - SLOTS.start } else { word };
        self.words.get(index)
    }

    fn order(&self, order: Ordering) -> Ordering {
        if self.weakness == Weakness::NoRelease { Ordering::Relaxed } else { order }
    }
}

impl Memory for Page {
    fn load(&self, word: usize, order: Ordering) -> u32 {
        self.word(word).expect("the models use four slots").load(self.order(order))
    }

    fn store(&self, word: usize, value: u32, order: Ordering) {
        // A new ring clears the rest of its page, which is not there.
        if let Some(at) = self.word(word) {
            at.store(value, self.order(order));
        }
    }

    fn full_fence(&self) {
        if self.weakness == Weakness::None {
            fence(Ordering::SeqCst);
        }
    }
}

type Front = FrontRing<[u32; 1], [u32; 1], Page>;
type Back = BackRing<[u32; 1], [u32; 1], Page>;

/// A ring, and the event channel of each end.
fn ring(weakness: Weakness) -> (Front, Back, Arc<[Notify; 2]>) {
    let page = Page::new(weakness);
    let front = Front::new(page.clone());
    let back = Back::attach(page);
    (front, back, Arc::new([Notify::new(), Notify::new()]))
}

/// Runs every order of events in which no thread loses its turn, when it could go on, more often than
/// `bound` says.
fn explore(bound: Option<usize>, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = bound;
    builder.check(model);
}

/// A frontend shows each of `count` requests for itself, while the backend takes them and sleeps in
/// between until there are `wait` more, or all.
fn requests(weakness: Weakness, bound: Option<usize>, count: u32, wait: u32) {
    explore(bound, move || {
        let (mut front, mut back, events) = ring(weakness);
        let channel = Arc::clone(&events);
        let backend = thread::spawn(move || {
            let mut taken = 0;
            while taken < count {
                while let Some([request]) = back.pop().expect("an honest frontend") {
                    assert_eq!(request, 100 + taken, "a slot was read before it was written");
                    taken += 1;
                }
                if taken < count && !back.arm(wait.min(count - taken)).expect("the same") {
                    channel[1].wait();
                }
            }
        });
        for n in 0..count {
            front.push(&[100 + n]).expect("room");
            if front.publish() {
                events[1].notify();
            }
        }
        backend.join().expect("the backend ends");
    });
}

/// A frontend asks `count` times and sleeps until it is answered, each time or after all; a backend
/// answers and sleeps in between.
fn conversation(weakness: Weakness, bound: Option<usize>, count: u32, together: bool) {
    explore(bound, move || {
        let (mut front, mut back, events) = ring(weakness);
        let channel = Arc::clone(&events);
        let backend = thread::spawn(move || {
            let mut taken = 0;
            while taken < count {
                loop {
                    // Answered when it is taken, or written ahead then.
                    let answered = match taken % 2 {
                        0 => back
                            .pop()
                            .map(|popped| popped.map(|[request]| back.push(&[request + 100]))),
                        _ => back
                            .draft_next(|[request]| [request + 100])
                            .map(|popped| popped.map(|_| back.push_drafts(1))),
                    };
                    let Some(answered) = answered.expect("an honest frontend") else { break };
                    answered.expect("it was asked");
                    taken += 1;
                }
                if back.publish() {
                    channel[0].notify();
                }
                if taken < count && !back.arm(1).expect("the same") {
                    channel[1].wait();
                }
            }
        });
        let (mut asked, mut answered) = (0, 0);
        while answered < count {
            while asked < if together { count } else { answered + 1 } {
                front.push(&[asked]).expect("room");
                asked += 1;
            }
            if front.publish() {
                events[1].notify();
            }
            while let Some([response]) = front.pop().expect("an honest backend") {
                assert_eq!(response, 100 + answered, "a slot was read before it was written");
                answered += 1;
            }
            if answered < asked && !front.arm(asked - answered).expect("the same") {
                events[0].wait();
            }
        }
        backend.join().expect("the backend ends");
    });
}

#[test]
fn no_request_sleeps() {
    requests(Weakness::None, None, 2, 1);
    requests(Weakness::None, Some(3), 3, 1);
}

#[test]
fn whoever_waits_for_several_is_woken_by_the_last() {
    requests(Weakness::None, None, 2, 2);
    requests(Weakness::None, Some(3), 3, 2);
}

#[test]
fn no_answer_sleeps() {
    conversation(Weakness::None, None, 1, true);
    conversation(Weakness::None, Some(4), 2, true);
    conversation(Weakness::None, Some(3), 2, false);
}

/// Whether the model checker finds fault.
fn is_seen(model: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(model)).is_err()
}

#[test]
fn a_missing_fence_is_seen() {
    assert!(is_seen(|| requests(Weakness::NoFence, None, 2, 1)));
    assert!(is_seen(|| conversation(Weakness::NoFence, Some(3), 2, false)));
}

#[test]
fn a_missing_release_is_seen() {
    assert!(is_seen(|| requests(Weakness::NoRelease, None, 2, 1)));
    assert!(is_seen(|| conversation(Weakness::NoRelease, None, 1, true)));
}
