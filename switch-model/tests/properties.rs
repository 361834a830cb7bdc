// SPDX-License-Identifier: MIT OR Apache-2.0
//! What must hold for every configuration and every input.

use proptest::prelude::*;
use switch_model::{
    Chance, CodelSpec, ConfigError, CutThroughSpec, DropReason, Event, Few, Frame, Frames, Framing,
    Jitter, Loss, PolicerSpec, Port, PortConfig, PortSpec, Probability, ProcessorSpec,
    REFERENCE_TRACE, Rate, RedSpec, Scheduled, Scheduler, SharedBuffer, Size, Slot, SlotsSpec,
    Span, Switch, Verdict, reference_trace,
};

fn probability() -> impl Strategy<Value = Probability> {
    (0u64..=100).prop_map(|n| Probability::ratio(n, 100))
}

fn below_one() -> impl Strategy<Value = Probability> {
    (0u64..100).prop_map(|n| Probability::ratio(n, 100))
}

fn span(max: u64) -> impl Strategy<Value = Span> {
    prop_oneof![Just(Span::ZERO), (1..max).prop_map(Span::ns)]
}

fn loss() -> impl Strategy<Value = Loss> {
    prop_oneof![
        Just(Loss::None),
        (probability(), below_one())
            .prop_map(|(probability, correlation)| Loss::Random { probability, correlation }),
        (probability(), 1u32..20).prop_map(|(probability, burst)| Loss::Bursty {
            probability,
            burst: Frames::new(burst)
        }),
        (probability(), probability(), probability(), probability())
            .prop_map(|(p, r, good, bad)| Loss::GilbertElliott { p, r, good, bad }),
        (probability(), probability(), probability(), probability(), probability())
            .prop_map(|(p13, p31, p32, p23, p14)| Loss::FourState { p13, p31, p32, p23, p14 }),
    ]
}

fn jitter() -> impl Strategy<Value = Jitter> {
    let few = |values: Vec<u64>| {
        let spans: Vec<Span> = values.into_iter().map(Span::ns).collect();
        Few::new(&spans).expect("few enough")
    };
    prop_oneof![
        Just(Jitter::None),
        (span(100_000), below_one())
            .prop_map(|(spread, correlation)| Jitter::Normal { spread, correlation }),
        (span(100_000), below_one())
            .prop_map(|(spread, correlation)| Jitter::Uniform { spread, correlation }),
        (span(100_000), below_one())
            .prop_map(|(mean, correlation)| Jitter::Exponential { mean, correlation }),
        (proptest::collection::vec(0u64..100_000, 0..10), below_one()).prop_map(
            move |(mut values, correlation)| {
                values.sort_unstable();
                Jitter::Table { quantiles: few(values), correlation }
            }
        ),
    ]
}

fn chance() -> impl Strategy<Value = Chance> {
    (probability(), below_one())
        .prop_map(|(probability, correlation)| Chance { probability, correlation })
}

fn scheduler() -> impl Strategy<Value = Scheduler> {
    prop_oneof![
        Just(Scheduler::Fifo),
        (1u8..=4).prop_map(|classes| Scheduler::Strict { classes }),
        proptest::collection::vec(1u64..5000, 1..=4).prop_map(|quanta| {
            let quanta: Vec<Size> = quanta.into_iter().map(Size::bytes).collect();
            Scheduler::Drr { quanta: Few::new(&quanta).expect("few enough") }
        }),
    ]
}

