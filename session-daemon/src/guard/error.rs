//! Why the guard does not stand, and what to do about it.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::allowlist::TooLong;
use crate::guard::Mode;

/// What kept the guard from being put up or changed. A guard that stood before still stands.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// A step that hardly ever fails.
    #[error("{what}: {error}")]
    Io {
        /// The step.
        what: String,
        /// What the system said.
        error: io::Error,
    },
    /// No bpffs and no way to mount one.
    #[error(
        "{path} is not a bpffs and mounting one failed: {error}; run: mount -t bpf bpf {path}",
        path = path.display()
    )]
    Mount {
        /// Where it should be.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The guard's directory cannot be made in the bpffs.
    #[error(
        "creating {path}: {error}; sessiond must be able to write the bpffs: run it as root, or mount a bpffs for its user, chown it to that user and name it with --bpffs",
        path = path.display()
    )]
    Create {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Somebody else could put objects into the guard's directory.
    #[error(
        "{path} belongs to or can be written by somebody else; run: rm -r {path}, once no daemon uses it",
        path = path.display()
    )]
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// Another daemon has been changing the guard for half a minute.
    #[error("{path} is locked by another daemon; end or continue the one that fuser {path} names", path = path.display())]
    Locked {
        /// The guard's directory.
        path: PathBuf,
    },
    /// A daemon of the same name runs in this namespace.
    #[error(
        "a daemon with the list `{list}` already runs in this network namespace; stop it or give this one another name"
    )]
    ListInUse {
        /// Name of the list.
        list: String,
    },
    /// The guard cannot be taken off while daemons rely on it.
    #[error("daemons still run in this network namespace (lists: {lists}); stop them first")]
    DaemonsRun {
        /// Names of their lists.
        lists: String,
    },
    /// All lists are taken by live daemons.
    #[error(
        "{count} daemons run in this network namespace already, which is the most one guard serves"
    )]
    ListsExhausted {
        /// How many.
        count: u32,
    },
    /// A live daemon guards the same port.
    #[error(
        "{protocol} port {port} is already guarded for the list `{list}` of another daemon; choose another port or stop that daemon"
    )]
    EndpointInUse {
        /// `tcp` or `udp`.
        protocol: &'static str,
        /// The port.
        port: u16,
        /// The other daemon's list.
        list: String,
    },
    /// More endpoints than the table holds.
    #[error("more than {max} guarded ports in this network namespace")]
    EndpointsExhausted {
        /// The most.
        max: u32,
    },
    /// The guard's pins are not as we left them, and other daemons depend on them.
    #[error(
        "the pins in {path} cannot be trusted ({what}) while other daemons use them ({others}); restart those daemons first",
        path = path.display()
    )]
    Untrusted {
        /// The guard's directory.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// Names of live lists.
        others: String,
    },
    /// Another live daemon runs the guard with other settings.
    #[error(
        "the guard runs for other daemons ({others}) with other settings (audit, destination, refuse); start this one with the same"
    )]
    Settings {
        /// Names of live lists.
        others: String,
    },
    /// The list does not fit.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// A kernel table is full.
    #[error(
        "the kernel's table {table} is full; merge neighbouring entries into prefixes or stop other daemons"
    )]
    Full {
        /// Name of the map.
        table: &'static str,
    },
    /// The list's tables were made for fewer hosts.
    #[error("the list has outgrown its tables; it has to be replaced as a whole")]
    Outgrown,
    /// A capability is missing.
    #[error(
        "{what}: not permitted; sessiond needs {capabilities}, run it as root or grant them with setcap or the unit's AmbientCapabilities"
    )]
    NotPermitted {
        /// The step.
        what: String,
        /// What it takes.
        capabilities: &'static str,
    },
    /// The kernel refused the object.
    #[error(
        "the kernel refused the guard's {what}: {error}; Linux 5.10 with CONFIG_BPF_SYSCALL is the least"
    )]
    Load {
        /// Which part.
        what: String,
        /// What aya and the verifier said.
        error: String,
    },
    /// The kernel refused the kernel plane.
    #[error(
        "the kernel ({release}) refused the kernel plane's {what}: {error}; it needs Linux 5.18 (bpf_xdp_load_bytes, bpf_xdp_store_bytes) and memory for -m; leave --kernel-plane out"
    )]
    Plane {
        /// Which part.
        what: String,
        /// What aya and the verifier said.
        error: String,
        /// The running kernel.
        release: String,
    },
    /// The store's region cannot be gone on with.
    #[error(
        "{path} is not the region that the running daemon serves from: an upgrade does not change -m, -f or -n of a store in the kernel plane's memory; restart sessiond for that",
        path = path.display()
    )]
    Region {
        /// Its pin.
        path: PathBuf,
    },
    /// A named interface does not exist.
    #[error("no interface `{name}` in this network namespace; `ip link` names those there are")]
    NoInterface {
        /// The name.
        name: String,
    },
    /// Another program is on the interface.
    #[error(
        "interface {interface} already runs {owner}; remove that program, or put the guard behind it with --guard-mode tcx"
    )]
    Busy {
        /// The interface.
        interface: String,
        /// Number and name of the program.
        owner: String,
    },
    /// Strangers would come in without it.
    #[error(
        "the boot rule keeps port {port} closed to everybody, because these interfaces are open: {interfaces}; `sessionctl boot-rule clear` lifts it all the same"
    )]
    BootRule {
        /// The port.
        port: u16,
        /// Names of interfaces.
        interfaces: String,
    },
    /// No mode works on an interface.
    #[error("no way to guard interface {interface}: {tries}; {fix}")]
    NoMode {
        /// The interface.
        interface: String,
        /// What each mode said.
        tries: Tries,
        /// What to do.
        fix: &'static str,
    },
}

impl GuardError {
    pub(super) fn io(what: impl Into<String>, error: impl Into<io::Error>) -> Self {
        let (what, error) = (what.into(), error.into());
        if error.kind() == io::ErrorKind::PermissionDenied {
            return Self::NotPermitted { what, capabilities: "CAP_BPF and CAP_NET_ADMIN" };
        }
        Self::Io { what, error }
    }
}

/// What each mode of the ladder said.
#[derive(Debug, Default)]
pub struct Tries(pub(super) Vec<(Mode, String)>);

impl fmt::Display for Tries {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (idx, (mode, outcome)) in self.0.iter().enumerate() {
            let comma = if idx == 0 { "" } else { ", " };
            write!(formatter, "{comma}{mode}: {outcome}")?;
        }
        Ok(())
    }
}
