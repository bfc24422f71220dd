//! The serving process: no capability, no signal of its own, everything from the parent.
//!
//! Its main thread blocks on the socket pair. When the parent is gone the read ends, and so does
//! the process, with every connection and listening socket.
#![forbid(unsafe_code)]

use std::fs::File;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use arc_swap::ArcSwap;
use nix::sys::signal::{SigSet, Signal};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{DumpableBehavior, Resource, getrlimit};
use serde_json::Value;

use crate::allowlist::Allowlist;
use crate::clock::Now;
use crate::command::request::Shutdown;
use crate::config::{Config, EXIT_USAGE, GuardKind, KernelPlane, TlsOptions};
use crate::confine::{self, Files};
use crate::link::{
    ChildEnd, Lent, ListenerKind, PlaneFacts, Reply, Request, SOCKETS_PER_FRAME_MAX,
    receive_parked, send_parked,
};
use crate::plane::{After, Plane};
use crate::server::Server;
use crate::server::config::{Engine, Listener, ServerConfig, ShutdownHook, TlsShown};
use crate::server::handover::Parked;
use crate::server::login::{Credentials, Login};
use crate::server::tls::{Material, Tls};
use crate::startup::told::tell;
use crate::startup::{abort_on_panic, engine, logger, memory_limit, metrics, privileges};
use crate::store::types::StoreConfig;
use crate::store::{MapFacts, MemoryFile, Protected, Store};

/// How long workers may take to stop when the parent is gone.
const ORPHAN_TIMEOUT: Duration = Duration::from_millis(500);
/// Time between two lines about how far a start, or the check behind it, is.
const PROGRESS_TOLD: Duration = Duration::from_secs(1);
const CHECK_LOOKED_AT: Duration = Duration::from_millis(100);

/// Runs the serving process to its end; the result is the exit status.
pub(super) fn run() -> u8 {
    match serve() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("sessiond: serving process: {error:#}");
            1
        }
    }
}

fn serve() -> Result<()> {
    let Some(stream) = socket_pair()? else {
        eprintln!("sessiond: this flag is for sessiond's own second process");
        std::process::exit(i32::from(EXIT_USAGE));
    };
    ignore_signals()?;
    privileges::lower_child()?;
    abort_on_panic();
    let mut end = ChildEnd::new(stream);
    let mut child = Child::default();
    loop {
        let Some((request, sockets)) = end.receive()? else {
            // The parent has said why, or was killed and could not.
            log::warn!("the parent is gone: connections and port are closed");
            child.orphaned();
        };
        let stop = matches!(request, Request::Stop { .. });
        match child.handle(request, sockets) {
            Ok(Answer::Plain(reply)) => end.answer(&reply)?,
            Ok(Answer::Lent(lent)) => {
                let (kinds, fds): (Vec<_>, Vec<_>) =
                    lent.iter().map(|(kind, fd)| (*kind, fd.as_fd())).unzip();
                end.answer_with(&Reply::Lent(kinds), &fds)?;
            }
            Err(error) => end.answer(&Reply::Failed(format!("{error:#}")))?,
        }
        if stop {
            std::process::exit(0);
        }
    }
}

/// Standard input, if it is a socket, taken off its usual number.
fn socket_pair() -> Result<Option<UnixStream>> {
    let stdin = std::io::stdin();
    if rustix::net::sockopt::socket_type(&stdin).is_err() {
        return Ok(None);
    }
    let stream = UnixStream::from(stdin.as_fd().try_clone_to_owned()?);
    let null = File::open("/dev/null").context("opening /dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(Some(stream))
}

/// A terminal's Ctrl-C and a service manager's SIGTERM reach both processes; only the parent
/// acts on them. Threads that start later inherit the mask.
fn ignore_signals() -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in
        [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2]
    {
        signals.add(signal);
    }
    signals.thread_block().context("blocking signals")
}

