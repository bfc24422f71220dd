//! What the kernel's routing netlink says about this namespace's devices and addresses.
//!
//! It owns one socket for questions and one for announcements. It never acts on what it hears:
//! an announcement only means that the lists are to be asked for again.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::net::{RecvFlags, SocketFlags};

use crate::guard::interfaces::{Attached, Interface};
use crate::guard::questions::{Questions, attributes, socket, text, u16_at, u32_at, unreadable};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;

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

const IFINFOMSG_LEN: usize = 16;
const IFADDRMSG_LEN: usize = 8;

/// Room for a storm of announcements; beyond it the kernel says ENOBUFS and all is listed anew.
const ANNOUNCEMENTS_LEN: usize = 1 << 20;

/// Questions and announcements.
#[derive(Debug)]
pub(super) struct Netlink {
    questions: Questions,
    announcements: OwnedFd,
}

impl Netlink {
    /// Sockets in this thread's network namespace. Announcements are collected from now on.
    pub(super) fn open() -> io::Result<Self> {
        // No protocol is protocol 0, NETLINK_ROUTE.
        let questions = Questions::open(None)?;
        let announcements = socket(None, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, GROUPS)?;
        set_socket_recv_buffer_size(&announcements, ANNOUNCEMENTS_LEN)?;
        Ok(Self { questions, announcements })
    }

    /// Readable when there are announcements.
    pub(super) fn announcements(&self) -> BorrowedFd<'_> {
        self.announcements.as_fd()
    }

    /// Takes all announcements. Whether there were any, or some were lost.
    pub(super) fn drain(&mut self) -> io::Result<bool> {
        let mut any = false;
        loop {
            // That one came is all that matters of it: the rest is cut off.
            let mut byte = [0];
            match rustix::net::recv(&self.announcements, &mut byte, RecvFlags::empty()) {
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
        let link = |kind, body: &[u8]| match kind {
            RTM_NEWLINK => parse_link(body).map(Some).ok_or_else(unreadable),
            _ => Ok(None),
        };
        let mut interfaces = self.questions.dump(RTM_GETLINK, &[0; IFINFOMSG_LEN], link)?;
        interfaces.sort_by_key(|interface| interface.ifindex);
        interfaces.dedup_by_key(|interface| interface.ifindex);
        Ok(interfaces)
    }

    /// All addresses of the namespace's devices.
    pub(super) fn addresses(&mut self) -> io::Result<BTreeSet<IpAddr>> {
        let address =
            |kind, body: &[u8]| Ok(if kind == RTM_NEWADDR { parse_address(body) } else { None });
        let addresses = self.questions.dump(RTM_GETADDR, &[0; IFADDRMSG_LEN], address)?;
        Ok(addresses.into_iter().collect())
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

fn ip(value: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(value) {
        return Some(IpAddr::V4(Ipv4Addr::from(octets)));
    }
    <[u8; 16]>::try_from(value).ok().map(|octets| IpAddr::V6(Ipv6Addr::from(octets)))
}
