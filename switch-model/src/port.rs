// SPDX-License-Identifier: MIT OR Apache-2.0
//! A port whose queue is first in, first out: everything about a frame is decided when it comes.
//!
//! The queue is never simulated step by step. The serialiser's next free instant tells when a frame
//! starts, and a ring of frame lengths, replayed against the same exact arithmetic, tells how many
//! frames are still in the buffer when the next one comes.

use core::ops::Deref;

use crate::{
    ConfigError, Counters, Delivery, DropReason, Fate, Frame, MAX_TIME, PortConfig, Slot, Verdict,
    counters::Tally,
    frame::{LAST_ARRIVAL, flipped},
    lane::{FLAG_COPY, FLAG_CORRUPT, FLAG_MARK, FLAGS, Lane, NOTHING},
    line::{LineKind, LineState},
    red::{Early, RedState},
    rng::{Draws, Purpose},
    serialiser::{Instant, Pace},
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
    /// When the first frame in the buffer leaves it, rounded up; [`NEVER`] if there is none.
    head_ns: u64,
    /// The remainder of that, or [`STAMPS`].
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
    counters: Tally,
    slots: S,
}

/// Whether a port can use so many slots.
pub(crate) fn check_slots(slots: usize) -> Result<(), ConfigError> {
    if slots.is_power_of_two() && slots <= 1 << 30 { Ok(()) } else { Err(ConfigError::Slots) }
}

/// No frame is in the buffer.
const NEVER: u64 = u64::MAX;

