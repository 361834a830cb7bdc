// SPDX-License-Identifier: MIT OR Apache-2.0
//! Judging what a domain's console says of its clocks, and what Xen says.
//!
//! A guest's readings are not believed, they are judged again, by the [`Judge`] that the guest has
//! too. Independently of it dom0 watches the domain's virtual time through the hypervisor
//! ([`SegmentJudge`]). A clock that nobody read, or only for a moment, is a failure as well.

use tdf_abi::Tdf;
use tdf_xen::path::PathRow;
use tdf_xen::reading::{Judge, Reading};

use crate::report::{Path, Row};
use crate::xen::Dilation;

/// Clocks and paths that one guest may speak of; it is not trusted with our memory.
const MOST_CLOCKS: usize = 16;
const MOST_PATHS: usize = 1000;

/// Two samples of virtual time may differ by so much from ΔR/TDF, ns: Xen rounds each down.
const ROUNDING_NS: i64 = 1;

struct Clock {
    name: String,
    judge: Judge,
    /// Sum of the two real times of the first and of the last reading.
    first: i128,
    last: i128,
}

/// All clocks that a guest reads.
pub struct Clocks {
    tdf: Tdf,
    clocks: Vec<Clock>,
    faults: Vec<String>,
}

impl Clocks {
    /// A guest at `tdf`.
    pub const fn new(tdf: Tdf) -> Self {
        Self { tdf, clocks: Vec::new(), faults: Vec::new() }
    }

    /// Takes a line of the guest's console, if it is one of a reading.
    pub fn line(&mut self, line: &str) {
        if !line.trim_start().starts_with("tdf-reading") {
            return;
        }
        match Reading::parse(line) {
            Some(reading) => self.add(&reading),
            None => self.fault("a line of a reading is malformed"),
        }
    }

    fn fault(&mut self, text: &str) {
        if !self.faults.iter().any(|fault| fault == text) {
            self.faults.push(text.to_owned());
        }
    }

    fn add(&mut self, reading: &Reading<'_>) {
        let middle = i128::from(reading.real_before_ns) + i128::from(reading.real_after_ns);
        match self.clocks.iter().position(|clock| clock.name == reading.clock) {
            Some(at) => {
                let clock = &mut self.clocks[at];
                let backwards = middle < clock.last;
                clock.judge.add(reading);
                clock.last = middle;
                if backwards {
                    self.fault(&format!("{}: real time ran backwards", reading.clock));
                }
            }
            None if self.clocks.len() < MOST_CLOCKS => {
                let mut judge = Judge::new(self.tdf);
                judge.add(reading);
                let name = reading.clock.to_owned();
                self.clocks.push(Clock { name, judge, first: middle, last: middle });
            }
            None => self.fault("the guest reads too many different clocks"),
        }
    }

    /// A row for each clock and a sentence for each fault, when the guest was to read the clocks
    /// called `wanted` for `real_ns`.
    pub fn finish(mut self, wanted: &[&str], real_ns: i64) -> (Vec<Row>, Vec<String>) {
        // Half of the span, because a probe draws the moments of its readings.
        let least = i128::from(real_ns);
        let mut rows = Vec::new();
        for clock in &self.clocks {
            let name = &clock.name;
            let Some(verdict) = clock.judge.verdict() else {
                self.faults.push(format!("{name}: it was read only once"));
                continue;
            };
            if clock.last - clock.first < least {
                self.faults.push(format!(
                    "{name}: its readings span {} ns of real time, less than half of the {real_ns} \
                     asked for",
                    (clock.last - clock.first) / 2
                ));
            }
            if verdict.readings < 2 {
                self.faults.push(format!("{name}: two readings are too few"));
            }
            let row = Row::new(name, &verdict);
            self.faults.extend(row.complaint());
            rows.push(row);
        }
        for name in wanted.iter().filter(|name| !self.clocks.iter().any(|c| c.name == **name)) {
            self.faults.push(format!("{name}: the guest never read it"));
        }
        (rows, self.faults)
    }
}

