//! What is measured: every point of the comparison, as arguments of `session-load`.
#![forbid(unsafe_code)]

use anyhow::{Result, bail};

/// A point of the comparison.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    /// Arguments of `session-load`.
    pub(super) load: &'static [&'static str],
    /// Worker threads of the server.
    pub(super) threads: u32,
    pub(super) transport: Transport,
    /// Share of the other server's peak at which requests come, or none for a closed loop.
    pub(super) of_peak: Option<f64>,
}

/// How clients reach the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Unix,
    Udp,
}

impl Point {
    const fn tcp(name: &'static str, title: &'static str, load: &'static [&'static str]) -> Self {
        Self { name, title, load, threads: 1, transport: Transport::Tcp, of_peak: None }
    }

    const fn unix(self) -> Self {
        Self { transport: Transport::Unix, ..self }
    }

    const fn udp(self) -> Self {
        Self { transport: Transport::Udp, ..self }
    }

    const fn threads(self, threads: u32) -> Self {
        Self { threads, ..self }
    }

    const fn at(self, of_peak: f64) -> Self {
        Self { of_peak: Some(of_peak), ..self }
    }
}

/// The point whose throughput is the peak of which the latency points are shares.
pub(super) const PEAK: Point = Point::tcp("peak", "peak of GET, 50 connections", &[]);

/// All points. What an argument leaves open is `session-load`'s default: 50 connections, 100 000
/// keys of 24 bytes, values of 100 bytes, each key as likely as the others.
#[rustfmt::skip]
pub(super) const POINTS: &[Point] = &[
    Point::tcp("get-1", "GET, 1 connection", &["--connections", "1"]),
    Point::tcp("get-10", "GET, 10 connections", &["--connections", "10"]),
    Point::tcp("get-50", "GET, 50 connections", &[]),
    Point::tcp("get-200", "GET, 200 connections", &["--connections", "200"]),
    Point::tcp("depth-8", "GET, 8 at once", &["--depth", "8"]),
    Point::tcp("depth-32", "GET, 32 at once", &["--depth", "32"]),
    Point::tcp("depth-128", "GET, 128 at once", &["--depth", "128"]),
    Point::tcp("multiget-10", "GET of 10 keys", &["--multiget", "10"]),
    Point::tcp("multiget-100", "GET of 100 keys", &["--multiget", "100"]),
    Point::tcp("set-50", "SET, 50 connections", &["--gets", "0"]),
    Point::tcp("set-depth-32", "SET, 32 at once", &["--gets", "0", "--depth", "32"]),
    Point::tcp("mixed", "9 GET to 1 SET", &["--gets", "0.9"]),
    Point::tcp("value-1k", "GET of 1 KB", &["--value-size", "1024"]),
    Point::tcp("value-10k", "GET of 10 KB", &["--value-size", "10240", "--keys", "10000"]),
    Point::tcp("value-100k", "GET of 100 KB", &["--value-size", "102400", "--keys", "1000"]),
    Point::tcp("value-1m", "GET of 1 MB", &["--value-size", "1000000", "--keys", "100"]),
    Point::tcp("set-10k", "SET of 10 KB", &["--gets", "0", "--value-size", "10240", "--keys", "10000"]),
    Point::tcp("meta", "meta get, 50 connections", &["--protocol", "meta"]),
    Point::tcp("meta-depth-32", "meta get, 32 at once", &["--protocol", "meta", "--depth", "32"]),
    Point::tcp("binary", "binary GET, 50 connections", &["--protocol", "binary"]),
    Point::tcp("binary-depth-32", "binary GET, 32 at once", &["--protocol", "binary", "--depth", "32"]),
    Point::tcp("page", "connection per page", &["--page"]),
    Point::tcp("unix", "GET, unix socket", &[]).unix(),
    Point::tcp("unix-depth-32", "GET, unix socket, 32 at once", &["--depth", "32"]).unix(),
    Point::tcp("udp", "GET, UDP", &[]).udp(),
    Point::tcp("udp-train-16", "GET, UDP, trains of 16", &["--depth", "16"]).udp(),
    Point::tcp("threads-2-get", "GET, 2 threads", &[]).threads(2),
    Point::tcp("threads-2-set", "SET, 2 threads", &["--gets", "0"]).threads(2),
    Point::tcp("threads-2-depth-32", "GET, 2 threads, 32 at once", &["--depth", "32"]).threads(2),
    Point::tcp("threads-2-set-depth-32", "SET, 2 threads, 32 at once", &["--gets", "0", "--depth", "32"]).threads(2),
    Point::tcp("etc", "Facebook ETC mix", &["--mix", "etc"]),
    Point::tcp("twitter-29", "Twitter cluster 29 mix", &["--mix", "twitter29"]),
    Point::tcp("latency-50", "GET at 50 % of the peak", &[]).at(0.5),
    Point::tcp("latency-70", "GET at 70 % of the peak", &[]).at(0.7),
    Point::tcp("latency-90", "GET at 90 % of the peak", &[]).at(0.9),
];

/// The points whose names begin with one of `chosen`; all when none is chosen.
pub(super) fn choose(chosen: &[String]) -> Result<Vec<&'static Point>> {
    for begin in chosen {
        if !POINTS.iter().any(|point| point.name.starts_with(begin.as_str())) {
            let names: Vec<&str> = POINTS.iter().map(|point| point.name).collect();
            bail!("no point begins with {begin:?}; there are: {}", names.join(", "));
        }
    }
    let is_chosen = |point: &&Point| {
        chosen.is_empty() || chosen.iter().any(|begin| point.name.starts_with(begin.as_str()))
    };
    Ok(POINTS.iter().filter(is_chosen).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use clap::Parser;

    use super::{POINTS, choose};

    #[test]
    fn every_point_has_its_own_name_and_arguments_that_the_load_takes() {
        let mut names = HashSet::new();
        for point in POINTS {
            assert!(names.insert(point.name), "{} twice", point.name);
            let arguments = ["session-load", "--tcp", "127.0.0.1:1"].iter().chain(point.load);
            let parsed = session_load::options::Options::try_parse_from(arguments);
            assert!(parsed.is_ok(), "{}: {}", point.name, parsed.unwrap_err());
        }
    }

    #[test]
    fn points_are_chosen_by_how_their_names_begin() {
        assert_eq!(choose(&[]).unwrap().len(), POINTS.len());
        assert_eq!(choose(&["get-1".into(), "page".into()]).unwrap().len(), 3);
        assert!(choose(&["nothing".into()]).is_err());
    }
}
