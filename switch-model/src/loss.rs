// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which frames something happens to: independently, in bursts, or by a Markov chain.
//!
//! Correlation here is exact. A two-state chain with P(hit after hit) = p + c (1 - p) and P(hit
//! after miss) = p (1 - c) hits with probability p in the long run and has correlation c^k at
//! distance k. (Filtering the uniform draw instead, as is customary, destroys p: what is meant to
//! be 1 % at 25 % correlation becomes 0.000 %.)

use crate::{
    ConfigError, Probability,
    rng::{Draws, Purpose},
};

/// An event that happens to some frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Chance {
    /// In the long run, to this part of all frames.
    pub probability: Probability,
    /// Correlation between neighbouring frames.
    pub correlation: Probability,
}

impl Chance {
    /// Independent from frame to frame.
    pub const fn of(probability: Probability) -> Self {
        Self { probability, correlation: Probability::ZERO }
    }

    pub(crate) fn chain(&self) -> Result<Chain, ConfigError> {
        let (p, c) = (self.probability, self.correlation);
        if c == Probability::ONE {
            return Err(ConfigError::FullCorrelation);
        }
        let after_hit = Probability::from_raw(p.raw() + c.times(p.complement()).raw());
        Ok(Chain { after: [p.times(c.complement()), after_hit] })
    }
}

/// A [`Chance`], ready: the two rows of its transition matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    /// After a miss, and after a hit.
    after: [Probability; 2],
}

impl Chain {
    pub(crate) fn possible(&self) -> bool {
        self.after[0] > Probability::ZERO
    }

    /// Whether it happens; bit `bit` of `memory` is whether it did the last time.
    #[inline]
    pub(crate) fn happens(&self, memory: &mut u8, bit: u8, draw: u32) -> bool {
        let hit = self.after[usize::from(*memory & bit != 0)].hit(draw);
        *memory = if hit { *memory | bit } else { *memory & !bit };
        hit
    }
}

/// How a line loses frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(tag = "model", rename_all = "kebab-case"))]
pub enum Loss {
    /// Not at all.
    #[default]
    None,
    /// By a chance per frame, with or without correlation.
    Random {
        /// In the long run, this part of all frames.
        probability: Probability,
        /// Correlation between neighbours.
        correlation: Probability,
    },
    /// In bursts of geometric length (a Gilbert model, by what can be measured).
    Bursty {
        /// In the long run, this part of all frames.
        probability: Probability,
        /// Mean number of frames lost in a row.
        burst: crate::Frames,
    },
    /// Gilbert-Elliott: a good and a bad state, each with its own loss.
    GilbertElliott {
        /// From good to bad.
        p: Probability,
        /// From bad to good.
        r: Probability,
        /// Loss in the good state.
        good: Probability,
        /// Loss in the bad state.
        bad: Probability,
    },
    /// Four states: 1 received, 2 received within a burst, 3 lost within a burst, 4 lost alone.
    FourState {
        /// From 1 to 3.
        p13: Probability,
        /// From 3 to 1.
        p31: Probability,
        /// From 3 to 2.
        p32: Probability,
        /// From 2 to 3.
        p23: Probability,
        /// From 1 to 4; from 4 it always goes back to 1.
        p14: Probability,
    },
}

impl Loss {
    /// Independent loss.
    pub const fn random(probability: Probability) -> Self {
        Self::Random { probability, correlation: Probability::ZERO }
    }

    pub(crate) fn compile(&self) -> Result<LossModel, ConfigError> {
        Ok(match *self {
            Self::None => LossModel::Never,
            Self::Random { probability, correlation } => {
                let chain = Chance { probability, correlation }.chain()?;
                if chain.possible() { LossModel::Chain(chain) } else { LossModel::Never }
            }
            Self::Bursty { probability, burst } => {
                let lost = probability.raw();
                let kept = probability.complement().raw();
                if burst.count() == 0 {
                    return Err(ConfigError::Zero("burst"));
                }
                // Balance of the chain: p kept = r lost, with r = 1 / burst.
                if lost > kept * u64::from(burst.count()) || kept == 0 {
                    return Err(ConfigError::ImpossibleBurst);
                }
                let p = Probability::ratio(lost, kept * u64::from(burst.count()));
                let r = Probability::ratio(1, u64::from(burst.count()));
                LossModel::Chain(Chain { after: [p, r.complement()] })
            }
            Self::GilbertElliott { p, r, good, bad } => {
                LossModel::GilbertElliott { p, r, good, bad }
            }
            Self::FourState { p13, p31, p32, p23, p14 } => {
                if p13.raw() + p14.raw() > Probability::ONE.raw()
                    || p31.raw() + p32.raw() > Probability::ONE.raw()
                {
                    return Err(ConfigError::StateOverfull);
                }
                let p13_14 = Probability::from_raw(p13.raw() + p14.raw());
                let p31_32 = Probability::from_raw(p31.raw() + p32.raw());
                LossModel::FourState { p13, p13_14, p31, p31_32, p23 }
            }
        })
    }
}

