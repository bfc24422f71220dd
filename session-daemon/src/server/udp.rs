//! Requests that come by datagram: one socket a worker and address, answered through the same
//! [`Connection`] as a stream, one datagram at a time; but datagrams that each ask for one key are
//! looked up together, as pipelined ones are. It owns who is answered, with how much; what a request
//! means is the business of `connection` and `fetch`, which may come by it of `protocol::udp`.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::command::counters::Counter;
use crate::protocol::text::CRLF;
use crate::protocol::text::keys::lone_get;
use crate::protocol::udp::scope::{self, Refusal, Scope};
use crate::protocol::udp::{self, AMPLIFICATION_MAX, RequestId};
use crate::server::binding::Binding;
use crate::server::buffers::Output;
use crate::server::connection::{Connection, Step};
use crate::server::fetch;
use crate::server::shared::{ConnectionInfo, Peer};
use crate::server::socket::{watch, yield_turn};
use crate::server::worker::Local;
use crate::sys::datagrams::{self, MESSAGES_PER_CALL_MAX, Outgoing, Received, SEGMENTS_MAX};
use std::cmp::Reverse;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;

/// Room for one datagram, or for a train of them: what IP can carry.
const MESSAGE_LEN_MAX: usize = 64 << 10;

/// Bytes of datagrams that are sent at once; a little less than IP can carry.
const TRAIN_LEN_MAX: usize = 63 << 10;

/// Bytes of answers after which they are sent before further requests are looked at.
const ANSWERS_LEN_HIGH: usize = 256 << 10;

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
        datagrams::prepare(socket.as_fd(), address.is_ipv6(), address.ip().is_unspecified())?;
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
    let mut places = vec![0; MESSAGE_LEN_MAX * MESSAGES_PER_CALL_MAX];
    let mut received = [Received::default(); MESSAGES_PER_CALL_MAX];
    loop {
        let mut ready = match fd.readable().await {
            Ok(ready) => ready,
            Err(error) => return log::error!("{notation}: cannot receive any more: {error}"),
        };
        let socket = fd.get_ref().as_fd();
        let taken = datagrams::receive(socket, &mut places, MESSAGE_LEN_MAX, &mut received);
        let count = match taken {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ready.clear_ready();
                continue;
            }
            // What a datagram that was sent met on its way; the socket is as it was.
            Err(_) => 0,
        };
        let arrived =
            Arrived { messages: received.get(..count).unwrap_or_default(), places: &places };
        for idx in 0..arrived.messages.len() {
            desk.take_message(&local, &info, &arrived, idx);
            if desk.bytes.len() >= ANSWERS_LEN_HIGH {
                desk.send(&local, socket).await;
            }
        }
        desk.answer_lone(&local, &info, &arrived);
        desk.send(&local, socket).await;
        if (1..MESSAGES_PER_CALL_MAX).contains(&count) {
            // Fewer than there was room for: none waits, and asking would only hear so.
            ready.clear_ready();
        } else {
            yield_turn().await;
        }
    }
}

/// What one call has received.
struct Arrived<'a> {
    messages: &'a [Received],
    places: &'a [u8],
}

impl<'a> Arrived<'a> {
    /// The bytes of a message.
    fn bytes(&self, idx: usize) -> &'a [u8] {
        let start = idx.saturating_mul(MESSAGE_LEN_MAX);
        let len = self.messages.get(idx).map_or(0, |one| one.len);
        self.places.get(start..start.saturating_add(len)).unwrap_or_default()
    }
}

/// A datagram that asks for one key and nothing else.
#[derive(Clone, Copy)]
struct Lone {
    /// The message that it came with.
    message_idx: usize,
    /// Where in that the key begins.
    key: usize,
    key_len: usize,
    id: RequestId,
    request_len: usize,
}

/// Where its answer stands.
#[derive(Clone, Copy)]
struct Answered {
    lone: Lone,
    start: usize,
    len: usize,
}

/// Where the datagrams of one socket are answered.
struct Desk {
    connection: Connection,
    binding: Binding,
    scope: Scope,
    /// Our own port, from which no client sends.
    port: u16,
    /// Datagrams that are answered together.
    lone: Vec<Lone>,
    /// Their answers, one behind the other, and where each ends.
    lone_output: Output,
    lone_ends: Vec<usize>,
    /// The order in which they are sent.
    order: Vec<Answered>,
    /// The reply that is being gathered.
    reply: Vec<u8>,
    /// Datagrams to be sent, one behind the other, headers included.
    bytes: Vec<u8>,
    outgoing: Vec<Outgoing>,
    /// Whether the kernel cuts trains of answers.
    cuts: bool,
}

impl Desk {
    fn new(local: &Local, port: u16) -> Self {
        let config = &local.shared.config;
        Self {
            connection: Connection::new(config.binding),
            binding: config.binding,
            scope: if config.udp_writes { Scope::Writes } else { Scope::Reads },
            port,
            lone: Vec::new(),
            lone_output: Output::default(),
            lone_ends: Vec::new(),
            order: Vec::new(),
            reply: Vec::new(),
            bytes: Vec::new(),
            outgoing: Vec::new(),
            cuts: true,
        }
    }

