// SPDX-License-Identifier: MIT OR Apache-2.0
//! A network of hosts in memory: what each port does is decided by the model, and stock tools show
//! what they would.

use std::collections::HashMap;

use serde_json::Value;
use switch_model::{Frame, Frames, Loss, Port, PortSpec, Slot, Verdict};
use tdf_abi::Tdf;

use crate::xen::DomId;

/// What is wrong with a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetFault {
    /// Nothing.
    #[default]
    None,
    /// Frames come 2 us before the model's moment.
    Early,
    /// Each frame that a port holds back takes a millisecond too long.
    Late,
    /// TCP gets 2 % less than it should.
    Slow,
    /// No frame is ever lost.
    Lossless,
    /// The machine's own part does not shrink with the factor.
    Undilated,
    /// TCP has to send segments again.
    Lossy,
    /// A tenth of the marks gets lost.
    Unmarked,
    /// The switch refuses all settings.
    Refuses,
    /// The switch never says that it runs.
    Mute,
    /// The switch wakes up a hundred times a second.
    Ticks,
    /// The switch keeps a frame that is over.
    Leaks,
    /// Buffers hold three frames less than they should.
    Shallow,
    /// No port ever lacks room.
    Roomy,
}

/// UDP at a constant rate.
#[derive(Clone, Copy, Debug)]
struct Flood {
    /// Bytes of a frame.
    frame: u32,
    /// ns of virtual time from frame to frame.
    every: u64,
}

/// Time that the machine itself adds to a round trip, ns of real time.
const OWN_NS: i64 = 400_000;
/// What the machine carries, bits of payload in a real second.
const CARRIED: u64 = 40_000_000;

/// The hosts of one switch.
#[derive(Debug, Default)]
pub struct FakeNetwork {
    /// What is wrong with it.
    pub fault: NetFault,
    /// Hosts: name, address, switch and port.
    hosts: Vec<(String, String, DomId, u32)>,
    switches: HashMap<String, DomId>,
    marks: u64,
    /// What one host sends while another measures.
    flood: Option<Flood>,
    /// Frames that had no room.
    dropped: u64,
}

fn between<'a>(text: &'a str, before: &str, ends: &[char]) -> Option<&'a str> {
    text.split_once(before)?.1.split(ends).next()
}

impl FakeNetwork {
    /// A domain begins to run; what it says, if it is part of a network.
    pub fn boot(
        &mut self,
        store: &mut HashMap<String, String>,
        config: &str,
        id: DomId,
        name: &str,
    ) -> Option<Vec<u8>> {
        let home = |id| format!("/local/domain/{id}/data/switch");
        if config.contains("role=switch") {
            assert!(config.contains("driver_domain = 1"));
            if self.fault != NetFault::Mute {
                store.insert(format!("{}/state", home(id)), "running".to_owned());
            }
            self.switches.insert(name.to_owned(), id);
            return Some(b"switch\r\n".to_vec());
        }
        let address = between(config, "net.address=", &['/'])?.to_owned();
        let switch = *self.switches.get(between(config, "backend=", &[',', '"'])?)?;
        let port = self.hosts.len() as u32;
        for (n, rest) in config.split("mac=").skip(1).enumerate() {
            // Interfaces that nobody uses have ports far behind the others.
            let port = if n == 0 { port } else { 100 * (port + 1) + n as u32 };
            let mac = rest.split(',').next().expect("it has one");
            let folder = format!("{}/ports/{port}", home(switch));
            for (key, value) in
                [("mac", mac), ("link", "up"), ("kind", "netback"), ("peer", &format!("{id}/{n}"))]
            {
                store.insert(format!("{folder}/{key}"), value.to_owned());
            }
        }
        self.hosts.push((name.to_owned(), address, switch, port));
        Some(b"booting\r\ntdf-host ready\r\n".to_vec())
    }

    /// dom0 has written something for a switch.
    pub fn asked(&mut self, store: &mut HashMap<String, String>, path: &str, value: &str) {
        if let Some((home, port)) = path.split_once("/set/") {
            let (version, json) = value.split_once(' ').expect("a version");
            let folder = format!("{home}/ports/{port}");
            if self.fault == NetFault::Refuses {
                store.insert(format!("{folder}/error"), format!("{version} I will not"));
                return;
            }
            let json: Value = serde_json::from_str(json).expect("JSON");
            for key in ["egress", "ingress"] {
                store.insert(format!("{folder}/{key}"), json[key].to_string());
            }
            store.insert(format!("{folder}/applied"), version.to_owned());
        }
        if let Some(home) = path.strip_suffix("/query") {
            if self.flood.is_some() && self.fault != NetFault::Roomy {
                self.dropped += 1;
            }
            for (_, _, _, port) in &self.hosts {
                let (marks, full) = if *port == 1 { (self.marks, self.dropped) } else { (0, 0) };
                let counters = format!("{{\"marks\":{marks},\"drops\":{{\"queue_full\":{full}}}}}");
                store.insert(format!("{home}/ports/{port}/counters"), counters);
            }
            let free = if self.fault == NetFault::Leaks { 9 } else { 10 };
            let counters = format!("{{\"pool_free\":{free},\"pool_total\":10,\"heap_free\":7}}");
            store.insert(format!("{home}/counters"), counters);
            store.insert(format!("{home}/answered"), value.to_owned());
        }
    }

    fn path(&self, store: &HashMap<String, String>, from: &str, to: &str) -> [PortSpec; 2] {
        let spec = |host: &str, key: &str| {
            let (_, _, switch, port) =
                self.hosts.iter().find(|(name, address, ..)| name == host || address == host)?;
            let path = format!("/local/domain/{switch}/data/switch/ports/{port}/{key}");
            Some(serde_json::from_str(store.get(&path)?).expect("a description"))
        };
        [spec(from, "ingress"), spec(to, "egress")].map(|spec| spec.unwrap_or(PortSpec::IDEAL))
    }

