// SPDX-License-Identifier: MIT OR Apache-2.0
//! Cost per frame, beside the best existing crate for the job and a plain binary heap.
//!
//! All contenders run in turn within each round, so that whatever else the machine does falls on all
//! of them; a ratio is the median of the rounds' ratios. Absolute figures of a shared machine are
//! shown but decide nothing. The peer owns its packets, as its documentation shows (here of 64 B);
//! beside that it runs with mere handles, which is what our port takes. With valgrind at hand,
//! instructions per frame, which nothing disturbs, are counted too.
//!
//! `cargo bench -p switch-model` prints the table; the exit status is 1 if a ratio is missed.
//! `-- count CASE FRAMES` runs one case once and prints nothing, for callgrind.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    hint::black_box,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use str0m_netem::{
    Bitrate, DataSize, GilbertElliot, Input, Netem, NetemConfig, Output, Probability as Part,
    WithLen,
};
use switch_model::{
    Frame, Frames, Jitter, Loss, Port, PortConfig, PortSpec, Probability, Rate, Size, Slot, Span,
    Switch, Verdict,
};

const ROUNDS: usize = 11;
/// Frames per contender and round.
const FRAMES: u64 = 400_000;
const LEN: u32 = 1250;
/// 1250 B at 10 Gbit/s take 1000 ns: a load of 0.9.
const GAP: u64 = 1111;
const DELAY: u64 = 50_000;
/// Delays are this times the depth: so many frames are in flight.
const JITTER_GAP: u64 = 100;
/// What keeps a port of 1024 slots full: the number in flight varies by about 16.
const JITTER_DEPTH: u64 = 960;

/// The serialiser, tail drop, bursty loss and a constant delay.
fn fifo_spec() -> PortSpec {
    PortSpec {
        rate: Some(Rate::gbit(10)),
        queue_bytes: Some(Size::bytes(1_000_000)),
        delay: Span::ns(DELAY),
        loss: Loss::Bursty { probability: Probability::ratio(1, 1000), burst: Frames::new(10) },
        ..PortSpec::IDEAL
    }
}

/// Uniform jitter that lets frames overtake.
fn jitter_spec(depth: u64) -> PortSpec {
    let delay = Span::ns(depth * JITTER_GAP);
    let spread = Span::ns(depth * JITTER_GAP / 2);
    let jitter = Jitter::Uniform { spread, correlation: Probability::ZERO };
    PortSpec { delay, jitter, ..PortSpec::IDEAL }
}

fn config(spec: PortSpec) -> PortConfig {
    spec.build().expect("a valid description")
}

/// Something that takes a frame at an instant and hands out what is due.
trait Contender {
    fn frame(&mut self, now: u64, tag: u32) -> u64;
}

struct Ours<'a>(Port<&'a PortConfig, Vec<Slot>>);

impl<'a> Ours<'a> {
    fn new(config: &'a PortConfig, slots: usize) -> Self {
        Self(Port::new(config, 1, vec![Slot::EMPTY; slots]).expect("a port"))
    }
}

impl Contender for Ours<'_> {
    #[inline]
    fn frame(&mut self, now: u64, tag: u32) -> u64 {
        let mut seen = 0;
        if let Verdict::Deliver(fate) = self.0.offer(now, Frame::new(tag, LEN)) {
            seen += fate.deliver_at;
        }
        while let Some(delivery) = self.0.pop_due(now) {
            seen += u64::from(delivery.tag);
        }
        seen
    }
}

/// What the peer carries: packets of its own, as its documentation shows, or as little as it can.
trait Cargo: Clone + WithLen {
    fn load(tag: u32) -> Self;
    fn tag(&self) -> u32;
}

/// A handle, as our port takes it.
#[derive(Clone)]
struct Handle(u32);

impl WithLen for Handle {
    fn len(&self) -> usize {
        LEN as usize
    }
}

impl Cargo for Handle {
    fn load(tag: u32) -> Self {
        Self(tag)
    }
    fn tag(&self) -> u32 {
        self.0
    }
}

/// The shortest frame.
impl Cargo for Vec<u8> {
    fn load(tag: u32) -> Self {
        vec![tag as u8; 64]
    }
    fn tag(&self) -> u32 {
        u32::from(self[0])
    }
}

struct Peer<C> {
    netem: Netem<C>,
    epoch: Instant,
}

