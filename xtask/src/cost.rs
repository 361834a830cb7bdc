// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the patch queue costs a domain that is not dilated, beside stock Xen.
//!
//! The deterministic machine's time is counted in instructions, so that the ticks that a guest
//! measures are instructions that Xen carried out for it: no noise, no host, and the same figures on
//! any machine. Sizes are those of the two builds.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use elf::ElfBytes;
use elf::endian::LittleEndian;
use tdf_abi::Tdf;

use crate::apt::Base;
use crate::exec::{Cmd, Step};
use crate::lab;
use crate::xen;

/// Ticks of the TSC in an instruction of the deterministic machine (`-icount shift=1`).
const TICKS: f64 = 2.0;
/// By how much more an operation may cost, of what it costs on stock Xen.
const MOST: f64 = 0.01;
/// What is measured with every operation and is none.
const NOTHING: &str = "nothing";
/// The guest's own code, without Xen: not one instruction more.
const OWN: &str = "clock_read";
/// The operations that may cost no more than [`MOST`]: those that every guest does all the time. Others
/// are shown, but not judged.
const JUDGED: [&str; 5] = [OWN, "time_record", "context_switch", "set_singleshot", "rdtsc"];

/// A line of the guest's self-test `cost`.
#[derive(Clone, Debug, PartialEq)]
struct Cost {
    name: String,
    ops: f64,
    ticks: f64,
}

impl Cost {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.trim().strip_prefix("tdf-cost ")?.split(' ');
        let mut value = |key| words.next()?.strip_prefix(key)?.strip_prefix('=');
        let name = value("op")?.to_owned();
        Some(Self { name, ops: value("ops")?.parse().ok()?, ticks: value("ticks")?.parse().ok()? })
    }

    /// Instructions of one operation, without those of the measuring.
    fn instructions(&self, nothing: f64) -> f64 {
        (self.ticks - nothing) / TICKS / self.ops
    }
}

/// What a guest measured.
#[derive(Debug)]
struct Costs(Vec<Cost>);

impl Costs {
    fn parse(text: &str) -> Result<Self> {
        let costs = Self(text.lines().filter_map(Cost::parse).collect());
        for name in JUDGED.iter().copied().chain([NOTHING]) {
            ensure!(costs.find(name).is_some(), "the guest did not measure {name}\n{text}");
        }
        Ok(costs)
    }

    fn find(&self, name: &str) -> Option<&Cost> {
        self.0.iter().find(|cost| cost.name == name)
    }

    fn instructions(&self, name: &str) -> Option<f64> {
        let nothing = match name {
            // It is measured by itself.
            "rdtsc" => 0.0,
            _ => self.find(NOTHING)?.ticks,
        };
        Some(self.find(name)?.instructions(nothing))
    }
}

/// Whether an operation may cost this much, if it costs so much on stock Xen.
fn may_cost(name: &str, stock: f64, patched: f64) -> bool {
    match name {
        OWN => patched <= stock,
        _ => patched <= stock * (1.0 + MOST),
    }
}

/// Bytes of one build.
struct Sizes {
    text: u64,
    domain: u64,
    vcpu: u64,
}

/// Measures both Xens and prints them side by side; true if the queue costs no more than it may.
///
/// # Errors
/// Something could not be built or booted, or the guest did not measure what it should.
pub fn run(base: Base, source: Option<PathBuf>) -> Result<bool> {
    let one = |stock| -> Result<_> {
        let options = xen::Options { base, source: source.clone(), default_tdf: Tdf::ONE, stock };
        let version = xen::build(&options)?.version;
        let sizes = sizes(base, &xen::prepare(&options)?, stock)?;
        let outcome = lab::run(&lab::Options {
            xen_source: source.clone(),
            scenario: lab::INSTRUCTIONS.to_owned(),
            stock,
            ..lab::Options::new(base)
        })?;
        if !outcome.pass {
            bail!("the guest could not measure; see {}", outcome.console.display());
        }
        Ok((version, sizes, Costs::parse(&outcome.table)?))
    };
    let (version, before, stock) = one(true)?;
    let (_, after, patched) = one(false)?;

    println!("Xen {version}, instructions of an undilated domain's operation");
    println!(
        "{:22} {:>10} {:>10} {:>8} {:>8}  VERDICT",
        "OPERATION", "STOCK", "PATCHED", "MORE", "%"
    );
    let mut all = true;
    for Cost { name, .. } in stock.0.iter().filter(|cost| cost.name != NOTHING) {
        let (Some(old), Some(new)) = (stock.instructions(name), patched.instructions(name)) else {
            bail!("only stock Xen's guest measured {name}");
        };
        let verdict = match may_cost(name, old, new) {
            _ if !JUDGED.contains(&name.as_str()) => "",
            true => "ok",
            false => "TOO MUCH",
        };
        all &= verdict != "TOO MUCH";
        println!(
            "{name:22} {old:>10.1} {new:>10.1} {:>+8.1} {:>+8.2}  {}",
            new - old,
            100.0 * (new / old - 1.0),
            verdict
        );
    }
    println!("\n{:22} {:>10} {:>10} {:>8} {:>8}", "BYTES", "STOCK", "PATCHED", "MORE", "%");
    for (name, old, new) in [
        ("text", before.text, after.text),
        ("struct domain", before.domain, after.domain),
        ("struct vcpu", before.vcpu, after.vcpu),
    ] {
        let more = new as i64 - old as i64;
        println!(
            "{name:22} {old:>10} {new:>10} {more:>+8} {:>+8.2}",
            100.0 * more as f64 / old as f64
        );
    }
    println!("{}", if all { "PASS" } else { "FAIL" });
    Ok(all)
}

