// SPDX-License-Identifier: MIT OR Apache-2.0
//! The switch itself: what comes in at a port, where it goes, and when it is there.
//!
//! It moves no bytes to or from hosts and owns no clock. Frames are in the pool when they arrive here,
//! and wait in a port's queue when they are to be given to its host. Every stage happens at its own
//! time: a frame is offered to the port that it leaves by when the one that it came in by delivered
//! it, however late the processor got to it.

use alloc::boxed::Box;
use alloc::collections::VecDeque;

use serde::Serialize;
use switch_model::{Delivery, Event, PortSpec};
use tdf_xen::netif::Sums;

use super::capture::Capture;
use super::ether::{self, Ends, HEADER};
use super::fdb::Fdb;
use super::link::{Link, LinkError, Offered};
use super::pool::{FrameId, Pool};

/// Most ports: one bit each.
pub const PORTS_MAX: usize = 64;
/// Frames that may wait for a host that gives no room.
pub const OUT_MAX: usize = 512;

/// Which way through a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the host into the switch.
    Ingress,
    /// From the switch to the host.
    Egress,
}

/// What a port has seen, apart from its models.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCounters {
    /// Frames from the host.
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames to the host.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// From the host, too short to have addresses.
    pub runt: u64,
    /// From the host, for the nearest bridge only, or for a station behind the same port.
    pub filtered: u64,
    /// From the host, with nobody to send them to.
    pub no_host: u64,
    /// Either way, for want of memory for frames.
    pub no_memory: u64,
    /// To the host, which gave no room for them.
    pub host_full: u64,
    /// Either way, because Xen would not copy them.
    pub failed: u64,
    /// Either way, with the host when it went.
    pub gone: u64,
}

/// What became of all frames, of all hosts that were ever there.
///
/// Each receiver of a frame counts: what `arrived` or was `copied` was `delivered` or `dropped`, went
/// with a host that is `gone`, or is `held`. The last is counted in the memory for frames, not worked out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ledger {
    /// From hosts.
    pub arrived: u64,
    /// Made here, by flooding and by the models.
    pub copied: u64,
    /// To hosts.
    pub delivered: u64,
    /// Ended here, for whatever reason a port counts.
    pub dropped: u64,
    /// Ended with their host.
    pub gone: u64,
    /// On their way.
    pub held: u64,
}

impl Ledger {
    fn add(&mut self, port: &PortCounters) {
        let PortCounters { runt, filtered, no_host, no_memory, host_full, failed, .. } = *port;
        self.arrived += port.rx_frames;
        self.delivered += port.tx_frames;
        self.dropped += runt + filtered + no_host + no_memory + host_full + failed;
        self.gone += port.gone;
    }

    /// Whether every frame is accounted for.
    #[cfg(test)]
    pub fn balances(&self) -> bool {
        self.arrived + self.copied == self.delivered + self.dropped + self.gone + self.held
    }
}

/// A port.
#[derive(Debug)]
struct Port {
    ingress: Link,
    egress: Link,
    out: VecDeque<FrameId>,
    counters: PortCounters,
    ways: [Way; WAYS],
}

/// Ways that a port remembers: a power of two.
const WAYS: usize = 4;

/// Where a frame from one station to another went, so that the next one need not be looked at so closely.
#[derive(Clone, Copy, Debug)]
struct Way {
    /// Both addresses.
    ends: Ends,
    /// It is good at this very time only, in which nobody becomes too old; [`NEVER`]: not any more.
    now: u64,
    to: u8,
}

/// A time that is not.
const NEVER: u64 = u64::MAX;

impl Way {
    const NONE: Self = Self { ends: Ends::NONE, now: NEVER, to: 0 };
}

/// The switch.
#[derive(Debug)]
pub struct Fabric {
    pool: Pool,
    fdb: Fdb,
    ports: Box<[Port]>,
    /// Slots for the frames on their way in one direction of one port.
    room: usize,
    /// Ports with a host.
    attached: u64,
    /// Ports in whose models frames are on their way.
    ingress: u64,
    egress: u64,
    /// Ports with frames for their hosts.
    ready: u64,
    /// Ports with a model.
    modelled: u64,
    capture: Option<Capture>,
    /// What the models did to frames, how many more flooding made of them, and what was counted at ports
    /// for hosts that are not there any more.
    book: Ledger,
}

