// SPDX-License-Identifier: MIT OR Apache-2.0
//! Running a scenario.
//!
//! All domains of a scenario are made first, paused, each with its console open; then they run
//! together. While their probes read their clocks, dom0 samples their virtual time through the
//! hypervisor. A guest is believed nothing but its readings, and no guest can hold up the run: all
//! waiting has a deadline. Whatever happens, the domains that were made are destroyed.

use std::path::Path;
use std::time::Duration;

use crate::changes::Changer;
use crate::create::{CreateError, Created, Plan};
use crate::dom0::{ConsoleEvent, ConsoleId, Dom0};
use crate::guestcfg::{configuration, quote};
use crate::net;
use crate::report::{DomainReport, Report, XenReport};
use crate::scenario::{Domain, Factor, Kind, Scenario, Test, TscMode};
use crate::units::Span;
use crate::watch::{Said, Time, Watch, domain_report, nanos};
use crate::xen::{Control, DomId, ShutdownReason, State, XenError};

/// How long xenconsoled may take to make a console.
const CONSOLE_TIMEOUT: Duration = Duration::from_secs(30);
const CONSOLE_RETRY: Duration = Duration::from_millis(50);
/// How often a domain is looked at that says nothing.
const LOOK: Duration = Duration::from_millis(250);
/// How long the last words of a domain that is down may be on their way.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Real time for booting and for the toolstack …
const TIMEOUT_NS: i64 = 60_000_000_000;
/// … and virtual time that a guest's boot may spend sleeping …
const TIMEOUT_VIRTUAL_NS: i128 = 250_000_000;
/// … and that it takes to try all paths, some of which take seconds.
const PATHS_VIRTUAL_NS: i128 = 30_000_000_000;
/// … and that a hypercall of a hostile vCPU takes, in real time, while others do the same …
const CALL_NS: i64 = 100_000;
/// … and in which a watchdog that is not petted must have bitten.
const BITE_VIRTUAL_NS: i128 = 10_000_000_000;

/// Makes the next change of a domain's factor; after the last one lets the rest of its probe's span
/// pass quickly.
fn change<M: Dom0>(
    control: &mut Control<M>,
    id: DomId,
    changer: &mut Changer,
    now: Duration,
) -> Result<(), XenError> {
    let tdf = changer.pick();
    control.set_tdf(id, tdf, true)?;
    changer.add(tdf, &control.get_tdf(id)?, now);
    if changer.complete() {
        let last = changer.last_factor();
        control.set_tdf(id, last, true)?;
        changer.step(last, &control.get_tdf(id)?);
    }
    Ok(())
}

/// A run of a scenario.
pub(crate) struct Run<'a, M: Dom0> {
    pub(crate) control: &'a mut Control<M>,
    pub(crate) scenario: &'a Scenario,
    seed: u64,
    assets: &'a Path,
    /// Names of the domains that exist because of us.
    made: Vec<String>,
}

impl<M: Dom0> Drop for Run<'_, M> {
    fn drop(&mut self) {
        // Only after a panic is there anything left; then there is nobody to tell.
        self.destroy_all();
    }
}

/// Runs `scenario`.
pub fn run<M: Dom0>(
    control: &mut Control<M>,
    scenario: &Scenario,
    seed: u64,
    assets: &Path,
) -> Report {
    let version = control.version();
    let mut run = Run { control, scenario, seed, assets, made: Vec::new() };
    if let Some(network) = &scenario.network {
        return net::run(run, network, version);
    }
    let at_once = if scenario.sequential { 1 } else { scenario.domains.len().max(1) };
    let (mut domains, mut failures) = (Vec::new(), Vec::new());
    for group in scenario.domains.chunks(at_once) {
        for (report, faults) in run.group(group) {
            domains.push(report);
            failures.extend(faults);
        }
        failures.extend(run.destroy_all());
    }
    Report {
        schema: "tdf.run/1",
        scenario: scenario.name.clone(),
        seed,
        pass: failures.is_empty(),
        xen: XenReport { version },
        domains,
        checks: Vec::new(),
        failures,
    }
}

