//! The listening sockets: which addresses, who else has them, bound and listening.
//!
//! A TCP address is claimed in two steps. Before the guard is touched the first socket of each
//! address is bound, so that a port that another program serves is refused in time; a socket
//! that is bound and does not listen answers like a closed port. After the guard is attached
//! that socket listens, still without SO_REUSEPORT: the kernel refuses if anybody else listens
//! on the address. Only then it is shared with the sockets of the other workers.
//!
//! A UDP socket receives as soon as it is bound, so its address is only noted before the guard is
//! attached, and bound after, first without SO_REUSEPORT for the same reason.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use socket2::{Domain, Protocol, Socket, Type};

use crate::config::{Config, EXIT_OS, ListenAddress, Port, Refusal};
use crate::guard::SocketGuard;
use crate::link::ListenerKind;
use crate::server::tls::Verify;
use crate::startup::privileges::Identity;

/// How long an address may still be in use by the serving process of a killed daemon.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(1);
/// Pause between two looks at such an address.
const ORPHAN_LOOK: Duration = Duration::from_millis(10);

/// One TCP address whose first socket is bound and does not listen.
#[derive(Debug)]
struct Claim {
    address: SocketAddr,
    tls: Option<Verify>,
    first: Socket,
}

/// A unix socket that is to be made.
#[derive(Debug)]
struct UnixClaim {
    path: PathBuf,
    mask: u32,
    owner: Option<Identity>,
}

/// Addresses that are ours, not yet listening.
#[derive(Debug)]
pub(super) struct Claims {
    tcp: Vec<Claim>,
    udp: Vec<SocketAddr>,
    unix: Option<UnixClaim>,
    backlog: i32,
    threads: u16,
    mark: Option<u32>,
    text: String,
}

/// Sockets that listen.
#[derive(Debug, Default)]
pub(super) struct Listening {
    sockets: Vec<(ListenerKind, Socket)>,
    /// TCP addresses, each once.
    pub(super) addresses: Vec<SocketAddr>,
    /// UDP addresses, each once.
    pub(super) datagram_addresses: Vec<SocketAddr>,
    /// Path of the unix socket.
    pub(super) unix: Option<PathBuf>,
}

impl Claims {
    /// Finds the addresses and binds the first socket of each. A unix socket will belong to
    /// `owner`.
    pub(super) fn new(config: &Config, owner: Option<Identity>) -> Result<Self, Refusal> {
        let mut claims = Self {
            tcp: Vec::new(),
            udp: Vec::new(),
            unix: None,
            backlog: i32::try_from(config.backlog).unwrap_or(i32::MAX),
            threads: config.threads,
            mark: config.socket_mark,
            text: String::new(),
        };
        if let Some(path) = &config.unix_socket {
            check_unix(path)?;
            claims.unix = Some(UnixClaim { path: path.clone(), mask: config.unix_mask, owner });
            return Ok(claims);
        }
        claims.note_udp(config)?;
        if config.listen.is_empty() {
            let Some(port) = port_number(config.port) else { return Ok(claims) };
            claims.text = format!("TCP port {port}");
            claims.wildcard(port, config.tls.default_for_listeners())?;
        }
        for word in &config.listen {
            claims.text = format!("one of interface(s) {}", word.word);
            if config.port == Port::Off && config.udp_port != 0 && word.port.is_none() {
                continue;
            }
            claims.word(word, config.port, config.tls.of(word.tls))?;
        }
        Ok(claims)
    }

