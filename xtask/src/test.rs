// SPDX-License-Identifier: MIT OR Apache-2.0
//! All tests: those that need no Xen, then labs, one after another.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde_json::Value;
use tdf_abi::Tdf;

use crate::apt::Base;
use crate::exec::Step;
use crate::guest::cargo;
use crate::lab::{self, Outcome};
use crate::qemu::Accel;
use crate::{cost, tidy, xen};

/// Longest virtual time from the kernel's first line to the start of its self-test, at TDF 1.
const BOOT_LIMIT_NS: u64 = 5_000_000;

/// The scripts that dom0 runs, what of, and how often they do what they repeat: fewer times than by
/// hand, where `hostile` is to be run with a million, and `plug` with a hundred.
const SCRIPTS: &[(&str, &str, Option<u32>)] = &[
    ("commands", "commands typed in dom0", None),
    ("ports", "ports of a switch, set and shown", None),
    ("plug", "hosts come and go at a switch, under traffic", Some(8)),
    ("hostile", "guests and dom0 ask Xen for anything", Some(20_000)),
    ("wall", "dom0's wall clock is set again and again", None),
    ("life", "pause, save, restore, reboot, crash, destroy, a vCPU less", None),
];

/// The scenarios with hosts and links.
const NETWORKS: &[&str] =
    &["bridge", "switch", "equality", "chain-netfront", "sixteen", "frame-cost"];

/// The factor that the test builds into the hypervisor; the scenario `default20` expects it.
const DEFAULT_TDF: &str = "20";

/// Runs the tests; true if all passed.
///
/// # Errors
/// The tests could not be run at all.
pub fn run(base: Base, source: Option<PathBuf>, host: bool, in_lab: bool) -> Result<bool> {
    let mut tally = Tally::default();
    let tests = Tests { base, source };
    if host {
        tally.case("host: tidy", tidy::run);
        tally.case("host: patch queue", || xen::check_queue(base, tests.source.clone()));
        tally.case("host: all crates", || tests.host());
    }
    if in_lab {
        tests.lab(&mut tally);
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(tally.failed == 0)
}

#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
}

impl Tally {
    fn case(&mut self, name: &str, test: impl FnOnce() -> Result<()>) {
        let began = Instant::now();
        let result = test();
        let seconds = began.elapsed().as_secs();
        match result {
            Ok(()) => {
                self.passed += 1;
                println!("test {name} ... ok ({seconds} s)");
            }
            Err(error) => {
                self.failed += 1;
                println!("test {name} ... FAILED ({seconds} s)\n{error:#}");
            }
        }
    }
}

struct Tests {
    base: Base,
    source: Option<PathBuf>,
}

impl Tests {
    fn options(&self, scenario: &str) -> lab::Options {
        lab::Options {
            xen_source: self.source.clone(),
            scenario: scenario.to_owned(),
            ..lab::Options::new(self.base)
        }
    }

    /// Every crate's own tests; those of the patch's C code get Xen's trees.
    fn host(&self) -> Result<()> {
        let tree = |stock| {
            xen::prepare(&xen::Options {
                base: self.base,
                source: self.source.clone(),
                default_tdf: Tdf::ONE,
                stock,
            })
        };
        let (stock, patched) = (tree(true)?, tree(false)?);
        let cmd = cargo().env("TDF_XEN_STOCK", stock).env("TDF_XEN_PATCHED", patched).args([
            "test",
            "--locked",
            "--workspace",
        ]);
        let step = Step::begin("test-host", "host tests")?;
        step.announce(&cmd)?;
        step.done("begin");
        // Not into the log: whoever runs the tests wants to see each of them.
        let status = cmd.command().status().context("cannot start cargo")?;
        ensure!(status.success(), "`{}` failed ({status})", cmd.shown());
        Ok(())
    }

