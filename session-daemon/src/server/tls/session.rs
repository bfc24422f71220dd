//! One client's task over TLS: the same order of reading, driving and writing as in `client`,
//! with rustls between the socket and the connection.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::command::counters::Counter;
use crate::protocol::text::encode::NO_MEMORY_FOR_REQUEST;
use crate::server::buffers::Input;
use crate::server::client::{Presence, wait_until_writable};
use crate::server::connection::{Connection, Step};
use crate::server::farewell;
use crate::server::shared::Activity;
use crate::server::socket::{ReadInto, Socket, yield_turn};
use crate::server::tls::Verify;
use rustls::{HandshakeKind, ServerConnection};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Greets the client and serves it to its end.
///
/// # Errors
/// What ended it before its time.
pub async fn serve(presence: &Presence, fd: OwnedFd, verify: Verify) -> io::Result<()> {
    let config = &presence.local.shared.config;
    let tls = config.tls.as_ref().ok_or_else(|| io::Error::other("TLS is not set up"))?;
    let greeting = tls.greeting(verify);
    let greeting = greeting.ok_or_else(|| io::Error::other("nobody vouches for clients"))?;
    let mut session = Session {
        tls: ServerConnection::new(greeting).map_err(io::Error::other)?,
        sealed: Input::default(),
        connection: Connection::new(config.binding).with_login(config.login),
        socket: Socket::new(fd, Arc::clone(&presence.info))?,
        greeted: false,
    };
    session.tls.set_buffer_limit(Some(tls.terms().wbuf_len));
    let served = session.run(presence).await;
    if served.as_ref().is_err_and(farewell::is_due) {
        session.pass_over(presence).await;
    }
    served
}

struct Session {
    tls: ServerConnection,
    /// Bytes from the socket that rustls has not taken.
    sealed: Input,
    connection: Connection,
    socket: Socket,
    /// Whether the handshake is over and counted.
    greeted: bool,
}

/// What came out of the bytes at hand.
enum Opened {
    /// Bytes for the connection.
    Bytes,
    /// Nothing yet.
    Nothing,
    /// The client said that it is done.
    End,
}

impl Session {
    async fn run(&mut self, presence: &Presence) -> io::Result<()> {
        let Presence { local, info, .. } = presence;
        // No request is there before the handshake is.
        if !self.receive(presence, false).await? {
            return Ok(());
        }
        loop {
            match local.drive(&mut self.connection, info, None) {
                Step::Yield => {
                    local.counters().add_one(Counter::ConnYields);
                    yield_turn().await;
                }
                Step::Write => self.send(presence).await?,
                Step::Read => {
                    self.send(presence).await?;
                    if !self.receive(presence, false).await? {
                        return Ok(());
                    }
                    info.doing(Activity::Parse, true);
                }
                Step::Watch => {
                    let filled = self.connection.events();
                    let event = async {
                        if let Some(filled) = &filled {
                            filled.wait().await;
                        }
                    };
                    tokio::select! {
                        received = self.receive(presence, true) => if !received? {
                            return Ok(());
                        },
                        () = event => {}
                    }
                }
                Step::Close => {
                    self.send(presence).await?;
                    self.tls.send_close_notify();
                    self.send(presence).await?;
                    return self.connection.end();
                }
            }
        }
    }

    /// Waits for bytes of the client; false when it is done. May be dropped while it waits.
    async fn receive(&mut self, presence: &Presence, watching: bool) -> io::Result<bool> {
        let Presence { local, info, .. } = presence;
        loop {
            match self.open(presence) {
                Ok(Opened::Bytes) => return Ok(true),
                Ok(Opened::End) => return Ok(false),
                Ok(Opened::Nothing) => {}
                Err(error) => {
                    // Why, in TLS's own words, if the client listens.
                    let _ = self.tls.write_tls(&mut Sink(&self.socket));
                    return Err(error);
                }
            }
            self.send(presence).await?;
            let busy =
                !self.greeted || self.connection.is_busy() || !self.sealed.waiting().is_empty();
            if watching {
                info.doing(Activity::Watch, false);
            } else {
                info.doing(Activity::Read, busy);
            }
            let Self { sealed, connection, socket, .. } = self;
            match socket.read(&mut Into { sealed, connection, presence }).await {
                Ok(0) => return Ok(false),
                Ok(len) => self.sealed.filled(len),
                Err(error) => {
                    if error.kind() == ErrorKind::OutOfMemory {
                        local.counters().add_one(Counter::ReadBufOom);
                        // Whether or not the client hears why, it is closed.
                        let _ = self.tls.writer().write(NO_MEMORY_FOR_REQUEST);
                        let _ = self.tls.write_tls(&mut Sink(&self.socket));
                    }
                    return Err(error);
                }
            }
            presence.hold(0);
        }
    }

