//! A small client of the text protocol, every call of which ends within a time limit.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

/// How long a reply that must come may take.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection that must be refused is given to succeed.
pub const REFUSAL_TIMEOUT: Duration = Duration::from_millis(600);

/// One connection.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects within [`REPLY_TIMEOUT`]; later calls end within it too.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn connect(address: IpAddr, port: u16) -> io::Result<Self> {
        Self::connect_within(address, port, REPLY_TIMEOUT)
    }

    /// Connects within `limit`; later calls end within [`REPLY_TIMEOUT`].
    ///
    /// # Errors
    /// Those of the connection; `TimedOut` after `limit`.
    pub fn connect_within(address: IpAddr, port: u16, limit: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&SocketAddr::new(address, port), limit)?;
        stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
        stream.set_write_timeout(Some(REPLY_TIMEOUT))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// The socket, for its options and addresses.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Reads one line without its `\r\n`.
    ///
    /// # Errors
    /// Those of the socket, and `UnexpectedEof` when the server closed.
    pub fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        let text = line.strip_suffix(b"\r\n").ok_or(ErrorKind::UnexpectedEof)?;
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    /// Reads exactly `len` bytes.
    ///
    /// # Errors
    /// Those of the socket, and `UnexpectedEof` when the server closed.
    pub fn exactly(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Sends one line (without `\r\n`) and reads one line.
    ///
    /// # Errors
    /// Those of [`Client::send`] and [`Client::line`].
    pub fn command(&mut self, line: &str) -> io::Result<String> {
        self.send(format!("{line}\r\n").as_bytes())?;
        self.line()
    }

    /// Stores a value with flags and exptime 0, and returns the reply line.
    ///
    /// # Errors
    /// Those of [`Client::send`] and [`Client::line`].
    pub fn set(&mut self, key: &str, value: &[u8]) -> io::Result<String> {
        let mut request = format!("set {key} 0 0 {}\r\n", value.len()).into_bytes();
        request.extend_from_slice(value);
        request.extend_from_slice(b"\r\n");
        self.send(&request)?;
        self.line()
    }

    /// Gets one value; `None` when there is none.
    ///
    /// # Errors
    /// Those of the socket; `InvalidData` for a reply that is neither a value nor `END`.
    pub fn get(&mut self, key: &str) -> io::Result<Option<Vec<u8>>> {
        let head = self.command(&format!("get {key}"))?;
        if head == "END" {
            return Ok(None);
        }
        let mut words = head.split(' ');
        let len = match (words.next(), words.next(), words.nth(1).map(str::parse)) {
            (Some("VALUE"), Some(name), Some(Ok(len))) if name == key => len,
            _ => return Err(invalid(&head)),
        };
        let value = self.exactly(len)?;
        match (self.line()?.as_str(), self.line()?.as_str()) {
            ("", "END") => Ok(Some(value)),
            (_, end) => Err(invalid(end)),
        }
    }

    /// `stats` with an argument, or with none for the empty string.
    ///
    /// # Errors
    /// Those of the socket; `InvalidData` for a line that is neither `STAT` nor `END`.
    pub fn stats(&mut self, argument: &str) -> io::Result<BTreeMap<String, String>> {
        let mut line = self.command(format!("stats {argument}").trim_end())?;
        let mut stats = BTreeMap::new();
        while line != "END" {
            let words = line.strip_prefix("STAT ").and_then(|rest| rest.split_once(' '));
            let (name, value) = words.ok_or_else(|| invalid(&line))?;
            stats.insert(name.to_owned(), value.to_owned());
            line = self.line()?;
        }
        Ok(stats)
    }

    /// Waits for the server to close or reset the connection.
    ///
    /// # Errors
    /// When it sends bytes instead, or nothing within [`REPLY_TIMEOUT`].
    pub fn closed(&mut self) -> io::Result<()> {
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(0) => Ok(()),
            Err(error) if is_refusal(&error) => Ok(()),
            Ok(_) => Err(invalid("a byte on a connection that had to end")),
            Err(error) => Err(error),
        }
    }
}

/// Whether the error says that the other side refused or reset the connection.
#[must_use]
pub fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    )
}

/// Whether the error says that a time limit passed.
#[must_use]
pub fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("unexpected reply {text:?}"))
}
