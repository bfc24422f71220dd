//! Whether io_uring can be had here: tried out, since flags, limits, settings and filters of system
//! calls all have a say.
#![forbid(unsafe_code)]

use crate::uring::ring::{Event, Ring, User};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Where the kernel's own switch stands.
const SWITCH: &str = "/proc/sys/kernel/io_uring_disabled";

/// Turns of the ring within which what is at hand has to come.
const TURNS_MAX: u32 = 16;

/// How long the doorbell may take to ring.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Why io_uring cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Lacking {
    /// It was not built in.
    #[error("the kernel has no io_uring")]
    Absent,
    /// The kernel's switch is off.
    #[error("the kernel's switch kernel.io_uring_disabled is {0}")]
    Disabled(String),
    /// Something else says no.
    #[error("io_uring is not permitted, perhaps by a container's filter of system calls")]
    Forbidden,
    /// A flag is unknown.
    #[error("the kernel's io_uring is older than Linux 6.1")]
    Old,
    /// It may not lock so much memory.
    #[error("there is no memory to lock for io_uring (ulimit -l, LimitMEMLOCK=)")]
    Memory,
    /// It is there and does not do what it should.
    #[error("io_uring does not work: {0}")]
    Broken(io::Error),
}

impl From<io::Error> for Lacking {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOSYS) => Self::Absent,
            Some(Errno::PERM | Errno::ACCESS) => switch().map_or(Self::Forbidden, Self::Disabled),
            Some(Errno::INVAL) => Self::Old,
            Some(Errno::NOMEM) => Self::Memory,
            _ => Self::Broken(error),
        }
    }
}

/// The kernel's switch, if it keeps anybody out.
fn switch() -> Option<String> {
    let text = fs::read_to_string(SWITCH).ok()?.trim().to_owned();
    (text != "0").then_some(text)
}

/// Tries out whether this process can have `rings` rings, and whether they work.
///
/// # Errors
/// Why not.
pub fn probe(rings: usize) -> Result<(), Lacking> {
    // A thread of its own, because a ring belongs to the thread that made it.
    std::thread::scope(|scope| {
        let tried = scope.spawn(|| try_out(rings)).join();
        tried.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Nobody.
struct Prober;

impl User for Prober {
    fn sent(&self, _busy_behind: bool) {}
}

fn try_out(rings: usize) -> Result<(), Lacking> {
    let doorbell = eventfd(0, EventfdFlags::CLOEXEC).map_err(io::Error::from)?;
    let made: Result<Vec<_>, _> =
        (0..rings.max(1)).map(|_| Ring::<Prober>::new(&doorbell)).collect();
    let Some(mut ring) = made?.pop() else { return Ok(()) };
    let (ours, mut theirs) = UnixStream::pair()?;
    let line = ring.open(Rc::new(ours.into()), Prober);
    ring.send(line, b"ping".to_vec(), 0, false);
    wait(&mut ring, line, Event::Sent)?;
    let mut word = [0; 4];
    theirs.read_exact(&mut word)?;
    let context = Context::from_waker(Waker::noop());
    // Asked for, and not there: the bell has to ring.
    let _ = ring.poll(line, true, &context);
    while !ring.fall_asleep() {
        ring.turn();
    }
    theirs.write_all(b"pong")?;
    let rings = poll(&mut [PollFd::new(&doorbell, PollFlags::IN)], Some(&PATIENCE));
    if rings.map_err(io::Error::from)? == 0 {
        return Err(Lacking::Broken(io::Error::other("no completion is signalled")));
    }
    ring.wake_up();
    wait(&mut ring, line, Event::Received)?;
    if ring.copy(line, &mut word)? != word.len() || &word != b"pong" {
        return Err(Lacking::Broken(io::Error::other("other bytes than were sent")));
    }
    Ok(())
}

fn wait(ring: &mut Ring<Prober>, line: usize, wanted: Event) -> Result<(), Lacking> {
    let context = Context::from_waker(Waker::noop());
    for _ in 0..TURNS_MAX {
        ring.turn();
        if let Poll::Ready(event) = ring.poll(line, wanted == Event::Received, &context)
            && event? == wanted
        {
            return Ok(());
        }
    }
    Err(Lacking::Broken(io::Error::other("a request does not end")))
}
