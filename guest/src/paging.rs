// SPDX-License-Identifier: MIT OR Apache-2.0
//! Page tables for all of the domain's memory.
//!
//! The domain builder maps the image and a little more, in whole tables of 2 MiB, and leaves spare
//! pages behind the last thing that it put there. Some of those become further tables. A page that is
//! a table may be mapped read-only only, and its entries are changed by Xen: see [`Tables`].

use core::fmt;
use core::ops::Range;

use tdf_xen::abi::{Mfn, PAGE_SIZE, Pfn};
use tdf_xen::hypercall::XenError;
use x86_64::structures::paging::PageTableFlags;

/// Entries of a table.
const ENTRIES: u64 = 512;
/// Bytes of address space that the highest table in use, one of the second level, can map.
pub const REACH: u64 = ENTRIES * ENTRIES * PAGE_SIZE as u64;
/// The frame in an entry.
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// Flags of an entry for a page that the kernel writes, and of one for a table.
pub const WRITABLE: u64 = PageTableFlags::PRESENT.bits()
    | PageTableFlags::WRITABLE.bits()
    | PageTableFlags::ACCESSED.bits()
    | PageTableFlags::DIRTY.bits();

/// The entry for `frame` with `flags`.
pub const fn entry(frame: Mfn, flags: u64) -> u64 {
    (frame.0 * PAGE_SIZE as u64) | flags
}

/// What there is to do with page tables.
pub trait Tables {
    /// The machine frame of one of the domain's frames.
    fn frame(&self, page: Pfn) -> Mfn;
    /// An entry of the table in `table`.
    fn read(&self, table: Mfn, index: u64) -> u64;
    /// Writes an entry of a table to be, in a page that is mapped since the start and nobody uses.
    fn prepare(&mut self, page: Pfn, index: u64, entry: u64);
    /// Maps such a page read-only from now on.
    ///
    /// # Errors
    /// What Xen answers.
    fn protect(&mut self, page: Pfn) -> Result<(), XenError>;
    /// Lets Xen write an entry of a table that is in use.
    ///
    /// # Errors
    /// What Xen answers.
    fn install(&mut self, table: Mfn, index: u64, entry: u64) -> Result<(), XenError>;
}

/// Where things are at the start of day.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// The address of the domain's first frame; the others follow.
    pub base: u64,
    /// How many frames the domain has.
    pub pages: u64,
    /// The table of the fourth level.
    pub root: Mfn,
    /// The first frame that nobody uses; there is none in use behind it.
    pub spare: Pfn,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Frames that are mapped, writable, and free to use.
    pub free: Range<u64>,
    /// The first address of [`WINDOW_PAGES`] pages where nothing is mapped, but could be.
    pub window: u64,
}

/// Pages of address space for what belongs to others.
pub const WINDOW_PAGES: u64 = ENTRIES;

/// Why the memory cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PagingError {
    /// The start of day is not what it should be: no table for the kernel's own addresses.
    NoTable,
    /// Xen refused a table.
    Xen(XenError),
}

impl From<XenError> for PagingError {
    fn from(error: XenError) -> Self {
        Self::Xen(error)
    }
}

impl fmt::Display for PagingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTable => f.write_str("the page tables of the start of day are not there"),
            Self::Xen(error) => write!(f, "page tables: {error}"),
        }
    }
}

impl core::error::Error for PagingError {}

/// The index of `address` in a table of `level`.
const fn index(address: u64, level: u32) -> u64 {
    address >> (12 + 9 * (level - 1)) & (ENTRIES - 1)
}

/// The table that an entry names, if it does.
fn below(entry: u64) -> Option<Mfn> {
    (entry & PageTableFlags::PRESENT.bits() != 0).then_some(Mfn((entry & FRAME) / PAGE_SIZE as u64))
}

