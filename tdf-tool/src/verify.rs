// SPDX-License-Identifier: MIT OR Apache-2.0
//! `tdf verify`: whether the clocks of domains that run keep to their factor, on any host, now.
//!
//! Xen is asked for real and virtual time again and again, which costs the domain nothing. What a
//! guest's own clocks say only the guest can tell: a probe in it (our kernel, or `tdf probe` in a
//! Linux) prints readings on its console, by itself or when it is asked there. Readings count from
//! the moment on at which the domain got its present factor. What was not asked is said as plainly
//! as what failed.

use std::time::Duration;

use serde::Serialize;
use tdf_xen::reading::{Judge, Reading};

use crate::dom0::{ConsoleEvent, ConsoleId, Dom0, Listed, printable};
use crate::judge::{Clocks, SegmentJudge};
use crate::probe::Parameters;
use crate::report::{Row, table, verdict};
use crate::scenario::Test;
use crate::show::to_json;
use crate::units::Span;
use crate::xen::{Control, Dilation, XenError};

/// How often virtual time is sampled in the span.
const SAMPLES: u32 = 20;
/// How much longer than the span a guest that was asked may take to answer, real time.
const PATIENCE: Duration = Duration::from_secs(10);
/// Readings of one answer that are kept; a guest is not trusted with our memory.
const MOST_READINGS: usize = 20_000;
/// Longest line of a console; longer ones are cut.
const LINE: usize = 1024;

/// What is to be verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// For how much real time.
    pub span: Span,
    /// Ask the probes on the consoles for readings.
    pub ask: bool,
    /// Seed of the moments at which they read.
    pub seed: u64,
}

/// A domain, verified (part of `tdf.verify/1`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Its id.
    pub id: u16,
    /// Its name.
    pub name: String,
    /// Its factor.
    pub tdf: String,
    /// Nothing failed.
    pub pass: bool,
    /// Whether its own clocks were read by a probe in it.
    pub asked: bool,
    /// Its clocks; those that begin with `xen` are what Xen says of them.
    pub clocks: Vec<Row>,
}

/// Everything that was verified (`tdf.verify/1`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    schema: &'static str,
    /// Everything holds.
    pub pass: bool,
    /// The span, real time.
    pub real_ns: i64,
    /// The domains.
    pub domains: Vec<Verified>,
    /// A sentence for each failure.
    pub failures: Vec<String>,
    /// A sentence for each thing that could not be looked at.
    pub notes: Vec<String>,
}

/// A domain that is being watched.
struct Watch<'a> {
    listed: &'a Listed,
    first: Dilation,
    segment: SegmentJudge,
    wall: Judge,
    console: Option<ConsoleId>,
    /// Why it has none.
    no_console: &'static str,
    line: Vec<u8>,
    clocks: Clocks,
    /// Readings of which the probe has not said `Test result:` yet.
    pending: Vec<String>,
    /// It has said so of readings that count.
    answered: bool,
    /// It said this, of no readings that count.
    refused: Option<String>,
    faults: Vec<String>,
}

impl<'a> Watch<'a> {
    fn new(listed: &'a Listed, first: Dilation) -> Self {
        Self {
            listed,
            first,
            segment: SegmentJudge::new(first.tdf, &first),
            wall: Judge::new(first.tdf),
            console: None,
            no_console: "it has no console",
            line: Vec::new(),
            clocks: Clocks::new(first.tdf),
            pending: Vec::new(),
            answered: false,
            refused: None,
            faults: Vec::new(),
        }
    }

