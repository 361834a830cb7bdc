// SPDX-License-Identifier: MIT OR Apache-2.0
//! Feeds a capture or a synthetic load through a port and shows what became of it.
//!
//! ```text
//! cargo run -p switch-model --example replay -- --spec port.toml --pcap trace.pcap --out DIR
//! cargo run -p switch-model --example replay -- --set 'rate = "1 Gbit/s"' --load '900 Mbit/s'
//! ```
//! Writes `frames.csv` (when each frame came, what became of it and when), `summary.txt`, and
//! `report.html` (distribution of the delay, buffer over time), which needs nothing else to be read.

mod capture;
mod plot;

use std::{fmt::Write as _, fs, path::PathBuf, process::ExitCode};

use switch_model::{
    DropReason, Egress, Event, Frame, Port, PortConfig, PortSpec, Rate, Scheduled, Slot, TraceHash,
    Verdict, stream_seed,
};

const USAGE: &str = "usage: replay [--spec FILE] [--set 'KEY = VALUE']... [--seed N] [--out DIR]
              [--pcap FILE | --load RATE --frames N --len BYTES [--constant]]

  --spec FILE   description of the port (TOML); without one the port is ideal
  --set LINE    one more line of it
  --pcap FILE   frames from a capture, by their times and lengths
  --load RATE   a Poisson load instead (--constant: evenly spaced); default \"900 Mbit/s\"
  --frames N    how many frames (10000)
  --len BYTES   their length (1250)
  --seed N      of the port's and the load's chances (1)
  --out DIR     where to write (target/replay)";

struct Options {
    spec: String,
    pcap: Option<PathBuf>,
    load: Rate,
    frames: usize,
    len: u32,
    constant: bool,
    seed: u64,
    out: PathBuf,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        spec: String::new(),
        pcap: None,
        load: Rate::mbit(900),
        frames: 10_000,
        len: 1250,
        constant: false,
        seed: 1,
        out: PathBuf::from("target/replay"),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        if name == "--constant" {
            options.constant = true;
            continue;
        }
        if name == "--help" {
            return Err(USAGE.into());
        }
        let value = arguments.next().ok_or(format!("{name} needs a value\n{USAGE}"))?;
        let number = || value.parse::<u64>().map_err(|e| format!("{name} {value}: {e}"));
        match name.as_str() {
            "--spec" => {
                let text = fs::read_to_string(&value).map_err(|e| format!("{value}: {e}"))?;
                options.spec.insert_str(0, &format!("{text}\n"));
            }
            "--set" => options.spec.push_str(&format!("{value}\n")),
            "--pcap" => options.pcap = Some(value.into()),
            "--load" => options.load = value.parse().map_err(|e| format!("--load {value}: {e}"))?,
            "--frames" => options.frames = number()? as usize,
            "--len" => options.len = u32::try_from(number()?).map_err(|e| format!("--len: {e}"))?,
            "--seed" => options.seed = number()?,
            "--out" => options.out = value.into(),
            _ => return Err(format!("unknown option {name}\n{USAGE}")),
        }
    }
    Ok(options)
}

/// (time, length) of each frame.
fn load(options: &Options) -> Result<Vec<(u64, u32)>, String> {
    if let Some(path) = &options.pcap {
        let bytes = fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
        return capture::frames(&bytes).map_err(|e| format!("{}: {e}", path.display()));
    }
    if options.load.as_bits() == 0 {
        return Err("--load: a load of zero has no frames".into());
    }
    let gap = f64::from(options.len) * 8e9 / options.load.as_bits() as f64;
    let (mut at, mut state) = (0.0, options.seed);
    Ok((0..options.frames)
        .map(|_| {
            state = stream_seed(state, 0x10AD);
            let uniform = ((state >> 11) + 1) as f64 / (1u64 << 53) as f64;
            at += if options.constant { gap } else { -uniform.ln() * gap };
            (at as u64, options.len)
        })
        .collect())
}

/// What became of one frame.
#[derive(Clone, Copy, Default)]
struct Outcome {
    delivered: Option<u64>,
    dropped: Option<DropReason>,
    copies: u32,
    marked: bool,
    corrupt: bool,
}

struct Run {
    outcomes: Vec<Outcome>,
    /// (time, bytes in the buffer).
    buffer: Vec<(u64, u32)>,
    hash: TraceHash,
}

fn run(port: &mut dyn Egress, frames: &[(u64, u32)]) -> Run {
    let mut run = Run {
        outcomes: vec![Outcome::default(); frames.len()],
        buffer: Vec::with_capacity(frames.len()),
        hash: TraceHash::default(),
    };
    for (tag, &(now, len)) in frames.iter().enumerate() {
        pop(port, now, &mut run);
        let verdict = port.offer_within(now, Frame::new(tag as u32, len), u64::MAX);
        run.hash.add_verdict(&verdict);
        if let Verdict::Drop(reason) = verdict {
            run.outcomes[tag].dropped = Some(reason);
        }
        run.buffer.push((now, port.buffered_bytes()));
    }
    while let Some(deadline) = port.next_deadline() {
        pop(port, deadline, &mut run);
    }
    run
}

