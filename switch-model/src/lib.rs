// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a switch port does to a frame, exactly.
//!
//! A port delays, queues, drops, marks, reorders and corrupts. This crate decides what happens to a
//! frame and when, for emulators, simulators and user-space switches. It moves no bytes and owns no
//! clock: the caller says when a frame comes, and asks what is due.
//!
//! A 10 Gbit/s port with 50 us of delay and 0.1 % of loss, in bursts of 10 frames:
//!
//! ```
//! use switch_model::{Frame, Port, PortSpec, Slot, Verdict};
//!
//! # #[cfg(feature = "serde")] {
//! let spec: PortSpec = toml::from_str(
//!     r#"rate = "10 Gbit/s"
//!        delay = "50 us"
//!        loss = { model = "bursty", probability = "0.1 %", burst = "10 frames" }"#,
//! ).unwrap();
//! let config = spec.build().unwrap();
//! let mut port = Port::new(&config, 42, [Slot::EMPTY; 1024]).unwrap();   // 42 is the seed
//! let verdict = port.offer(1_000, Frame::new(7, 1250));                  // at 1000 ns: frame 7, 1250 B
//! assert!(matches!(verdict, Verdict::Deliver(fate) if fate.deliver_at == 1_000 + 1_000 + 50_000));
//! assert_eq!(port.next_deadline(), Some(52_000));                        // when to come back
//! assert_eq!(port.pop_due(52_000).map(|delivery| delivery.tag), Some(7));
//! # }
//! ```
//!
//! Without the feature `serde` the same description is a struct: `PortSpec { rate: Some(Rate::gbit(10)), delay:
//! Span::us(50), ..PortSpec::IDEAL }`.
//!
//! # What it promises
//!
//! - **Exact.** Times are integer nanoseconds. The serialiser carries its remainder, so back-to-back
//!   frames end at the floor of the exact sum for ever. A probability is exact to 2^-32, also with
//!   correlation, and a distribution has the mean and spread that were asked for.
//! - **Deterministic.** The same description, seed and input give the same result, bit for bit, on
//!   every machine and in every build. Chance depends on the seed, the frame and the purpose only:
//!   switching jitter on does not change which frames are lost.
//! - **Small.** `no_std`, no allocation, no float, no `unsafe`, no dependency. A FIFO port takes 256
//!   bytes, and 16 for each frame that it can hold, wherever the caller wants them.
//! - **Honest.** [`Counters`] add up at every moment. What the caller's memory cannot hold is dropped
//!   with a reason of its own, [`DropReason::NoSlot`], and never after it was promised.
//!
//! # Parts
//!
//! | | |
//! |---|---|
//! | [`PortSpec`] | the description: latency, policer, buffer, RED, CoDel, marks, scheduler, rate, framing, cut-through, delay, jitter, loss, copies, flipped bits, overtaking, slots |
//! | [`Port`] | a port with one queue: [`offer`](Port::offer) answers at once when the frame arrives |
//! | [`Scheduled`] | a port with classes (strict, deficit round robin), CoDel or a slow path: the answer comes from [`pop_due`](Scheduled::pop_due) |
//! | [`Switch`] | several ports: who is due next, and a buffer shared by dynamic threshold |
//! | [`control`] | flow_mod, packet_in, packet_out, statistics, barriers: how long they take and when they act |
//! | [`Profile`] | measured switches, each figure with its source |
//! | [`TraceHash`] | a fingerprint of a run; [`reference_trace`] shows that this machine decides as all others do |
//!
//! A frame passes: ingress latency, policer, (slow path,) admission to the buffer, RED and marks,
//! (scheduler, CoDel,) serialiser, line. The buffer holds a frame from its admission until the
//! serialiser is done with it, the gap after it included; limits count the frame in service.
//!
//! A description can change at any time without loss ([`Port::reconfigure`]). What was promised to a
//! frame stays promised.
//!
//! To see what a description does before using it: `cargo run -p switch-model --example replay`.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

#[cfg(feature = "serde")]
extern crate alloc;

mod codel;
mod config;
pub mod control;
mod counters;
mod error;
mod frame;
mod jitter;
mod lane;
mod line;
mod list;
mod loss;
mod policer;
mod port;
mod profile;
mod red;
mod reference;
mod rng;
mod sample;
mod scheduled;
mod serialiser;
#[cfg(feature = "serde")]
mod settings;
mod spec;
mod switch;
mod trace;
mod units;

pub use codel::CodelSpec;
pub use config::PortConfig;
pub use counters::Counters;
pub use error::ConfigError;
pub use frame::{Delivery, DropReason, Event, Fate, Frame, MAX_TIME, Verdict};
pub use jitter::{Jitter, ParetoIndex, SlotsSpec};
pub use lane::Slot;
pub use list::Few;
pub use loss::{Chance, Loss};
pub use policer::PolicerSpec;
pub use port::Port;
pub use profile::{Profile, Sourced};
pub use red::RedSpec;
pub use reference::{REFERENCE_TRACE, reference_trace};
pub use rng::stream_seed;
pub use scheduled::{Egress, Scheduled};
pub use serialiser::{Framing, MAX_FRAME};
#[cfg(feature = "serde")]
pub use settings::SettingError;
pub use spec::{CutThroughSpec, MAX_CLASSES, PortSpec, ProcessorSpec, Scheduler};
pub use switch::{SharedBuffer, Switch};
pub use trace::TraceHash;
pub use units::{Frames, Probability, Rate, Size, Span, UnitError};
