//! TLS: who is greeted with which certificate, who is not, and that what goes through is the same.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use session_tests::client::{Client, REPLY_TIMEOUT};
use session_tests::process::Process;
use session_tests::sessiond::Setup;
use session_tests::tls::{Authority, Terms, TlsClient};
use session_tests::wait;

/// A daemon with TLS and all that its clients need.
struct Bed {
    authority: Authority,
    setup: Setup,
    process: Process,
}

impl Bed {
    /// `words` are added to `-o`, `arguments` to the command line.
    fn new(words: &str, arguments: &[&str]) -> Result<Self> {
        let authority = Authority::new()?;
        let setup = Setup::loopback()?;
        let directory = setup.scratch().path().to_owned();
        let (chain, key) = authority.vouch("localhost")?.write(&directory, "server")?;
        let ca = directory.join("ca.crt");
        fs::write(&ca, authority.certificate())?;
        let options = format!(
            "ssl_chain_cert={},ssl_key={},ssl_ca_cert={}{words}",
            chain.display(),
            key.display(),
            ca.display()
        );
        let setup = setup.args(["-Z", "-o", &options]).args(arguments);
        let own = authority.vouch("client")?;
        let terms = Terms::new(&authority, Some(&own))?;
        let mut process = setup.spawn(None)?;
        process.until("answer over TLS", || {
            let mut client = terms.connect(setup.port()).ok()?;
            client.command("version").ok()
        });
        Ok(Self { authority, setup, process })
    }

    fn client(&self) -> Result<TlsClient> {
        Terms::new(&self.authority, None)?.connect(self.setup.port())
    }

    fn socket(&self) -> Result<TcpStream> {
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, self.setup.port()))?;
        socket.set_read_timeout(Some(REPLY_TIMEOUT))?;
        Ok(socket)
    }

    /// One of the general statistics, asked for over TLS.
    fn stat(&self, name: &str) -> Result<u64> {
        let mut client = self.client()?;
        let mut line = client.command("stats")?;
        while line != "END" {
            if let Some(value) = line.strip_prefix(&format!("STAT {name} ")) {
                return Ok(value.parse()?);
            }
            let mut next = Vec::new();
            while !next.ends_with(b"\r\n") {
                next.push(client.exactly(1)?[0]);
            }
            line = String::from_utf8_lossy(&next).trim_end().to_owned();
        }
        anyhow::bail!("no {name}")
    }
}

#[test]
fn what_goes_through_is_the_same_as_without() -> Result<()> {
    let bed = Bed::new("", &[])?;
    let mut client = bed.client()?;
    let value: Vec<u8> = (0..=255).cycle().take(900_000).collect();
    client.send(format!("set large 0 0 {}\r\n", value.len()).as_bytes())?;
    client.send(&value)?;
    ensure!(client.command("")? == "STORED", "set");
    let expected = [b"VALUE large 0 900000\r\n".as_slice(), &value, b"\r\nEND\r\n"].concat();
    client.send(&b"get large\r\n".repeat(5))?;
    for round in 0..5 {
        ensure!(client.exactly(expected.len())? == expected, "value {round}");
    }
    let many: String = (0..1000).map(|idx| format!("get none{idx}\r\n")).collect();
    client.send(many.as_bytes())?;
    ensure!(client.exactly(5 * 1000)? == b"END\r\n".repeat(1000), "a thousand misses");
    // A client that takes its leave is told that nothing is missing.
    client.send(b"quit\r\n")?;
    let end = client.exactly(1).map_err(|error| error.kind());
    ensure!(end == Err(ErrorKind::UnexpectedEof), "{end:?}");
    Ok(())
}

#[test]
fn records_that_come_byte_by_byte_are_put_together() -> Result<()> {
    let bed = Bed::new("", &[])?;
    let mut client = bed.client()?;
    let (tls, socket) = client.parts();
    tls.writer().write_all(b"set a 0 0 5\r\nvalue\r\nget a\r\n")?;
    let mut sealed = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut sealed)?;
    }
    for byte in sealed {
        socket.write_all(&[byte])?;
    }
    let expected = b"STORED\r\nVALUE a 0 5\r\nvalue\r\nEND\r\n";
    ensure!(client.exactly(expected.len())? == expected, "another answer");
    Ok(())
}

