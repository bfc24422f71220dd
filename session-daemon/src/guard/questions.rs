//! Questions to a netlink subsystem of the kernel and their answers: the bytes around what is asked.
//!
//! It knows how messages are framed, and nothing of what they mean.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
pub(super) const NLM_F_REQUEST: u16 = 0x1;
pub(super) const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;

const NLA_TYPE_MASK: u16 = 0x3fff;
const ATTRIBUTE_HEADER_LEN: usize = 4;
const HEADER_LEN: usize = 16;

/// The kernel builds dumps in pieces of at most 32 KiB.
const BUFFER_LEN: usize = 64 << 10;

/// A dump that changed under way is asked for again this often.
const DUMP_TRIES_MAX: usize = 10;

/// The kernel answers at once; a longer wait means that the socket is broken.
const ANSWER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// A socket to ask by.
#[derive(Debug)]
pub(super) struct Questions {
    socket: OwnedFd,
    buffer: Vec<u8>,
    sequence: u32,
}

/// One message to be sent: its kind, flags and body.
pub(super) type Asked<'a> = (u16, u16, &'a [u8]);

impl Questions {
    /// To the subsystem of this number in this thread's network namespace; none is routing's.
    pub(super) fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let socket = socket(protocol, SocketFlags::CLOEXEC, 0)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        Ok(Self { socket, buffer: vec![0; BUFFER_LEN], sequence: 0 })
    }

    /// Asks for all of something: what `read` makes of each message of the answer.
    pub(super) fn dump<T>(
        &mut self,
        question: u16,
        body: &[u8],
        mut read: impl FnMut(u16, &[u8]) -> io::Result<Option<T>>,
    ) -> io::Result<Vec<T>> {
        let mut tries = 0;
        loop {
            // An answer that changed under way may have what is gone, and some of it twice.
            let (whole, found) = self.dump_once(question, body, &mut read)?;
            tries += 1;
            if whole || tries == DUMP_TRIES_MAX {
                // The last one is complete but for what changed meanwhile, which is announced.
                return Ok(found);
            }
        }
    }

    /// Whether the answer is of one instant, and the answer.
    fn dump_once<T>(
        &mut self,
        question: u16,
        body: &[u8],
        read: &mut impl FnMut(u16, &[u8]) -> io::Result<Option<T>>,
    ) -> io::Result<(bool, Vec<T>)> {
        let first = self.send(&[(question, NLM_F_REQUEST | NLM_F_DUMP, body)])?;
        let (mut whole, mut found) = (true, Vec::new());
        loop {
            let len = self.receive()?;
            for message in Messages(&self.buffer[..len]) {
                if message.sequence != first {
                    continue;
                }
                whole &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_DONE => return Ok((whole, found)),
                    NLMSG_ERROR => return Err(error_of(message.body)),
                    kind => found.extend(read(kind, message.body)?),
                }
            }
        }
    }

    /// Has something done by messages that are sent together, one of which asks to be acknowledged.
    pub(super) fn act(&mut self, messages: &[Asked<'_>]) -> io::Result<()> {
        let first = self.send(messages)?;
        loop {
            let len = self.receive()?;
            for message in Messages(&self.buffer[..len]) {
                let idx = message.sequence.wrapping_sub(first) as usize;
                if idx >= messages.len() || message.kind != NLMSG_ERROR {
                    continue;
                }
                // An acknowledgement is an error of number 0.
                return match u32_at(message.body, 0) {
                    Some(0) => Ok(()),
                    _ => Err(error_of(message.body)),
                };
            }
        }
    }

    /// Sends messages in one datagram; the number of the first one.
    fn send(&mut self, messages: &[Asked<'_>]) -> io::Result<u32> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for (kind, flags, body) in messages {
            self.sequence = self.sequence.wrapping_add(1);
            let len = u32::try_from(HEADER_LEN + body.len()).map_err(|_| unreadable())?;
            bytes.extend(len.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(flags.to_ne_bytes());
            bytes.extend(self.sequence.to_ne_bytes());
            // From no port of ours: the kernel knows who asks.
            bytes.extend(0_u32.to_ne_bytes());
            bytes.extend(*body);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        rustix::net::send(&self.socket, &bytes, SendFlags::empty())?;
        Ok(first)
    }

    fn receive(&mut self) -> io::Result<usize> {
        let (_, len) = rustix::io::retry_on_intr(|| {
            rustix::net::recv(&self.socket, &mut self.buffer[..], RecvFlags::empty())
        })?;
        Ok(len)
    }
}

/// A bound netlink socket that hears what is announced to `groups`.
pub(super) fn socket(
    protocol: Option<Protocol>,
    flags: SocketFlags,
    groups: u32,
) -> io::Result<OwnedFd> {
    let socket =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

/// The messages of one datagram.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let len = u32_at(self.0, 0)? as usize;
        let body = self.0.get(HEADER_LEN..len)?;
        let message = Message {
            kind: u16_at(self.0, 4)?,
            flags: u16_at(self.0, 6)?,
            sequence: u32_at(self.0, 8)?,
            body,
        };
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    }
}

/// The attributes of a message or of a nested attribute: kind without flag bits, value.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & NLA_TYPE_MASK;
        let value = bytes.get(ATTRIBUTE_HEADER_LEN..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A text as the kernel ends it.
pub(super) fn text(value: &[u8]) -> String {
    let bytes = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn error_of(body: &[u8]) -> io::Error {
    match u32_at(body, 0) {
        Some(code) => io::Error::from_raw_os_error((code as i32).wrapping_neg()),
        None => unreadable(),
    }
}

pub(super) fn unreadable() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a netlink answer that cannot be read")
}
