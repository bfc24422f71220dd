//! The guard's directory in the bpffs: what keeps it in force when the daemon is gone.
//!
//! It owns paths, the mount, locks and the pinning of objects. It never says what an object means
//! and never trusts one that it finds.
//!
//! ```text
//! BPFFS/session/netns-INODE/vSCHEMA/   0700, locked while anything in it changes
//!     namespace-COOKIE/                the namespace; another one means that all is left over
//!     maps/NAME   programs/NAME   links/IFINDEX
//!     lists/SLOT-NAME/                 one list a daemon, locked while the daemon lives
//! ```
#![forbid(unsafe_code)]

use std::fmt::Write;
use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use caps::Capability;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::mount::MountFlags;
use session_common::guard::SCHEMA;

use crate::capability::with_capability;
use crate::guard::error::GuardError;
use crate::sys;

/// `BPF_FS_MAGIC`.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// Longest wait for another daemon that changes the same guard.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);
const LOCK_RETRY: Duration = Duration::from_millis(2);

/// Subdirectories of the guard's directory.
pub(super) const MAPS: &str = "maps";
pub(super) const PROGRAMS: &str = "programs";
pub(super) const LINKS: &str = "links";
pub(super) const LISTS: &str = "lists";

/// A lock, given back when it is dropped or the process ends.
#[derive(Debug)]
pub(super) struct Lock {
    _directory: OwnedFd,
}

impl Lock {
    /// The lock that another program in this process has taken.
    pub(super) fn taken_before(directory: OwnedFd) -> Self {
        Self { _directory: directory }
    }

    /// Another descriptor of the lock, which is held until both are closed.
    pub(super) fn copy(&self) -> io::Result<OwnedFd> {
        self._directory.try_clone()
    }
}

/// The guard's directory of one network namespace.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    bpffs: PathBuf,
    root: PathBuf,
    cookie: Option<u64>,
}

impl Pins {
    /// The directory of this thread's network namespace; nothing is made yet.
    pub(super) fn locate(bpffs: &Path) -> Result<Self, GuardError> {
        let namespace = std::fs::metadata("/proc/thread-self/ns/net")
            .map_err(|error| GuardError::io("reading /proc/thread-self/ns/net", error))?;
        let socket = rustix::net::socket(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::STREAM,
            None,
        );
        // Kernels before 5.14 do not number namespaces; their inode has to do.
        let cookie = socket.ok().and_then(|socket| sys::namespace_cookie(socket.as_fd()).ok());
        let directory = format!("session/netns-{}/v{SCHEMA}", namespace.ino());
        Ok(Self { bpffs: bpffs.to_owned(), root: bpffs.join(directory), cookie })
    }

    /// Directories of this namespace that daemons with other layouts of the maps have left.
    pub(super) fn of_other_schemas(&self) -> Vec<Self> {
        let Some((parent, own)) = self.root.parent().zip(self.root.file_name()) else {
            return Vec::new();
        };
        let is_schema = |name: &String| {
            let number = name.strip_prefix('v').and_then(|number| number.parse::<u32>().ok());
            number.is_some() && own != name.as_str()
        };
        let others = names(parent).into_iter().filter(is_schema);
        let others = others.map(|name| Self { root: parent.join(name), ..self.clone() });
        others.filter(|other| !other.is_left_over()).collect()
    }

    /// The guard's directory.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// A path in the guard's directory.
    pub(super) fn path(&self, directory: &str, name: &str) -> PathBuf {
        self.root.join(directory).join(name)
    }

    /// Whether a bpffs is mounted.
    pub(super) fn is_mounted(&self) -> bool {
        is_bpffs(&self.bpffs)
    }

    /// Mounts a bpffs if there is none, and makes the directories. Whether it mounted.
    pub(super) fn prepare(&self) -> Result<bool, GuardError> {
        let mounted = !self.is_mounted() && self.mount()?;
        for directory in self.root.ancestors().take(3).collect::<Vec<_>>().into_iter().rev() {
            make_directory(directory)?;
            check_directory(directory)?;
        }
        for name in [MAPS, PROGRAMS, LINKS, LISTS] {
            make_directory(&self.root.join(name))?;
        }
        Ok(mounted)
    }

    fn mount(&self) -> Result<bool, GuardError> {
        let fault = |error: io::Error| GuardError::Mount { path: self.bpffs.clone(), error };
        std::fs::create_dir_all(&self.bpffs).map_err(fault)?;
        // Two daemons that start together must not mount one over the other. The lock is on the
        // directory below the mount, so whoever comes second looks again.
        let _lock = lock(&self.bpffs, LOCK_TIMEOUT).map_err(fault)?;
        if self.is_mounted() {
            return Ok(false);
        }
        with_mount_capability(|| {
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            rustix::mount::mount("bpf", &self.bpffs, "bpf", flags, c"mode=0700")
                .map_err(io::Error::from)
        })
        .map_err(fault)?;
        Ok(true)
    }