/// Instead of a remainder: the slots of waiting frames tell when they leave, in 16 bits.
///
/// That saves a division per frame, where all frames are short.
const STAMPS: u32 = u32::MAX;

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
        check_slots(slots.as_ref().len())?;
        let mut lane = Lane::default();
        lane.set_ordered(slots.as_mut(), config.line.ordered);
        let head_rem = if config.short_frames { STAMPS } else { 0 };
        Ok(Self {
            tokens: config.policer.map_or(0, |p| p.full),
            config,
            seed,
            now: 0,
            free_ns: 0,
            free_rem: 0,
            head_ns: NEVER,
            head_rem,
            ring: 0,
            frames: 0,
            bytes: 0,
            lump: 0,
            red: RedState::default(),
            lane,
            line: LineState::default(),
            counters: Tally::default(),
            slots,
        })
    }

    /// Takes a frame whose last bit has arrived at `now`, and decides.
    #[inline(always)]
    pub fn offer(&mut self, now: u64, frame: Frame) -> Verdict {
        self.offer_within(now, frame, u64::MAX)
    }

    /// The same on a switch that leaves this port `share` bytes of its buffer.
    #[inline(always)]
    pub fn offer_within(&mut self, now: u64, frame: Frame, share: u64) -> Verdict {
        if frame.len.wrapping_sub(1) < self.config.simple_frame && frame.phase_ps == 0 {
            self.decide::<false>(now, frame, share)
        } else {
            self.decide_in_full(now, frame, share)
        }
    }

    #[inline(never)]
    fn decide_in_full(&mut self, now: u64, frame: Frame, share: u64) -> Verdict {
        self.decide::<true>(now, frame, share)
    }

    /// `FULL` is false where the configuration and the frame are simple.
    #[inline(always)]
    fn decide<const FULL: bool>(&mut self, now: u64, frame: Frame, share: u64) -> Verdict {
        let ready = match self.ingress::<FULL>(now, &frame) {
            Ok(ready) => ready,
            Err(reason) => return self.refuse(reason, &frame),
        };
        let mark = match self.admit::<FULL>(ready, &frame, self.frames, self.bytes, share) {
            Ok(mark) => mark,
            Err(reason) => return self.refuse(reason, &frame),
        };
        self.transmit::<FULL>(ready, &frame, mark)
    }

    /// Counts the frame, lets the policer judge it and tells when it reaches the queue.
    #[inline(always)]
    pub(crate) fn ingress<const FULL: bool>(
        &mut self,
        now: u64,
        frame: &Frame,
    ) -> Result<u64, DropReason> {
        let config = &*self.config;
        let ready = (now.min(MAX_TIME) + config.latency).max(self.now);
        let elapsed = ready - self.now;
        self.now = ready;
        if FULL {
            if let Some(policer) = &config.policer
                && !policer.admit(&mut self.tokens, elapsed, frame.len.min(config.max_frame))
            {
                return Err(DropReason::Policed);
            }
            if frame.len == 0 || frame.len > config.max_frame {
                return Err(DropReason::Size);
            }
        }
        self.settle_checked(ready);
        Ok(ready)
    }

    /// Whether the buffer, which holds `frames` of `bytes`, takes the frame, and marked or not.
    #[inline(always)]
    pub(crate) fn admit<const FULL: bool>(
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
        if !FULL {
            return Ok(false);
        }
        let mut mark = frame.ecn && frames > config.mark_above;
        if let Some(red) = &config.red {
            let idle = if frames == 0 { ready.saturating_sub(self.free_ns) } else { 0 };
            let index = self.counters.sent + self.counters.refused();
            let draw = Draws::of(self.seed, index).get32(Purpose::Aqm);
            match red.judge(&mut self.red, bytes, idle / config.idle_unit, draw) {
                Early::Pass => {}
                Early::Chance if red.ecn && frame.ecn => mark = true,
                _ => return Err(DropReason::Aqm),
            }
        }
        Ok(mark)
    }

    /// Puts a frame, which was admitted, on the wire when that is free.
    #[inline(always)]
    pub(crate) fn transmit<const FULL: bool>(
        &mut self,
        ready: u64,
        frame: &Frame,
        mark: bool,
    ) -> Verdict {
        let config = &*self.config;
        let room = self.slots.as_ref().len();
        if self.frames as usize >= room || (self.lane.held() + config.room) as usize > room {
            return self.refuse(DropReason::NoSlot, frame);
        }
        let wire_bytes = config.wire.bytes_of::<FULL>(frame.len);
        let free = Instant { ns: self.free_ns, rem: self.free_rem };
        let mut start = match FULL {
            true => free.max(config.pace.instant(ready, frame.phase_ps)),
            false => Pace::start(free, ready),
        };
        if FULL
            && let Some(cut) = &config.cut_through
            && let Some(earlier) = self.cut_through(cut, free, ready, frame)
        {
            start = earlier;
        }
        let end = config.pace.after(start, wire_bytes);
        let last_bit = end.ns - config.gap.ns - u64::from(end.rem < config.gap.rem);

        // The buffer holds it until the serialiser is done with it.
        let leaves = end.ns + u64::from(end.rem > 0);
        let slots = self.slots.as_mut();
        let mask = slots.len() - 1;
        let waiting = &mut slots[self.ring.wrapping_add(self.frames) as usize & mask];
        waiting.len = frame.len as u16;
        if self.head_rem == STAMPS {
            waiting.node = leaves as u16;
        } else if self.frames == 0 {
            self.head_rem = end.rem;
        }
        if self.frames == 0 {
            self.head_ns = leaves;
        }
        self.frames += 1;
        self.bytes += frame.len;
        (self.free_ns, self.free_rem) = (end.ns, end.rem);
        let draws = Draws::of(self.seed, self.counters.sent);
        self.counters.sent += 1;
        self.counters.sent_bytes += u64::from(frame.len);
        self.counters.busy_ns += end.ns - start.ns;
        if FULL {
            self.counters.marks += u64::from(mark);
        }
        self.counters.held(self.frames, self.bytes);

        if self.lane.is_heap() && config.line.ordered {
            Self::order(&mut self.line, &mut self.lane, slots);
        }
        if config.line.loses(&mut self.line, draws) {
            self.counters.drop(DropReason::Loss);
            return Verdict::Drop(DropReason::Loss);
        }
        let mark_flag = if mark { FLAG_MARK } else { 0 };
        if config.line.kind != LineKind::Full {
            let deliver_at = match config.line.kind {
                LineKind::Plain => config.line.delayed(&mut self.line, last_bit),
                _ => config.line.jittered(&mut self.line, last_bit, draws),
            };
            self.lane.push(slots, deliver_at << FLAGS | mark_flag, frame.tag);
            return Verdict::Deliver(Fate {
                deliver_at,
                mark,
                duplicate_at: None,
                corrupt_bit: None,
            });
        }
        let passage = config.line.carry(&mut self.line, last_bit, frame.len, draws);
        let flags = mark_flag | if passage.corrupt { FLAG_CORRUPT } else { 0 };
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

    /// A heap is left over from a line that let frames overtake.
    #[cold]
    fn order(line: &mut LineState, lane: &mut Lane, slots: &mut [Slot]) {
        line.strictly_later();
        lane.set_ordered(slots, true);
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

    #[cold]
    pub(crate) fn refuse(&mut self, reason: DropReason, frame: &Frame) -> Verdict {
        self.counters.drop(reason);
        self.counters.refused_bytes += u64::from(frame.len);
        Verdict::Drop(reason)
    }

    /// Lets the frames leave the buffer that the serialiser is done with at `now`.
    #[inline]
    pub fn settle(&mut self, now: u64) {
        self.settle_checked(now.min(LAST_ARRIVAL));
    }

    #[inline]
    fn settle_checked(&mut self, now: u64) {
        while self.head_ns <= now {
            self.depart();
        }
    }

    /// The first frame leaves the buffer.
    #[inline]
    fn depart(&mut self) {
        let slots = self.slots.as_ref();
        let mask = slots.len() - 1;
        self.bytes -= u32::from(slots[self.ring as usize & mask].len);
        self.ring = self.ring.wrapping_add(1);
        self.frames -= 1;
        if self.frames == 0 {
            (self.head_ns, self.lump) = (NEVER, 0);
        } else if self.lump > 0 {
            self.lump -= 1;
        } else {
            let next = &slots[self.ring as usize & mask];
            if self.head_rem == STAMPS {
                self.head_ns += u64::from(next.node.wrapping_sub(self.head_ns as u16));
            } else {
                let len = u32::from(next.len);
                self.next_head(len);
            }
        }
    }

    /// The first frame in the buffer is now one of `len`.
    #[inline(never)]
    fn next_head(&mut self, len: u32) {
        let config = &*self.config;
        let ns = self.head_ns - u64::from(self.head_rem > 0);
        let head = Instant { ns, rem: self.head_rem };
        let head = config.pace.after(head, config.wire.bytes(len));
        (self.head_ns, self.head_rem) = (head.ns + u64::from(head.rem > 0), head.rem);
    }

    /// When the next frame is due at the far end.
    #[inline]
    pub fn next_deadline(&self) -> Option<u64> {
        let key = self.lane.first(self.slots.as_ref());
        (key != NOTHING).then_some(key >> FLAGS)
    }

    /// When the next frame leaves the buffer.
    pub fn next_departure(&self) -> Option<u64> {
        Some(self.head_ns).filter(|&at| at != NEVER)
    }

    /// The next frame that has arrived at the far end by `now`.
    #[inline]
    pub fn pop_due(&mut self, now: u64) -> Option<Delivery> {
        let limit = now.min(LAST_ARRIVAL) << FLAGS | ((1 << FLAGS) - 1);
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
        self.settle(now.max(self.now));
        let old = &*self.config;
        let free = Instant { ns: self.free_ns, rem: self.free_rem };
        let free = old.pace.translate(free, config.pace);
        (self.free_ns, self.free_rem) = (free.ns, free.rem);
        if self.frames > 0 {
            self.lump = self.frames - 1;
            self.head_ns = self.free_at();
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
        self.head_rem = if config.short_frames { STAMPS } else { free.rem };
        Ok(core::mem::replace(&mut self.config, config))
    }

    /// What the port has done so far.
    pub fn counters(&self) -> Counters {
        self.report(0, 0)
    }

    pub(crate) fn report(&self, waiting: u32, bytes: u64) -> Counters {
        self.counters.report(waiting, bytes)
    }

    pub(crate) fn tally(&mut self) -> &mut Tally {
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