/// Maps as much of the domain's memory as one table of the second level and the spare pages allow.
///
/// # Errors
/// [`PagingError`]. What was mapped by then stays mapped.
pub fn map_all(tables: &mut impl Tables, start: Start) -> Result<Mapped, PagingError> {
    let second = {
        let third = below(tables.read(start.root, index(start.base, 4)));
        let third = third.ok_or(PagingError::NoTable)?;
        below(tables.read(third, index(start.base, 3))).ok_or(PagingError::NoTable)?
    };
    let first = |tables: &dyn Tables, address| below(tables.read(second, index(address, 2)));
    let address = |page: u64| start.base + page * PAGE_SIZE as u64;
    // Tables that exist are complete, as the builder fills whole ones; those beyond are made here.
    let mut mapped = start.spare.0;
    while mapped < start.pages
        && first(tables, address(mapped))
            .is_some_and(|table| below(tables.read(table, index(address(mapped), 1))).is_some())
    {
        mapped += 1;
    }
    let mut spare = start.spare.0;
    let has_table = first(tables, address(mapped)).is_some();
    let mut next = if has_table {
        // Frames of the table that is there already.
        let last = (mapped + ENTRIES - index(address(mapped), 1)).min(start.pages);
        let table = first(tables, address(mapped)).ok_or(PagingError::NoTable)?;
        for page in mapped..last {
            let value = entry(tables.frame(Pfn(page)), WRITABLE);
            tables.install(table, index(address(page), 1), value)?;
        }
        last
    } else {
        mapped
    };
    // The window's table counts, and so does the end of what the second level can map.
    let reach = (start.base / REACH + 1) * REACH - start.base - ENTRIES * PAGE_SIZE as u64;
    let end = start.pages.min(reach / PAGE_SIZE as u64);
    while next < end && spare + 1 < mapped {
        let table = Pfn(spare);
        let last = (next + ENTRIES - index(address(next), 1)).min(end);
        for at in 0..ENTRIES {
            let page = next + at;
            let value = if page < last { entry(tables.frame(Pfn(page)), WRITABLE) } else { 0 };
            tables.prepare(table, at, value);
        }
        spare += 1;
        adopt(tables, second, table, address(next))?;
        next = last;
    }
    let window = address(next).next_multiple_of(ENTRIES * PAGE_SIZE as u64);
    if first(tables, window).is_none() {
        let table = Pfn(spare);
        (0..ENTRIES).for_each(|at| tables.prepare(table, at, 0));
        spare += 1;
        adopt(tables, second, table, window)?;
    }
    Ok(Mapped { free: spare..next, window })
}

