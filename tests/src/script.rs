//! Byte scripts: what is sent and what has to come back, in files that any server can be held
//! against. tests/scripts/README.md describes the format. It owns reading and playing them.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::client::REPLY_TIMEOUT;
use crate::frame;

/// The memcached whose differences the scripts list.
pub const MEMCACHED: &str = "1.6.18";

/// Whose replies are expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// `sessiond`.
    Ours,
    /// memcached [`MEMCACHED`].
    Memcached,
}

/// One reply line, or part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// These bytes.
    Exact(Vec<u8>),
    /// A line that begins so; its rest becomes `{rest}`.
    Prefix(Vec<u8>),
    /// A binary frame whose version is not 0; the version becomes `{cas}`.
    Versioned(Vec<u8>),
}

/// Bytes to send and the replies they have to bring.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exchange {
    /// Sent at once. `{rest}` stands for what a prefix left over.
    pub send: Vec<u8>,
    /// Replies of `sessiond`.
    pub ours: Vec<Expected>,
    /// Replies of memcached, where they differ.
    pub memcached: Option<Vec<Expected>>,
}

/// How a case ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The connection still serves.
    Open,
    /// The server closes it.
    Closed,
}

/// A conversation on a connection of its own.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its title, with the file's name before it.
    pub name: String,
    /// In order.
    pub exchanges: Vec<Exchange>,
    ends: (End, Option<End>),
}

impl Case {
    /// How it ends on that side.
    #[must_use]
    pub fn end(&self, side: Side) -> End {
        match side {
            Side::Ours => self.ends.0,
            Side::Memcached => self.ends.1.unwrap_or(self.ends.0),
        }
    }

    /// Whether memcached is expected to differ.
    #[must_use]
    pub fn differs(&self) -> bool {
        self.ends.1.is_some() || self.exchanges.iter().any(|exchange| exchange.memcached.is_some())
    }

    /// Whether it begins with a binary request.
    fn is_binary(&self) -> bool {
        self.exchanges.first().is_some_and(|first| first.send.first() == Some(&0x80))
    }

    /// Plays the case on a new connection, and makes sure that nothing but the replies came.
    ///
    /// # Errors
    /// With what was expected and what came.
    pub fn play(&self, port: u16, side: Side) -> Result<()> {
        self.play_within(port, side, REPLY_TIMEOUT)
    }

    /// [`Case::play`] with a limit of its own for each reply.
    ///
    /// # Errors
    /// As [`Case::play`].
    pub fn play_within(&self, port: u16, side: Side, limit: Duration) -> Result<()> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(limit))?;
        let mut rest = Vec::new();
        for exchange in &self.exchanges {
            let sent = replace(&exchange.send, b"{rest}", &rest);
            let sent = replace(&sent, &frame::CAS_MARK, &rest);
            stream.write_all(&sent)?;
            for expected in exchange.expected(side) {
                expected
                    .read(&mut stream, &mut rest)
                    .with_context(|| format!("after sending {}", shown(&sent)))?;
            }
        }
        match self.end(side) {
            End::Open if self.is_binary() => {
                stream.write_all(&frame::request("0b", plain)?)?;
                let (answer, _) = frame::reply("0b 00 value=1.6.45", plain)?;
                let answer = answer[..frame::HEADER_LEN].to_vec();
                Expected::Exact(answer).read(&mut stream, &mut rest).context("at the end")?;
                ensure!(read_up_to(&mut stream, 6).starts_with(b"1.6."), "another version");
                Ok(())
            }
            End::Open => {
                stream.write_all(b"version\r\n")?;
                let version = Expected::Prefix(b"VERSION 1.6.".to_vec());
                version.read(&mut stream, &mut rest).context("at the end")
            }
            End::Closed => {
                let mut byte = [0];
                match stream.read(&mut byte) {
                    Ok(0) => Ok(()),
                    Err(error) if crate::client::is_refusal(&error) => Ok(()),
                    other => bail!("not closed but {other:?} {}", shown(&byte)),
                }
            }
        }
    }
}

