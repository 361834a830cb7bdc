// SPDX-License-Identifier: MIT OR Apache-2.0
//! The lab: one boot of Xen, dom0 and guests, described by a scenario, ending in a verdict.
//!
//! This file knows images and serial ports. What a scenario means, what a clock must show and what
//! the verdict is, is decided by `tdf run` inside dom0.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tdf_abi::Tdf;

use crate::apt::Base;
use crate::dom0::{self, Contents};
use crate::exec::{Step, tail, write_atomic};
use crate::paths;
use crate::qemu::{Accel, Machine, Output};
use crate::stamp::sha256;
use crate::{guest, tool, xen};

/// The scenario that is no scenario of `tdf run`: our kernel as the initial domain.
pub const BARE: &str = "bare";

/// The script that measures what Xen costs a guest, with or without the queue.
pub const INSTRUCTIONS: &str = "instructions";

/// Xen's own command line in every lab.
///
/// eager-fpu: Xen takes QEMU's processor for one on which it may leave a domain's vector registers in
/// place until another one uses them, but not every instruction that does is trapped there: programs
/// in dom0 would work with what another domain computed.
const XEN_ARGS: &str = "com1=115200,8n1 console=com1 loglvl=info guest_loglvl=info \
     dom0_max_vcpus=1 spec-ctrl=eager-fpu";

/// More of it, where Xen is to take the time from the TSC: as Xen counts them, QEMU's processors are in
/// more than one socket.
const TSC_ARGS: &str = "clocksource=tsc tsc=stable:socket ";

/// The command line of dom0's kernel. Its tests of its own ciphers take a fifth of its boot.
const DOM0_ARGS: &str = "console=hvc0 quiet panic=-1 cryptomgr.notests";

/// MiB of dom0's memory, half of which holds its files, an unpacked kernel of 66 MB among them; and of
/// that of a dom0 which keeps saved domains in it.
const DOM0_MIB: u32 = 560;
const DOM0_LARGE_MIB: u32 = 960;

/// The script that saves and restores domains, among other things.
const LIFE: &str = "life";

/// Memory of the machine that suffices for Xen, dom0 and a few small domains, one after another.
const MEMORY_MIB: u32 = 1184;

/// What a scenario asks of the machine, as far as it matters here.
struct Demand {
    /// MiB of memory.
    memory_mib: u32,
    /// Its domains are linked.
    network: bool,
    /// A domain may be other than PV, and need a processor with virtualization.
    svm: bool,
    /// Xen is to take the time from TSCs that agree.
    invariant_tsc: bool,
}

impl Demand {
    /// Xen's own, and dom0's.
    const BASE_MIB: u32 = DOM0_MIB + 176;

    fn of_own(name: &str) -> Result<Self> {
        if let Some((_, script)) = dom0::SCRIPTS.iter().find(|(script, _)| *script == name) {
            let network = script.contains(dom0::HOST);
            return Ok(Self { memory_mib: MEMORY_MIB, network, svm: false, invariant_tsc: false });
        }
        Self::of(&paths::root().join(format!("tdf-tool/scenarios/{name}.toml")))
    }

    fn of(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        Self::read(&text).with_context(|| file.display().to_string())
    }

    /// Whatever else is wrong with the scenario, `tdf run` says it.
    fn read(text: &str) -> Result<Self> {
        let scenario: toml::Table = toml::from_str(text)?;
        let domains = scenario.get("domain").and_then(toml::Value::as_array);
        let pv = ["guest", "linux"];
        let other = |domain: &toml::Value| {
            let kind = domain.get("kind").and_then(toml::Value::as_str);
            kind.is_some_and(|kind| !pv.contains(&kind))
        };
        let memory = |domain: &toml::Value| {
            let given = domain.get("memory").and_then(toml::Value::as_integer);
            u32::try_from(given.unwrap_or(192)).unwrap_or(0)
        };
        let sum =
            domains.into_iter().flatten().map(memory).fold(Self::BASE_MIB, u32::saturating_add);
        Ok(Self {
            memory_mib: if scenario.contains_key("link") {
                sum.max(MEMORY_MIB)
            } else {
                MEMORY_MIB
            },
            network: scenario.contains_key("link"),
            svm: domains.into_iter().flatten().any(other),
            invariant_tsc: scenario.get("invariant_tsc") == Some(&toml::Value::Boolean(true)),
        })
    }
}

