//! The servers that are compared: started on given processors, with their data in a directory of
//! their own, and killed at the end.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::unistd::{Pid, getsid};
use serde::{Deserialize, Serialize};
use session_tests::memcached::free_port;
use session_tests::process::Process;
use session_tests::wait;

use super::machine;
use super::points::Transport;
use crate::shell;

/// How much both servers are put before other processes of the machine, where that is allowed.
pub(super) const NICE: &str = "-20";

/// How long an answer may take before the server is asked again.
const REPLY_TIMEOUT: Duration = Duration::from_secs(1);

/// Which side of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Side {
    Ours,
    Other,
}

/// An engine of `sessiond`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Io {
    Tokio,
    Uring,
}

impl Io {
    fn flag(self) -> &'static str {
        match self {
            Self::Tokio => "--io=tokio",
            Self::Uring => "--io=uring",
        }
    }
}

/// A program that can be started as a server.
#[derive(Clone, Debug)]
pub(super) struct Program {
    path: PathBuf,
    is_sessiond: bool,
    /// What moves the bytes, where that is asked for.
    io: Option<Io>,
    /// Its own words on its version.
    pub(super) version: String,
}

impl Program {
    /// This tree's `sessiond`, as it was built with optimisation.
    pub(super) fn sessiond() -> Result<Self> {
        Self::sessiond_at(&shell::target_directory().join("release/sessiond"))
    }

    /// A `sessiond` that was built somehow.
    pub(super) fn sessiond_at(path: &Path) -> Result<Self> {
        Self::new(path.to_owned(), true)
    }

    /// The same with another engine than it takes by itself.
    pub(super) fn by(self, io: Option<Io>) -> Self {
        let version = match io {
            Some(io) => format!("{} {}", self.version, io.flag()),
            None => self.version,
        };
        Self { io, version, ..self }
    }

    /// A memcached: Debian's, or the one at the path.
    pub(super) fn memcached(path: Option<&Path>) -> Result<Self> {
        let path = match path {
            Some(path) => path.to_owned(),
            None => shell::find("memcached").context("no memcached: apt-get install memcached")?,
        };
        Self::new(path, false)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn new(path: PathBuf, is_sessiond: bool) -> Result<Self> {
        let output = Command::new(&path).arg("-V").stderr(Stdio::null()).output();
        let output = output.with_context(|| format!("starting {}", path.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.lines().last().unwrap_or_default().trim().to_owned();
        ensure!(!version.is_empty(), "{} -V says nothing", path.display());
        Ok(Self { path, is_sessiond, io: None, version })
    }
}

/// How a server is started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup<'a> {
    pub(super) threads: u32,
    pub(super) memory_mb: u32,
    pub(super) transport: Transport,
    pub(super) cpus: &'a [usize],
}

/// A running server.
#[derive(Debug)]
pub(super) struct Server {
    process: Process,
    /// `session-load`'s arguments for where it is.
    address: Vec<String>,
    _directory: tempfile::TempDir,
}

impl Server {
    /// Starts the server and returns when it answers.
    pub(super) fn start(program: &Program, setup: &Setup<'_>) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("session-bench-").tempdir()?;
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755))?;
        // memcached makes its socket as the user that it becomes; sessiond refuses to keep its
        // state where others can write.
        let open = make(directory.path().join("open"), 0o777)?;
        let own = make(directory.path().join("own"), 0o700)?;
        let port = free_port();
        let socket = open.join("socket");
        let mut command = placed(setup.cpus, !program.is_sessiond);
        command.arg(&program.path);
        command.args(["-t", &setup.threads.to_string(), "-m", &setup.memory_mb.to_string()]);
        if program.is_sessiond {
            if shell::is_root() {
                command.args(["-u", "nobody"]);
            }
            for name in ["control", "state", "bpffs"] {
                command.arg(format!("--{name}={}", own.join(name).display()));
            }
            command.arg("--guard=off");
            command.args(program.io.map(Io::flag));
        }
        let address = match setup.transport {
            Transport::Tcp => {
                command.args(["-l", "127.0.0.1", "-U", "0", "-p", &port.to_string()]);
                vec!["--tcp".to_owned(), format!("127.0.0.1:{port}")]
            }
            Transport::Udp => {
                let (address, port) = (format!("127.0.0.1:{port}"), port.to_string());
                command.args(["-l", "127.0.0.1", "-U", &port, "-p", &port]);
                ["--tcp", &address, "--udp", &address].map(str::to_owned).to_vec()
            }
            Transport::Unix => {
                command.arg("-s").arg(&socket);
                vec!["--unix".to_owned(), socket.display().to_string()]
            }
        };
        let mut process = Process::start(&mut command, None, &directory.path().join("log"))?;
        prefer(&process);
        process.until("answer of the server", || match setup.transport {
            Transport::Tcp | Transport::Udp => {
                let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
                stream.set_read_timeout(Some(REPLY_TIMEOUT)).ok()?;
                answers(stream)
            }
            Transport::Unix => {
                let stream = UnixStream::connect(&socket).ok()?;
                stream.set_read_timeout(Some(REPLY_TIMEOUT)).ok()?;
                answers(stream)
            }
        });
        Ok(Self { process, address, _directory: directory })
    }

