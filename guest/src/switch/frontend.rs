// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ordinary domain: interfaces of this domain, whose backends are bridges elsewhere.
//!
//! The toolstack makes `device/vif/HANDLE` in this domain's home for each interface of its own. Each
//! becomes a port when its backend is ready, and stays one while backends come and go.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use tdf_xen::abi::{DomId, GrantRef, Port};
use tdf_xen::xenbus::{self, State, Step, keys};
use tdf_xen::xenstore::{Client, Error, Link, Tx};

use super::backend::{Backend, Change, VifName, children, forgive, is_set, read_state};
use super::control::Kind;

/// Where the toolstack makes interfaces.
pub const VIFS: &str = "device/vif";
/// The token of the watch there.
pub const TOKEN: &str = "device";
/// What the tokens of the watches on backends begin with.
pub const BACK_TOKEN: &str = "back/";
/// Steps that an interface may take at once before it has to wait for another event.
const STEPS_MAX: usize = 8;
/// How often what is written to a backend is tried while others change xenstore.
const TRIES: u32 = 10;

type Answer<T, L> = Result<T, Error<<L as Link>::Error>>;

/// What a frontend tells its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The transmit and the receive ring.
    pub rings: [GrantRef; 2],
    /// The event channel that the backend may bind to.
    pub event: Port,
}

/// Where frontends are made.
pub trait Lend {
    /// Makes a frontend of `back` for `port`; `sg`: it takes frames in several slots.
    ///
    /// # Errors
    /// A sentence that says why that cannot be; nothing is lent then.
    fn lend(&mut self, port: usize, back: DomId, sg: bool) -> Result<Offer, String>;

    /// Ends the frontend of `port`, if there is one. What the backend still uses is taken back later.
    fn take_back(&mut self, port: usize);

    /// Whether everything that was lent by `port` has been taken back; tries to.
    fn has_all_back(&mut self, port: usize) -> bool;

    /// Whether the backend has broken the rules since it was met.
    fn is_faulty(&self, port: usize) -> bool;
}

/// One interface.
#[derive(Debug)]
struct Vif {
    handle: u32,
    path: String,
    /// The backend's directory.
    back: String,
    dom: DomId,
    port: usize,
    state: State,
}

/// All interfaces.
#[derive(Debug, Default)]
pub struct Frontend {
    vifs: Vec<Vif>,
}

impl Frontend {
    /// Begins to watch for interfaces.
    ///
    /// # Errors
    /// What xenstore says.
    pub fn start<L: Link>(&self, store: &mut Client<L>) -> Answer<(), L> {
        store.watch(VIFS, TOKEN)
    }

    /// Whose port it is: the bridge's domain, and the handle here.
    pub fn owner(&self, port: usize) -> Option<VifName> {
        let vif = self.vifs.iter().find(|vif| vif.port == port)?;
        Some(VifName { dom: vif.dom, handle: vif.handle })
    }

