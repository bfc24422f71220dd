//! What a refused host sees when the guard answers: connects that fail at once, connections that
//! end at the next segment, in each mode.
#![forbid(unsafe_code)]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::EbpfLoader;
use session_daemon::allowlist::host;
use session_daemon::guard::{Mode, ModeChoice, Refuse};
use session_tests::attach::{self, Attachment};
use session_tests::flood;
use session_tests::guard_bed::{Bed, PORT, Sockets, interface};
use session_tests::guard_holder::{Request, Setup};
use session_tests::require_root;
use session_tests::topology::Host;

/// Longer than an answer takes on a busy machine, shorter than the second try of a SYN takes to
/// be the third.
const SOON: Duration = Duration::from_secs(5);

/// What a veth pair's native mode asks for: a program at the other end, which takes what comes
/// back.
fn pass_at_the_switch(bed: &Bed) -> Result<(aya::Ebpf, Attachment)> {
    bed.topology.switch().run(|| {
        let mut ebpf = EbpfLoader::new().load_file(flood::object_path())?;
        let attached = attach::attach(&mut ebpf, "bare_pass", "port1", attach::Mode::Native)?;
        Ok((ebpf, attached))
    })
}

fn setup(bed: &Bed, mode: ModeChoice, refuse: Refuse) -> Setup {
    Setup { mode, refuse, ..bed.setup() }
}

/// How a connect of `host` fails, and how soon.
fn failure(host: &Host, address: IpAddr) -> Result<(std::io::Error, Duration)> {
    let started = Instant::now();
    let outcome = host.run(|| TcpStream::connect_timeout(&(address, PORT).into(), SOON));
    let error = outcome.err().context("a stranger was let in")?;
    Ok((error, started.elapsed()))
}

const MODES: [(ModeChoice, &[Mode]); 3] = [
    (ModeChoice::Native, &[Mode::NativeFrags, Mode::Native]),
    (ModeChoice::Tcx, &[Mode::Tcx]),
    (ModeChoice::Generic, &[Mode::Generic]),
];

fn each_mode(
    refuse: Refuse,
    check: impl Fn(&Bed, &Sockets, ModeChoice) -> Result<()>,
) -> Result<()> {
    for (choice, modes) in MODES {
        let bed = Bed::new(1)?;
        let _pass = pass_at_the_switch(&bed)?;
        let (holder, status) = bed.start(&setup(&bed, choice, refuse))?;
        let mode = interface(&status, "eth0").mode;
        ensure!(mode.is_some_and(|mode| modes.contains(&mode)), "{choice:?}: {mode:?}");
        let sockets = bed.listen()?;
        check(&bed, &sockets, choice).with_context(|| format!("{choice:?}"))?;
        drop(holder);
    }
    Ok(())
}

#[test]
fn reset_makes_connects_fail_at_once() -> Result<()> {
    require_root!();
    each_mode(Refuse::Reset, |bed, sockets, _| {
        let stranger = &bed.topology.stranger;
        for address in bed.topology.cache.addresses() {
            let (error, after) = failure(stranger, address)?;
            ensure!(error.kind() == ErrorKind::ConnectionRefused, "{address}: {error}");
            ensure!(after < SOON, "{address}: {after:?}");
        }
        for host in &bed.topology.allowed {
            ensure!(sockets.reached_by(host).len() == 4, "{} is served", host.role);
        }
        Ok(())
    })
}

/// A message that fits is ICMP; IPv6 and a SYN whose checksum the device would complete get a
/// reset. Either way the client knows at once.
#[test]
fn icmp_makes_connects_fail_at_once() -> Result<()> {
    require_root!();
    each_mode(Refuse::Icmp, |bed, _, choice| {
        let stranger = &bed.topology.stranger;
        let [v4, v6] = bed.topology.cache.addresses();
        let (error, _) = failure(stranger, v4)?;
        let told = match choice {
            // The stranger's kernel leaves the checksum to its device, and veth to nobody.
            ModeChoice::Tcx => ErrorKind::ConnectionRefused,
            _ => ErrorKind::HostUnreachable,
        };
        ensure!(error.kind() == told, "{v4}: {error}");
        let (error, _) = failure(stranger, v6)?;
        ensure!(error.kind() == ErrorKind::ConnectionRefused, "{v6}: {error}");
        Ok(())
    })
}

#[test]
fn a_removed_source_is_told_at_its_next_segment() -> Result<()> {
    require_root!();
    for (choice, _) in MODES {
        let bed = Bed::new(1)?;
        let _pass = pass_at_the_switch(&bed)?;
        let (mut holder, _) = bed.start(&setup(&bed, choice, Refuse::Reset))?;
        let _sockets = bed.listen()?;
        let web = &bed.topology.allowed[0];
        for (address, own) in bed.topology.cache.addresses().into_iter().zip(web.addresses()) {
            let target = (address, PORT).into();
            let mut stream = web.run(|| TcpStream::connect_timeout(&target, SOON))?;
            holder.ask(&Request::Remove(host(own)))?;
            stream.write_all(b"get foo\r\n")?;
            stream.set_read_timeout(Some(SOON))?;
            let error = stream.read(&mut [0; 16]).err().context("nobody answers")?;
            ensure!(error.kind() == ErrorKind::ConnectionReset, "{choice:?} {address}: {error}");
        }
    }
    Ok(())
}