prop_compose! {
    fn before_the_wire()(
        rate in proptest::option::of(prop_oneof![1_000_000u64..4_000_000_000, Just(10_000_000_000)]),
        framing in prop_oneof![Just(Framing::default()), Just(Framing::ETHERNET), Just(Framing::ATM)],
        latency in span(10_000),
        queue in proptest::option::of(1u32..50),
        bytes in proptest::option::of(1u64..100_000),
        policed in proptest::option::of((1_000u64..1_000_000_000, 0u64..100_000)),
        red in proptest::option::of((0u64..10_000, 1u64..20_000, probability(), 0u8..10, any::<bool>())),
        mark in proptest::option::of(0u32..20),
        cut in proptest::option::of(1_000_000u64..4_000_000_000),
    ) -> PortSpec {
        PortSpec {
            rate: rate.map(Rate::bits),
            framing,
            latency,
            queue_frames: queue.map(Frames::new),
            queue_bytes: bytes.map(Size::bytes),
            policer: policed.map(|(rate, burst)| PolicerSpec { rate: Rate::bits(rate), burst: Size::bytes(burst) }),
            red: red.map(|(min, more, probability, weight, ecn)| RedSpec {
                min: Size::bytes(min), max: Size::bytes(min + more), probability, weight, ecn,
            }),
            mark_above: mark.map(Frames::new),
            cut_through: cut.filter(|_| rate.is_some()).map(|rate| CutThroughSpec {
                ingress_rate: Rate::bits(rate), after: Size::bytes(64),
            }),
            ..PortSpec::IDEAL
        }
    }
}

prop_compose! {
    fn fifo()(
        spec in before_the_wire(),
        delay in span(1_000_000),
        jitter in jitter(),
        keep_order in any::<bool>(),
        loss in loss(),
        duplicate in chance(),
        corrupt in chance(),
        reorder in chance(),
        slots in proptest::option::of((1u64..10_000, 0u64..10_000, 1u32..5)),
    ) -> PortSpec {
        PortSpec {
            delay, jitter, loss, duplicate, corrupt, keep_order,
            reorder: if keep_order { Chance::default() } else { reorder },
            slots: slots.map(|(min, more, frames)| SlotsSpec {
                min_gap: Span::ns(min), max_gap: Span::ns(min + more),
                frames: Some(Frames::new(frames)), bytes: None,
            }),
            ..spec
        }
    }
}

prop_compose! {
    fn scheduled()(
        spec in fifo(),
        scheduler in scheduler(),
        codel in proptest::option::of((0u64..50_000, 50_000u64..200_000, any::<bool>())),
        processor in proptest::option::of((span(100_000), 1u32..5)),
    ) -> PortSpec {
        PortSpec {
            scheduler,
            codel: codel.map(|(target, interval, ecn)| CodelSpec {
                target: Span::ns(target), interval: Span::ns(interval), ecn,
            }),
            processor: processor.map(|(service, queue)| ProcessorSpec {
                service: [service; 3], queue: Frames::new(queue),
            }),
            ..spec
        }
    }
}

/// Time since the frame before, which may be negative, and the frame.
fn load() -> impl Strategy<Value = Vec<(i64, Frame)>> {
    let frame = (0u32..70_000, any::<[u8; 2]>(), any::<[bool; 2]>(), 0u16..1200);
    let gap = prop_oneof![Just(0i64), 0i64..3000, 0i64..1_000_000, -1000i64..0];
    let one = (gap, frame, any::<bool>()).prop_map(
        |(gap, (len, [class, cost], [ecn, flood], ps), short)| {
            let len = if short { len % 1515 } else { len };
            (gap, Frame { tag: 0, len, class, cost: cost % 5, ecn, flood, phase_ps: ps })
        },
    );
    proptest::collection::vec(one, 1..300)
}

/// Some descriptions are contradictory; they must be refused, and only with these sentences.
fn build(spec: &PortSpec) -> Option<PortConfig> {
    match spec.build() {
        Ok(config) => Some(config),
        Err(
            ConfigError::StateOverfull
            | ConfigError::ImpossibleBurst
            | ConfigError::Table
            | ConfigError::Zero("jitter"),
        ) => None,
        Err(other) => panic!("{other}: {spec:?}"),
    }
}

