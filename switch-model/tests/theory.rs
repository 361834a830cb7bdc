// SPDX-License-Identifier: MIT OR Apache-2.0
//! Distributions against closed forms. All seeds are fixed, so a failure is a change, not bad luck;
//! each test says how far off the model could be without being noticed.

use switch_model::{
    Chance, DropReason, Frame, Frames, Jitter, Loss, ParetoIndex, Port, PortConfig, PortSpec,
    Probability, Rate, Slot, Span, Verdict, stream_seed,
};

/// 1538 B at 1 Gbit/s.
const SERVICE: f64 = 12_304.0;
const FRAMES: u64 = 10_000_000;

/// A generator of the test's own, so that no port is judged by its own draws.
struct Source(u64);

impl Source {
    /// Uniform in (0, 1].
    fn uniform(&mut self) -> f64 {
        self.0 = stream_seed(self.0, 7);
        ((self.0 >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -self.uniform().ln() * mean
    }
}

fn build(spec: PortSpec) -> PortConfig {
    spec.build().expect("a valid description")
}

fn port(config: &PortConfig, slots: usize) -> Port<&PortConfig, Vec<Slot>> {
    Port::new(config, 42, vec![Slot::EMPTY; slots]).expect("a port")
}

/// Offers Poisson traffic; gives the mean waiting time and the lost part, each by 20 batches.
fn queue(load: f64, fixed: bool, limit: Option<u32>) -> (Vec<f64>, Vec<f64>) {
    let spec = PortSpec {
        rate: Some(Rate::gbit(1)),
        queue_frames: limit.map(Frames::new),
        ..PortSpec::IDEAL
    };
    let config = build(spec);
    let mut port = port(&config, 4096);
    let mut source = Source(stream_seed(load.to_bits(), u64::from(fixed)));
    let mut clock = 0.0;
    let (mut waits, mut losses) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let (mut wait, mut lost, mut served) = (0u64, 0u64, 0u64);
        for _ in 0..FRAMES / 20 {
            clock += source.exponential(SERVICE / load);
            let now = clock as u64;
            let len = if fixed { 1538 } else { source.exponential(1538.0).round().max(1.0) as u32 };
            match port.offer(now, Frame::new(0, len)) {
                Verdict::Deliver(fate) => {
                    wait += fate.deliver_at - now - u64::from(len) * 8;
                    served += 1;
                }
                _ => lost += 1,
            }
            while port.pop_due(now).is_some() {}
        }
        waits.push(wait as f64 / served as f64);
        losses.push(lost as f64 * 20.0 / FRAMES as f64);
    }
    (waits, losses)
}

/// Mean of the batches and the standard deviation of that mean.
fn estimate(batches: &[f64]) -> (f64, f64) {
    let n = batches.len() as f64;
    let mean = batches.iter().sum::<f64>() / n;
    let var = batches.iter().map(|b| (b - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, (var / n).sqrt())
}

/// Waiting time in M/D/1: rho S / 2 (1 - rho). Bands: 4 sigma at 10^7 frames.
#[test]
fn deterministic_service() {
    for (load, theory, band) in
        [(0.5, 6_152.0, 0.0045), (0.8, 24_608.0, 0.0093), (0.9, 55_368.0, 0.019)]
    {
        let (wait, _) = estimate(&queue(load, true, None).0);
        assert!((wait / theory - 1.0).abs() < band, "{load}: {wait} {theory}");
    }
}

/// Waiting time in M/M/1: rho S / (1 - rho). Bands: 4 sigma at 10^7 frames.
#[test]
fn exponential_service() {
    for (load, theory, band) in
        [(0.5, 12_304.0, 0.0076), (0.8, 49_216.0, 0.016), (0.9, 110_736.0, 0.031)]
    {
        let (wait, _) = estimate(&queue(load, false, None).0);
        assert!((wait / theory - 1.0).abs() < band, "{load}: {wait} {theory}");
    }
}

/// Loss with room for K frames, the one in service among them. The band is 4 sigma by batch means,
/// and must be below 3.5 % of the value (7 % for the rarest), or the test would say nothing.
#[test]
fn bounded_queues() {
    let cases = [
        (false, 0.8, 10, 0.023_492_9),
        (false, 1.0, 10, 0.090_909_1),
        (false, 1.2, 10, 0.192_586_5),
        (true, 0.8, 5, 0.035_290_4),
        (true, 0.8, 10, 0.003_639_2),
        (true, 0.95, 20, 0.008_068_7),
        (true, 1.2, 10, 0.170_910_8),
    ];
    for (fixed, load, room, theory) in cases {
        let (loss, sd) = estimate(&queue(load, fixed, Some(room)).1);
        let power = if theory < 0.01 { 0.07 } else { 0.035 };
        assert!(4.0 * sd < power * theory, "{load} {room}: too noisy, {sd}");
        assert!((loss - theory).abs() < 4.0 * sd, "{load} {room}: {loss} {theory} {sd}");
    }
}

/// Which of 10^7 frames are lost.
fn losses(loss: Loss) -> Vec<bool> {
    let config = build(PortSpec { loss, ..PortSpec::IDEAL });
    let mut port = port(&config, 4);
    (0..FRAMES)
        .map(|now| {
            let verdict = port.offer(now, Frame::new(0, 100));
            port.pop_due(now);
            verdict == Verdict::Drop(DropReason::Loss)
        })
        .collect()
}

fn part(hits: &[bool]) -> f64 {
    hits.iter().filter(|&&hit| hit).count() as f64 / hits.len() as f64
}

/// Mean number of hits in a row.
fn burst(hits: &[bool]) -> f64 {
    let starts = hits.windows(2).filter(|pair| !pair[0] && pair[1]).count();
    hits.iter().filter(|&&hit| hit).count() as f64 / starts as f64
}

/// Correlation of an indicator at distance `lag`.
fn correlation(hits: &[bool], lag: usize) -> f64 {
    let p = part(hits);
    let both = hits.iter().zip(&hits[lag..]).filter(|(a, b)| **a && **b).count();
    (both as f64 / (hits.len() - lag) as f64 - p * p) / (p * (1.0 - p))
}

fn percent(text: &str) -> Probability {
    text.parse().expect("a probability")
}

/// Gilbert-Elliott. sd of the loss at 10^7 is 0.0377 points (variance 17.18 times the binomial's):
/// the band is 4 of these. Bursts: 82 600 of sd 9.5, so 4 sigma of the mean are 0.13.
#[test]
fn gilbert_elliott() {
    let model = |p, r, good, bad| Loss::GilbertElliott {
        p: percent(p),
        r: percent(r),
        good: percent(good),
        bad: percent(bad),
    };
    let lost = losses(model("1 %", "10 %", "0 %", "100 %"));
    assert!((part(&lost) - 1.0 / 11.0).abs() < 4.0 * 0.000_377, "{}", part(&lost));
    assert!((burst(&lost) - 10.0).abs() < 0.13, "{}", burst(&lost));
    for lag in [1, 2, 5, 10] {
        let (ours, theory) = (correlation(&lost, lag), 0.89f64.powi(lag as i32));
        assert!((ours - theory).abs() < 0.01, "lag {lag}: {ours} {theory}");
    }
    // 0.8 * 1 % + 0.2 * 70 %.
    let lost = losses(model("5 %", "20 %", "1 %", "70 %"));
    assert!((part(&lost) - 0.148).abs() < 0.0012, "{}", part(&lost));
    // The same by its effect: 0.1 % in bursts of 10. 4 sigma of bursts of 10: 4 sqrt(19 p / n).
    let bursty = Loss::Bursty { probability: percent("0.1 %"), burst: Frames::new(10) };
    let lost = losses(bursty);
    assert!((part(&lost) - 0.001).abs() < 0.000_175, "{}", part(&lost));
    assert!((burst(&lost) - 10.0).abs() < 1.3, "{}", burst(&lost));
}

/// Four states; loss is the share of states 3 and 4. Bursts inflate the variance about 20 times:
/// 4 sigma are 0.13 points.
#[test]
fn four_states() {
    let lost = losses(Loss::FourState {
        p13: percent("1 %"),
        p31: percent("20 %"),
        p32: percent("5 %"),
        p23: percent("30 %"),
        p14: percent("0.5 %"),
    });
    assert!((part(&lost) - 0.051_724_1).abs() < 0.0013, "{}", part(&lost));
}

/// Correlated loss keeps its probability. Netem's recursion, beside it, does not.
#[test]
fn correlated_loss() {
    for (probability, correlated, mean_burst) in [("1 %", "25 %", 1.3468), ("10 %", "50 %", 2.2222)]
    {
        let (p, c) = (percent(probability), percent(correlated));
        let lost = losses(Loss::Random { probability: p, correlation: c });
        let (p, c) = (p.raw() as f64 / 2f64.powi(32), c.raw() as f64 / 2f64.powi(32));
        let sd = (p * (1.0 - p) * (1.0 + c) / (1.0 - c) / FRAMES as f64).sqrt();
        assert!((part(&lost) - p).abs() < 4.0 * sd, "{}", part(&lost));
        assert!((correlation(&lost, 1) - c).abs() < 0.01, "{}", correlation(&lost, 1));
        // About 10^5 (10^6) bursts, geometric: 4 sigma are 0.9 % (0.7 %).
        assert!((burst(&lost) / mean_burst - 1.0).abs() < 0.009, "{}", burst(&lost));
    }
    // x = u (1 - c) + x' c against p: 1 % at 25 % loses nothing in 2 million frames.
    let (mut source, mut x, mut netem) = (Source(1), 0.5, 0u32);
    for _ in 0..2_000_000 {
        x = source.uniform() * 0.75 + x * 0.25;
        netem += u32::from(x < 0.01);
    }
    assert!(netem < 20, "netem's own recursion: {netem}");
    let ours = losses(Loss::Random { probability: percent("1 %"), correlation: percent("25 %") });
    assert!(ours[..2_000_000].iter().filter(|&&lost| lost).count() > 19_000);
}

/// Deviations from the constant delay of 10^6 frames, so far apart that none meets another.
fn deviations(jitter: Jitter, keep_order: bool) -> Vec<f64> {
    let delay = Span::ms(100);
    let config = build(PortSpec { delay, jitter, keep_order, ..PortSpec::IDEAL });
    let mut port = port(&config, 4);
    let mut now = 0;
    (0..1_000_000)
        .map(|tag| {
            now += 1_000_000_000;
            let Verdict::Deliver(fate) = port.offer(now, Frame::new(tag, 100)) else {
                panic!("nothing is lost");
            };
            assert!(port.pop_due(fate.deliver_at).is_some());
            fate.deliver_at as f64 - (now + delay.as_ns()) as f64
        })
        .collect()
}

fn moments(values: &[f64]) -> (f64, f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let var = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    let lag = values.windows(2).map(|w| (w[0] - mean) * (w[1] - mean)).sum::<f64>() / n;
    (mean, var.sqrt(), lag / var)
}

/// The samplers' own moments are tested without chance beside them; here they go through a port.
/// 10^6 draws: 4 sigma of the mean are 0.4 % of the spread, of the spread 0.3 % (exponential 0.6 %).
#[test]
fn jitter_moments_and_correlation() {
    const MS: u64 = 1_000_000;
    let spread = Span::ms(1);
    for text in ["0 %", "25 %", "90 %"] {
        let correlation = percent(text);
        let c = correlation.raw() as f64 / 2f64.powi(32);
        // Correlation leaves fewer independent values.
        let fewer = ((1.0 + c) / (1.0 - c)).sqrt();
        let band = 0.004 * fewer * MS as f64;
        let cases = [
            (Jitter::Normal { spread, correlation }, 0.0, 1.0, 0.003),
            (Jitter::Uniform { spread, correlation }, 0.0, 1.0 / 3f64.sqrt(), 0.003),
            (Jitter::Exponential { mean: spread, correlation }, 1.0, 1.0, 0.006),
        ];
        for (jitter, mean, sd, sd_band) in cases {
            let (m, s, r) = moments(&deviations(jitter, false));
            assert!((m - mean * MS as f64).abs() < band, "{jitter:?} mean {m}");
            assert!((s / (sd * MS as f64) - 1.0).abs() < sd_band * fewer, "{jitter:?} sd {s}");
            assert!((r - c).abs() < 0.01, "{jitter:?} correlation {r}");
        }
    }
}

/// Tails: parts beyond 3 spreads, 4 sigma of a binomial of 10^6.
#[test]
fn jitter_tails() {
    const MS: f64 = 1e6;
    let (spread, none) = (Span::ms(1), Probability::ZERO);
    let beyond = |jitter, limit: f64| {
        let all = deviations(jitter, true);
        all.iter().filter(|&&v| v > limit * MS).count() as f64 / all.len() as f64
    };
    let check = |ours: f64, p: f64| {
        let sd = (p * (1.0 - p) / 1e6).sqrt();
        assert!((ours - p).abs() < 4.0 * sd, "{ours} {p}");
    };
    check(beyond(Jitter::Normal { spread, correlation: none }, 3.0), 0.001_349_9);
    check(beyond(Jitter::Exponential { mean: spread, correlation: none }, 3.0), (-3f64).exp());
    // Mean excess 1 ms and index 3: minimum 2 ms, P(excess > x) = (2 / (2 + x))^3.
    let index = ParetoIndex::thousandths(3000);
    let pareto = Jitter::Pareto { mean: spread, index, correlation: none };
    check(beyond(pareto, 3.0), 0.4f64.powi(3));
    check(beyond(pareto, 18.0), 0.1f64.powi(3));
}

/// Copies, flipped bits and hurried frames: 4 sigma of 10^6.
#[test]
fn other_chances() {
    let one = |text| Chance { probability: percent(text), correlation: percent("30 %") };
    let spec = PortSpec {
        delay: Span::us(10),
        duplicate: one("5 %"),
        corrupt: one("2 %"),
        reorder: one("1 %"),
        ..PortSpec::IDEAL
    };
    let config = build(spec);
    let mut port = port(&config, 4096);
    let (mut copies, mut flips, mut hurried, mut low_half) = (0.0, 0.0, 0.0, 0.0);
    for n in 0..1_000_000u64 {
        let now = n * 100;
        let Verdict::Deliver(fate) = port.offer(now, Frame::new(n as u32, 100)) else {
            panic!("nothing is lost");
        };
        copies += f64::from(u8::from(fate.duplicate_at.is_some()));
        hurried += f64::from(u8::from(fate.deliver_at == now));
        if let Some(bit) = fate.corrupt_bit {
            assert!(bit < 800);
            flips += 1.0;
            low_half += f64::from(u8::from(bit < 400));
        }
        while port.pop_due(now).is_some() {}
    }
    for (hits, p) in [(copies, 0.05), (flips, 0.02), (hurried, 0.01)] {
        let sd = (p * (1.0 - p) * 1.3 / 0.7 * 1e6f64).sqrt();
        assert!((hits - p * 1e6f64).abs() < 4.0 * sd, "{hits} {p}");
    }
    assert!((low_half - flips / 2.0f64).abs() < 2.0 * flips.sqrt(), "{low_half} of {flips}");
}