/// What to run, and how.
#[derive(Clone)]
pub struct Options {
    /// The release whose Xen and Linux are used.
    pub base: Base,
    /// A Xen tree to use instead of the source package.
    pub xen_source: Option<PathBuf>,
    /// A scenario's name, a file, or [`BARE`].
    pub scenario: String,
    /// Overrides the TDF of every domain whose TDF the scenario sets.
    pub tdf: Option<Tdf>,
    /// Overrides how often the scenario changes factors.
    pub changes: Option<u32>,
    /// Overrides how many calls the script `hostile` makes.
    pub calls: Option<u32>,
    /// The factor that is built into the hypervisor.
    pub default_tdf: Tdf,
    /// More words for Xen's command line.
    pub xen_args: String,
    /// Leave the patch queue out.
    pub stock: bool,
    /// A hypervisor to boot instead of the one that the options above describe.
    pub image: Option<PathBuf>,
    /// Seed of the run.
    pub seed: u64,
    /// How the machine runs.
    pub accel: Accel,
    /// Longest time that the boot may take.
    pub timeout: Duration,
}

impl Options {
    /// The default lab on `base`.
    pub fn new(base: Base) -> Self {
        Self {
            base,
            xen_source: None,
            scenario: "clocks".to_owned(),
            tdf: None,
            changes: None,
            calls: None,
            default_tdf: Tdf::ONE,
            xen_args: String::new(),
            stock: false,
            image: None,
            seed: 1,
            accel: Accel::Deterministic,
            timeout: Duration::from_secs(600),
        }
    }
}

/// A lab's outcome.
pub struct Outcome {
    /// Whether every relation holds.
    pub pass: bool,
    /// The table that `tdf run` printed.
    pub table: String,
    /// The document `tdf.lab/1`.
    pub document: Value,
    /// The log of events.
    pub console: PathBuf,
}

/// Everything of which labs are made.
struct Parts {
    xen: xen::Xen,
    guest: guest::Image,
}

fn parts(options: &Options) -> Result<Parts> {
    let mut xen = xen::build(&xen::Options {
        base: options.base,
        source: options.xen_source.clone(),
        default_tdf: options.default_tdf,
        stock: options.stock,
    })?;
    if let Some(image) = &options.image {
        xen.image.clone_from(image);
    }
    Ok(Parts { xen, guest: guest::build()? })
}

