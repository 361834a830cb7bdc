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
    state: State,
    slots: S,
}

/// What a port remembers, beside the frames.
#[derive(Clone, Debug)]
struct State {
    /// Of the next frame that the serialiser takes.
    draws: Draws,
    /// When the last frame reached the queue.
    now: u64,
    /// When the serialiser is free.
    free_ns: u64,
    free_rem: u32,
    /// The remainder of `head_ns`, or [`STAMPS`].
    head_rem: u32,
    /// When the first frame in the buffer leaves it, rounded up; [`NEVER`] if there is none.
    head_ns: u64,
    /// The ring of lengths: frames in the buffer, the one in service first; to be masked.
    ring: usize,
    frames: u32,
    bytes: u32,
    /// Frames that leave the buffer together, because they were there before a change of the rate.
    lump: u32,
    tokens: u64,
    red: RedState,
    lane: Lane,
    line: LineState,
    counters: Tally,
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

/// The ways through a port. This is for frames up to [`Lane::plain`].
const PLAIN: u8 = 0;
/// For frames up to [`Lane::jittered`].
const JITTERED: u8 = 1;
/// With everything that a port can do.
const FULL: u8 = 2;

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
        let state = State::new(&config, seed, slots.as_mut());
        Ok(Self { config, state, slots })
    }

    /// Takes a frame whose last bit has arrived at `now`, and decides.
    #[inline(always)]
    pub fn offer(&mut self, now: u64, frame: Frame) -> Verdict {
        self.offer_within(now, frame, u64::MAX)
    }

    /// The same on a switch that leaves this port `share` bytes of its buffer.
    #[inline(always)]
    pub fn offer_within(&mut self, now: u64, frame: Frame, share: u64) -> Verdict {
        let Self { config, state, slots } = self;
        let (config, slots) = (&**config, slots.as_mut());
        let short = |way: u16| frame.len.wrapping_sub(1) < way.into() && frame.phase_ps == 0;
        let passed = if short(state.lane.plain) {
            state.pass::<PLAIN>(config, slots, now, &frame, share)
        } else if short(state.lane.jittered) {
            state.pass::<JITTERED>(config, slots, now, &frame, share)
        } else {
            None
        };
        if let Some(verdict) = passed {
            return verdict;
        }
        state.decide(config, slots, now, frame, share)
    }

    /// Counts the frame, lets the policer judge it and tells when it reaches the queue.
    pub(crate) fn ingress(&mut self, now: u64, frame: &Frame) -> Result<u64, DropReason> {
        self.state.ingress(&self.config, self.slots.as_ref(), now, frame)
    }

    /// Whether the buffer, which holds `frames` of `bytes`, takes the frame, and marked or not.
    pub(crate) fn admit(
        &mut self,
        ready: u64,
        frame: &Frame,
        frames: u32,
        bytes: u32,
        share: u64,
    ) -> Result<bool, DropReason> {
        self.state.admit(&self.config, ready, frame, (frames, bytes), share)
    }

    /// Puts a frame, which was admitted, on the wire when that is free.
    pub(crate) fn transmit(&mut self, ready: u64, frame: &Frame, mark: bool) -> Verdict {
        self.state.transmit::<FULL>(&self.config, self.slots.as_mut(), ready, frame, mark)
    }

    pub(crate) fn refuse(&mut self, reason: DropReason, frame: &Frame) -> Verdict {
        self.state.refuse(reason, frame)
    }

    /// Lets the frames leave the buffer that the serialiser is done with at `now`.
    #[inline]
    pub fn settle(&mut self, now: u64) {
        self.state.settle(&self.config, self.slots.as_ref(), now.min(LAST_ARRIVAL));
    }

    /// When the next frame is due at the far end.
    #[inline]
    pub fn next_deadline(&self) -> Option<u64> {
        let key = self.state.lane.first(self.slots.as_ref());
        (key != NOTHING).then_some(key >> FLAGS)
    }

    /// When the next frame leaves the buffer.
    pub fn next_departure(&self) -> Option<u64> {
        Some(self.state.head_ns).filter(|&at| at != NEVER)
    }

    /// The next frame that has arrived at the far end by `now`.
    #[inline]
    pub fn pop_due(&mut self, now: u64) -> Option<Delivery> {
        let limit = now.min(LAST_ARRIVAL) << FLAGS | ((1 << FLAGS) - 1);
        let (key, tag) = self.state.lane.pop(self.slots.as_mut(), limit)?;
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
        self.settle(now.max(self.state.now));
        self.state.follow(&self.config, &config, self.slots.as_mut());
        Ok(core::mem::replace(&mut self.config, config))
    }

    /// What the port has done so far.
    pub fn counters(&self) -> Counters {
        self.report(0, 0)
    }

    pub(crate) fn report(&self, waiting: u32, bytes: u64) -> Counters {
        self.state.counters.report(waiting, bytes, self.on_line())
    }

    pub(crate) fn tally(&mut self) -> &mut Tally {
        &mut self.state.counters
    }

    /// Its configuration.
    pub fn config(&self) -> &PortConfig {
        &self.config
    }

    /// Frames and copies between the serialiser's decision and the far end.
    pub fn on_line(&self) -> u32 {
        self.state.lane.held() as u32
    }

    /// Frames and bytes in the buffer, as of the last arrival or [`settle`](Self::settle).
    pub fn buffered(&self) -> (u32, u32) {
        (self.state.frames, self.state.bytes)
    }

    /// When the serialiser has nothing promised any more, in whole ns, rounded up.
    pub(crate) fn free_at(&self) -> u64 {
        self.state.free().whole()
    }

    /// Picoseconds beyond the whole nanosecond at which the last bit of the last frame left: the
    /// [`phase_ps`](Frame::phase_ps) of its arrival at the next hop, if the line only delays.
    pub fn phase_ps(&self) -> u16 {
        let config = &*self.config;
        let end = self.state.free();
        config.pace.phase_ps(config.pace.before(end, config.wire.gap).unwrap_or(end))
    }
}

