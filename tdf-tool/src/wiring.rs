// SPDX-License-Identifier: MIT OR Apache-2.0
//! The links and the network's checks of a scenario, as they are written in its file.
//!
//! Keys of a link or of a setting that are none of ours are those of a port's description; the
//! model itself says whether they are right.

use std::net::Ipv4Addr;

use serde::Deserialize;
use switch_model::PortSpec;
use tdf_abi::Tdf;

use crate::checks::{Check, Equality, Kind, Processing};
use crate::network::{End, Link, Network, PortSettings, Settings, Via, spec};
use crate::scenario::{self, Domain, Test};

#[derive(Deserialize)]
pub(crate) struct RawLink {
    domain: String,
    switch: Option<String>,
    bridge: Option<String>,
    via: Option<Via>,
    address: Option<String>,
    /// So many interfaces more, on the same switch and set alike, that nobody uses.
    #[serde(default)]
    spare: u32,
    #[serde(default = "mtu")]
    mtu: u32,
    #[serde(default)]
    ingress: Settings,
    #[serde(flatten)]
    egress: Settings,
}

#[derive(Deserialize)]
pub(crate) struct RawSet {
    link: String,
    #[serde(default)]
    ingress: Settings,
    #[serde(flatten)]
    egress: Settings,
}

/// The part of a check that is about the network.
pub(crate) struct NetCheck<'a> {
    pub(crate) name: &'a Option<String>,
    pub(crate) tdf: &'a Option<String>,
    pub(crate) set: &'a [RawSet],
    pub(crate) kinds: Vec<Kind>,
}

const fn mtu() -> u32 {
    1500
}

/// Lengths of IP packets that an interface can be set to.
const MTUS: std::ops::RangeInclusive<u32> = 576..=9000;

/// Most interfaces of a host that nobody uses.
const SPARE_MAX: u32 = 15;

fn address(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let prefix = prefix.parse().ok().filter(|prefix| (8..=30).contains(prefix))?;
    Some((address.parse().ok()?, prefix))
}

/// Reads the settings of a port.
fn port(
    egress: &Settings,
    ingress: &Settings,
    at: &str,
    mistakes: &mut Vec<String>,
) -> PortSettings {
    let mut read = |settings: &Settings, name: &str| {
        spec(settings).unwrap_or_else(|e| {
            mistakes.push(format!("{at}: {name}{e}"));
            PortSpec::IDEAL
        })
    };
    PortSettings { egress: read(egress, ""), ingress: read(ingress, "ingress: ") }
}

/// The links of `raw` between `domains`.
pub(crate) fn network_of(
    raw: &[RawLink],
    domains: &[Domain],
    mistakes: &mut Vec<String>,
) -> Network {
    let mut network = Network::default();
    let named = |name: &str| domains.iter().find(|domain| domain.name == name);
    let is_switch = |d: &Domain| d.test == Test::Net && d.kind == scenario::Kind::Guest;
    for raw in raw {
        let link = raw;
        let at = format!("link of {:?}", link.domain);
        let domain = named(&link.domain).filter(|domain| domain.test == Test::Net);
        if domain.is_none() {
            mistakes.push(format!("{at}: no such domain with test = \"net\" or role = \"switch\""));
        }
        if !MTUS.contains(&link.mtu) {
            mistakes.push(format!("{at}: mtu = {}: between 576 and 9000", link.mtu));
        }
        let end = match (&link.switch, &link.bridge) {
            (Some(switch), None) => {
                match named(switch) {
                    Some(other) if is_switch(other) && *switch != link.domain => {}
                    _ => mistakes.push(format!("{at}: switch = {switch:?} is no other switch")),
                }
                End::Switch(switch.clone(), link.via.unwrap_or_default())
            }
            (None, Some(bridge)) => {
                if link.via.is_some() || !link.egress.is_empty() || !link.ingress.is_empty() {
                    mistakes.push(format!("{at}: a bridge of dom0 has no settings and no via"));
                }
                let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
                if bridge.is_empty() || bridge.len() > 15 || !bridge.bytes().all(good) {
                    mistakes.push(format!("{at}: bridge = {bridge:?} is no name of an interface"));
                }
                End::Bridge(bridge.clone())
            }
            _ => {
                mistakes.push(format!("{at}: give either switch or bridge"));
                continue;
            }
        };
        let host = domain.is_some_and(|domain| !is_switch(domain));
        let address = match (&link.address, host) {
            (Some(text), true) => address(text).or_else(|| {
                mistakes.push(format!("{at}: address = {text:?}: expected one like 10.0.0.1/24"));
                None
            }),
            (None, false) => None,
            (None, true) => {
                mistakes.push(format!("{at}: a host needs address = \"10.0.0.1/24\" or the like"));
                None
            }
            (Some(_), false) => {
                mistakes.push(format!("{at}: a switch has no address"));
                None
            }
        };
        if network.links.iter().any(|l| l.domain == link.domain && host) {
            mistakes.push(format!("{at}: a host has one link"));
        }
        if address.is_some() && network.links.iter().any(|l| l.address == address) {
            mistakes.push(format!("{at}: its address is another's, too"));
        }
        if link.spare > SPARE_MAX || link.spare > 0 && !host {
            mistakes.push(format!("{at}: spare = {}: a host has up to {SPARE_MAX}", link.spare));
        }
        let port = port(&link.egress, &link.ingress, &at, mistakes);
        let link = Link { domain: link.domain.clone(), end, address, mtu: link.mtu, port };
        let spare = Link { address: None, ..link.clone() };
        let count = raw.spare.min(SPARE_MAX) as usize;
        network.links.push(link);
        network.links.extend(std::iter::repeat_n(spare, count));
    }
    for domain in domains.iter().filter(|domain| domain.test == Test::Net) {
        let linked = |link: &Link| {
            let far = matches!(&link.end, End::Switch(name, _) if *name == domain.name);
            link.domain == domain.name || far
        };
        if !network.links.iter().any(linked) {
            mistakes.push(format!("domain {:?}: no [[link]] names it", domain.name));
        }
    }
    network
}

