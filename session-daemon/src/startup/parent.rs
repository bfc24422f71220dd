//! The order of the start. Nothing listens before the guard stands; nothing is touched before
//! everything that can be checked is.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use tokio::sync::{Mutex, mpsc};
use tokio::task::LocalSet;

use crate::allowlist::Allowlist;
use crate::cli::{MEMCACHED_VERSION, SERVE_MARKER};
use crate::clock::Now;
use crate::config::{Config, EXIT_OS, GuardKind, GuardMode, Refusal};
use crate::control::keeper::Keeper;
use crate::control::overlay::{Overlay, OverlayFile};
use crate::control::server::{Control, Facts};
use crate::control::sides::{KernelSide, ServingSide, SharedGuard};
use crate::control::socket::{ControlSocket, SocketError};
use crate::files::directory;
use crate::guard::interfaces::Interfaces;
use crate::guard::lists::Protocol;
use crate::guard::plane::{PlaneMaps, Region};
use crate::guard::{Destination, Guard, GuardConfig, ModeChoice, SocketGuard};
use crate::link::{ParentEnd, Request};
use crate::server::login::Credentials;
use crate::server::tls::Material;
use crate::startup::daemonize::Detached;
use crate::startup::lock::{self, Lock, Locked};
use crate::startup::pidfile::Pidfile;
use crate::startup::privileges::{self, Holding, Identity};
use crate::startup::process::Serving;
use crate::startup::run::{Ending, Running, Signals};
use crate::startup::sockets::{Claims, Listening, is_loopback, only_loopback};
use crate::startup::{
    abort_on_panic, boot, certificates, credentials, lists, memory, memory_limit, metrics, notify,
    plane, portfile, runtime, supervision,
};
use crate::sys;

/// Told at the start and again and again while it is so.
pub(super) const AUDITED: &str = "AUDIT: whoever reaches the port is served, allowed or not, and counted; \
     `sessionctl audit off` enforces the list";

/// Told whenever the daemon ends with its guard attached.
pub(super) const GUARD_STAYS: &str = "the guard stays attached: the port is closed until sessiond runs \
     again, or `sessionctl detach` ends the guard";

/// Runs the parent to its end; the result is the exit status.
///
/// # Errors
/// Why it does not start, or why it ended otherwise than asked.
pub(super) fn run(
    config: &Config,
    identity: Option<Identity>,
    detached: Option<Detached>,
) -> Result<u8> {
    abort_on_panic();
    let runtime = runtime()?;
    let local = LocalSet::new();
    local.block_on(&runtime, start(config, identity, detached))
}

/// What is known and held before anything outside is touched.
pub(super) struct Prepared {
    pub(super) base: Allowlist,
    pub(super) overlay: Overlay,
    pub(super) list: Allowlist,
    pub(super) credentials: Option<Credentials>,
    pub(super) certificates: Option<Material>,
    pub(super) file: Option<OverlayFile>,
    pub(super) metrics: Option<metrics::Bound>,
    /// TCP and UDP addresses.
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) guarded_ports: BTreeSet<u16>,
    pub(super) locks: Vec<Lock>,
}

/// What a process that another program has run in holds of it already, and takes for granted.
#[derive(Default)]
pub(super) struct Held {
    pub(super) locks: Vec<PathBuf>,
    /// The overlay that has no file.
    pub(super) overlay: Option<Overlay>,
    /// The list of the configuration, which is not read again then.
    pub(super) base: Option<Allowlist>,
    /// Whether the serving process has passwords and certificates.
    pub(super) secrets: bool,
}

async fn start(
    config: &Config,
    identity: Option<Identity>,
    detached: Option<Detached>,
) -> Result<u8> {
    for remark in &config.remarks {
        log::info!("{remark}");
    }
    let signals = Signals::new()?;
    privileges::raise_limits(config)?;
    memory_limit::check(config)?;
    let directory = std::env::current_dir().context("the working directory")?;
    let claims = Claims::new(config, identity)?;
    let mut prepared =
        prepare(config, claims.all_addresses(), &claims.addresses(), Held::default())?;
    let memory = memory_file(config, identity)?;
    plane::check(config, &prepared)?;
    prepared.metrics = config.metrics.as_ref().map(metrics::bind).transpose()?;
    let control = control_socket(config, &prepared)?;
    let guard = stand_guard(config, &prepared, None)?;
    let guarded = guard.is_some();
    if !guarded {
        boot::warn(&prepared.addresses);
    }
    let begin = Begin { directory, claims, memory, detached };
    let outcome = serve(config, identity, begin, signals, prepared, control, guard).await;
    if guarded {
        log::info!("{GUARD_STAYS}");
    }
    outcome
}

