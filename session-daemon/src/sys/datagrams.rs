//! Datagrams by the batch: trains that the kernel has put together on their way in (UDP GRO) and
//! cuts on their way out (UDP GSO), with the address of this host that was asked (pktinfo).
//!
//! It owns the calls and the layout of what goes beside a datagram. It never decides anything.
#![allow(unsafe_code)]

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Most messages that one call takes or gives; each may be a train of datagrams.
pub const MESSAGES_PER_CALL_MAX: usize = 32;

/// Most datagrams that one message is cut into: what every kernel with `UDP_SEGMENT` takes.
pub const SEGMENTS_MAX: usize = 64;

/// An internet address as the kernel writes it: `struct sockaddr_in` or `struct sockaddr_in6`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct SocketName([u8; 28]);

const _: () = assert!(size_of::<SocketName>() == size_of::<libc::sockaddr_in6>());

impl SocketName {
    /// The address; none if it is of no internet family.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        let [f0, f1, p0, p1, a, b, c, d, rest @ ..] = self.0;
        let port = u16::from_be_bytes([p0, p1]);
        match i32::from(u16::from_ne_bytes([f0, f1])) {
            libc::AF_INET => Some(SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), port).into()),
            libc::AF_INET6 => {
                let (address, scope) = rest.split_at(16);
                let address: [u8; 16] = address.try_into().ok()?;
                let scope = u32::from_ne_bytes(scope.try_into().ok()?);
                let flow = u32::from_be_bytes([a, b, c, d]);
                Some(SocketAddrV6::new(Ipv6Addr::from(address), port, flow, scope).into())
            }
            _ => None,
        }
    }

    fn len(&self) -> libc::socklen_t {
        let [f0, f1, ..] = self.0;
        let v4 = i32::from(u16::from_ne_bytes([f0, f1])) == libc::AF_INET;
        let len = if v4 { size_of::<libc::sockaddr_in>() } else { size_of::<Self>() };
        libc::socklen_t::try_from(len).expect("28 at most")
    }
}

/// The address of this host that a datagram was sent to, and that its answer comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Own {
    /// The socket has one address only, or the address is none that can be answered from.
    #[default]
    Default,
    /// The network interface is left to the route.
    V4([u8; 4]),
    /// With the index of the network interface, which link-local addresses need.
    V6([u8; 16], u32),
}

impl Own {
    fn of_control(level: i32, kind: i32, data: &[u8]) -> Option<Self> {
        match (level, kind) {
            // `struct in_pktinfo`: interface, own address, destination.
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                Some(Self::V4(data.get(4..8)?.try_into().ok()?))
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                let address: [u8; 16] = data.get(..16)?.try_into().ok()?;
                let ifindex = u32::from_ne_bytes(data.get(16..20)?.try_into().ok()?);
                let ip = Ipv6Addr::from(address);
                let ifindex = if ip.is_unicast_link_local() { ifindex } else { 0 };
                Some(if ip.is_multicast() { Self::Default } else { Self::V6(address, ifindex) })
            }
            _ => None,
        }
    }

    fn write(&self, control: &mut Control) {
        match self {
            Self::Default => {}
            Self::V4([a, b, c, d]) => {
                let info = [0, 0, 0, 0, *a, *b, *c, *d, 0, 0, 0, 0];
                control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            Self::V6(address, ifindex) => {
                let mut info = [0; 20];
                info[..16].copy_from_slice(address);
                info[16..].copy_from_slice(&ifindex.to_ne_bytes());
                control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
        }
    }
}

/// Control messages: a header of length, level and kind, then data, each part aligned to words.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control {
    bytes: [u8; CONTROL_LEN],
    len: usize,
}

/// Room for an IPv6 `pktinfo` and a segment's length.
const CONTROL_LEN: usize = 64;
const HEADER_LEN: usize = size_of::<libc::cmsghdr>();
const WORD_LEN: usize = size_of::<usize>();

const _: () = assert!(HEADER_LEN == WORD_LEN + 8 && HEADER_LEN.is_multiple_of(WORD_LEN));
const _: () =
    assert!(2 * HEADER_LEN + 20_usize.next_multiple_of(WORD_LEN) + WORD_LEN <= CONTROL_LEN);

