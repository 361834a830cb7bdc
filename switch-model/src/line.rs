// SPDX-License-Identifier: MIT OR Apache-2.0
//! The line behind the serialiser: delay, jitter, loss, copies, flipped bits, overtaking, bunches.

use crate::{
    frame::LAST_ARRIVAL,
    jitter::{JitterMemory, JitterModel, Opening, Openings},
    loss::{Chain, LossModel},
    rng::{Draws, Purpose},
};

/// A line, checked and ready.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Line {
    pub(crate) delay: u64,
    pub(crate) jitter: Option<JitterModel>,
    /// Frames arrive in the order in which they left.
    pub(crate) ordered: bool,
    pub(crate) loss: LossModel,
    pub(crate) copy: Option<Chain>,
    pub(crate) corrupt: Option<Chain>,
    pub(crate) reorder: Option<Chain>,
    pub(crate) slots: Option<Openings>,
    pub(crate) kind: LineKind,
}

/// How much there is to do for a frame that is not lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LineKind {
    /// Add the constant delay.
    Plain,
    /// Add uncorrelated jitter, and let frames overtake.
    Jittered,
    /// Anything else.
    Full,
}

/// What a line remembers from frame to frame.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LineState {
    /// The latest arrival so far.
    last: u64,
    opening: Opening,
    jitter: JitterMemory,
    loss: u8,
    memory: u8,
}

const COPY: u8 = 1;
const CORRUPT: u8 = 2;
const REORDER: u8 = 4;
const JITTERED: u8 = 8;

/// What the line does to a frame that it does not lose.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passage {
    pub(crate) at: u64,
    pub(crate) copy_at: Option<u64>,
    pub(crate) corrupt: bool,
}

impl Line {
    /// Whether the next frame is lost.
    #[inline]
    pub(crate) fn loses(&self, state: &mut LineState, draws: Draws) -> bool {
        self.loss.loses(&mut state.loss, draws)
    }

    /// When a frame whose last bit leaves at `left` arrives, on a line that only delays.
    #[inline]
    pub(crate) fn delayed(&self, state: &mut LineState, left: u64) -> u64 {
        let at = (left + self.delay).max(state.last);
        state.last = at;
        at
    }

    /// When it arrives on a line with uncorrelated jitter that lets frames overtake.
    #[inline(always)]
    pub(crate) fn jittered(&self, state: &mut LineState, left: u64, draws: Draws) -> u64 {
        let deviation = match &self.jitter {
            Some(jitter) => jitter.value(draws.get(Purpose::Jitter)),
            None => 0,
        };
        let at = (left + self.delay).saturating_add_signed(deviation);
        let at = at.max(left).min(LAST_ARRIVAL);
        state.last = state.last.max(at);
        at
    }

    /// Carries a frame whose last bit leaves at `left`, on any line.
    #[inline(never)]
    pub(crate) fn carry(
        &self,
        state: &mut LineState,
        left: u64,
        len: u32,
        draws: Draws,
    ) -> Passage {
        let mut chance = |chain: &Option<Chain>, bit, purpose| {
            chain.as_ref().is_some_and(|c| c.happens(&mut state.memory, bit, draws.get32(purpose)))
        };
        let copied = chance(&self.copy, COPY, Purpose::Copy);
        let corrupt = chance(&self.corrupt, CORRUPT, Purpose::Corrupt);
        let hurried = chance(&self.reorder, REORDER, Purpose::Reorder);

        let mut at = left.saturating_add(self.delay);
        if let Some(jitter) = &self.jitter {
            let fresh = state.memory & JITTERED == 0;
            state.memory |= JITTERED;
            let deviation = jitter.next(&mut state.jitter, fresh, draws.get(Purpose::Jitter));
            at = at.saturating_add_signed(deviation).max(left);
        }
        if hurried {
            at = left;
        }
        if self.ordered {
            at = at.max(state.last);
        }
        if let Some(openings) = &self.slots {
            at = openings.release(&mut state.opening, at, len, draws.get(Purpose::Slot));
            // A change of the description may have brought the openings nearer.
            at = at.max(state.last);
        }
        at = at.min(LAST_ARRIVAL);
        state.last = state.last.max(at);

        let copy_at = copied.then(|| match &self.jitter {
            Some(jitter) if !self.ordered => left
                .saturating_add(self.delay)
                .saturating_add_signed(jitter.value(draws.get(Purpose::CopyJitter)))
                .clamp(at, LAST_ARRIVAL),
            _ => at,
        });
        Passage { at, copy_at, corrupt }
    }
}

impl LineState {
    /// Lets the next frame arrive at least 1 ns after the last one: a heap, unlike a ring,
    /// keeps no order among frames of the same nanosecond.
    pub(crate) fn strictly_later(&mut self) {
        self.last = (self.last + 1).min(LAST_ARRIVAL);
    }

    /// Forgets what belongs to one model and means nothing to another.
    pub(crate) fn adopt(&mut self, old: &Line, new: &Line) {
        if old.loss != new.loss {
            self.loss = 0;
        }
        if old.jitter != new.jitter {
            self.memory &= !JITTERED;
        }
    }
}
