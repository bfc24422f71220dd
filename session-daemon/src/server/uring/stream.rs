//! A client's socket under io_uring. It owns the order of sending and receiving; the memory and
//! the requests are the business of `ring`.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::command::counters::Counter;
use crate::server::buffers::Wire;
use crate::server::client::{Presence, cannot_keep_request, keep_answers, write_timed_out};
use crate::server::connection::Connection;
use crate::server::shared::{Activity, ConnectionInfo};
use crate::server::socket::{self, read_now};
use crate::server::stream::Stream;
use crate::server::uring::reactor::Reactor;
use crate::server::worker::Local;
use crate::uring::ring::{Event, Left};
use rustix::net::{SendAncillaryBuffer, SendFlags, send, sendmsg, sockopt};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// In place of a line that another process has.
const NO_LINE: usize = usize::MAX;

/// A client's socket under io_uring.
pub struct UringStream {
    reactor: Rc<Reactor>,
    line_idx: usize,
    /// None when it was given up.
    fd: Option<Rc<OwnedFd>>,
    info: Arc<ConnectionInfo>,
    local: Rc<Local>,
}

impl UringStream {
    /// Hands the descriptor to the ring of this thread.
    #[must_use]
    pub fn new(reactor: Rc<Reactor>, fd: OwnedFd, presence: &Presence) -> Self {
        let (fd, info) = (Rc::new(fd), Arc::clone(&presence.info));
        let line_idx = reactor.ring().open(Rc::clone(&fd), Arc::clone(&info));
        Self { reactor, line_idx, fd: Some(fd), info, local: Rc::clone(&presence.local) }
    }

    /// Gives the socket up, for another engine to go on with. None while something of it is under
    /// way in the ring.
    pub fn take(&mut self) -> Option<OwnedFd> {
        let mut ring = self.reactor.ring();
        if !ring.is_resting(self.line_idx) {
            return None;
        }
        ring.close(std::mem::replace(&mut self.line_idx, NO_LINE));
        Rc::into_inner(self.fd.take()?)
    }

    fn fd(&self) -> &OwnedFd {
        self.fd.as_deref().expect("it is given up together with the stream")
    }

    /// Begins to send all answers.
    fn begin_to_send(&self, connection: &mut Connection) {
        if !connection.output().is_empty() {
            self.info.doing(Activity::Write, true);
            let (bytes, sent) = connection.take_output();
            self.reactor.ring().send(self.line_idx, bytes, sent, connection.is_busy());
        }
    }

    async fn event(&self, for_bytes: bool) -> io::Result<Event> {
        poll_fn(|context| self.reactor.ring().poll(self.line_idx, for_bytes, context)).await
    }

    /// Waits until a slow client has taken all.
    async fn wait_for_room(&self, presence: &Presence) -> io::Result<()> {
        let limit = presence.local.shared.config.write_timeout;
        let mut event = Event::Stuck;
        while event == Event::Stuck {
            let kept_len = self.reactor.ring().kept_len(self.line_idx);
            keep_answers(presence, kept_len)?;
            let taken = tokio::time::timeout(limit, self.event(false)).await;
            event = taken.map_err(|_| write_timed_out(presence))??;
        }
        presence.hold(0);
        Ok(())
    }

    /// Takes what came with the completion, and behind a full buffer what the socket has besides.
    fn take_received(&self, connection: &mut Connection, presence: &Presence) -> io::Result<usize> {
        let mut pool = presence.local.pool.borrow_mut();
        let space = connection.space(&mut pool);
        let (mut len, may_be_more) = {
            let mut ring = self.reactor.ring();
            let is_full = ring.is_full(self.line_idx);
            (ring.copy(self.line_idx, space)?, is_full)
        };
        if may_be_more && let Some(rest) = space.get_mut(len..).filter(|rest| !rest.is_empty()) {
            // The end, or why there is nothing, is met again by the next receive.
            len = len.saturating_add(read_now(self.fd(), rest).unwrap_or_default());
        }
        connection.filled(len);
        Ok(len)
    }
}

impl Stream for UringStream {
    fn leave(&mut self, connection: &mut Connection) -> Option<OwnedFd> {
        let line_idx = std::mem::replace(&mut self.line_idx, NO_LINE);
        let Left { received, unsent } = self.reactor.ring().leave(line_idx)?;
        let mut pool = self.local.pool.borrow_mut();
        let space = connection.space(&mut pool).get_mut(..received.len())?;
        space.copy_from_slice(&received);
        connection.filled(received.len());
        connection.take_back(&unsent, &mut pool);
        // The ring has let go of it by now: no second descriptor is needed, of which none may be left.
        Rc::try_unwrap(self.fd.take()?).or_else(|shared| shared.try_clone()).ok()
    }

    fn wire(&self) -> &dyn Wire {
        self
    }

    async fn flush(&mut self, connection: &mut Connection, presence: &Presence) -> io::Result<()> {
        self.begin_to_send(connection);
        if self.event(false).await? == Event::Stuck {
            connection.rest(&mut presence.local.pool.borrow_mut());
            self.wait_for_room(presence).await?;
        }
        Ok(())
    }

    async fn flush_last(
        &mut self,
        connection: &mut Connection,
        presence: &Presence,
    ) -> io::Result<()> {
        // Nothing is on its way, and nobody waits behind it for whom a call could be saved.
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL | SendFlags::MORE;
        if !connection.output().is_empty()
            && let Ok(len) = send(self.fd(), connection.output(), flags)
        {
            self.local.counters().add(Counter::BytesWritten, len as u64);
            connection.sent(len, &mut presence.local.pool.borrow_mut());
            if connection.output().is_empty() {
                self.finish();
                return Ok(());
            }
        }
        self.flush(connection, presence).await
    }

    async fn exchange(
        &mut self,
        connection: &mut Connection,
        presence: &Presence,
    ) -> io::Result<usize> {
        connection.rest(&mut presence.local.pool.borrow_mut());
        if connection.output().is_empty() && !self.info.is_watching() {
            self.info.doing(Activity::Read, connection.is_busy());
        }
        self.begin_to_send(connection);
        loop {
            // The answers are the ring's by now: what is left is half a request.
            if !presence.hold(connection.kept_len()) {
                self.flush(connection, presence).await?;
                return Err(cannot_keep_request(presence, self));
            }
            if self.event(true).await? == Event::Received {
                break;
            }
            self.wait_for_room(presence).await?;
        }
        presence.hold(0);
        self.take_received(connection, presence)
    }

    fn finish(&self) {
        socket::finish(self.fd());
    }
}

impl Wire for UringStream {
    fn send(&self, parts: &[IoSlice<'_>]) -> usize {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = sendmsg(self.fd(), parts, &mut SendAncillaryBuffer::default(), flags);
        let len = sent.unwrap_or_default();
        self.local.counters().add(Counter::BytesWritten, len as u64);
        len
    }
}

impl Drop for UringStream {
    fn drop(&mut self) {
        let mut ring = self.reactor.ring();
        if let Some(fd) = self.fd.as_deref().filter(|_| self.info.is_reset()) {
            // A failure means that the connection is gone already.
            let _ = sockopt::set_socket_linger(fd, Some(Duration::ZERO));
        }
        ring.close(self.line_idx);
        if self.info.is_reset() {
            // Whoever asked for it waits until it is done.
            ring.turn();
        }
    }
}
