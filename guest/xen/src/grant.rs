// SPDX-License-Identifier: MIT OR Apache-2.0
//! The grant table: lending pages to peers, and taking them back only when they are free.
//!
//! Version 1 of the interface. The table is shared with Xen alone, so what stands in it can be
//! believed; what a peer does with a grant cannot. A page that a peer still has mapped is never
//! reused: [`GrantTable::end_access`] asks and takes back in one step, and says if it could not.

use core::fmt;
use core::ptr;
use core::sync::atomic::{AtomicU16, Ordering};

use crate::abi::*;
use crate::hypercall::XenError;

/// `GNTST_*`: how a grant operation went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct GrantStatus(pub i16);

impl GrantStatus {
    /// `GNTST_okay`.
    pub const OKAY: Self = Self(0);
    /// What an operation says until Xen has done it; none of Xen's own.
    pub const UNDONE: Self = Self(1);

    /// Whether it went well.
    ///
    /// # Errors
    /// This status, if it did not.
    pub fn result(self) -> Result<(), Self> {
        if self == Self::OKAY { Ok(()) } else { Err(self) }
    }
}

impl fmt::Display for GrantStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            0 => "the grant operation went well",
            1 => "Xen did not get to the grant operation",
            -2 => "there is no such domain to share a grant with",
            -3 => "the grant reference is not one that this domain may use",
            -4 => "there is no such grant mapping",
            -5 => "the address is not one to map a grant at",
            -7 | -13 => "Xen has no room for another grant mapping",
            -8 => "the grant does not allow this access",
            -9 => "the granted page is not ordinary memory",
            -10 => "the grant copy crosses the end of a page",
            -12 => "the granted page is not there at the moment",
            other => return write!(f, "the grant operation failed with status {other}"),
        })
    }
}

impl core::error::Error for GrantStatus {}

/// Why a call about grants failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantOpError {
    /// Xen did not take the call.
    Xen(XenError),
    /// It took it, but could not do what it asked.
    Status(GrantStatus),
}

impl From<XenError> for GrantOpError {
    fn from(error: XenError) -> Self {
        Self::Xen(error)
    }
}

impl From<GrantStatus> for GrantOpError {
    fn from(status: GrantStatus) -> Self {
        Self::Status(status)
    }
}

impl fmt::Display for GrantOpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xen(error) => error.fmt(f),
            Self::Status(status) => status.fmt(f),
        }
    }
}

impl core::error::Error for GrantOpError {}

/// Why a page could not be granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantError {
    /// Every reference is taken.
    Full,
    /// An entry of version 1 has 32 bits for the frame.
    FrameTooHigh(Mfn),
}

impl fmt::Display for GrantError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("every entry of the grant table is taken"),
            Self::FrameTooHigh(frame) => {
                write!(f, "machine frame {frame} is too high for an entry of the grant table")
            }
        }
    }
}

impl core::error::Error for GrantError {}

/// Why a grant has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndError {
    /// The peer still has the page mapped. The reference stays taken; ask again later.
    StillInUse,
    /// The reference is none that was granted.
    NotGranted,
}

impl fmt::Display for EndError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StillInUse => "the peer still uses the granted page",
            Self::NotGranted => "the reference was not granted",
        })
    }
}

impl core::error::Error for EndError {}

/// A domain's grant table, version 1.
///
/// References that are free again are chained through the frame fields of their entries, which Xen
/// does not look at as long as the flags say that there is no grant.
#[derive(Debug)]
pub struct GrantTable {
    entries: *mut GrantEntry,
    count: u32,
    /// The lowest reference that was never used.
    fresh: u32,
    /// The first of the chain; 0 ends it.
    free: u32,
    in_use: u32,
}

impl GrantTable {
    /// The table in `frames` pages at `pages`, which [`setup_table`](crate::hypercall::Xen) gave.
    ///
    /// # Safety
    /// The pages follow each other, stay mapped while the table is used, are written by nobody but
    /// Xen meanwhile, and grant nothing yet beyond the reserved references.
    pub const unsafe fn new(pages: *mut u8, frames: u32) -> Self {
        let count = frames.saturating_mul(GRANTS_PER_PAGE);
        Self { entries: pages.cast(), count, fresh: GRANTS_RESERVED, free: 0, in_use: 0 }
    }

    /// References that are taken.
    pub fn in_use(&self) -> u32 {
        self.in_use
    }

    /// References that can still be granted.
    pub fn available(&self) -> u32 {
        self.count.saturating_sub(GRANTS_RESERVED) - self.in_use
    }

    /// The entry of a reference that is not reserved.
    fn entry(&self, gref: u32) -> Option<*mut GrantEntry> {
        // SAFETY: `new`'s caller vouches for so many entries.
        (GRANTS_RESERVED..self.count)
            .contains(&gref)
            .then(|| unsafe { self.entries.add(gref as usize) })
    }

