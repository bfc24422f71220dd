//! A load by datagrams: each socket sends a train of requests and waits for all replies, or until
//! they are given up as lost. Trains go out and come in as one call where the kernel can (GSO, GRO).
#![forbid(unsafe_code)]

use std::io::IoSliceMut;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBuf, UdpGroSegment, UdpGsoSegment};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::time::Timespec;

use crate::account::{Account, Machine};
use crate::keys::Random;
use crate::tally::Tally;
use crate::wire::{Exchange, Expect, Step};
use crate::worker::{Outcome, Plan};

/// Header of each datagram: request id, sequence number, total, reserved.
const FRAME_LEN: usize = 8;
/// Room for what one call receives.
const BUFFER_LEN: usize = 64 * 1024;
/// After this time without a reply the rest of a train is lost.
const LOST_NS: u64 = 200_000_000;
/// Room for replies that come at once, in bytes.
const RECEIVE_LEN: usize = 4 << 20;
const EVENTS_MAX: usize = 256;
const SLEEP: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// A socket and the train that it waits for.
#[derive(Debug)]
struct Line {
    socket: UdpSocket,
    /// Id of the first request of the train.
    first_id: u16,
    /// What each request waits for; none once it is answered.
    awaited: Vec<Option<Vec<Expect>>>,
    missing: usize,
    sent_ns: u64,
}

/// One thread that loads a server by datagrams.
#[derive(Debug)]
pub(crate) struct Worker<'a> {
    plan: &'a Plan,
    depth: usize,
    lines: Vec<Line>,
    epoll: OwnedFd,
    random: Random,
    start: Instant,
    tally: Tally,
    train: Vec<u8>,
    buffer: Vec<u8>,
    words: Vec<u8>,
}

