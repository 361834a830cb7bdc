// SPDX-License-Identifier: MIT OR Apache-2.0
//! A port whose queue is first in, first out: everything about a frame is decided when it comes.
//!
//! The queue is never simulated step by step. The serialiser's next free instant tells when a frame
//! starts, and a ring of frame lengths, replayed against the same exact arithmetic, tells how many
//! frames are still in the buffer when the next one comes.

use core::ops::Deref;

use crate::{
    ConfigError, Counters, Delivery, DropReason, Fate, Frame, MAX_TIME, PortConfig, Slot, Verdict,
    frame::flipped,
    lane::{FLAG_COPY, FLAG_CORRUPT, FLAG_MARK, FLAGS, Lane, NOTHING},
    line::LineState,
    red::{Early, RedState},
    rng::{Draws, Purpose},
    serialiser::Instant,
};

/// A FIFO port: 256 bytes and 16 for each frame that it can hold.
///
/// `K` is where the configuration lives (`&PortConfig`, `Arc<PortConfig>`, …): it can be shared. `S`
/// is the memory for frames (`[Slot; N]`, `&mut [Slot]`, `Vec<Slot>`, …): a power of two of slots.
///
/// Times that go backwards are taken for the latest one seen, and none is later than [`MAX_TIME`].
#[derive(Clone, Debug)]
pub struct Port<K, S> {
    config: K,
    seed: u64,
    /// When the last frame reached the queue.
    now: u64,
    /// When the serialiser is free.
    free_ns: u64,
    free_rem: u32,
    /// When the first frame in the buffer leaves it.
    head_ns: u64,
    head_rem: u32,
    /// The ring of lengths: frames in the buffer, the one in service first.
    ring: u32,
    frames: u32,
    bytes: u32,
    /// Frames that leave the buffer together, because they were there before a change of the rate.
    lump: u32,
    tokens: u64,
    red: RedState,
    lane: Lane,
    line: LineState,
    counters: Counters,
    slots: S,
}

const _: () = assert!(size_of::<Port<&PortConfig, [Slot; 0]>>() <= 256);

