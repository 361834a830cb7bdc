// SPDX-License-Identifier: MIT OR Apache-2.0
//! The verdict of a run: a table for people, a document for programs.

use std::fmt::Write;

use serde::Serialize;
use tdf_xen::path::PathRow;
use tdf_xen::reading::Verdict;

use crate::show::to_json;

/// One clock of one domain, judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The clock; `xen` is the domain's virtual time as the hypervisor reports it.
    pub name: String,
    /// Readings judged, the first not counted.
    pub readings: u32,
    /// Real time since the first reading, ns; of the worst reading, as all that follows.
    pub real_ns: i64,
    /// What the clock advanced meanwhile.
    pub virtual_ns: i64,
    /// What it should have.
    pub expected_ns: i64,
    /// The difference.
    pub error_ns: i64,
    /// What theory allows the difference to be.
    pub bound_ns: i64,
    /// Every reading kept its bound.
    pub pass: bool,
}

impl Row {
    /// The row of a clock that was judged.
    pub fn new(name: &str, verdict: &Verdict) -> Self {
        Self {
            name: name.to_owned(),
            readings: verdict.readings,
            real_ns: verdict.real_ns,
            virtual_ns: verdict.virtual_ns,
            expected_ns: verdict.expected_ns,
            error_ns: verdict.error_ns,
            bound_ns: verdict.bound_ns,
            pass: verdict.pass,
        }
    }

    /// A sentence, if the clock failed.
    pub fn complaint(&self) -> Option<String> {
        (!self.pass).then(|| {
            format!(
                "{}: after {} ns of real time it had advanced {} ns instead of {}: error {} ns, \
                 allowed {}",
                self.name,
                self.real_ns,
                self.virtual_ns,
                self.expected_ns,
                self.error_ns,
                self.bound_ns
            )
        })
    }
}

/// One of Xen's time paths, tried in one way, judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Path {
    /// Its row in the table of paths (`P8`), or `CHANGES`.
    pub path: String,
    /// How it was tried.
    pub probe: String,
    /// On which vCPU.
    pub vcpu: u32,
    /// The least right value.
    pub lo: i64,
    /// What was measured, ns of virtual time unless the probe's name says otherwise.
    pub value: i64,
    /// The greatest right value.
    pub hi: i64,
    /// The value lies between the two.
    pub pass: bool,
}

impl Path {
    /// A row that dom0 itself measured.
    pub fn new(path: &str, probe: &str, lo: i64, value: i64, hi: i64) -> Self {
        let pass = (lo..=hi).contains(&value);
        Self { path: path.to_owned(), probe: probe.to_owned(), vcpu: 0, lo, value, hi, pass }
    }

    /// A sentence, if the path failed.
    pub fn complaint(&self) -> Option<String> {
        let Self { path, probe, vcpu, lo, value, hi, .. } = self;
        let on = if *vcpu == 0 { String::new() } else { format!(" on vCPU {vcpu}") };
        (!self.pass).then(|| format!("{path}: {probe}{on}: {value} is not between {lo} and {hi}"))
    }
}

impl From<&PathRow<'_>> for Path {
    /// Judges the row again; `probe@1` is the probe on vCPU 1.
    fn from(row: &PathRow<'_>) -> Self {
        let (probe, vcpu) = match row.probe.rsplit_once('@') {
            Some((probe, vcpu)) => match vcpu.parse() {
                Ok(vcpu) => (probe, vcpu),
                Err(_) => (row.probe, 0),
            },
            None => (row.probe, 0),
        };
        Self { vcpu, ..Self::new(row.path, probe, row.lo, row.value, row.hi) }
    }
}

/// One figure of a check in a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// In what.
    pub unit: &'static str,
    /// The least right value; `None`: any.
    pub lo: Option<i64>,
    /// What it was.
    pub value: i64,
    /// The greatest right value; `None`: any.
    pub hi: Option<i64>,
    /// The value lies between the two.
    pub pass: bool,
}

