//! The accesses of one CPU: a ring that the program overwrites without asking whether it was read.
//! It owns how far it was read, and what is told of the rest.
#![forbid(unsafe_code)]

use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use session_common::plane::{RING_LEN, Report};

const ACCESSES: usize = offset_of!(Report, accesses) / 8;
const RING: usize = offset_of!(Report, ring) / 8;

/// One CPU's report, and the number of the access that is read next.
#[derive(Debug)]
pub(super) struct Ring<'a> {
    report: &'a [AtomicU64],
    next: u64,
}

/// What a reading came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) shown: usize,
    pub(super) lost: u64,
}

impl<'a> Ring<'a> {
    /// Of a report's words, from the next access on.
    pub(super) fn from_now_on(report: &'a [AtomicU64]) -> Self {
        let mut ring = Self { report, next: 0 };
        ring.next = ring.written();
        ring
    }

    fn written(&self) -> u64 {
        // Acquire: the entries below it are there; the program stores it after the entry, and a
        // CPU of the kinds that this runs on does not turn stores round.
        self.report[ACCESSES].load(Ordering::Acquire)
    }

    /// Shows the accesses that were not read yet and are there still.
    pub(super) fn read(&mut self, show: &mut impl FnMut(u64, u64)) -> Read {
        let written = self.written();
        let oldest = written.saturating_sub(RING_LEN as u64);
        let mut read = Read { shown: 0, lost: oldest.saturating_sub(self.next) };
        for number in self.next.max(oldest)..written {
            let place = RING + number as usize % RING_LEN * 2;
            // Relaxed: the fence and the count below decide whether they belong together.
            let item = self.report[place].load(Ordering::Relaxed);
            let cas = self.report[place + 1].load(Ordering::Relaxed);
            // Acquire: the entry was read before the count is.
            fence(Ordering::Acquire);
            // The program fills an entry before it counts it: one that is a whole round behind may
            // be half another.
            if self.report[ACCESSES].load(Ordering::Relaxed) >= number + RING_LEN as u64 {
                read.lost += 1;
                continue;
            }
            show(item, cas);
            read.shown += 1;
        }
        self.next = written;
        read
    }
}
