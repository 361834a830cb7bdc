// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line of `tdf`.
//!
//! Exit codes: 0 all well, 1 failure (a sentence says which), 2 wrong usage.

use std::error::Error;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use tdf_abi::Tdf;
use tdf_tool::create::CreateError;
use tdf_tool::dom0::Listed;
use tdf_tool::host::{Host, catch_signals};
use tdf_tool::privcmd::Privcmd;
use tdf_tool::scenario::{Overrides, Test};
use tdf_tool::units::Span;
use tdf_tool::wanted::Wanted;
use tdf_tool::xen::{Control, XenError};
use tdf_tool::{
    arrivals, capture, create, keep, paths, port, probe, random, run, scenario, show, spin, storm,
    together, verify,
};

/// Creates, sets, shows and verifies dilated domains.
///
/// Runs in dom0 of a Xen that has time dilation. A domain is given by name or id, as to xl. A time
/// dilation factor (TDF) is written 10, 2.5 or 5/2; at TDF 10 a domain's time runs ten times slower
/// than real time.
#[derive(Debug, Parser)]
#[command(name = "tdf", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Create a domain from an xl configuration and dilate it before it runs
    ///
    /// The configuration's key `tdf = "2.5"` is the factor (xl ignores the key); without it the
    /// hypervisor's default holds. With `tdf_reveal = 1` the domain may read real time, for guests
    /// that measure their own dilation. If anything fails, no domain is left.
    Create {
        /// Stay, and make the domain anew, with its factor, when it reboots; xl does not watch it then
        #[arg(long)]
        watch: bool,
        /// The xl configuration
        config: PathBuf,
        /// KEY=VALUE settings and the options -d -e -i -p -q of xl create
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "XL ARGS")]
        xl_args: Vec<String>,
    },
    /// Give running domains another factor; their time goes on without a jump
    ///
    /// Several domains get it in one instant, all or none: they are paused for it.
    Set {
        /// The domains
        #[arg(required = true, num_args = 1.., value_name = "DOMAIN", allow_negative_numbers = true)]
        domains: Vec<String>,
        /// The factor: 10, 2.5, 5/2
        #[arg(required = true, allow_hyphen_values = true)]
        tdf: Tdf,
        /// Give all of them the wall clock of the first
        #[arg(long)]
        wall: bool,
    },
    /// Show a domain's factor, and its real and virtual time in one instant
    Get {
        /// The domain
        domain: String,
        /// As one JSON document (tdf.get/1)
        #[arg(long)]
        json: bool,
    },
    /// Show all domains
    List {
        /// As one JSON document (tdf.list/1)
        #[arg(long)]
        json: bool,
    },
    /// Run a scenario: create its domains, judge their clocks, destroy them
    ///
    /// What the domains print goes to standard error, the table of verdicts to standard output.
    Run {
        /// A name (ASSETS/scenarios/NAME.toml) or a path
        scenario: String,
        /// Seed of the moments at which clocks are read
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Instead of each factor that the scenario sets
        #[arg(long, allow_hyphen_values = true)]
        tdf: Option<Tdf>,
        /// Instead of the number of changes in each [[change]] of the scenario
        #[arg(long, value_name = "N")]
        changes: Option<u32>,
        /// Write the verdict there, too, as one JSON document (tdf.run/1)
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Write the plots of its checks there, as SVG
        #[arg(long, value_name = "DIR")]
        plots: Option<PathBuf>,
        /// Where guest, vmlinuz, linux-probe.cgz, linux-host.cgz and scenarios/ are
        #[arg(long, value_name = "DIR", default_value = "/usr/share/xen-tdf")]
        assets: PathBuf,
    },
    /// Prove that the clocks of domains that run keep to their factor
    ///
    /// Samples each domain's time through Xen, and listens on its console for the readings of a probe
    /// in it: our kernel with test=clocks, or `tdf probe` in a Linux. (Whoever looks at that console
    /// meanwhile misses what it says.) Fails if any clock disagrees.
    Verify {
        /// The domains
        #[arg(required = true, value_name = "DOMAIN")]
        domains: Vec<String>,
        /// For how much real time
        #[arg(long = "for", value_name = "SPAN", default_value = "2s", value_parser = Span::parse)]
        span: Span,
        /// Ask for readings on the console, where `tdf probe --serve` must run; no answer is a failure
        #[arg(long)]
        ask: bool,
        /// Seed of the moments at which a guest that is asked reads its clocks
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// As one JSON document (tdf.verify/1)
        #[arg(long)]
        json: bool,
    },
    /// For tests: make requests of every kind, right and wrong, and hold Xen to its answers
    ///
    /// The domains get random factors and wall clocks, thousands each second. Fails if Xen grants what
    /// it has to refuse or refuses what it has to grant, or if their time jumps.
    #[command(hide = true)]
    Storm {
        /// The domains that suffer it; they keep their factors, and lose their wall clocks
        #[arg(required = true, value_name = "DOMAIN")]
        domains: Vec<String>,
        /// How many requests
        #[arg(long, default_value_t = 10_000)]
        calls: u64,
        /// Seed of the requests
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Inside a Linux guest: read its clocks and print the readings
    ///
    /// Takes test=clocks (or changes) span_ns=… samples=… seed=… from the kernel's command line. Needs root, a
    /// domain that was created with tdf_reveal = 1, and the module xen-privcmd, which recent kernels
    /// want loaded with unrestricted=1.
    Probe {
        /// Read the clocks whenever `tdf verify --ask` asks for it on standard input, which is to be
        /// the console; so does test=serve on the kernel's command line
        #[arg(long)]
        serve: bool,
    },
    /// Inside a guest of a test: seed its kernel's random numbers with a text
    ///
    /// The kernel of a guest that has nothing random gathers it for a second of its own time, which
    /// is one of a busy processor, as soon as a program asks.
    #[command(hide = true)]
    SeedRandom {
        /// The text, which is taken for random
        text: String,
    },
    /// Inside a guest: show the gaps between frames that arrive, ns, one in a line
    Arrivals {
        /// The interface
        interface: String,
        /// How many frames, the first among them
        frames: u32,
        /// Only frames of more bytes
        #[arg(long, default_value_t = 0)]
        longer: usize,
    },
    /// Inside a guest: wait for a TCP flow and its end; show how many bytes of it came into order
    /// between its first and its last segment, and in how many ns
    Goodput {
        /// The interface
        interface: String,
        /// The address that it comes from
        #[arg(long)]
        from: Ipv4Addr,
        /// The port that it goes to
        #[arg(long)]
        port: u16,
        /// It begins with a frame of more bytes
        #[arg(long, default_value_t = 0)]
        longer: usize,
        /// So much time at its beginning does not count: 1.5 s
        #[arg(long, value_parser = Span::parse)]
        after: Option<Span>,
    },
    /// The ports of a switch that runs
    #[command(subcommand)]
    Port(PortVerb),
}

