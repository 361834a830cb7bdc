// SPDX-License-Identifier: MIT OR Apache-2.0
//! A PV kernel that lives in dilated time and measures it.
//!
//! This library is everything that can be tested without Xen: what the command line means, how the
//! machine's clocks are read, how the console is waited for, and the
//! self-tests. The image (`main.rs` and `image/`) only glues it to the start of day, the hypercall page and the console.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod armed;
pub mod changes;
pub mod clocks;
pub mod cmdline;
pub mod console;
pub mod cost;
#[cfg(test)]
mod fake;
pub mod hostile;
pub mod machine;
pub mod model;
pub mod paging;
pub mod paths;
pub mod probe;
pub mod switch;
pub mod tsc;