    /// Answers the datagrams of a message, or counts why not. Some of them wait for
    /// [`Desk::answer_lone`].
    fn take_message(
        &mut self,
        local: &Local,
        info: &ConnectionInfo,
        arrived: &Arrived<'_>,
        message_idx: usize,
    ) {
        let Some(one) = arrived.messages.get(message_idx) else { return };
        let bytes = arrived.bytes(message_idx);
        local.counters().add(Counter::BytesRead, bytes.len() as u64);
        let count = bytes.len().div_ceil(one.segment_len).max(1) as u64;
        if let Some(counter) = self.refuses(local, one) {
            return local.counters().add(counter, count);
        }
        if bytes.is_empty() {
            return local.counters().add_one(Counter::UdpDropped);
        }
        for (number, datagram) in bytes.chunks(one.segment_len).enumerate() {
            let Some((id, payload)) = udp::request(datagram) else {
                local.counters().add_one(Counter::UdpDropped);
                continue;
            };
            if let Some(key_len) = lone_key_len(payload, self.binding) {
                let request_len = datagram.len();
                let behind_len = key_len.saturating_add(CRLF.len());
                let at = number.saturating_mul(one.segment_len);
                let key = at.saturating_add(request_len.saturating_sub(behind_len));
                self.lone.push(Lone { message_idx, key, key_len, id, request_len });
                if self.lone.len() >= fetch::BATCH_KEYS_MAX {
                    self.answer_lone(local, info, arrived);
                }
            } else {
                self.answer_lone(local, info, arrived);
                self.answer(local, info, payload);
                let reply = std::mem::take(&mut self.reply);
                self.enclose(id, &reply, one);
                self.reply = reply;
            }
        }
    }

    /// As what a message counts that is not answered because of where it comes from.
    fn refuses(&self, local: &Local, one: &Received) -> Option<Counter> {
        // A reply to another server's reply would go back and forth for ever, so what comes from
        // the port of such servers is no request.
        let source = one.source.address();
        let Some(source) = source.filter(|at| at.port() != self.port && at.port() != 0) else {
            return Some(Counter::UdpDropped);
        };
        let admits = local.shared.admits(&Peer::Udp(source), local.now());
        (!admits).then_some(Counter::UdpRejectedByList)
    }

    /// Answers the datagrams that wait for being answered together.
    fn answer_lone(&mut self, local: &Local, info: &ConnectionInfo, arrived: &Arrived<'_>) {
        let lone = std::mem::take(&mut self.lone);
        let mut rest = lone.as_slice();
        while !rest.is_empty() {
            self.lone_ends.clear();
            let keys = rest.iter().map(|one| {
                let end = one.key.saturating_add(one.key_len);
                arrived.bytes(one.message_idx).get(one.key..end).unwrap_or_default()
            });
            let (output, ends) = (&mut self.lone_output, &mut self.lone_ends);
            local.answer_datagrams(info, |turn| {
                fetch::lone(keys, output, turn, &mut |end| ends.push(end));
            });
            let mut output = std::mem::take(&mut self.lone_output);
            let ends = std::mem::take(&mut self.lone_ends);
            self.enclose_all(local, arrived, rest, (output.waiting(), &ends));
            let sent_len = output.len();
            output.sent(sent_len, &mut local.pool.borrow_mut());
            rest = rest.get(ends.len().max(1)..).unwrap_or_default();
            (self.lone_output, self.lone_ends) = (output, ends);
        }
        self.lone = lone;
        self.lone.clear();
    }

