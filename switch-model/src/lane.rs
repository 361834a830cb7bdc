// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames in flight, in the caller's memory: a ring if they cannot overtake, a heap if they can.
//!
//! The heap has four branches at each node: half the levels of a binary one, and the four that are
//! compared lie side by side. A frame that leaves is replaced by walking its gap down to the bottom
//! without asking whether the last frame would fit before, as it hardly ever does. Frames of the same
//! key leave in an order that this shape and this walk decide: it is part of the frozen trace.

use core::hint::select_unpredictable;

use crate::frame::LAST_ARRIVAL;

/// Room for one frame: 16 bytes.
///
/// A port takes a power of two of them. What they hold is the port's business: a frame in flight, and
/// beside it, of some other frame that waits for the serialiser, what tells when that leaves.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Time in ns, shifted by [`FLAGS`] bits of flags.
    pub(crate) key: u64,
    /// The caller's handle.
    pub(crate) tag: u32,
    /// Length of a waiting frame.
    pub(crate) len: u16,
    /// When a waiting frame leaves; in a queue, a link.
    pub(crate) node: u16,
}

impl Slot {
    /// An unused slot.
    pub const EMPTY: Self = Self { key: 0, tag: 0, len: 0, node: 0 };
}

impl Default for Slot {
    fn default() -> Self {
        Self::EMPTY
    }
}

const _: () = assert!(size_of::<Slot>() == 16);
const _: () = assert!(LAST_ARRIVAL < NOTHING >> FLAGS);

/// Bits of flags below the time.
pub(crate) const FLAGS: u32 = 3;
/// The frame is a copy. The most significant flag, so that a copy comes after its original.
pub(crate) const FLAG_COPY: u64 = 4;
/// The frame is marked.
pub(crate) const FLAG_MARK: u64 = 2;
/// A bit of the frame is flipped.
pub(crate) const FLAG_CORRUPT: u64 = 1;

/// The key of no frame: all arrive earlier.
pub(crate) const NOTHING: u64 = u64::MAX;

/// Slots that a queue linked through them can address.
pub(crate) const MAX_LINKED: usize = 1 << 15;

/// Branches of the heap at each node.
const BRANCHES: usize = 4;

/// The slot of the heap's top, if there are so many: it makes neighbours lie in groups of four.
const TOP: usize = BRANCHES - 1;

/// Frames in flight. Slots that hold none hold [`NOTHING`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lane {
    /// The first frame of the ring, or the top of the heap; to be masked.
    head: usize,
    held: usize,
    /// The port's, and here because there is room: frames up to this take the shortest way through it.
    /// What is true of [`PortConfig::simple_frame`](crate::PortConfig) is true of them, the slots tell
    /// when frames leave the buffer, the line only delays and loses, and frames in flight are in a
    /// ring. Otherwise 0.
    pub(crate) plain: u16,
    /// The same, but the line jitters as well, and frames in flight are in a heap.
    pub(crate) jittered: u16,
    heap: bool,
}

impl Lane {
    /// No frame in flight.
    pub(crate) fn new(slots: &mut [Slot]) -> Self {
        slots.iter_mut().for_each(|slot| slot.key = NOTHING);
        Self::default()
    }

    pub(crate) fn held(&self) -> usize {
        self.held
    }

    pub(crate) fn is_heap(&self) -> bool {
        self.heap
    }

    /// Lets frames overtake each other from now on, or not.
    ///
    /// A heap serves ordered frames as well, so it goes on until it is empty.
    #[inline]
    pub(crate) fn set_ordered(&mut self, slots: &mut [Slot], ordered: bool) {
        if ordered == self.heap && !(ordered && self.held > 0) {
            self.convert(slots, !ordered);
        }
    }

