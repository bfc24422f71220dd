//! Connections that another process goes on with: what it must know of each, and how they cross
//! the socket pair between the two. It owns that form; it never reads what a client says.
#![forbid(unsafe_code)]

use crate::server::connection::Connection;
use crate::server::listener::{Accepted, Past};
use crate::server::shared::{ConnectionInfo, Peer};
use crate::server::talk::Talk;
use rustix::io::Errno;
use rustix::net::{SocketAddrAny, getpeername};
use serde::{Deserialize, Serialize};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Connections that cross in one message; the kernel takes 253 descriptors (`SCM_MAX_FD`).
const PARKED_PER_MESSAGE_MAX: usize = 64;

/// Bytes under way in one message and of one connection. One that keeps more, an answer that its
/// client does not read, is closed.
const TALK_LEN_MAX: usize = 2 << 20;

/// What is told of a connection beside its socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Where it was accepted, in memcached's notation.
    pub listener: String,
    /// What was said.
    pub talk: Talk,
}

/// A connection that nobody serves at the moment.
#[derive(Debug)]
pub struct Parked {
    /// Its socket.
    pub fd: OwnedFd,
    /// Everything else.
    pub told: Told,
}

impl Parked {
    /// Puts a connection aside. None in the middle of a value or of an answer: what is left of
    /// it cannot be told in bytes.
    #[must_use]
    pub fn new(fd: OwnedFd, info: &ConnectionInfo, connection: &mut Connection) -> Option<Self> {
        let talk = connection.talk().filter(|talk| talk.under_way_len() <= TALK_LEN_MAX)?;
        if info.is_reset() || info.is_idle_closed() {
            return None;
        }
        Some(Self { fd, told: Told { listener: info.listener.to_string(), talk } })
    }

    /// The connection as one that was accepted just now.
    ///
    /// # Errors
    /// The client has gone.
    pub fn unpark(self) -> io::Result<Accepted> {
        let Self { fd, told } = self;
        let peer = match getpeername(&fd) {
            Ok(Some(address)) => peer(address)?,
            // A client of a unix socket has no name.
            Ok(None) => Peer::Unix,
            Err(error) => return Err(error.into()),
        };
        let listener = Arc::from(told.listener);
        Ok(Accepted { fd, peer, listener, tls: None, past: Past::Process(Box::new(told.talk)) })
    }
}

fn peer(address: SocketAddrAny) -> Result<Peer, Errno> {
    match SocketAddr::try_from(address) {
        Ok(address) => Ok(Peer::Tcp(address)),
        Err(_) => Ok(Peer::Unix),
    }
}

/// What is told of connections, and their sockets in the same order.
pub type Message<'a> = (Vec<&'a Told>, Vec<BorrowedFd<'a>>);

/// The messages in which `parked` cross.
pub fn messages(parked: &[Parked]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = parked;
    std::iter::from_fn(move || {
        let (mut count, mut len) = (0, 0_usize);
        for one in rest.iter().take(PARKED_PER_MESSAGE_MAX) {
            len = len.saturating_add(one.told.talk.under_way_len());
            if count > 0 && len > TALK_LEN_MAX {
                break;
            }
            count += 1;
        }
        let (part, others) = rest.split_at(count);
        rest = others;
        let message = part.iter().map(|one| (&one.told, one.fd.as_fd())).unzip();
        (count > 0).then_some(message)
    })
}
