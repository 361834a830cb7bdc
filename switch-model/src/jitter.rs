// SPDX-License-Identifier: MIT OR Apache-2.0
//! How the delay of a line varies.
//!
//! Correlation is exact in both of its forms. Normal jitter follows an autoregression: z' = c z +
//! sqrt(1 - c^2) e, which stays normal. Any other jitter keeps its last value with probability c
//! and draws a new one otherwise, which leaves its distribution, whatever it is, as it was. In both
//! the correlation at distance k is c^k.

use crate::{ConfigError, Frames, Probability, Span, list::Few, sample};

/// The variable part of a line's delay; added to the constant part, never below zero in sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(tag = "distribution", rename_all = "kebab-case"))]
#[expect(clippy::large_enum_variant, reason = "descriptions live in place, nothing allocates")]
pub enum Jitter {
    /// None.
    #[default]
    None,
    /// Normal around the constant delay.
    Normal {
        /// Standard deviation.
        spread: Span,
        /// Correlation between neighbours.
        correlation: Probability,
    },
    /// Uniform around the constant delay.
    Uniform {
        /// Largest deviation to either side.
        spread: Span,
        /// Correlation between neighbours.
        correlation: Probability,
    },
    /// Exponential beyond the constant delay.
    Exponential {
        /// Mean, and standard deviation.
        mean: Span,
        /// Correlation between neighbours.
        correlation: Probability,
    },
    /// Pareto (heavy tail) beyond the constant delay.
    Pareto {
        /// Mean excess over the constant delay.
        mean: Span,
        /// Tail index, above 1; below 2 the variance is infinite.
        index: ParetoIndex,
        /// Correlation between neighbours.
        correlation: Probability,
    },
    /// By measured quantiles, beyond the constant delay.
    Table {
        /// Values at equally spaced probabilities, from the minimum to the maximum.
        quantiles: Few<Span, 33>,
        /// Correlation between neighbours.
        correlation: Probability,
    },
}

/// The tail index of a Pareto distribution, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParetoIndex(u32);

impl ParetoIndex {
    /// `n` thousandths.
    pub const fn thousandths(n: u32) -> Self {
        Self(n)
    }
}

impl core::str::FromStr for ParetoIndex {
    type Err = crate::UnitError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        crate::units::thousandths(text).map(Self)
    }
}

/// [`Jitter`], checked and ready.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct JitterModel {
    shape: Shape,
    correlation: Probability,
    /// sqrt(1 - c^2), Q32.
    innovation: u64,
}

#[expect(clippy::large_enum_variant, reason = "configurations live in place, nothing allocates")]
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    Uniform(i64),
    Curved(Curve),
}

#[expect(clippy::large_enum_variant, reason = "configurations live in place, nothing allocates")]
#[derive(Clone, Copy, Debug, PartialEq)]
enum Curve {
    Normal(u64),
    Exponential(u64),
    Pareto { scale: u64, inverse: u64 },
    Table(Few<i64, 33>),
}

/// Spans up to this (18 min) leave room for any deviation.
const MAX_SPREAD: u64 = 1 << 40;

impl Jitter {
    pub(crate) fn compile(&self) -> Result<Option<JitterModel>, ConfigError> {
        let bounded = |span: Span| match span.as_ns() {
            ns if ns <= MAX_SPREAD => Ok(ns),
            _ => Err(ConfigError::TooLarge("jitter")),
        };
        let (shape, correlation) = match *self {
            Self::None => return Ok(None),
            Self::Normal { spread, correlation } => {
                (Shape::Curved(Curve::Normal(bounded(spread)?)), correlation)
            }
            Self::Uniform { spread, correlation } => {
                (Shape::Uniform(bounded(spread)? as i64), correlation)
            }
            Self::Exponential { mean, correlation } => {
                (Shape::Curved(Curve::Exponential(bounded(mean)?)), correlation)
            }
            Self::Pareto { mean, index: ParetoIndex(index), correlation } => {
                if index <= 1000 {
                    return Err(ConfigError::ParetoIndex);
                }
                // Mean excess of a Pareto variable of minimum m and index a: m / (a - 1).
                let scale = u128::from(bounded(mean)?) * u128::from(index - 1000) / 1000;
                let scale = u64::try_from(scale).map_err(|_| ConfigError::TooLarge("jitter"))?;
                let inverse = ((1000u64 << 32) + u64::from(index) / 2) / u64::from(index);
                (Shape::Curved(Curve::Pareto { scale, inverse }), correlation)
            }
            Self::Table { quantiles, correlation } => {
                if quantiles.len() < 2 || !quantiles.is_sorted() {
                    return Err(ConfigError::Table);
                }
                let mut table = [0; 33];
                for (to, from) in table.iter_mut().zip(quantiles.iter()) {
                    *to = bounded(*from)? as i64;
                }
                let table = Few::new(&table[..quantiles.len()]).ok_or(ConfigError::Table)?;
                (Shape::Curved(Curve::Table(table)), correlation)
            }
        };
        let flat = match shape {
            Shape::Uniform(spread) => spread == 0,
            Shape::Curved(Curve::Normal(size) | Curve::Exponential(size)) => size == 0,
            Shape::Curved(Curve::Pareto { scale, .. }) => scale == 0,
            Shape::Curved(Curve::Table(_)) => false,
        };
        if flat {
            return Err(ConfigError::Zero("jitter"));
        }
        if correlation == Probability::ONE {
            return Err(ConfigError::FullCorrelation);
        }
        let c = u128::from(correlation.raw());
        let innovation = ((1u128 << 64) - c * c).isqrt() as u64;
        Ok(Some(JitterModel { shape, correlation, innovation }))
    }
}

