//! A client's socket under tokio: reads and writes without waiting, and waiting without reading.
//! It owns the descriptor and how it ends; it never looks at a byte.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::server::shared::ConnectionInfo;
use rustix::io::Errno;
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, send, sendmsg, shutdown,
};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};

/// Reads in a row without a wait before others have their turn.
const READS_PER_TURN_MAX: u32 = 8;

/// A client's socket.
#[derive(Debug)]
pub struct Socket {
    /// None only while its registration is being changed.
    fd: Option<AsyncFd<OwnedFd>>,
    info: Arc<ConnectionInfo>,
    /// Whether the reactor also watches for room to write, which few connections ever wait for.
    watches_writes: bool,
    /// How bytes are sent.
    how: SendFlags,
    reads: u32,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.as_ref().filter(|_| self.info.is_reset()) {
            // A failure means that the connection is gone already.
            let _ = rustix::net::sockopt::set_socket_linger(fd.get_ref(), Some(Duration::ZERO));
        }
    }
}

/// Hands a descriptor to the reactor of this thread.
///
/// # Errors
/// When the reactor cannot take it.
#[expect(
    deprecated,
    reason = "its successors are unsafe because a type may change or close its descriptor \
              meanwhile, which an OwnedFd does not"
)]
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}

/// Reads from a descriptor that nobody watches yet.
///
/// # Errors
/// What the kernel says; `WouldBlock` when nothing is there.
pub fn read_now(fd: &OwnedFd, space: &mut [u8]) -> io::Result<usize> {
    Ok(recv(fd, space, RecvFlags::DONTWAIT)?.1)
}

/// Says that nothing more will be sent on a descriptor.
pub fn finish(fd: &OwnedFd) {
    // A failure means that the connection is gone already.
    let _ = shutdown(fd, Shutdown::Write);
}

impl Socket {
    /// Hands the descriptor to the reactor of this thread.
    ///
    /// # Errors
    /// When the reactor cannot take it.
    pub fn new(fd: OwnedFd, info: Arc<ConnectionInfo>) -> io::Result<Self> {
        let fd = Some(watch(fd, Interest::READABLE)?);
        let how = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        Ok(Self { fd, info, watches_writes: false, how, reads: 0 })
    }

    /// The descriptor, which the reactor forgets.
    pub fn take(&mut self) -> Option<OwnedFd> {
        self.fd.take().map(AsyncFd::into_inner)
    }

    /// The kernel keeps what does not fill a segment, for what is sent next or for the end.
    pub fn holds_back(&mut self) {
        self.how |= SendFlags::MORE;
    }

    /// Says that nothing more will be sent.
    pub fn finish(&self) {
        if let Some(fd) = &self.fd {
            finish(fd.get_ref());
        }
    }

    /// Reads into `space(true)`, and calls `space(false)` before a wait. Returns the bytes read,
    /// 0 at the end.
    ///
    /// # Errors
    /// What the kernel says, and what `space(false)` does.
    pub async fn read<S: ReadInto>(&mut self, into: &mut S) -> io::Result<usize> {
        if self.reads >= READS_PER_TURN_MAX {
            self.reads = 0;
            yield_turn().await;
        }
        let Self { fd, reads, .. } = self;
        let fd = fd.as_ref().ok_or_else(unregistered)?;
        poll_fn(|context| {
            loop {
                let Poll::Ready(ready) = fd.poll_read_ready(context) else {
                    *reads = 0;
                    return match into.rest() {
                        Ok(()) => Poll::Pending,
                        Err(error) => Poll::Ready(Err(error)),
                    };
                };
                let mut ready = ready?;
                let (space_len, result) = into
                    .read(|space| (space.len(), recv(fd.get_ref(), space, RecvFlags::DONTWAIT)));
                match result.map(|read| read.1) {
                    Ok(len) => {
                        // Less than asked for: the socket is empty, and asking again would only
                        // hear so. A hang-up stays marked.
                        if len < space_len {
                            ready.clear_ready();
                        }
                        *reads = reads.saturating_add(1);
                        return Poll::Ready(Ok(len));
                    }
                    Err(Errno::AGAIN) => ready.clear_ready(),
                    Err(Errno::INTR) => {}
                    Err(error) => return Poll::Ready(Err(error.into())),
                }
            }
        })
        .await
    }

    /// Sends what the kernel takes now; none when it takes nothing.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn write_now(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        let fd = self.fd.as_ref().ok_or_else(unregistered)?;
        loop {
            return match send(fd.get_ref(), bytes, self.how) {
                Ok(len) => Ok(Some(len)),
                Err(Errno::AGAIN) => Ok(None),
                Err(Errno::INTR) => continue,
                Err(error) => Err(error.into()),
            };
        }
    }

    /// [`Socket::write_now`] of several parts, in their order.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn write_parts_now(&self, parts: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        let fd = self.fd.as_ref().ok_or_else(unregistered)?;
        let control = &mut SendAncillaryBuffer::default();
        loop {
            return match sendmsg(fd.get_ref(), parts, control, self.how) {
                Ok(len) => Ok(Some(len)),
                Err(Errno::AGAIN) => Ok(None),
                Err(Errno::INTR) => continue,
                Err(error) => Err(error.into()),
            };
        }
    }

    /// Waits until the kernel may take more.
    ///
    /// # Errors
    /// `TimedOut` when it has not within `timeout`; what the kernel says.
    pub async fn writable(&mut self, timeout: Duration) -> io::Result<()> {
        if !self.watches_writes {
            let fd = self.fd.take().ok_or_else(unregistered)?.into_inner();
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.fd = Some(watch(fd, interest)?);
            self.watches_writes = true;
        }
        let fd = self.fd.as_ref().ok_or_else(unregistered)?;
        let mut ready = tokio::time::timeout(timeout, fd.writable()).await??;
        // The caller has to see `None` again before it waits again.
        ready.clear_ready_matching(Ready::WRITABLE);
        Ok(())
    }
}

/// Where a read puts its bytes.
pub trait ReadInto {
    /// Calls `read` with the room there is.
    fn read<R>(&mut self, read: impl FnOnce(&mut [u8]) -> R) -> R;
    /// A wait begins: memory that is not needed meanwhile goes back.
    ///
    /// # Errors
    /// When what is needed may not be kept; the wait does not begin.
    fn rest(&mut self) -> io::Result<()>;
}

/// Lets the other tasks of this thread have a turn.
pub async fn yield_turn() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn unregistered() -> io::Error {
    io::Error::other("the socket has left the reactor")
}
