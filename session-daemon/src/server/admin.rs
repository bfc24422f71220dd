//! Doing what an administrator asks. It owns which setting each command changes; what the store
//! has no use for is kept and told back by `stats settings` (docs/protocol.md).
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::clock::Now;
use crate::command::admin::{Admin, AdminOutcome, DebugTime, DumpKind, watch};
use crate::server::dump::Dump;
use crate::server::shared::Shared;
use crate::server::tuning::{AUTOMOVE_WINDOW, CRAWLER_SLEEP_MAX_US, Hundredths, LRU_PCT_MAX};
use crate::server::watchers::Watching;
use crate::store::Worker;
use crate::store::types::Reassigned;

/// memcached's least `cache_memlimit`, megabytes.
const MEMLIMIT_MIN_MB: u32 = 8;
/// Above it the number is taken for bytes.
const MEMLIMIT_MAX_MB: u32 = 1_000_000_000;

/// Does what a command asks.
pub fn administer(shared: &Shared, admin: Admin<'_>, store: &mut Worker, now: Now) -> AdminOutcome {
    match admin {
        Admin::SlabsReassign { from, to } => reassign(shared, store, from, to, now),
        Admin::Crawl(_) => crawl(shared),
        Admin::CacheMemlimit(megabytes) => cache_memlimit(shared, megabytes),
        Admin::RefreshCerts => match &shared.config.tls {
            Some(tls) => {
                tls.ask();
                AdminOutcome::Ok
            }
            None => AdminOutcome::NoTls,
        },
        Admin::Detail(_) if !shared.config.dumps_allowed => AdminOutcome::DetailNotAllowed,
        Admin::Detail(on) => {
            shared.set_detail(on);
            AdminOutcome::Ok
        }
        Admin::DebugTime(time) => debug_time(shared, time),
        Admin::LruTune { .. } | Admin::LruSegmented(_) | Admin::TemporaryTtl(_) => {
            lru(shared, admin)
        }
        _ => tune(shared, admin),
    }
}

fn tune(shared: &Shared, admin: Admin<'_>) -> AdminOutcome {
    shared.tune(|tuning| {
        match admin {
            Admin::Automove(level) if level > 2 => return AdminOutcome::Error,
            Admin::Automove(level) => tuning.slab_automove = level,
            Admin::AutomoveRatio(text) => match Hundredths::read(text) {
                Some(ratio) => tuning.slab_automove_ratio = ratio,
                None => return AdminOutcome::Error,
            },
            Admin::AutomoveFreeRatio(text) if Hundredths::read(text).is_none() => {
                return AdminOutcome::Error;
            }
            Admin::AutomoveWindow(window) if !AUTOMOVE_WINDOW.contains(&window) => {
                return AdminOutcome::WindowOutOfBounds;
            }
            Admin::AutomoveWindow(window) => tuning.slab_automove_window = window,
            // As memcached: starting what runs is an error, stopping what stands is not.
            Admin::Crawler(true) if tuning.lru_crawler => return AdminOutcome::CrawlerRuns,
            Admin::Crawler(on) => tuning.lru_crawler = on,
            Admin::CrawlerSleep(us) if us > CRAWLER_SLEEP_MAX_US => {
                return AdminOutcome::SleepTooLong;
            }
            Admin::CrawlerSleep(us) => tuning.lru_crawler_sleep_us = us,
            Admin::CrawlerToCrawl(count) => tuning.lru_crawler_tocrawl = count,
            Admin::TrackSizes(on) => {
                tuning.track_sizes = on;
                return if on { AdminOutcome::SizesEnabled } else { AdminOutcome::SizesDisabled };
            }
            _ => {}
        }
        AdminOutcome::Ok
    })
}

fn lru(shared: &Shared, admin: Admin<'_>) -> AdminOutcome {
    shared.tune(|tuning| match admin {
        Admin::LruTune { hot_pct, warm_pct, hot_factor, warm_factor } => {
            let factors = (Hundredths::read(hot_factor), Hundredths::read(warm_factor));
            if hot_pct.saturating_add(warm_pct) > LRU_PCT_MAX {
                return AdminOutcome::PctsTooHigh;
            }
            let (Some(hot), Some(warm)) = factors else { return AdminOutcome::Error };
            if hot.0 == 0 || warm.0 == 0 {
                return AdminOutcome::FactorsTooLow;
            }
            (tuning.hot_lru_pct, tuning.warm_lru_pct) = (hot_pct, warm_pct);
            (tuning.hot_max_factor, tuning.warm_max_factor) = (hot, warm);
            AdminOutcome::Ok
        }
        _ if !tuning.lru_maintainer => AdminOutcome::Error,
        Admin::LruSegmented(segmented) => {
            tuning.lru_segmented = segmented;
            AdminOutcome::Ok
        }
        Admin::TemporaryTtl(ttl_s) => {
            tuning.temporary_ttl_s = ttl_s;
            AdminOutcome::Ok
        }
        _ => AdminOutcome::Error,
    })
}