    #[cold]
    fn convert(&mut self, slots: &mut [Slot], heap: bool) {
        let (mask, ring) = (slots.len() - 1, self.head);
        (self.heap, self.head) = (heap, if heap { TOP } else { 0 });
        if !heap {
            return;
        }
        let mut places = 0;
        for i in 0..slots.len() {
            let from = slot_of(i, slots.len());
            let Slot { key, tag, .. } = slots[from];
            slots[from].key = NOTHING;
            if (from.wrapping_sub(ring) & mask) < self.held {
                // What was there has been read, as `places` is never ahead.
                rise(slots, places, key, tag);
                places += 1;
            }
        }
    }

    /// Adds a frame. The caller has seen that there is room, and whether this `is_heap`.
    #[inline]
    pub(crate) fn push(&mut self, slots: &mut [Slot], is_heap: bool, key: u64, tag: u32) {
        if is_heap {
            rise(slots, self.held, key, tag);
        } else {
            let i = self.head.wrapping_add(self.held) & (slots.len() - 1);
            (slots[i].key, slots[i].tag) = (key, tag);
        }
        self.held += 1;
    }

    /// The key of the frame that is due first.
    #[inline]
    pub(crate) fn first(&self, slots: &[Slot]) -> u64 {
        if slots.is_empty() { NOTHING } else { slots[self.head & (slots.len() - 1)].key }
    }

    /// Takes the frame that is due first, if its key is at most `limit`, which is below [`NOTHING`].
    #[inline]
    pub(crate) fn pop(&mut self, slots: &mut [Slot], limit: u64) -> Option<(u64, u32)> {
        if slots.is_empty() {
            return None;
        }
        let mask = slots.len() - 1;
        let first = &mut slots[self.head & mask];
        let Slot { key, tag, .. } = *first;
        if key > limit {
            return None;
        }
        self.held -= 1;
        if self.heap {
            fill(slots, self.held);
        } else {
            first.key = NOTHING;
            self.head = self.head.wrapping_add(1);
        }
        Some((key, tag))
    }
}

/// Where the heap's place `place` is in the memory.
#[inline]
fn slot_of(place: usize, slots: usize) -> usize {
    (place + TOP) & (slots - 1)
}

/// Puts a frame where `gap` is, or above it if it is due before what is there.
#[inline]
fn rise(slots: &mut [Slot], mut gap: usize, key: u64, tag: u32) {
    let len = slots.len();
    while gap > 0 {
        let above = (gap - 1) / BRANCHES;
        let Slot { key: above_key, tag: above_tag, .. } = slots[slot_of(above, len)];
        if above_key <= key {
            break;
        }
        let slot = &mut slots[slot_of(gap, len)];
        (slot.key, slot.tag) = (above_key, above_tag);
        gap = above;
    }
    let slot = &mut slots[slot_of(gap, len)];
    (slot.key, slot.tag) = (key, tag);
}

/// Fills the gap at the top with what is below; the last of the heap, at `last`, goes elsewhere.
///
/// Which way the gap goes is a matter of chance, so nothing branches on it. Unused slots hold
/// [`NOTHING`], so that all ways are equally long.
#[inline(never)]
fn fill(slots: &mut [Slot], last: usize) {
    let mask = slots.len() - 1;
    let end = &mut slots[(last + TOP) & mask];
    let Slot { key, tag, .. } = *end;
    end.key = NOTHING;
    if last == 0 {
        return;
    }
    let (mut gap, mut group) = (TOP, 1);
    // The levels below the top begin at the places 1, 5, 21, …
    let levels = (3 * last).ilog2() / 2;
    // Not in a loop from the start: a processor learns by its place in the code which load has to wait
    // for which store, and that of one level waits for those of the same.
    if levels > 1 {
        (gap, group) = descend(slots, gap, group);
    }
    if levels > 2 {
        (gap, group) = descend(slots, gap, group);
    }
    if levels > 3 {
        (gap, group) = descend(slots, gap, group);
    }
    for _ in 4..levels {
        (gap, group) = descend(slots, gap, group);
    }
    if levels > 0 {
        // The lowest level goes beyond the memory. The last group in it is the one with the top.
        let groups = slots.as_chunks::<BRANCHES>().0;
        let Some(four) = groups.get(group & (groups.len() - 1)) else { return };
        let (some, all) = (group <= groups.len(), group < groups.len());
        let real = |i: usize, is| select_unpredictable(is, four[i].key, NOTHING);
        let (below, key) = earliest([real(0, some), real(1, some), real(2, some), real(3, all)]);
        let tag = four[below].tag;
        let top = &mut slots[gap & mask];
        (top.key, top.tag) = (key, tag);
        gap = select_unpredictable(key == NOTHING, gap, group * BRANCHES + below);
    }
    rise(slots, gap - TOP, key, tag);
}