/// What the first program of a process has that a later one has not.
struct Begin {
    directory: PathBuf,
    claims: Claims,
    memory: Option<Memory>,
    detached: Option<Detached>,
}

/// From the attached guard to the end.
async fn serve(
    config: &Config,
    identity: Option<Identity>,
    begin: Begin,
    mut signals: Signals,
    prepared: Prepared,
    control: Option<(ControlSocket, UnixListener)>,
    mut guard: Option<Guard>,
) -> Result<u8> {
    let Begin { directory, claims, memory, detached } = begin;
    let filter = guard.as_mut().and_then(socket_guard);
    let maps = plane::make(config, guard.as_mut(), Region::Any)?;
    let mut listening = claims.listen(filter.as_ref())?;
    let held = Holding::of(config, guard.is_some());
    privileges::keep_over_upgrade(held)?;
    privileges::clear_bounding()?;
    let (child, mut end) = spawn(config, identity, detached.is_some())?;
    let started = tokio::select! {
        started = start_child(
            &mut end, config, &prepared, Store { memory, maps }, &mut listening, guard.as_mut()
        ) => started.map(Some),
        name = signals.stop() => {
            log::info!("{name}: stopping");
            Ok(None)
        }
    };
    let pidfile = match started {
        Ok(Some(pidfile)) => pidfile,
        not_started => {
            child.kill();
            listening.remove();
            return not_started.map(|_| 0);
        }
    };
    portfile::write(&listening.addresses, &listening.datagram_addresses);
    let reign =
        Reign { prepared, directory, signals, child, end, control, guard, pidfile, listening };
    rule(config, reign, async || {
        notify::notify("READY=1");
        detached.map_or(Ok(()), Detached::serving)
    })
    .await
}

/// Everything that a parent has whose child serves.
pub(super) struct Reign {
    pub(super) prepared: Prepared,
    pub(super) directory: PathBuf,
    pub(super) signals: Signals,
    pub(super) child: Serving,
    pub(super) end: ParentEnd,
    pub(super) control: Option<(ControlSocket, UnixListener)>,
    pub(super) guard: Option<Guard>,
    pub(super) pidfile: Option<Pidfile>,
    pub(super) listening: Listening,
}

/// From the child that serves to the end; `begun` tells others that it serves.
pub(super) async fn rule(
    config: &Config,
    reign: Reign,
    begun: impl AsyncFnOnce() -> Result<()>,
) -> Result<u8> {
    let Reign { prepared, directory, signals, child, end, control, guard, pidfile, listening } =
        reign;
    let link = Rc::new(Mutex::new(end));
    let guard = guard.map(SharedGuard::new);
    let overlay_is_nowhere = prepared.file.is_none();
    let keeper = Keeper::new(
        prepared.base,
        prepared.overlay,
        prepared.file.clone(),
        KernelSide::new(guard.clone()),
        ServingSide(Rc::clone(&link)),
    );
    let facts = Facts {
        memcached_version: MEMCACHED_VERSION,
        guard: config.guard,
        audit: config.audit,
        addresses: listening.addresses.clone(),
        unix: listening.unix.clone(),
        state: prepared.file.map(|file| file.path().to_owned()),
        child: child.pid(),
    };
    let (wishes, upgrades) = mpsc::channel(1);
    let server = Control::new(keeper, guard.clone(), Rc::clone(&link), facts, wishes);
    let socket = match control {
        Some((socket, listener)) => {
            let copy = listener.as_fd().try_clone_to_owned().context("the control socket")?;
            let listener = tokio::net::UnixListener::from_std(listener)?;
            tokio::task::spawn_local(server.clone().accept(listener));
            Some((socket, copy))
        }
        None => None,
    };
    announce(&listening, guard.as_ref());
    if let Some(guard) = &guard {
        guard.hold().lift_boot_rule().iter().for_each(supervision::log_event);
    }
    begun().await?;
    let mut running = Running {
        child,
        link,
        guard,
        control: server,
        signals,
        upgrades,
        directory,
        locks: prepared.locks,
        metrics: prepared.metrics,
        socket,
        listening,
        overlay_is_nowhere,
        in_kernel: config.kernel_plane.is_some(),
    };
    let ending = running.until_end(config).await;
    notify::notify("STOPPING=1");
    drop((pidfile, running.socket.take()));
    running.listening.remove();
    plane::leave(config, running.guard.as_ref());
    match ending {
        Ending::Asked => Ok(0),
        Ending::Failed(error) => Err(error),
    }
}