/// What the parent has sent so far.
#[derive(Default)]
struct Child {
    config: Option<Box<Config>>,
    engine: Engine,
    listeners: Vec<Listener>,
    memory: Option<MemoryFile>,
    plane: Option<Arc<Plane>>,
    metrics: Option<metrics::Socket>,
    /// What a successor serves from: listening sockets and memory file, open as long as they are
    /// in use here.
    estate: SharedEstate,
    /// Connections of a predecessor, on their way.
    arriving: Option<JoinHandle<Vec<Parked>>>,
    /// The next list, as far as it has come.
    parts: Allowlist,
    list: Arc<ArcSwap<Allowlist>>,
    credentials: Arc<ArcSwap<Credentials>>,
    tls: Option<Arc<Tls>>,
    server: SharedServer,
}

/// The server, for the main thread and for a client's `shutdown`.
pub(super) type SharedServer = Arc<Mutex<Option<Server>>>;

/// Listening sockets and memory file, for the main thread and for a client's `shutdown`.
type SharedEstate = Arc<Mutex<Vec<(Lent, OwnedFd)>>>;

/// What a request is answered.
enum Answer {
    Plain(Reply),
    Lent(Vec<(Lent, OwnedFd)>),
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self::Plain(reply)
    }
}

impl Child {
    fn handle(&mut self, request: Request, sockets: Vec<OwnedFd>) -> Result<Answer> {
        match request {
            Request::Configure(config) => {
                self.configure(config)?;
            }
            Request::Listeners(kinds) => {
                ensure!(kinds.len() == sockets.len(), "listening sockets were lost on the way");
                for (kind, socket) in kinds.iter().zip(&sockets) {
                    let copy = socket.try_clone().context("keeping a listening socket")?;
                    lock(&self.estate).push((Lent::Listener(*kind), copy));
                }
                let listeners = kinds.into_iter().zip(sockets);
                self.listeners.extend(listeners.map(|(kind, socket)| match kind {
                    ListenerKind::Tcp(tls) => Listener::Tcp(TcpListener::from(socket), tls),
                    ListenerKind::Udp => Listener::Udp(UdpSocket::from(socket)),
                    ListenerKind::Unix => Listener::Unix(UnixListener::from(socket)),
                }));
            }
            Request::Credentials(credentials) => self.credentials.store(Arc::new(credentials)),
            Request::Tls(material) => self.certify(&material)?,
            Request::MemoryFile { boot_id, nameless } => {
                let file = sockets.into_iter().next().context("the memory file was lost")?;
                let copy = file.try_clone().context("keeping the memory file")?;
                lock(&self.estate).push((Lent::Memory { nameless }, copy));
                let (file, boot_id) = (File::from(file), boot_number(boot_id));
                self.memory = Some(MemoryFile { file, boot_id, nameless, map: None });
            }
            Request::Plane(facts) => self.take_plane(facts, sockets)?,
            Request::ListPart(entries) => self.parts.extend(entries),
            Request::ListReplace => {
                self.list.store(Arc::new(std::mem::take(&mut self.parts)));
            }
            Request::ListChange { insert, remove } => {
                let mut list = Allowlist::clone(&self.list.load());
                list.extend(insert);
                for prefix in remove {
                    list.remove(prefix);
                }
                self.list.store(Arc::new(list));
            }
            Request::Metrics(unix) => {
                let socket = sockets.into_iter().next().context("the metrics socket was lost")?;
                self.metrics = Some(if unix {
                    metrics::Socket::Unix(UnixListener::from(socket))
                } else {
                    metrics::Socket::Tcp(TcpListener::from(socket))
                });
            }
            Request::Serve => self.serve()?,
            Request::Enforce => {
                return Ok(Reply::Enforced(self.with_server(Server::enforce)?).into());
            }
            Request::Statistics => {
                let named = self.with_server(Server::snapshot)?.into_iter();
                let values = named.map(|(name, value)| (name, Value::String(value)));
                return Ok(Reply::Statistics(Value::Object(values.collect())).into());
            }
            Request::Locks => {
                return Ok(Reply::Locks(self.with_server(Server::locks)?).into());
            }
            Request::Ask(line) => {
                let answer = self.with_server(|server| server.ask(&line))?;
                return Ok(Reply::Answer(String::from_utf8_lossy(&answer).into_owned()).into());
            }
            Request::Audit(on) => self.with_server(|server| server.audit(on))?,
            Request::GuardCounters(counters) => {
                let asked = self.with_server(|server| {
                    server.guard_counters(counters);
                    server.certificates_are_asked_for()
                })?;
                if asked {
                    return Ok(Reply::CertificatesAskedFor.into());
                }
            }
            Request::Lend(from) => return self.lend(from),
            Request::HandOver { boot_id } => {
                let stream = sockets.into_iter().next().context("the way to go was lost")?;
                return self.hand_over(&UnixStream::from(stream), boot_number(boot_id));
            }
            Request::Adopt => {
                let stream = sockets.into_iter().next().context("the way here was lost")?;
                let stream = UnixStream::from(stream);
                self.arriving = Some(std::thread::spawn(move || receive_parked(&stream)));
            }
            Request::Stop { graceful } => {
                // The port is closed with the server, not with the process.
                lock(&self.estate).clear();
                stop(&self.server, if graceful { Shutdown::Graceful } else { Shutdown::Now });
            }
        }
        Ok(Reply::Done.into())
    }

