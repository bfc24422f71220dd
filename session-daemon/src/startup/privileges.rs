//! Who runs what: `-u`, resource limits, and the capabilities that each process keeps.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::User;

use crate::config::{Config, EXIT_NO_USER, EXIT_OS, EXIT_USAGE, Io, Refusal};

/// Descriptors beside the clients' connections: listening sockets, epoll and event descriptors
/// of the workers, the socket pair, standard streams.
const DESCRIPTORS_BESIDE: u64 = 64;
/// Descriptors that each worker has beside its connections.
const DESCRIPTORS_PER_WORKER: u64 = 16;

/// Capabilities that the parent uses: load and attach the guard, follow the interfaces.
const IN_USE: [Capability; 2] = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN];
/// Capability that a parent with a guard can take up again: to mount an unmounted bpffs.
const IN_RESERVE_WITH_GUARD: [Capability; 1] = [Capability::CAP_SYS_ADMIN];
/// And where an older kernel asks for it, to load a program for an interface that comes later; with
/// a kernel plane on all, to load that after an upgrade.
const IN_RESERVE_BEFORE_LINUX_6_12: [Capability; 1] = [Capability::CAP_PERFMON];
/// Capabilities that every parent can take up again: to end a child of another user that does not
/// answer, and to start the child of the program that it is upgraded to as that user.
const IN_RESERVE: [Capability; 3] =
    [Capability::CAP_KILL, Capability::CAP_SETUID, Capability::CAP_SETGID];

/// What a parent has that takes capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holding {
    guard: bool,
    plane: bool,
}

impl Holding {
    /// Of a parent with this configuration, and with a guard or not.
    pub(super) fn of(config: &Config, guard: bool) -> Self {
        Self { guard, plane: guard && config.kernel_plane.is_some() }
    }
}

/// The user that serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Whether this process runs as root.
pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The user of `-u`. None when not root: then every process stays the caller.
pub(super) fn identity(config: &Config) -> Result<Option<Identity>, Refusal> {
    if !is_root() {
        return Ok(None);
    }
    let name = config
        .user
        .as_deref()
        .filter(|name| !name.is_empty())
        .ok_or_else(|| Refusal::new(EXIT_USAGE, "must add '-u root' to start as root"))?;
    match User::from_name(name) {
        Ok(Some(user)) => Ok(Some(Identity { uid: user.uid.as_raw(), gid: user.gid.as_raw() })),
        _ => Err(Refusal::new(EXIT_NO_USER, format!("can't find the user {name} to switch to"))),
    }
}

/// Raises the limits that the child inherits: descriptors for `-c`, core files for `-r`, locked
/// memory for `-k` and for io_uring.
pub(super) fn raise_limits(config: &Config) -> Result<(), Refusal> {
    if config.core_dumps {
        raise(Resource::RLIMIT_CORE, u64::MAX)
            .map_err(|_| Refusal::new(EXIT_OS, "failed to ensure corefile creation"))?;
    }
    if config.lock_memory && raise(Resource::RLIMIT_MEMLOCK, u64::MAX).is_err() {
        log::warn!("-k: the limit on locked memory cannot be raised; start as root");
    }
    let is_raised = config.io == Io::Tokio || raise(Resource::RLIMIT_MEMLOCK, u64::MAX).is_ok();
    if config.io == Io::Uring && !is_raised {
        log::warn!("--io=uring: the limit on locked memory, of all rings of the user, stays");
    }
    // Of TCP and of UDP.
    let sockets = 2 * (config.listen.len() as u64 + 2) * u64::from(config.threads);
    let descriptors = u64::from(config.connections_max)
        + u64::from(config.threads) * DESCRIPTORS_PER_WORKER
        + sockets
        + DESCRIPTORS_BESIDE;
    // A user's hard limit may be exactly -c: then a few connections fewer fit.
    let connections = u64::from(config.connections_max);
    raise(Resource::RLIMIT_NOFILE, descriptors)
        .or_else(|_| raise(Resource::RLIMIT_NOFILE, connections))
        .map_err(|_| {
            Refusal::new(
                EXIT_OS,
                "failed to set rlimit for open files. \
                 Try starting as root or requesting smaller maxconns value.",
            )
        })
}

/// Sets the soft limit to at least `need`, and the hard one if it is lower.
fn raise(resource: Resource, need: u64) -> nix::Result<()> {
    let (soft, hard) = getrlimit(resource)?;
    if soft >= need {
        return Ok(());
    }
    setrlimit(resource, need, hard.max(need))
}

/// Capabilities that the parent may use, now or later.
fn kept(holding: Holding) -> Result<CapsHashSet> {
    let held = caps::read(None, CapSet::Permitted).context("reading the capabilities")?;
    let loads = holding.plane || kernel_is_before((6, 12));
    let to_load = IN_RESERVE_BEFORE_LINUX_6_12.iter().filter(|_| loads);
    let of_guard =
        IN_USE.iter().chain(&IN_RESERVE_WITH_GUARD).chain(to_load).filter(|_| holding.guard);
    Ok(of_guard.chain(&IN_RESERVE).copied().filter(|one| held.contains(one)).collect())
}

/// Whether the running kernel is older than this version; not if it does not say.
fn kernel_is_before(version: (u32, u32)) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release_of(&release).is_some_and(|release| release < version)
}

/// Major and minor version of a kernel's release.
fn release_of(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Has an exec of this process leave it what it keeps: the program that it is upgraded to is to
/// do the same work. Before the bounding set is emptied, from which nothing can be taken.
pub(super) fn keep_over_upgrade(holding: Holding) -> Result<()> {
    caps::set(None, CapSet::Inheritable, &kept(holding)?)
        .context("setting the inheritable capabilities")
}

/// What the parent does without from now on: everything but the guard's two capabilities (none
/// if there is no guard) in effect, and some in reserve.
pub(super) fn lower_parent(holding: Holding) -> Result<()> {
    let kept = kept(holding)?;
    let in_use = IN_USE.into_iter().filter(|one| holding.guard && kept.contains(one)).collect();
    caps::clear(None, CapSet::Ambient).context("clearing the ambient capabilities")?;
    caps::set(None, CapSet::Effective, &in_use).context("lowering the capabilities in effect")?;
    caps::set(None, CapSet::Permitted, &kept).context("lowering the capabilities")?;
    rustix::thread::set_no_new_privs(true).context("setting no_new_privs")
}

/// Leaves a process no capability and no way to one, whatever user it runs as.
pub(super) fn lower_child() -> Result<()> {
    clear_bounding()?;
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set).with_context(|| format!("clearing the {set:?} capabilities"))?;
    }
    rustix::thread::set_no_new_privs(true).context("setting no_new_privs")
}

/// Empties the bounding set, before the serving process is started: not even `-u root` gets a
/// capability from the exec then. Without CAP_SETPCAP it stays, and there is no capability that
/// an exec could bring back under `no_new_privs` either.
pub(super) fn clear_bounding() -> Result<()> {
    let permitted = caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP);
    if permitted.context("reading the capabilities")? {
        caps::clear(None, CapSet::Bounding).context("clearing the bounding set")?;
    }
    Ok(())
}