impl State {
    fn new(config: &PortConfig, seed: u64, slots: &mut [Slot]) -> Self {
        let mut state = Self {
            draws: Draws::first(seed),
            now: 0,
            free_ns: 0,
            free_rem: 0,
            head_ns: NEVER,
            head_rem: 0,
            ring: 0,
            frames: 0,
            bytes: 0,
            lump: 0,
            tokens: config.policer.map_or(0, |p| p.full),
            red: RedState::default(),
            lane: Lane::new(slots),
            line: LineState::default(),
            counters: Tally::default(),
        };
        state.adapt(config, slots);
        state
    }

    /// Prepares for a description.
    fn adapt(&mut self, config: &PortConfig, slots: &mut [Slot]) {
        self.lane.set_ordered(slots, config.line.ordered);
        self.head_rem = if config.short_frames { STAMPS } else { self.free_rem };
        self.find_short_way(config);
    }

    fn find_short_way(&mut self, config: &PortConfig) {
        let frame = if config.short_frames { config.simple_frame } else { 0 };
        (self.lane.plain, self.lane.jittered) = match (config.line.kind, self.lane.is_heap()) {
            (LineKind::Plain, false) => (frame, 0),
            (LineKind::Jittered, true) => (0, frame),
            _ => (0, 0),
        };
    }

    /// When the serialiser has nothing promised any more.
    fn free(&self) -> Instant {
        Instant { ns: self.free_ns, rem: self.free_rem }
    }

    /// A short way through the port; `None` where the frame may have to be refused.
    #[inline(always)]
    fn pass<const WAY: u8>(
        &mut self,
        config: &PortConfig,
        slots: &mut [Slot],
        now: u64,
        frame: &Frame,
        share: u64,
    ) -> Option<Verdict> {
        if slots.is_empty() {
            return None;
        }
        let ready = self.arrive(config, slots, now);
        let needed = u64::from(self.bytes) + u64::from(frame.len);
        if self.frames >= config.max_frames || needed > config.max_bytes || needed > share {
            return None;
        }
        if self.frames as usize >= slots.len() || self.lane.held() >= slots.len() {
            return None;
        }
        Some(self.transmit::<WAY>(config, slots, ready, frame, false))
    }

