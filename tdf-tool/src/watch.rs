// SPDX-License-Identifier: MIT OR Apache-2.0
//! A domain with a probe, while it runs: what its console said, and what became of it.

use std::time::Duration;

use crate::changes::Changer;
use crate::create::Created;
use crate::dom0::{ConsoleId, printable};
use crate::judge::{Clocks, Paths, SegmentJudge};
use crate::paths;
use crate::probe;
use crate::report::{self, DomainReport, Row};
use crate::scenario::{Domain, Kind, Test, TscMode};
use crate::xen::DomId;

/// The clocks that a probe must have read.
pub(crate) const GUEST_CLOCKS: [&str; 5] =
    ["system_time", "wall_clock", "tsc", "timer", "set_timer_op"];
pub(crate) const LINUX_CLOCKS: [&str; 3] = ["CLOCK_MONOTONIC", "CLOCK_REALTIME", "nanosleep"];

/// The paths that our kernel must have tried, on each vCPU …
pub(crate) const GUEST_PATHS: [&str; 9] =
    ["P1", "P4", "P6", "P8", "P9", "P11", "P12", "P16", "P20"];
/// … of which a TSC that is emulated has more, and one that is not …
const EMULATED_PATHS: [&str; 2] = ["P2", "P17"];
pub(crate) const NATIVE_PATHS: [&str; 1] = ["P18"];
/// … and those that a domain has once.
const DOMAIN_PATHS: [&str; 1] = ["P13"];
/// What a watchdog that bites leaves.
const BITE: (&str, &str) = ("P13", "unpetted");
/// The row of the switch's model.
const MODEL: (&str, &str) = ("MODEL", "reference_trace");

/// What our kernel says after a storm of hypercalls, on each vCPU.
const GUEST_HOSTILE: [(&str, &str); 5] = [
    ("HOSTILE", "calls"),
    ("HOSTILE", "wrong_answers"),
    ("HOSTILE", "factors_set"),
    ("HOSTILE", "backward_steps"),
    ("HOSTILE", "timer_afterwards"),
];

/// What our kernel says after changes.
pub(crate) const GUEST_CHANGES: [(&str, &str); 5] = [
    ("CHANGES", "backward_steps"),
    ("CHANGES", "jumps"),
    ("CHANGES", "early_timers"),
    ("CHANGES", "lost_timers"),
    ("CHANGES", "reads"),
];

/// What our kernel says of timers that were armed before a change.
pub(crate) const GUEST_ARMED: [(&str, &str); 5] = [
    ("P8", "armed_then_changed"),
    ("P9", "armed_then_changed"),
    ("P9", "asleep_then_changed"),
    ("P11", "armed_then_changed"),
    ("P12", "armed_then_changed"),
];

/// Longest line of a console; longer ones are cut.
const LINE: usize = 1024;

/// What a probe said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// That all is well.
    Success,
    /// Something else.
    Other(String),
}

/// A domain that runs.
pub(crate) struct Watch<'a> {
    pub(crate) domain: &'a Domain,
    pub(crate) id: DomId,
    pub(crate) console: ConsoleId,
    pub(crate) line: Vec<u8>,
    pub(crate) clocks: Clocks,
    pub(crate) paths: Paths,
    pub(crate) time: Time,
    pub(crate) faults: Vec<String>,
    pub(crate) said: Option<Said>,
    /// Its probe has begun.
    pub(crate) began: bool,
    pub(crate) started: Duration,
    pub(crate) samples: u32,
    pub(crate) next_look: Duration,
    pub(crate) down_since: Option<Duration>,
    /// It needs no more watching, whether it said something or not.
    pub(crate) over: bool,
}

/// How dom0 watches the domain's virtual time.
pub(crate) enum Time {
    /// Its factor stays.
    Steady(SegmentJudge),
    /// Its factor changes.
    Changing(Box<Changer>),
}

impl<'a> Watch<'a> {
    pub(crate) fn new(
        domain: &'a Domain,
        created: &Created,
        console: ConsoleId,
        seed: u64,
    ) -> Self {
        let tdf = domain.factor.tdf();
        let time = match &domain.changes {
            Some(changes) => Time::Changing(Box::new(Changer::new(changes, seed, &domain.name))),
            None => Time::Steady(SegmentJudge::new(tdf, &created.before)),
        };
        Self {
            domain,
            id: created.id,
            console,
            line: Vec::new(),
            clocks: Clocks::new(tdf),
            paths: Paths::default(),
            time,
            faults: Vec::new(),
            said: None,
            began: false,
            started: Duration::ZERO,
            samples: 0,
            next_look: Duration::ZERO,
            down_since: None,
            over: false,
        }
    }

    pub(crate) fn span(&self) -> Duration {
        nanos(self.domain.span.real_ns(self.domain.factor.tdf()))
    }

    /// Nothing in it speaks to us.
    pub(crate) const fn silent(&self) -> bool {
        matches!(self.domain.kind, Kind::Config(_))
    }

    /// When the next sample of virtual time, or change of its factor, is due; `None` if none is.
    pub(crate) fn next(&self) -> Option<Duration> {
        let count = self.domain.samples;
        match &self.time {
            Time::Steady(_) if self.samples > count => None,
            Time::Steady(_) => Some(self.started + self.span() * self.samples / count),
            Time::Changing(_) if self.said.is_some() => None,
            Time::Changing(changer) => changer.next(),
        }
    }

    pub(crate) fn done(&self) -> bool {
        let all = match &self.time {
            Time::Steady(_) => self.next().is_none(),
            Time::Changing(changer) => self.said.is_some() || changer.complete(),
        };
        self.over || (all && (self.silent() || self.said.is_some()))
    }

