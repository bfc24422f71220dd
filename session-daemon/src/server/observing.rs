//! What happens on a connection, as lines for those who watch and as counts of `stats detail`.
//! It owns the words of the events, which are those of memcached's logger; it is made only while
//! somebody watches or `stats detail` is on.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::clock::Now;
use crate::command::admin::watch;
use crate::command::observe::{Event, Observer, Seen};
use crate::command::request::{Outcome, StoreMode};
use crate::server::shared::{Peer, Seat, Shared};
use crate::server::watchers::Shown;
use crate::store::stats::Evicted;
use crate::store::types::ClientFlags;
use std::net::SocketAddr;

/// A connection of which somebody wants to know.
#[derive(Clone, Copy, Debug)]
pub struct Observing<'a> {
    /// What all workers share.
    pub shared: &'a Shared,
    /// The worker's place.
    pub seat: &'a Seat,
    /// The connection's descriptor, memcached's name for it.
    pub fd: i32,
    /// The time of the turn.
    pub now: Now,
    /// Ends the prefix of a key; none while `stats detail` is off.
    pub delimiter: Option<u8>,
}

impl Observer for Observing<'_> {
    fn note(&self, event: &Event<'_>) {
        match *event {
            Event::Command(line) => self.command(line),
            Event::Fetched { key, found } => self.fetched(key, found),
            Event::Stored { key, outcome, mode, ttl_s, value_len } => {
                self.stored(key, outcome, mode, ttl_s, value_len);
            }
            Event::Deleted { key, command, found } => self.deleted(key, command, found),
        }
    }
}

impl Observing<'_> {
    fn command(&self, line: &[u8]) {
        let (watchers, fd) = (&self.shared.watchers, self.fd);
        if watchers.kinds() & watch::RAWCMDS != 0 {
            // Lines are lines: what a client sends must not look like another event.
            let text = line.escape_ascii();
            watchers.tell(watch::RAWCMDS, self.now, format_args!("<{fd} {text}"));
        }
    }

    fn fetched(&self, key: &[u8], found: Option<Seen>) {
        if let Some(delimiter) = self.delimiter {
            self.seat.prefixes.count(key, delimiter, |uses| {
                uses.gets = uses.gets.saturating_add(1);
                uses.hits = uses.hits.saturating_add(found.is_some().into());
            });
        }
        let status = if found.is_some() { "found" } else { "not_found" };
        let Seen { class, value_len } = found.unwrap_or_default();
        self.shared.watchers.tell(
            watch::FETCHERS,
            self.now,
            format_args!(
                "type=item_get key={} status={status} clsid={class} cfd={} size={value_len}",
                Shown(key),
                self.fd
            ),
        );
    }

    fn stored(&self, key: &[u8], outcome: Outcome, mode: StoreMode, ttl_s: u32, value_len: usize) {
        if let Some(delimiter) = self.delimiter {
            self.seat
                .prefixes
                .count(key, delimiter, |uses| uses.sets = uses.sets.saturating_add(1));
        }
        let status = match outcome {
            Outcome::Stored => "stored",
            Outcome::Exists => "exists",
            Outcome::NotFound => "not_found",
            Outcome::TooLarge => "too_large",
            Outcome::NoMemory | Outcome::OutOfMemory => "no_memory",
            _ => "not_stored",
        };
        let command = match mode {
            StoreMode::Set => "set",
            StoreMode::Add => "add",
            StoreMode::Replace => "replace",
            StoreMode::Append => "append",
            StoreMode::Prepend => "prepend",
            StoreMode::Cas(_) => "cas",
        };
        let class = self.shared.store.class_of(key.len(), ClientFlags(0), value_len);
        self.shared.watchers.tell(
            watch::MUTATIONS,
            self.now,
            format_args!(
                "type=item_store key={} status={status} cmd={command} ttl={ttl_s} clsid={class} \
                 cfd={} size={value_len}",
                Shown(key),
                self.fd
            ),
        );
    }

    fn deleted(&self, key: &[u8], command: &str, found: Option<Seen>) {
        if let Some(delimiter) = self.delimiter {
            self.seat.prefixes.count(key, delimiter, |uses| {
                uses.deletes = uses.deletes.saturating_add(1);
            });
        }
        if let Some(Seen { class, value_len }) = found {
            let key = Shown(key);
            self.shared.watchers.tell(
                watch::DELETIONS,
                self.now,
                format_args!("type=deleted key={key} cmd={command} clsid={class} size={value_len}"),
            );
        }
    }
}

/// Tells an eviction.
pub fn evicted(shared: &Shared, evicted: &Evicted, now: Now) {
    let Evicted { key, fetched, ttl_s, age_s, class, value_len } = evicted;
    let ttl = ttl_s.map_or(-1, i64::from);
    shared.watchers.tell(
        watch::EVICTIONS,
        now,
        format_args!(
            "type=eviction key={} fetch={} ttl={ttl} la={age_s} clsid={class} size={value_len}",
            Shown(key),
            if *fetched { "yes" } else { "no" },
        ),
    );
}

/// Tells that a connection began.
pub fn opened(shared: &Shared, peer: &Peer, fd: i32, now: Now) {
    if shared.watchers.kinds() & watch::CONNEVENTS == 0 {
        return;
    }
    let (ip, port, transport) = endpoint(peer);
    let event = format_args!("type=conn_new rip={ip} rport={port} transport={transport} cfd={fd}");
    shared.watchers.tell(watch::CONNEVENTS, now, event);
}

/// Tells that a connection ended, and why.
pub fn closed(shared: &Shared, peer: &Peer, fd: i32, reason: &str, now: Now) {
    if shared.watchers.kinds() & watch::CONNEVENTS == 0 {
        return;
    }
    let (ip, port, transport) = endpoint(peer);
    shared.watchers.tell(
        watch::CONNEVENTS,
        now,
        format_args!(
            "type=conn_close rip={ip} rport={port} transport={transport} reason={reason} cfd={fd}"
        ),
    );
}

fn endpoint(peer: &Peer) -> (String, u16, &'static str) {
    match peer.address() {
        Some(address) => {
            let address: SocketAddr = address;
            (address.ip().to_string(), address.port(), "tcp")
        }
        None => ("unix".to_owned(), 0, "local"),
    }
}
