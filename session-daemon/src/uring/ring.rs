//! One worker's io_uring: requests to the kernel, their completions, and the memory that the
//! kernel may touch meanwhile. It owns that memory and the descriptors under way; it never looks
//! at a byte.
//!
//! The rule of ownership: whatever a request points to belongs to the ring from the moment the
//! request is queued until its completion has come, whoever asked for it and whether or not they
//! are still there. A sending buffer is moved into its [`Line`], received bytes go to buffers that
//! the ring lends ([`Lent`]), and a line whose user has gone stays until its last completion.
//! When the ring itself ends it first cancels and waits; what would not end is leaked.
#![allow(unsafe_code)]

mod receiving;
mod sleep;

use crate::uring::lent::{GROUP, Lent};
use crate::uring::line::{Line, Received, Sending, set_aside};
use io_uring::types::{CancelBuilder, Fd};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::io::Errno;
use rustix::net::SendFlags;
use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll};

/// Requests that may be queued between two calls of the kernel; more make a call of their own. Both
/// are small because a user may lock 8 MiB in all, rings included.
const QUEUED_MAX: u32 = 256;

/// Completions that fit the ring; the kernel keeps those beyond until there is room.
const COMPLETIONS_MAX: u32 = 2048;

/// `IORING_RECVSEND_POLL_FIRST`: nothing is there, so trying before waiting is in vain.
const POLL_FIRST: u16 = 1;

/// Calls of the kernel within which what is cancelled has to end.
const LEAVE_TURNS_MAX: u32 = 16;

/// Calls of the kernel that the end of a ring waits for what is under way.
const DRAIN_TURNS_MAX: u32 = 1000;

/// Bytes of an answer that a client's socket takes at once, unless the client leaves others unread.
const PROMPT_LEN_MAX: usize = 16 << 10;

/// What a completion is for; the lower bits of its number, above it the line's.
const RECEIVE: u64 = 0;
const SEND: u64 = 1;
const CANCEL: u64 = 2;
const BESIDE: u64 = 3;
const KIND_BITS: u32 = 2;

/// Whom a line serves.
pub trait User {
    /// All that was to be sent is with the kernel; `busy_behind` as it was given to [`Ring::send`].
    fn sent(&self, busy_behind: bool);
}

/// What a connection is told while it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// All is sent, and bytes or the end have come.
    Received,
    /// All is sent.
    Sent,
    /// The client takes nothing, or has taken some again.
    Stuck,
}

/// What was under way of a line that somebody else goes on with.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Bytes that were received and not copied yet.
    pub received: Vec<u8>,
    /// Bytes that were to be sent and that the kernel has not taken.
    pub unsent: Vec<u8>,
}

/// What a turn has led to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Came {
    /// Somebody who waited for a line was woken.
    pub woken: bool,
    /// What is waited for beside the lines is there.
    pub beside: bool,
    /// Something was handed over, or has come.
    pub any: bool,
}

/// One worker's io_uring.
pub struct Ring<U: User> {
    // Both are dropped by hand: the kernel must be done with the buffers.
    uring: ManuallyDrop<IoUring>,
    lent: ManuallyDrop<Lent>,
    lines: ManuallyDrop<Vec<Option<Line<U>>>>,
    vacant: Vec<usize>,
    /// Requests under way, cancellations too.
    under_way: usize,
    /// Lines whose sends were queued since the last call of the kernel.
    fresh: Vec<usize>,
    /// Completions that were taken out to make room.
    backlog: VecDeque<(u64, i32, u32)>,
    /// Buffers of answers that are sent, for whoever gave them.
    spent: Vec<Vec<u8>>,
    /// Bytes that the kernel took since this was asked last.
    sent_len: u64,
    /// Lines whose bytes have come in this turn.
    heard: Vec<usize>,
    /// Sends since the last call of the kernel that end within it, as far as one can know.
    prompt: usize,
    /// Whether the descriptor beside the lines is watched.
    watches_beside: bool,
    /// What has come since this turn began.
    came: Came,
}