impl<C: Cargo> Peer<C> {
    fn new(config: NetemConfig) -> Self {
        Self { netem: Netem::new(config), epoch: Instant::now() }
    }

    fn fifo() -> Self {
        let loss = GilbertElliot::new().good_duration(9990.0).bad_duration(10.0);
        Self::new(
            NetemConfig::new()
                .latency(Duration::from_nanos(DELAY))
                .loss(loss)
                .link(Bitrate::gbps(10), DataSize::bytes(1_000_000))
                .seed(1),
        )
    }

    fn jitter(depth: u64) -> Self {
        Self::new(
            NetemConfig::new()
                .latency(Duration::from_nanos(depth * JITTER_GAP))
                .jitter(Duration::from_nanos(depth * JITTER_GAP / 2))
                .delay_correlation(Part::new(0.0))
                .seed(1),
        )
    }
}

impl<C: Cargo> Contender for Peer<C> {
    #[inline]
    fn frame(&mut self, now: u64, tag: u32) -> u64 {
        let mut seen = 0;
        self.netem
            .handle_input(Input::Packet(self.epoch + Duration::from_nanos(now), C::load(tag)));
        while let Some(output) = self.netem.poll_output() {
            match output {
                Output::Packet(packet) => seen += u64::from(packet.tag()),
                Output::Timeout(_) => break,
            }
        }
        seen
    }
}

/// What one writes first: times in a binary heap.
struct Heap {
    due: BinaryHeap<Reverse<(u64, u32)>>,
    free: u64,
    state: u64,
    bad: bool,
    delay: u64,
    spread: u64,
    serialise: bool,
}

impl Heap {
    fn new(delay: u64, spread: u64, serialise: bool) -> Self {
        let due = BinaryHeap::with_capacity(4096);
        Self { due, free: 0, state: 1, bad: false, delay, spread, serialise }
    }

    fn random(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }
}

impl Contender for Heap {
    #[inline]
    fn frame(&mut self, now: u64, tag: u32) -> u64 {
        let mut at = now;
        let mut lost = false;
        if self.serialise {
            self.free =
                self.free.max(now) + u64::from(LEN) * 8_000_000_000 / black_box(10_000_000_000);
            at = self.free;
            let draw = self.random() >> 32;
            let limit = if self.bad { 429_496_730 } else { 429_926 };
            self.bad ^= draw < limit;
            lost = self.bad;
        }
        if self.spread > 0 {
            let draw = self.random();
            at += ((u128::from(draw) * u128::from(2 * self.spread)) >> 64) as u64;
            at -= self.spread;
        }
        if !lost {
            self.due.push(Reverse((at + self.delay, tag)));
        }
        let mut seen = 0;
        while let Some(&Reverse((at, tag))) = self.due.peek()
            && at <= now
        {
            self.due.pop();
            seen += u64::from(tag);
        }
        seen
    }
}

struct Ports<'a, const N: usize> {
    switch: Box<Switch<Port<&'a PortConfig, Vec<Slot>>, N>>,
}

impl<'a, const N: usize> Ports<'a, N> {
    fn new(config: &'a PortConfig) -> Self {
        let port = |i| Port::new(config, i as u64, vec![Slot::EMPTY; 128]).expect("a port");
        Self { switch: Box::new(Switch::new(std::array::from_fn(port), None).expect("a switch")) }
    }
}

impl<const N: usize> Contender for Ports<'_, N> {
    #[inline]
    fn frame(&mut self, now: u64, tag: u32) -> u64 {
        let mut seen = 0;
        if let Verdict::Deliver(fate) =
            self.switch.offer(now, tag as usize % N, Frame::new(tag, LEN))
        {
            seen += fate.deliver_at;
        }
        while let Some((port, _)) = self.switch.pop_due(now) {
            seen += port as u64;
        }
        seen
    }
}

/// A contender's clock goes on from round to round.
struct Run<'a> {
    contender: Box<dyn FnMut(u64) -> u64 + 'a>,
    times: Vec<f64>,
}

