// SPDX-License-Identifier: MIT OR Apache-2.0
//! A hostile peer until it has done a number of mischiefs: `hostile-peer [COUNT] [SEED]`. See `drive.rs`.
//!
//! Unlike the fuzz target it needs nothing but the compiler, and shows that it met every fault and
//! every refusal that the engines know.

mod drive;

use std::process::ExitCode;

/// Words written against the rules, if no other count is asked for.
const COUNT: u64 = 10_000_000;
/// Bytes that one pair of ends lives by.
const LIFE: usize = 4096;

fn main() -> ExitCode {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<u64>());
    let (Ok(count), Ok(seed)) =
        (numbers.next().unwrap_or(Ok(COUNT)), numbers.next().unwrap_or(Ok(1)))
    else {
        eprintln!("usage: hostile-peer [COUNT] [SEED], both whole numbers");
        return ExitCode::from(2);
    };
    let mut report = drive::Report::default();
    let mut state = seed;
    let mut data = [0; LIFE];
    let mut lives = 0u64;
    while report.mutations < count {
        for word in data.as_chunks_mut::<8>().0 {
            // SplitMix64: any seed will do.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            *word = (mixed ^ mixed >> 31).to_le_bytes();
        }
        drive::drive(&data, &mut report);
        lives += 1;
    }
    println!(
        "{} steps in {lives} lives, {} words written against the rules",
        report.steps, report.mutations
    );
    for (what, count) in &report.seen {
        println!("{count:>10}  {what}");
    }
    let missing: Vec<_> =
        drive::EXPECTED.iter().filter(|what| !report.seen.contains_key(**what)).collect();
    if missing.is_empty() || count < COUNT {
        return ExitCode::SUCCESS;
    }
    println!("never met: {missing:?}");
    ExitCode::FAILURE
}
