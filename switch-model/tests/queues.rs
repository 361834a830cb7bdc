// SPDX-License-Identifier: MIT OR Apache-2.0
//! Schedulers, CoDel, the slow path, shared buffers, and changes while frames wait.

use switch_model::{
    Chance, CodelSpec, ConfigError, DropReason, Event, Few, Frame, Frames, Framing, Jitter, Port,
    PortConfig, PortSpec, Probability, Profile, Rate, Scheduled, Scheduler, SharedBuffer, Size,
    Slot, Span, Switch, Verdict,
};

fn build(spec: PortSpec) -> PortConfig {
    spec.build().expect("a valid description")
}

fn slots(n: usize) -> Vec<Slot> {
    vec![Slot::EMPTY; n]
}

fn scheduled<const C: usize>(config: &PortConfig) -> Scheduled<&PortConfig, Vec<Slot>, C> {
    Scheduled::new(config, 1, slots(1024), slots(1024)).expect("a port")
}

/// Everything that comes out, as (time, tag).
fn drain<const C: usize>(port: &mut Scheduled<&PortConfig, Vec<Slot>, C>) -> Vec<(u64, u32)> {
    let mut out = Vec::new();
    while let Some(deadline) = port.next_deadline() {
        while let Some(event) = port.pop_due(deadline) {
            if let Event::Deliver(delivery) = event {
                out.push((delivery.at, delivery.tag));
            }
        }
    }
    out
}

/// 1000 B at 1 Gbit/s take 8 us.
const MS_PER_FRAME: u64 = 8_000;

fn gigabit(scheduler: Scheduler) -> PortConfig {
    build(PortSpec { rate: Some(Rate::gbit(1)), scheduler, ..PortSpec::IDEAL })
}

#[test]
fn strict_priority_does_not_interrupt() {
    let config = gigabit(Scheduler::Strict { classes: 3 });
    let mut port = scheduled::<3>(&config);
    for (tag, class) in [(0, 2), (1, 2), (2, 1), (3, 0), (4, 2), (5, 0)] {
        port.offer(0, Frame { class, ..Frame::new(tag, 1000) });
    }
    let order: Vec<u32> = drain(&mut port).iter().map(|&(_, tag)| tag).collect();
    assert_eq!(order, [0, 3, 5, 2, 1, 4]);
}

#[test]
fn a_fifo_scheduler_gives_the_times_of_a_fifo_port() {
    let config = gigabit(Scheduler::Fifo);
    let mut queue = scheduled::<1>(&config);
    let mut fifo = Port::new(&config, 1, slots(1024)).expect("a port");
    let mut expected = Vec::new();
    for tag in 0..500 {
        let now = u64::from(tag) * 7_000 + u64::from(tag) * 7919 % 20_000;
        let frame = Frame::new(tag, 64 + tag * 37 % 1455);
        if let Verdict::Deliver(fate) = fifo.offer(now, frame) {
            expected.push((fate.deliver_at, tag));
        }
        assert_eq!(queue.offer(now, frame), Verdict::Queued);
    }
    assert_eq!(drain(&mut queue), expected);
    assert_eq!(queue.counters().busy_ns, fifo.counters().busy_ns);
}

/// Backlogged classes share by their quanta: what each has got never differs from its share by
/// more than one quantum and one frame, at any time.
#[test]
fn deficit_round_robin_is_fair_by_bytes() {
    let quanta = [500u64, 1000, 3000];
    let few = Few::new(&quanta.map(Size::bytes)).expect("few");
    let config = gigabit(Scheduler::Drr { quanta: few });
    let mut port = scheduled::<4>(&config);
    // Frames of 1500, 300 and 900 B; the class is in the tag.
    let lens = [1500u32, 300, 900];
    for class in 0..3u32 {
        for _ in 0..300 {
            let frame = Frame { class: class as u8, ..Frame::new(class, lens[class as usize]) };
            assert_eq!(port.offer(0, frame), Verdict::Queued);
        }
    }
    let mut got = [0u64; 3];
    for (_, class) in drain(&mut port).into_iter().take(400) {
        got[class as usize] += u64::from(lens[class as usize]);
        let rounds = got[2] as f64 / quanta[2] as f64;
        for class in 0..2 {
            let share = rounds * quanta[class] as f64;
            let slack = (quanta[class] + u64::from(lens[class])) as f64 + quanta[class] as f64;
            assert!((got[class] as f64 - share).abs() <= slack, "{class}: {} {share}", got[class]);
        }
    }
    assert!(got.iter().all(|&bytes| bytes > 10_000));
}

