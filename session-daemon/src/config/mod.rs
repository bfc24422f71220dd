//! What the flags mean: values checked, defaults filled in, refusals with memcached's texts and
//! exit statuses. It reads no file and opens no socket.
#![forbid(unsafe_code)]

pub mod file;
mod listen;
mod places;
mod plane;
mod protect;
mod refusal;
mod suboptions;
mod tls;
mod value;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::allowlist::parse::{Any, check_any, parse_prefixes};
use crate::allowlist::{Action, Entry, Origin};
use crate::cli::Flag;
pub use crate::config::listen::{ListenAddress, TlsPrefix, split_listen};
pub use crate::config::places::{CONTROL_DIR, STATE_DIR, default_control};
pub use crate::config::plane::KernelPlane;
pub use crate::config::protect::Protect;
pub use crate::config::refusal::Refusal;
pub use crate::config::tls::TlsOptions;
use crate::guard::Refuse;
use crate::server::binding::Binding;
use crate::server::tuning::Tuning;

/// `EX_USAGE` of sysexits.h.
pub const EXIT_USAGE: u8 = 64;
/// `EX_NOUSER`.
pub const EXIT_NO_USER: u8 = 67;
/// `EX_OSERR`.
pub const EXIT_OS: u8 = 71;

/// memcached's port.
pub const PORT: u16 = 11211;

/// Largest `-I`.
const ITEM_SIZE_LIMIT: u64 = 1 << 30;
/// Smallest `-I`.
const ITEM_SIZE_MIN: u64 = 1024;

/// Who keeps strangers from the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuardKind {
    /// The XDP program, and user space again at accept.
    Xdp,
    /// User space alone, at accept.
    User,
    /// Nobody: every source is served.
    Off,
}

/// What moves the bytes of plain connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Io {
    /// The one that serves most loads best, which is tokio.
    Auto,
    /// io_uring, for many connections that speak at the same time.
    Uring,
    /// tokio, by way of epoll.
    Tokio,
}

/// Which attach modes the guard may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuardMode {
    /// Native with fragments, native, tcx; the best that each interface takes.
    Auto,
    /// Native only.
    Native,
    /// tcx only.
    Tcx,
    /// Generic XDP, behind the network stack's first allocation.
    Generic,
}

/// Where figures for Prometheus are served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetricsListen {
    /// An address and a port.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

/// The port that `-p` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Port {
    /// `-p 0`: no TCP.
    Off,
    /// `-p -1`: whichever is free.
    Any,
    /// A number.
    Number(u16),
}

