// SPDX-License-Identifier: MIT OR Apache-2.0
//! The switch of the emulated network.
//!
//! Each port is a host's network interface on one side and two [`switch_model`] ports, one each way, on
//! the other. The hosts' clocks and this switch's are dilated alike, so all that the model says is in
//! the time that the hosts see. The switch is the hosts' driver domain: their frontends connect
//! straight to it, and no other domain sees a frame.

pub mod backend;
pub mod capture;
pub mod control;
pub mod ether;
pub mod exchange;
pub mod fabric;
#[cfg(test)]
mod fake;
pub mod fdb;
pub mod frontend;
pub mod link;
pub mod options;
pub mod pool;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use tdf_xen::abi::Port;
use tdf_xen::evtchn::Upcalls;
use tdf_xen::hypercall::{Hypercall, Shutdown, Xen, XenError};
use tdf_xen::xenstore::{Client, Error, Event, Link, Tx};

use crate::machine::{Cpu, Machine};
use backend::{Backend, Change, VifName};
use control::{Control, Kind, SwitchCounters};
use exchange::Exchange;
use frontend::Frontend;

/// Where the toolstack asks the domain to end, and the token of the watch there.
const SHUTDOWN: &str = "control/shutdown";
/// Rounds of frames before the switch looks for other events.
const ROUNDS: usize = 32;

/// What a watch is about, without the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    Vif(VifName),
    Vifs,
    Own(u32),
    Owns,
    Setting(usize),
    Settings,
    Query,
    Capture,
    Shutdown,
    Everything,
}

impl News {
    fn of(event: Event<'_>) -> Option<Self> {
        let Event::Changed { path, token } = event else { return Some(Self::Everything) };
        let path = core::str::from_utf8(path).ok()?;
        Some(match core::str::from_utf8(token).ok()? {
            backend::TOKEN => {
                let below = path.strip_prefix(backend::VIFS).and_then(|p| p.strip_prefix('/'));
                below.and_then(VifName::parse).map_or(Self::Vifs, Self::Vif)
            }
            frontend::TOKEN => {
                let below = path.strip_prefix(frontend::VIFS).and_then(|p| p.strip_prefix('/'));
                let handle = below.and_then(|below| below.split('/').next()?.parse().ok());
                handle.map_or(Self::Owns, Self::Own)
            }
            control::SET_TOKEN => Control::port_of(path).map_or(Self::Settings, Self::Setting),
            control::QUERY_TOKEN => Self::Query,
            control::CAPTURE_TOKEN => Self::Capture,
            SHUTDOWN => Self::Shutdown,
            token => match token.strip_prefix(frontend::BACK_TOKEN) {
                Some(handle) => Self::Own(handle.parse().ok()?),
                None => Self::Vif(VifName::parse(token.strip_prefix(backend::FRONT_TOKEN)?)?),
            },
        })
    }
}

/// Why the switch ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End<E> {
    /// The toolstack wants it to.
    Asked(Shutdown),
    /// Xenstore is not to be used any more.
    Store(Error<E>),
    /// Xen does not let it sleep.
    Xen(XenError),
}

impl<E> From<Error<E>> for End<E> {
    fn from(error: Error<E>) -> Self {
        Self::Store(error)
    }
}

impl<E> From<XenError> for End<E> {
    fn from(error: XenError) -> Self {
        Self::Xen(error)
    }
}

impl<E: fmt::Display> fmt::Display for End<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked(_) => f.write_str("the toolstack wants the switch to end"),
            Self::Store(error) => write!(f, "xenstore: {error}"),
            Self::Xen(error) => error.fmt(f),
        }
    }
}

/// The switch with everything that belongs to it.
pub struct Switch<'a, X, L> {
    machine: &'a Machine<'a, X>,
    exchange: Exchange<'a, X>,
    store: Client<L>,
    store_event: Port,
    backend: Backend,
    frontend: Frontend,
    control: Control,
    /// Events that were taken from xenstore's ring but not looked at.
    news: Vec<News>,
    /// Where to sleep: xenstore's event channel, and those of all interfaces.
    channels: Vec<Port>,
    /// The one with the greatest number.
    last_channel: Port,
    /// How to sleep without looking at each port; `None`: there is no entry for upcalls.
    upcalls: Option<Upcalls>,
    heap_free: fn() -> usize,
    sleeps: u64,
}