#[test]
fn a_plain_client_and_garbage_are_refused_and_counted() -> Result<()> {
    let bed = Bed::new("", &["--read-timeout=2"])?;
    let before = bed.stat("ssl_handshake_errors")?;
    let garbage: [&[u8]; 4] =
        [b"get a\r\n", b"\x80\0\0\x01", &[0; 600], b"\x16\x03\x01\0\x05hello"];
    for bytes in garbage {
        let mut socket = bed.socket()?;
        socket.write_all(bytes)?;
        let mut reply = Vec::new();
        // An alert at most, then the end; four bytes of a record may still become one.
        match socket.read_to_end(&mut reply) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => return Err(error.into()),
        }
        ensure!(reply.len() <= 7, "{}: {}", bytes.escape_ascii(), reply.escape_ascii());
    }
    let counted = bed.stat("ssl_handshake_errors")? - before;
    ensure!((3..=4).contains(&counted), "{counted} counted");
    // Garbage behind a good handshake ends that client alone.
    let mut client = bed.client()?;
    ensure!(client.command("version")?.starts_with("VERSION"), "not served");
    client.parts().1.write_all(b"\x17\x03\x03\0\x20abcdefghijklmnopqrstuvwxyzabcdef")?;
    ensure!(client.exactly(1).is_err(), "garbage was answered");
    ensure!(bed.stat("ssl_proto_errors")? == 1, "not counted");
    // A client that says nothing is not waited for for ever, unlike an idle one.
    let mut silent = bed.socket()?;
    ensure!(silent.read(&mut [0])? == 0, "a byte for a silent client");
    Ok(())
}

#[test]
fn clients_show_certificates_where_that_is_asked_for() -> Result<()> {
    let stranger = Authority::new()?;
    for (mode, without, wrong) in [(1, true, false), (2, false, false), (3, true, false)] {
        let bed = Bed::new(&format!(",ssl_verify_mode={mode}"), &[])?;
        let asked = |terms: Terms| {
            // With TLS 1.3 the server's refusal comes after the client's handshake.
            let mut client = terms.connect(bed.setup.port()).ok()?;
            client.command("version").ok()
        };
        let right = Terms::new(&bed.authority, Some(&bed.authority.vouch("client")?))?;
        ensure!(asked(right).is_some(), "{mode}: a good certificate was refused");
        let none = asked(Terms::new(&bed.authority, None)?).is_some();
        ensure!(none == without, "{mode}: without a certificate: {none}");
        let bad = asked(Terms::new(&bed.authority, Some(&stranger.vouch("client")?))?).is_some();
        ensure!(bad == wrong, "{mode}: a stranger's certificate: {bad}");
    }
    Ok(())
}

#[test]
fn each_listener_has_its_own_way() -> Result<()> {
    let ports = [session_tests::memcached::free_port(), session_tests::memcached::free_port()];
    let listen = format!("mtls:127.0.0.1:{},notls:127.0.0.1:{}", ports[0], ports[1]);
    let bed = Bed::new("", &["-l", &listen])?;
    ensure!(bed.client()?.command("version")?.starts_with("VERSION"), "-Z alone");
    let mut plain = Client::connect(Ipv4Addr::LOCALHOST.into(), ports[1])?;
    ensure!(plain.command("version")?.starts_with("VERSION"), "notls:");
    let settings = plain.stats("settings")?;
    ensure!(settings["ssl_enabled"] == "yes" && settings["ssl_verify_mode"] == "0", "{settings:?}");
    ensure!(settings["ssl_chain_cert"].ends_with("server.crt"), "{settings:?}");
    let asked = |terms: Terms| terms.connect(ports[0]).ok()?.command("version").ok();
    ensure!(asked(Terms::new(&bed.authority, None)?).is_none(), "mtls: without a certificate");
    let own = bed.authority.vouch("client")?;
    ensure!(asked(Terms::new(&bed.authority, Some(&own))?).is_some(), "mtls: with one");
    Ok(())
}