    /// The addresses of `-U`: those of `-l`, whose own ports win over `-U`'s as they do over
    /// `-p`'s, or all.
    fn note_udp(&mut self, config: &Config) -> Result<(), Refusal> {
        if config.udp_port == 0 {
            return Ok(());
        }
        let mut hosts: Vec<(&str, u16)> = config
            .listen
            .iter()
            .map(|word| (word.host.as_str(), word.port.unwrap_or(config.udp_port)))
            .collect();
        if hosts.is_empty() {
            hosts.push(("*", config.udp_port));
        }
        for (host, port) in hosts {
            if host == "*" {
                self.udp.push(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port));
                if has_family(Domain::IPV6) {
                    self.udp.push(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port));
                }
                continue;
            }
            let resolved = (host, port).to_socket_addrs().map_err(|error| {
                Refusal::new(EXIT_OS, format!("{error}\nfailed to listen on UDP port {port}"))
            })?;
            self.udp.extend(resolved);
        }
        let mut seen = HashSet::new();
        self.udp.retain(|address| seen.insert(*address));
        Ok(())
    }

    /// The TCP addresses with the ports that they really have.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.tcp.iter().map(|claim| claim.address).collect()
    }

    /// The TCP and the UDP addresses: what has to be guarded.
    pub(super) fn all_addresses(&self) -> Vec<SocketAddr> {
        self.tcp.iter().map(|claim| claim.address).chain(self.udp.iter().copied()).collect()
    }

    /// All IPv4 and all IPv6 addresses, as far as the host has the family.
    fn wildcard(&mut self, port: u16, tls: Option<Verify>) -> Result<(), Refusal> {
        let v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
        let first = self.add(v4, tls);
        let port = self.tcp.last().map_or(port, |claim| claim.address.port());
        let second = self.add(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port), tls);
        let missing = |error: &io::Error| error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32);
        match (first, second) {
            (Ok(()), Ok(())) => Ok(()),
            (Ok(()), Err(error)) | (Err(error), Ok(())) if missing(&error) => Ok(()),
            (Err(error), _) | (_, Err(error)) => Err(failed(&self.text, &error)),
        }
    }

    fn word(
        &mut self,
        word: &ListenAddress,
        port: Port,
        tls: Option<Verify>,
    ) -> Result<(), Refusal> {
        let Some(port) = word.port.or(port_number(port)) else {
            return Err(Refusal::new(
                EXIT_OS,
                format!("failed to listen on {}: -p 0 gives it no port", self.text),
            ));
        };
        if word.host == "*" {
            return self.wildcard(port, tls);
        }
        let resolved: Vec<SocketAddr> = (word.host.as_str(), port)
            .to_socket_addrs()
            .map_err(|error| {
                Refusal::new(EXIT_OS, format!("{error}\nfailed to listen on {}", self.text))
            })?
            .collect();
        for address in resolved {
            self.add(address, tls).map_err(|error| failed(&self.text, &error))?;
        }
        Ok(())
    }

    /// Binds the first socket of an address; an address that is there already is skipped.
    fn add(&mut self, address: SocketAddr, tls: Option<Verify>) -> io::Result<()> {
        let known: HashSet<SocketAddr> = self.tcp.iter().map(|claim| claim.address).collect();
        if address.port() != 0 && known.contains(&address) {
            return Ok(());
        }
        let first = patiently(|| bound(address, false, self.mark))?;
        let address = first.local_addr()?.as_socket().unwrap_or(address);
        self.tcp.push(Claim { address, tls, first });
        Ok(())
    }

    /// Makes the sockets listen, one a worker and TCP address; called when the guard is attached.
    /// `filter` stands on each of them before its first packet.
    pub(super) fn listen(self, filter: Option<&SocketGuard>) -> Result<Listening, Refusal> {
        let guarded = |socket: Socket| {
            filter.map_or(Ok(()), |filter| filter.stand_on(socket.as_fd())).map(|()| socket)
        };
        let mut listening =
            Listening { sockets: Vec::new(), addresses: self.addresses(), ..Listening::default() };
        for claim in self.tcp {
            let address = claim.address;
            let fail = |error: io::Error| failed(&self.text, &error);
            let first = guarded(claim.first).map_err(fail)?;
            first.listen(self.backlog).map_err(fail)?;
            first.set_reuse_port(true).map_err(fail)?;
            listening.sockets.push((ListenerKind::Tcp(claim.tls), first));
            for _ in 1..self.threads {
                let socket = bound(address, true, self.mark).and_then(guarded).map_err(fail)?;
                socket.listen(self.backlog).map_err(fail)?;
                listening.sockets.push((ListenerKind::Tcp(claim.tls), socket));
            }
        }
        for address in self.udp {
            let fail = |error: io::Error| failed(&format!("UDP port {}", address.port()), &error);
            let first = patiently(|| datagram_socket(address, false, filter)).map_err(fail)?;
            first.set_reuse_port(true).map_err(fail)?;
            listening.sockets.push((ListenerKind::Udp, first));
            for _ in 1..self.threads {
                let socket = datagram_socket(address, true, filter).map_err(fail)?;
                listening.sockets.push((ListenerKind::Udp, socket));
            }
            listening.datagram_addresses.push(address);
        }
        if let Some(claim) = self.unix {
            let what = format!("UNIX socket: {}", claim.path.display());
            let socket =
                unix_listener(&claim, self.backlog).map_err(|error| failed(&what, &error))?;
            listening.sockets.push((ListenerKind::Unix, socket));
            listening.unix = Some(claim.path);
        }
        Ok(listening)
    }
}

