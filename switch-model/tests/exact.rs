// SPDX-License-Identifier: MIT OR Apache-2.0
//! Cases whose answer is a number, not a distribution.

use switch_model::{
    CutThroughSpec, DropReason, Fate, Frame, Frames, Framing, Port, PortConfig, PortSpec, Rate,
    Scheduled, Size, Slot, Span, Verdict,
};

fn port(config: &PortConfig) -> Port<&PortConfig, Vec<Slot>> {
    Port::new(config, 1, vec![Slot::EMPTY; 1024]).expect("a port")
}

fn fate(verdict: Verdict) -> Fate {
    match verdict {
        Verdict::Deliver(fate) => fate,
        other => panic!("not delivered: {other:?}"),
    }
}

/// Ethernet's framing for lengths that include the check sequence.
const WITH_FCS: Framing = Framing { overhead: Size::bytes(0), ..Framing::ETHERNET };

/// Sends one frame of 1518 B (1526 B with preamble) over links of 500 ns, with a switch between
/// each two; gives its arrival, told by the last port.
fn path(rates: &[Rate], cut_through: bool) -> u64 {
    let (mut now, mut phase_ps) = (0, 0);
    for hop in 0..rates.len() {
        let spec = PortSpec {
            rate: Some(rates[hop]),
            framing: WITH_FCS,
            delay: Span::ns(500),
            cut_through: (cut_through && hop > 0)
                .then(|| CutThroughSpec { ingress_rate: rates[hop - 1], after: Size::bytes(64) }),
            ..PortSpec::IDEAL
        };
        let config = spec.build().expect("a valid description");
        let mut port = port(&config);
        let verdict = port.offer(now, Frame { phase_ps, ..Frame::new(0, 1518) });
        (now, phase_ps) = (fate(verdict).deliver_at, port.phase_ps());
    }
    now
}

#[test]
fn store_and_forward() {
    let expected = [(1, 38_124), (10, 5_162), (100, 1_866)];
    for (gbit, ns) in expected {
        assert_eq!(path(&[Rate::gbit(gbit); 3], false), ns, "{gbit} Gbit/s");
    }
}

#[test]
fn cut_through() {
    let expected = [(1, 14_732), (10, 2_823), (100, 1_632)];
    for (gbit, ns) in expected {
        assert_eq!(path(&[Rate::gbit(gbit); 3], true), ns, "{gbit} Gbit/s");
    }
}

#[test]
fn cut_through_falls_back_when_it_must() {
    let (slow, fast) = (Rate::gbit(1), Rate::gbit(10));
    // To a faster link: stored, 12 208 + 1220.8 + 2 * 500.
    assert_eq!(path(&[slow, fast], true), 14_428);
    assert_eq!(path(&[slow, fast], false), 14_428);
    // To a slower link: 1462 B at 10 Gbit/s, 1169.6 ns, are saved.
    assert_eq!(path(&[fast, slow], false), 14_428);
    assert_eq!(path(&[fast, slow], true), 13_259);
    // The fractions of links of different rates add up: .8 + .0 + .8 + .08 makes 1.68.
    let mixed = [fast, slow, fast, Rate::gbit(100)];
    assert_eq!(path(&mixed, false), 1_220 + 12_208 + 1_220 + 122 + 4 * 500 + 1);

    let spec = PortSpec {
        rate: Some(slow),
        framing: WITH_FCS,
        cut_through: Some(CutThroughSpec { ingress_rate: slow, after: Size::bytes(64) }),
        ..PortSpec::IDEAL
    };
    let config = spec.build().expect("a valid description");
    let mut flooded = port(&config);
    let frame = Frame { flood: true, ..Frame::new(0, 1518) };
    assert_eq!(fate(flooded.offer(20_000, frame)).deliver_at, 20_000 + 12_208);
    // Congestion: the second frame finds the port busy and is stored.
    let mut busy = port(&config);
    assert_eq!(fate(busy.offer(20_000, Frame::new(0, 1518))).deliver_at, 20_512);
    assert_eq!(fate(busy.offer(20_100, Frame::new(0, 1518))).deliver_at, 20_512 + 96 + 12_208);
}

