// SPDX-License-Identifier: MIT OR Apache-2.0
//! `tdf`: creates, sets, shows and verifies dilated domains.
//!
//! The command runs in dom0 of a Xen that has time dilation. Domains are made by the stock `xl`;
//! the few hypercalls beyond it go through `/dev/xen/privcmd`. All logic is here and runs without
//! Xen: hypercalls sit behind [`xen::Hypervisor`], the rest of dom0 behind [`dom0::Dom0`], and a
//! guest's clocks behind [`probe::Clocks`].

pub mod arrivals;
pub mod capture;
pub mod changes;
pub mod checks;
pub mod create;
pub mod dom0;
#[cfg(test)]
mod fake;
pub mod gntdev;
mod guestcfg;
pub mod host;
mod hosts;
mod iperf;
pub mod judge;
pub mod keep;
mod net;
pub mod network;
pub mod paths;
mod plot;
pub mod port;
pub mod privcmd;
pub mod probe;
pub mod random;
pub mod report;
pub mod run;
pub mod scenario;
pub mod show;
pub mod spin;
mod stats;
pub mod storm;
pub mod together;
pub mod units;
pub mod verify;
pub mod wanted;
mod watch;
mod wiring;
pub mod xen;
pub mod xlcfg;