/// A queue held far above target: the n-th drop follows the one before after interval / sqrt(n),
/// to within one frame's time, as frames can only be looked at when the wire falls free.
#[test]
fn codel_drops_by_the_square_root() {
    let codel = Some(CodelSpec::default());
    let config = build(PortSpec { rate: Some(Rate::gbit(1)), codel, ..PortSpec::IDEAL });
    let mut port = Scheduled::<_, _, 1>::new(&config, 1, slots(2048), slots(2048)).expect("a port");
    let mut drops = Vec::new();
    let (mut now, mut tag) = (0, 0);
    while drops.len() < 9 {
        // 1500 frames of 8 us wait 12 ms.
        while port.waiting() < 1500 {
            port.offer(now, Frame::new(tag, 1000));
            tag += 1;
        }
        now += 8_000;
        while let Some(event) = port.pop_due(now) {
            if let Event::Drop { at, reason, .. } = event {
                assert_eq!(reason, DropReason::Aqm);
                drops.push(at);
            }
        }
    }
    let gaps = drops.windows(2).map(|w| w[1] - w[0]);
    let expected = [
        100_000_000u64,
        70_710_678,
        57_735_027,
        50_000_000,
        44_721_360,
        40_824_829,
        37_796_447,
        35_355_339,
    ];
    for (gap, theory) in gaps.zip(expected) {
        assert!(gap.abs_diff(theory) <= MS_PER_FRAME, "{gap} {theory}");
    }
    let total = drops[8] - drops[0];
    assert!(total.abs_diff(437_143_680) <= MS_PER_FRAME, "{total}");
}

#[test]
fn codel_marks_what_allows_it() {
    let codel = Some(CodelSpec { ecn: true, ..CodelSpec::default() });
    let config = build(PortSpec { rate: Some(Rate::mbit(1)), codel, ..PortSpec::IDEAL });
    let mut port = scheduled::<1>(&config);
    for tag in 0..200 {
        port.offer(0, Frame { ecn: true, ..Frame::new(tag, 1000) });
    }
    assert_eq!(drain(&mut port).len(), 200);
    assert!(port.counters().marks > 5 && port.counters().dropped(DropReason::Aqm) == 0);
}

/// The HP's slow path: 80 us a frame, four of them at most. 100 Mbit/s of short frames overload it
/// to a loss of 88 %, and what gets through took about 300 us; fast frames overtake slow ones.
#[test]
fn the_slow_path() {
    let config = build(Profile::Hp.port());
    let mut port = scheduled::<1>(&config);
    let (mut lost, mut delays) = (0, Vec::new());
    // 100 B with 20 B around them at 100 Mbit/s: one every 9600 ns.
    for tag in 0..100_000u32 {
        let now = u64::from(tag) * 9_600;
        while let Some(event) = port.pop_due(now) {
            if let Event::Deliver(delivery) = event {
                delays.push(delivery.at - u64::from(delivery.tag) * 9_600);
            }
        }
        let frame = Frame { cost: 1, ..Frame::new(tag, 96) };
        lost += u32::from(port.offer(now, frame) == Verdict::Drop(DropReason::QueueFull));
    }
    let part = f64::from(lost) / 1e5;
    assert!((part - 0.88).abs() < 0.001, "{part}");
    delays.sort_unstable();
    let median = delays[delays.len() / 2];
    assert!((290_000..=336_000).contains(&median), "{median}");

    let mut port = scheduled::<1>(&config);
    port.offer(0, Frame { cost: 1, ..Frame::new(0, 96) });
    port.offer(0, Frame::new(1, 96));
    let order: Vec<u32> = drain(&mut port).iter().map(|&(_, tag)| tag).collect();
    assert_eq!(order, [1, 0]);
}

fn switch<const N: usize>(
    config: &PortConfig,
    buffer: SharedBuffer,
) -> Switch<Port<&PortConfig, Vec<Slot>>, N> {
    let port = |n| Port::new(config, n as u64, slots(256)).expect("a port");
    Switch::new(std::array::from_fn(port), Some(buffer)).expect("a switch")
}

/// Alpha 1 and 100 frames of room: one hot port gets 50 of them, two get 33 each.
#[test]
fn the_dynamic_threshold() {
    let config = build(PortSpec { rate: Some(Rate::mbit(1)), ..PortSpec::IDEAL });
    let buffer = SharedBuffer::new(Size::bytes(100_000));
    for (hot, share) in [(1usize, 50_000u32), (2, 33_000)] {
        let mut switch = switch::<4>(&config, buffer);
        for tag in 0..300 {
            switch.offer(0, tag as usize % hot, Frame::new(tag, 1000));
        }
        for port in &switch.ports()[..hot] {
            assert_eq!(port.buffered().1, share);
            assert!(port.counters().dropped(DropReason::SharedFull) > 0);
        }
    }
    // What another port sends away is room at once: 1000 B at 1 Mbit/s take 8 ms.
    let mut switch = switch::<2>(&config, buffer);
    for tag in 0..60 {
        switch.offer(0, 0, Frame::new(tag, 1000));
    }
    assert_eq!(switch.used(), 50_000);
    let answers: Vec<bool> = (0..3)
        .map(|_| matches!(switch.offer(8_000_000, 0, Frame::new(0, 1000)), Verdict::Deliver(_)))
        .collect();
    assert_eq!(answers, [true, false, false]);
    assert_eq!(buffer.one_port(), Probability::ratio(1, 2));
}