/// All paths that a guest tries.
#[derive(Default)]
pub struct Paths {
    rows: Vec<Path>,
    faults: Vec<String>,
}

impl Paths {
    /// Takes a line of the guest's console, if it is one of a path.
    pub fn line(&mut self, line: &str) {
        if !line.trim_start().starts_with("tdf-path") {
            return;
        }
        match PathRow::parse(line) {
            Some(_) if self.rows.len() >= MOST_PATHS => {
                self.faults = vec!["the guest tries too many paths".to_owned()];
            }
            Some(row) => self.rows.push(Path::from(&row)),
            None => self.faults = vec!["a line of a path is malformed".to_owned()],
        }
    }

    /// The rows, and a sentence for each fault, when the guest was to try the `wanted` probes of
    /// paths, each on a vCPU; an empty probe stands for any.
    pub fn finish(mut self, wanted: &[(&str, &str, u32)]) -> (Vec<Path>, Vec<String>) {
        for (path, probe, vcpu) in wanted {
            let is = |row: &Path| {
                let this = probe.is_empty() || row.probe == *probe;
                row.path == *path && row.vcpu == *vcpu && this
            };
            if !self.rows.iter().any(is) {
                let space = if probe.is_empty() { "" } else { " " };
                let on = if *vcpu == 0 { String::new() } else { format!(" on vCPU {vcpu}") };
                self.faults.push(format!("{path}{space}{probe}{on}: the guest never tried it"));
            }
        }
        self.faults.extend(self.rows.iter().filter_map(Path::complaint));
        (self.rows, self.faults)
    }
}

/// Judges a domain's virtual time as the hypervisor reports it.
pub struct SegmentJudge {
    tdf: Tdf,
    /// The domain was never dilated: its time is Xen's.
    stock: bool,
    first: Option<Dilation>,
    last_real_ns: i64,
    worst: Option<Row>,
    readings: u32,
    faults: Vec<String>,
}

impl SegmentJudge {
    /// A domain that was made at `before` and is to run at `tdf`.
    pub fn new(tdf: Tdf, before: &Dilation) -> Self {
        let stock = tdf == Tdf::ONE && !before.active;
        Self {
            tdf,
            stock,
            first: None,
            last_real_ns: i64::MIN,
            worst: None,
            readings: 0,
            faults: Vec::new(),
        }
    }

    fn fault(&mut self, fault: String) {
        // The first says enough, and a broken hypervisor would say it at each sample.
        if self.faults.is_empty() {
            self.faults.push(fault);
        }
    }

    /// Takes the next sample.
    pub fn add(&mut self, d: &Dilation) {
        if d.tdf != self.tdf {
            self.fault(format!("xen: the domain runs at TDF {}, not {}", d.tdf, self.tdf));
        }
        if self.stock && (d.active || d.virt_ns != d.real_ns) {
            self.fault(format!(
                "xen: the domain was never dilated, but its time is {} ns off Xen's",
                i128::from(d.virt_ns) - i128::from(d.real_ns)
            ));
        }
        if d.real_ns < self.last_real_ns {
            self.fault("xen: real time ran backwards".to_owned());
        }
        self.last_real_ns = d.real_ns;
        let wide = |now: i64, then: i64| i128::from(now) - i128::from(then);
        if d.active {
            let expected = self.tdf.to_virtual(wide(d.real_ns, d.real0_ns));
            let off = wide(d.virt_ns, d.virt0_ns) - expected;
            if off != 0 {
                self.fault(format!("xen: virtual time is {off} ns off its own segment"));
            }
        }
        let Some(first) = self.first else {
            self.first = Some(*d);
            return;
        };
        if (d.real0_ns, d.virt0_ns) != (first.real0_ns, first.virt0_ns) {
            self.fault("xen: somebody changed the domain's TDF during the run".to_owned());
        }
        let (real, virt) = (wide(d.real_ns, first.real_ns), wide(d.virt_ns, first.virt_ns));
        let drift = wide(d.wall_ns, first.wall_ns) - virt;
        if d.active && drift.abs() > ROUNDING_NS.into() {
            self.fault(format!(
                "xen: the wall clock of a dilated domain went {drift} ns apart from its time"
            ));
        }
        let expected = self.tdf.to_virtual(real);
        let error = virt - expected;
        self.readings += 1;
        let narrow = |ns: i128| i64::try_from(ns).unwrap_or(i64::MAX);
        if self.worst.as_ref().is_none_or(|w| error.abs() >= w.error_ns.abs().into()) {
            self.worst = Some(Row {
                name: "xen".to_owned(),
                readings: 0,
                real_ns: narrow(real),
                virtual_ns: narrow(virt),
                expected_ns: narrow(expected),
                error_ns: narrow(error),
                bound_ns: ROUNDING_NS,
                pass: error.abs() <= ROUNDING_NS.into(),
            });
        }
    }