    /// Keeps other daemons from changing this guard. The directories must exist.
    pub(super) fn lock(&self) -> Result<Lock, GuardError> {
        match lock(&self.root, LOCK_TIMEOUT) {
            Ok(lock) => Ok(lock),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(GuardError::Locked { path: self.root.clone() })
            }
            Err(error) => Err(GuardError::io(format!("locking {}", self.root.display()), error)),
        }
    }

    /// As [`Pins::lock`], but `None` at once if another daemon has it, or there is none to have.
    pub(super) fn try_lock(&self) -> Option<Lock> {
        self.lock_at_once().ok().flatten()
    }

    /// As [`Pins::lock`], but `None` at once if another daemon has it.
    pub(super) fn lock_at_once(&self) -> Result<Option<Lock>, GuardError> {
        match lock(&self.root, Duration::ZERO) {
            Ok(lock) => Ok(Some(lock)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(GuardError::io(format!("locking {}", self.root.display()), error)),
        }
    }

    /// Whether the directory was left by a namespace that is gone and whose inode this one got.
    pub(super) fn is_left_over(&self) -> bool {
        let Some(cookie) = self.cookie else { return false };
        let own = format!("namespace-{cookie}");
        names(&self.root).iter().any(|name| name.starts_with("namespace-") && *name != own)
    }

    /// Writes down whose directory it is.
    pub(super) fn mark_namespace(&self) -> Result<(), GuardError> {
        for name in names(&self.root).iter().filter(|name| name.starts_with("namespace-")) {
            let _ = std::fs::remove_dir(self.root.join(name));
        }
        match self.cookie {
            Some(cookie) => make_directory(&self.root.join(format!("namespace-{cookie}"))),
            None => Ok(()),
        }
    }

    /// Names in one of the subdirectories.
    pub(super) fn names(&self, directory: &str) -> Vec<String> {
        names(&self.root.join(directory))
    }

    /// Pins `object` as `name`, in place of whatever has the name.
    pub(super) fn pin(
        &self,
        object: BorrowedFd<'_>,
        directory: &str,
        name: &str,
    ) -> io::Result<()> {
        pin_at(object, &self.path(directory, name))
    }

    /// Removes a pin, if there is one.
    pub(super) fn unpin(&self, directory: &str, name: &str) -> io::Result<()> {
        unpin_at(&self.path(directory, name))
    }

    /// Takes the list directory `name`, made if it is absent; `None` if a live daemon has it.
    pub(super) fn take_list(&self, name: &str) -> Result<Option<Lock>, GuardError> {
        let path = self.path(LISTS, name);
        make_directory(&path)?;
        match lock(&path, Duration::ZERO) {
            Ok(lock) => Ok(Some(lock)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(GuardError::io(format!("locking {}", path.display()), error)),
        }
    }

    /// Removes the guard's directory with all pins in it.
    pub(super) fn remove_all(&self) -> io::Result<()> {
        std::fs::remove_dir_all(&self.root)?;
        // The namespace's and the product's directories go too once they are empty.
        for directory in self.root.ancestors().skip(1).take(2) {
            let _ = std::fs::remove_dir(directory);
        }
        Ok(())
    }
}

/// Pins `object` at `path`, in place of whatever is there.
pub(super) fn pin_at(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    match sys::object_pin(object, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        outcome => return outcome,
    }
    // Under another name first: an object is never without a pin in between.
    let mut other = path.as_os_str().to_owned();
    other.push("-new");
    let other = Path::new(&other);
    let _ = std::fs::remove_file(other);
    sys::object_pin(object, other)?;
    std::fs::rename(other, path)
}

/// Removes the pin at `path`, if there is one.
pub(super) fn unpin_at(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// `text` as a name that bpffs takes: it refuses dots and keeps none of them for itself.
pub(super) fn escape(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-' {
            name.push(char::from(byte));
        } else {
            write!(name, "%{byte:02x}").expect("writing to a string");
        }
    }
    name
}

/// The text that [`escape`] made `name` from.
pub(super) fn unescape(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let [byte, tail @ ..] = rest {
        let code = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (byte, code.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(value)) => {
                bytes.push(value);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Runs `work` with CAP_SYS_ADMIN in force, if this thread may have it, and puts it away again.
pub(super) fn with_mount_capability<T>(work: impl FnOnce() -> T) -> T {
    with_capability(Capability::CAP_SYS_ADMIN, work)
}

/// Whether `path` lies in a bpffs.
pub(super) fn is_bpffs(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|facts| facts.f_type.cast_unsigned() == BPF_FS_MAGIC)
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

fn make_directory(path: &Path) -> Result<(), GuardError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(GuardError::Create { path: path.to_owned(), error })
        }
        _ => Ok(()),
    }
}

/// Refuses a directory in which somebody else could put objects.
fn check_directory(path: &Path) -> Result<(), GuardError> {
    let facts = std::fs::symlink_metadata(path)
        .map_err(|error| GuardError::io(format!("reading {}", path.display()), error))?;
    let owner_is_fit = facts.uid() == 0 || facts.uid() == rustix::process::geteuid().as_raw();
    if facts.is_dir() && owner_is_fit && facts.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(GuardError::Directory { path: path.to_owned() })
}

fn lock(directory: &Path, timeout: Duration) -> io::Result<Lock> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let directory = rustix::fs::open(directory, flags, Mode::empty())?;
    let deadline = Instant::now() + timeout;
    loop {
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Lock { _directory: directory }),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(LOCK_RETRY);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether this process's mounts are its own, so that a bpffs it mounts ends with it.
pub(super) fn mounts_are_private() -> bool {
    let namespace = |process| std::fs::metadata(format!("/proc/{process}/ns/mnt")).ok();
    match (namespace("self"), namespace("1")) {
        (Some(own), Some(first)) => own.ino() != first.ino(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::{escape, unescape};

    #[test]
    fn names_survive_and_hold_no_dot() {
        for text in ["default", "eth0.5", "a/b c%41", "ü", "%", "%4"] {
            let name = escape(text);
            assert!(
                name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-%".contains(&byte))
            );
            assert_eq!(unescape(&name), text);
        }
    }
}
