//! A process that only holds a guard: it attaches, watches, and does what its standard input
//! says. Tests kill it, run two of it, and take its capabilities away.
#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use session_daemon::allowlist::{Action, Entry, Origin};
use session_daemon::guard::interfaces::Interfaces;
use session_daemon::guard::lists::Protocol;
use session_daemon::guard::status::GuardStatus;
use session_daemon::guard::{Destination, GuardConfig, ModeChoice, Refuse};

use crate::netns::Namespace;
use crate::stopwatch::Stopwatch;
use crate::wait::patience;

/// What the process is to hold: its only argument, as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Setup {
    /// Where the bpffs is or shall be.
    pub bpffs: PathBuf,
    /// Name of the list.
    pub list: String,
    /// The list.
    pub entries: Vec<Entry>,
    /// The guarded ports.
    pub endpoints: Vec<(Protocol, u16)>,
    /// Where to stand.
    pub interfaces: Interfaces,
    /// Which modes may be used.
    pub mode: ModeChoice,
    /// Count only.
    pub audit: bool,
    /// Which destinations are judged.
    pub destination: Destination,
    /// What refused sources are told.
    pub refuse: Refuse,
}

impl Setup {
    /// Guards TCP and UDP port 11211 on every interface for `allowed` (comma-separated).
    #[must_use]
    pub fn new(bpffs: &Path, allowed: &str) -> Self {
        Self {
            bpffs: bpffs.to_owned(),
            list: "default".to_owned(),
            entries: entries(allowed),
            endpoints: vec![(Protocol::Tcp, 11211), (Protocol::Udp, 11211)],
            interfaces: Interfaces::All,
            mode: ModeChoice::Auto,
            audit: false,
            destination: Destination::Local,
            refuse: Refuse::Drop,
        }
    }

    /// The guard's own configuration.
    #[must_use]
    pub fn config(&self) -> GuardConfig {
        GuardConfig {
            interfaces: self.interfaces.clone(),
            mode: self.mode,
            endpoints: self.endpoints.clone(),
            bpffs: self.bpffs.clone(),
            destination: self.destination,
            audit: self.audit,
            refuse: self.refuse,
            list: self.list.clone(),
        }
    }
}

/// Allow entries for comma-separated prefixes; none for the empty text.
///
/// # Panics
/// When a prefix cannot be read.
#[must_use]
pub fn entries(prefixes: &str) -> Vec<Entry> {
    if prefixes.is_empty() {
        return Vec::new();
    }
    let prefixes = session_daemon::allowlist::parse::parse_prefixes(prefixes);
    let prefixes = prefixes.expect("the test wrote a readable list").into_iter();
    prefixes.map(|prefix| Entry::new(prefix, Action::Allow, Origin::Config)).collect()
}

/// A line to the process.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Its state.
    Status,
    /// A whole new list.
    Replace(Vec<Entry>),
    /// One more entry.
    Insert(Entry),
    /// One entry less.
    Remove(ipnet::IpNet),
}

/// A line from the process.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// The guard stands, or a request is done: the state then.
    Status(Box<GuardStatus>),
    /// The guard does not stand, or a request failed: why.
    Error(String),
    /// The guard noticed something.
    Event(String),
}

/// The running process, killed when it is dropped.
#[derive(Debug)]
pub struct Holder {
    child: Child,
    input: ChildStdin,
    replies: Receiver<Reply>,
    events: Vec<String>,
}

impl Holder {
    /// Starts the process and waits until its guard stands.
    ///
    /// # Errors
    /// With the guard's own message.
    pub fn start(namespace: &Namespace, setup: &Setup) -> Result<(Self, GuardStatus)> {
        Self::start_command(Command::new(program()), namespace, setup)
    }

    /// As [`Holder::start`], by a command that ends in the program, such as `setpriv`.
    ///
    /// # Errors
    /// With the guard's own message.
    pub fn start_command(
        mut command: Command,
        namespace: &Namespace,
        setup: &Setup,
    ) -> Result<(Self, GuardStatus)> {
        command.arg(serde_json::to_string(setup)?);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = namespace.spawn(&mut command)?;
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, replies) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let reply = serde_json::from_str(&line).unwrap_or(Reply::Error(line));
                if sender.send(reply).is_err() {
                    return;
                }
            }
        });
        let mut holder = Self { child, input, replies, events: Vec::new() };
        let status = holder.answer()?;
        Ok((holder, status))
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// For what the process promises to do soon.
    #[must_use]
    pub fn stopwatch(&self) -> Stopwatch {
        Stopwatch::start(self.pid())
    }

    /// Asks, and waits for the answer; events on the way are kept.
    ///
    /// # Errors
    /// With the guard's own message.
    ///
    /// # Panics
    /// When the process has ended.
    pub fn ask(&mut self, request: &Request) -> Result<GuardStatus> {
        let line = serde_json::to_string(request)?;
        writeln!(self.input, "{line}").expect("the holder reads its input");
        self.answer()
    }

    /// Its state.
    ///
    /// # Panics
    /// When the process has ended.
    pub fn status(&mut self) -> GuardStatus {
        self.ask(&Request::Status).expect("asking for the state does not fail")
    }

    /// Waits for an event whose text holds `words`, and returns how long that took, as a
    /// [`Stopwatch`] has it.
    ///
    /// # Panics
    /// When it does not come; with those that came.
    pub fn event(&mut self, words: &str) -> Duration {
        let watch = self.stopwatch();
        loop {
            if let Some(idx) = self.events.iter().position(|event| event.contains(words)) {
                self.events.remove(idx);
                return watch.elapsed();
            }
            match self.replies.recv_timeout(patience()) {
                Ok(Reply::Event(event)) => self.events.push(event),
                other => panic!("no event `{words}` but {other:?}; events: {:?}", self.events),
            }
        }
    }

    /// Takes the events that have come so far.
    pub fn events(&mut self) -> Vec<String> {
        while let Ok(reply) = self.replies.try_recv() {
            if let Reply::Event(event) = reply {
                self.events.push(event);
            }
        }
        std::mem::take(&mut self.events)
    }

    /// Sends the process a signal.
    ///
    /// # Panics
    /// When it has ended.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("pids are small");
        kill(Pid::from_raw(pid), signal).expect("it runs");
    }

    /// Kills the process (`SIGKILL`) and waits for it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn answer(&mut self) -> Result<GuardStatus> {
        loop {
            match self.replies.recv_timeout(patience()) {
                Ok(Reply::Status(status)) => return Ok(*status),
                Ok(Reply::Error(message)) => bail!("{message}"),
                Ok(Reply::Event(event)) => self.events.push(event),
                Err(RecvTimeoutError::Disconnected) => bail!("the holder ended"),
                Err(RecvTimeoutError::Timeout) => bail!("the holder does not answer"),
            }
        }
    }
}

/// Path of the `guard_holder` binary, which cargo builds along with this package's tests.
#[must_use]
pub fn program() -> PathBuf {
    let test = std::env::current_exe().expect("/proc/self/exe is readable");
    let directory = test.ancestors().find(|path| path.ends_with("deps")).and_then(Path::parent);
    directory.expect("a test runs from target/PROFILE/deps").join("guard_holder")
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.kill();
    }
}