/// Everything that the command line says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// `-p`.
    pub port: Port,
    /// `-U`; 0 for no UDP.
    pub udp_port: u16,
    /// `--udp-writes`.
    pub udp_writes: bool,
    /// `-l`; empty for all addresses.
    pub listen: Vec<ListenAddress>,
    /// `-s`.
    pub unix_socket: Option<PathBuf>,
    /// `-a`.
    pub unix_mask: u32,
    /// `-A`.
    pub shutdown: bool,
    /// `-d`.
    pub daemonize: bool,
    /// `-r`.
    pub core_dumps: bool,
    /// `-u`.
    pub user: Option<String>,
    /// `-m`, bytes.
    pub memory_limit: u64,
    /// `-e`.
    pub memory_file: Option<PathBuf>,
    /// Not `-M`.
    pub evictions: bool,
    /// `--kernel-plane`.
    pub kernel_plane: Option<KernelPlane>,
    /// `--protect`.
    pub protect: Vec<Protect>,
    /// `-c`.
    pub connections_max: u32,
    /// `-k`.
    pub lock_memory: bool,
    /// How often `-v` was given.
    pub verbosity: u8,
    /// `-P`.
    pub pidfile: Option<PathBuf>,
    /// `-f`.
    pub growth_factor: f64,
    /// `-n`, bytes.
    pub chunk_min: u32,
    /// `-t`.
    pub threads: u16,
    /// `-R`.
    pub requests_per_turn: u32,
    /// Not `-C`.
    pub cas: bool,
    /// `-b`.
    pub backlog: u32,
    /// `-B`.
    pub binding: Binding,
    /// `-Y`.
    pub auth_file: Option<PathBuf>,
    /// `-S`.
    pub sasl: bool,
    /// `--sasl-pwdb`, or what the environment says in its place.
    pub sasl_pwdb: Option<PathBuf>,
    /// `-Z` and `-o ssl_*`.
    pub tls: TlsOptions,
    /// `-I`, bytes.
    pub item_size_max: u64,
    /// Not `-F`.
    pub flush_all: bool,
    /// `-o maxconns_fast`.
    pub maxconns_fast: bool,
    /// `-o idle_timeout`, seconds, 0 for none.
    pub idle_timeout_s: u32,
    /// `--read-timeout`, seconds.
    pub read_timeout_s: u32,
    /// `--write-timeout`, seconds.
    pub write_timeout_s: u32,
    /// `--io`.
    pub io: Io,
    /// `--buffer-limit`, bytes.
    pub buffer_limit: u64,
    /// Not `-X`.
    pub dumps: bool,
    /// Not `-W`.
    pub watch: bool,
    /// `--admin=control`.
    pub admin_confined: bool,
    /// `-o relaxed_privileges`, which stands for memcached's debug build.
    pub debug_commands: bool,
    /// `-o no_drop_privileges`: the serving process may open files by name, as its user may.
    pub files_open: bool,
    /// `-o sock_cookie_id`.
    pub socket_mark: Option<u32>,
    /// The settings of memcached's own mechanisms.
    pub tuning: Tuning,
    /// `--allow`.
    pub allow: Vec<IpNet>,
    /// `--allow-file`.
    pub allow_files: Vec<PathBuf>,
    /// `--allow-any`.
    pub allow_any: bool,
    /// `--interface`; empty for all but lo.
    pub interfaces: Vec<String>,
    /// `--guard`.
    pub guard: GuardKind,
    /// `--guard=audit`: [`GuardKind::Xdp`] that counts and refuses nobody.
    pub audit: bool,
    /// `--guard-mode`.
    pub guard_mode: GuardMode,
    /// `--refuse`.
    pub refuse: Refuse,
    /// `--control`; none for the default, which [`Config::control_path`] knows.
    pub control: Option<PathBuf>,
    /// `--state`; none for the default, which [`Config::state_path`] knows.
    pub state: Option<PathBuf>,
    /// `--bpffs`.
    pub bpffs: PathBuf,
    /// `--metrics-listen`.
    pub metrics: Option<MetricsListen>,
    /// Lines for the log: flags that are accepted because they change nothing here.
    pub remarks: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            port: Port::Number(PORT),
            udp_port: 0,
            udp_writes: false,
            listen: Vec::new(),
            unix_socket: None,
            unix_mask: 0o700,
            shutdown: false,
            daemonize: false,
            core_dumps: false,
            user: None,
            memory_limit: 64 << 20,
            memory_file: None,
            kernel_plane: None,
            evictions: true,
            protect: Vec::new(),
            connections_max: 1024,
            lock_memory: false,
            verbosity: 0,
            pidfile: None,
            growth_factor: 1.25,
            chunk_min: 48,
            threads: 4,
            requests_per_turn: 20,
            cas: true,
            backlog: 1024,
            binding: Binding::Auto,
            auth_file: None,
            sasl: false,
            sasl_pwdb: None,
            tls: TlsOptions::default(),
            item_size_max: 1 << 20,
            flush_all: true,
            maxconns_fast: true,
            idle_timeout_s: 0,
            read_timeout_s: 60,
            write_timeout_s: 60,
            io: Io::Auto,
            buffer_limit: 128 << 20,
            dumps: true,
            watch: true,
            admin_confined: false,
            debug_commands: false,
            files_open: false,
            socket_mark: None,
            tuning: Tuning::default(),
            allow: Vec::new(),
            allow_files: Vec::new(),
            allow_any: false,
            interfaces: Vec::new(),
            guard: GuardKind::Xdp,
            audit: false,
            guard_mode: GuardMode::Auto,
            refuse: Refuse::Drop,
            control: None,
            state: None,
            bpffs: PathBuf::from("/sys/fs/bpf"),
            metrics: None,
            remarks: Vec::new(),
        }
    }
}

