//! The plots of hit ratios: all traces, and traces with phases over their length.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::{Line, Results};
use crate::bench::svg::{Anchor, Drawing, GRID, INK, NOISE, OTHER, OURS, PALE};

/// Pixels: the drawing's width, where rows begin and end, their height, the head above, and the
/// height of a plot over the length of a trace.
const WIDTH: f64 = 900.0;
const LEFT: f64 = 200.0;
const RIGHT: f64 = 840.0;
const ROW: f64 = 28.0;
const HEAD: f64 = 92.0;
const FOOT: f64 = 44.0;
const HEIGHT: f64 = 300.0;
const TIME_LEFT: f64 = 60.0;
/// Windows of a trace that are drawn as one point.
const SMOOTH: usize = 3;

/// Writes `hit-ratio.svg`, and `hit-ratio-NAME.svg` for each trace with phases.
pub(super) fn write(results: &Results, directory: &Path) -> Result<()> {
    fs::write(directory.join("hit-ratio.svg"), all(results))?;
    for line in results.lines.iter().filter(|line| line.trace.phases > 1) {
        let name = format!("hit-ratio-{}.svg", line.trace.name);
        fs::write(directory.join(name), over_time(results, line))?;
    }
    Ok(())
}

fn head(drawing: &mut Drawing, title: &str, results: &Results, second: &str) {
    let first = format!("sessiond's store ({}) beside {}", results.machine.commit, results.other);
    drawing.word((24.0, 34.0), Anchor::Start, 20, INK, title);
    drawing.word((24.0, 55.0), Anchor::Start, 12, PALE, &first);
    drawing.word((24.0, 72.0), Anchor::Start, 12, PALE, second);
    for (x, colour, name) in [(690.0, OURS, "sessiond"), (780.0, OTHER, "memcached")] {
        drawing.dot(x, 29.0, colour);
        drawing.word((x + 10.0, 33.0), Anchor::Start, 12, INK, name);
    }
}

/// Two dots a trace on an axis from a round number below the least to 1.
fn all(results: &Results) -> String {
    let ratios: Vec<(&Line, f64, f64)> = results
        .lines
        .iter()
        .map(|line| {
            let warm_up = line.trace.warm_up;
            (line, line.ours.hit_ratio(warm_up), line.other.hit_ratio(warm_up))
        })
        .collect();
    let least = ratios.iter().map(|(_, ours, other)| ours.min(*other)).fold(1.0, f64::min);
    let low = ((least * 10.0).floor() / 10.0).min(0.9);
    let at = |ratio: f64| LEFT + (RIGHT - LEFT) * (ratio - low) / (1.0 - low);
    let bottom = HEAD + ROW * ratios.len() as f64;
    let mut drawing = Drawing::new(WIDTH, bottom + FOOT);
    head(&mut drawing, "Hit ratio at the same -m", results, "Further right is better.");
    let first = (low * 10.0).round() as u32;
    for tenth in first..=10 {
        let (x, label) = (at(f64::from(tenth) / 10.0), format!("{} %", tenth * 10));
        drawing.line((x, HEAD - 4.0), (x, bottom), GRID, 1.0);
        drawing.word((x, bottom + 16.0), Anchor::Middle, 11, PALE, &label);
    }
    for (row, (line, ours, other)) in ratios.iter().enumerate() {
        let middle = HEAD + ROW * (row as f64 + 0.5);
        let title = format!("{}, -m {}", line.trace.name, line.trace.memory_mb);
        drawing.word((LEFT - 12.0, middle + 4.0), Anchor::End, 13, INK, &title);
        drawing.line((at(*ours), middle), (at(*other), middle), NOISE, 2.0);
        drawing.dot(at(*other), middle, OTHER);
        drawing.dot(at(*ours), middle, OURS);
    }
    drawing.finish()
}

/// Hit ratio of each part of a trace, one line a server.
fn over_time(results: &Results, line: &Line) -> String {
    let bottom = HEAD + HEIGHT;
    let mut drawing = Drawing::new(WIDTH, bottom + FOOT);
    let title =
        format!("Hit ratio over the trace {}, -m {}", line.trace.name, line.trace.memory_mb);
    let second = "Left to right: the requests in order. A grey line: a phase begins.";
    head(&mut drawing, &title, results, second);
    for fifth in 0..=5 {
        let y = bottom - HEIGHT * f64::from(fifth) / 5.0;
        drawing.line((TIME_LEFT, y), (RIGHT, y), GRID, 1.0);
        let label = format!("{} %", fifth * 20);
        drawing.word((TIME_LEFT - 8.0, y + 4.0), Anchor::End, 11, PALE, &label);
    }
    for phase in 1..line.trace.phases {
        let x = TIME_LEFT + (RIGHT - TIME_LEFT) * phase as f64 / line.trace.phases as f64;
        drawing.line((x, HEAD), (x, bottom), NOISE, 1.5);
    }
    for (side, colour) in [(&line.other, OTHER), (&line.ours, OURS)] {
        let windows = side.windows();
        let means: Vec<f64> = windows
            .chunks(SMOOTH)
            .map(|part| part.iter().sum::<f64>() / part.len() as f64)
            .collect();
        let at = |idx: usize| {
            let share = (idx as f64 + 0.5) / means.len() as f64;
            (TIME_LEFT + (RIGHT - TIME_LEFT) * share, bottom - HEIGHT * means[idx])
        };
        for idx in 1..means.len() {
            drawing.line(at(idx - 1), at(idx), colour, 2.0);
        }
    }
    drawing.finish()
}
