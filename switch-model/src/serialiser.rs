// SPDX-License-Identifier: MIT OR Apache-2.0
//! How long a frame occupies the wire, with no rounding that adds up.
//!
//! A byte takes 8e9/rate ns: a fraction. An [`Instant`] carries its remainder
//! along, so the k-th frame of a busy period ends at the exact sum, and only what is shown outside
//! is rounded down.

use crate::{ConfigError, Rate, Size, frame::LAST_DEPARTURE};

/// Longest frame that the model takes, bytes.
pub const MAX_FRAME: u32 = u16::MAX as u32;

/// What the wire adds to a frame.
///
/// `Framing::default()` adds nothing; [`ETHERNET`](Self::ETHERNET) is for lengths without the check
/// sequence, as a network interface sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize, serde::Serialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields, default))]
pub struct Framing {
    /// Bytes added to each frame before anything else (the check sequence, a tunnel's header).
    pub overhead: Size,
    /// Shorter frames are padded to this.
    pub min_frame: Size,
    /// Sent before each frame.
    pub preamble: Size,
    /// Silence after each frame, during which nothing else can start.
    pub gap: Size,
    /// Frames are cut into cells: payload of a cell; 0 if they are not.
    pub cell_payload: Size,
    /// Bytes that each cell takes on the wire.
    pub cell_size: Size,
}

impl Framing {
    /// Ethernet: 4 B check sequence, 64 B at least, 8 B preamble, 12 B gap.
    pub const ETHERNET: Self = Self {
        overhead: Size::bytes(4),
        min_frame: Size::bytes(64),
        preamble: Size::bytes(8),
        gap: Size::bytes(12),
        cell_payload: Size::bytes(0),
        cell_size: Size::bytes(0),
    };

    /// ATM: cells of 48 B in 53 B.
    pub const ATM: Self = Self {
        overhead: Size::bytes(0),
        min_frame: Size::bytes(0),
        preamble: Size::bytes(0),
        gap: Size::bytes(0),
        cell_payload: Size::bytes(48),
        cell_size: Size::bytes(53),
    };
}

/// An exact instant on one serialiser: `ns + rem / den`, where the [`Pace`] knows `den`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Instant {
    pub(crate) ns: u64,
    pub(crate) rem: u32,
}

impl Instant {
    /// In whole ns, rounded up.
    pub(crate) fn whole(self) -> u64 {
        self.ns + u64::from(self.rem > 0)
    }
}

/// A rate as a fraction, ns per byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    num: u64,
    den: u32,
    /// The next above 2^64 / den, for division by multiplication.
    inverse: u64,
}

impl Pace {
    /// `None` is a wire that takes no time.
    pub(crate) const fn new(rate: Option<Rate>) -> Result<Self, ConfigError> {
        const BYTE: u64 = 8_000_000_000;
        let Some(rate) = rate else {
            return Ok(Self { num: 0, den: 1000, inverse: inverse(1000) });
        };
        let rate = rate.as_bits();
        if rate == 0 {
            return Err(ConfigError::ZeroRate);
        }
        let (mut a, mut b) = (BYTE, rate);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        let (num, den) = (BYTE / a, rate / a);
        if den > u32::MAX as u64 {
            return Err(ConfigError::FineRate);
        }
        // Where there is room, in steps that whole picoseconds are made of, so that the phase of a
        // frame from a port of another rate is exact as well.
        let (mut a, mut b) = (den, 1000);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        let scale = if den * (1000 / a) <= u32::MAX as u64 { 1000 / a } else { 1 };
        let (num, den) = (num * scale, den * scale);
        Ok(Self { num, den: den as u32, inverse: inverse(den) })
    }

    /// `bytes` after `from`. At most 2^18 bytes, and `num` is below 2^43: no overflow before LAST_DEPARTURE.
    #[inline]
    pub(crate) fn after(self, from: Instant, bytes: u32) -> Instant {
        let num = u64::from(bytes) * self.num + u64::from(from.rem);
        let den = u64::from(self.den);
        // The inverse is too large by less than 1, so the product is too large by less than
        // num / 2^64 < 1: the quotient is right, or in rare cases one too large.
        let ns = ((u128::from(num) * u128::from(self.inverse)) >> 64) as u64;
        let (rem, above) = num.overflowing_sub(ns * den);
        let (ns, rem) = if above { one_less(ns, rem, den) } else { (ns, rem) };
        Instant { ns: (from.ns + ns).min(LAST_DEPARTURE), rem: rem as u32 }
    }