    /// The flags of an entry, which Xen changes too.
    fn flags(entry: *mut GrantEntry) -> &'static AtomicU16 {
        // SAFETY: `entry` gave it; Xen accesses the flags atomically.
        unsafe { AtomicU16::from_ptr(&raw mut (*entry).flags) }
    }

    /// Lets `dom` use the page `frame`, for reading only or for both.
    ///
    /// # Safety
    /// The page must hold nothing that `dom` may not see, and, unless it is for reading only, must be
    /// accessed by volatile or atomic means until the grant has ended.
    ///
    /// # Errors
    /// [`GrantError`]; nothing is granted then.
    pub unsafe fn grant_access(
        &mut self,
        dom: DomId,
        frame: Mfn,
        readonly: bool,
    ) -> Result<GrantRef, GrantError> {
        let number = u32::try_from(frame.0).map_err(|_| GrantError::FrameTooHigh(frame))?;
        let gref = if self.free == 0 { self.fresh } else { self.free };
        let entry = self.entry(gref).ok_or(GrantError::Full)?;
        // SAFETY: a free entry of the table, which Xen does not write.
        unsafe {
            if self.free == 0 {
                self.fresh += 1;
            } else {
                self.free = ptr::read_volatile(&raw const (*entry).frame);
            }
            ptr::write_volatile(&raw mut (*entry).domid, dom.0);
            ptr::write_volatile(&raw mut (*entry).frame, number);
        }
        let flags = GTF_PERMIT_ACCESS | if readonly { GTF_READONLY } else { 0 };
        // Release: whoever sees the flags sees the rest.
        Self::flags(entry).store(flags, Ordering::Release);
        self.in_use += 1;
        Ok(GrantRef(gref))
    }

    /// Takes a page back.
    ///
    /// # Errors
    /// [`EndError::StillInUse`] if the peer has it mapped: the reference stays taken, and the page
    /// must not be reused. [`EndError::NotGranted`] if there is nothing to take back.
    pub fn end_access(&mut self, gref: GrantRef) -> Result<(), EndError> {
        let entry = self.entry(gref.0).ok_or(EndError::NotGranted)?;
        let flags = Self::flags(entry);
        let mut seen = flags.load(Ordering::Relaxed);
        loop {
            if seen & GTF_PERMIT_ACCESS == 0 {
                return Err(EndError::NotGranted);
            }
            if seen & (GTF_READING | GTF_WRITING) != 0 {
                return Err(EndError::StillInUse);
            }
            match flags.compare_exchange(seen, 0, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => seen = now,
            }
        }
        // SAFETY: a free entry of the table, which Xen does not write.
        unsafe { ptr::write_volatile(&raw mut (*entry).frame, self.free) };
        self.free = gref.0;
        self.in_use -= 1;
        Ok(())
    }
}

/// A range of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrossesPage {
    /// Where it starts.
    pub offset: u16,
    /// How long it is.
    pub len: u16,
}

impl fmt::Display for CrossesPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at offset {} cross the end of a page", self.len, self.offset)
    }
}

impl core::error::Error for CrossesPage {}

/// A place in a page that a peer has granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Whose page.
    pub dom: DomId,
    /// Which.
    pub gref: GrantRef,
    /// Where in it.
    pub offset: u16,
}

/// A place in a page of one's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    /// Which page.
    pub frame: Mfn,
    /// Where in it.
    pub offset: u16,
}

impl From<Granted> for GnttabCopyPtr {
    fn from(at: Granted) -> Self {
        Self { page: at.gref.0.into(), domid: at.dom, offset: at.offset }
    }
}

impl From<Local> for GnttabCopyPtr {
    fn from(at: Local) -> Self {
        Self { page: at.frame.0, domid: DOMID_SELF, offset: at.offset }
    }
}

/// `struct gnttab_copy`: one copy, and how it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct CopyOp {
    source: GnttabCopyPtr,
    dest: GnttabCopyPtr,
    len: u16,
    flags: u16,
    status: GrantStatus,
}
const _: () = assert!(size_of::<CopyOp>() == 40);
const _: () = assert!(core::mem::offset_of!(CopyOp, dest) == 16);
const _: () = assert!(core::mem::offset_of!(CopyOp, status) == 36);

impl CopyOp {
    /// An op that copies nothing, to fill an array with.
    pub const NONE: Self = {
        let nowhere = GnttabCopyPtr { page: 0, domid: DOMID_SELF, offset: 0 };
        Self { source: nowhere, dest: nowhere, len: 0, flags: 0, status: GrantStatus::UNDONE }
    };

