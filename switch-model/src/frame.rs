// SPDX-License-Identifier: MIT OR Apache-2.0
//! What goes into a port and what comes out: frames by their length, never their bytes.

use core::fmt;

use crate::rng::mix;

/// The last instant at which the model takes a frame, ns: 73 years.
///
/// Later instants are taken for this one.
pub const MAX_TIME: u64 = (1 << 61) - (1 << 52);

/// The serialiser ends by then. A line's constant delay, at most 2^50, still fits behind it.
pub(crate) const LAST_DEPARTURE: u64 = (1 << 61) - (1 << 51);

/// Nothing arrives later: times are kept in 61 bits, and all ones is no time.
pub(crate) const LAST_ARRIVAL: u64 = (1 << 61) - 2;

/// A frame, as far as a port cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The caller's handle, given back with the verdict that ends the frame's stay.
    pub tag: u32,
    /// Length in bytes as the caller counts it; [`Framing`](crate::Framing) adds what the wire adds.
    pub len: u32,
    /// Traffic class: the queue it waits in.
    pub class: u8,
    /// Which of the lookup costs it incurs (0: the fast path).
    pub cost: u8,
    /// Its IP header says that it may be marked instead of dropped.
    pub ecn: bool,
    /// It goes to several ports at once, so it cannot be cut through.
    pub flood: bool,
    /// Picoseconds (0 ..= 999) of its arrival beyond the whole nanosecond, so that a path of several
    /// hops adds up exactly; 0 if unknown.
    pub phase_ps: u16,
}

impl Frame {
    /// A plain frame of `len` bytes that the caller knows as `tag`.
    pub const fn new(tag: u32, len: u32) -> Self {
        Self { tag, len, class: 0, cost: 0, ecn: false, flood: false, phase_ps: 0 }
    }
}

/// Why a frame ends here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DropReason {
    /// Longer than the port's largest frame, or empty.
    Size,
    /// Beyond the policer's rate and burst.
    Policed,
    /// The port's own buffer limit.
    QueueFull,
    /// The port's share of the switch's buffer.
    SharedFull,
    /// RED or CoDel.
    Aqm,
    /// Lost on the line.
    Loss,
    /// The memory that the caller gave the port is full: an artefact, not a model's decision.
    NoSlot,
}

impl DropReason {
    /// All reasons, in the order of [`Counters::drops`](crate::Counters::drops).
    pub const ALL: [Self; 7] = [
        Self::Size,
        Self::Policed,
        Self::QueueFull,
        Self::SharedFull,
        Self::Aqm,
        Self::Loss,
        Self::NoSlot,
    ];
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Size => "size",
            Self::Policed => "policed",
            Self::QueueFull => "queue full",
            Self::SharedFull => "shared buffer full",
            Self::Aqm => "active queue management",
            Self::Loss => "lost on the line",
            Self::NoSlot => "port out of memory",
        })
    }
}

/// What becomes of a frame that gets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fate {
    /// When its last bit is at the other end of the line, ns.
    pub deliver_at: u64,
    /// It shall carry the congestion mark.
    pub mark: bool,
    /// A copy arrives too, then.
    pub duplicate_at: Option<u64>,
    /// This bit of the frame, counted from its first, is flipped.
    pub corrupt_bit: Option<u32>,
}

impl Fate {
    /// Delivered, and nothing else.
    pub(crate) const fn at(deliver_at: u64) -> Self {
        Self { deliver_at, mark: false, duplicate_at: None, corrupt_bit: None }
    }
}

/// The answer to an offered frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything is decided: it leaves the port by `pop_due` at that time.
    Deliver(Fate),
    /// It waits for the scheduler; `pop_due` tells the rest.
    Queued,
    /// It ends here.
    Drop(DropReason),
}

/// A frame, or a copy, at the far end of the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The caller's handle.
    pub tag: u32,
    /// When, ns; at or before the `now` that was asked about.
    pub at: u64,
    /// It shall carry the congestion mark.
    pub mark: bool,
    /// It is the copy of a duplicated frame, never before the original.
    pub copy: bool,
    /// One of its bits is flipped.
    pub corrupt: bool,
}

impl Delivery {
    /// The bit that is flipped in this frame of `len` bytes, if one is.
    pub const fn corrupt_bit(&self, len: u32) -> Option<u32> {
        if self.corrupt { Some(flipped(self.tag, self.at, len)) } else { None }
    }
}

/// A bit of a frame of `len` bytes, by its handle and delivery time, so that nobody must store it.
pub(crate) const fn flipped(tag: u32, at: u64, len: u32) -> u32 {
    let draw = mix(mix(at).wrapping_add(tag as u64)) >> 32;
    ((draw * (len as u64 * 8)) >> 32) as u32
}

/// What a scheduled port, or a switch, has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A frame arrives.
    Deliver(Delivery),
    /// A frame that had been queued ends after all.
    Drop {
        /// The caller's handle.
        tag: u32,
        /// When, ns.
        at: u64,
        /// Why.
        reason: DropReason,
    },
    /// One delivery more than usual will come for this handle.
    Duplicated {
        /// The caller's handle.
        tag: u32,
    },
}
