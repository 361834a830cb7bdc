// SPDX-License-Identifier: MIT OR Apache-2.0
//! A port's description after it was checked: what the fast path reads.

use crate::{
    ConfigError, PortSpec, Scheduler, Span,
    codel::Codel,
    line::{Line, LineKind},
    loss::LossModel,
    policer::Policer,
    red::Red,
    serialiser::{Instant, MAX_FRAME, Pace, Wire},
    spec::MAX_CLASSES,
};

/// Delays up to this (13 days) leave room for sums.
const MAX_DELAY: u64 = 1 << 50;

/// A checked port description. Made by [`PortSpec::build`]; any number of ports can share one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PortConfig {
    pub(crate) pace: Pace,
    pub(crate) wire: Wire,
    /// The gap after each frame, as time.
    pub(crate) gap: Instant,
    /// Frames up to this take the short way through the port: there is neither policer nor RED, nor
    /// marks, cut-through or cells. Otherwise 0.
    pub(crate) simple_frame: u16,
    /// No frame takes 2^16 ns, so the lower half of a word tells when it leaves.
    pub(crate) short_frames: bool,
    /// Room that a frame needs on the line: for its copy too, where there are any.
    pub(crate) room: u32,
    pub(crate) max_frame: u32,
    pub(crate) latency: u64,
    pub(crate) max_frames: u32,
    pub(crate) max_bytes: u64,
    pub(crate) mark_above: u32,
    pub(crate) policer: Option<Policer>,
    pub(crate) red: Option<Red>,
    pub(crate) cut_through: Option<CutThrough>,
    pub(crate) line: Line,
    /// Time of one frame of ordinary length, for RED's average of an idle queue.
    pub(crate) idle_unit: u64,
    pub(crate) codel: Option<Codel>,
    pub(crate) queueing: Queueing,
    pub(crate) processor: Option<Processor>,
}

/// Cut-through, where the rates allow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CutThrough {
    pub(crate) ingress: Pace,
    pub(crate) after: u32,
}

/// The slow path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Processor {
    pub(crate) service: [u64; 3],
    pub(crate) queue: u32,
}

/// The scheduler, ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Queueing {
    pub(crate) classes: u8,
    /// `None`: strict priority.
    pub(crate) quanta: Option<[u32; MAX_CLASSES]>,
}

impl PortSpec {
    /// Checks the description.
    pub fn build(&self) -> Result<PortConfig, ConfigError> {
        let pace = Pace::new(self.rate)?;
        let wire = Wire::new(&self.framing)?;
        let max_frame = self.max_frame.as_bytes();
        if max_frame == 0 {
            return Err(ConfigError::Zero("max_frame"));
        }
        if max_frame > u64::from(MAX_FRAME) {
            return Err(ConfigError::TooLarge("max_frame"));
        }
        let latency = bounded(self.latency, "latency")?;
        let max_frames = self.queue_frames.map_or(u32::MAX, |f| f.count());
        let max_bytes = self.queue_bytes.map_or(u64::from(u32::MAX), |b| b.as_bytes());
        if max_frames == 0 {
            return Err(ConfigError::Zero("queue_frames"));
        }
        if max_bytes > u64::from(u32::MAX) {
            return Err(ConfigError::TooLarge("queue_bytes"));
        }
        if max_bytes == 0 {
            return Err(ConfigError::Zero("queue_bytes"));
        }
        let (cut_through, line) = (self.build_cut_through(pace)?, self.build_line()?);
        let simple = self.policer.is_none()
            && self.red.is_none()
            && self.mark_above.is_none()
            && cut_through.is_none()
            && !wire.cells();
        let idle = pace.after(pace.instant(0, 0), wire.bytes(1000));
        Ok(PortConfig {
            pace,
            wire,
            gap: pace.after(pace.instant(0, 0), wire.gap),
            simple_frame: if simple { max_frame as u16 } else { 0 },
            short_frames: pace.after(pace.instant(0, 0), wire.bytes(max_frame as u32)).ns < 65_535,
            room: 1 + u32::from(line.copy.is_some()),
            max_frame: max_frame as u32,
            latency,
            max_frames,
            max_bytes,
            mark_above: self.mark_above.map_or(u32::MAX, |f| f.count()),
            policer: self.policer.as_ref().map(Policer::new).transpose()?,
            red: self.red.as_ref().map(Red::new).transpose()?,
            cut_through,
            line,
            idle_unit: idle.ns.max(1),
            codel: self.codel.as_ref().map(Codel::new).transpose()?,
            queueing: self.build_queueing()?,
            processor: self.build_processor()?,
        })
    }