/// Reads and checks everything, and takes the locks that are not held already.
pub(super) fn prepare(
    config: &Config,
    addresses: Vec<SocketAddr>,
    tcp: &[SocketAddr],
    held: Held,
) -> Result<Prepared> {
    let base = held.base.map_or_else(|| lists::configured(config), Ok)?;
    let credentials = if held.secrets { None } else { credentials::configured(config)? };
    let certificates = if held.secrets { None } else { certificates::configured(config)? };
    let guarded = config.guard == GuardKind::Xdp && !only_loopback(&addresses);
    let outside = addresses.iter().filter(|address| !is_loopback(address.ip()));
    let guarded_ports: BTreeSet<u16> =
        if guarded { outside.map(SocketAddr::port).collect() } else { BTreeSet::new() };
    let mut locks = Vec::new();
    for port in &guarded_ports {
        match lock::endpoint(*port, &held.locks).context(NO_LOCK)? {
            Locked::Now(lock) => locks.push(lock),
            Locked::Before => {}
            Locked::Elsewhere => {
                let is_tcp = tcp.iter().any(|address| address.port() == *port);
                let protocol = if is_tcp { "TCP" } else { "UDP" };
                let text =
                    format!("failed to listen on {protocol} port {port}: Address already in use");
                return Err(Refusal::new(EXIT_OS, text).into());
            }
        }
    }
    let port = addresses.first().map(SocketAddr::port);
    let file = overlay_file(config, port, &mut locks, &held.locks)?;
    let overlay = match (&file, held.overlay) {
        (Some(file), _) => file.read(Now::sample())?,
        (None, overlay) => overlay.unwrap_or_default(),
    };
    let (overlay, taken_back) = overlay.settled(Now::sample());
    if let Some(command) = taken_back {
        log::warn!("a change ({command}) was not confirmed in time and is taken back");
    }
    let list = overlay.over(&base);
    list.check_size()?;
    for prefix in overlay.taken_out().filter(|prefix| base.get(*prefix).is_some()) {
        log::warn!(
            "{prefix} of the configuration was taken out by sessionctl and stays out; \
             `sessionctl allow {prefix}` brings it back"
        );
    }
    warn_of_guard(config, &list, &addresses);
    Ok(Prepared {
        base,
        overlay,
        list,
        credentials,
        certificates,
        file,
        metrics: None,
        addresses,
        guarded_ports,
        locks,
    })
}

/// The memory file, locked, and the number of this boot.
fn memory_file(config: &Config, identity: Option<Identity>) -> Result<Option<Memory>> {
    let Some(path) = &config.memory_file else { return Ok(None) };
    let file = memory::open(path, identity).context("-e")?.into();
    Ok(Some(Memory { file, boot_id: memory::boot_id()?, nameless: false }))
}

/// The overlay's place with its lock. None for a user without a place for it.
fn overlay_file(
    config: &Config,
    port: Option<u16>,
    locks: &mut Vec<Lock>,
    held: &[PathBuf],
) -> Result<Option<OverlayFile>> {
    // Without a network nobody is kept out, and several such daemons may run.
    if config.unix_socket.is_some() && config.state.is_none() {
        return Ok(None);
    }
    let Some(path) = config.state_path(port, privileges::is_root()) else {
        log::info!("no place for what sessionctl changes: it lasts until sessiond ends (--state)");
        return Ok(None);
    };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    directory(parent.unwrap_or(std::path::Path::new("."))).context("--state")?;
    match lock::overlay(&path, held)? {
        Locked::Now(lock) => locks.push(lock),
        Locked::Before => {}
        Locked::Elsewhere => {
            bail!("{}: another daemon keeps it; give this one a --state of its own", path.display())
        }
    }
    Ok(Some(OverlayFile::new(path)))
}

