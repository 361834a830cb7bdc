// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames in flight, in the caller's memory: a ring if they cannot overtake, a tournament if they can.
//!
//! The tournament's leaves are the slots themselves. Every inner node holds the number of the leaf
//! that is due first below it, so a change of one leaf replays the matches on its way to the root:
//! log2(slots) comparisons, the same for any load, whose operands do not depend on each other.

use core::hint::select_unpredictable;

use crate::ConfigError;

/// Room for one frame: 16 bytes.
///
/// A port takes a power of two of them. What they hold is the port's business.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Time in ns, shifted by [`FLAGS`] bits of flags. In a tournament, all ones: nothing.
    pub(crate) key: u64,
    /// The caller's handle. In a tournament's empty slot, the next empty one.
    pub(crate) tag: u32,
    /// Length of a frame that waits for the serialiser: a ring of its own, beside the rest.
    pub(crate) len: u16,
    /// A link of a queue, or the winner below one node of the tournament.
    pub(crate) node: u16,
}

impl Slot {
    /// An unused slot.
    pub const EMPTY: Self = Self { key: NOTHING, tag: 0, len: 0, node: 0 };
}

impl Default for Slot {
    fn default() -> Self {
        Self::EMPTY
    }
}

const _: () = assert!(size_of::<Slot>() == 16);

/// Bits of flags below the time.
pub(crate) const FLAGS: u32 = 3;
/// The frame is a copy. The most significant flag, so that a copy comes after its original.
pub(crate) const FLAG_COPY: u64 = 4;
/// The frame is marked.
pub(crate) const FLAG_MARK: u64 = 2;
/// A bit of the frame is flipped.
pub(crate) const FLAG_CORRUPT: u64 = 1;

/// The key of no frame.
pub(crate) const NOTHING: u64 = u64::MAX;

/// Slots that a tournament, or a queue linked through slots, can address.
pub(crate) const MAX_LINKED: usize = 1 << 15;

/// No slot.
const END: u32 = u32::MAX;

/// Frames in flight.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lane {
    /// Ring: the first frame. Tournament: the first empty slot.
    head: u32,
    held: u32,
    tournament: bool,
    /// The matches of the slot emptied last, `head`, are still to be replayed: the next frame will
    /// take that slot, and until then it is enough to look past it.
    stale: bool,
}

impl Lane {
    pub(crate) fn held(&self) -> u32 {
        self.held
    }

    pub(crate) fn is_tournament(&self) -> bool {
        self.tournament
    }

    /// Whether the lane can be what `ordered` asks for with so many slots.
    pub(crate) fn check(ordered: bool, slots: usize) -> Result<(), ConfigError> {
        if !slots.is_power_of_two() || slots > 1 << 31 {
            return Err(ConfigError::Slots);
        }
        if !ordered && slots > MAX_LINKED {
            return Err(ConfigError::TooManySlots);
        }
        Ok(())
    }

    /// Lets frames overtake each other from now on, or not.
    ///
    /// A tournament serves ordered frames as well, so it goes on until it is empty.
    #[inline]
    pub(crate) fn set_ordered(&mut self, slots: &mut [Slot], ordered: bool) {
        if ordered == self.tournament && !(ordered && self.held > 0) {
            self.convert(slots, !ordered);
        }
    }

    #[cold]
    fn convert(&mut self, slots: &mut [Slot], tournament: bool) {
        (self.tournament, self.stale) = (tournament, false);
        if !tournament {
            self.head = 0;
            return;
        }
        let (n, mask) = (slots.len(), slots.len() - 1);
        let ring = self.head as usize;
        self.head = END;
        for i in (0..n).rev() {
            if (i.wrapping_sub(ring) & mask) >= self.held as usize {
                slots[i] = Slot { key: NOTHING, tag: self.head, ..slots[i] };
                self.head = i as u32;
            }
        }
        for pair in (0..n).step_by(2) {
            replay(slots, pair);
        }
    }

    /// Adds a frame. The caller has seen that there is room.
    #[inline]
    pub(crate) fn push(&mut self, slots: &mut [Slot], key: u64, tag: u32) {
        let mask = slots.len() - 1;
        if self.tournament {
            self.head = enter(slots, self.head, key, tag);
            self.stale = false;
        } else {
            let i = (self.head.wrapping_add(self.held)) as usize & mask;
            (slots[i].key, slots[i].tag) = (key, tag);
        }
        self.held += 1;
    }