/// [`Loss`], checked and ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LossModel {
    Never,
    Chain(Chain),
    GilbertElliott {
        p: Probability,
        r: Probability,
        good: Probability,
        bad: Probability,
    },
    FourState {
        p13: Probability,
        p13_14: Probability,
        p31: Probability,
        p31_32: Probability,
        p23: Probability,
    },
}

impl LossModel {
    /// Whether the next frame is lost. One draw: its halves decide the state and the loss in it.
    #[inline]
    pub(crate) fn loses(&self, state: &mut u8, draws: Draws) -> bool {
        match self {
            Self::Chain(chain) => {
                let draw = draws.get32(Purpose::Loss);
                let lost = chain.after[usize::from(*state & 1)].hit(draw);
                *state = lost.into();
                lost
            }
            Self::Never => false,
            _ => self.loses_by_state(state, draws.get(Purpose::Loss)),
        }
    }

    #[inline(never)]
    fn loses_by_state(&self, state: &mut u8, draw: u64) -> bool {
        let (moves, loses) = ((draw >> 32) as u32, draw as u32);
        match self {
            Self::Never | Self::Chain(_) => false,
            Self::GilbertElliott { p, r, good, bad } => {
                *state ^= u8::from(if *state == 0 { p } else { r }.hit(moves));
                if *state == 0 { good } else { bad }.hit(loses)
            }
            Self::FourState { p13, p13_14, p31, p31_32, p23 } => {
                *state = match *state {
                    0 if p13.hit(moves) => 2,
                    0 if p13_14.hit(moves) => 3,
                    1 if p23.hit(moves) => 2,
                    2 if p31.hit(moves) => 0,
                    2 if p31_32.hit(moves) => 1,
                    3 => 0,
                    same => same & 3,
                };
                *state >= 2
            }
        }
    }
}

/// Accepts a text (`"0.1 %"`) or a table.
#[cfg(feature = "serde")]
mod de {
    use super::{Chance, Loss};
    use crate::{Frames, Probability};
    use serde::{Deserialize, Deserializer};

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct ChanceTable {
        probability: Probability,
        #[serde(default)]
        correlation: Probability,
    }

    #[derive(Deserialize)]
    #[serde(tag = "model", rename_all = "kebab-case", deny_unknown_fields)]
    enum LossTable {
        None,
        Random {
            probability: Probability,
            #[serde(default)]
            correlation: Probability,
        },
        Bursty {
            probability: Probability,
            burst: Frames,
        },
        GilbertElliott {
            p: Probability,
            r: Probability,
            #[serde(default)]
            good: Probability,
            #[serde(default = "certain")]
            bad: Probability,
        },
        FourState {
            p13: Probability,
            p31: Probability,
            #[serde(default)]
            p32: Probability,
            #[serde(default)]
            p23: Probability,
            #[serde(default)]
            p14: Probability,
        },
    }

    fn certain() -> Probability {
        Probability::ONE
    }

    impl<'de> Deserialize<'de> for Chance {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            crate::units::text_or_table(
                from,
                "a probability such as \"0.1 %\", or a table with probability and correlation",
                Self::of,
                |ChanceTable { probability, correlation }| Self { probability, correlation },
            )
        }
    }

    impl<'de> Deserialize<'de> for Loss {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            crate::units::text_or_table(
                from,
                "a probability such as \"0.1 %\", or a table with a model",
                Self::random,
                |table| match table {
                    LossTable::None => Self::None,
                    LossTable::Random { probability, correlation } => {
                        Self::Random { probability, correlation }
                    }
                    LossTable::Bursty { probability, burst } => Self::Bursty { probability, burst },
                    LossTable::GilbertElliott { p, r, good, bad } => {
                        Self::GilbertElliott { p, r, good, bad }
                    }
                    LossTable::FourState { p13, p31, p32, p23, p14 } => {
                        Self::FourState { p13, p31, p32, p23, p14 }
                    }
                },
            )
        }
    }
}
