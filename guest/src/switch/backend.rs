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

use super::control::{self, Kind};
use tdf_xen::abi::{DomId, GrantRef, Port};
use tdf_xen::xenbus::{self, State, Step, keys};
use tdf_xen::xenstore::{Client, Error, Link, Tx};

/// Where the toolstack makes interfaces.
pub const VIFS: &str = "backend/vif";
/// The token of the watch there.
pub const TOKEN: &str = "vif";
/// What the tokens of the watches on frontends begin with.
pub const FRONT_TOKEN: &str = "front/";
/// How long the toolstack gets to see that an interface is ready before it is connected, ns. It waits for
/// that very state, and gives up if the next one comes before it has looked; nothing says that it has.
pub const SHOWN_NS: u64 = 50_000_000;
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
    /// When it may be connected.
    from: u64,
    /// Its frontend waits for that.
    asked: bool,
}

/// What has become of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An interface got it, and will perhaps connect.
    Assigned(usize, VifName, Kind),
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
    deadline: u64,
}

type Answer<T, L> = Result<T, Error<<L as Link>::Error>>;

impl Backend {
    /// No interfaces, for `ports` ports.
    pub fn new(ports: usize) -> Self {
        Self { vifs: Vec::new(), ports, deadline: u64::MAX }
    }

    /// When there is something to be done that no event tells of; [`u64::MAX`]: never.
    #[inline]
    pub fn deadline(&self) -> u64 {
        self.deadline
    }

    /// An interface with which there is something to be done by now.
    pub fn due(&self, now: u64) -> Option<VifName> {
        self.vifs.iter().find(|vif| vif.asked && vif.from <= now).map(|vif| vif.name)
    }

    /// Begins to watch for interfaces.
    ///
    /// # Errors
    /// What xenstore says.
    pub fn start<L: Link>(&self, store: &mut Client<L>) -> Answer<(), L> {
        store.watch(VIFS, TOKEN)
    }

    /// Whose port it is.
    pub fn owner(&self, port: usize) -> Option<VifName> {
        self.vifs.iter().find(|vif| vif.port == port).map(|vif| vif.name)
    }