/// The last value, so that the next can depend on it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct JitterMemory {
    /// Normal: the variable in Q27. Others: the upper half of the uniform draw.
    value: u32,
}

impl JitterModel {
    pub(crate) fn correlated(&self) -> bool {
        self.correlation > Probability::ZERO
    }

    /// The next deviation from the constant delay, ns. `fresh`: there is no last value.
    #[inline]
    pub(crate) fn next(&self, memory: &mut JitterMemory, fresh: bool, draw: u64) -> i64 {
        let bits = if self.correlation == Probability::ZERO {
            draw
        } else if let Shape::Curved(Curve::Normal(spread)) = self.shape {
            let mut z = i128::from(sample::normal(draw));
            if !fresh {
                let last = i128::from(memory.value as i32) * i128::from(self.correlation.raw());
                z = (last + z * i128::from(self.innovation) + (1 << 31)) >> 32;
            }
            let z = z.clamp(i32::MIN.into(), i32::MAX.into()) as i32;
            memory.value = z as u32;
            return sample::scaled(spread, z);
        } else {
            // The lower half decides whether to keep; the upper half is the value.
            if fresh || !self.correlation.hit(draw as u32) {
                memory.value = (draw >> 32) as u32;
            }
            u64::from(memory.value) << 32 | 1 << 31
        };
        self.value(bits)
    }

    /// The deviation for one uniform draw.
    #[inline(always)]
    pub(crate) fn value(&self, bits: u64) -> i64 {
        match &self.shape {
            Shape::Uniform(spread) => sample::uniform(-spread, *spread, bits),
            Shape::Curved(curve) => curve.value(bits),
        }
    }
}

impl Curve {
    #[inline(never)]
    fn value(&self, bits: u64) -> i64 {
        match self {
            Self::Normal(spread) => sample::scaled(*spread, sample::normal(bits)),
            Self::Exponential(mean) => sample::exponential(*mean, bits),
            Self::Pareto { scale, inverse } => sample::pareto_excess(*scale, *inverse, bits),
            Self::Table(quantiles) => sample::table(quantiles, bits),
        }
    }
}

/// Transmission opportunities: frames leave the line in bunches, as from a shared medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize, serde::Serialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct SlotsSpec {
    /// Shortest time between two openings.
    pub min_gap: Span,
    /// Longest; all between are equally likely. If equal to `min_gap`, openings are periodic.
    pub max_gap: Span,
    /// Frames that one opening takes, no limit if left out.
    #[cfg_attr(feature = "serde", serde(default))]
    pub frames: Option<Frames>,
    /// Bytes that one opening takes, no limit if left out.
    #[cfg_attr(feature = "serde", serde(default))]
    pub bytes: Option<crate::Size>,
}

/// [`SlotsSpec`], checked and ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Openings {
    min_gap: u64,
    max_gap: u64,
    frames: u32,
    bytes: u32,
}

/// The opening that frames are assigned to now.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Opening {
    at: u64,
    frames: u32,
    bytes: u32,
}

impl Openings {
    pub(crate) fn new(spec: &SlotsSpec) -> Result<Self, ConfigError> {
        let (min_gap, max_gap) = (spec.min_gap.as_ns(), spec.max_gap.as_ns());
        if min_gap == 0 {
            return Err(ConfigError::Zero("slots.min_gap"));
        }
        if max_gap > MAX_SPREAD {
            return Err(ConfigError::TooLarge("slots.max_gap"));
        }
        if min_gap > max_gap {
            return Err(ConfigError::Inverted("slots.min_gap and slots.max_gap"));
        }
        let frames = spec.frames.map_or(u32::MAX, Frames::count);
        let bytes = spec.bytes.map_or(u64::from(u32::MAX), |b| b.as_bytes());
        if frames == 0 || bytes == 0 {
            return Err(ConfigError::Zero("slots.frames and slots.bytes"));
        }
        Ok(Self { min_gap, max_gap, frames, bytes: u32::try_from(bytes).unwrap_or(u32::MAX) })
    }

