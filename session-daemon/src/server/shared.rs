//! What all workers know of each other: counters, loads and the list of open connections. It
//! owns who is counted where; nothing here is touched between a read and its answer but a
//! connection's own cells.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::allowlist::Allowlist;
use crate::clock::Now;
use crate::command::counters::{self, Counter, Counters};
use crate::server::config::ServerConfig;
use crate::server::prefixes::Prefixes;
use crate::server::tuning::Tuning;
use crate::server::turns::Turns;
use crate::server::watchers::Watchers;
use crate::store::Store;
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{
    AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering,
};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::task::AbortHandle;

const NS: u64 = 1_000_000_000;

/// A client that sends a request more slowly than this, beyond the time that it may be silent, is
/// given up: one byte now and then would hold its memory for ever.
const REQUEST_BYTES_PER_S_MIN: usize = 1 << 10;

/// Where a client is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Over TCP.
    Tcp(SocketAddr),
    /// By datagram.
    Udp(SocketAddr),
    /// On this host, over a unix socket.
    Unix,
}

impl Peer {
    /// The address, for the log.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) | Self::Udp(address) => Some(*address),
            Self::Unix => None,
        }
    }

    /// The address that the allowlist judges.
    #[must_use]
    pub fn source(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(address) | Self::Udp(address) => Some(address.ip()),
            Self::Unix => None,
        }
    }

    /// In memcached's notation: `tcp:IP:PORT`, `tcp6:[IP]:PORT`, `udp:` and `udp6:` alike,
    /// `unix:PATH`.
    #[must_use]
    pub fn notation(&self, unix_path: Option<&str>) -> String {
        match self {
            Self::Tcp(address @ SocketAddr::V4(_)) => format!("tcp:{address}"),
            Self::Tcp(address @ SocketAddr::V6(_)) => format!("tcp6:{address}"),
            Self::Udp(address @ SocketAddr::V4(_)) => format!("udp:{address}"),
            Self::Udp(address @ SocketAddr::V6(_)) => format!("udp6:{address}"),
            Self::Unix => format!("unix:{}", unix_path.unwrap_or_default()),
        }
    }
}

/// What a connection is doing, in memcached's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Activity {
    /// Waiting for a request.
    Read,
    /// Answering.
    Parse,
    /// Getting events.
    Watch,
    /// Waiting for the client to read.
    Write,
}

/// One open connection as others see it.
#[derive(Debug)]
pub struct ConnectionInfo {
    /// Unique for the life of the server.
    pub id: u64,
    /// Its descriptor, for `stats conns` only.
    pub fd: i32,
    /// Where the client is.
    pub peer: Peer,
    /// What it connected to, in memcached's notation.
    pub listener: Arc<str>,
    last_active_s: AtomicU64,
    activity: AtomicU8,
    /// When a request began that is half received, boot-time seconds; 0 while there is none.
    begun_s: AtomicU64,
    /// Bytes that have come of it, or of those before it that were not answered yet.
    begun_len: AtomicUsize,
    /// Whether a request is half received or an answer half sent.
    busy: AtomicBool,
    reset: AtomicBool,
    /// Closed because it asked nothing.
    idle_closed: AtomicBool,
    task: OnceLock<AbortHandle>,
}

impl ConnectionInfo {
    /// A connection that was accepted now.
    #[must_use]
    pub fn new(id: u64, fd: i32, peer: Peer, listener: Arc<str>, now: Now) -> Self {
        Self {
            id,
            fd,
            peer,
            listener,
            last_active_s: AtomicU64::new(now.boottime_ns / NS),
            activity: AtomicU8::new(Activity::Read as u8),
            begun_s: AtomicU64::new(0),
            begun_len: AtomicUsize::new(0),
            busy: AtomicBool::new(false),
            reset: AtomicBool::new(false),
            idle_closed: AtomicBool::new(false),
            task: OnceLock::new(),
        }
    }

    // All cells are Relaxed: each says one thing to whoever lists connections, and orders nothing.

    /// Notes that the client asked something.
    pub fn active(&self, now: Now) {
        self.last_active_s.store(now.boottime_ns / NS, Ordering::Relaxed);
    }