impl Listening {
    /// Sockets that another program in this process made listen, under these addresses.
    pub(super) fn made_before(
        sockets: Vec<(ListenerKind, OwnedFd)>,
        addresses: Vec<SocketAddr>,
        datagram_addresses: Vec<SocketAddr>,
        unix: Option<PathBuf>,
    ) -> Self {
        let sockets = sockets.into_iter().map(|(kind, fd)| (kind, Socket::from(fd))).collect();
        Self { sockets, addresses, datagram_addresses, unix }
    }

    /// Puts the guard's filter in the place of the one that the sockets may have.
    pub(super) fn stand(&self, filter: &SocketGuard) -> io::Result<()> {
        let guarded = self.sockets.iter().filter(|(kind, _)| *kind != ListenerKind::Unix);
        guarded.map(|(_, socket)| socket).try_for_each(|socket| filter.stand_on(socket.as_fd()))
    }

    /// The TCP and the UDP addresses.
    pub(super) fn all_addresses(&self) -> Vec<SocketAddr> {
        self.addresses.iter().chain(&self.datagram_addresses).copied().collect()
    }

    /// The sockets as the socket pair takes them.
    pub(super) fn descriptors(&self) -> Vec<(ListenerKind, BorrowedFd<'_>)> {
        self.sockets.iter().map(|(kind, socket)| (*kind, socket.as_fd())).collect()
    }

    /// Removes the path of the unix socket, which nobody serves any more.
    pub(super) fn remove(&self) {
        if let Some(path) = &self.unix {
            // It may be gone; the next daemon replaces it in any case.
            let _ = fs::remove_file(path);
        }
    }

    /// Closes the parent's copies: a child that ends closes the port with it.
    pub(super) fn close(&mut self) {
        self.sockets.clear();
    }
}

/// Whether every address is the host's own loopback (or there is none).
pub(super) fn only_loopback(addresses: &[SocketAddr]) -> bool {
    addresses.iter().all(|address| is_loopback(address.ip()))
}

/// Whether only this host itself can reach the address.
pub(super) fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

fn port_number(port: Port) -> Option<u16> {
    match port {
        Port::Off => None,
        Port::Any => Some(0),
        Port::Number(number) => Some(number),
    }
}