    /// The way for all frames.
    #[inline(never)]
    fn decide(
        &mut self,
        config: &PortConfig,
        slots: &mut [Slot],
        now: u64,
        frame: Frame,
        share: u64,
    ) -> Verdict {
        let admitted = self.ingress(config, slots, now, &frame).and_then(|ready| {
            let buffer = (self.frames, self.bytes);
            Ok((ready, self.admit(config, ready, &frame, buffer, share)?))
        });
        match admitted {
            Ok((ready, mark)) => self.transmit::<FULL>(config, slots, ready, &frame, mark),
            Err(reason) => self.refuse(reason, &frame),
        }
    }

    /// Lets time pass until a frame that comes at `now` is at the queue, and tells when that is.
    #[inline(always)]
    fn arrive(&mut self, config: &PortConfig, slots: &[Slot], now: u64) -> u64 {
        self.now = (now.min(MAX_TIME) + config.latency).max(self.now);
        self.settle(config, slots, self.now);
        self.now
    }

    /// See [`Port::ingress`].
    fn ingress(
        &mut self,
        config: &PortConfig,
        slots: &[Slot],
        now: u64,
        frame: &Frame,
    ) -> Result<u64, DropReason> {
        let before = self.now;
        let ready = self.arrive(config, slots, now);
        if let Some(policer) = &config.policer
            && !policer.admit(&mut self.tokens, ready - before, frame.len.min(config.max_frame))
        {
            return Err(DropReason::Policed);
        }
        if frame.len == 0 || frame.len > config.max_frame {
            return Err(DropReason::Size);
        }
        Ok(ready)
    }

    /// See [`Port::admit`].
    fn admit(
        &mut self,
        config: &PortConfig,
        ready: u64,
        frame: &Frame,
        (frames, bytes): (u32, u32),
        share: u64,
    ) -> Result<bool, DropReason> {
        let needed = u64::from(bytes) + u64::from(frame.len);
        if frames >= config.max_frames || needed > config.max_bytes {
            return Err(DropReason::QueueFull);
        }
        if needed > share {
            return Err(DropReason::SharedFull);
        }
        let mut mark = frame.ecn && frames > config.mark_above;
        if let Some(red) = &config.red {
            let idle = if frames == 0 { ready.saturating_sub(self.free_ns) } else { 0 };
            let draw = self.draws.after(self.counters.refused()).get32(Purpose::Aqm);
            match red.judge(&mut self.red, bytes, idle / config.idle_unit, draw) {
                Early::Pass => {}
                Early::Chance if red.ecn && frame.ecn => mark = true,
                _ => return Err(DropReason::Aqm),
            }
        }
        Ok(mark)
    }

