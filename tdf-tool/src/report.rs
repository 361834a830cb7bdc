// SPDX-License-Identifier: MIT OR Apache-2.0
//! The verdict of a run: a table for people, a document for programs.

use std::fmt::Write;

use serde::Serialize;

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
    /// Nothing failed.
    pub pass: bool,
    /// Its clocks.
    pub clocks: Vec<Row>,
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
    /// A sentence for each failure.
    pub failures: Vec<String>,
}

const HEADER: [&str; 12] = [
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

/// Columns from here on are numbers, but for the last.
const NUMBERS: std::ops::RangeInclusive<usize> = 5..=10;

impl Report {
    /// The JSON document.
    pub fn json(&self) -> String {
        to_json(self)
    }

    /// The table, the failures, and `PASS` or `FAIL`.
    pub fn text(&self) -> String {
        let mut lines = vec![HEADER.map(str::to_owned)];
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
                    if row.pass { "ok" } else { "FAIL" }.to_owned(),
                ]);
            }
            if domain.clocks.is_empty() {
                let mut line = HEADER.map(|_| "-".to_owned());
                line[..4].clone_from_slice(&[name, kind, tsc_mode, tdf].map(String::clone));
                line[HEADER.len() - 1] = "FAIL".to_owned();
                lines.push(line);
            }
        }
        let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..HEADER.len()).map(width).collect();
        let mut out = String::new();
        for line in &lines {
            let cells: Vec<String> = line
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(i, (cell, &w))| {
                    if NUMBERS.contains(&i) { format!("{cell:>w$}") } else { format!("{cell:w$}") }
                })
                .collect();
            out.push_str(cells.join("  ").trim_end());
            out.push('\n');
        }
        out.push('\n');
        for failure in &self.failures {
            // Writing to a String does not fail.
            let _ = writeln!(out, "{failure}");
        }
        out.push_str(if self.pass { "PASS\n" } else { "FAIL\n" });
        out
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
                },
                DomainReport {
                    name: "emulated".into(),
                    kind: "guest".into(),
                    tdf: "10".into(),
                    tsc_mode: "always_emulate".into(),
                    pass: false,
                    clocks: vec![],
                },
            ],
            failures: vec!["emulated: it is broken".into()],
        }
    }

    #[test]
    fn the_document_is_the_one_agreed_on() {
        let json = report().json();
        assert!(json.starts_with(
            "{\"schema\":\"tdf.run/1\",\"scenario\":\"s\",\"seed\":7,\"pass\":false,\"xen\":\
             {\"version\":\"4.17.5\"},\"domains\":[{\"name\":\"a\",\"kind\":\"guest\",\"tdf\":\"5/2\",\
             \"tsc_mode\":\"native\",\"pass\":true,\"clocks\":[{\"name\":\"CLOCK_MONOTONIC\",\
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
}
