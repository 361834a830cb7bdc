// SPDX-License-Identifier: MIT OR Apache-2.0
//! Between the rings and the fabric: frames are copied in and out, many in one call of Xen.
//!
//! A round takes what hosts have sent, what is to be given to hosts, makes one list of copies for all
//! ports, and lets Xen do it. A frame that comes in during one round goes out in the next, together
//! with what came in meanwhile: under load there is one call for both. Nothing is allocated and
//! nothing locked on the way.
//!
//! Of a long frame only the head comes in, if the last long one of its host could have gone straight on.
//! When the head says that this one can, Xen copies it from the one host's pages into the other's;
//! otherwise all of it comes in, one round later.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use alloc::{format, vec};
use core::alloc::Layout;
use core::cell::UnsafeCell;
use core::fmt;

use tdf_xen::abi::{DomId, GrantHandle, Mfn, PAGE_SIZE, Port};
use tdf_xen::evtchn;
use tdf_xen::grant::{CopyOp, GrantTable, Granted, Local};
use tdf_xen::hypercall::{Hypercall, Xen};
use tdf_xen::netback::{Netback, Owed, OwedPage, RxFrame, TakenTx};
use tdf_xen::netfront::OwnPage;
use tdf_xen::netif::{Fault, Fragment, Status, Sums, TxFrame};
use tdf_xen::shared_ring::SharedPage;

use super::backend::{Attach, Front};
use super::capture::Capture;
use super::control::DeviceCounters;
use super::ether::{self, Ends, HEADER};
use super::fabric::{self, Fabric, Ledger, PORTS_MAX};
use super::frontend::{Lend, Offer};
use super::pool::{CHUNK, FrameId, FrameInfo, Pool};
use crate::machine::{Cpu, Machine};

/// Frames in one direction in one round.
const FRAMES: usize = 256;
/// Frames from hosts that may have no answer yet: those of one round, and those that it has put off.
const CHAINS: Chain = 2 * FRAMES as Chain;
/// Copies in one round.
const COPIES: usize = 1024;
/// Most copies of one frame: its slots, and the pieces that they are cut into.
const COPIES_OF_FRAME: usize = 64;
/// Frames that one port may bring in one round while others wait.
const FAIR: usize = 64;
/// Longest frame: 9000 bytes of payload, an Ethernet header, and two VLAN tags.
pub const LONGEST: u16 = 9000 + 14 + 8;
/// Pages of address space for the rings of one port.
const RINGS: usize = 2;
/// Who may look at frames.
const DOM0: DomId = DomId(0);
/// No port.
const NONE: u8 = u8::MAX;
/// Frames that are longer may go straight from host to host: shorter ones take two copies either way.
const LONG: u16 = CHUNK as u16;
/// Most copies that may be put off to the next round, where there must be room for others.
const PUT_OFF: usize = COPIES / 2;
/// Into how many more pieces than its fragments a frame is cut, at most.
const CUTS: usize = (LONGEST as usize).div_ceil(CHUNK);

/// Pages for frames in each direction of a frontend.
const FRONT_PAGES: usize = 32;

type Netfront = tdf_xen::netfront::Netfront<FRONT_PAGES>;

/// The rings of a port, and this end of them.
#[derive(Debug)]
enum End {
    Back { netback: Netback, dom: DomId, handles: [GrantHandle; RINGS] },
    Front(Box<Lent>),
}

/// A frontend, and the memory that it lends.
#[derive(Debug)]
struct Lent {
    netfront: Netfront,
    memory: *mut u8,
}

/// What [`Lent`] lends: whole pages.
const LENT: Layout = match Layout::from_size_align(Netfront::PAGES * PAGE_SIZE, PAGE_SIZE) {
    Ok(layout) => layout,
    Err(_) => panic!("so many pages are no layout"),
};

impl Drop for Lent {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; dropped only when nobody has a page of it any more.
        unsafe { alloc::alloc::dealloc(self.memory, LENT) }
    }
}

/// A host's interface.
#[derive(Debug)]
struct Device {
    end: End,
    event: Port,
    csum_v4: bool,
    csum_v6: bool,
    counters: DeviceCounters,
}

impl Device {
    /// Whether it takes any frame whose sum is blank.
    #[inline]
    fn takes_blank(&self) -> bool {
        self.csum_v4 && self.csum_v6
    }

    /// Answers a frame of the host's, which came in, or did not.
    #[inline]
    fn sent(&mut self, frame: &mut TxFrame, whole: bool) {
        let status = if whole { Status::OKAY } else { Status::ERROR };
        self.counters.faults += u64::from(!whole);
        if let End::Back { netback, .. } = &mut self.end {
            let _ = netback.settle_tx(frame, status);
        }
    }
}

/// What this domain lends to others.
pub struct Lending {
    /// The grant table.
    pub grants: GrantTable,
    /// The machine frame of a page of the heap.
    pub frame: fn(*const u8) -> Option<Mfn>,
}

impl fmt::Debug for Lending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.grants.fmt(f)
    }
}

/// The place of a frame's requests in [`Exchange::chains`].
type Chain = u16;

/// A frame on its way in.
#[derive(Clone, Copy, Debug)]
struct Incoming {
    port: u8,
    kind: Kind,
    /// Its copies end here in the list, and begin where the one before ends.
    end: u16,
}

impl Incoming {
    #[inline]
    fn single(&self) -> Option<Single> {
        match self.kind {
            Kind::Single(single) => Some(single),
            _ => None,
        }
    }

    #[inline]
    fn is_single(&self) -> bool {
        self.single().is_some()
    }
}

/// A frame in one piece, for the request with this id.
#[derive(Clone, Copy, Debug)]
struct Single {
    id: u16,
    len: u16,
    sums: Sums,
    frame: FrameId,
}

/// How much of a frame comes in, and what is to be answered then.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// All of it, in one piece and one copy.
    Single(Single),
    Whole {
        chain: Chain,
        frame: FrameId,
    },
    /// Only its head, to its place in [`Heads`].
    Head(Chain),
}

/// A page for the heads of frames whose rest may go elsewhere: those of a round lie in it in their order,
/// so that Xen looks it up once for those that follow each other.
#[derive(Debug)]
struct Heads {
    page: Box<HeadsPage>,
    frame: Mfn,
}

#[derive(Debug)]
#[repr(C, align(4096))]
struct HeadsPage([UnsafeCell<[u8; HEAD]>; FRAMES]);

/// Bytes of a place for a head.
const HEAD: usize = PAGE_SIZE / FRAMES;
const _: () = assert!(HEAD >= HEADER && size_of::<HeadsPage>() == PAGE_SIZE);

impl Heads {
    /// A page of the heap, whose machine frame `frame` tells.
    fn new(frame: impl FnOnce(*const u8) -> Option<Mfn>) -> Self {
        let page = Box::new(HeadsPage([const { UnsafeCell::new([0; HEAD]) }; FRAMES]));
        let frame = frame((&raw const *page).cast());
        Self { page, frame: frame.unwrap_or_else(|| unreachable!("the heap is of whole pages")) }
    }

    /// Where the head of the round's frame `n` goes.
    #[inline]
    fn place(&self, n: usize) -> Local {
        // Within the page, as `FRAMES` are.
        Local { frame: self.frame, offset: (n % FRAMES * HEAD) as u16 }
    }

    /// The ends that it says.
    #[inline]
    fn ends(&self, n: usize) -> Ends {
        // SAFETY: the page is only read here, and Xen writes to it only during a call.
        let head = unsafe { *self.page.0[n % FRAMES].get() };
        head.first_chunk().map_or(Ends::NONE, Ends::of)
    }
}

/// A frame that nothing holds back, on its way out; its copies are listed already.
#[derive(Debug)]
enum Straight {
    /// It is here, in one piece, and goes into one page.
    Short { to: u8, len: u16, frame: FrameId, page: OwedPage },
    /// It goes from the one host's pages into the other's.
    Long { from: u8, to: u8, end: u16, chain: Chain, pages: Owed },
}

/// Frames that follow each other on one straight way, which are counted together.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    ports: (u8, u8),
    /// The ports of all that there were, a bit each.
    seen: u64,
    frames: u64,
    bytes: u64,
}

impl Run {
    #[inline(always)]
    fn add(&mut self, fabric: &mut Fabric, ports: (u8, u8), frames: u64, bytes: u64) {
        if frames == 0 {
            return;
        }
        if self.ports != ports {
            self.end(fabric);
            let seen = self.seen | 1 << ports.0 | 1 << ports.1;
            *self = Self { ports, seen, ..Self::default() };
        }
        self.frames += frames;
        self.bytes += bytes;
    }

    fn end(self, fabric: &mut Fabric) {
        let (from, to) = self.ports;
        if self.frames > 0 {
            fabric.pass(from.into(), to.into(), self.frames, self.bytes);
        }
    }
}

/// A frame that waits for the next round, for itself or for the one before it.
#[derive(Clone, Copy, Debug)]
struct Late {
    port: u8,
    end: u16,
    frame: FrameId,
    /// Where it is to be copied from; `None`: it is here.
    chain: Option<Chain>,
}

/// A frame on its way out.
#[derive(Debug)]
struct Outgoing {
    port: u8,
    frame: FrameId,
    end: u16,
    pages: Owed,
}

/// What was done, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Rounds in which there was something to do.
    pub rounds: u64,
    /// Frames that came in.
    pub frames: u64,
    /// Copies that Xen was asked for.
    pub copies: u64,
    /// Calls of Xen.
    pub hypercalls: u64,
}

/// All interfaces, and the switch between them.
#[derive(Debug)]
pub struct Exchange<'a, X> {
    machine: &'a Machine<'a, X>,
    /// The switch.
    pub fabric: Fabric,
    devices: Box<[Option<Device>]>,
    /// The port of each event channel.
    channels: Box<[u8]>,
    /// Address space for rings.
    window: usize,
    lending: Lending,
    /// Frontends that are over, by port, whose backends have yet to let go of their pages.
    leftovers: Vec<(usize, Box<Lent>)>,
    /// Captures that are over, and whose readers have yet to let go.
    captures: Vec<Capture>,
    /// Ports that may have something to send.
    active: u64,
    /// Ports whose hosts have no room for the frame that is next.
    blocked: u64,
    /// Ports to which answers were written.
    answered: u64,
    /// Ports that take part in what is [`Straight`].
    owed: u64,
    /// Ports that have to be asked anew for an event: the others have been, and have sent none.
    unarmed: u64,
    copies: Box<[CopyOp; COPIES]>,
    /// The first copies of the next round, and how many they are.
    ahead: Box<[CopyOp; COPIES]>,
    listed: usize,
    incoming: Vec<Incoming>,
    outgoing: Vec<Outgoing>,
    straight: Vec<Straight>,
    late: Vec<Late>,
    /// The requests of frames that have no answer yet, in no order, and the places that are free.
    chains: Box<[TxFrame]>,
    free: Vec<Chain>,
    heads: Heads,
    /// Copies that long ones of those two may take in the next round.
    put_off: usize,
    /// Ports whose last long frame could have gone straight on.
    direct: u64,
    /// Who is asked first in the next round.
    turn: u32,
    work: Work,
}

