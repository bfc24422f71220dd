//! One connection of the control socket: who asks, lines in, lines out, all of it bounded.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::timeout;

use crate::allowlist::parse::{check_name, parse_prefix};
use crate::allowlist::{Entry, LIST_HOSTS_MAX, LIST_PREFIXES_MAX, Note, Origin};
use crate::control::changes::Terms;
use crate::control::protocol::{LINE_LEN_MAX, NO_PREFIX, Peer, Progress, Request, SyncLine};
use crate::control::server::Control;

/// Longest wait for a whole line.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the other end to take what is written.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the one who waits for a `sync` is told how far it is.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// Longest comment of an entry in bytes.
const COMMENT_LEN_MAX: usize = 512;
/// Most entries of a `sync`: both kinds of both families, full.
const SYNC_ENTRIES_MAX: usize = 2 * (LIST_HOSTS_MAX + LIST_PREFIXES_MAX);

/// Serves one connection until it ends, is idle for too long, or breaks a bound.
pub(crate) async fn serve(stream: UnixStream, control: Control) {
    let peer = match peer(&stream) {
        Ok(peer) => peer,
        Err(error) => {
            log::warn!("control: {error:#}");
            let (_, writer) = stream.into_split();
            let _ = Connection::write_only(writer).refuse(&error).await;
            return;
        }
    };
    let (reader, writer) = stream.into_split();
    let mut connection = Connection { reader: Some(BufReader::new(reader)), writer, peer };
    loop {
        match connection.request(&control).await {
            Ok(true) => {}
            Ok(false) => {
                // Closed with its last descriptor: another one may be on its way.
                connection.writer.forget();
                return;
            }
            Err(error) => {
                // The frame of the conversation is lost: the reason is told, nothing more read.
                let _ = connection.refuse(&error).await;
                return;
            }
        }
    }
}

/// The asking process, if it is root or runs as we do.
fn peer(stream: &UnixStream) -> Result<Peer> {
    let credentials = stream.peer_cred().context("asking for the peer's credentials")?;
    let uid = credentials.uid();
    let us = rustix::process::geteuid().as_raw();
    ensure!(uid == 0 || uid == us, "uid {uid} may not change the list; only root and uid {us} may");
    Ok(Peer { uid, pid: credentials.pid().unwrap_or(0) })
}

struct Connection {
    reader: Option<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
    peer: Peer,
}

impl Connection {
    fn write_only(writer: OwnedWriteHalf) -> Self {
        Self { reader: None, writer, peer: Peer { uid: u32::MAX, pid: 0 } }
    }

    /// Serves one request; false at the end of the connection.
    async fn request(&mut self, control: &Control) -> Result<bool> {
        let Some(line) = self.line().await? else { return Ok(false) };
        let request: Request = serde_json::from_str(&line).context("the request cannot be read")?;
        let answer = match request {
            Request::Watch => return self.watch(control).await.map(|()| false),
            Request::Upgrade { binary } => {
                let asker = self.writer.as_ref().as_fd().try_clone_to_owned();
                let asker = asker.context("keeping the connection for the answer")?;
                // Answered by whoever serves then.
                control.upgrade(binary, Some(asker), self.peer).await;
                return Ok(false);
            }
            Request::List => return self.list(control).await.map(|()| true),
            Request::Sync { count, dry_run, any, confirm_s, progress } => {
                match self.sync_entries(count).await? {
                    Ok(entries) if dry_run => control.sync_diff(entries, any).await,
                    Ok(entries) => {
                        let work = control.sync(entries, any, confirm_s, self.peer);
                        if progress { self.watched(control, work).await } else { work.await }
                    }
                    Err(error) => Err(error),
                }
            }
            Request::Status => control.status().await,
            Request::Test { address, port } => control.test(address, port).await,
            Request::Locks => control.locks().await,
            Request::Admin { line } => control.admin(line, self.peer).await,
            Request::Allow { prefixes, for_s, name, comment, any, confirm_s } => {
                let note = Note { name, comment };
                let terms = Terms { for_s, any, confirm_s };
                match checked(&prefixes, &note) {
                    Ok(prefixes) => control.allow(&prefixes, &note, terms, self.peer).await,
                    Err(error) => Err(error),
                }
            }
            Request::Deny { prefixes, refuse, name, comment, confirm_s } => {
                let note = Note { name, comment };
                match checked(&prefixes, &note) {
                    Ok(prefixes) => {
                        control.deny(&prefixes, refuse, &note, confirm_s, self.peer).await
                    }
                    Err(error) => Err(error),
                }
            }
            Request::Remove { prefixes, confirm_s } => {
                control.remove(&prefixes, confirm_s, self.peer).await
            }
            Request::Confirm => control.confirm(self.peer).await,
            Request::Rollback => control.rollback(self.peer).await,
            Request::Audit { on } => control.audit(on, self.peer).await,
        };
        match answer {
            Ok(value) => self.write(&value).await?,
            Err(error) => self.refuse(&error).await?,
        }
        Ok(true)
    }

    /// The lines of a `sync`. The outer error ends the connection, the inner one is an answer.
    async fn sync_entries(&mut self, count: usize) -> Result<Result<Vec<Entry>>> {
        ensure!(
            count <= SYNC_ENTRIES_MAX,
            "{count} entries, the most is {SYNC_ENTRIES_MAX}; merge neighbours into prefixes"
        );
        let mut entries = Vec::new();
        let mut fault = None;
        for _ in 0..count {
            let line = self.line().await?.context("the connection ended within a sync")?;
            match sync_entry(&line) {
                Ok(entry) => entries.push(entry),
                Err(error) => fault = fault.or(Some(error)),
            }
        }
        Ok(fault.map_or(Ok(entries), Err))
    }