    /// Looks at every interface, at `now`. New ones get none of the ports `others`, a bit each.
    ///
    /// # Errors
    /// What xenstore says, if that is not about one interface only.
    pub fn look_at_all<L: Link>(
        &mut self,
        store: &mut Client<L>,
        attach: &mut impl Attach,
        changes: &mut Vec<Change>,
        others: u64,
        now: impl Fn() -> u64,
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
            self.look_at(store, attach, name, changes, others, &now)?;
        }
        Ok(())
    }

    /// Looks at one interface, and does whatever is to be done about it at `now`.
    ///
    /// # Errors
    /// What xenstore says, if that is not about this interface only.
    pub fn look_at<L: Link>(
        &mut self,
        store: &mut Client<L>,
        attach: &mut impl Attach,
        name: VifName,
        changes: &mut Vec<Change>,
        others: u64,
        now: impl Fn() -> u64,
    ) -> Answer<(), L> {
        let looked = self.look(store, attach, name, changes, others, now);
        let asked = self.vifs.iter().filter(|vif| vif.asked);
        self.deadline = asked.map(|vif| vif.from).min().unwrap_or(u64::MAX);
        looked
    }

    fn look<L: Link>(
        &mut self,
        store: &mut Client<L>,
        attach: &mut impl Attach,
        name: VifName,
        changes: &mut Vec<Change>,
        others: u64,
        now: impl Fn() -> u64,
    ) -> Answer<(), L> {
        let known = self.vifs.iter().position(|vif| vif.name == name);
        let at = match known {
            Some(at) => at,
            None => match self.discover(store, name, changes, others)? {
                Some(vif) => {
                    changes.push(Change::Assigned(vif.port, name, Kind::Netback));
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
            let online = is_set(store, &vif.path, keys::ONLINE)?;
            let (path, port, own) = (vif.path.clone(), vif.port, vif.state);
            let step = if own == State::InitWait && !online && shown == State::Closing {
                // The toolstack changed its mind before the frontend came to it.
                Step::Disconnect
            } else {
                xenbus::backend(own, front, online, attach.is_broken(port))
            };
            self.vifs[at].asked = step == Step::Connect && now() < self.vifs[at].from;
            match step {
                Step::Stay => return Ok(()),
                Step::Connect if self.vifs[at].asked => return Ok(()),
                Step::Start => {
                    announce(store, &path)?;
                    self.show(store, at, State::InitWait)?;
                    self.vifs[at].from = now().saturating_add(SHOWN_NS);
                }
                Step::Connect => {
                    let front = read_front(store, name, &self.vifs[at].front)?;
                    match front.and_then(|front| attach.connect(port, &front)) {
                        Ok(()) => {
                            changes.push(Change::Up(port));
                            self.show(store, at, State::Connected)?;
                        }
                        Err(why) => {
                            changes.push(Change::Refused(name, why));
                            self.show(store, at, State::Closing)?;
                        }
                    }
                }
                Step::Disconnect => {
                    if own == State::Connected {
                        attach.disconnect(port);
                        changes.push(Change::Down(port));
                    }
                    self.show(store, at, State::Closing)?;
                }
                Step::Close => self.show(store, at, State::Closed)?,
                Step::Remove => {
                    let vif = self.vifs.swap_remove(at);
                    changes.push(Change::Freed(port));
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

    /// A port for `name` that is not one of `others`, a bit each: the one that dom0 has reserved for it,
    /// or else the lowest that is free.
    ///
    /// # Errors
    /// What xenstore says.
    pub fn assign<L: Link>(
        &self,
        store: &mut Client<L>,
        name: VifName,
        others: u64,
    ) -> Answer<Option<usize>, L> {
        let (own, reserved) = control::reserved(store, self.ports, name)?;
        let free = |port: &usize| self.owner(*port).is_none() && others >> port & 1 == 0;
        let unreserved = |port: &usize| free(port) && reserved >> port & 1 == 0;
        Ok(own.filter(free).or_else(|| (0..self.ports).find(unreserved)))
    }

    /// An interface that the toolstack has made.
    fn discover<L: Link>(
        &mut self,
        store: &mut Client<L>,
        name: VifName,
        changes: &mut Vec<Change>,
        others: u64,
    ) -> Answer<Option<Vif>, L> {
        let path = format!("{VIFS}/{name}");
        let front = match store.read_text(Tx::NONE, (path.as_str(), keys::FRONTEND)) {
            Ok(front) => String::from(front),
            // It is not there yet, or not any more.
            Err(Error::Refused(_) | Error::BadValue) => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(port) = self.assign(store, name, others)? else {
            let why = format!("all {} ports are taken", self.ports);
            changes.push(Change::Refused(name, why));
            return Ok(None);
        };
        store.watch((front.as_str(), keys::STATE), &token(name))?;
        let state = State::Initialising;
        Ok(Some(Vif { name, path, front, port, state, from: 0, asked: false }))
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
pub(super) fn forgive<E>(answer: Result<(), Error<E>>) -> Result<(), Error<E>> {
    match answer {
        Err(Error::Refused(_)) => Ok(()),
        other => other,
    }
}

pub(super) fn children<L: Link>(store: &mut Client<L>, path: &str) -> Answer<Vec<String>, L> {
    match store.directory(Tx::NONE, path) {
        Ok(names) => Ok(names.map(String::from).collect()),
        Err(Error::Refused(_)) => Ok(vec![]),
        Err(error) => Err(error),
    }
}

pub(super) fn read_state<L: Link>(store: &mut Client<L>, path: &str) -> Answer<State, L> {
    match store.read(Tx::NONE, (path, keys::STATE)) {
        Ok(value) => Ok(State::from_value(value)),
        Err(Error::Refused(_)) => Ok(State::Unknown),
        Err(error) => Err(error),
    }
}

/// Whether a node says so: it is a number that is not 0.
pub(super) fn is_set<L: Link>(store: &mut Client<L>, path: &str, key: &str) -> Answer<bool, L> {
    let value: Option<u32> = match store.read_parsed(Tx::NONE, (path, key)) {
        Err(Error::Refused(_) | Error::BadValue) => None,
        other => other?,
    };
    Ok(value.is_some_and(|value| value != 0))
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
    let copy = is_set(store, path, keys::REQUEST_RX_COPY)?;
    let sg = is_set(store, path, keys::FEATURE_SG)?;
    let csum_v4 = !is_set(store, path, keys::FEATURE_NO_CSUM_OFFLOAD)?;
    let csum_v6 = is_set(store, path, keys::FEATURE_IPV6_CSUM_OFFLOAD)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::switch::fake::{Bench, bench};

    /// Notes what is attached.
    #[derive(Default)]
    struct Ports {
        fronts: Vec<(usize, Front)>,
        broken: bool,
        refuse: bool,
    }

    impl Attach for Ports {
        fn connect(&mut self, port: usize, front: &Front) -> Result<(), String> {
            if self.refuse {
                return Err("no".into());
            }
            self.fronts.push((port, *front));
            Ok(())
        }

        fn disconnect(&mut self, port: usize) {
            self.fronts.retain(|(of, _)| *of != port);
        }

        fn is_broken(&self, _: usize) -> bool {
            self.broken
        }
    }

    /// The toolstack and a host's frontend.
    struct World {
        bench: Bench,
        backend: Backend,
        ports: Ports,
        now: u64,
    }

    impl World {
        fn new(ports: usize) -> Self {
            let (bench, backend) = (bench(), Backend::new(ports));
            Self { bench, backend, ports: Ports::default(), now: 0 }
        }

        fn front(&self, dom: u16, key: &str, value: &str) {
            let path = format!("/local/domain/{dom}/device/vif/0/{key}");
            self.bench.store.borrow_mut().set(&path, value);
        }

        fn create(&self, dom: u16) {
            let path = format!("backend/vif/{dom}/0");
            self.bench
                .set(&format!("{path}/frontend"), &format!("/local/domain/{dom}/device/vif/0"));
            self.bench.set(&format!("{path}/frontend-id"), &dom.to_string());
            self.bench.set(&format!("{path}/online"), "1");
            self.bench.set(&format!("{path}/state"), "1");
            self.front(dom, "state", "1");
        }

        fn connect(&self, dom: u16) {
            for (key, value) in [
                ("tx-ring-ref", "520"),
                ("rx-ring-ref", "521"),
                ("event-channel", "8"),
                ("request-rx-copy", "1"),
                ("feature-sg", "1"),
                ("feature-ipv6-csum-offload", "1"),
                ("state", "4"),
            ] {
                self.front(dom, key, value);
            }
        }

        fn look_once(&mut self) -> Vec<Change> {
            let mut changes = Vec::new();
            let (client, ports) = (&mut self.bench.client, &mut self.ports);
            let now = self.now;
            self.backend.look_at_all(client, ports, &mut changes, 0, || now).unwrap();
            changes
        }

        /// Now, and when there is nothing more to wait for.
        fn look(&mut self) -> Vec<Change> {
            let mut changes = self.look_once();
            self.now += SHOWN_NS;
            changes.extend(self.look_once());
            changes
        }

        fn state(&self, dom: u16) -> Option<String> {
            self.bench.get(&format!("backend/vif/{dom}/0/state"))
        }
    }

    fn name(dom: u16) -> VifName {
        VifName { dom: DomId(dom), handle: 0 }
    }

    #[test]
    fn an_interface_comes_is_connected_and_goes_without_a_trace() {
        let mut world = World::new(4);
        world.backend.start(&mut world.bench.client).unwrap();
        world.create(7);
        assert_eq!(world.look(), [Change::Assigned(0, name(7), Kind::Netback)]);
        assert_eq!(world.state(7).as_deref(), Some("2"));
        for key in ["feature-rx-copy", "feature-sg"] {
            assert_eq!(world.bench.get(&format!("backend/vif/7/0/{key}")).as_deref(), Some("1"));
        }
        assert_eq!(world.look(), []);
        world.connect(7);
        assert_eq!(world.look(), [Change::Up(0)]);
        assert_eq!(world.state(7).as_deref(), Some("4"));
        let front = Front {
            name: name(7),
            tx_ring: GrantRef(520),
            rx_ring: GrantRef(521),
            event: Port(8),
            sg: true,
            csum_v4: true,
            csum_v6: true,
        };
        assert_eq!(world.ports.fronts, [(0, front)]);
        assert_eq!(world.look(), []);
        // The toolstack takes it away: the frontend closes first.
        world.bench.set("backend/vif/7/0/online", "0");
        world.bench.set("backend/vif/7/0/state", "5");
        assert_eq!(world.look(), []);
        world.front(7, "state", "5");
        assert_eq!(world.look(), [Change::Down(0)]);
        assert!(world.ports.fronts.is_empty());
        world.front(7, "state", "6");
        assert_eq!(world.look(), [Change::Freed(0)]);
        assert_eq!(world.state(7), None);
        assert_eq!(world.bench.store.borrow().list("/local/domain/5/backend/vif"), [""; 0]);
    }

    #[test]
    fn the_toolstack_gets_to_see_that_an_interface_is_ready() {
        let mut world = World::new(4);
        world.now = 7;
        assert_eq!(world.backend.deadline(), u64::MAX);
        world.create(7);
        world.look_once();
        assert_eq!(world.backend.deadline(), u64::MAX, "the frontend wants nothing yet");
        world.connect(7);
        world.now = 9;
        assert_eq!(world.look_once(), []);
        assert_eq!(world.state(7).as_deref(), Some("2"));
        let from = 7 + SHOWN_NS;
        assert_eq!((world.backend.deadline(), world.backend.due(from - 1)), (from, None));
        assert_eq!(world.backend.due(from), Some(name(7)));
        world.now = from;
        assert_eq!(world.look_once(), [Change::Up(0)]);
        assert_eq!((world.backend.deadline(), world.backend.due(from)), (u64::MAX, None));
        // One that goes meanwhile is not waited for.
        world.create(8);
        world.connect(8);
        world.look_once();
        assert!(world.backend.deadline() < u64::MAX);
        world.bench.store.borrow_mut().remove("/local/domain/8");
        world.look_once();
        assert_eq!(world.backend.deadline(), u64::MAX);
    }

    #[test]
    fn a_host_that_is_destroyed_leaves_its_port() {
        let mut world = World::new(4);
        world.create(7);
        world.connect(7);
        assert_eq!(world.look().len(), 2);
        world.bench.store.borrow_mut().remove("/local/domain/7");
        assert_eq!(world.look(), [Change::Down(0), Change::Freed(0)]);
        assert!(world.ports.fronts.is_empty() && world.state(7).is_none());
        // A hundred times, and nothing is left.
        for dom in 8..108 {
            world.create(dom);
            world.connect(dom);
            assert_eq!(
                world.look(),
                [Change::Assigned(0, name(dom), Kind::Netback), Change::Up(0)]
            );
            world.bench.store.borrow_mut().remove(&format!("/local/domain/{dom}"));
            assert_eq!(world.look(), [Change::Down(0), Change::Freed(0)]);
        }
    }

    #[test]
    fn a_host_that_connects_anew_keeps_its_port() {
        let mut world = World::new(4);
        world.create(7);
        world.connect(7);
        world.look();
        world.front(7, "state", "5");
        assert_eq!(world.look(), [Change::Down(0)]);
        world.front(7, "state", "6");
        assert_eq!((world.look(), world.state(7).as_deref()), (vec![], Some("6")));
        world.front(7, "state", "1");
        assert_eq!((world.look(), world.state(7).as_deref()), (vec![], Some("2")));
        world.front(7, "state", "4");
        assert_eq!(world.look(), [Change::Up(0)]);
    }

    #[test]
    fn ports_are_the_lowest_free_or_those_reserved() {
        let mut world = World::new(3);
        world.bench.set("data/switch/ports/2/peer", "12/0");
        (11..15).for_each(|dom| world.create(dom));
        let changes = world.look();
        let port = |dom| world.backend.owner(dom).map(|name| name.dom.0);
        assert_eq!([port(0), port(1), port(2)], [Some(11), Some(13), Some(12)]);
        let refused = Change::Refused(name(14), "all 3 ports are taken".into());
        assert_eq!(changes[3], refused);
    }

    #[test]
    fn what_a_frontend_lacks_is_said_and_not_attached() {
        for (missing, sentence) in [
            ("tx-ring-ref", "no tx-ring-ref and rx-ring-ref"),
            ("event-channel", "no event-channel"),
            ("request-rx-copy", "request-rx-copy is not 1, and frames can only be copied"),
        ] {
            let mut world = World::new(1);
            world.create(7);
            world.connect(7);
            world.front(7, missing, "nonsense");
            let changes = world.look();
            let why = format!("/local/domain/7/device/vif/0: {sentence}");
            assert_eq!(changes[1], Change::Refused(name(7), why));
            assert_eq!(world.state(7).as_deref(), Some("5"));
            assert!(world.ports.fronts.is_empty());
        }
        let mut world = World::new(1);
        world.ports.refuse = true;
        world.create(7);
        world.connect(7);
        assert_eq!(world.look()[1], Change::Refused(name(7), "no".into()));
    }

    #[test]
    fn a_host_that_breaks_the_rules_loses_its_port_until_it_starts_anew() {
        let mut world = World::new(2);
        world.create(7);
        world.connect(7);
        world.look();
        world.ports.broken = true;
        assert_eq!(world.look(), [Change::Down(0)]);
        assert_eq!(world.state(7).as_deref(), Some("5"));
    }
}
