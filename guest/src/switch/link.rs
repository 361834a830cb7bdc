// SPDX-License-Identifier: MIT OR Apache-2.0
//! One direction of a port: the model through which every frame goes, and its settings.
//!
//! An ideal direction has no model at all and takes no memory. It gets one with its first setting,
//! and from then on every change keeps the frames that are on their way.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use switch_model::{
    ConfigError, Counters, DropReason, Event, Frame, PortConfig, PortSpec, Scheduled, Scheduler,
    Slot, Verdict,
};

use super::ether;
use super::pool::FrameId;

/// Most traffic classes of a port.
const CLASSES: usize = switch_model::MAX_CLASSES;
/// Most frames that may wait in the classes of a port: the model's limit.
const WAITING_MAX: usize = 1 << 15;

type Fifo = switch_model::Port<Box<PortConfig>, Box<[Slot]>>;
type Classes = Scheduled<Box<PortConfig>, Box<[Slot]>, CLASSES>;

/// What decides about a frame.
#[derive(Debug)]
enum Model {
    Ideal,
    Fifo(Box<Fifo>),
    Classes {
        now: Box<Classes>,
        /// What was there before there were classes, as long as frames are on their way in it.
        before: Option<Box<Fifo>>,
    },
}

/// Why a description cannot be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkError {
    /// The description itself.
    Config(ConfigError),
    /// There is no memory for the frames that it may have on their way.
    Memory,
}

impl From<ConfigError> for LinkError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::Memory => f.write_str("the switch has no memory left for this port's frames"),
        }
    }
}

impl core::error::Error for LinkError {}

/// What became of an offered frame at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// It is at the other end already.
    Through,
    /// It is on its way.
    Held,
    /// It is on its way, and so is a copy.
    Twice,
    /// It ends here.
    Dropped(DropReason),
}

/// A direction of a port.
#[derive(Debug)]
pub struct Link {
    spec: PortSpec,
    model: Model,
    seed: u64,
    /// The model wants to know more of a frame than its length.
    curious: bool,
    classes: bool,
    passed: u64,
    passed_bytes: u64,
    /// What a model has done that is not there any more.
    past: Counters,
}

impl Link {
    /// A direction that passes everything; chances will be those of `seed`.
    pub fn ideal(seed: u64) -> Self {
        Self {
            spec: PortSpec::IDEAL,
            model: Model::Ideal,
            seed,
            curious: false,
            classes: false,
            passed: 0,
            passed_bytes: 0,
            past: Counters::default(),
        }
    }

    /// The settings in force.
    pub fn spec(&self) -> &PortSpec {
        &self.spec
    }

    /// Whether every frame passes at once.
    #[inline]
    pub fn is_ideal(&self) -> bool {
        matches!(self.model, Model::Ideal)
    }

    /// Counts frames, of so many bytes together, that pass at once: this is [ideal](Self::is_ideal).
    #[inline]
    pub fn pass(&mut self, frames: u64, bytes: u64) {
        self.passed += frames;
        self.passed_bytes += bytes;
    }

    /// Takes a frame at `now`, of which `head` is the beginning.
    #[inline]
    pub fn offer(
        &mut self,
        now: u64,
        frame: FrameId,
        len: u32,
        flood: bool,
        head: &[u8],
    ) -> Offered {
        let mut offered = Frame { flood, ..Frame::new(frame.0, len) };
        if self.curious {
            offered.ecn = ether::is_markable(head);
            if self.classes {
                offered.class = ether::urgency(head);
            }
        }
        let verdict = match &mut self.model {
            Model::Ideal => {
                self.pass(1, len.into());
                return Offered::Through;
            }
            Model::Fifo(port) => port.offer(now, offered),
            Model::Classes { now: port, .. } => port.offer(now, offered),
        };
        match verdict {
            Verdict::Deliver(fate) if fate.duplicate_at.is_some() => Offered::Twice,
            Verdict::Deliver(_) | Verdict::Queued => Offered::Held,
            Verdict::Drop(reason) => Offered::Dropped(reason),
        }
    }

    /// When to ask [`Self::pop_due`] next; `u64::MAX` if there is nothing to wait for.
    #[inline]
    pub fn deadline(&self) -> u64 {
        match &self.model {
            Model::Ideal => u64::MAX,
            Model::Fifo(port) => port.next_deadline().unwrap_or(u64::MAX),
            Model::Classes { now, before } => {
                let before = before.as_ref().and_then(|port| port.next_deadline());
                now.next_deadline().unwrap_or(u64::MAX).min(before.unwrap_or(u64::MAX))
            }
        }
    }