/// The lowest bit of `bits`, which is removed.
#[inline]
pub(super) fn next(bits: &mut u64) -> Option<usize> {
    let port = bits.trailing_zeros();
    *bits &= bits.wrapping_sub(1);
    (port < u64::BITS).then_some(port as usize)
}

impl Fabric {
    /// A switch of `ports` ports, at most [`PORTS_MAX`], that keeps frames in `pool` and up to `room` of
    /// them, a power of two, on their way through each direction of a port.
    pub fn new(pool: Pool, fdb: Fdb, ports: usize, room: usize, seed: u64) -> Self {
        let port = |n: usize| Port {
            ingress: Link::ideal(switch_model::stream_seed(seed, 2 * n as u64)),
            egress: Link::ideal(switch_model::stream_seed(seed, 2 * n as u64 + 1)),
            out: VecDeque::with_capacity(OUT_MAX),
            counters: PortCounters::default(),
            ways: [Way::NONE; WAYS],
        };
        Self {
            pool,
            fdb,
            ports: (0..ports.min(PORTS_MAX)).map(port).collect(),
            room,
            attached: 0,
            ingress: 0,
            egress: 0,
            ready: 0,
            modelled: 0,
            capture: None,
            book: Ledger::default(),
        }
    }

    /// How many ports there are.
    pub fn ports(&self) -> usize {
        self.ports.len()
    }

    /// The memory for frames.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The same, to put frames into.
    pub fn pool_mut(&mut self) -> &mut Pool {
        &mut self.pool
    }

    /// Who is where.
    pub fn fdb(&mut self) -> &mut Fdb {
        self.forget_ways();
        &mut self.fdb
    }

    /// Something has changed on which it depends where frames go.
    #[cold]
    fn forget_ways(&mut self) {
        self.ports.iter_mut().for_each(|port| port.ways = [Way::NONE; WAYS]);
    }

    /// Whether there is a host at `port`.
    pub fn is_attached(&self, port: usize) -> bool {
        self.attached.checked_shr(port as u32).is_some_and(|bits| bits & 1 != 0)
    }

    /// One direction of a port.
    pub fn link(&self, port: usize, direction: Direction) -> Option<&Link> {
        let port = self.ports.get(port)?;
        Some(match direction {
            Direction::Ingress => &port.ingress,
            Direction::Egress => &port.egress,
        })
    }

    /// What a port has seen.
    pub fn counters(&self, port: usize) -> Option<&PortCounters> {
        self.ports.get(port).map(|port| &port.counters)
    }

    /// A host is there from now on, and its port starts anew, with the settings that it has.
    pub fn attach(&mut self, port: usize) {
        self.forget_ways();
        if let Some(this) = self.ports.get_mut(port) {
            self.book.add(&core::mem::take(&mut this.counters));
            self.attached |= 1 << port;
        }
    }

    /// The host of `port` is gone, and with it all that was on the way to it or from it.
    pub fn detach(&mut self, port: usize) {
        self.forget_ways();
        let Some(this) = self.ports.get_mut(port) else { return };
        let bit = !(1 << port);
        self.attached &= bit;
        self.ingress &= bit;
        self.egress &= bit;
        self.ready &= bit;
        let (pool, book, gone) = (&mut self.pool, &mut self.book, &mut this.counters.gone);
        *gone += this.out.len() as u64;
        this.out.drain(..).for_each(|frame| pool.release(frame));
        for link in [&mut this.ingress, &mut this.egress] {
            let spec = *link.spec();
            link.clear(|event| match event {
                Event::Deliver(delivery) => {
                    *gone += 1;
                    pool.release(FrameId(delivery.tag));
                }
                Event::Drop { tag, .. } => {
                    book.dropped += 1;
                    pool.release(FrameId(tag));
                }
                Event::Duplicated { tag } => {
                    book.copied += 1;
                    pool.info_mut(FrameId(tag)).refs += 1;
                }
            });
            // The memory that it needs has just been given back.
            let _ = link.configure(0, spec, self.room);
        }
        self.fdb.forget(port as u8);
    }

    /// Changes the settings of one direction of a port from `now` on.
    ///
    /// # Errors
    /// [`LinkError`]; the settings are as before then.
    pub fn configure(
        &mut self,
        now: u64,
        port: usize,
        direction: Direction,
        spec: PortSpec,
    ) -> Result<(), LinkError> {
        self.forget_ways();
        let room = self.room;
        let Some(this) = self.ports.get_mut(port) else { return Ok(()) };
        let link = match direction {
            Direction::Ingress => &mut this.ingress,
            Direction::Egress => &mut this.egress,
        };
        link.configure(now, spec, room)?;
        if !link.is_ideal() {
            self.modelled |= 1 << port;
        }
        Ok(())
    }

