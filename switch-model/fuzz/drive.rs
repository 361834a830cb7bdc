// SPDX-License-Identifier: MIT OR Apache-2.0
//! Turns bytes into descriptions and calls, extreme ones too, and checks what must always hold.
//!
//! The fuzz target and an ordinary test share it.

use switch_model::{
    Chance, CodelSpec, Counters, CutThroughSpec, DropReason, Egress, Event, Few, Frame, Frames,
    Framing, Jitter, Loss, ParetoIndex, PolicerSpec, Port, PortConfig, PortSpec, Probability,
    ProcessorSpec, Rate, RedSpec, Scheduled, Scheduler, SharedBuffer, Size, Slot, SlotsSpec, Span,
    Switch, Verdict,
};

/// Bytes, and zeroes behind them.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn yes(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// A number of any magnitude: 16 bits of value, shifted by up to 63.
    fn number(&mut self) -> u64 {
        let value = u64::from(u16::from_le_bytes([self.byte(), self.byte()]));
        value.wrapping_shl(u32::from(self.byte()) % 64)
    }

    fn span(&mut self) -> Span {
        Span::ns(self.number())
    }

    fn size(&mut self) -> Size {
        Size::bytes(self.number())
    }

    fn probability(&mut self) -> Probability {
        Probability::ratio(u64::from(self.byte()), 250)
    }

    fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.yes().then(|| make(self))
    }

    fn chance(&mut self) -> Chance {
        Chance { probability: self.probability(), correlation: self.probability() }
    }
}

fn spec(b: &mut Bytes) -> PortSpec {
    let framing = match b.byte() % 4 {
        0 => Framing::default(),
        1 => Framing::ETHERNET,
        2 => Framing::ATM,
        _ => Framing {
            overhead: b.size(),
            min_frame: b.size(),
            preamble: b.size(),
            gap: b.size(),
            cell_payload: b.size(),
            cell_size: b.size(),
        },
    };
    let correlation = b.probability();
    let jitter = match b.byte() % 6 {
        0 => Jitter::None,
        1 => Jitter::Normal { spread: b.span(), correlation },
        2 => Jitter::Uniform { spread: b.span(), correlation },
        3 => Jitter::Exponential { mean: b.span(), correlation },
        4 => {
            let index = ParetoIndex::thousandths(b.number() as u32);
            Jitter::Pareto { mean: b.span(), index, correlation }
        }
        _ => {
            let mut spans = [b.span(), b.span(), b.span()];
            spans.sort_unstable();
            Jitter::Table { quantiles: Few::new(&spans).unwrap_or_default(), correlation }
        }
    };
    let loss = match b.byte() % 5 {
        0 => Loss::None,
        1 => Loss::Random { probability: b.probability(), correlation: b.probability() },
        2 => Loss::Bursty { probability: b.probability(), burst: Frames::new(b.number() as u32) },
        3 => Loss::GilbertElliott {
            p: b.probability(),
            r: b.probability(),
            good: b.probability(),
            bad: b.probability(),
        },
        _ => Loss::FourState {
            p13: b.probability(),
            p31: b.probability(),
            p32: b.probability(),
            p23: b.probability(),
            p14: b.probability(),
        },
    };
    let scheduler = match b.byte() % 4 {
        0 | 1 => Scheduler::Fifo,
        2 => Scheduler::Strict { classes: b.byte() % 10 },
        _ => {
            Scheduler::Drr { quanta: Few::new(&[b.size(), b.size(), b.size()]).unwrap_or_default() }
        }
    };
    PortSpec {
        rate: b.maybe(|b| Rate::bits(b.number())),
        framing,
        max_frame: if b.yes() { b.size() } else { PortSpec::IDEAL.max_frame },
        latency: b.span(),
        processor: b.maybe(|b| ProcessorSpec {
            service: [b.span(), b.span(), b.span()],
            queue: Frames::new(u32::from(b.byte())),
        }),
        policer: b.maybe(|b| PolicerSpec { rate: Rate::bits(b.number()), burst: b.size() }),
        queue_frames: b.maybe(|b| Frames::new(b.number() as u32)),
        queue_bytes: b.maybe(Bytes::size),
        red: b.maybe(|b| RedSpec {
            min: b.size(),
            max: b.size(),
            probability: b.probability(),
            weight: b.byte() % 18,
            ecn: b.yes(),
        }),
        mark_above: b.maybe(|b| Frames::new(u32::from(b.byte()))),
        codel: b.maybe(|b| CodelSpec { target: b.span(), interval: b.span(), ecn: b.yes() }),
        scheduler,
        cut_through: b
            .maybe(|b| CutThroughSpec { ingress_rate: Rate::bits(b.number()), after: b.size() }),
        delay: b.span(),
        jitter,
        keep_order: b.yes(),
        loss,
        duplicate: b.chance(),
        corrupt: b.chance(),
        reorder: b.chance(),
        slots: b.maybe(|b| SlotsSpec {
            min_gap: b.span(),
            max_gap: b.span(),
            frames: b.maybe(|b| Frames::new(u32::from(b.byte()))),
            bytes: b.maybe(Bytes::size),
        }),
    }
}

