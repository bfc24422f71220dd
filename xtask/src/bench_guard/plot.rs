//! The rows as bars on a logarithmic axis.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::rows::{Row, Traffic};
use crate::bench::svg::{Anchor, Drawing, GRID, INK, LogAxis, NOISE, OTHER, OURS, PALE};

/// Pixels: the width, where bars begin and end, the height of a row, and the head above.
const WIDTH: f64 = 900.0;
const LEFT: f64 = 330.0;
const RIGHT: f64 = 830.0;
const ROW: f64 = 22.0;
const HEAD: f64 = 80.0;

/// One drawing of the rows under one traffic, in their order.
pub(super) fn draw(title: &str, traffic: Traffic, rows: &[Row], ns: &BTreeMap<Row, u64>) -> String {
    let rows: Vec<(Row, u64)> = rows
        .iter()
        .filter(|row| row.0 == traffic)
        .filter_map(|row| Some((*row, *ns.get(row)?)))
        .collect();
    let most = rows.iter().map(|(_, ns)| *ns).max().unwrap_or(1) as f64;
    let height = HEAD + ROW * rows.len() as f64 + 20.0;
    let mut drawing = Drawing::new(WIDTH, height);
    drawing.word((20.0, 28.0), Anchor::Start, 17, INK, title);
    drawing.word(
        (20.0, 48.0),
        Anchor::Start,
        12,
        PALE,
        "ns a packet, generator and veth hop included",
    );
    let axis = LogAxis::new((100.0, most.max(1000.0) * 1.1), (LEFT, RIGHT));
    for mark in axis.marks() {
        drawing.line((axis.at(mark), HEAD - 8.0), (axis.at(mark), height - 16.0), GRID, 1.0);
        drawing.word((axis.at(mark), HEAD - 12.0), Anchor::Middle, 10, PALE, &format!("{mark:.0}"));
    }
    for (index, ((_, filter), ns)) in rows.iter().enumerate() {
        let y = HEAD + ROW * index as f64;
        let colour = match filter {
            filter if filter.is_ours() => OURS,
            super::rows::Filter::Bare(_) | super::rows::Filter::None => NOISE,
            _ => OTHER,
        };
        let end = axis.at(*ns as f64);
        drawing.word((LEFT - 8.0, y + 14.0), Anchor::End, 12, INK, &filter.to_string());
        drawing.rectangle(LEFT, y + 3.0, end - LEFT, ROW - 6.0, colour);
        drawing.word((end + 6.0, y + 14.0), Anchor::Start, 11, INK, &ns.to_string());
    }
    drawing.finish()
}

/// A bar of [`draw_shares`].
pub(super) struct Share {
    pub(super) name: String,
    /// 1 for all.
    pub(super) kept: f64,
    /// Packets of the flood a second.
    pub(super) rate: f64,
    pub(super) is_ours: bool,
}

/// What a flood leaves of an allowed host's requests, as bars from nothing to all.
pub(super) fn draw_shares(shares: &[Share]) -> String {
    let height = HEAD + ROW * shares.len() as f64 + 20.0;
    let mut drawing = Drawing::new(WIDTH, height);
    let title = "What a flood leaves of an allowed host's requests";
    drawing.word((20.0, 28.0), Anchor::Start, 17, INK, title);
    let below = "share of the requests a second that are served without it; behind it the flood";
    drawing.word((20.0, 48.0), Anchor::Start, 12, PALE, below);
    // Room for the words behind a whole bar.
    let at = |share: f64| LEFT + (RIGHT - 120.0 - LEFT) * share.clamp(0.0, 1.0);
    for mark in [0.0, 0.25, 0.5, 0.75, 1.0] {
        drawing.line((at(mark), HEAD - 8.0), (at(mark), height - 16.0), GRID, 1.0);
        let percent = format!("{:.0} %", 100.0 * mark);
        drawing.word((at(mark), HEAD - 12.0), Anchor::Middle, 10, PALE, &percent);
    }
    for (index, share) in shares.iter().enumerate() {
        let y = HEAD + ROW * index as f64;
        let colour = if share.is_ours { OURS } else { OTHER };
        let words = format!("{:.0} %, {:.1} Mpps", 100.0 * share.kept, share.rate / 1e6);
        drawing.word((LEFT - 8.0, y + 14.0), Anchor::End, 12, INK, &share.name);
        drawing.rectangle(LEFT, y + 3.0, at(share.kept) - LEFT, ROW - 6.0, colour);
        drawing.word((at(share.kept) + 6.0, y + 14.0), Anchor::Start, 11, INK, &words);
    }
    drawing.finish()
}
