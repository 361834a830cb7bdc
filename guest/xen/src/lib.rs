// SPDX-License-Identifier: MIT OR Apache-2.0
//! Xen for Rust guests and tools.
//!
//! Everything here runs on the host without Xen: hypercalls sit behind a trait with a fake, rings
//! have both of their ends, and time is a parameter.
#![cfg_attr(not(test), no_std)]

pub mod reading;
