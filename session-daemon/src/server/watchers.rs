//! Events for those who watch (`watch`): a bounded buffer for each watcher, filled by the workers
//! as things happen, emptied by the watcher's connection. It owns the buffers, the counters of
//! what was written and left out, and the head of every line. A worker never waits here: buffers
//! are queues without a lock, and what does not fit is left out and counted.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::clock::Now;
use arc_swap::ArcSwap;
use crossbeam_queue::SegQueue;
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Most watchers at a time, as memcached.
const WATCHERS_MAX: usize = 20;

/// All watchers.
#[derive(Debug)]
pub struct Watchers {
    /// Kinds that anybody watches.
    kinds: AtomicU32,
    list: ArcSwap<Vec<Arc<Watcher>>>,
    /// Held to change the list.
    changes: Mutex<()>,
    buffer_len: usize,
    /// Number of the latest event.
    latest: AtomicU64,
    counts: Counts,
}

/// What became of events, in memcached's words.
#[derive(Debug, Default)]
pub struct Counts {
    /// Events that were told to the watchers.
    pub worker_written: AtomicU64,
    /// Lines that found no room with a watcher.
    pub watcher_skipped: AtomicU64,
    /// Lines put where a watcher's connection takes them.
    pub watcher_sent: AtomicU64,
}

/// One watcher as the workers see it.
#[derive(Debug)]
struct Watcher {
    kinds: u32,
    /// Filled by the workers, who never wait for each other there, emptied by the connection.
    lines: SegQueue<Arc<str>>,
    /// Bytes of the lines, and of those that are about to be put there.
    len: AtomicUsize,
    /// Lines left out since the last that fitted.
    skipped: AtomicU64,
    filled: Notify,
}

impl Watcher {
    fn new(kinds: u32) -> Self {
        Self {
            kinds,
            lines: SegQueue::new(),
            len: AtomicUsize::new(0),
            skipped: AtomicU64::new(0),
            filled: Notify::default(),
        }
    }

    /// Takes room for a line. False when there is none, which is counted.
    ///
    /// All is relaxed: the queue orders the lines, these only count them.
    fn make_room(&self, len: usize, buffer_len: usize) -> bool {
        if self.len.fetch_add(len, Ordering::Relaxed).saturating_add(len) <= buffer_len {
            return true;
        }
        self.len.fetch_sub(len, Ordering::Relaxed);
        self.skipped.fetch_add(1, Ordering::Relaxed);
        false
    }
}

impl Watchers {
    /// Nobody watches. A watcher may be `buffer_len` bytes behind.
    #[must_use]
    pub fn new(buffer_len: usize) -> Self {
        Self {
            kinds: AtomicU32::new(0),
            list: ArcSwap::default(),
            changes: Mutex::default(),
            buffer_len,
            latest: AtomicU64::new(0),
            counts: Counts::default(),
        }
    }

    /// Kinds of events that anybody watches.
    #[must_use]
    pub fn kinds(&self) -> u32 {
        // Relaxed: an event at the moment of a change may be told or not.
        self.kinds.load(Ordering::Relaxed)
    }

    /// What became of events.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// How many watch.
    #[must_use]
    pub fn count(&self) -> usize {
        self.list.load().len()
    }

    /// Begins to collect events of these kinds; none when too many watch.
    #[must_use]
    pub fn begin(self: &Arc<Self>, kinds: u32) -> Option<Watching> {
        let watcher = Arc::new(Watcher::new(kinds));
        let changes = self.changes();
        let mut list = Vec::clone(&self.list.load());
        if list.len() >= WATCHERS_MAX {
            return None;
        }
        list.push(Arc::clone(&watcher));
        self.replace(list);
        drop(changes);
        Some(Watching { watchers: Arc::clone(self), watcher })
    }

    fn end(&self, watcher: &Arc<Watcher>) {
        let _changes = self.changes();
        let list = self.list.load();
        let others = list.iter().filter(|other| !Arc::ptr_eq(other, watcher));
        self.replace(others.cloned().collect());
    }

    fn replace(&self, list: Vec<Arc<Watcher>>) {
        let kinds = list.iter().fold(0, |kinds, watcher| kinds | watcher.kinds);
        self.list.store(Arc::new(list));
        self.kinds.store(kinds, Ordering::Relaxed);
    }