fn bound(address: SocketAddr, shared: bool, mark: Option<u32>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    // Inherited by the connections, as memcached has it.
    socket.set_keepalive(true)?;
    socket.set_tcp_nodelay(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    if let Some(mark) = mark {
        // `-o sock_cookie_id`; accepted sockets inherit it.
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Mark, &mark)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Whether the host has the address family at all.
fn has_family(family: Domain) -> bool {
    Socket::new(family, Type::DGRAM, None).is_ok()
}

/// Bytes of requests that may wait for a worker, as memcached asks for; the kernel gives what
/// `net.core.rmem_max` lets it.
const DATAGRAM_BUFFER_LEN: usize = 4 << 20;

/// A datagram that the list refuses does not even wait in the buffer.
fn datagram_socket(
    address: SocketAddr,
    shared: bool,
    filter: Option<&SocketGuard>,
) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.set_recv_buffer_size(DATAGRAM_BUFFER_LEN)?;
    socket.set_send_buffer_size(DATAGRAM_BUFFER_LEN)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    filter.map_or(Ok(()), |filter| filter.stand_on(socket.as_fd()))?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Tries again for a moment what finds an address in use: the serving process of a daemon that
/// was killed ends a little after its parent.
fn patiently<T>(work: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let start = Instant::now();
    loop {
        match work() {
            Err(error)
                if error.kind() == ErrorKind::AddrInUse && start.elapsed() < ORPHAN_PATIENCE =>
            {
                std::thread::sleep(ORPHAN_LOOK);
            }
            result => return result,
        }
    }
}

/// memcached's message: what failed, the system's reason.
fn failed(what: &str, error: &io::Error) -> Refusal {
    let reason = match error.raw_os_error() {
        Some(code) => Errno::from_raw(code).desc().to_owned(),
        None => error.to_string(),
    };
    Refusal::new(EXIT_OS, format!("failed to listen on {what}: {reason}"))
}

/// A socket that a dead server left is no obstacle; a live server is, and so is any other file.
fn check_unix(path: &Path) -> Result<(), Refusal> {
    let what = format!("UNIX socket: {}", path.display());
    let in_use = || io::Error::from(Errno::EADDRINUSE);
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(&what, &error)),
        Ok(file) if !file.file_type().is_socket() => Err(failed(&what, &in_use())),
        Ok(_) => patiently(|| match UnixStream::connect(path) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
            _ => Err(in_use()),
        })
        .map_err(|error| failed(&what, &error)),
    }
}

