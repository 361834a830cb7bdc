// SPDX-License-Identifier: MIT OR Apache-2.0
//! The switch of the emulated network.
//!
//! Each port is a host's network interface on one side and a [`switch_model`] port on the other. The
//! hosts' clocks and this switch's are dilated alike, so all that the model says is in the time that
//! the hosts see.

pub mod ether;
pub mod fdb;
pub mod pool;