impl NetCheck<'_> {
    /// The check, if it is one of the network.
    pub(crate) fn check(
        &self,
        at: usize,
        network: &Network,
        mistakes: &mut Vec<String>,
    ) -> Option<Check> {
        let at = format!("check {at}");
        let kind = match &self.kinds[..] {
            [kind] => kind,
            [] => {
                if self.name.is_some() || self.tdf.is_some() || !self.set.is_empty() {
                    mistakes.push(format!("{at}: name, tdf and set are for checks of a network"));
                }
                return None;
            }
            _ => {
                mistakes.push(format!("{at}: it is of several kinds"));
                return None;
            }
        };
        let tdf = self.tdf.as_ref().and_then(|text| match text.parse::<Tdf>() {
            Ok(tdf) => Some(tdf),
            Err(e) => {
                mistakes.push(format!("{at}: tdf = {text:?}: {e}"));
                None
            }
        });
        let mut settings: Vec<PortSettings> = network.links.iter().map(|link| link.port).collect();
        for set in self.set {
            let links =
                network.links.iter().zip(&mut settings).filter(|(link, _)| {
                    link.domain == set.link && matches!(link.end, End::Switch(..))
                });
            let mut links = links.map(|(_, settings)| settings).peekable();
            if links.peek().is_none() {
                let which = &set.link;
                mistakes.push(format!("{at}: set: {which:?} is no domain with a link to a switch"));
                continue;
            }
            let wanted =
                port(&set.egress, &set.ingress, &format!("{at}: set of {:?}", set.link), mistakes);
            // Its spare interfaces are set like the one that it uses.
            links.for_each(|settings| *settings = wanted);
        }
        check_kind(kind, &at, network, mistakes);
        let name = self.name.clone().unwrap_or_else(|| kind.name().to_owned());
        Some(Check { name, tdf, settings, kind: kind.clone() })
    }
}

/// Whether the link leads to that switch.
fn is_far(link: &Link, switch: &str) -> bool {
    matches!(&link.end, End::Switch(name, _) if name == switch)
}

/// What is wrong with the check beyond its form.
fn check_kind(kind: &Kind, at: &str, network: &Network, mistakes: &mut Vec<String>) {
    for (from, to) in kind.pairs() {
        let host = |name| network.link_of(name).is_some_and(|link| link.address.is_some());
        if !host(from) || !host(to) || from == to {
            mistakes.push(format!("{at}: {from:?} and {to:?} are not two hosts"));
        } else if network.path(from, to, &[]).is_none() {
            mistakes.push(format!("{at}: there is no way from {from:?} to {to:?}"));
        }
    }
    let whole = |span: crate::units::Span| span.ns() % 1_000_000_000 == 0;
    let factors =
        |texts: &[String]| texts.len() >= 2 && texts.iter().all(|text| text.parse::<Tdf>().is_ok());
    let mut refuse = |why: &str| mistakes.push(format!("{at}: {why}"));
    match kind {
        Kind::Ping(c) if c.count == 0 || !(8..=8972).contains(&c.size) => {
            refuse("a ping has a count, and a size between 8 and 8972");
        }
        Kind::Tcp(c) if !whole(c.for_virtual) || !whole(c.after) => {
            refuse("iperf3 takes whole seconds only");
        }
        Kind::Equality(c) if !whole(c.for_virtual) => {
            refuse("iperf3 takes whole seconds only");
        }
        Kind::Processing(Processing { factors: f, .. })
        | Kind::Equality(Equality { factors: f, .. })
            if !factors(f) =>
        {
            refuse("factors are two or more, written 10, 2.5 or 5/2");
        }
        Kind::Overload(c) if c.rate.parse::<switch_model::Rate>().is_err() => {
            refuse("rate is one like \"10 Mbit/s\"");
        }
        Kind::Idle(c) if !network.links.iter().any(|link| is_far(link, &c.switch)) => {
            refuse(&format!("{:?} is no switch with a link", c.switch));
        }
        Kind::Cost(c)
            if c.sizes.iter().any(|size| !(64..=9018).contains(size))
                || c.loads.iter().any(|load| load.frames == 0 || load.per_second == Some(0)) =>
        {
            refuse("sizes lie between 64 and 9018, frames and per_second above 0");
        }
        _ => {}
    }
}
