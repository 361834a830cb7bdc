// SPDX-License-Identifier: MIT OR Apache-2.0
//! Fuzz target: a hostile peer of either engine. See `drive.rs`.
#![no_main]

mod drive;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    drive::drive(data, &mut drive::Report::default());
});
