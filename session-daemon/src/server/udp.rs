//! Requests that come by datagram: one socket a worker and address, answered through the same
//! [`Connection`] as a stream, one datagram at a time. It owns who is answered, with how much;
//! what a request means is the business of `connection`, which may come by it of `protocol::udp`.
#![forbid(unsafe_code)]

use crate::command::counters::Counter;
use crate::protocol::udp::scope::{self, Refusal, Scope};
use crate::protocol::udp::{self, AMPLIFICATION_MAX, RequestId};
use crate::server::config::Binding;
use crate::server::connection::{Connection, Step};
use crate::server::shared::{ConnectionInfo, Peer};
use crate::server::socket::{watch, yield_turn};
use crate::server::worker::Local;
use crate::sys::{
    DATAGRAMS_PER_CALL_MAX, Outgoing, Received, SocketName, receive_datagrams, send_datagrams,
};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;

/// Room for one datagram: what IP can carry.
const DATAGRAM_LEN_MAX: usize = 64 << 10;

/// Pause before datagrams that the kernel had no room for are sent again, and how often.
const SEND_RETRY: Duration = Duration::from_millis(1);
const SEND_RETRIES_MAX: u32 = 50;

/// A bound datagram socket.
#[derive(Debug)]
pub struct Inlet {
    fd: OwnedFd,
    address: SocketAddr,
    notation: Arc<str>,
}

impl Inlet {
    /// Prepares a socket that is bound.
    ///
    /// # Errors
    /// When the kernel refuses an option.
    pub fn new(socket: UdpSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let notation = Peer::Udp(address).notation(None).into();
        Ok(Self { fd: socket.into(), address, notation })
    }
}

/// Answers datagrams for as long as the worker runs.
pub async fn serve(local: Rc<Local>, inlet: Inlet) {
    let Inlet { fd, address, notation } = inlet;
    let info = ConnectionInfo::new(
        local.shared.next_id(),
        fd.as_raw_fd(),
        Peer::Udp(address),
        Arc::clone(&notation),
        local.now(),
    );
    let info = Arc::new(info);
    local.seat().inlets().push(Arc::clone(&info));
    let fd = match watch(fd, Interest::READABLE) {
        Ok(fd) => fd,
        Err(error) => return log::error!("{notation}: cannot receive: {error}"),
    };
    let mut desk = Desk::new(&local, address.port());
    let mut places = vec![0; DATAGRAM_LEN_MAX * DATAGRAMS_PER_CALL_MAX];
    let mut received = [Received::default(); DATAGRAMS_PER_CALL_MAX];
    loop {
        let mut ready = match fd.readable().await {
            Ok(ready) => ready,
            Err(error) => return log::error!("{notation}: cannot receive any more: {error}"),
        };
        let socket = fd.get_ref().as_fd();
        let count = match receive_datagrams(socket, &mut places, DATAGRAM_LEN_MAX, &mut received) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ready.clear_ready();
                continue;
            }
            // What a datagram that was sent met on its way; the socket is as it was.
            Err(_) => 0,
        };
        for (one, place) in received.iter().zip(places.chunks(DATAGRAM_LEN_MAX)).take(count) {
            desk.take(&local, &info, one, place.get(..one.len).unwrap_or(place));
        }
        desk.send(&local, socket).await;
        if (1..DATAGRAMS_PER_CALL_MAX).contains(&count) {
            // Fewer than there was room for: none waits, and asking would only hear so.
            ready.clear_ready();
        } else {
            yield_turn().await;
        }
    }
}

/// Where the datagrams of one socket are answered.
struct Desk {
    connection: Connection,
    binding: Binding,
    scope: Scope,
    /// Our own port, from which no client sends.
    port: u16,
    /// The reply that is being gathered.
    reply: Vec<u8>,
    /// Datagrams to be sent, one behind the other, headers included.
    bytes: Vec<u8>,
    outgoing: Vec<Outgoing>,
}

impl Desk {
    fn new(local: &Local, port: u16) -> Self {
        let config = &local.shared.config;
        Self {
            connection: Connection::new(config.binding),
            binding: config.binding,
            scope: if config.udp_writes { Scope::Writes } else { Scope::Reads },
            port,
            reply: Vec::new(),
            bytes: Vec::new(),
            outgoing: Vec::new(),
        }
    }

    /// Answers one datagram, or counts why not.
    fn take(&mut self, local: &Local, info: &ConnectionInfo, one: &Received, datagram: &[u8]) {
        local.counters().add(Counter::BytesRead, datagram.len() as u64);
        let source = one.source.address();
        // A reply to another server's reply would go back and forth for ever, so what comes from
        // the port of such servers is no request.
        let Some(source) = source.filter(|at| at.port() != self.port && at.port() != 0) else {
            return local.counters().add_one(Counter::UdpDropped);
        };
        if !local.shared.admits(&Peer::Udp(source), local.now()) {
            return local.counters().add_one(Counter::UdpRejectedByList);
        }
        match udp::request(datagram) {
            Some((id, payload)) => self.answer(local, info, id, payload, one.source),
            None => local.counters().add_one(Counter::UdpDropped),
        }
    }

