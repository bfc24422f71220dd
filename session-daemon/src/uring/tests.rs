//! The ring by itself: what comes back, who owns what meanwhile, and how it ends.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use crate::uring::lent::{BUFFER_LEN, BUFFERS_MAX};
use crate::uring::ring::{Came, Event, Left, Ring, User};
use rustix::event::{EventfdFlags, eventfd};
use std::cell::Cell;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::thread;

/// Turns within which what is at hand has come.
const TURNS_MAX: u32 = 10_000;

/// What a client was told last about its answers.
#[derive(Clone, Default)]
struct Told(Rc<Cell<Option<bool>>>);

impl User for Told {
    fn sent(&self, busy_behind: bool) {
        self.0.set(Some(busy_behind));
    }
}

/// A ring and its doorbell; none where this machine lets nobody have one.
fn ring() -> Option<Ring<Told>> {
    let doorbell = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    match Ring::new(&doorbell) {
        Ok(ring) => Some(ring),
        Err(error) => {
            eprintln!("not tested here: io_uring: {error}");
            None
        }
    }
}

fn open(ring: &mut Ring<Told>) -> (usize, UnixStream, Rc<OwnedFd>, Told) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (fd, told) = (Rc::new(OwnedFd::from(ours)), Told::default());
    (ring.open(Rc::clone(&fd), told.clone()), theirs, fd, told)
}

fn poll(ring: &mut Ring<Told>, line: usize, for_bytes: bool) -> Poll<std::io::Result<Event>> {
    ring.poll(line, for_bytes, &Context::from_waker(Waker::noop()))
}

fn event(ring: &mut Ring<Told>, line: usize, for_bytes: bool) -> Event {
    for _ in 0..TURNS_MAX {
        if let Poll::Ready(event) = poll(ring, line, for_bytes) {
            return event.unwrap();
        }
        ring.turn();
    }
    panic!("nothing came");
}

/// Whether nobody holds the descriptor any more but the test.
fn is_let_go(ring: &mut Ring<Told>, fd: &Rc<OwnedFd>) -> bool {
    (0..TURNS_MAX).any(|_| {
        ring.turn();
        Rc::strong_count(fd) == 1
    })
}

#[test]
fn bytes_go_both_ways_and_the_end_is_told() {
    let Some(mut ring) = ring() else { return };
    let (line, mut theirs, _fd, told) = open(&mut ring);
    ring.send(line, b"xxhello".to_vec(), 2, true);
    assert_eq!(event(&mut ring, line, false), Event::Sent);
    assert_eq!(told.0.get(), Some(true));
    let mut word = [0; 5];
    theirs.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"hello");
    theirs.write_all(&vec![b'f'; BUFFER_LEN]).unwrap();
    assert_eq!(event(&mut ring, line, true), Event::Received);
    assert!(ring.is_full(line));
    assert_eq!(ring.copy(line, &mut vec![0; 2 * BUFFER_LEN]).unwrap(), BUFFER_LEN);
    theirs.write_all(b"defg").unwrap();
    assert_eq!(event(&mut ring, line, true), Event::Received);
    let mut piece = [0; 3];
    assert_eq!((ring.copy(line, &mut piece).unwrap(), &piece), (3, b"def"));
    assert!(!ring.is_full(line));
    assert_eq!((ring.copy(line, &mut piece).unwrap(), piece[0]), (1, b'g'));
    drop(theirs);
    assert_eq!(event(&mut ring, line, true), Event::Received);
    assert_eq!(ring.copy(line, &mut piece).unwrap(), 0);
}

#[test]
fn a_line_that_is_closed_keeps_its_memory_until_the_kernel_is_done() {
    let Some(mut ring) = ring() else { return };
    for with_send in [false, true] {
        let (line, theirs, fd, _) = open(&mut ring);
        if with_send {
            // More than the socket takes: it stays under way.
            ring.send(line, vec![b'v'; 8 << 20], 0, false);
            assert_eq!(event(&mut ring, line, true), Event::Stuck);
            assert!(ring.kept_len(line) >= 8 << 20);
        } else {
            assert!(poll(&mut ring, line, true).is_pending());
        }
        ring.turn();
        ring.close(line);
        assert_eq!(Rc::strong_count(&fd), 2, "let go while something is under way");
        assert!(is_let_go(&mut ring, &fd));
        drop(theirs);
    }
    // The place of both is used again, and what was under way is not taken for the new one's.
    let (line, mut theirs, _fd, _) = open(&mut ring);
    theirs.write_all(b"new").unwrap();
    assert_eq!(event(&mut ring, line, true), Event::Received);
    assert_eq!(ring.copy(line, &mut [0; 9]).unwrap(), 3);
}