/// The sizes of a build: its text, and the two structures as a file of their own sees them.
fn sizes(base: Base, tree: &Path, stock: bool) -> Result<Sizes> {
    let syms = tree.join("xen/xen-syms");
    let text = section(&syms, ".text")?;
    let what = if stock { "stock" } else { "patched" };
    let mut step = Step::begin(&format!("{base}-sizes-{what}"), "sizes")?;
    let dir = crate::paths::work().join(base.to_string());
    let (source, object) = (dir.join("sizes.c"), dir.join("sizes.o"));
    fs::write(
        &source,
        "#include <xen/sched.h>\n\
         char size_of_domain[sizeof(struct domain)];\n\
         char size_of_vcpu[sizeof(struct vcpu)];\n",
    )?;
    step.run(&probe(tree, &source, &object)?)?;
    let sizes = Sizes {
        text,
        domain: symbol(&object, "size_of_domain")?,
        vcpu: symbol(&object, "size_of_vcpu")?,
    };
    step.done(&format!("{what}, {} bytes of text", sizes.text));
    Ok(sizes)
}

/// The command by which Xen's build compiled a file of its own, for `source` instead.
fn probe(tree: &Path, source: &Path, object: &Path) -> Result<Cmd> {
    let file = tree.join("xen/common/.domain.o.cmd");
    let text =
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let words = command(&text, source, object)
        .with_context(|| format!("{} has no command", file.display()))?;
    Ok(Cmd::new("sh").args(["-c", &words]).dir(tree.join("xen")))
}

/// The compiler's command in `text`, with another source and another object.
fn command(text: &str, source: &Path, object: &Path) -> Option<String> {
    let line = text.lines().find_map(|l| l.strip_prefix("cmd_common/domain.o :="))?;
    // What follows the compiler's command is about its object.
    let line = line.split(';').next()?;
    let mut words: Vec<String> = Vec::new();
    let mut skip = false;
    for word in line.split_whitespace() {
        match word {
            _ if skip => skip = false,
            "-o" | "-MF" | "-MQ" => skip = true,
            "-MMD" | "-MP" | "-c" => {}
            _ if word.ends_with("domain.c") => {}
            _ => words.push(word.to_owned()),
        }
    }
    words.push(format!("-c '{}' -o '{}'", source.display(), object.display()));
    Some(words.join(" "))
}

fn section(file: &Path, name: &str) -> Result<u64> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let elf = ElfBytes::<LittleEndian>::minimal_parse(&bytes)?;
    let header = elf.section_header_by_name(name)?;
    Ok(header.with_context(|| format!("{} has no {name}", file.display()))?.sh_size)
}

fn symbol(file: &Path, wanted: &str) -> Result<u64> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let elf = ElfBytes::<LittleEndian>::minimal_parse(&bytes)?;
    let (symbols, names) = elf.symbol_table()?.context("the probe has no symbols")?;
    let size =
        symbols.iter().find(|s| names.get(s.st_name as usize).is_ok_and(|name| name == wanted));
    Ok(size.with_context(|| format!("the probe has no {wanted}"))?.st_size)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "tdf-cost op=nothing ops=1 ticks=10\ntdf-cost op=clock_read ops=1 ticks=50\n\
        tdf-cost op=time_record ops=1 ticks=1010\ntdf-cost op=context_switch ops=2 ticks=4010\n\
        tdf-cost op=set_singleshot ops=1 ticks=810\ntdf-cost op=rdtsc ops=64 ticks=64000\n";

    #[test]
    fn instructions_are_ticks_of_one_operation_without_the_measuring() {
        let costs = Costs::parse(LINES).unwrap();
        for (name, instructions) in
            [("clock_read", 20.0), ("context_switch", 1000.0), ("rdtsc", 500.0)]
        {
            assert_eq!(costs.instructions(name), Some(instructions), "{name}");
        }
    }

    #[test]
    fn what_was_not_measured_is_an_error() {
        for name in JUDGED {
            let without: Vec<&str> =
                LINES.lines().filter(|l| !l.contains(&format!("op={name} "))).collect();
            let error = Costs::parse(&without.join("\n")).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        assert_eq!(Cost::parse("tdf-cost op=x ops=1 ticks=-"), None);
    }

    #[test]
    fn a_hundredth_more_is_allowed_and_nothing_for_the_guests_own_code() {
        assert!(may_cost("rdtsc", 1000.0, 1010.0) && !may_cost("rdtsc", 1000.0, 1010.5));
        assert!(may_cost(OWN, 20.0, 20.0) && !may_cost(OWN, 20.0, 20.1));
    }

    #[test]
    fn the_probe_is_compiled_as_xen_is() {
        let text = "cmd_common/domain.o := gcc -MMD -MP -MF common/.domain.o.d -O2 -I./include \
                    -c common/domain.c -o common/.domain.o.tmp -MQ common/domain.o; objcopy x\n\nsource := z\n";
        let line = command(text, Path::new("a.c"), Path::new("a.o")).unwrap();
        assert_eq!(line, "gcc -O2 -I./include -c 'a.c' -o 'a.o'");
        assert_eq!(command("", Path::new("a.c"), Path::new("a.o")), None);
    }
}
