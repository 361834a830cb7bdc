// SPDX-License-Identifier: MIT OR Apache-2.0
//! Network interfaces between domains: what lies in their rings, and what of it can be believed.
//!
//! A frame is a chain of slots. What a peer wrote into them is copied once and judged as a whole:
//! a chain that no honest peer would write is a [`Fault`], for which the interface is given up; one
//! that is honest but not wanted is a [`Refusal`], for which the frame is lost.

use core::fmt;

use crate::abi::{GrantRef, PAGE_SIZE};
use crate::ring::RingFault;
use crate::shared_ring::Slot;

/// Most slots of a frame that every peer takes (`XEN_NETIF_NR_SLOTS_MIN`).
pub const SLOTS_MAX: usize = 18;
/// Least bytes of a frame, and of its first fragment: an Ethernet header.
pub const HEADER_LEN: u16 = 14;

/// `XEN_NETTXF_*`: flags of a transmit request.
pub mod tx_flags {
    /// The checksum is still to be filled in.
    pub const CSUM_BLANK: u16 = 1 << 0;
    /// The data is known to be good.
    pub const DATA_VALIDATED: u16 = 1 << 1;
    /// The next slot holds more of the frame.
    pub const MORE_DATA: u16 = 1 << 2;
    /// The next slot says more about the frame.
    pub const EXTRA_INFO: u16 = 1 << 3;
}

/// `XEN_NETRXF_*`: flags of a receive response, in which the first two are the other way round.
pub mod rx_flags {
    /// The data is known to be good.
    pub const DATA_VALIDATED: u16 = 1 << 0;
    /// The checksum is still to be filled in.
    pub const CSUM_BLANK: u16 = 1 << 1;
    /// The next slot holds more of the frame.
    pub const MORE_DATA: u16 = 1 << 2;
    /// The next slot says more about the frame.
    pub const EXTRA_INFO: u16 = 1 << 3;
}

/// `XEN_NETIF_RSP_*`: how a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Status(pub i16);

impl Status {
    /// The frame was dropped.
    pub const DROPPED: Self = Self(-2);
    /// It could not be taken.
    pub const ERROR: Self = Self(-1);
    /// It was taken.
    pub const OKAY: Self = Self(0);
    /// The slot held no request of its own.
    pub const NULL: Self = Self(1);
}

/// What is known of a frame's checksum: a bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums(u8);

impl Sums {
    const BLANK: u8 = tx_flags::CSUM_BLANK as u8;
    const VALIDATED: u8 = tx_flags::DATA_VALIDATED as u8;

    /// Whether it is still to be filled in, and whether the data is known to be good.
    #[inline]
    pub const fn new(blank: bool, validated: bool) -> Self {
        let blank = if blank { Self::BLANK } else { 0 };
        Self(blank | if validated { Self::VALIDATED } else { 0 })
    }

    /// What the [`tx_flags`] of a request say.
    #[inline]
    const fn of_tx(flags: u16) -> Self {
        Self(flags as u8 & (Self::BLANK | Self::VALIDATED))
    }

    /// What the [`rx_flags`] of a response say.
    pub(crate) const fn of_rx(flags: u16) -> Self {
        Self::new(flags & rx_flags::CSUM_BLANK != 0, flags & rx_flags::DATA_VALIDATED != 0)
    }

    /// Whether the checksum is still to be filled in.
    #[inline]
    pub const fn blank(self) -> bool {
        self.0 & Self::BLANK != 0
    }

    /// Whether the data is known to be good.
    #[inline]
    pub const fn validated(self) -> bool {
        self.0 & Self::VALIDATED != 0
    }

    /// The [`tx_flags`] of a request: data whose sum is blank has never left the machine, and is good.
    pub(crate) const fn tx_flags(self) -> u16 {
        let blank = if self.blank() { tx_flags::CSUM_BLANK } else { 0 };
        blank | if self.0 != 0 { tx_flags::DATA_VALIDATED } else { 0 }
    }

    /// The [`rx_flags`] of a response, in the same way.
    #[inline]
    pub(crate) const fn rx_flags(self) -> u16 {
        let blank = if self.blank() { rx_flags::CSUM_BLANK } else { 0 };
        blank | if self.0 != 0 { rx_flags::DATA_VALIDATED } else { 0 }
    }
}