/// Makes the page a table for what begins at `address`.
fn adopt(
    tables: &mut impl Tables,
    second: Mfn,
    table: Pfn,
    address: u64,
) -> Result<(), PagingError> {
    tables.protect(table)?;
    let value = entry(tables.frame(table), WRITABLE);
    Ok(tables.install(second, index(address, 2), value)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    const BASE: u64 = 0x40_0000;

    /// A domain as the builder leaves it, whose Xen enforces what Xen does.
    struct Domain {
        /// Contents of the frames that are tables, or may become some, by machine frame.
        memory: BTreeMap<u64, [u64; ENTRIES as usize]>,
        tables: BTreeSet<u64>,
        pages: u64,
    }

    /// Machine frames are not in order.
    fn machine(page: u64) -> u64 {
        0x1000 + (page ^ 5)
    }

    const TABLES: u64 = 150;
    const SPARE: u64 = 160;

    impl Domain {
        /// `pages` frames, of which those below `mapped` are mapped; from [`SPARE`] on nothing is used.
        fn new(pages: u64, mapped: u64) -> Self {
            let mut memory = BTreeMap::new();
            let (l4, l3, l2) = (TABLES, TABLES + 1, TABLES + 2);
            let link = |page| entry(Mfn(machine(page)), WRITABLE);
            let mut set = |table, at: u64, value| {
                let table = memory.entry(machine(table)).or_insert([0; ENTRIES as usize]);
                table[at as usize] = value;
            };
            set(l4, 0, link(l3));
            set(l3, 0, link(l2));
            let mut tables: BTreeSet<u64> = [l4, l3, l2].map(machine).into();
            for page in 0..mapped.min(pages) {
                let address = BASE + page * 4096;
                let l1 = TABLES + 3 + (address - BASE) / (2 << 20);
                tables.insert(machine(l1));
                set(l2, index(address, 2), link(l1));
                let read_only = (TABLES..SPARE).contains(&page);
                let flags = if read_only { WRITABLE & !2 } else { WRITABLE };
                set(l1, index(address, 1), entry(Mfn(machine(page)), flags));
            }
            Self { memory, tables, pages }
        }

        fn start(&self) -> Start {
            Start { base: BASE, pages: self.pages, root: Mfn(machine(TABLES)), spare: Pfn(SPARE) }
        }

        /// What the hardware finds at `address`.
        fn walk(&self, address: u64) -> Option<u64> {
            let mut value = entry(Mfn(machine(TABLES)), WRITABLE);
            for level in (1..=4).rev() {
                let table = below(value)?.0;
                assert!(self.tables.contains(&table), "{address:#x} goes through a page");
                value = self.memory[&table][index(address, level) as usize];
            }
            below(value).map(|_| value)
        }
    }

    impl Tables for Domain {
        fn frame(&self, page: Pfn) -> Mfn {
            assert!(page.0 < self.pages);
            Mfn(machine(page.0))
        }

        fn read(&self, table: Mfn, index: u64) -> u64 {
            assert!(self.tables.contains(&table.0));
            self.memory[&table.0][index as usize]
        }

        fn prepare(&mut self, page: Pfn, index: u64, entry: u64) {
            let mapping = self.walk(BASE + page.0 * 4096).expect("a mapped page");
            assert!(mapping & 2 != 0 && page.0 >= SPARE);
            let table = self.memory.entry(machine(page.0)).or_insert([0; ENTRIES as usize]);
            table[index as usize] = entry;
        }

        fn protect(&mut self, page: Pfn) -> Result<(), XenError> {
            let address = BASE + page.0 * 4096;
            let l2 = machine(TABLES + 2);
            let l1 = below(self.memory[&l2][index(address, 2) as usize]).unwrap().0;
            self.memory.get_mut(&l1).unwrap()[index(address, 1) as usize] &= !2;
            Ok(())
        }

        fn install(&mut self, table: Mfn, index: u64, value: u64) -> Result<(), XenError> {
            let frame = below(value).unwrap().0;
            if table.0 == machine(TABLES + 2) {
                // A new table: mapped writable nowhere, and without an entry that maps a table so.
                for entry in self.memory[&frame].iter().filter(|entry| **entry & 3 == 3) {
                    assert!(!self.tables.contains(&below(*entry).unwrap().0));
                }
                // `machine` is its own inverse but for where it begins.
                let at = BASE + ((frame - 0x1000) ^ 5) * 4096;
                assert_eq!(self.walk(at).unwrap() & 2, 0, "{frame:#x} is writable still");
                self.tables.insert(frame);
            }
            self.memory.get_mut(&table.0).unwrap()[index as usize] = value;
            Ok(())
        }
    }

    #[test]
    fn every_free_page_is_mapped_writable_at_its_address_and_the_window_at_none() {
        for (pages, mapped) in
            [(8192, 1024), (1024, 1024), (700, 700), (8192, 1536), (600, 512), (5000, 700)]
        {
            let mut domain = Domain::new(pages, mapped);
            let start = domain.start();
            let Mapped { free, window } = map_all(&mut domain, start).unwrap();
            assert_eq!(free.end, pages, "{pages} {mapped}");
            for page in free.clone() {
                let found = domain.walk(BASE + page * 4096).unwrap();
                assert_eq!((below(found).unwrap().0, found & 3), (machine(page), 3), "{page}");
                assert!(!domain.tables.contains(&machine(page)), "{page} is a table");
            }
            // At most one table for 2 MiB and one for the window.
            assert!(free.start - SPARE <= pages / ENTRIES + 2);
            assert!(window >= BASE + pages * 4096 && window.is_multiple_of(2 << 20));
            for page in 0..WINDOW_PAGES {
                assert_eq!(domain.walk(window + page * 4096), None);
            }
        }
    }

    #[test]
    fn more_memory_than_tables_can_map_is_left_alone() {
        // 2048 pages are mapped of which all but 160 are spare: enough tables for the whole reach.
        let mut domain = Domain::new(400_000, 2048);
        let start = domain.start();
        let Mapped { free, window } = map_all(&mut domain, start).unwrap();
        assert_eq!(BASE + free.end * 4096, REACH - (2 << 20));
        assert_eq!(window, REACH - (2 << 20));
        // Few spare pages.
        let mut domain = Domain::new(8192, 164);
        let start = domain.start();
        let Mapped { free, .. } = map_all(&mut domain, start).unwrap();
        assert!(free.end < 8192 && free.start <= 164, "{free:?}");
    }

    #[test]
    fn tables_that_are_not_there_are_an_error() {
        let mut domain = Domain::new(1024, 1024);
        domain.memory.get_mut(&machine(TABLES)).unwrap()[0] = 0;
        let start = domain.start();
        assert_eq!(map_all(&mut domain, start), Err(PagingError::NoTable));
    }
}