    /// Takes the maps of the kernel plane, and with them the place of the store.
    fn take_plane(&mut self, facts: PlaneFacts, maps: Vec<OwnedFd>) -> Result<()> {
        let Some(config) = &self.config else { bail!("not configured") };
        let maps: [OwnedFd; 3] = maps.try_into().map_err(|_| anyhow!("a map was lost"))?;
        let [region, orders, reports] = maps;
        let after = match config.kernel_plane {
            Some(KernelPlane::Persists) => After::Persists,
            _ => After::Ends,
        };
        let (cpus, ahead_ns) = (facts.cpus, facts.clock_ahead_ns);
        let plane = Plane::map(orders.as_fd(), reports.as_fd(), cpus, ahead_ns, after);
        self.plane = Some(Arc::new(plane.context("mapping the kernel plane")?));
        let copy = region.try_clone().context("keeping the region")?;
        lock(&self.estate).push((Lent::Region, copy));
        let map = MapFacts { id: facts.region_id, len: facts.region_len, is_new: facts.is_new };
        self.memory = Some(MemoryFile {
            file: File::from(region),
            boot_id: boot_number(facts.boot_id),
            nameless: false,
            map: Some(map),
        });
        Ok(())
    }

    /// Copies of what a successor serves from.
    fn lend(&self, from: usize) -> Result<Answer> {
        let estate = lock(&self.estate);
        let part = estate.iter().skip(from).take(SOCKETS_PER_FRAME_MAX);
        let copies = part.map(|(kind, fd)| Ok((*kind, fd.try_clone()?)));
        Ok(Answer::Lent(copies.collect::<std::io::Result<_>>().context("lending")?))
    }

    /// Serves no more: connections leave by `stream`, and a store without a file leaves as one.
    fn hand_over(&mut self, stream: &UnixStream, boot_id: u128) -> Result<Answer> {
        let server = lock(&self.server).take().ok_or_else(|| anyhow!("not serving"))?;
        let (parked, store) = server.hand_over();
        if let Err(error) = send_parked(stream, &parked) {
            log::warn!("handing connections over: {error}");
        }
        log::info!("{} connections were handed over", parked.len());
        let mut lent = Vec::new();
        let stays = |kind: &Lent| matches!(kind, Lent::Memory { .. } | Lent::Region);
        if !lock(&self.estate).iter().any(|(kind, _)| stays(kind)) {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = memfd_create("session-store", flags).context("making a memory file")?;
            let file = store.leave(File::from(file), boot_id).context("leaving the store")?;
            lent.push((Lent::Memory { nameless: true }, OwnedFd::from(file)));
        } else {
            close(store);
        }
        Ok(Answer::Lent(lent))
    }

