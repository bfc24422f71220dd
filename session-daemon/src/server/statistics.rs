//! What `stats` tells: names and order of memcached, values of ours. It owns which number stands
//! behind which name; the mechanisms that this server does not have read 0 (docs/protocol.md).
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

mod classes;
mod settings;

use crate::clock::Now;
use crate::command::counters::Counter;
use crate::command::request::StatsTopic;
use crate::protocol::text::encode;
use crate::server::shared::Shared;
use crate::server::tuning::Tuning;
use crate::server::turns;
use crate::store::stats::Totals;
use crate::store::{Kept, Start};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use session_common::plane::Verdict;
use std::fmt::Display;
use std::sync::atomic::Ordering;

const NS: u64 = 1_000_000_000;

/// Takes one statistic: its name and its value.
type Sink<'a> = dyn FnMut(&str, &dyn Display) + 'a;

/// Hands over each statistic of a topic: its name and its value.
pub fn each(shared: &Shared, topic: StatsTopic, now: Now, take: &mut dyn FnMut(&str, &str)) {
    list(shared, topic, now, &mut |name, value| take(name, &value.to_string()));
}

/// The general statistics as text, and the workers' turns.
#[must_use]
pub fn general_text(shared: &Shared) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let mut sink = |name: &str, value: &dyn Display| all.push((name.to_owned(), value.to_string()));
    general(shared, Now::sample(), &mut sink);
    turns::each(shared.seats.iter().map(|seat| &seat.turns), &mut sink);
    all
}

fn list(shared: &Shared, topic: StatsTopic, now: Now, sink: &mut Sink<'_>) {
    match topic {
        StatsTopic::General => general(shared, now, sink),
        StatsTopic::Settings => settings::list(shared, sink),
        StatsTopic::Items => classes::items(shared, sink),
        StatsTopic::Slabs => classes::slabs(shared, sink),
        // As memcached without -o track_sizes; with it the items are walked.
        StatsTopic::Sizes => sink("sizes_status", &"disabled"),
        StatsTopic::Conns => conns(shared, now, sink),
        StatsTopic::Guard => guard(shared, sink),
        StatsTopic::Store => store(&shared.store.totals(), sink),
    }
}

fn general(shared: &Shared, now: Now, sink: &mut Sink<'_>) {
    let totals = shared.store.totals();
    let tuning = shared.tuning();
    process(shared, now, sink);
    connections(shared, sink);
    for counter in COMMANDS {
        sink(counter.name(), &shared.count(counter));
        if counter == Counter::GetMisses {
            sink("get_expired", &totals.get_expired);
            sink("get_flushed", &totals.get_flushed);
        }
    }
    sink("auth_cmds", &shared.count(Counter::AuthCmds));
    sink("auth_errors", &shared.count(Counter::AuthErrors));
    if shared.config.idle_timeout.is_some() {
        sink("idle_kicks", &shared.count(Counter::IdleKicks));
    }
    sink("bytes_read", &shared.count(Counter::BytesRead));
    sink("bytes_written", &shared.count(Counter::BytesWritten));
    sink("limit_maxbytes", &totals.limit_maxbytes);
    sink("accepting_conns", &u8::from(shared.accepting.load(Ordering::Relaxed)));
    sink("listen_disabled_num", &shared.count(Counter::ListenDisabled));
    sink("time_in_listen_disabled_us", &0);
    sink("threads", &shared.config.threads);
    sink("conn_yields", &shared.count(Counter::ConnYields));
    index(&totals, sink);
    background(shared, &totals, &tuning, sink);
    items(&totals, &tuning, sink);
    tls(shared, now, sink);
    memory_file(shared, sink);
    protected(shared, sink);
    kernel_plane(shared, sink);
}

/// How the store in the memory file began; nothing without one.
fn memory_file(shared: &Shared, sink: &mut Sink<'_>) {
    let Some(start) = shared.store.start() else { return };
    let (how, kept) = match start {
        Start::Kept(kept) => ("kept".to_owned(), kept),
        Start::Cold(cold) => (cold.to_string(), Kept::default()),
    };
    sink("memory_file_start", &how);
    sink("memory_file_items", &kept.items);
    sink("memory_file_ended", &kept.dead);
    sink("memory_file_lost", &kept.lost);
    sink("memory_file_in_place", &u8::from(kept.in_place));
    let checked = shared.store.checked().map_or(100, |checked| checked.percent);
    sink("memory_file_checked_percent", &checked);
    sink("memory_file_start_us", &shared.config.store_start.as_micros());
}

/// What `--protect` keeps; nothing without it.
fn protected(shared: &Shared, sink: &mut Sink<'_>) {
    let Some(protected) = shared.store.protected() else { return };
    sink("protected_items", &protected.items);
    sink("protected_bytes", &protected.bytes);
    sink("protected_limit_bytes", &protected.bytes_max);
    sink("protected_lost", &protected.lost);
}

