// SPDX-License-Identifier: MIT OR Apache-2.0
//! The forwarding database: behind which port each station is.
//!
//! A hash table of fixed size, whose entries are looked for in one short row. An entry that was not
//! confirmed for long enough is as good as none, and its place may be taken; one that is alive is never
//! pushed out, so that a station with many addresses harms nobody but itself: what does not fit is
//! flooded.

use alloc::boxed::Box;
use alloc::vec;

use super::ether::Mac;

/// Entries of the table.
pub const CAPACITY: usize = 4096;
/// Entries among which an address is looked for.
const ROW: usize = 8;
/// How long a station is remembered that says nothing, ns: what 802.1D recommends.
pub const AGE_NS: u64 = 300_000_000_000;
/// Of an entry that does not age.
const STATIC: u64 = u64::MAX;

/// A station. An empty entry has the address 0, which nobody has.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The address, and above it the port.
    key: u64,
    /// When it was last heard, ns.
    heard_ns: u64,
}

const EMPTY: Entry = Entry { key: 0, heard_ns: 0 };

/// The table.
#[derive(Debug)]
pub struct Fdb {
    entries: Box<[Entry]>,
    age_ns: u64,
    refused: u64,
}

impl Fdb {
    /// An empty table that forgets after `age_ns`.
    pub fn new(age_ns: u64) -> Self {
        Self { entries: vec![EMPTY; CAPACITY].into_boxed_slice(), age_ns, refused: 0 }
    }

    #[inline]
    fn row(&mut self, mac: Mac) -> &mut [Entry] {
        // Fibonacci hashing: the upper bits are the well mixed ones.
        let hash = mac.number().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - ROWS.trailing_zeros());
        let first = hash as usize * ROW;
        &mut self.entries[first..first + ROW]
    }

    /// The port behind which `mac` is, as far as is known at `now`.
    #[inline]
    pub fn lookup(&mut self, mac: Mac, now: u64) -> Option<u8> {
        let age_ns = self.age_ns;
        let entry = self.row(mac).iter().find(|entry| entry.key & ADDRESS == mac.number())?;
        let alive = now.saturating_sub(entry.heard_ns) <= age_ns && entry.key != 0;
        alive.then_some((entry.key >> 48) as u8)
    }

    /// Notes that `mac` sent something from `port` at `now`. Whether it was known to be elsewhere.
    #[inline]
    pub fn learn(&mut self, mac: Mac, port: u8, now: u64) -> bool {
        let key = mac.number() | u64::from(port) << 48;
        if mac.is_group() || mac.number() == 0 {
            return false;
        }
        let age_ns = self.age_ns;
        let row = self.row(mac);
        // The common case first: nothing has changed but the time.
        if let Some(entry) = row.iter_mut().find(|entry| entry.key & ADDRESS == mac.number()) {
            if entry.heard_ns == STATIC {
                return false;
            }
            let before = core::mem::replace(entry, Entry { key, heard_ns: now });
            return before.key != key;
        }
        let dead = |entry: &&mut Entry| {
            entry.key == 0
                || now.saturating_sub(entry.heard_ns) > age_ns && entry.heard_ns != STATIC
        };
        match row.iter_mut().find(dead) {
            Some(entry) => *entry = Entry { key, heard_ns: now },
            None => self.refused += 1,
        }
        false
    }

    /// Puts `mac` behind `port` for good; `false` if there is no room.
    pub fn pin(&mut self, mac: Mac, port: u8) -> bool {
        if mac.is_group() || mac.number() == 0 {
            return false;
        }
        let key = mac.number() | u64::from(port) << 48;
        let row = self.row(mac);
        let same = row.iter().position(|entry| entry.key & ADDRESS == mac.number());
        let place = same.or_else(|| row.iter().position(|entry| entry.heard_ns != STATIC));
        place.map(|at| row[at] = Entry { key, heard_ns: STATIC }).is_some()
    }

    /// Forgets who was learnt to be behind `port`.
    pub fn forget(&mut self, port: u8) {
        for entry in &mut self.entries {
            if entry.key >> 48 == u64::from(port) && entry.heard_ns != STATIC {
                *entry = EMPTY;
            }
        }
    }

    /// How many stations are known at `now`.
    pub fn known(&self, now: u64) -> usize {
        let alive =
            |entry: &&Entry| entry.key != 0 && now.saturating_sub(entry.heard_ns) <= self.age_ns;
        self.entries.iter().filter(alive).count()
    }

    /// How often an address was not learnt for want of room.
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