    fn configure(&mut self, config: Box<Config>) -> Result<()> {
        ensure!(self.config.is_none(), "configured twice");
        logger::start(config.verbosity);
        // Without -r nobody but root may look into this process: it holds everybody's values.
        let dumpable = if config.core_dumps {
            DumpableBehavior::Dumpable
        } else {
            DumpableBehavior::NotDumpable
        };
        rustix::process::set_dumpable_behavior(dumpable).context("PR_SET_DUMPABLE")?;
        if config.lock_memory
            && let Err(error) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE)
        {
            log::warn!("-k: failed to lock memory: {error}");
        }
        self.engine = engine::choose(&config)?;
        confine(&config, self.engine)?;
        self.config = Some(config);
        Ok(())
    }

    /// Takes certificates: the first, or others in their place.
    fn certify(&mut self, material: &Material) -> Result<()> {
        let Some(config) = &self.config else { bail!("not configured") };
        match &self.tls {
            Some(tls) => tls.refresh(material)?,
            None => self.tls = Some(Arc::new(Tls::new(material, config.tls.terms.clone())?)),
        }
        Ok(())
    }

    fn serve(&mut self) -> Result<()> {
        let Some(config) = &self.config else { bail!("not configured") };
        let mut server = lock(&self.server);
        ensure!(server.is_none(), "serving already");
        let begun = Instant::now();
        let store = match self.memory.take() {
            Some(memory) => {
                let config =
                    StoreConfig { succeeding: self.arriving.is_some(), ..store_config(config)? };
                let telling = Mutex::new(begun);
                let progress = |done, all| tell_progress(&telling, done, all);
                let (store, start) =
                    Store::open_telling(&config, memory, Now::sample(), &progress)?;
                let place = if self.plane.is_some() { "kernel plane" } else { "memory file" };
                tell(place, start, store.checked().is_some(), begun.elapsed());
                store
            }
            None => Store::create(&store_config(config)?)?,
        };
        protect(config, &store);
        let store_start = begun.elapsed();
        let listeners = std::mem::take(&mut self.listeners);
        let shared = (Arc::clone(&self.server), Arc::clone(&self.estate));
        let hook = config.shutdown.then(|| shutdown_hook(shared));
        let mut config = server_config(config, self.engine, hook)?;
        config.credentials = Arc::clone(&self.credentials);
        config.tls.clone_from(&self.tls);
        config.store_start = store_start;
        let arriving = self.arriving.take().map(JoinHandle::join);
        let parked = arriving.transpose().map_err(|_| anyhow!("taking connections over"))?;
        let parked = parked.unwrap_or_default();
        config.plane.clone_from(&self.plane);
        if let Some(plane) = &self.plane {
            plane.serve(store.orders(), &datagram_addresses(&listeners), Now::sample());
        }
        let started = Server::go_on(config, listeners, parked, store, Arc::clone(&self.list));
        let started = started.context("starting the workers")?;
        let is_checked = started.checked().is_some();
        *server = Some(started);
        drop(server);
        if is_checked {
            follow_check(Arc::clone(&self.server));
        }
        if let Some(socket) = self.metrics.take() {
            metrics::start(socket, Arc::clone(&self.server))?;
        }
        Ok(())
    }

    /// Ends the process. The port is closed first: the kernel would do it only after it has taken
    /// the store's memory apart, and a restarted daemon wants the port meanwhile.
    fn orphaned(&self) -> ! {
        std::thread::spawn(|| {
            std::thread::sleep(ORPHAN_TIMEOUT);
            std::process::exit(1);
        });
        lock(&self.estate).clear();
        stop(&self.server, Shutdown::Now);
        std::process::exit(1);
    }

    fn with_server<T>(&self, work: impl FnOnce(&Server) -> T) -> Result<T> {
        lock(&self.server).as_ref().map(work).ok_or_else(|| anyhow!("not serving"))
    }
}