    fn sample(&mut self, now: &Dilation) {
        self.segment.add(now);
        self.wall.add(&Reading {
            clock: "xen:wall_clock",
            real_before_ns: now.real_ns,
            real_after_ns: now.real_ns,
            value_ns: now.wall_ns,
            slack_real_ns: 0,
        });
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                let line = String::from_utf8_lossy(&self.line).trim().to_owned();
                self.line.clear();
                self.take(&line);
            } else if self.line.len() < LINE {
                self.line.push(byte);
            }
        }
    }

    fn take(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("Test result: ") {
            // Half of what a probe has to say would be judged as if it were all; and what was read at
            // another factor, and was still on its way, is no evidence of this one.
            let pending = std::mem::take(&mut self.pending);
            if self.counts(&pending) {
                pending.iter().for_each(|line| self.clocks.line(line));
                self.answered = true;
            }
            match (self.answered, result) {
                (_, "SUCCESS") => {}
                (true, _) => {
                    self.faults.push(format!("its probe says {} of itself", printable(result)));
                }
                (false, _) => self.refused = Some(printable(result)),
            }
        }
        if self.pending.len() < MOST_READINGS && Reading::parse(line).is_some() {
            self.pending.push(line.to_owned());
        }
    }

    /// Whether all of a probe's readings were made since the domain has its factor.
    fn counts(&self, lines: &[String]) -> bool {
        let since = if self.first.active { self.first.real0_ns } else { i64::MIN };
        let readings = lines.iter().filter_map(|line| Reading::parse(line));
        // Of the TSC a probe may tell spans instead of moments.
        let mut moments = readings.filter(|reading| reading.clock != "tsc").peekable();
        moments.peek().is_some() && moments.all(|reading| reading.real_before_ns >= since)
    }

    fn finish(self, ask: bool, notes: &mut Vec<String>) -> (Verified, Vec<String>) {
        let name = printable(&self.listed.name);
        let mut faults = self.faults;
        let (row, segment_faults) = self.segment.finish();
        faults.extend(segment_faults);
        let mut rows: Vec<Row> = row.into_iter().collect();
        // The wall clock of a domain that was never dilated is dom0's to correct.
        if let (true, Some(verdict)) = (self.first.active, self.wall.verdict()) {
            let wall = Row::new("xen:wall_clock", &verdict);
            faults.extend(wall.complaint());
            rows.push(wall);
        }
        let asked = self.answered;
        if asked {
            let (clocks, clock_faults) = self.clocks.finish(&[], 0);
            rows.extend(clocks);
            faults.extend(clock_faults);
        }
        match (ask, asked, self.console) {
            (_, true, _) => {}
            (true, ..) if self.console.is_some() => faults.push(match self.refused {
                Some(result) => format!(
                    "its probe answered {result}, without readings: may it read real time \
                     (tdf_reveal = 1)?"
                ),
                None => "no probe answered on its console: run `tdf probe --serve` in it".into(),
            }),
            (true, ..) => faults.push(format!("it could not be asked: {}", self.no_console)),
            (false, false, console) => {
                let why = match console {
                    Some(_) => "no probe spoke on its console",
                    None => self.no_console,
                };
                notes.push(format!(
                    "{name}: its own clocks (system time, wall clock, TSC, timers) were not read: \
                     {why}"
                ));
            }
        }
        let verified = Verified {
            id: self.listed.id.0,
            name: self.listed.name.clone(),
            tdf: self.first.tdf.to_string(),
            pass: faults.is_empty(),
            asked,
            clocks: rows,
        };
        (verified, faults.iter().map(|fault| format!("{name}: {fault}")).collect())
    }
}

/// Verifies the clocks of `domains`.
///
/// # Errors
/// One of them cannot be looked at at all.
pub fn verify<M: Dom0>(
    control: &mut Control<M>,
    domains: &[Listed],
    options: &Options,
) -> Result<Report, XenError> {
    let mut watches = Vec::new();
    for listed in domains {
        watches.push(Watch::new(listed, control.get_tdf(listed.id)?));
    }
    for watch in &mut watches {
        open_console(control, watch);
        if options.ask {
            ask(control, watch, options);
        }
    }
    let begin = control.machine.now();
    let span = Duration::from_nanos(options.span.ns().unsigned_abs());
    let mut samples = 0;
    let mut cut_short = false;
    loop {
        let now = control.machine.now();
        let due = begin + span * samples / SAMPLES;
        if samples <= SAMPLES && now >= due {
            samples += 1;
            for watch in &mut watches {
                match control.get_tdf(watch.listed.id) {
                    Ok(dilation) => watch.sample(&dilation),
                    Err(e) if watch.faults.is_empty() => watch.faults.push(match e {
                        XenError::NoDomain(_) => "it ended before the span was over".to_owned(),
                        e => e.to_string(),
                    }),
                    Err(_) => {}
                }
            }
            continue;
        }
        let waiting = |watch: &Watch<'_>| {
            let silent = !watch.answered && watch.refused.is_none();
            options.ask && watch.console.is_some() && silent
        };
        let over = samples > SAMPLES;
        if over && (now >= begin + span + PATIENCE || !watches.iter().any(waiting)) {
            break;
        }
        if control.machine.interrupted() {
            cut_short = true;
            break;
        }
        let until = if over { begin + span + PATIENCE } else { due };
        let timeout = until.saturating_sub(now).min(Duration::from_millis(250));
        let Ok(events) = control.machine.wait(timeout) else { break };
        for event in events {
            let (ConsoleEvent::Bytes(id, _) | ConsoleEvent::Closed(id)) = &event;
            let Some(watch) = watches.iter_mut().find(|w| w.console == Some(*id)) else { continue };
            match &event {
                ConsoleEvent::Bytes(_, bytes) => watch.bytes(bytes),
                ConsoleEvent::Closed(_) => {
                    watch.console = None;
                    watch.no_console = "its console was closed";
                }
            }
        }
    }
    let (mut failures, mut notes, mut verified) = (Vec::new(), Vec::new(), Vec::new());
    for watch in watches {
        let (domain, faults) = watch.finish(options.ask, &mut notes);
        verified.push(domain);
        failures.extend(faults);
    }
    if cut_short {
        failures.push("interrupted".to_owned());
    }
    Ok(Report {
        schema: "tdf.verify/1",
        pass: failures.is_empty(),
        real_ns: options.span.ns(),
        domains: verified,
        failures,
        notes,
    })
}

