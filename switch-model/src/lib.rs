// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a switch port does to a frame, exactly.
#![cfg_attr(not(any(feature = "std", test)), no_std)]
#![forbid(unsafe_code)]

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
mod rng;
mod sample;
mod scheduled;
mod serialiser;
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
pub use rng::stream_seed;
pub use scheduled::{Egress, Scheduled};
pub use serialiser::{Framing, MAX_FRAME};
pub use spec::{CutThroughSpec, MAX_CLASSES, PortSpec, ProcessorSpec, Scheduler};
pub use switch::{SharedBuffer, Switch};
pub use trace::TraceHash;
pub use units::{Frames, Probability, Rate, Size, Span, UnitError};
