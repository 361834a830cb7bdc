// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random variables from uniform bits, by integer inverse distribution functions.
//!
//! 7.3 KiB of tables are shared by all ports: 5.1 for the normal quantile, 1 each for the binary
//! logarithm and its inverse, of which exponential and Pareto are made. All interpolate linearly.

mod normal;

/// Fractional bits of a normal variable.
const NORMAL_BITS: u32 = 27;

/// Steps per octave in the tables of log and power.
const STEPS: usize = 256;

/// log2(1 + i/256), Q31.
static LOG2: [u32; STEPS + 1] = log2_table();

/// 2^(i/256), Q30.
static EXP2: [u32; STEPS + 1] = exp2_table();

const fn log2_table() -> [u32; STEPS + 1] {
    let mut table = [0; STEPS + 1];
    let mut i = 0;
    while i <= STEPS {
        // One bit of the logarithm for each squaring; 40 bits, then rounded to 31.
        let mut x = ((STEPS + i) as u128) << (62 - 8);
        let mut log: u64 = 0;
        if i == STEPS {
            log = 1 << 40;
        } else {
            let mut bit = 0;
            while bit < 40 {
                x = (x * x) >> 62;
                log <<= 1;
                if x >= 2 << 62 {
                    x >>= 1;
                    log |= 1;
                }
                bit += 1;
            }
        }
        table[i] = ((log + (1 << 8)) >> 9) as u32;
        i += 1;
    }
    table
}

const fn exp2_table() -> [u32; STEPS + 1] {
    // root[k] = 2^(2^-(k+1)), Q62.
    let mut root = [0u128; 8];
    let mut r: u128 = 2 << 62;
    let mut k = 0;
    while k < 8 {
        r = (r << 62).isqrt();
        root[k] = r;
        k += 1;
    }
    let mut table = [0; STEPS + 1];
    let mut i = 0;
    while i <= STEPS {
        let mut x: u128 = 1 << 62;
        let mut k = 0;
        while k < 8 {
            if i & (STEPS >> (k + 1)) != 0 {
                x = (x * root[k]) >> 62;
            }
            k += 1;
        }
        if i == STEPS {
            x = 2 << 62;
        }
        table[i] = ((x + (1 << 31)) >> 32) as u32;
        i += 1;
    }
    table
}

/// A standard normal variable, Q27, from uniform `bits`.
#[inline]
pub(crate) fn normal(bits: u64) -> i32 {
    let tail = (bits << 1) | 1;
    let octave = tail.leading_zeros();
    let magnitude = if octave >= normal::OCTAVES {
        normal::UPPER_QUANTILES[normal::OCTAVES as usize * 32]
    } else {
        // Below the leading one: 5 bits of step, then 26 of the place within it.
        let below = tail << (octave + 1);
        let step = (below >> 59) as usize;
        let place = i64::from((below >> 33) as u32 & 0x3FF_FFFF);
        let high = octave as usize * 32 + 32 - step;
        let (from, to) = (normal::UPPER_QUANTILES[high], normal::UPPER_QUANTILES[high - 1]);
        let (from, to) = (i64::from(from), i64::from(to));
        (from + (((to - from) * place + (1 << 25)) >> 26)) as i32
    };
    if bits >> 63 == 0 { magnitude } else { -magnitude }
}

/// `scale` times a standard normal variable in Q27, to the nearest integer.
#[inline]
pub(crate) fn scaled(scale: u64, normal: i32) -> i64 {
    let product = i128::from(scale) * i128::from(normal);
    ((product + (1 << (NORMAL_BITS - 1))) >> NORMAL_BITS) as i64
}

/// -log2 of the uniform variable `bits` in (0, 1), Q31.
#[inline]
fn minus_log2(bits: u64) -> u64 {
    let bits = bits | 1;
    let octave = bits.leading_zeros();
    let below = (bits << octave) << 1;
    let step = (below >> 56) as usize;
    let place = (below >> 24) as u32 as u64;
    let (from, to) = (u64::from(LOG2[step]), u64::from(LOG2[step + 1]));
    let log = from + (((to - from) * place) >> 32);
    (u64::from(octave + 1) << 31) - log
}

