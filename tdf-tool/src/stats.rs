// SPDX-License-Identifier: MIT OR Apache-2.0
//! The statistics that verdicts need.

/// The numbers of successes in `n` trials of probability `p` between which all but `risk` of all
/// runs lie, half of the rest on either side.
pub(crate) fn binomial_interval(n: u32, p: f64, risk: f64) -> (u32, u32) {
    if p <= 0.0 || n == 0 {
        return (0, 0);
    }
    if p >= 1.0 {
        return (n, n);
    }
    let odds = p / (1.0 - p);
    // In logarithms: the first term underflows where n is large.
    let mut log_term = f64::from(n) * (1.0 - p).ln();
    let (mut below, mut lo) = (0.0, None);
    for k in 0..n {
        below += log_term.exp();
        if lo.is_none() && below > risk / 2.0 {
            lo = Some(k);
        }
        if below >= 1.0 - risk / 2.0 {
            return (lo.unwrap_or(0), k);
        }
        log_term += (f64::from(n - k) / f64::from(k + 1) * odds).ln();
    }
    (lo.unwrap_or(n), n)
}

/// The two-sample Kolmogorov-Smirnov statistic: the greatest distance between the distributions.
pub(crate) fn ks_distance(a: &[i64], b: &[i64]) -> f64 {
    let sorted = |sample: &[i64]| {
        let mut sample = sample.to_vec();
        sample.sort_unstable();
        sample
    };
    let (a, b) = (sorted(a), sorted(b));
    let (mut i, mut j, mut most) = (0, 0, 0.0f64);
    while let (Some(&x), Some(&y)) = (a.get(i), b.get(j)) {
        let at = x.min(y);
        while a.get(i) == Some(&at) {
            i += 1;
        }
        while b.get(j) == Some(&at) {
            j += 1;
        }
        let distance = i as f64 / a.len() as f64 - j as f64 / b.len() as f64;
        most = most.max(distance.abs());
    }
    most
}

/// The distance that samples of these sizes from one distribution exceed once in a hundred times.
pub(crate) fn ks_limit(n: usize, m: usize) -> f64 {
    let (n, m) = (n as f64, m as f64);
    // sqrt(-ln(0.01/2)/2)
    1.627_62 * ((n + m) / (n * m)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::split_mix;

    #[test]
    fn a_binomial_interval_holds_what_it_promises() {
        for (n, p) in [(20, 0.5), (100, 0.01), (1000, 0.1), (5000, 0.3)] {
            let (lo, hi) = binomial_interval(n, p, 0.001);
            let (mean, sd) = (f64::from(n) * p, (f64::from(n) * p * (1.0 - p)).sqrt());
            assert!(f64::from(lo) <= mean && mean <= f64::from(hi));
            let z = (f64::from(hi) - mean) / sd;
            assert!((2.9..5.5).contains(&z), "{n} {p}: {lo} {hi}");
        }
        // P(0) = 0.9^2 = 0.81, P(1) = 0.18, P(2) = 0.01.
        assert_eq!(binomial_interval(2, 0.1, 0.1), (0, 1));
        assert_eq!(binomial_interval(2, 0.1, 0.001), (0, 2));
        assert_eq!(binomial_interval(7, 0.0, 0.001), (0, 0));
        assert_eq!(binomial_interval(7, 1.0, 0.001), (7, 7));
    }

    #[test]
    fn the_distance_of_samples_is_that_of_their_steps() {
        assert_eq!(ks_distance(&[1, 2, 3], &[1, 2, 3]), 0.0);
        assert_eq!(ks_distance(&[1, 2], &[3, 4]), 1.0);
        assert_eq!(ks_distance(&[1, 3], &[2, 4]), 0.5);
        assert_eq!(ks_distance(&[5, 5, 5, 9], &[5, 5, 9, 9]), 0.25);
    }

    #[test]
    fn equal_distributions_are_told_from_shifted_ones() {
        let mut state = 1;
        let mut sample = |shift: i64| -> Vec<i64> {
            (0..2000).map(|_| (split_mix(&mut state) % 10_000) as i64 + shift).collect()
        };
        let (a, b, c) = (sample(0), sample(0), sample(1000));
        let limit = ks_limit(2000, 2000);
        assert!(ks_distance(&a, &b) < limit && ks_distance(&a, &c) > limit);
    }
}