/// The low and the high half of a word.
fn halves(word: u32) -> (u16, u16) {
    (word as u16, (word >> 16) as u16)
}

fn word(low: u16, high: u16) -> u32 {
    u32::from(low) | u32::from(high) << 16
}

/// `netif_tx_request`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TxRequest {
    /// The page.
    pub gref: u32,
    /// Where in it.
    pub offset: u16,
    /// [`tx_flags`].
    pub flags: u16,
    /// Comes back in the response.
    pub id: u16,
    /// Bytes: of the whole frame in its first request, of the fragment in the others.
    pub size: u16,
}

/// What a slot of a transmit ring holds before it is known whether it is a request.
pub type TxWords = [u32; 3];

impl From<TxWords> for TxRequest {
    fn from([gref, b, c]: TxWords) -> Self {
        let ((offset, flags), (id, size)) = (halves(b), halves(c));
        Self { gref, offset, flags, id, size }
    }
}

impl From<TxRequest> for TxWords {
    fn from(TxRequest { gref, offset, flags, id, size }: TxRequest) -> Self {
        [gref, word(offset, flags), word(id, size)]
    }
}

/// `netif_tx_response`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxResponse {
    /// That of the request.
    pub id: u16,
    /// How it went.
    pub status: Status,
}

impl Slot for TxResponse {
    const WORDS: usize = 1;

    fn read(mut get: impl FnMut(usize) -> u32) -> Self {
        let (id, status) = halves(get(0));
        Self { id, status: Status(status.cast_signed()) }
    }

    fn write(&self, mut put: impl FnMut(usize, u32)) {
        put(0, word(self.id, self.status.0.cast_unsigned()));
    }
}

/// `netif_rx_request`: a page that a frame may be put into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RxRequest {
    /// Comes back in the response.
    pub id: u16,
    /// The page.
    pub gref: u32,
}

impl Slot for RxRequest {
    const WORDS: usize = 2;

    fn read(mut get: impl FnMut(usize) -> u32) -> Self {
        Self { id: halves(get(0)).0, gref: get(1) }
    }

    fn write(&self, mut put: impl FnMut(usize, u32)) {
        put(0, word(self.id, 0));
        put(1, self.gref);
    }
}

/// What a slot of a receive ring holds before it is known whether it is a response.
pub type RxWords = [u32; 2];

/// `netif_rx_response`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RxResponse {
    /// That of the request.
    pub id: u16,
    /// Where in the page the fragment starts.
    pub offset: u16,
    /// [`rx_flags`].
    pub flags: u16,
    /// Bytes of the fragment, or a negative [`Status`].
    pub status: i16,
}

impl From<RxWords> for RxResponse {
    fn from([a, b]: RxWords) -> Self {
        let ((id, offset), (flags, status)) = (halves(a), halves(b));
        Self { id, offset, flags, status: status.cast_signed() }
    }
}

impl From<RxResponse> for RxWords {
    fn from(RxResponse { id, offset, flags, status }: RxResponse) -> Self {
        [word(id, offset), word(flags, status.cast_unsigned())]
    }
}

/// `netif_extra_info`: more about a frame, in a slot of its own after the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra {
    /// `XEN_NETIF_EXTRA_TYPE_GSO`: the frame is to be cut into segments.
    Gso {
        /// Bytes of payload of each.
        size: u16,
        /// `XEN_NETIF_GSO_TYPE_*`.
        kind: u8,
    },
    /// Another kind that the interface knows.
    Other(u8),
}

impl Extra {
    /// `XEN_NETIF_EXTRA_TYPE_GSO`.
    const GSO: u8 = 1;
    /// `XEN_NETIF_EXTRA_TYPE_XDP`, the last.
    const LAST: u8 = 5;

    /// What a slot's first two words say, and whether another extra follows.
    ///
    /// # Errors
    /// [`Fault::ExtraKind`].
    pub fn parse(a: u32, b: u32) -> Result<(Self, bool), Fault> {
        let [kind, flags, low, high] = a.to_le_bytes();
        let extra = match kind {
            Self::GSO => {
                Self::Gso { size: u16::from_le_bytes([low, high]), kind: b.to_le_bytes()[0] }
            }
            2..=Self::LAST => Self::Other(kind),
            _ => return Err(Fault::ExtraKind(kind)),
        };
        Ok((extra, flags & 1 != 0))
    }
}