    fn changes(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells an event of one kind. Never waits.
    pub fn tell(&self, kind: u32, now: Now, event: fmt::Arguments<'_>) {
        if self.kinds() & kind == 0 {
            return;
        }
        let gid = self.latest.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let (s, us) = (now.realtime_ns / 1_000_000_000, now.realtime_ns % 1_000_000_000 / 1000);
        let mut line = String::with_capacity(LINE_LEN_USUAL);
        // Writing to a string does not fail.
        let _ = writeln!(line, "ts={s}.{us:06} gid={gid} {event}");
        let line: Arc<str> = line.into();
        for watcher in self.list.load().iter().filter(|watcher| watcher.kinds & kind != 0) {
            self.append(watcher, &line);
        }
        self.counts.worker_written.fetch_add(1, Ordering::Relaxed);
    }

    fn append(&self, watcher: &Watcher, line: &Arc<str>) {
        if !watcher.make_room(line.len(), self.buffer_len) {
            self.counts.watcher_skipped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if watcher.skipped.load(Ordering::Relaxed) > 0 {
            let skipped = watcher.skipped.swap(0, Ordering::Relaxed);
            let line: Arc<str> = format!("skipped={skipped}\n").into();
            // A line of the limit's own, so it may go beyond it.
            watcher.len.fetch_add(line.len(), Ordering::Relaxed);
            watcher.lines.push(line);
        }
        watcher.lines.push(Arc::clone(line));
        self.counts.watcher_sent.fetch_add(1, Ordering::Relaxed);
        watcher.filled.notify_one();
    }
}

/// What most lines fit into.
const LINE_LEN_USUAL: usize = 160;

/// A connection that watches; it stops when this is dropped.
#[derive(Debug)]
pub struct Watching {
    watchers: Arc<Watchers>,
    watcher: Arc<Watcher>,
}

impl Watching {
    /// Moves what has been collected to the end of `out`.
    pub fn take(&self, out: &mut Vec<u8>) {
        // Those that come meanwhile are for the next time: the connection has others to serve.
        for _ in 0..self.watcher.lines.len() {
            let Some(line) = self.watcher.lines.pop() else { break };
            self.watcher.len.fetch_sub(line.len(), Ordering::Relaxed);
            out.extend_from_slice(line.as_bytes());
        }
    }

    /// Tells when something has been collected.
    #[must_use]
    pub fn filled(&self) -> Filled {
        Filled(Arc::clone(&self.watcher))
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.watchers.end(&self.watcher);
    }
}

/// Tells when a watcher's buffer has something in it.
#[derive(Debug)]
pub struct Filled(Arc<Watcher>);

impl Filled {
    /// Returns when something has been collected since it was taken last.
    pub async fn wait(&self) {
        self.0.filled.notified().await;
    }
}

/// A key as events and dumps show it: all but letters, digits and `-._~` as `%XX`.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a>(pub &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
                out.write_char(char::from(*byte))?;
            } else {
                write!(out, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Shown, Watchers, Watching};
    use crate::clock::Now;
    use crate::command::admin::watch;
    use std::sync::Arc;

    const NOW: Now = Now { realtime_ns: 1_700_000_000_000_042_000, boottime_ns: 1 };

    fn taken(watching: &Watching) -> String {
        let mut out = Vec::new();
        watching.take(&mut out);
        String::from_utf8(out).expect("events are text")
    }

    #[test]
    fn a_watcher_gets_its_kinds_and_no_other() {
        let watchers = Arc::new(Watchers::new(1024));
        watchers.tell(watch::FETCHERS, NOW, format_args!("nobody"));
        let fetchers = watchers.begin(watch::FETCHERS).expect("the first");
        let both = watchers.begin(watch::FETCHERS | watch::MUTATIONS).expect("the second");
        watchers.tell(watch::FETCHERS, NOW, format_args!("type=a"));
        watchers.tell(watch::MUTATIONS, NOW, format_args!("type=b"));
        assert_eq!(taken(&fetchers), "ts=1700000000.000042 gid=1 type=a\n");
        assert!(taken(&both).ends_with("gid=2 type=b\n"));
        drop(both);
        assert_eq!(watchers.kinds(), watch::FETCHERS);
        drop(fetchers);
        assert_eq!((watchers.kinds(), watchers.count()), (0, 0));
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_counted() {
        let watchers = Arc::new(Watchers::new(100));
        let slow = watchers.begin(watch::FETCHERS).expect("the first");
        for _ in 0..5 {
            watchers.tell(watch::FETCHERS, NOW, format_args!("type=a"));
        }
        assert_eq!(taken(&slow).lines().count(), 2);
        watchers.tell(watch::FETCHERS, NOW, format_args!("type=b"));
        let lines = taken(&slow);
        assert!(lines.starts_with("skipped=3\n") && lines.ends_with("gid=6 type=b\n"), "{lines}");
        let skipped = &watchers.counts().watcher_skipped;
        assert_eq!(skipped.load(std::sync::atomic::Ordering::Relaxed), 3);
    }

    #[test]
    fn lines_of_many_threads_are_all_there() {
        const LINES: usize = 2000;
        let watchers = Arc::new(Watchers::new(1 << 20));
        let watching = watchers.begin(watch::FETCHERS).expect("the first");
        let mut lines = String::new();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let watchers = &watchers;
                scope.spawn(move || {
                    for line in 0..LINES {
                        watchers.tell(watch::FETCHERS, NOW, format_args!("{thread} {line}"));
                    }
                });
            }
            while lines.lines().count() < LINES {
                lines += &taken(&watching);
            }
        });
        lines += &taken(&watching);
        assert_eq!(lines.lines().count(), 4 * LINES);
        for thread in 0..4 {
            let of_thread = format!(" {thread} ");
            let own = lines.lines().filter(|line| line.contains(&of_thread));
            let numbers = own.map(|line| line.rsplit(' ').next().and_then(|n| n.parse().ok()));
            assert!(numbers.eq((0..LINES).map(Some)), "thread {thread}'s lines are not in order");
        }
    }

    #[test]
    fn there_is_a_limit() {
        let watchers = Arc::new(Watchers::new(1024));
        let all: Vec<_> = std::iter::from_fn(|| watchers.begin(watch::FETCHERS)).collect();
        assert_eq!(all.len(), 20);
    }

    #[test]
    fn keys_are_shown_in_one_word() {
        assert_eq!(Shown(b"a:b c\xff~").to_string(), "a%3Ab%20c%FF~");
    }
}