impl Control {
    const EMPTY: Self = Self { bytes: [0; CONTROL_LEN], len: 0 };

    fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let header = HEADER_LEN + data.len();
        let place = &mut self.bytes[self.len..];
        place[..WORD_LEN].copy_from_slice(&header.to_ne_bytes());
        place[WORD_LEN..WORD_LEN + 4].copy_from_slice(&level.to_ne_bytes());
        place[WORD_LEN + 4..HEADER_LEN].copy_from_slice(&kind.to_ne_bytes());
        place[HEADER_LEN..header].copy_from_slice(data);
        self.len += header.next_multiple_of(WORD_LEN);
    }

    /// Hands over level, kind and data of each message.
    fn each(&self, mut take: impl FnMut(i32, i32, &[u8])) {
        let mut rest = self.bytes.get(..self.len).unwrap_or_default();
        while let Some((header, behind)) = rest.split_at_checked(HEADER_LEN) {
            let word = |at: usize| header[at..at + 4].try_into().expect("four bytes");
            let len = usize::from_ne_bytes(header[..WORD_LEN].try_into().expect("a word"));
            let (level, kind) = (i32::from_ne_bytes(word(WORD_LEN)), word(WORD_LEN + 4));
            let Some(data) = len.checked_sub(HEADER_LEN).and_then(|len| behind.get(..len)) else {
                return;
            };
            take(level, i32::from_ne_bytes(kind), data);
            rest = rest.get(len.next_multiple_of(WORD_LEN)..).unwrap_or_default();
        }
    }
}

/// A message that was received: one datagram, or a train of datagrams of one client. Its bytes are
/// the first `len` of its place.
#[derive(Clone, Copy, Debug, Default)]
pub struct Received {
    /// Bytes of all its datagrams.
    pub len: usize,
    /// Bytes of each datagram but the last, which may be shorter. Not 0.
    pub segment_len: usize,
    /// Who sent it.
    pub source: SocketName,
    /// Which address of this host it was sent to.
    pub own: Own,
}

/// Asks the kernel for trains, and with `with_own` for the address that each datagram was sent to.
pub fn prepare(socket: BorrowedFd<'_>, v6: bool, with_own: bool) -> io::Result<()> {
    // Linux 5.0. Without it each datagram comes by itself.
    let _ = set(socket, libc::SOL_UDP, libc::UDP_GRO);
    match (with_own, v6) {
        (false, _) => Ok(()),
        (true, false) => set(socket, libc::IPPROTO_IP, libc::IP_PKTINFO),
        (true, true) => set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    }
}

fn set(socket: BorrowedFd<'_>, level: i32, option: i32) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option takes an int, which lives across the call.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `recvmmsg`: takes the messages that wait, without waiting, each to the next `place_len` bytes
/// of `places`. Returns how many; `WouldBlock` when none waits.
///
/// # Panics
/// When `places` is shorter than as many places as `received` has.
pub fn receive(
    socket: BorrowedFd<'_>,
    places: &mut [u8],
    place_len: usize,
    received: &mut [Received; MESSAGES_PER_CALL_MAX],
) -> io::Result<usize> {
    assert!(places.len() >= place_len * received.len(), "a place for each message");
    let mut parts =
        [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; MESSAGES_PER_CALL_MAX];
    let mut controls = [Control::EMPTY; MESSAGES_PER_CALL_MAX];
    let mut messages = [empty_message(); MESSAGES_PER_CALL_MAX];
    let places = places.chunks_exact_mut(place_len);
    let rooms = places.zip(received.iter_mut()).zip(&mut controls);
    for (((place, one), control), (part, message)) in rooms.zip(parts.iter_mut().zip(&mut messages))
    {
        part.iov_base = place.as_mut_ptr().cast();
        part.iov_len = place.len();
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
        message.msg_hdr.msg_name = (&raw mut one.source).cast();
        message.msg_hdr.msg_namelen = size_of::<SocketName>() as libc::socklen_t;
        message.msg_hdr.msg_control = control.bytes.as_mut_ptr().cast();
        message.msg_hdr.msg_controllen = CONTROL_LEN as _;
    }
    // SAFETY: every message points to one part, one name, one control buffer and one place, all of
    // which are borrowed or owned here for longer than the call, with their true lengths.
    let count = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            MESSAGES_PER_CALL_MAX as libc::c_uint,
            libc::MSG_DONTWAIT as _,
            std::ptr::null_mut(),
        )
    };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    let taken = received.iter_mut().zip(&mut controls).zip(&messages);
    for ((one, control), message) in taken.take(count) {
        control.len = message.msg_hdr.msg_controllen;
        one.complete(message.msg_len as usize, control);
    }
    Ok(count)
}

