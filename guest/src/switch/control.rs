// SPDX-License-Identifier: MIT OR Apache-2.0
//! What dom0 and the switch tell each other through xenstore, below `data/switch` in the switch's home.
//!
//! dom0 writes `set/PORT` (a version and a description of both directions) and `query` (a version); the
//! switch writes what its ports are, which settings are in force, and counters. A request is carried
//! out once for each version, and answered by that version.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use alloc::{format, vec};

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use switch_model::{Counters, DropReason, PortSpec};
use tdf_xen::xenstore::{Client, Error, Link, Tx};

use super::backend::VifName;
use super::fabric::{Direction, Fabric, Ledger, PortCounters};

/// Where everything is.
const HOME: &str = "data/switch";
/// Where dom0 writes settings.
pub const SETTINGS: &str = "data/switch/set";
/// The token of the watch there.
pub const SET_TOKEN: &str = "set";
/// Where dom0 asks for counters.
pub const QUERY: &str = "data/switch/query";
/// The token of the watch there.
pub const QUERY_TOKEN: &str = "query";
/// Where dom0 asks to see frames, and below, where it is told how.
pub const CAPTURE: &str = "data/switch/capture";
/// The token of the watch there.
pub const CAPTURE_TOKEN: &str = "capture";

type Answer<T, L> = Result<T, Error<<L as Link>::Error>>;

/// What dom0 wants of a port.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    egress: Option<PortSpec>,
    ingress: Option<PortSpec>,
}

/// A request with its version: `3 {"egress": …}`.
fn versioned(text: &str) -> Option<(u32, &str)> {
    let (version, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    Some((version.parse().ok()?, rest.trim_start()))
}

/// What a device has seen, apart from its frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCounters {
    /// Rules that its peer has broken, and copies that Xen refused.
    pub faults: u64,
    /// Frames of its that are none, and were sent back.
    pub refused: u64,
    /// Events that were sent to it.
    pub notifies_sent: u64,
    /// Events that came from it.
    pub notifies_received: u64,
}

/// What the whole switch has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SwitchCounters {
    /// When this was, in virtual time.
    pub virtual_ns: u64,
    /// Frames that came in.
    pub frames: u64,
    /// Rounds in which there was something to do.
    pub batches: u64,
    /// Calls of Xen.
    pub hypercalls: u64,
    /// Copies that Xen made.
    pub copies: u64,
    /// Times that the switch slept.
    pub sleeps: u64,
    /// Stations that are known.
    pub stations: u64,
    /// Pieces of memory for frames that are free.
    pub pool_free: u32,
    /// All of them.
    pub pool_total: u32,
    /// Pages that are lent.
    pub grants: u32,
    /// Bytes that are free for everything else.
    pub heap_free: u64,
    /// What became of all frames.
    pub ledger: Ledger,
}

/// The ports' names of drop reasons, in the order of [`DropReason::ALL`].
const REASONS: [&str; DropReason::ALL.len()] =
    ["size", "policed", "queue_full", "shared_full", "aqm", "loss", "no_slot"];

/// Drops by reason; those that have not happened are left out.
struct Drops(Vec<(&'static str, u64)>);

impl Serialize for Drops {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.0.iter().filter(|(_, count)| *count > 0).copied())
    }
}

fn model_drops(counters: &Counters) -> Vec<(&'static str, u64)> {
    REASONS.into_iter().zip(counters.drops).collect()
}

#[derive(Serialize)]
struct ModelText {
    offered: u64,
    offered_bytes: u64,
    sent: u64,
    sent_bytes: u64,
    delivered: u64,
    drops: Drops,
    marks: u64,
    copies: u64,
    busy_ns: u64,
    peak_frames: u32,
    peak_bytes: u32,
}

impl From<Counters> for ModelText {
    fn from(counters: Counters) -> Self {
        Self {
            offered: counters.offered,
            offered_bytes: counters.offered_bytes,
            sent: counters.sent,
            sent_bytes: counters.sent_bytes,
            delivered: counters.delivered,
            drops: Drops(model_drops(&counters)),
            marks: counters.marks,
            copies: counters.copies,
            busy_ns: counters.busy_ns,
            peak_frames: counters.peak_frames,
            peak_bytes: counters.peak_bytes,
        }
    }
}