impl Config {
    /// Gives the flags their meaning, in the order in which they were given.
    ///
    /// # Errors
    /// The first flag that cannot be honoured, with memcached's text and exit status where
    /// memcached has one.
    pub fn from_flags(flags: Vec<(Flag, Option<String>)>) -> Result<Self, Refusal> {
        let mut config = Self::default();
        let given = |sought| flags.iter().any(|(flag, _)| *flag == sought);
        let (port_given, binding_given) = (given(Flag::Port), given(Flag::Protocol));
        let any_udp = flags.iter().rev().find(|(flag, _)| *flag == Flag::UdpPort);
        let any_udp = any_udp
            .is_some_and(|(_, text)| text.as_deref().is_some_and(|t| t.trim() == value::ANY_PORT));
        for (flag, argument) in flags {
            config.take(flag, argument.as_deref().unwrap_or_default())?;
        }
        config.log_in(binding_given)?;
        if config.udp_port != 0 && !port_given {
            // A number that is free for datagrams need not be for connections.
            config.port = if any_udp { Port::Any } else { Port::Number(config.udp_port) };
        }
        config.check()?;
        Ok(config)
    }

    fn take(&mut self, flag: Flag, argument: &str) -> Result<(), Refusal> {
        match flag {
            Flag::Port => self.port = value::port(argument)?,
            Flag::UdpPort => self.udp_port = value::udp_port(argument)?,
            Flag::UdpWrites => self.udp_writes = true,
            Flag::ReadTimeout => {
                let text = "--read-timeout must be a number of seconds greater than 0";
                self.read_timeout_s = value::positive(argument, text)?;
            }
            Flag::WriteTimeout => {
                let text = "--write-timeout must be a number of seconds greater than 0";
                self.write_timeout_s = value::positive(argument, text)?;
            }
            Flag::BufferLimit => {
                let text = "--buffer-limit must be a number of megabytes greater than 0";
                let megabytes: u32 = value::positive(argument, text)?;
                self.buffer_limit = u64::from(megabytes) << 20;
            }
            Flag::UnixSocket => self.unix_socket = Some(value::path("-s", argument)?),
            Flag::UnixMask => self.unix_mask = value::octal(argument)?,
            Flag::EnableShutdown => self.shutdown = true,
            Flag::Listen => self.listen.extend(split_listen(argument)?),
            Flag::Daemon => self.daemonize = true,
            Flag::EnableCoredumps => self.core_dumps = true,
            Flag::User => self.user = Some(argument.to_owned()),
            Flag::MemoryLimit => self.memory_limit = value::megabytes(argument)?,
            Flag::MemoryFile => self.memory_file = Some(value::path("-e", argument)?),
            Flag::KernelPlane => self.kernel_plane = Some(plane::kernel_plane(argument)?),
            Flag::DisableEvictions => self.evictions = false,
            Flag::Protect => self.protect.push(protect::protect(argument)?),
            Flag::ConnLimit => {
                let text = "Maximum connections must be greater than 0";
                self.connections_max = value::positive(argument, text)?;
            }
            Flag::LockMemory => self.lock_memory = true,
            Flag::Verbose => self.verbosity = value::verbosity(self.verbosity, argument)?,
            Flag::Pidfile => self.pidfile = Some(value::path("-P", argument)?),
            Flag::GrowthFactor => self.growth_factor = value::factor(argument)?,
            Flag::SlabMinSize => {
                let text = "Chunk size must be greater than 0";
                self.chunk_min = value::positive(argument, text)?;
            }
            Flag::Threads => self.threads = value::threads(argument)?,
            Flag::MaxReqsPerEvent => {
                let text = "Number of requests per event must be greater than 0";
                self.requests_per_turn = value::positive(argument, text)?;
            }
            Flag::DisableCas => self.cas = false,
            Flag::ListenBacklog => {
                self.backlog = value::positive(argument, "listen backlog must be greater than 0")?;
            }
            Flag::Protocol => self.binding = value::binding(argument)?,
            Flag::MaxItemSize => self.item_size_max = value::size(argument),
            Flag::DisableFlushAll => self.flush_all = false,
            Flag::EnableSsl => self.tls.enabled = true,
            Flag::EnableSasl => self.sasl = true,
            Flag::AuthFile => self.auth_file = Some(value::path("-Y", argument)?),
            Flag::SaslPwdb => self.sasl_pwdb = Some(value::path("--sasl-pwdb", argument)?),
            Flag::DisableDumping => self.dumps = false,
            Flag::DisableWatch => self.watch = false,
            Flag::LargePages => self.remark(
                "-L: memory is taken as it is needed, and the kernel makes large pages of it \
                 where /sys/kernel/mm/transparent_hugepage says so",
            ),
            Flag::NapiIds => {
                let text = "Maximum number of NAPI IDs must be greater than 0";
                self.tuning.napi_ids = value::positive(argument, text)?;
                self.remark("-N: connections go to the worker that serves fewest");
            }
            Flag::Delimiter => {
                self.tuning.prefix_delimiter = value::delimiter(argument)?;
                self.tuning.detail = true;
            }
            Flag::Admin => self.admin_confined = value::admin(argument)?,
            Flag::Extended => suboptions::take(self, argument)?,
            Flag::Allow => self.allow.extend(
                parse_prefixes(argument)
                    .map_err(|error| Refusal::new(EXIT_USAGE, format!("--allow: {error}")))?,
            ),
            Flag::AllowFile => self.allow_files.push(value::path("--allow-file", argument)?),
            Flag::AllowAny => self.allow_any = true,
            Flag::Interface => self.interfaces.extend(value::interfaces(argument)?),
            Flag::Io => self.io = value::io(argument)?,
            Flag::Guard => (self.guard, self.audit) = value::guard(argument)?,
            Flag::GuardMode => self.guard_mode = value::guard_mode(argument)?,
            Flag::Refuse => self.refuse = value::refuse(argument)?,
            Flag::Control => self.control = Some(value::path("--control", argument)?),
            Flag::State => self.state = Some(value::path("--state", argument)?),
            Flag::MetricsListen => self.metrics = Some(value::metrics(argument)?),
            Flag::Bpffs => self.bpffs = value::path("--bpffs", argument)?,
            Flag::Unserved(flag) => return Err(value::unserved(flag)),
            // Answered, or replaced by what is in the file, before anything else is looked at.
            Flag::Config | Flag::Help | Flag::License | Flag::Version => {}
        }
        Ok(())
    }