impl Received {
    fn complete(&mut self, len: usize, control: &Control) {
        self.len = len;
        self.segment_len = len.max(1);
        self.own = Own::Default;
        control.each(|level, kind, data| match (level, kind, data) {
            (libc::SOL_UDP, libc::UDP_GRO, &[a, b, c, d]) => {
                let segment_len = usize::try_from(i32::from_ne_bytes([a, b, c, d]));
                self.segment_len = segment_len.unwrap_or(len).max(1);
            }
            _ => self.own = Own::of_control(level, kind, data).unwrap_or(self.own),
        });
    }
}

/// Datagrams of one length to one client: the bytes `start..end` of a buffer.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing {
    /// Where the first begins in the buffer.
    pub start: usize,
    /// Where the last ends.
    pub end: usize,
    /// Bytes of each but the last, which may be shorter. Not 0.
    pub segment_len: usize,
    /// Who gets them.
    pub target: SocketName,
    /// Which address of this host they come from.
    pub own: Own,
}

impl Outgoing {
    /// Bytes of all datagrams.
    #[must_use]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether there is no byte to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Number of datagrams.
    #[must_use]
    pub fn count(&self) -> usize {
        self.len().div_ceil(self.segment_len)
    }
}

/// `sendmmsg`: sends messages, at most [`MESSAGES_PER_CALL_MAX`], without waiting; the kernel
/// cuts each into its datagrams. Returns how many of the first went; `WouldBlock` when none does.
///
/// # Panics
/// When a message is not in `bytes`.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], outgoing: &[Outgoing]) -> io::Result<usize> {
    let mut parts =
        [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; MESSAGES_PER_CALL_MAX];
    let mut controls = [Control::EMPTY; MESSAGES_PER_CALL_MAX];
    let mut messages = [empty_message(); MESSAGES_PER_CALL_MAX];
    let places = parts.iter_mut().zip(&mut controls).zip(&mut messages);
    for (one, ((part, control), message)) in outgoing.iter().zip(places) {
        let payload = &bytes[one.start..one.end];
        // Neither bytes nor name are written through: the call only reads.
        part.iov_base = payload.as_ptr().cast_mut().cast();
        part.iov_len = payload.len();
        one.own.write(control);
        if one.count() > 1 {
            let segment_len = u16::try_from(one.segment_len).expect("a datagram's length");
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &segment_len.to_ne_bytes());
        }
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
        message.msg_hdr.msg_name = (&raw const one.target).cast_mut().cast();
        message.msg_hdr.msg_namelen = one.target.len();
        if control.len > 0 {
            message.msg_hdr.msg_control = control.bytes.as_mut_ptr().cast();
            message.msg_hdr.msg_controllen = control.len as _;
        }
    }
    let count = outgoing.len().min(MESSAGES_PER_CALL_MAX);
    // SAFETY: the first `count` messages point to one part, one name, one payload and at most one
    // control buffer each, all of which are borrowed or owned here for longer than the call, with
    // their true lengths.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            count as libc::c_uint,
            (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

fn empty_message() -> libc::mmsghdr {
    // SAFETY: integers and pointers, for which zero is a value; also the padding that some C
    // libraries have has to be zero.
    unsafe { std::mem::zeroed() }
}

#[cfg(test)]
mod tests {
    use super::{CONTROL_LEN, Control, Outgoing, Own, Received, SEGMENTS_MAX, SocketName};
    use super::{MESSAGES_PER_CALL_MAX, prepare, receive, send};
    use std::net::{SocketAddr, UdpSocket};
    use std::os::fd::AsFd;
    use std::time::Duration;

    const PLACE_LEN: usize = 64 << 10;

    #[test]
    fn what_goes_beside_a_datagram_is_read_as_it_was_written() {
        for own in [Own::V4([198, 18, 0, 1]), Own::V6([0xfe; 16], 0), Own::Default] {
            let mut control = Control::EMPTY;
            own.write(&mut control);
            control.push(libc::SOL_UDP, libc::UDP_GRO, &1400_i32.to_ne_bytes());
            let mut received = Received::default();
            received.complete(4000, &control);
            assert_eq!((received.own, received.segment_len), (own, 1400));
        }
        // What the kernel never writes is passed over.
        for len in 0..=CONTROL_LEN {
            let control = Control { bytes: [0xff; CONTROL_LEN], len };
            control.each(|_, _, _| panic!("no message is that long"));
        }
    }

    /// All messages that come within a moment.
    fn take(socket: &UdpSocket) -> Vec<(Received, Vec<u8>)> {
        let mut places = vec![0; PLACE_LEN * MESSAGES_PER_CALL_MAX];
        let mut received = [Received::default(); MESSAGES_PER_CALL_MAX];
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.peek(&mut [0; 1]).unwrap();
        let count = receive(socket.as_fd(), &mut places, PLACE_LEN, &mut received).unwrap();
        let all = received.iter().zip(places.chunks(PLACE_LEN)).take(count);
        all.map(|(one, place)| (*one, place[..one.len].to_vec())).collect()
    }

    #[test]
    fn a_train_is_cut_and_put_together_and_its_answer_leaves_from_the_address_that_was_asked() {
        let server = UdpSocket::bind("0.0.0.0:0").unwrap();
        prepare(server.as_fd(), false, true).unwrap();
        let port = server.local_addr().unwrap().port();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        prepare(client.as_fd(), false, false).unwrap();
        // Any address of the loopback network is one of this host.
        let asked: SocketAddr = format!("127.0.0.9:{port}").parse().unwrap();
        client.send_to(b"hello", asked).unwrap();
        let [(request, bytes)] = take(&server).try_into().unwrap();
        assert_eq!((request.own, bytes.as_slice()), (Own::V4([127, 0, 0, 9]), &b"hello"[..]));
        assert_eq!(request.source.address(), Some(client.local_addr().unwrap()));
        let bytes: Vec<u8> = (0..=255).cycle().take(100 * SEGMENTS_MAX - 1).collect();
        let (target, own) = (request.source, request.own);
        let train = Outgoing { start: 0, end: bytes.len(), segment_len: 100, target, own };
        assert_eq!(train.count(), SEGMENTS_MAX);
        assert_eq!(send(server.as_fd(), &bytes, &[train]).unwrap(), 1);
        let mut got = Vec::new();
        while got.len() < bytes.len() {
            for (one, part) in take(&client) {
                assert_eq!(one.source.address(), Some(asked));
                assert!(one.segment_len == 100 || one.len < 100);
                got.extend(part);
            }
        }
        assert_eq!(got, bytes);
    }

    #[test]
    fn the_same_over_ipv6_and_for_ipv4_on_its_sockets() {
        let server = UdpSocket::bind("[::]:0").unwrap();
        prepare(server.as_fd(), true, true).unwrap();
        let port = server.local_addr().unwrap().port();
        for (local, asked) in [("[::1]:0", "[::1]"), ("127.0.0.1:0", "127.0.0.7")] {
            let client = UdpSocket::bind(local).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let asked: SocketAddr = format!("{asked}:{port}").parse().unwrap();
            client.send_to(b"hello", asked).unwrap();
            let [(request, _)] = take(&server).try_into().unwrap();
            let (target, own) = (request.source, request.own);
            assert_ne!(own, Own::Default);
            let answer = Outgoing { start: 0, end: 2, segment_len: 2, target, own };
            assert_eq!(send(server.as_fd(), b"hi", &[answer]).unwrap(), 1);
            assert_eq!(client.recv_from(&mut [0; 9]).unwrap(), (2, asked));
        }
    }

    #[test]
    fn a_name_of_no_family_is_no_address() {
        assert_eq!(SocketName::default().address(), None);
    }
}
