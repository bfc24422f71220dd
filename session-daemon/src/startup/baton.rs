//! What one program passes on to the next in the parent's process: the descriptors and a few
//! facts. It owns their form and their way through an exec.
//!
//! They wait in a socket pair whose reading end is the standard input of the next program, so that
//! every other descriptor can be closed by the exec. A program that dies before it has read them
//! closes them all, and the serving process ends with its link.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use caps::{CapSet, CapsHashSet};
use nix::sys::signal::{SigSet, Signal};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::link::{LINK_VERSION, Lent, SOCKETS_PER_FRAME_MAX, receive, send};
use crate::store::LAYOUT_VERSION;
use crate::sys;

/// Version of what is passed on.
const BATON_VERSION: u32 = 1;

/// Names the process that takes over: itself, which keeps its pid over an exec. What others
/// inherit of it means nothing to them.
const VARIABLE: &str = "SESSIOND_TAKES_OVER";

/// What a descriptor is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Thing {
    /// The parent's end of the pair to the serving process.
    Link,
    /// The listening control socket.
    Control,
    /// A lock with its path.
    Lock(PathBuf),
    /// The lock of the guard's list.
    GuardLock,
    /// What the serving process serves from.
    Lent(Lent),
    /// Where the metrics are served.
    Metrics {
        /// Whether it is a unix socket.
        unix: bool,
    },
    /// Who asked for the upgrade.
    Asker,
    /// The program that ran before, to go back to.
    Before,
    /// The overlay of a daemon that has no file for it.
    Overlay,
    /// The list of the configuration as it is in force, to go back to.
    Base,
}

/// The facts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    version: u32,
    link_version: u32,
    layout_version: u32,
    /// Where the words of the command line were said.
    pub(super) directory: PathBuf,
    /// The serving process; none if it has given everything up.
    pub(super) child: Option<u32>,
    /// Why the program that should have taken over has not.
    pub(super) failed: Option<String>,
    /// Addresses served over TCP.
    pub(super) addresses: Vec<SocketAddr>,
    /// Addresses served over UDP.
    pub(super) datagram_addresses: Vec<SocketAddr>,
    /// Path of the unix socket.
    pub(super) unix: Option<PathBuf>,
    /// Path of the control socket.
    pub(super) control: Option<PathBuf>,
    /// Whether the store is in the kernel plane's region.
    #[serde(default)]
    pub(super) in_kernel: bool,
    /// Descriptors that follow.
    count: usize,
}

/// All that is passed on.
#[derive(Debug)]
pub(super) struct Baton {
    pub(super) facts: Facts,
    pub(super) things: Vec<(Thing, OwnedFd)>,
}

impl Facts {
    /// The facts of a daemon that runs.
    pub(super) fn new(directory: PathBuf, child: u32) -> Self {
        Self {
            version: BATON_VERSION,
            link_version: LINK_VERSION,
            layout_version: LAYOUT_VERSION,
            directory,
            child: Some(child),
            failed: None,
            addresses: Vec::new(),
            datagram_addresses: Vec::new(),
            unix: None,
            control: None,
            in_kernel: false,
            count: 0,
        }
    }

    /// Whether this program can go on where that one stops.
    ///
    /// # Errors
    /// What does not fit, and what to do.
    pub(super) fn check(&self) -> Result<()> {
        ensure!(
            self.version == BATON_VERSION && self.link_version == LINK_VERSION,
            "the running sessiond cannot be upgraded to this one without a stop: restart it"
        );
        ensure!(
            self.layout_version == LAYOUT_VERSION,
            "its store has layout version {LAYOUT_VERSION}, the running one's has {}: no item would \
             be kept; stop the daemon and start it again if that is meant",
            self.layout_version
        );
        Ok(())
    }

    /// Whether the store stays where it is.
    ///
    /// # Errors
    /// It would have to move.
    pub(super) fn check_store(&self, config: &Config) -> Result<()> {
        ensure!(
            self.in_kernel == config.kernel_plane.is_some(),
            "an upgrade does not move the store into the kernel plane's memory or out of it; \
             restart sessiond to change --kernel-plane"
        );
        Ok(())
    }
}