impl Figure {
    /// A figure that is judged.
    pub fn judged(what: &str, unit: &'static str, range: (i64, i64), value: i64) -> Self {
        let (lo, hi) = range;
        let pass = (lo..=hi).contains(&value);
        Self { what: what.to_owned(), unit, lo: Some(lo), value, hi: Some(hi), pass }
    }

    /// A figure that may be whatever it is.
    pub fn plain(what: &str, unit: &'static str, value: i64) -> Self {
        Self { what: what.to_owned(), unit, lo: None, value, hi: None, pass: true }
    }

    /// A figure that is to be so much at least.
    pub fn at_least(what: &str, unit: &'static str, lo: i64, value: i64) -> Self {
        Self { what: what.to_owned(), unit, lo: Some(lo), value, hi: None, pass: value >= lo }
    }

    /// A figure that is to be so much at most.
    pub fn at_most(what: &str, unit: &'static str, value: i64, hi: i64) -> Self {
        Self { what: what.to_owned(), unit, lo: None, value, hi: Some(hi), pass: value <= hi }
    }

    fn complaint(&self) -> Option<String> {
        let Self { what, unit, lo, value, hi, .. } = self;
        let bound = match (lo, hi) {
            (Some(lo), Some(hi)) => format!("between {lo} and {hi}"),
            (Some(lo), None) => format!("at least {lo}"),
            (None, Some(hi)) => format!("at most {hi}"),
            (None, None) => return None,
        };
        (!self.pass).then(|| format!("{what}: {value} {unit} is not {bound}"))
    }
}

/// A check in a network, judged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// What the scenario calls it.
    pub name: String,
    /// Its kind.
    pub kind: &'static str,
    /// The factor of the domains.
    pub tdf: String,
    /// Nothing failed.
    pub pass: bool,
    /// What was measured.
    pub figures: Vec<Figure>,
    /// Why it could not be judged.
    pub faults: Vec<String>,
    /// A plot of it (SVG), where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plot: Option<String>,
}

impl CheckReport {
    /// A sentence for each failure.
    pub fn complaints(&self) -> Vec<String> {
        let figures = self.figures.iter().filter_map(Figure::complaint);
        let all = figures.chain(self.faults.iter().cloned());
        all.map(|why| format!("{}: {why}", self.name)).collect()
    }
}

/// One domain, judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DomainReport {
    /// Its name.
    pub name: String,
    /// What ran in it.
    pub kind: String,
    /// The factor that it was to have.
    pub tdf: String,
    /// Its TSC mode.
    pub tsc_mode: String,
    /// Its virtual CPUs.
    pub vcpus: u32,
    /// Nothing failed.
    pub pass: bool,
    /// Its clocks.
    pub clocks: Vec<Row>,
    /// The time paths that it tried, or that dom0 did.
    pub paths: Vec<Path>,
}

/// The hypervisor of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct XenReport {
    /// Its version.
    pub version: String,
}

/// A whole run (`tdf.run/1`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// `tdf.run/1`.
    pub schema: &'static str,
    /// The scenario's name.
    pub scenario: String,
    /// The seed.
    pub seed: u64,
    /// Everything holds.
    pub pass: bool,
    /// The hypervisor.
    pub xen: XenReport,
    /// The domains, in the scenario's order.
    pub domains: Vec<DomainReport>,
    /// The checks in their network, in the scenario's order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckReport>,
    /// A sentence for each failure.
    pub failures: Vec<String>,
}

const CLOCKS: [&str; 12] = [
    "DOMAIN",
    "KIND",
    "TSC MODE",
    "TDF",
    "CLOCK",
    "READINGS",
    "REAL ns",
    "VIRTUAL ns",
    "EXPECTED ns",
    "ERROR",
    "BOUND",
    "VERDICT",
];

const PATHS: [&str; 10] =
    ["DOMAIN", "VCPU", "TSC MODE", "TDF", "PATH", "PROBE", "LO", "VALUE", "HI", "VERDICT"];

const CHECKS: [&str; 8] = ["CHECK", "TDF", "WHAT", "LO", "VALUE", "HI", "UNIT", "VERDICT"];