/// Fills the gap with the first of the group below it; where the gap is then, and what is below.
#[inline(always)]
fn descend(slots: &mut [Slot], gap: usize, group: usize) -> (usize, usize) {
    let mask = slots.len() - 1;
    let Some(four) = slots.as_chunks::<BRANCHES>().0.get(group) else { return (gap, group) };
    let (below, key) = earliest([four[0].key, four[1].key, four[2].key, four[3].key]);
    let tag = four[below].tag;
    let top = &mut slots[gap & mask];
    (top.key, top.tag) = (key, tag);
    let gap = group * BRANCHES + below;
    (gap, gap - (TOP - 1))
}

/// Which of four is the first, and its key.
#[inline(always)]
fn earliest(keys: [u64; BRANCHES]) -> (usize, u64) {
    let [a, b, c, d] = keys;
    earlier(earlier((0, a), (1, b)), earlier((2, c), (3, d)))
}

/// Which one it is, is a matter of chance: select, do not branch.
#[inline(always)]
fn earlier(a: (usize, u64), b: (usize, u64)) -> (usize, u64) {
    let wins = b.1 < a.1;
    (select_unpredictable(wins, b.0, a.0), select_unpredictable(wins, b.1, a.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeSet, vec};

    /// Both forms, and the change between them, against an ordered set.
    #[test]
    fn a_lane_is_a_priority_queue() {
        for slots in [1usize, 2, 4, 8, 64, 1024] {
            let mut memory = vec![Slot::EMPTY; slots];
            let mut lane = Lane::new(&mut memory);
            let mut model: BTreeSet<(u64, u32)> = BTreeSet::new();
            let mut base = 0;
            for n in 0..20_000u64 {
                let draw = crate::rng::mix(n + slots as u64);
                if n % 4000 == 1000 {
                    lane.set_ordered(&mut memory, false);
                } else if n % 4000 == 3000 {
                    lane.set_ordered(&mut memory, true);
                }
                let overtaking = (1000..3000).contains(&(n % 4000));
                if draw % 5 < 3 && model.len() < slots {
                    // Distinct keys; ascending while order is promised.
                    let key = match overtaking {
                        true => base + draw % 1_000_003,
                        false => model.last().map_or(base, |&(key, _)| key >> 20) + draw % 10,
                    };
                    let key = (key << 20) | n;
                    base = base.max(model.first().map_or(0, |f| f.0 >> 20));
                    lane.push(&mut memory, lane.is_heap(), key, n as u32);
                    model.insert((key, n as u32));
                } else {
                    assert_eq!(lane.first(&memory), model.first().map_or(NOTHING, |f| f.0));
                    assert_eq!(lane.pop(&mut memory, NOTHING - 1), model.pop_first());
                }
                assert_eq!(lane.held(), model.len());
            }
        }
    }

    #[test]
    fn nothing_comes_before_its_time() {
        let mut memory = [Slot::EMPTY; 4];
        let mut lane = Lane::new(&mut memory);
        lane.push(&mut memory, false, 80, 7);
        assert_eq!(lane.pop(&mut memory, 79), None);
        assert_eq!(lane.pop(&mut memory, 80), Some((80, 7)));
        assert_eq!(lane.pop(&mut memory, NOTHING - 1), None);
    }
}
