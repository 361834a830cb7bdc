// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hostile peer, fed with noise: what can be had without an instrumented build.

#[path = "../fuzz/drive.rs"]
mod drive;

#[test]
fn a_hostile_peer_costs_itself_its_interface_and_nothing_else() {
    let mut report = drive::Report::default();
    let mut state = 1u64;
    while report.steps < 300_000 {
        let life: Vec<u8> = (0..4096)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 40) as u8
            })
            .collect();
        drive::drive(&life, &mut report);
    }
    let missing: Vec<_> =
        drive::EXPECTED.iter().filter(|what| !report.seen.contains_key(**what)).collect();
    assert!(missing.is_empty(), "never met: {missing:?}");
}
