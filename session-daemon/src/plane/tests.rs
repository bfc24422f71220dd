//! Unit tests of what the program is told, and of what it tells.

use std::sync::atomic::{AtomicU64, Ordering};

use session_common::plane::{LISTENS_MAX, Orders, RING_LEN, Report, SECRET_WORDS, orders};

use super::ring::{Read, Ring};
use super::{addressed, words_of};

fn found() -> Orders {
    Orders {
        until_ns: 7,
        clock_ahead_ns: 99,
        directory: 1,
        first_page: 2,
        buckets: 3,
        flushed_stamp: 4,
        flush_at_s: 5,
        page_shift: 6,
        pages: 7,
        port: 8,
        settings: orders::CAS,
        listens_count: 9,
        reserved: 0,
        listens: std::array::from_fn(|idx| [idx as u64 * 2 + 100, idx as u64 * 2 + 101]),
        secret: std::array::from_fn(|idx| idx as u64 + 1000),
    }
}

#[test]
fn every_word_of_the_orders_is_told_but_until_when() {
    let mut words = words_of(&found());
    words.sort_unstable();
    let offsets: Vec<usize> = words.iter().map(|(offset, _)| *offset).collect();
    let expected: Vec<usize> = (8..size_of::<Orders>()).step_by(8).collect();
    assert_eq!(offsets, expected);
    assert_eq!(words[0].1, 99);
    assert_eq!(words[6].1, 7 << 32 | 6, "page length and pages share a word");
    assert_eq!(words[9].1, 100);
    assert_eq!(words.last().unwrap().1, 1000 + SECRET_WORDS as u64 - 1);
}

#[test]
fn addresses_are_those_of_one_port() {
    let sockets =
        |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
    let told = addressed(found(), &sockets(&["0.0.0.0:5", "[::]:5", "0.0.0.0:6"]));
    assert_eq!(told.settings, orders::CAS | orders::ANY_V4 | orders::ANY_V6);
    assert_eq!((told.port, told.listens_count), (5, 0));
    let told = addressed(found(), &sockets(&["198.18.0.1:5", "198.18.0.1:5", "[2001:db8::1]:5"]));
    assert_eq!((told.settings, told.listens_count), (orders::CAS, 2));
    let bytes: Vec<u8> = told.listens[0].iter().flat_map(|half| half.to_ne_bytes()).collect();
    assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 18, 0, 1]);
    let many: Vec<String> = (0..LISTENS_MAX + 3).map(|idx| format!("198.18.0.{idx}:5")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(addressed(found(), &sockets(&many)).listens_count as usize, LISTENS_MAX);
}

/// A report as the program would fill it.
struct Written(Vec<AtomicU64>);

impl Written {
    fn new() -> Self {
        Self((0..size_of::<Report>() / 8).map(|_| AtomicU64::new(0)).collect())
    }

    fn write(&self, count: u64) {
        for _ in 0..count {
            let number = self.0[0].load(Ordering::Relaxed);
            let place = size_of::<Report>() / 8 - (RING_LEN - number as usize % RING_LEN) * 2;
            self.0[place].store(number, Ordering::Relaxed);
            self.0[place + 1].store(number + 1, Ordering::Relaxed);
            self.0[0].store(number + 1, Ordering::Relaxed);
        }
    }
}

#[test]
fn accesses_are_shown_once_and_what_was_overwritten_is_counted() {
    let report = Written::new();
    report.write(3);
    let mut ring = Ring::from_now_on(&report.0);
    let mut seen = Vec::new();
    let mut show = |item, cas| {
        assert_eq!(cas, item + 1);
        seen.push(item);
    };
    assert_eq!(ring.read(&mut show), Read { shown: 0, lost: 0 });
    report.write(5);
    assert_eq!(ring.read(&mut show), Read { shown: 5, lost: 0 });
    // The oldest one may be in the middle of being overwritten.
    report.write(RING_LEN as u64 + 10);
    assert_eq!(ring.read(&mut show), Read { shown: RING_LEN - 1, lost: 11 });
    assert_eq!(ring.read(&mut show), Read { shown: 0, lost: 0 });
    assert_eq!(seen[..5], [3, 4, 5, 6, 7]);
    assert_eq!(seen[5], 8 + 11);
    assert_eq!(seen.len(), 5 + RING_LEN - 1);
}