#[test]
fn a_million_short_frames_back_to_back_at_100g() {
    let spec = PortSpec { rate: Some(Rate::gbit(100)), ..PortSpec::IDEAL };
    let config = spec.build().expect("a valid description");
    let mut port = port(&config);
    let mut last = 0;
    for k in 1..=1_000_000u64 {
        // Offered when the one before ends: the port never idles and never queues.
        last = fate(port.offer(last, Frame::new(0, 84))).deliver_at;
        assert_eq!(last, k * 672 / 100);
        assert!(port.pop_due(last).is_some());
    }
    assert_eq!(last, 6_720_000);
    assert_eq!(port.counters().busy_ns, 6_720_000);
}

/// The k-th frame ends at floor(k * exact), for k up to 10^9, computed: offered in batches at one
/// instant, so that 10^9 frames are reached by the sum of lengths that the model carries exactly.
#[test]
fn no_drift_over_a_billion_frames() {
    let spec = PortSpec { rate: Some(Rate::gbit(100)), ..PortSpec::IDEAL };
    let config = spec.build().expect("a valid description");
    let mut port = port(&config);
    // 84 * 750 = 63 000 B stand for 750 frames; 10^9 / 750 is no integer, so one shorter at the end.
    let (mut frames, mut last) = (0u64, 0);
    while frames < 1_000_000_000 {
        let k = (1_000_000_000 - frames).min(750);
        last = fate(port.offer(last, Frame::new(0, 84 * k as u32))).deliver_at;
        frames += k;
        assert_eq!(u128::from(last), u128::from(frames) * 672 / 100);
        port.pop_due(last);
    }
    assert_eq!(last, 6_720_000_000);
}

/// Marks are set when a frame finds more than K in the buffer: at K + 1, not at K or K - 1.
#[test]
fn step_marking() {
    const K: u32 = 20;
    let spec =
        PortSpec { rate: Some(Rate::gbit(1)), mark_above: Some(Frames::new(K)), ..PortSpec::IDEAL };
    let config = spec.build().expect("a valid description");
    let mut port = port(&config);
    let marks: Vec<bool> = (0..K + 3)
        .map(|tag| fate(port.offer(0, Frame { ecn: true, ..Frame::new(tag, 1500) })).mark)
        .collect();
    // The n-th frame (from 0) finds n.
    assert!(marks.iter().enumerate().all(|(n, &mark)| mark == (n as u32 > K)));
    assert!(!fate(port.offer(0, Frame::new(99, 1500))).mark, "it cannot be marked");
    assert_eq!(port.counters().marks, 2);
}

#[test]
fn tail_drop_counts_the_frame_in_service() {
    let spec = PortSpec {
        rate: Some(Rate::gbit(1)),
        queue_frames: Some(Frames::new(3)),
        queue_bytes: Some(Size::bytes(3_000)),
        ..PortSpec::IDEAL
    };
    let config = spec.build().expect("a valid description");
    let mut by_frames = port(&config);
    let dropped = |verdict| verdict == Verdict::Drop(DropReason::QueueFull);
    // 100 B take 800 ns each.
    let answers: Vec<bool> = [0, 0, 0, 0, 799, 800, 800]
        .map(|now| dropped(by_frames.offer(now, Frame::new(0, 100))))
        .into();
    assert_eq!(answers, [false, false, false, true, true, false, true]);
    let mut by_bytes = port(&config);
    let answers: Vec<bool> =
        [1500, 1501, 1500].map(|len| dropped(by_bytes.offer(0, Frame::new(0, len)))).into();
    assert_eq!(answers, [false, true, false]);
}

#[test]
fn sizes_are_part_of_the_promise() {
    assert!(size_of::<Port<&PortConfig, [Slot; 1024]>>() <= 256 + 16 * 1024);
    assert_eq!(size_of::<Slot>(), 16);
    // Without slots, what is left is the port itself.
    let scheduled = size_of::<Scheduled<&PortConfig, [Slot; 0], 1>>();
    assert!(scheduled <= 368, "{scheduled}");
    assert_eq!(size_of::<Scheduled<&PortConfig, [Slot; 0], 3>>() - scheduled, 16);
}
