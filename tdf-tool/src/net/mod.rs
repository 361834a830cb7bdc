// SPDX-License-Identifier: MIT OR Apache-2.0
//! Running a network: switches first, then their hosts, then the checks, one after another.
//!
//! All domains share one factor, which a check may change; ports are set live, as a user sets them.
//! Whatever happens, the domains and bridges that were made are taken away.

mod measure;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tdf_abi::Tdf;

use crate::checks::Check;
use crate::dom0::{Dom0, Listed};
use crate::guestcfg::{mac, own_bridge};
use crate::hosts::{Answer, Hosts, Job};
use crate::network::{End, Hop, Network, PortSettings, Via};
use crate::port::Port;
use crate::report::{CheckReport, Report, XenReport};
use crate::run::Run;
use crate::scenario::{Domain, Kind};
use crate::watch::domain_report;
use crate::xen::{Control, DomId};

/// Real time that a switch may take to come up, and a host after it …
const BOOT: Duration = Duration::from_secs(120);
/// … and a command, beyond the virtual time that it asks for.
const COMMAND: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(100);

/// A network that is up.
struct Lab<'a, M: Dom0> {
    run: Run<'a, M>,
    network: &'a Network,
    hosts: Hosts,
    /// The factor of all domains.
    tdf: Tdf,
    /// What is set, by link.
    settings: Vec<PortSettings>,
    /// The switch and the port of each link; none for a bridge of dom0.
    ports: Vec<Option<(DomId, u32)>>,
    /// Hosts on which iperf3 serves.
    serving: BTreeSet<String>,
    /// Round trips on ideal ports, by ends, size and factor, ns.
    ideal_rtt: BTreeMap<(String, String, u32, String), i64>,
    /// Goodput of TCP on ideal ports, by ends and factor, bit/s.
    ideal_tcp: BTreeMap<(String, String, String), i64>,
    /// Bridges that exist because of us.
    bridges: Vec<String>,
}

/// Runs the network's scenario.
pub(crate) fn run<M: Dom0>(run: Run<'_, M>, network: &Network, version: String) -> Report {
    let scenario = run.scenario;
    let seed = run.seed();
    let tdf = scenario.domains.first().map_or(Tdf::ONE, |domain| domain.factor.tdf());
    let mut lab = Lab {
        run,
        network,
        hosts: Hosts::default(),
        tdf,
        settings: vec![PortSettings::default(); network.links.len()],
        ports: Vec::new(),
        serving: BTreeSet::new(),
        ideal_rtt: BTreeMap::new(),
        ideal_tcp: BTreeMap::new(),
        bridges: Vec::new(),
    };
    let (mut failures, mut checks) = (Vec::new(), Vec::new());
    match lab.bring_up() {
        Err(why) => failures.push(why),
        Ok(()) => {
            for check in &scenario.checks {
                let report = lab.check(check, tdf);
                failures.extend(report.complaints());
                lab.run.log(&format!(
                    "{}: {}",
                    report.name,
                    if report.pass { "ok" } else { "FAIL" }
                ));
                checks.push(report);
            }
        }
    }
    failures.extend(lab.take_down());
    let domains = scenario
        .domains
        .iter()
        .map(|domain| domain_report(domain, Vec::new(), Vec::new(), Vec::new()).0)
        .collect();
    Report {
        schema: "tdf.run/1",
        scenario: scenario.name.clone(),
        seed,
        pass: failures.is_empty(),
        xen: XenReport { version },
        domains,
        checks,
        failures,
    }
}

impl<'a, M: Dom0> Lab<'a, M> {
    fn control(&mut self) -> &mut Control<M> {
        self.run.control
    }

    fn bring_up(&mut self) -> Result<(), String> {
        for (i, link) in self.network.links.iter().enumerate() {
            match &link.end {
                End::Bridge(name) => self.bridge(name.clone())?,
                End::Switch(_, Via::Netfront) => self.bridge(own_bridge(i))?,
                End::Switch(_, Via::Netback) => {}
            }
        }
        let scenario = self.run.scenario;
        let is_switch = |domain: &&Domain| domain.kind == Kind::Guest;
        for domain in scenario.domains.iter().filter(is_switch) {
            let id = self.make(domain)?;
            self.start(domain)?;
            self.await_switch(&domain.name, id)?;
        }
        let hosts = || scenario.domains.iter().filter(|domain| !is_switch(domain));
        for domain in hosts() {
            self.make(domain)?;
            self.start(domain)?;
        }
        for domain in hosts() {
            self.hosts.ready(self.run.control, &domain.name, BOOT)?;
        }
        self.find_ports()
    }