/// What no honest peer would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its ring index is impossible.
    Ring(RingFault),
    /// A frame goes on beyond what was written of it.
    Cut,
    /// There is no such kind of extra information.
    ExtraKind(u8),
    /// A fragment is not within a page.
    CrossesPage {
        /// Where it starts.
        offset: u16,
        /// Its bytes.
        size: u16,
    },
    /// A fragment has no bytes.
    Empty,
    /// The fragments are longer than the frame that they are of.
    TooMuch,
    /// A response is to no request, or to one that has had its own.
    NotAsked(u16),
    /// None: this end has closed the interface.
    Closed,
}

impl From<RingFault> for Fault {
    fn from(fault: RingFault) -> Self {
        Self::Ring(fault)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(fault) => fault.fmt(f),
            Self::Cut => f.write_str("a frame of the peer goes on beyond what it has written"),
            Self::ExtraKind(kind) => {
                write!(f, "the peer gives extra information of the unknown kind {kind}")
            }
            Self::CrossesPage { offset, size } => write!(
                f,
                "a fragment of the peer, {size} bytes at offset {offset}, is not within a page"
            ),
            Self::Empty => f.write_str("a fragment of the peer has no bytes"),
            Self::TooMuch => f.write_str("the fragments of the peer are longer than their frame"),
            Self::Closed => f.write_str("the interface is closed"),
            Self::NotAsked(id) => write!(f, "the peer answers what was not asked (id {id})"),
        }
    }
}

impl core::error::Error for Fault {}

/// Why a frame is not taken, although its chain is sane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It has more slots than [`SLOTS_MAX`].
    Slots,
    /// Its first fragment does not hold an Ethernet header.
    Short,
    /// It is longer than the interface allows.
    Long,
    /// It is to be cut into segments, which was not offered.
    Segments,
    /// It comes with extra information that was not offered.
    Extra,
    /// The peer says that it could not give it.
    Failed,
}

impl Refusal {
    /// How many there are.
    pub const COUNT: usize = Self::Failed as usize + 1;
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Slots => "the frame has too many slots",
            Self::Short => "the first fragment is shorter than an Ethernet header",
            Self::Long => "the frame is longer than the interface allows",
            Self::Segments => "the frame is to be cut into segments, which was not offered",
            Self::Extra => "the frame has extra information that was not offered",
            Self::Failed => "the peer could not give the frame",
        })
    }
}

impl core::error::Error for Refusal {}

/// A part of a frame in a page of the peer's, within that page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// The page.
    pub gref: GrantRef,
    /// Where in it.
    pub offset: u16,
    /// Bytes; never 0.
    pub size: u16,
    /// The request's.
    pub id: u16,
}

impl Fragment {
    const NONE: Self = Self { gref: GrantRef(0), offset: 0, size: 0, id: 0 };
}

/// Where the slots of frames come from.
pub trait TxSource {
    /// Takes the next slot.
    ///
    /// # Errors
    /// [`RingFault`].
    fn next(&mut self) -> Result<Option<TxWords>, RingFault>;

    /// A frame has no room for this request, which wants an answer.
    fn excess(&mut self, id: u16);
}

/// A frame that the peer wants to send, checked: its fragments lie within their pages, and add up.
///
/// It is to be answered exactly once, so there is no second one of it.
#[derive(Debug, PartialEq, Eq)]
pub struct TxFrame {
    fragments: [Fragment; SLOTS_MAX],
    count: u8,
    /// Slots without data, which are answered too.
    pub(crate) extras: u8,
    total: u16,
    flags: u16,
}

impl TxFrame {
    /// Its fragments, in order.
    pub fn fragments(&self) -> &[Fragment] {
        &self.fragments[..usize::from(self.count)]
    }

    /// Its bytes.
    pub fn total(&self) -> u16 {
        self.total
    }

    /// What is known of its checksum.
    #[inline]
    pub fn sums(&self) -> Sums {
        Sums::of_tx(self.flags)
    }

    /// Room for one.
    pub const EMPTY: Self =
        Self { fragments: [Fragment::NONE; SLOTS_MAX], count: 0, extras: 0, total: 0, flags: 0 };

