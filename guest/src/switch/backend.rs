// SPDX-License-Identifier: MIT OR Apache-2.0
//! The driver domain: hosts' network interfaces come and go in xenstore.
//!
//! The toolstack makes `backend/vif/DOMAIN/HANDLE` in this domain's home for each interface that names
//! this domain as its backend. Each becomes a port as soon as its frontend is ready, and its directory
//! is removed when nobody wants it any more. Every change, whatever it was, makes the whole interface
//! be looked at again, so that it does not matter which events were merged or lost.

use alloc::string::String;
use alloc::vec::Vec;
use alloc::{format, vec};
use core::fmt;

use super::control;
use tdf_xen::abi::{DomId, GrantRef, Port};
use tdf_xen::xenbus::{self, State, Step, keys};
use tdf_xen::xenstore::{Client, Error, Link, Tx};

/// Where the toolstack makes interfaces.
pub const VIFS: &str = "backend/vif";
/// The token of the watch there.
pub const TOKEN: &str = "vif";
/// What the tokens of the watches on frontends begin with.
pub const FRONT_TOKEN: &str = "front/";
/// Steps that an interface may take at once before it has to wait for another event.
const STEPS_MAX: usize = 8;

/// An interface's name: whose it is, and which of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VifName {
    /// The frontend's domain.
    pub dom: DomId,
    /// The number of the device there.
    pub handle: u32,
}

impl fmt::Display for VifName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.dom, self.handle)
    }
}

impl VifName {
    /// Parses `3/0`, and whatever comes behind a further slash.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let dom = DomId(parts.next()?.parse().ok()?);
        let handle = parts.next()?.parse().ok()?;
        Some(Self { dom, handle })
    }
}

/// What a frontend has written for its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Front {
    /// Who it is.
    pub name: VifName,
    /// Its transmit ring.
    pub tx_ring: GrantRef,
    /// Its receive ring.
    pub rx_ring: GrantRef,
    /// Its event channel.
    pub event: Port,
    /// It takes frames in several slots.
    pub sg: bool,
    /// It takes frames whose IPv4 sums are left to it.
    pub csum_v4: bool,
    /// The same for IPv6.
    pub csum_v6: bool,
}

/// Where interfaces are attached to.
pub trait Attach {
    /// Attaches an interface to a port.
    ///
    /// # Errors
    /// A sentence that says why that cannot be; nothing is attached then.
    fn connect(&mut self, port: usize, front: &Front) -> Result<(), String>;

    /// Lets go of everything of the interface at `port`, if there is one.
    fn disconnect(&mut self, port: usize);

    /// Whether the interface at `port` has broken the rules since it connected.
    fn is_broken(&self, port: usize) -> bool;
}

/// One interface.
#[derive(Debug)]
struct Vif {
    name: VifName,
    /// Its directory.
    path: String,
    /// The frontend's.
    front: String,
    port: usize,
    state: State,
}

/// What has become of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An interface got it, and will perhaps connect.
    Assigned(usize, VifName),
    /// Its host is there.
    Up(usize),
    /// Its host is not there any more.
    Down(usize),
    /// It is free.
    Freed(usize),
    /// An interface could not be attached, and why.
    Refused(VifName, String),
}

/// All interfaces.
#[derive(Debug)]
pub struct Backend {
    vifs: Vec<Vif>,
    ports: usize,
    /// Changes that nobody has been told of.
    changes: Vec<Change>,
}

type Answer<T, L> = Result<T, Error<<L as Link>::Error>>;

impl Backend {
    /// No interfaces, for `ports` ports.
    pub fn new(ports: usize) -> Self {
        Self { vifs: Vec::new(), ports, changes: Vec::new() }
    }

    /// Begins to watch for interfaces.
    ///
    /// # Errors
    /// What xenstore says.
    pub fn start<L: Link>(&self, store: &mut Client<L>) -> Answer<(), L> {
        store.watch(VIFS, TOKEN)
    }

    /// What has changed since this was last asked.
    pub fn take_changes(&mut self) -> Vec<Change> {
        core::mem::take(&mut self.changes)
    }

    /// Whose port it is.
    pub fn owner(&self, port: usize) -> Option<VifName> {
        self.vifs.iter().find(|vif| vif.port == port).map(|vif| vif.name)
    }