    /// When a frame of `len` that is ready at `ready` leaves; never before an earlier frame.
    ///
    /// A frame longer than an opening's bytes takes one for itself.
    pub(crate) fn release(&self, opening: &mut Opening, ready: u64, len: u32, draw: u64) -> u64 {
        let room = opening.frames > 0 && opening.bytes >= len;
        if opening.at < ready || !room {
            opening.at = if self.min_gap == self.max_gap {
                let passed = ready.saturating_sub(opening.at).div_ceil(self.min_gap).max(1);
                opening.at.saturating_add(passed.saturating_mul(self.min_gap))
            } else {
                let gap = sample::uniform(self.min_gap as i64, self.max_gap as i64, draw) as u64;
                let next = opening.at.saturating_add(gap);
                if next >= ready { next } else { ready.saturating_add(gap) }
            }
            .min(crate::frame::LAST_ARRIVAL);
            (opening.frames, opening.bytes) = (self.frames, self.bytes);
        }
        opening.frames = opening.frames.saturating_sub(1);
        opening.bytes = opening.bytes.saturating_sub(len);
        opening.at
    }
}

/// Accepts a text (`"10 us"`, which is normal and uncorrelated) or a table.
#[cfg(feature = "serde")]
mod de {
    use super::{Few, Jitter, ParetoIndex};
    use crate::{Probability, Span};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Deserialize)]
    #[serde(tag = "distribution", rename_all = "kebab-case", deny_unknown_fields)]
    #[expect(clippy::large_enum_variant, reason = "descriptions live in place, nothing allocates")]
    enum Given {
        None,
        Normal {
            spread: Span,
            #[serde(default)]
            correlation: Probability,
        },
        Uniform {
            spread: Span,
            #[serde(default)]
            correlation: Probability,
        },
        Exponential {
            mean: Span,
            #[serde(default)]
            correlation: Probability,
        },
        Pareto {
            mean: Span,
            index: ParetoIndex,
            #[serde(default)]
            correlation: Probability,
        },
        Table {
            quantiles: Few<Span, 33>,
            #[serde(default)]
            correlation: Probability,
        },
    }

    impl<'de> Deserialize<'de> for Jitter {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            crate::units::text_or_table(
                from,
                "a time such as \"10 us\" (normal jitter), or a table with a distribution",
                |spread| Self::Normal { spread, correlation: Probability::ZERO },
                |table| match table {
                    Given::None => Self::None,
                    Given::Normal { spread, correlation } => Self::Normal { spread, correlation },
                    Given::Uniform { spread, correlation } => Self::Uniform { spread, correlation },
                    Given::Exponential { mean, correlation } => {
                        Self::Exponential { mean, correlation }
                    }
                    Given::Pareto { mean, index, correlation } => {
                        Self::Pareto { mean, index, correlation }
                    }
                    Given::Table { quantiles, correlation } => {
                        Self::Table { quantiles, correlation }
                    }
                },
            )
        }
    }

    impl<'de> Deserialize<'de> for ParetoIndex {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            crate::units::text(from, "a number such as \"2.5\", with at most three decimals")
        }
    }

    impl Serialize for ParetoIndex {
        fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            to.collect_str(&format_args!("{}.{:03}", self.0 / 1000, self.0 % 1000))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TDMA: SlotsSpec = SlotsSpec {
        min_gap: Span::us(10),
        max_gap: Span::us(10),
        frames: Some(Frames::new(2)),
        bytes: None,
    };

    #[test]
    fn periodic_openings_lie_on_their_grid() {
        let openings = Openings::new(&TDMA).unwrap();
        let mut opening = Opening::default();
        let mut release = |ready| openings.release(&mut opening, ready, 100, 0);
        let released = [1, 2, 3, 4, 10_000, 95_001].map(&mut release);
        assert_eq!(released, [10_000, 10_000, 20_000, 20_000, 30_000, 100_000]);
    }

    #[test]
    fn openings_take_bytes_too_and_random_gaps_stay_in_range() {
        let spec = SlotsSpec {
            max_gap: Span::us(20),
            frames: None,
            bytes: Some(crate::Size::bytes(250)),
            ..TDMA
        };
        let openings = Openings::new(&spec).unwrap();
        let mut opening = Opening::default();
        let mut last = 0;
        for n in 0..1000u64 {
            let at = openings.release(&mut opening, 0, 100, crate::rng::mix(n));
            let gap = at - last;
            assert!(if n % 2 == 0 { (10_000..=20_000).contains(&gap) } else { gap == 0 }, "{n}");
            last = at;
        }
    }
}
