// SPDX-License-Identifier: MIT OR Apache-2.0
//! Turns bytes into descriptions and calls, extreme ones too, and checks what must always hold.
//!
//! The fuzz target and an ordinary test share it.

use switch_model::{
    Chance, CodelSpec, CutThroughSpec, DropReason, Event, Few, Frame, Frames, Framing, Jitter,
    Loss, ParetoIndex, PolicerSpec, Port, PortConfig, PortSpec, Probability, ProcessorSpec, Rate,
    RedSpec, Scheduled, Scheduler, Size, Slot, SlotsSpec, Span, Verdict,
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

impl Any<'_> {
    fn pop(&mut self, now: u64) -> Option<Event> {
        match self {
            Self::Fifo(port) => port.pop_due(now).map(Event::Deliver),
            Self::Scheduled(port) => port.pop_due(now),
        }
    }

    fn deadline(&self) -> Option<u64> {
        match self {
            Self::Fifo(port) => port.next_deadline(),
            Self::Scheduled(port) => port.next_deadline(),
        }
    }

    fn check(&self, offered: u64) {
        let (counters, waiting, on_line) = match self {
            Self::Fifo(port) => (port.counters(), 0, port.on_line()),
            Self::Scheduled(port) => (port.counters(), port.waiting(), port.on_line()),
        };
        assert_eq!(counters.offered, offered);
        assert_eq!(counters.offered, counters.sent + u64::from(waiting) + counters.refused());
        let ended = counters.delivered + counters.dropped(DropReason::Loss);
        assert_eq!(counters.sent + counters.copies, ended + u64::from(on_line));
    }
}

/// Lives through what `data` says; gives the number of frames that it offered.
pub fn drive(data: &[u8]) -> u64 {
    if let Ok(text) = core::str::from_utf8(data) {
        let _ = (text.parse::<Rate>(), text.parse::<Span>(), text.parse::<Size>());
        let _ = (text.parse::<Frames>(), text.parse::<Probability>(), text.parse::<ParetoIndex>());
    }
    let mut b = Bytes(data);
    let seed = b.number();
    let slots = 1usize << (b.byte() % 8);
    let memory = || vec![Slot::EMPTY; slots];
    let (first, second) = (spec(&mut b).build(), spec(&mut b).build());
    let Ok(first) = first.or_else(|_| PortSpec::IDEAL.build()) else { return 0 };
    let port = match first.is_fifo() && b.yes() {
        true => Port::new(&first, seed, memory()).map(Any::Fifo),
        false => Scheduled::new(&first, seed, memory(), memory()).map(Any::Scheduled),
    };
    let Ok(mut port) = port else { return 0 };
    let (mut now, mut offered, mut last) = (0u64, 0u64, 0u64);
    while !b.0.is_empty() {
        match b.byte() % 8 {
            0 => now = b.number(),
            1 | 2 => now = now.saturating_add(b.number()),
            3 => {
                while let Some(event) = port.pop(now) {
                    if let Event::Deliver(delivery) = event {
                        assert!(delivery.at <= now);
                        assert!(delivery.corrupt_bit(1).is_none_or(|bit| bit < 8));
                    }
                }
            }
            4 => {
                if let Ok(second) = &second {
                    let _ = match &mut port {
                        Any::Fifo(port) => port.reconfigure(now, second).is_ok(),
                        Any::Scheduled(port) => port.reconfigure(now, second).is_ok(),
                    };
                }
            }
            _ => {
                let frame = Frame {
                    class: b.byte(),
                    cost: b.byte(),
                    ecn: b.yes(),
                    flood: b.yes(),
                    phase_ps: u16::from(b.byte()) * 5,
                    ..Frame::new(offered as u32, b.number() as u32 % 70_000)
                };
                offered += 1;
                let verdict = match &mut port {
                    Any::Fifo(port) => port.offer(now, frame),
                    Any::Scheduled(port) => port.offer(now, frame),
                };
                if let Verdict::Deliver(fate) = verdict {
                    assert!(fate.duplicate_at.is_none_or(|copy| copy >= fate.deliver_at));
                    assert!(fate.corrupt_bit.is_none_or(|bit| bit < frame.len * 8));
                }
            }
        }
        port.check(offered);
    }
    // It comes to an end, in the order of time.
    while let Some(deadline) = port.deadline() {
        while let Some(event) = port.pop(deadline) {
            if let Event::Deliver(delivery) = event {
                assert!(delivery.at >= last && delivery.at <= deadline);
                last = delivery.at;
            }
        }
        port.check(offered);
    }
    offered
}