/// Gives up what serving does not need, before a thread is started or a client is heard.
fn confine(config: &Config, engine: Engine) -> Result<()> {
    if !config.files_open {
        match confine::close_files() {
            Ok(Files::Closed) => {}
            Ok(Files::AsTheUser) => log::info!("the kernel has no Landlock: -u alone keeps files"),
            Err(error) => log::warn!("Landlock: {error:#}: -u alone keeps files"),
        }
    }
    if config.tuning.drop_privileges {
        confine::filter_calls(engine != Engine::Tokio).context("-o drop_privileges")?;
    }
    Ok(())
}

/// Where datagrams come in.
fn datagram_addresses(listeners: &[Listener]) -> Vec<SocketAddr> {
    let addresses = listeners.iter().filter_map(|listener| match listener {
        Listener::Udp(socket) => socket.local_addr().ok(),
        Listener::Tcp(..) | Listener::Unix(_) => None,
    });
    addresses.collect()
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().expect("a panic ends the process, so nobody panicked with the lock")
}

fn stop(server: &SharedServer, shutdown: Shutdown) {
    let taken = lock(server).take();
    if let Some(server) = taken {
        close(server.stop(shutdown));
    }
}

/// Closes the store, so that the next start goes on with its memory file at once.
fn close(store: Arc<Store>) {
    if !store.close() {
        log::warn!("memory file: in use to the end: the next start checks it");
    }
}

/// What a client's `shutdown` does: the process ends with status 0, and the parent with it. On a
/// thread of its own, because the caller is one of the workers that are to end.
fn shutdown_hook((server, estate): (SharedServer, SharedEstate)) -> ShutdownHook {
    ShutdownHook(Arc::new(move |shutdown| {
        let (server, estate) = (Arc::clone(&server), Arc::clone(&estate));
        std::thread::spawn(move || {
            lock(&estate).clear();
            stop(&server, shutdown);
            std::process::exit(0);
        });
    }))
}

/// A number of the boot from the halves in which messages carry it.
fn boot_number([high, low]: [u64; 2]) -> u128 {
    u128::from(high) << 64 | u128::from(low)
}

/// Says now and then how far the index is that is built anew. `told`: when that was said last.
fn tell_progress(told: &Mutex<Instant>, done: u32, all: u32) {
    // Another thread that is at it says as much.
    let Ok(mut told) = told.try_lock() else { return };
    if told.elapsed() >= PROGRESS_TOLD {
        *told = Instant::now();
        let percent = u64::from(done) * 100 / u64::from(all.max(1));
        log::info!("memory file: the index is built anew: {percent} %");
    }
}

/// Says now and then how far the check behind a start is, and what it has found.
fn follow_check(server: SharedServer) {
    std::thread::spawn(move || {
        let mut told = Instant::now();
        loop {
            std::thread::sleep(CHECK_LOOKED_AT);
            let checked = lock(&server).as_ref().and_then(Server::checked);
            let Some(checked) = checked else { return };
            if let Some((items, bytes)) = checked.items {
                log::info!("memory file: checked: it had {items} items of {bytes} bytes");
                if checked.lost > 0 {
                    log::warn!("memory file: {} items were damaged, and are lost", checked.lost);
                }
                return;
            }
            if told.elapsed() >= PROGRESS_TOLD {
                told = Instant::now();
                log::info!("memory file: {} % checked", checked.percent);
            }
        }
    });
}

