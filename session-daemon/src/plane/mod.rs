//! The serving process's end of the kernel plane: what the program in the kernel is told, what it
//! has counted, and which items it has answered with. It loads nothing and attaches nothing; that
//! takes capabilities, which this process has not (`guard::plane`).
#![forbid(unsafe_code)]

mod ring;

use std::io;
use std::mem::offset_of;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use session_common::plane::{
    CLASSES, LEASE_NS, LISTENS_MAX, Orders, PERSISTENT_LEASE_NS, Report, Verdict, orders,
};

use crate::clock::Now;
use crate::plane::ring::Ring;
use crate::sys::mapped::MappedWords;

/// Whether the kernel goes on answering when the daemon is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// It ends at once, or within [`LEASE_NS`] of a kill.
    Ends,
    /// It goes on for [`PERSISTENT_LEASE_NS`].
    Persists,
}

/// What the program has counted since the last reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets by [`Verdict`].
    pub verdicts: [u64; Verdict::ALL.len()],
    /// Bytes of requests that were answered, memcached's header included.
    pub bytes_in: u64,
    /// Bytes of the answers.
    pub bytes_out: u64,
    /// Answers to `mg`.
    pub meta_answers: u64,
    /// Accesses of which nobody has been told, because too many came at once.
    pub untold: u64,
}

/// Answers by slab class.
pub type ClassHits = [u64; CLASSES];

impl Counts {
    /// Datagrams that were answered in the kernel with an item.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.verdicts[Verdict::Hit as usize]
    }

    /// Datagrams that were answered in the kernel for want of an item.
    #[must_use]
    pub fn misses(&self) -> u64 {
        self.verdicts[Verdict::Miss as usize]
    }

    /// Those of its figures that have grown since `base`, by how much.
    fn since(&self, base: &Self) -> Self {
        Self {
            verdicts: std::array::from_fn(|idx| {
                self.verdicts[idx].wrapping_sub(base.verdicts[idx])
            }),
            bytes_in: self.bytes_in.wrapping_sub(base.bytes_in),
            bytes_out: self.bytes_out.wrapping_sub(base.bytes_out),
            meta_answers: self.meta_answers.wrapping_sub(base.meta_answers),
            untold: self.untold.wrapping_sub(base.untold),
        }
    }
}

/// Words of a report.
const REPORT_WORDS: usize = size_of::<Report>() / 8;
const METERS: usize = offset_of!(Report, counters) / 8;
const CLASS_HITS: usize = offset_of!(Report, class_hits) / 8;

/// The plane of a server.
#[derive(Debug)]
pub struct Plane {
    /// See [`Orders::clock_ahead_ns`].
    clock_ahead_ns: u64,
    orders: MappedWords,
    reports: MappedWords,
    after: After,
    /// What is subtracted since the last reset.
    base: Mutex<(Counts, ClassHits)>,
    /// Accesses that were overwritten before they were read.
    untold: AtomicU64,
}

impl Plane {
    /// Maps what the program is told and what it tells, on so many CPUs, where the own boot clock is
    /// so much ahead of the kernel's. Nothing is answered yet.
    ///
    /// # Errors
    /// When the maps are not those of a plane.
    pub fn map(
        orders: BorrowedFd<'_>,
        reports: BorrowedFd<'_>,
        cpus: u32,
        clock_ahead_ns: i64,
        after: After,
    ) -> io::Result<Self> {
        let plane = Self {
            clock_ahead_ns: clock_ahead_ns.cast_unsigned(),
            orders: MappedWords::map(orders, size_of::<Orders>())?,
            reports: MappedWords::map(reports, size_of::<Report>() * cpus as usize)?,
            after,
            base: Mutex::new((Counts::default(), [0; CLASSES])),
            untold: AtomicU64::new(0),
        };
        plane.order(offset_of!(Orders, until_ns), 0);
        Ok(plane)
    }

    fn order(&self, offset: usize, value: u64) {
        if let Some(word) = self.orders.words().get(offset / 8) {
            // Release: whoever is told until when has been told the rest; the program reads that
            // word first.
            word.store(value, Ordering::Release);
        }
    }

    /// Tells the program where it finds what, and at which addresses it may answer; and from now
    /// on it does.
    pub fn serve(&self, found: Orders, sockets: &[SocketAddr], now: Now) {
        let told = Orders { clock_ahead_ns: self.clock_ahead_ns, ..addressed(found, sockets) };
        for (offset, word) in words_of(&told) {
            self.order(offset, word);
        }
        self.renew(now);
    }

    /// The daemon lives; to be told some times in [`LEASE_NS`].
    pub fn renew(&self, now: Now) {
        let lease_ns = match self.after {
            After::Ends => LEASE_NS,
            After::Persists => PERSISTENT_LEASE_NS,
        };
        self.order(offset_of!(Orders, until_ns), now.boottime_ns.saturating_add(lease_ns));
    }

    /// The daemon ends. Answers end with it, or go on for a while.
    pub fn leave(&self, now: Now) {
        match self.after {
            After::Ends => self.order(offset_of!(Orders, until_ns), 0),
            After::Persists => self.renew(now),
        }
    }