impl<'a> Worker<'a> {
    /// Opens a socket for each connection of the plan; nothing is sent yet.
    pub(crate) fn open(plan: &'a Plan, server: SocketAddr, depth: u32) -> Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let mut lines = Vec::new();
        for number in 0..u64::from(plan.connections) {
            let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any)?;
            socket.connect(server)?;
            socket.set_nonblocking(true)?;
            // As much as the host allows: a burst that is lost here is not the server's fault.
            let _ = setsockopt(&socket, RcvBuf, &RECEIVE_LEN);
            setsockopt(&socket, UdpGroSegment, &true).context("UDP_GRO, Linux 5.0")?;
            epoll::add(&epoll, &socket, EventData::new_u64(number), EventFlags::IN)?;
            lines.push(Line { socket, first_id: 0, awaited: Vec::new(), missing: 0, sent_ns: 0 });
        }
        Ok(Self {
            plan,
            depth: depth as usize,
            lines,
            epoll,
            random: Random::new(plan.seed),
            start: Instant::now(),
            tally: Tally::new(),
            train: Vec::new(),
            buffer: vec![0; BUFFER_LEN],
            words: Vec::new(),
        })
    }

    /// Loads the server from now on, and returns what it measured.
    pub(crate) fn run(mut self) -> Result<Outcome> {
        self.start = Instant::now();
        (0..self.lines.len()).try_for_each(|line| self.send(line))?;
        let mut begin = None;
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let mut looked_ns = 0;
        loop {
            let now_ns = self.now_ns();
            match begin {
                None if now_ns >= self.plan.warmup_ns => {
                    self.tally.reset();
                    begin = Some((now_ns, self.accounts()?));
                }
                Some((begin_ns, begin)) if now_ns >= begin_ns + self.plan.measure_ns => {
                    let end = self.accounts()?;
                    return Ok(Outcome {
                        seconds: (self.now_ns() - begin_ns) as f64 / 1e9,
                        server: end.0.since(begin.0),
                        load: end.1.since(begin.1),
                        stolen: end.2.stolen_since(begin.2),
                        tally: self.tally,
                    });
                }
                _ => {}
            }
            if now_ns - looked_ns > LOST_NS / 4 {
                looked_ns = now_ns;
                self.give_up(now_ns)?;
            }
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&SLEEP)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                self.receive(event.data.u64() as usize)?;
            }
        }
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn accounts(&self) -> Result<(Account, Account, Machine)> {
        let own = Account::of(&[std::process::id()])?;
        Ok((Account::of(&self.plan.server)?, own, Machine::now()?))
    }

    /// Counts what does not come any more as lost, and goes on.
    fn give_up(&mut self, now_ns: u64) -> Result<()> {
        for line in 0..self.lines.len() {
            let Line { sent_ns, missing, .. } = self.lines[line];
            if now_ns.saturating_sub(sent_ns) > LOST_NS {
                self.tally.lost += missing as u64;
                self.send(line)?;
            }
        }
        Ok(())
    }

    /// Sends a train of requests for keys of their own.
    fn send(&mut self, number: usize) -> Result<()> {
        let now_ns = self.now_ns();
        let line = &mut self.lines[number];
        line.first_id = line.first_id.wrapping_add(self.depth as u16);
        line.awaited.clear();
        self.train.clear();
        let mut datagram_len = 0;
        for at in 0..self.depth {
            let start = self.train.len();
            let id = line.first_id.wrapping_add(at as u16).to_be_bytes();
            self.train.extend_from_slice(&[id[0], id[1], 0, 0, 0, 1, 0, 0]);
            let mut expects = std::collections::VecDeque::new();
            let mut exchange = Exchange { bytes: &mut self.train, expects: &mut expects };
            let idx = self.plan.popularity.draw(&mut self.random);
            self.plan.protocol.get(&self.plan.items, idx, now_ns, &mut exchange);
            line.awaited.push(Some(expects.into()));
            ensure!(at == 0 || self.train.len() - start == datagram_len, "keys of one length");
            datagram_len = self.train.len() - start;
        }
        (line.missing, line.sent_ns) = (self.depth, now_ns);
        if self.depth > 1 {
            setsockopt(&line.socket, UdpGsoSegment, &i32::try_from(datagram_len)?)?;
        }
        match line.socket.send(&self.train) {
            Ok(_) => Ok(()),
            // Given up later, as if it had been lost on its way.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error).context("sending a train"),
        }
    }

    fn receive(&mut self, number: usize) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut control = nix::cmsg_space!(i32);
        loop {
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let fd = self.lines[number].socket.as_raw_fd();
            let flags = MsgFlags::MSG_DONTWAIT;
            let message = recvmsg::<()>(fd, &mut parts, Some(&mut control), flags);
            let (len, segment_len) = match message {
                Ok(message) => {
                    let trains = message.cmsgs()?.find_map(|control| match control {
                        ControlMessageOwned::UdpGroSegments(len) => usize::try_from(len).ok(),
                        _ => None,
                    });
                    (message.bytes, trains.unwrap_or(message.bytes).max(1))
                }
                Err(Errno::EAGAIN | Errno::EINTR) => break,
                Err(error) => return Err(error).context("receiving replies"),
            };
            let now_ns = self.now_ns();
            for datagram in buffer[..len].chunks(segment_len) {
                self.judge(number, datagram, now_ns)?;
            }
        }
        self.buffer = buffer;
        if self.lines[number].missing == 0 { self.send(number) } else { Ok(()) }
    }

    /// Compares a reply with what its request waits for.
    fn judge(&mut self, number: usize, datagram: &[u8], now_ns: u64) -> Result<()> {
        let Some((header, payload)) = datagram.split_first_chunk::<FRAME_LEN>() else {
            bail!("a datagram of {} bytes", datagram.len());
        };
        ensure!(header[2..] == [0, 0, 0, 1, 0, 0], "a reply in parts: {header:?}");
        let line = &mut self.lines[number];
        let id = u16::from_be_bytes([header[0], header[1]]);
        let at = usize::from(id.wrapping_sub(line.first_id));
        // The answer to a request that was given up.
        let Some(expects) = line.awaited.get_mut(at).and_then(Option::take) else { return Ok(()) };
        line.missing -= 1;
        let mut rest = payload;
        for expect in &expects {
            match self.plan.protocol.step(&self.plan.items, expect, rest, &mut self.words) {
                Step::Header(len) => {
                    let value_len = self.plan.items.value_len(expect.idx);
                    let value = rest.get(len..len + value_len).context("half a value")?;
                    ensure!(self.plan.items.matches(expect.idx, 0, value), "another value");
                    let behind = rest[len + value_len..].strip_prefix(self.plan.protocol.trailer());
                    rest = behind.context("the value does not end")?;
                    self.tally.hits += 1;
                }
                Step::Done(len) => rest = &rest[len..],
                Step::Miss(len) if self.plan.misses => {
                    rest = &rest[len..];
                    self.tally.misses += 1;
                }
                step => bail!(
                    "item {}: {step:?} of {:?}",
                    expect.idx,
                    payload.escape_ascii().to_string()
                ),
            }
        }
        ensure!(rest.is_empty(), "{} bytes that nothing asked for", rest.len());
        self.tally.answered(expects[0].start_ns, now_ns);
        Ok(())
    }
}
