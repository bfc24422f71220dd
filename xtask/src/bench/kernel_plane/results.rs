//! What was measured, which goals it reaches, and the table and the drawing of it.
#![forbid(unsafe_code)]

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};
use session_tests::exchange::Reads;

use crate::bench::machine::Machine;
use crate::bench::markdown::thousands;
use crate::bench::statistics::{SPREAD_MAX, STOLEN_MAX, Spread, Verdict};
use crate::bench::svg::{Anchor, Drawing, GRID, INK, LogAxis, NOISE, OTHER, OURS, PALE};

/// Largest share of the server's processor that others may take, who leave its caches cold.
const OTHERS_MAX: f64 = 0.05;

/// Who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Side {
    /// memcached, without a guard.
    Memcached,
    /// Ours, guarded, without the kernel plane.
    Daemon,
    /// Ours with it.
    Plane,
}

impl Side {
    pub(super) const ALL: [Self; 3] = [Self::Memcached, Self::Daemon, Self::Plane];
}

impl fmt::Display for Side {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Memcached => "memcached",
            Self::Daemon => "ours, without the plane",
            Self::Plane => "ours, with the plane",
        })
    }
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Asked {
    Hits,
    Mixed,
    Misses,
    Spaced,
    Sets,
}

impl Asked {
    pub(super) const ALL: [Self; 5] =
        [Self::Hits, Self::Mixed, Self::Misses, Self::Spaced, Self::Sets];

    pub(super) fn reads(self) -> Reads {
        match self {
            Self::Hits | Self::Mixed | Self::Sets => Reads::Hits,
            Self::Misses => Reads::Misses,
            Self::Spaced => Reads::Spaced,
        }
    }

    /// Share of writes.
    pub(super) fn writes(self) -> f64 {
        match self {
            Self::Hits | Self::Misses | Self::Spaced => 0.0,
            Self::Mixed => 0.1,
            Self::Sets => 1.0,
        }
    }

    /// What the plane is to make of it.
    fn goal(self) -> Goal {
        match self {
            Self::Hits | Self::Misses => Goal { beside: Side::Memcached, least: 6.0 },
            Self::Mixed => Goal { beside: Side::Memcached, least: 3.0 },
            // What passes up costs at most 2 % more.
            Self::Spaced | Self::Sets => Goal { beside: Side::Daemon, least: 1.0 / 1.02 },
        }
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Hits => "GET, all hits",
            Self::Mixed => "9 GET to 1 SET",
            Self::Misses => "GET, all misses",
            Self::Spaced => "GET with a blank more: passed up",
            Self::Sets => "SET: passed up",
        })
    }
}

/// Another server's time over the plane's, which is to be so much at least.
#[derive(Clone, Copy, Debug)]
struct Goal {
    beside: Side,
    least: f64,
}

/// Whether a goal is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reached {
    Yes,
    No,
    /// The rounds lie on both sides of it, differ too much, are too few, or had the processor with
    /// others.
    Undecided,
}

/// One server's answers to one kind of requests.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) round: u32,
    pub(super) side: Side,
    /// Requests that were answered.
    pub(super) requests: u64,
    /// Requests that were not.
    pub(super) lost: u64,
    pub(super) seconds: f64,
    /// Processor time a request: of the thread that receives, where the programs in the kernel run,
    /// and of the server.
    pub(super) napi_ns: f64,
    pub(super) server_ns: f64,
    /// Share that was answered in the kernel.
    pub(super) in_kernel: f64,
    /// Shares of the server's processor that others took, of this machine and beside it.
    pub(super) others: [f64; 2],
}

/// All answers to one kind of requests.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Point {
    pub(super) asked: Asked,
    pub(super) runs: Vec<Run>,
}

/// Everything that is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Results {
    pub(super) machine: Machine,
    /// Versions in the servers' own words.
    pub(super) ours: String,
    pub(super) other: String,
    pub(super) rounds: u32,
    pub(super) seconds: f64,
    /// Requests without an answer at a time.
    pub(super) window: u64,
    pub(super) points: Vec<Point>,
}

