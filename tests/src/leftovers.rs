//! Names for what a run makes on the machine, and the removal of what a killed run left behind.
//!
//! A name is `PREFIX-PID-COUNTER-ROLE`; what carries the pid of a process that is gone is ours to
//! remove, and nothing else ever is.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// First part of every name.
pub const PREFIX: &str = "session";

/// Where `ip netns add` keeps its handles.
pub const NETNS_DIRECTORY: &str = "/run/netns";

/// A name that no other live process uses.
pub fn fresh_name(role: &str) -> String {
    // Relaxed: only the count itself matters, nothing is published with it.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let counter = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}-{}-{counter}-{role}", process::id())
}

/// Removes what runs of dead processes left, once a process.
pub fn reap_once() {
    static ONCE: Once = Once::new();
    ONCE.call_once(reap);
}

/// Removes namespaces (with the processes in them), mounts and directories of dead processes.
pub fn reap() {
    for path in orphans(Path::new(NETNS_DIRECTORY)) {
        if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
            remove_namespace(name);
        }
    }
    for path in orphans(&std::env::temp_dir()) {
        remove_directory(&path);
    }
}

/// Kills the processes in the namespace and removes it; errors are told, not returned, because
/// this runs on the way out of a failing test too.
pub fn remove_namespace(name: &str) {
    if let Ok(output) = Command::new("ip").args(["netns", "pids", name]).output() {
        for pid in String::from_utf8_lossy(&output.stdout).lines() {
            if let Ok(pid) = pid.trim().parse() {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
    match Command::new("ip").args(["netns", "delete", name]).output() {
        Ok(output)
            if !output.status.success() && Path::new(NETNS_DIRECTORY).join(name).exists() =>
        {
            eprintln!("cannot remove {name}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Err(error) => eprintln!("cannot remove {name}: {error}"),
        Ok(_) => {}
    }
}

/// Unmounts what is mounted directly below `path`, then removes it whole.
pub fn remove_directory(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        // EINVAL for what is no mount point. Several daemons may have mounted one over another.
        while umount2(&entry.path(), MntFlags::MNT_DETACH).is_ok() {}
    }
    if let Err(error) = fs::remove_dir_all(path)
        && path.exists()
    {
        eprintln!("cannot remove {}: {error}", path.display());
    }
}

fn orphans(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(is_orphan))
        .collect()
}

/// Whether `name` is one of ours and its process is gone.
fn is_orphan(name: &str) -> bool {
    owner(name).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

/// The pid in one of our names.
fn owner(name: &str) -> Option<u32> {
    let mut parts = name.split('-');
    (parts.next() == Some(PREFIX)).then_some(())?;
    let pid = parts.next()?.parse().ok()?;
    parts.next()?.parse::<u32>().ok()?;
    parts.next().map(|_| pid)
}

#[cfg(test)]
mod tests {
    use super::{fresh_name, is_orphan, owner};

    #[test]
    fn only_whole_names_of_dead_processes_are_orphans() {
        assert!(!is_orphan(&fresh_name("web")), "this process lives");
        // Above the largest pid that a 64-bit kernel gives out.
        assert!(is_orphan("session-4999999-0-web"));
        for foreign in ["session", "session-4999999", "session-x-0-web", "other-4999999-0-web"] {
            assert!(!is_orphan(foreign), "{foreign}");
        }
        assert_eq!(owner("session-12-3-cache"), Some(12));
    }
}
