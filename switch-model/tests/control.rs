// SPDX-License-Identifier: MIT OR Apache-2.0
//! The control plane, by exact times, and the profiles.

use switch_model::{
    Port, Profile, Scheduled, Slot, Span,
    control::{
        Barrier, ControlPlane, ControlSpec, Done, Expired, Flow, LagSpec, Moves, OcamlOpenflow,
        OperationSpec, PacketInLimit, Refusal,
    },
};

fn plane(spec: &ControlSpec) -> ControlPlane<&ControlSpec, Vec<Flow>> {
    ControlPlane::new(spec, 1, vec![Flow::EMPTY; 4096]).expect("a control plane")
}

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;

/// 100 arrivals in one second, at any spacing: 19 pass as in ocaml-openflow, 18 as configured.
#[test]
fn packet_in_limit() {
    for (compatible, passed) in [(true, 19), (false, 18)] {
        for gap in [0, 10 * MS - 1] {
            let spec = OcamlOpenflow::BASIC_SWITCH.control(compatible);
            let mut plane = plane(&spec);
            let sent = (0..100).filter(|n| plane.packet_in(n * gap).is_ok()).count();
            assert_eq!(sent, passed);
            let counters = plane.counters();
            assert_eq!(counters.packet_ins_limited, 100 - passed as u64);
            assert_eq!(counters.packet_ins, counters.packet_ins_sent + counters.packet_ins_limited);
            assert!(plane.packet_in(SECOND).is_ok(), "another second");
        }
    }
    // A bucket of 18 that is refilled 18 times a second passes 18 at once, then one each 55.6 ms.
    let limit = Some(PacketInLimit::Bucket { per_second: 18, burst: 18 });
    let spec = ControlSpec { packet_in_limit: limit, ..ControlSpec::IDEAL };
    let mut plane = plane(&spec);
    assert_eq!((0..100).filter(|_| plane.packet_in(0).is_ok()).count(), 18);
    assert_eq!(plane.packet_in(55_555_555), Err(Refusal::RateLimited));
    assert!(plane.packet_in(55_555_556).is_ok());
}

#[test]
fn insertions_are_serial_and_barriers_early_or_right() {
    let early = OcamlOpenflow::BASIC_SWITCH.control(true);
    let right = ControlSpec { barrier: Barrier::AtInstall, ..early };
    for (spec, barrier) in [(early, 0), (right, 10 * MS)] {
        let mut plane = plane(&spec);
        let live: Vec<u64> =
            (0..5).map(|id| plane.add(0, id, 1, None, None).expect("room").live_at).collect();
        assert_eq!(live, [2, 4, 6, 8, 10].map(|n| n * MS));
        assert_eq!(plane.barrier(0), barrier);
        assert!(!plane.hit(2 * MS - 1, 0) && plane.hit(2 * MS, 0));
    }
}

/// All six fields act, also the two that the original declares and never reads.
#[test]
fn the_six_fields_act() {
    let model = OcamlOpenflow {
        flow_insert: Span::ms(1),
        flow_update: Span::ms(2),
        pktin_rate: 3,
        pktin_delay: Span::ms(4),
        stats_delay: Span::ms(5),
        pktout_delay: Span::ms(6),
    };
    let spec = model.control(false);
    let mut plane = plane(&spec);
    assert_eq!(plane.add(0, 1, 1, None, None), Ok(Done { at: MS, live_at: MS }));
    assert_eq!(plane.modify(0, 1).map(|done| done.at), Ok(2 * MS));
    assert_eq!(plane.packet_in(0), Ok(4 * MS));
    assert_eq!(plane.packet_in(0), Ok(8 * MS));
    assert_eq!(plane.packet_in(0), Ok(12 * MS));
    assert_eq!(plane.packet_in(0), Err(Refusal::RateLimited));
    assert_eq!(plane.stats(0), 5 * MS);
    assert_eq!(plane.packet_out(20 * MS), 26 * MS);
    // An update does not wait for insertions: two servers.
    assert_eq!(plane.add(30 * MS, 2, 1, None, None).map(|d| d.at), Ok(31 * MS));
    assert_eq!(plane.modify(30 * MS, 1).map(|d| d.at), Ok(32 * MS));
}

