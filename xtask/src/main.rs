// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask`: builds all of xen-tdf, and boots the lab.

mod apt;
mod archive;
mod bzimage;
mod cost;
mod dom0;
mod exec;
mod fuzz;
mod guest;
mod host;
mod lab;
mod lock;
mod mutate;
mod patch;
mod paths;
mod qemu;
mod stamp;
mod test;
mod tidy;
mod tool;
mod xen;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use tdf_abi::Tdf;

use crate::apt::Base;
use crate::qemu::Accel;

/// Builds xen-tdf and boots its lab: real Xen, a real dom0, real guests, in QEMU.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", version, max_term_width = 100)]
struct Cli {
    /// Show every command that is run
    #[arg(short, long, global = true)]
    verbose: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build whatever is missing, boot the lab, print the verdict
    Lab(LabArgs),
    /// Build and lint the PV guest kernel
    BuildGuest,
    /// Fetch, patch and build the hypervisor
    BuildXen(XenArgs),
    /// The patch queue against a Xen tree
    #[command(subcommand)]
    Patch(PatchVerb),
    /// Run all tests
    Test(TestArgs),
    /// Check licence lines, host paths, white space, dependencies' licences
    Tidy,
    /// Measure, side by side in one run, and print the ratios
    Bench {
        /// What to measure
        what: Bench,
        #[command(flatten)]
        base: BaseArgs,
    },
    /// Fuzz what takes hostile input
    Fuzz {
        /// How long each target runs
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        seconds: u64,
        /// Words that a hostile peer writes against the rules of the rings, under AddressSanitizer
        #[arg(long, value_name = "N", default_value_t = 10_000_000)]
        mischiefs: u64,
    },
    /// Say what is missing on this machine, and the one command that installs it
    Doctor,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Bench {
    /// Cost per frame of a switch port, beside other implementations
    SwitchModel,
    /// What the patch queue costs domains that are not dilated, beside stock Xen
    Xen,
}

#[derive(Args)]
struct BaseArgs {
    /// The Debian release whose Xen and Linux are used [default: this machine's]
    #[arg(long)]
    base: Option<Base>,
    /// A Xen source tree to use instead of the base's source package
    #[arg(long, value_name = "DIR")]
    xen_src: Option<PathBuf>,
}

impl BaseArgs {
    fn base(&self) -> Result<Base> {
        self.base.map_or_else(Base::of_host, Ok)
    }

