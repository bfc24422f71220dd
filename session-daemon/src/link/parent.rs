//! The parent's end: asynchronous, one request at a time, every answer with a time limit.
#![forbid(unsafe_code)]

use std::future::Future;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use ipnet::IpNet;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use crate::allowlist::Entry;
use crate::link::frame::{HEADER_LEN, body_len, decode, encode, recv_part, send_header};
use crate::link::{
    ENTRIES_PER_PART_MAX, Lent, LinkError, ListenerKind, PlaneFacts, Reply, Request,
    SOCKETS_PER_FRAME_MAX,
};
use crate::server::locks::SessionLock;

/// Longest wait for an ordinary answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for `Serve`: `-k` and a new memory file make the kernel touch all of `-m` first,
/// and what a memory file holds is taken over.
const SERVE_TIMEOUT: Duration = Duration::from_secs(120);

/// The parent's end of the pair.
#[derive(Debug)]
pub struct ParentEnd {
    stream: UnixStream,
    /// A request without its answer leaves the frames out of step: nothing more is sent then.
    out_of_step: bool,
    /// Descriptors that came beside the last answer.
    received: Vec<OwnedFd>,
}

impl ParentEnd {
    /// Takes the socket over; needs a tokio runtime.
    ///
    /// # Errors
    /// The socket cannot be registered with the runtime.
    pub fn new(stream: std::os::unix::net::UnixStream) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream: UnixStream::from_std(stream)?, out_of_step: false, received: Vec::new() })
    }

    /// Whether a request went without its answer, after which nothing is sent any more.
    #[must_use]
    pub fn is_out_of_step(&self) -> bool {
        self.out_of_step
    }

    /// Asks and expects [`Reply::Done`].
    ///
    /// # Errors
    /// The child refused, is gone, or did not answer in time.
    pub async fn done(&mut self, request: &Request) -> Result<(), LinkError> {
        match self.ask(request, &[]).await? {
            Reply::Done => Ok(()),
            other => Err(LinkError::Unexpected(other)),
        }
    }

    /// Tells what the guard has counted. True when a client has asked for the certificates to be
    /// read again.
    ///
    /// # Errors
    /// As [`ParentEnd::done`].
    pub async fn guard_counters(
        &mut self,
        counters: Vec<(String, String)>,
    ) -> Result<bool, LinkError> {
        match self.ask(&Request::GuardCounters(counters), &[]).await? {
            Reply::Done => Ok(false),
            Reply::CertificatesAskedFor => Ok(true),
            other => Err(LinkError::Unexpected(other)),
        }
    }

    /// Hands listening sockets over.
    ///
    /// # Errors
    /// As [`ParentEnd::done`].
    pub async fn listeners(
        &mut self,
        sockets: &[(ListenerKind, BorrowedFd<'_>)],
    ) -> Result<(), LinkError> {
        for part in sockets.chunks(SOCKETS_PER_FRAME_MAX) {
            let (kinds, fds): (Vec<_>, Vec<_>) = part.iter().copied().unzip();
            match self.ask(&Request::Listeners(kinds), &fds).await? {
                Reply::Done => {}
                other => return Err(LinkError::Unexpected(other)),
            }
        }
        Ok(())
    }

    /// Hands the memory file over.
    ///
    /// # Errors
    /// As [`ParentEnd::done`].
    pub async fn memory_file(
        &mut self,
        file: BorrowedFd<'_>,
        boot_id: u128,
        nameless: bool,
    ) -> Result<(), LinkError> {
        let request = Request::MemoryFile { boot_id: halves(boot_id), nameless };
        match self.ask(&request, &[file]).await? {
            Reply::Done => Ok(()),
            other => Err(LinkError::Unexpected(other)),
        }
    }

    /// Hands the maps of the kernel plane over: region, orders, reports.
    ///
    /// # Errors
    /// As [`ParentEnd::done`].
    pub async fn plane(
        &mut self,
        maps: [BorrowedFd<'_>; 3],
        facts: PlaneFacts,
    ) -> Result<(), LinkError> {
        match self.ask(&Request::Plane(facts), &maps).await? {
            Reply::Done => Ok(()),
            other => Err(LinkError::Unexpected(other)),
        }
    }

    /// Hands the listening socket of the metrics over.
    ///
    /// # Errors
    /// As [`ParentEnd::done`].
    pub async fn metrics(&mut self, socket: BorrowedFd<'_>, unix: bool) -> Result<(), LinkError> {
        match self.ask(&Request::Metrics(unix), &[socket]).await? {
            Reply::Done => Ok(()),
            other => Err(LinkError::Unexpected(other)),
        }
    }

    /// Everything that the child lends.
    ///
    /// # Errors
    /// As [`ParentEnd::done`].
    pub async fn lend(&mut self) -> Result<Vec<(Lent, OwnedFd)>, LinkError> {
        let mut all = Vec::new();
        loop {
            let part = self.lent(&Request::Lend(all.len()), &[]).await?;
            if part.is_empty() {
                return Ok(all);
            }
            all.extend(part);
        }
    }

    /// Has the child give up its connections through `stream`, and its store. What it kept the
    /// store in is the answer, if it had no memory file.
    ///
    /// # Errors
    /// As [`ParentEnd::done`].
    pub async fn hand_over(
        &mut self,
        stream: BorrowedFd<'_>,
        boot_id: u128,
    ) -> Result<Vec<(Lent, OwnedFd)>, LinkError> {
        self.lent(&Request::HandOver { boot_id: halves(boot_id) }, &[stream]).await
    }

    /// Has the child take connections over from `stream`.
    ///
    /// # Errors
    /// As [`ParentEnd::done`].
    pub async fn adopt(&mut self, stream: BorrowedFd<'_>) -> Result<(), LinkError> {
        match self.ask(&Request::Adopt, &[stream]).await? {
            Reply::Done => Ok(()),
            other => Err(LinkError::Unexpected(other)),
        }
    }

    /// Another descriptor of this end, for another program to go on with in this process.
    ///
    /// # Errors
    /// A request went without its answer, or no descriptor is left.
    pub fn copy(&self) -> Result<OwnedFd, LinkError> {
        if self.out_of_step {
            return Err(LinkError::Timeout);
        }
        Ok(self.stream.as_fd().try_clone_to_owned()?)
    }

    async fn lent(
        &mut self,
        request: &Request,
        beside: &[BorrowedFd<'_>],
    ) -> Result<Vec<(Lent, OwnedFd)>, LinkError> {
        let reply = self.ask(request, beside).await?;
        let fds = std::mem::take(&mut self.received);
        match reply {
            Reply::Lent(kinds) if kinds.len() == fds.len() => {
                Ok(kinds.into_iter().zip(fds).collect())
            }
            other => Err(LinkError::Unexpected(other)),
        }
    }

    /// Replaces the child's list at once.
    ///
    /// # Errors
    /// As [`ParentEnd::done`]; the child's list is the old one then.
    pub async fn replace<'a>(
        &mut self,
        mut entries: impl Iterator<Item = &'a Entry>,
    ) -> Result<(), LinkError> {
        loop {
            let part: Vec<Entry> = entries.by_ref().take(ENTRIES_PER_PART_MAX).cloned().collect();
            if part.is_empty() {
                return self.done(&Request::ListReplace).await;
            }
            self.done(&Request::ListPart(part)).await?;
        }
    }

    /// Changes the child's list: at once, but for more entries than fit into one message.
    ///
    /// # Errors
    /// As [`ParentEnd::done`]; the child's list may have been changed in part then.
    pub async fn change(
        &mut self,
        insert: Vec<Entry>,
        remove: Vec<IpNet>,
    ) -> Result<(), LinkError> {
        if insert.len() + remove.len() <= ENTRIES_PER_PART_MAX {
            return self.done(&Request::ListChange { insert, remove }).await;
        }
        for part in insert.chunks(ENTRIES_PER_PART_MAX) {
            let (insert, remove) = (part.to_vec(), Vec::new());
            self.done(&Request::ListChange { insert, remove }).await?;
        }
        for part in remove.chunks(ENTRIES_PER_PART_MAX) {
            let (insert, remove) = (Vec::new(), part.to_vec());
            self.done(&Request::ListChange { insert, remove }).await?;
        }
        Ok(())
    }

    /// Resets the connections that the list refuses; returns how many.
    ///
    /// # Errors
    /// As [`ParentEnd::done`].
    pub async fn enforce(&mut self) -> Result<u64, LinkError> {
        match self.ask(&Request::Enforce, &[]).await? {
            Reply::Enforced(count) => Ok(count),
            other => Err(LinkError::Unexpected(other)),
        }
    }

    /// Locks of PHP sessions that are held.
    ///
    /// # Errors
    /// As [`ParentEnd::done`].
    pub async fn locks(&mut self) -> Result<Vec<SessionLock>, LinkError> {
        match self.ask(&Request::Locks, &[]).await? {
            Reply::Locks(locks) => Ok(locks),
            other => Err(LinkError::Unexpected(other)),
        }
    }

    /// Has a command of one line done, and returns its answer.
    ///
    /// # Errors
    /// As [`ParentEnd::done`].
    pub async fn command(&mut self, line: String) -> Result<String, LinkError> {
        match self.ask(&Request::Ask(line), &[]).await? {
            Reply::Answer(text) => Ok(text),
            other => Err(LinkError::Unexpected(other)),
        }
    }

    /// The child's statistics by memcached's names.
    ///
    /// # Errors
    /// As [`ParentEnd::done`].
    pub async fn statistics(&mut self) -> Result<serde_json::Value, LinkError> {
        match self.ask(&Request::Statistics, &[]).await? {
            Reply::Statistics(value) => Ok(value),
            other => Err(LinkError::Unexpected(other)),
        }
    }

    async fn ask(
        &mut self,
        request: &Request,
        sockets: &[BorrowedFd<'_>],
    ) -> Result<Reply, LinkError> {
        if self.out_of_step {
            return Err(LinkError::Timeout);
        }
        let limit = match request {
            Request::Serve | Request::HandOver { .. } => SERVE_TIMEOUT,
            _ => ANSWER_TIMEOUT,
        };
        // Set while the exchange runs, so that a caller that gives up half-way also leaves it set.
        self.out_of_step = true;
        let exchanged = within(limit, exchange(&mut self.stream, request, sockets));
        let (reply, received) = exchanged.await?;
        self.out_of_step = false;
        self.received = received;
        match reply {
            Reply::Failed(text) => Err(LinkError::Failed(text)),
            reply => Ok(reply),
        }
    }
}

async fn within<T>(
    limit: Duration,
    exchange: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    tokio::time::timeout(limit, exchange).await.unwrap_or(Err(LinkError::Timeout))
}

async fn exchange(
    stream: &mut UnixStream,
    request: &Request,
    sockets: &[BorrowedFd<'_>],
) -> Result<(Reply, Vec<OwnedFd>), LinkError> {
    let (header, body) = encode(request)?;
    let sent = stream
        .async_io(Interest::WRITABLE, || send_header(&*stream, &header, sockets))
        .await
        .map_err(gone)?;
    stream.write_all(&header[sent..]).await.map_err(gone)?;
    stream.write_all(&body).await.map_err(gone)?;

    let mut header = [0; HEADER_LEN];
    let mut received = Vec::new();
    // Descriptors come with the first of the length bytes.
    let first = || recv_part(&*stream, &mut header, &mut received);
    let filled = stream.async_io(Interest::READABLE, first).await.map_err(gone)?;
    if filled == 0 {
        return Err(LinkError::Closed);
    }
    stream.read_exact(&mut header[filled..]).await.map_err(gone)?;
    let mut body = vec![0; body_len(header)?];
    stream.read_exact(&mut body).await.map_err(gone)?;
    Ok((decode(&body)?, received))
}

/// A number of the boot as messages carry it.
fn halves(boot_id: u128) -> [u64; 2] {
    [(boot_id >> 64) as u64, boot_id as u64]
}

/// The errors of a socket whose other end is closed.
fn gone(error: std::io::Error) -> LinkError {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    match error.kind() {
        BrokenPipe | ConnectionReset | UnexpectedEof => LinkError::Closed,
        _ => LinkError::Io(error),
    }
}