    /// The next thing that has happened by `now`.
    #[inline]
    pub fn pop_due(&mut self, now: u64) -> Option<Event> {
        match &mut self.model {
            Model::Ideal => None,
            Model::Fifo(port) => port.pop_due(now).map(Event::Deliver),
            Model::Classes { now: port, before } => {
                if let Some(old) = before {
                    let next = port.next_deadline().unwrap_or(u64::MAX);
                    match old.next_deadline() {
                        Some(at) if at <= next => return old.pop_due(now).map(Event::Deliver),
                        Some(_) => {}
                        None => {
                            self.past = old.counters();
                            *before = None;
                        }
                    }
                }
                port.pop_due(now)
            }
        }
    }

    /// Follows `spec` from `now` on, with up to `room` frames on their way, a power of two.
    ///
    /// # Errors
    /// [`LinkError`]; everything is as before then.
    pub fn configure(&mut self, now: u64, spec: PortSpec, room: usize) -> Result<(), LinkError> {
        let config = Box::new(spec.build()?);
        let fifo = config.is_fifo();
        match &mut self.model {
            Model::Ideal if spec == PortSpec::IDEAL => {}
            Model::Ideal if fifo => {
                self.model = Model::Fifo(Box::new(Fifo::new(config, self.seed, slots(room)?)?));
            }
            Model::Ideal => {
                self.model = Model::Classes { now: self.with_classes(config, room)?, before: None };
            }
            Model::Fifo(port) if fifo => drop(port.reconfigure(now, config)?),
            Model::Fifo(_) => {
                let port = self.with_classes(config, room)?;
                let model = Model::Classes { now: port, before: None };
                if let Model::Fifo(old) = core::mem::replace(&mut self.model, model)
                    && let Model::Classes { before, .. } = &mut self.model
                {
                    *before = Some(old);
                }
            }
            Model::Classes { now: port, .. } => drop(port.reconfigure(now, config)?),
        }
        self.spec = spec;
        self.classes = spec.scheduler != Scheduler::Fifo;
        self.curious = self.classes
            || spec.mark_above.is_some()
            || spec.red.is_some_and(|red| red.ecn)
            || spec.codel.is_some_and(|codel| codel.ecn);
        Ok(())
    }

    fn with_classes(
        &self,
        config: Box<PortConfig>,
        room: usize,
    ) -> Result<Box<Classes>, LinkError> {
        let waiting = slots(room.min(WAITING_MAX))?;
        Ok(Box::new(Classes::new(config, self.seed, slots(room)?, waiting)?))
    }

    /// Ends it: `each` is told all that would have happened to the frames that were on their way.
    pub fn clear(&mut self, mut each: impl FnMut(Event)) {
        while let Some(event) = self.pop_due(u64::MAX) {
            each(event);
        }
        *self = Self::ideal(self.seed);
    }

    /// What it has done so far.
    pub fn counters(&self) -> Counters {
        let (model, before) = match &self.model {
            Model::Ideal => (Counters::default(), None),
            Model::Fifo(port) => (port.counters(), None),
            Model::Classes { now, before } => {
                (now.counters(), before.as_ref().map(|p| p.counters()))
            }
        };
        let ideal = Counters {
            offered: self.passed,
            offered_bytes: self.passed_bytes,
            sent: self.passed,
            sent_bytes: self.passed_bytes,
            delivered: self.passed,
            ..Counters::default()
        };
        [Some(ideal), Some(self.past), before].into_iter().flatten().fold(model, sum)
    }
}

fn sum(a: Counters, b: Counters) -> Counters {
    let mut drops = a.drops;
    drops.iter_mut().zip(b.drops).for_each(|(a, b)| *a += b);
    Counters {
        offered: a.offered + b.offered,
        offered_bytes: a.offered_bytes + b.offered_bytes,
        sent: a.sent + b.sent,
        sent_bytes: a.sent_bytes + b.sent_bytes,
        delivered: a.delivered + b.delivered,
        drops,
        marks: a.marks + b.marks,
        copies: a.copies + b.copies,
        busy_ns: a.busy_ns + b.busy_ns,
        peak_frames: a.peak_frames.max(b.peak_frames),
        peak_bytes: a.peak_bytes.max(b.peak_bytes),
    }
}

/// So many slots, if there is memory for them.
fn slots(count: usize) -> Result<Box<[Slot]>, LinkError> {
    let mut slots = Vec::new();
    slots.try_reserve_exact(count).map_err(|_| LinkError::Memory)?;
    slots.resize(count, Slot::EMPTY);
    Ok(slots.into_boxed_slice())
}
