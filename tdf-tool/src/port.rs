// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ports of a switch that runs, over xenstore.
//!
//! Below `data/switch` in its home the switch writes which ports it has, what is set and what was
//! counted. dom0 asks for a change by writing the whole settings of a port with a version; the
//! switch answers with that version, or with it and a sentence, and then nothing has changed.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use switch_model::PortSpec;

use crate::create::CreateError;
use crate::dom0::{Dom0, Listed, ToolError, printable};
use crate::network::PortSettings;
use crate::report::table;
use crate::show::to_json;
use crate::xen::{Control, DomId};

/// How long a switch may take for an answer, real time …
const PATIENCE: Duration = Duration::from_secs(20);
/// … and how often it is looked for.
const LOOK: Duration = Duration::from_millis(20);

/// Why a port was not set or shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortError {
    /// The toolstack failed.
    Tool(ToolError),
    /// The domain is no switch that runs.
    NoSwitch(DomId),
    /// The switch has no such port.
    NoPort(String),
    /// The domain has several ports.
    Several(String, Vec<u32>),
    /// The switch refused, with this sentence.
    Refused(String),
    /// The switch does not answer.
    Silent,
    /// The switch says something that is not understood.
    Nonsense(String, String),
    /// What is to be set is wrong.
    Setting(String),
    /// Somebody pressed Ctrl-C.
    Interrupted,
}

impl fmt::Display for PortError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tool(e) => e.fmt(f),
            Self::NoSwitch(id) => write!(
                f,
                "domain {id} is no switch: our kernel with role=switch on its command line says so \
                 in xenstore"
            ),
            Self::NoPort(who) => write!(
                f,
                "the switch has no port {who:?}: give a number that `tdf port show` lists, or the \
                 name of a domain that is attached to it"
            ),
            Self::Several(who, ports) => {
                write!(f, "{who} is attached to several ports, {ports:?}: give a number")
            }
            Self::Refused(why) => write!(f, "the switch refused: {why}"),
            Self::Silent => {
                write!(f, "the switch did not answer within {} s", PATIENCE.as_secs())
            }
            Self::Nonsense(path, text) => {
                write!(f, "{path} holds {text:?}, which is not understood")
            }
            Self::Setting(why) => f.write_str(why),
            Self::Interrupted => CreateError::Interrupted.fmt(f),
        }
    }
}

impl std::error::Error for PortError {}

impl From<ToolError> for PortError {
    fn from(e: ToolError) -> Self {
        Self::Tool(e)
    }
}

/// A port, as the switch describes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Port {
    /// Its number.
    pub number: u32,
    /// Who is attached: `DOMID/HANDLE`; empty if nobody is.
    pub peer: String,
    /// `netback` or `netfront`.
    pub kind: String,
    /// The interface's address.
    pub mac: String,
    /// `up` or `down`.
    pub link: String,
    /// The version of the settings in force.
    pub applied: u32,
    /// What it does.
    pub settings: PortSettings,
}

impl Port {
    /// Its settings with `pairs` of `KEY=VALUE` applied to one direction.
    ///
    /// # Errors
    /// A pair is none, or is wrong.
    pub fn with(&self, pairs: &[String], ingress: bool) -> Result<PortSettings, PortError> {
        let mut split = Vec::new();
        for pair in pairs {
            match pair.split_once('=') {
                Some((key, value)) => split.push((key.trim(), value.trim())),
                None => {
                    return Err(PortError::Setting(format!(
                        "{pair:?} is no setting: write KEY=VALUE, such as rate=\"10 Gbit/s\""
                    )));
                }
            }
        }
        let split = split.iter().flat_map(|pair| match pair {
            ("framing", "ethernet") => &ETHERNET[..],
            other => std::slice::from_ref(other),
        });
        let mut settings = self.settings;
        let direction = if ingress { &mut settings.ingress } else { &mut settings.egress };
        *direction = direction
            .with_settings(split.copied())
            .map_err(|e| PortError::Setting(e.to_string()))?;
        Ok(settings)
    }
}

