//! The order of the start. Nothing listens before the guard stands; nothing is touched before
//! everything that can be checked is.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;

use anyhow::{Context, Result, anyhow};
use tokio::sync::Mutex;
use tokio::task::LocalSet;

use crate::allowlist::{Allowlist, Entry};
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
use crate::guard::{Destination, Guard, GuardConfig, ModeChoice, SocketGuard};
use crate::link::{ParentEnd, Request};
use crate::server::login::Credentials;
use crate::server::tls::Material;
use crate::startup::daemonize::Detached;
use crate::startup::lock::{self, Lock};
use crate::startup::pidfile::Pidfile;
use crate::startup::privileges::{self, Identity};
use crate::startup::run::{self, Ending, Running, Signals};
use crate::startup::sockets::{Claims, Listening, is_loopback, only_loopback};
use crate::startup::{
    abort_on_panic, certificates, credentials, lists, memory, memory_limit, metrics, notify,
    portfile,
};
use crate::sys;

/// Told at the start and again and again while it is so.
pub(super) const AUDITED: &str = "AUDIT: whoever reaches the port is served, allowed or not, and counted; \
     `sessionctl audit off` enforces the list";

/// Told whenever the daemon ends with its guard attached.
const GUARD_STAYS: &str = "the guard stays attached: the port is closed until sessiond runs \
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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the parent's runtime")?;
    let local = LocalSet::new();
    local.block_on(&runtime, start(config, identity, detached))
}

/// What is known and held before anything outside is touched.
struct Prepared {
    base: Allowlist,
    overlay: Overlay,
    list: Allowlist,
    credentials: Option<Credentials>,
    certificates: Option<Material>,
    file: Option<OverlayFile>,
    claims: Claims,
    /// The memory file, locked, and the boot's number.
    memory: Option<(File, u128)>,
    metrics: Option<metrics::Bound>,
    guarded_ports: BTreeSet<u16>,
    _locks: Vec<Lock>,
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
    let prepared = prepare(config, identity)?;
    let control = control_socket(config, &prepared)?;
    let guard = stand_guard(config, &prepared)?;
    let guarded = guard.is_some();
    let outcome = serve(config, identity, detached, signals, prepared, control, guard).await;
    if guarded {
        log::info!("{GUARD_STAYS}");
    }
    outcome
}

/// From the attached guard to the end.
async fn serve(
    config: &Config,
    identity: Option<Identity>,
    detached: Option<Detached>,
    mut signals: Signals,
    prepared: Prepared,
    control: Option<(ControlSocket, UnixListener)>,
    mut guard: Option<Guard>,
) -> Result<u8> {
    let filter = guard.as_mut().and_then(socket_guard);
    let mut listening = prepared.claims.listen(filter.as_ref())?;
    privileges::clear_bounding()?;
    let goods = Goods {
        config,
        list: &prepared.list,
        credentials: prepared.credentials.as_ref(),
        memory: prepared.memory,
        metrics: prepared.metrics.as_ref(),
        certificates: prepared.certificates.as_ref(),
    };
    let (mut child, mut end) = spawn(config, identity, detached.is_some())?;
    let started = tokio::select! {
        started = start_child(&mut end, goods, &mut listening, guard.is_some()) =>
            started.map(Some),
        name = signals.stop() => {
            log::info!("{name}: stopping");
            Ok(None)
        }
    };
    let pidfile = match started {
        Ok(Some(pidfile)) => pidfile,
        not_started => {
            run::kill(&mut child);
            listening.remove();
            return not_started.map(|_| 0);
        }
    };

    let link = Rc::new(Mutex::new(end));
    let guard: Option<SharedGuard> = guard.map(|guard| Rc::new(RefCell::new(guard)));
    let keeper = Keeper::new(
        prepared.base,
        prepared.overlay,
        prepared.file.clone(),
        KernelSide(guard.clone()),
        ServingSide(Rc::clone(&link)),
    );
    let facts = Facts {
        memcached_version: MEMCACHED_VERSION,
        guard: config.guard,
        audit: config.audit,
        addresses: listening.addresses.clone(),
        unix: listening.unix.clone(),
        state: prepared.file.map(|file| file.path().to_owned()),
        child: child.id(),
    };
    let server = Control::new(keeper, guard.clone(), Rc::clone(&link), facts);
    let (socket, listener) = control.unzip();
    if let Some(listener) = listener {
        let listener = tokio::net::UnixListener::from_std(listener)?;
        tokio::task::spawn_local(server.clone().accept(listener));
    }

    portfile::write(&listening.addresses);
    announce(&listening, guard.as_ref());
    notify::notify("READY=1");
    if let Some(detached) = detached {
        detached.serving()?;
    }
    let running = Running { child, link, guard, control: server, signals };
    let ending = running.until_end(config).await;
    notify::notify("STOPPING=1");
    drop((pidfile, socket));
    listening.remove();
    match ending {
        Ending::Asked => Ok(0),
        Ending::Failed(error) => Err(error),
    }
}

