//! The unix socket: its mode and owner, what it serves, and that it goes with the daemon.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nix::unistd::User;
use session_tests::sessiond::Setup;
use session_tests::skip::is_root;

fn ask(stream: &UnixStream, line: &str) -> Result<String> {
    let mut writer = stream;
    writer.write_all(line.as_bytes())?;
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply)?;
    Ok(reply)
}

#[test]
fn the_socket_has_its_mode_and_owner_and_goes_with_the_daemon() -> Result<()> {
    for (mask, mode) in [(None, 0o700), (Some("770"), 0o770), (Some("0666"), 0o666)] {
        let setup = Setup::loopback()?;
        let path = setup.scratch().join("cache.sock");
        let setup = setup.arg("-s").arg(path.as_os_str());
        let setup = mask.into_iter().fold(setup, |setup, mask| setup.args(["-a", mask]));
        let mut process = setup.spawn(None)?;
        let stream = process.until("connection", || UnixStream::connect(&path).ok());
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        ensure!(ask(&stream, "set a 0 0 1\r\nx\r\n")? == "STORED\r\n", "{mask:?}: set");
        ensure!(ask(&stream, "incr none 1\r\n")? == "NOT_FOUND\r\n", "{mask:?}: incr");
        let found = fs::metadata(&path)?;
        let found_mode = found.permissions().mode() & 0o7777;
        ensure!(found_mode == mode, "{mask:?}: {found_mode:o}");
        if is_root() {
            let nobody = User::from_name("nobody")?.context("no user nobody")?;
            ensure!(found.uid() == nobody.uid.as_raw(), "{mask:?}: owner {}", found.uid());
        }
        let tcp = TcpStream::connect((Ipv4Addr::LOCALHOST, setup.port()));
        ensure!(tcp.is_err(), "{mask:?}: -s leaves the network on");
        process.signal(Signal::SIGTERM);
        process.wait(Duration::from_secs(10)).context("it does not end")?;
        ensure!(!path.exists(), "{mask:?}: the socket stays behind");
    }
    Ok(())
}