/// What was answered in the kernel, and why the rest was not; nothing without `--kernel-plane`.
fn kernel_plane(shared: &Shared, sink: &mut Sink<'_>) {
    let Some(plane) = &shared.config.plane else { return };
    let counts = plane.counts();
    for (verdict, count) in Verdict::ALL.into_iter().zip(counts.verdicts) {
        let passed = if verdict.is_answer() { "" } else { "passed_" };
        sink(&format!("kernel_plane_{passed}{}", verdict.name()), &count);
    }
    sink("kernel_accesses_untold", &counts.untold);
}

/// In memcached's order.
const COMMANDS: [Counter; 20] = [
    Counter::CmdGet,
    Counter::CmdSet,
    Counter::CmdFlush,
    Counter::CmdTouch,
    Counter::CmdMeta,
    Counter::GetHits,
    Counter::GetMisses,
    Counter::DeleteMisses,
    Counter::DeleteHits,
    Counter::IncrMisses,
    Counter::IncrHits,
    Counter::DecrMisses,
    Counter::DecrHits,
    Counter::CasMisses,
    Counter::CasHits,
    Counter::CasBadval,
    Counter::TouchHits,
    Counter::TouchMisses,
    Counter::StoreTooLarge,
    Counter::StoreNoMemory,
];

fn process(shared: &Shared, now: Now, sink: &mut Sink<'_>) {
    sink("pid", &shared.config.pid);
    sink("uptime", &(now.boottime_ns.saturating_sub(shared.started.boottime_ns) / NS));
    sink("time", &(now.realtime_ns / NS));
    sink("version", &encode::VERSION);
    sink("libevent", &"none");
    sink("pointer_size", &usize::BITS);
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok();
    let seconds = |time: Option<nix::sys::time::TimeVal>| {
        let us = time.map_or(0, |time| time.num_microseconds());
        format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
    };
    sink("rusage_user", &seconds(usage.map(|usage| usage.user_time())));
    sink("rusage_system", &seconds(usage.map(|usage| usage.system_time())));
}

fn connections(shared: &Shared, sink: &mut Sink<'_>) {
    let open = shared.connections.load(Ordering::Relaxed);
    sink("max_connections", &shared.config.conns_max);
    sink("curr_connections", &open);
    sink("total_connections", &shared.count(Counter::TotalConnections));
    if shared.config.maxconns_fast {
        sink("rejected_connections", &shared.count(Counter::RejectedConnections));
    }
    sink("connection_structures", &open);
    sink(Counter::ResponseOom.name(), &shared.count(Counter::ResponseOom));
    zeros(&["response_obj_count", "response_obj_bytes", "read_buf_count"], sink);
    sink("read_buf_bytes", &shared.held());
    zeros(&["read_buf_bytes_free"], sink);
    sink(Counter::ReadBufOom.name(), &shared.count(Counter::ReadBufOom));
    let of_workers = shared.config.threads.saturating_mul(FDS_PER_WORKER);
    sink("reserved_fds", &shared.listeners.len().saturating_add(of_workers));
}

/// What a worker's runtime opens: an epoll and an eventfd.
const FDS_PER_WORKER: usize = 2;

fn zeros(names: &[&str], sink: &mut Sink<'_>) {
    for name in names {
        sink(name, &0);
    }
}

fn index(totals: &Totals, sink: &mut Sink<'_>) {
    sink("hash_power_level", &totals.hash_power_level);
    sink("hash_bytes", &totals.hash_bytes);
    sink("hash_is_expanding", &0);
}

/// What memcached's threads beside the workers do: absent with the option that ends them.
fn background(shared: &Shared, totals: &Totals, tuning: &Tuning, sink: &mut Sink<'_>) {
    if tuning.slab_reassign {
        zeros(&["slab_reassign_rescues", "slab_reassign_chunk_rescues"], sink);
        zeros(&["slab_reassign_inline_reclaim", "slab_reassign_busy_items"], sink);
        zeros(&["slab_reassign_busy_deletes", "slab_reassign_busy_nomem"], sink);
        sink("slab_reassign_last_busy_status", &0);
        sink("slab_reassign_running", &u8::from(totals.pages_draining > 0));
        sink("slabs_moved", &totals.slabs_moved);
    }
    if tuning.lru_crawler {
        sink("lru_crawler_running", &u8::from(shared.store.sweep_is_forced()));
        sink("lru_crawler_starts", &shared.crawls.load(Ordering::Relaxed));
    }
    if tuning.lru_maintainer {
        sink("lru_maintainer_juggles", &0);
    }
    sink("malloc_fails", &0);
    let counts = shared.watchers.counts();
    // No line is ever lost on its way to a watcher's buffer.
    sink("log_worker_dropped", &0);
    sink("log_worker_written", &counts.worker_written.load(Ordering::Relaxed));
    sink("log_watcher_skipped", &counts.watcher_skipped.load(Ordering::Relaxed));
    sink("log_watcher_sent", &counts.watcher_sent.load(Ordering::Relaxed));
    sink("log_watchers", &shared.watchers.count());
    zeros(&["unexpected_napi_ids", "round_robin_fallback"], sink);
}

