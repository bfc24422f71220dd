//! Drawings as SVG: rectangles, lines, words, and the colours of the plots.
#![forbid(unsafe_code)]

use std::fmt::Write;

pub(crate) const INK: &str = "#1f2933";
pub(crate) const PALE: &str = "#7b8794";
pub(crate) const GRID: &str = "#e4e7eb";
pub(crate) const OURS: &str = "#0b7285";
pub(crate) const OTHER: &str = "#e8590c";
pub(crate) const NOISE: &str = "#cbd2d9";

/// A drawing of a fixed size in pixels.
#[derive(Debug)]
pub(crate) struct Drawing {
    body: String,
    width: f64,
    height: f64,
}

/// Where a word stands to its point.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

impl Drawing {
    pub(crate) fn new(width: f64, height: f64) -> Self {
        Self { body: String::new(), width, height }
    }

    pub(crate) fn rectangle(&mut self, x: f64, y: f64, width: f64, height: f64, fill: &str) {
        let _ = writeln!(
            self.body,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" rx="2" fill="{fill}"/>"#
        );
    }

    pub(crate) fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) {
        let _ = writeln!(
            self.body,
            r#"<line x1="{:.1}" y1="{:.1}" x2="{:.1}" y2="{:.1}" stroke="{colour}" stroke-width="{width}"/>"#,
            from.0, from.1, to.0, to.1
        );
    }

    pub(crate) fn dot(&mut self, x: f64, y: f64, colour: &str) {
        let _ = writeln!(self.body, r#"<circle cx="{x:.1}" cy="{y:.1}" r="4.5" fill="{colour}"/>"#);
    }

    pub(crate) fn word(
        &mut self,
        at: (f64, f64),
        anchor: Anchor,
        size: u32,
        colour: &str,
        text: &str,
    ) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let _ = writeln!(
            self.body,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">{}</text>"#,
            at.0,
            at.1,
            escape(text)
        );
    }

    /// The whole file.
    pub(crate) fn finish(self) -> String {
        let Self { body, width, height } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {width:.0} {height:.0}\" \
             font-family=\"Inter, 'Helvetica Neue', Arial, sans-serif\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{body}</svg>\n"
        )
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A logarithmic axis from `low` to `high` over some pixels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogAxis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl LogAxis {
    /// Both ends are more than 0 and apart.
    pub(crate) fn new((low, high): (f64, f64), (from, to): (f64, f64)) -> Self {
        Self { low: low.ln(), high: high.ln(), from, to }
    }

    pub(crate) fn at(&self, value: f64) -> f64 {
        let share = (value.ln() - self.low) / (self.high - self.low);
        self.from + (self.to - self.from) * share.clamp(0.0, 1.0)
    }

    /// Round numbers on the axis: 1, 2 and 5 of each decade.
    pub(crate) fn marks(&self) -> Vec<f64> {
        let decades =
            (self.low / 10_f64.ln()).floor() as i32..=(self.high / 10_f64.ln()).ceil() as i32;
        let all =
            decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(decade)));
        let slack = 1e-9;
        all.filter(|mark| (self.low - slack..=self.high + slack).contains(&mark.ln())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Anchor, Drawing, INK, LogAxis};

    #[test]
    fn an_axis_reaches_both_ends() {
        let axis = LogAxis::new((1.0, 100.0), (0.0, 200.0));
        for (value, place) in [(1.0, 0.0), (10.0, 100.0), (100.0, 200.0), (1e6, 200.0)] {
            assert!((axis.at(value) - place).abs() < 1e-6, "{value}");
        }
        assert_eq!(axis.marks(), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
    }

    #[test]
    fn words_are_escaped() {
        let mut drawing = Drawing::new(10.0, 10.0);
        drawing.word((1.0, 1.0), Anchor::Start, 12, INK, "a < b & c");
        assert!(drawing.finish().contains("a &lt; b &amp; c"));
    }
}