/// The first line of a table is its header. Columns in `numbers` are.
pub(crate) fn table<const N: usize>(
    lines: &[[String; N]],
    numbers: std::ops::RangeInclusive<usize>,
) -> String {
    let width =
        |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut out = String::new();
    for line in lines {
        let cells: Vec<String> =
            line.iter()
                .zip(&widths)
                .enumerate()
                .map(|(i, (cell, &w))| {
                    if numbers.contains(&i) { format!("{cell:>w$}") } else { format!("{cell:w$}") }
                })
                .collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out.push('\n');
    out
}

pub(crate) const fn verdict(pass: bool) -> &'static str {
    if pass { "ok" } else { "FAIL" }
}

impl Report {
    /// The JSON document.
    pub fn json(&self) -> String {
        to_json(self)
    }

    /// The tables, the failures, and `PASS` or `FAIL`.
    pub fn text(&self) -> String {
        let mut out = self.clocks();
        if self.domains.iter().any(|domain| !domain.paths.is_empty()) {
            out.push_str(&self.paths());
        }
        if !self.checks.is_empty() {
            out.push_str(&self.checks());
        }
        for failure in &self.failures {
            // Writing to a String does not fail.
            let _ = writeln!(out, "{failure}");
        }
        out.push_str(if self.pass { "PASS\n" } else { "FAIL\n" });
        out
    }

    /// The table of clocks, with a line for each domain that has no row at all; empty if there is
    /// nothing to show.
    fn clocks(&self) -> String {
        let mut lines = vec![CLOCKS.map(str::to_owned)];
        for domain in &self.domains {
            let DomainReport { name, kind, tsc_mode, tdf, .. } = domain;
            for row in &domain.clocks {
                lines.push([
                    name.clone(),
                    kind.clone(),
                    tsc_mode.clone(),
                    tdf.clone(),
                    row.name.clone(),
                    row.readings.to_string(),
                    row.real_ns.to_string(),
                    row.virtual_ns.to_string(),
                    row.expected_ns.to_string(),
                    row.error_ns.to_string(),
                    row.bound_ns.to_string(),
                    verdict(row.pass).to_owned(),
                ]);
            }
            if domain.clocks.is_empty() && domain.paths.is_empty() && self.checks.is_empty() {
                let mut line = CLOCKS.map(|_| "-".to_owned());
                line[..4].clone_from_slice(&[name, kind, tsc_mode, tdf].map(String::clone));
                line[CLOCKS.len() - 1] = verdict(false).to_owned();
                lines.push(line);
            }
        }
        if lines.len() == 1 { String::new() } else { table(&lines, 5..=10) }
    }

    /// The table of checks.
    fn checks(&self) -> String {
        let mut lines = vec![CHECKS.map(str::to_owned)];
        let bound = |bound: Option<i64>| bound.map_or_else(|| "-".to_owned(), |b| b.to_string());
        for check in &self.checks {
            let CheckReport { name, tdf, .. } = check;
            for figure in &check.figures {
                lines.push([
                    name.clone(),
                    tdf.clone(),
                    figure.what.clone(),
                    bound(figure.lo),
                    figure.value.to_string(),
                    bound(figure.hi),
                    figure.unit.to_owned(),
                    match (figure.lo, figure.hi) {
                        (None, None) => String::new(),
                        _ => verdict(figure.pass).to_owned(),
                    },
                ]);
            }
            if check.figures.is_empty() {
                let mut line = CHECKS.map(|_| "-".to_owned());
                line[0].clone_from(name);
                line[CHECKS.len() - 1] = verdict(check.pass).to_owned();
                lines.push(line);
            }
        }
        table(&lines, 3..=5)
    }

