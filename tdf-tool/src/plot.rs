// SPDX-License-Identifier: MIT OR Apache-2.0
//! Plots of distributions, as SVG that any browser shows.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 60.0;
/// Half of the last number of the horizontal axis goes beyond it.
const RIGHT: f64 = 40.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 60.0;
/// Distinguishable for people with any sight; dashes tell curves apart where they coincide.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
const DASHES: [&str; 6] = ["", "9 5", "2 4", "12 4 2 4", "5 2", "1 2"];
/// Steps of a curve.
const STEPS: usize = 200;
/// Part of the values, at either end, that the horizontal axis leaves out, in thousandths.
const CUT: usize = 5;

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Values at equally spaced probabilities, from the least to the greatest.
fn quantiles(values: &[i64]) -> Vec<i64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let last = sorted.len().saturating_sub(1);
    (0..=STEPS).filter_map(|i| sorted.get(last * i / STEPS).copied()).collect()
}

/// The cumulative distributions of several samples in one plot; `scale` is what one unit of the
/// horizontal axis, called `unit`, is worth.
pub(crate) fn distributions(
    title: &str,
    unit: &str,
    scale: f64,
    samples: &[(String, Vec<i64>)],
) -> String {
    let mut all: Vec<i64> = samples.iter().flat_map(|(_, values)| values.iter().copied()).collect();
    all.sort_unstable();
    let at = |thousandths: usize| {
        all.get(all.len().saturating_sub(1) * thousandths / 1000).copied().unwrap_or(0) as f64
    };
    let (lo, hi) = (at(CUT), at(1000 - CUT));
    let width = (hi - lo).max(1.0);
    let (lo, width) = (lo - width / 20.0, width * 1.1);
    let x = |value: f64| LEFT + ((value - lo) / width).clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT);
    let y = |part: f64| TOP + (1.0 - part) * (HEIGHT - TOP - BOTTOM);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"15\">{}</text>\n",
        escape(title)
    );
    // Writing to a String does not fail.
    for i in 0..=4 {
        let part = f64::from(i) / 4.0;
        let (across, up) = (lo + width * part, y(part));
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {up:.1}H{}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{part:.2}</text>\
             <text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{:.1}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            up + 4.0,
            x(across),
            HEIGHT - BOTTOM + 20.0,
            across / scale
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 16.0,
        escape(unit)
    );
    for (i, (name, values)) in samples.iter().enumerate() {
        let (colour, dash) = (COLOURS[i % COLOURS.len()], DASHES[i % DASHES.len()]);
        let mut path = String::new();
        for (step, value) in quantiles(values).into_iter().enumerate() {
            let start = if step == 0 { 'M' } else { 'L' };
            let part = step as f64 / STEPS as f64;
            let _ = write!(path, "{start}{:.1} {:.1}", x(value as f64), y(part));
        }
        let style = format!(
            "fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dash}\""
        );
        let row = TOP + 16.0 * (i as f64 + 1.0);
        let _ = writeln!(
            svg,
            "<path d=\"{path}\" {style}/>\n<path d=\"M{} {row}h40\" {style}/>\
             <text x=\"{}\" y=\"{}\">{} ({} values)</text>",
            LEFT + 12.0,
            LEFT + 60.0,
            row + 4.0,
            escape(name),
            values.len()
        );
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_has_a_curve_for_each_sample_within_its_frame() {
        let sample = |shift: i64| (0..1000).map(|i| i + shift).collect::<Vec<i64>>();
        let samples = [("TDF <1>".to_owned(), sample(0)), ("TDF 10".to_owned(), sample(50))];
        let svg = distributions("a & b", "us", 1000.0, &samples);
        assert_eq!(svg.matches("TDF ").count(), 2);
        assert!(svg.contains("a &amp; b") && svg.contains("TDF &lt;1&gt;"));
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("L").count(), 2 * STEPS);
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        assert!(distributions("", "", 1.0, &[]).ends_with("</svg>\n"));
    }
}