impl<'a, X: Hypercall + Cpu> Exchange<'a, X> {
    /// A switch without hosts, with [`RINGS`] pages of address space for each port at `window`.
    ///
    /// # Safety
    /// The address space is nobody else's, and its page tables exist.
    pub unsafe fn new(
        machine: &'a Machine<'a, X>,
        fabric: Fabric,
        window: usize,
        lending: Lending,
    ) -> Self {
        let ports = fabric.ports();
        let heads = Heads::new(lending.frame);
        Self {
            machine,
            fabric,
            devices: (0..ports).map(|_| None).collect(),
            channels: vec![NONE; evtchn::WORDS * 64].into_boxed_slice(),
            window,
            lending,
            leftovers: Vec::new(),
            captures: Vec::new(),
            active: 0,
            blocked: 0,
            answered: 0,
            owed: 0,
            unarmed: 0,
            copies: copies(),
            ahead: copies(),
            listed: 0,
            incoming: Vec::with_capacity(FRAMES),
            outgoing: Vec::with_capacity(FRAMES),
            straight: Vec::with_capacity(FRAMES),
            late: Vec::with_capacity(FRAMES),
            chains: (0..CHAINS).map(|_| TxFrame::EMPTY).collect(),
            free: (0..CHAINS).rev().collect(),
            heads,
            put_off: 0,
            direct: 0,
            turn: 0,
            work: Work::default(),
        }
    }

    /// What was done so far.
    pub fn work(&self) -> Work {
        self.work
    }

    /// What the interface at `port` has seen.
    pub fn device_counters(&self, port: usize) -> DeviceCounters {
        let Some(Some(device)) = self.devices.get(port) else { return DeviceCounters::default() };
        let refused = match &device.end {
            End::Back { netback, .. } => netback.refusals(),
            End::Front(lent) => lent.netfront.counters().refused.iter().sum(),
        };
        DeviceCounters { refused, ..device.counters }
    }

    /// What became of all frames.
    pub fn ledger(&self) -> Ledger {
        self.fabric.ledger(self.late.len())
    }

    /// Pages that are lent.
    pub fn grants(&self) -> u32 {
        self.lending.grants.in_use()
    }

    /// Begins to show frames to dom0, as `request` wants it; what dom0 is to be told.
    ///
    /// # Errors
    /// A sentence that says why that cannot be.
    pub fn start_capture(&mut self, request: &str) -> Result<String, String> {
        self.stop_capture();
        let ports = self.fabric.ports();
        let (capture, lease) = Capture::new(request, ports, DOM0, &mut self.lending)?;
        self.fabric.capture(Some(capture));
        Ok(lease)
    }

    /// Ends that, and takes back what dom0 has let go of.
    pub fn stop_capture(&mut self) {
        self.captures.extend(self.fabric.capture(None));
        let lending = &mut self.lending;
        self.captures.retain_mut(|capture| !capture.end(lending));
    }

    /// The event channels of all interfaces.
    pub fn channels(&self) -> impl Iterator<Item = Port> {
        self.devices.iter().flatten().map(|device| device.event)
    }

    /// Virtual ns, as the model counts them.
    pub fn now(&self) -> u64 {
        self.machine.system_time_ns().max(0).cast_unsigned()
    }

    /// An event has arrived; `false` if it is none of an interface's.
    pub fn event(&mut self, event: Port) -> bool {
        let port = usize::from(self.channels.get(event.0 as usize).copied().unwrap_or(NONE));
        let Some(Some(device)) = self.devices.get_mut(port) else { return false };
        device.counters.notifies_received += 1;
        self.wake(port);
        true
    }

    /// There may be something to do for `port`.
    fn wake(&mut self, port: usize) {
        self.active |= 1 << port;
        self.unarmed |= 1 << port;
        self.blocked &= !(1 << port);
    }

    /// Takes what hosts have sent: their frames, in turn, and the copies that bring them in.
    #[inline(never)]
    fn collect_incoming(&mut self, now: u64, mut used: usize) -> usize {
        let mut todo = self.active.rotate_right(self.turn);
        while let Some(port) = fabric::next(&mut todo) {
            let port = (port + self.turn as usize) % PORTS_MAX;
            let Some(Some(device)) = self.devices.get_mut(port) else {
                self.active &= !(1 << port);
                continue;
            };
            let Device { end, counters: seen, .. } = device;
            let (netback, dom) = match end {
                End::Back { netback, dom, .. } => (netback, *dom),
                End::Front(lent) => {
                    match receive(&mut lent.netfront, &mut self.fabric, now, port) {
                        Ok(Received { frames, more }) => {
                            self.work.frames += frames;
                            self.answered |= u64::from(frames > 0) << port;
                            if !more {
                                self.active &= !(1 << port);
                            }
                        }
                        Err(fault) => {
                            seen.faults += 1;
                            log::warn!("port {port}: {fault}");
                            self.active &= !(1 << port);
                        }
                    }
                    continue;
                }
            };
            self.answered |= 1 << port;
            let mut fair = FAIR;
            loop {
                if used + COPIES_OF_FRAME > COPIES || self.incoming.len() == FRAMES {
                    // The others are first in the next round.
                    self.turn = port as u32;
                    return used;
                }
                if fair == 0 {
                    break;
                }
                fair -= 1;
                if self.free.is_empty() {
                    return used;
                }
                let place = self.free.len() - 1;
                let taken = netback
                    .take_tx_any(CHUNK as u16, || &mut self.chains[usize::from(self.free[place])]);
                match taken {
                    Ok(TakenTx::Single(single)) => {
                        let sums = single.sums();
                        let Fragment { gref, offset, size: len, id } = single.fragment();
                        let Some((frame, dest)) = self.fabric.pool_mut().take_piece(len) else {
                            self.fabric.missed(port, len, |counters| &mut counters.no_memory);
                            let _ = netback.settle_single(id, Status::DROPPED);
                            continue;
                        };
                        let source = Granted { dom, gref, offset };
                        // Both were checked: a fragment lies within its page, a piece in its own.
                        let Ok(copy) = CopyOp::from_grant(source, dest, len) else {
                            self.fabric.pool_mut().release_piece(frame);
                            let _ = netback.settle_single(id, Status::ERROR);
                            continue;
                        };
                        self.copies[used] = copy;
                        used += 1;
                        let kind = Kind::Single(Single { id, len, sums, frame });
                        self.incoming.push(Incoming { port: port as u8, kind, end: used as u16 });
                        continue;
                    }
                    Ok(TakenTx::Chain) => {}
                    Ok(TakenTx::Nothing) => {
                        self.active &= !(1 << port);
                        break;
                    }
                    Err(fault) => {
                        seen.faults += 1;
                        log::warn!("port {port}: {fault}");
                        self.active &= !(1 << port);
                        break;
                    }
                }
                let place = self.free[place];
                let chain = &mut self.chains[usize::from(place)];
                let pieces = chain.fragments().len() + CUTS;
                let kind = if chain.total() > LONG
                    && self.direct >> port & 1 != 0
                    && self.put_off + pieces <= PUT_OFF
                    && let Some(first) = chain.fragments().first()
                    && let source = (Granted { dom, gref: first.gref, offset: first.offset })
                    && let head = self.heads.place(self.incoming.len())
                    // No first fragment is shorter than a header.
                    && let Ok(copy) = CopyOp::from_grant(source, head, HEADER as u16)
                {
                    self.copies[used] = copy;
                    used += 1;
                    self.put_off += pieces;
                    Kind::Head(place)
                } else {
                    let pool = self.fabric.pool_mut();
                    let info = FrameInfo { refs: 1, port: port as u8, sums: chain.sums() };
                    let Some(frame) = pool.take(chain.total().into(), info) else {
                        self.fabric.missed(port, chain.total(), |counters| &mut counters.no_memory);
                        let _ = netback.settle_tx(chain, Status::DROPPED);
                        continue;
                    };
                    used = bring(&mut self.copies[..], used, pool, frame, dom, chain);
                    Kind::Whole { chain: place, frame }
                };
                self.free.pop();
                self.incoming.push(Incoming { port: port as u8, kind, end: used as u16 });
            }
        }
        used
    }

    /// Takes what the last round has put off.
    #[inline(never)]
    fn collect_put_off(&mut self) -> usize {
        core::mem::swap(&mut self.copies, &mut self.ahead);
        let mut used = core::mem::take(&mut self.listed);
        self.put_off = 0;
        let dom = |port: u8| match self.devices.get(usize::from(port)) {
            Some(Some(Device { end: End::Back { dom, .. }, .. })) => Some(*dom),
            _ => None,
        };
        for Late { port, frame, end, chain } in &mut self.late {
            if let (Some(chain), Some(dom)) = (*chain, dom(*port)) {
                let chain = &self.chains[usize::from(chain)];
                used = bring(&mut self.copies[..], used, self.fabric.pool(), *frame, dom, chain);
            }
            *end = used as u16;
        }
        used
    }

