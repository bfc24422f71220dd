//! One connection: what is still to be written, and what must still come.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Result, bail};
use rustix::io::Errno;

use crate::items::Items;
use crate::options::Protocol;
use crate::tally::Tally;
use crate::wire::{Exchange, Expect, Step};

/// Bytes of an unexpected reply that are shown.
const SHOWN_LEN: usize = 120;

/// What a connection needs to judge a reply.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Judge<'a> {
    pub(crate) items: &'a Items,
    pub(crate) protocol: Protocol,
    /// Whether an item may be missing.
    pub(crate) misses: bool,
}

/// What a read came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// No byte was there.
    Nothing,
    /// All that was there.
    Some,
    /// As much as the buffer holds; more may be there.
    Full,
}

/// A connection to the server.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    unsent: Vec<u8>,
    unsent_at: usize,
    expects: VecDeque<Expect>,
    /// Bytes that came and were not enough to judge; they stand before what comes next.
    stash: Vec<u8>,
    /// Bytes judged of the value that is being read, or none while a header is awaited.
    value_at: Option<usize>,
}

impl Connection {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            unsent: Vec::new(),
            unsent_at: 0,
            expects: VecDeque::new(),
            stash: Vec::new(),
            value_at: None,
        }
    }

    /// Whether nothing is awaited on it.
    pub(crate) fn is_idle(&self) -> bool {
        self.expects.is_empty()
    }

    /// Where to append a request, `bytes` being the worker's buffer.
    pub(crate) fn exchange<'a>(&'a mut self, bytes: &'a mut Vec<u8>) -> Exchange<'a> {
        Exchange { bytes, expects: &mut self.expects }
    }

    /// Writes the bytes, or keeps those that the socket does not take; whether it took all.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<bool> {
        if self.unsent_at < self.unsent.len() {
            self.unsent.extend_from_slice(bytes);
            return Ok(false);
        }
        let written = write(self.socket.as_fd(), bytes)?;
        self.unsent.clear();
        self.unsent_at = 0;
        self.unsent.extend_from_slice(&bytes[written..]);
        Ok(self.unsent.is_empty())
    }

    /// Writes what the socket did not take earlier; whether it took all now.
    pub(crate) fn flush(&mut self) -> Result<bool> {
        self.unsent_at += write(self.socket.as_fd(), &self.unsent[self.unsent_at..])?;
        Ok(self.unsent_at == self.unsent.len())
    }

    /// Reads once into `buffer` and judges what came.
    pub(crate) fn receive(
        &mut self,
        judge: &Judge<'_>,
        buffer: &mut [u8],
        line: &mut Vec<u8>,
        now_ns: impl FnOnce() -> u64,
        tally: &mut Tally,
    ) -> Result<Received> {
        let kept = self.stash.len();
        buffer[..kept].copy_from_slice(&self.stash);
        let read = match rustix::io::read(&self.socket, &mut buffer[kept..]) {
            Ok(0) => bail!("the server closed the connection"),
            Ok(read) => read,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Received::Nothing),
            Err(error) => return Err(error.into()),
        };
        let bytes = &buffer[..kept + read];
        let judged = self.judge(judge, bytes, line, now_ns(), tally)?;
        self.stash.clear();
        self.stash.extend_from_slice(&bytes[judged..]);
        Ok(if bytes.len() == buffer.len() { Received::Full } else { Received::Some })
    }

    /// Judges as many bytes as it can; returns how many.
    fn judge(
        &mut self,
        judge: &Judge<'_>,
        bytes: &[u8],
        line: &mut Vec<u8>,
        now_ns: u64,
        tally: &mut Tally,
    ) -> Result<usize> {
        let mut at = 0;
        while at < bytes.len() {
            let Some(expect) = self.expects.front().copied() else {
                bail!("bytes that nothing asked for: {}", shown(&bytes[at..]));
            };
            let rest = &bytes[at..];
            if self.value_at.is_some() {
                let (taken, complete) = self.value(judge, &expect, rest)?;
                at += taken;
                if !complete {
                    break;
                }
                tally.hits += 1;
                self.answered(&expect, now_ns, tally);
                continue;
            }
            match judge.protocol.step(judge.items, &expect, rest, line) {
                Step::More => break,
                Step::Header(len) => {
                    at += len;
                    self.value_at = Some(0);
                }
                Step::Done(len) => {
                    at += len;
                    self.answered(&expect, now_ns, tally);
                }
                Step::Miss(len) if judge.misses => {
                    at += len;
                    tally.misses += 1;
                    self.answered(&expect, now_ns, tally);
                }
                Step::Miss(_) => bail!("item {} is missing: {}", expect.idx, shown(rest)),
                Step::Wrong => {
                    bail!("not {:?} of item {}: {}", expect.what, expect.idx, shown(rest))
                }
            }
        }
        Ok(at)
    }

    /// Compares bytes with the value whose header came; how many were judged, and whether the
    /// value and its trailer are complete.
    fn value(&mut self, judge: &Judge<'_>, expect: &Expect, bytes: &[u8]) -> Result<(usize, bool)> {
        let at = self.value_at.unwrap_or(0);
        let len = judge.items.value_len(expect.idx);
        let taken = (len - at).min(bytes.len());
        if !judge.items.matches(expect.idx, at, &bytes[..taken]) {
            bail!("item {} has another value: {}", expect.idx, shown(bytes));
        }
        let trailer = judge.protocol.trailer();
        let rest = &bytes[taken..];
        if at + taken < len || rest.len() < trailer.len() {
            self.value_at = Some(at + taken);
            return Ok((taken, false));
        }
        if !rest.starts_with(trailer) {
            bail!("the value of item {} does not end: {}", expect.idx, shown(rest));
        }
        self.value_at = None;
        Ok((taken + trailer.len(), true))
    }

    fn answered(&mut self, expect: &Expect, now_ns: u64, tally: &mut Tally) {
        self.expects.pop_front();
        if expect.last {
            tally.answered(expect.start_ns, now_ns);
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn write(socket: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize> {
    match rustix::io::write(socket, bytes) {
        Ok(written) => Ok(written),
        Err(Errno::AGAIN | Errno::INTR) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

fn shown(bytes: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN_LEN)]))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::{Connection, Judge};
    use crate::items::Items;
    use crate::options::Protocol;
    use crate::sizes::{KeyLen, Shape, ValueLen};
    use crate::tally::Tally;
    use crate::wire::{push_number, text_get};

    fn items() -> Items {
        let (key, value) = (KeyLen::Fixed(24), ValueLen::Fixed(100));
        Items::new(10, &Shape { key, value, gets: 1.0, zipf: 0.0 })
    }

    fn push_reply(items: &Items, idx: u32, reply: &mut Vec<u8>) {
        reply.extend_from_slice(b"VALUE ");
        items.push_key(idx, reply);
        reply.push(b' ');
        push_number(u64::from(items.flags(idx)), reply);
        reply.extend_from_slice(b" 100\r\n");
        items.push_value(idx, reply);
        reply.extend_from_slice(b"\r\n");
    }

    /// Asks for items 1, 2 and 3 and feeds the reply in two writes.
    fn judged(reply: &[u8], cut: usize, misses: bool) -> anyhow::Result<(Tally, bool)> {
        let items = items();
        let (mut server, client) = UnixStream::pair().unwrap();
        client.set_nonblocking(true).unwrap();
        let mut connection = Connection::new(client.into());
        text_get(&items, &[1, 2, 3], 0, &mut connection.exchange(&mut Vec::new()));
        let judge = Judge { items: &items, protocol: Protocol::Text, misses };
        let (mut buffer, mut line, mut tally) = (vec![0; 4096], Vec::new(), Tally::new());
        for part in [&reply[..cut], &reply[cut..]] {
            server.write_all(part).unwrap();
            connection.receive(&judge, &mut buffer, &mut line, || 5, &mut tally)?;
        }
        Ok((tally, connection.is_idle()))
    }

    fn reply(idxs: &[u32]) -> Vec<u8> {
        let mut reply = Vec::new();
        idxs.iter().for_each(|&idx| push_reply(&items(), idx, &mut reply));
        reply.extend_from_slice(b"END\r\n");
        reply
    }

    #[test]
    fn a_right_reply_passes_in_every_split() {
        let reply = reply(&[1, 2, 3]);
        for cut in 0..=reply.len() {
            let (tally, idle) = judged(&reply, cut, false).unwrap();
            assert!(idle, "cut at {cut}");
            assert_eq!((tally.requests, tally.hits, tally.misses), (1, 3, 0));
        }
    }

    #[test]
    fn misses_are_counted_where_they_are_allowed() {
        for (there, hits) in [(&[1, 3][..], 2), (&[2][..], 1), (&[][..], 0)] {
            let (tally, idle) = judged(&reply(there), 0, true).unwrap();
            assert!(idle);
            assert_eq!((tally.requests, tally.hits, tally.misses), (1, hits, 3 - hits));
            assert!(judged(&reply(there), 0, false).is_err());
        }
    }

    #[test]
    fn every_wrong_byte_is_found() {
        let right = reply(&[1, 2, 3]);
        for at in 0..right.len() {
            let mut wrong = right.clone();
            wrong[at] ^= 0x04;
            let passed = judged(&wrong, 0, true).is_ok_and(|(tally, idle)| idle && tally.hits == 3);
            assert!(!passed, "byte {at} is wrong");
        }
        for more in [&b"END\r\n"[..], b"x"] {
            assert!(judged(&[&right[..], more].concat(), 0, true).is_err());
        }
        assert!(judged(&reply(&[1, 3, 2]), 0, true).is_err(), "out of order");
        assert!(judged(&reply(&[1, 2, 3, 4]), 0, true).is_err(), "one too many");
        assert!(judged(b"SERVER_ERROR out of memory\r\n", 0, true).is_err());
    }
}