impl Baton {
    /// What the program before has passed on to this process, if one has.
    ///
    /// # Errors
    /// It did, and not all of it is there.
    pub(super) fn taken() -> Result<Option<Self>> {
        let own = std::process::id().to_string();
        if std::env::var_os(VARIABLE).is_none_or(|value| value != OsString::from(&own)) {
            return Ok(None);
        }
        let stdin = io::stdin();
        if rustix::net::sockopt::socket_type(&stdin).is_err() {
            return Ok(None);
        }
        let stream = UnixStream::from(stdin.as_fd().try_clone_to_owned()?);
        rustix::stdio::dup2_stdin(&File::open("/dev/null").context("opening /dev/null")?)?;
        let facts: Option<(Facts, _)> = receive(&stream).context("taking over")?;
        let (facts, _) = facts.context("taking over: nothing was passed on")?;
        let mut things = Vec::new();
        while things.len() < facts.count {
            let part: Option<(Vec<Thing>, Vec<OwnedFd>)> =
                receive(&stream).context("taking over")?;
            let (kinds, fds) = part.context("taking over: something was lost on the way")?;
            ensure!(kinds.len() == fds.len() && !kinds.is_empty(), "descriptors were lost");
            things.extend(kinds.into_iter().zip(fds));
        }
        Ok(Some(Self { facts, things }))
    }

    /// Copies of the descriptors that `wanted` picks.
    pub(super) fn copies<T>(
        &self,
        wanted: impl Fn(&Thing) -> Option<T>,
    ) -> io::Result<Vec<(T, OwnedFd)>> {
        let picked = self.things.iter().filter_map(|(thing, fd)| Some((wanted(thing)?, fd)));
        picked.map(|(thing, fd)| Ok((thing, fd.try_clone()?))).collect()
    }

    /// A copy of the one descriptor of this kind, if it is there.
    pub(super) fn copy(&self, kind: &Thing) -> io::Result<Option<OwnedFd>> {
        let found = self.copies(|thing| (thing == kind).then_some(()))?.pop();
        Ok(found.map(|((), fd)| fd))
    }

    /// Paths of the locks.
    pub(super) fn locks(&self) -> Vec<PathBuf> {
        let paths = self.things.iter().filter_map(|(thing, _)| match thing {
            Thing::Lock(path) => Some(path.clone()),
            _ => None,
        });
        paths.collect()
    }

    /// Makes `program` the program of this process, with the same words. Returns only if that
    /// cannot be done; then standard input is gone, and nothing else has changed.
    pub(super) fn pass_on(&mut self, program: &Path) -> anyhow::Error {
        match self.try_pass_on(program) {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    fn try_pass_on(&mut self, program: &Path) -> Result<std::convert::Infallible> {
        self.facts.count = self.things.len();
        let (ours, theirs) = UnixStream::pair().context("making a socket pair")?;
        // Nobody reads before the exec: what does not fit is an error, not a wait.
        ours.set_nonblocking(true)?;
        send(&ours, &self.facts, &[]).context("passing on")?;
        for part in self.things.chunks(SOCKETS_PER_FRAME_MAX) {
            let (kinds, fds): (Vec<&Thing>, Vec<BorrowedFd<'_>>) =
                part.iter().map(|(thing, fd)| (thing, fd.as_fd())).unzip();
            send(&ours, &kinds, &fds).context("passing on")?;
        }
        let mut words = std::env::args_os();
        let mut command = Command::new(program);
        if let Some(name) = words.next() {
            command.arg0(name);
        }
        command.args(words).env(VARIABLE, std::process::id().to_string());
        command.stdin(Stdio::from(OwnedFd::from(theirs)));
        sys::close_all_on_exec().context("closing what must not be passed on")?;
        // Until the next program listens to them, signals wait.
        signals().thread_block().context("blocking signals")?;
        let ambient = keep_capabilities();
        let error = command.exec();
        if ambient {
            // A failure leaves what this process has in any case.
            let _ = caps::clear(None, CapSet::Ambient);
        }
        let _ = signals().thread_unblock();
        // The command has taken standard input's number, whether or not it came to the exec.
        let null = File::open("/dev/null").context("opening /dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        Err(error).with_context(|| format!("executing {}", program.display()))
    }
}

/// Lets the signals through that waited since the program before stopped listening to them.
pub(super) fn hear_signals() -> Result<()> {
    signals().thread_unblock().context("unblocking signals")
}

fn signals() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2]
        .into_iter()
        .collect()
}

/// Root's capabilities pass an exec by the inheritable set; anybody else's need the ambient one.
fn keep_capabilities() -> bool {
    if rustix::process::geteuid().is_root() {
        return false;
    }
    let read = |set| caps::read(None, set).unwrap_or_default();
    let kept: CapsHashSet =
        read(CapSet::Inheritable).intersection(&read(CapSet::Permitted)).copied().collect();
    caps::set(None, CapSet::Ambient, &kept).is_ok()
}

/// A descriptor with some text in it.
pub(super) fn text_file(text: &str) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("session-baton", MemfdFlags::CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    Ok(file.into())
}

/// The text in such a descriptor.
pub(super) fn text_of(fd: OwnedFd) -> io::Result<Vec<u8>> {
    let (mut file, mut text) = (File::from(fd), Vec::new());
    file.rewind()?;
    file.read_to_end(&mut text)?;
    Ok(text)
}
