//! What the kernel's routing netlink says about this namespace's devices and addresses.
//!
//! It owns one socket for questions and one for announcements. It never acts on what it hears:
//! an announcement only means that the lists are to be asked for again.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::guard::interfaces::{Attached, Interface};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;

/// RTMGRP_LINK, RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR.
const GROUPS: u32 = 0x1 | 0x10 | 0x100;

const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
const XDP_ATTACHED_DRV: u8 = 1;
const XDP_ATTACHED_SKB: u8 = 2;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

const NLA_TYPE_MASK: u16 = 0x3fff;
const ATTRIBUTE_HEADER_LEN: usize = 4;
const HEADER_LEN: usize = 16;
const IFINFOMSG_LEN: usize = 16;
const IFADDRMSG_LEN: usize = 8;

/// The kernel builds dumps in pieces of at most 32 KiB.
const BUFFER_LEN: usize = 64 << 10;

/// Room for a storm of announcements; beyond it the kernel says ENOBUFS and all is listed anew.
const ANNOUNCEMENTS_LEN: usize = 1 << 20;

/// A dump that changed under way is asked for again this often.
const DUMP_TRIES_MAX: usize = 10;

/// The kernel answers at once; a longer wait means that the socket is broken.
const ANSWER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// Questions and announcements.
#[derive(Debug)]
pub(super) struct Netlink {
    questions: OwnedFd,
    announcements: OwnedFd,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Netlink {
    /// Sockets in this thread's network namespace. Announcements are collected from now on.
    pub(super) fn open() -> io::Result<Self> {
        let questions = socket(SocketFlags::CLOEXEC, 0)?;
        set_socket_timeout(&questions, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        let announcements = socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, GROUPS)?;
        set_socket_recv_buffer_size(&announcements, ANNOUNCEMENTS_LEN)?;
        Ok(Self { questions, announcements, buffer: vec![0; BUFFER_LEN], sequence: 0 })
    }

    /// Readable when there are announcements.
    pub(super) fn announcements(&self) -> BorrowedFd<'_> {
        self.announcements.as_fd()
    }

