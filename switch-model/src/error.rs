// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can be wrong with a description or with the memory given to a port.

use core::fmt;

/// Why a description cannot be a port, a switch or a control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// A rate of zero bits per second.
    ZeroRate,
    /// A rate whose nanoseconds per byte have too fine a fraction.
    FineRate,
    /// A span, length or count that is beyond what the named field can hold.
    TooLarge(&'static str),
    /// Something that must be at least one is zero.
    Zero(&'static str),
    /// The upper bound of the named pair is below the lower one.
    Inverted(&'static str),
    /// `keep_order` cannot hold with reordering.
    OrderAndReorder,
    /// A correlation of 1 would never change.
    FullCorrelation,
    /// Probabilities of the ways out of one state sum to more than 1.
    StateOverfull,
    /// A loss so high that bursts of the wanted length cannot give it.
    ImpossibleBurst,
    /// The Pareto index must be above 1, or there is no mean.
    ParetoIndex,
    /// A table of quantiles needs 2 to 33 values in ascending order.
    Table,
    /// More classes than the port has, or none.
    Classes,
    /// Cut-through needs a rate on both sides.
    CutThroughRate,
    /// Burst tolerance and rate of the policer do not fit its counter.
    Policer,
    /// Several queues, CoDel or a processor path need a scheduled port.
    NeedsScheduled,
    /// The memory given must hold a power of two of slots.
    Slots,
    /// More slots than 32 768 for the queues of a scheduled port.
    TooManySlots,
    /// The number of servers of a control plane is wrong, or an operation names a missing one.
    Servers,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::ZeroRate => {
                "a rate of zero never sends anything; leave the rate out for no limit"
            }
            Self::FineRate => "a rate above 4 Gbit/s must be a whole number of kbit/s",
            Self::TooLarge(what) => return write!(f, "{what} is too large"),
            Self::Zero(what) => return write!(f, "{what} must not be zero"),
            Self::Inverted(what) => return write!(f, "{what}: the minimum is above the maximum"),
            Self::OrderAndReorder => "keep_order and reorder contradict each other; choose one",
            Self::FullCorrelation => "a correlation must be below 100 %, or nothing ever changes",
            Self::StateOverfull => "the probabilities of leaving one state sum to more than 100 %",
            Self::ImpossibleBurst => "bursts of this length cannot give so high a loss",
            Self::ParetoIndex => "the Pareto index must be above 1, or the mean is infinite",
            Self::Table => "a distribution table needs 2 to 33 quantiles in ascending order",
            Self::Classes => "the number of traffic classes does not fit this port",
            Self::CutThroughRate => "cut-through needs the ingress rate and the port's own rate",
            Self::Policer => "the policer's burst is beyond 2 GB, or its rate is zero",
            Self::NeedsScheduled => {
                "several queues, CoDel or a processor path need a scheduled port"
            }
            Self::Slots => "the memory of a port must be a power of two of slots",
            Self::TooManySlots => "the queues of a scheduled port take at most 32768 slots",
            Self::Servers => "an operation names a server that the control plane does not have",
        };
        f.write_str(text)
    }
}

impl core::error::Error for ConfigError {}