    /// Takes what is to be given to hosts, and the copies that bring it to them.
    #[inline(never)]
    fn collect_outgoing(&mut self, mut used: usize) -> usize {
        let mut todo = self.fabric.ready() & !self.blocked;
        while let Some(port) = fabric::next(&mut todo) {
            while let Some(frame) = self.fabric.peek(port) {
                if used + COPIES_OF_FRAME > COPIES || self.outgoing.len() == FRAMES {
                    return used;
                }
                let Some(Some(device)) = self.devices.get(port) else { break };
                let info = self.fabric.pool().info(frame);
                let sums = match info.sums {
                    sums if sums.blank() && (info.refs > 1 || !device.takes_blank()) => {
                        self.finish_sum(port, frame)
                    }
                    sums => sums,
                };
                let Some(Some(device)) = self.devices.get_mut(port) else { break };
                let len = self.fabric.pool().len(frame) as u16;
                let (netback, dom) = match &mut device.end {
                    End::Back { netback, dom, .. } => (netback, *dom),
                    End::Front(lent) => {
                        match send(&mut lent.netfront, &self.fabric, frame) {
                            Ok(true) => {
                                self.answered |= 1 << port;
                                self.fabric.take(port);
                                self.fabric.pool_mut().release(frame);
                                continue;
                            }
                            Ok(false) if len <= LONGEST => {}
                            Ok(false) => {
                                self.fabric.refuse(port);
                                continue;
                            }
                            Err(fault) => {
                                device.counters.faults += 1;
                                log::warn!("port {port}: {fault}");
                            }
                        }
                        self.blocked |= 1 << port;
                        self.unarmed |= 1 << port;
                        break;
                    }
                };
                let pages = match netback.take_rx(len, sums) {
                    Ok(Some(pages)) => pages,
                    Ok(None) if netback.may_give(len) => {
                        self.blocked |= 1 << port;
                        self.unarmed |= 1 << port;
                        break;
                    }
                    Ok(None) => {
                        self.fabric.refuse(port);
                        continue;
                    }
                    Err(fault) => {
                        device.counters.faults += 1;
                        log::warn!("port {port}: {fault}");
                        self.blocked |= 1 << port;
                        self.unarmed |= 1 << port;
                        break;
                    }
                };
                self.fabric.take(port);
                self.answered |= 1 << port;
                let pool = self.fabric.pool();
                let mut at = 0;
                for slot in pages.slots() {
                    let mut offset = 0;
                    pool.pieces(frame, at, slot.size.into(), |piece| {
                        let source = Local { frame: piece.page, offset: piece.offset };
                        let dest = Granted { dom, gref: slot.gref, offset };
                        // As above.
                        if let Ok(copy) = CopyOp::to_grant(source, dest, piece.len) {
                            self.copies[used] = copy;
                            used += 1;
                        }
                        offset += piece.len;
                    });
                    at += u32::from(slot.size);
                }
                let pages = pages.owed;
                self.outgoing.push(Outgoing { port: port as u8, frame, end: used as u16, pages });
            }
        }
        used
    }

    /// Fills in the sum of a frame for the host of `port`, if that wants it, or another wants it that gets
    /// the same frame: their copies are made together, and each host has been told already. What is known
    /// of the sum then.
    #[inline(never)]
    fn finish_sum(&mut self, port: usize, frame: FrameId) -> Sums {
        let pool = self.fabric.pool_mut();
        let v6 = ether::is_ipv6(pool.head(frame));
        let shared = pool.info(frame).refs > 1;
        let refuses = |device: &Device| !(if v6 { device.csum_v6 } else { device.csum_v4 });
        let mut devices = self.devices.iter().enumerate();
        if devices.any(|(n, device)| (shared || n == port) && device.as_ref().is_some_and(refuses))
        {
            fabric::finish_sum(pool, frame);
        }
        pool.info(frame).sums
    }

    /// Whether it matters what time it is, more closely than once for a few rounds: to read the clock
    /// can cost more than to copy a frame, where Xen does it in the domain's stead.
    pub fn is_timed(&self) -> bool {
        self.fabric.is_timed()
    }

    /// One round, at `now`. `false` if there is nothing to do for another one.
    pub fn round(&mut self, now: u64) -> bool {
        self.fabric.advance(now);
        let put_off = self.collect_put_off();
        let out = self.collect_outgoing(put_off);
        let frames = self.work.frames;
        let used = self.collect_incoming(now, out);
        if used > 0 {
            self.copy(used);
            self.work.rounds += 1;
            self.work.frames += self.incoming.len() as u64;
            let next = self.finish_put_off(now);
            let next = self.finish_outgoing(next);
            self.finish_incoming(now, next);
        }
        self.publish();
        let did = used > 0 || self.work.frames > frames;
        let waiting = self.active | (self.fabric.ready() & !self.blocked);
        did && (waiting != 0 || self.listed > 0 || !self.late.is_empty())
    }

    /// Lets Xen make the first copies of the list.
    fn copy(&mut self, used: usize) {
        // SAFETY: own pages are written to only where the pool has just given them out, or in the page of
        // the heads, which nobody looks at meanwhile; those of the pool hold nothing but frames that
        // are for the host that gets them.
        let done = unsafe { self.machine.xen.gnttab_copy(&mut self.copies[..used]) };
        if let Err(error) = done {
            log::error!("frames cannot be copied: {error}");
        }
        self.work.hypercalls += 1;
        self.work.copies += used as u64;
    }

    /// Looks how the copies of what was put off went, and answers for them; where the next begin.
    #[inline(never)]
    fn finish_put_off(&mut self, now: u64) -> usize {
        let mut start = 0;
        self.answered |= core::mem::take(&mut self.owed);
        for straight in self.straight.drain(..) {
            let (from, to, end, chain, pages) = match straight {
                Straight::Long { from, to, end, chain, pages } => (from, to, end, chain, pages),
                Straight::Short { to, len, frame, page } => {
                    let whole = self.copies[start].result().is_ok();
                    start += 1;
                    self.fabric.pool_mut().release_piece(frame);
                    if let Some(Some(device)) = self.devices.get_mut(usize::from(to))
                        && let End::Back { netback, .. } = &mut device.end
                    {
                        let _ = netback.answer_rx_page(page, whole);
                        if !whole {
                            device.counters.faults += 1;
                        }
                    }
                    if !whole {
                        self.fabric.not_given(usize::from(to), len.into());
                    }
                    continue;
                }
            };
            let whole = went_well(&self.copies[..], &mut start, end);
            let requests = &mut self.chains[usize::from(chain)];
            if !whole {
                self.fabric.not_given(usize::from(to), requests.total().into());
            }
            if let Some(Some(Device { end: End::Back { netback, .. }, .. })) =
                self.devices.get_mut(usize::from(to))
            {
                let _ = netback.answer_rx(pages, whole);
            }
            if let Some(Some(device)) = self.devices.get_mut(usize::from(from)) {
                device.sent(requests, whole);
            }
            self.free.push(chain);
        }
        for Late { port, frame, end, chain } in self.late.drain(..) {
            let copied = went_well(&self.copies[..], &mut start, end);
            let whole = copied || chain.is_none();
            if !whole {
                let len = self.fabric.pool().len(frame) as u16;
                self.fabric.missed(usize::from(port), len, |counters| &mut counters.failed);
            }
            if let Some(chain) = chain {
                if let Some(Some(device)) = self.devices.get_mut(usize::from(port)) {
                    self.answered |= 1 << port;
                    device.sent(&mut self.chains[usize::from(chain)], whole);
                }
                self.free.push(chain);
            }
            if whole {
                self.fabric.arrive(now, usize::from(port), frame);
            } else {
                self.fabric.pool_mut().release(frame);
            }
        }
        start
    }

    /// The same of what goes out.
    #[inline(never)]
    fn finish_outgoing(&mut self, mut start: usize) -> usize {
        for Outgoing { port, frame, end, pages } in self.outgoing.drain(..) {
            let whole = went_well(&self.copies[..], &mut start, end);
            if !whole {
                let len = self.fabric.pool().len(frame);
                self.fabric.not_given(usize::from(port), len);
            }
            self.fabric.pool_mut().release(frame);
            let Some(Some(device)) = self.devices.get_mut(usize::from(port)) else { continue };
            device.counters.faults += u64::from(!whole);
            if let End::Back { netback, .. } = &mut device.end {
                let _ = netback.answer_rx(pages, whole);
            }
        }
        start
    }

    /// The same of what came in, which goes on its way.
    #[inline(never)]
    fn finish_incoming(&mut self, now: u64, mut start: usize) {
        // Ports whose frames wait for one before them.
        let mut behind = 0u64;
        let mut run = Run::default();
        let mut incoming = core::mem::take(&mut self.incoming);
        let mut n = 0;
        while let Some(&Incoming { port, kind, end }) = incoming.get(n) {
            let (at, bit) = (usize::from(port), 1u64 << port);
            let (chain, frame) = match kind {
                Kind::Single(_) => {
                    let alike = |next: &&Incoming| next.port == port && next.is_single();
                    let count = incoming[n..].iter().take_while(alike).count();
                    let singles = &incoming[n..n + count];
                    self.finish_singles(now, start, singles, behind & bit != 0, &mut run);
                    (n, start) = (n + count, start + count);
                    continue;
                }
                Kind::Head(chain) => {
                    let whole = self.copies[start].result().is_ok();
                    start += 1;
                    let ends = self.heads.ends(n);
                    n += 1;
                    let requests = &mut self.chains[usize::from(chain)];
                    if !whole {
                        if let Some(Some(device)) = self.devices.get_mut(at) {
                            device.sent(requests, false);
                        }
                        self.fabric.missed(at, requests.total(), |counters| &mut counters.failed);
                        self.free.push(chain);
                        continue;
                    }
                    // What its host changes in the frame from now on, it changes for that one receiver,
                    // to which it could have sent the changed frame as well.
                    if behind & bit == 0
                        && let Some(to) = self.fabric.shortcut(now, at, ends)
                        && let Some(Some(Device { end: End::Back { dom: from, .. }, .. })) =
                            self.devices.get(at)
                        && let from = *from
                        && let Some(Some(device)) = self.devices.get_mut(to)
                        && (!requests.sums().blank() || device.takes_blank())
                        && let End::Back { netback, dom, .. } = &mut device.end
                        && let list = (&mut *self.ahead, &mut self.listed)
                        && let Some(pages) = pass_on(list, (from, requests), (*dom, netback))
                    {
                        let (to, end) = (to as u8, self.listed as u16);
                        run.add(&mut self.fabric, (port, to), 1, requests.total().into());
                        self.straight.push(Straight::Long { from: port, to, end, chain, pages });
                        continue;
                    }
                    self.direct &= !bit;
                    let info = FrameInfo { refs: 1, port, sums: requests.sums() };
                    if let Some(frame) = self.fabric.pool_mut().take(requests.total().into(), info)
                    {
                        behind |= bit;
                        self.late.push(Late { port, end: 0, frame, chain: Some(chain) });
                        continue;
                    }
                    let len = requests.total();
                    self.fabric.missed(at, len, |counters| &mut counters.no_memory);
                    if let Some(Some(Device { end: End::Back { netback, .. }, .. })) =
                        self.devices.get_mut(at)
                    {
                        let _ = netback.settle_tx(requests, Status::DROPPED);
                    }
                    self.free.push(chain);
                    continue;
                }
                Kind::Whole { chain, frame } => (chain, frame),
            };
            n += 1;
            let whole = went_well(&self.copies[..], &mut start, end);
            let requests = &mut self.chains[usize::from(chain)];
            if !whole {
                self.fabric.missed(at, requests.total(), |counters| &mut counters.failed);
            }
            if let Some(Some(device)) = self.devices.get_mut(at) {
                device.sent(requests, whole);
            }
            self.free.push(chain);
            if !whole {
                self.fabric.pool_mut().release(frame);
                continue;
            }
            if behind & bit != 0 {
                self.late.push(Late { port, end: 0, frame, chain: None });
                continue;
            }
            if self.fabric.pool().len(frame) > LONG.into()
                && let Some(head) = self.fabric.pool().head(frame).first_chunk().copied()
                && self.fabric.shortcut(now, at, Ends::of(&head)).is_some()
            {
                self.direct |= bit;
            }
            self.fabric.arrive(now, at, frame);
        }
        incoming.clear();
        self.incoming = incoming;
        run.end(&mut self.fabric);
        self.owed |= run.seen;
    }

