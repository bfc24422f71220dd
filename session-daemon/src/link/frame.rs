//! Length bytes and JSON; sockets beside the length bytes.
#![forbid(unsafe_code)]

use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::link::{FRAME_LEN_MAX, LinkError, SOCKETS_PER_FRAME_MAX};

/// Length of the length.
pub(super) const HEADER_LEN: usize = 4;

/// A message as it goes over the socket: the length bytes and the JSON.
pub(super) fn encode<M: Serialize>(message: &M) -> Result<([u8; HEADER_LEN], Vec<u8>), LinkError> {
    let body = serde_json::to_vec(message)?;
    if body.len() > FRAME_LEN_MAX {
        return Err(LinkError::TooLong(body.len()));
    }
    let len = u32::try_from(body.len()).expect("FRAME_LEN_MAX is below 2^32");
    Ok((len.to_le_bytes(), body))
}

/// The length that the length bytes announce.
pub(super) fn body_len(header: [u8; HEADER_LEN]) -> Result<usize, LinkError> {
    let len = u32::from_le_bytes(header) as usize;
    if len > FRAME_LEN_MAX { Err(LinkError::TooLong(len)) } else { Ok(len) }
}

/// The message in a frame's JSON.
pub(super) fn decode<M: DeserializeOwned>(body: &[u8]) -> Result<M, LinkError> {
    Ok(serde_json::from_slice(body)?)
}

/// Sends the length bytes with `sockets` beside them; returns how many bytes went.
pub(super) fn send_header(
    socket: impl AsFd,
    header: &[u8],
    sockets: &[BorrowedFd<'_>],
) -> std::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_PER_FRAME_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !sockets.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(std::io::Error::other("too many sockets in one message"));
    }
    let flags = SendFlags::NOSIGNAL;
    Ok(sendmsg(socket, &[IoSlice::new(header)], &mut ancillary, flags)?)
}

/// The length bytes and the sockets that came beside them.
pub(super) type Header = ([u8; HEADER_LEN], Vec<OwnedFd>);

/// Receives bytes, and the sockets that come beside them; returns how many bytes came.
pub(super) fn recv_part(
    socket: impl AsFd,
    bytes: &mut [u8],
    sockets: &mut Vec<OwnedFd>,
) -> std::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_PER_FRAME_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(bytes)];
    let received = recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            sockets.extend(received);
        }
    }
    Ok(received.bytes)
}

/// Receives length bytes (blocking) and the sockets beside them. None: the other end is closed.
pub(super) fn recv_header(socket: impl AsFd) -> Result<Option<Header>, LinkError> {
    let mut header = [0; HEADER_LEN];
    let mut filled = 0;
    let mut sockets = Vec::new();
    while filled < HEADER_LEN {
        let received = match recv_part(&socket, &mut header[filled..], &mut sockets) {
            Ok(received) => received,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(LinkError::Io(error)),
        };
        if received == 0 {
            return if filled == 0 { Ok(None) } else { Err(LinkError::Closed) };
        }
        filled += received;
    }
    Ok(Some((header, sockets)))
}

/// Sends a message with descriptors beside it; blocks if the socket does.
///
/// # Errors
/// The socket failed, or the message is too long.
pub fn send<M: Serialize>(
    mut stream: &UnixStream,
    message: &M,
    beside: &[BorrowedFd<'_>],
) -> Result<(), LinkError> {
    let (header, body) = encode(message)?;
    let sent = send_header(stream, &header, beside)?;
    stream.write_all(&header[sent..])?;
    stream.write_all(&body)?;
    Ok(())
}

/// Waits for a message and what comes beside it. None: the other end is closed.
///
/// # Errors
/// The socket failed, or the frame is no such message.
pub fn receive<M: DeserializeOwned>(
    mut stream: &UnixStream,
) -> Result<Option<(M, Vec<OwnedFd>)>, LinkError> {
    let Some((header, beside)) = recv_header(stream)? else { return Ok(None) };
    let mut body = vec![0; body_len(header)?];
    match stream.read_exact(&mut body) {
        Ok(()) => Ok(Some((decode(&body)?, beside))),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(LinkError::Closed),
        Err(error) => Err(error.into()),
    }
}