/// One of the two kinds of port.
enum Any<'a> {
    Fifo(Port<&'a PortConfig, Vec<Slot>>),
    Scheduled(Scheduled<&'a PortConfig, Vec<Slot>, 3>),
}

/// Does `$do` to whatever kind of port `$any` is.
macro_rules! either {
    ($any:expr, $port:ident => $do:expr) => {
        match $any {
            Any::Fifo($port) => $do,
            Any::Scheduled($port) => $do,
        }
    };
}

impl Egress for Any<'_> {
    fn offer_within(&mut self, now: u64, frame: Frame, share: u64) -> Verdict {
        either!(self, port => port.offer_within(now, frame, share))
    }
    fn pop_due(&mut self, now: u64) -> Option<Event> {
        either!(self, port => Egress::pop_due(port, now))
    }
    fn next_deadline(&self) -> Option<u64> {
        either!(self, port => port.next_deadline())
    }
    fn next_departure(&self) -> Option<u64> {
        either!(self, port => port.next_departure())
    }
    fn settle(&mut self, now: u64) {
        either!(self, port => port.settle(now));
    }
    fn buffered_bytes(&self) -> u32 {
        either!(self, port => port.buffered().1)
    }
    fn counters(&self) -> Counters {
        either!(self, port => port.counters())
    }
}

impl<'a> Any<'a> {
    fn new(config: &'a PortConfig, seed: u64, slots: usize, fifo: bool) -> Option<Self> {
        let memory = || vec![Slot::EMPTY; slots];
        match config.is_fifo() && fifo {
            true => Port::new(config, seed, memory()).map(Self::Fifo).ok(),
            false => Scheduled::new(config, seed, memory(), memory()).map(Self::Scheduled).ok(),
        }
    }

    /// Refuses what does not suit it.
    fn reconfigure(&mut self, now: u64, config: &'a PortConfig) -> bool {
        either!(self, port => port.reconfigure(now, config).is_ok())
    }

    fn check(&self, offered: u64) {
        let counters = self.counters();
        let on_line = either!(self, port => port.on_line());
        let waiting = match self {
            Self::Fifo(_) => 0,
            Self::Scheduled(port) => port.waiting(),
        };
        assert_eq!(counters.offered, offered);
        assert_eq!(counters.offered, counters.sent + u64::from(waiting) + counters.refused());
        let ended = counters.delivered + counters.dropped(DropReason::Loss);
        assert_eq!(counters.sent + counters.copies, ended + u64::from(on_line));
    }
}

/// A frame with every property, and the verdict on it.
fn offer(b: &mut Bytes, tag: u64, to: impl FnOnce(Frame) -> Verdict) {
    let frame = Frame {
        class: b.byte(),
        cost: b.byte(),
        ecn: b.yes(),
        flood: b.yes(),
        phase_ps: u16::from(b.byte()) * 5,
        ..Frame::new(tag as u32, b.number() as u32 % 70_000)
    };
    if let Verdict::Deliver(fate) = to(frame) {
        assert!(fate.duplicate_at.is_none_or(|copy| copy >= fate.deliver_at));
        assert!(fate.corrupt_bit.is_none_or(|bit| bit < frame.len * 8));
    }
}

/// What a step does to the time, if it is one that does.
fn pass(step: u8, now: u64, b: &mut Bytes) -> u64 {
    match step {
        0 => b.number(),
        1 | 2 => now.saturating_add(b.number()),
        _ => now,
    }
}

fn not_late(event: &Event, now: u64) {
    if let Event::Deliver(delivery) = event {
        assert!(delivery.at <= now);
        assert!(delivery.corrupt_bit(1).is_none_or(|bit| bit < 8));
    }
}