    fn new(
        source: GnttabCopyPtr,
        dest: GnttabCopyPtr,
        len: u16,
        flags: u16,
    ) -> Result<Self, CrossesPage> {
        for offset in [source.offset, dest.offset] {
            if usize::from(offset) + usize::from(len) > PAGE_SIZE {
                return Err(CrossesPage { offset, len });
            }
        }
        Ok(Self { source, dest, len, flags, status: GrantStatus::UNDONE })
    }

    /// From a peer's page into an own one.
    ///
    /// # Errors
    /// [`CrossesPage`] if either range is not within its page.
    pub fn from_grant(source: Granted, dest: Local, len: u16) -> Result<Self, CrossesPage> {
        Self::new(source.into(), dest.into(), len, GNTCOPY_SOURCE_GREF)
    }

    /// From an own page into a peer's.
    ///
    /// # Errors
    /// [`CrossesPage`] if either range is not within its page.
    pub fn to_grant(source: Local, dest: Granted, len: u16) -> Result<Self, CrossesPage> {
        Self::new(source.into(), dest.into(), len, GNTCOPY_DEST_GREF)
    }

    /// From one peer's page straight into another's.
    ///
    /// # Errors
    /// [`CrossesPage`] if either range is not within its page.
    pub fn grant_to_grant(source: Granted, dest: Granted, len: u16) -> Result<Self, CrossesPage> {
        Self::new(source.into(), dest.into(), len, GNTCOPY_SOURCE_GREF | GNTCOPY_DEST_GREF)
    }

    /// Takes on, to the beginning of a peer's page, what this copy, whose destination is an own page,
    /// has brought.
    #[inline]
    pub fn onward(&self, dom: DomId, gref: GrantRef) -> Self {
        let dest = Granted { dom, gref, offset: 0 }.into();
        let (flags, status) = (GNTCOPY_DEST_GREF, GrantStatus::UNDONE);
        // What was in its page at any offset is so at the first.
        Self { source: self.dest, dest, len: self.len, flags, status }
    }

