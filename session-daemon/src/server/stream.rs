//! What a connection asks of the engine that moves its bytes. The engines are `socket` (tokio) and
//! `uring`; what is said over a stream is the business of `client`.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::server::buffers::Wire;
use crate::server::client::Presence;
use crate::server::connection::Connection;
use std::io;
use std::os::fd::OwnedFd;

/// A client's socket, under some engine. Whatever waits may be dropped while it does.
pub trait Stream {
    /// The socket's own send, for values that go to the kernel from where they stand. Nothing may
    /// be on its way by [`Stream::flush`].
    fn wire(&self) -> &dyn Wire;

    /// Sends all answers, waiting for a client that is slow to read them.
    ///
    /// # Errors
    /// What the kernel says, and when too much or for too long would be kept.
    fn flush(
        &mut self,
        connection: &mut Connection,
        presence: &Presence,
    ) -> impl Future<Output = io::Result<()>>;

    /// Sends all answers, the last of the connection: where the engine can, its end goes with them, in
    /// one segment.
    ///
    /// # Errors
    /// As for [`Stream::flush`].
    fn flush_last(
        &mut self,
        connection: &mut Connection,
        presence: &Presence,
    ) -> impl Future<Output = io::Result<()>> {
        self.flush(connection, presence)
    }

    /// Sends all answers and waits for the client's next bytes, which the connection takes. How
    /// many there were, 0 at the end.
    ///
    /// # Errors
    /// As for [`Stream::flush`], and when what is half received may not be kept.
    fn exchange(
        &mut self,
        connection: &mut Connection,
        presence: &Presence,
    ) -> impl Future<Output = io::Result<usize>>;

    /// Says that nothing follows: the client hears the end behind the last answer.
    fn finish(&self);

    /// Gives the socket up, for another process to go on with; what was received by then, and what
    /// is not sent, is the connection's. None when the client has gone.
    fn leave(&mut self, connection: &mut Connection) -> Option<OwnedFd>;
}