    /// Looks at every interface.
    ///
    /// # Errors
    /// What xenstore says, if that is not about one interface only.
    pub fn look_at_all<L: Link>(
        &mut self,
        store: &mut Client<L>,
        attach: &mut impl Attach,
    ) -> Answer<(), L> {
        let mut names: Vec<VifName> = self.vifs.iter().map(|vif| vif.name).collect();
        for dom in children(store, VIFS)? {
            for handle in children(store, &format!("{VIFS}/{dom}"))? {
                if let Some(name) = VifName::parse(&format!("{dom}/{handle}"))
                    && !names.contains(&name)
                {
                    names.push(name);
                }
            }
        }
        for name in names {
            self.look_at(store, attach, name)?;
        }
        Ok(())
    }

    /// Looks at one interface, and does whatever is to be done about it.
    ///
    /// # Errors
    /// What xenstore says, if that is not about this interface only.
    pub fn look_at<L: Link>(
        &mut self,
        store: &mut Client<L>,
        attach: &mut impl Attach,
        name: VifName,
    ) -> Answer<(), L> {
        let known = self.vifs.iter().position(|vif| vif.name == name);
        let at = match known {
            Some(at) => at,
            None => match self.discover(store, name)? {
                Some(vif) => {
                    self.changes.push(Change::Assigned(vif.port, name));
                    self.vifs.push(vif);
                    self.vifs.len() - 1
                }
                None => return Ok(()),
            },
        };
        for _ in 0..STEPS_MAX {
            let vif = &self.vifs[at];
            let front = read_state(store, &vif.front)?;
            let shown = read_state(store, &vif.path)?;
            let online = store.read_parsed(Tx::NONE, (vif.path.as_str(), keys::ONLINE));
            let online: Option<u32> = match online {
                Err(Error::BadValue) => None,
                other => other?,
            };
            let online = online.is_some_and(|online| online != 0);
            let (path, port, own) = (vif.path.clone(), vif.port, vif.state);
            let step = if own == State::InitWait && !online && shown == State::Closing {
                // The toolstack changed its mind before the frontend came to it.
                Step::Disconnect
            } else {
                xenbus::backend(own, front, online, attach.is_broken(port))
            };
            match step {
                Step::Stay => return Ok(()),
                Step::Start => {
                    announce(store, &path)?;
                    self.show(store, at, State::InitWait)?;
                }
                Step::Connect => {
                    let front = read_front(store, name, &self.vifs[at].front)?;
                    match front.and_then(|front| attach.connect(port, &front)) {
                        Ok(()) => {
                            self.changes.push(Change::Up(port));
                            self.show(store, at, State::Connected)?;
                        }
                        Err(why) => {
                            self.changes.push(Change::Refused(name, why));
                            self.show(store, at, State::Closing)?;
                        }
                    }
                }
                Step::Disconnect => {
                    if own == State::Connected {
                        attach.disconnect(port);
                        self.changes.push(Change::Down(port));
                    }
                    self.show(store, at, State::Closing)?;
                }
                Step::Close => self.show(store, at, State::Closed)?,
                Step::Remove => {
                    let vif = self.vifs.swap_remove(at);
                    self.changes.push(Change::Freed(port));
                    let gone = store.unwatch((vif.front.as_str(), keys::STATE), &token(name));
                    forgive(gone)?;
                    forgive(store.rm(Tx::NONE, path.as_str()))?;
                    // The last of its domain takes that one's directory away.
                    let dom = format!("{VIFS}/{}", name.dom);
                    if children(store, &dom)?.is_empty() {
                        forgive(store.rm(Tx::NONE, dom.as_str()))?;
                    }
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// An interface that the toolstack has made.
    fn discover<L: Link>(
        &mut self,
        store: &mut Client<L>,
        name: VifName,
    ) -> Answer<Option<Vif>, L> {
        let path = format!("{VIFS}/{name}");
        let front = match store.read_text(Tx::NONE, (path.as_str(), keys::FRONTEND)) {
            Ok(front) => String::from(front),
            // It is not there yet, or not any more.
            Err(Error::Refused(_) | Error::BadValue) => return Ok(None),
            Err(error) => return Err(error),
        };
        let (own, taken) = control::reserved(store, self.ports, name)?;
        let free = |port: &usize| self.owner(*port).is_none();
        let others = |port: &usize| free(port) && taken >> port & 1 == 0;
        let Some(port) = own.filter(free).or_else(|| (0..self.ports).find(others)) else {
            let why = format!("all {} ports are taken", self.ports);
            self.changes.push(Change::Refused(name, why));
            return Ok(None);
        };
        store.watch((front.as_str(), keys::STATE), &token(name))?;
        Ok(Some(Vif { name, path, front, port, state: State::Initialising }))
    }

    fn show<L: Link>(&mut self, store: &mut Client<L>, at: usize, state: State) -> Answer<(), L> {
        let vif = &mut self.vifs[at];
        vif.state = state;
        forgive(store.write(Tx::NONE, (vif.path.as_str(), keys::STATE), state.value()))
    }
}

/// The token of the watch on a frontend.
fn token(name: VifName) -> String {
    format!("{FRONT_TOKEN}{name}")
}

/// What concerns one node only, which may have been removed under our hands, is no error.
fn forgive<E>(answer: Result<(), Error<E>>) -> Result<(), Error<E>> {
    match answer {
        Err(Error::Refused(_)) => Ok(()),
        other => other,
    }
}

fn children<L: Link>(store: &mut Client<L>, path: &str) -> Answer<Vec<String>, L> {
    match store.directory(Tx::NONE, path) {
        Ok(names) => Ok(names.map(String::from).collect()),
        Err(Error::Refused(_)) => Ok(vec![]),
        Err(error) => Err(error),
    }
}

fn read_state<L: Link>(store: &mut Client<L>, path: &str) -> Answer<State, L> {
    match store.read(Tx::NONE, (path, keys::STATE)) {
        Ok(value) => Ok(State::from_value(value)),
        Err(Error::Refused(_)) => Ok(State::Unknown),
        Err(error) => Err(error),
    }
}

/// What this backend can do.
fn announce<L: Link>(store: &mut Client<L>, path: &str) -> Answer<(), L> {
    for (key, value) in [
        (keys::FEATURE_RX_COPY, "1"),
        (keys::FEATURE_SG, "1"),
        // No script has to do anything.
        (keys::HOTPLUG_STATUS, "connected"),
    ] {
        forgive(store.write(Tx::NONE, (path, key), value.as_bytes()))?;
    }
    Ok(())
}

/// What the frontend wants, or a sentence about what is wrong with that.
fn read_front<L: Link>(
    store: &mut Client<L>,
    name: VifName,
    path: &str,
) -> Answer<Result<Front, String>, L> {
    let mut number = |key: &'static str| -> Answer<Option<u32>, L> {
        match store.read_parsed(Tx::NONE, (path, key)) {
            Err(Error::Refused(_) | Error::BadValue) => Ok(None),
            other => other,
        }
    };
    let tx_ring = number(keys::TX_RING_REF)?;
    let rx_ring = number(keys::RX_RING_REF)?;
    let event = number(keys::EVENT_CHANNEL)?;
    let mut is_set = |key| -> Answer<bool, L> { Ok(number(key)?.is_some_and(|value| value != 0)) };
    let copy = is_set(keys::REQUEST_RX_COPY)?;
    let sg = is_set(keys::FEATURE_SG)?;
    let csum_v4 = !is_set(keys::FEATURE_NO_CSUM_OFFLOAD)?;
    let csum_v6 = is_set(keys::FEATURE_IPV6_CSUM_OFFLOAD)?;
    let missing = |what: &str| Ok(Err(format!("{path}: {what}")));
    let Some((tx_ring, rx_ring)) = tx_ring.zip(rx_ring) else {
        return missing("no tx-ring-ref and rx-ring-ref");
    };
    let Some(event) = event else { return missing("no event-channel") };
    if !copy {
        return missing("request-rx-copy is not 1, and frames can only be copied");
    }
    Ok(Ok(Front {
        name,
        tx_ring: GrantRef(tx_ring),
        rx_ring: GrantRef(rx_ring),
        event: Port(event),
        sg,
        csum_v4,
        csum_v6,
    }))
}