    fn build_cut_through(&self, pace: Pace) -> Result<Option<CutThrough>, ConfigError> {
        let Some(spec) = &self.cut_through else { return Ok(None) };
        if self.rate.is_none() {
            return Err(ConfigError::CutThroughRate);
        }
        let ingress = Pace::new(Some(spec.ingress_rate))?;
        let after = u32::try_from(spec.after.as_bytes())
            .ok()
            .filter(|&after| after <= MAX_FRAME)
            .ok_or(ConfigError::TooLarge("cut_through.after"))?;
        // A faster port would run out of bits in the middle of the frame: store and forward.
        Ok(pace.not_faster_than(ingress).then_some(CutThrough { ingress, after }))
    }

    fn build_line(&self) -> Result<Line, ConfigError> {
        let chance = |chance: &crate::Chance| -> Result<_, ConfigError> {
            Ok(Some(chance.chain()?).filter(crate::loss::Chain::possible))
        };
        let jitter = self.jitter.compile()?;
        let (copy, corrupt) = (chance(&self.duplicate)?, chance(&self.corrupt)?);
        let reorder = chance(&self.reorder)?;
        let slots = self.slots.as_ref().map(crate::jitter::Openings::new).transpose()?;
        if self.keep_order && reorder.is_some() {
            return Err(ConfigError::OrderAndReorder);
        }
        let ordered = self.keep_order || slots.is_some() || (jitter.is_none() && reorder.is_none());
        let odd = copy.is_some() || corrupt.is_some() || reorder.is_some() || slots.is_some();
        let kind = match &jitter {
            None if !odd => LineKind::Plain,
            Some(jitter) if !odd && !ordered && !jitter.correlated() => LineKind::Jittered,
            _ => LineKind::Full,
        };
        Ok(Line {
            delay: bounded(self.delay, "delay")?,
            kind,
            jitter,
            ordered,
            loss: self.loss.compile()?,
            copy,
            corrupt,
            reorder,
            slots,
        })
    }

    fn build_queueing(&self) -> Result<Queueing, ConfigError> {
        match self.scheduler {
            Scheduler::Fifo => Ok(Queueing { classes: 1, quanta: None }),
            Scheduler::Strict { classes } if (1..=MAX_CLASSES).contains(&classes.into()) => {
                Ok(Queueing { classes, quanta: None })
            }
            Scheduler::Strict { .. } => Err(ConfigError::Classes),
            Scheduler::Drr { quanta } => {
                if quanta.is_empty() {
                    return Err(ConfigError::Classes);
                }
                let mut bytes = [0; MAX_CLASSES];
                for (to, from) in bytes.iter_mut().zip(quanta.iter()) {
                    *to = match from.as_bytes() {
                        0 => return Err(ConfigError::Zero("scheduler.quanta")),
                        n @ 1..=0xFF_FFFF => n as u32,
                        _ => return Err(ConfigError::TooLarge("scheduler.quanta")),
                    };
                }
                Ok(Queueing { classes: quanta.len() as u8, quanta: Some(bytes) })
            }
        }
    }

    fn build_processor(&self) -> Result<Option<Processor>, ConfigError> {
        let Some(spec) = &self.processor else { return Ok(None) };
        if spec.queue.count() == 0 {
            return Err(ConfigError::Zero("processor.queue"));
        }
        let mut service = [0; 3];
        for (to, from) in service.iter_mut().zip(spec.service) {
            *to = bounded(from, "processor.service")?;
        }
        Ok(Some(Processor { service, queue: spec.queue.count() }))
    }
}

impl PortConfig {
    /// Whether the queue's order is known when a frame arrives, so that a [`Port`](crate::Port) can
    /// decide at once; otherwise it takes a [`Scheduled`](crate::Scheduled) port.
    pub fn is_fifo(&self) -> bool {
        self.codel.is_none() && self.queueing.classes == 1 && self.processor.is_none()
    }

    /// Whether frames come out of the line in the order in which they went in.
    pub fn keeps_order(&self) -> bool {
        self.line.ordered
    }

    /// Whether the line can lose frames.
    pub fn loses(&self) -> bool {
        self.line.loss != LossModel::Never
    }
}

fn bounded(span: Span, name: &'static str) -> Result<u64, ConfigError> {
    match span.as_ns() {
        ns if ns <= MAX_DELAY => Ok(ns),
        _ => Err(ConfigError::TooLarge(name)),
    }
}