    /// Whether anything here depends on the time, but for when a station was last heard.
    pub fn is_timed(&self) -> bool {
        self.modelled != 0 || self.capture.is_some()
    }

    /// Lets `capture` see all frames from now on; gives back what saw them before.
    pub fn capture(&mut self, capture: Option<Capture>) -> Option<Capture> {
        self.forget_ways();
        core::mem::replace(&mut self.capture, capture)
    }

    /// A frame from the host of `port` is complete in the pool at `now`.
    #[inline]
    pub fn arrive(&mut self, now: u64, port: usize, frame: FrameId) {
        let Some(this) = self.ports.get_mut(port) else { return self.pool.release(frame) };
        let len = self.pool.len(frame);
        this.counters.rx_frames += 1;
        this.counters.rx_bytes += u64::from(len);
        if let Some(capture) = &mut self.capture {
            capture.record(now, port, Direction::Ingress, &self.pool, frame);
        }
        if this.ingress.is_ideal() {
            return self.forward(now, port, frame);
        }
        match this.ingress.offer(now, frame, len, false, self.pool.head(frame)) {
            Offered::Through => self.forward(now, port, frame),
            Offered::Held => self.ingress |= 1 << port,
            Offered::Twice => {
                self.duplicate(frame);
                self.ingress |= 1 << port;
            }
            Offered::Dropped(_) => self.drop(frame),
        }
    }

    /// The only host that a frame between these, from the host of `port`, is for, if nothing holds it
    /// back: no model, no frame before it, and nobody who looks on. Its sender is known from now on.
    #[inline]
    pub fn shortcut(&mut self, now: u64, port: usize, ends: Ends) -> Option<usize> {
        let way = &self.ports.get(port)?.ways[ends.hash() % WAYS];
        let to = match way.ends == ends && way.now == now {
            true => way.to,
            false => self.find_way(now, port, ends)?,
        };
        (self.ready >> to & 1 == 0).then_some(to.into())
    }

    #[inline(never)]
    fn find_way(&mut self, now: u64, port: usize, ends: Ends) -> Option<u8> {
        let (to, from) = ends.addresses();
        if self.capture.is_some() || to.is_group() || !self.ports[port].ingress.is_ideal() {
            return None;
        }
        if self.fdb.learn(from, port as u8, now) {
            self.forget_ways();
        }
        let known = self.fdb.lookup(to, now)?;
        let other = self.attached & !(1 << port);
        if other >> known & 1 == 0 || !self.ports.get(usize::from(known))?.egress.is_ideal() {
            return None;
        }
        self.ports[port].ways[ends.hash() % WAYS] = Way { ends, now, to: known };
        Some(known)
    }

    /// So many frames, of so many bytes together, go that way.
    pub fn pass(&mut self, port: usize, to: usize, frames: u64, bytes: u64) {
        if let Some(this) = self.ports.get_mut(port) {
            this.counters.rx_frames += frames;
            this.counters.rx_bytes += bytes;
        }
        if let Some(there) = self.ports.get_mut(to) {
            there.egress.pass(frames, bytes);
            there.counters.tx_frames += frames;
            there.counters.tx_bytes += bytes;
        }
    }

    /// Does everything that is due by `now`.
    pub fn advance(&mut self, now: u64) {
        // In the order of time over all ports, because they meet at the ports that they leave by.
        while self.ingress != 0 {
            let mut bits = self.ingress;
            let (mut first, mut at) = (0, u64::MAX);
            while let Some(port) = next(&mut bits) {
                let deadline = self.ports[port].ingress.deadline();
                if deadline < at {
                    (first, at) = (port, deadline);
                }
                if deadline == u64::MAX {
                    self.ingress &= !(1 << port);
                }
            }
            if at > now {
                break;
            }
            self.leave_ingress(first, now);
        }
        let mut bits = self.egress;
        while let Some(port) = next(&mut bits) {
            while let Some(event) = self.ports[port].egress.pop_due(now) {
                if let Some((frame, at)) = self.happened(port, event) {
                    self.give(at, port, frame);
                }
            }
            if self.ports[port].egress.deadline() == u64::MAX {
                self.egress &= !(1 << port);
            }
        }
    }

