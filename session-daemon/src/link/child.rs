//! The child's end: blocking, on a thread of its own.
#![forbid(unsafe_code)]

use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use crate::link::frame::{body_len, decode, encode, recv_header};
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
        let Some((header, sockets)) = recv_header(&self.stream)? else { return Ok(None) };
        let mut body = vec![0; body_len(header)?];
        match self.stream.read_exact(&mut body) {
            Ok(()) => Ok(Some((decode(&body)?, sockets))),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(LinkError::Closed),
            Err(error) => Err(error.into()),
        }
    }

    /// Answers the request received last.
    ///
    /// # Errors
    /// The parent is gone or the socket failed.
    pub fn answer(&mut self, reply: &Reply) -> Result<(), LinkError> {
        let (header, body) = encode(reply)?;
        self.stream.write_all(&header)?;
        self.stream.write_all(&body)?;
        Ok(())
    }
}
