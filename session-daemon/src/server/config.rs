//! What the server is told at start. It owns the defaults that are the server's own; it never
//! reads a flag.
#![forbid(unsafe_code)]

use crate::command::request::Shutdown;
use crate::plane::Plane;
use crate::server::binding::Binding;
use crate::server::login::{Credentials, Login};
use crate::server::tls::{Terms, Tls, Verify};
use crate::server::tuning::Tuning;
use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

/// How long a client may leave its answers unread before it is closed, unless told otherwise.
/// Longer than any pause of a healthy client, short enough that stuck ones do not pile up.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a client may leave a request half sent before it is closed, unless told otherwise.
pub const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes of half-sent requests and of unread answers that all connections together may keep,
/// unless told otherwise: a hundred stuck clients with a full answer each, and an item to it.
pub const BUFFERS_LEN_MAX: usize = 128 << 20;

/// A socket by which clients come.
#[derive(Debug)]
pub enum Listener {
    /// TCP, IPv4 or IPv6. With several of one address (`SO_REUSEPORT`) the kernel spreads. TLS,
    /// if it is spoken, asks that much of clients.
    Tcp(TcpListener, Option<Verify>),
    /// UDP, IPv4 or IPv6: bound, which is all the listening there is.
    Udp(UdpSocket),
    /// A unix socket; its clients are not judged by the allowlist.
    Unix(UnixListener),
}

/// Called when a client's `shutdown` is to end the process.
#[derive(Clone)]
pub struct ShutdownHook(pub Arc<dyn Fn(Shutdown) + Send + Sync>);

impl fmt::Debug for ShutdownHook {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ShutdownHook")
    }
}

/// What moves the bytes of plain connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Engine {
    /// tokio: readiness by epoll, then a call of the kernel for each read and each write.
    #[default]
    Tokio,
    /// io_uring: one call of the kernel for all connections that have something to say.
    Uring,
    /// Each where it is the better one: tokio while few connections speak at a time, io_uring while
    /// many do. Tokio alone where a worker can have no ring.
    Both,
}

/// `-Z` and what its options say, for `stats settings`.
#[derive(Clone, Debug, Default)]
pub struct TlsShown {
    /// `-Z`.
    pub enabled: bool,
    /// `ssl_chain_cert`.
    pub chain: Option<String>,
    /// `ssl_key`.
    pub key: Option<String>,
    /// `ssl_ca_cert`.
    pub ca: Option<String>,
    /// `ssl_verify_mode`.
    pub verify: Verify,
    /// The rest.
    pub terms: Terms,
}

/// What the server is told at start. What concerns the store is asked of the store.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Workers (`-t`), each a thread.
    pub threads: usize,
    /// What moves the bytes of plain connections (`--io`).
    pub engine: Engine,
    /// Most client connections at one time (`-c`).
    pub conns_max: usize,
    /// One connection too many is told so and closed; false leaves it in the backlog.
    pub maxconns_fast: bool,
    /// Requests of one connection before others have their turn (`-R`).
    pub requests_per_turn: u32,
    /// Connections that ask nothing for so long are closed.
    pub idle_timeout: Option<Duration>,
    /// Connections that leave answers unread for so long are closed.
    pub write_timeout: Duration,
    /// Connections that leave a request half sent for so long are closed.
    pub read_timeout: Duration,
    /// Bytes of requests and answers that all connections together may keep while they wait.
    pub buffers_len_max: usize,
    /// False for `-F`.
    pub flush_allowed: bool,
    /// False for `-X`.
    pub dumps_allowed: bool,
    /// False for `-W`.
    pub watch_allowed: bool,
    /// Whether commands that change the server are taken from `sessionctl` alone.
    pub admin_confined: bool,
    /// Whether `debugtime` is served.
    pub debug_commands: bool,
    /// The settings of memcached's own mechanisms at start.
    pub tuning: Tuning,
    /// Called on `shutdown`; none for a server started without `-A`.
    pub shutdown: Option<ShutdownHook>,
    /// Whether TCP sources are judged by the allowlist; false for `--guard=off`.
    pub judge_sources: bool,
    /// Whoever the allowlist refuses is let in from the first connection on, and counted (`--guard=audit`).
    pub audited: bool,
    /// Whether listening sockets carry the guard's filter, which connections inherit.
    pub sockets_filtered: bool,
    /// Which protocols are spoken (`-B`).
    pub binding: Binding,
    /// How clients say who they are (`-Y`, `-S`).
    pub login: Login,
    /// Whom they may be; replaced when the file is read again.
    pub credentials: Arc<ArcSwap<Credentials>>,
    /// What listeners with TLS need (`-Z`).
    pub tls: Option<Arc<Tls>>,
    /// What is shown of TLS, whether there is any or not.
    pub tls_shown: TlsShown,
    /// How often `-v` was given.
    pub verbosity: u32,
    /// Whether items may be changed by datagram (`--udp-writes`).
    pub udp_writes: bool,
    /// `-p`, for `stats settings`.
    pub tcp_port: u16,
    /// `-U`, for `stats settings`.
    pub udp_port: u16,
    /// `-l` as given, for `stats settings`.
    pub inter: Option<String>,
    /// `-s`, for `stats settings`.
    pub unix_path: Option<String>,
    /// `-a`, for `stats settings`.
    pub unix_mask: u32,
    /// `-b`, for `stats settings`.
    pub backlog: u32,
    /// `-e`, for `stats settings`.
    pub memory_file: Option<String>,
    /// What answers in the kernel, in front of the workers (`--kernel-plane`).
    pub plane: Option<Arc<Plane>>,
    /// How long the start of the store took, for `stats`.
    pub store_start: Duration,
    /// Bytes up to which `cache_memlimit` may raise the limit; none where nothing is known.
    pub memory_most: Option<usize>,
    /// The process that signals are for, which `-P` names, for `stats`.
    pub pid: u32,
}

impl Default for ServerConfig {
    /// memcached's defaults.
    fn default() -> Self {
        Self {
            threads: 4,
            engine: Engine::default(),
            conns_max: 1024,
            maxconns_fast: true,
            requests_per_turn: 20,
            idle_timeout: None,
            write_timeout: WRITE_TIMEOUT,
            read_timeout: READ_TIMEOUT,
            buffers_len_max: BUFFERS_LEN_MAX,
            flush_allowed: true,
            dumps_allowed: true,
            watch_allowed: true,
            admin_confined: false,
            debug_commands: false,
            tuning: Tuning::default(),
            shutdown: None,
            judge_sources: true,
            audited: false,
            sockets_filtered: false,
            binding: Binding::Auto,
            login: Login::Free,
            credentials: Arc::default(),
            tls: None,
            tls_shown: TlsShown::default(),
            verbosity: 0,
            udp_writes: false,
            tcp_port: 11211,
            udp_port: 0,
            inter: None,
            unix_path: None,
            unix_mask: 0o700,
            backlog: 1024,
            memory_file: None,
            plane: None,
            store_start: Duration::ZERO,
            memory_most: None,
            pid: std::process::id(),
        }
    }
}