impl<'a, X: Hypercall + Cpu, L: Link> Switch<'a, X, L> {
    /// A switch that talks to xenstore by `store`, whose events come on `store_event`, and sleeps by
    /// `upcalls`, or else by polling all channels.
    ///
    /// # Safety
    /// With `upcalls`, an entry for them was registered, which may interrupt everything here.
    pub unsafe fn new(
        machine: &'a Machine<'a, X>,
        exchange: Exchange<'a, X>,
        store: Client<L>,
        store_event: Port,
        upcalls: Option<Upcalls>,
        heap_free: fn() -> usize,
    ) -> Self {
        let ports = exchange.fabric.ports();
        Self {
            machine,
            exchange,
            store,
            store_event,
            backend: Backend::new(ports),
            frontend: Frontend::default(),
            control: Control::new(ports),
            news: Vec::new(),
            channels: Vec::new(),
            last_channel: store_event,
            upcalls,
            heap_free,
            sleeps: 0,
        }
    }

    /// Runs until something ends it.
    pub fn run(&mut self) -> End<L::Error> {
        match self.start().and_then(|()| self.turns()) {
            Ok(end) | Err(end) => end,
        }
    }

    fn start(&mut self) -> Result<(), End<L::Error>> {
        self.control.start(&mut self.store, &self.exchange.fabric)?;
        self.backend.start(&mut self.store)?;
        self.frontend.start(&mut self.store)?;
        self.store.watch(SHUTDOWN, SHUTDOWN)?;
        self.channels.push(self.store_event);
        if self.upcalls.is_some() {
            self.machine.unmask_events();
        }
        Ok(())
    }

    fn turns(&mut self) -> Result<End<L::Error>, End<L::Error>> {
        // The watches have fired already.
        let mut told = true;
        loop {
            let (exchange, store_event) = (&mut self.exchange, self.store_event);
            if let Some(upcalls) = &self.upcalls {
                upcalls.clear();
            }
            self.machine.take_events(self.last_channel, |event| {
                told |= event == store_event;
                exchange.event(event);
            });
            if core::mem::take(&mut told)
                && let Some(why) = self.look_at_store()?
            {
                return Ok(End::Asked(why));
            }
            let mut now = self.exchange.now();
            if self.backend.deadline() != u64::MAX
                && let Some(name) = self.backend.due(now)
            {
                self.act(News::Vif(name))?;
            }
            let busy = (0..ROUNDS).all(|n| {
                if n > 0 && self.exchange.is_timed() {
                    now = self.exchange.now();
                }
                self.exchange.round(now)
            });
            if !busy && self.exchange.arm() {
                let deadline = match self.exchange.deadline().min(self.backend.deadline()) {
                    u64::MAX => 0,
                    at => at.max(1),
                };
                self.sleeps += 1;
                match &self.upcalls {
                    // SAFETY: `new`'s caller vouches for the entry; unmasked in `start`, cleared above.
                    Some(upcalls) => unsafe {
                        self.machine.block(upcalls, (deadline > 0).then_some(deadline))?;
                    },
                    None => self.machine.xen.poll_until(&self.channels, deadline)?,
                }
            }
        }
    }

    /// Does everything that xenstore tells to do.
    fn look_at_store(&mut self) -> Result<Option<Shutdown>, End<L::Error>> {
        loop {
            while let Some(event) = self.store.next_event()? {
                if let Some(news) = News::of(event)
                    && !self.news.contains(&news)
                {
                    self.news.push(news);
                }
            }
            if self.news.is_empty() {
                return Ok(None);
            }
            for news in core::mem::take(&mut self.news) {
                if let Some(why) = self.act(news)? {
                    return Ok(Some(why));
                }
            }
        }
    }

