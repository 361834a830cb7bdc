// SPDX-License-Identifier: MIT OR Apache-2.0
//! Randomness that depends on the seed, the frame and the purpose, and on nothing else.
//!
//! One SplitMix64 sequence per port. Frame `n` owns the 16 positions from `16 n`, and each purpose
//! one of them, so switching jitter on does not change which frames are lost, and no generator
//! state is kept. The sequence is frozen: a change would change every recorded experiment.

/// SplitMix64's increment.
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// SplitMix64's output function.
pub(crate) const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The seed of stream `index` of an experiment; unrelated for different indices.
pub const fn stream_seed(seed: u64, index: u64) -> u64 {
    mix(mix(seed.wrapping_add(GAMMA)).wrapping_add(index.wrapping_mul(GAMMA)))
}

/// What a draw is for. The numbers are frozen.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    Aqm = 1,
    Loss = 5,
    Jitter = 6,
    Copy = 7,
    CopyJitter = 8,
    Corrupt = 9,
    Reorder = 10,
    Slot = 11,
}

/// The draws of one frame.
///
/// Kept at the position that is asked for most, [`Purpose::Loss`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draws(u64);

impl Draws {
    /// Those of the first frame on the port seeded with `seed`.
    pub(crate) const fn first(seed: u64) -> Self {
        Self(seed.wrapping_add(GAMMA.wrapping_mul(Purpose::Loss as u64)))
    }

    /// Those of the frame `frames` later.
    pub(crate) const fn after(self, frames: u64) -> Self {
        Self(self.0.wrapping_add(frames.wrapping_mul(GAMMA.wrapping_mul(16))))
    }

    /// 64 uniform bits.
    pub(crate) const fn get(self, purpose: Purpose) -> u64 {
        let beyond = (purpose as u64).wrapping_sub(Purpose::Loss as u64);
        mix(self.0.wrapping_add(beyond.wrapping_mul(GAMMA)))
    }

    /// 32 uniform bits.
    pub(crate) const fn get32(self, purpose: Purpose) -> u32 {
        (self.get(purpose) >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published first outputs of SplitMix64 seeded with 1234567.
    #[test]
    fn it_is_splitmix64() {
        let published = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        for (n, &expected) in published.iter().enumerate() {
            assert_eq!(mix(1_234_567u64.wrapping_add(GAMMA.wrapping_mul(n as u64 + 1))), expected);
        }
        assert_eq!(Draws::first(1_234_567).get(Purpose::Aqm), published[0]);
        assert_eq!(Draws::first(1_234_567).get(Purpose::Loss), published[4]);
    }
}
