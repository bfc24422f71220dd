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
    if config.io == Io::Tokio {
        return Ok(Engine::Tokio);
    }
    match (config.io, probe(config.threads.into())) {
        (Io::Auto, Ok(())) => Ok(Engine::Both),
        (Io::Auto, Err(lacking)) => {
            log::info!("clients are served by way of epoll: {lacking}");
            Ok(Engine::Tokio)
        }
        (_, probed) => probed.map(|()| Engine::Uring).map_err(|lacking| {
            let advice = "leave the flag out to serve clients by way of epoll";
            Refusal::new(EXIT_OS, format!("--io=uring: {lacking}; {advice}"))
        }),
    }
}

/// Refuses, before anything listens, an engine that was asked for and cannot be had. What only the
/// serving process is refused, without the parent's capabilities, it tells itself.
///
/// # Errors
/// As for [`choose`].
pub(super) fn check(config: &Config) -> Result<(), Refusal> {
    if config.io == Io::Uring { choose(config).map(drop) } else { Ok(()) }
}