/// Reads and checks everything, takes the locks and binds the first socket of each address.
fn prepare(config: &Config, identity: Option<Identity>) -> Result<Prepared> {
    privileges::raise_limits(config)?;
    memory_limit::check(config)?;
    let base = lists::configured(config)?;
    let credentials = credentials::configured(config)?;
    let certificates = certificates::configured(config)?;
    let claims = Claims::new(config, identity)?;
    let addresses = claims.all_addresses();
    let guarded = config.guard == GuardKind::Xdp && !only_loopback(&addresses);
    let outside = addresses.iter().filter(|address| !is_loopback(address.ip()));
    let guarded_ports: BTreeSet<u16> =
        if guarded { outside.map(SocketAddr::port).collect() } else { BTreeSet::new() };
    let mut locks = Vec::new();
    for port in &guarded_ports {
        let lock = lock::endpoint(*port).context(NO_LOCK)?.ok_or_else(|| {
            let tcp = claims.addresses().iter().any(|address| address.port() == *port);
            let protocol = if tcp { "TCP" } else { "UDP" };
            let text =
                format!("failed to listen on {protocol} port {port}: Address already in use");
            Refusal::new(EXIT_OS, text)
        })?;
        locks.push(lock);
    }
    let file = overlay_file(config, addresses.first().map(SocketAddr::port), &mut locks)?;
    let overlay = match &file {
        Some(file) => file.read(Now::sample())?,
        None => Overlay::default(),
    };
    let (overlay, taken_back) = overlay.settled(Now::sample());
    if let Some(command) = taken_back {
        log::warn!("a change ({command}) was not confirmed in time and is taken back");
    }
    let memory = match &config.memory_file {
        Some(path) => Some((memory::open(path, identity).context("-e")?, memory::boot_id()?)),
        None => None,
    };
    let metrics = config.metrics.as_ref().map(metrics::bind).transpose()?;
    let list = overlay.over(&base);
    list.check_size()?;
    for prefix in overlay.taken_out().filter(|prefix| base.get(*prefix).is_some()) {
        log::warn!(
            "{prefix} of the configuration was taken out by sessionctl and stays out; \
             `sessionctl allow {prefix}` brings it back"
        );
    }
    warn_of_guard(config, &list, &addresses);
    let prepared = Prepared {
        base,
        overlay,
        list,
        credentials,
        certificates,
        file,
        claims,
        memory,
        metrics,
        guarded_ports,
        _locks: locks,
    };
    Ok(prepared)
}