/// The framing of Ethernet, for lengths without the check sequence.
const ETHERNET: [(&str, &str); 4] = [
    ("framing.overhead", "4 B"),
    ("framing.min_frame", "64 B"),
    ("framing.preamble", "8 B"),
    ("framing.gap", "12 B"),
];

/// A switch and some of its ports, to be shown.
#[derive(Debug, Serialize)]
pub struct Shown {
    schema: &'static str,
    switch: String,
    id: u16,
    counters: Value,
    ports: Vec<ShownPort>,
}

#[derive(Debug, Serialize)]
struct ShownPort {
    #[serde(flatten)]
    port: Port,
    counters: Value,
}

impl Shown {
    /// The switch, what it counted of itself, some of its ports, and what was counted of each.
    pub fn new(
        switch: &Listed,
        own: Value,
        ports: Vec<Port>,
        mut counters: Vec<(u32, Value)>,
    ) -> Self {
        let mut of = |number| {
            let at = counters.iter().position(|(port, _)| *port == number);
            at.map_or(Value::Null, |at| counters.swap_remove(at).1)
        };
        let ports =
            ports.into_iter().map(|port| ShownPort { counters: of(port.number), port }).collect();
        let Listed { name, id } = switch;
        Self { schema: "tdf.ports/1", switch: name.clone(), id: id.0, counters: own, ports }
    }

    /// One JSON document.
    pub fn json(&self) -> String {
        to_json(self)
    }

    /// A table, and below it the settings that are not ideal.
    pub fn text(&self) -> String {
        let number = |counters: &Value, key: &str| match &counters[key] {
            Value::Null => "-".to_owned(),
            value => value.to_string(),
        };
        let mut lines = vec![
            ["PORT", "PEER", "KIND", "MAC", "LINK", "IN", "OUT", "DROPPED", "MARKED"]
                .map(str::to_owned),
        ];
        let mut settings = String::new();
        for ShownPort { port, counters } in &self.ports {
            let drops = counters["drops"].as_object();
            let dropped = drops.map(|drops| drops.values().filter_map(Value::as_u64).sum::<u64>());
            lines.push([
                port.number.to_string(),
                port.peer.clone(),
                port.kind.clone(),
                port.mac.clone(),
                port.link.clone(),
                number(counters, "rx_frames"),
                number(counters, "tx_frames"),
                dropped.map_or_else(|| "-".to_owned(), |dropped| dropped.to_string()),
                number(counters, "marks"),
            ]);
            let directions = [("egress", port.settings.egress), ("ingress", port.settings.ingress)];
            for (name, spec) in directions {
                if spec != PortSpec::IDEAL
                    && let Ok(text) = serde_json::to_string(&spec)
                {
                    settings.push_str(&format!("port {} {name}: {text}\n", port.number));
                }
            }
        }
        table(&lines, 5..=8) + &settings
    }
}

/// Where a switch and dom0 meet in xenstore.
pub(crate) fn home(id: DomId) -> String {
    format!("/local/domain/{id}/data/switch")
}

/// The values below `folder` in what `xenstore-ls -f` printed, by their paths there.
fn values<'a>(listing: &'a str, folder: &str) -> Vec<(&'a str, &'a str)> {
    let one = |line: &'a str| {
        let rest = line.strip_prefix(folder)?.strip_prefix('/')?;
        let (path, value) = rest.split_once(" = \"")?;
        Some((path, value.strip_suffix('"')?))
    };
    listing.lines().filter_map(one).collect()
}

impl<M: Dom0> Control<M> {
    /// Whether the domain is a switch that runs.
    ///
    /// # Errors
    /// xenstore-read could not be started.
    pub fn is_switch(&mut self, id: DomId) -> Result<bool, ToolError> {
        let state = self.xenstore_read(&format!("{}/state", home(id)))?;
        Ok(state.as_deref() == Some("running"))
    }