    /// What has been counted since the last reset.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let (base, _) = &*self.base.lock().unwrap_or_else(PoisonError::into_inner);
        self.all().since(base)
    }

    /// Answers by slab class since the last reset.
    #[must_use]
    pub fn class_hits(&self) -> ClassHits {
        let (_, base) = &*self.base.lock().unwrap_or_else(PoisonError::into_inner);
        let mut hits = self.all_class_hits();
        hits.iter_mut().zip(base).for_each(|(count, base)| *count = count.wrapping_sub(*base));
        hits
    }

    /// Makes every count read 0.
    pub fn reset(&self) {
        let mut base = self.base.lock().unwrap_or_else(PoisonError::into_inner);
        *base = (self.all(), self.all_class_hits());
    }

    /// A reader of the accesses from now on.
    #[must_use]
    pub fn accesses(&self) -> Accesses<'_> {
        let rings = self.each_report().map(Ring::from_now_on).collect();
        Accesses { plane: self, rings }
    }

    fn each_report(&self) -> impl Iterator<Item = &[AtomicU64]> {
        self.reports.words().chunks_exact(REPORT_WORDS)
    }

    fn all(&self) -> Counts {
        let mut all = Counts { untold: self.untold.load(Ordering::Relaxed), ..Counts::default() };
        for report in self.each_report() {
            // Relaxed: each word is a count of its own.
            let word = |idx: usize| report[idx].load(Ordering::Relaxed);
            all.bytes_in += word(offset_of!(Report, bytes_in) / 8);
            all.bytes_out += word(offset_of!(Report, bytes_out) / 8);
            all.meta_answers += word(offset_of!(Report, meta_answers) / 8);
            all.verdicts
                .iter_mut()
                .enumerate()
                .for_each(|(idx, count)| *count += word(METERS + idx));
        }
        all
    }

    fn all_class_hits(&self) -> ClassHits {
        let mut all = [0; CLASSES];
        for report in self.each_report() {
            // Relaxed: as in `all`.
            let words = report.iter().skip(CLASS_HITS);
            all.iter_mut().zip(words).for_each(|(sum, word)| *sum += word.load(Ordering::Relaxed));
        }
        all
    }
}

/// The accesses that the program reports, for the one who applies them.
#[derive(Debug)]
pub struct Accesses<'a> {
    plane: &'a Plane,
    rings: Vec<Ring<'a>>,
}

impl Accesses<'_> {
    /// Shows the accesses since the last call, offset and cas word of each item; how many there
    /// were. Those that were overwritten meanwhile are counted and left out.
    pub fn each(&mut self, mut show: impl FnMut(u64, u64)) -> usize {
        let mut shown = 0;
        for ring in &mut self.rings {
            let read = ring.read(&mut show);
            shown += read.shown;
            // Relaxed: a count of its own, with one writer.
            self.plane.untold.fetch_add(read.lost, Ordering::Relaxed);
        }
        shown
    }
}

/// The orders with the addresses of `sockets`: those of the first one's port, as many as there is
/// room for. What comes to others goes up.
fn addressed(found: Orders, sockets: &[SocketAddr]) -> Orders {
    let Some(port) = sockets.first().map(SocketAddr::port) else { return found };
    let mut told = Orders { port: port.into(), listens_count: 0, ..found };
    for socket in sockets.iter().filter(|socket| socket.port() == port) {
        let listen = match socket.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => {
                told.settings |= orders::ANY_V4;
                continue;
            }
            IpAddr::V6(ip) if ip.is_unspecified() => {
                told.settings |= orders::ANY_V6;
                continue;
            }
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        let (halves, _) = listen.as_chunks::<8>();
        let listen = [u64::from_ne_bytes(halves[0]), u64::from_ne_bytes(halves[1])];
        let count = told.listens_count as usize;
        if count < LISTENS_MAX && !told.listens[..count].contains(&listen) {
            told.listens[count] = listen;
            told.listens_count += 1;
        }
    }
    told
}

/// All words of the orders but the first, which says until when: offset and value.
fn words_of(told: &Orders) -> Vec<(usize, u64)> {
    let pair = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
    let mut words = vec![
        (offset_of!(Orders, clock_ahead_ns), told.clock_ahead_ns),
        (offset_of!(Orders, directory), told.directory),
        (offset_of!(Orders, first_page), told.first_page),
        (offset_of!(Orders, buckets), told.buckets),
        (offset_of!(Orders, flushed_stamp), told.flushed_stamp),
        (offset_of!(Orders, flush_at_s), told.flush_at_s),
        (offset_of!(Orders, page_shift), pair(told.page_shift, told.pages)),
        (offset_of!(Orders, port), pair(told.port, told.settings)),
        (offset_of!(Orders, listens_count), pair(told.listens_count, 0)),
    ];
    let listens = told.listens.as_flattened().iter().enumerate();
    words.extend(listens.map(|(idx, word)| (offset_of!(Orders, listens) + idx * 8, *word)));
    let secret = told.secret.iter().enumerate();
    words.extend(secret.map(|(idx, word)| (offset_of!(Orders, secret) + idx * 8, *word)));
    words
}

const _: () = {
    assert!(offset_of!(Orders, until_ns) == 0 && cfg!(target_endian = "little"));
    assert!(offset_of!(Orders, pages) == offset_of!(Orders, page_shift) + 4);
    assert!(offset_of!(Orders, settings) == offset_of!(Orders, port) + 4);
};

#[cfg(test)]
mod tests;