    fn make(&mut self, domain: &Domain) -> Result<DomId, String> {
        let named = |why| format!("{}: {why}", domain.name);
        let (created, console) = self.run.make(domain).map_err(named)?;
        self.hosts.add(&domain.name, created.id, console);
        Ok(created.id)
    }

    fn start(&mut self, domain: &Domain) -> Result<(), String> {
        self.control().start(&domain.name).map_err(|e| format!("{}: {e}", domain.name))
    }

    fn bridge(&mut self, name: String) -> Result<(), String> {
        if self.bridges.contains(&name) {
            return Ok(());
        }
        let there = self.control().tool("ip", &["link", "show", "dev", &name]).is_ok();
        if !there {
            let add = ["link", "add", "name", &name, "type", "bridge"];
            self.control().tool("ip", &add).map_err(|e| e.to_string())?;
            self.bridges.push(name.clone());
            self.control()
                .tool("ip", &["link", "set", "dev", &name, "up"])
                .map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    fn await_switch(&mut self, name: &str, id: DomId) -> Result<(), String> {
        let deadline = self.control().machine.now() + BOOT;
        while !self.control().is_switch(id).map_err(|e| e.to_string())? {
            if self.control().machine.now() >= deadline {
                return Err(format!("{name}: it does not become a switch"));
            }
            self.hosts.listen(self.run.control, LOOK)?;
        }
        Ok(())
    }

    /// Finds out which port each link has.
    fn find_ports(&mut self) -> Result<(), String> {
        // To ask a switch for all its ports takes long: the last answer may do.
        let mut last: BTreeMap<DomId, Vec<Port>> = BTreeMap::new();
        for (i, link) in self.network.links.iter().enumerate() {
            let End::Switch(name, via) = &link.end else {
                self.ports.push(None);
                continue;
            };
            let switch = self.hosts.id(name).ok_or_else(|| format!("there is no switch {name}"))?;
            let wanted = mac(i, *via == Via::Netfront);
            let deadline = self.control().machine.now() + BOOT;
            let ports = last.entry(switch).or_default();
            let port = loop {
                if let Some(port) = ports.iter().find(|p| p.mac == wanted && p.link == "up") {
                    break port.number;
                }
                *ports = self.run.control.ports(switch).map_err(|e| format!("{name}: {e}"))?;
                if ports.iter().any(|p| p.mac == wanted && p.link == "up") {
                    continue;
                }
                if self.run.control.machine.now() >= deadline {
                    let seen: Vec<&str> = ports.iter().map(|port| port.mac.as_str()).collect();
                    return Err(format!(
                        "{name}: no port is up for {} ({wanted}): {seen:?}",
                        link.domain
                    ));
                }
                self.hosts.listen(self.run.control, LOOK)?;
            };
            self.ports.push(Some((switch, port)));
        }
        Ok(())
    }

    /// Sets all ports that are to do something else than they do.
    fn apply(&mut self, settings: &[PortSettings]) -> Result<(), String> {
        for (i, wanted) in settings.iter().enumerate() {
            let Some((switch, port)) = self.ports[i] else { continue };
            if self.settings[i] != *wanted {
                self.control()
                    .set_port(switch, port, wanted)
                    .map_err(|e| format!("port {port} of domain {switch}: {e}"))?;
                self.settings[i] = *wanted;
            }
        }
        Ok(())
    }

    /// Makes all ports ideal.
    fn idealise(&mut self) -> Result<(), String> {
        self.apply(&vec![PortSettings::default(); self.settings.len()])
    }

    /// Gives all domains the factor `tdf`, in one instant.
    fn dilate(&mut self, tdf: Tdf) -> Result<(), String> {
        if tdf == self.tdf {
            return Ok(());
        }
        let domains: Vec<Listed> = self.hosts.listed();
        self.control().set_together(&domains, tdf, false).map_err(|e| e.to_string())?;
        self.tdf = tdf;
        Ok(())
    }

    fn path(&self, from: &str, to: &str, settings: &[PortSettings]) -> Vec<Hop> {
        self.network.path(from, to, settings).unwrap_or_default()
    }

    /// The address of a host; the scenario was checked, so that it has one.
    fn address(&self, host: &str) -> Result<String, String> {
        let address = self.network.link_of(host).and_then(|link| link.address);
        address.map(|(address, _)| address.to_string()).ok_or_else(|| format!("{host} is no host"))
    }

    /// Real time that something may take that takes `virtual_ns`.
    fn limit(&self, virtual_ns: i64) -> Duration {
        let real = self.tdf.to_real(i128::from(virtual_ns) * 2);
        COMMAND + Duration::from_nanos(u64::try_from(real).unwrap_or(u64::MAX))
    }

    fn call(&mut self, host: &str, command: &str, virtual_ns: i64) -> Result<Answer, String> {
        let limit = self.limit(virtual_ns);
        self.hosts.call(self.run.control, host, command, limit)
    }

    fn begin(&mut self, host: &str, command: &str) -> Result<Job, String> {
        self.hosts.start(self.run.control, host, command)
    }

    fn end(&mut self, job: Job, virtual_ns: i64) -> Result<Answer, String> {
        let limit = self.limit(virtual_ns);
        self.hosts.finish(self.run.control, job, limit)
    }

    /// Does what the check says, and judges it.
    fn check(&mut self, check: &Check, own: Tdf) -> CheckReport {
        let tdf = check.tdf.unwrap_or(own);
        let mut report = CheckReport {
            name: check.name.clone(),
            kind: check.kind.name(),
            tdf: tdf.to_string(),
            ..CheckReport::default()
        };
        let result = self.dilate(tdf).and_then(|()| self.measure(check, &mut report));
        report.faults.extend(result.err());
        report.pass = report.faults.is_empty() && report.figures.iter().all(|f| f.pass);
        report
    }

    fn take_down(&mut self) -> Vec<String> {
        let mut failures = self.run.destroy_all();
        for bridge in std::mem::take(&mut self.bridges) {
            let deleted = self.control().tool("ip", &["link", "delete", "dev", &bridge]);
            failures.extend(deleted.err().map(|e| e.to_string()));
        }
        failures
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::fake::{Fault, Machine, NetFault};
    use crate::report::Report;
    use crate::scenario::tests::read;

    const SCENARIO: &str = r#"
        name = "net"
        [[domain]]
        name = "s"
        kind = "guest"
        role = "switch"
        tdf = "10"
        [[domain]]
        name = "a"
        kind = "linux"
        test = "net"
        tdf = "10"
        [[domain]]
        name = "b"
        kind = "linux"
        test = "net"
        tdf = "10"
        [[link]]
        domain = "a"
        switch = "s"
        address = "10.0.0.1/24"
        [[link]]
        domain = "b"
        switch = "s"
        spare = 2
        address = "10.0.0.2/24"
        [[check]]
        name = "own"
        processing = { from = "a", to = "b", factors = ["1", "10", "100"] }
        [[check]]
        name = "far"
        ping = { from = "a", to = "b", size = 1000, within_percent = 1 }
        set = [
            { link = "a", delay = "1 ms", framing = "ethernet", ingress = { rate = "1 Mbit/s" } },
            { link = "b", delay = "3 ms", latency = "7 us" },
        ]
        [[check]]
        name = "lossy"
        ping = { from = "a", to = "b", count = 500 }
        set = [{ link = "b", loss = "10 %" }]
        [[check]]
        name = "flow"
        tdf = "5"
        tcp = { from = "a", to = "b" }
        set = [{ link = "b", rate = "10 Mbit/s", framing = "ethernet", queue = "20 frames" }]
        [[check]]
        name = "marks"
        tcp = { from = "a", to = "b", ecn = true }
        set = [{ link = "b", rate = "10 Mbit/s", framing = "ethernet", mark_above = "9 frames" }]
        [[check]]
        name = "full"
        overload = { from = "a", to = "b", rate = "21 Mbit/s" }
        set = [{ link = "b", rate = "10 Mbit/s", framing = "ethernet", queue = "50 frames" }]
        [[check]]
        name = "silence"
        idle = { switch = "s", for_virtual = "3 s" }
    "#;

    fn tried(text: &str, prepare: impl Fn(&mut Machine)) -> Report {
        let mut control = Machine::control();
        prepare(&mut control.machine);
        let report = crate::run::run(&mut control, &read(text).unwrap(), 1, Path::new("/assets"));
        assert!(control.machine.domains.is_empty(), "domains are left");
        assert!(control.machine.bridges.is_empty(), "bridges are left");
        report
    }

    #[test]
    fn a_network_that_does_as_the_model_says_passes_every_check() {
        let report = tried(SCENARIO, |_| {});
        assert!(report.pass, "{}", report.text());
        let names: Vec<&str> = report.checks.iter().map(|check| check.name.as_str()).collect();
        assert_eq!(names, ["own", "far", "lossy", "flow", "marks", "full", "silence"]);
        assert_eq!((report.checks[0].tdf.as_str(), report.checks[3].tdf.as_str()), ("-", "5"));
        let far = &report.checks[1].figures[0];
        // 1 Mbit/s for 1042 B, and the delays of both ends.
        assert_eq!(far.value, 1042 * 8_000 + 3_000_000 + 7_000 + 1_000_000);
    }

    #[test]
    fn a_full_queue_is_as_deep_as_theory_says_whatever_fills_it() {
        // Little too much, and far too much.
        for rate in ["12 Mbit/s", "17 Mbit/s", "20 Mbit/s", "30 Mbit/s", "33333333 bit/s"] {
            let report = tried(&SCENARIO.replace("21 Mbit/s", rate), |_| {});
            assert!(report.pass, "{rate}: {}", report.text());
        }
    }

    #[test]
    fn each_check_fails_when_the_network_does_otherwise() {
        for (fault, says) in [
            (NetFault::Early, "far: round trip"),
            (NetFault::Late, "far: round trip"),
            (NetFault::Late, "far: off the sum of both"),
            (NetFault::Undilated, "own: round trip at TDF 10"),
            (NetFault::Lossless, "lossy: lost: 0 pings"),
            (NetFault::Slow, "flow: goodput"),
            // Two round trips through 20 frames of 1.2304 ms are more than 1 % of a second.
            (NetFault::Lossy, "flow: not yet in order: 51 1/1000 is not at most 10"),
            (NetFault::Unmarked, "marks: marks set: 50 frames is not between"),
            (NetFault::Shallow, "full: round trip"),
            (NetFault::Roomy, "full: the port's buffer was never full"),
            (NetFault::Refuses, "the switch refused: I will not"),
            (NetFault::Mute, "s: it does not become a switch"),
            (NetFault::Ticks, "silence: processor time"),
            (NetFault::Leaks, "silence: free pieces of memory: 9 pieces is not between 10"),
        ] {
            let report = tried(SCENARIO, |machine| machine.network.fault = fault);
            let failures = report.failures.join("\n");
            assert!(!report.pass && failures.contains(says), "{says}: {}", report.text());
        }
    }

    #[test]
    fn a_rate_that_the_machine_cannot_carry_is_a_red_verdict() {
        let fast = SCENARIO.replace("rate = \"10 Mbit/s\"", "rate = \"10 Gbit/s\"");
        let report = tried(&fast, |_| {});
        let failures = report.failures.join("\n");
        assert!(failures.contains("flow: rate, beside the largest: 10000000000"), "{failures}");
        assert!(failures.contains("times larger TDF is needed"), "{failures}");
    }

    #[test]
    fn whatever_happens_nothing_is_left() {
        for fault in [Fault::Create, Fault::CreateHalf, Fault::Unpause, Fault::NoConsole] {
            assert!(!tried(SCENARIO, |machine| machine.fault = Some(fault)).pass);
        }
        for moment in 0..60 {
            let report = tried(SCENARIO, |machine| machine.interrupt_after = Some(moment));
            assert!(!report.pass && !report.failures.is_empty(), "{}", report.text());
        }
    }
}