#[derive(Debug, Subcommand)]
enum PortVerb {
    /// Set what a port does, while it runs
    ///
    /// KEY=VALUE pairs in virtual units: rate="10 Gbit/s" delay="50 us" loss="0.1 %" queue="256 KiB"
    /// profile=pica8 framing=ethernet; `none` makes a key ideal again. What is not named stays as it
    /// is; if anything is wrong all stays as it is.
    Set {
        /// The switch
        switch: String,
        /// Number of the port, or the domain that is attached to it
        port: String,
        /// What to set
        #[arg(required = true, value_name = "KEY=VALUE")]
        settings: Vec<String>,
        /// Frames from the domain to the switch, instead of those to the domain
        #[arg(long)]
        ingress: bool,
    },
    /// Show the ports, what they do and what they counted
    Show {
        /// The switch
        switch: String,
        /// Number of one port, or the domain that is attached to it
        port: Option<String>,
        /// As one JSON document (tdf.ports/1)
        #[arg(long)]
        json: bool,
    },
    /// Write the frames that pass a port into a pcap file, in the switch's time, until Ctrl-C
    ///
    /// Stamps are virtual, in ns; FILE.real has the real time of each frame. What comes too fast is
    /// dropped and counted, and never slows the switch.
    Capture {
        /// The switch
        switch: String,
        /// Number of the port, the domain that is attached to it, or `all`
        port: String,
        /// The file
        #[arg(short, value_name = "FILE")]
        write: PathBuf,
        /// For so much of the switch's time
        #[arg(long = "for", value_name = "SPAN", value_parser = Span::parse)]
        span: Option<Span>,
        /// Bytes of each frame that are kept
        #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u16).range(14..=i64::from(capture::MOST_SNAPLEN)))]
        snaplen: u16,
    },
}