/// What the operator should know about who can come in.
fn warn_of_guard(config: &Config, list: &Allowlist, addresses: &[SocketAddr]) {
    if only_loopback(addresses) {
        log::info!("nothing is served but to this host itself: there is nothing to guard");
        return;
    }
    match config.guard {
        GuardKind::Off => {
            log::warn!("--guard=off: whoever reaches the port is served, allowed or not");
            return;
        }
        GuardKind::User => log::warn!(
            "--guard=user: strangers reach the network stack and are refused after it accepts"
        ),
        GuardKind::Xdp if config.audit => log::warn!("--guard=audit: {AUDITED}"),
        GuardKind::Xdp => {}
    }
    if list.is_empty() {
        log::warn!(
            "the list is empty: every source but this host is refused; \
             allow some with --allow, --allow-file or `sessionctl allow`"
        );
    }
}

/// Makes the control socket. A user's daemon goes without one where there is no place for it.
fn control_socket(
    config: &Config,
    prepared: &Prepared,
) -> Result<Option<(ControlSocket, UnixListener)>> {
    let port = prepared.addresses.first().map(SocketAddr::port);
    let Some(path) = config.control_path(port, privileges::is_root()) else {
        log::info!("no place for a control socket: sessionctl cannot be used (--control)");
        return Ok(None);
    };
    let optional = config.control.is_none() && prepared.guarded_ports.is_empty();
    match ControlSocket::bind(&path) {
        Ok(bound) => Ok(Some(bound)),
        Err(error @ SocketError::Live(_)) if optional => {
            log::warn!("{error}; this one runs without");
            Ok(None)
        }
        Err(error) => Err(anyhow::Error::new(error).context("--control")),
    }
}

/// Attaches the guard; when this returns no packet of a stranger reaches the ports.
pub(super) fn stand_guard(
    config: &Config,
    prepared: &Prepared,
    lock: Option<OwnedFd>,
) -> Result<Option<Guard>> {
    let Some(port) = prepared.guarded_ports.first() else { return Ok(None) };
    let protocols = [Protocol::Tcp, Protocol::Udp];
    let endpoints = prepared
        .guarded_ports
        .iter()
        .flat_map(|port| protocols.map(|protocol| (protocol, *port)))
        .collect();
    let interfaces = if config.interfaces.is_empty() {
        Interfaces::All
    } else {
        Interfaces::Named(config.interfaces.clone())
    };
    let guard = GuardConfig {
        interfaces,
        mode: match config.guard_mode {
            GuardMode::Auto => ModeChoice::Auto,
            GuardMode::Native => ModeChoice::Native,
            GuardMode::Tcx => ModeChoice::Tcx,
            GuardMode::Generic => ModeChoice::Generic,
        },
        endpoints,
        bpffs: config.bpffs.clone(),
        destination: Destination::Local,
        audit: config.audit,
        refuse: config.refuse,
        list: format!("port-{port}"),
    };
    let guard = Guard::attach_with(guard, &prepared.list, lock).context(
        "the guard cannot be attached, so nothing is served \
         (--guard=user serves with the check at accept alone)",
    )?;
    Ok(Some(guard))
}

/// The second layer: what the kernel does not take is missed, but the first one stands.
pub(super) fn socket_guard(guard: &mut Guard) -> Option<SocketGuard> {
    match guard.for_sockets() {
        Ok(filter) => Some(filter),
        Err(error) => {
            log::warn!("guard: {error}; the listening sockets stand without a filter of their own");
            None
        }
    }
}

/// Starts the serving process from the running binary, with one end of the pair as its stdin.
pub(super) fn spawn(
    config: &Config,
    identity: Option<Identity>,
    detached: bool,
) -> Result<(Serving, ParentEnd)> {
    let (ours, theirs) = UnixStream::pair().context("making the socket pair")?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("sessiond").arg(SERVE_MARKER).current_dir("/");
    command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
    if detached && config.verbosity == 0 {
        command.stderr(Stdio::null());
    }
    command.env_remove("NOTIFY_SOCKET");
    if let Some(Identity { uid, gid }) = identity {
        // As root this also gives up the supplementary groups.
        command.uid(uid).gid(gid);
    }
    sys::close_all_on_exec().context("closing what the serving process must not inherit")?;
    let child = command.spawn().with_context(|| {
        let binary = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("sessiond"));
        let user = config.user.as_deref().unwrap_or_default();
        format!(
            "starting the serving process; can {user} execute {}? chmod a+rx it if not",
            binary.display()
        )
    })?;
    let end = ParentEnd::new(ours).context("the socket pair")?;
    Ok((Serving::new(child.id()), end))
}