fn items(totals: &Totals, tuning: &Tuning, sink: &mut Sink<'_>) {
    sink("bytes", &totals.bytes);
    sink("curr_items", &totals.curr_items);
    sink("total_items", &totals.total_items);
    sink("slab_global_page_pool", &totals.pages_free);
    sink("expired_unfetched", &totals.expired_unfetched);
    sink("evicted_unfetched", &totals.evicted_unfetched);
    if tuning.lru_maintainer {
        sink("evicted_active", &totals.evicted_active);
    }
    sink("evictions", &totals.evictions);
    sink("reclaimed", &totals.reclaimed);
    sink("crawler_reclaimed", &totals.crawler_reclaimed);
    sink("crawler_items_checked", &totals.crawler_items_checked);
    sink("lrutail_reflocked", &0);
    if tuning.lru_maintainer {
        zeros(&["moves_to_cold", "moves_to_warm", "moves_within_lru"], sink);
        zeros(&["direct_reclaims", "lru_bumps_dropped"], sink);
    }
}

/// Only with `-Z`, as in memcached.
fn tls(shared: &Shared, now: Now, sink: &mut Sink<'_>) {
    let Some(tls) = &shared.config.tls else { return };
    if tls.terms().session_cache {
        sink(Counter::SslNewSessions.name(), &shared.count(Counter::SslNewSessions));
    }
    sink(Counter::SslHandshakeErrors.name(), &shared.count(Counter::SslHandshakeErrors));
    sink(Counter::SslProtoErrors.name(), &shared.count(Counter::SslProtoErrors));
    let since = now.boottime_ns.saturating_sub(tls.refreshed_ns()) / NS;
    sink("time_since_server_cert_refresh", &since);
}

fn conns(shared: &Shared, now: Now, sink: &mut Sink<'_>) {
    for (fd, notation) in &shared.listeners {
        sink(&format!("{fd}:addr"), notation);
        sink(&format!("{fd}:state"), &"conn_listening");
        sink(&format!("{fd}:secs_since_last_cmd"), &shared_uptime(shared, now));
    }
    for info in shared.seats.iter().flat_map(|seat| seat.inlets().clone()) {
        let fd = info.fd;
        sink(&format!("{fd}:addr"), &info.listener);
        sink(&format!("{fd}:state"), &info.state());
        sink(&format!("{fd}:secs_since_last_cmd"), &info.idle_s(now));
        sink(&format!("{fd}:UDP"), &"UDP");
    }
    for seat in &shared.seats {
        let open: Vec<_> = seat.connections().values().cloned().collect();
        for info in open {
            let fd = info.fd;
            sink(&format!("{fd}:addr"), &info.peer.notation(shared.config.unix_path.as_deref()));
            sink(&format!("{fd}:listen_addr"), &info.listener);
            sink(&format!("{fd}:state"), &info.state());
            sink(&format!("{fd}:secs_since_last_cmd"), &info.idle_s(now));
        }
    }
}

fn shared_uptime(shared: &Shared, now: Now) -> u64 {
    now.boottime_ns.saturating_sub(shared.started.boottime_ns) / NS
}

fn guard(shared: &Shared, sink: &mut Sink<'_>) {
    let list = shared.allowlist.load();
    sink("enforced", &if shared.config.judge_sources { "yes" } else { "no" });
    sink("entries", &list.len());
    sink(Counter::RejectedByList.name(), &shared.count(Counter::RejectedByList));
    sink(Counter::ResetByList.name(), &shared.count(Counter::ResetByList));
    sink(Counter::WriteKicks.name(), &shared.count(Counter::WriteKicks));
    sink(Counter::ReadKicks.name(), &shared.count(Counter::ReadKicks));
    for counter in UDP {
        sink(counter.name(), &shared.count(counter));
    }
    turns::each(shared.seats.iter().map(|seat| &seat.turns), sink);
    for (name, value) in shared.guard_counters.load().iter() {
        sink(name, value);
    }
}

/// What became of datagrams that were not answered as they asked.
const UDP: [Counter; 5] = [
    Counter::UdpDropped,
    Counter::UdpRejectedByList,
    Counter::UdpRefused,
    Counter::UdpTooLarge,
    Counter::UdpUnsent,
];

fn store(totals: &Totals, sink: &mut Sink<'_>) {
    sink("page_len", &totals.page_len);
    sink("pages_used", &totals.pages_used);
    sink("pages_free", &totals.pages_free);
    sink("pages_draining", &totals.pages_draining);
    sink("hash_bytes", &totals.hash_bytes);
    sink("hash_power_level", &totals.hash_power_level);
    sink("outofmemory", &totals.outofmemory);
    sink("evictions", &totals.evictions);
    sink("reclaimed", &totals.reclaimed);
}