fn clock(at: &mut i64, gap: i64) -> u64 {
    *at = (*at + gap).max(0);
    *at as u64
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Conservation, order, monotone time, and verdicts that are kept.
    #[test]
    fn a_fifo_port_keeps_its_promises(spec in fifo(), load in load(), drain in any::<bool>()) {
        let Some(config) = build(&spec) else { return Ok(()) };
        let mut port = Port::new(&config, 7, vec![Slot::EMPTY; 128]).expect("a port");
        let (mut at, mut last_pop, mut latest) = (0, 0, 0);
        let mut promised = Vec::new();
        let mut got = Vec::new();
        let (mut offered, mut bytes, mut dropped_bytes) = (0u64, 0u64, 0u64);
        let mut drops = [0u64; DropReason::ALL.len()];
        for (tag, (gap, frame)) in load.iter().enumerate() {
            let now = clock(&mut at, *gap);
            latest = latest.max(now);
            let frame = Frame { tag: tag as u32, ..*frame };
            offered += 1;
            bytes += u64::from(frame.len);
            match port.offer(now, frame) {
                Verdict::Deliver(fate) => {
                    prop_assert!(fate.deliver_at >= now);
                    prop_assert!(fate.duplicate_at.is_none_or(|copy| copy >= fate.deliver_at));
                    prop_assert!(!fate.mark || frame.ecn);
                    promised.push((fate.deliver_at, frame.tag, false, fate.mark));
                    promised.extend(fate.duplicate_at.map(|copy| (copy, frame.tag, true, fate.mark)));
                }
                Verdict::Drop(reason) => {
                    drops[reason as usize] += 1;
                    dropped_bytes += if reason == DropReason::Loss { 0 } else { u64::from(frame.len) };
                }
                Verdict::Queued => prop_assert!(false, "a FIFO port decides at once"),
            }
            prop_assert!(port.next_deadline().is_none_or(|d| d >= last_pop));
            while let Some(delivery) = drain.then(|| port.pop_due(now)).flatten() {
                prop_assert!(delivery.at <= now && delivery.at >= last_pop);
                last_pop = delivery.at;
                got.push((delivery.at, delivery.tag, delivery.copy, delivery.mark));
            }
            let counters = port.counters();
            prop_assert_eq!(counters.offered, offered);
            prop_assert_eq!(counters.offered, counters.sent + counters.refused());
            prop_assert_eq!(
                counters.sent + counters.copies,
                counters.delivered + u64::from(port.on_line()) + counters.dropped(DropReason::Loss)
            );
        }
        while let Some(deadline) = port.next_deadline() {
            let delivery = port.pop_due(deadline).expect("due");
            prop_assert_eq!(delivery.at, deadline);
            got.push((delivery.at, delivery.tag, delivery.copy, delivery.mark));
        }
        let counters = port.counters();
        prop_assert_eq!(counters.offered_bytes, bytes);
        prop_assert_eq!(counters.offered_bytes, counters.sent_bytes + dropped_bytes);
        prop_assert_eq!(counters.drops, drops);
        prop_assert_eq!(counters.delivered as usize, got.len());
        prop_assert!(counters.peak_frames <= 128);
        if config.keeps_order() {
            prop_assert!(got.windows(2).all(|w| w[0].1 <= w[1].1), "order was promised");
        }
        promised.sort_unstable();
        got.sort_unstable();
        prop_assert_eq!(promised, got);
    }

    /// The same for a scheduled port; and every frame that was not refused ends exactly once.
    #[test]
    fn a_scheduled_port_accounts_for_every_frame(spec in scheduled(), load in load()) {
        let Some(config) = build(&spec) else { return Ok(()) };
        let slots = || vec![Slot::EMPTY; 128];
        let mut port = Scheduled::<_, _, 4>::new(&config, 7, slots(), slots()).expect("a port");
        let mut at = 0;
        let mut ends = vec![0i32; load.len()];
        let mut last = 0;
        let mut handle = |event: Event, now: u64, ends: &mut Vec<i32>| {
            let (tag, at) = match event {
                Event::Deliver(delivery) => (delivery.tag, Some(delivery.at)),
                Event::Drop { tag, at, .. } => (tag, Some(at)),
                Event::Duplicated { tag } => (tag, None),
            };
            ends[tag as usize] += if at.is_some() { 1 } else { -1 };
            if let Some(at) = at {
                assert!(at <= now && at >= last, "{at} {now} {last}");
                last = at;
            }
        };
        for (tag, (gap, frame)) in load.iter().enumerate() {
            let now = clock(&mut at, *gap);
            while let Some(event) = port.pop_due(now) {
                handle(event, now.max(at as u64), &mut ends);
            }
            match port.offer(now, Frame { tag: tag as u32, ..*frame }) {
                Verdict::Drop(_) => ends[tag] += 1,
                verdict => prop_assert_eq!(verdict, Verdict::Queued),
            }
            let counters = port.counters();
            prop_assert_eq!(counters.offered, tag as u64 + 1);
            let waiting = u64::from(port.waiting());
            prop_assert_eq!(counters.offered, counters.sent + waiting + counters.refused());
            prop_assert_eq!(
                counters.sent + counters.copies,
                counters.delivered + u64::from(port.on_line()) + counters.dropped(DropReason::Loss)
            );
        }
        let mut steps = 0;
        while let Some(deadline) = port.next_deadline() {
            while let Some(event) = port.pop_due(deadline) {
                handle(event, deadline, &mut ends);
            }
            steps += 1;
            prop_assert!(steps < 10_000, "it must come to an end");
        }
        prop_assert!(ends.iter().all(|&n| n == 1), "{:?}", ends);
        prop_assert_eq!(port.waiting() + port.on_line(), 0);
    }

    /// A change of the description loses no frame and breaks no promise.
    #[test]
    fn a_change_loses_nothing(before in fifo(), after in fifo(), load in load(), at_frame in 0usize..300) {
        let (Some(before), Some(after)) = (build(&before), build(&after)) else { return Ok(()) };
        let mut port = Port::new(&before, 7, vec![Slot::EMPTY; 128]).expect("a port");
        let mut at = 0;
        let (mut promised, mut got) = (Vec::new(), Vec::new());
        for (tag, (gap, frame)) in load.iter().enumerate() {
            let now = clock(&mut at, *gap);
            if tag == at_frame {
                port.reconfigure(now, &after).expect("another FIFO description");
            }
            if let Verdict::Deliver(fate) = port.offer(now, Frame { tag: tag as u32, ..*frame }) {
                promised.push((fate.deliver_at, tag as u32));
                promised.extend(fate.duplicate_at.map(|copy| (copy, tag as u32)));
            }
            while let Some(delivery) = port.pop_due(now) {
                got.push((delivery.at, delivery.tag));
            }
        }
        while let Some(delivery) = port.pop_due(u64::MAX) {
            got.push((delivery.at, delivery.tag));
        }
        promised.sort_unstable();
        got.sort_unstable();
        prop_assert_eq!(promised, got);
        port.settle(u64::MAX);
        prop_assert_eq!(port.buffered(), (0, 0));
    }

    /// The shared buffer is the sum of its ports' buffers and never exceeds its size.
    #[test]
    fn a_switch_shares_exactly(load in load(), size in 1u64..200_000) {
        let spec = PortSpec { rate: Some(Rate::mbit(100)), ..PortSpec::IDEAL };
        let config = spec.build().expect("a valid description");
        let port = |n| Port::new(&config, n as u64, vec![Slot::EMPTY; 256]).expect("a port");
        let ports: [_; 3] = std::array::from_fn(port);
        let buffer = SharedBuffer::new(Size::bytes(size));
        let mut switch = Switch::new(ports, Some(buffer)).expect("a switch");
        let mut at = 0;
        for (tag, (gap, frame)) in load.iter().enumerate() {
            let now = clock(&mut at, (*gap).max(0));
            let frame = Frame { tag: tag as u32, phase_ps: 0, ..*frame };
            switch.offer(now, usize::from(frame.class) % 3, frame);
            while switch.pop_due(now).is_some() {}
            let sum: u64 = switch.ports().iter().map(|p| u64::from(p.buffered().1)).sum();
            prop_assert_eq!(switch.used(), sum);
            prop_assert!(sum <= size);
        }
        let mut last = 0;
        while let Some(deadline) = switch.next_deadline() {
            prop_assert!(deadline >= last);
            last = deadline;
            prop_assert!(switch.pop_due(deadline).is_some());
        }
    }
}

/// The same in every build of every machine. (The run itself checks that everything happened in it.)
#[test]
fn the_trace_is_frozen() {
    assert_eq!(reference_trace(), REFERENCE_TRACE, "{:#x}", reference_trace());
}