    /// Gathers the answer to one datagram.
    fn answer(&mut self, local: &Local, info: &ConnectionInfo, payload: &[u8]) {
        let binary = match self.binding {
            Binding::Auto => scope::is_binary(payload),
            Binding::Ascii => false,
            Binding::Binary => true,
        };
        let request_len = payload.len().saturating_add(udp::FRAME_LEN);
        let reply_len_max = request_len.saturating_mul(AMPLIFICATION_MAX);
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
            if let Some(space) = space.get_mut(..part.len()) {
                space.copy_from_slice(part);
            }
            rest = behind;
            self.connection.filled(part.len());
            loop {
                let writes = self.scope == Scope::Writes;
                let step = local.drive_datagram(&mut self.connection, info, writes);
                let output = self.connection.output();
                let output_len = output.len();
                fits = self.reply.len().saturating_add(output_len) <= reply_len_max;
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

    /// Encloses answers, given one behind the other and by where each ends. Those to one message in the
    /// order of their lengths, because datagrams of a train have one length: those of other datagrams
    /// may come in any order.
    fn enclose_all(
        &mut self,
        local: &Local,
        arrived: &Arrived<'_>,
        lone: &[Lone],
        (answers, ends): (&[u8], &[usize]),
    ) {
        let mut order = std::mem::take(&mut self.order);
        let starts = std::iter::once(0).chain(ends.iter().copied());
        order.extend(lone.iter().zip(starts.zip(ends)).map(|(one, (start, end))| Answered {
            lone: *one,
            start,
            len: end.saturating_sub(start),
        }));
        order.sort_unstable_by_key(|one| (one.lone.message_idx, Reverse(one.len), one.start));
        for Answered { lone, start, len } in order.drain(..) {
            let answer = answers.get(start..start.saturating_add(len)).unwrap_or_default();
            if let Some(message) = arrived.messages.get(lone.message_idx) {
                self.enclose_lone(local, &lone, answer, message);
            }
        }
        self.order = order;
    }

    /// [`Desk::enclose`] of an answer that may be too large.
    fn enclose_lone(&mut self, local: &Local, lone: &Lone, answer: &[u8], message: &Received) {
        if udp::reply_len(answer.len()) <= lone.request_len.saturating_mul(AMPLIFICATION_MAX) {
            return self.enclose(lone.id, answer, message);
        }
        local.counters().add_one(Counter::UdpTooLarge);
        self.enclose(lone.id, udp::TOO_LARGE, message);
    }

    /// Cuts a reply to a message into datagrams.
    fn enclose(&mut self, id: RequestId, reply: &[u8], message: &Received) {
        let (target, own) = (message.source, message.own);
        for (header, part) in udp::reply(id, reply) {
            let start = self.bytes.len();
            self.bytes.extend_from_slice(&header);
            self.bytes.extend_from_slice(part);
            let end = self.bytes.len();
            let segment_len = end.saturating_sub(start);
            let one = Outgoing { start, end, segment_len, target, own };
            let train = self.outgoing.last_mut().filter(|_| self.cuts);
            if !train.is_some_and(|train| couple(train, &one)) {
                self.outgoing.push(one);
            }
        }
    }

    /// Makes single datagrams of what has yet to be sent, and no trains from now on.
    fn uncouple(&mut self, sent: usize) {
        self.cuts = false;
        let trains = self.outgoing.split_off(sent);
        for train in trains {
            let starts = (train.start..train.end).step_by(train.segment_len);
            self.outgoing.extend(starts.map(|start| {
                let end = train.end.min(start.saturating_add(train.segment_len));
                Outgoing { start, end, segment_len: end.saturating_sub(start), ..train }
            }));
        }
    }

    /// Sends what was enclosed. What the kernel has no room for is tried again for a moment and
    /// then lost, as datagrams may be.
    async fn send(&mut self, local: &Local, socket: std::os::fd::BorrowedFd<'_>) {
        let mut sent = 0_usize;
        let mut retries = 0;
        while let Some(waiting) = self.outgoing.get(sent..).filter(|left| !left.is_empty()) {
            match datagrams::send(socket, &self.bytes, waiting) {
                Ok(count) => {
                    let bytes: usize = waiting.iter().take(count).map(Outgoing::len).sum();
                    local.counters().add(Counter::BytesWritten, bytes as u64);
                    sent = sent.saturating_add(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if retries == SEND_RETRIES_MAX {
                        let lost: usize = waiting.iter().map(Outgoing::count).sum();
                        local.counters().add(Counter::UdpUnsent, lost as u64);
                        break;
                    }
                    retries = retries.saturating_add(1);
                    tokio::time::sleep(SEND_RETRY).await;
                }
                // A way without checksums in hardware, or with a small MTU, takes no trains.
                Err(_) if waiting.first().is_some_and(|train| train.count() > 1) => {
                    self.uncouple(sent);
                }
                // This client cannot be reached; the next one can.
                Err(_) => {
                    local.counters().add_one(Counter::UdpUnsent);
                    sent = sent.saturating_add(1);
                }
            }
        }
        self.outgoing.clear();
        self.bytes.clear();
        self.bytes.shrink_to(BYTES_KEEP_MAX);
        self.reply.shrink_to(BYTES_KEEP_MAX);
    }
}

/// Bytes of the key that a payload asks for, if it is one get of one key.
fn lone_key_len(payload: &[u8], binding: Binding) -> Option<usize> {
    match lone_get(payload) {
        Some((key, [])) if binding != Binding::Binary => Some(key.len()),
        _ => None,
    }
}

/// Makes a datagram the next of a train, if it may be.
fn couple(train: &mut Outgoing, one: &Outgoing) -> bool {
    let is_whole = train.len().is_multiple_of(train.segment_len);
    let fits = is_whole
        && train.end == one.start
        && (train.target, train.own) == (one.target, one.own)
        && one.segment_len <= train.segment_len
        && train.count() < SEGMENTS_MAX
        && one.end.saturating_sub(train.start) <= TRAIN_LEN_MAX;
    if fits {
        train.end = one.end;
    }
    fits
}

/// Buffers that have grown beyond this shrink again once they are sent.
const BYTES_KEEP_MAX: usize = 256 << 10;