    /// Takes what the bytes at hand hold, until there is something for the connection.
    fn open(&mut self, presence: &Presence) -> io::Result<Opened> {
        let counters = presence.local.counters();
        loop {
            let space = self.connection.space(&mut presence.local.pool.borrow_mut());
            match self.tls.reader().read(space) {
                Ok(0) => return Ok(Opened::End),
                Ok(len) => {
                    counters.add(Counter::BytesRead, len as u64);
                    self.connection.filled(len);
                    return Ok(Opened::Bytes);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if self.sealed.waiting().is_empty() {
                return Ok(Opened::Nothing);
            }
            let taken = self.tls.read_tls(&mut self.sealed.waiting())?;
            self.sealed.consume(taken);
            if let Err(error) = self.tls.process_new_packets() {
                counters.add_one(if self.greeted {
                    Counter::SslProtoErrors
                } else {
                    Counter::SslHandshakeErrors
                });
                return Err(io::Error::new(ErrorKind::InvalidData, error));
            }
            if !self.greeted && !self.tls.is_handshaking() {
                self.greeted = true;
                if self.tls.handshake_kind() != Some(HandshakeKind::Resumed) {
                    counters.add_one(Counter::SslNewSessions);
                }
            }
        }
    }

    /// Waits within bounds until the client has heard the end of the answers.
    async fn pass_over(&mut self, presence: &Presence) {
        let Self { sealed, connection, socket, .. } = self;
        socket.finish();
        farewell::pass_over(async || {
            {
                let pool = &mut presence.local.pool.borrow_mut();
                sealed.clear(pool);
                *sealed = Input::default();
                connection.pass_over(pool);
            }
            let mut into = Into { sealed: &mut *sealed, connection: &mut *connection, presence };
            let len = socket.read(&mut into).await?;
            sealed.filled(len);
            Ok(len)
        })
        .await;
    }

    /// Seals and sends all answers, and what the handshake has to say.
    async fn send(&mut self, presence: &Presence) -> io::Result<()> {
        let local = &presence.local;
        loop {
            let output = self.connection.output();
            if !output.is_empty() {
                let sealed_len = self.tls.writer().write(output)?;
                local.counters().add(Counter::BytesWritten, sealed_len as u64);
                self.connection.sent(sealed_len, &mut local.pool.borrow_mut());
            }
            while self.tls.wants_write() {
                match self.tls.write_tls(&mut Sink(&self.socket)) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        self.sealed.rest(&mut local.pool.borrow_mut());
                        self.connection.rest(&mut local.pool.borrow_mut());
                        let kept =
                            self.connection.kept_len().saturating_add(self.sealed.capacity());
                        wait_until_writable(&mut self.socket, presence, kept).await?;
                    }
                    Err(error) => return Err(error),
                }
            }
            if self.connection.output().is_empty() {
                presence.hold(0);
                return Ok(());
            }
        }
    }
}

/// The socket as rustls writes to it.
struct Sink<'a>(&'a Socket);

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_now(bytes)?.ok_or_else(|| ErrorKind::WouldBlock.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Into<'a> {
    sealed: &'a mut Input,
    connection: &'a mut Connection,
    presence: &'a Presence,
}

impl ReadInto for Into<'_> {
    fn read<R>(&mut self, read: impl FnOnce(&mut [u8]) -> R) -> R {
        read(self.sealed.space(&mut self.presence.local.pool.borrow_mut()))
    }

    fn rest(&mut self) -> io::Result<()> {
        let pool = &mut self.presence.local.pool.borrow_mut();
        self.sealed.rest(pool);
        self.connection.rest(pool);
        if self.presence.hold(self.connection.kept_len().saturating_add(self.sealed.capacity())) {
            Ok(())
        } else {
            Err(ErrorKind::OutOfMemory.into())
        }
    }
}