/// The cost of the n-th entry when each entry that moves takes 1 us.
#[test]
fn memory_cost_by_order_of_priority() {
    let cost = |moves, priorities: &mut dyn Iterator<Item = u16>| {
        let add = OperationSpec::on(0, Span::us(10));
        let spec = ControlSpec { add, moves, per_move: Span::us(1), ..ControlSpec::IDEAL };
        let mut plane = plane(&spec);
        let mut last = 0;
        for (id, priority) in priorities.enumerate() {
            last = plane.add(0, id as u32, priority, None, None).expect("room").at;
        }
        last
    };
    let (n, base, all) = (100u64, 1_000_000, 100 * 99 / 2 * 1000);
    let ascending = || 1..=n as u16;
    for (moves, up, down, equal) in [
        (Moves::None, 0, 0, 0),
        (Moves::All, all, all, all),
        (Moves::Higher, 0, all, 0),
        (Moves::Lower, all, 0, 0),
    ] {
        assert_eq!(cost(moves, &mut ascending()), base + up, "{moves:?}");
        assert_eq!(cost(moves, &mut ascending().rev()), base + down, "{moves:?}");
        assert_eq!(cost(moves, &mut ascending().map(|_| 7)), base + equal, "{moves:?}");
    }
}

/// A data plane that needs 3 ms per rule falls 2 ms further behind with each: 300 ms for 100 rules.
#[test]
fn the_data_plane_falls_behind() {
    let lag = LagSpec { service: Span::ms(3), ..LagSpec::default() };
    let add = OperationSpec::on(0, Span::ms(1));
    let spec = ControlSpec { add, lag, ..ControlSpec::IDEAL };
    let mut plane = plane(&spec);
    let last = (0..100).map(|id| plane.add(0, id, 1, None, None).expect("room")).last();
    assert_eq!(last, Some(Done { at: 100 * MS, live_at: 301 * MS }));
    assert_eq!(plane.barrier(0), 301 * MS);
}

#[test]
fn reordering_happens_only_where_it_is_asked_for() {
    let live = |barrier| {
        let lag = LagSpec { spread: Span::ms(400), ..LagSpec::default() };
        let spec = ControlSpec { barrier, lag, ..ControlSpec::IDEAL };
        let mut plane = plane(&spec);
        let live: Vec<u64> =
            (0..100).map(|id| plane.add(0, id, 1, None, None).expect("room").live_at).collect();
        assert!(live.iter().all(|&at| at <= 400 * MS));
        live.is_sorted()
    };
    assert!(live(Barrier::AtInstall) && live(Barrier::Early) && !live(Barrier::Reorder));
}

#[test]
fn a_full_table_says_so() {
    let spec = ControlSpec { table: 3, ..ControlSpec::IDEAL };
    let mut plane = plane(&spec);
    for id in 0..3 {
        assert!(plane.add(0, id, 1, None, None).is_ok());
    }
    assert_eq!(plane.add(0, 3, 1, None, None), Err(Refusal::TableFull));
    assert!(plane.add(0, 2, 1, None, None).is_ok(), "it is there already: a change");
    assert!(plane.delete(0, 0).is_ok());
    assert!(plane.add(0, 3, 1, None, None).is_ok());
    assert_eq!(plane.delete(0, 0), Err(Refusal::Unknown));
    let counters = plane.counters();
    assert_eq!((counters.added, counters.modified, counters.deleted), (4, 1, 1));
    assert_eq!(u64::from(plane.entries()), counters.added - counters.deleted);
}

