//! A machine of its own to install packages on: this one's file system with a layer on top that
//! takes every change, an empty /run, /dev/shm and bpffs. Nothing outside is changed.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

use crate::netns::Namespace;
use crate::scratch::Scratch;

/// Room for what is changed, megabytes.
const ROOM_MB: u32 = 512;

/// The machine. Its mounts go when this is dropped.
#[derive(Debug)]
pub struct Sandbox {
    root: PathBuf,
    _scratch: Scratch,
}

impl Sandbox {
    /// A machine that is as this one at first.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN, or on a kernel without overlayfs.
    pub fn new() -> Result<Self> {
        let scratch = Scratch::new("sandbox")?;
        let layer = scratch.mount_tmpfs(ROOM_MB)?;
        let root = scratch.join("root");
        for directory in [&layer.join("upper"), &layer.join("work"), &root] {
            fs::create_dir(directory)?;
        }
        let options = format!(
            "lowerdir=/,upperdir={},workdir={}",
            layer.join("upper").display(),
            layer.join("work").display()
        );
        let sandbox = Self { root, _scratch: scratch };
        sandbox.mount("overlay", "", &options)?;
        sandbox.mount("proc", "proc", "")?;
        sandbox.mount("sysfs", "sys", "")?;
        sandbox.mount("bpf", "sys/fs/bpf", "mode=0700")?;
        sandbox.mount("tmpfs", "run", "mode=0755")?;
        sandbox.mount("tmpfs", "dev", "mode=0755")?;
        sandbox.mount_at("tmpfs", "dev/shm", "mode=1777,size=256m")?;
        for device in ["null", "zero", "random", "urandom"] {
            fs::write(sandbox.path(&format!("dev/{device}")), "")?;
            let (from, to) =
                (Path::new("/dev").join(device), sandbox.path(&format!("dev/{device}")));
            let none: Option<&str> = None;
            mount(Some(&from), &to, none, MsFlags::MS_BIND, none)?;
        }
        Ok(sandbox)
    }

    /// Where a path of the machine is for everybody else; without its leading slash.
    #[must_use]
    pub fn path(&self, place: &str) -> PathBuf {
        self.root.join(place.trim_start_matches('/'))
    }

    /// A command that runs on the machine.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("chroot");
        command.arg(&self.root).arg(program);
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", "/root").env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// Runs a line of shell on the machine, with the network of `namespace`.
    ///
    /// # Errors
    /// When no shell can be started.
    pub fn shell(&self, namespace: &Namespace, line: &str) -> Result<Output> {
        namespace.output(self.command("/bin/sh").args(["-ec", line]))
    }

    fn mount_at(&self, kind: &str, place: &str, options: &str) -> Result<()> {
        fs::create_dir_all(self.path(place))?;
        self.mount(kind, place, options)
    }

    fn mount(&self, kind: &str, place: &str, options: &str) -> Result<()> {
        let target = if place.is_empty() { self.root.clone() } else { self.path(place) };
        let options = (!options.is_empty()).then_some(options);
        mount(Some(kind), &target, Some(kind), MsFlags::empty(), options)
            .with_context(|| format!("mounting {kind} at {}", target.display()))
    }
}
