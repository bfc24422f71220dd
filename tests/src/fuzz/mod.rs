//! A differential fuzzer: the same random streams go to two servers, and what differs is cut down
//! to the least that still differs. It owns the rounds; the streams are made in `generate`, and
//! what may differ, with the reason, is listed in `normal`.
#![forbid(unsafe_code)]

mod frames;
mod generate;
mod normal;
mod words;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

pub use generate::Protocol;
use generate::{Random, Stream};
pub use normal::{KNOWN, Known};

/// How long a server may be silent before its answer counts as over.
const SILENCE: Duration = Duration::from_secs(2);

/// Commands in a stream at most.
const STREAM_LEN_MAX: u64 = 24;

/// Keys have room for eight digits.
const ROUNDS_PER_PROTOCOL: u64 = 33_000_000;

/// What is compared.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Commands in all.
    pub commands: u64,
    /// Decides every stream.
    pub seed: u64,
    /// What is spoken.
    pub protocol: Protocol,
    /// Port of `sessiond`.
    pub ours: u16,
    /// Port of the other server.
    pub theirs: u16,
}

/// A stream on which the servers differ, as small as it could be made.
#[derive(Clone, Debug)]
pub struct Difference {
    /// What is sent.
    pub sent: Vec<u8>,
    /// What `sessiond` answers.
    pub ours: Vec<u8>,
    /// What the other server answers.
    pub theirs: Vec<u8>,
}

impl std::fmt::Display for Difference {
    /// As a case of a byte script.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut part = |sign: &str, bytes: &[u8]| {
            bytes.split_inclusive(|byte| *byte == b'\n').try_for_each(|line| {
                match line.strip_suffix(b"\r\n") {
                    Some(line) => writeln!(out, "{sign} {}", line.escape_ascii()),
                    None => writeln!(out, "{sign}| {}", line.escape_ascii()),
                }
            })
        };
        part(">", &self.sent)?;
        part("<", &self.ours)?;
        part("memcached<", &self.theirs)
    }
}

/// Sends streams until so many commands are sent or `most` differences are found.
///
/// # Errors
/// When a server cannot be reached, which is a finding too: the error shows the stream.
pub fn run(options: &Options, most: usize) -> Result<Vec<Difference>> {
    let mut random = Random::new(options.seed);
    let (mut found, mut sent) = (Vec::new(), 0);
    // Protocols that are fuzzed one after the other on the same servers share no key.
    let round = options.protocol as u64 * ROUNDS_PER_PROTOCOL;
    let mut rounds = Rounds { options: *options, round };
    while sent < options.commands && found.len() < most {
        let stream =
            Stream::random(options.protocol, random.below(STREAM_LEN_MAX) + 1, &mut random);
        sent += stream.len() as u64;
        if rounds.difference(&stream, &mut random)?.is_some() {
            let least = rounds.shrink(stream, &mut random)?;
            found.extend(rounds.difference(&least, &mut random)?);
        }
    }
    Ok(found)
}

/// Known differences that are none any more: both servers, on these ports, answer the same.
///
/// # Errors
/// When a server cannot be reached.
pub fn stale(ours: u16, theirs: u16) -> Result<Vec<&'static str>> {
    let mut stale = Vec::new();
    for known in KNOWN {
        let Some(witness) = known.witness else { continue };
        if converse(ours, witness, &[])? == converse(theirs, witness, &[])? {
            stale.push(known.what);
        }
    }
    Ok(stale)
}

struct Rounds {
    options: Options,
    /// Keys of different rounds are different, so that none sees what another has left.
    round: u64,
}

impl Rounds {
    fn difference(&mut self, stream: &Stream, random: &mut Random) -> Result<Option<Difference>> {
        self.round += 1;
        let sent = stream.bytes(self.round);
        let cuts: Vec<usize> =
            (0..random.below(8)).map(|_| random.below(sent.len() as u64 + 1) as usize).collect();
        let context = || format!("after {}", sent.escape_ascii());
        let ours = converse(self.options.ours, &sent, &cuts).with_context(context)?;
        let theirs = converse(self.options.theirs, &sent, &cuts).with_context(context)?;
        if normal::same(self.options.protocol, &ours, &theirs, stream.is_half()) {
            return Ok(None);
        }
        Ok(Some(Difference { sent, ours, theirs }))
    }

    /// Leaves commands out for as long as the rest differs.
    fn shrink(&mut self, mut stream: Stream, random: &mut Random) -> Result<Stream> {
        let mut part = stream.len().div_ceil(2);
        while part > 0 {
            let mut at = 0;
            while at < stream.len() {
                let shorter = stream.without(at, part);
                if shorter.len() > 0 && self.difference(&shorter, random)?.is_some() {
                    stream = shorter;
                } else {
                    at += part;
                }
            }
            part = if part == 1 { 0 } else { part.div_ceil(2) };
        }
        Ok(stream)
    }
}

/// Sends everything, cut in pieces, then says that nothing follows; what came back.
fn converse(port: u16, sent: &[u8], cuts: &[usize]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    let mut cuts: Vec<usize> = cuts.iter().copied().chain([0, sent.len()]).collect();
    cuts.sort_unstable();
    for pair in cuts.windows(2) {
        // A server that has closed takes no more; what it said before counts.
        if stream.write_all(&sent[pair[0]..pair[1]]).is_err() {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
    let (mut answer, mut buffer) = (Vec::new(), [0; 16 << 10]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(answer),
            Ok(len) => answer.extend_from_slice(&buffer[..len]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Silent, or reset because it closed before it had read everything.
            Err(_) => return Ok(answer),
        }
    }
}