fn pop(port: &mut dyn Egress, now: u64, run: &mut Run) {
    while let Some(event) = port.pop_due(now) {
        run.hash.add_event(&event);
        match event {
            Event::Deliver(delivery) => {
                let outcome = &mut run.outcomes[delivery.tag as usize];
                if delivery.copy {
                    outcome.copies += 1;
                } else {
                    outcome.delivered = Some(delivery.at);
                }
                outcome.marked |= delivery.mark;
                outcome.corrupt |= delivery.corrupt;
            }
            Event::Drop { tag, reason, .. } => run.outcomes[tag as usize].dropped = Some(reason),
            Event::Duplicated { .. } => {}
        }
    }
}

fn csv(frames: &[(u64, u32)], outcomes: &[Outcome]) -> String {
    let mut text =
        String::from("frame,arrived_ns,bytes,delivered_ns,delay_ns,fate,copies,marked,corrupt\n");
    for (tag, (&(at, len), outcome)) in frames.iter().zip(outcomes).enumerate() {
        let (delivered, delay) = match outcome.delivered {
            Some(ns) => (ns.to_string(), (ns - at).to_string()),
            None => Default::default(),
        };
        let fate = outcome.dropped.map_or("delivered".into(), |reason| reason.to_string());
        let Outcome { copies, marked, corrupt, .. } = outcome;
        let _ = writeln!(
            text,
            "{tag},{at},{len},{delivered},{delay},{fate},{copies},{marked},{corrupt}"
        );
    }
    text
}

fn summary(port: &dyn Egress, delays: &[u64], span_ns: u64, hash: TraceHash) -> String {
    let counters = port.counters();
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<32}{value}");
    };
    line("frames in", format!("{} ({} B)", counters.offered, counters.offered_bytes));
    line("frames out", format!("{} ({} B sent)", counters.delivered, counters.sent_bytes));
    for reason in DropReason::ALL {
        if counters.dropped(reason) > 0 {
            line(&format!("dropped, {reason}"), counters.dropped(reason).to_string());
        }
    }
    line("marked", counters.marks.to_string());
    line("copies", counters.copies.to_string());
    let (frames, bytes) = (counters.peak_frames, counters.peak_bytes);
    line("buffer at most", format!("{frames} frames, {bytes} B"));
    let busy = counters.busy_ns as f64 * 100.0 / span_ns.max(1) as f64;
    line("busy", format!("{busy:.2} % of {span_ns} ns"));
    if !delays.is_empty() {
        let mean = delays.iter().map(|&d| d as f64).sum::<f64>() / delays.len() as f64;
        line("delay, mean", format!("{mean:.1} ns"));
        for (name, part) in
            [("min", 0.0), ("median", 0.5), ("99 %", 0.99), ("99.9 %", 0.999), ("max", 1.0)]
        {
            let at = ((delays.len() - 1) as f64 * part) as usize;
            line(&format!("delay, {name}"), format!("{} ns", delays[at]));
        }
    }
    line("trace", format!("{:016x}", hash.value()));
    text
}

fn replay() -> Result<String, String> {
    let options = options()?;
    let spec: PortSpec = toml::from_str(&options.spec).map_err(|e| e.to_string())?;
    let config: PortConfig = spec.build().map_err(|e| e.to_string())?;
    let frames = load(&options)?;
    let slots = || vec![Slot::EMPTY; 1 << 15];
    let mut port: Box<dyn Egress> = if config.is_fifo() {
        Box::new(Port::new(&config, options.seed, slots()).map_err(|e| e.to_string())?)
    } else {
        let port = Scheduled::<_, _, 8>::new(&config, options.seed, slots(), slots());
        Box::new(port.map_err(|e| e.to_string())?)
    };
    let run = run(&mut *port, &frames);
    let mut delays: Vec<u64> = frames
        .iter()
        .zip(&run.outcomes)
        .filter_map(|((at, _), outcome)| outcome.delivered.map(|ns| ns - at))
        .collect();
    delays.sort_unstable();
    let span = frames.last().map_or(0, |last| last.0);
    let summary = summary(&*port, &delays, span, run.hash);
    let write = |name: &str, text: &str| {
        let path = options.out.join(name);
        fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))
    };
    fs::create_dir_all(&options.out).map_err(|e| format!("{}: {e}", options.out.display()))?;
    write("frames.csv", &csv(&frames, &run.outcomes))?;
    write("summary.txt", &summary)?;
    write("report.html", &plot::report(&options.spec, &summary, &delays, &run.buffer))?;
    Ok(format!("{summary}written: {}/report.html, frames.csv, summary.txt", options.out.display()))
}

fn main() -> ExitCode {
    match replay() {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(text) => {
            eprintln!("{text}");
            ExitCode::from(2)
        }
    }
}