    fn answer(
        &mut self,
        local: &Local,
        info: &ConnectionInfo,
        id: RequestId,
        payload: &[u8],
        target: SocketName,
    ) {
        let binary = match self.binding {
            Binding::Auto => scope::is_binary(payload),
            Binding::Ascii => false,
            Binding::Binary => true,
        };
        let reply_len_max = AMPLIFICATION_MAX * (udp::FRAME_LEN + payload.len());
        let judged = scope::judge(payload, binary, self.scope);
        let requests = payload.get(..judged.len).unwrap_or_default();
        self.reply.clear();
        let fits = self.converse(local, info, requests, reply_len_max);
        if let Some(refusal) = judged.rest {
            local.counters().add_one(match refusal {
                Refusal::Incomplete => Counter::UdpDropped,
                _ => Counter::UdpRefused,
            });
            scope::refuse(&mut self.reply, refusal);
        }
        if !fits || udp::reply_len(self.reply.len()) > reply_len_max {
            local.counters().add_one(Counter::UdpTooLarge);
            self.reply.clear();
            scope::too_large(&mut self.reply, scope::speech(payload, binary));
        }
        self.enclose(id, target);
    }

    /// Has the requests done and gathers what is answered; false when that is more than may be
    /// sent, and then the rest is not done.
    fn converse(
        &mut self,
        local: &Local,
        info: &ConnectionInfo,
        requests: &[u8],
        reply_len_max: usize,
    ) -> bool {
        let mut rest = requests;
        let mut fits = true;
        'requests: while !rest.is_empty() {
            let space = self.connection.space(&mut local.pool.borrow_mut());
            let (part, behind) = rest.split_at(rest.len().min(space.len()));
            space[..part.len()].copy_from_slice(part);
            rest = behind;
            self.connection.filled(part.len());
            loop {
                let writes = self.scope == Scope::Writes;
                let step = local.drive_datagram(&mut self.connection, info, writes);
                let output = self.connection.output();
                let output_len = output.len();
                fits = self.reply.len() + output_len <= reply_len_max;
                if fits {
                    self.reply.extend_from_slice(output);
                }
                self.connection.sent(output_len, &mut local.pool.borrow_mut());
                match step {
                    _ if !fits => break 'requests,
                    // A datagram has one answer.
                    Step::Close | Step::Watch => break 'requests,
                    Step::Read => break,
                    Step::Write | Step::Yield => {}
                }
            }
        }
        self.connection.begin_anew(&mut local.pool.borrow_mut());
        fits
    }

    /// Cuts the gathered reply into datagrams.
    fn enclose(&mut self, id: RequestId, target: SocketName) {
        for (header, part) in udp::reply(id, &self.reply) {
            let start = self.bytes.len();
            self.bytes.extend_from_slice(&header);
            self.bytes.extend_from_slice(part);
            self.outgoing.push(Outgoing { start, end: self.bytes.len(), target });
        }
    }

    /// Sends what was enclosed. What the kernel has no room for is tried again for a moment and
    /// then lost, as datagrams may be.
    async fn send(&mut self, local: &Local, socket: std::os::fd::BorrowedFd<'_>) {
        let mut sent = 0;
        let mut retries = 0;
        while let Some(waiting) = self.outgoing.get(sent..).filter(|left| !left.is_empty()) {
            match send_datagrams(socket, &self.bytes, waiting) {
                Ok(count) => {
                    let bytes: usize =
                        waiting.iter().take(count).map(|one| one.end - one.start).sum();
                    local.counters().add(Counter::BytesWritten, bytes as u64);
                    sent += count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if retries == SEND_RETRIES_MAX {
                        local.counters().add(Counter::UdpUnsent, waiting.len() as u64);
                        break;
                    }
                    retries += 1;
                    tokio::time::sleep(SEND_RETRY).await;
                }
                // This client cannot be reached; the next one can.
                Err(_) => {
                    local.counters().add_one(Counter::UdpUnsent);
                    sent += 1;
                }
            }
        }
        self.outgoing.clear();
        self.bytes.clear();
        self.bytes.shrink_to(BYTES_KEEP_MAX);
        self.reply.shrink_to(BYTES_KEEP_MAX);
    }
}

/// Buffers that have grown beyond this shrink again once they are sent.
const BYTES_KEEP_MAX: usize = 256 << 10;