/// Builds whatever is missing, boots the lab, and reads its verdict.
///
/// # Errors
/// Something could not be built, the boot failed, or no verdict came out of it.
pub fn run(options: &Options) -> Result<Outcome> {
    let scenario_file = scenario_file(&options.scenario)?;
    let script = dom0::SCRIPTS.iter().any(|(name, _)| *name == options.scenario);
    if script && options.scenario != LIFE && options.tdf.is_some() {
        bail!("--tdf: the factors of the script {} are its own", options.scenario);
    }
    let parts = parts(options)?;
    if options.scenario == BARE {
        return bare(options, &parts);
    }
    let demand = match &scenario_file {
        Some(file) => Demand::of(file)?,
        None => Demand::of_own(&options.scenario)?,
    };
    let tdf = tool::build()?;
    let linux = dom0::linux(options.base)?;
    let contents = Contents {
        tdf: &tdf,
        guest: &parts.guest.path,
        scenario: scenario_file.as_deref(),
        network: demand.network,
    };
    let initramfs = dom0::initramfs(options.base, &linux, &contents)?;
    let name = scenario_name(&options.scenario);
    let mut args = format!("{DOM0_ARGS} tdf.scenario={name} tdf.seed={}", options.seed);
    if let Some(tdf) = options.tdf {
        args.push_str(&format!(" tdf.tdf={tdf}"));
    }
    if let Some(changes) = options.changes {
        args.push_str(&format!(" tdf.changes={changes}"));
    }
    if let Some(calls) = options.calls {
        args.push_str(&format!(" tdf.calls={calls}"));
    }
    if script {
        args.push_str(&format!(" tdf.script={name}.sh"));
    }
    if demand.network {
        args.push_str(" tdf.network=1");
    }
    let mut step = Step::begin(&format!("lab-{name}"), &format!("lab ({name}, {})", options.base))?;
    let mut machine =
        machine(options, &parts.xen.image, &linux.vmlinux, &args, Some(&initramfs), &name);
    (machine.memory_mib, machine.svm) = (demand.memory_mib, demand.svm);
    if demand.invariant_tsc {
        machine.invariant_tsc = true;
        // First: what the user gives then goes before it.
        machine.xen_args.insert_str(0, TSC_ARGS);
    }
    if options.scenario == LIFE {
        machine.xen_args = xen_args(options, DOM0_LARGE_MIB);
        machine.memory_mib += DOM0_LARGE_MIB - DOM0_MIB;
    }
    let output = machine.run(&mut step)?;
    let results = Results::parse(&output)?;
    step.done(if results.code == 0 { "ran" } else { "ran, with failures" });
    let mut document: Value = match serde_json::from_str(results.json) {
        Ok(document) => document,
        // A scenario that could not even begin has no document, nor has a script; the table says why.
        Err(_) if results.json.is_empty() => json!({ "pass": results.code == 0, "domains": [] }),
        Err(error) => return Err(error).context("tdf run gave no JSON document"),
    };
    let pass = results.code == 0 && document["pass"] == json!(true);
    complete(&mut document, options, &parts, &output, &linux.version, pass)?;
    write_plots(&document, output.console_file.parent().unwrap_or(Path::new(".")))?;
    Ok(Outcome { pass, table: results.table.to_owned(), document, console: output.console_file })
}

/// Writes the plots of the document's checks into `dir`, and says where they are.
fn write_plots(document: &Value, dir: &Path) -> Result<()> {
    for check in document["checks"].as_array().into_iter().flatten() {
        let (Some(name), Some(plot)) = (check["name"].as_str(), check["plot"].as_str()) else {
            continue;
        };
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let file = dir.join(format!("{}.svg", name.chars().map(plain).collect::<String>()));
        write_atomic(&file, plot)?;
        eprintln!("{:32} {}", name, paths::shown(&file));
    }
    Ok(())
}

/// Boots our kernel as the initial domain, with no toolstack: three seconds instead of forty.
fn bare(options: &Options, parts: &Parts) -> Result<Outcome> {
    if options.tdf.is_some_and(|tdf| tdf != Tdf::ONE) {
        bail!(
            "--tdf: the bare scenario runs the kernel as the initial domain, which is never dilated"
        );
    }
    let args = format!("test=clocks span_ns=2000000000 samples=20 seed={}", options.seed);
    let mut step = Step::begin("lab-bare", &format!("lab (bare, {})", options.base))?;
    let machine = machine(options, &parts.xen.image, &parts.guest.path, &args, None, BARE);
    let output = machine.run(&mut step)?;
    let text = String::from_utf8_lossy(&output.results).into_owned();
    let verdict = text.lines().rev().find_map(|l| l.trim().split_once("Test result: "));
    let Some((_, verdict)) = verdict else {
        bail!("the kernel gave no verdict\n{}", tail(&output.console_file));
    };
    step.done("ran");
    let pass = verdict.trim() == "SUCCESS" || (options.stock && verdict.trim() == "SKIP");
    let table: String = text
        .lines()
        .filter(|l| !l.contains("tdf-reading"))
        .map(|l| format!("{}\n", l.trim()))
        .collect();
    let mut document = json!({ "scenario": BARE, "domains": [] });
    complete(&mut document, options, parts, &output, "", pass)?;
    Ok(Outcome { pass, table, document, console: output.console_file })
}