#[test]
fn a_line_that_is_left_takes_nothing_from_its_successor() {
    let Some(mut ring) = ring() else { return };
    // Nothing has come; something has, of which the ring has not heard; it has.
    for (received, is_heard) in [(&b""[..], false), (b"half a", false), (b"half a", true)] {
        let (line, mut theirs, fd, _) = open(&mut ring);
        assert!(poll(&mut ring, line, true).is_pending());
        ring.turn();
        theirs.write_all(received).unwrap();
        if is_heard {
            assert_eq!(event(&mut ring, line, true), Event::Received);
        }
        let Left { received: mut all, unsent } = ring.leave(line).unwrap();
        assert!(unsent.is_empty());
        assert!(!is_heard || all == received);
        assert!(is_let_go(&mut ring, &fd));
        theirs.write_all(b" line").unwrap();
        ring.turn();
        // What the ring has not taken is still in the socket, before what came later.
        let mut rest = [0; 20];
        let rest_len = rustix::io::read(&fd, &mut rest).unwrap();
        all.extend_from_slice(&rest[..rest_len]);
        assert_eq!(all, [received, b" line"].concat());
    }
    // In the middle of an answer, and of a request behind it.
    let (line, mut theirs, fd, _) = open(&mut ring);
    let value: Vec<u8> = (0..=250).cycle().take(8 << 20).collect();
    ring.send(line, value.clone(), 0, false);
    assert_eq!(event(&mut ring, line, true), Event::Stuck);
    theirs.write_all(b"next").unwrap();
    assert_eq!(event(&mut ring, line, true), Event::Stuck);
    let left = ring.leave(line).unwrap();
    assert_eq!(left.received, b"next");
    assert!(is_let_go(&mut ring, &fd));
    drop(fd);
    let mut all = Vec::new();
    theirs.read_to_end(&mut all).unwrap();
    all.extend_from_slice(&left.unsent);
    assert!(!left.unsent.is_empty() && all == value, "other bytes than were to be sent");
    let (line, theirs, ..) = open(&mut ring);
    drop(theirs);
    assert_eq!(event(&mut ring, line, true), Event::Received);
    assert_eq!(ring.leave(line), None, "nobody is there any more");
}

#[test]
fn a_slow_reader_gets_everything_in_order_and_keeps_no_buffer_of_the_ring() {
    let Some(mut ring) = ring() else { return };
    let (line, mut theirs, _fd, _) = open(&mut ring);
    let value: Vec<u8> = (0..=250).cycle().take(3 << 20).collect();
    ring.send(line, value.clone(), 0, false);
    assert_eq!(event(&mut ring, line, true), Event::Stuck);
    theirs.write_all(b"impatient").unwrap();
    assert_eq!(event(&mut ring, line, true), Event::Stuck);
    assert!(ring.kept_len(line) >= value.len() + b"impatient".len());
    let (mut all, mut piece) = (Vec::new(), vec![0; 100_000]);
    while all.len() < value.len() {
        let len = theirs.read(&mut piece).unwrap();
        all.extend_from_slice(&piece[..len]);
        ring.turn();
    }
    assert!(all == value, "other bytes than were sent");
    while event(&mut ring, line, true) != Event::Received {}
    let len = ring.copy(line, &mut piece).unwrap();
    assert_eq!(&piece[..len], b"impatient");
}

