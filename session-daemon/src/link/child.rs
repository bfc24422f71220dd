//! The child's end: blocking, on a thread of its own.
#![forbid(unsafe_code)]

use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use crate::link::frame::{receive, send};
use crate::link::{LinkError, Reply, Request};

/// The child's end of the pair.
#[derive(Debug)]
pub struct ChildEnd {
    stream: UnixStream,
}

impl ChildEnd {
    /// Takes the socket over.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// Waits for the next request and the sockets that come with it. None: the parent is gone.
    ///
    /// # Errors
    /// The socket failed or the frame is no request; the pair is of no more use.
    pub fn receive(&mut self) -> Result<Option<(Request, Vec<OwnedFd>)>, LinkError> {
        receive(&self.stream)
    }

    /// Answers the request received last.
    ///
    /// # Errors
    /// The parent is gone or the socket failed.
    pub fn answer(&mut self, reply: &Reply) -> Result<(), LinkError> {
        self.answer_with(reply, &[])
    }

    /// [`ChildEnd::answer`] with descriptors beside the answer.
    ///
    /// # Errors
    /// As [`ChildEnd::answer`].
    pub fn answer_with(
        &mut self,
        reply: &Reply,
        beside: &[BorrowedFd<'_>],
    ) -> Result<(), LinkError> {
        send(&self.stream, reply, beside)
    }
}
