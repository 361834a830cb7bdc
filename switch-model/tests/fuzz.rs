// SPDX-License-Identifier: MIT OR Apache-2.0
//! The fuzz target's driver, fed with noise: what can be had without an instrumented build.

#[path = "../fuzz/drive.rs"]
mod drive;

#[test]
fn noise_breaks_nothing() {
    let (mut state, mut offered) = (1, 0);
    for _ in 0..100_000 {
        state = switch_model::stream_seed(state, 11);
        let len = 100 + state as usize % 400;
        let mut word = state;
        let bytes: Vec<u8> = (0..len)
            .map(|_| {
                word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                // Zeroes leave stages out, so that descriptions are not always refused.
                if word >> 60 < 6 { 0 } else { (word >> 40) as u8 }
            })
            .collect();
        offered += drive::drive(&bytes);
    }
    assert!(offered > 300_000, "most descriptions must be possible ones: {offered}");
}