    /// Takes a chain of slots, each once, to its end; `None` if there is none.
    ///
    /// If the frame is refused, its slots want an answer all the same.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn take(source: &mut impl TxSource) -> Result<Option<(Self, Option<Refusal>)>, Fault> {
        let mut frame = Self::EMPTY;
        let taken = frame.fill(source)?;
        Ok(taken.map(|sane| (frame, sane.err())))
    }

    /// The same, into this place, whatever it held before.
    ///
    /// # Errors
    /// [`Fault`]; the outer `None` says that there is none, the inner error that it is refused.
    #[inline]
    pub fn fill(
        &mut self,
        source: &mut impl TxSource,
    ) -> Result<Option<Result<(), Refusal>>, Fault> {
        let Some(first) = source.next()? else {
            self.clear();
            return Ok(None);
        };
        self.fill_from(first, source).map(Some)
    }

    /// The same of a frame whose first slot has been taken already.
    ///
    /// # Errors
    /// [`Fault`]; the inner error says that it is refused.
    pub(crate) fn fill_from(
        &mut self,
        first: TxWords,
        source: &mut impl TxSource,
    ) -> Result<Result<(), Refusal>, Fault> {
        let frame = self;
        frame.clear();
        let first = TxRequest::from(first);
        (frame.total, frame.flags) = (first.size, first.flags);
        let mut count = 1;
        let mut refusal = None;
        let mut more = first.flags & tx_flags::EXTRA_INFO != 0;
        while more {
            let [a, b, _] = source.next()?.ok_or(Fault::Cut)?;
            // No more of them than the ring has slots: 256, the request's among them.
            frame.extras = frame.extras.saturating_add(1);
            let (extra, another) = Extra::parse(a, b)?;
            refusal = match extra {
                Extra::Gso { .. } => Some(Refusal::Segments),
                Extra::Other(_) => refusal.or(Some(Refusal::Extra)),
            };
            more = another;
        }
        let mut left = first.size;
        more = first.flags & tx_flags::MORE_DATA != 0;
        while more {
            let TxRequest { gref, offset, flags, id, size } =
                source.next()?.ok_or(Fault::Cut)?.into();
            if size == 0 {
                return Err(Fault::Empty);
            }
            within_page(offset, size)?;
            left = left.checked_sub(size).ok_or(Fault::TooMuch)?;
            match frame.fragments.get_mut(count) {
                Some(fragment) => {
                    *fragment = Fragment { gref: GrantRef(gref), offset, size, id };
                    count += 1;
                }
                None => {
                    refusal = Some(Refusal::Slots);
                    source.excess(id);
                }
            }
            more = flags & tx_flags::MORE_DATA != 0;
        }
        within_page(first.offset, left)?;
        let TxRequest { gref, offset, id, .. } = first;
        frame.fragments[0] = Fragment { gref: GrantRef(gref), offset, size: left, id };
        // No more than there are fragments.
        frame.count = count as u8;
        Ok(match refusal {
            Some(why) => Err(why),
            None if left < HEADER_LEN => Err(Refusal::Short),
            None => Ok(()),
        })
    }

    /// Forgets the frame, so that it is owed no answer.
    pub(crate) fn clear(&mut self) {
        (self.count, self.extras) = (0, 0);
    }
}

/// A frame that the peer wants to send and that lies in one slot, checked.
///
/// It is to be answered exactly once, so there is no second one of it.
#[derive(Debug, PartialEq, Eq)]
pub struct TxSingle {
    fragment: Fragment,
    flags: u16,
}

impl TxSingle {
    /// The frame of a slot that is one by itself, sane, and of up to `longest` bytes.
    #[inline]
    pub(crate) fn of(words: TxWords, longest: u16) -> Option<Self> {
        let TxRequest { gref, offset, flags, id, size } = words.into();
        let alone = flags & (tx_flags::MORE_DATA | tx_flags::EXTRA_INFO) == 0;
        let sane = alone && (HEADER_LEN..=longest).contains(&size);
        let fragment = Fragment { gref: GrantRef(gref), offset, size, id };
        (sane && within_page(offset, size).is_ok()).then_some(Self { fragment, flags })
    }

