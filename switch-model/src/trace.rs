// SPDX-License-Identifier: MIT OR Apache-2.0
//! A fingerprint of all that a port decided: equal on every machine, profile and run.

use crate::{Delivery, Event, Verdict, rng::mix};

/// A running hash of verdicts and events. Frozen, as the draws are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceHash(u64);

impl TraceHash {
    /// The hash of what was added so far.
    pub const fn value(&self) -> u64 {
        self.0
    }

    /// Adds one number.
    pub fn add(&mut self, word: u64) {
        self.0 = mix(self.0.rotate_left(23) ^ mix(word.wrapping_add(0x9E37_79B9_7F4A_7C15)));
    }

    /// Adds the answer to an offered frame.
    pub fn add_verdict(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Deliver(fate) => {
                self.add(fate.deliver_at << 1 | u64::from(fate.mark));
                self.add(fate.duplicate_at.map_or(u64::MAX, |at| at));
                self.add(fate.corrupt_bit.map_or(u64::MAX, u64::from));
            }
            Verdict::Queued => self.add(u64::MAX - 1),
            Verdict::Drop(reason) => self.add(u64::MAX - 2 - *reason as u64),
        }
    }

    /// Adds a frame that has arrived.
    pub fn add_delivery(&mut self, delivery: &Delivery) {
        let Delivery { tag, at, mark, copy, corrupt } = *delivery;
        self.add(at);
        let flags = u64::from(mark) | u64::from(copy) << 1 | u64::from(corrupt) << 2;
        self.add(u64::from(tag) << 3 | flags);
    }

    /// Adds what a scheduled port or a switch said.
    pub fn add_event(&mut self, event: &Event) {
        match event {
            Event::Deliver(delivery) => self.add_delivery(delivery),
            Event::Drop { tag, at, reason } => {
                self.add(*at);
                self.add(u64::from(*tag) << 8 | 0x80 | *reason as u64);
            }
            Event::Duplicated { tag } => self.add(u64::from(*tag) << 8 | 0xFF),
        }
    }
}