    /// What a host answers to `command`, and after how much virtual time.
    pub fn command(
        &mut self,
        store: &HashMap<String, String>,
        host: &str,
        tdf: Tdf,
        command: &str,
    ) -> (String, i64) {
        let words: Vec<&str> = command.split(' ').collect();
        let option = |name: &str| {
            let at = words.iter().position(|word| *word == name)?;
            words.get(at + 1).copied()
        };
        match words[0] {
            "grep" if command.contains("; ping ") => {
                let to = between(command, "-W 1 ", &[';']).expect("an address");
                let count = option("-c").and_then(|c| c.parse().ok()).expect("a count");
                let size: u32 = option("-s").and_then(|s| s.parse().ok()).expect("a size");
                let every: f64 = option("-i").and_then(|i| i.parse().ok()).expect("a time");
                let every = (every * 1e9) as u64;
                let text = self.ping(store, host, to, tdf, (count, every), size);
                (text, i64::from(count) * every as i64)
            }
            "iperf3" if words.contains(&"-u") => {
                let number = |name| option(name).and_then(|n| n.parse::<u64>().ok());
                let (bytes, bits) = (number("-l").expect("a size"), number("-b").expect("a rate"));
                let every = bytes * 8 * 1_000_000_000 / bits;
                self.flood = Some(Flood { frame: bytes as u32 + 42, every });
                ("{\"end\":{\"sum\":{\"bits_per_second\":1}}}".to_owned(), 2_000_000_000)
            }
            "iperf3" if words.contains(&"-c") => {
                self.marks += 50;
                let again = if self.fault == NetFault::Lossy { 3 } else { 0 };
                let json = format!(
                    "{{\"end\":{{\"sum_sent\":{{\"retransmits\":{again}}},\
                     \"sum_received\":{{\"bits_per_second\":1}}}}}}"
                );
                (json, 2_000_000_000)
            }
            "tdf" if words[1] == "goodput" => {
                let from = option("--from").expect("a sender");
                let rates = self.path(store, from, host).map(|spec| spec.rate);
                let all = tdf.to_real(CARRIED.into()) as u64;
                let rate = rates.into_iter().flatten().map(|rate| rate.as_bits() * 1448 / 1538);
                let mut goodput = rate.min().unwrap_or(all).min(all);
                if self.fault == NetFault::Slow {
                    goodput = goodput / 100 * 98;
                }
                (format!("{goodput} 8000000000\n"), 2_000_000_000)
            }
            "cat" if command.contains("netstat") => {
                let seen =
                    self.marks - if self.fault == NetFault::Unmarked { self.marks / 10 } else { 0 };
                (format!("IpExt: A InCEPkts\nIpExt: 1 {seen}"), 0)
            }
            _ => (String::new(), 0),
        }
    }

    fn ping(
        &mut self,
        store: &HashMap<String, String>,
        from: &str,
        to: &str,
        tdf: Tdf,
        (count, every): (u32, u64),
        size: u32,
    ) -> String {
        let flood = self.flood.take();
        let ([a, b], [c, d]) = (self.path(store, from, to), self.path(store, to, from));
        let hops = [a, b, c, d];
        let configs = hops.map(|mut spec| {
            if self.fault == NetFault::Lossless {
                spec.loss = Loss::None;
            }
            if self.fault == NetFault::Shallow {
                let less = |frames: Frames| Frames::new(frames.count() - 3);
                spec.queue_frames = spec.queue_frames.map(less);
            }
            spec.build().expect("it is right")
        });
        let port =
            |(i, config)| Port::new(config, i as u64, vec![Slot::EMPTY; 64]).expect("it has room");
        let mut ports: Vec<_> = configs.iter().enumerate().map(port).collect();
        let own = match self.fault {
            NetFault::Undilated => OWN_NS,
            _ => tdf.to_virtual(OWN_NS.into()) as i64,
        };
        let counters = |replies| format!("Icmp: InMsgs InEchoReps\nIcmp: 9 {replies}\n");
        let (mut text, mut answered) = (counters(0) + &format!("PING {to}\n"), 0);
        let mut flooded = 0;
        for seq in 0..count {
            // After a second of whatever else goes on.
            let sent = 1_000_000_000 + u64::from(seq) * every;
            let (mut at, mut lost) = (sent, false);
            for (hop, port) in ports.iter_mut().enumerate() {
                // It comes to the receiver's port.
                while let Some(flood) = flood.filter(|_| hop == 1 && flooded <= at) {
                    while port.pop_due(flooded).is_some() {}
                    port.offer(flooded, Frame::new(u32::MAX, flood.frame));
                    flooded += flood.every;
                }
                while port.pop_due(at).is_some() {}
                match port.offer(at, Frame::new(seq, size + 42)) {
                    Verdict::Deliver(fate) => at = fate.deliver_at,
                    _ => lost = true,
                }
            }
            if lost {
                continue;
            }
            answered += 1;
            let off = match self.fault {
                NetFault::Early => -2_000 - own,
                NetFault::Late if hops.iter().any(|hop| *hop != PortSpec::IDEAL) => 1_000_000,
                _ => 0,
            };
            let us = ((at - sent) as i64 + own + off).max(0) / 1000;
            text.push_str(&format!(
                "{size} bytes from {to}: seq={seq} ttl=64 time={}.{:03} ms\n",
                us / 1000,
                us % 1000
            ));
        }
        text + &format!(
            "{count} packets transmitted, {answered} packets received, 0% packet loss\n"
        ) + &counters(answered)
    }
}
