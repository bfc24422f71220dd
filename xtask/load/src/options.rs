//! What the load looks like: the command line.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Loads a memcached server and checks every reply.
#[derive(Clone, Debug, Parser)]
#[command(name = "session-load", version)]
pub struct Options {
    /// The server's address
    #[arg(long, value_name = "ADDRESS:PORT", required_unless_present = "unix")]
    pub tcp: Option<SocketAddr>,
    /// The server's unix socket
    #[arg(long, value_name = "PATH", conflicts_with = "tcp")]
    pub unix: Option<PathBuf>,
    /// Load by datagrams to this address instead; items are stored by --tcp, and --depth makes trains
    #[arg(long, value_name = "ADDRESS:PORT", requires = "tcp", conflicts_with_all = ["page", "rate", "gets", "multiget", "mix", "scan"])]
    pub udp: Option<SocketAddr>,
    /// Which of memcached's protocols
    #[arg(long, value_enum, default_value_t = Protocol::Text)]
    pub protocol: Protocol,
    /// Connections, over all threads
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub connections: u32,
    /// Requests written at once on a connection, before any of their replies is awaited
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub depth: u32,
    /// Keys of one get (text only)
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub multiget: u32,
    /// Share of gets among the requests, 0 to 1; the others are sets
    #[arg(long, value_name = "SHARE", default_value_t = 1.0)]
    pub gets: f64,
    /// Different keys
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    pub keys: u32,
    /// Length of the keys in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 24, value_parser = clap::value_parser!(u32).range(8..=250))]
    pub key_size: u32,
    /// Length of the values in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 100, value_parser = clap::value_parser!(u32).range(..=64_000_000))]
    pub value_size: u32,
    /// Store values with client flags 0, as most clients do with strings; without it each has its own
    #[arg(long)]
    pub no_flags: bool,
    /// Exponent of the keys' popularity by rank; 0 is uniform
    #[arg(long, value_name = "ALPHA", default_value_t = 0.0)]
    pub zipf: f64,
    /// A published mix, which sets the key and value lengths, --gets and --zipf
    #[arg(long, value_enum)]
    pub mix: Option<Mix>,
    /// A connection per page: connect, five commands as PHP's session handler sends them, close
    #[arg(long, conflicts_with_all = ["depth", "multiget", "gets", "mix", "rate"])]
    pub page: bool,
    /// Open loop: so many requests a second in all, at instants of a Poisson process
    #[arg(long, value_name = "PER_SECOND", conflicts_with = "depth")]
    pub rate: Option<f64>,
    /// Poll instead of sleeping while no reply is there; an open loop always does
    #[arg(long)]
    pub spin: bool,
    /// Threads, each with its share of the connections
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub threads: u32,
    /// Processors to run on
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    pub cpus: Vec<usize>,
    /// Store every item once before the load begins
    #[arg(long)]
    pub fill: bool,
    /// Instead of a load, get every item once and count those that are there
    #[arg(long, conflicts_with_all = ["rate", "page"])]
    pub scan: bool,
    /// Seconds of load before the measurement
    #[arg(long, value_name = "SECONDS", default_value_t = 0.3)]
    pub warmup: f64,
    /// Seconds of measurement
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    pub seconds: f64,
    /// Processes of the server, whose processor time is accounted
    #[arg(long, value_name = "PID,PID", value_delimiter = ',')]
    pub server: Vec<u32>,
    /// A miss is no fault: the server may have evicted or expired the item
    #[arg(long)]
    pub misses: bool,
    /// Seed of the random choices
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

/// One of memcached's protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// The classic text commands: get, set
    Text,
    /// The meta commands: mg, ms
    Meta,
    /// The binary protocol: GET, SET
    Binary,
}

/// A published mix of requests, keys and values; the sources are at `Shape::of` in `sizes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mix {
    /// Facebook's general pool ETC
    Etc,
    /// Twitter's cluster 4: large values, few writes
    Twitter4,
    /// Twitter's cluster 11: small values, read mostly
    Twitter11,
    /// Twitter's cluster 29: medium values, a write in seven
    Twitter29,
}