/// Binds under another name and renames, so that the path has its owner and its mode from its
/// first moment.
fn unix_listener(claim: &UnixClaim, backlog: i32) -> io::Result<Socket> {
    let mut temporary = claim.path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let listener = UnixListener::bind(&temporary)?;
    let prepared = give(&temporary, claim.mask & 0o777, claim.owner)
        .and_then(|()| fs::rename(&temporary, &claim.path));
    if let Err(error) = prepared {
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    let socket = Socket::from(OwnedFd::from(listener));
    socket.listen(backlog)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Gives a socket of ours its mode and owner. In a directory of another user its name may lead to
/// something else by now, so the file is held before it is looked at and changed.
fn give(path: &Path, mode: u32, owner: Option<Identity>) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    let found = rustix::fs::fstat(&file)?;
    let us = rustix::process::geteuid().as_raw();
    if !FileType::from_raw_mode(found.st_mode).is_socket() || found.st_uid != us {
        return Err(Errno::EADDRINUSE.into());
    }
    // No call changes the mode of a descriptor that only holds a place.
    let held = format!("/proc/self/fd/{}", file.as_raw_fd());
    fs::set_permissions(held, fs::Permissions::from_mode(mode))?;
    let Some(Identity { uid, gid }) = owner else { return Ok(()) };
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::fs::chownat(&file, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::cli::parse;
    use crate::config::Config;

    fn claims(words: &str) -> Result<Claims, Refusal> {
        let flags = parse(words.split_whitespace().map(OsString::from)).unwrap();
        Claims::new(&Config::from_flags(flags).unwrap(), None)
    }

    #[test]
    fn each_worker_has_a_socket_of_each_address() {
        let listening = claims("-p -1 -l 127.0.0.1 -t 3").unwrap().listen(None).unwrap();
        assert_eq!(listening.descriptors().len(), 3);
        assert_ne!(listening.addresses[0].port(), 0);
        assert!(only_loopback(&listening.addresses));
    }

    #[test]
    fn an_address_that_is_named_twice_is_bound_once() {
        let port = claims("-p -1 -l 127.0.0.1").unwrap().addresses()[0].port();
        let twice = claims(&format!("-l 127.0.0.1:{port},127.0.0.1:{port} -t 1")).unwrap();
        assert_eq!(twice.listen(None).unwrap().addresses.len(), 1);
    }

    #[test]
    fn a_port_is_never_shared_with_another_daemon_in_either_step() {
        let first = claims("-p -1 -l 127.0.0.1 -t 2").unwrap();
        let words = format!("-l 127.0.0.1:{} -t 2", first.addresses()[0].port());
        // Both have bound, and only one of them may listen.
        let second = claims(&words).unwrap();
        let _listening = first.listen(None).unwrap();
        let refusal = second.listen(None).unwrap_err();
        assert_eq!(refusal.status, EXIT_OS);
        assert!(refusal.text.ends_with(": Address already in use"), "{}", refusal.text);
        // With one that listens, the first step is refused already.
        assert_eq!(claims(&words).unwrap_err().status, EXIT_OS);
    }

    #[test]
    fn datagrams_have_a_socket_a_worker_and_the_ports_of_their_addresses() {
        let port = free_udp_port();
        let words = format!("-p -1 -U {port} -l 127.0.0.1 -t 3");
        let claimed = claims(&words).unwrap();
        assert_eq!(claimed.all_addresses().len(), 2);
        // Nothing is bound yet: the guard does not stand.
        drop(std::net::UdpSocket::bind(("127.0.0.1", port)).unwrap());
        let listening = claimed.listen(None).unwrap();
        let kinds = listening.descriptors().into_iter().map(|(kind, _)| kind);
        assert_eq!(kinds.filter(|kind| *kind == ListenerKind::Udp).count(), 3);
        assert_eq!(listening.datagram_addresses, [SocketAddr::from(([127, 0, 0, 1], port))]);
        // Another daemon does not share them, although its sockets would.
        let refusal = claims(&words).unwrap().listen(None).unwrap_err();
        assert_eq!(
            refusal.text,
            format!("failed to listen on UDP port {port}: Address already in use")
        );
        let words = "-U 7 -l 127.0.0.1:9,[::1],127.0.0.1:9";
        let flags = parse(words.split_whitespace().map(OsString::from)).unwrap();
        let mut noted = claims("-p -1 -l 127.0.0.1").unwrap();
        noted.note_udp(&Config::from_flags(flags).unwrap()).unwrap();
        assert_eq!(noted.udp.iter().map(SocketAddr::port).collect::<Vec<_>>(), [9, 7]);
    }

    fn free_udp_port() -> u16 {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap().port()
    }

    #[test]
    fn an_address_that_is_not_ours_is_refused() {
        let refusal = claims("-l 198.18.255.254").unwrap_err();
        assert_eq!(refusal.status, EXIT_OS);
        assert!(
            refusal.text.starts_with("failed to listen on one of interface(s) 198.18.255.254: "),
            "{}",
            refusal.text
        );
    }

    #[test]
    fn a_unix_socket_of_a_dead_server_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let words = format!("-s {} -a 750", path.display());
        let first = claims(&words).unwrap().listen(None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o750);
        let refusal = claims(&words).unwrap_err();
        assert!(refusal.text.starts_with("failed to listen on UNIX socket: "));
        drop(first);
        claims(&words).unwrap().listen(None).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "kept").unwrap();
        assert_eq!(claims(&words).unwrap_err().status, EXIT_OS);
        assert_eq!(fs::read(&path).unwrap(), b"kept");
    }

    #[test]
    fn only_a_socket_of_ours_is_given_away() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        fs::write(&target, "kept").unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        // What whoever owns the directory might have put in the socket's place.
        for path in [&link, &target] {
            give(path, 0o777, None).unwrap_err();
            assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
