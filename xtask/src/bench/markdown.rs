//! The results as Markdown.
#![forbid(unsafe_code)]

use std::fmt::Write;

use session_load::report::Report;

use super::results::{PointResult, Ratio, Results};
use super::servers::Side;
use super::statistics::Verdict;

/// Renders all tables.
pub(super) fn render(results: &Results) -> String {
    let mut text = String::new();
    let machine = &results.machine;
    let _ = writeln!(
        text,
        "{} ({}) beside {}: {} rounds of {} s. {} processors ({}), kernel {}.\n",
        results.ours,
        machine.commit,
        results.other,
        results.rounds,
        results.seconds,
        machine.processors,
        machine.processor,
        machine.kernel
    );
    closed(results, &mut text);
    open(results, &mut text);
    text
}

fn closed(results: &Results, text: &mut String) {
    let points: Vec<&PointResult> = results.points.iter().filter(|p| p.rate.is_none()).collect();
    if points.is_empty() {
        return;
    }
    text.push_str(
        "| point | requests/s, ours | memcached | ratio | server ns/request, ours | memcached \
         | ratio (all rounds) | p50 / p99 / p99.9 us, ours | memcached |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for point in points {
        let _ = write!(text, "| {} |", point.title);
        if let Some(words) = refused(point) {
            let _ = writeln!(text, " {words} | | | | | | | |");
            continue;
        }
        for side in [Side::Ours, Side::Other] {
            let rate = point.median(side, |report| Some(report.requests_per_s()));
            let _ = write!(text, " {} |", rate.map_or_else(dash, thousands));
        }
        let _ = write!(text, " {} |", ratio(point.throughput(), false));
        for side in [Side::Ours, Side::Other] {
            let ns = point.median(side, Report::server_ns);
            let _ = write!(text, " {} |", ns.map_or_else(dash, thousands));
        }
        let _ = write!(text, " {} |", ratio(point.processor(), true));
        let _ = writeln!(text, " {} | {} |", ranks(point, Side::Ours), ranks(point, Side::Other));
    }
    text.push('\n');
}

fn open(results: &Results, text: &mut String) {
    let points: Vec<&PointResult> = results.points.iter().filter(|p| p.rate.is_some()).collect();
    let Some(peak) = results.peak.filter(|_| !points.is_empty()) else { return };
    let _ = write!(
        text,
        "Open loop, 50 connections, from when each request was due; the peak is memcached's, {} \
         requests/s.\n\n\
         | point | requests/s | p50 / p99 / p99.9 us, ours | memcached | p50, memcached / ours \
         | p99, memcached / ours | server ns/request, ours | memcached | ratio (all rounds) |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|\n",
        thousands(peak)
    );
    for point in points {
        let _ = write!(text, "| {} |", point.title);
        if let Some(words) = refused(point) {
            let _ = writeln!(text, " {words} | | | | | | | |");
            continue;
        }
        let _ = write!(text, " {} |", point.rate.map_or_else(dash, thousands));
        let _ = write!(text, " {} | {} |", ranks(point, Side::Ours), ranks(point, Side::Other));
        let _ = write!(text, " {} |", ratio(point.latency(|report| report.latency_ns.p50), false));
        let _ = write!(text, " {} |", ratio(point.latency(|report| report.latency_ns.p99), false));
        for side in [Side::Ours, Side::Other] {
            let ns = point.median(side, Report::server_ns);
            let _ = write!(text, " {} |", ns.map_or_else(dash, thousands));
        }
        let _ = writeln!(text, " {} |", ratio(point.processor(), true));
    }
    text.push('\n');
}

/// Why a point has no numbers.
fn refused(point: &PointResult) -> Option<String> {
    for (side, name) in [(Side::Ours, "ours"), (Side::Other, "memcached")] {
        if let Some(words) = point.not_served(side) {
            return Some(format!("not served by {name}: `{words}`"));
        }
        if let Some(words) = point.fault(side) {
            return Some(format!("FAULT of {name}: `{words}`"));
        }
    }
    None
}

fn ratio(ratio: Option<Ratio>, with_range: bool) -> String {
    let Some(Ratio { spread, verdict }) = ratio else { return dash() };
    let mut text = match verdict {
        Verdict::Better => format!("**{:.2}**", spread.median),
        Verdict::Worse => format!("{:.2} (worse)", spread.median),
        Verdict::Level => format!("{:.2}", spread.median),
        Verdict::Noisy => format!("noisy ({:.2})", spread.median),
    };
    if with_range {
        let _ = write!(text, " {:.2}-{:.2}", spread.min, spread.max);
    }
    text
}

fn ranks(point: &PointResult, side: Side) -> String {
    let us = |rank: fn(&Report) -> u64| {
        let ns = point.median(side, |report| Some(rank(report) as f64));
        ns.map_or_else(dash, |ns| format!("{:.0}", ns / 1e3))
    };
    let middle = us(|report| report.latency_ns.p50);
    let (high, highest) = (us(|report| report.latency_ns.p99), us(|report| report.latency_ns.p999));
    format!("{middle} / {high} / {highest}")
}

fn dash() -> String {
    "-".to_owned()
}

/// A number with its thousands apart.
pub(super) fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (idx, digit) in digits.chars().enumerate() {
        if idx > 0 && (digits.len() - idx).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::thousands;

    #[test]
    fn thousands_stand_apart() {
        for (number, text) in
            [(0.0, "0"), (999.4, "999"), (1000.0, "1 000"), (1234567.0, "1 234 567")]
        {
            assert_eq!(thousands(number), text);
        }
    }
}