impl<U: User> Ring<U> {
    /// A ring of this thread that signals `doorbell` when a completion comes while it sleeps.
    ///
    /// # Errors
    /// What the kernel lacks or refuses.
    pub fn new(doorbell: &OwnedFd) -> io::Result<Self> {
        let mut uring = IoUring::builder()
            .setup_cqsize(COMPLETIONS_MAX)
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .build(QUEUED_MAX)?;
        uring.submitter().register_eventfd(doorbell.as_raw_fd())?;
        uring.completion().disable_eventfd();
        let lent = Lent::new();
        // SAFETY: `Ring::drop` ends the ring, after all that is under way, before the buffers; or
        // it leaks them.
        unsafe { lent.register(&uring.submitter()) }?;
        // Saves looking the descriptor up at each call; without it all works alike.
        let _ = uring.submitter().register_ring_fd();
        Ok(Self {
            uring: ManuallyDrop::new(uring),
            lent: ManuallyDrop::new(lent),
            lines: ManuallyDrop::new(Vec::new()),
            vacant: Vec::new(),
            under_way: 0,
            fresh: Vec::new(),
            backlog: VecDeque::new(),
            spent: Vec::new(),
            sent_len: 0,
            heard: Vec::new(),
            prompt: 0,
            watches_beside: false,
            came: Came::default(),
        })
    }

    /// Takes a socket in; its number.
    pub fn open(&mut self, fd: Rc<OwnedFd>, user: U) -> usize {
        let line = Line {
            fd,
            user,
            received: Received::Idle,
            more: false,
            sending: None,
            send_error: None,
            under_way: 0,
            abandoned: false,
            leaving: false,
            was_stuck: false,
            waker: None,
            awaits_bytes: false,
        };
        let idx = self.vacant.pop().unwrap_or_else(|| {
            self.lines.push(None);
            self.lines.len() - 1
        });
        self.lines[idx] = Some(line);
        idx
    }

    /// Lets a socket go: what is under way is cancelled, and its descriptor closed behind that.
    pub fn close(&mut self, idx: usize) {
        let Some(line) = self.lines.get_mut(idx).and_then(Option::as_mut) else { return };
        line.abandoned = true;
        line.waker = None;
        if line.under_way > 0 {
            let cancel = CancelBuilder::fd(Fd(line.fd.as_raw_fd())).all();
            let request = opcode::AsyncCancel2::new(cancel).build();
            self.queue(request.user_data(CANCEL));
        }
        self.release(idx);
    }

    /// Lets a socket go that somebody else goes on with: what of it was under way. None when it
    /// cannot, because the client has gone; the line is closed in any case.
    pub fn leave(&mut self, idx: usize) -> Option<Left> {
        self.take_back(idx);
        let left = self.lines.get_mut(idx).and_then(Option::as_mut).and_then(|line| {
            if line.under_way > 0 || line.send_error.is_some() {
                return None;
            }
            let received = match &line.received {
                Received::Idle | Received::Failed(Errno::CANCELED) => Vec::new(),
                Received::Lent { id, start, end } => {
                    self.lent.bytes(*id).get(*start..*end)?.to_vec()
                }
                Received::Aside(bytes, start) => bytes.get(*start..)?.to_vec(),
                Received::Armed | Received::End | Received::Failed(_) => return None,
            };
            let sending = line.sending.take();
            let unsent =
                sending.and_then(|sending| Some(sending.bytes.get(sending.sent..)?.to_vec()));
            Some(Left { received, unsent: unsent.unwrap_or_default() })
        });
        self.close(idx);
        left
    }

    /// Takes back what is under way, and waits a moment for it to end.
    fn take_back(&mut self, idx: usize) {
        let Some(line) = self.lines.get_mut(idx).and_then(Option::as_mut) else { return };
        line.leaving = true;
        if line.under_way > 0 {
            let cancel = CancelBuilder::fd(Fd(line.fd.as_raw_fd())).all();
            let request = opcode::AsyncCancel2::new(cancel).build();
            self.queue(request.user_data(CANCEL));
        }
        for _ in 0..LEAVE_TURNS_MAX {
            let line = self.lines.get(idx).and_then(Option::as_ref);
            if line.is_none_or(|line| line.under_way == 0) {
                return;
            }
            // The completion of the cancellation at least will come.
            let _ = self.uring.submit_and_wait(1);
            self.turn();
        }
    }