impl<M: Dom0> Run<'_, M> {
    pub(crate) const fn seed(&self) -> u64 {
        self.seed
    }

    /// Runs `domains` together; a report and the failures of each.
    fn group(&mut self, domains: &[Domain]) -> Vec<(DomainReport, Vec<String>)> {
        let mut prepared: Vec<Result<Watch<'_>, String>> = Vec::new();
        for domain in domains {
            prepared.push(self.prepare(domain));
        }
        // One that cannot be made fails the scenario, but the others still tell what they can.
        for watch in prepared.iter_mut().flatten() {
            self.start(watch);
        }
        let mut running: Vec<&mut Watch<'_>> = prepared.iter_mut().flatten().collect();
        self.watch(&mut running);
        let pairs = domains.iter().zip(prepared);
        pairs
            .map(|(domain, prepared)| match prepared {
                Ok(watch) => watch.report(),
                Err(why) => domain_report(domain, Vec::new(), Vec::new(), vec![why]),
            })
            .collect()
    }

    pub(crate) fn log(&mut self, text: &str) {
        self.control.machine.log(&format!("tdf| {text}"));
    }

    fn plan(&mut self, domain: &Domain) -> Result<Plan, String> {
        // Without a monitor (-e) a domain that shuts down stays until we have read its last words.
        let mut xl_args = vec!["-e".to_owned(), "-q".to_owned()];
        let network = self.scenario.network.as_ref();
        let config = match (configuration(domain, network, self.seed, self.assets), &domain.kind) {
            (None, Kind::Config(path)) => {
                xl_args.push(format!("name={}", quote(&domain.name)));
                xl_args.extend(domain.memory_mib.map(|mib| format!("memory={mib}")));
                if domain.tsc_mode != TscMode::Default {
                    xl_args.push(format!("tsc_mode=\"{}\"", domain.tsc_mode));
                }
                path.clone()
            }
            (text, _) => self
                .control
                .machine
                .write_config(
                    &self.scenario.name,
                    &format!("{}.cfg", domain.name),
                    &text.unwrap_or_default(),
                )
                .map_err(|e| format!("its configuration cannot be written: {e}"))?,
        };
        let (tdf, reveal) = match domain.factor {
            Factor::Set(tdf) => (Some(tdf), true),
            Factor::Default(_) => (None, false),
        };
        let config = config.to_string_lossy().into_owned();
        Ok(Plan { name: domain.name.clone(), config, xl_args, tdf, reveal })
    }

    fn prepare<'d>(&mut self, domain: &'d Domain) -> Result<Watch<'d>, String> {
        let (created, console) = self.make(domain)?;
        Ok(Watch::new(domain, &created, console, self.seed))
    }

    /// Makes the domain, which does not run yet, and opens its console.
    pub(crate) fn make(&mut self, domain: &Domain) -> Result<(Created, ConsoleId), String> {
        let plan = self.plan(domain)?;
        let created = match self.control.build(&plan) {
            Ok(created) => created,
            Err(e) => {
                if matches!(e, CreateError::LeftBehind(..)) {
                    self.made.push(domain.name.clone());
                }
                return Err(e.to_string());
            }
        };
        self.made.push(domain.name.clone());
        if let Factor::Default(expected) = domain.factor {
            self.reveal_default(&created, expected)?;
        }
        let console = self.console(created.id)?;
        self.log(&format!("{} is domain {}, TDF {}", domain.name, created.id, created.now.tdf));
        Ok((created, console))
    }

    /// The domain has the hypervisor's factor, which nobody has set; now it may read real time.
    fn reveal_default(&mut self, created: &Created, expected: tdf_abi::Tdf) -> Result<(), String> {
        let got = created.before.tdf;
        if got != expected {
            return Err(format!(
                "the hypervisor's default made it run at TDF {got}, not {expected}"
            ));
        }
        self.control.set_tdf(created.id, got, true).map_err(|e| e.to_string())
    }

    fn console(&mut self, id: DomId) -> Result<ConsoleId, String> {
        let deadline = self.control.machine.now() + CONSOLE_TIMEOUT;
        loop {
            if let Some(tty) = self.control.console_tty(id).map_err(|e| e.to_string())? {
                let console = self.control.machine.open_console(&tty);
                return console.map_err(|e| format!("its console {tty} cannot be opened: {e}"));
            }
            if self.control.machine.interrupted() {
                return Err(CreateError::Interrupted.to_string());
            }
            if self.control.machine.now() >= deadline {
                return Err("it has no console: is xenconsoled running?".to_owned());
            }
            // Its domain has not run, so no console has anything to say meanwhile.
            self.control
                .machine
                .wait(CONSOLE_RETRY)
                .map_err(|e| format!("consoles cannot be watched: {e}"))?;
        }
    }

    fn start(&mut self, watch: &mut Watch<'_>) {
        if let Err(e) = self.control.start(&watch.domain.name) {
            return watch.give_up(e.to_string());
        }
        // The first sample, before the span begins: the last is then at least the span later.
        self.act(watch, Duration::ZERO);
        watch.began |= watch.silent();
        watch.started = self.control.machine.now();
        watch.next_look = watch.started + LOOK;
    }

    fn timeout(&self, domain: &Domain) -> Duration {
        let tdf = domain.factor.tdf();
        let usual = || {
            let sleeping = match domain.test {
                Test::Paths => TIMEOUT_VIRTUAL_NS + PATHS_VIRTUAL_NS,
                Test::WatchdogBite => TIMEOUT_VIRTUAL_NS + BITE_VIRTUAL_NS,
                Test::Clocks
                | Test::Changes
                | Test::Armed
                | Test::Hostile
                | Test::Model
                | Test::Net => TIMEOUT_VIRTUAL_NS,
            };
            let sleeping = i64::try_from(tdf.to_real(sleeping)).unwrap_or(i64::MAX);
            let span = match &domain.changes {
                // What is left of the span passes fast.
                Some(changes) => changes.within.ns().saturating_mul(2 * i64::from(changes.count)),
                None => domain.span.real_ns(tdf).saturating_mul(4),
            };
            let calls = match domain.test {
                Test::Hostile => i64::try_from(domain.calls).unwrap_or(i64::MAX),
                _ => 0,
            };
            let calls = calls.saturating_mul(CALL_NS * i64::from(domain.vcpus));
            span.saturating_add(calls).saturating_add(TIMEOUT_NS).saturating_add(sleeping)
        };
        nanos(self.scenario.timeout.map_or_else(usual, Span::ns))
    }

    fn watch(&mut self, watches: &mut [&mut Watch<'_>]) {
        while watches.iter().any(|watch| !watch.done()) {
            if self.control.machine.interrupted() {
                let unfinished = watches.iter_mut().filter(|watch| !watch.done());
                unfinished.for_each(|watch| watch.give_up("interrupted".to_owned()));
                break;
            }
            let now = self.control.machine.now();
            let mut next = now + LOOK;
            for watch in watches.iter_mut().filter(|watch| !watch.over) {
                self.act(watch, now);
                if !watch.done() {
                    self.look(watch, now);
                }
                next = next.min(watch.next().unwrap_or(next));
            }
            let now = self.control.machine.now();
            match self.control.machine.wait(next.saturating_sub(now)) {
                Ok(events) => self.dispatch(watches, &events),
                Err(e) => {
                    let why = format!("consoles cannot be watched: {e}");
                    watches.iter_mut().for_each(|watch| watch.give_up(why.clone()));
                }
            }
        }
        for watch in watches.iter_mut() {
            if let Time::Changing(changer) = &mut watch.time
                && let Ok(last) = self.control.get_tdf(watch.id)
            {
                changer.end(&last);
            }
            if let Some(line) = watch.end_line() {
                self.control.machine.log(&line);
            }
        }
    }

    /// Does what is due: a sample of the domain's virtual time, or a change of its factor.
    fn act(&mut self, watch: &mut Watch<'_>, now: Duration) {
        let due = watch.next().is_some_and(|due| now >= due);
        let result = match &mut watch.time {
            Time::Changing(changer) if watch.began && !changer.begun() => {
                self.control.get_tdf(watch.id).map(|dilation| changer.begin(now, &dilation))
            }
            _ if !due => return,
            Time::Steady(segment) => {
                watch.samples += 1;
                self.control.get_tdf(watch.id).map(|dilation| segment.add(&dilation))
            }
            Time::Changing(changer) => change(self.control, watch.id, changer, now),
        };
        if let Err(e) = result {
            watch.give_up(format!("its virtual time cannot be sampled or changed: {e}"));
        }
    }

    /// Notices a domain that will say nothing any more.
    fn look(&mut self, watch: &mut Watch<'_>, now: Duration) {
        if now < watch.next_look || watch.said.is_some() {
            return;
        }
        watch.next_look = now + LOOK;
        let timeout = self.timeout(watch.domain);
        if now >= watch.started + timeout {
            let seconds = timeout.as_secs();
            return watch.give_up(format!("no line `Test result: …` in {seconds} s of real time"));
        }
        let mut bitten = false;
        let end = match self.control.state(watch.id) {
            Ok(State::Alive | State::Paused) => return,
            Ok(State::Shutdown(reason)) if watch.domain.test == Test::WatchdogBite => {
                bitten = reason == ShutdownReason::WATCHDOG;
                format!("it {reason}")
            }
            Ok(State::Shutdown(reason)) => format!("it {reason}"),
            Ok(State::Gone) => "it is gone".to_owned(),
            Err(e) => return watch.give_up(e.to_string()),
        };
        if now >= *watch.down_since.get_or_insert(now) + LAST_WORDS {
            if bitten {
                watch.said = Some(Said::Success);
                return;
            }
            watch.give_up(format!("{end} without a line `Test result: …`"));
        }
    }

    fn dispatch(&mut self, watches: &mut [&mut Watch<'_>], events: &[ConsoleEvent]) {
        for event in events {
            let (ConsoleEvent::Bytes(id, _) | ConsoleEvent::Closed(id)) = event;
            let Some(watch) = watches.iter_mut().find(|watch| watch.console == *id) else {
                continue;
            };
            let lines = match event {
                ConsoleEvent::Bytes(_, bytes) => watch.bytes(bytes),
                ConsoleEvent::Closed(_) => watch.end_line().into_iter().collect(),
            };
            lines.iter().for_each(|line| self.control.machine.log(line));
        }
    }

    /// Destroys what exists because of us; a sentence for each domain that would not go.
    pub(crate) fn destroy_all(&mut self) -> Vec<String> {
        let mut failures = Vec::new();
        // The last first: a host before the switch that is its driver domain.
        for name in std::mem::take(&mut self.made).into_iter().rev() {
            let result = self.control.domid(&name).and_then(|id| match id {
                Some(id) => self.control.xl(&["destroy", &id.to_string()]).map(drop),
                None => Ok(()),
            });
            failures.extend(result.err().map(|e| format!("{name}: it is still there: {e}")));
        }
        failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Behaviour, Fault, Machine};
    use crate::scenario::tests::read;
    use crate::watch::{GUEST_CLOCKS, GUEST_PATHS, LINUX_CLOCKS, NATIVE_PATHS};

    const SCENARIO: &str = r#"
        name = "trial"
        [[domain]]
        name = "native"
        kind = "guest"
        tdf = "10"
        tsc_mode = "native"
        [[domain]]
        name = "linux"
        kind = "linux"
        tdf = "5/2"
        [[check]]
        clocks = ["native", "linux"]
        for_real = "4 s"
    "#;

    fn tried(text: &str, prepare: impl Fn(&mut Machine)) -> (Report, Control<Machine>) {
        let mut control = Machine::control();
        prepare(&mut control.machine);
        let report = run(&mut control, &read(text).unwrap(), 1, Path::new("/assets"));
        assert!(control.machine.domains.is_empty(), "domains are left");
        (report, control)
    }

    fn fails(prepare: impl Fn(&mut Machine), says: &str) -> Report {
        let (report, _) = tried(SCENARIO, prepare);
        let failures = report.failures.join("\n");
        assert!(!report.pass && failures.contains(says), "{says}: {}", report.text());
        report
    }

    fn behave(name: &str, behaviour: Behaviour) -> impl Fn(&mut Machine) {
        move |machine| {
            machine.behaviours.insert(name.to_owned(), behaviour);
        }
    }

    #[test]
    fn right_clocks_pass_and_every_clock_has_its_row() {
        let (report, control) = tried(SCENARIO, |_| {});
        assert!(report.pass, "{}", report.text());
        let rows = |i: usize| -> Vec<&str> {
            report.domains[i].clocks.iter().map(|row| row.name.as_str()).collect()
        };
        assert_eq!(rows(0), [&["xen"][..], &GUEST_CLOCKS].concat());
        assert_eq!(rows(1), [&["xen"][..], &LINUX_CLOCKS].concat());
        for row in report.domains.iter().flat_map(|domain| &domain.clocks) {
            assert!(row.pass && row.readings >= 19, "{row:?}");
        }
        let xen = &report.domains[0].clocks[0];
        assert!(xen.readings == 20 && xen.error_ns.abs() <= 1 && xen.bound_ns == 1);
        assert_eq!(report.xen.version, "4.17.5");
        let log = control.machine.log.join("\n");
        assert!(log.contains("native| booting \u{fffd}[1m") && log.contains("linux| Test result"));
    }

    #[test]
    fn the_virtual_span_is_that_of_the_factor() {
        let (_, control) = tried(SCENARIO, |_| {});
        let config = |name: &str| &control.machine.files[&format!("/run/trial/{name}.cfg")];
        assert!(config("native").contains("span_ns=400000000 samples=20 seed=1\""));
        assert!(config("linux").contains(
            "extra = \"console=hvc0 quiet cryptomgr.notests test=clocks span_ns=1600000000"
        ));
        assert!(config("linux").contains("ramdisk = \"/assets/linux-probe.cgz\""));
    }

    #[test]
    fn the_same_seed_gives_the_same_document_and_log() {
        let (first, again) = (tried(SCENARIO, |_| {}), tried(SCENARIO, |_| {}));
        assert_eq!(first.0.json(), again.0.json());
        assert_eq!(first.1.machine.log, again.1.machine.log);
    }

    #[test]
    fn a_clock_that_is_one_ppm_fast_fails_although_its_guest_is_content() {
        let report = fails(behave("native", Behaviour::Fast), "native: tsc: after");
        assert!(!report.domains[0].pass && report.domains[1].pass);
        fails(behave("linux", Behaviour::Fast), "linux: CLOCK_REALTIME: after");
    }

    #[test]
    fn guests_that_misbehave_fail_and_hold_up_nothing() {
        for (behaviour, says) in [
            (Behaviour::Missing, "native: timer: the guest never read it"),
            (Behaviour::SaysFailure, "native: its probe says FAILURE"),
            (Behaviour::Mute, "native: no line `Test result: …` in 78 s"),
            (Behaviour::Floods, "native: no line `Test result: …`"),
            (Behaviour::Crashes, "native: it crashed without a line"),
        ] {
            let report = fails(behave("native", behaviour), says);
            assert!(report.domains[1].pass, "{}", report.text());
        }
    }

    #[test]
    fn a_hypervisor_that_misbehaves_fails() {
        fails(|m| m.fault = Some(Fault::Jump), "virtual time is 3 ns off its own segment");
        fails(|m| m.fault = Some(Fault::NoPatch), "no time dilation");
        fails(|m| m.fault = Some(Fault::Set(libc::EOPNOTSUPP)), "cannot dilate domain");
        fails(|m| m.fault = Some(Fault::NoConsole), "is xenconsoled running?");
        fails(|m| m.fault = Some(Fault::Unpause), "`xl unpause native` failed");
    }

    #[test]
    fn interrupted_at_any_moment_no_domain_is_left() {
        for moment in 0..40 {
            fails(|m| m.interrupt_after = Some(moment), "interrupted");
        }
    }

    #[test]
    fn a_domain_that_will_not_go_is_reported() {
        let mut control = Machine::control();
        control.machine.indestructible = true;
        let report = run(&mut control, &read(SCENARIO).unwrap(), 1, Path::new("/"));
        assert!(!report.pass && report.failures[1].contains("native: it is still there"));
    }

    #[test]
    fn a_domain_of_ones_own_needs_no_probe_however_long_others_take() {
        let own = SCENARIO.replace("kind = \"guest\"", "kind = \"own.cfg\"");
        let (report, control) = tried(&own, behave("linux", Behaviour::Mute));
        let [own, linux] = &report.domains[..] else { panic!("two domains") };
        assert!(own.pass && !linux.pass, "{}", report.text());
        assert_eq!((own.kind.as_str(), own.clocks.len()), ("config", 1));
        assert!(!control.machine.files.contains_key("/run/trial/native.cfg"));
    }

    const DEFAULT: &str = r#"
        name = "default"
        sequential = true
        [[domain]]
        name = "a"
        kind = "guest"
        create = "xl"
        expect_tdf = "20"
        [[domain]]
        name = "b"
        kind = "guest"
        tdf = "1"
        [[check]]
        clocks = ["a"]
        for_virtual = "100 ms"
        [[check]]
        clocks = ["b"]
        for_real = "2 s"
    "#;

    #[test]
    fn the_default_of_the_hypervisor_is_checked_before_anything_is_set() {
        let twenty = |machine: &mut Machine| machine.default = "20".parse().unwrap();
        let (report, _) = tried(DEFAULT, twenty);
        assert!(report.pass, "{}", report.text());
        assert_eq!(report.domains[0].clocks[0].virtual_ns / 1_000_000, 100);
        let (report, control) = tried(DEFAULT, |_| {});
        assert!(report.failures[0].contains("made it run at TDF 1, not 20"), "{}", report.text());
        assert_eq!(control.machine.sets, 1, "only b is set");
        assert!(report.domains[1].pass);
    }

    const PATHS: &str = r#"
        name = "paths"
        [[domain]]
        name = "a"
        kind = "guest"
        tdf = "10"
        vcpus = 2
        tsc_mode = "native"
        test = "paths"
        [[check]]
        clocks = ["a"]
        for_virtual = "100 ms"
    "#;

    #[test]
    fn paths_are_tried_judged_and_shown_beside_the_clock_of_xen() {
        let (report, control) = tried(PATHS, |_| {});
        assert!(report.pass, "{}", report.text());
        let a = &report.domains[0];
        let each = GUEST_PATHS.len() + NATIVE_PATHS.len();
        assert_eq!((a.vcpus, a.clocks.len(), a.paths.len()), (2, 1, 2 * each + 1));
        assert!(a.paths.iter().all(|row| row.pass));
        let config = &control.machine.files["/run/paths/a.cfg"];
        assert!(config.contains("vcpus = 2") && config.contains("test=paths span_ns=100000000 "));
        let (report, _) = tried(PATHS, behave("a", Behaviour::Fast));
        assert!(report.failures[0].contains("a: P1: any: 1 is not between 0 and 0"));
        let (report, _) = tried(PATHS, behave("a", Behaviour::Missing));
        assert_eq!(report.failures, ["a: P1: the guest never tried it"]);
    }

    #[test]
    fn a_watchdog_that_nobody_pets_must_bite() {
        let bite = PATHS.replace("test = \"paths\"", "test = \"watchdog-bite\"");
        let tried = |behaviour| {
            let (report, _) = tried(&bite, behave("a", behaviour));
            report.failures.join("\n")
        };
        assert_eq!(tried(Behaviour::Good), "");
        assert_eq!(tried(Behaviour::Missing), "a: P13 unpetted: the guest never tried it");
        assert!(tried(Behaviour::Crashes).contains("it crashed without a line"));
        assert_eq!(tried(Behaviour::SaysFailure), "a: its probe says FAILURE of itself");
    }

    const CHANGES: &str = r#"
        name = "changes"
        [[domain]]
        name = "a"
        kind = "guest"
        tdf = "10"
        test = "changes"
        [[domain]]
        name = "b"
        kind = "linux"
        tdf = "1"
        test = "changes"
        [[domain]]
        name = "c"
        kind = "c.cfg"
        tdf = "1"
        [[change]]
        domains = ["a", "b", "c"]
        count = 300
        factors = ["1/1000", "1/2", "1", "7/3", "10"]
        every = "5 ms"
    "#;

    #[test]
    fn factors_change_while_probes_watch_and_everything_adds_up() {
        let (report, control) = tried(CHANGES, |_| {});
        assert!(report.pass, "{}", report.text());
        for domain in &report.domains {
            let row = |probe: &str| domain.paths.iter().find(|row| row.probe == probe).unwrap();
            assert_eq!(row("xen:changes").value, 300);
            assert!(row("xen:elapsed_minus_sum").value < 0);
            assert!(domain.clocks.is_empty());
        }
        // Each domain once in the beginning, each change, and once in the end.
        assert!((900..=906).contains(&control.machine.sets), "{}", control.machine.sets);
    }

    #[test]
    fn timers_that_are_armed_must_be_tried_each() {
        let armed = CHANGES.replacen("test = \"changes\"", "test = \"armed\"", 1);
        let tried = |behaviour| tried(&armed, behave("a", behaviour)).0.failures.join("\n");
        assert_eq!(tried(Behaviour::Good), "");
        assert_eq!(tried(Behaviour::Missing), "a: P8 armed_then_changed: the guest never tried it");
        assert!(tried(Behaviour::Fast).contains("a: P8: armed_then_changed: 1 is not between"));
    }

    #[test]
    fn changes_that_break_the_clock_or_that_a_probe_does_not_outlast_fail() {
        let failures = |behaviour: Behaviour, fault| {
            let (report, _) = tried(CHANGES, |machine| {
                machine.fault = fault;
                machine.behaviours.insert("a".to_owned(), behaviour);
            });
            report.failures.join("\n")
        };
        let jump = failures(Behaviour::Good, Some(Fault::Jump));
        assert!(jump.contains("b: CHANGES: xen:off_own_segment: 3 is not"), "{jump}");
        let missing = failures(Behaviour::Missing, None);
        assert_eq!(missing, "a: CHANGES backward_steps: the guest never tried it");
        let wrong = failures(Behaviour::Fast, None);
        assert!(wrong.contains("a: CHANGES: jumps: 1 is not between 0 and 0"), "{wrong}");
        let mute = failures(Behaviour::Mute, None);
        assert!(mute.contains("a: the probe never began to watch"), "{mute}");
        assert!(mute.contains("a: no line `Test result: …` in 7"), "{mute}");
    }
}
