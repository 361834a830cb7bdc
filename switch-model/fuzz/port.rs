// SPDX-License-Identifier: MIT OR Apache-2.0
//! Fuzz target: any description, any calls. See `drive.rs`.
#![no_main]

mod drive;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    drive::drive(data);
});