impl<'a> Run<'a> {
    fn new<C: Contender + 'a>(mut contender: C, gap: u64) -> Self {
        let (mut now, mut tag) = (0, 0u32);
        let contender = Box::new(move |frames: u64| {
            let mut seen = 0;
            // In registers as far as possible: it is not the harness that is measured.
            let (start, end) = (tag, tag + frames as u32);
            let mut at = now;
            for tag in start..end {
                at += gap;
                seen += contender.frame(at, tag);
            }
            (now, tag) = (at, end);
            seen
        });
        Self { contender, times: Vec::new() }
    }

    fn round(&mut self, frames: u64) {
        let start = Instant::now();
        black_box((self.contender)(frames));
        self.times.push(start.elapsed().as_secs_f64() * 1e9 / frames as f64);
    }

    fn median(&self) -> f64 {
        median(self.times.clone())
    }

    fn min(&self) -> f64 {
        self.times.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Median over the rounds of how many times longer `a` took than `b`.
fn ratio(a: &Run, b: &Run) -> f64 {
    median(a.times.iter().zip(&b.times).map(|(a, b)| a / b).collect())
}

fn fifo_config() -> PortConfig {
    config(fifo_spec())
}

const CASES: [&str; 16] = [
    "fifo",
    "fifo-peer",
    "fifo-peer-vec",
    "fifo-heap",
    "jitter-64",
    "jitter-1k",
    "jitter-16k",
    "jitter-peer",
    "jitter-peer-vec",
    "jitter-heap",
    "ports-1",
    "ports-2",
    "ports-8",
    "ports-16",
    "ports-32",
    "ports-64",
];

/// The configurations outlive the contenders.
struct Configs {
    fifo: PortConfig,
    jitter: [PortConfig; 3],
}

fn contender<'a>(case: &str, configs: &'a Configs) -> Option<Run<'a>> {
    let fifo = &configs.fifo;
    let (delay, spread) = (JITTER_DEPTH * JITTER_GAP, JITTER_DEPTH * JITTER_GAP / 2);
    Some(match case {
        "fifo" => Run::new(Ours::new(fifo, 256), GAP),
        "fifo-peer" => Run::new(Peer::<Handle>::fifo(), GAP),
        "fifo-peer-vec" => Run::new(Peer::<Vec<u8>>::fifo(), GAP),
        "fifo-heap" => Run::new(Heap::new(DELAY, 0, true), GAP),
        "jitter-64" => Run::new(Ours::new(&configs.jitter[0], 128), JITTER_GAP),
        "jitter-1k" => Run::new(Ours::new(&configs.jitter[1], 1024), JITTER_GAP),
        "jitter-16k" => Run::new(Ours::new(&configs.jitter[2], 16_384), JITTER_GAP),
        "jitter-peer" => Run::new(Peer::<Handle>::jitter(JITTER_DEPTH), JITTER_GAP),
        "jitter-peer-vec" => Run::new(Peer::<Vec<u8>>::jitter(JITTER_DEPTH), JITTER_GAP),
        "jitter-heap" => Run::new(Heap::new(delay, spread, false), JITTER_GAP),
        "ports-1" => Run::new(Ports::<1>::new(fifo), GAP),
        "ports-2" => Run::new(Ports::<2>::new(fifo), GAP),
        "ports-8" => Run::new(Ports::<8>::new(fifo), GAP),
        "ports-16" => Run::new(Ports::<16>::new(fifo), GAP),
        "ports-32" => Run::new(Ports::<32>::new(fifo), GAP),
        "ports-64" => Run::new(Ports::<64>::new(fifo), GAP),
        _ => return None,
    })
}

/// Instructions per frame by callgrind: the difference of two lengths, so that the start is free.
fn instructions(case: &str) -> Option<f64> {
    let collected = |frames: u64| -> Option<u64> {
        let run = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(std::env::current_exe().ok()?)
            .args(["count", case, &frames.to_string()])
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&run.stderr).into_owned();
        let line = text.lines().find(|line| line.contains("Collected :"))?;
        line.split_whitespace().last()?.parse().ok()
    };
    let (short, long) = (20_000, 60_000);
    Some((collected(long)?.checked_sub(collected(short)?)?) as f64 / (long - short) as f64)
}