    /// The row, and a sentence for each fault.
    pub fn finish(mut self) -> (Option<Row>, Vec<String>) {
        let row = self.worst.take().map(|worst| Row {
            readings: self.readings,
            pass: worst.pass && self.faults.is_empty(),
            ..worst
        });
        match &row {
            None => self.faults.push("xen: virtual time was not sampled".to_owned()),
            Some(row) if !self.faults.is_empty() && row.error_ns.abs() <= row.bound_ns => {}
            Some(row) => self.faults.extend(row.complaint()),
        }
        (row, self.faults)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ten() -> Tdf {
        "10".parse().unwrap()
    }

    fn at(real_ns: i64, virt_ns: i64) -> Dilation {
        Dilation {
            tdf: ten(),
            active: true,
            reveal: true,
            real0_ns: 1000,
            virt0_ns: 700,
            real_ns,
            virt_ns,
            wall_ns: 5_000_000 + virt_ns,
        }
    }

    fn judged(samples: &[Dilation]) -> (Option<Row>, Vec<String>) {
        let mut judge = SegmentJudge::new(ten(), &at(1000, 700));
        samples.iter().for_each(|sample| judge.add(sample));
        judge.finish()
    }

    #[test]
    fn time_that_follows_its_segment_passes() {
        let (row, faults) = judged(&[at(1009, 700), at(2001, 800), at(41_000, 4_700)]);
        let row = row.unwrap();
        assert!(faults.is_empty() && row.pass, "{faults:?}");
        assert_eq!((row.readings, row.bound_ns), (2, 1));
        assert_eq!((row.virtual_ns, row.expected_ns, row.error_ns), (4_000, 3_999, 1));
    }

    #[test]
    fn every_departure_from_it_is_seen() {
        let good = at(1000, 700);
        for (bad, says) in [
            (at(2000, 801), "1 ns off its own segment"),
            (at(2000, 799), "-1 ns off its own segment"),
            (Dilation { virt0_ns: 702, ..at(2000, 802) }, "instead of 100: error 2 ns"),
            (Dilation { tdf: Tdf::ONE, ..at(2000, 800) }, "runs at TDF 1, not 10"),
            (Dilation { virt0_ns: 701, ..at(2000, 801) }, "changed the domain's TDF"),
            (Dilation { wall_ns: 5_000_802, ..at(2000, 800) }, "wall clock"),
            (at(990, 699), "backwards"),
            (Dilation { active: false, ..at(2000, 1700) }, "after 1000 ns"),
        ] {
            let (row, faults) = judged(&[good, bad]);
            assert!(!row.unwrap().pass, "{says}");
            assert!(faults.iter().any(|f| f.contains(says)), "{says}: {faults:?}");
        }
        assert!(judged(&[good]).1[0].contains("not sampled"));
    }

    #[test]
    fn a_domain_that_was_never_dilated_has_xens_time_exactly() {
        let stock = |real_ns, virt_ns| Dilation {
            tdf: Tdf::ONE,
            active: false,
            real0_ns: 0,
            virt0_ns: 0,
            ..at(real_ns, virt_ns)
        };
        for (virt, active, pass) in [(7, false, true), (8, false, false), (7, true, false)] {
            let mut judge = SegmentJudge::new(Tdf::ONE, &stock(1, 1));
            judge.add(&stock(1, 1));
            judge.add(&Dilation { active, ..stock(7, virt) });
            assert_eq!(judge.finish().1.is_empty(), pass, "{virt} {active}");
        }
    }

    fn line(clock: &str, real: i64, value: i64) -> String {
        format!(
            "tdf-reading clock={clock} real_before_ns={real} real_after_ns={real} value_ns={value} \
             slack_real_ns=0"
        )
    }

    fn read(lines: &[String]) -> (Vec<Row>, Vec<String>) {
        let mut clocks = Clocks::new(ten());
        lines.iter().for_each(|line| clocks.line(line));
        clocks.finish(&["tsc"], 1000)
    }

    #[test]
    fn a_clock_that_keeps_time_long_enough_passes() {
        let (rows, faults) =
            read(&[line("tsc", 0, 0), line("tsc", 400, 40), line("tsc", 500, 50), "boot".into()]);
        assert!(faults.is_empty(), "{faults:?}");
        assert_eq!((rows.len(), rows[0].readings, rows[0].pass), (1, 2, true));
    }

    #[test]
    fn wrong_missing_short_rare_and_malformed_readings_are_faults() {
        let good = [line("tsc", 0, 0), line("tsc", 400, 40)];
        let with = |more: &[String]| read(&[&good[..], more].concat()).1.join("\n");
        assert!(with(&[line("tsc", 500, 60)]).contains("error 10 ns"));
        assert!(with(&[line("tsc", 499, 50)]).contains("less than half"));
        assert!(with(&[]).contains("too few"));
        assert!(with(&[line("tsc", 300, 30)]).contains("backwards"));
        let end = line("tsc", 500, 50);
        assert!(with(&[end.clone(), "tdf-reading clock=tsc real".into()]).contains("malformed"));
        assert!(with(&[end.clone(), line("other", 1, 1)]).contains("only once"));
        let many: Vec<String> = (0..99).map(|i| line(&format!("c{i}"), 0, 0)).collect();
        assert!(with(&many).contains("too many"));
        assert!(read(&[]).1[0].contains("never read"));
    }

    #[test]
    fn paths_that_are_wrong_missing_malformed_or_too_many_are_faults() {
        let judged = |lines: &[&str]| {
            let mut paths = Paths::default();
            lines.iter().for_each(|line| paths.line(line));
            let (rows, faults) = paths.finish(&[("P8", "", 1), ("P9", "past", 0)]);
            (rows.len(), faults.join("\n"))
        };
        let good = "tdf-path path=P8 probe=any@1 lo=0 value=1 hi=1";
        let past = "tdf-path path=P9 probe=past lo=0 value=0 hi=0";
        assert_eq!(judged(&[good, past, "else"]), (2, String::new()));
        assert_eq!(judged(&[past]).1, "P8 on vCPU 1: the guest never tried it");
        assert_eq!(judged(&[good, good]).1, "P9 past: the guest never tried it");
        let late = "tdf-path path=P8 probe=any@1 lo=0 value=2 hi=1";
        assert_eq!(judged(&[late, past]).1, "P8: any on vCPU 1: 2 is not between 0 and 1");
        assert!(judged(&[good, past, "tdf-path path=P8"]).1.contains("malformed"));
        let many: Vec<&str> = std::iter::repeat_n(good, 2000).chain([past]).collect();
        assert!(judged(&many).1.contains("too many") && judged(&many).0 == MOST_PATHS);
    }
}