    /// The same of frames in one piece each, of which the host of one port has sent one after the other,
    /// and whose copies begin at `start`; `behind` says that one before them waits.
    fn finish_singles(
        &mut self,
        now: u64,
        start: usize,
        singles: &[Incoming],
        behind: bool,
        run: &mut Run,
    ) {
        let Some(port) = singles.first().map(|first| first.port) else { return };
        let at = usize::from(port);
        if let Some(Some(Device { end: End::Back { netback, .. }, counters, .. })) =
            self.devices.get_mut(at)
        {
            let copies = &self.copies[start..];
            let _ = netback.settle_singles(singles.len(), |n| {
                let whole = copies[n].result().is_ok();
                counters.faults += u64::from(!whole);
                let id = singles[n].single().map_or(0, |single| single.id);
                (id, if whole { Status::OKAY } else { Status::ERROR })
            });
        }
        let mut n = 0;
        while n < singles.len() {
            if !behind {
                n += self.pass_on_singles(now, start + n, &singles[n..], run);
            }
            let Some(Single { len, sums, frame, .. }) = singles.get(n).and_then(Incoming::single)
            else {
                break;
            };
            let whole = self.copies[start + n].result().is_ok();
            n += 1;
            if !whole {
                self.fabric.missed(at, len, |counters| &mut counters.failed);
                self.fabric.pool_mut().release_piece(frame);
                continue;
            }
            self.fabric.pool_mut().describe(frame, len, FrameInfo { refs: 1, port, sums });
            if behind {
                self.late.push(Late { port, end: 0, frame, chain: None });
            } else {
                self.fabric.arrive(now, at, frame);
            }
        }
    }

    /// Lists the copies that bring such frames, up to the first that is not here or cannot go on, straight
    /// to the one host that the first is for; how many go.
    fn pass_on_singles(
        &mut self,
        now: u64,
        start: usize,
        singles: &[Incoming],
        run: &mut Run,
    ) -> usize {
        let copies = &self.copies[start..];
        let Some((first, copy)) = singles.iter().zip(copies).next() else { return 0 };
        let (port, Some(single), Ok(())) = (first.port, first.single(), copy.result()) else {
            return 0;
        };
        let ends = Ends::of(self.fabric.pool().begin_of(single.frame));
        let Some(to) = self.fabric.shortcut(now, port.into(), ends) else { return 0 };
        let Some(Some(device)) = self.devices.get_mut(to) else { return 0 };
        let (takes_blank, to) = (device.takes_blank(), to as u8);
        let End::Back { netback, dom, .. } = &mut device.end else { return 0 };
        let (pool, mut listed, mut bytes) = (self.fabric.pool(), self.listed, 0);
        for (incoming, copy) in singles.iter().zip(copies) {
            if let Some(Single { len, sums, frame, .. }) = incoming.single()
                && copy.result().is_ok()
                && Ends::of(pool.begin_of(frame)) == ends
                && (!sums.blank() || takes_blank)
                // A fault is found again, and counted, where the frame waits for its turn.
                && let Ok(Some((gref, page))) = netback.take_rx_page(len, sums)
            {
                self.ahead[listed] = copy.onward(*dom, gref);
                listed += 1;
                self.straight.push(Straight::Short { to, len, frame, page });
                bytes += u64::from(len);
            } else {
                break;
            }
        }
        let passed = listed - self.listed;
        self.listed = listed;
        run.add(&mut self.fabric, (port, to), passed as u64, bytes);
        passed
    }

    /// Shows hosts their answers, and wakes those that want it.
    fn publish(&mut self) {
        while let Some(port) = fabric::next(&mut self.answered) {
            let Some(Some(device)) = self.devices.get_mut(port) else { continue };
            let notify = match &mut device.end {
                End::Back { netback, .. } => netback.publish(),
                End::Front(lent) => lent.netfront.publish(),
            };
            if notify.tx || notify.rx {
                device.counters.notifies_sent += 1;
                self.work.hypercalls += 1;
                // A host that cannot be woken is gone, or will be woken by the next.
                let _ = self.machine.xen.notify(device.event);
            }
        }
    }

    /// Asks hosts for an event when there is something to do. `false` if there is already.
    ///
    /// Only those that have sent one since they were last asked, or for which a frame waits since then:
    /// what it costs does not depend on how many there are.
    pub fn arm(&mut self) -> bool {
        let mut idle = true;
        let mut todo = core::mem::take(&mut self.unarmed);
        while let Some(port) = fabric::next(&mut todo) {
            let Some(Some(device)) = self.devices.get_mut(port) else { continue };
            let blocked = self.blocked >> port & 1 != 0;
            let waiting = self.fabric.peek(port).filter(|_| blocked);
            let work = match &mut device.end {
                End::Back { netback, .. } => {
                    netback.arm(waiting.map(|frame| self.fabric.pool().len(frame) as u16))
                }
                End::Front(lent) => lent.netfront.arm(waiting.is_some()),
            };
            // A faulty one has nothing to do any more.
            if work.unwrap_or(false) {
                self.wake(port);
                idle = false;
            }
        }
        idle
    }

    /// When there is something to do next without any event; `u64::MAX` if never.
    pub fn deadline(&self) -> u64 {
        self.fabric.deadline()
    }

    /// Makes an end of what was put off, so that a host can go that takes part in it.
    fn flush(&mut self) {
        let used = self.collect_put_off();
        if used > 0 {
            self.copy(used);
            let now = self.now();
            self.finish_put_off(now);
            self.publish();
        }
    }

    /// Ends everything that this port took part in.
    fn forget(&mut self, port: usize, event: Port) {
        let bit = !(1 << port);
        self.active &= bit;
        self.blocked &= bit;
        self.answered &= bit;
        self.unarmed &= bit;
        if let Some(channel) = self.channels.get_mut(event.0 as usize) {
            *channel = NONE;
        }
        if let Err(error) = self.machine.xen.evtchn_close(event) {
            log::error!("port {port}: its event channel cannot be closed: {error}");
        }
        self.fabric.detach(port);
    }

    /// A frontend whose pages are lent to `back`.
    fn make_front(&mut self, back: DomId, sg: bool) -> Result<Box<Lent>, String> {
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc::alloc::alloc(LENT) };
        if memory.is_null() {
            return Err("there is no memory for another interface".into());
        }
        let frame = self.lending.frame;
        let pages = (0..Netfront::PAGES).map_while(|n| {
            let at = memory.wrapping_add(n * PAGE_SIZE);
            // SAFETY: the allocation's, which lives until nobody uses the pages.
            frame(at).map(|frame| unsafe { OwnPage::new(at, frame) })
        });
        let longest = if sg { LONGEST } else { PAGE_SIZE as u16 };
        let netfront = Netfront::new(pages, &mut self.lending.grants, back, longest, LONGEST);
        netfront.map(|netfront| Box::new(Lent { netfront, memory })).map_err(|error| {
            // SAFETY: just allocated, and nothing of it is lent.
            unsafe { alloc::alloc::dealloc(memory, LENT) };
            error.to_string()
        })
    }

    fn plug(&mut self, port: usize, device: Device) {
        self.devices[port] = Some(device);
        self.fabric.attach(port);
        self.wake(port);
    }

    fn map(&self, port: usize, front: &Front) -> Result<[(usize, GrantHandle); RINGS], String> {
        let address = |ring: usize| self.window + (port * RINGS + ring) * PAGE_SIZE;
        let map = |ring, gref| {
            // SAFETY: `new`'s caller vouches for the address, where nothing is mapped for this port.
            let handle =
                unsafe { self.machine.xen.gnttab_map(front.name.dom, gref, address(ring)) };
            handle.map(|handle| (address(ring), handle))
        };
        let tx = map(0, front.tx_ring).map_err(|error| format!("its transmit ring: {error}"))?;
        match map(1, front.rx_ring) {
            Ok(rx) => Ok([tx, rx]),
            Err(error) => {
                self.unmap([tx]);
                Err(format!("its receive ring: {error}"))
            }
        }
    }

    fn unmap(&self, rings: impl IntoIterator<Item = (usize, GrantHandle)>) {
        for (address, handle) in rings {
            // SAFETY: mapped by `map`, and no ring uses it any more.
            if let Err(error) = unsafe { self.machine.xen.gnttab_unmap(handle, address) } {
                log::error!("a ring cannot be unmapped: {error}");
            }
        }
    }
}

impl<X: Hypercall + Cpu> Attach for Exchange<'_, X> {
    fn connect(&mut self, port: usize, front: &Front) -> Result<(), String> {
        let rings = self.map(port, front)?;
        let [(tx, _), (rx, _)] = rings;
        let event = match self.machine.xen.evtchn_bind_interdomain(front.name.dom, front.event) {
            Ok(event) => event,
            Err(error) => {
                self.unmap(rings);
                return Err(format!("its event channel: {error}"));
            }
        };
        let Some(channel) = self.channels.get_mut(event.0 as usize) else {
            self.unmap(rings);
            let closed = self.machine.xen.evtchn_close(event);
            return Err(closed.err().map_or("too many event channels".into(), |e| e.to_string()));
        };
        *channel = port as u8;
        let page = |address| core::ptr::with_exposed_provenance_mut(address);
        // SAFETY: mapped until `disconnect`, which drops the rings first; whatever the peer does to the
        // pages, it is atomic for this CPU.
        let (tx, rx) = unsafe { (SharedPage::new(page(tx)), SharedPage::new(page(rx))) };
        let longest = if front.sg { LONGEST } else { PAGE_SIZE as u16 };
        let device = Device {
            end: End::Back {
                netback: Netback::new(tx, rx, LONGEST, longest),
                dom: front.name.dom,
                handles: rings.map(|(_, handle)| handle),
            },
            event,
            csum_v4: front.csum_v4,
            csum_v6: front.csum_v6,
            counters: DeviceCounters::default(),
        };
        self.plug(port, device);
        Ok(())
    }

    fn disconnect(&mut self, port: usize) {
        self.flush();
        let Some(device) = self.devices.get_mut(port).and_then(Option::take) else { return };
        self.forget(port, device.event);
        if let End::Back { handles, .. } = device.end {
            let address = |ring: usize| self.window + (port * RINGS + ring) * PAGE_SIZE;
            let rings = handles.into_iter().enumerate();
            self.unmap(rings.map(|(ring, handle)| (address(ring), handle)));
        }
    }

    fn is_broken(&self, port: usize) -> bool {
        let device = self.devices.get(port).and_then(Option::as_ref);
        device.is_some_and(|device| match &device.end {
            End::Back { netback, .. } => netback.fault().is_some(),
            End::Front(lent) => lent.netfront.fault().is_some(),
        })
    }
}