    /// Where it lies.
    #[inline]
    pub fn fragment(&self) -> Fragment {
        self.fragment
    }

    /// What is known of its checksum.
    #[inline]
    pub fn sums(&self) -> Sums {
        Sums::of_tx(self.flags)
    }
}

fn within_page(offset: u16, size: u16) -> Result<(), Fault> {
    if usize::from(offset) + usize::from(size) > PAGE_SIZE {
        return Err(Fault::CrossesPage { offset, size });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Slots, and the ids of those that had no room.
    struct Slots<'a>(std::slice::Iter<'a, TxWords>, Vec<u16>);

    impl TxSource for Slots<'_> {
        fn next(&mut self) -> Result<Option<TxWords>, RingFault> {
            Ok(self.0.next().copied())
        }

        fn excess(&mut self, id: u16) {
            self.1.push(id);
        }
    }

    fn take(slots: &[TxWords]) -> Result<Option<(TxFrame, Option<Refusal>)>, Fault> {
        TxFrame::take(&mut Slots(slots.iter(), Vec::new()))
    }

    /// An honest chain for fragments of these sizes.
    fn chain(sizes: &[u16], extras: &[TxWords]) -> Vec<TxWords> {
        let total = sizes.iter().sum();
        let mut slots = Vec::new();
        for (n, size) in sizes.iter().enumerate() {
            let mut flags = if n + 1 < sizes.len() { tx_flags::MORE_DATA } else { 0 };
            if n == 0 && !extras.is_empty() {
                flags |= tx_flags::EXTRA_INFO;
            }
            let size = if n == 0 { total } else { *size };
            let n = n as u16;
            slots
                .push(TxRequest { gref: 100 + u32::from(n), offset: n, flags, id: n, size }.into());
        }
        slots.splice(1..1, extras.iter().copied());
        slots
    }

    fn extra(kind: u8, more: bool) -> TxWords {
        [u32::from_le_bytes([kind, more.into(), 0, 0]), 0, 0]
    }

    proptest! {
        #[test]
        fn slots_survive_the_ring(words: TxWords, rx: RxWords) {
            prop_assert_eq!(TxWords::from(TxRequest::from(words)), words);
            prop_assert_eq!(RxWords::from(RxResponse::from(rx)), rx);
        }

        /// An honest frame is what its chain says: fragments that add up, one slot each.
        #[test]
        fn an_honest_chain_is_a_frame(sizes in proptest::collection::vec(1u16..3600, 1..=18)) {
            let slots = chain(&sizes, &[]);
            let (frame, refusal) = take(&slots).unwrap().unwrap();
            prop_assert_eq!(refusal, (sizes[0] < 14).then_some(Refusal::Short));
            prop_assert_eq!(frame.fragments().len(), sizes.len());
            for (n, (fragment, size)) in frame.fragments().iter().zip(&sizes).enumerate() {
                let gref = GrantRef(100 + n as u32);
                let wanted = Fragment { gref, offset: n as u16, size: *size, id: n as u16 };
                prop_assert_eq!(*fragment, wanted);
            }
            prop_assert_eq!(frame.total(), sizes.iter().sum::<u16>());
            // A chain that breaks off anywhere is a fault, not a shorter frame.
            for end in 1..slots.len() {
                prop_assert_eq!(take(&slots[..end]), Err(Fault::Cut));
            }
        }

        /// Whatever the slots hold, a frame that comes out of them can be copied.
        #[test]
        fn any_chain_is_a_frame_or_none(slots in proptest::collection::vec(
            prop_oneof![any::<TxWords>(), (any::<u32>(), 0u16..4200, any::<u16>(), 0u16..5000)
                .prop_map(|(gref, offset, id, size)| {
                    TxRequest { gref, offset, flags: id % 16, id, size }.into()
                })], 0..300)
        ) {
            let mut source = Slots(slots.iter(), Vec::new());
            let taken = TxFrame::take(&mut source);
            let used = slots.len() - source.0.len();
            let excess = source.1.len();
            if let Ok(Some((frame, refusal))) = taken {
                let sum: u32 = frame.fragments().iter().map(|f| u32::from(f.size)).sum();
                for fragment in frame.fragments() {
                    prop_assert!(fragment.offset + fragment.size <= 4096);
                }
                if refusal.is_none() {
                    prop_assert_eq!(sum, u32::from(frame.total()));
                    prop_assert!(frame.fragments()[0].size >= 14);
                }
                // Each slot wants one answer.
                prop_assert_eq!(frame.fragments().len() + usize::from(frame.extras) + excess, used);
            }
        }
    }

    #[test]
    fn what_was_not_offered_is_refused_and_what_is_not_known_is_a_fault() {
        let with = |extras: &[TxWords]| take(&chain(&[60], extras));
        let (frame, refusal) = with(&[extra(1, false)]).unwrap().unwrap();
        assert_eq!((refusal, frame.extras), (Some(Refusal::Segments), 1));
        let (frame, refusal) = with(&[extra(4, true), extra(5, false)]).unwrap().unwrap();
        assert_eq!((refusal, frame.extras), (Some(Refusal::Extra), 2));
        for kind in [0, 6, 255] {
            assert_eq!(with(&[extra(kind, false)]), Err(Fault::ExtraKind(kind)));
        }
        assert_eq!(with(&[extra(2, true)]), Err(Fault::Cut));
        let endless = vec![extra(2, true); 300];
        assert_eq!(take(&chain(&[60], &endless)[..256]), Err(Fault::Cut));
    }

    #[test]
    fn fragments_stay_in_their_pages_and_in_their_frame() {
        let slot = |offset, size, flags| TxRequest { gref: 1, offset, flags, id: 0, size }.into();
        let more = tx_flags::MORE_DATA;
        assert!(take(&[slot(4036, 60, 0)]).is_ok());
        let crosses = Err(Fault::CrossesPage { offset: 4037, size: 60 });
        assert_eq!(take(&[slot(4037, 60, 0)]), crosses);
        assert_eq!(take(&[slot(0, 160, more), slot(4037, 60, 0)]), crosses);
        assert_eq!(
            take(&[slot(0, 5000, more), slot(0, 903, 0)]).map(drop),
            Err(Fault::CrossesPage { offset: 0, size: 4097 })
        );
        assert!(take(&[slot(0, 5000, more), slot(0, 904, 0)]).is_ok());
        assert_eq!(take(&[slot(0, 59, more), slot(0, 60, 0)]), Err(Fault::TooMuch));
        assert_eq!(take(&[slot(0, 60, more), slot(0, 0, 0)]), Err(Fault::Empty));
        // 73728 bytes, which 16 bits take for 8192.
        let mut wraps = vec![slot(0, 4096, more); 17];
        wraps.insert(0, slot(0, 8192, more));
        wraps[17] = slot(0, 4096, 0);
        assert_eq!(take(&wraps), Err(Fault::TooMuch));
        assert_eq!(
            take(&[slot(65535, 65535, 0)]).map(drop),
            Err(Fault::CrossesPage { offset: 65535, size: 65535 })
        );
    }

    #[test]
    fn a_frame_of_too_many_slots_is_refused_and_every_slot_named() {
        let slots = chain(&[100; 25], &[]);
        let mut source = Slots(slots.iter(), Vec::new());
        let (frame, refusal) = TxFrame::take(&mut source).unwrap().unwrap();
        assert_eq!((refusal, frame.fragments().len()), (Some(Refusal::Slots), 18));
        assert_eq!(source.1, (18..25).collect::<Vec<_>>());
    }

    #[test]
    fn flags_have_their_public_values() {
        let blank = TxRequest { flags: 1, size: 60, ..TxRequest::default() };
        let (frame, _) = take(&[blank.into()]).unwrap().unwrap();
        assert!(frame.sums().blank() && !frame.sums().validated());
        let valid = TxRequest { flags: 2, size: 60, ..TxRequest::default() };
        let (frame, _) = take(&[valid.into()]).unwrap().unwrap();
        assert!(!frame.sums().blank() && frame.sums().validated());
        // The receiving side has them the other way round.
        assert_eq!((rx_flags::DATA_VALIDATED, rx_flags::CSUM_BLANK), (1, 2));
        assert_eq!((tx_flags::MORE_DATA, rx_flags::MORE_DATA), (4, 4));
        assert_eq!((tx_flags::EXTRA_INFO, rx_flags::EXTRA_INFO), (8, 8));
    }
}
