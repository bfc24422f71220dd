//! The plots of a comparison: processor time, throughput, latency.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use anyhow::Result;
use session_load::report::Report;

use super::results::{PointResult, Results};
use super::servers::Side;
use super::statistics::Verdict;
use super::svg::{Anchor, Drawing, GRID, INK, LogAxis, NOISE, OTHER, OURS, PALE};

/// Pixels: the drawing's width, where its rows begin and end, their height, and the head above.
const WIDTH: f64 = 900.0;
const LEFT: f64 = 235.0;
const RIGHT: f64 = 830.0;
const ROW: f64 = 25.0;
const HEAD: f64 = 92.0;
const FOOT: f64 = 44.0;

/// A pair of values of a point, and whether it counts.
struct Pair<'a> {
    title: &'a str,
    ours: f64,
    other: f64,
    counts: bool,
}

/// Writes every plot that the results have points for.
pub(super) fn write(results: &Results, directory: &Path) -> Result<()> {
    let plots = [
        ("processor.svg", processor(results)),
        ("throughput.svg", throughput(results)),
        ("latency.svg", latency(results)),
    ];
    for (name, plot) in plots {
        let path = directory.join(name);
        match plot {
            Some(plot) => fs::write(path, plot)?,
            // A plot of an earlier run must not pass for this one's.
            None if path.exists() => fs::remove_file(path)?,
            None => {}
        }
    }
    Ok(())
}

fn subtitle(results: &Results) -> String {
    let machine = &results.machine;
    format!(
        "{} beside {}. {} rounds of {} s, {} processors, kernel {}",
        results.ours,
        results.other,
        results.rounds,
        results.seconds,
        machine.processors,
        machine.kernel
    )
}

fn head(drawing: &mut Drawing, title: &str, lines: [&str; 2]) {
    drawing.word((24.0, 34.0), Anchor::Start, 20, INK, title);
    drawing.word((24.0, 55.0), Anchor::Start, 12, PALE, lines[0]);
    drawing.word((24.0, 72.0), Anchor::Start, 12, PALE, lines[1]);
}

/// The numbers of an axis, and a line for each through all rows.
fn grid(drawing: &mut Drawing, axis: &LogAxis, bottom: f64, label: impl Fn(f64) -> String) {
    for mark in axis.marks() {
        let x = axis.at(mark);
        drawing.line((x, HEAD - 4.0), (x, bottom), GRID, 1.0);
        drawing.word((x, bottom + 16.0), Anchor::Middle, 11, PALE, &label(mark));
    }
}

/// Memcached's processor time over ours, a bar a point, with all rounds as a whisker.
fn processor(results: &Results) -> Option<String> {
    let rows: Vec<_> = results
        .points
        .iter()
        .filter_map(|point| Some((point.title.as_str(), point.processor()?)))
        .collect();
    let highest = rows.iter().map(|(_, ratio)| ratio.spread.max).fold(f64::NAN, f64::max);
    let lowest = rows.iter().map(|(_, ratio)| ratio.spread.min).fold(f64::NAN, f64::min);
    if !highest.is_finite() {
        return None;
    }
    let bottom = HEAD + ROW * rows.len() as f64;
    let axis = LogAxis::new((lowest.min(0.8) * 0.95, highest.max(2.0) * 1.05), (LEFT, RIGHT));
    let mut drawing = Drawing::new(WIDTH, bottom + FOOT);
    let second = "memcached's processor time a request over ours: right of 1 we need less. \
                  Line: all rounds. Grey: too noisy to count.";
    head(&mut drawing, "Processor time a request", [&subtitle(results), second]);
    grid(&mut drawing, &axis, bottom, |mark| format!("{mark}x"));
    for (row, (title, ratio)) in rows.iter().enumerate() {
        let middle = HEAD + ROW * (row as f64 + 0.5);
        let (one, end) = (axis.at(1.0), axis.at(ratio.spread.median));
        let colour = match ratio.verdict {
            Verdict::Noisy => NOISE,
            Verdict::Worse => OTHER,
            Verdict::Better | Verdict::Level => OURS,
        };
        drawing.word((LEFT - 12.0, middle + 4.0), Anchor::End, 13, INK, title);
        drawing.rectangle(one.min(end), middle - 8.0, (end - one).abs().max(1.0), 16.0, colour);
        let (low, high) = (axis.at(ratio.spread.min), axis.at(ratio.spread.max));
        drawing.line((low, middle), (high, middle), INK, 1.2);
        let words = format!("{:.2}", ratio.spread.median);
        drawing.word((high.max(end).max(one) + 8.0, middle + 4.0), Anchor::Start, 12, INK, &words);
    }
    drawing.line((axis.at(1.0), HEAD - 4.0), (axis.at(1.0), bottom), INK, 1.5);
    Some(drawing.finish())
}