    /// See [`Port::transmit`].
    #[inline(always)]
    fn transmit<const WAY: u8>(
        &mut self,
        config: &PortConfig,
        slots: &mut [Slot],
        ready: u64,
        frame: &Frame,
        mark: bool,
    ) -> Verdict {
        let room = slots.len();
        if WAY == FULL
            && (self.frames as usize >= room || self.lane.held() + config.room as usize > room)
        {
            return self.refuse(DropReason::NoSlot, frame);
        }
        let wire_bytes = if WAY == FULL {
            config.wire.bytes(frame.len)
        } else {
            config.wire.bytes_uncut(frame.len)
        };
        let free = self.free();
        let mut start = if WAY == FULL {
            free.max(config.pace.instant(ready, frame.phase_ps))
        } else {
            Pace::start(free, ready)
        };
        if WAY == FULL
            && let Some(cut) = &config.cut_through
            && let Some(earlier) = self.cut_through(config, cut, ready, frame)
        {
            start = earlier;
        }
        let end = config.pace.after(start, wire_bytes);
        let last_bit = end.ns - config.gap.ns - u64::from(end.rem < config.gap.rem);

        // The buffer holds it until the serialiser is done with it.
        let leaves = end.whole();
        let mask = slots.len() - 1;
        let waiting = &mut slots[self.ring.wrapping_add(self.frames as usize) & mask];
        waiting.len = frame.len as u16;
        if WAY != FULL || self.head_rem == STAMPS {
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
        let draws = self.draws;
        self.draws = draws.after(1);
        self.counters.sent += 1;
        self.counters.sent_bytes += u64::from(frame.len);
        self.counters.busy_ns += end.ns - start.ns;
        if WAY == FULL {
            self.counters.marks += u64::from(mark);
        }
        self.counters.held(self.frames, self.bytes);

        if WAY == FULL && self.lane.is_heap() && config.line.ordered {
            Self::order(&mut self.line, &mut self.lane, slots);
            self.find_short_way(config);
        }
        if config.line.loses(&mut self.line, draws) {
            self.counters.drop(DropReason::Loss);
            return Verdict::Drop(DropReason::Loss);
        }
        if WAY != FULL {
            let at = match WAY {
                PLAIN => config.line.delayed(&mut self.line, last_bit),
                _ => config.line.jittered(&mut self.line, last_bit, draws),
            };
            self.lane.push(slots, WAY == JITTERED, at << FLAGS, frame.tag);
            return Verdict::Deliver(Fate::at(at));
        }
        let passage = config.line.carry(&mut self.line, last_bit, frame.len, draws);
        let mark_flag = if mark { FLAG_MARK } else { 0 };
        let flags = mark_flag | if passage.corrupt { FLAG_CORRUPT } else { 0 };
        let heap = self.lane.is_heap();
        self.lane.push(slots, heap, passage.at << FLAGS | flags, frame.tag);
        if let Some(at) = passage.copy_at {
            self.lane.push(slots, heap, at << FLAGS | flags | FLAG_COPY, frame.tag);
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
        config: &PortConfig,
        cut: &crate::config::CutThrough,
        ready: u64,
        frame: &Frame,
    ) -> Option<Instant> {
        let length = config.wire.bytes(frame.len) - config.wire.gap;
        let missing = length.checked_sub(cut.after)?;
        let header = cut.ingress.before(cut.ingress.instant(ready, frame.phase_ps), missing)?;
        let start = cut.ingress.translate(header, config.pace);
        (!frame.flood && self.frames == 0 && self.free() <= start).then_some(start)
    }

    #[cold]
    fn refuse(&mut self, reason: DropReason, frame: &Frame) -> Verdict {
        self.counters.drop(reason);
        self.counters.refused_bytes += u64::from(frame.len);
        Verdict::Drop(reason)
    }

    /// See [`Port::settle`].
    #[inline]
    fn settle(&mut self, config: &PortConfig, slots: &[Slot], now: u64) {
        while self.head_ns <= now {
            // The first frame leaves the buffer.
            let mask = slots.len() - 1;
            self.bytes -= u32::from(slots[self.ring & mask].len);
            self.ring = self.ring.wrapping_add(1);
            self.frames -= 1;
            if self.frames == 0 {
                self.head_ns = NEVER;
                return;
            }
            if self.lump > 0 {
                self.lump -= 1;
                continue;
            }
            let next = &slots[self.ring & mask];
            if self.head_rem == STAMPS {
                self.head_ns += u64::from(next.node.wrapping_sub(self.head_ns as u16));
            } else {
                self.next_head(config, next.len.into());
            }
        }
    }

    /// The first frame in the buffer is now one of `len`.
    #[inline(never)]
    fn next_head(&mut self, config: &PortConfig, len: u32) {
        let ns = self.head_ns - u64::from(self.head_rem > 0);
        let head = Instant { ns, rem: self.head_rem };
        let head = config.pace.after(head, config.wire.bytes(len));
        (self.head_ns, self.head_rem) = (head.whole(), head.rem);
    }

    /// See [`Port::reconfigure`]. The buffer is settled.
    fn follow(&mut self, old: &PortConfig, config: &PortConfig, slots: &mut [Slot]) {
        let free = old.pace.translate(self.free(), config.pace);
        (self.free_ns, self.free_rem) = (free.ns, free.rem);
        if self.frames > 0 {
            self.lump = self.frames - 1;
            self.head_ns = free.whole();
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
        self.adapt(config, slots);
    }
}