#[test]
fn timeouts() {
    let spec = ControlSpec::IDEAL;
    let mut plane = plane(&spec);
    let (idle, hard) = (Some(Span::secs(10)), Some(Span::secs(25)));
    plane.add(0, 1, 1, idle, hard).expect("room");
    plane.add(0, 2, 1, idle, None).expect("room");
    plane.add(0, 3, 1, None, None).expect("room");
    assert_eq!(plane.next_deadline(), Some(10 * SECOND));
    assert!(plane.hit(9 * SECOND, 1) && plane.hit(18 * SECOND, 1));
    let expired = |id, at, idle| Some(Expired { id, at: at * SECOND, idle });
    assert_eq!(plane.expire(10 * SECOND), expired(2, 10, true));
    assert_eq!(plane.expire(24 * SECOND), None);
    assert_eq!(plane.next_deadline(), Some(25 * SECOND));
    assert_eq!(plane.expire(25 * SECOND), expired(1, 25, false));
    assert_eq!(plane.expire(u64::MAX), None);
    assert_eq!(plane.entries(), 1);
    // Looked at once a second only, as ocaml-openflow does.
    let swept = ControlSpec { sweep: Span::secs(1), ..ControlSpec::IDEAL };
    let mut plane = self::plane(&swept);
    plane.add(0, 1, 1, None, Some(Span::ms(1500))).expect("room");
    assert_eq!(plane.expire(1_999_999_999), None);
    assert_eq!(plane.expire(2 * SECOND), expired(1, 2, false));
}

#[test]
fn frames_wait_to_become_messages() {
    let spec = ControlSpec {
        packet_in: OperationSpec::on(0, Span::ms(2)),
        packet_in_queue: Some(switch_model::Frames::new(3)),
        ..ControlSpec::IDEAL
    };
    let mut plane = plane(&spec);
    let answers: Vec<_> = (0..4).map(|_| plane.packet_in(0)).collect();
    assert_eq!(answers, [Ok(2 * MS), Ok(4 * MS), Ok(6 * MS), Err(Refusal::QueueFull)]);
    assert_eq!(plane.packet_in(2 * MS), Ok(8 * MS));
}

/// Every profile builds, says where each parameter comes from, and has the figures of the sources.
#[test]
fn profiles() {
    for profile in Profile::ALL {
        let config = profile.port().build().expect("a profile builds");
        let (line, waiting) = (vec![Slot::EMPTY; 16], vec![Slot::EMPTY; 16]);
        assert!(Scheduled::<_, _, 1>::new(&config, 1, line, waiting).is_ok());
        let spec = profile.control();
        assert!(spec.check().is_ok());
        assert_eq!(profile.sources().is_empty(), profile == Profile::Ideal);
        assert!(profile.sources().iter().all(|s| !s.source.is_empty() && !s.value.is_empty()));
    }
    let latency = |profile: Profile| profile.port().latency.as_ns();
    assert_eq!(
        [Profile::Nec, Profile::Hp, Profile::Pica8, Profile::Netfpga].map(latency),
        [4_000, 6_000, 2_000, 3_000]
    );
    // Open vSwitch: median 35 us and standard deviation 13 us, beyond the wire's 8.96 us.
    let config = Profile::Ovs.port().build().expect("valid");
    let mut port = Port::new(&config, 1, vec![Slot::EMPTY; 16]).expect("a FIFO port");
    let mut delays: Vec<u64> = (0..100_000u64)
        .map(|n| {
            let now = n * MS;
            port.offer(now, switch_model::Frame::new(0, 100));
            port.pop_due(now + MS).expect("delivered").at - now - 8_960
        })
        .collect();
    delays.sort_unstable();
    assert!(delays[50_000].abs_diff(35_000) < 300, "{}", delays[50_000]);
    // Pica8: 50 messages a second at most.
    let spec = Profile::Pica8.control();
    let mut plane = plane(&spec);
    let sent = (0..10_000).filter(|n| plane.packet_in(n * MS).is_ok()).count();
    assert_eq!(sent, 500);
}