    /// The key of the frame that is due first.
    #[inline]
    pub(crate) fn first(&self, slots: &[Slot]) -> u64 {
        if self.held == 0 || slots.is_empty() {
            return NOTHING;
        }
        if self.stale {
            return first_but(slots, self.head as usize);
        }
        slots[self.index_of_first(slots)].key
    }

    #[inline]
    fn index_of_first(&self, slots: &[Slot]) -> usize {
        let mask = slots.len() - 1;
        if self.tournament {
            slots[1 & mask].node as usize & mask
        } else {
            self.head as usize & mask
        }
    }

    /// Takes the frame that is due first, if that is by `limit`.
    #[inline]
    pub(crate) fn pop(&mut self, slots: &mut [Slot], limit: u64) -> Option<(u64, u32)> {
        if self.held == 0 || slots.is_empty() {
            return None;
        }
        if self.stale {
            if first_but(slots, self.head as usize) > limit {
                return None;
            }
            replay(slots, self.head as usize);
        }
        let i = self.index_of_first(slots);
        let Slot { key, tag, .. } = slots[i];
        if key > limit {
            return None;
        }
        self.held -= 1;
        if self.tournament {
            (slots[i].key, slots[i].tag) = (NOTHING, self.head);
            self.head = i as u32;
            self.stale = true;
        } else {
            self.head = self.head.wrapping_add(1);
        }
        Some((key, tag))
    }
}

/// Puts a frame into the empty slot `empty`; gives the next empty one.
#[inline(never)]
fn enter(slots: &mut [Slot], empty: u32, key: u64, tag: u32) -> u32 {
    let i = empty as usize & (slots.len() - 1);
    let next = slots[i].tag;
    (slots[i].key, slots[i].tag) = (key, tag);
    replay(slots, i);
    next
}

/// The least key but for that of leaf `i`.
#[inline(never)]
fn first_but(slots: &[Slot], i: usize) -> u64 {
    let (n, mask) = (slots.len(), slots.len() - 1);
    if n == 1 {
        return NOTHING;
    }
    let mut key = slots[(i ^ 1) & mask].key;
    let mut node = (n + i) >> 1;
    while node > 1 {
        let rival = usize::from(slots[(node ^ 1) & mask].node) & mask;
        key = key.min(slots[rival].key);
        node >>= 1;
    }
    key
}

/// Replays all matches of leaf `i`. Among equal keys the one that plays last loses to none.
#[inline(never)]
fn replay(slots: &mut [Slot], i: usize) {
    let (n, mask) = (slots.len(), slots.len() - 1);
    let (mut winner, mut key) = (i, slots[i & mask].key);
    // Nodes 1 ..= n - 1 are inner, n + i is leaf i.
    let mut rival = (i ^ 1) & mask;
    let mut node = (n + i) >> 1;
    loop {
        let other = slots[rival].key;
        // Who wins is a matter of chance: select, do not branch.
        let lost = other < key;
        winner = select_unpredictable(lost, rival, winner);
        key = select_unpredictable(lost, other, key);
        slots[node & mask].node = winner as u16;
        if node <= 1 {
            return;
        }
        rival = usize::from(slots[(node ^ 1) & mask].node) & mask;
        node >>= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeSet, vec};

    /// Both forms, and the change between them, against an ordered set.
    #[test]
    fn a_lane_is_a_priority_queue() {
        for slots in [1usize, 2, 4, 64, 1024] {
            let mut memory = vec![Slot::EMPTY; slots];
            let mut lane = Lane::default();
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
                    lane.push(&mut memory, key, n as u32);
                    model.insert((key, n as u32));
                } else {
                    assert_eq!(lane.first(&memory), model.first().map_or(NOTHING, |f| f.0));
                    assert_eq!(lane.pop(&mut memory, NOTHING - 1), model.pop_first());
                }
                assert_eq!(lane.held() as usize, model.len());
            }
        }
    }

    #[test]
    fn nothing_comes_before_its_time() {
        let mut memory = [Slot::EMPTY; 4];
        let mut lane = Lane::default();
        lane.push(&mut memory, 80, 7);
        assert_eq!(lane.pop(&mut memory, 79), None);
        assert_eq!(lane.pop(&mut memory, 80), Some((80, 7)));
        assert_eq!(lane.pop(&mut memory, 80), None);
    }
}
