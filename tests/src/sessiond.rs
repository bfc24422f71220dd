//! `sessiond` under test, with paths of its own, and `sessionctl` against it.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::binaries;
use crate::client::{Client, REPLY_TIMEOUT};
use crate::memcached::free_port;
use crate::netns::Namespace;
use crate::process::{Process, children};
use crate::scratch::Scratch;

/// memcached's port, which tests use inside their namespaces.
pub const PORT: u16 = 11211;

/// How to start a daemon; the paths stay the same over restarts.
#[derive(Debug)]
pub struct Setup {
    scratch: Scratch,
    bpffs: PathBuf,
    through: Vec<OsString>,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    port: u16,
}

/// Names the engine (`--io`) that every daemon of a test is started with.
const IO_VARIABLE: &str = "SESSION_TEST_IO";

impl Setup {
    /// A daemon for a namespace: port 11211, a bpffs of its own, the guard as `sessiond` has it.
    ///
    /// # Errors
    /// Without root.
    pub fn guarded() -> Result<Self> {
        let scratch = Scratch::new("daemon")?;
        let bpffs = scratch.mount_bpffs()?;
        Ok(Self::of(scratch, bpffs, PORT))
    }

    /// A daemon for the loopback, without the guard: a free port.
    ///
    /// # Errors
    /// When the temporary directory cannot be written.
    pub fn loopback() -> Result<Self> {
        let scratch = Scratch::new("daemon")?;
        let bpffs = scratch.join("bpffs");
        let setup = Self::of(scratch, bpffs, free_port());
        Ok(setup.arg("--guard=off").args(["-l", "127.0.0.1"]))
    }

    fn of(scratch: Scratch, bpffs: PathBuf, port: u16) -> Self {
        let (through, arguments, environment) = (Vec::new(), Vec::new(), Vec::new());
        Self { scratch, bpffs, through, arguments, environment, port }
    }

    /// Has another program start the daemon in its own place, such as `unshare`.
    #[must_use]
    pub fn through(mut self, words: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.through.extend(words.into_iter().map(Into::into));
        self
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// The same paths with other arguments.
    #[must_use]
    pub fn with_only(self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self { arguments: arguments.into_iter().map(Into::into).collect(), ..self }
    }

    /// Sets a variable of the daemon's environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// The port that the daemon serves.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The bpffs of the daemon.
    #[must_use]
    pub fn bpffs(&self) -> &PathBuf {
        &self.bpffs
    }

    /// The directory with the daemon's paths.
    #[must_use]
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Path of the control socket.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.scratch.join("control.sock")
    }

    /// The command line, ready to be changed or started.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut words = self.through.iter().cloned().chain([binaries::sessiond().into()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words);
        command.args(["-p", &self.port.to_string()]);
        command.arg("--control").arg(self.control());
        command.arg("--state").arg(self.scratch.join("overlay.json"));
        command.arg("--bpffs").arg(&self.bpffs);
        if crate::skip::is_root() {
            command.args(["-u", "nobody"]);
        }
        if let Some(engine) = std::env::var_os(IO_VARIABLE) {
            command.arg("--io").arg(engine);
        }
        command.args(&self.arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts the daemon and returns at once, before it serves.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, namespace: Option<&Namespace>) -> Result<Process> {
        Process::start(&mut self.command(), namespace, &self.scratch.join("log"))
    }

    /// Starts the daemon and returns when it answers on the loopback.
    ///
    /// # Errors
    /// When it cannot be started.
    ///
    /// # Panics
    /// With its output, when it ends or does not come up.
    pub fn start<'a>(&'a self, namespace: Option<&'a Namespace>) -> Result<Sessiond<'a>> {
        let mut process = self.spawn(namespace)?;
        process.until("answer of sessiond", || {
            // The kernel accepts before the daemon does: only an answer says that it serves.
            in_namespace(namespace, || {
                let mut client = Client::connect(Ipv4Addr::LOCALHOST.into(), self.port).ok()?;
                client.command("version").ok()
            })
        });
        Ok(Sessiond { setup: self, namespace, process })
    }

    /// Runs `sessionctl` with the daemon's control socket.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn ctl_output(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(binaries::sessionctl());
        command.arg("--control").arg(self.control()).args(arguments);
        command.output().context("starting sessionctl")
    }
}

/// A running daemon, killed on drop.
#[derive(Debug)]
pub struct Sessiond<'a> {
    /// How it was started.
    pub setup: &'a Setup,
    /// The parent process.
    pub process: Process,
    namespace: Option<&'a Namespace>,
}

impl Sessiond<'_> {
    /// A connection over the loopback of the daemon's host.
    ///
    /// # Panics
    /// When the daemon does not accept.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client_at(Ipv4Addr::LOCALHOST.into())
    }

    /// A bare connection over the loopback of this host, for what no client would say.
    ///
    /// # Errors
    /// The daemon does not accept.
    pub fn stream(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.setup.port))?;
        stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
        Ok(stream)
    }

    /// The process that serves: the one child of the one that signals are for.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn serving(&self) -> Result<u32> {
        let children = children(self.process.pid());
        ensure!(children.len() == 1, "one child serves, not {children:?}");
        Ok(children[0])
    }

    /// A connection from the daemon's own host to one of its addresses.
    ///
    /// # Panics
    /// When the daemon does not accept.
    #[must_use]
    pub fn client_at(&self, address: IpAddr) -> Client {
        in_namespace(self.namespace, || Client::connect(address, self.setup.port))
            .expect("the daemon accepts on its own host")
    }

    /// Runs `sessionctl` and returns what it printed.
    ///
    /// # Errors
    /// With what it wrote to standard error, when it fails.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.setup.ctl_output(arguments)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "sessionctl {arguments:?}: {}", stderr.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `sessionctl --json` and returns what it printed.
    ///
    /// # Errors
    /// As [`Sessiond::ctl`], and when it does not print JSON.
    pub fn ctl_json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.ctl(&[arguments, &["--json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// The guard's part of `sessionctl status --json`.
    ///
    /// # Errors
    /// As [`Sessiond::ctl_json`], and when the daemon has no guard.
    pub fn guard(&self) -> Result<Value> {
        let mut status = self.ctl_json(&["status"])?;
        let guard = status["guard"].take();
        ensure!(guard.is_object(), "no guard in {status}");
        Ok(guard)
    }

    /// Packets that the guard has dropped since its maps were made, over all reasons.
    ///
    /// # Errors
    /// As [`Sessiond::guard`].
    pub fn dropped(&self) -> Result<u64> {
        let guard = self.guard()?;
        let reasons = guard["reasons"].as_array().context("no counters")?;
        let dropped = reasons.iter().filter(|one| one["dropped"] == true);
        Ok(dropped.filter_map(|one| one["packets"].as_u64()).sum())
    }

    /// What the guard says about one interface.
    ///
    /// # Errors
    /// As [`Sessiond::guard`], and when it does not know the interface.
    pub fn interface(&self, name: &str) -> Result<Value> {
        let guard = self.guard()?;
        let interfaces = guard["interfaces"].as_array().context("no interfaces")?;
        let found = interfaces.iter().find(|one| one["name"] == name);
        found.cloned().with_context(|| format!("no interface {name} in {guard}"))
    }
}

fn in_namespace<T: Send>(namespace: Option<&Namespace>, work: impl FnOnce() -> T + Send) -> T {
    match namespace {
        Some(namespace) => namespace.run(work),
        None => work(),
    }
}