impl<X: Hypercall + Cpu> Lend for Exchange<'_, X> {
    fn lend(&mut self, port: usize, back: DomId, sg: bool) -> Result<Offer, String> {
        let mut lent = self.make_front(back, sg)?;
        let event = self.machine.xen.evtchn_alloc_unbound(back);
        let channel = event.ok().and_then(|event| self.channels.get_mut(event.0 as usize));
        let (Ok(event), Some(channel)) = (event, channel) else {
            if let Ok(event) = event {
                let _ = self.machine.xen.evtchn_close(event);
            }
            lent.netfront.close(&mut self.lending.grants);
            return Err("there is no event channel for another interface".into());
        };
        *channel = port as u8;
        let rings = lent.netfront.ring_refs();
        // The backend finds its pages when it comes; there is nobody to be woken yet.
        let _ = lent.netfront.publish();
        let device = Device {
            end: End::Front(lent),
            event,
            csum_v4: true,
            csum_v6: true,
            counters: DeviceCounters::default(),
        };
        self.plug(port, device);
        Ok(Offer { rings, event })
    }

    fn take_back(&mut self, port: usize) {
        self.flush();
        let Some(device) = self.devices.get_mut(port).and_then(Option::take) else { return };
        self.forget(port, device.event);
        if let End::Front(mut lent) = device.end
            && lent.netfront.close(&mut self.lending.grants) > 0
        {
            self.leftovers.push((port, lent));
        }
    }

    fn has_all_back(&mut self, port: usize) -> bool {
        let grants = &mut self.lending.grants;
        self.leftovers.retain_mut(|(of, lent)| *of != port || lent.netfront.close(grants) > 0);
        self.leftovers.iter().all(|(of, _)| *of != port)
    }

    fn is_faulty(&self, port: usize) -> bool {
        self.is_broken(port)
    }
}

/// Whether there are copies from `start` to `end`, and they went well; the next ones start at the end.
#[inline]
fn went_well(copies: &[CopyOp], start: &mut usize, end: u16) -> bool {
    let these = core::mem::replace(start, end.into())..end.into();
    !these.is_empty() && copies[these].iter().all(|copy| copy.result().is_ok())
}

/// Lists the copies that bring `frame`, which may be but its beginning, out of a host's pages into the
/// pool; how many there are then.
#[inline]
fn bring(
    copies: &mut [CopyOp],
    mut used: usize,
    pool: &Pool,
    frame: FrameId,
    dom: DomId,
    chain: &TxFrame,
) -> usize {
    let (mut at, len) = (0, pool.len(frame));
    for fragment in chain.fragments() {
        let mut offset = fragment.offset;
        let size = u32::from(fragment.size).min(len - at);
        pool.pieces(frame, at, size, |piece| {
            let source = Granted { dom, gref: fragment.gref, offset };
            let dest = Local { frame: piece.page, offset: piece.offset };
            // Both were checked: a fragment lies within its page, a piece in its own.
            if let Ok(copy) = CopyOp::from_grant(source, dest, piece.len) {
                copies[used] = copy;
                used += 1;
            }
            offset += piece.len;
        });
        at += size;
    }
    used
}

/// Takes pages of a host for a frame of another's, if it has as many, and lists the copies that bring it
/// there.
#[inline(never)]
fn pass_on(
    (copies, used): (&mut [CopyOp; COPIES], &mut usize),
    (from, chain): (DomId, &TxFrame),
    (to, netback): (DomId, &mut Netback),
) -> Option<Owed> {
    if !<Netback>::is_dense(chain) {
        return pass_on_in_pieces((copies, used), (from, chain), (to, netback));
    }
    // A fault is found again, and counted, where the frame waits for its turn.
    let mut pages = RxFrame::NONE;
    if !netback.take_rx_like(chain, &mut pages).ok()? {
        return None;
    }
    let mut next = *used;
    for (fragment, slot) in chain.fragments().iter().zip(pages.slots()) {
        let source = Granted { dom: from, gref: fragment.gref, offset: fragment.offset };
        let dest = Granted { dom: to, gref: slot.gref, offset: 0 };
        // As above.
        if let Ok(copy) = CopyOp::grant_to_grant(source, dest, fragment.size) {
            copies[next] = copy;
            next += 1;
        }
    }
    *used = next;
    Some(pages.owed)
}

/// The same for a frame whose fragments do not fill pages.
#[inline(never)]
fn pass_on_in_pieces(
    (copies, used): (&mut [CopyOp; COPIES], &mut usize),
    (from, chain): (DomId, &TxFrame),
    (to, netback): (DomId, &mut Netback),
) -> Option<Owed> {
    // As above.
    let pages = netback.take_rx(chain.total(), chain.sums()).ok()??;
    let mut slots = pages.slots().iter();
    let (mut slot, mut at) = (slots.next(), 0);
    for fragment in chain.fragments() {
        let (mut offset, mut left) = (fragment.offset, fragment.size);
        while left > 0
            && let Some(page) = slot
        {
            let len = left.min(page.size - at);
            let source = Granted { dom: from, gref: fragment.gref, offset };
            let dest = Granted { dom: to, gref: page.gref, offset: at };
            // As above.
            if let Ok(copy) = CopyOp::grant_to_grant(source, dest, len) {
                copies[*used] = copy;
                *used += 1;
            }
            (offset, left, at) = (offset + len, left - len, at + len);
            if at == page.size {
                (slot, at) = (slots.next(), 0);
            }
        }
    }
    Some(pages.owed)
}

/// An empty list of copies.
fn copies() -> Box<[CopyOp; COPIES]> {
    let list = vec![CopyOp::NONE; COPIES].into_boxed_slice();
    list.try_into().unwrap_or_else(|_| unreachable!("it is as long as it was made"))
}

/// What a frontend has received.
struct Received {
    frames: u64,
    /// There may be more.
    more: bool,
}

/// Takes frames out of a frontend's pages.
fn receive(
    netfront: &mut Netfront,
    fabric: &mut Fabric,
    now: u64,
    port: usize,
) -> Result<Received, Fault> {
    let mut frames = 0;
    while frames < FAIR as u64 {
        let Some(received) = netfront.receive()? else {
            return Ok(Received { frames, more: false });
        };
        frames += 1;
        let info = FrameInfo { refs: 1, port: port as u8, sums: received.sums() };
        let frame = fabric.pool_mut().take(received.total().into(), info);
        if let Some(frame) = frame {
            let mut at = 0;
            fabric.pool_mut().for_each_chunk(frame, |bytes| {
                at += netfront.copy(&received, at, bytes);
            });
        } else {
            fabric.missed(port, received.total(), |counters| &mut counters.no_memory);
        }
        netfront.recycle(received);
        if let Some(frame) = frame {
            fabric.arrive(now, port, frame);
        }
    }
    Ok(Received { frames, more: true })
}