    /// Looks at every interface. `backend` finds a port for a new one.
    ///
    /// # Errors
    /// What xenstore says, if that is not about one interface only.
    pub fn look_at_all<L: Link>(
        &mut self,
        store: &mut Client<L>,
        lend: &mut impl Lend,
        changes: &mut Vec<Change>,
        backend: &Backend,
    ) -> Answer<(), L> {
        let mut handles: Vec<u32> = self.vifs.iter().map(|vif| vif.handle).collect();
        for name in children(store, VIFS)? {
            if let Ok(handle) = name.parse()
                && !handles.contains(&handle)
            {
                handles.push(handle);
            }
        }
        for handle in handles {
            self.look_at(store, lend, handle, changes, backend)?;
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
        lend: &mut impl Lend,
        handle: u32,
        changes: &mut Vec<Change>,
        backend: &Backend,
    ) -> Answer<(), L> {
        let known = self.vifs.iter().position(|vif| vif.handle == handle);
        let at = match known {
            Some(at) => at,
            None => match self.discover(store, handle, backend)? {
                Some(vif) => {
                    let name = VifName { dom: vif.dom, handle };
                    changes.push(Change::Assigned(vif.port, name, Kind::Netfront));
                    self.vifs.push(vif);
                    self.vifs.len() - 1
                }
                None => return Ok(()),
            },
        };
        for _ in 0..STEPS_MAX {
            let vif = &self.vifs[at];
            let (path, port, own) = (vif.path.clone(), vif.port, vif.state);
            // The toolstack removes the directory of an interface that it takes away.
            let here = store.read_text(Tx::NONE, (path.as_str(), keys::BACKEND)).map(drop);
            let here = match here {
                Ok(()) => true,
                Err(Error::Refused(_) | Error::BadValue) => false,
                Err(error) => return Err(error),
            };
            let back = if here { read_state(store, &vif.back)? } else { State::Unknown };
            let ready = here && lend.has_all_back(port);
            let step = xenbus::frontend(own, back, ready, lend.is_faulty(port));
            match step {
                Step::Stay | Step::Remove if here => return Ok(()),
                Step::Stay | Step::Remove => {
                    if lend.has_all_back(port) {
                        let vif = self.vifs.swap_remove(at);
                        changes.push(Change::Freed(port));
                        let token = format!("{BACK_TOKEN}{handle}");
                        forgive(store.unwatch((vif.back.as_str(), keys::STATE), &token))?;
                    }
                    return Ok(());
                }
                Step::Start => self.show(store, at, State::Initialising)?,
                Step::Connect => match self.connect(store, lend, at)? {
                    Ok(()) => {
                        self.vifs[at].state = State::Connected;
                        changes.push(Change::Up(port));
                    }
                    Err(why) => {
                        let name = VifName { dom: self.vifs[at].dom, handle };
                        changes.push(Change::Refused(name, why));
                        self.show(store, at, State::Closing)?;
                    }
                },
                Step::Disconnect => {
                    if own == State::Connected {
                        lend.take_back(port);
                        changes.push(Change::Down(port));
                    }
                    self.show(store, at, State::Closing)?;
                }
                Step::Close => self.show(store, at, State::Closed)?,
            }
        }
        Ok(())
    }

    fn discover<L: Link>(
        &mut self,
        store: &mut Client<L>,
        handle: u32,
        backend: &Backend,
    ) -> Answer<Option<Vif>, L> {
        let path = format!("{VIFS}/{handle}");
        let back = match store.read_text(Tx::NONE, (path.as_str(), keys::BACKEND)) {
            Ok(back) => String::from(back),
            Err(Error::Refused(_) | Error::BadValue) => return Ok(None),
            Err(error) => return Err(error),
        };
        let dom = match store.read_parsed(Tx::NONE, (path.as_str(), keys::BACKEND_ID)) {
            Ok(Some(dom)) => DomId(dom),
            Ok(None) | Err(Error::Refused(_) | Error::BadValue) => return Ok(None),
            Err(error) => return Err(error),
        };
        let own = self.vifs.iter().fold(0, |ports, vif| ports | 1 << vif.port);
        let Some(port) = backend.assign(store, VifName { dom, handle }, own)? else {
            return Ok(None);
        };
        let token = format!("{BACK_TOKEN}{handle}");
        store.watch((back.as_str(), keys::STATE), &token)?;
        Ok(Some(Vif { handle, path, back, dom, port, state: State::Initialising }))
    }

    fn connect<L: Link>(
        &mut self,
        store: &mut Client<L>,
        lend: &mut impl Lend,
        at: usize,
    ) -> Answer<Result<(), String>, L> {
        let Vif { path, back, dom, port, .. } = &self.vifs[at];
        if !is_set(store, back, keys::FEATURE_RX_COPY)? {
            return Ok(Err(format!("{back}: feature-rx-copy is not 1")));
        }
        let sg = is_set(store, back, keys::FEATURE_SG)?;
        let offer = match lend.lend(*port, *dom, sg) {
            Ok(offer) => offer,
            Err(why) => return Ok(Err(why)),
        };
        let [tx, rx] = offer.rings;
        let written = store.transaction(TRIES, |store, tx_id| {
            for (key, value) in [
                (keys::TX_RING_REF, tx.0),
                (keys::RX_RING_REF, rx.0),
                (keys::EVENT_CHANNEL, offer.event.0),
                (keys::REQUEST_RX_COPY, 1),
                (keys::FEATURE_RX_NOTIFY, 1),
                (keys::FEATURE_SG, 1),
                (keys::FEATURE_IPV6_CSUM_OFFLOAD, 1),
                (keys::STATE, State::Connected as u32),
            ] {
                store.write_number(tx_id, (path.as_str(), key), value.into())?;
            }
            Ok(())
        });
        match written {
            Ok(()) => Ok(Ok(())),
            Err(Error::Refused(refusal)) => {
                lend.take_back(*port);
                Ok(Err(format!("{path}: {refusal}")))
            }
            Err(error) => Err(error),
        }
    }

    fn show<L: Link>(&mut self, store: &mut Client<L>, at: usize, state: State) -> Answer<(), L> {
        let vif = &mut self.vifs[at];
        vif.state = state;
        match store.read(Tx::NONE, (vif.path.as_str(), keys::BACKEND)).map(drop) {
            // Not again what the toolstack has removed.
            Err(Error::Refused(_)) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => {
                forgive(store.write(Tx::NONE, (vif.path.as_str(), keys::STATE), state.value()))
            }
        }
    }
}