    /// Removes a line that nobody uses and that nothing is under way for.
    fn release(&mut self, idx: usize) {
        let place = &mut self.lines[idx];
        let Some(line) = place.take_if(|line| line.abandoned && line.under_way == 0) else {
            return;
        };
        if let Received::Lent { id, .. } = line.received {
            self.lent.offer(id);
        }
        self.vacant.push(idx);
    }

    /// Begins to send `bytes` from `sent` on; nothing else may be under way to this client.
    /// `busy_behind`: what the connection is when they are sent.
    pub fn send(&mut self, idx: usize, bytes: Vec<u8>, sent: usize, busy_behind: bool) {
        let Some(line) = self.lines.get_mut(idx).and_then(Option::as_mut) else { return };
        debug_assert!(line.sending.is_none(), "answers are sent one after the other");
        let is_prompt = !line.was_stuck && bytes.len().saturating_sub(sent) <= PROMPT_LEN_MAX;
        self.prompt += usize::from(is_prompt);
        line.sending = Some(Sending { bytes, sent, stuck: false, progress: false, busy_behind });
        self.send_rest(idx);
        self.fresh.push(idx);
    }

    fn send_rest(&mut self, idx: usize) {
        let Some(line) = self.lines[idx].as_mut() else { return };
        let Some(sending) = &line.sending else { return };
        let rest = sending.bytes.get(sending.sent..).unwrap_or_default();
        let flags = i32::try_from(SendFlags::NOSIGNAL.bits()).unwrap_or_default();
        let len = u32::try_from(rest.len()).unwrap_or(u32::MAX);
        let request = opcode::Send::new(Fd(line.fd.as_raw_fd()), rest.as_ptr(), len).flags(flags);
        line.under_way += 1;
        self.queue(request.build().user_data(number(idx, SEND)));
    }

    /// Asks for the client's next bytes, unless that is done.
    pub fn arm(&mut self, idx: usize) {
        let Some(line) = self.lines.get_mut(idx).and_then(Option::as_mut) else { return };
        if !matches!(line.received, Received::Idle) {
            return;
        }
        line.received = Received::Armed;
        line.under_way += 1;
        let how = if line.more { 0 } else { POLL_FIRST };
        let request = opcode::Recv::new(Fd(line.fd.as_raw_fd()), std::ptr::null_mut(), 0)
            .buf_group(GROUP)
            .ioprio(how)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        self.queue(request.user_data(number(idx, RECEIVE)));
    }

    /// Queues a request. Its memory is the ring's: see the head of this file.
    fn queue(&mut self, request: squeue::Entry) {
        self.under_way += 1;
        // SAFETY: what the request points to is owned by a line or by `lent` until its completion
        // has come, and `drop` waits for that or leaks it.
        while unsafe { self.uring.submission().push(&request) }.is_err() {
            self.submit();
        }
    }

    fn submit(&mut self) {
        let submitted = self.uring.submit();
        self.submitted(submitted);
    }