/// Boots the lab with the terminal as dom0's console.
///
/// # Errors
/// As [`run`].
pub fn interact(options: &Options) -> Result<()> {
    let parts = parts(options)?;
    let tdf = tool::build()?;
    let linux = dom0::linux(options.base)?;
    let contents = Contents { tdf: &tdf, guest: &parts.guest.path, scenario: None, network: true };
    let initramfs = dom0::initramfs(options.base, &linux, &contents)?;
    let step = Step::begin("lab-interactive", "lab")?;
    let args = format!("{DOM0_ARGS} tdf.interactive=1 tdf.network=1");
    let options = Options {
        accel: if options.accel == Accel::Kvm { Accel::Kvm } else { Accel::Tcg },
        ..options.clone()
    };
    let machine =
        machine(&options, &parts.xen.image, &linux.vmlinux, &args, Some(&initramfs), "interactive");
    eprintln!("Ctrl-A X ends the machine, Ctrl-A H lists QEMU's other keys.");
    let result = machine.interact(&step);
    step.done("ended");
    result
}

/// Xen's whole command line, with so many MiB for dom0, and no more later: a dom0 that could grow makes
/// ready for all of the machine's memory. Who gives another `dom0_mem` gives its `max:`, too.
fn xen_args(options: &Options, dom0_mib: u32) -> String {
    format!("{XEN_ARGS} dom0_mem={dom0_mib}M,max:{dom0_mib}M {}", options.xen_args)
}

fn machine<'a>(
    options: &Options,
    xen: &'a Path,
    kernel: &'a Path,
    kernel_args: &'a str,
    initramfs: Option<&'a Path>,
    name: &str,
) -> Machine<'a> {
    Machine {
        xen,
        xen_args: xen_args(options, DOM0_MIB),
        kernel,
        kernel_args,
        initramfs,
        accel: options.accel,
        memory_mib: MEMORY_MIB,
        svm: false,
        invariant_tsc: false,
        seed: options.seed,
        timeout: options.timeout,
        dir: paths::work().join(options.base.to_string()).join("lab").join(name),
    }
}

/// Adds to the document what only this side knows.
fn complete(
    document: &mut Value,
    options: &Options,
    parts: &Parts,
    output: &Output,
    linux: &str,
    pass: bool,
) -> Result<()> {
    let document = document.as_object_mut().context("tdf run's document is no object")?;
    let mut add = |key: &str, value: Value| document.insert(key.to_owned(), value);
    add("schema", json!("tdf.lab/1"));
    add("pass", json!(pass));
    add("base", json!(options.base.to_string()));
    add("seed", json!(options.seed));
    add("accel", json!(options.accel.name()));
    add("linux", json!({ "version": linux }));
    let xen = json!({ "version": parts.xen.version, "patched": !options.stock,
                      "default_tdf": options.default_tdf.to_string() });
    add("xen", xen);
    add("guest", json!({ "bytes": parts.guest.size }));
    // The event log is all that left the machine.
    let log = [output.console.as_slice(), &output.results].concat();
    add("digest", json!(sha256(&log)));
    Ok(())
}

/// The parts of what dom0 wrote to the second serial port.
struct Results<'a> {
    table: &'a str,
    json: &'a str,
    code: i32,
}

impl<'a> Results<'a> {
    fn parse(output: &'a Output) -> Result<Self> {
        let missing = || format!("dom0 gave no verdict\n{}", tail(&output.console_file));
        let text = std::str::from_utf8(&output.results).with_context(missing)?;
        Self::split(text).with_context(missing)
    }

    fn split(text: &'a str) -> Option<Self> {
        let text = text.split_once("=== table\n")?.1;
        let (table, text) = text.split_once("=== json\n")?;
        let (json, code) = text.split_once("\n=== end ")?;
        Some(Self { table, json: json.trim(), code: code.trim().parse().ok()? })
    }
}

