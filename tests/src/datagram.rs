//! A client of memcached's UDP protocol: numbers its requests, puts replies together, and ends
//! every call within a time limit.
#![forbid(unsafe_code)]

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use crate::client::{REFUSAL_TIMEOUT, REPLY_TIMEOUT, is_timeout};

/// Bytes of the frame header.
const FRAME_LEN: usize = 8;

/// One socket and the number of its latest request.
#[derive(Debug)]
pub struct DatagramClient {
    socket: UdpSocket,
    server: SocketAddr,
    id: u16,
}

/// A reply, put together, and how it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reassembled {
    /// The payloads in their order.
    pub payload: Vec<u8>,
    /// Length of each datagram, its header included, in the order of arrival.
    pub datagram_lens: Vec<usize>,
}

impl DatagramClient {
    /// A socket of its own that will ask `server`.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn new(server: SocketAddr) -> io::Result<Self> {
        let any: SocketAddr =
            if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
        Self::over(UdpSocket::bind(any)?, server)
    }

    /// Asks `server` over a socket that is there.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn over(socket: UdpSocket, server: SocketAddr) -> io::Result<Self> {
        socket.set_read_timeout(Some(REPLY_TIMEOUT))?;
        Ok(Self { socket, server, id: 0x7e00 })
    }

    /// Sends a datagram as it is.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn send(&self, datagram: &[u8]) -> io::Result<()> {
        self.socket.send_to(datagram, self.server).map(drop)
    }

    /// Sends a request and puts its reply together.
    ///
    /// # Errors
    /// Those of the socket, a time-out included; `InvalidData` when the datagrams do not make
    /// one reply to this request.
    pub fn ask(&mut self, request: &[u8]) -> io::Result<Reassembled> {
        self.id = self.id.wrapping_add(1);
        let [i0, i1] = self.id.to_be_bytes();
        self.send(&[&[i0, i1, 0, 0, 0, 1, 0, 0], request].concat())?;
        self.collect()
    }

    /// The text of a reply that fits one datagram.
    ///
    /// # Errors
    /// As [`DatagramClient::ask`].
    pub fn text(&mut self, request: &str) -> io::Result<String> {
        let reply = self.ask(request.as_bytes())?;
        Ok(String::from_utf8_lossy(&reply.payload).into_owned())
    }

    /// Whether nothing comes for as long as a refusal is given.
    ///
    /// # Errors
    /// Those of the socket but the time-out.
    pub fn is_silent(&self) -> io::Result<bool> {
        self.silent_for(REFUSAL_TIMEOUT)
    }

    fn silent_for(&self, time: Duration) -> io::Result<bool> {
        self.socket.set_read_timeout(Some(time))?;
        let received = self.socket.recv_from(&mut [0; 2048]);
        self.socket.set_read_timeout(Some(REPLY_TIMEOUT))?;
        match received {
            Ok(_) => Ok(false),
            Err(error) if is_timeout(&error) => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn collect(&self) -> io::Result<Reassembled> {
        let mut parts: Vec<Option<Vec<u8>>> = Vec::new();
        let mut datagram_lens = Vec::new();
        let mut bytes = [0; 2048];
        loop {
            let (len, from) = self.socket.recv_from(&mut bytes)?;
            let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            if from != self.server || len < FRAME_LEN || word(0) != self.id || word(6) != 0 {
                return Err(invalid(&bytes[..len]));
            }
            let (idx, total) = (usize::from(word(2)), usize::from(word(4)));
            parts.resize(total, None);
            match parts.get_mut(idx) {
                Some(part @ None) => *part = Some(bytes[FRAME_LEN..len].to_vec()),
                _ => return Err(invalid(&bytes[..len])),
            }
            datagram_lens.push(len);
            if datagram_lens.len() == total {
                let payload = parts.into_iter().flatten().flatten().collect();
                return Ok(Reassembled { payload, datagram_lens });
            }
        }
    }
}

fn invalid(datagram: &[u8]) -> io::Error {
    let text = format!("unexpected datagram {}", datagram.escape_ascii());
    io::Error::new(io::ErrorKind::InvalidData, text)
}