fn main() -> ExitCode {
    let jitter = [JITTER_DEPTH / 16, JITTER_DEPTH, 16 * JITTER_DEPTH]
        .map(|depth| config(jitter_spec(depth)));
    let configs = Configs { fifo: fifo_config(), jitter };
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if let [verb, case, frames] = &arguments[..]
        && verb == "count"
    {
        let Some(mut run) = contender(case, &configs) else { return ExitCode::from(2) };
        let Ok(frames) = frames.parse() else { return ExitCode::from(2) };
        black_box((run.contender)(frames));
        return ExitCode::SUCCESS;
    }

    let mut runs: Vec<Run> = CASES.iter().filter_map(|case| contender(case, &configs)).collect();
    for round in 0..=ROUNDS {
        // Both orders in turn; the first round warms up.
        let order: Vec<usize> = match round % 2 {
            0 => (0..runs.len()).collect(),
            _ => (0..runs.len()).rev().collect(),
        };
        for i in order {
            runs[i].round(FRAMES);
        }
        if round == 0 {
            runs.iter_mut().for_each(|run| run.times.clear());
        }
    }
    println!("{ROUNDS} interleaved rounds of {FRAMES} frames each; ns per frame (offer and pop)");
    println!(
        "{:<14}{:>10}{:>10}{:>14}{:>16}",
        "case", "median", "min", "M frames/s", "instructions"
    );
    let counts: Vec<Option<f64>> = CASES.iter().map(|case| instructions(case)).collect();
    for ((case, run), count) in CASES.iter().zip(&runs).zip(&counts) {
        let count = count.map_or("-".into(), |count| format!("{count:.1}"));
        let (median, min) = (run.median(), run.min());
        println!("{case:<14}{median:>10.2}{min:>10.2}{:>14.1}{count:>16}", 1e3 / median);
    }
    let place = |case| CASES.iter().position(|c| *c == case).expect("a case");
    let run = |case| &runs[place(case)];
    let per_port = size_of::<Port<&PortConfig, [Slot; 0]>>();
    println!("memory: {per_port} B per port and {} B per frame", size_of::<Slot>());

    // The ratios decide; its absolute rates, which another machine or a busy one would miss
    // for no fault of the code, are judged by the best round and shown.
    let mut missed = 0;
    let mut target = |what: &str, value: f64, wanted: f64, decides: bool| {
        let verdict = match (value >= wanted, decides) {
            (true, _) => "met",
            (false, true) => "MISSED",
            (false, false) => "missed (decides nothing)",
        };
        missed += u8::from(verdict == "MISSED");
        println!("{what:<56}{value:>9.2}  wanted {wanted:>6.2}  {verdict}");
    };
    let rate = |case| 1e3 / run(case).min();
    let over = |other, ours| ratio(run(other), run(ours));
    target("FIFO: times the peer with packets of 64 B", over("fifo-peer-vec", "fifo"), 5.0, true);
    target("FIFO: M frames/s", rate("fifo"), 100.0, false);
    let jitter = over("jitter-peer-vec", "jitter-1k");
    target("jitter at depth 960: times the peer with packets of 64 B", jitter, 3.0, true);
    target("jitter at depth 960: M frames/s", rate("jitter-1k"), 25.0, false);
    // At most log2 of the depth: 14 levels over 6.
    let growth = over("jitter-16k", "jitter-64");
    target("jitter: log2 growth over growth from 60 to 15 k", 14.0 / 6.0 / growth, 1.0, true);
    // Flat, give or take 15 %. Time counts the cache misses of 64 ports' memory as well, so where
    // instructions are known, they decide.
    for case in ["ports-2", "ports-8", "ports-16", "ports-32", "ports-64"] {
        let (what, share) = match (counts[place("ports-1")], counts[place(case)]) {
            (Some(one), Some(many)) => ("instructions", one / many),
            _ => ("time", over("ports-1", case)),
        };
        target(&format!("{case}: {what} of 1 port, of those of these"), share, 1.0 / 1.15, true);
    }
    println!("for comparison, median of the rounds' ratios:");
    println!("  FIFO: times the peer with handles    {:.2}", over("fifo-peer", "fifo"));
    println!("  FIFO: times the heap                 {:.2}", over("fifo-heap", "fifo"));
    println!("  jitter: times the peer with handles  {:.2}", over("jitter-peer", "jitter-1k"));
    println!("  jitter: times the heap               {:.2}", over("jitter-heap", "jitter-1k"));
    println!("  one switch: cost of 64 ports over 1  {:.2}", over("ports-64", "ports-1"));
    ExitCode::from(u8::from(missed > 0))
}