    /// Takes all announcements. Whether there were any, or some were lost.
    pub(super) fn drain(&mut self) -> io::Result<bool> {
        let mut any = false;
        loop {
            match rustix::net::recv(&self.announcements, &mut self.buffer, RecvFlags::empty()) {
                Ok(_) => any = true,
                Err(rustix::io::Errno::AGAIN) => return Ok(any),
                Err(rustix::io::Errno::INTR) => {}
                // Lost announcements: the caller lists everything anew, as for any other.
                Err(rustix::io::Errno::NOBUFS) => any = true,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// All devices of the namespace.
    pub(super) fn interfaces(&mut self) -> io::Result<Vec<Interface>> {
        let mut interfaces = Vec::new();
        self.dump(RTM_GETLINK, IFINFOMSG_LEN, |kind, body| {
            if kind == RTM_NEWLINK {
                interfaces.push(parse_link(body).ok_or_else(unreadable)?);
            }
            Ok(())
        })?;
        interfaces.sort_by_key(|interface| interface.ifindex);
        interfaces.dedup_by_key(|interface| interface.ifindex);
        Ok(interfaces)
    }

    /// All addresses of the namespace's devices.
    pub(super) fn addresses(&mut self) -> io::Result<BTreeSet<IpAddr>> {
        let mut addresses = BTreeSet::new();
        self.dump(RTM_GETADDR, IFADDRMSG_LEN, |kind, body| {
            if kind == RTM_NEWADDR {
                addresses.extend(parse_address(body));
            }
            Ok(())
        })?;
        Ok(addresses)
    }

    fn dump(
        &mut self,
        question: u16,
        body_len: usize,
        mut take: impl FnMut(u16, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        for _ in 0..DUMP_TRIES_MAX {
            if self.dump_once(question, body_len, &mut take)? {
                return Ok(());
            }
        }
        // The last answer is complete but for what changed meanwhile, which is announced.
        Ok(())
    }

    /// Whether the answer is of one instant.
    fn dump_once(
        &mut self,
        question: u16,
        body_len: usize,
        take: &mut impl FnMut(u16, &[u8]) -> io::Result<()>,
    ) -> io::Result<bool> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = Vec::with_capacity(HEADER_LEN + body_len);
        let len = u32::try_from(HEADER_LEN + body_len).expect("a few bytes");
        request.extend(len.to_ne_bytes());
        request.extend(question.to_ne_bytes());
        request.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
        request.extend(self.sequence.to_ne_bytes());
        request.resize(HEADER_LEN + body_len, 0);
        rustix::net::send(&self.questions, &request, SendFlags::empty())?;
        let mut whole = true;
        loop {
            let (_, len) = rustix::io::retry_on_intr(|| {
                rustix::net::recv(&self.questions, &mut self.buffer[..], RecvFlags::empty())
            })?;
            for message in Messages(&self.buffer[..len]) {
                if message.sequence != self.sequence {
                    continue;
                }
                whole &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_DONE => return Ok(whole),
                    NLMSG_ERROR => return Err(error_of(message.body)),
                    kind => take(kind, message.body)?,
                }
            }
        }
    }
}

fn socket(flags: SocketFlags, groups: u32) -> io::Result<OwnedFd> {
    // No protocol is protocol 0, NETLINK_ROUTE.
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
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

fn parse_link(body: &[u8]) -> Option<Interface> {
    let mut interface = Interface {
        ifindex: u32_at(body, 4)?,
        hardware: u16_at(body, 2)?,
        flags: u32_at(body, 8)?,
        ..Interface::default()
    };
    for (kind, value) in attributes(body.get(IFINFOMSG_LEN..)?) {
        match kind {
            IFLA_IFNAME => interface.name = text(value),
            IFLA_LINK => interface.parent = u32_at(value, 0),
            IFLA_MASTER => interface.master = u32_at(value, 0),
            IFLA_LINK_NETNSID => interface.parent_is_elsewhere = true,
            IFLA_LINKINFO => {
                let kind = attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                interface.kind = kind.map(|(_, value)| text(value)).unwrap_or_default();
            }
            IFLA_XDP => interface.xdp = parse_xdp(value),
            _ => {}
        }
    }
    (!interface.name.is_empty()).then_some(interface)
}

fn parse_xdp(value: &[u8]) -> Vec<(Attached, u32)> {
    let mut mode = 0;
    let (mut any, mut modes) = (None, Vec::new());
    for (kind, value) in attributes(value) {
        match kind {
            IFLA_XDP_ATTACHED => mode = value.first().copied().unwrap_or_default(),
            IFLA_XDP_PROG_ID => any = u32_at(value, 0),
            IFLA_XDP_DRV_PROG_ID => modes.extend(u32_at(value, 0).map(|id| (Attached::Native, id))),
            IFLA_XDP_SKB_PROG_ID => {
                modes.extend(u32_at(value, 0).map(|id| (Attached::Generic, id)))
            }
            _ => {}
        }
    }
    // With one program the kernel may name its mode only in IFLA_XDP_ATTACHED.
    if let (true, Some(id)) = (modes.is_empty(), any) {
        match mode {
            XDP_ATTACHED_DRV => modes.push((Attached::Native, id)),
            XDP_ATTACHED_SKB => modes.push((Attached::Generic, id)),
            _ => modes.push((Attached::Offloaded, id)),
        }
    }
    modes
}

/// The device's own address: of a point-to-point IPv4 device it is the local one.
fn parse_address(body: &[u8]) -> Option<IpAddr> {
    let mut address = None;
    for (kind, value) in attributes(body.get(IFADDRMSG_LEN..)?) {
        match kind {
            IFA_LOCAL => return ip(value),
            IFA_ADDRESS => address = ip(value),
            _ => {}
        }
    }
    address
}

/// The attributes of a message or of a nested attribute: kind without flag bits, value.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & NLA_TYPE_MASK;
        let value = bytes.get(ATTRIBUTE_HEADER_LEN..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(value) {
        return Some(IpAddr::V4(Ipv4Addr::from(octets)));
    }
    <[u8; 16]>::try_from(value).ok().map(|octets| IpAddr::V6(Ipv6Addr::from(octets)))
}

fn text(value: &[u8]) -> String {
    let bytes = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn error_of(body: &[u8]) -> io::Error {
    match u32_at(body, 0) {
        Some(code) => io::Error::from_raw_os_error((code as i32).wrapping_neg()),
        None => unreadable(),
    }
}

fn unreadable() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a netlink answer that cannot be read")
}
