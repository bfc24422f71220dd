//! A client's socket under the engine that suits the moment: epoll while few clients speak at a
//! time, io_uring while many do. It owns the change between the two; what each of them does is its
//! own business.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::server::buffers::Wire;
use crate::server::client::{Presence, TokioStream};
use crate::server::config::Engine;
use crate::server::connection::Connection;
use crate::server::stream::Stream;
use crate::server::uring::reactor::Reactor;
use crate::server::uring::stream::UringStream;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// A client's socket under either engine.
pub enum MixedStream {
    /// Few spoke when it last did.
    Epoll(TokioStream),
    /// Many did.
    Ring(UringStream),
}

impl MixedStream {
    /// Hands the descriptor to the engine that suits the moment.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub fn new(fd: OwnedFd, presence: &Presence) -> io::Result<Self> {
        Self::with(presence.local.reactor_of_many(), fd, presence)
    }

    fn with(ring: Option<&Rc<Reactor>>, fd: OwnedFd, presence: &Presence) -> io::Result<Self> {
        Ok(match ring {
            Some(reactor) => Self::Ring(UringStream::new(Rc::clone(reactor), fd, presence)),
            None => Self::Epoll(TokioStream::new(fd, presence)?),
        })
    }

    /// Goes over to the engine that suits the moment. What is not sent yet is the connection's, and
    /// what is not received the socket's.
    fn suit(&mut self, connection: &Connection, presence: &Presence) -> io::Result<()> {
        let local = &presence.local;
        // The ring sends no value from the store: what is left of a large one would be copied.
        let may_use_ring = local.shared.config.engine == Engine::Uring || !connection.is_pinned();
        let ring = local.reactor_of_many().filter(|_| may_use_ring);
        let fd = match self {
            Self::Epoll(stream) if ring.is_some() => stream.take(),
            Self::Ring(stream) if ring.is_none() => stream.take(),
            _ => None,
        };
        if let Some(fd) = fd {
            *self = Self::with(ring, fd, presence)?;
        }
        Ok(())
    }
}

impl Stream for MixedStream {
    fn wire(&self) -> &dyn Wire {
        match self {
            Self::Epoll(stream) => stream.wire(),
            Self::Ring(stream) => stream.wire(),
        }
    }

    async fn flush(&mut self, connection: &mut Connection, presence: &Presence) -> io::Result<()> {
        self.suit(connection, presence)?;
        match self {
            Self::Epoll(stream) => stream.flush(connection, presence).await,
            Self::Ring(stream) => stream.flush(connection, presence).await,
        }
    }

    async fn flush_last(
        &mut self,
        connection: &mut Connection,
        presence: &Presence,
    ) -> io::Result<()> {
        match self {
            Self::Epoll(stream) => stream.flush_last(connection, presence).await,
            Self::Ring(stream) => stream.flush_last(connection, presence).await,
        }
    }

    async fn exchange(
        &mut self,
        connection: &mut Connection,
        presence: &Presence,
    ) -> io::Result<usize> {
        self.suit(connection, presence)?;
        match self {
            Self::Epoll(stream) => stream.exchange(connection, presence).await,
            Self::Ring(stream) => stream.exchange(connection, presence).await,
        }
    }

    fn finish(&self) {
        match self {
            Self::Epoll(stream) => stream.finish(),
            Self::Ring(stream) => stream.finish(),
        }
    }

    fn leave(&mut self, connection: &mut Connection) -> Option<OwnedFd> {
        match self {
            Self::Epoll(stream) => stream.leave(connection),
            Self::Ring(stream) => stream.leave(connection),
        }
    }
}