    /// Seconds since the client last asked something.
    #[must_use]
    pub fn idle_s(&self, now: Now) -> u64 {
        (now.boottime_ns / NS).saturating_sub(self.last_active_s.load(Ordering::Relaxed))
    }

    /// Notes bytes that have come.
    pub fn received(&self, len: usize) {
        let before = self.begun_len.load(Ordering::Relaxed);
        self.begun_len.store(before.saturating_add(len), Ordering::Relaxed);
    }

    /// Notes that a request was answered: what is half received began after it.
    pub fn asked(&self) {
        self.begun_s.store(0, Ordering::Relaxed);
        self.begun_len.store(0, Ordering::Relaxed);
    }

    /// Notes what the connection does.
    pub fn doing(&self, activity: Activity, busy: bool) {
        if activity == Activity::Read && busy && self.begun_s.load(Ordering::Relaxed) == 0 {
            self.begun_s.store(self.last_active_s.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.activity.store(activity as u8, Ordering::Relaxed);
        self.busy.store(busy, Ordering::Relaxed);
    }

    /// memcached's name of what the connection does.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match self.activity.load(Ordering::Relaxed) {
            state if state == Activity::Parse as u8 => "conn_parse_cmd",
            state if state == Activity::Write as u8 => "conn_mwrite",
            state if state == Activity::Watch as u8 => "conn_watch",
            // In the middle of a request, of whose bytes memcached knows the number.
            _ if self.is_busy() => "conn_nread",
            _ => "conn_read",
        }
    }

    /// Whether it gets events, and so asks nothing for a long time.
    #[must_use]
    pub fn is_watching(&self) -> bool {
        self.activity.load(Ordering::Relaxed) == Activity::Watch as u8
    }

    /// Whether closing now would cut a request or an answer off.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    /// Whether a request is half received, and either nothing has come for `time`, or it has come
    /// for longer than `time` and what [`REQUEST_BYTES_PER_S_MIN`] grants.
    #[must_use]
    pub fn is_half_received_for(&self, time: Duration, now: Now) -> bool {
        let reading = self.activity.load(Ordering::Relaxed) == Activity::Read as u8;
        if !reading || !self.is_busy() {
            return false;
        }
        let since_s = (now.boottime_ns / NS).saturating_sub(self.begun_s.load(Ordering::Relaxed));
        let granted_s = self.begun_len.load(Ordering::Relaxed) / REQUEST_BYTES_PER_S_MIN;
        let limit_s = time.as_secs().saturating_add(granted_s as u64);
        self.idle_s(now) >= time.as_secs() || since_s >= limit_s
    }

    /// Ties the task that serves the connection to it.
    pub fn served_by(&self, task: AbortHandle) {
        // Set once, right after the task is spawned.
        let _ = self.task.set(task);
    }

    /// Closes the connection as soon as its worker comes by.
    pub fn close(&self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }

    /// Closes the connection because it asked nothing for long.
    pub fn close_idle(&self) {
        self.idle_closed.store(true, Ordering::Relaxed);
        self.close();
    }

    /// Whether the connection is closed because it asked nothing for long.
    #[must_use]
    pub fn is_idle_closed(&self) -> bool {
        self.idle_closed.load(Ordering::Relaxed)
    }

    /// Closes the connection with a reset.
    pub fn reset(&self) {
        self.reset.store(true, Ordering::Relaxed);
        self.close();
    }

    /// Whether the connection is to be closed with a reset.
    #[must_use]
    pub fn is_reset(&self) -> bool {
        self.reset.load(Ordering::Relaxed)
    }
}

/// One worker as others see it, on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Seat {
    /// Written by the worker alone.
    pub counters: Counters,
    /// Connections that it serves or is about to be handed.
    pub load: AtomicUsize,
    /// Those of them that stay: the others may be over before they have cost much.
    pub staying: AtomicUsize,
    connections: Mutex<HashMap<u64, Arc<ConnectionInfo>>>,
    inlets: Mutex<Vec<Arc<ConnectionInfo>>>,
    /// What `stats detail` counts.
    pub prefixes: Prefixes,
    /// How long its turns take.
    pub turns: Turns,
}