#[derive(Serialize)]
struct PortText {
    rx_frames: u64,
    rx_bytes: u64,
    tx_frames: u64,
    tx_bytes: u64,
    drops: Drops,
    marks: u64,
    queue_frames_max: u32,
    queue_bytes_max: u32,
    busy_ns: u64,
    faults: u64,
    notifies_sent: u64,
    notifies_received: u64,
    egress: ModelText,
    ingress: ModelText,
}

fn port_text(
    port: &PortCounters,
    device: &DeviceCounters,
    egress: Counters,
    ingress: Counters,
) -> PortText {
    let mut drops = vec![
        ("runt", port.runt),
        ("filtered", port.filtered),
        ("no_host", port.no_host),
        ("no_memory", port.no_memory),
        ("host_full", port.host_full),
        ("failed", port.failed),
        ("gone", port.gone),
        ("refused", device.refused),
    ];
    let both = model_drops(&egress).into_iter().zip(model_drops(&ingress));
    drops.extend(both.map(|((name, a), (_, b))| (name, a + b)));
    PortText {
        rx_frames: port.rx_frames,
        rx_bytes: port.rx_bytes,
        tx_frames: port.tx_frames,
        tx_bytes: port.tx_bytes,
        drops: Drops(drops),
        marks: egress.marks + ingress.marks,
        queue_frames_max: egress.peak_frames,
        queue_bytes_max: egress.peak_bytes,
        busy_ns: egress.busy_ns,
        faults: device.faults,
        notifies_sent: device.notifies_sent,
        notifies_received: device.notifies_received,
        egress: egress.into(),
        ingress: ingress.into(),
    }
}

/// As JSON; what is written here has no way to fail.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// The switch's side of it.
#[derive(Debug)]
pub struct Control {
    /// The last version seen for each port.
    versions: Vec<Option<u32>>,
    query: Option<u32>,
    /// The last request for frames.
    capture: String,
}

impl Control {
    /// Nothing was asked yet, of `ports` ports.
    pub fn new(ports: usize) -> Self {
        Self { versions: vec![None; ports], query: None, capture: String::new() }
    }

    /// Says that the switch is there, and begins to watch for requests.
    ///
    /// # Errors
    /// What xenstore says.
    pub fn start<L: Link>(&self, store: &mut Client<L>, fabric: &Fabric) -> Answer<(), L> {
        for port in 0..self.versions.len() {
            if let Some(link) = fabric.link(port, Direction::Egress)
                && *link.spec() != PortSpec::IDEAL
            {
                publish_settings(store, fabric, port)?;
            }
        }
        store.watch(SETTINGS, SET_TOKEN)?;
        store.watch(QUERY, QUERY_TOKEN)?;
        store.watch(CAPTURE, CAPTURE_TOKEN)?;
        write(store, HOME, "state", "running")
    }

    /// The port of which `path`, below [`SETTINGS`], speaks; `None` if of all.
    pub fn port_of(path: &str) -> Option<usize> {
        path.strip_prefix(SETTINGS)?.strip_prefix('/')?.split('/').next()?.parse().ok()
    }