/// Protects the keys of `--protect`, of which a memory file may have items already.
fn protect(config: &Config, store: &Arc<Store>) {
    if config.protect.is_empty() {
        return;
    }
    let prefixes: Vec<_> = config.protect.iter().map(|one| one.prefix.as_bytes().into()).collect();
    store.protect(&prefixes, config.protected_percent());
    let Protected { items, bytes, bytes_max, .. } = store.protected().unwrap_or_default();
    if store.checked().is_some() {
        log::info!(
            "--protect: what is protected is counted while it is checked; it is evicted last, while \
             it holds at most {bytes_max} bytes"
        );
    } else {
        log::info!(
            "--protect: {items} items of {bytes} bytes are evicted last, while they hold at most \
             {bytes_max} bytes"
        );
    }
}

pub(super) fn store_config(config: &Config) -> Result<StoreConfig> {
    let defaults = Config::default();
    Ok(StoreConfig {
        memory_limit: usize::try_from(config.memory_limit)?,
        item_size_max: usize::try_from(config.item_size_max)?,
        evictions: config.evictions,
        cas: config.cas,
        // memcached's own defaults mean nothing to the store's classes; a value that was asked
        // for does.
        growth_factor: Some(config.growth_factor)
            .filter(|factor| (factor - defaults.growth_factor).abs() > f64::EPSILON),
        chunk_min: Some(usize::try_from(config.chunk_min)?)
            .filter(|_| config.chunk_min != defaults.chunk_min),
        workers: usize::from(config.threads),
        // Locked memory and addresses may both be limited, and then reserved ones count.
        growing: !config.lock_memory && getrlimit(Resource::As).current.is_none(),
        ..StoreConfig::default()
    })
}

fn tls_shown(options: &TlsOptions) -> TlsShown {
    let shown = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    TlsShown {
        enabled: options.enabled,
        chain: shown(&options.chain),
        key: shown(&options.key),
        ca: shown(&options.ca),
        verify: options.verify,
        terms: options.terms.clone(),
    }
}

fn server_config(
    config: &Config,
    engine: Engine,
    shutdown: Option<ShutdownHook>,
) -> Result<ServerConfig> {
    let idle = u64::from(config.idle_timeout_s);
    Ok(ServerConfig {
        threads: usize::from(config.threads),
        engine,
        conns_max: usize::try_from(config.connections_max)?,
        maxconns_fast: config.maxconns_fast,
        requests_per_turn: config.requests_per_turn,
        idle_timeout: (idle > 0).then(|| Duration::from_secs(idle)),
        write_timeout: Duration::from_secs(config.write_timeout_s.into()),
        read_timeout: Duration::from_secs(config.read_timeout_s.into()),
        buffers_len_max: usize::try_from(config.buffer_limit)?,
        flush_allowed: config.flush_all,
        dumps_allowed: config.dumps,
        watch_allowed: config.watch,
        admin_confined: config.admin_confined,
        debug_commands: config.debug_commands,
        tuning: config.tuning.clone(),
        shutdown,
        audited: config.audit,
        judge_sources: config.guard != GuardKind::Off,
        sockets_filtered: config.guard == GuardKind::Xdp,
        binding: config.binding,
        login: match (config.auth_file.is_some(), config.sasl) {
            (true, _) => Login::Token,
            (false, true) => Login::Sasl,
            (false, false) => Login::Free,
        },
        credentials: Arc::default(),
        tls: None,
        tls_shown: tls_shown(&config.tls),
        verbosity: u32::from(config.verbosity),
        udp_writes: config.udp_writes,
        tcp_port: config.port_number().unwrap_or(0),
        udp_port: config.udp_port,
        inter: config.listen_words(),
        unix_path: config.unix_socket.as_ref().map(|path| path.display().to_string()),
        unix_mask: config.unix_mask,
        backlog: config.backlog,
        plane: None,
        memory_file: config.memory_file.as_ref().map(|path| path.display().to_string()),
        store_start: Duration::ZERO,
        memory_most: memory_limit::most(),
        // It ends with us, and stays itself when another program takes its place.
        pid: rustix::process::getppid().map_or(0, |parent| parent.as_raw_nonzero().get() as u32),
    })
}
