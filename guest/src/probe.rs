// SPDX-License-Identifier: MIT OR Apache-2.0
//! What all self-tests share: their outcomes, their random numbers, and what theory allows a clock.

use core::fmt;

use tdf_abi::{Tdf, TdfError};
use tdf_xen::hypercall::{Hypercall, Xen, XenError};

use crate::machine::{Cpu, Machine};

/// Real ns by which a timer may be late without being wrong.
///
/// Xen arms its hardware at least `timer_slop` (50 µs) ahead, and a scheduler does not preempt a
/// vCPU that has run for less than its rate limit (`sched_ratelimit_us`, 1 ms).
pub const TIMER_SLACK_REAL_NS: i64 = 50_000 + 1_000_000;

/// ns by which two clocks that each round down may disagree.
pub const ROUNDING_NS: i64 = 2;

/// How a test ended, in the words of the Xen test framework.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything holds.
    Success,
    /// Something that must hold does not.
    Failure,
    /// The test could not be carried out.
    Error,
    /// This machine cannot be tested.
    Skip,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Success => "SUCCESS",
            Self::Failure => "FAILURE",
            Self::Error => "ERROR",
            Self::Skip => "SKIP",
        })
    }
}

/// Why the test could not be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestError {
    /// Xen refused something.
    Xen(XenError),
    /// The domain's factor cannot be.
    Factor(TdfError),
    /// The published slope of the TSC cannot be.
    Tsc,
}

impl From<XenError> for TestError {
    fn from(error: XenError) -> Self {
        Self::Xen(error)
    }
}

impl fmt::Display for TestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xen(error) => error.fmt(f),
            Self::Factor(error) => write!(f, "Xen reports an impossible TDF: {error}"),
            Self::Tsc => f.write_str("the published slope of the TSC is absurd"),
        }
    }
}

impl core::error::Error for TestError {}

/// SplitMix64: what is random is a function of the seed, the same on every machine.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// A number below `below`, which is not 0.
    pub fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
}

/// The domain's factor, or why it may not know real time.
///
/// # Errors
/// An answer that is neither.
pub fn reveal<X: Hypercall + Cpu>(
    machine: &Machine<'_, X>,
) -> Result<Result<Tdf, &'static str>, TestError> {
    match machine.xen.tdf_sample(machine.vcpu) {
        Ok(sample) => Tdf::new(sample.num, sample.den).map(Ok).map_err(TestError::Factor),
        Err(XenError::NotImplemented) => Ok(Err("this hypervisor has no time dilation")),
        Err(XenError::NotPermitted) => Ok(Err("this domain may not know real time")),
        Err(error) => Err(error.into()),
    }
}

/// Virtual ns in so many real ones, rounded down; saturates.
pub fn to_virtual(tdf: Tdf, real_ns: i64) -> i64 {
    narrow(tdf.to_virtual(real_ns.into()))
}

/// Virtual ns in so many real ones, rounded up; saturates.
pub fn to_virtual_up(tdf: Tdf, real_ns: i64) -> i64 {
    narrow(-tdf.to_virtual(-i128::from(real_ns)))
}

fn narrow(ns: i128) -> i64 {
    ns.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

/// Virtual ns by which the published line may miss what Xen says of the same instant: it lies on
/// whole ns of real time, which are 1/TDF of virtual time, and is rounded a few times.
pub fn grid_ns(tdf: Tdf) -> i64 {
    2 * ROUNDING_NS + to_virtual(tdf, 2)
}

/// The console takes every line or none: there is nobody to tell.
pub fn say(out: &mut dyn fmt::Write, line: fmt::Arguments<'_>) {
    let _ = writeln!(out, "{line}");
}