/// Lives through what `data` says; gives the number of frames that it offered.
pub fn drive(data: &[u8]) -> u64 {
    if let Ok(text) = core::str::from_utf8(data) {
        let _ = (text.parse::<Rate>(), text.parse::<Span>(), text.parse::<Size>());
        let _ = (text.parse::<Frames>(), text.parse::<Probability>(), text.parse::<ParetoIndex>());
        #[cfg(feature = "serde")]
        let _ = PortSpec::IDEAL.with_settings(text.lines().filter_map(|line| line.split_once('=')));
    }
    let mut b = Bytes(data);
    let seed = b.number();
    let slots = 1usize << (b.byte() % 8);
    let (first, second) = (spec(&mut b).build(), spec(&mut b).build());
    let Ok(first) = first.or_else(|_| PortSpec::IDEAL.build()) else { return 0 };
    let second = second.as_ref().unwrap_or(&first);
    match b.byte() % 8 {
        0 => ports::<2>(&mut b, seed, slots, &first, second),
        1 => ports::<5>(&mut b, seed, slots, &first, second),
        2 => ports::<70>(&mut b, seed, slots, &first, second),
        _ => port(&mut b, seed, slots, &first, second),
    }
}

/// One port.
fn port(b: &mut Bytes, seed: u64, slots: usize, first: &PortConfig, second: &PortConfig) -> u64 {
    let Some(mut port) = Any::new(first, seed, slots, b.yes()) else { return 0 };
    let (mut now, mut offered, mut last) = (0u64, 0u64, 0u64);
    while !b.0.is_empty() {
        match b.byte() % 8 {
            step @ 0..=2 => now = pass(step, now, b),
            3 => {
                while let Some(event) = port.pop_due(now) {
                    not_late(&event, now);
                }
            }
            4 => {
                port.reconfigure(now, second);
            }
            _ => {
                offer(b, offered, |frame| port.offer_within(now, frame, u64::MAX));
                offered += 1;
            }
        }
        port.check(offered);
    }
    // It comes to an end, in the order of time.
    while let Some(deadline) = port.next_deadline() {
        while let Some(event) = port.pop_due(deadline) {
            if let Event::Deliver(delivery) = event {
                assert!(delivery.at >= last && delivery.at <= deadline);
                last = delivery.at;
            }
        }
        port.check(offered);
    }
    offered
}

/// A switch of ports of both descriptions and kinds, which share a buffer or do not.
fn ports<const N: usize>(
    b: &mut Bytes,
    seed: u64,
    slots: usize,
    first: &PortConfig,
    second: &PortConfig,
) -> u64 {
    let buffer = b.maybe(|b| SharedBuffer {
        size: b.size(),
        alpha_num: u32::from(b.byte()),
        alpha_den: u32::from(b.byte()),
    });
    let (kinds, fifo) = (b.byte(), b.yes());
    let all: Option<Vec<_>> = (0..N)
        .map(|i| {
            let config = if kinds >> (i % 8) & 1 == 0 { first } else { second };
            Any::new(config, seed + i as u64, slots, fifo)
        })
        .collect();
    let Some(Ok(all)) = all.map(<[Any; N]>::try_from) else { return 0 };
    let Ok(mut switch) = Switch::new(all, buffer) else { return 0 };
    let (mut now, mut offered, mut last) = (0u64, [0u64; N], 0u64);
    while !b.0.is_empty() {
        match b.byte() % 8 {
            step @ 0..=2 => now = pass(step, now, b),
            3 => {
                while let Some((port, event)) = switch.pop_due(now) {
                    assert!(port < N);
                    not_late(&event, now);
                }
            }
            4 => {
                let port = usize::from(b.byte()) % N;
                switch.with_port(port, |port| port.reconfigure(now, second));
            }
            _ => {
                let port = usize::from(b.byte()) % N;
                offer(b, offered[port], |frame| switch.offer(now, port, frame));
                offered[port] += 1;
            }
        }
        check_switch(&switch, &offered, buffer);
    }
    while let Some(deadline) = switch.next_deadline() {
        while let Some((_, event)) = switch.pop_due(deadline) {
            if let Event::Deliver(delivery) = event {
                assert!(delivery.at >= last && delivery.at <= deadline);
                last = delivery.at;
            }
        }
    }
    check_switch(&switch, &offered, buffer);
    offered.iter().sum()
}

fn check_switch<const N: usize>(
    switch: &Switch<Any, N>,
    offered: &[u64; N],
    buffer: Option<SharedBuffer>,
) {
    for (port, offered) in switch.ports().iter().zip(offered) {
        port.check(*offered);
    }
    let first = switch.ports().iter().filter_map(Any::next_deadline).min();
    assert_eq!(switch.next_deadline(), first);
    if let Some(buffer) = buffer {
        let sum: u64 = switch.ports().iter().map(|port| u64::from(port.buffered_bytes())).sum();
        assert_eq!(switch.used(), sum);
        // A frame on the slow path enters later than its share was judged.
        let direct = |port: &Any| matches!(port, Any::Fifo(_));
        assert!(sum <= buffer.size.as_bytes() || !switch.ports().iter().all(direct));
    }
}
