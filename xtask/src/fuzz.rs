// SPDX-License-Identifier: MIT OR Apache-2.0
//! Coverage-guided fuzzing with the stable compiler: libFuzzer, without cargo-fuzz.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::exec::Step;
use crate::guest::cargo;
use crate::{host, paths};

/// Fuzz targets: package, and binary.
const TARGETS: &[(&str, &str)] = &[("switch-model", "fuzz-port"), ("tdf-xen", "fuzz-rings")];

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What cargo-fuzz would pass: the compiler's own coverage pass is in stable, and so are its options.
const RUSTFLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Coverflow-checks --cfg fuzzing";

/// Adds AddressSanitizer, whose runtime comes with every compiler, to a program.
const ASAN_RUSTFLAGS: &str = "-Zsanitizer=address -Cdebug-assertions -Coverflow-checks";

/// Builds every target and runs it for `seconds`; then lets a hostile peer do `mischiefs` to both ends
/// of the rings, under AddressSanitizer.
///
/// # Errors
/// A target could not be built, or found a fault; the input that shows it is kept.
pub fn run(seconds: u64, mischiefs: u64) -> Result<()> {
    ensure!(host::which("g++").is_some(), "libFuzzer is written in C++: install the package g++");
    for (package, binary) in TARGETS {
        let mut step = Step::begin(&format!("fuzz-{binary}"), &format!("fuzz {binary}"))?;
        let dir = paths::target().join("fuzz");
        step.run(
            &cargo()
                .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", RUSTFLAGS)
                .args(["build", "--locked", "--release", "--features", "fuzz"])
                .args(["-p", package, "--bin", binary, "--target", TARGET, "--target-dir"])
                .arg(&dir),
        )?;
        let corpus = dir.join("corpus").join(binary);
        fs::create_dir_all(&corpus)
            .with_context(|| format!("cannot create {}", corpus.display()))?;
        let program = dir.join(TARGET).join("release").join(binary);
        step.run(
            &crate::exec::Cmd::new(program)
                .arg(format!("-max_total_time={seconds}"))
                .arg(format!("-artifact_prefix={}/", dir.display()))
                .args(["-timeout=10", "-max_len=600", "-rss_limit_mb=2048", "-print_final_stats=1"])
                .arg(&corpus),
        )?;
        let log = fs::read_to_string(step.log())?;
        let runs = log.lines().find_map(|l| l.strip_prefix("stat::number_of_executed_units:"));
        let runs = runs.context("the fuzzer gave no statistics")?.trim().to_owned();
        step.done(&format!("{runs} inputs, no fault"));
    }
    hostile_peer(mischiefs)
}

/// The program `hostile-peer` under AddressSanitizer.
fn hostile_peer(mischiefs: u64) -> Result<()> {
    let mut step = Step::begin("fuzz-hostile-peer", "fuzz hostile-peer")?;
    let dir = paths::target().join("asan");
    step.run(
        &cargo()
            // The flag's gate opens to this variable: for this one build, of a test.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", ASAN_RUSTFLAGS)
            .args(["build", "--locked", "--release", "--features", "fuzz"])
            .args(["-p", "tdf-xen", "--bin", "hostile-peer", "--target", TARGET, "--target-dir"])
            .arg(&dir),
    )?;
    let program = dir.join(TARGET).join("release/hostile-peer");
    step.run(&crate::exec::Cmd::new(program).arg(mischiefs.to_string()))?;
    let log = fs::read_to_string(step.log())?;
    let done = log.lines().find(|line| line.contains("words written against the rules"));
    step.done(done.context("the hostile peer does not say what it did")?);
    Ok(())
}