/// Puts a frame into a frontend's pages; whether there was room.
fn send(netfront: &mut Netfront, fabric: &Fabric, frame: FrameId) -> Result<bool, Fault> {
    let mut parts: [&[u8]; LONGEST as usize / CHUNK + 1] = [&[]; _];
    for (part, bytes) in parts.iter_mut().zip(fabric.pool().chunks(frame)) {
        *part = bytes;
    }
    netfront.send(&parts, fabric.pool().info(frame).sums)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Around;
    use crate::switch::fabric::{Direction, OUT_MAX};
    use crate::switch::fdb::{AGE_NS, Fdb};
    use crate::switch::pool::fake::Memory;
    use proptest::prelude::*;
    use std::cell::{Cell, RefCell};
    use std::collections::{BTreeMap, BTreeSet, VecDeque};
    use switch_model::{PortSpec, Span};
    use tdf_xen::abi::{
        EVTCHNOP_CLOSE, EVTCHNOP_SEND, GNTTABOP_COPY, GNTTABOP_UNMAP_GRANT_REF,
        NR_EVENT_CHANNEL_OP, NR_GRANT_TABLE_OP, Vcpu,
    };
    use tdf_xen::fake::{Config, FakeXen};
    use tdf_xen::netif::{
        RxRequest, RxResponse, RxWords, TxRequest, TxResponse, TxWords, rx_flags, tx_flags,
    };
    use tdf_xen::shared_ring::FrontRing;

    #[repr(align(4096))]
    struct Page([u8; PAGE_SIZE]);

    /// A Xen that copies between hosts' pages and the pool's.
    struct World {
        xen: FakeXen,
        memory: RefCell<Memory>,
        granted: RefCell<BTreeMap<(u16, u64), Box<Page>>>,
        notified: RefCell<BTreeMap<u32, u32>>,
        calls: Cell<u32>,
        copied: Cell<usize>,
        /// The page of the heap that copies may go to.
        heads: Cell<Option<u64>>,
    }

    /// One end of a copy, as it lies in memory: page, domain, offset.
    type End = (u64, u16, u16);

    impl World {
        fn place(&self, (page, dom, offset): End, granted: bool) -> Option<*mut u8> {
            let page = if granted {
                self.granted.borrow_mut().get_mut(&(dom, page)).map(|page| page.0.as_mut_ptr())
            } else {
                // A page of the heap is its own machine frame.
                let heap = |page| std::ptr::with_exposed_provenance_mut(page as usize * PAGE_SIZE);
                let heads = self.heads.get().filter(|heads| *heads == page);
                self.memory.borrow_mut().page(Mfn(page)).or_else(|| heads.map(heap))
            };
            page.map(|page| page.wrapping_add(offset.into()))
        }

        fn grant(&self, dom: u16, gref: u64) {
            self.granted.borrow_mut().insert((dom, gref), Box::new(Page([0; PAGE_SIZE])));
        }
    }

    impl Hypercall for World {
        unsafe fn call(&self, number: u32, args: [usize; 5]) -> isize {
            match (number, args[0] as u32) {
                (NR_GRANT_TABLE_OP, GNTTABOP_COPY) => {
                    self.calls.set(self.calls.get() + 1);
                    for n in 0..args[2] {
                        // SAFETY: the caller gives a list of copies of 40 bytes.
                        unsafe {
                            let op: *mut u8 =
                                std::ptr::with_exposed_provenance_mut(args[1] + n * 40);
                            let end = |at: usize| -> End {
                                let end = op.add(at);
                                (
                                    end.cast::<u64>().read(),
                                    end.add(8).cast::<u16>().read(),
                                    end.add(10).cast::<u16>().read(),
                                )
                            };
                            let len = usize::from(op.add(32).cast::<u16>().read());
                            let flags = op.add(34).cast::<u16>().read();
                            let from = self.place(end(0), flags & 1 != 0);
                            let to = self.place(end(16), flags & 2 != 0);
                            let status = match (from, to) {
                                (Some(from), Some(to)) => {
                                    from.copy_to(to, len);
                                    self.copied.update(|copied| copied + len);
                                    0
                                }
                                _ => -3i16,
                            };
                            op.add(36).cast::<i16>().write(status);
                        }
                    }
                    0
                }
                (NR_EVENT_CHANNEL_OP, EVTCHNOP_SEND) => {
                    // SAFETY: the caller gives a port.
                    let port = unsafe { std::ptr::with_exposed_provenance::<u32>(args[1]).read() };
                    *self.notified.borrow_mut().entry(port).or_default() += 1;
                    0
                }
                // Nothing is really bound or mapped.
                (NR_EVENT_CHANNEL_OP, EVTCHNOP_CLOSE)
                | (NR_GRANT_TABLE_OP, GNTTABOP_UNMAP_GRANT_REF) => 0,
                // SAFETY: the caller's promise.
                _ => unsafe { self.xen.call(number, args) },
            }
        }
    }

    impl Around for World {
        fn inner(&self) -> &FakeXen {
            &self.xen
        }
    }

    fn world(pages: usize) -> World {
        World {
            xen: FakeXen::new(Config::default()),
            memory: RefCell::new(Memory::new(pages)),
            granted: RefCell::default(),
            notified: RefCell::default(),
            calls: Cell::new(0),
            copied: Cell::new(0),
            heads: Cell::new(None),
        }
    }

    fn machine(world: &World) -> Machine<'_, World> {
        let xen = &world.xen;
        Machine::new(world, Vcpu(0), xen.time(Vcpu(0)), xen.wall(), xen.events()).unwrap()
    }

    fn exchange<'a>(machine: &'a Machine<'a, World>, ports: usize) -> Exchange<'a, World> {
        let pool = machine.xen.memory.borrow_mut().pool();
        let fabric = Fabric::new(pool, Fdb::new(AGE_NS), ports, 256, 1);
        // SAFETY: nothing is really mapped or lent in these tests.
        unsafe {
            let grants = GrantTable::new(std::ptr::null_mut(), 0);
            let frame = |at: *const u8| Some(Mfn((at.expose_provenance() / PAGE_SIZE) as u64));
            let lending = Lending { grants, frame };
            let exchange = Exchange::new(machine, fabric, 0, lending);
            machine.xen.heads.set(Some(exchange.heads.frame.0));
            exchange
        }
    }

    /// A host with the frontend of an interface, whose pages for frames are granted for good.
    struct Host<'a> {
        world: &'a World,
        dom: u16,
        tx: FrontRing<TxWords, TxResponse>,
        rx: FrontRing<RxRequest, RxWords>,
        /// What was asked for in each slot of the receive ring.
        asked: VecDeque<u64>,
        sent: u32,
        answered: u32,
        unanswered: BTreeSet<u16>,
        part: Vec<u8>,
        _rings: [Box<Page>; 2],
    }

    const RX: u64 = 5000;

    impl<'a> Host<'a> {
        /// A host that is attached to `port`, with room for `room` pages of frames.
        fn new(exchange: &mut Exchange<'a, World>, port: usize, room: u64) -> Self {
            let (world, dom) = (exchange.machine.xen, port as u16 + 10);
            let mut rings = [(); 2].map(|()| Box::new(Page([0; PAGE_SIZE])));
            let [tx, rx] = rings.each_mut().map(|page| page.0.as_mut_ptr());
            // SAFETY: the host keeps the pages; the test drops it after the exchange was last used.
            let page = |at| unsafe { SharedPage::new(at) };
            let mut host = Self {
                world,
                dom,
                tx: FrontRing::new(page(tx)),
                rx: FrontRing::new(page(rx)),
                asked: VecDeque::new(),
                sent: 0,
                answered: 0,
                unanswered: BTreeSet::new(),
                part: Vec::new(),
                _rings: rings,
            };
            host.offer(0..room);
            exchange.plug(
                port,
                Device {
                    end: super::End::Back {
                        netback: Netback::new(page(tx), page(rx), LONGEST, LONGEST),
                        dom: DomId(dom),
                        handles: [GrantHandle(0); RINGS],
                    },
                    event: Port(100 + u32::from(dom)),
                    csum_v4: true,
                    csum_v6: false,
                    counters: DeviceCounters::default(),
                },
            );
            exchange.channels[100 + usize::from(dom)] = port as u8;
            host
        }

        fn event(&self) -> Port {
            Port(100 + u32::from(self.dom))
        }

        fn offer(&mut self, ids: impl IntoIterator<Item = u64>) {
            for id in ids {
                self.world.grant(self.dom, RX + id);
                self.asked.push_back(RX + id);
                let gref = (RX + id) as u32;
                self.rx.push(&RxRequest { id: id as u16, gref }).unwrap();
            }
            let _ = self.rx.publish();
        }

        /// Sends `bytes` in fragments of `cut` bytes, of which the first is at least a header.
        fn send(&mut self, bytes: &[u8], cut: usize, flags: u16) {
            let pieces: Vec<&[u8]> = bytes.chunks(cut).collect();
            for (n, piece) in pieces.iter().enumerate() {
                let (id, offset) =
                    ((self.sent % 256) as u16, (7 * n % (PAGE_SIZE - cut + 1)) as u16);
                let gref = 100 + u64::from(id);
                self.world.grant(self.dom, gref);
                let page = self
                    .world
                    .granted
                    .borrow_mut()
                    .get_mut(&(self.dom, gref))
                    .unwrap()
                    .0
                    .as_mut_ptr();
                // SAFETY: within the page that has just been granted.
                unsafe { piece.as_ptr().copy_to(page.add(offset.into()), piece.len()) };
                let more = if n + 1 < pieces.len() { tx_flags::MORE_DATA } else { 0 };
                let size = if n == 0 { bytes.len() } else { piece.len() } as u16;
                let flags = more | if n == 0 { flags } else { 0 };
                self.tx
                    .push(&TxRequest { gref: gref as u32, offset, flags, id, size }.into())
                    .unwrap();
                self.sent += 1;
                assert!(self.unanswered.insert(id));
            }
            let _ = self.tx.publish();
        }

        /// How its requests were answered.
        fn answers(&mut self) -> Vec<Status> {
            let mut statuses = Vec::new();
            while let Some(answer) = self.tx.pop().unwrap() {
                assert!(self.unanswered.remove(&answer.id), "each once");
                self.answered += 1;
                statuses.push(answer.status);
            }
            statuses
        }

        /// The frames that it has received, with the flags of their first pages.
        fn frames(&mut self) -> Vec<(Vec<u8>, u16)> {
            let mut frames = Vec::new();
            let mut first = 0;
            while let Some(words) = self.rx.pop().unwrap() {
                let RxResponse { offset, flags, status, .. } = words.into();
                let gref = self.asked.pop_front().unwrap();
                assert!(status > 0, "{status}");
                let granted = self.world.granted.borrow();
                let page = &granted[&(self.dom, gref)].0;
                if self.part.is_empty() {
                    first = flags;
                }
                self.part.extend(&page[usize::from(offset)..][..status as usize]);
                if flags & rx_flags::MORE_DATA == 0 {
                    frames.push((std::mem::take(&mut self.part), first));
                }
            }
            frames
        }

        /// How many whole frames it has received.
        fn count(&mut self) -> u64 {
            let mut frames = 0;
            while let Some(words) = self.rx.pop().unwrap() {
                let RxResponse { flags, status, .. } = words.into();
                self.asked.pop_front().unwrap();
                frames += u64::from(status > 0 && flags & rx_flags::MORE_DATA == 0);
            }
            frames
        }
    }

    fn address(n: usize) -> [u8; 6] {
        [0x02, 0, 0, 0, 0, n as u8]
    }

    /// A frame with something to be told by.
    fn frame(to: [u8; 6], from: usize, len: usize, tell: u32) -> Vec<u8> {
        let mut bytes = to.to_vec();
        bytes.extend(address(from));
        bytes.extend([0x88, 0xb5]);
        bytes.extend(tell.to_le_bytes());
        let mut n = tell as u8;
        bytes.resize_with(len.max(18), || {
            n = n.wrapping_mul(5).wrapping_add(3);
            n
        });
        bytes
    }

    fn settle(exchange: &mut Exchange<'_, World>) {
        while exchange.round(exchange.now()) {}
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Each frame is where it belongs: with the host that it is for, or, as long as nobody knows
        /// where that is, with all others; whole, and in the order of its sender. Every request is
        /// answered once, and no memory is lost.
        #[test]
        fn frames_are_where_they_belong(
            steps in proptest::collection::vec(
                (0usize..4, 0usize..6, 18usize..9014, 1000usize..=4000, any::<bool>()), 1..60)
        ) {
            let world = world(200);
            let machine = machine(&world);
            let mut exchange = exchange(&machine, 5);
            let mut hosts: Vec<Host> = (0..4).map(|port| Host::new(&mut exchange, port, 250)).collect();
            let mut known = [false; 4];
            let mut wanted = vec![Vec::new(); 4];
            for (n, (from, to, len, cut, round)) in steps.into_iter().enumerate() {
                // 4 is a stranger, 5 everybody.
                let target = if to == 5 { [0xff; 6] } else { address(to) };
                let bytes = frame(target, from, len, n as u32);
                hosts[from].send(&bytes, cut, 0);
                exchange.event(hosts[from].event());
                // One at a time, or two that come in together: whoever is asked first is not said.
                settle(&mut exchange);
                known[from] = true;
                for (port, list) in wanted.iter_mut().enumerate() {
                    let flood = to >= 4 || !known[to];
                    if port != from && (flood || port == to) {
                        list.push(bytes.clone());
                    }
                }
                if round {
                    for (host, wanted) in hosts.iter_mut().zip(&mut wanted) {
                        let got: Vec<_> = host.frames().into_iter().map(|(bytes, _)| bytes).collect();
                        prop_assert_eq!(got.len(), wanted.len());
                        prop_assert!(got == *wanted);
                        wanted.clear();
                        let room = 250 - host.asked.len() as u64;
                        host.offer((0..room).map(|n| 1000 + n));
                        exchange.event(host.event());
                        prop_assert!(host.answers().iter().all(|status| *status == Status::OKAY));
                    }
                }
            }
            for (port, host) in hosts.iter_mut().enumerate() {
                host.answers();
                prop_assert_eq!(host.answered, host.sent);
                exchange.fabric.detach(port);
            }
            prop_assert_eq!(exchange.fabric.pool().available(), exchange.fabric.pool().total());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Whatever comes in together, long or short, for one host or for all, and whether it can go
        /// straight on or not: what one host sends to another arrives whole, once, and in order.
        #[test]
        fn frames_that_come_together_keep_their_order(
            batches in proptest::collection::vec(
                proptest::collection::vec(
                    (0usize..3, 0usize..5, prop_oneof![18usize..300, 1900usize..9014]), 1..12),
                1..12),
            cut in 1000usize..=4000,
            slow in prop::option::of(0usize..3),
        ) {
            let world = world(600);
            let machine = machine(&world);
            let mut exchange = exchange(&machine, 3);
            let mut hosts: Vec<Host> = (0..3).map(|port| Host::new(&mut exchange, port, 250)).collect();
            if let Some(port) = slow {
                let spec = PortSpec { delay: Span::us(30), ..PortSpec::IDEAL };
                exchange.fabric.configure(0, port, Direction::Egress, spec).unwrap();
            }
            for (n, host) in hosts.iter_mut().enumerate() {
                host.send(&frame([0xff; 6], n, 60, 0), 4000, 0);
                exchange.event(host.event());
            }
            let mut wanted = vec![vec![Vec::new(); 3]; 3];
            for list in wanted.iter_mut().enumerate().flat_map(|(to, lists)| {
                lists.iter_mut().enumerate().filter(move |(from, _)| *from != to)
            }) {
                list.1.push(frame([0xff; 6], list.0, 60, 0));
            }
            settle(&mut exchange);
            let mut tell = 0;
            let mut now = exchange.now();
            for batch in batches {
                for (from, to, len) in batch {
                    tell += 1;
                    let target = if to >= 3 { [0xff; 6] } else { address(to) };
                    let bytes = frame(target, from, len, tell);
                    hosts[from].send(&bytes, cut, 0);
                    exchange.event(hosts[from].event());
                    for port in (0..3).filter(|&port| port != from && (to >= 3 || port == to)) {
                        wanted[port][from].push(bytes.clone());
                    }
                }
                while exchange.round(now) {}
                now += 100_000;
                while exchange.round(now) {}
                for (port, host) in hosts.iter_mut().enumerate() {
                    let mut got = vec![Vec::new(); 3];
                    for (bytes, _) in host.frames() {
                        got[usize::from(bytes[11])].push(bytes);
                    }
                    prop_assert!(got == wanted[port], "port {}", port);
                    wanted[port].iter_mut().for_each(Vec::clear);
                    let room = 250 - host.asked.len() as u64;
                    host.offer((0..room).map(|n| 1000 + n));
                    exchange.event(host.event());
                    prop_assert!(host.answers().iter().all(|status| *status == Status::OKAY));
                    prop_assert_eq!(host.answered, host.sent);
                }
            }
            prop_assert_eq!(exchange.fabric.pool().available(), exchange.fabric.pool().total());
            prop_assert_eq!(exchange.free.len(), usize::from(CHAINS));
        }
    }

    /// What a step of the next test does, to the host or at the port of that number.
    #[derive(Clone, Debug)]
    enum Step {
        Send {
            from: usize,
            to: usize,
            len: usize,
        },
        /// The same with a page that is not there.
        Fail {
            from: usize,
            to: usize,
            len: usize,
        },
        /// Makes room for so many pages, which are not there, or are.
        Offer {
            port: usize,
            count: u64,
            fails: bool,
        },
        Set {
            port: usize,
            direction: Direction,
            spec: usize,
        },
        Replug(usize),
        Wait(u64),
    }

    /// Descriptions under which something happens to frames.
    const SPECS: [&str; 6] = [
        "{}",
        r#"{"loss":"30 %","duplicate":"40 %","delay":"30 us"}"#,
        r#"{"rate":"10 Mbit/s","queue":"2 frames"}"#,
        r#"{"corrupt":"50 %","duplicate":"50 %","delay":"5 us"}"#,
        r#"{"scheduler":{"kind":"strict","classes":2},"rate":"10 Mbit/s","duplicate":"50 %","delay":"200 us"}"#,
        r#"{"codel":{"target":"10 us","interval":"50 us"},"rate":"10 Mbit/s","duplicate":"20 %"}"#,
    ];

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let len = || prop_oneof![18usize..300, 1900usize..9014];
        let frame = move || (0usize..3, 0usize..5, len());
        let step = prop_oneof![
            12 => frame().prop_map(|(from, to, len)| Step::Send { from, to, len }),
            2 => frame().prop_map(|(from, to, len)| Step::Fail { from, to, len }),
            3 => (0usize..3, 1u64..20, any::<bool>())
                .prop_map(|(port, count, fails)| Step::Offer { port, count, fails }),
            2 => (0usize..3, any::<bool>(), 0..SPECS.len()).prop_map(|(port, ingress, spec)| {
                let direction = if ingress { Direction::Ingress } else { Direction::Egress };
                Step::Set { port, direction, spec }
            }),
            1 => (0usize..3).prop_map(Step::Replug),
            3 => (0u64..400_000).prop_map(Step::Wait),
        ];
        proptest::collection::vec(step, 1..150)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// However they end, frames are counted once for each receiver: those that hosts have sent are those
        /// that hosts have received, that were dropped for a reason, or that went with a host. At every
        /// moment the rest lies in the pool.
        #[test]
        fn no_frame_is_lost_without_being_counted(steps in steps(), pages in 10usize..200) {
            let world = world(pages);
            let machine = machine(&world);
            let mut exchange = exchange(&machine, 3);
            let mut hosts: Vec<Host> = (0..3).map(|port| Host::new(&mut exchange, port, 20)).collect();
            let (mut now, mut sent, mut received) = (exchange.now(), 0, 0);
            let mut next_page = 100;
            for step in steps {
                match step {
                    Step::Send { from, to, len } | Step::Fail { from, to, len } => {
                        let target = if to >= 3 { [0xff; 6] } else { address(to) };
                        hosts[from].answers();
                        let id = u64::from(hosts[from].sent % 256);
                        hosts[from].send(&frame(target, from, len, sent), 4000, 0);
                        if matches!(step, Step::Fail { .. }) {
                            world.granted.borrow_mut().remove(&(hosts[from].dom, 100 + id));
                        }
                        sent += 1;
                        exchange.event(hosts[from].event());
                    }
                    Step::Offer { port, count, fails } => {
                        received += hosts[port].count();
                        let room = (250 - hosts[port].asked.len() as u64).min(count);
                        hosts[port].offer(next_page..next_page + room);
                        if fails && room > 0 {
                            let page = (hosts[port].dom, RX + next_page);
                            world.granted.borrow_mut().remove(&page);
                        }
                        next_page += room;
                        exchange.event(hosts[port].event());
                    }
                    Step::Set { port, direction, spec } => {
                        let spec = serde_json::from_str(SPECS[spec]).unwrap();
                        exchange.fabric.configure(now, port, direction, spec).unwrap();
                    }
                    Step::Replug(port) => {
                        // All that it has sent is taken first.
                        while exchange.round(now) {}
                        exchange.disconnect(port);
                        received += hosts[port].count();
                        hosts[port] = Host::new(&mut exchange, port, 20);
                    }
                    Step::Wait(ns) => now += ns,
                }
                exchange.round(now);
                let ledger = exchange.ledger();
                prop_assert!(ledger.balances(), "{:?}", ledger);
            }
            for _ in 0..200 {
                while exchange.round(now) {}
                now += 1_000_000;
            }
            for (port, host) in hosts.iter_mut().enumerate() {
                exchange.disconnect(port);
                received += host.count();
            }
            let ledger = exchange.ledger();
            prop_assert!(ledger.balances(), "{:?}", ledger);
            prop_assert_eq!((ledger.arrived, ledger.delivered), (sent.into(), received));
            prop_assert_eq!(ledger.held, 0);
            prop_assert_eq!(exchange.fabric.pool().available(), exchange.fabric.pool().total());
        }
    }

    #[test]
    fn a_long_frame_is_copied_once_where_nothing_holds_it_back() {
        let world = world(200);
        let machine = machine(&world);
        let mut exchange = exchange(&machine, 3);
        let [mut a, mut b, _c] = [0, 1, 2].map(|port| Host::new(&mut exchange, port, 100));
        b.send(&frame(address(0), 1, 60, 0), 4000, 0);
        settle(&mut exchange);
        let mut sent = |exchange: &mut Exchange<'_, World>, to: usize| {
            world.copied.set(0);
            a.send(&frame(address(to), 0, 9000, 7), 4000, tx_flags::CSUM_BLANK);
            exchange.event(a.event());
            settle(exchange);
            assert!(a.answers().iter().all(|status| *status == Status::OKAY));
            world.copied.get()
        };
        assert_eq!(sent(&mut exchange, 1), 2 * 9000, "nobody knows yet that it could");
        assert_eq!(b.frames().len(), 1);
        // Host 1 cannot take a sum that is blank, so this goes the long way.
        assert_eq!(sent(&mut exchange, 1), HEADER + 2 * 9000);
        exchange.devices[1].as_mut().unwrap().csum_v6 = true;
        assert_eq!(sent(&mut exchange, 1), 2 * 9000);
        assert_eq!(sent(&mut exchange, 1), HEADER + 9000, "straight on");
        let frames = b.frames();
        assert_eq!(frames.len(), 3);
        assert_eq!(frames[2].0, frame(address(1), 0, 9000, 7));
        assert_ne!(frames[2].1 & rx_flags::CSUM_BLANK, 0);
        assert_eq!(sent(&mut exchange, 9), HEADER + 3 * 9000, "to all others");
        let counters = exchange.fabric.counters(1).unwrap();
        assert_eq!((counters.tx_frames, counters.tx_bytes), (5, 5 * 9000));
    }

    #[test]
    fn a_way_is_forgotten_in_the_moment_in_which_it_is_wrong() {
        let world = world(200);
        let machine = machine(&world);
        let mut exchange = exchange(&machine, 3);
        let [mut a, mut b, mut c] = [0, 1, 2].map(|port| Host::new(&mut exchange, port, 100));
        let begin = exchange.now();
        let (mut now, mut tell) = (begin, 0);
        // From host `from`, as station `named`, to station `to`; how many each host has got then.
        let mut sent = |exchange: &mut Exchange<'_, World>, from: usize, named, to, later: u64| {
            let hosts = [&mut a, &mut b, &mut c];
            tell += 1;
            hosts[from].send(&frame(address(to), named, 60, tell), 4000, 0);
            exchange.event(hosts[from].event());
            now += later;
            while exchange.round(now) {}
            hosts.map(|host| host.frames().len())
        };
        assert_eq!(sent(&mut exchange, 1, 1, 0, 0), [1, 0, 1], "nobody knows who is where");
        assert_eq!(sent(&mut exchange, 0, 0, 1, 0), [0, 1, 0]);
        assert_eq!(sent(&mut exchange, 0, 0, 1, 0), [0, 1, 0]);
        assert_eq!(sent(&mut exchange, 2, 1, 0, 0), [1, 0, 0], "station 1 is there now");
        assert_eq!(sent(&mut exchange, 0, 0, 1, 0), [0, 0, 1]);
        let spec = PortSpec { delay: Span::us(30), ..PortSpec::IDEAL };
        exchange.fabric.configure(begin, 2, Direction::Egress, spec).unwrap();
        assert_eq!(sent(&mut exchange, 0, 0, 1, 0), [0, 0, 0]);
        assert_eq!(sent(&mut exchange, 2, 7, 0, 30_000), [1, 0, 1]);
        assert_eq!(sent(&mut exchange, 0, 0, 1, AGE_NS - 30_000), [0, 0, 0], "on its way");
        assert_eq!(sent(&mut exchange, 0, 0, 1, 30_000), [0, 1, 1], "station 1 is too old");
    }

    #[test]
    fn what_was_put_off_is_ended_before_a_host_goes() {
        let world = world(200);
        let machine = machine(&world);
        let mut exchange = exchange(&machine, 2);
        let [mut a, mut b] = [0, 1].map(|port| Host::new(&mut exchange, port, 100));
        b.send(&frame(address(0), 1, 60, 0), 4000, 0);
        settle(&mut exchange);
        for count in [1, 3] {
            for n in 0..count {
                a.send(&frame(address(1), 0, 9000, n), 4000, 0);
            }
            exchange.event(a.event());
            assert!(exchange.round(0), "all of the first, the heads of the others");
        }
        assert_eq!(exchange.straight.len() + exchange.late.len(), 3);
        exchange.flush();
        assert_eq!((exchange.straight.len(), exchange.late.len()), (0, 0));
        assert_eq!(a.answers(), [Status::OKAY; 12]);
        assert_eq!((b.frames().len(), exchange.free.len()), (4, usize::from(CHAINS)));
    }

    #[test]
    fn many_frames_take_two_calls_and_hosts_are_woken_once() {
        let world = world(200);
        let machine = machine(&world);
        let mut exchange = exchange(&machine, 2);
        let [mut a, mut b] = [0, 1].map(|port| Host::new(&mut exchange, port, 250));
        assert!(!exchange.round(0) && exchange.arm());
        for n in 0..60 {
            a.send(&frame(address(1), 0, 1514, n), 2000, 0);
        }
        exchange.event(a.event());
        settle(&mut exchange);
        assert_eq!((b.frames().len(), world.calls.get()), (60, 2));
        assert_eq!(a.answers(), [Status::OKAY; 60]);
        assert_eq!(world.notified.borrow().values().copied().collect::<Vec<_>>(), [1, 1]);
        let counters = exchange.fabric.counters(0).unwrap();
        assert_eq!((counters.rx_frames, counters.rx_bytes), (60, 60 * 1514));
    }

    #[test]
    fn a_delay_is_kept_to_the_nanosecond_and_slept_through() {
        let world = world(20);
        let machine = machine(&world);
        let mut exchange = exchange(&machine, 2);
        let [mut a, mut b] = [0, 1].map(|port| Host::new(&mut exchange, port, 20));
        let spec = |ms| PortSpec { delay: Span::ms(ms), ..PortSpec::IDEAL };
        exchange.fabric.configure(0, 0, Direction::Ingress, spec(3)).unwrap();
        exchange.fabric.configure(0, 1, Direction::Egress, spec(4)).unwrap();
        a.send(&frame(address(1), 0, 60, 1), 100, 0);
        let before = exchange.now();
        settle(&mut exchange);
        let after = exchange.now();
        let at = exchange.deadline();
        assert!((before + 3_000_000..=after + 3_000_000).contains(&at), "{before} {at} {after}");
        while exchange.now() < at + 4_000_000 {
            settle(&mut exchange);
            assert_eq!(b.frames().len(), 0);
            let deadline = exchange.deadline();
            // First the end of the one delay, then that of the other: late as this processor is.
            assert!(deadline == at || deadline == at + 4_000_000);
            machine.xen.poll_until(&[], deadline).unwrap();
        }
        settle(&mut exchange);
        assert_eq!((b.frames().len(), exchange.deadline()), (1, u64::MAX));
    }

    #[test]
    fn a_host_without_room_gets_its_frames_later_and_only_so_many() {
        let world = world(600);
        let machine = machine(&world);
        let mut exchange = exchange(&machine, 2);
        let [mut a, mut b] = [0, 1].map(|port| Host::new(&mut exchange, port, 3));
        let extra = 20;
        for n in 0..(3 + OUT_MAX + extra) as u32 {
            a.send(&frame(address(1), 0, 60, n), 100, 0);
            if n % 100 == 0 {
                exchange.event(a.event());
                settle(&mut exchange);
                a.answers();
            }
        }
        exchange.event(a.event());
        settle(&mut exchange);
        assert_eq!((b.frames().len(), exchange.arm()), (3, true));
        let mut got = 0;
        while got < OUT_MAX {
            b.offer(0..200.min((OUT_MAX - got) as u64));
            exchange.event(b.event());
            settle(&mut exchange);
            for (bytes, _) in b.frames() {
                assert_eq!(bytes[14..18], (3 + got as u32).to_le_bytes(), "in order");
                got += 1;
            }
        }
        assert_eq!(exchange.fabric.counters(1).unwrap().host_full, extra as u64);
        assert_eq!(exchange.fabric.pool().available(), exchange.fabric.pool().total());
    }

    #[test]
    fn a_page_that_is_not_granted_costs_its_frame_only() {
        let world = world(20);
        let machine = machine(&world);
        let mut exchange = exchange(&machine, 2);
        let [mut a, mut b] = [0, 1].map(|port| Host::new(&mut exchange, port, 10));
        for n in 0..3 {
            a.send(&frame(address(1), 0, 60, n), 100, 0);
        }
        world.granted.borrow_mut().remove(&(a.dom, 101));
        settle(&mut exchange);
        assert_eq!(a.answers(), [Status::OKAY, Status::ERROR, Status::OKAY]);
        assert_eq!((b.frames().len(), exchange.device_counters(0).faults), (2, 1));
        assert_eq!(exchange.fabric.pool().available(), exchange.fabric.pool().total());
    }

    #[test]
    fn memory_that_is_full_drops_and_counts() {
        let world = world(2);
        let machine = machine(&world);
        let mut exchange = exchange(&machine, 2);
        let [mut a, mut b] = [0, 1].map(|port| Host::new(&mut exchange, port, 10));
        for n in 0..6 {
            a.send(&frame(address(1), 0, 60, n), 100, 0);
        }
        settle(&mut exchange);
        let answers = a.answers();
        assert_eq!(answers.iter().filter(|status| **status == Status::DROPPED).count(), 2);
        assert_eq!((b.frames().len(), exchange.fabric.counters(0).unwrap().no_memory), (4, 2));
    }

    #[test]
    fn what_a_host_is_told_of_a_sum_is_so() {
        let bytes = |to: [u8; 6]| {
            let mut bytes = frame(to, 0, HEADER, 0)[..HEADER - 2].to_vec();
            bytes.extend([0x08, 0x00]);
            bytes.extend(ether::fake::ipv4(0, 17, b"to whom it may concern"));
            bytes
        };
        // Of the two receivers, who takes sums that are blank.
        for takes in [[false, true], [true, false], [true, true], [false, false]] {
            let world = world(20);
            let machine = machine(&world);
            let mut exchange = exchange(&machine, 3);
            let [mut a, b, c] = [0, 1, 2].map(|port| Host::new(&mut exchange, port, 10));
            for (port, takes) in [1, 2].into_iter().zip(takes) {
                let device = exchange.devices[port].as_mut().unwrap();
                (device.csum_v4, device.csum_v6) = (takes, takes);
            }
            let mut hosts = [b, c];
            for (host, port) in hosts.iter_mut().zip([1, 2]) {
                host.send(&frame([0xff; 6], port, 60, 0), 100, 0);
            }
            settle(&mut exchange);
            hosts.iter_mut().for_each(|host| drop(host.frames()));
            for to in [[0xff; 6], address(1), address(2)] {
                let sent = bytes(to);
                a.send(&sent, 100, tx_flags::CSUM_BLANK);
                exchange.event(a.event());
                settle(&mut exchange);
                for ((port, host), takes) in (1..).zip(&mut hosts).zip(takes) {
                    let frames = host.frames();
                    assert_eq!(frames.len(), usize::from([[0xff; 6], address(port)].contains(&to)));
                    for (got, flags) in frames {
                        let blank = flags & rx_flags::CSUM_BLANK != 0;
                        assert!(takes || !blank, "{takes} {flags:#x}");
                        let mut all = got[HEADER + 12..HEADER + 20].to_vec();
                        all.extend([0, 17, 0, 30]);
                        all.extend(&got[HEADER + 20..]);
                        let sum = ether::fake::sum(&all);
                        assert_eq!(
                            (got == sent, sum == 0xffff),
                            (blank, !blank),
                            "{to:x?} {sum:x}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn flags_of_sums_are_passed_on() {
        let world = world(20);
        let machine = machine(&world);
        let mut exchange = exchange(&machine, 2);
        let [mut a, mut b] = [0, 1].map(|port| Host::new(&mut exchange, port, 10));
        let both = tx_flags::CSUM_BLANK | tx_flags::DATA_VALIDATED;
        for flags in [0, both, tx_flags::DATA_VALIDATED] {
            a.send(&frame(address(1), 0, 60, 0), 100, flags);
        }
        settle(&mut exchange);
        let flags: Vec<u16> = b.frames().into_iter().map(|(_, flags)| flags).collect();
        let both = rx_flags::CSUM_BLANK | rx_flags::DATA_VALIDATED;
        assert_eq!(flags, [0, both, rx_flags::DATA_VALIDATED]);
    }
}