    fn leave_ingress(&mut self, port: usize, now: u64) {
        if let Some(event) = self.ports[port].ingress.pop_due(now)
            && let Some((frame, at)) = self.happened(port, event)
        {
            self.forward(at, port, frame);
        }
    }

    /// The frame that `event` delivers, and when, as it is then.
    #[inline]
    fn happened(&mut self, port: usize, event: Event) -> Option<(FrameId, u64)> {
        match event {
            Event::Deliver(delivery) if !delivery.mark && !delivery.corrupt => {
                Some((FrameId(delivery.tag), delivery.at))
            }
            Event::Deliver(delivery) => self.altered(port, delivery),
            Event::Drop { tag, .. } => {
                self.drop(FrameId(tag));
                None
            }
            Event::Duplicated { tag } => {
                self.duplicate(FrameId(tag));
                None
            }
        }
    }

    /// A model has dropped the frame.
    fn drop(&mut self, frame: FrameId) {
        self.book.dropped += 1;
        self.pool.release(frame);
    }

    /// A model delivers the frame once more.
    fn duplicate(&mut self, frame: FrameId) {
        self.book.copied += 1;
        self.pool.info_mut(frame).refs += 1;
    }

    /// The frame with its mark, or with its flipped bit.
    #[cold]
    fn altered(&mut self, port: usize, delivery: Delivery) -> Option<(FrameId, u64)> {
        let mut frame = FrameId(delivery.tag);
        let pool = &mut self.pool;
        if pool.info(frame).refs > 1 {
            // Others send the same bytes.
            let copy = pool.copy(frame);
            pool.release(frame);
            let Some(copy) = copy else {
                self.ports[port].counters.no_memory += 1;
                return None;
            };
            frame = copy;
        }
        if delivery.mark {
            ether::mark(pool.head_mut(frame));
        }
        if let Some(bit) = delivery.corrupt_bit(pool.len(frame)) {
            // Whoever receives it must be able to see that it is wrong.
            finish_sum(pool, frame);
            pool.info_mut(frame).sums = Sums::default();
            let (mut at, bit) = (bit as usize / 8, bit % 8);
            pool.for_each_chunk(frame, |bytes| {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << bit;
                }
                at = at.wrapping_sub(bytes.len());
            });
        }
        Some((frame, delivery.at))
    }

    /// Sends a frame, which came in by `port`, on its way at `at`.
    #[inline]
    fn forward(&mut self, at: u64, port: usize, frame: FrameId) {
        let counters = &mut self.ports[port].counters;
        let Some(head) = self.pool.head(frame).first_chunk::<HEADER>() else {
            counters.runt += 1;
            return self.pool.release(frame);
        };
        let (to, from) = Ends::of(head).addresses();
        if self.fdb.learn(from, port as u8, at) {
            self.forget_ways();
        }
        let counters = &mut self.ports[port].counters;
        let others = self.attached & !(1 << port);
        if !to.is_group()
            && let Some(known) = self.fdb.lookup(to, at)
            && self.attached >> known & 1 != 0
        {
            let known = usize::from(known);
            if known == port {
                counters.filtered += 1;
                return self.pool.release(frame);
            }
            return self.leave_by(at, known, frame, false);
        }
        if to.is_link_local() {
            counters.filtered += 1;
            return self.pool.release(frame);
        }
        if others == 0 {
            counters.no_host += 1;
            return self.pool.release(frame);
        }
        // A copy of it may be on its way as well.
        let further = others.count_ones() - 1;
        self.book.copied += u64::from(further);
        self.pool.info_mut(frame).refs += further as u16;
        let mut bits = others;
        while let Some(port) = next(&mut bits) {
            self.leave_by(at, port, frame, true);
        }
    }

    #[inline]
    fn leave_by(&mut self, at: u64, port: usize, frame: FrameId, flood: bool) {
        let this = &mut self.ports[port];
        if this.egress.is_ideal() {
            this.egress.pass(1, self.pool.len(frame).into());
            return self.give(at, port, frame);
        }
        let len = self.pool.len(frame);
        match this.egress.offer(at, frame, len, flood, self.pool.head(frame)) {
            Offered::Through => self.give(at, port, frame),
            Offered::Held => self.egress |= 1 << port,
            Offered::Twice => {
                self.duplicate(frame);
                self.egress |= 1 << port;
            }
            Offered::Dropped(_) => self.drop(frame),
        }
    }

    /// The frame is at the host's end of the line.
    #[inline]
    fn give(&mut self, at: u64, port: usize, frame: FrameId) {
        let this = &mut self.ports[port];
        if let Some(capture) = &mut self.capture {
            capture.record(at, port, Direction::Egress, &self.pool, frame);
        }
        if this.out.len() >= OUT_MAX {
            this.counters.host_full += 1;
            return self.pool.release(frame);
        }
        this.out.push_back(frame);
        self.ready |= 1 << port;
    }

    /// What became of all frames, of which `early` are in the pool and have not arrived yet.
    pub fn ledger(&self, early: usize) -> Ledger {
        let mut ledger = self.book;
        for port in &self.ports {
            ledger.add(&port.counters);
        }
        ledger.held = self.pool.refs() - early as u64;
        ledger
    }

    /// A frame of `len` bytes from the host of `port` ends before it is here.
    #[cold]
    pub fn missed(
        &mut self,
        port: usize,
        len: u16,
        why: impl FnOnce(&mut PortCounters) -> &mut u64,
    ) {
        if let Some(this) = self.ports.get_mut(port) {
            this.counters.rx_frames += 1;
            this.counters.rx_bytes += u64::from(len);
            *why(&mut this.counters) += 1;
        }
    }

    /// A frame of `len` bytes that was taken for the host of `port` could not be copied to it.
    #[cold]
    pub fn not_given(&mut self, port: usize, len: u32) {
        if let Some(this) = self.ports.get_mut(port) {
            this.counters.tx_frames -= 1;
            this.counters.tx_bytes -= u64::from(len);
            this.counters.failed += 1;
        }
    }

    /// Ports with frames for their hosts, a bit each.
    #[inline]
    pub fn ready(&self) -> u64 {
        self.ready
    }

    /// The next frame for the host of `port`.
    #[inline]
    pub fn peek(&self, port: usize) -> Option<FrameId> {
        self.ports.get(port)?.out.front().copied()
    }

    /// Takes it. Whoever does releases it when it is sent.
    #[inline]
    pub fn take(&mut self, port: usize) -> Option<FrameId> {
        let this = self.ports.get_mut(port)?;
        let frame = this.out.pop_front()?;
        this.counters.tx_frames += 1;
        this.counters.tx_bytes += u64::from(self.pool.len(frame));
        if this.out.is_empty() {
            self.ready &= !(1 << port);
        }
        Some(frame)
    }

    /// The host of `port` cannot take the next frame at all.
    pub fn refuse(&mut self, port: usize) {
        let Some(this) = self.ports.get_mut(port) else { return };
        if let Some(frame) = this.out.pop_front() {
            this.counters.host_full += 1;
            self.pool.release(frame);
        }
        if this.out.is_empty() {
            self.ready &= !(1 << port);
        }
    }

    /// When [`Self::advance`] has something to do next; `u64::MAX` if never.
    pub fn deadline(&self) -> u64 {
        let mut at = u64::MAX;
        let (mut ingress, mut egress) = (self.ingress, self.egress);
        while let Some(port) = next(&mut ingress) {
            at = at.min(self.ports[port].ingress.deadline());
        }
        while let Some(port) = next(&mut egress) {
            at = at.min(self.ports[port].egress.deadline());
        }
        at
    }
}

/// Puts the sum into a frame whose sender left it to the hardware.
pub fn finish_sum(pool: &mut Pool, frame: FrameId) {
    let sums = pool.info(frame).sums;
    if !sums.blank() {
        return;
    }
    pool.info_mut(frame).sums = Sums::new(false, sums.validated());
    let Some(blank) = ether::blank(pool.head(frame)) else { return };
    let mut sum = ether::Sum::ZERO;
    let mut at = 0;
    for bytes in pool.chunks(frame) {
        // A chunk is even, and so is every header before the sum.
        let from = blank.start.saturating_sub(at).min(bytes.len());
        let to = blank.end.saturating_sub(at).min(bytes.len());
        sum.add(&bytes[from..to.max(from)]);
        at += bytes.len();
    }
    let value = sum.finish(blank);
    pool.head_mut(frame)[blank.field..blank.field + 2].copy_from_slice(&value);
}