    /// Whether `line` shows that the probe has begun: our kernel is as soon as it speaks; a Linux
    /// says much before it runs a program.
    pub(crate) fn begins(&self, line: &str) -> bool {
        match self.domain.kind {
            Kind::Guest => !line.is_empty(),
            Kind::Linux | Kind::Pvh => line == probe::BEGIN,
            Kind::Config(_) => false,
        }
    }

    pub(crate) fn give_up(&mut self, why: String) {
        self.faults.push(why);
        self.over = true;
    }

    /// Takes what the console brought; returns the complete lines.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for &byte in bytes {
            if byte == b'\n' {
                lines.extend(self.end_line());
            } else if self.line.len() < LINE {
                self.line.push(byte);
            }
        }
        lines
    }

    /// Takes what there is of the current line as a line.
    pub(crate) fn end_line(&mut self) -> Option<String> {
        let line = String::from_utf8_lossy(&self.line).trim_end().to_owned();
        self.line.clear();
        self.began |= self.begins(&line);
        if self.said.is_none() {
            match line.strip_prefix("Test result: ") {
                Some("SUCCESS") => self.said = Some(Said::Success),
                Some(other) => self.said = Some(Said::Other(printable(other))),
                None => {
                    self.clocks.line(&line);
                    self.paths.line(&line);
                }
            }
        }
        (!line.is_empty()).then(|| format!("{}| {}", self.domain.name, printable(&line)))
    }

    pub(crate) fn report(mut self) -> (DomainReport, Vec<String>) {
        let clocks: &[&str] = match (&self.domain.kind, self.domain.test) {
            (Kind::Guest, Test::Clocks) => &GUEST_CLOCKS,
            (Kind::Linux | Kind::Pvh, Test::Clocks) => &LINUX_CLOCKS,
            _ => &[],
        };
        if let Some(Said::Other(result)) = &self.said {
            self.faults.push(format!("its probe says {result} of itself"));
        }
        let real_ns = self.domain.span.real_ns(self.domain.factor.tdf());
        let (xen_row, mut path_rows, time_faults) = match self.time {
            Time::Steady(segment) => {
                let (row, faults) = segment.finish();
                (row, Vec::new(), faults)
            }
            Time::Changing(changer) => {
                let (rows, faults) = changer.finish();
                (None, rows, faults)
            }
        };
        let (clock_rows, clock_faults) = self.clocks.finish(clocks, real_ns);
        let (rows, path_faults) = self.paths.finish(&wanted_paths(self.domain));
        path_rows.extend(rows);
        let rows = xen_row.into_iter().chain(clock_rows).collect();
        let faults = [self.faults, time_faults, clock_faults, path_faults].concat();
        domain_report(self.domain, rows, path_rows, faults)
    }
}

/// The (path, probe, vCPU)s that the domain's probe must have tried.
pub(crate) fn wanted_paths(domain: &Domain) -> Vec<(&'static str, &'static str, u32)> {
    let on_first = |rows: &[(&'static str, &'static str)]| {
        rows.iter().map(|(path, probe)| (*path, *probe, 0)).collect()
    };
    match (&domain.kind, domain.test) {
        (Kind::Config(_), _) | (_, Test::Clocks | Test::Net) => Vec::new(),
        (_, Test::WatchdogBite) => on_first(&[BITE]),
        (_, Test::Model) => on_first(&[MODEL]),
        (_, Test::Armed) => on_first(&GUEST_ARMED),
        (Kind::Linux | Kind::Pvh, Test::Paths) => {
            let apic: &[_] = if domain.kind == Kind::Pvh { &paths::OF_APIC } else { &[] };
            let wanted = paths::WANTED.iter().chain(paths::of_tsc(domain.tsc_mode)).chain(apic);
            wanted.map(|path| (*path, "", 0)).collect()
        }
        (Kind::Linux | Kind::Pvh, _) => on_first(&probe::CHANGES),
        (Kind::Guest, Test::Changes) => on_first(&GUEST_CHANGES),
        (Kind::Guest, Test::Hostile) => {
            let each = |vcpu| GUEST_HOSTILE.map(|(path, probe)| (path, probe, vcpu));
            (0..domain.vcpus).flat_map(each).collect()
        }
        (Kind::Guest, Test::Paths) => {
            let tsc: &[&str] = match domain.tsc_mode {
                TscMode::Native => &NATIVE_PATHS,
                TscMode::AlwaysEmulate => &EMULATED_PATHS,
                TscMode::Default => &[],
            };
            let each = || GUEST_PATHS.iter().chain(tsc).map(|path| (*path, ""));
            let all = (0..domain.vcpus).flat_map(|vcpu| each().map(move |(p, q)| (p, q, vcpu)));
            all.chain(DOMAIN_PATHS.map(|path| (path, "", 0))).collect()
        }
    }
}

/// The report of a domain, and its failures.
pub(crate) fn domain_report(
    domain: &Domain,
    clocks: Vec<Row>,
    paths: Vec<report::Path>,
    faults: Vec<String>,
) -> (DomainReport, Vec<String>) {
    let report = DomainReport {
        name: domain.name.clone(),
        kind: domain.kind.to_string(),
        tdf: domain.factor.tdf().to_string(),
        tsc_mode: domain.tsc_mode.to_string(),
        vcpus: domain.vcpus,
        pass: faults.is_empty(),
        clocks,
        paths,
    };
    let named = faults.iter().map(|fault| format!("{}: {fault}", domain.name)).collect();
    (report, named)
}

/// `ns` as a duration.
pub(crate) const fn nanos(ns: i64) -> Duration {
    Duration::from_nanos(ns.unsigned_abs())
}