    fn act(&mut self, news: News) -> Result<Option<Shutdown>, End<L::Error>> {
        let Self { store, exchange, backend, frontend, control, machine, .. } = self;
        let now = || machine.system_time_ns().max(0).cast_unsigned();
        let mut changes = Vec::new();
        let ports = exchange.fabric.ports();
        // Both kinds of interfaces draw from the same ports.
        let others = |taken: &dyn Fn(usize) -> bool| {
            (0..ports).filter(|port| taken(*port)).fold(0, |ports, port| ports | 1 << port)
        };
        let everything = news == News::Everything;
        match news {
            News::Vif(name) => {
                let fronts = others(&|port| frontend.owner(port).is_some());
                backend.look_at(store, exchange, name, &mut changes, fronts, now)?;
            }
            News::Own(handle) => {
                frontend.look_at(store, exchange, handle, &mut changes, backend)?;
            }
            News::Setting(port) => control.set(store, &mut exchange.fabric, port, now)?,
            News::Query => self.answer()?,
            News::Capture => self.look_at_capture()?,
            News::Shutdown => return self.asked_to_end(),
            News::Vifs | News::Owns | News::Settings | News::Everything => {
                if everything || news == News::Vifs {
                    let fronts = others(&|port| frontend.owner(port).is_some());
                    backend.look_at_all(store, exchange, &mut changes, fronts, now)?;
                }
                if everything || news == News::Owns {
                    frontend.look_at_all(store, exchange, &mut changes, backend)?;
                }
                if everything || news == News::Settings {
                    control.set_all(store, &mut exchange.fabric, now)?;
                }
            }
        }
        self.publish_changes(changes)?;
        if everything {
            self.answer()?;
            self.look_at_capture()?;
            return self.asked_to_end();
        }
        Ok(None)
    }

    fn publish_changes(&mut self, changes: Vec<Change>) -> Result<(), End<L::Error>> {
        for change in changes {
            let store = &mut self.store;
            match change {
                Change::Assigned(port, name, kind) => {
                    let path = match kind {
                        Kind::Netback => alloc::format!("{}/{name}", backend::VIFS),
                        Kind::Netfront => alloc::format!("{}/{}", frontend::VIFS, name.handle),
                    };
                    let mac = match store.read_text(Tx::NONE, (path.as_str(), "mac")) {
                        Ok(mac) => String::from(mac),
                        Err(Error::Refused(_) | Error::BadValue) => String::new(),
                        Err(error) => return Err(error.into()),
                    };
                    let fabric = &self.exchange.fabric;
                    control::publish_peer(store, fabric, port, name, kind, &mac)?;
                }
                Change::Up(port) => {
                    log::info!("port {port}: up");
                    control::publish_link(store, port, true)?;
                    self.name_channels();
                }
                Change::Down(port) => {
                    log::info!("port {port}: down");
                    control::publish_link(store, port, false)?;
                    self.name_channels();
                }
                Change::Freed(port) => control::publish_free(store, port)?,
                Change::Refused(name, why) => log::warn!("interface {name}: {why}"),
            }
        }
        Ok(())
    }

    fn name_channels(&mut self) {
        self.channels.clear();
        self.channels.push(self.store_event);
        self.channels.extend(self.exchange.channels());
        self.last_channel = self.channels.iter().copied().max().unwrap_or(self.store_event);
    }

    fn answer(&mut self) -> Result<(), End<L::Error>> {
        let now = self.exchange.now();
        let stations = self.exchange.fabric.fdb().known(now) as u64;
        let Self { store, exchange, control, heap_free, sleeps, .. } = self;
        let (work, pool) = (exchange.work(), exchange.fabric.pool());
        let switch = || SwitchCounters {
            virtual_ns: now,
            frames: work.frames,
            batches: work.rounds,
            hypercalls: work.hypercalls + *sleeps,
            copies: work.copies,
            sleeps: *sleeps,
            stations,
            pool_free: pool.available(),
            pool_total: pool.total(),
            grants: exchange.grants(),
            heap_free: heap_free() as u64,
            ledger: exchange.ledger(),
        };
        let device = |port| exchange.device_counters(port);
        Ok(control.answer(store, &exchange.fabric, device, switch)?)
    }

    fn look_at_capture(&mut self) -> Result<(), End<L::Error>> {
        let Self { store, exchange, control, .. } = self;
        Ok(control.look_at_capture(store, |wanted| match wanted {
            Some(request) => exchange.start_capture(request),
            None => {
                exchange.stop_capture();
                Ok(String::new())
            }
        })?)
    }

    fn asked_to_end(&mut self) -> Result<Option<Shutdown>, End<L::Error>> {
        let why = match self.store.read_text(Tx::NONE, SHUTDOWN) {
            Ok("poweroff" | "halt") => Shutdown::Poweroff,
            Ok("reboot") => Shutdown::Reboot,
            Ok(_) | Err(Error::Refused(_) | Error::BadValue) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // The toolstack waits for this answer.
        match self.store.write(Tx::NONE, SHUTDOWN, b"") {
            Ok(()) | Err(Error::Refused(_)) => Ok(Some(why)),
            Err(error) => Err(error.into()),
        }
    }
}