impl Exchange {
    /// The replies of that side.
    #[must_use]
    pub fn expected(&self, side: Side) -> &[Expected] {
        match (side, &self.memcached) {
            (Side::Memcached, Some(memcached)) => memcached,
            _ => &self.ours,
        }
    }
}

impl Expected {
    fn read(&self, stream: &mut impl Read, rest: &mut Vec<u8>) -> Result<()> {
        match self {
            Self::Exact(bytes) => {
                let got = read_up_to(stream, bytes.len());
                ensure!(got == *bytes, "expected {} and got {}", shown(bytes), shown(&got));
            }
            Self::Prefix(prefix) => {
                let line = read_line(stream);
                let left = line.strip_prefix(prefix.as_slice());
                let Some(left) = left.and_then(|left| left.strip_suffix(b"\r\n")) else {
                    bail!("expected {}… and got {}", shown(prefix), shown(&line));
                };
                *rest = left.to_vec();
            }
            Self::Versioned(bytes) => {
                let mut got = read_up_to(stream, bytes.len());
                let cas = got.get(frame::CAS).unwrap_or(&[0; 8]).to_vec();
                if let Some(place) = got.get_mut(frame::CAS) {
                    place.fill(0);
                }
                ensure!(got == *bytes, "expected {} and got {}", shown(bytes), shown(&got));
                ensure!(cas != [0; 8], "no version in {}", shown(bytes));
                *rest = cas;
            }
        }
        Ok(())
    }
}

/// Reads the replies of a whole conversation that was recorded.
///
/// # Errors
/// With what was expected and what stood there.
pub fn compare(case: &Case, mut replies: &[u8]) -> Result<()> {
    for expected in case.exchanges.iter().flat_map(|exchange| exchange.expected(Side::Ours)) {
        expected.read(&mut replies, &mut Vec::new())?;
    }
    ensure!(replies.is_empty(), "{} came besides", shown(replies));
    Ok(())
}

fn read_up_to(stream: &mut impl Read, len: usize) -> Vec<u8> {
    let mut got = Vec::new();
    let mut byte = [0];
    while got.len() < len && stream.read(&mut byte).is_ok_and(|count| count == 1) {
        got.push(byte[0]);
    }
    got
}

fn read_line(stream: &mut impl Read) -> Vec<u8> {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
        line.push(byte[0]);
    }
    line
}

fn shown(bytes: &[u8]) -> String {
    let text = bytes.escape_ascii().to_string();
    if text.len() <= 300 { text } else { format!("{}… ({} bytes)", &text[..300], bytes.len()) }
}

fn replace(bytes: &[u8], what: &[u8], with: &[u8]) -> Vec<u8> {
    match bytes.windows(what.len()).position(|window| window == what) {
        Some(at) => [&bytes[..at], with, &bytes[at + what.len()..]].concat(),
        None => bytes.to_vec(),
    }
}

/// All cases of tests/scripts, by file name and then in order.
///
/// # Errors
/// For a file that cannot be read, and with the line that is not of the format.
pub fn all() -> Result<Vec<Case>> {
    let directory = crate::binaries::workspace_root().join("tests/scripts");
    let mut paths: Vec<_> = fs::read_dir(&directory)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    paths.sort();
    let mut cases = Vec::new();
    for path in paths {
        cases.extend(read(&path)?);
    }
    Ok(cases)
}

fn read(path: &Path) -> Result<Vec<Case>> {
    let text = fs::read_to_string(path)?;
    let file = path.file_stem().context("a file name")?.to_string_lossy();
    let mut cases: Vec<Case> = Vec::new();
    for (idx, line) in text.lines().enumerate() {
        let place = || format!("{file}.txt:{}", idx + 1);
        if let Some(title) = line.strip_prefix("=== ") {
            let name = format!("{file}: {title}");
            cases.push(Case { name, exchanges: Vec::new(), ends: (End::Open, None) });
        } else if !line.trim().is_empty() && !line.starts_with('#') {
            let case = cases.last_mut().with_context(|| format!("{}: no title yet", place()))?;
            case.line(line).with_context(place)?;
        }
    }
    Ok(cases)
}

