// SPDX-License-Identifier: MIT OR Apache-2.0
//! What must hold in a network: the checks of a scenario, as they are written.

use serde::Deserialize;
use switch_model::Size;
use tdf_abi::Tdf;

use crate::network::PortSettings;
use crate::units::Span;

/// A check that makes sense.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// What people call it.
    pub name: String,
    /// The factor of all domains meanwhile; `None`: their own.
    pub tdf: Option<Tdf>,
    /// The settings of all ports meanwhile, by link.
    pub settings: Vec<PortSettings>,
    /// What is done, and judged.
    pub kind: Kind,
}

/// What a check does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Round trips: their time, or how many are lost.
    Ping(Ping),
    /// One TCP flow: its goodput, and marks where a port marks.
    Tcp(Tcp),
    /// More UDP than a port can take: the delay of its full queue.
    Overload(Overload),
    /// The time that the machine itself adds to a round trip shrinks as 1/TDF.
    Processing(Processing),
    /// The same network looks the same at every factor.
    Equality(Equality),
    /// Instructions for each frame, on two ways.
    Cost(Cost),
    /// A switch without frames takes no processor time and holds no memory for any.
    Idle(Idle),
}

/// Round trips.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Ping {
    /// Who asks.
    pub from: String,
    /// Who answers.
    pub to: String,
    /// How often.
    #[serde(default = "twenty")]
    pub count: u32,
    /// Bytes of payload.
    #[serde(default = "ping_size")]
    pub size: u32,
    /// Virtual time between two requests.
    #[serde(default = "ping_interval")]
    pub every: Span,
    /// By how much the round trip may be off the sum of the configured times and of what the machine
    /// adds on ideal ports, in hundredths of that sum.
    pub within_percent: Option<u32>,
}

/// One TCP flow.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Tcp {
    /// Who sends.
    pub from: String,
    /// Who receives.
    pub to: String,
    /// For how long, in whole seconds of virtual time …
    #[serde(default = "tcp_span")]
    pub for_virtual: Span,
    /// … after as many in which the flow finds its speed.
    #[serde(default = "tcp_span")]
    pub after: Span,
    /// Instead of both: until so much is sent, from the beginning.
    pub bytes: Option<Size>,
    /// Negotiate explicit congestion notification.
    #[serde(default)]
    pub ecn: bool,
}

/// UDP at a rate above that of a port.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Overload {
    /// Who sends.
    pub from: String,
    /// Who receives.
    pub to: String,
    /// Bits of payload in a second of virtual time.
    pub rate: String,
    /// How often the delay is measured meanwhile.
    #[serde(default = "twenty")]
    pub count: u32,
}

/// Round trips on ideal ports at several factors.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Processing {
    /// Who asks.
    pub from: String,
    /// Who answers.
    pub to: String,
    /// How often, at each factor.
    #[serde(default = "twenty")]
    pub count: u32,
    /// The factors; the others are held against the first.
    pub factors: Vec<String>,
}

/// A TCP flow at several factors.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Equality {
    /// Who sends.
    pub from: String,
    /// Who receives.
    pub to: String,
    /// For how long, in whole seconds of virtual time, after as many that do not count.
    #[serde(default = "tcp_span")]
    pub for_virtual: Span,
    /// Frames whose arrivals are compared.
    pub frames: u32,
    /// Frames before them that are not.
    #[serde(default)]
    pub skip: u32,
    /// The factors; the others are held against the first.
    pub factors: Vec<String>,
}

/// Work for each frame, on two ways between hosts.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// The way that is to be cheaper, from … to.
    pub ours: [String; 2],
    /// The way that it is compared with.
    pub theirs: [String; 2],
    /// Lengths of frames on the wire, the check sequence included.
    pub sizes: Vec<u32>,
    /// The loads under which they are compared.
    pub loads: Vec<Load>,
}

/// Silence.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Idle {
    /// The switch whose hosts send nothing.
    pub switch: String,
    /// For how long, in virtual time.
    pub for_virtual: Span,
}

/// How frames are sent.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// Frames of each length that are counted.
    pub frames: u32,
    /// Frames in a second of virtual time, evenly; `None`: as many as the sender can.
    pub per_second: Option<u32>,
    /// By how much our way is to be cheaper, at least, in hundredths.
    pub ratio_percent: u32,
}

impl Load {
    /// What it is called in results.
    pub fn name(&self) -> String {
        match self.per_second {
            Some(frames) => format!("{frames}/s"),
            None => "flood".to_owned(),
        }
    }
}

const fn twenty() -> u32 {
    20
}

const fn ping_size() -> u32 {
    56
}

/// So many ns, which are more than none.
pub(crate) fn span(ns: i64) -> Span {
    Span::from_ns(ns).unwrap_or(Span::SECOND)
}

fn ping_interval() -> Span {
    span(20_000_000)
}

fn tcp_span() -> Span {
    Span::SECOND
}

impl Kind {
    /// The pairs of hosts that it needs.
    pub fn pairs(&self) -> Vec<(&str, &str)> {
        match self {
            Self::Ping(c) => vec![(&c.from, &c.to)],
            Self::Tcp(c) => vec![(&c.from, &c.to)],
            Self::Overload(c) => vec![(&c.from, &c.to)],
            Self::Processing(c) => vec![(&c.from, &c.to)],
            Self::Equality(c) => vec![(&c.from, &c.to)],
            Self::Idle(_) => Vec::new(),
            Self::Cost(c) => [&c.ours, &c.theirs].map(|[a, b]| (a.as_str(), b.as_str())).to_vec(),
        }
    }

    /// Its name in results.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Ping(_) => "ping",
            Self::Tcp(_) => "tcp",
            Self::Overload(_) => "overload",
            Self::Processing(_) => "processing",
            Self::Equality(_) => "equality",
            Self::Cost(_) => "cost",
            Self::Idle(_) => "idle",
        }
    }
}
