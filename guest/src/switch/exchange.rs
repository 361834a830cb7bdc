// SPDX-License-Identifier: MIT OR Apache-2.0
//! Between the rings and the fabric: frames are copied in and out, many in one call of Xen.
//!
//! A round takes what hosts have sent, what is to be given to hosts, makes one list of copies for all
//! ports, and lets Xen do it. A frame that comes in during one round goes out in the next, together
//! with what came in meanwhile: under load there is one call for both. Nothing is allocated and
//! nothing locked on the way.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use alloc::{format, vec};

use tdf_xen::abi::{DomId, GrantHandle, PAGE_SIZE, Port};
use tdf_xen::evtchn;
use tdf_xen::grant::{CopyOp, Granted, Local};
use tdf_xen::hypercall::{Hypercall, Xen};
use tdf_xen::netback::{Given, Netback, RxFrame};
use tdf_xen::netif::{Status, TxFrame};
use tdf_xen::shared_ring::SharedPage;

use super::backend::{Attach, Front};
use super::control::DeviceCounters;
use super::fabric::{self, Fabric, PORTS_MAX};
use super::pool::{FrameId, FrameInfo};
use crate::machine::{Cpu, Machine};

/// Frames in one direction in one round.
const FRAMES: usize = 256;
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
/// No port.
const NONE: u8 = u8::MAX;

/// A host's interface.
#[derive(Debug)]
struct Device {
    netback: Netback,
    dom: DomId,
    event: Port,
    handles: [GrantHandle; RINGS],
    csum_v4: bool,
    csum_v6: bool,
    counters: DeviceCounters,
}

/// A frame on its way in.
#[derive(Debug)]
struct Incoming {
    port: u8,
    frame: FrameId,
    /// Its copies end here in the list, and begin where the one before ends.
    end: u16,
    chain: TxFrame,
}

/// A frame on its way out.
#[derive(Debug)]
struct Outgoing {
    port: u8,
    frame: FrameId,
    end: u16,
    pages: RxFrame,
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
    /// Ports that may have something to send.
    active: u64,
    /// Ports whose hosts have no room for the frame that is next.
    blocked: u64,
    /// Ports to which answers were written.
    answered: u64,
    copies: Box<[CopyOp]>,
    incoming: Vec<Incoming>,
    outgoing: Vec<Outgoing>,
    /// Who is asked first in the next round.
    turn: u32,
    work: Work,
}

impl<'a, X: Hypercall + Cpu> Exchange<'a, X> {
    /// A switch without hosts, with [`RINGS`] pages of address space for each port at `window`.
    ///
    /// # Safety
    /// The address space is nobody else's, and its page tables exist.
    pub unsafe fn new(machine: &'a Machine<'a, X>, fabric: Fabric, window: usize) -> Self {
        let ports = fabric.ports();
        Self {
            machine,
            fabric,
            devices: (0..ports).map(|_| None).collect(),
            channels: vec![NONE; evtchn::WORDS * 64].into_boxed_slice(),
            window,
            active: 0,
            blocked: 0,
            answered: 0,
            copies: vec![CopyOp::NONE; COPIES].into_boxed_slice(),
            incoming: Vec::with_capacity(FRAMES),
            outgoing: Vec::with_capacity(FRAMES),
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
        let device = self.devices.get(port).and_then(Option::as_ref);
        device.map_or_else(DeviceCounters::default, |device| device.counters)
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
        self.active |= 1 << port;
        self.blocked &= !(1 << port);
        true
    }

    /// Takes what hosts have sent: their frames, in turn, and the copies that bring them in.
    fn collect_incoming(&mut self, mut used: usize) -> usize {
        let mut todo = self.active.rotate_right(self.turn);
        while let Some(port) = fabric::next(&mut todo) {
            let port = (port + self.turn as usize) % PORTS_MAX;
            let Some(Some(device)) = self.devices.get_mut(port) else {
                self.active &= !(1 << port);
                continue;
            };
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
                let chain = match device.netback.take_tx() {
                    Ok(Some(chain)) => chain,
                    Ok(None) => {
                        self.active &= !(1 << port);
                        break;
                    }
                    Err(fault) => {
                        device.counters.faults += 1;
                        log::warn!("port {port}: {fault}");
                        self.active &= !(1 << port);
                        break;
                    }
                };
                self.answered |= 1 << port;
                let info = FrameInfo {
                    refs: 1,
                    port: port as u8,
                    csum_blank: chain.csum_blank(),
                    validated: chain.data_validated(),
                };
                let pool = self.fabric.pool_mut();
                let Some(frame) = pool.take(chain.total().into(), info) else {
                    if let Some(counters) = self.fabric.counters_mut(port) {
                        counters.no_memory += 1;
                    }
                    let _ = device.netback.answer_tx(chain, Status::DROPPED);
                    continue;
                };
                let mut at = 0;
                for fragment in chain.fragments() {
                    let mut offset = fragment.offset;
                    pool.pieces(frame, at, fragment.size.into(), |piece| {
                        let source = Granted { dom: device.dom, gref: fragment.gref, offset };
                        let dest = Local { frame: piece.page, offset: piece.offset };
                        // Both were checked: a fragment lies within its page, a piece in its own.
                        if let Ok(copy) = CopyOp::from_grant(source, dest, piece.len) {
                            self.copies[used] = copy;
                            used += 1;
                        }
                        offset += piece.len;
                    });
                    at += u32::from(fragment.size);
                }
                self.incoming.push(Incoming { port: port as u8, frame, end: used as u16, chain });
            }
        }
        used
    }