impl Seat {
    /// The worker's open connections. Held for a moment only: at accept, at close and to list.
    pub fn connections(&self) -> MutexGuard<'_, HashMap<u64, Arc<ConnectionInfo>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker's datagram sockets. Held for a moment only: at start and to list.
    pub fn inlets(&self) -> MutexGuard<'_, Vec<Arc<ConnectionInfo>>> {
        self.inlets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    /// What the server was told at start.
    pub config: ServerConfig,
    /// The items.
    pub store: Arc<Store>,
    /// Who may connect.
    pub allowlist: Arc<ArcSwap<Allowlist>>,
    /// One for each worker.
    pub seats: Box<[Seat]>,
    /// Where it listens: descriptor and notation.
    pub listeners: Box<[(i32, Arc<str>)]>,
    /// Open client connections.
    pub connections: AtomicUsize,
    /// Bytes that connections keep while they wait.
    held: AtomicUsize,
    /// Whether the allowlist only counts.
    audited: AtomicBool,
    /// Log level that `verbosity` has set.
    pub verbosity: AtomicU32,
    /// What the guard had counted when the parent last told.
    pub guard_counters: ArcSwap<Vec<(String, String)>>,
    /// Those who watch.
    pub watchers: Arc<Watchers>,
    /// Crawls and dumps that began.
    pub crawls: AtomicU64,
    tuning: Mutex<Tuning>,
    /// Whether `stats detail` counts, as `tuning` has it.
    detail: AtomicBool,
    /// Nanoseconds by which `debugtime` has moved the clock.
    clock_moved_ns: AtomicI64,
    /// Boot time at which `debugtime` has stopped the clock, as it was read; 0 while it goes.
    clock_stopped_ns: AtomicU64,
    /// False while no descriptor or memory is left for another connection.
    pub accepting: AtomicBool,
    /// When the server started.
    pub started: Now,
    next_id: AtomicU64,
}

impl Shared {
    /// The state of a server that starts now.
    #[must_use]
    pub fn new(
        config: ServerConfig,
        store: Arc<Store>,
        allowlist: Arc<ArcSwap<Allowlist>>,
        listeners: Box<[(i32, Arc<str>)]>,
    ) -> Self {
        Self {
            seats: (0..config.threads).map(|_| Seat::default()).collect(),
            verbosity: AtomicU32::new(config.verbosity),
            guard_counters: ArcSwap::default(),
            watchers: Arc::new(Watchers::new(config.tuning.watcher_logbuf_len)),
            crawls: AtomicU64::new(0),
            tuning: Mutex::new(config.tuning.clone()),
            detail: AtomicBool::new(config.tuning.detail),
            clock_moved_ns: AtomicI64::new(0),
            clock_stopped_ns: AtomicU64::new(0),
            audited: AtomicBool::new(config.audited),
            config,
            store,
            allowlist,
            listeners,
            connections: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            accepting: AtomicBool::new(true),
            started: Now::sample(),
            next_id: AtomicU64::new(1),
        }
    }

    /// The settings of memcached's own mechanisms now.
    #[must_use]
    pub fn tuning(&self) -> Tuning {
        self.locked_tuning().clone()
    }

    /// Changes the settings of memcached's own mechanisms.
    pub fn tune<T>(&self, change: impl FnOnce(&mut Tuning) -> T) -> T {
        change(&mut self.locked_tuning())
    }

    /// Switches `stats detail`.
    pub fn set_detail(&self, on: bool) {
        self.tune(|tuning| tuning.detail = on);
        self.detail.store(on, Ordering::Relaxed);
    }

    /// What ends the prefix of a key; none while `stats detail` is off.
    #[must_use]
    pub fn detail_delimiter(&self) -> Option<u8> {
        // Relaxed: counting begins and ends at about the time of the command.
        self.detail.load(Ordering::Relaxed).then_some(self.config.tuning.prefix_delimiter)
    }

    /// Counts a crawl or a dump that began.
    pub fn count_crawl(&self) {
        self.crawls.fetch_add(1, Ordering::Relaxed);
    }

    /// The time, as `debugtime` has moved it.
    #[must_use]
    pub fn sample(&self) -> Now {
        let now = Now::sample();
        if !self.config.debug_commands {
            return now;
        }
        let stopped_ns = self.clock_stopped_ns.load(Ordering::Relaxed);
        let standing_ns =
            if stopped_ns == 0 { 0 } else { now.boottime_ns.saturating_sub(stopped_ns) };
        let moved = |ns: u64| {
            ns.saturating_sub(standing_ns)
                .saturating_add_signed(self.clock_moved_ns.load(Ordering::Relaxed))
        };
        Now { realtime_ns: moved(now.realtime_ns), boottime_ns: moved(now.boottime_ns) }
    }

