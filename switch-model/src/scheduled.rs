// SPDX-License-Identifier: MIT OR Apache-2.0
//! A port whose next frame is chosen when the wire falls free: classes, CoDel, a slow path.
//!
//! Frames wait in linked lists through the caller's memory and go to an inner [`Port`], which knows
//! the wire and the line, one at a time. Decisions happen at the instants at which they are due,
//! whenever the caller comes to ask, so the outcome depends on no polling.

use core::ops::Deref;

use crate::{
    ConfigError, Counters, Delivery, DropReason, Event, Frame, Port, PortConfig, Slot, Verdict,
    codel::CodelState,
    config::Queueing,
    frame::{LAST_ARRIVAL, LAST_DEPARTURE},
    lane::{FLAGS, MAX_LINKED},
    port::check_slots,
};

/// No slot.
const END: u16 = 0x7FFF;
/// The bit of a link that says that the frame may be marked.
const ECN: u16 = 0x8000;
/// Flags of a waiting frame's key.
const MARKED: u64 = 1;
const FLOOD: u64 = 2;
/// The "reason" of an event that is no drop.
const DUPLICATED: u64 = 7;

/// A list of slots: first in, first out.
#[derive(Clone, Copy, Debug)]
struct List {
    head: u16,
    tail: u16,
}

impl List {
    const EMPTY: Self = Self { head: END, tail: END };

    fn is_empty(self) -> bool {
        self.head == END
    }

    fn push(&mut self, slots: &mut [Slot], i: u16) {
        slots[usize::from(i)].node = slots[usize::from(i)].node & ECN | END;
        match self.tail {
            END => self.head = i,
            tail => {
                let link = &mut slots[usize::from(tail)].node;
                *link = *link & ECN | i;
            }
        }
        self.tail = i;
    }

    fn pop(&mut self, slots: &[Slot]) -> Option<u16> {
        let i = self.head;
        if i == END {
            return None;
        }
        self.head = slots[usize::from(i)].node & !ECN;
        if self.head == END {
            self.tail = END;
        }
        Some(i)
    }

    /// The time in the key of the first.
    fn first(self, slots: &[Slot]) -> Option<u64> {
        (self.head != END).then(|| slots[usize::from(self.head)].key >> FLAGS)
    }
}

/// One traffic class: its frames and its credit in bytes.
#[derive(Clone, Copy, Debug)]
struct Class {
    list: List,
    deficit: u32,
}

/// A port with up to `C` traffic classes.
///
/// It answers [`Verdict::Queued`] to every frame that it does not refuse; the rest, with drops after
/// that, comes from [`pop_due`](Self::pop_due).
#[derive(Clone, Debug)]
pub struct Scheduled<K, S, const C: usize = 1> {
    port: Port<K, S>,
    waiting: S,
    classes: [Class; C],
    /// Frames on the slow path; their keys tell when they are through.
    slow: List,
    /// What the caller has yet to be told.
    events: List,
    spare: List,
    codel: CodelState,
    /// When the slow path's processor is free.
    processor_ns: u64,
    frames: u32,
    bytes: u32,
    slow_frames: u32,
    slow_bytes: u64,
    turn: u8,
    /// The class whose turn it is has got its quantum.
    topped: bool,
}