    fn submitted(&mut self, submitted: io::Result<usize>) {
        let Err(error) = submitted else { return };
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::INTR | Errno::TIME) => {}
            // The kernel keeps completions that had no room: they are taken first.
            Some(Errno::BUSY | Errno::AGAIN) => self.make_room(),
            _ => panic!("io_uring_enter: {error}"),
        }
    }

    fn make_room(&mut self) {
        let taken = self.uring.completion().map(|entry| parts(&entry));
        self.backlog.extend(taken);
    }

    /// Hands over what is queued and takes what has come.
    pub fn turn(&mut self) -> Came {
        // Work that the kernel announces may be done already: that alone is not something.
        self.came.any = !self.uring.submission().is_empty();
        if self.is_due() {
            self.submit();
        }
        self.take_completions()
    }

    /// Whether the kernel is to be called.
    fn is_due(&mut self) -> bool {
        let queue = self.uring.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }

    fn take_completions(&mut self) -> Came {
        self.prompt = 0;
        self.heard.clear();
        while let Some((number, result, flags)) = self.next_completion() {
            self.came.any = true;
            self.completed(number, result, flags);
        }
        self.find_stuck();
        std::mem::take(&mut self.came)
    }

    fn next_completion(&mut self) -> Option<(u64, i32, u32)> {
        let kept = self.backlog.pop_front();
        kept.or_else(|| self.uring.completion().next().map(|entry| parts(&entry)))
    }

    fn completed(&mut self, number: u64, result: i32, flags: u32) {
        self.under_way -= 1;
        let (idx, kind) = ((number >> KIND_BITS) as usize, number & ((1 << KIND_BITS) - 1));
        if kind == CANCEL {
            return;
        }
        if kind == BESIDE {
            self.watches_beside = false;
            self.came.beside = true;
            return;
        }
        let buffer_id = cqueue::buffer_select(flags);
        if let Some(id) = buffer_id {
            self.lent.filled(id);
        }
        if let Some(line) = self.lines.get_mut(idx).and_then(Option::as_mut) {
            line.under_way -= 1;
        }
        if kind == SEND {
            self.send_completed(idx, result);
        } else {
            self.receive_completed(idx, result, buffer_id, cqueue::sock_nonempty(flags));
        }
        self.release(idx);
    }

    fn send_completed(&mut self, idx: usize, result: i32) {
        let Some(line) = self.lines.get_mut(idx).and_then(Option::as_mut) else { return };
        let Some(sending) = &mut line.sending else { return };
        let taken = usize::try_from(result).unwrap_or_default();
        sending.sent += taken;
        self.sent_len += taken as u64;
        let is_whole = sending.sent >= sending.bytes.len();
        if line.leaving && !is_whole && (result >= 0 || result == -Errno::CANCELED.raw_os_error()) {
            return;
        }
        if result < 0 {
            line.send_error = Some(Errno::from_raw_os_error(-result));
        }
        if is_whole || result < 0 {
            let (busy, tell) = (sending.busy_behind, sending.stuck || result < 0);
            if let Some(done) = line.sending.take() {
                self.spent.push(done.bytes);
            }
            line.user.sent(busy);
            // One that waits for more than the send alone is woken by what it waits for.
            let goes_on_waiting = line.awaits_bytes && matches!(line.received, Received::Armed);
            if tell || !goes_on_waiting {
                self.came.woken |= line.wake();
            }
        } else if !line.abandoned {
            sending.progress = true;
            self.send_rest(idx);
        }
    }

    fn receive_completed(&mut self, idx: usize, result: i32, buffer: Option<u16>, more: bool) {
        let Some(line) = self.lines.get_mut(idx).and_then(Option::as_mut) else {
            return buffer.into_iter().for_each(|id| self.lent.offer(id));
        };
        line.more = more;
        line.received = match (usize::try_from(result), buffer) {
            (Ok(0), _) => Received::End,
            (Ok(end), Some(id)) => Received::Lent { id, start: 0, end },
            (Ok(_), None) => Received::Failed(Errno::IO),
            (Err(_), _) => match Errno::from_raw_os_error(-result) {
                // All buffers are out, and back before the connection has its turn.
                Errno::NOBUFS => {
                    self.lent.lend_more();
                    line.more = true;
                    Received::Idle
                }
                Errno::INTR | Errno::AGAIN => Received::Idle,
                error => Received::Failed(error),
            },
        };
        match (&line.received, buffer) {
            (Received::Lent { .. }, _) => self.heard.push(idx),
            (_, Some(id)) => self.lent.offer(id),
            (_, None) => {}
        }
        if let Some(sending) = line.sending.as_mut().filter(|sending| sending.stuck) {
            // It may be long until these are looked at, and others need the buffer.
            sending.progress = true;
            set_aside(line, &mut self.lent);
        }
        self.came.woken |= line.wake();
    }

    /// Tells those whose answers the kernel did not take at once.
    fn find_stuck(&mut self) {
        while let Some(idx) = self.fresh.pop() {
            let Some(line) = self.lines.get_mut(idx).and_then(Option::as_mut) else { continue };
            if let Some(sending) = &mut line.sending {
                sending.stuck = true;
                sending.progress = true;
                line.was_stuck = true;
                set_aside(line, &mut self.lent);
                self.came.woken |= line.wake();
            }
        }
    }

    /// Waits until all is sent, and for bytes if they were asked for.
    pub fn poll(
        &mut self,
        idx: usize,
        for_bytes: bool,
        context: &Context<'_>,
    ) -> Poll<io::Result<Event>> {
        if for_bytes {
            self.arm(idx);
        }
        let Some(line) = self.lines.get_mut(idx).and_then(Option::as_mut) else {
            return Poll::Ready(Err(io::Error::other("the socket has left the ring")));
        };
        if let Some(error) = line.send_error {
            return Poll::Ready(Err(error.into()));
        }
        if let Some(sending) = &mut line.sending {
            if std::mem::take(&mut sending.progress) && sending.stuck {
                return Poll::Ready(Ok(Event::Stuck));
            }
        } else if !for_bytes {
            return Poll::Ready(Ok(Event::Sent));
        } else if !matches!(line.received, Received::Armed) {
            return Poll::Ready(Ok(Event::Received));
        }
        line.awaits_bytes = for_bytes;
        match &line.waker {
            Some(waker) if waker.will_wake(context.waker()) => {}
            _ => line.waker = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    /// Whether nothing is under way for a line, nothing received that was not copied, and nothing
    /// to be told.
    pub fn is_resting(&self, idx: usize) -> bool {
        let line = self.lines.get(idx).and_then(Option::as_ref);
        line.is_some_and(|line| {
            line.under_way == 0
                && line.sending.is_none()
                && line.send_error.is_none()
                && matches!(line.received, Received::Idle)
        })
    }

    /// Bytes of memory that a line keeps.
    pub fn kept_len(&self, idx: usize) -> usize {
        let Some(line) = self.lines.get(idx).and_then(Option::as_ref) else { return 0 };
        let sending_len = line.sending.as_ref().map_or(0, |sending| sending.bytes.capacity());
        let aside_len =
            if let Received::Aside(bytes, _) = &line.received { bytes.capacity() } else { 0 };
        sending_len + aside_len
    }

    /// Bytes that were sent since this was asked last.
    pub fn take_sent_len(&mut self) -> u64 {
        std::mem::take(&mut self.sent_len)
    }

    /// Gives the buffers of answers back that are sent.
    pub fn take_spent(&mut self) -> impl Iterator<Item = Vec<u8>> {
        self.spent.drain(..)
    }

    /// Cancels all that is under way and waits for it; false when it would not end.
    fn drain(&mut self) -> bool {
        self.lines.iter_mut().flatten().for_each(|line| line.abandoned = true);
        if self.under_way > 0 {
            self.queue(opcode::AsyncCancel2::new(CancelBuilder::any()).build().user_data(CANCEL));
        }
        for _ in 0..DRAIN_TURNS_MAX {
            if self.under_way == 0 {
                return true;
            }
            // The completion of the cancellation at least will come.
            let _ = self.uring.submit_and_wait(1);
            self.turn();
        }
        self.under_way == 0
    }
}

impl<U: User> Drop for Ring<U> {
    fn drop(&mut self) {
        if !self.drain() {
            // The kernel may still write to it.
            return log::error!("io_uring: {} requests would not end", self.under_way);
        }
        // SAFETY: dropped here alone.
        unsafe { ManuallyDrop::drop(&mut self.uring) };
        // SAFETY: dropped here alone, after the ring, with nothing under way.
        unsafe { ManuallyDrop::drop(&mut self.lent) };
        // SAFETY: dropped here alone, with nothing under way.
        unsafe { ManuallyDrop::drop(&mut self.lines) };
    }
}

fn number(idx: usize, kind: u64) -> u64 {
    ((idx as u64) << KIND_BITS) | kind
}

fn parts(entry: &cqueue::Entry) -> (u64, i32, u32) {
    (entry.user_data(), entry.result(), entry.flags())
}
