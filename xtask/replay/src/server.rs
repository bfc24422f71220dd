//! The replay against a server that listens on a unix socket. Its clock is the machine's, or
//! follows a file (`preload/clock.c`).
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::report::Report;
use crate::trace::{Access, KEY_LEN, Trace, VALUE_LEN_MAX};

/// Gets that are sent together; never two of the same key.
const BATCH: usize = 24;

struct Client {
    stream: UnixStream,
    replies: BufReader<UnixStream>,
    out: Vec<u8>,
    line: Vec<u8>,
}

impl Client {
    fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).with_context(|| path.display().to_string())?;
        let replies = BufReader::new(stream.try_clone()?);
        Ok(Self { stream, replies, out: Vec::new(), line: Vec::new() })
    }

    fn flush(&mut self) -> Result<()> {
        self.stream.write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }

    fn reply(&mut self) -> Result<&[u8]> {
        self.line.clear();
        self.replies.read_until(b'\n', &mut self.line)?;
        Ok(self.line.trim_ascii_end())
    }

    fn number(&mut self, topic: &str, name: &str) -> Result<u64> {
        write!(self.out, "stats{topic}\r\n")?;
        self.flush()?;
        let mut found = 0;
        loop {
            let line = String::from_utf8_lossy(self.reply()?).into_owned();
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["STAT", key, value] if key == name => found = value.parse()?,
                ["STAT", ..] => {}
                ["END"] => return Ok(found),
                _ => bail!("stats: {line}"),
            }
        }
    }

    /// Asks for all keys together; for each whether it is there.
    fn get(&mut self, batch: &[(Access, [u8; KEY_LEN])]) -> Result<Vec<bool>> {
        for (_, name) in batch {
            self.out.extend(b"mg ");
            self.out.extend(name);
            self.out.extend(b"\r\n");
        }
        self.flush()?;
        batch
            .iter()
            .map(|_| match self.reply()? {
                b"HD" => Ok(true),
                b"EN" => Ok(false),
                other => bail!("mg: {}", String::from_utf8_lossy(other)),
            })
            .collect()
    }

    /// Stores values; returns how many were refused.
    fn set(&mut self, batch: &[&(Access, [u8; KEY_LEN])], values: &[u8]) -> Result<u64> {
        for (access, name) in batch {
            self.out.extend(b"set ");
            self.out.extend(name);
            write!(self.out, " 0 {} {}\r\n", access.ttl_s, access.value_len)?;
            self.out.extend(&values[..access.value_len as usize]);
            self.out.extend(b"\r\n");
        }
        self.flush()?;
        let mut refused = 0;
        for _ in batch {
            match self.reply()? {
                b"STORED" => {}
                line if line.starts_with(b"SERVER_ERROR") => refused += 1,
                other => bail!("set: {}", String::from_utf8_lossy(other)),
            }
        }
        Ok(refused)
    }
}

/// Replays a trace against the server at a socket, and moves the file of its clock, if it has one.
///
/// # Errors
/// When the server does not answer as memcached does.
pub fn replay(
    trace: &Trace,
    socket: &Path,
    clock: Option<&Path>,
    progress: impl Fn(usize),
) -> Result<Report> {
    let clock = clock.map(|path| File::options().write(true).open(path)).transpose()?;
    let mut client = Client::connect(socket)?;
    let values = vec![b'v'; VALUE_LEN_MAX];
    let mut report = Report::default();
    let all = trace.accesses.len();
    let mut batch: Vec<(Access, [u8; KEY_LEN])> = Vec::new();
    let mut done = 0;
    for (idx, (access, ns)) in trace.accesses.iter().zip(trace.clock_ns()).enumerate() {
        let repeated = batch.iter().any(|(other, _)| other.key == access.key);
        if repeated || batch.len() == BATCH {
            run(&mut client, &batch, &values, (done, all), &mut report)?;
            done = idx;
            batch.clear();
            if let Some(clock) = &clock {
                clock.write_all_at(&ns.to_le_bytes(), 0)?;
            }
        }
        batch.push((*access, access.name()));
        if idx.is_multiple_of(1 << 16) {
            progress(idx);
        }
    }
    run(&mut client, &batch, &values, (done, all), &mut report)?;
    report.evicted = client.number("", "evictions")?;
    report.evicted_unfetched = client.number("", "evicted_unfetched")?;
    report.pages_moved = client.number("", "slabs_moved")?;
    report.items = client.number("", "curr_items")?;
    report.memory_bytes = client.number(" slabs", "total_malloced")?;
    Ok(report)
}

fn run(
    client: &mut Client,
    batch: &[(Access, [u8; KEY_LEN])],
    values: &[u8],
    (done, all): (usize, usize),
    report: &mut Report,
) -> Result<()> {
    let found = client.get(batch)?;
    for (idx, found) in found.iter().enumerate() {
        report.count(done + idx, all, *found);
    }
    let pairs = batch.iter().zip(&found);
    let stores = pairs.filter(|(entry, found)| !**found || entry.0.always_set);
    let stores: Vec<&(Access, [u8; KEY_LEN])> = stores.map(|(entry, _)| entry).collect();
    report.refused += client.set(&stores, values)?;
    Ok(())
}
