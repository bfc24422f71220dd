//! What is different about a request in a datagram (protocol.txt, "UDP protocol"): the frame
//! header, and which requests may come that way. It never reads a socket or answers a request.
//!
//! ```text
//!  0          2          4          6          8
//! | request id| sequence |  total   | reserved | request or part of a reply ...
//! ```
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

pub mod scope;
#[cfg(test)]
mod tests;

/// Bytes before the payload of every datagram, in both directions.
pub const FRAME_LEN: usize = 8;

/// Longest datagram of a reply, its header included (memcached's `UDP_MAX_PAYLOAD_SIZE`): what
/// passes an Ethernet whole.
pub const REPLY_DATAGRAM_LEN_MAX: usize = 1400;

/// Longest part of a reply in one datagram.
pub const REPLY_PART_LEN_MAX: usize = REPLY_DATAGRAM_LEN_MAX - FRAME_LEN;

/// How many times the bytes of its request a reply may take, headers included. The source of a
/// datagram may be forged, and what is sent there must not be worth the forging.
pub const AMPLIFICATION_MAX: usize = 32;

/// What a text client is sent in place of a reply beyond [`AMPLIFICATION_MAX`]. It fits behind
/// the shortest request that there is.
pub const TOO_LARGE: &[u8] = b"SERVER_ERROR response too large for udp\r\n";

/// What a text client is sent that writes where only reads are served.
pub const WRITE_REFUSED: &[u8] = b"CLIENT_ERROR udp writes not allowed\r\n";

const _: () = assert!(TOO_LARGE.len() + FRAME_LEN <= AMPLIFICATION_MAX * FRAME_LEN);

/// The header of a request that fits its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId(pub u16);

/// The request's id and payload; none for a datagram that is too short, or one of several, which
/// memcached does not put together either.
#[must_use]
pub fn request(datagram: &[u8]) -> Option<(RequestId, &[u8])> {
    let (header, payload) = datagram.split_first_chunk::<FRAME_LEN>()?;
    let [i0, i1, s0, s1, t0, t1, _, _] = *header;
    let alone = [s0, s1, t0, t1] == [0, 0, 0, 1];
    (alone && !payload.is_empty()).then_some((RequestId(u16::from_be_bytes([i0, i1])), payload))
}

/// Bytes of the datagrams that carry a reply.
#[must_use]
pub fn reply_len(payload_len: usize) -> usize {
    let datagrams = payload_len.div_ceil(REPLY_PART_LEN_MAX);
    payload_len.saturating_add(datagrams.saturating_mul(FRAME_LEN))
}

/// The payloads of the datagrams that carry a reply, each with its header.
pub fn reply(id: RequestId, payload: &[u8]) -> impl Iterator<Item = ([u8; FRAME_LEN], &[u8])> {
    let total = payload.len().div_ceil(REPLY_PART_LEN_MAX);
    let [i0, i1] = id.0.to_be_bytes();
    // 16 bits: a request of 64 KiB times AMPLIFICATION_MAX makes 1,507 datagrams.
    let [t0, t1] = u16::try_from(total).unwrap_or(u16::MAX).to_be_bytes();
    payload.chunks(REPLY_PART_LEN_MAX).zip(0_u16..).map(move |(part, sequence)| {
        let [s0, s1] = sequence.to_be_bytes();
        ([i0, i1, s0, s1, t0, t1, 0, 0], part)
    })
}
