//! Network namespaces, and threads and commands inside them.
//!
//! Only the network namespace is entered: `ip netns exec` would also mount a fresh `/sys` and
//! thereby hide the bpffs.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Write;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};

use crate::leftovers;

/// A network namespace of this process, removed with the processes in it when it is dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    /// A fresh namespace with its loopback up and IPv6 duplicate address detection off.
    ///
    /// # Errors
    /// Without root, or without iproute2.
    pub fn new(role: &str) -> Result<Self> {
        leftovers::reap_once();
        let name = leftovers::fresh_name(role);
        run(Command::new("ip").args(["netns", "add", &name]), None)?;
        let namespace = match File::open(Path::new(leftovers::NETNS_DIRECTORY).join(&name)) {
            Ok(file) => Self { name, file },
            Err(error) => {
                leftovers::remove_namespace(&name);
                return Err(error).context("opening the new namespace");
            }
        };
        for setting in ["all", "default"] {
            namespace.sysctl(&format!("net/ipv6/conf/{setting}/accept_dad"), "0")?;
        }
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The name, as `ip netns` and `ip -n` take it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace, as `nsenter --net=` takes it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(leftovers::NETNS_DIRECTORY).join(&self.name)
    }

    /// Runs `work` on a thread of its own inside the namespace; sockets made there stay there.
    ///
    /// # Panics
    /// When `work` does, or when the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        // The thread carries the caller's name, so that a skip inside it names the test.
        let name = thread::current().name().unwrap_or("netns").to_owned();
        thread::scope(|scope| {
            let entered = thread::Builder::new().name(name).spawn_scoped(scope, || {
                setns(&self.file, CloneFlags::CLONE_NEWNET).expect("needs CAP_SYS_ADMIN");
                work()
            });
            let joined = entered.expect("the machine is out of threads").join();
            joined.unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Runs one `ip` command in the namespace, given as one line: `ip("link set eth0 down")`.
    ///
    /// # Errors
    /// With what `ip` wrote, when it fails.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        run(Command::new("ip").args(["-n", &self.name]).args(arguments.split_whitespace()), None)
    }

    /// Runs several `ip` commands, one a line, by one process.
    ///
    /// # Errors
    /// With what `ip` wrote, when one of them fails; those before it are done.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        let mut ip = Command::new("ip");
        ip.args(["-n", &self.name, "-batch", "-"]);
        run(&mut ip, Some(lines)).map(drop)
    }

    /// Writes a setting of the namespace below `/proc/sys`.
    ///
    /// # Errors
    /// When the kernel does not have it or refuses the value.
    pub fn sysctl(&self, setting: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(setting);
        self.run(|| std::fs::write(&path, value))
            .with_context(|| format!("setting {setting} to {value}"))
    }

    /// Starts a command in the namespace; it sees the machine's own `/sys`, with its bpffs.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let program = command.get_program().to_owned();
        self.run(|| command.spawn()).with_context(|| format!("starting {program:?}"))
    }

    /// Runs a command in the namespace to its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn output(&self, command: &mut Command) -> Result<Output> {
        let program = command.get_program().to_owned();
        command.stdin(Stdio::null());
        self.run(|| command.output()).with_context(|| format!("starting {program:?}"))
    }

    /// Index of an interface of the namespace.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn ifindex(&self, interface: &str) -> Result<u32> {
        let links = self.ip("-json link show")?;
        let links: serde_json::Value = serde_json::from_str(&links)?;
        let found = links.as_array().into_iter().flatten().find(|l| l["ifname"] == interface);
        let Some(link) = found else { bail!("{} has no interface {interface}", self.name) };
        u32::try_from(link["ifindex"].as_u64().context("a link without index")?)
            .context("an index beyond 32 bits")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        leftovers::remove_namespace(&self.name);
    }
}

fn run(command: &mut Command, input: Option<&str>) -> Result<String> {
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", stderr.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