/// The scenario's file when it is none of ours, checked before anything is built.
fn scenario_file(scenario: &str) -> Result<Option<PathBuf>> {
    let others = || dom0::SCRIPTS.iter().map(|(name, _)| *name).chain([BARE]);
    if others().any(|name| name == scenario) {
        return Ok(None);
    }
    let own = paths::root().join("tdf-tool/scenarios");
    if own.join(format!("{scenario}.toml")).is_file() {
        return Ok(None);
    }
    let path = PathBuf::from(scenario);
    if path.extension().is_some_and(|e| e == "toml") && path.is_file() {
        return Ok(Some(path));
    }
    let mut names: Vec<String> = std::fs::read_dir(&own)
        .map(|dir| {
            dir.filter_map(|e| Some(e.ok()?.path().file_stem()?.to_str()?.to_owned())).collect()
        })
        .unwrap_or_default();
    names.extend(others().map(str::to_owned));
    names.sort();
    names.dedup();
    bail!("--scenario {scenario}: neither a .toml file nor one of {}", names.join(", "))
}

fn scenario_name(scenario: &str) -> String {
    Path::new(scenario).file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Prints an outcome as a person reads it, and writes the document to `file` if one is named.
///
/// # Errors
/// The file cannot be written.
pub fn report(outcome: &Outcome, file: Option<&Path>) -> Result<()> {
    match outcome.table.trim() {
        // It could not even begin; its log says why.
        "" => println!("{}", tail(&outcome.console)),
        // The verdict comes last.
        table => {
            let rows = table.strip_suffix("PASS").or_else(|| table.strip_suffix("FAIL"));
            println!("{}", rows.unwrap_or(table).trim_end());
        }
    }
    let text = |key: &str| outcome.document[key].as_str().unwrap_or("?").to_owned();
    println!("\ndigest {}  log {}", text("digest"), paths::shown(&outcome.console));
    if let Some(file) = file {
        write_atomic(file, serde_json::to_string_pretty(&outcome.document)? + "\n")?;
    }
    println!("{}", if outcome.pass { "PASS" } else { "FAIL" });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_split_and_truncated_ones_refused() {
        let text = "noise\n=== table\na b\nc d\n=== json\n{\"pass\":true}\n\n=== end 0\n";
        let r = Results::split(text).unwrap();
        assert_eq!((r.table, r.json, r.code), ("a b\nc d\n", "{\"pass\":true}", 0));
        for cut in 0..text.len() - 2 {
            assert!(Results::split(&text[..cut]).is_none_or(|r| r.code == 0), "{cut}");
        }
        assert!(Results::split("=== table\n=== json\n").is_none());
    }

    #[test]
    fn a_network_gets_the_memory_of_its_domains() {
        let demand = |text: &str| Demand::read(text).map(|d| (d.memory_mib, d.network)).unwrap();
        let domain = "[[domain]]\nname = \"a\"\n";
        assert_eq!(demand(domain), (MEMORY_MIB, false));
        assert_eq!(demand(&format!("{domain}[[link]]")), (MEMORY_MIB, true));
        let large = format!("{domain}memory = 1000\n{domain}[[link]]");
        assert_eq!(demand(&large), (Demand::BASE_MIB + 1000 + 192, true));
        assert!(Demand::read("[[").is_err());
    }

    #[test]
    fn only_guests_that_are_not_pv_get_virtualization() {
        for (kind, wanted) in [("guest", false), ("linux", false), ("pvh", true), ("a.cfg", true)] {
            let text = format!("[[domain]]\nkind = \"guest\"\n[[domain]]\nkind = \"{kind}\"\n");
            assert_eq!(Demand::read(&text).unwrap().svm, wanted, "{kind}");
        }
        assert!(Demand::of_own("pvh").unwrap().svm && !Demand::of_own("clocks").unwrap().svm);
    }

    #[test]
    fn smp_gets_a_tsc_that_xen_can_take_the_time_from() {
        assert!(Demand::of_own("smp").unwrap().invariant_tsc);
        assert!(!Demand::of_own("changes").unwrap().invariant_tsc);
    }

    #[test]
    fn an_unknown_scenario_is_refused_with_the_known_ones() {
        let error = scenario_file("nonsense").unwrap_err().to_string();
        assert!(error.contains("nonsense") && error.contains("bare"), "{error}");
    }
}