#[test]
fn more_clients_than_buffers_are_all_heard() {
    let Some(mut ring) = ring() else { return };
    let count = usize::from(BUFFERS_MAX) * 2 + 7;
    let mut clients: Vec<_> = (0..count).map(|_| open(&mut ring)).collect();
    for round in 0..3_u8 {
        for (idx, (line, theirs, ..)) in clients.iter_mut().enumerate() {
            theirs.write_all(&[round, idx as u8]).unwrap();
            let _ = poll(&mut ring, *line, true);
        }
        ring.turn();
        for (idx, (line, ..)) in clients.iter().enumerate() {
            let mut bytes = [0; 2];
            let mut len = 0;
            while len == 0 {
                assert_eq!(event(&mut ring, *line, true), Event::Received);
                // None there: all buffers were out, and it has to be asked for again.
                len = ring.copy(*line, &mut bytes).unwrap();
            }
            assert_eq!(bytes, [round, idx as u8]);
        }
    }
}

#[test]
fn more_completions_than_the_ring_holds_are_not_lost() {
    const CLIENTS: usize = 200;
    const ROUNDS: usize = 15;
    let Some(mut ring) = ring() else { return };
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| open(&mut ring)).collect();
    for (line, ..) in &clients {
        // Opened and closed again without a turn in between: far more than fit.
        for _ in 0..ROUNDS {
            let (other, theirs, ..) = open(&mut ring);
            ring.send(other, b"lost?".to_vec(), 0, false);
            drop(theirs);
            ring.close(other);
        }
        ring.send(*line, b"here".to_vec(), 0, false);
    }
    for (line, theirs, ..) in &mut clients {
        // Stuck at first, it seems: the kernel keeps some completions back.
        while event(&mut ring, *line, false) != Event::Sent {}
        let mut word = [0; 4];
        theirs.read_exact(&mut word).unwrap();
        assert_eq!(&word, b"here");
    }
}

#[test]
fn a_ring_that_ends_lets_all_descriptors_go() {
    let Some(mut ring) = ring() else { return };
    let (idle, _theirs, idle_fd, _) = open(&mut ring);
    let (stuck, _their_other, stuck_fd, _) = open(&mut ring);
    assert!(poll(&mut ring, idle, true).is_pending());
    ring.send(stuck, vec![b'v'; 8 << 20], 0, false);
    ring.turn();
    drop(ring);
    assert_eq!((Rc::strong_count(&idle_fd), Rc::strong_count(&stuck_fd)), (1, 1));
}

/// Never readable, unless the test makes it so.
fn beside() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).unwrap()
}

#[test]
fn a_wait_ends_with_what_a_client_says_and_not_with_what_it_is_sent() {
    let Some(mut ring) = ring() else { return };
    let (line, mut theirs, ..) = open(&mut ring);
    let beside = beside();
    for round in 0..100_u8 {
        assert!(poll(&mut ring, line, true).is_pending());
        ring.send(line, vec![round], 0, false);
        let client = thread::spawn(move || {
            let mut answer = [0];
            theirs.read_exact(&mut answer).unwrap();
            theirs.write_all(b"next").unwrap();
            (answer, theirs)
        });
        // On a busy machine the client may let it wait in vain.
        let mut came = ring.wait(&beside);
        while !came.woken {
            assert!(!came.beside, "{came:?}");
            came = ring.wait(&beside);
        }
        assert_eq!(event(&mut ring, line, true), Event::Received);
        assert_eq!(ring.copy(line, &mut [0; 9]).unwrap(), 4);
        let (answer, their_end) = client.join().unwrap();
        assert_eq!(answer, [round]);
        theirs = their_end;
    }
}

#[test]
fn a_wait_ends_with_what_is_watched_beside_the_clients_and_in_vain() {
    let Some(mut ring) = ring() else { return };
    let (line, _theirs, ..) = open(&mut ring);
    let beside = beside();
    for _ in 0..3 {
        rustix::io::write(&beside, &1_u64.to_ne_bytes()).unwrap();
        let came = ring.wait(&beside);
        assert!(came.beside && came.any && !came.woken, "{came:?}");
        rustix::io::read(&beside, &mut [0; 8]).unwrap();
    }
    assert_eq!(ring.wait(&beside), Came::default());
    // One who takes nothing keeps nobody waiting.
    ring.send(line, vec![b'v'; 8 << 20], 0, false);
    assert!(poll(&mut ring, line, false).is_pending());
    assert!(ring.wait(&beside).woken);
    assert_eq!(event(&mut ring, line, false), Event::Stuck);
}