impl Point {
    fn median(&self, side: Side, of: impl Fn(&Run) -> f64) -> f64 {
        let runs = self.runs.iter().filter(|run| run.side == side);
        Spread::of(runs.map(of)).map_or(f64::NAN, |spread| spread.median)
    }

    fn ns(&self, side: Side) -> f64 {
        self.median(side, |run| run.napi_ns + run.server_ns)
    }

    /// Another server's time over the plane's, over the rounds, and how many there are.
    fn ratio(&self, beside: Side) -> Option<(Spread, usize)> {
        let ns = |side, round| {
            let found = self.runs.iter().find(|run| run.side == side && run.round == round);
            found.map(|run| run.napi_ns + run.server_ns)
        };
        let rounds = self.runs.iter().filter(|run| run.side == Side::Plane).map(|run| run.round);
        let ratios: Vec<f64> =
            rounds.filter_map(|round| Some(ns(beside, round)? / ns(Side::Plane, round)?)).collect();
        Some((Spread::of(ratios.iter().copied())?, ratios.len()))
    }

    fn reached(&self) -> Reached {
        let goal = self.asked.goal();
        let Some((ratio, rounds)) = self.ratio(goal.beside) else { return Reached::Undecided };
        let disturbed = [goal.beside, Side::Plane].iter().any(|side| {
            let others = |idx: usize| self.median(*side, |run| run.others[idx]);
            others(0) > OTHERS_MAX || others(1) > STOLEN_MAX
        });
        if Verdict::of(&ratio, rounds, SPREAD_MAX, disturbed) == Verdict::Noisy {
            Reached::Undecided
        } else if ratio.lower >= goal.least {
            Reached::Yes
        } else if ratio.upper < goal.least {
            Reached::No
        } else {
            Reached::Undecided
        }
    }

    /// The goal, and what the rounds say of it.
    fn words(&self) -> String {
        let goal = self.asked.goal();
        let goal = match goal.beside {
            Side::Memcached => format!("{} x less than memcached", goal.least),
            _ => format!("{:.0} % more than without it", 100.0 * (1.0 / goal.least - 1.0)),
        };
        match self.reached() {
            Reached::Yes => format!("{goal}: reached"),
            Reached::No => format!("{goal}: MISSED"),
            Reached::Undecided => format!("{goal}: not decided"),
        }
    }
}

impl Results {
    /// Whether every goal is reached or missed for certain.
    pub(super) fn is_decided(&self) -> bool {
        self.points.iter().all(|point| point.reached() != Reached::Undecided)
    }

    pub(super) fn table(&self) -> String {
        let machine = &self.machine;
        let mut text = format!(
            "{} ({}) beside {}: {} rounds of {} s, {} requests at a time. {} processors ({}), \
             kernel {}.\n\n\
             | requests by datagram | server ns/request, memcached | ours, without the plane | with \
             it | memcached / with it (all rounds) | without / with it (all rounds) | answered in \
             the kernel | goal |\n|---|--:|--:|--:|--:|--:|--:|---|\n",
            self.ours,
            machine.commit,
            self.other,
            self.rounds,
            self.seconds,
            self.window,
            machine.processors,
            machine.processor,
            machine.kernel,
        );
        for point in &self.points {
            let _ = write!(text, "| {} |", point.asked);
            for side in Side::ALL {
                let (receiving, serving) = (
                    point.median(side, |run| run.napi_ns),
                    point.median(side, |run| run.server_ns),
                );
                let ns = thousands(point.ns(side));
                let parts = format!("{} + {}", thousands(receiving), thousands(serving));
                let _ = write!(text, " {ns} ({parts}) |");
            }
            for beside in [Side::Memcached, Side::Daemon] {
                let ratio = point.ratio(beside).map_or_else(
                    || "-".to_owned(),
                    |(ratio, _)| format!("{:.2} {:.2}-{:.2}", ratio.median, ratio.min, ratio.max),
                );
                let _ = write!(text, " {ratio} |");
            }
            let in_kernel = 100.0 * point.median(Side::Plane, |run| run.in_kernel);
            let _ = writeln!(text, " {in_kernel:.1} % | {} |", point.words());
        }
        text
    }