    /// `session-load`'s arguments for where the server is.
    pub(super) fn address(&self) -> &[String] {
        &self.address
    }

    /// All processes of the server.
    pub(super) fn pids(&self) -> Result<Vec<u32>> {
        descendants(self.process.pid())
    }

    /// Resident memory of all processes, in bytes, with what they share counted once for each.
    pub(super) fn resident_bytes(&self) -> Result<u64> {
        self.pids()?.iter().map(|&pid| resident_bytes(pid)).sum()
    }
}

/// Whether the server answers. A socket that listens is not enough: the process that serves it
/// may not be there yet.
fn answers(mut stream: impl Read + Write) -> Option<()> {
    stream.write_all(b"version\r\n").ok()?;
    let mut reply = [0; 8];
    stream.read_exact(&mut reply).ok()?;
    (reply == *b"VERSION ").then_some(())
}

fn make(directory: PathBuf, mode: u32) -> Result<PathBuf> {
    fs::create_dir(&directory)?;
    fs::set_permissions(&directory, Permissions::from_mode(mode))?;
    Ok(directory)
}

/// A command that runs on the processors, as nobody if it is said, in a session of its own so that
/// it can be preferred, and killed when this program ends however it ends: its terminal's
/// interrupt reaches its own session alone.
pub(super) fn placed(cpus: &[usize], as_nobody: bool) -> Command {
    let mut command = Command::new("setsid");
    command.args(["setpriv", "--pdeathsig", "KILL"]);
    // A program that drops root by itself would lose the signal by that.
    if as_nobody && shell::is_root() {
        command.args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]);
    }
    command.args(["taskset", "--cpu-list", &machine::list(cpus)]);
    command
}

/// Puts a process of `placed` before the other processes of the machine, where that is allowed.
///
/// The scheduler weighs sessions first where it groups them (`sched_autogroup_enabled`), and
/// processes within a session after that, so both are set.
pub(super) fn prefer(process: &Process) {
    if !shell::is_root() {
        return;
    }
    let pid = process.pid();
    let id = Pid::from_raw(pid.cast_signed());
    // Before it has its session, the words below would reach the one of this program.
    if wait::within(REPLY_TIMEOUT, || (getsid(Some(id)) == Ok(id)).then_some(())).is_none() {
        return;
    }
    // Without the grouping the file is missing, and the other one is enough.
    let _ = fs::write(format!("/proc/{pid}/autogroup"), NICE);
    let mut renice = Command::new("renice");
    renice.args(["-n", NICE, "-p", &pid.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
    let _ = renice.status();
}

/// The process and those that it started, from /proc.
fn descendants(pid: u32) -> Result<Vec<u32>> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(child) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Some(parent) = status_number(child, "PPid:") {
            children.entry(parent as u32).or_default().push(child);
        }
    }
    let (mut all, mut seen, mut next) = (Vec::new(), HashSet::new(), vec![pid]);
    while let Some(pid) = next.pop() {
        if seen.insert(pid) {
            all.push(pid);
            next.extend(children.get(&pid).into_iter().flatten());
        }
    }
    Ok(all)
}

fn resident_bytes(pid: u32) -> Result<u64> {
    let kib = status_number(pid, "VmRSS:").with_context(|| format!("process {pid} ended"))?;
    Ok(kib * 1024)
}

/// A number of /proc/PID/status; none when the process ended.
fn status_number(pid: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}