    /// Takes what is to be given to hosts, and the copies that bring it to them.
    fn collect_outgoing(&mut self) -> usize {
        let mut used = 0;
        let mut todo = self.fabric.ready() & !self.blocked;
        while let Some(port) = fabric::next(&mut todo) {
            let Some(Some(device)) = self.devices.get_mut(port) else { continue };
            while let Some(frame) = self.fabric.peek(port) {
                if used + COPIES_OF_FRAME > COPIES || self.outgoing.len() == FRAMES {
                    return used;
                }
                let info = self.fabric.pool().info(frame);
                // A host that wants all sums gets them: one that is shared is finished for all.
                if info.csum_blank && !(device.csum_v4 && device.csum_v6) {
                    let v6 = super::ether::is_ipv6(self.fabric.pool().head(frame));
                    if !(if v6 { device.csum_v6 } else { device.csum_v4 }) {
                        fabric::finish_sum(self.fabric.pool_mut(), frame);
                    }
                }
                let len = self.fabric.pool().len(frame) as u16;
                let pages = match device.netback.take_rx(len) {
                    Ok(Some(pages)) => pages,
                    Ok(None) if device.netback.may_give(len) => {
                        self.blocked |= 1 << port;
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
                        let dest = Granted { dom: device.dom, gref: slot.gref, offset };
                        // As above.
                        if let Ok(copy) = CopyOp::to_grant(source, dest, piece.len) {
                            self.copies[used] = copy;
                            used += 1;
                        }
                        offset += piece.len;
                    });
                    at += u32::from(slot.size);
                }
                self.outgoing.push(Outgoing { port: port as u8, frame, end: used as u16, pages });
            }
        }
        used
    }

    /// One round. `false` if there was nothing to do.
    pub fn round(&mut self) -> bool {
        let now = self.now();
        self.fabric.advance(now);
        let out = self.collect_outgoing();
        let used = self.collect_incoming(out);
        if used > 0 {
            // SAFETY: own pages are written to only where the pool has just given them out, and hold
            // nothing but frames that are for the host that gets them.
            let done = unsafe { self.machine.xen.gnttab_copy(&mut self.copies[..used]) };
            if let Err(error) = done {
                log::error!("frames cannot be copied: {error}");
            }
            self.work.rounds += 1;
            self.work.hypercalls += 1;
            self.work.copies += used as u64;
            self.work.frames += self.incoming.len() as u64;
            self.finish(now);
        }
        self.publish();
        used > 0
    }

    /// Looks how the copies went, and answers for them.
    fn finish(&mut self, now: u64) {
        let mut start = 0;
        for Outgoing { port, frame, end, pages } in self.outgoing.drain(..) {
            let copies = &self.copies[start..usize::from(end)];
            start = usize::from(end);
            let pool = self.fabric.pool_mut();
            let info = pool.info(frame);
            pool.release(frame);
            let Some(Some(device)) = self.devices.get_mut(usize::from(port)) else { continue };
            let given = if copies.iter().all(|copy| copy.result().is_ok()) {
                let FrameInfo { csum_blank, validated, .. } = info;
                Given::Whole { csum_blank, data_validated: csum_blank || validated }
            } else {
                device.counters.faults += 1;
                Given::Failed
            };
            let _ = device.netback.answer_rx(pages, given);
        }
        for Incoming { port, frame, end, chain } in self.incoming.drain(..) {
            let copies = &self.copies[start..usize::from(end)];
            start = usize::from(end);
            let whole = copies.iter().all(|copy| copy.result().is_ok());
            if let Some(Some(device)) = self.devices.get_mut(usize::from(port)) {
                let status = if whole { Status::OKAY } else { Status::ERROR };
                device.counters.faults += u64::from(!whole);
                let _ = device.netback.answer_tx(chain, status);
            }
            if whole {
                self.fabric.arrive(now, usize::from(port), frame);
            } else {
                self.fabric.pool_mut().release(frame);
            }
        }
    }

    /// Shows hosts their answers, and wakes those that want it.
    fn publish(&mut self) {
        while let Some(port) = fabric::next(&mut self.answered) {
            let Some(Some(device)) = self.devices.get_mut(port) else { continue };
            let notify = device.netback.publish();
            if notify.tx || notify.rx {
                device.counters.notifies_sent += 1;
                self.work.hypercalls += 1;
                // A host that cannot be woken is gone, or will be woken by the next.
                let _ = self.machine.xen.notify(device.event);
            }
        }
    }

    /// Asks all hosts for an event when there is something to do. `false` if there is already.
    pub fn arm(&mut self) -> bool {
        let mut idle = true;
        for (port, device) in self.devices.iter_mut().enumerate() {
            let Some(device) = device else { continue };
            let waiting = match self.blocked >> port & 1 {
                0 => None,
                _ => self.fabric.peek(port).map(|frame| self.fabric.pool().len(frame) as u16),
            };
            // A faulty one has nothing to do any more.
            if device.netback.arm(waiting).unwrap_or(false) {
                self.active |= 1 << port;
                self.blocked &= !(1 << port);
                idle = false;
            }
        }
        idle
    }

    /// When there is something to do next without any event; `u64::MAX` if never.
    pub fn deadline(&self) -> u64 {
        self.fabric.deadline()
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
        self.devices[port] = Some(Device {
            netback: Netback::new(tx, rx, LONGEST, longest),
            dom: front.name.dom,
            event,
            handles: rings.map(|(_, handle)| handle),
            csum_v4: front.csum_v4,
            csum_v6: front.csum_v6,
            counters: DeviceCounters::default(),
        });
        self.fabric.attach(port);
        self.active |= 1 << port;
        self.blocked &= !(1 << port);
        Ok(())
    }

    fn disconnect(&mut self, port: usize) {
        let Some(device) = self.devices.get_mut(port).and_then(Option::take) else { return };
        // From here on nothing touches its rings.
        let Device { event, handles, .. } = device;
        let bit = !(1 << port);
        self.active &= bit;
        self.blocked &= bit;
        self.answered &= bit;
        if let Some(channel) = self.channels.get_mut(event.0 as usize) {
            *channel = NONE;
        }
        if let Err(error) = self.machine.xen.evtchn_close(event) {
            log::error!("port {port}: its event channel cannot be closed: {error}");
        }
        let address = |ring: usize| self.window + (port * RINGS + ring) * PAGE_SIZE;
        self.unmap(handles.into_iter().enumerate().map(|(ring, handle)| (address(ring), handle)));
        self.fabric.detach(port);
    }

    fn is_broken(&self, port: usize) -> bool {
        let device = self.devices.get(port).and_then(Option::as_ref);
        device.is_some_and(|device| device.netback.fault().is_some())
    }
}