#[test]
fn a_hangup_signal_or_a_command_reads_the_certificates_again() -> Result<()> {
    let bed = Bed::new("", &[])?;
    let mut greeted = bed.client()?;
    let directory = bed.setup.scratch().path().to_owned();
    let asked = Authority::new()?;
    asked.vouch("localhost")?.write(&directory, "server")?;
    ensure!(greeted.command("refresh_certs")? == "OK", "refresh_certs");
    let terms = Terms::new(&asked, None)?;
    wait::until("the certificate asked for", || terms.connect(bed.setup.port()).ok().map(drop));
    let other = Authority::new()?;
    other.vouch("localhost")?.write(&directory, "server")?;
    bed.process.signal(Signal::SIGHUP);
    let terms = Terms::new(&other, None)?;
    wait::until("the new certificate", || terms.connect(bed.setup.port()).ok().map(drop));
    ensure!(bed.client().is_err(), "the old certificate");
    ensure!(greeted.command("version")?.starts_with("VERSION"), "who was greeted is cut off");
    // A key that does not fit the certificate changes nothing.
    fs::write(directory.join("server.key"), bed.authority.vouch("localhost")?.key)?;
    bed.process.signal(Signal::SIGHUP);
    wait::until("a word of it in the log", || {
        bed.process.log().contains("the certificates stay as they were").then_some(())
    });
    ensure!(terms.connect(bed.setup.port()).is_ok(), "after a bad key");
    Ok(())
}

#[test]
fn a_client_that_does_not_read_is_bounded_and_closed() -> Result<()> {
    let bed = Bed::new(",ssl_min_version=3,ssl_session_cache", &["--write-timeout=1"])?;
    let mut client = bed.client()?;
    client.send(b"set large 0 0 500000\r\n")?;
    client.send(&vec![b'v'; 500_000])?;
    ensure!(client.command("")? == "STORED", "set");
    client.send(&b"get large\r\n".repeat(100))?;
    std::thread::sleep(Duration::from_millis(500));
    let pid = bed.process.pid();
    let kept = bed.stat("read_buf_bytes")?;
    ensure!((1..2_000_000).contains(&kept), "{kept} bytes are kept by a client of {pid}");
    wait::until("nothing that is kept", || (bed.stat("read_buf_bytes").ok()? == 0).then_some(()));
    let mut total = 0;
    while let Ok(bytes) = client.exactly(1000) {
        total += bytes.len();
    }
    ensure!(total < 100 * 500_000, "all {total} bytes came");
    ensure!(bed.stat("ssl_new_sessions")? > 0, "no session was counted");
    Ok(())
}

#[test]
fn files_that_cannot_be_used_are_refused_at_the_start() -> Result<()> {
    let authority = Authority::new()?;
    let setup = Setup::loopback()?;
    let directory = setup.scratch().path().to_owned();
    let (chain, key) = authority.vouch("localhost")?.write(&directory, "one")?;
    let (_, other) = authority.vouch("localhost")?.write(&directory, "two")?;
    let none = directory.join("none");
    for (chain, key, word) in [
        (&none, &key, "ssl_chain_cert"),
        (&chain, &none, "ssl_key"),
        (&key, &key, "ssl_chain_cert"),
        (&chain, &chain, "ssl_key"),
        (&chain, &other, "certificate and key"),
    ] {
        let options = format!("ssl_chain_cert={},ssl_key={}", chain.display(), key.display());
        let output = setup.command().args(["-Z", "-o", &options]).output().context("sessiond")?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1), "{options}: {:?} {text}", output.status);
        ensure!(text.contains(word), "{options}: {text}");
    }
    Ok(())
}