fn main() -> ExitCode {
    match execute(Cli::parse().verb) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            if let Some(CreateError::Argument(_)) = e.downcast_ref() {
                Cli::command().error(ErrorKind::UnknownArgument, e).exit();
            }
            eprintln!("tdf: {e}");
            ExitCode::FAILURE
        }
    }
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Does what was asked; `false` if what was to hold does not.
fn execute(verb: Verb) -> Result<bool, Box<dyn Error>> {
    match verb {
        Verb::Create { watch, config, xl_args } => create(&config, xl_args, watch)?,
        Verb::Set { domains, tdf, wall } => set(&domains, tdf, wall)?,
        Verb::Get { domain, json } => {
            let mut control = Control::new(Host::open()?);
            control.can_dilate()?;
            let listed = control.find(&domain)?;
            let dilation = control.get_tdf(listed.id)?;
            let text = if json { show::get_json } else { show::get_text };
            print(&text(&listed, &dilation))?;
        }
        Verb::List { json } => {
            let mut control = Control::new(Host::open()?);
            control.can_dilate()?;
            let mut domains = Vec::new();
            for listed in control.domains()? {
                match control.get_tdf(listed.id) {
                    Ok(dilation) => {
                        let wanted = control.wanted(listed.id)?.map(|wanted| wanted.tdf);
                        domains.push(show::Shown { listed, dilation, wanted });
                    }
                    // It went while we looked.
                    Err(XenError::NoDomain(_)) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            print(&if json { show::list_json(&domains) } else { show::list_text(&domains) })?;
        }
        Verb::Run { scenario, seed, tdf, changes, json, plots, assets } => {
            let instead = Overrides { tdf, changes };
            let outputs = (json.as_deref(), plots.as_deref());
            return run(&scenario, seed, instead, outputs, &assets);
        }
        Verb::Verify { domains, span, ask, seed, json } => {
            let mut control = Control::new(Host::open()?);
            control.can_dilate()?;
            let domains = control.find_all(&domains)?;
            catch_signals();
            let options = verify::Options { span, ask, seed };
            let report = verify::verify(&mut control, &domains, &options)?;
            print(&if json { report.json() } else { report.text() })?;
            return Ok(report.pass);
        }
        Verb::Storm { domains, calls, seed } => {
            let mut control = Control::new(Host::open()?);
            control.can_dilate()?;
            let id = |listed: Listed| listed.id;
            let victims: Vec<_> = control.find_all(&domains)?.into_iter().map(id).collect();
            let others: Vec<_> = control.domains()?.into_iter().map(id).collect();
            // Domains that are paused must be unpaused.
            catch_signals();
            let outcome = control.storm(&victims, &others, storm::Options { calls, seed })?;
            print(&format!("{outcome}\n"))?;
            return Ok(outcome.wrong == 0);
        }
        Verb::Probe { serve } => return probe(serve),
        Verb::SeedRandom { text } => {
            random::seed(text.as_bytes())
                .map_err(|e| format!("cannot seed the kernel's random numbers: {e}"))?;
        }
        Verb::Arrivals { interface, frames, longer } => {
            let gaps = arrivals::gaps(&interface, frames, longer)
                .map_err(|e| format!("cannot listen on {interface}: {e}"))?;
            print(&gaps)?;
        }
        Verb::Goodput { interface, from, port, longer, after } => {
            let wanted =
                arrivals::Wanted { from, port, longer, after_ns: after.map_or(0, Span::ns) };
            let goodput = arrivals::goodput(&interface, wanted)
                .map_err(|e| format!("cannot listen on {interface}: {e}"))?;
            print(&format!("{goodput}\n"))?;
        }
        Verb::Port(verb) => port(verb)?,
    }
    Ok(true)
}

fn port(verb: PortVerb) -> Result<(), Box<dyn Error>> {
    let mut control = Control::new(Host::open()?);
    match verb {
        PortVerb::Set { switch, port, settings, ingress } => {
            let switch = control.find(&switch)?;
            let port = control.find_port(switch.id, &port)?;
            let wanted = port.with(&settings, ingress)?;
            control.set_port(switch.id, port.number, &wanted)?;
            print(&format!("{}: port {} is set\n", switch.name, port.number))?;
        }
        PortVerb::Show { switch, port, json } => {
            let switch = control.find(&switch)?;
            let ports = match port {
                Some(port) => vec![control.find_port(switch.id, &port)?],
                None => control.ports(switch.id)?,
            };
            let (own, counters) = control.counters(switch.id)?;
            let shown = port::Shown::new(&switch, own, ports, counters);
            print(&if json { shown.json() } else { shown.text() })?;
        }
        PortVerb::Capture { switch, port, write, span, snaplen } => {
            let switch = control.find(&switch)?;
            let port = match port.as_str() {
                "all" => None,
                port => Some(control.find_port(switch.id, port)?.number),
            };
            let mut beside = write.clone().into_os_string();
            beside.push(".real");
            let open = |path: &Path| {
                let file = OpenOptions::new().write(true).create(true).truncate(true).open(path);
                file.map(io::BufWriter::new)
                    .map_err(|e| format!("cannot write {}: {e}", path.display()))
            };
            let (mut pcap, mut real) = (open(&write)?, open(Path::new(&beside))?);
            catch_signals();
            let request = capture::Request { port, snaplen, span_ns: span.map(Span::ns) };
            let captured = control.capture(switch.id, &request, &mut pcap, &mut real)?;
            pcap.flush()?;
            real.flush()?;
            let capture::Captured { frames, dropped } = captured;
            print(&format!("{}: {frames} frames, {dropped} dropped\n", write.display()))?;
        }
    }
    Ok(())
}

fn set(domains: &[String], tdf: Tdf, wall: bool) -> Result<(), Box<dyn Error>> {
    let mut control = Control::new(Host::open()?);
    control.can_dilate()?;
    let domains = control.find_all(domains)?;
    if let ([listed], false) = (&domains[..], wall) {
        let before = control.set_and_remember(listed, tdf)?;
        print(&format!("{}: TDF {tdf}, was {}\n", listed.name, before.tdf))?;
        return Ok(());
    }
    // Domains that are paused must be unpaused: no signal may come between.
    catch_signals();
    let together = control.set_together(&domains, tdf, wall)?;
    print(&together::text(&domains, &together, tdf, wall))?;
    for (listed, (_, now)) in domains.iter().zip(&together.changed) {
        control.remember(listed, Wanted { tdf, reveal: now.reveal })?;
    }
    Ok(())
}

fn create(config: &Path, mut xl_args: Vec<String>, watch: bool) -> Result<(), Box<dyn Error>> {
    let ends = match watch {
        true => Some(keep::ends(config, &xl_args)?),
        false => None,
    };
    if watch && !xl_args.iter().any(|arg| arg == "-e") {
        // xl is not to watch the domain as well.
        xl_args.push("-e".to_owned());
    }
    let (plan, warnings) = create::plan(config, &xl_args)?;
    for warning in warnings.iter().filter(|_| !watch) {
        eprintln!("tdf: warning: {warning}");
    }
    let mut control = Control::new(Host::open()?);
    catch_signals();
    let created = control.create(&plan)?;
    let (name, id, got) = (&plan.name, created.id, created.now.tdf);
    let from = if plan.tdf.is_some() { "" } else { " (the hypervisor's default)" };
    print(&format!("{name}: domain {id}, TDF {got}{from}\n"))?;
    if let Some(ends) = ends {
        let over = control.keep(&plan, &ends, id)?;
        print(&format!("{name}: {over}\n"))?;
    }
    Ok(())
}

fn run(
    given: &str,
    seed: u64,
    instead: Overrides,
    (json, plots): (Option<&Path>, Option<&Path>),
    assets: &Path,
) -> Result<bool, Box<dyn Error>> {
    let scenario = scenario::load(&scenario::locate(given, assets), instead)?;
    let mut control = Control::new(Host::open()?);
    control.can_dilate()?;
    // Before the run, which may be long, and not after it.
    let mut document = None;
    if let Some(path) = json {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(path);
        let unwritten = move |e| format!("cannot write {}: {e}", path.display());
        document = Some((file.map_err(unwritten)?, unwritten));
    }
    catch_signals();
    let report = run::run(&mut control, &scenario, seed, assets);
    print(&report.text())?;
    if let Some((mut file, unwritten)) = document {
        file.write_all(report.json().as_bytes()).map_err(unwritten)?;
    }
    if let Some(dir) = plots {
        let drawn = report.checks.iter().filter_map(|check| check.plot.as_ref());
        for (i, plot) in drawn.enumerate() {
            let file = dir.join(format!("{}-{}.svg", report.scenario, i + 1));
            let written = std::fs::write(&file, plot);
            written.map_err(|e| format!("cannot write {}: {e}", file.display()))?;
        }
    }
    Ok(report.pass)
}

fn probe(serve: bool) -> Result<bool, Box<dyn Error>> {
    let cmdline = std::fs::read_to_string("/proc/cmdline")
        .map_err(|e| format!("cannot read /proc/cmdline: {e}"))?;
    if serve || cmdline.split_whitespace().any(|word| word == "test=serve") {
        return answer();
    }
    let result = measure(&cmdline);
    if result.is_err() {
        print("Test result: ERROR\n")?;
    }
    let (text, pass) = result?;
    print(&text)?;
    Ok(pass)
}

/// Reads the clocks for everyone who asks, until standard input ends.
fn answer() -> Result<bool, Box<dyn Error>> {
    let mut clocks = linux()?;
    for line in io::stdin().lines() {
        let answer = match probe::Parameters::requested(&line?) {
            None => continue,
            Some(asked) => asked.and_then(|parameters| clocks.readings(&parameters)),
        };
        match answer {
            Ok((tdf, readings)) => print(&probe::transcript(tdf, &readings).0)?,
            Err(e) => print(&format!("tdf: {e}\nTest result: ERROR\n"))?,
        }
    }
    Ok(true)
}

fn linux() -> Result<probe::Linux, Box<dyn Error>> {
    probe::Linux::new(Privcmd::open()?)
        .map_err(|e| format!("cannot lock memory and take real-time priority: {e}").into())
}

fn measure(cmdline: &str) -> Result<(String, bool), Box<dyn Error>> {
    let parameters = probe::Parameters::parse(cmdline)?;
    if parameters.test == Test::Changes {
        return spin::watch(&parameters, || print(&format!("{}\n", probe::BEGIN)));
    }
    if parameters.test == Test::Paths {
        return Ok(paths::watch(&mut paths::this_machine()?)?);
    }
    let mut clocks = linux()?;
    let (tdf, readings) = clocks.readings(&parameters)?;
    Ok(probe::transcript(tdf, &readings))
}