    /// How it went.
    ///
    /// # Errors
    /// The status, if it did not go well or was not done.
    pub fn result(&self) -> Result<(), GrantStatus> {
        self.status.result()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Table memory of `frames` pages.
    fn memory(frames: u32) -> Vec<GrantEntry> {
        vec![GrantEntry::default(); (frames * GRANTS_PER_PAGE) as usize]
    }

    fn table(memory: &mut [GrantEntry]) -> GrantTable {
        let frames = memory.len() as u32 / GRANTS_PER_PAGE;
        // SAFETY: the memory outlives the table in every test, on one thread.
        unsafe { GrantTable::new(memory.as_mut_ptr().cast(), frames) }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Grant { frame: u32, readonly: bool },
        End(prop::sample::Index),
        Map(prop::sample::Index),
        Unmap(prop::sample::Index),
        EndAny(u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let index = any::<prop::sample::Index>;
        let step = prop_oneof![
            3 => (any::<u32>(), any::<bool>()).prop_map(|(frame, readonly)| Step::Grant { frame, readonly }),
            2 => index().prop_map(Step::End),
            1 => index().prop_map(Step::Map),
            1 => index().prop_map(Step::Unmap),
            1 => prop_oneof![0u32..2000, any::<u32>()].prop_map(Step::EndAny),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        /// The table says what is granted and nothing else; what is mapped is not taken back.
        #[test]
        fn it_is_a_map_from_references_to_pages(steps in steps()) {
            let mut memory = memory(1);
            let at = memory.as_mut_ptr();
            let mut table = table(&mut memory);
            let mut model: BTreeMap<u32, (u32, bool, bool)> = BTreeMap::new();
            for step in steps {
                let pick = |index: prop::sample::Index| {
                    (!model.is_empty()).then(|| *index.get(&model.keys().collect::<Vec<_>>()).to_owned())
                };
                match step {
                    Step::Grant { frame, readonly } => {
                        // SAFETY: there is no such page.
                        let gref = unsafe { table.grant_access(DomId(3), Mfn(frame.into()), readonly) };
                        let gref = gref.unwrap().0;
                        prop_assert!(gref >= GRANTS_RESERVED);
                        prop_assert!(model.insert(gref, (frame, readonly, false)).is_none());
                    }
                    Step::End(index) => if let Some(gref) = pick(index) {
                        let mapped = model[&gref].2;
                        let ended = table.end_access(GrantRef(gref));
                        if mapped {
                            prop_assert_eq!(ended, Err(EndError::StillInUse));
                        } else {
                            prop_assert_eq!(ended, Ok(()));
                            model.remove(&gref);
                        }
                    },
                    Step::Map(index) | Step::Unmap(index) => if let Some(gref) = pick(index) {
                        let mapped = matches!(step, Step::Map(_));
                        let entry = model.get_mut(&gref).unwrap();
                        entry.2 = mapped;
                        // What Xen does.
                        // SAFETY: in the memory.
                        let flags = GrantTable::flags(unsafe { at.add(gref as usize) });
                        let bits = GTF_READING | if entry.1 { 0 } else { GTF_WRITING };
                        if mapped {
                            flags.fetch_or(bits, Ordering::SeqCst);
                        } else {
                            flags.fetch_and(!(GTF_READING | GTF_WRITING), Ordering::SeqCst);
                        }
                    },
                    Step::EndAny(gref) => if !model.contains_key(&gref) {
                        prop_assert_eq!(table.end_access(GrantRef(gref)), Err(EndError::NotGranted));
                    },
                }
                prop_assert_eq!(table.in_use() as usize, model.len());
                prop_assert_eq!(table.available() as usize, 512 - 8 - model.len());
            }
            for gref in 0..GRANTS_PER_PAGE {
                // SAFETY: in the memory.
                let entry = unsafe { at.add(gref as usize).read() };
                match model.get(&gref) {
                    None => prop_assert_eq!(entry.flags, 0),
                    Some((frame, readonly, _)) => {
                        prop_assert_eq!((entry.frame, entry.domid), (*frame, 3));
                        prop_assert_eq!(entry.flags & GTF_PERMIT_ACCESS, GTF_PERMIT_ACCESS);
                        prop_assert_eq!(entry.flags & GTF_READONLY != 0, *readonly);
                    }
                }
            }
        }

        /// Exactly the ranges that stay within a page are copied.
        #[test]
        fn a_copy_never_crosses_a_page(from in 0u16..5000, to in 0u16..5000, len in 0u16..5000) {
            let grant = |offset| Granted { dom: DomId(1), gref: GrantRef(9), offset };
            let local = |offset| Local { frame: Mfn(1 << 40), offset };
            let fits = from.max(to) + len <= 4096;
            prop_assert_eq!(CopyOp::from_grant(grant(from), local(to), len).is_ok(), fits);
            prop_assert_eq!(CopyOp::to_grant(local(from), grant(to), len).is_ok(), fits);
            prop_assert_eq!(CopyOp::grant_to_grant(grant(from), grant(to), len).is_ok(), fits);
        }
    }

    #[test]
    fn it_grants_until_it_is_full_and_again_what_was_taken_back() {
        for frames in 1..4 {
            let mut memory = memory(frames);
            let mut table = table(&mut memory);
            // SAFETY: there is no such page.
            let grant =
                |table: &mut GrantTable| unsafe { table.grant_access(DomId(1), Mfn(1), false) };
            let mut all: Vec<_> = core::iter::from_fn(|| grant(&mut table).ok()).collect();
            assert_eq!(grant(&mut table), Err(GrantError::Full));
            all.sort_by_key(|gref| gref.0);
            let wanted: Vec<_> = (8..frames * 512).map(GrantRef).collect();
            assert_eq!(all, wanted);
            for gref in &all {
                assert_eq!(table.end_access(*gref), Ok(()));
                assert_eq!(table.end_access(*gref), Err(EndError::NotGranted));
            }
            assert_eq!(table.in_use(), 0);
            assert_eq!(core::iter::from_fn(|| grant(&mut table).ok()).count(), wanted.len());
        }
    }

    #[test]
    fn a_frame_beyond_32_bits_is_refused_and_takes_nothing() {
        let mut memory = memory(1);
        let mut table = table(&mut memory);
        let frame = Mfn(1 << 32);
        // SAFETY: there is no such page.
        let result = unsafe { table.grant_access(DomId(1), frame, true) };
        assert_eq!(result, Err(GrantError::FrameTooHigh(frame)));
        assert_eq!(table.in_use(), 0);
    }

    #[test]
    fn no_table_at_all_is_full() {
        let mut table = table(&mut []);
        assert_eq!(table.available(), 0);
        // SAFETY: there is no such page.
        let result = unsafe { table.grant_access(DomId(1), Mfn(1), true) };
        assert_eq!(result, Err(GrantError::Full));
    }

    #[test]
    fn a_copy_says_what_the_public_header_says() {
        let source = Granted { dom: DomId(5), gref: GrantRef(0x1234), offset: 7 };
        let op = CopyOp::from_grant(source, Local { frame: Mfn(9), offset: 1 }, 60).unwrap();
        assert_eq!((op.source.page, op.source.domid, op.source.offset), (0x1234, DomId(5), 7));
        assert_eq!((op.dest.page, op.dest.domid, op.dest.offset), (9, DOMID_SELF, 1));
        assert_eq!((op.len, op.flags), (60, 1));
        assert_eq!(op.result(), Err(GrantStatus::UNDONE));
        let op = CopyOp::to_grant(Local { frame: Mfn(9), offset: 1 }, source, 60).unwrap();
        assert_eq!(op.flags, 2);
        assert_eq!(CopyOp::grant_to_grant(source, source, 60).unwrap().flags, 3);
    }
}