    /// The table of paths.
    fn paths(&self) -> String {
        let mut lines = vec![PATHS.map(str::to_owned)];
        for domain in &self.domains {
            for row in &domain.paths {
                lines.push([
                    domain.name.clone(),
                    row.vcpu.to_string(),
                    domain.tsc_mode.clone(),
                    domain.tdf.clone(),
                    row.path.clone(),
                    row.probe.clone(),
                    row.lo.to_string(),
                    row.value.to_string(),
                    if row.hi == i64::MAX { "any".to_owned() } else { row.hi.to_string() },
                    verdict(row.pass).to_owned(),
                ]);
            }
        }
        table(&lines, 6..=8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            schema: "tdf.run/1",
            scenario: "s".into(),
            seed: 7,
            pass: false,
            xen: XenReport { version: "4.17.5".into() },
            domains: vec![
                DomainReport {
                    name: "a".into(),
                    kind: "guest".into(),
                    tdf: "5/2".into(),
                    tsc_mode: "native".into(),
                    vcpus: 2,
                    pass: true,
                    clocks: vec![Row {
                        name: "CLOCK_MONOTONIC".into(),
                        readings: 20,
                        real_ns: 4_000_000_123,
                        virtual_ns: 1_600_000_049,
                        expected_ns: 1_600_000_049,
                        error_ns: -1,
                        bound_ns: 400,
                        pass: true,
                    }],
                    paths: vec![],
                },
                DomainReport {
                    name: "emulated".into(),
                    kind: "guest".into(),
                    tdf: "10".into(),
                    tsc_mode: "always_emulate".into(),
                    vcpus: 1,
                    pass: false,
                    clocks: vec![],
                    paths: vec![],
                },
            ],
            checks: vec![],
            failures: vec!["emulated: it is broken".into()],
        }
    }

    #[test]
    fn the_document_is_the_one_agreed_on() {
        let json = report().json();
        assert!(json.starts_with(
            "{\"schema\":\"tdf.run/1\",\"scenario\":\"s\",\"seed\":7,\"pass\":false,\"xen\":\
             {\"version\":\"4.17.5\"},\"domains\":[{\"name\":\"a\",\"kind\":\"guest\",\"tdf\":\"5/2\",\
             \"tsc_mode\":\"native\",\"vcpus\":2,\"pass\":true,\"clocks\":[{\"name\":\"CLOCK_MONOTONIC\",\
             \"readings\":20,\"real_ns\":4000000123,"
        ));
        assert!(json.ends_with("\"failures\":[\"emulated: it is broken\"]}\n"));
    }

    #[test]
    fn the_table_is_aligned_narrow_and_ends_with_the_verdict() {
        let text = report().text();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.iter().all(|line| line.len() <= 130), "{text}");
        let verdict = lines[0].find("VERDICT").unwrap();
        assert_eq!(lines[1].find("ok"), Some(verdict));
        assert_eq!(lines[2].find("FAIL"), Some(verdict));
        let end = lines[0].find("REAL ns").unwrap() + "REAL ns".len();
        assert!(lines[1][..end].ends_with("4000000123"));
        assert!(text.ends_with("\n\nemulated: it is broken\nFAIL\n"));
    }

    #[test]
    fn paths_have_a_table_of_their_own_and_are_judged_again() {
        let mut report = report();
        let row = |line| Path::from(&PathRow::parse(line).unwrap());
        report.domains[1].paths = vec![
            row("tdf-path path=P8 probe=far@1 lo=-5 value=100 hi=100"),
            row("tdf-path path=P9 probe=past lo=0 value=7 hi=6"),
        ];
        let [good, bad] = &report.domains[1].paths[..] else { panic!("two") };
        assert_eq!((good.probe.as_str(), good.vcpu, good.complaint()), ("far", 1, None));
        assert_eq!(bad.complaint().as_deref(), Some("P9: past: 7 is not between 0 and 6"));
        let text = report.text();
        let lines: Vec<&str> = text.lines().skip_while(|line| !line.contains("PROBE")).collect();
        assert_eq!(
            &lines[..3],
            [
                "DOMAIN    VCPU  TSC MODE        TDF  PATH  PROBE  LO  VALUE   HI  VERDICT",
                "emulated  1     always_emulate  10   P8    far    -5    100  100  ok",
                "emulated  0     always_emulate  10   P9    past    0      7    6  FAIL",
            ]
        );
        assert!(report.json().contains(
            "\"paths\":[{\"path\":\"P8\",\"probe\":\"far\",\"vcpu\":1,\"lo\":-5,\"value\":100,\
             \"hi\":100,\"pass\":true},"
        ));
    }
}