/// Requests a second of both servers, two dots a point.
fn throughput(results: &Results) -> Option<String> {
    let rate = |point: &PointResult, side| {
        point.median(side, |report: &Report| Some(report.requests_per_s()))
    };
    let rows: Vec<Pair<'_>> = results
        .points
        .iter()
        .filter_map(|point| {
            Some(Pair {
                title: &point.title,
                counts: point.throughput()?.verdict != Verdict::Noisy,
                ours: rate(point, Side::Ours)?,
                other: rate(point, Side::Other)?,
            })
        })
        .collect();
    let second = "Closed loop, median of the rounds. Grey: too noisy to count.";
    let head = ["Requests a second", &subtitle(results), second];
    pairs(&rows, head, |mark| match mark {
        mark if mark >= 1e6 => format!("{} M", mark / 1e6),
        mark if mark >= 1e3 => format!("{} k", mark / 1e3),
        mark => format!("{mark}"),
    })
}

/// Latency of both servers at the rates of the open loop, two dots a rank.
fn latency(results: &Results) -> Option<String> {
    type Rank = fn(&Report) -> u64;
    let ranks: [(&str, Rank); 3] = [
        ("p50", |report| report.latency_ns.p50),
        ("p99", |report| report.latency_ns.p99),
        ("p99.9", |report| report.latency_ns.p999),
    ];
    let mut titles = Vec::new();
    for point in results.points.iter().filter(|point| point.rate.is_some()) {
        for (name, rank) in ranks {
            titles.push((format!("{}, {name}", point.title), point, rank));
        }
    }
    let rows: Vec<Pair<'_>> = titles
        .iter()
        .filter_map(|(title, point, rank)| {
            let us = |side| point.median(side, |report| Some(rank(report) as f64 / 1e3));
            Some(Pair {
                title,
                counts: point.latency(rank)?.verdict != Verdict::Noisy,
                ours: us(Side::Ours)?,
                other: us(Side::Other)?,
            })
        })
        .collect();
    let second = "Microseconds from when a request was due to its reply; the same rates for both. \
                  Grey: too noisy to count.";
    let head = ["Latency in an open loop", &subtitle(results), second];
    pairs(&rows, head, |mark| match mark {
        mark if mark >= 1e3 => format!("{} ms", mark / 1e3),
        mark => format!("{mark} us"),
    })
}

/// Two dots a row, ours and the other server's, joined by a line.
fn pairs(
    rows: &[Pair<'_>],
    [title, first, second]: [&str; 3],
    label: impl Fn(f64) -> String,
) -> Option<String> {
    let values = rows.iter().flat_map(|row| [row.ours, row.other]);
    let (low, high) =
        values.fold((f64::NAN, f64::NAN), |(low, high), value| (value.min(low), value.max(high)));
    if !low.is_finite() || low <= 0.0 {
        return None;
    }
    let bottom = HEAD + ROW * rows.len() as f64;
    let axis = LogAxis::new((low * 0.8, high * 1.25), (LEFT, RIGHT));
    let mut drawing = Drawing::new(WIDTH, bottom + FOOT);
    head(&mut drawing, title, [first, second]);
    legend(&mut drawing);
    grid(&mut drawing, &axis, bottom, label);
    for (row, pair) in rows.iter().enumerate() {
        let middle = HEAD + ROW * (row as f64 + 0.5);
        let (ours, other) = (axis.at(pair.ours), axis.at(pair.other));
        drawing.word((LEFT - 12.0, middle + 4.0), Anchor::End, 13, INK, pair.title);
        let join = if pair.counts { INK } else { NOISE };
        drawing.line((ours, middle), (other, middle), join, 1.5);
        drawing.dot(other, middle, if pair.counts { OTHER } else { NOISE });
        drawing.dot(ours, middle, if pair.counts { OURS } else { PALE });
    }
    Some(drawing.finish())
}

fn legend(drawing: &mut Drawing) {
    for (x, colour, name) in [(690.0, OURS, "sessiond"), (780.0, OTHER, "memcached")] {
        drawing.dot(x, 29.0, colour);
        drawing.word((x + 10.0, 33.0), Anchor::Start, 12, INK, name);
    }
}