    /// Moves the clock (`debugtime`).
    pub fn move_clock(&self, seconds: i64) {
        let ns = seconds.saturating_mul(NS as i64);
        self.clock_moved_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// Stops the clock, or lets it go on from where it stands (`debugtime`).
    pub fn stop_clock(&self, stop: bool) {
        let now_ns = Now::sample().boottime_ns;
        if stop {
            let (unset, relaxed) = (0, Ordering::Relaxed);
            // Stopped already: it stands where it stood.
            let _ = self.clock_stopped_ns.compare_exchange(unset, now_ns, relaxed, relaxed);
            return;
        }
        let stopped_ns = self.clock_stopped_ns.swap(0, Ordering::Relaxed);
        if stopped_ns != 0 {
            let stood_ns = i64::try_from(now_ns.saturating_sub(stopped_ns)).unwrap_or(i64::MAX);
            self.clock_moved_ns.fetch_sub(stood_ns, Ordering::Relaxed);
        }
    }

    // Held for a moment, by administration commands and `stats` alone.
    fn locked_tuning(&self) -> MutexGuard<'_, Tuning> {
        self.tuning.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that no other connection has.
    pub fn next_id(&self) -> u64 {
        // Relaxed: only uniqueness is asked for.
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// The sum of a counter over all workers, and over what the kernel has answered.
    #[must_use]
    pub fn count(&self, counter: Counter) -> u64 {
        let sum = counters::sum(self.seats.iter().map(|seat| &seat.counters), counter);
        let Some(plane) = &self.config.plane else { return sum };
        let counts = plane.counts();
        sum.wrapping_add(match counter {
            Counter::CmdGet => counts.hits().wrapping_add(counts.misses()),
            Counter::GetHits => counts.hits(),
            Counter::GetMisses => counts.misses(),
            Counter::CmdMeta => counts.meta_answers,
            Counter::BytesRead => counts.bytes_in,
            Counter::BytesWritten => counts.bytes_out,
            _ => 0,
        })
    }

    /// Makes every counter read 0, the store's too; what is there stays counted.
    pub fn reset_counters(&self) {
        for seat in &self.seats {
            seat.counters.reset();
            seat.prefixes.clear();
        }
        self.store.reset_stats();
        if let Some(plane) = &self.config.plane {
            plane.reset();
        }
    }

    /// Whether the allowlist lets this client in.
    #[must_use]
    pub fn admits(&self, peer: &Peer, now: Now) -> bool {
        match peer.source() {
            Some(source) if self.config.judge_sources => {
                // Relaxed: a switch that nothing else hangs on.
                self.allowlist.load().verdict(source, now.boottime_ns).allowed
                    || self.audited.load(Ordering::Relaxed)
            }
            _ => true,
        }
    }

    /// Lets in whom the allowlist refuses, from now on; or refuses them again.
    pub fn audit(&self, on: bool) {
        self.audited.store(on, Ordering::Relaxed);
    }

    /// Takes one of the `-c` places for a connection; false when all are taken.
    #[must_use]
    pub fn take_place(&self) -> bool {
        // Relaxed: the count itself is all that is agreed on.
        self.connections
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                (count < self.config.conns_max).then(|| count.saturating_add(1))
            })
            .is_ok()
    }

    /// Counts bytes that a connection keeps; false, and nothing counted, when all connections
    /// together would keep more than `--buffer-limit`.
    #[must_use]
    pub fn hold(&self, len: usize) -> bool {
        // Relaxed: the count itself is all that is agreed on.
        self.held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                held.checked_add(len).filter(|held| *held <= self.config.buffers_len_max)
            })
            .is_ok()
    }

    /// Counts bytes as kept no longer.
    pub fn release(&self, len: usize) {
        if len > 0 {
            self.held.fetch_sub(len, Ordering::Relaxed);
        }
    }

    /// Bytes that connections keep while they wait.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Gives a place back.
    pub fn give_place(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