    fn lab(&self, tally: &mut Tally) {
        tally.case("lab: bare, our kernel as the initial domain", || {
            let outcome = lab::run(&self.options(lab::BARE))?;
            passes(&outcome)?;
            let boot = outcome.table.lines().find_map(|l| l.split_once("boot_ns=")?.1.parse().ok());
            let boot: u64 = boot.context("the kernel does not say how long it took to boot")?;
            ensure!(
                boot <= BOOT_LIMIT_NS,
                "the kernel took {boot} ns to boot, {BOOT_LIMIT_NS} are allowed"
            );
            Ok(())
        });
        tally.case("lab: clocks, twice the same", || {
            let first = lab::run(&self.options("clocks"))?;
            print!("{}", first.table);
            passes(&first)?;
            let second = lab::run(&self.options("clocks"))?;
            passes(&second)?;
            let digest = |o: &Outcome| o.document["digest"].clone();
            ensure!(
                digest(&first) == digest(&second),
                "the same artifacts, scenario and seed gave two event logs: {} and {}",
                digest(&first),
                digest(&second)
            );
            complete(&first.document)
        });
        tally.case("lab: factors, all clocks from TDF 1/2 to 1000", || {
            // Another seed: no run may depend on the default one.
            let outcome = lab::run(&lab::Options { seed: 2, ..self.options("factors") })?;
            print!("{}", outcome.table);
            passes(&outcome)
        });
        for scenario in ["paths", "changes", "armed", "smp", "model", "pvh"] {
            tally.case(&format!("lab: {scenario}"), || passes(&lab::run(&self.options(scenario))?));
        }
        tally.case("lab: smp, on two processors", || {
            passes(&lab::run(&lab::Options { accel: Accel::Tcg, ..self.options("smp") })?)
        });
        for &(script, what, calls) in SCRIPTS {
            tally.case(&format!("lab: {what}"), || {
                let outcome = lab::run(&lab::Options { calls, ..self.options(script) })?;
                print!("{}", outcome.table);
                passes(&outcome)
            });
        }
        // The goal of three times is set for the dom0 of Debian 12; see docs/switch.md.
        let goals = |scenario: &&&str| **scenario != "frame-cost" || self.base == Base::Debian12;
        for scenario in NETWORKS.iter().filter(goals) {
            tally.case(&format!("lab: {scenario}"), || {
                let outcome = lab::run(&self.options(scenario))?;
                print!("{}", outcome.table);
                passes(&outcome)
            });
        }
        tally.case("lab: what an undilated domain costs", || {
            let cheap = cost::run(self.base, self.source.clone())?;
            ensure!(cheap, "an operation costs too much more than on stock Xen");
            Ok(())
        });
        // A given Xen is of one version, which may not be the other base's.
        let others = Base::value_variants().iter().filter(|&&b| b != self.base);
        for &base in others.filter(|_| self.source.is_none()) {
            // With a factor from the command line, too, which need not be tried on both.
            tally.case(&format!("lab: clocks on {base}, with --tdf"), || {
                let tdf: Tdf = "2.5".parse()?;
                let options = lab::Options { tdf: Some(tdf), ..lab::Options::new(base) };
                let outcome = lab::run(&options)?;
                passes(&outcome)?;
                let domains = outcome.document["domains"].as_array();
                for domain in domains.context("the document has no domains")? {
                    ensure!(domain["tdf"] == tdf.to_string(), "{} is not at {tdf}", domain["name"]);
                }
                Ok(())
            });
        }
        tally.case("lab: a default built into Xen dilates plain xl domains", || {
            let default_tdf = DEFAULT_TDF.parse()?;
            passes(&lab::run(&lab::Options { default_tdf, ..self.options("default20") })?)
        });
        tally.case("lab: a default on Xen's command line does, too", || {
            let xen_args = format!("tdf={DEFAULT_TDF}");
            passes(&lab::run(&lab::Options { xen_args, ..self.options("default20") })?)
        });
        tally.case("lab: Xen without the patches", || {
            let options = lab::Options { stock: true, ..self.options("clocks") };
            let outcome = lab::run(&options)?;
            let log = std::fs::read_to_string(&outcome.console).unwrap_or_default();
            ensure!(!outcome.pass, "clocks passed on a Xen that cannot dilate");
            ensure!(
                (log + &outcome.table).contains("no time dilation"),
                "tdf does not say that this Xen has no time dilation"
            );
            Ok(())
        });
    }
}

fn passes(outcome: &Outcome) -> Result<()> {
    ensure!(outcome.pass, "the lab's verdict is FAIL\n{}", outcome.table);
    Ok(())
}

/// What the document of the default lab must hold, whatever its values.
fn complete(document: &Value) -> Result<()> {
    let domains = document["domains"].as_array().context("the document has no domains")?;
    let wanted = [
        ("native", &["system_time", "wall_clock", "tsc", "timer"][..]),
        ("emulated", &["system_time", "wall_clock", "tsc", "timer"]),
        ("linux", &["CLOCK_MONOTONIC", "CLOCK_REALTIME", "nanosleep"]),
    ];
    for (name, clocks) in wanted {
        let domain = domains.iter().find(|d| d["name"] == name);
        let domain = domain.with_context(|| format!("the document has no domain {name}"))?;
        for clock in clocks {
            let all = domain["clocks"].as_array().context("a domain has no clocks")?;
            let row = all.iter().find(|c| c["name"] == *clock);
            let row = row.with_context(|| format!("{name} has no clock {clock}"))?;
            for key in ["real_ns", "virtual_ns", "expected_ns", "error_ns", "bound_ns"] {
                ensure!(row[key].is_i64(), "{name}'s {clock} has no {key}");
            }
        }
    }
    Ok(())
}