    /// Carries out what dom0 wants of all ports.
    ///
    /// # Errors
    /// What xenstore says.
    pub fn set_all<L: Link>(
        &mut self,
        store: &mut Client<L>,
        fabric: &mut Fabric,
        now: impl Fn() -> u64,
    ) -> Answer<(), L> {
        let names: Vec<String> = match store.directory(Tx::NONE, SETTINGS) {
            Ok(names) => names.map(String::from).collect(),
            Err(Error::Refused(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        for port in names.iter().filter_map(|name| name.parse().ok()) {
            self.set(store, fabric, port, &now)?;
        }
        Ok(())
    }

    /// Carries out what dom0 wants of `port`, if that is new.
    ///
    /// # Errors
    /// What xenstore says.
    pub fn set<L: Link>(
        &mut self,
        store: &mut Client<L>,
        fabric: &mut Fabric,
        port: usize,
        now: impl Fn() -> u64,
    ) -> Answer<(), L> {
        let Some(last) = self.versions.get_mut(port) else { return Ok(()) };
        let path = format!("{SETTINGS}/{port}");
        let text = match store.read_text(Tx::NONE, path.as_str()) {
            Ok(text) => String::from(text),
            Err(Error::Refused(_) | Error::BadValue) => return Ok(()),
            Err(error) => return Err(error),
        };
        let Some((version, wanted)) = versioned(&text) else { return Ok(()) };
        if last.replace(version) == Some(version) {
            return Ok(());
        }
        let here = format!("{HOME}/ports/{port}");
        match apply(fabric, port, wanted, now()) {
            Ok(()) => {
                publish_settings(store, fabric, port)?;
                write(store, &here, "applied", &version.to_string())
            }
            Err(why) => write(store, &here, "error", &format!("{version} {why}")),
        }
    }

    /// Begins or ends to show frames, if dom0 wants it: `exchange` is told what dom0 wrote, `None` to
    /// end.
    ///
    /// # Errors
    /// What xenstore says.
    pub fn look_at_capture<L: Link>(
        &mut self,
        store: &mut Client<L>,
        exchange: impl FnOnce(Option<&str>) -> Result<String, String>,
    ) -> Answer<(), L> {
        let text = match store.read_text(Tx::NONE, CAPTURE) {
            Ok(text) => String::from(text),
            Err(Error::Refused(_) | Error::BadValue) => return Ok(()),
            Err(error) => return Err(error),
        };
        if text == self.capture {
            return Ok(());
        }
        self.capture.clone_from(&text);
        let Some((version, wanted)) = versioned(&text) else { return Ok(()) };
        let wanted = Some(wanted).filter(|wanted| *wanted != "off");
        match exchange(wanted) {
            Ok(_) if wanted.is_none() => Ok(()),
            Ok(lease) => write(store, CAPTURE, "ring", &format!("{version} {lease}")),
            Err(why) => write(store, CAPTURE, "error", &format!("{version} {why}")),
        }
    }

    /// Answers a question for counters, if there is a new one.
    ///
    /// # Errors
    /// What xenstore says.
    pub fn answer<L: Link>(
        &mut self,
        store: &mut Client<L>,
        fabric: &Fabric,
        device: impl Fn(usize) -> DeviceCounters,
        switch: impl FnOnce() -> SwitchCounters,
    ) -> Answer<(), L> {
        let version: Option<u32> = match store.read_parsed(Tx::NONE, QUERY) {
            Err(Error::Refused(_) | Error::BadValue) => None,
            other => other?,
        };
        let Some(version) = version.filter(|version| self.query != Some(*version)) else {
            return Ok(());
        };
        self.query = Some(version);
        for port in 0..fabric.ports() {
            let links =
                (fabric.link(port, Direction::Egress), fabric.link(port, Direction::Ingress));
            let (Some(counters), (Some(egress), Some(ingress))) = (fabric.counters(port), links)
            else {
                continue;
            };
            if *counters == PortCounters::default() && !fabric.is_attached(port) {
                continue;
            }
            let text = port_text(counters, &device(port), egress.counters(), ingress.counters());
            write(store, &format!("{HOME}/ports/{port}"), "counters", &json(&text))?;
        }
        write(store, HOME, "counters", &json(&switch()))?;
        write(store, HOME, "answered", &version.to_string())
    }
}

fn apply(fabric: &mut Fabric, port: usize, wanted: &str, now: u64) -> Result<(), String> {
    // By way of a value: the code that reads descriptions is large, and is there once only.
    let value: Value = serde_json::from_str(wanted).map_err(|error| error.to_string())?;
    let settings: Settings = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let directions = [(Direction::Egress, settings.egress), (Direction::Ingress, settings.ingress)];
    // Both or none: what can be wrong with a description is known before anything is changed.
    for (_, spec) in &directions {
        spec.map_or(Ok(()), |spec| spec.build().map(drop)).map_err(|error| error.to_string())?;
    }
    let mut before = None;
    for (direction, spec) in directions {
        let (Some(spec), Some(link)) = (spec, fabric.link(port, direction)) else { continue };
        let last = *link.spec();
        if let Err(error) = fabric.configure(now, port, direction, spec) {
            // There was no memory for the second: the first goes back, which takes none.
            if let Some((direction, spec)) = before {
                let _ = fabric.configure(now, port, direction, spec);
            }
            return Err(error.to_string());
        }
        before = Some((direction, last));
    }
    Ok(())
}

fn publish_settings<L: Link>(store: &mut Client<L>, fabric: &Fabric, port: usize) -> Answer<(), L> {
    let here = format!("{HOME}/ports/{port}");
    for (key, direction) in [("egress", Direction::Egress), ("ingress", Direction::Ingress)] {
        if let Some(link) = fabric.link(port, direction) {
            write(store, &here, key, &json(link.spec()))?;
        }
    }
    Ok(())
}

/// What a port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The switch is the host's backend.
    Netback,
    /// The switch is a frontend, of a bridge in another domain.
    Netfront,
}

/// Says whose port it is.
///
/// # Errors
/// What xenstore says.
pub fn publish_peer<L: Link>(
    store: &mut Client<L>,
    fabric: &Fabric,
    port: usize,
    peer: VifName,
    kind: Kind,
    mac: &str,
) -> Answer<(), L> {
    let here = format!("{HOME}/ports/{port}");
    let kind = match kind {
        Kind::Netback => "netback",
        Kind::Netfront => "netfront",
    };
    write(store, &here, "kind", kind)?;
    write(store, &here, "mac", mac)?;
    write(store, &here, "link", "down")?;
    publish_settings(store, fabric, port)?;
    write(store, &here, "peer", &peer.to_string())
}

/// Says whether its host is there.
///
/// # Errors
/// What xenstore says.
pub fn publish_link<L: Link>(store: &mut Client<L>, port: usize, up: bool) -> Answer<(), L> {
    write(store, &format!("{HOME}/ports/{port}"), "link", if up { "up" } else { "down" })
}

/// Says that the port is nobody's.
///
/// # Errors
/// What xenstore says.
pub fn publish_free<L: Link>(store: &mut Client<L>, port: usize) -> Answer<(), L> {
    let here = format!("{HOME}/ports/{port}");
    for key in ["peer", "kind", "mac", "link"] {
        match store.rm(Tx::NONE, (here.as_str(), key)) {
            Ok(()) | Err(Error::Refused(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The port that dom0 has reserved for `peer`, and, a bit each, those that are somebody else's.
///
/// # Errors
/// What xenstore says.
pub fn reserved<L: Link>(
    store: &mut Client<L>,
    ports: usize,
    peer: VifName,
) -> Answer<(Option<usize>, u64), L> {
    let peer = peer.to_string();
    let (mut own, mut others) = (None, 0);
    for port in 0..ports {
        let path = format!("{HOME}/ports/{port}");
        match store.read_text(Tx::NONE, (path.as_str(), "peer")) {
            Ok(text) if text == peer => own = own.or(Some(port)),
            Ok(_) => others |= 1 << port,
            Err(Error::Refused(_) | Error::BadValue) => {}
            Err(error) => return Err(error),
        }
    }
    Ok((own, others))
}

/// Writes a node. One that cannot be written, for want of quota, costs that node only.
fn write<L: Link>(store: &mut Client<L>, base: &str, key: &str, value: &str) -> Answer<(), L> {
    match store.write(Tx::NONE, (base, key), value.as_bytes()) {
        Err(Error::Refused(refusal)) => {
            log::warn!("{base}/{key}: {refusal}");
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::switch::fake::bench;
    use crate::switch::fdb::{AGE_NS, Fdb};
    use crate::switch::pool::fake::Memory;
    use switch_model::{Rate, Span};
    use tdf_xen::abi::DomId;

    fn fabric(memory: &mut Memory) -> Fabric {
        Fabric::new(memory.pool(), Fdb::new(AGE_NS), 4, 16, 1)
    }

    #[test]
    fn settings_are_applied_once_or_refused_with_a_sentence() {
        let (mut bench, mut memory) = (bench(), Memory::new(2));
        let (mut control, mut fabric) = (Control::new(4), fabric(&mut memory));
        control.start(&mut bench.client, &fabric).unwrap();
        assert_eq!(bench.get("data/switch/state").as_deref(), Some("running"));
        let set = |bench: &mut crate::switch::fake::Bench,
                   control: &mut Control,
                   fabric: &mut Fabric,
                   text: &str| {
            bench.set("data/switch/set/2", text);
            control.set_all(&mut bench.client, fabric, || 7).unwrap();
        };
        let wanted =
            r#"1 {"egress":{"rate":"10 Gbit/s","delay":"50 us"},"ingress":{"delay":"1 ms"}}"#;
        set(&mut bench, &mut control, &mut fabric, wanted);
        let spec = |fabric: &Fabric, direction| *fabric.link(2, direction).unwrap().spec();
        let egress =
            PortSpec { rate: Some(Rate::gbit(10)), delay: Span::us(50), ..PortSpec::IDEAL };
        assert_eq!(spec(&fabric, Direction::Egress), egress);
        assert_eq!(spec(&fabric, Direction::Ingress).delay, Span::ms(1));
        assert_eq!(bench.get("data/switch/ports/2/applied").as_deref(), Some("1"));
        // What is written is what is read.
        let text = bench.get("data/switch/ports/2/egress").unwrap();
        assert_eq!(serde_json::from_str::<PortSpec>(&text).unwrap(), egress);
        for (text, sentence) in [
            (r#"2 {"egress":{"rat":"1 Gbit/s"}}"#, "2 unknown field `rat`"),
            (r#"3 {"egress":{"delay":"50"}}"#, "3 "),
            (r#"4 {"egress":{"delay":"1 us"},"ingress":{"queue_bytes":"0 B"}}"#, "4 "),
            ("5 nonsense", "5 expected ident"),
            (r#"6 {"outgress":{}}"#, "6 unknown field `outgress`"),
        ] {
            set(&mut bench, &mut control, &mut fabric, text);
            let error = bench.get("data/switch/ports/2/error").unwrap();
            assert!(error.starts_with(sentence), "{error}");
            assert_eq!(spec(&fabric, Direction::Egress), egress, "{text}");
        }
        // The same version is the same request.
        set(&mut bench, &mut control, &mut fabric, r#"6 {"egress":{}}"#);
        assert_eq!(spec(&fabric, Direction::Egress), egress);
        set(&mut bench, &mut control, &mut fabric, r#"7 {"egress":{}}"#);
        assert_eq!(spec(&fabric, Direction::Egress), PortSpec::IDEAL);
        assert_eq!(spec(&fabric, Direction::Ingress).delay, Span::ms(1), "it was left out");
        bench.set("data/switch/set/9", r#"1 {"egress":{}}"#);
        control.set_all(&mut bench.client, &mut fabric, || 7).unwrap();
    }

    #[test]
    fn counters_are_written_before_the_answer() {
        let (mut bench, mut memory) = (bench(), Memory::new(2));
        let (mut control, mut fabric) = (Control::new(4), fabric(&mut memory));
        fabric.attach(1);
        let device = |_| DeviceCounters { faults: 3, ..DeviceCounters::default() };
        let mut ask = |bench: &mut crate::switch::fake::Bench| {
            let switch = || SwitchCounters { frames: 8, ..SwitchCounters::default() };
            control.answer(&mut bench.client, &fabric, device, switch).unwrap();
        };
        ask(&mut bench);
        assert_eq!(bench.get("data/switch/answered"), None);
        bench.set("data/switch/query", "4");
        ask(&mut bench);
        assert_eq!(bench.get("data/switch/answered").as_deref(), Some("4"));
        let counters = bench.get("data/switch/ports/1/counters").unwrap();
        let counters: Value = serde_json::from_str(&counters).unwrap();
        assert_eq!((&counters["faults"], &counters["rx_frames"]), (&3.into(), &0.into()));
        assert_eq!(bench.get("data/switch/ports/0/counters"), None);
        let switch: Value =
            serde_json::from_str(&bench.get("data/switch/counters").unwrap()).unwrap();
        assert_eq!(switch["frames"], 8);
    }

    #[test]
    fn ports_are_published_and_withdrawn() {
        let (mut bench, mut memory) = (bench(), Memory::new(2));
        let fabric = fabric(&mut memory);
        let peer = VifName { dom: DomId(7), handle: 0 };
        publish_peer(&mut bench.client, &fabric, 3, peer, Kind::Netback, "00:16:3e:00:00:01")
            .unwrap();
        publish_link(&mut bench.client, 3, true).unwrap();
        let get = |key: &str| bench.get(&format!("data/switch/ports/3/{key}"));
        assert_eq!((get("peer").as_deref(), get("link").as_deref()), (Some("7/0"), Some("up")));
        assert_eq!(
            (get("kind").as_deref(), get("egress").as_deref()),
            (Some("netback"), Some("{}"))
        );
        publish_free(&mut bench.client, 3).unwrap();
        let get = |key: &str| bench.get(&format!("data/switch/ports/3/{key}"));
        assert_eq!((get("peer"), get("link"), get("kind")), (None, None, None));
    }
}
