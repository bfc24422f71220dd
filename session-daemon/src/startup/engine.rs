//! Which engine moves the clients' bytes (`--io`). It owns the choice; the engines are the server's.
#![forbid(unsafe_code)]

use crate::config::{Config, EXIT_OS, Io, Refusal};
use crate::server::config::Engine;
use crate::server::uring::probe::probe;

/// The engine for this process, which is the one that serves.
///
/// # Errors
/// When `--io=uring` was asked for and cannot be had.
pub(super) fn choose(config: &Config) -> Result<Engine, Refusal> {
    match config.io {
        // io_uring costs more than it saves while few connections speak at a time, which is not
        // known beforehand: the measurements are in docs/benchmarks.md.
        Io::Auto | Io::Tokio => Ok(Engine::Tokio),
        Io::Uring => probe(config.threads.into()).map(|()| Engine::Uring).map_err(|lacking| {
            let advice = "leave the flag out to serve clients by way of epoll";
            Refusal::new(EXIT_OS, format!("--io=uring: {lacking}; {advice}"))
        }),
    }
}

/// Refuses, before anything listens, an engine that cannot be had. What only the serving process
/// is refused, without the parent's capabilities, it tells itself.
///
/// # Errors
/// As for [`choose`].
pub(super) fn check(config: &Config) -> Result<(), Refusal> {
    choose(config).map(drop)
}
