//! How a thread waits that has a ring: in the ring, or elsewhere until the doorbell rings.
#![forbid(unsafe_code)]

use super::{BESIDE, Came, Ring, User};
use io_uring::opcode;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use rustix::event::PollFlags;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};

/// Longest wait in the ring: so much later than asked for may timers of the runtime be.
const WAIT_MAX: Timespec = Timespec::new().nsec(4_000_000);

/// Calls of the kernel before a sleep, which does a part of its work in each.
const CALLS_MAX: u32 = 4;

impl<U: User> Ring<U> {
    /// [`Ring::turn`] that waits for something to come: for a client, or for `beside` to be
    /// readable. Nothing has come when it has waited in vain for as long as it may.
    pub fn wait(&mut self, beside: &OwnedFd) -> Came {
        if !std::mem::replace(&mut self.watches_beside, true) {
            let events = u32::from(PollFlags::IN.bits());
            let request = opcode::PollAdd::new(Fd(beside.as_raw_fd()), events).build();
            self.queue(request.user_data(BESIDE));
        }
        if self.backlog.is_empty() {
            // What is sent ends at once, and is not what is waited for.
            self.submit_and_wait_for(self.prompt + 1);
        } else {
            self.submit();
        }
        self.take_completions()
    }

    /// Hands over what is queued and waits for `count` completions.
    fn submit_and_wait_for(&mut self, count: usize) {
        let limit = SubmitArgs::new().timespec(&WAIT_MAX);
        let submitted = self.uring.submitter().submit_with_args(count, &limit);
        self.submitted(submitted);
    }

    /// Prepares a sleep elsewhere, which the doorbell ends: from here on it rings. False when there
    /// is something to do first.
    pub fn fall_asleep(&mut self) -> bool {
        self.uring.completion().enable_eventfd();
        // SeqCst: the kernel announces work and then looks whether the bell may ring; here it is
        // the other way round, so that one of both sees the other.
        fence(Ordering::SeqCst);
        for _ in 0..CALLS_MAX {
            if !self.is_due() || !self.uring.completion().is_empty() {
                break;
            }
            // The announcement may outlive the work, which a call of the kernel alone can tell; work
            // that comes behind it rings.
            self.submit();
        }
        let is_busy = !self.uring.submission().is_empty()
            || !self.uring.completion().is_empty()
            || !self.backlog.is_empty();
        if is_busy {
            self.uring.completion().disable_eventfd();
        }
        !is_busy
    }

    /// Ends the sleep: the doorbell is silent.
    pub fn wake_up(&mut self) {
        self.uring.completion().disable_eventfd();
    }
}
