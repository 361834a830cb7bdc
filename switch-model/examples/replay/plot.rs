// SPDX-License-Identifier: MIT OR Apache-2.0
//! One HTML file with its plots in it.

use std::fmt::Write as _;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 70.0;
const BOTTOM: f64 = 40.0;
/// Points that a line keeps: more than the plot has pixels.
const POINTS: usize = 2000;

/// A plot of `points`, which ascend in x.
fn plot(title: &str, x_name: &str, y_name: &str, points: &[(f64, f64)]) -> String {
    let mut svg = format!(
        "<h2>{title}</h2><svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{title}\">",
        WIDTH + LEFT + 30.0,
        HEIGHT + BOTTOM + 20.0
    );
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return format!("<h2>{title}</h2><p>No frames.</p>");
    };
    let (x0, x1) = (first.0, last.0.max(first.0 + 1.0));
    let y1 = points.iter().map(|p| p.1).fold(0.0, f64::max).max(1e-9);
    let x = |v: f64| LEFT + (v - x0) / (x1 - x0) * WIDTH;
    let y = |v: f64| 10.0 + HEIGHT * (1.0 - v / y1);
    for i in 0..=5 {
        let (xv, yv) = (x0 + (x1 - x0) * f64::from(i) / 5.0, y1 * f64::from(i) / 5.0);
        let (gx, gy) = (x(xv), y(yv));
        let _ = write!(
            svg,
            "<path class=g d=\"M{gx:.1} 10V{0:.1}M{LEFT} {gy:.1}H{1:.1}\"/>\
             <text x={gx:.1} y={2:.1} text-anchor=middle>{3}</text>\
             <text x={4:.1} y={5:.1} text-anchor=end>{6}</text>",
            10.0 + HEIGHT,
            LEFT + WIDTH,
            HEIGHT + 26.0,
            short(xv),
            LEFT - 6.0,
            gy + 4.0,
            short(yv)
        );
    }
    let _ = write!(
        svg,
        "<text x={:.1} y={:.1} text-anchor=middle>{x_name}</text>\
         <text transform=\"translate(14 {:.1}) rotate(-90)\" text-anchor=middle>{y_name}</text>",
        LEFT + WIDTH / 2.0,
        HEIGHT + 44.0,
        10.0 + HEIGHT / 2.0
    );
    svg.push_str("<path class=l d=\"");
    for (i, &(px, py)) in points.iter().enumerate() {
        let _ = write!(svg, "{}{:.1} {:.1}", if i == 0 { 'M' } else { 'L' }, x(px), y(py));
    }
    svg.push_str("\"/></svg>");
    svg
}

fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.2}M", v / 1e6),
        v if v >= 1e3 => format!("{:.1}k", v / 1e3),
        v if v >= 10.0 || v == 0.0 => format!("{v:.0}"),
        v => format!("{v:.2}"),
    }
}

/// The whole page. `delays` ascend.
pub fn report(spec: &str, summary: &str, delays: &[u64], buffer: &[(u64, u32)]) -> String {
    let step = (delays.len() / POINTS).max(1);
    let part = |i: usize| (i + 1) as f64 / delays.len() as f64;
    let mut cdf: Vec<(f64, f64)> =
        (0..delays.len()).step_by(step).map(|i| (delays[i] as f64 / 1e3, part(i))).collect();
    cdf.extend(delays.last().map(|&d| (d as f64 / 1e3, 1.0)));
    // Of each stretch of the buffer's course, the peak.
    let step = (buffer.len() / POINTS).max(1);
    let peak = |stretch: &[(u64, u32)]| stretch.iter().max_by_key(|p| p.1).copied();
    let course: Vec<(f64, f64)> = buffer
        .chunks(step)
        .filter_map(peak)
        .map(|(at, bytes)| (at as f64 / 1e3, f64::from(bytes)))
        .collect();
    let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;");
    format!(
        "<!doctype html><meta charset=utf-8><title>switch-model: replay</title><style>\
         body{{font:15px sans-serif;max-width:860px;margin:2em auto}}svg{{width:100%}}\
         svg text{{font:12px sans-serif;fill:#555}}.g{{stroke:#ddd;fill:none}}\
         .l{{stroke:#06c;fill:none;stroke-width:1.5}}pre{{background:#f5f5f5;padding:1em}}</style>\
         <h1>What the port did</h1><pre>{}</pre><pre>{}</pre>{}{}\n",
        escape(spec),
        escape(summary),
        plot("Distribution of the delay", "delay, us", "part of delivered frames", &cdf),
        plot("Buffer", "time, us", "bytes in the buffer", &course)
    )
}