/// Opens the domain's console, if it has one that can be opened.
fn open_console<M: Dom0>(control: &mut Control<M>, watch: &mut Watch<'_>) {
    let Ok(Some(tty)) = control.console_tty(watch.listed.id) else { return };
    match control.machine.open_console(&tty) {
        Ok(console) => watch.console = Some(console),
        Err(_) => watch.no_console = "its console cannot be opened",
    }
}

/// Asks the probe on the domain's console to read its clocks for the span.
fn ask<M: Dom0>(control: &mut Control<M>, watch: &mut Watch<'_>, options: &Options) {
    let Some(console) = watch.console else { return };
    let virt = watch.first.tdf.to_virtual(options.span.ns().into());
    let request = Parameters {
        test: Test::Clocks,
        span_ns: i64::try_from(virt).unwrap_or(i64::MAX / 4).max(1),
        samples: SAMPLES,
        seed: options.seed,
    };
    if let Err(e) = control.machine.write_console(console, request.request().as_bytes()) {
        watch.faults.push(format!("its console takes no request: {e}"));
    }
}

const HEADER: [&str; 10] = [
    "DOMAIN",
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

impl Report {
    /// The JSON document.
    pub fn json(&self) -> String {
        to_json(self)
    }

    /// The table, what was not looked at, the failures, and `PASS` or `FAIL`.
    pub fn text(&self) -> String {
        let mut lines = vec![HEADER.map(str::to_owned)];
        for domain in &self.domains {
            for row in &domain.clocks {
                lines.push([
                    printable(&domain.name),
                    domain.tdf.clone(),
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
        }
        let mut out = table(&lines, 3..=8);
        for line in self.notes.iter().chain(&self.failures) {
            out.push_str(line);
            out.push('\n');
        }
        out.push_str(if self.pass { "PASS\n" } else { "FAIL\n" });
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::create::Plan;
    use crate::fake::{Behaviour, Fault, Machine};
    use tdf_abi::Tdf;

    const OPTIONS: fn(bool) -> Options =
        |ask| Options { span: Span::parse("2 s").unwrap(), ask, seed: 1 };

    /// A Linux that serves requests, one that does not speak, both at TDF 10.
    fn two() -> (Control<Machine>, Vec<Listed>) {
        let mut control = Machine::control();
        for (name, extra) in [("serves", "console=hvc0 test=serve"), ("silent", "quiet")] {
            let plan = Plan {
                name: name.to_owned(),
                config: format!("{name}.cfg"),
                xl_args: Vec::new(),
                tdf: Some("10".parse().unwrap()),
                reveal: true,
            };
            let text = format!("name = '{name}'\nextra = '{extra}'\n");
            control.machine.files.insert(plan.config.clone(), text);
            control.create(&plan).unwrap();
        }
        let listed = control.find_all(&["serves".to_owned(), "silent".to_owned()]).unwrap();
        (control, listed)
    }

    #[test]
    fn xen_alone_shows_virtual_time_and_the_rest_is_said_to_be_unread() {
        let (mut control, listed) = two();
        let report = verify(&mut control, &listed, &OPTIONS(false)).unwrap();
        assert!(report.pass, "{}", report.text());
        for domain in &report.domains {
            let names: Vec<&str> = domain.clocks.iter().map(|row| row.name.as_str()).collect();
            assert_eq!((names, domain.asked), (vec!["xen", "xen:wall_clock"], false));
            assert!(domain.clocks.iter().all(|row| row.readings == 20 && row.pass));
            assert!(domain.clocks[0].real_ns >= 100_000_000);
        }
        assert_eq!(report.notes.len(), 2);
        assert!(report.text().contains("were not read: no probe spoke"), "{}", report.text());
        assert!(report.json().starts_with("{\"schema\":\"tdf.verify/1\",\"pass\":true,"));
        control.machine.fault = Some(Fault::NoConsole);
        let report = verify(&mut control, &listed, &OPTIONS(false)).unwrap();
        assert!(report.pass && report.notes[0].ends_with("it has no console"));
    }

    #[test]
    fn a_guest_that_is_asked_answers_or_fails() {
        let (mut control, listed) = two();
        let report = verify(&mut control, &listed[..1], &OPTIONS(true)).unwrap();
        assert!(report.pass, "{}", report.text());
        let names: Vec<&str> =
            report.domains[0].clocks.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names[2..], ["CLOCK_MONOTONIC", "CLOCK_REALTIME", "nanosleep"]);
        assert!(report.domains[0].asked && report.notes.is_empty());
        let report = verify(&mut control, &listed, &OPTIONS(true)).unwrap();
        assert!(!report.pass && report.domains[0].pass && !report.domains[1].pass);
        assert_eq!(report.failures.len(), 1);
        assert!(report.failures[0].contains("silent: no probe answered"), "{report:?}");
    }

    #[test]
    fn a_clock_that_disagrees_fails_the_whole() {
        let (mut control, listed) = two();
        control.machine.behaviours.insert("serves".into(), Behaviour::Fast);
        let report = verify(&mut control, &listed[..1], &OPTIONS(true)).unwrap();
        assert!(report.failures[0].starts_with("serves: CLOCK_REALTIME: after"), "{report:?}");
        let (mut control, listed) = two();
        control.machine.fault = Some(Fault::Jump);
        let report = verify(&mut control, &listed, &OPTIONS(false)).unwrap();
        assert!(!report.pass && report.failures[0].contains("3 ns off its own segment"));
    }

    #[test]
    fn readings_of_an_earlier_factor_do_not_count() {
        let (_, listed) = two();
        let first = Dilation {
            tdf: Tdf::ONE,
            active: true,
            reveal: true,
            real0_ns: 1_000,
            virt0_ns: 0,
            real_ns: 2_000,
            virt_ns: 1_000,
            wall_ns: 0,
        };
        let mut watch = Watch::new(&listed[0], first);
        let line = |real| {
            let reading = |clock, real| {
                format!(
                    "tdf-reading clock={clock} real_before_ns={real} real_after_ns={real} \
                     value_ns={real} slack_real_ns=0\r\n"
                )
            };
            reading("system_time", real) + &reading("tsc", 0)
        };
        watch.bytes(line(999).as_bytes());
        watch.bytes(b"Test result: SUCCESS\n");
        assert!(watch.pending.is_empty() && !watch.answered && watch.refused.is_none());
        watch.bytes(b"Test result: ERROR\n");
        assert!(!watch.answered && watch.refused.as_deref() == Some("ERROR"));
        watch.bytes(line(1_000).as_bytes());
        assert!(watch.pending.len() == 2 && !watch.answered, "there may be more");
        watch.bytes(b"Test result: FAILURE\n");
        assert!(watch.pending.is_empty() && watch.answered);
        assert_eq!(watch.faults, ["its probe says FAILURE of itself"]);
    }

    #[test]
    fn a_domain_that_ends_meanwhile_was_not_verified() {
        let (mut control, listed) = two();
        control.machine.vanish_at = Some(control.machine.now_ns() + 1_500_000_000);
        let report = verify(&mut control, &listed, &OPTIONS(false)).unwrap();
        assert_eq!(report.failures[0], "serves: it ended before the span was over");
        assert!(report.domains[0].clocks[0].pass, "what was seen was right");
    }

    #[test]
    fn domains_that_go_and_interruptions_are_failures() {
        let (mut control, listed) = two();
        control.machine.domains.remove(1);
        assert_eq!(
            verify(&mut control, &listed, &OPTIONS(false)).unwrap_err(),
            XenError::NoDomain(listed[1].id)
        );
        let (mut control, listed) = two();
        control.machine.interrupt_after = Some(3);
        let report = verify(&mut control, &listed, &OPTIONS(false)).unwrap();
        assert!(report.failures.iter().any(|f| f == "interrupted"), "{report:?}");
    }
}