impl Case {
    fn line(&mut self, line: &str) -> Result<()> {
        let theirs = line.strip_prefix(MEMCACHED).map(str::trim_start);
        match (theirs.unwrap_or(line), theirs.is_some()) {
            ("! closed", false) => self.ends.0 = End::Closed,
            ("! closed", true) => self.ends.1 = Some(End::Closed),
            ("! open", true) => self.ends.1 = Some(End::Open),
            (reply, theirs) if reply.starts_with('<') => self.reply(reply, theirs)?,
            (request, false) if request.starts_with('>') => {
                let bytes = match request.strip_prefix(">b ") {
                    Some(words) => frame::request(words, plain)?,
                    None => unescape(request, '>')?,
                };
                match self.exchanges.last_mut() {
                    // Requests in a row are one exchange: sent at once.
                    Some(last) if last.ours.is_empty() && last.memcached.is_none() => {
                        last.send.extend_from_slice(&bytes);
                    }
                    _ => self.exchanges.push(Exchange { send: bytes, ..Exchange::default() }),
                }
            }
            _ => bail!("neither request, reply nor end: {line}"),
        }
        Ok(())
    }

    fn reply(&mut self, reply: &str, theirs: bool) -> Result<()> {
        let exchange = self.exchanges.last_mut().context("a reply before any request")?;
        let expected = if let Some(words) = reply.strip_prefix("<b ") {
            match frame::reply(words, plain)? {
                (bytes, true) => Expected::Versioned(bytes),
                (bytes, false) => Expected::Exact(bytes),
            }
        } else {
            match reply.strip_prefix("<?") {
                Some(prefix) => {
                    Expected::Prefix(plain(prefix.strip_prefix(' ').unwrap_or(prefix))?)
                }
                None => Expected::Exact(unescape(reply, '<')?),
            }
        };
        let list =
            if theirs { exchange.memcached.get_or_insert_default() } else { &mut exchange.ours };
        // A line `1.6.18 <|` alone says that nothing comes.
        if expected != Expected::Exact(Vec::new()) {
            list.push(expected);
        }
        Ok(())
    }
}

/// `> text` is a line with its end, `>| text` is not ended.
fn unescape(line: &str, sign: char) -> Result<Vec<u8>> {
    let text = line.strip_prefix(sign).unwrap_or(line);
    let (text, end): (&str, &[u8]) = match text.strip_prefix('|') {
        Some(text) => (text, b""),
        None => (text, b"\r\n"),
    };
    let mut bytes = plain(text.strip_prefix(' ').unwrap_or(text))?;
    bytes.extend_from_slice(end);
    Ok(bytes)
}

/// Resolves `\r`, `\n`, `\\`, `\xHH` and `{text*count}`.
fn plain(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if first == '\\' {
            let (byte, len) = escape(rest)?;
            bytes.push(byte);
            rest = &rest[len..];
        } else if let Some((repeated, after)) = repetition(rest)? {
            bytes.extend_from_slice(&repeated);
            rest = after;
        } else {
            bytes.extend_from_slice(first.to_string().as_bytes());
            rest = &rest[first.len_utf8()..];
        }
    }
    Ok(bytes)
}

fn escape(text: &str) -> Result<(u8, usize)> {
    Ok(match text.as_bytes().get(1) {
        Some(b'r') => (b'\r', 2),
        Some(b'n') => (b'\n', 2),
        Some(b'\\') => (b'\\', 2),
        Some(b'x') => (u8::from_str_radix(text.get(2..4).context("two digits")?, 16)?, 4),
        _ => bail!("no such escape: {text}"),
    })
}

fn repetition(text: &str) -> Result<Option<(Vec<u8>, &str)>> {
    let Some((inner, after)) = text.strip_prefix('{').and_then(|inner| inner.split_once('}'))
    else {
        return Ok(None);
    };
    let Some((what, count)) = inner.rsplit_once('*') else { return Ok(None) };
    let count: usize = count.parse().with_context(|| format!("no number in {{{inner}}}"))?;
    Ok(Some((plain(what)?.repeat(count), after)))
}
