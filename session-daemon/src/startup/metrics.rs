//! The metrics' listening socket: bound by the parent, served by a thread of the serving process,
//! so that no byte of a scraper's is read by whoever can change the guard.
#![forbid(unsafe_code)]

use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use anyhow::{Context, Result};

use crate::command::request::StatsTopic;
use crate::config::{EXIT_OS, MetricsListen, Refusal};
use crate::control::metrics::http;
use crate::control::metrics::{Figures, text};
use crate::control::socket::ControlSocket;
use crate::startup::child::SharedServer;

/// A listening socket in the serving process.
pub(super) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A listening socket in the parent; the path of a unix socket goes when this is dropped.
pub(super) enum Bound {
    Tcp(TcpListener),
    Unix(
        UnixListener,
        #[expect(dead_code, reason = "removes its path when dropped")] ControlSocket,
    ),
}

impl Bound {
    /// Whether it is a unix socket.
    pub(super) fn is_unix(&self) -> bool {
        matches!(self, Self::Unix(..))
    }
}

impl Bound {
    /// The socket that another program in this process has bound for `listen`.
    pub(super) fn made_before(socket: OwnedFd, listen: &MetricsListen) -> Result<Self> {
        Ok(match listen {
            MetricsListen::Tcp(_) => Self::Tcp(TcpListener::from(socket)),
            MetricsListen::Unix(path) => {
                Self::Unix(UnixListener::from(socket), ControlSocket::made_before(path)?)
            }
        })
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener, _) => listener.as_fd(),
        }
    }
}

/// Binds the socket and listens; nobody is answered before the serving process has it.
pub(super) fn bind(listen: &MetricsListen) -> Result<Bound> {
    match listen {
        MetricsListen::Tcp(address) => {
            if !address.ip().is_loopback() {
                log::warn!(
                    "--metrics-listen {address}: whoever reaches it reads the figures; \
                     the list does not guard this port"
                );
            }
            let listener = TcpListener::bind(address).map_err(|error| {
                let text = format!("--metrics-listen {address}: {error}; name another port");
                Refusal::new(EXIT_OS, text)
            })?;
            listener.set_nonblocking(true)?;
            Ok(Bound::Tcp(listener))
        }
        MetricsListen::Unix(path) => {
            let (socket, listener) = ControlSocket::bind(path)
                .map_err(anyhow::Error::new)
                .context("--metrics-listen")?;
            // As a port of the loopback: whoever is on this host and may enter the directory.
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))
                .with_context(|| format!("--metrics-listen: {}", path.display()))?;
            Ok(Bound::Unix(listener, socket))
        }
    }
}

/// Serves on a thread of its own, which ends with the process.
pub(super) fn start(socket: Socket, server: SharedServer) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let page = move || {
        let server = server.lock().ok()?;
        let server = server.as_ref()?;
        Some(text::render(&Figures {
            general: server.statistics(StatsTopic::General),
            settings: server.statistics(StatsTopic::Settings),
            items: server.statistics(StatsTopic::Items),
            slabs: server.statistics(StatsTopic::Slabs),
            guard: server.statistics(StatsTopic::Guard),
        }))
    };
    let work = move || {
        let local = tokio::task::LocalSet::new();
        let served = local.block_on(&runtime, async move {
            match socket {
                Socket::Tcp(listener) => {
                    let listener = tokio::net::TcpListener::from_std(listener)?;
                    http::serve(|| async { Ok(listener.accept().await?.0) }, page).await
                }
                Socket::Unix(listener) => {
                    let listener = tokio::net::UnixListener::from_std(listener)?;
                    http::serve(|| async { Ok(listener.accept().await?.0) }, page).await
                }
            }
        });
        if let Err(error) = served {
            log::error!("metrics: {error}; they are served no more");
        }
    };
    std::thread::Builder::new()
        .name("metrics".to_owned())
        .spawn(work)
        .context("starting metrics")?;
    Ok(())
}
