// SPDX-License-Identifier: MIT OR Apache-2.0
//! The flow table: which entries exist, since when they act, and when they time out.
//!
//! Open addressing with linear probing in the caller's memory; removal shifts back, so that there
//! are no tombstones and a full table works as an empty one does.

use crate::rng::mix;

/// Room for one flow entry.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    pub(super) id: u32,
    pub(super) priority: u16,
    pub(super) used: bool,
    /// When the data plane knows it.
    pub(super) live: u64,
    /// Time without a hit after which it goes; 0: never.
    pub(super) idle: u64,
    /// When it goes in any case.
    pub(super) hard: u64,
    pub(super) last_hit: u64,
}

impl Flow {
    /// An unused entry.
    pub const EMPTY: Self =
        Self { id: 0, priority: 0, used: false, live: 0, idle: 0, hard: 0, last_hit: 0 };

    /// When it times out if nothing hits it, and whether for idleness.
    pub(super) fn expiry(&self) -> (u64, bool) {
        let idle = match self.idle {
            0 => u64::MAX,
            idle => self.live.max(self.last_hit).saturating_add(idle),
        };
        if idle < self.hard { (idle, true) } else { (self.hard, false) }
    }
}

impl Default for Flow {
    fn default() -> Self {
        Self::EMPTY
    }
}

fn home(flows: &[Flow], id: u32) -> usize {
    mix(u64::from(id)) as usize & (flows.len() - 1)
}

/// Where entry `id` is.
pub(super) fn find(flows: &[Flow], id: u32) -> Option<usize> {
    let mask = flows.len() - 1;
    let start = home(flows, id);
    let mut probe = (0..flows.len()).map(|k| (start + k) & mask);
    probe.find(|&i| !flows[i].used || flows[i].id == id).filter(|&i| flows[i].used)
}

/// Adds an entry that is not there; `false` if there is no room.
pub(super) fn insert(flows: &mut [Flow], flow: Flow) -> bool {
    let mask = flows.len() - 1;
    let start = home(flows, flow.id);
    let free = (0..flows.len()).map(|k| (start + k) & mask).find(|&i| !flows[i].used);
    if let Some(i) = free {
        flows[i] = Flow { used: true, ..flow };
    }
    free.is_some()
}

/// Removes the entry at `i`.
pub(super) fn remove(flows: &mut [Flow], i: usize) {
    let mask = flows.len() - 1;
    let mut hole = i;
    for k in 1..flows.len() {
        let j = (i + k) & mask;
        if !flows[j].used {
            break;
        }
        // An entry may move into the hole if its home does not lie behind it.
        let distance = |to: usize| to.wrapping_sub(home(flows, flows[j].id)) & mask;
        if distance(hole) < distance(j) {
            flows[hole] = flows[j];
            hole = j;
        }
    }
    flows[hole].used = false;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeSet, vec};

    #[test]
    fn the_table_is_a_set() {
        let mut flows = vec![Flow::EMPTY; 64];
        let mut model = BTreeSet::new();
        for n in 0..100_000u64 {
            let draw = mix(n);
            let id = (draw % 100) as u32;
            match find(&flows, id) {
                Some(i) => {
                    assert!(model.remove(&id) && flows[i].id == id);
                    remove(&mut flows, i);
                }
                None => {
                    assert!(!model.contains(&id));
                    let inserted = insert(&mut flows, Flow { id, ..Flow::EMPTY });
                    assert_eq!(inserted, model.len() < 64);
                    if inserted {
                        model.insert(id);
                    }
                }
            }
        }
        assert!((0..100).all(|id| find(&flows, id).is_some() == model.contains(&id)));
    }
}