/// A slower line from 1 ms on: frames already promised keep their times, the next one queues behind
/// them at the new rate, and the buffer's content is right once they have left.
#[test]
fn a_change_of_rate_keeps_promises() {
    let fast = build(PortSpec { rate: Some(Rate::gbit(1)), ..PortSpec::IDEAL });
    let slow = build(PortSpec { rate: Some(Rate::mbit(100)), ..PortSpec::IDEAL });
    let mut port = Port::new(&fast, 1, slots(64)).expect("a port");
    for tag in 0..10 {
        port.offer(0, Frame::new(tag, 1000));
    }
    port.reconfigure(12_000, &slow).expect("a FIFO description");
    assert_eq!(port.buffered(), (9, 9_000));
    let Verdict::Deliver(fate) = port.offer(12_000, Frame::new(10, 1000)) else {
        panic!("dropped")
    };
    assert_eq!(fate.deliver_at, 80_000 + 80_000);
    let out: Vec<(u64, u32)> =
        std::iter::from_fn(|| port.pop_due(u64::MAX)).map(|d| (d.at, d.tag)).collect();
    let expected: Vec<(u64, u32)> =
        (0..10).map(|n| (8_000 * (u64::from(n) + 1), n)).chain([(160_000, 10)]).collect();
    assert_eq!(out, expected);
    port.settle(80_000);
    assert_eq!(port.buffered(), (1, 1_000));
    port.settle(160_000);
    assert_eq!(port.buffered(), (0, 0));
}

/// A line that let frames overtake begins to keep order, with frames on it.
#[test]
fn order_begins_at_a_change() {
    let jitter = Jitter::Uniform { spread: Span::us(40), correlation: Probability::ZERO };
    let loose = PortSpec { delay: Span::us(50), jitter, ..PortSpec::IDEAL };
    let strict = PortSpec { keep_order: true, ..loose };
    let (loose, strict) = (build(loose), build(strict));
    let mut port = Port::new(&loose, 5, slots(1024)).expect("a port");
    for tag in 0..500 {
        port.offer(u64::from(tag) * 100, Frame::new(tag, 100));
    }
    port.reconfigure(50_000, &strict).expect("a FIFO description");
    for tag in 500..1000 {
        port.offer(u64::from(tag) * 100, Frame::new(tag, 100));
    }
    let out: Vec<u32> = std::iter::from_fn(|| port.pop_due(u64::MAX)).map(|d| d.tag).collect();
    assert_eq!(out.len(), 1000);
    let early: Vec<u32> = out.iter().copied().filter(|&tag| tag < 500).collect();
    assert!(!early.is_sorted(), "frames did overtake before");
    let late: Vec<u32> = out.iter().copied().filter(|&tag| tag >= 500).collect();
    assert!(late.is_sorted());
}

#[test]
fn contradictions_are_refused_with_a_sentence() {
    let ideal = PortSpec::IDEAL;
    let jitter = Jitter::Normal { spread: Span::us(1), correlation: Probability::ZERO };
    let cases = [
        (PortSpec { rate: Some(Rate::bits(0)), ..ideal }, ConfigError::ZeroRate),
        (
            PortSpec { keep_order: true, reorder: Chance::of(Probability::ONE), jitter, ..ideal },
            ConfigError::OrderAndReorder,
        ),
        (PortSpec { scheduler: Scheduler::Strict { classes: 9 }, ..ideal }, ConfigError::Classes),
        (
            PortSpec { queue_frames: Some(Frames::new(0)), ..ideal },
            ConfigError::Zero("queue_frames"),
        ),
        (
            PortSpec {
                framing: Framing { cell_payload: Size::bytes(48), ..Framing::default() },
                ..ideal
            },
            ConfigError::Inverted("cell_payload and cell_size"),
        ),
    ];
    for (spec, error) in cases {
        assert_eq!(spec.build(), Err(error));
        assert!(error.to_string().len() > 20, "{error}");
    }
    let config = build(PortSpec { codel: Some(CodelSpec::default()), ..ideal });
    assert_eq!(Port::new(&config, 1, slots(4)).err(), Some(ConfigError::NeedsScheduled));
    let config = build(ideal);
    assert_eq!(Port::new(&config, 1, slots(3)).err(), Some(ConfigError::Slots));
}

/// A port that is out of memory says so, and never drops what it has promised.
#[test]
fn memory_is_a_limit_of_its_own() {
    let config = build(PortSpec { delay: Span::ms(1), ..PortSpec::IDEAL });
    let mut port = Port::new(&config, 1, slots(4)).expect("a port");
    let verdicts: Vec<Verdict> = (0..5).map(|tag| port.offer(0, Frame::new(tag, 100))).collect();
    assert!(verdicts[..4].iter().all(|v| matches!(v, Verdict::Deliver(_))));
    assert_eq!(verdicts[4], Verdict::Drop(DropReason::NoSlot));
    assert_eq!(std::iter::from_fn(|| port.pop_due(1_000_000)).count(), 4);
}