    /// The table's times as bars.
    pub(super) fn plot(&self) -> String {
        /// Pixels: the width, where bars begin and end, the height of a row, and the head above.
        const WIDTH: f64 = 900.0;
        const LEFT: f64 = 230.0;
        const RIGHT: f64 = 830.0;
        const ROW: f64 = 22.0;
        const HEAD: f64 = 80.0;
        let rows_each = Side::ALL.len() as f64 + 1.0;
        let height = HEAD + ROW * rows_each * self.points.len() as f64 + 10.0;
        let most = self.points.iter().flat_map(|point| Side::ALL.map(|side| point.ns(side)));
        let most = most.fold(1000.0, f64::max);
        let mut drawing = Drawing::new(WIDTH, height);
        let title = "A request by datagram: the server's processor time";
        drawing.word((20.0, 28.0), Anchor::Start, 17, INK, title);
        let below =
            "ns, with all that receives and sends for the server in the kernel; logarithmic";
        drawing.word((20.0, 48.0), Anchor::Start, 12, PALE, below);
        let axis = LogAxis::new((100.0, most * 1.1), (LEFT, RIGHT));
        for mark in axis.marks() {
            let x = axis.at(mark);
            drawing.line((x, HEAD - 8.0), (x, height - 10.0), GRID, 1.0);
            drawing.word((x, HEAD - 12.0), Anchor::Middle, 10, PALE, &format!("{mark:.0}"));
        }
        for (place, point) in self.points.iter().enumerate() {
            let top = HEAD + ROW * rows_each * place as f64;
            let at = (20.0, top + 14.0);
            drawing.word(at, Anchor::Start, 13, INK, &point.asked.to_string());
            for (row, side) in Side::ALL.into_iter().enumerate() {
                let y = top + ROW * (row as f64 + 1.0);
                let colour = match side {
                    Side::Memcached => OTHER,
                    Side::Daemon => NOISE,
                    Side::Plane => OURS,
                };
                let (ns, name) = (point.ns(side), side.to_string());
                let end = axis.at(ns);
                drawing.word((LEFT - 8.0, y + 14.0), Anchor::End, 12, INK, &name);
                drawing.rectangle(LEFT, y + 3.0, end - LEFT, ROW - 6.0, colour);
                drawing.word((end + 6.0, y + 14.0), Anchor::Start, 11, INK, &thousands(ns));
            }
        }
        drawing.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::{Asked, Point, Reached, Run, Side};

    /// Rounds of another server's time over the plane's, which takes 100 ns.
    fn point(asked: Asked, ratios: &[f64], others: f64) -> Point {
        let beside = asked.goal().beside;
        let runs = ratios.iter().zip(0..).flat_map(|(ratio, round)| {
            [(beside, 100.0 * ratio), (Side::Plane, 100.0)].map(|(side, ns)| Run {
                round,
                side,
                requests: 1,
                lost: 0,
                seconds: 1.0,
                napi_ns: ns / 4.0,
                server_ns: ns / 4.0 * 3.0,
                in_kernel: 1.0,
                others: [others, 0.0],
            })
        });
        Point { asked, runs: runs.collect() }
    }

    #[test]
    fn a_goal_is_reached_by_the_middle_half_of_the_rounds() {
        let reached = |asked, ratios: &[f64]| point(asked, ratios, 0.01).reached();
        assert_eq!(reached(Asked::Hits, &[6.1, 6.2, 6.3, 6.4, 5.0]), Reached::Yes);
        assert_eq!(reached(Asked::Hits, &[5.1, 5.2, 5.3, 5.4, 7.0]), Reached::No);
        assert_eq!(reached(Asked::Hits, &[5.8, 5.9, 6.0, 6.1, 6.2]), Reached::Undecided);
        assert_eq!(reached(Asked::Hits, &[7.0, 9.0, 8.0, 12.0, 20.0]), Reached::Undecided);
        assert_eq!(reached(Asked::Hits, &[7.0, 7.0]), Reached::Undecided);
        assert_eq!(reached(Asked::Spaced, &[0.985, 0.99, 1.0]), Reached::Yes);
        assert_eq!(point(Asked::Hits, &[9.0; 5], 0.2).reached(), Reached::Undecided);
        assert_eq!(reached(Asked::Spaced, &[0.95, 0.955, 0.96]), Reached::No);
    }
}