    /// Says how far `work` is until it is done. Whoever does not read misses that and nothing else.
    async fn watched(
        &self,
        control: &Control,
        work: impl Future<Output = Result<Value>>,
    ) -> Result<Value> {
        tokio::pin!(work);
        let mut ticks = tokio::time::interval(PROGRESS_EVERY);
        loop {
            tokio::select! {
                outcome = &mut work => return outcome,
                _ = ticks.tick() => {
                    let (done, of) = control.written().unwrap_or_default();
                    let line = format!("{}\n", json!({"progress": Progress { done, of }}));
                    // A line of this size goes whole or not at all.
                    let _ = self.writer.try_write(line.as_bytes());
                }
            }
        }
    }

    /// The whole list: its head, then one line an entry.
    async fn list(&mut self, control: &Control) -> Result<()> {
        let (head, entries) = control.list().await;
        self.write(&head).await?;
        let mut text = Vec::new();
        for entry in entries {
            serde_json::to_writer(&mut text, &entry)?;
            text.push(b'\n');
            if text.len() >= LINE_LEN_MAX {
                self.write_bytes(&text).await?;
                text.clear();
            }
        }
        self.write_bytes(&text).await
    }

    /// Events until the other end closes.
    async fn watch(&mut self, control: &Control) -> Result<()> {
        let mut events = control.subscribe();
        self.write(&json!({"ok": true})).await?;
        let mut reader = self.reader.take().context("watch needs both directions")?;
        let mut byte = [0];
        loop {
            tokio::select! {
                read = reader.read(&mut byte) => match read {
                    Ok(0) | Err(_) => return Ok(()),
                    Ok(_) => bail!("nothing is read while a watch runs; open another connection"),
                },
                event = events.recv() => match event {
                    Ok(event) => self.write(&event).await?,
                    Err(RecvError::Lagged(missed)) => {
                        self.write(&json!({"event": "missed", "events": missed})).await?;
                    }
                    Err(RecvError::Closed) => return Ok(()),
                },
            }
        }
    }

    /// The next line without its newline; None at the end of the connection.
    async fn line(&mut self) -> Result<Option<String>> {
        let reader = self.reader.as_mut().context("the connection is write-only")?;
        let mut line = Vec::new();
        let limit = LINE_LEN_MAX as u64 + 1;
        let mut limited = reader.take(limit);
        let read = timeout(READ_TIMEOUT, limited.read_until(b'\n', &mut line));
        let len = match read.await {
            Ok(result) => result?,
            // Nobody is told anything who has not begun to ask.
            Err(_) if line.is_empty() => return Ok(None),
            Err(_) => bail!("no whole line within {READ_TIMEOUT:?}"),
        };
        if len == 0 {
            return Ok(None);
        }
        if line.pop() != Some(b'\n') {
            ensure!(
                (len as u64) < limit,
                "the line is longer than {LINE_LEN_MAX} bytes; use `sessionctl sync FILE` for \
                 long lists"
            );
            bail!("the connection ended within a line");
        }
        Ok(Some(String::from_utf8(line).context("the line is not UTF-8")?))
    }

    async fn refuse(&mut self, error: &anyhow::Error) -> Result<()> {
        self.write(&json!({"ok": false, "error": format!("{error:#}")})).await
    }

    async fn write(&mut self, value: &Value) -> Result<()> {
        let mut text = serde_json::to_vec(value)?;
        text.push(b'\n');
        self.write_bytes(&text).await
    }

    async fn write_bytes(&mut self, text: &[u8]) -> Result<()> {
        timeout(WRITE_TIMEOUT, self.writer.write_all(text))
            .await
            .map_err(|_| anyhow!("nothing is read within {WRITE_TIMEOUT:?}"))??;
        Ok(())
    }
}

/// The prefixes of a command, all of them or the first fault.
fn checked(prefixes: &[String], note: &Note) -> Result<Vec<ipnet::IpNet>> {
    ensure!(!prefixes.is_empty(), NO_PREFIX);
    check_note(note)?;
    Ok(prefixes.iter().map(|prefix| parse_prefix(prefix)).collect::<Result<_, _>>()?)
}

fn sync_entry(line: &str) -> Result<Entry> {
    let line: SyncLine = serde_json::from_str(line).context("an entry cannot be read")?;
    let note = Note { name: line.name, comment: line.comment };
    check_note(&note)?;
    let prefix = parse_prefix(&line.prefix)?;
    Ok(Entry::new(prefix, line.action, Origin::Control).noted(note))
}

/// Both go into log lines and listings: one line, not too long.
fn check_note(note: &Note) -> Result<()> {
    if let Some(name) = &note.name {
        check_name(name)?;
    }
    let comment = note.comment.as_deref().unwrap_or_default();
    ensure!(comment.len() <= COMMENT_LEN_MAX, "a comment has at most {COMMENT_LEN_MAX} bytes");
    ensure!(
        !comment.chars().any(|c| c.is_control() && c != '\t'),
        "a comment is one line of plain text"
    );
    Ok(())
}