fn reassign(shared: &Shared, store: &mut Worker, from: i32, to: i32, now: Now) -> AdminOutcome {
    if !shared.tuning().slab_reassign {
        return AdminOutcome::ReassignDisabled;
    }
    match store.reassign(from, to, now) {
        Reassigned::Begun { from } => {
            shared.watchers.tell(
                watch::SYSEVENTS,
                now,
                format_args!("type=slab_move src={from} dst={to}"),
            );
            AdminOutcome::Ok
        }
        Reassigned::Running => AdminOutcome::ReassignRunning,
        Reassigned::BadClass => AdminOutcome::ReassignBadClass,
        Reassigned::NoSpare => AdminOutcome::ReassignNoSpare,
        Reassigned::Same => AdminOutcome::ReassignSame,
    }
}

/// The sweep looks at every page soon; it goes by pages, of whatever class.
fn crawl(shared: &Shared) -> AdminOutcome {
    if !shared.tuning().lru_crawler {
        return AdminOutcome::CrawlerDisabled;
    }
    shared.count_crawl();
    shared.store.sweep_all();
    AdminOutcome::Ok
}

fn cache_memlimit(shared: &Shared, megabytes: u32) -> AdminOutcome {
    if megabytes < MEMLIMIT_MIN_MB {
        return AdminOutcome::LimitTooSmall;
    }
    if megabytes > MEMLIMIT_MAX_MB {
        return AdminOutcome::LimitInBytes;
    }
    let bytes = usize::try_from(u64::from(megabytes) << 20).unwrap_or(usize::MAX);
    let most = shared.config.memory_most;
    if bytes > shared.store.memory_limit() && most.is_some_and(|most| bytes > most) {
        log::warn!("cache_memlimit: {megabytes} MB are more than the control group may have");
        return AdminOutcome::LimitOutOfBounds;
    }
    match shared.store.set_memory_limit(bytes) {
        Ok(()) => {
            log::info!("cache_memlimit: {megabytes} MB");
            AdminOutcome::Ok
        }
        Err(error) => {
            log::warn!("cache_memlimit: {megabytes} MB: {error}");
            AdminOutcome::LimitOutOfBounds
        }
    }
}

fn debug_time(shared: &Shared, time: DebugTime) -> AdminOutcome {
    if !shared.config.debug_commands {
        return AdminOutcome::Error;
    }
    match time {
        DebugTime::Move(seconds) => shared.move_clock(seconds),
        DebugTime::Pause => shared.stop_clock(true),
        DebugTime::Resume => shared.stop_clock(false),
    }
    AdminOutcome::Ok
}

/// Begins to list something, and appends what comes first.
///
/// # Errors
/// The answer, when the list is not allowed or empty.
pub fn begin_dump(
    shared: &Shared,
    kind: DumpKind,
    out: &mut Vec<u8>,
) -> Result<Dump, AdminOutcome> {
    let allowed = shared.config.dumps_allowed;
    let crawler = shared.tuning().lru_crawler;
    match kind {
        DumpKind::Metadump(_) | DumpKind::Mgdump(_) if !crawler => {
            return Err(AdminOutcome::CrawlerDisabled);
        }
        DumpKind::Metadump(_) if !allowed => return Err(AdminOutcome::MetadumpNotAllowed),
        DumpKind::Mgdump(_) if !allowed => return Err(AdminOutcome::MgdumpNotAllowed),
        DumpKind::Metadump(_) | DumpKind::Mgdump(_) => {
            shared.count_crawl();
            out.extend_from_slice(b"OK\r\n");
        }
        DumpKind::Cachedump { .. } if !allowed => return Err(AdminOutcome::CachedumpNotAllowed),
        DumpKind::Prefixes if !allowed => return Err(AdminOutcome::DetailNotAllowed),
        DumpKind::Sizes if !shared.tuning().track_sizes => return Err(AdminOutcome::SizesDisabled),
        DumpKind::Cachedump { .. } | DumpKind::Prefixes | DumpKind::Sizes => {}
    }
    Ok(Dump::new(kind))
}

/// Begins to collect events.
///
/// # Errors
/// The answer, when that is not allowed or too many watch.
pub fn watch(shared: &Shared, kinds: u32) -> Result<Watching, AdminOutcome> {
    if !shared.config.watch_allowed {
        return Err(AdminOutcome::WatchNotAllowed);
    }
    shared.watchers.begin(kinds).ok_or(AdminOutcome::TooManyWatchers)
}