const ADDRESS: u64 = (1 << 48) - 1;
const ROWS: usize = CAPACITY / ROW;
const _: () = assert!(ROWS.is_power_of_two());

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn mac(n: u32) -> Mac {
        let [a, b, c, d] = n.to_be_bytes();
        Mac::new([0x02, 0x16, a, b, c, d])
    }

    #[test]
    fn a_station_is_found_where_it_last_spoke_until_it_is_old() {
        let mut fdb = Fdb::new(1000);
        assert_eq!(fdb.lookup(mac(1), 0), None);
        fdb.learn(mac(1), 3, 0);
        assert_eq!((fdb.lookup(mac(1), 1000), fdb.lookup(mac(1), 1001)), (Some(3), None));
        fdb.learn(mac(1), 4, 900);
        assert_eq!((fdb.lookup(mac(1), 1900), fdb.known(1900)), (Some(4), 1));
        fdb.forget(3);
        assert_eq!(fdb.lookup(mac(1), 1900), Some(4));
        fdb.forget(4);
        assert_eq!((fdb.lookup(mac(1), 1900), fdb.known(1900)), (None, 0));
    }

    #[test]
    fn groups_and_nobody_are_not_learnt() {
        let mut fdb = Fdb::new(AGE_NS);
        for mac in [Mac::new([0xff; 6]), Mac::new([1, 0, 0x5e, 0, 0, 1]), Mac::new([0; 6])] {
            fdb.learn(mac, 1, 5);
            assert_eq!((fdb.lookup(mac, 5), fdb.pin(mac, 1)), (None, false));
        }
        assert_eq!(fdb.known(5), 0);
    }

    #[test]
    fn a_pinned_station_stays_whatever_it_says() {
        let mut fdb = Fdb::new(10);
        assert!(fdb.pin(mac(7), 2));
        fdb.learn(mac(7), 5, 1);
        fdb.forget(2);
        assert_eq!(fdb.lookup(mac(7), u64::MAX), Some(2));
        assert!(fdb.pin(mac(7), 3));
        assert_eq!(fdb.lookup(mac(7), 0), Some(3));
    }

    #[test]
    fn a_thousand_stations_fit_and_a_flood_of_them_harms_no_one_known() {
        let mut fdb = Fdb::new(AGE_NS);
        assert!((0..1000).all(|n| !fdb.learn(mac(n), (n % 16) as u8, 1)));
        assert_eq!((fdb.known(1), fdb.refused()), (1000, 0));
        assert!((1000..100_000).all(|n| !fdb.learn(mac(n), 63, 2)));
        assert!(fdb.refused() > 0 && fdb.known(2) <= CAPACITY);
        assert!((0..1000).all(|n| fdb.lookup(mac(n), 2) == Some((n % 16) as u8)));
        // Once they are old, there is room again.
        let later = 3 + AGE_NS;
        fdb.learn(mac(200_000), 9, later);
        assert_eq!(fdb.lookup(mac(200_000), later), Some(9));
    }

    proptest! {
        /// As a map, as long as nothing had to be refused.
        #[test]
        fn it_is_a_map_with_age(
            steps in proptest::collection::vec((0u32..300, 0u8..64, 0u64..400), 0..500)
        ) {
            let (mut fdb, mut map) = (Fdb::new(5_000), HashMap::new());
            let mut now = 0;
            for (n, port, later) in steps {
                now += later;
                let known = map.get(&n).filter(|(_, heard)| now - heard <= 5_000).map(|(port, _)| *port);
                prop_assert_eq!(fdb.lookup(mac(n), now), known);
                fdb.learn(mac(n), port, now);
                map.insert(n, (port, now));
            }
            prop_assert_eq!(fdb.refused(), 0);
        }
    }
}
