// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a port has done, in numbers that sum up exactly.

use crate::DropReason;

/// Counters of one port, since it was made.
///
/// At every moment, with `waiting` frames in its queues and `on_line` in flight:
///
/// - `offered = sent + waiting + `[`refused`](Self::refused)
/// - `sent + copies = delivered + on_line + drops[Loss]`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames offered.
    pub offered: u64,
    /// Their bytes.
    pub offered_bytes: u64,
    /// Frames that the serialiser took (on a FIFO port: promised to take).
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames, copies among them, handed out at the far end.
    pub delivered: u64,
    /// Frames dropped, by [`DropReason`].
    pub drops: [u64; DropReason::ALL.len()],
    /// Frames marked.
    pub marks: u64,
    /// Frames duplicated on the line.
    pub copies: u64,
    /// Time that the serialiser was, or is promised to be, busy, ns.
    pub busy_ns: u64,
    /// The most frames that the buffer has held, the one in service among them.
    pub peak_frames: u32,
    /// The most bytes that the buffer has held.
    pub peak_bytes: u32,
}

impl Counters {
    /// How many frames were dropped for `reason`.
    pub const fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Frames dropped before they reached the serialiser, for whatever reason.
    pub fn refused(&self) -> u64 {
        self.drops.iter().sum::<u64>() - self.dropped(DropReason::Loss)
    }
}

/// What a port counts as it goes: what can be summed up afterwards is not counted twice.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) sent: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) drops: [u64; DropReason::ALL.len()],
    pub(crate) refused_bytes: u64,
    pub(crate) marks: u64,
    pub(crate) copies: u64,
    pub(crate) busy_ns: u64,
    pub(crate) peak_frames: u32,
    pub(crate) peak_bytes: u32,
}

impl Tally {
    #[inline]
    pub(crate) fn drop(&mut self, reason: DropReason) {
        self.drops[reason as usize] += 1;
    }

    /// Frames that never reached the serialiser.
    pub(crate) fn refused(&self) -> u64 {
        self.drops.iter().sum::<u64>() - self.drops[DropReason::Loss as usize]
    }

    #[inline]
    pub(crate) fn held(&mut self, frames: u32, bytes: u32) {
        if frames > self.peak_frames {
            self.peak_frames = frames;
        }
        if bytes > self.peak_bytes {
            self.peak_bytes = bytes;
        }
    }

    /// The counters, where `waiting` frames of `bytes` have not been sent yet, and `on_line` are in
    /// flight.
    pub(crate) fn report(&self, waiting: u32, bytes: u64, on_line: u32) -> Counters {
        let lost = self.drops[DropReason::Loss as usize];
        Counters {
            offered: self.sent + self.refused() + u64::from(waiting),
            offered_bytes: self.sent_bytes + self.refused_bytes + bytes,
            sent: self.sent,
            sent_bytes: self.sent_bytes,
            delivered: self.sent + self.copies - lost - u64::from(on_line),
            drops: self.drops,
            marks: self.marks,
            copies: self.copies,
            busy_ns: self.busy_ns,
            peak_frames: self.peak_frames,
            peak_bytes: self.peak_bytes,
        }
    }
}
