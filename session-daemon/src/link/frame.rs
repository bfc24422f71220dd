//! Length bytes and JSON; sockets beside the length bytes.
#![forbid(unsafe_code)]

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

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

/// Receives length bytes (blocking) and the sockets beside them. None: the other end is closed.
pub(super) fn recv_header(socket: impl AsFd) -> Result<Option<Header>, LinkError> {
    let mut header = [0; HEADER_LEN];
    let mut filled = 0;
    let mut sockets = Vec::new();
    while filled < HEADER_LEN {
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_PER_FRAME_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut header[filled..])];
        let received =
            match recvmsg(socket.as_fd(), &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) => received,
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::CONNRESET) => return Ok(None),
                Err(error) => return Err(LinkError::Io(error.into())),
            };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                sockets.extend(received);
            }
        }
        if received.bytes == 0 {
            return if filled == 0 { Ok(None) } else { Err(LinkError::Closed) };
        }
        filled += received.bytes;
    }
    Ok(Some((header, sockets)))
}