    /// What authentication asks of the other flags: one protocol, and no UDP, where nobody can be
    /// known.
    fn log_in(&mut self, binding_given: bool) -> Result<(), Refusal> {
        let usage = |text: &str| Err(Refusal::new(EXIT_USAGE, text));
        if self.sasl_pwdb.is_some() && !self.sasl {
            return usage("--sasl-pwdb needs -S");
        }
        if !self.sasl && self.auth_file.is_none() {
            return Ok(());
        }
        if self.sasl && self.auth_file.is_some() {
            return usage("-S is for the binary protocol and -Y for ASCII; leave one of them out");
        }
        let wanted = if self.sasl { Binding::Binary } else { Binding::Ascii };
        if binding_given && self.binding != wanted {
            return usage(if self.sasl {
                "ERROR: You cannot allow the ASCII protocol while using SASL."
            } else {
                "ERROR: You cannot allow the BINARY protocol while using ascii authentication tokens."
            });
        }
        self.binding = wanted;
        if self.udp_port != 0 {
            return usage(
                "ERROR: Cannot enable UDP while using authentication: \
                 nobody can be known by a datagram; leave -U out",
            );
        }
        let named = || std::env::var_os("MEMCACHED_SASL_PWDB").map(PathBuf::from);
        if self.sasl && self.sasl_pwdb.is_none() {
            self.sasl_pwdb = named().filter(|path| !path.as_os_str().is_empty());
            if self.sasl_pwdb.is_none() {
                return usage(
                    "-S: name a file of user:password lines by --sasl-pwdb or \
                     MEMCACHED_SASL_PWDB; saslauthd and sasldb are not asked",
                );
            }
        }
        Ok(())
    }

