//! What was measured, as it is written to JSON and read by the table and the plots.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use session_load::report::Report;

use super::machine::Machine;
use super::servers::Side;
use super::statistics::{LATENCY_SPREAD_MAX, SPREAD_MAX, STOLEN_MAX, Spread, Verdict, WAIT_MAX};

/// A comparison.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Results {
    pub(super) machine: Machine,
    /// Versions in the servers' own words.
    pub(super) ours: String,
    pub(super) other: String,
    pub(super) rounds: u32,
    pub(super) seconds: f64,
    /// Requests a second that the latency points are shares of.
    pub(super) peak: Option<f64>,
    pub(super) points: Vec<PointResult>,
}

/// A point of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct PointResult {
    pub(super) name: String,
    pub(super) title: String,
    pub(super) load: Vec<String>,
    pub(super) threads: u32,
    /// Requests a second of an open loop.
    pub(super) rate: Option<f64>,
    /// Server and generator ran on the same processors.
    pub(super) shared: bool,
    pub(super) runs: Vec<Run>,
}

/// One run of one server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) round: u32,
    pub(super) side: Side,
    pub(super) report: Report,
}

/// A ratio over the rounds and what it says; above 1 is better for us.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ratio {
    pub(super) spread: Spread,
    pub(super) verdict: Verdict,
}

impl PointResult {
    /// The words of a server that does not serve this point.
    pub(super) fn not_served(&self, side: Side) -> Option<&str> {
        self.of(side).find_map(|run| run.report.not_served.as_deref())
    }

    /// A wrong reply or a broken connection.
    pub(super) fn fault(&self, side: Side) -> Option<&str> {
        self.of(side).find_map(|run| run.report.fault.as_deref())
    }

    fn of(&self, side: Side) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(move |run| run.side == side)
    }

    /// The median of something over a server's rounds.
    pub(super) fn median(&self, side: Side, of: impl Fn(&Report) -> Option<f64>) -> Option<f64> {
        let numbers = self.of(side).filter(|run| run.report.requests > 0);
        Spread::of(numbers.filter_map(|run| of(&run.report))).map(|spread| spread.median)
    }

    /// The other server's processor time a request over ours.
    pub(super) fn processor(&self) -> Option<Ratio> {
        self.ratio(|ours, other| Some(other.server_ns()? / ours.server_ns()?), SPREAD_MAX, false)
    }

    /// Our throughput over the other server's; an open loop has none.
    pub(super) fn throughput(&self) -> Option<Ratio> {
        if self.rate.is_some() || self.shared {
            return None;
        }
        let ratio =
            |ours: &Report, other: &Report| Some(ours.requests_per_s() / other.requests_per_s());
        self.ratio(ratio, SPREAD_MAX, self.is_disturbed())
    }

    /// The other server's latency at a rank over ours; of an open loop alone.
    pub(super) fn latency(&self, rank: impl Fn(&Report) -> u64) -> Option<Ratio> {
        self.rate?;
        let ratio = |ours: &Report, other: &Report| Some(rank(other) as f64 / rank(ours) as f64);
        self.ratio(ratio, LATENCY_SPREAD_MAX, self.is_disturbed())
    }

    fn ratio(
        &self,
        of: impl Fn(&Report, &Report) -> Option<f64>,
        spread_max: f64,
        disturbed: bool,
    ) -> Option<Ratio> {
        let mut ratios = Vec::new();
        for ours in self.of(Side::Ours).filter(|run| run.report.requests > 0) {
            let other = self.of(Side::Other).find(|run| run.round == ours.round);
            let other = other.filter(|run| run.report.requests > 0);
            ratios.extend(other.and_then(|other| of(&ours.report, &other.report)));
        }
        let spread = Spread::of(ratios.iter().copied())?;
        Some(Ratio { spread, verdict: Verdict::of(&spread, ratios.len(), spread_max, disturbed) })
    }

    /// Whether something else kept the servers or the generator from running in the median round.
    pub(super) fn is_disturbed(&self) -> bool {
        [Side::Ours, Side::Other].into_iter().any(|side| {
            let over = |of: fn(&Report) -> f64, max| {
                self.median(side, |report| Some(of(report))).is_some_and(|share| share > max)
            };
            let wait = |report: &Report| {
                let ns = report.server.wait_ns.max(report.load.wait_ns);
                ns as f64 / 1e9 / report.seconds
            };
            over(wait, WAIT_MAX) || over(|report| report.stolen, STOLEN_MAX)
        })
    }
}