    /// All ports of a switch, by their numbers.
    ///
    /// # Errors
    /// The domain is no switch, or says nonsense of itself.
    pub fn ports(&mut self, id: DomId) -> Result<Vec<Port>, PortError> {
        if !self.is_switch(id)? {
            return Err(PortError::NoSwitch(id));
        }
        let folder = format!("{}/ports", home(id));
        let listing = match self.tool("xenstore-ls", &["-f", &folder]) {
            Ok(output) => output.out,
            Err(ToolError::Failed(..)) => String::new(),
            Err(other) => return Err(other.into()),
        };
        let mut numbers: Vec<u32> = Vec::new();
        for (path, _) in values(&listing, &folder) {
            if let Ok(number) = path.split('/').next().unwrap_or_default().parse()
                && !numbers.contains(&number)
            {
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        numbers.into_iter().map(|number| self.port(id, number)).collect()
    }

    fn port(&mut self, id: DomId, number: u32) -> Result<Port, PortError> {
        let folder = format!("{}/ports/{number}", home(id));
        let mut text = |key: &str| -> Result<String, ToolError> {
            let value = self.xenstore_read(&format!("{folder}/{key}"))?;
            Ok(printable(&value.unwrap_or_default()))
        };
        let spec = |key: &str, text: String| match text.is_empty() {
            true => Ok(PortSpec::IDEAL),
            false => serde_json::from_str(&text)
                .map_err(|_| PortError::Nonsense(format!("{folder}/{key}"), text)),
        };
        Ok(Port {
            number,
            peer: text("peer")?,
            kind: text("kind")?,
            mac: text("mac")?,
            link: text("link")?,
            applied: text("applied")?.parse().unwrap_or(0),
            settings: PortSettings {
                egress: spec("egress", text("egress")?)?,
                ingress: spec("ingress", text("ingress")?)?,
            },
        })
    }

    /// The port that the user calls `who`: a number is a port's, anything else the name of the
    /// domain that is attached to it.
    ///
    /// # Errors
    /// There is none, or several.
    pub fn find_port(&mut self, id: DomId, who: &str) -> Result<Port, PortError> {
        let ports = self.ports(id)?;
        let peer = match who.parse::<u32>() {
            Ok(_) => None,
            Err(_) => {
                let domain = self.domid(who)?.ok_or_else(|| PortError::NoPort(who.to_owned()))?;
                Some(format!("{domain}/"))
            }
        };
        let mut matching: Vec<Port> = ports
            .into_iter()
            .filter(|port| match &peer {
                Some(peer) => port.peer.starts_with(peer),
                None => who.parse() == Ok(port.number),
            })
            .collect();
        match matching.len() {
            0 => Err(PortError::NoPort(who.to_owned())),
            1 => Ok(matching.remove(0)),
            _ => {
                let numbers = matching.iter().map(|port| port.number).collect();
                Err(PortError::Several(who.to_owned(), numbers))
            }
        }
    }

    /// Sets what a port does, and waits until the switch has done it.
    ///
    /// # Errors
    /// The switch refused, and the old settings stay; it did not answer.
    pub fn set_port(
        &mut self,
        id: DomId,
        number: u32,
        settings: &PortSettings,
    ) -> Result<(), PortError> {
        let request = format!("{}/set/{number}", home(id));
        let last = self.xenstore_read(&request)?.unwrap_or_default();
        let last: u32 = last.split(' ').next().unwrap_or_default().parse().unwrap_or(0);
        let version = last.wrapping_add(1);
        let json = serde_json::to_string(settings)
            .map_err(|e| PortError::Nonsense(request.clone(), e.to_string()))?;
        self.tool("xenstore-write", &[&request, &format!("{version} {json}")])?;
        let folder = format!("{}/ports/{number}", home(id));
        let version = version.to_string();
        self.await_answer(|control| {
            if control.xenstore_read(&format!("{folder}/applied"))?.as_deref() == Some(&version) {
                return Ok(Some(()));
            }
            let error = control.xenstore_read(&format!("{folder}/error"))?.unwrap_or_default();
            match error.split_once(' ') {
                Some((of, why)) if of == version => Err(PortError::Refused(printable(why))),
                _ => Ok(None),
            }
        })
    }

    /// What a switch has counted: of itself, and of each port.
    ///
    /// # Errors
    /// It does not answer, or says nonsense.
    pub fn counters(&mut self, id: DomId) -> Result<(Value, Vec<(u32, Value)>), PortError> {
        let query = format!("{}/query", home(id));
        let last = self.xenstore_read(&query)?.unwrap_or_default().parse().unwrap_or(0u32);
        let version = last.wrapping_add(1).to_string();
        self.tool("xenstore-write", &[&query, &version])?;
        let answered = format!("{}/answered", home(id));
        self.await_answer(|control| {
            let answer = control.xenstore_read(&answered)?;
            Ok((answer.as_deref() == Some(&version)).then_some(()))
        })?;
        let ports = self.ports(id)?;
        let mut counters = Vec::new();
        for port in ports {
            let path = format!("{}/ports/{}/counters", home(id), port.number);
            counters.push((port.number, self.json(&path)?));
        }
        Ok((self.json(&format!("{}/counters", home(id)))?, counters))
    }

    fn json(&mut self, path: &str) -> Result<Value, PortError> {
        let text = self.xenstore_read(path)?.unwrap_or_default();
        match text.is_empty() {
            true => Ok(Value::Null),
            false => serde_json::from_str(&text)
                .map_err(|_| PortError::Nonsense(path.to_owned(), printable(&text))),
        }
    }

    /// Asks again and again, until there is an answer.
    pub(crate) fn await_answer(
        &mut self,
        mut look: impl FnMut(&mut Self) -> Result<Option<()>, PortError>,
    ) -> Result<(), PortError> {
        let deadline = self.machine.now() + PATIENCE;
        loop {
            if let Some(()) = look(self)? {
                return Ok(());
            }
            if self.machine.interrupted() {
                return Err(PortError::Interrupted);
            }
            if self.machine.now() >= deadline {
                return Err(PortError::Silent);
            }
            self.machine.pause(LOOK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use switch_model::{Rate, Span};

    fn set(port: &Port, pairs: &[&str]) -> Result<PortSettings, PortError> {
        port.with(&pairs.iter().map(|&pair| pair.to_owned()).collect::<Vec<_>>(), false)
    }

    #[test]
    fn what_is_not_named_stays_and_the_rest_is_replaced() {
        let mut port = Port::default();
        port.settings = set(&port, &["rate=10 Gbit/s", "delay=50us"]).unwrap();
        let changed = set(&port, &["delay=1 ms", "framing=ethernet"]).unwrap();
        assert_eq!(changed.egress.rate, Some(Rate::gbit(10)));
        assert_eq!(changed.egress.delay, Span::ms(1));
        assert_eq!(changed.egress.framing, switch_model::Framing::ETHERNET);
        assert_eq!(changed.ingress, PortSpec::IDEAL);
        assert_eq!(set(&port, &["rate=none", "delay=none"]).unwrap(), PortSettings::default());
    }

    #[test]
    fn wrong_settings_are_refused_in_one_sentence() {
        for (pair, says) in [
            ("rate", "write KEY=VALUE"),
            ("rate=10", "the unit is missing"),
            ("colour=red", "colour"),
            ("loss=200 %", "loss"),
            ("queue=0 frames", "queue"),
        ] {
            let error = set(&Port::default(), &[pair]).unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains('\n'), "{pair}: {error}");
        }
    }

    #[test]
    fn lines_of_a_listing_are_read_below_their_folder() {
        let listing = "/a/ports/3/mac = \"00:16\"\n/a/ports/3/egress = \"{\"rate\":\"1 bit/s\"}\"\n\
                       /a/portsx = \"\"\n";
        assert_eq!(
            values(listing, "/a/ports"),
            [("3/mac", "00:16"), ("3/egress", "{\"rate\":\"1 bit/s\"}")]
        );
    }
}