/// An exponential variable of mean `mean`.
#[inline]
pub(crate) fn exponential(mean: u64, bits: u64) -> i64 {
    /// ln 2, Q32.
    const LN2: u128 = 2_977_044_472;
    ((u128::from(mean) * u128::from(minus_log2(bits)) * LN2 + (1 << 62)) >> 63) as i64
}

/// `scale` times (u^(-1/index) - 1), Pareto's excess over its minimum; `inverse` is 1/index in Q32.
#[inline]
pub(crate) fn pareto_excess(scale: u64, inverse: u64, bits: u64) -> i64 {
    // At most 64 octaves of u, index above 1: the exponent is below 2^38, the power below 2^64.
    let exponent = ((u128::from(minus_log2(bits)) * u128::from(inverse)) >> 31) as u64;
    let step = (exponent >> 24) as usize & (STEPS - 1);
    let place = exponent & 0xFF_FFFF;
    let (from, to) = (u64::from(EXP2[step]), u64::from(EXP2[step + 1]));
    // Q54, to keep the interpolation's bits.
    let fraction = (from << 24) + (to - from) * place;
    let whole = ((exponent >> 32) as u32).min(60);
    let excess = (u128::from(fraction) << whole) - (1 << 54);
    match excess.checked_mul(u128::from(scale)) {
        Some(product) => i64::try_from((product + (1 << 53)) >> 54).unwrap_or(i64::MAX),
        None => i64::MAX,
    }
}

/// A value between `low` and `high`, both included, all equally likely.
#[inline]
pub(crate) fn uniform(low: i64, high: i64, bits: u64) -> i64 {
    let width = high.abs_diff(low) as u128 + 1;
    low.wrapping_add(((width * u128::from(bits)) >> 64) as i64)
}

