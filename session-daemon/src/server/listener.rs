//! Accepting connections: who may come in, and how many. It owns the listening sockets; it never
//! reads what a client sends.
#![forbid(unsafe_code)]

use crate::command::counters::Counter;
use crate::protocol::text::encode::TOO_MANY_CONNECTIONS;
use crate::server::placement::place;
use crate::server::shared::{Peer, Shared};
use crate::server::socket::{finish, read_now, watch, yield_turn};
use crate::server::talk::Talk;
use crate::server::tls::Verify;
use crate::server::worker::Local;
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketAddrAny, SocketFlags, acceptfrom_with, send, sockopt};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::Interest;

/// Connections accepted in a row before the clients have their turn.
const ACCEPTS_PER_TURN_MAX: u32 = 16;

/// Bytes of a connection too many that are passed over: the usual first request.
const PASSED_OVER_LEN: usize = 4 << 10;

/// How long to wait for descriptors or memory, or for a free place, before trying again.
const RETRY: Duration = Duration::from_millis(50);

/// A listening socket.
#[derive(Debug)]
pub struct Door {
    fd: OwnedFd,
    unix: bool,
    tls: Option<Verify>,
    notation: Arc<str>,
}

impl Door {
    /// Prepares a TCP socket that is bound and listening.
    ///
    /// # Errors
    /// When the kernel refuses an option.
    pub fn tcp(socket: TcpListener, tls: Option<Verify>) -> io::Result<Self> {
        let notation = Peer::Tcp(socket.local_addr()?).notation(None);
        // Accepted sockets inherit both.
        let fd = OwnedFd::from(socket);
        sockopt::set_tcp_nodelay(&fd, true)?;
        sockopt::set_socket_keepalive(&fd, true)?;
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { fd, unix: false, tls, notation: notation.into() })
    }

    /// Prepares a unix socket that is bound and listening.
    ///
    /// # Errors
    /// When the kernel refuses an option.
    pub fn unix(socket: UnixListener, path: Option<&str>) -> io::Result<Self> {
        let fd = OwnedFd::from(socket);
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { fd, unix: true, tls: None, notation: Peer::Unix.notation(path).into() })
    }

    /// Its descriptor and where it listens.
    #[must_use]
    pub fn listing(&self) -> (i32, Arc<str>) {
        (self.fd.as_raw_fd(), Arc::clone(&self.notation))
    }
}

/// A connection that may be served.
#[derive(Debug)]
pub struct Accepted {
    /// Its socket, which does not block.
    pub fd: OwnedFd,
    /// Where the client is.
    pub peer: Peer,
    /// Where it was accepted.
    pub listener: Arc<str>,
    /// What TLS asks of it; none for plain text.
    pub tls: Option<Verify>,
    /// What became of it before.
    pub past: Past,
}

/// What became of a connection before it comes to a worker.
#[derive(Debug)]
pub enum Past {
    /// It was accepted just now.
    None,
    /// Another process has served it; what was said.
    Process(Box<Talk>),
    /// Another worker has served it; what was said.
    Worker(Box<Talk>),
}

impl Accepted {
    /// Whether it is taken for one that stays, and so is where it ought to be.
    #[must_use]
    pub fn stays(&self) -> bool {
        self.tls.is_some() || !matches!(self.past, Past::None)
    }
}

/// Accepts for as long as the worker runs.
pub async fn accept(local: Rc<Local>, door: Door) {
    let Door { fd, unix, tls, notation } = door;
    let fd = match watch(fd, Interest::READABLE) {
        Ok(fd) => fd,
        Err(error) => return log::error!("{notation}: cannot listen: {error}"),
    };
    loop {
        let mut ready = match fd.readable().await {
            Ok(ready) => ready,
            Err(error) => return log::error!("{notation}: cannot listen any more: {error}"),
        };
        for _ in 0..ACCEPTS_PER_TURN_MAX {
            if !local.shared.config.maxconns_fast {
                wait_for_place(&local.shared).await;
            }
            match acceptfrom_with(fd.get_ref(), SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok((socket, address)) => admit(&local, socket, address, (unix, tls), &notation),
                Err(Errno::AGAIN) => {
                    ready.clear_ready();
                    break;
                }
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    pause(&local, &notation).await;
                }
                // The client has gone, or the network has: the next one may be there.
                Err(_) => {}
            }
        }
        yield_turn().await;
    }
}

/// Without descriptors or memory accepting fails until somebody leaves: trying at once would
/// only burn a processor.
async fn pause(local: &Local, notation: &str) {
    local.counters().add_one(Counter::ListenDisabled);
    // Relaxed: only shown in `stats`.
    if local.shared.accepting.swap(false, Ordering::Relaxed) {
        log::warn!("{notation}: no descriptor or memory for another connection");
    }
    tokio::time::sleep(RETRY).await;
    local.shared.accepting.store(true, Ordering::Relaxed);
}

async fn wait_for_place(shared: &Shared) {
    while shared.connections.load(Ordering::Relaxed) >= shared.config.conns_max {
        shared.accepting.store(false, Ordering::Relaxed);
        tokio::time::sleep(RETRY).await;
    }
    shared.accepting.store(true, Ordering::Relaxed);
}

fn admit(
    local: &Rc<Local>,
    fd: OwnedFd,
    address: Option<SocketAddrAny>,
    (unix, tls): (bool, Option<Verify>),
    notation: &Arc<str>,
) {
    let peer = if unix {
        Peer::Unix
    } else {
        // A TCP client whose address the kernel no longer knows has gone.
        let Some(address) = address.and_then(|address| SocketAddr::try_from(address).ok()) else {
            return;
        };
        Peer::Tcp(address)
    };
    if !local.shared.admits(&peer, local.now()) {
        local.counters().add_one(Counter::RejectedByList);
        // With a linger of 0 the close sends a reset. A failure means that it is closed already.
        let _ = sockopt::set_socket_linger(&fd, Some(Duration::ZERO));
        return;
    }
    if local.shared.config.sockets_filtered && !unix {
        // From here on the list is enforced by closing; the filter would cost at each segment.
        let _ = socket2::SockRef::from(&fd).detach_filter();
    }
    local.counters().add_one(Counter::TotalConnections);
    if !local.shared.take_place() {
        local.counters().add_one(Counter::RejectedConnections);
        // Whether or not the client hears why, it is closed.
        let _ = send(&fd, TOO_MANY_CONNECTIONS, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        // What it has said already is passed over, or a reset could overtake the words. Nobody
        // waits for more: beyond `-c` no connection stays.
        finish(&fd);
        let _ = read_now(&fd, &mut [0; PASSED_OVER_LEN]);
        return;
    }
    let (listener, past) = (Arc::clone(notation), Past::None);
    place(local, Accepted { fd, peer, listener, tls, past });
}