/// The overlay's place with its lock. None for a user without a place for it.
fn overlay_file(
    config: &Config,
    port: Option<u16>,
    locks: &mut Vec<Lock>,
) -> Result<Option<OverlayFile>> {
    let Some(path) = config.state_path(port, privileges::is_root()) else {
        log::info!("no place for what sessionctl changes: it lasts until sessiond ends (--state)");
        return Ok(None);
    };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    directory(parent.unwrap_or(std::path::Path::new("."))).context("--state")?;
    let lock = lock::overlay(&path)?.ok_or_else(|| {
        anyhow!("{}: another daemon keeps it; give this one a --state of its own", path.display())
    })?;
    locks.push(lock);
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
    let port = prepared.claims.all_addresses().first().map(SocketAddr::port);
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
fn stand_guard(config: &Config, prepared: &Prepared) -> Result<Option<Guard>> {
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
        list: format!("port-{port}"),
    };
    let guard = Guard::attach(guard, &prepared.list).context(
        "the guard cannot be attached, so nothing is served \
         (--guard=user serves with the check at accept alone)",
    )?;
    Ok(Some(guard))
}

/// The second layer: what the kernel does not take is missed, but the first one stands.
fn socket_guard(guard: &mut Guard) -> Option<SocketGuard> {
    match guard.for_sockets() {
        Ok(filter) => Some(filter),
        Err(error) => {
            log::warn!("guard: {error}; the listening sockets stand without a filter of their own");
            None
        }
    }
}

/// Starts the serving process from the running binary, with one end of the pair as its stdin.
fn spawn(
    config: &Config,
    identity: Option<Identity>,
    detached: bool,
) -> Result<(Child, ParentEnd)> {
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
    Ok((child, ParentEnd::new(ours).context("the socket pair")?))
}

/// Root is not named by the system's reason, and is what is missing most often.
const NO_LOCK: &str = "a guarded port needs root; without it use -l 127.0.0.1 or --guard=user";

const NOT_STARTED: &str = "the serving process did not start";

/// What the serving process needs beside the sockets.
struct Goods<'a> {
    config: &'a Config,
    list: &'a Allowlist,
    credentials: Option<&'a Credentials>,
    /// The memory file and the boot's number.
    memory: Option<(File, u128)>,
    metrics: Option<&'a metrics::Bound>,
    certificates: Option<&'a Material>,
}

/// Gives the serving process all that it needs, and has it serve.
async fn start_child(
    end: &mut ParentEnd,
    mut goods: Goods<'_>,
    listening: &mut Listening,
    guarded: bool,
) -> Result<Option<Pidfile>> {
    hand_over(end, &goods, listening).await?;
    // Its lock is held for as long as the serving process has it.
    drop(goods.memory.take());
    listening.close();
    let pidfile = goods.config.pidfile.as_deref().map(Pidfile::write).transpose()?;
    // Before a client's first byte is read.
    privileges::lower_parent(guarded)?;
    end.done(&Request::Serve).await.context(NOT_STARTED)?;
    Ok(pidfile)
}

async fn hand_over(end: &mut ParentEnd, goods: &Goods<'_>, listening: &Listening) -> Result<()> {
    let serve = async {
        end.done(&Request::Configure(Box::new(goods.config.clone()))).await?;
        end.listeners(&listening.descriptors()).await?;
        if let Some(credentials) = goods.credentials {
            end.done(&Request::Credentials(credentials.clone())).await?;
        }
        if let Some(material) = goods.certificates {
            end.done(&Request::Tls(material.clone())).await?;
        }
        if let Some((file, boot_id)) = &goods.memory {
            end.memory_file(file.as_fd(), *boot_id).await?;
        }
        if let Some(metrics) = goods.metrics {
            end.metrics(metrics.as_fd(), metrics.is_unix()).await?;
        }
        let entries: Vec<Entry> = goods.list.entries().cloned().collect();
        end.replace(&entries).await
    };
    serve.await.context(NOT_STARTED)
}

fn announce(listening: &Listening, guard: Option<&SharedGuard>) {
    let interfaces = guard.map(|guard| guard.borrow().status().interfaces).unwrap_or_default();
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