/// Root is not named by the system's reason, and is what is missing most often.
const NO_LOCK: &str = "a guarded port needs root; without it use -l 127.0.0.1 or --guard=user";

pub(super) const NOT_STARTED: &str = "the serving process did not start";

/// What a child keeps its store in, if not in memory of its own.
pub(super) struct Memory {
    pub(super) file: OwnedFd,
    /// The boot's number.
    pub(super) boot_id: u128,
    /// Whether no name leads to it.
    pub(super) nameless: bool,
}

/// Gives the serving process all that it needs, and has it serve.
async fn start_child(
    end: &mut ParentEnd,
    config: &Config,
    prepared: &Prepared,
    store: Store,
    listening: &mut Listening,
    mut guard: Option<&mut Guard>,
) -> Result<Option<Pidfile>> {
    let metrics = prepared.metrics.as_ref().map(|metrics| (metrics.as_fd(), metrics.is_unix()));
    hand_over(end, config, prepared, listening, metrics).await?;
    if let Some(memory) = store.memory {
        // Its lock is held for as long as the serving process has it.
        lend_memory(end, &memory).await?;
    }
    plane::lend(end, guard.as_deref_mut(), store.maps).await?;
    listening.close();
    let pidfile = config.pidfile.as_deref().map(Pidfile::write).transpose()?;
    // Before a client's first byte is read.
    privileges::lower_parent(Holding::of(config, guard.is_some()))?;
    end.done(&Request::Serve).await.context(NOT_STARTED)?;
    plane::put_on(guard)?;
    Ok(pidfile)
}

/// Where the store is to be, if not in memory of the serving process's own.
struct Store {
    memory: Option<Memory>,
    maps: Option<PlaneMaps>,
}

pub(super) async fn lend_memory(end: &mut ParentEnd, memory: &Memory) -> Result<()> {
    let Memory { file, boot_id, nameless } = memory;
    end.memory_file(file.as_fd(), *boot_id, *nameless).await.context(NOT_STARTED)
}

/// Everything but the store.
pub(super) async fn hand_over(
    end: &mut ParentEnd,
    config: &Config,
    prepared: &Prepared,
    listening: &Listening,
    metrics: Option<(BorrowedFd<'_>, bool)>,
) -> Result<()> {
    let serve = async {
        end.done(&Request::Configure(Box::new(config.clone()))).await?;
        end.listeners(&listening.descriptors()).await?;
        if let Some(credentials) = &prepared.credentials {
            end.done(&Request::Credentials(credentials.clone())).await?;
        }
        if let Some(material) = &prepared.certificates {
            end.done(&Request::Tls(material.clone())).await?;
        }
        if let Some((socket, is_unix)) = metrics {
            end.metrics(socket, is_unix).await?;
        }
        end.replace(prepared.list.entries()).await
    };
    serve.await.context(NOT_STARTED)
}

fn announce(listening: &Listening, guard: Option<&SharedGuard>) {
    let interfaces = guard.map(|guard| guard.hold().summary().interfaces).unwrap_or_default();
    for interface in interfaces {
        match (interface.mode, &interface.warning) {
            (Some(mode), None) => log::info!("guard: {}: {mode}", interface.name),
            (Some(mode), Some(warning)) => {
                log::warn!("guard: {}: {mode}; {warning}", interface.name);
            }
            (None, Some(warning)) => log::warn!("guard: {}: {warning}", interface.name),
            (None, None) => {}
        }
    }
    for address in &listening.addresses {
        log::info!("serving {address}");
    }
    for address in &listening.datagram_addresses {
        log::info!("serving {address} over UDP");
    }
    if let Some(path) = &listening.unix {
        log::info!("serving {}", path.display());
    }
}