impl<K, S, const C: usize> Scheduled<K, S, C>
where
    K: Deref<Target = PortConfig>,
    S: AsRef<[Slot]> + AsMut<[Slot]>,
{
    /// A port whose chances are those of `seed`; `line` holds frames in flight, `waiting` the others.
    pub fn new(config: K, seed: u64, line: S, mut waiting: S) -> Result<Self, ConfigError> {
        Self::check(&config)?;
        let slots = waiting.as_mut();
        check_slots(slots.len())?;
        if slots.len() > MAX_LINKED {
            return Err(ConfigError::TooManySlots);
        }
        let mut spare = List::EMPTY;
        for i in 0..slots.len().min(usize::from(END)) {
            spare.push(slots, i as u16);
        }
        Ok(Self {
            port: Port::exit(config, seed, line)?,
            waiting,
            classes: [Class { list: List::EMPTY, deficit: 0 }; C],
            slow: List::EMPTY,
            events: List::EMPTY,
            spare,
            codel: CodelState::default(),
            processor_ns: 0,
            frames: 0,
            bytes: 0,
            slow_frames: 0,
            slow_bytes: 0,
            turn: 0,
            topped: false,
        })
    }

    fn check(config: &PortConfig) -> Result<(), ConfigError> {
        if usize::from(config.queueing.classes) > C { Err(ConfigError::Classes) } else { Ok(()) }
    }

    /// Takes a frame whose last bit has arrived at `now`.
    pub fn offer(&mut self, now: u64, frame: Frame) -> Verdict {
        self.offer_within(now, frame, u64::MAX)
    }

    /// The same on a switch that leaves this port `share` bytes of its buffer.
    ///
    /// The share is judged when the frame is offered, for a frame on the slow path too.
    pub fn offer_within(&mut self, now: u64, frame: Frame, share: u64) -> Verdict {
        let ready = match self.port.ingress(now, &frame) {
            Ok(ready) => ready,
            Err(reason) => return self.port.refuse(reason, &frame),
        };
        self.run(ready);
        let config = self.port.config();
        let slow = config.processor.filter(|_| frame.cost > 0);
        if slow.is_some_and(|processor| self.slow_frames >= processor.queue) {
            return self.port.refuse(DropReason::QueueFull, &frame);
        }
        let (frames, bytes) = self.buffered();
        let mark = match slow {
            Some(_) if u64::from(bytes) + u64::from(frame.len) > share => {
                return self.port.refuse(DropReason::SharedFull, &frame);
            }
            Some(_) => false,
            None => match self.port.admit(ready, &frame, frames, bytes, share) {
                Ok(mark) => mark,
                Err(reason) => return self.port.refuse(reason, &frame),
            },
        };
        let slots = self.waiting.as_mut();
        let Some(i) = self.spare.pop(slots) else {
            return self.port.refuse(DropReason::NoSlot, &frame);
        };
        let slot = &mut slots[usize::from(i)];
        (slot.tag, slot.len) = (frame.tag, frame.len as u16);
        slot.node = if frame.ecn { ECN } else { 0 };
        let classes = self.port.config().queueing.classes;
        let class = frame.class.min(classes - 1);
        if let Some(processor) = slow {
            let service = processor.service[usize::from(frame.cost.min(3)) - 1];
            let done = self.processor_ns.max(ready).saturating_add(service).min(LAST_DEPARTURE);
            self.processor_ns = done;
            slot.key = done << FLAGS | u64::from(class);
            self.slow.push(slots, i);
            self.slow_frames += 1;
            self.slow_bytes += u64::from(frame.len);
        } else {
            let flood = if frame.flood { FLOOD } else { 0 };
            slot.key = ready << FLAGS | flood | u64::from(mark);
            self.join(class, i);
        }
        self.run(ready);
        Verdict::Queued
    }

    fn join(&mut self, class: u8, i: u16) {
        let slots = self.waiting.as_mut();
        self.bytes += u32::from(slots[usize::from(i)].len);
        self.frames += 1;
        self.classes[usize::from(class)].list.push(slots, i);
        let (frames, bytes) = self.buffered();
        self.port.tally().held(frames, bytes);
    }

    /// The next instant at which something is to be decided.
    fn next_decision(&self) -> Option<u64> {
        let slow = self.slow.first(self.waiting.as_ref());
        let wire = (self.frames > 0).then(|| {
            let slots = self.waiting.as_ref();
            let earliest = self.classes.iter().filter_map(|c| c.list.first(slots)).min();
            self.port.free_at().max(earliest.unwrap_or(0))
        });
        match (slow, wire) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Takes every decision that is due by `now`, in the order of time.
    fn run(&mut self, now: u64) {
        while let Some(at) = self.next_decision()
            && at <= now
        {
            if self.slow.first(self.waiting.as_ref()).is_some_and(|done| done <= at) {
                self.leave_slow_path(at);
            } else {
                self.serve(at);
            }
        }
    }

    fn leave_slow_path(&mut self, at: u64) {
        let slots = self.waiting.as_mut();
        let Some(i) = self.slow.pop(slots) else { return };
        self.slow_frames -= 1;
        let slot = &mut slots[usize::from(i)];
        self.slow_bytes -= u64::from(slot.len);
        let class = (slot.key & 7) as u8;
        let ecn = slot.node & ECN != 0;
        let frame = Frame { ecn, class, ..Frame::new(slot.tag, u32::from(slot.len)) };
        self.port.settle(at);
        let (frames, bytes) = self.buffered();
        match self.port.admit(at, &frame, frames, bytes, u64::MAX) {
            Ok(mark) => {
                self.waiting.as_mut()[usize::from(i)].key = at << FLAGS | u64::from(mark);
                // The classes may have become fewer since.
                self.join(class.min(C as u8 - 1), i);
            }
            Err(reason) => {
                self.port.refuse(reason, &frame);
                self.tell(i, at, reason as u64);
            }
        }
    }

    /// Gives the wire, which is free at `at`, to a waiting frame.
    fn serve(&mut self, at: u64) {
        let Some(i) = self.choose() else { return };
        let slot = self.waiting.as_ref()[usize::from(i)];
        let len = u32::from(slot.len);
        let joined = slot.key >> FLAGS;
        self.frames -= 1;
        self.bytes -= len;
        let ecn = slot.node & ECN != 0;
        let flood = slot.key & FLOOD != 0;
        let frame = Frame { ecn, flood, ..Frame::new(slot.tag, len) };
        let mut mark = slot.key & MARKED != 0;
        if let Some(codel) = self.port.config().codel
            && codel.drops(&mut self.codel, at, at.saturating_sub(joined), self.bytes)
        {
            if !(codel.ecn && ecn) {
                self.port.refuse(DropReason::Aqm, &frame);
                self.tell(i, at, DropReason::Aqm as u64);
                return;
            }
            mark = true;
        }
        self.port.settle(at);
        match self.port.transmit(joined, &frame, mark) {
            Verdict::Drop(reason) => self.tell(i, at, reason as u64),
            Verdict::Deliver(fate) if fate.duplicate_at.is_some() => self.tell(i, at, DUPLICATED),
            _ => self.spare.push(self.waiting.as_mut(), i),
        }
    }

    /// Takes the next frame from its class.
    fn choose(&mut self) -> Option<u16> {
        let Queueing { quanta, .. } = self.port.config().queueing;
        let slots = self.waiting.as_ref();
        let Some(quanta) = quanta else {
            return self.classes.iter_mut().find_map(|class| class.list.pop(slots));
        };
        // Deficit round robin. After one idle round, as many rounds as are needed at once.
        let mut visits = 0;
        while self.frames > 0 {
            let turn = usize::from(self.turn) % C;
            let class = &mut self.classes[turn];
            if !class.list.is_empty() {
                let len = u32::from(slots[usize::from(class.list.head)].len);
                if !self.topped {
                    class.deficit = class.deficit.saturating_add(quanta[turn]);
                    self.topped = true;
                }
                if class.deficit >= len {
                    class.deficit -= len;
                    let i = class.list.pop(slots);
                    if class.list.is_empty() {
                        class.deficit = 0;
                    }
                    return i;
                }
            }
            self.turn = ((turn + 1) % C) as u8;
            self.topped = false;
            visits += 1;
            if visits == C {
                let short = |(class, quantum): (&Class, &u32)| {
                    let len = u32::from(slots[usize::from(class.list.head)].len);
                    (len - class.deficit).div_ceil(*quantum) - 1
                };
                let backlogged =
                    self.classes.iter().zip(&quanta).filter(|(c, _)| !c.list.is_empty());
                let rounds = backlogged.map(short).min().unwrap_or(0);
                for (class, quantum) in self.classes.iter_mut().zip(&quanta) {
                    if !class.list.is_empty() {
                        class.deficit += quantum * rounds;
                    }
                }
            }
        }
        None
    }

    /// Keeps what became of the frame in slot `i` until the caller asks.
    fn tell(&mut self, i: u16, at: u64, what: u64) {
        let slots = self.waiting.as_mut();
        slots[usize::from(i)].key = at << FLAGS | what;
        self.events.push(slots, i);
    }

    /// The next thing that has happened by `now`, in the order of time.
    pub fn pop_due(&mut self, now: u64) -> Option<Event> {
        let now = now.min(LAST_ARRIVAL);
        self.run(now);
        let event = self.events.first(self.waiting.as_ref()).filter(|&at| at <= now);
        if let Some(at) = event
            && self.port.next_deadline().is_none_or(|delivery| at <= delivery)
        {
            let slots = self.waiting.as_mut();
            let i = self.events.pop(slots)?;
            let Slot { key, tag, .. } = slots[usize::from(i)];
            self.spare.push(slots, i);
            return Some(match DropReason::ALL.get((key & 7) as usize) {
                Some(&reason) => Event::Drop { tag, at, reason },
                None => Event::Duplicated { tag },
            });
        }
        self.port.pop_due(now).map(Event::Deliver)
    }

    /// When to ask [`pop_due`](Self::pop_due) next.
    pub fn next_deadline(&self) -> Option<u64> {
        let event = self.events.first(self.waiting.as_ref());
        [event, self.next_decision(), self.port.next_deadline()].into_iter().flatten().min()
    }

    /// When the buffer's content changes next, if no frame comes.
    pub fn next_departure(&self) -> Option<u64> {
        [self.next_decision(), self.port.next_departure()].into_iter().flatten().min()
    }

    /// Brings the buffer up to date.
    pub fn settle(&mut self, now: u64) {
        self.run(now);
        self.port.settle(now);
    }

    /// Follows another description from `now` on; gives the old one back. No frame is lost.
    pub fn reconfigure(&mut self, now: u64, config: K) -> Result<K, ConfigError> {
        Self::check(&config)?;
        self.run(now);
        let old = self.port.follow(now, config)?;
        if old.codel != self.port.config().codel {
            self.codel = CodelState::default();
        }
        if old.queueing != self.port.config().queueing {
            (self.turn, self.topped) = (0, false);
            self.classes.iter_mut().for_each(|class| class.deficit = 0);
        }
        Ok(old)
    }

    /// What the port has done so far.
    pub fn counters(&self) -> Counters {
        let bytes = u64::from(self.bytes) + self.slow_bytes;
        self.port.report(self.waiting(), bytes)
    }

    /// Its configuration.
    pub fn config(&self) -> &PortConfig {
        self.port.config()
    }

    /// Frames and bytes in the buffer, the frame in service among them.
    pub fn buffered(&self) -> (u32, u32) {
        let (frames, bytes) = self.port.buffered();
        (frames + self.frames, bytes + self.bytes)
    }

    /// Frames that wait for the wire or on the slow path, none of them in service.
    pub fn waiting(&self) -> u32 {
        self.frames + self.slow_frames
    }

    /// Frames and copies between the serialiser and the far end.
    pub fn on_line(&self) -> u32 {
        self.port.on_line()
    }
}

/// What a [`Switch`](crate::Switch) needs of a port.
pub trait Egress {
    /// Takes a frame, if the port's buffer does not exceed `share` bytes with it.
    fn offer_within(&mut self, now: u64, frame: Frame, share: u64) -> Verdict;
    /// The next thing that has happened by `now`.
    fn pop_due(&mut self, now: u64) -> Option<Event>;
    /// When to ask for it.
    fn next_deadline(&self) -> Option<u64>;
    /// When the buffer's content changes next, if no frame comes.
    fn next_departure(&self) -> Option<u64>;
    /// Brings the buffer up to date.
    fn settle(&mut self, now: u64);
    /// Bytes in the buffer.
    fn buffered_bytes(&self) -> u32;
    /// What the port has done so far.
    fn counters(&self) -> Counters;
}

impl<K, S> Egress for Port<K, S>
where
    K: Deref<Target = PortConfig>,
    S: AsRef<[Slot]> + AsMut<[Slot]>,
{
    #[inline]
    fn offer_within(&mut self, now: u64, frame: Frame, share: u64) -> Verdict {
        self.offer_within(now, frame, share)
    }
    #[inline]
    fn pop_due(&mut self, now: u64) -> Option<Event> {
        let delivery: Option<Delivery> = self.pop_due(now);
        delivery.map(Event::Deliver)
    }
    #[inline]
    fn next_deadline(&self) -> Option<u64> {
        self.next_deadline()
    }
    fn next_departure(&self) -> Option<u64> {
        self.next_departure()
    }
    fn settle(&mut self, now: u64) {
        self.settle(now);
    }
    fn buffered_bytes(&self) -> u32 {
        self.buffered().1
    }
    fn counters(&self) -> Counters {
        self.counters()
    }
}

impl<K, S, const C: usize> Egress for Scheduled<K, S, C>
where
    K: Deref<Target = PortConfig>,
    S: AsRef<[Slot]> + AsMut<[Slot]>,
{
    fn offer_within(&mut self, now: u64, frame: Frame, share: u64) -> Verdict {
        self.offer_within(now, frame, share)
    }
    fn pop_due(&mut self, now: u64) -> Option<Event> {
        self.pop_due(now)
    }
    fn next_deadline(&self) -> Option<u64> {
        self.next_deadline()
    }
    fn next_departure(&self) -> Option<u64> {
        self.next_departure()
    }
    fn settle(&mut self, now: u64) {
        self.settle(now);
    }
    fn buffered_bytes(&self) -> u32 {
        self.buffered().1
    }
    fn counters(&self) -> Counters {
        self.counters()
    }
}
