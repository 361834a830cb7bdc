// SPDX-License-Identifier: MIT OR Apache-2.0
//! The network of a scenario: who is linked with whom and how, and what theory says of a frame that
//! passes.
//!
//! A host hangs on a port of our switch or on a bridge of dom0. What a port does to frames is a
//! [`PortSpec`] for each direction: `egress` towards the linked domain, `ingress` from it. The sums
//! over a path are made here, from the description and by arithmetic of their own, so that a switch
//! is not judged by the model that it runs.

use std::collections::VecDeque;
use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use switch_model::{Framing, Loss, PortSpec};

/// Bytes of an Ethernet header, which a frame has beyond an interface's MTU.
pub const ETHERNET_HEADER: u32 = 14;

/// The settings of one direction of a port, as text.
pub type Settings = Map<String, Value>;

/// What a port does in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct PortSettings {
    /// From the switch to the domain.
    pub egress: PortSpec,
    /// From the domain to the switch.
    pub ingress: PortSpec,
}

/// Reads a direction's settings. `framing = "ethernet"` is short for that of Ethernet.
///
/// # Errors
/// A sentence that names the wrong key or value.
pub fn spec(settings: &Settings) -> Result<PortSpec, String> {
    let mut settings = settings.clone();
    if let Some(framing) = settings.get_mut("framing")
        && framing.as_str() == Some("ethernet")
        && let Ok(ethernet) = serde_json::to_value(Framing::ETHERNET)
    {
        *framing = ethernet;
    }
    serde_json::from_value(Value::Object(settings)).map_err(|e| e.to_string())
}

/// What connects a domain with the switch.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// The switch is the driver domain of the interface.
    #[default]
    Netback,
    /// Each has an interface of its own on a bridge of dom0, which the two share with nobody.
    Netfront,
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Netback => "netback",
            Self::Netfront => "netfront",
        })
    }
}

/// Where a domain's interface leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// To a port of the switch called so.
    Switch(String, Via),
    /// To a bridge of dom0.
    Bridge(String),
}

/// One interface of a domain.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// The domain.
    pub domain: String,
    /// Where it leads.
    pub end: End,
    /// The domain's address and the length of its network's prefix, if it is a host.
    pub address: Option<(Ipv4Addr, u8)>,
    /// Longest IP packet, bytes.
    pub mtu: u32,
    /// How the port is set.
    pub port: PortSettings,
}

impl Link {
    /// The frame of a packet of `packet` bytes.
    pub const fn frame(packet: u32) -> u32 {
        packet + ETHERNET_HEADER
    }
}

/// All links of a scenario.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Network {
    /// They, in the scenario's order.
    pub links: Vec<Link>,
}

/// A port that a frame passes, in one direction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hop {
    /// The number of its link.
    pub link: usize,
    /// What it does to the frame.
    pub spec: PortSpec,
}

impl Hop {
    /// Bytes that a frame of `frame` bytes takes of the serialiser's time, the gap not counted.
    pub fn wire_bytes(&self, frame: u32) -> u64 {
        let framing = &self.spec.framing;
        let padded =
            (u64::from(frame) + framing.overhead.as_bytes()).max(framing.min_frame.as_bytes());
        let (payload, cell) = (framing.cell_payload.as_bytes(), framing.cell_size.as_bytes());
        let carried = if payload == 0 { padded } else { padded.div_ceil(payload) * cell };
        carried + framing.preamble.as_bytes()
    }

    /// The same with the gap: what the next frame has to wait for.
    pub fn slot_bytes(&self, frame: u32) -> u64 {
        self.wire_bytes(frame) + self.spec.framing.gap.as_bytes()
    }

    /// Time of so many bytes on the serialiser, ns, rounded down.
    pub fn serialisation_ns(&self, bytes: u64) -> u64 {
        self.spec.rate.map_or(0, |rate| {
            let ns = u128::from(bytes) * 8_000_000_000 / u128::from(rate.as_bits().max(1));
            u64::try_from(ns).unwrap_or(u64::MAX)
        })
    }

    /// Time of a frame that finds the port empty, ns.
    pub fn transit_ns(&self, frame: u32) -> u64 {
        self.spec.latency.as_ns()
            + self.serialisation_ns(self.wire_bytes(frame))
            + self.spec.delay.as_ns()
    }

    /// The probability that the line loses a frame, if frames are lost independently of each other;
    /// `None` if that is not how.
    pub fn loss(&self) -> Option<f64> {
        match self.spec.loss {
            Loss::None => Some(0.0),
            Loss::Random { probability, correlation } if correlation.raw() == 0 => {
                Some(probability.raw() as f64 / (1u64 << 32) as f64)
            }
            _ => None,
        }
    }
}

impl Network {
    /// The ports that a frame from one domain to another passes, in order; `None`: there is no way.
    ///
    /// `settings` are those in force, by link.
    pub fn path(&self, from: &str, to: &str, settings: &[PortSettings]) -> Option<Vec<Hop>> {
        // Nodes are domains and bridges; there are few, so the shortest way is found by looking.
        let node = |end: &End| match end {
            End::Switch(name, _) => name.clone(),
            End::Bridge(name) => format!("bridge {name}"),
        };
        let mut seen = vec![from.to_owned()];
        let mut todo = VecDeque::from([(from.to_owned(), Vec::new())]);
        while let Some((at, hops)) = todo.pop_front() {
            if at == to {
                return Some(hops.into_iter().map(|hop| self.hop(hop, settings)).collect());
            }
            for (i, link) in self.links.iter().enumerate() {
                let far = node(&link.end);
                let (next, up) = match (link.domain == at, far == at) {
                    (true, _) => (far, true),
                    (_, true) => (link.domain.clone(), false),
                    _ => continue,
                };
                if !seen.contains(&next) {
                    seen.push(next.clone());
                    let mut hops: Vec<(usize, bool)> = hops.clone();
                    hops.push((i, up));
                    todo.push_back((next, hops));
                }
            }
        }
        None
    }

    fn hop(&self, (link, up): (usize, bool), settings: &[PortSettings]) -> Hop {
        let spec = match (&self.links[link].end, settings.get(link)) {
            (End::Switch(..), Some(port)) if up => port.ingress,
            (End::Switch(..), Some(port)) => port.egress,
            _ => PortSpec::IDEAL,
        };
        Hop { link, spec }
    }

    /// The link of a host.
    pub fn link_of(&self, domain: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.domain == domain)
    }
}