    /// The later of `free` and the whole nanosecond `ready`.
    #[inline]
    pub(crate) fn start(free: Instant, ready: u64) -> Instant {
        if free.ns >= ready { free } else { Instant { ns: ready, rem: 0 } }
    }

    /// `bytes` before `until`; `None` before the beginning of time.
    #[inline]
    pub(crate) fn before(self, until: Instant, bytes: u32) -> Option<Instant> {
        let num = u64::from(bytes) * self.num;
        let den = u64::from(self.den);
        let (ns, rem) = (num / den, (num % den) as u32);
        let borrow = until.rem < rem;
        let ns = until.ns.checked_sub(ns + u64::from(borrow))?;
        Some(Instant { ns, rem: if borrow { self.den - rem + until.rem } else { until.rem - rem } })
    }

    /// The instant `ps` picoseconds after `ns`.
    #[inline]
    pub(crate) fn instant(self, ns: u64, ps: u16) -> Instant {
        let rem = if ps == 0 { 0 } else { u64::from(ps.min(999)) * u64::from(self.den) / 1000 };
        Instant { ns, rem: rem as u32 }
    }

    /// The whole picoseconds of an instant beyond its nanosecond.
    pub(crate) fn phase_ps(self, instant: Instant) -> u16 {
        (u64::from(instant.rem) * 1000 / u64::from(self.den)) as u16
    }

    /// The same instant, told in another pace's remainder, rounded down.
    pub(crate) fn translate(self, instant: Instant, to: Self) -> Instant {
        let rem = u64::from(instant.rem) * u64::from(to.den) / u64::from(self.den);
        Instant { ns: instant.ns, rem: rem as u32 }
    }

    /// Whether a byte takes at least as long here as at `other`.
    pub(crate) fn not_faster_than(self, other: Self) -> bool {
        u128::from(self.num) * u128::from(other.den) >= u128::from(other.num) * u128::from(self.den)
    }
}

/// The next number above 2^64 / `den`, or that itself, for a `den` from 2 on.
const fn inverse(den: u64) -> u64 {
    u64::MAX / den + 1
}

/// Corrects a quotient that is one too large.
#[cold]
#[inline(never)]
const fn one_less(quotient: u64, rem: u64, den: u64) -> (u64, u64) {
    (quotient - 1, rem.wrapping_add(den))
}

/// [`Framing`], checked and ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wire {
    overhead: u32,
    min_frame: u32,
    /// Preamble and gap.
    around: u32,
    pub(crate) gap: u32,
    cell_payload: u32,
    cell_size: u32,
    /// All that is added to a frame that is not cut into cells, and the least that it takes.
    added: u32,
    least: u32,
}

impl Wire {
    pub(crate) fn new(framing: &Framing) -> Result<Self, ConfigError> {
        let small = |size: Size, name| match u32::try_from(size.as_bytes()) {
            Ok(bytes) if bytes <= 16_384 => Ok(bytes),
            _ => Err(ConfigError::TooLarge(name)),
        };
        let overhead = small(framing.overhead, "overhead")?;
        let min_frame = small(framing.min_frame, "min_frame")?;
        let preamble = small(framing.preamble, "preamble")?;
        let gap = small(framing.gap, "gap")?;
        let around = preamble + gap;
        let wire = Self {
            overhead,
            min_frame,
            around,
            gap,
            cell_payload: small(framing.cell_payload, "cell_payload")?,
            cell_size: small(framing.cell_size, "cell_size")?,
            added: overhead + around,
            least: min_frame + around,
        };
        if wire.cell_size < wire.cell_payload {
            return Err(ConfigError::Inverted("cell_payload and cell_size"));
        }
        if wire.cell_payload > 0 && wire.cell_size > 2 * wire.cell_payload {
            return Err(ConfigError::TooLarge("cell_size"));
        }
        Ok(wire)
    }

    /// Whether frames are cut into cells.
    pub(crate) fn cells(&self) -> bool {
        self.cell_payload > 0
    }

    /// Bytes that a frame of `len` occupies the wire for, the gap after it included.
    #[inline]
    pub(crate) fn bytes(&self, len: u32) -> u32 {
        if !self.cells() {
            return self.bytes_uncut(len);
        }
        let bytes = (len + self.overhead).max(self.min_frame);
        bytes.div_ceil(self.cell_payload) * self.cell_size + self.around
    }