/// The value at `bits` between equally spaced quantiles, the first and last being the extremes.
#[inline]
pub(crate) fn table(quantiles: &[i64], bits: u64) -> i64 {
    let Some(last) = quantiles.len().checked_sub(1) else { return 0 };
    let position = last as u128 * u128::from(bits);
    let step = (position >> 64) as usize;
    let place = (position as u64 >> 32) as i128;
    let from = i128::from(quantiles[step]);
    let to = i128::from(quantiles[(step + 1).min(last)]);
    (from + (((to - from) * place + (1 << 31)) >> 32)) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean and standard deviation of `f` over 2^20 equally spaced quantiles: no chance involved.
    fn moments(f: impl Fn(u64) -> f64) -> (f64, f64) {
        const N: u64 = 1 << 20;
        let at = |i: u64| f((i << 44) | (1 << 43));
        let mean = (0..N).map(at).sum::<f64>() / N as f64;
        let var = (0..N).map(|i| (at(i) - mean).powi(2)).sum::<f64>() / N as f64;
        (mean, var.sqrt())
    }

    /// The density, integrated by Simpson's rule between neighbouring entries, must add up to the
    /// difference of their tail probabilities.
    #[test]
    fn every_normal_quantile_is_right() {
        let density = |z: f64| (-z * z / 2.0).exp() / (2.0 * core::f64::consts::PI).sqrt();
        let z = |i: usize| f64::from(normal::UPPER_QUANTILES[i]) / (1u64 << NORMAL_BITS) as f64;
        assert_eq!(normal::UPPER_QUANTILES[0], 0);
        for i in 0..normal::UPPER_QUANTILES.len() - 1 {
            let (octave, j) = (i as i32 / 32, 32 - i as i32 % 32);
            let step = 2f64.powi(-(octave + 2)) / 32.0;
            let (a, b) = (z(i), z(i + 1));
            let n = 64;
            let h = (b - a) / f64::from(n);
            let inner = (1..n)
                .map(|k| density(a + h * f64::from(k)) * if k % 2 == 1 { 4.0 } else { 2.0 })
                .sum::<f64>();
            let area = (density(a) + inner + density(b)) * h / 3.0;
            // Two roundings of 2^-28 against the spacing of the entries.
            let tolerance = 2f64.powi(-27) / (b - a);
            assert!(
                (area / step - 1.0).abs() < tolerance + 1e-9,
                "entry {i}, j {j}: {area} {step}"
            );
        }
    }

    #[test]
    fn normal_moments_and_tails() {
        let unit = |bits| f64::from(normal(bits)) / (1u64 << NORMAL_BITS) as f64;
        let (mean, sd) = moments(unit);
        assert!(mean.abs() < 1e-9, "mean {mean}");
        assert!((sd - 1.0).abs() < 1e-4, "sd {sd}");
        assert!(unit(0) > 7.2 && unit(1 << 63) < -7.2);
        // Symmetric: flipping the sign bit negates.
        for bits in [0, 1, 12345, u64::MAX >> 1, 1 << 50] {
            assert_eq!(normal(bits), -normal(bits | 1 << 63));
        }
        // Known quantiles.
        for (p, z) in [(0.025, 1.959_964), (0.001, 3.090_232), (1e-6, 4.753_424), (1e-9, 5.997_807)]
        {
            let bits = (p * 2f64.powi(64)) as u64;
            assert!((unit(bits) - z).abs() < 1e-4, "{p}: {}", unit(bits));
        }
    }

    #[test]
    fn normal_is_monotone_across_steps_and_octaves() {
        let mut previous = i32::MAX;
        for i in 0..1u64 << 18 {
            let z = normal(i << 45);
            assert!(z <= previous);
            previous = z;
        }
    }

    #[test]
    fn exponential_moments_and_tails() {
        const MEAN: u64 = 1_000_000_000;
        let (mean, _) = moments(|bits| exponential(MEAN, bits) as f64);
        assert!((mean / MEAN as f64 - 1.0).abs() < 1e-4, "mean {mean}");
        for bits in [1u64 << 63, 1 << 60, 1 << 44, 1 << 20, 0xDEAD_BEEF_0000_0001] {
            let exact = -(bits as f64 / 2f64.powi(64)).ln();
            let ours = exponential(MEAN, bits) as f64 / MEAN as f64;
            assert!((ours - exact).abs() < 3e-6 * exact.max(1.0), "{bits:x}: {ours} {exact}");
        }
        // The variance needs its tail: 10^-6 of the probability carries 4e-4 of the second moment.
        let second = |bits: u64| (exponential(MEAN, bits) as f64 / MEAN as f64).powi(2);
        let octaves: f64 = (0..40)
            .map(|octave| {
                let low = 1u64 << (63 - octave);
                let n = 1024;
                let sum: f64 = (0..n).map(|k| second(low + low / n * k + low / n / 2)).sum();
                sum / n as f64 * 2f64.powi(-(octave + 1))
            })
            .sum();
        assert!(((octaves - 1.0).sqrt() - 1.0).abs() < 1e-4, "sd {}", (octaves - 1.0).sqrt());
    }

    #[test]
    fn pareto_quantiles() {
        const SCALE: u64 = 1_000_000_000;
        for index in [1.5f64, 2.5, 3.0] {
            let inverse = (2f64.powi(32) / index).round() as u64;
            for p in [0.9, 0.5, 0.1, 1e-3, 1e-6, 1e-9] {
                let bits = (p * 2f64.powi(64)) as u64;
                let exact = SCALE as f64 * (p.powf(-1.0 / index) - 1.0);
                let ours = pareto_excess(SCALE, inverse, bits) as f64;
                assert!((ours / exact - 1.0).abs() < 1e-4, "{index} {p}: {ours} {exact}");
            }
        }
        // The worst input, with the slowest tail and the largest scale, saturates.
        assert_eq!(pareto_excess(u64::MAX, (1 << 32) - 1, 0), i64::MAX);
    }

    #[test]
    fn uniform_and_table_reach_their_ends() {
        assert_eq!((uniform(-5, 5, 0), uniform(-5, 5, u64::MAX)), (-5, 5));
        let (mean, sd) = moments(|bits| uniform(-1_000_000, 1_000_000, bits) as f64);
        assert!(mean.abs() < 1.0 && (sd / (1e6 / 3f64.sqrt()) - 1.0).abs() < 1e-5);
        let quantiles = [-10, 0, 100];
        assert_eq!((table(&quantiles, 0), table(&quantiles, u64::MAX)), (-10, 100));
        assert_eq!(table(&quantiles, 1 << 63), 0);
        assert_eq!(table(&quantiles, 3 << 62), 50);
    }
}