    fn source(&self) -> Result<Option<PathBuf>> {
        Ok(self.xen_src.as_deref().map(std::path::absolute).transpose()?)
    }
}

#[derive(Args)]
struct LabArgs {
    /// Time dilation factor of every domain whose factor the scenario sets: 10, 2.5, 5/2
    #[arg(long, value_name = "T", allow_hyphen_values = true)]
    tdf: Option<Tdf>,
    /// A scenario's name or file; `bare` boots our kernel alone
    #[arg(long, value_name = "S", default_value = "clocks")]
    scenario: String,
    /// Changes of each domain's factor, in scenarios that change it
    #[arg(long, value_name = "N")]
    changes: Option<u32>,
    /// Requests of dom0 and hypercalls of guests in the scenario `hostile`, each
    #[arg(long, value_name = "N")]
    calls: Option<u32>,
    /// Seed of the run
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// How the machine runs
    #[arg(long, default_value = "deterministic")]
    accel: Accel,
    /// Factor that is built into the hypervisor for every domU
    #[arg(long, value_name = "T", allow_hyphen_values = true, default_value_t = Tdf::ONE)]
    default_tdf: Tdf,
    /// More words for Xen's command line: "tdf=20"
    #[arg(long, value_name = "WORDS", default_value = "")]
    xen_args: String,
    /// Boot Xen without the patch queue
    #[arg(long)]
    stock: bool,
    /// A shell in dom0 instead of a scenario
    #[arg(long)]
    interactive: bool,
    /// Write the results as one JSON document (schema tdf.lab/1)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Longest time that the boot may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
    #[command(flatten)]
    base: BaseArgs,
}

impl LabArgs {
    fn options(&self) -> Result<lab::Options> {
        Ok(lab::Options {
            base: self.base.base()?,
            xen_source: self.base.source()?,
            scenario: self.scenario.clone(),
            tdf: self.tdf,
            changes: self.changes,
            calls: self.calls,
            default_tdf: self.default_tdf,
            xen_args: self.xen_args.clone(),
            stock: self.stock,
            image: None,
            seed: self.seed,
            accel: self.accel,
            timeout: Duration::from_secs(self.timeout),
        })
    }
}

#[derive(Args)]
struct XenArgs {
    /// Factor that every domU gets when nothing else sets one
    #[arg(long, value_name = "T", allow_hyphen_values = true, default_value_t = Tdf::ONE)]
    tdf: Tdf,
    /// Leave the patch queue out
    #[arg(long)]
    stock: bool,
    #[command(flatten)]
    base: BaseArgs,
}

#[derive(Subcommand)]
enum PatchVerb {
    /// Check the queue's messages and style, and that it applies to the source with no fuzz
    Check {
        /// Build Xen after each patch, too (slow)
        #[arg(long)]
        each: bool,
        #[command(flatten)]
        base: BaseArgs,
    },
    /// Take one hook at a time out of the patched Xen, and see that the lab notices (slow)
    Mutate(MutateArgs),
}

#[derive(Args)]
struct MutateArgs {
    /// Only the hooks of these paths: P8 P16
    #[arg(value_name = "PATH")]
    only: Vec<String>,
    #[command(flatten)]
    base: BaseArgs,
}

#[derive(Args)]
struct TestArgs {
    /// Only the tests that need no lab
    #[arg(long, conflicts_with = "lab")]
    host: bool,
    /// Only the tests that boot the lab
    #[arg(long)]
    lab: bool,
    #[command(flatten)]
    base: BaseArgs,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    exec::set_verbose(cli.verbose);
    match run(&cli.verb) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: &Verb) -> Result<bool> {
    if let Verb::Doctor = verb {
        return host::doctor().map(|()| true);
    }
    // Killing cargo must not leave us, and with us QEMU, behind.
    exec::die_with_parent()?;
    let _lock = lock::take()?;
    match verb {
        Verb::Lab(args) => {
            let options = args.options()?;
            host::ensure()?;
            if args.interactive {
                return lab::interact(&options).map(|()| true);
            }
            let outcome = lab::run(&options)?;
            lab::report(&outcome, args.json.as_deref())?;
            Ok(outcome.pass)
        }
        Verb::BuildGuest => {
            host::ensure()?;
            let image = guest::build()?;
            println!("{}  {} bytes", paths::shown(&image.path), image.size);
            println!("{}", guest::LINT);
            Ok(true)
        }
        Verb::BuildXen(args) => {
            let (base, source) = (args.base.base()?, args.base.source()?);
            host::ensure()?;
            let options = xen::Options { base, source, default_tdf: args.tdf, stock: args.stock };
            let xen = xen::build(&options)?;
            println!("{}  Xen {}", paths::shown(&xen.image), xen.version);
            Ok(true)
        }
        Verb::Patch(PatchVerb::Check { each, base }) => {
            let (base, source) = (base.base()?, base.source()?);
            host::ensure()?;
            xen::check_queue(base, source.clone())?;
            if *each {
                xen::check_each(base, source)?;
            }
            Ok(true)
        }
        Verb::Patch(PatchVerb::Mutate(args)) => {
            let (base, source) = (args.base.base()?, args.base.source()?);
            host::ensure()?;
            mutate::run(base, source, &args.only)
        }
        Verb::Test(args) => {
            let base = args.base.base()?;
            host::ensure()?;
            test::run(base, args.base.source()?, !args.lab, !args.host)
        }
        Verb::Bench { what: Bench::SwitchModel, .. } => {
            let cmd = guest::cargo().args(["bench", "--locked", "-p", "switch-model"]);
            Ok(cmd.command().status().context("cannot start cargo")?.success())
        }
        Verb::Bench { what: Bench::Xen, base } => {
            let (base, source) = (base.base()?, base.source()?);
            host::ensure()?;
            cost::run(base, source)
        }
        Verb::Tidy => tidy::run().map(|()| true),
        Verb::Fuzz { seconds, mischiefs } => fuzz::run(*seconds, *mischiefs).map(|()| true),
        Verb::Doctor => Ok(true),
    }
}