    /// The file of passwords that clients are asked for, and the flag that names it.
    #[must_use]
    pub fn passwords(&self) -> Option<(&'static str, &Path)> {
        let token = self.auth_file.as_deref().map(|path| ("-Y", path));
        token.or_else(|| Some(("-S", self.sasl_pwdb.as_deref()?)))
    }

    /// Checks that need several flags together.
    fn check(&self) -> Result<(), Refusal> {
        let usage = |text: &str| Err(Refusal::new(EXIT_USAGE, text));
        if self.item_size_max < ITEM_SIZE_MIN {
            return usage("Item max size cannot be less than 1024 bytes.");
        }
        if self.item_size_max > self.memory_limit / 2 {
            return usage("Cannot set item size limit higher than 1/2 of memory max.");
        }
        if self.item_size_max > ITEM_SIZE_LIMIT {
            return usage("Cannot set item size limit higher than a gigabyte.");
        }
        if self.unix_socket.is_none()
            && self.listen.is_empty()
            && self.port == Port::Off
            && self.udp_port == 0
        {
            return usage("nothing to listen on: -p 0 needs -s, -U, or -l with a port of its own");
        }
        if self.unix_socket.is_some() && self.udp_port != 0 {
            return usage("-U: with -s there is no network; leave one of the two out");
        }
        if self.udp_writes && self.udp_port == 0 {
            return usage("--udp-writes needs -U");
        }
        if self.tuning.napi_ids > u32::from(self.threads) {
            return usage(&format!(
                "Number of napi_ids({}) cannot be greater than number of threads({})",
                self.tuning.napi_ids, self.threads
            ));
        }
        suboptions::check(self)?;
        protect::check(&self.protect, self.evictions)?;
        plane::check(self)?;
        let asks = |tls: TlsPrefix| self.listen.iter().any(|address| address.tls == tls);
        self.tls.check(asks(TlsPrefix::Mutual))?;
        if !self.tls.enabled && (asks(TlsPrefix::Basic) || asks(TlsPrefix::Mutual)) {
            return usage("-l btls: and mtls: need -Z");
        }
        if self.tls.enabled && (self.unix_socket.is_some() || self.port == Port::Off) {
            return usage("-Z needs a TCP port");
        }
        for prefix in &self.allow {
            check_any(*prefix, Action::Allow, self.any())
                .map_err(|error| Refusal::new(EXIT_USAGE, format!("--allow: {error}")))?;
        }
        Ok(())
    }

    /// Whether an entry may allow every address.
    #[must_use]
    pub fn any(&self) -> Any {
        if self.allow_any { Any::Permitted } else { Any::Refused }
    }

    /// The entries of `--allow`.
    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        self.allow.iter().map(|prefix| Entry::new(*prefix, Action::Allow, Origin::Config))
    }

    /// `-p` as a number; none if TCP is off or any port will do.
    #[must_use]
    pub fn port_number(&self) -> Option<u16> {
        match self.port {
            Port::Number(number) => Some(number),
            Port::Any | Port::Off => None,
        }
    }

    /// The words of `-l`, joined by commas; none for all addresses.
    #[must_use]
    pub fn listen_words(&self) -> Option<String> {
        let words: Vec<&str> = self.listen.iter().map(|address| address.word.as_str()).collect();
        (!words.is_empty()).then(|| words.join(","))
    }

    /// Makes every path absolute, so that a change of directory (`-d`) does not move it.
    ///
    /// # Errors
    /// The current directory is gone.
    pub fn with_absolute_paths(mut self) -> std::io::Result<Self> {
        let optional = [
            &mut self.unix_socket,
            &mut self.pidfile,
            &mut self.control,
            &mut self.state,
            &mut self.auth_file,
            &mut self.sasl_pwdb,
            &mut self.memory_file,
        ];
        let named = optional.into_iter().flatten().chain(self.tls.paths());
        for path in named.chain(&mut self.allow_files).chain([&mut self.bpffs]) {
            *path = std::path::absolute(&*path)?;
        }
        Ok(self)
    }

    fn remark(&mut self, text: &str) {
        self.remarks.push(format!("{text}; the flag changes nothing"));
    }
}

#[cfg(test)]
mod tests;
