//! What a ring knows of one connection: what it has received, and what is on its way.
#![forbid(unsafe_code)]

use crate::uring::lent::Lent;
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::Waker;

/// A connection under io_uring.
pub(super) struct Line<U> {
    pub(super) fd: Rc<OwnedFd>,
    pub(super) user: U,
    pub(super) received: Received,
    /// Whether the last receive said that more is there.
    pub(super) more: bool,
    pub(super) sending: Option<Sending>,
    /// Why the last send ended before its time.
    pub(super) send_error: Option<Errno>,
    /// Requests under way.
    pub(super) under_way: u8,
    /// Nobody uses the line any more.
    pub(super) abandoned: bool,
    /// Somebody else goes on with the socket: what is under way is taken back.
    pub(super) leaving: bool,
    /// Its client has once not taken an answer at once.
    pub(super) was_stuck: bool,
    pub(super) waker: Option<Waker>,
    /// Whether the waker is for bytes of the client, not for the end of a send alone.
    pub(super) awaits_bytes: bool,
}

impl<U> Line<U> {
    /// Wakes whoever waits for the line; false when nobody does.
    pub(super) fn wake(&mut self) -> bool {
        self.waker.take().map(Waker::wake).is_some()
    }
}

/// An answer on its way.
pub(super) struct Sending {
    pub(super) bytes: Vec<u8>,
    pub(super) sent: usize,
    /// The kernel did not take all of it at once.
    pub(super) stuck: bool,
    /// It has taken some since that was last told.
    pub(super) progress: bool,
    /// Whether a request is half received behind it.
    pub(super) busy_behind: bool,
}

/// Where the next bytes of a client are.
pub(super) enum Received {
    /// Not asked for.
    Idle,
    /// Asked for.
    Armed,
    /// In a buffer of the ring: its number, and what part of it.
    Lent { id: u16, start: usize, end: usize },
    /// In memory of their own, from the index on.
    Aside(Vec<u8>, usize),
    /// The client has said that it is done.
    End,
    /// The socket failed.
    Failed(Errno),
}

/// Moves received bytes out of the ring's buffer.
pub(super) fn set_aside<U>(line: &mut Line<U>, lent: &mut Lent) {
    if let Received::Lent { id, start, end } = line.received {
        let bytes = lent.bytes(id).get(start..end).unwrap_or_default().to_vec();
        line.received = Received::Aside(bytes, 0);
        lent.offer(id);
    }
}