impl<K, S> Port<K, S>
where
    K: Deref<Target = PortConfig>,
    S: AsRef<[Slot]> + AsMut<[Slot]>,
{
    /// A port whose chances are those of `seed`.
    pub fn new(config: K, seed: u64, slots: S) -> Result<Self, ConfigError> {
        if !config.is_fifo() {
            return Err(ConfigError::NeedsScheduled);
        }
        Self::exit(config, seed, slots)
    }

    /// The part of a port behind its queues, whatever these are.
    pub(crate) fn exit(config: K, seed: u64, mut slots: S) -> Result<Self, ConfigError> {
        Lane::check(config.line.ordered, slots.as_ref().len())?;
        let mut lane = Lane::default();
        lane.set_ordered(slots.as_mut(), config.line.ordered);
        Ok(Self {
            tokens: config.policer.map_or(0, |p| p.full),
            config,
            seed,
            now: 0,
            free_ns: 0,
            free_rem: 0,
            head_ns: 0,
            head_rem: 0,
            ring: 0,
            frames: 0,
            bytes: 0,
            lump: 0,
            red: RedState::default(),
            lane,
            line: LineState::default(),
            counters: Counters::default(),
            slots,
        })
    }

    /// Takes a frame whose last bit has arrived at `now`, and decides.
    #[inline]
    pub fn offer(&mut self, now: u64, frame: Frame) -> Verdict {
        self.offer_within(now, frame, u64::MAX)
    }

    /// The same on a switch that leaves this port `share` bytes of its buffer.
    #[inline]
    pub fn offer_within(&mut self, now: u64, frame: Frame, share: u64) -> Verdict {
        let ready = match self.ingress(now, &frame) {
            Ok(ready) => ready,
            Err(reason) => return Verdict::Drop(reason),
        };
        let mark = match self.admit(ready, &frame, self.frames, self.bytes, share) {
            Ok(mark) => mark,
            Err(reason) => return self.refuse(reason),
        };
        self.transmit(ready, &frame, mark)
    }

    /// Counts the frame, lets the policer judge it and tells when it reaches the queue.
    #[inline]
    pub(crate) fn ingress(&mut self, now: u64, frame: &Frame) -> Result<u64, DropReason> {
        self.counters.offered += 1;
        self.counters.offered_bytes += u64::from(frame.len);
        let config = &*self.config;
        let ready = now.min(MAX_TIME).saturating_add(config.latency).clamp(self.now, MAX_TIME);
        let elapsed = ready - self.now;
        self.now = ready;
        if let Some(policer) = &config.policer
            && !policer.admit(&mut self.tokens, elapsed, frame.len.min(config.max_frame))
        {
            self.counters.drop(DropReason::Policed);
            return Err(DropReason::Policed);
        }
        if frame.len == 0 || frame.len > config.max_frame {
            self.counters.drop(DropReason::Size);
            return Err(DropReason::Size);
        }
        self.settle_at(ready, frame.phase_ps);
        Ok(ready)
    }

    /// Whether the buffer, which holds `frames` of `bytes`, takes the frame, and marked or not.
    #[inline]
    pub(crate) fn admit(
        &mut self,
        ready: u64,
        frame: &Frame,
        frames: u32,
        bytes: u32,
        share: u64,
    ) -> Result<bool, DropReason> {
        let config = &*self.config;
        let needed = u64::from(bytes) + u64::from(frame.len);
        if frames >= config.max_frames || needed > u64::from(config.max_bytes) {
            return Err(DropReason::QueueFull);
        }
        if needed > share {
            return Err(DropReason::SharedFull);
        }
        let mut mark = frame.ecn && frames > config.mark_above;
        if let Some(red) = &config.red {
            let idle = if frames == 0 { ready.saturating_sub(self.free_ns) } else { 0 };
            let draw = Draws::of(self.seed, self.counters.offered).get32(Purpose::Aqm);
            match red.judge(&mut self.red, bytes, idle / config.idle_unit, draw) {
                Early::Pass => {}
                Early::Chance if red.ecn && frame.ecn => mark = true,
                _ => return Err(DropReason::Aqm),
            }
        }
        Ok(mark)
    }

    /// Puts a frame, which was admitted, on the wire when that is free.
    #[inline]
    pub(crate) fn transmit(&mut self, ready: u64, frame: &Frame, mark: bool) -> Verdict {
        let config = &*self.config;
        // The line may deliver a frame twice.
        let needed = self.lane.held() as usize + 1 + usize::from(config.line.copy.is_some());
        let room = self.slots.as_ref().len();
        if self.frames as usize >= room || needed > room {
            return self.refuse(DropReason::NoSlot);
        }
        let wire_bytes = config.wire.bytes(frame.len);
        let free = Instant { ns: self.free_ns, rem: self.free_rem };
        let arrival = config.pace.instant(ready, frame.phase_ps);
        let mut start = free.max(arrival);
        if let Some(cut) = &config.cut_through
            && let Some(earlier) = self.cut_through(cut, free, ready, frame)
        {
            start = earlier;
        }
        let end = config.pace.after(start, wire_bytes);
        let last_bit = match config.gap {
            true => config.pace.before(end, config.wire.gap).unwrap_or(end),
            false => end,
        };

        // The buffer holds it until the serialiser is done with it.
        if self.frames == 0 {
            (self.head_ns, self.head_rem) = (end.ns, end.rem);
        }
        let slots = self.slots.as_mut();
        let mask = slots.len() - 1;
        slots[self.ring.wrapping_add(self.frames) as usize & mask].len = frame.len as u16;
        self.frames += 1;
        self.bytes += frame.len;
        (self.free_ns, self.free_rem) = (end.ns, end.rem);
        let draws = Draws::of(self.seed, self.counters.sent);
        self.counters.sent += 1;
        self.counters.sent_bytes += u64::from(frame.len);
        self.counters.busy_ns += end.ns - start.ns;
        self.counters.marks += u64::from(mark);
        self.counters.held(self.frames, self.bytes);

        if self.lane.is_tournament() && config.line.ordered {
            self.line.strictly_later();
            self.lane.set_ordered(slots, true);
        }
        let Some(passage) = config.line.carry(&mut self.line, last_bit.ns, frame.len, draws) else {
            self.counters.drop(DropReason::Loss);
            return Verdict::Drop(DropReason::Loss);
        };
        let flags =
            if mark { FLAG_MARK } else { 0 } | if passage.corrupt { FLAG_CORRUPT } else { 0 };
        self.lane.push(slots, passage.at << FLAGS | flags, frame.tag);
        if let Some(at) = passage.copy_at {
            self.lane.push(slots, at << FLAGS | flags | FLAG_COPY, frame.tag);
            self.counters.copies += 1;
        }
        Verdict::Deliver(Fate {
            deliver_at: passage.at,
            mark,
            duplicate_at: passage.copy_at,
            corrupt_bit: passage.corrupt.then(|| flipped(frame.tag, passage.at, frame.len)),
        })
    }

    /// The start of a frame that is cut through, if it can be.
    fn cut_through(
        &self,
        cut: &crate::config::CutThrough,
        free: Instant,
        ready: u64,
        frame: &Frame,
    ) -> Option<Instant> {
        let config = &*self.config;
        let length = config.wire.bytes(frame.len) - config.wire.gap;
        let missing = length.checked_sub(cut.after)?;
        let header = cut.ingress.before(cut.ingress.instant(ready, frame.phase_ps), missing)?;
        let start = cut.ingress.translate(header, config.pace);
        (!frame.flood && self.frames == 0 && free <= start).then_some(start)
    }

    #[inline]
    pub(crate) fn refuse(&mut self, reason: DropReason) -> Verdict {
        self.counters.drop(reason);
        Verdict::Drop(reason)
    }

    /// Lets the frames leave the buffer that the serialiser is done with at `now`.
    pub fn settle(&mut self, now: u64) {
        self.settle_at(now, 0);
    }

    #[inline]
    fn settle_at(&mut self, now: u64, phase_ps: u16) {
        if self.frames == 0 {
            return;
        }
        let config = &*self.config;
        let now = config.pace.instant(now, phase_ps);
        let mask = self.slots.as_ref().len() - 1;
        let length = |slots: &S, ring: u32| u32::from(slots.as_ref()[ring as usize & mask].len);
        while self.frames > 0 && (Instant { ns: self.head_ns, rem: self.head_rem }) <= now {
            loop {
                self.bytes -= length(&self.slots, self.ring);
                self.ring = self.ring.wrapping_add(1);
                self.frames -= 1;
                if self.lump == 0 {
                    break;
                }
                self.lump -= 1;
            }
            if self.frames > 0 {
                let bytes = config.wire.bytes(length(&self.slots, self.ring));
                let head = Instant { ns: self.head_ns, rem: self.head_rem };
                let head = config.pace.after(head, bytes);
                (self.head_ns, self.head_rem) = (head.ns, head.rem);
            }
        }
    }

    /// When the next frame is due at the far end.
    #[inline]
    pub fn next_deadline(&self) -> Option<u64> {
        let key = self.lane.first(self.slots.as_ref());
        (key != NOTHING).then_some(key >> FLAGS)
    }

    /// When the next frame leaves the buffer.
    pub fn next_departure(&self) -> Option<u64> {
        (self.frames > 0).then_some(self.head_ns + u64::from(self.head_rem > 0))
    }

    /// The next frame that has arrived at the far end by `now`.
    #[inline]
    pub fn pop_due(&mut self, now: u64) -> Option<Delivery> {
        let limit = now.min(MAX_TIME) << FLAGS | ((1 << FLAGS) - 1);
        let (key, tag) = self.lane.pop(self.slots.as_mut(), limit)?;
        self.counters.delivered += 1;
        Some(Delivery {
            tag,
            at: key >> FLAGS,
            mark: key & FLAG_MARK != 0,
            copy: key & FLAG_COPY != 0,
            corrupt: key & FLAG_CORRUPT != 0,
        })
    }

    /// Follows another description from `now` on; gives the old one back.
    ///
    /// No frame is lost, and what was promised to frames already taken is kept: they leave the
    /// buffer together when the last of them was to leave it.
    pub fn reconfigure(&mut self, now: u64, config: K) -> Result<K, ConfigError> {
        if !config.is_fifo() {
            return Err(ConfigError::NeedsScheduled);
        }
        self.follow(now, config)
    }

    pub(crate) fn follow(&mut self, now: u64, config: K) -> Result<K, ConfigError> {
        Lane::check(config.line.ordered, self.slots.as_ref().len())?;
        self.settle(now.max(self.now));
        let old = &*self.config;
        let free = Instant { ns: self.free_ns, rem: self.free_rem };
        let free = old.pace.translate(free, config.pace);
        (self.free_ns, self.free_rem) = (free.ns, free.rem);
        if self.frames > 0 {
            self.lump = self.frames - 1;
            (self.head_ns, self.head_rem) = (free.ns, free.rem);
        }
        self.tokens = match (&old.policer, &config.policer) {
            (Some(_), Some(new)) => self.tokens.min(new.full),
            (None, Some(new)) => new.full,
            _ => 0,
        };
        if old.red != config.red {
            self.red = RedState::default();
        }
        self.line.adopt(&old.line, &config.line);
        self.lane.set_ordered(self.slots.as_mut(), config.line.ordered);
        Ok(core::mem::replace(&mut self.config, config))
    }

    /// What the port has done so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(crate) fn counters_mut(&mut self) -> &mut Counters {
        &mut self.counters
    }

    /// Its configuration.
    pub fn config(&self) -> &PortConfig {
        &self.config
    }

    /// Frames and copies between the serialiser's decision and the far end.
    pub fn on_line(&self) -> u32 {
        self.lane.held()
    }

    /// Frames and bytes in the buffer, as of the last arrival or [`settle`](Self::settle).
    pub fn buffered(&self) -> (u32, u32) {
        (self.frames, self.bytes)
    }

    /// When the serialiser has nothing promised any more, in whole ns, rounded up.
    pub(crate) fn free_at(&self) -> u64 {
        self.free_ns + u64::from(self.free_rem > 0)
    }

    /// Picoseconds beyond the whole nanosecond at which the last bit of the last frame left: the
    /// [`phase_ps`](Frame::phase_ps) of its arrival at the next hop, if the line only delays.
    pub fn phase_ps(&self) -> u16 {
        let config = &*self.config;
        let end = Instant { ns: self.free_ns, rem: self.free_rem };
        config.pace.phase_ps(config.pace.before(end, config.wire.gap).unwrap_or(end))
    }
}