    /// The same where frames are not cut into [`cells`](Self::cells).
    #[inline]
    pub(crate) fn bytes_uncut(&self, len: u32) -> u32 {
        (len + self.added).max(self.least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Division by multiplication must agree with division for every numerator that can occur.
    #[test]
    fn the_inverse_is_exact() {
        let mut corrected = 0;
        for rate in
            [1, 1_000, 7_777_000, 999_999_937, 2_500_000_000, 400_000_000_000, 4_294_967_291]
        {
            let pace = pace(Rate::bits(rate));
            let den = u64::from(pace.den);
            let check = |bytes: u32, rem: u32| {
                let num = u64::from(bytes) * pace.num + u64::from(rem);
                let at = pace.after(Instant { ns: 0, rem }, bytes);
                assert_eq!(
                    (at.ns, u64::from(at.rem)),
                    (num / den, num % den),
                    "{rate} {bytes} {rem}"
                );
                u32::from((u128::from(num) * u128::from(pace.inverse)) >> 64 != (num / den).into())
            };
            for n in 0..200_000u64 {
                let bytes = (crate::rng::mix(n) % u64::from(MAX_WIRE)) as u32;
                corrected += check(bytes, (crate::rng::mix(!n) % den) as u32);
                // The remainder that makes the quotient's fraction as large as it can be.
                let rest = u64::from(bytes) * pace.num % den;
                corrected += check(bytes, (den - 1 - rest) as u32);
            }
            corrected += check(MAX_WIRE, pace.den - 1);
        }
        assert!(corrected > 0, "no case needed the correction");
    }

    /// More bytes than any frame takes on the wire, with padding, cells, preamble and gap.
    const MAX_WIRE: u32 = 1 << 18;

    const ZERO: Instant = Instant { ns: 0, rem: 0 };

    fn pace(rate: Rate) -> Pace {
        Pace::new(Some(rate)).unwrap()
    }

    /// Wire times of the shortest and longest Ethernet frame, in picoseconds.
    #[test]
    fn wire_times() {
        for (gbit, short, long) in
            [(1, 672_000, 12_304_000), (10, 67_200, 1_230_400), (100, 6_720, 123_040)]
        {
            for (bytes, ps) in [(84, short), (1538, long)] {
                let pace = pace(Rate::gbit(gbit));
                let end = pace.after(ZERO, bytes);
                assert_eq!(end.ns * 1000 + u64::from(pace.phase_ps(end)), ps);
            }
        }
        let wire = Wire::new(&Framing::ETHERNET).unwrap();
        assert_eq!((wire.bytes(46), wire.bytes(60), wire.bytes(1514)), (84, 84, 1538));
        let cells = Wire::new(&Framing::ATM).unwrap();
        assert_eq!((cells.bytes(48), cells.bytes(49), cells.bytes(1500)), (53, 106, 32 * 53));
    }

    /// k frames end at floor(k times the exact time), for rates with all sorts of remainders.
    #[test]
    fn nothing_drifts() {
        for rate in [1, 3, 7_777_777, 999_999_937, 2_500_000_000, 10_000_001_000, 100_000_000_000] {
            let pace = pace(Rate::bits(rate));
            let mut at = ZERO;
            let mut total = 0u128;
            for k in 0..20_000u32 {
                let bytes = 64 + k * 7919 % 1475;
                at = pace.after(at, bytes);
                total += u128::from(bytes);
                let exact = total * 8_000_000_000 / u128::from(rate);
                assert_eq!(u128::from(at.ns), exact.min(u128::from(LAST_DEPARTURE)), "{rate} {k}");
            }
        }
        let mut at = ZERO;
        for _ in 0..1_000_000 {
            at = pace(Rate::gbit(100)).after(at, 84);
        }
        assert_eq!(at, Instant { ns: 6_720_000, rem: 0 });
    }

    #[test]
    fn before_undoes_after() {
        for rate in [3, 999_999_937, 10_000_000_000] {
            let pace = pace(Rate::bits(rate));
            let from = pace.after(Instant { ns: 1 << 50, rem: 0 }, 77);
            for bytes in [0, 1, 64, 1500, 65_535] {
                assert_eq!(pace.before(pace.after(from, bytes), bytes), Some(from));
            }
        }
        assert_eq!(pace(Rate::gbit(1)).before(ZERO, 1), None);
    }

    #[test]
    fn impossible_rates() {
        assert_eq!(Pace::new(Some(Rate::bits(0))), Err(ConfigError::ZeroRate));
        assert_eq!(Pace::new(Some(Rate::bits(10_000_000_001))), Err(ConfigError::FineRate));
        assert!(Pace::new(Some(Rate::bits(u64::from(u32::MAX)))).is_ok());
    }
}
