// SPDX-License-Identifier: MIT OR Apache-2.0
//! Xen for Rust guests and tools.
//!
//! Everything here runs on the host without Xen: hypercalls sit behind a trait with a fake, rings
//! have both of their ends, and time is a parameter.
#![cfg_attr(not(any(test, feature = "fake")), no_std)]

pub mod abi;
pub mod clock;
pub mod evtchn;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod grant;
pub mod hypercall;
pub mod netback;
pub mod netfront;
pub mod netif;
pub mod path;
pub mod reading;
pub mod ring;
pub mod shared_ring;
pub mod xenbus;
pub mod xenstore;
