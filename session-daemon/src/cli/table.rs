//! The table of flags: memcached's letters and long names, and our own long names.
#![forbid(unsafe_code)]

/// One flag of the command line, by its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flag {
    /// `-p`
    Port,
    /// `-U`
    UdpPort,
    /// `-s`
    UnixSocket,
    /// `-a`
    UnixMask,
    /// `-A`
    EnableShutdown,
    /// `-l`
    Listen,
    /// `-d`
    Daemon,
    /// `-r`
    EnableCoredumps,
    /// `-u`
    User,
    /// `-m`
    MemoryLimit,
    /// `-M`
    DisableEvictions,
    /// `-c`
    ConnLimit,
    /// `-k`
    LockMemory,
    /// `-v`, repeatable
    Verbose,
    /// `-h`
    Help,
    /// `-i`
    License,
    /// `-V`
    Version,
    /// `-P`
    Pidfile,
    /// `-f`
    GrowthFactor,
    /// `-n`
    SlabMinSize,
    /// `-t`
    Threads,
    /// `-R`
    MaxReqsPerEvent,
    /// `-C`
    DisableCas,
    /// `-b`
    ListenBacklog,
    /// `-B`
    Protocol,
    /// `-I`
    MaxItemSize,
    /// `-F`
    DisableFlushAll,
    /// `-X`
    DisableDumping,
    /// `-W`
    DisableWatch,
    /// `-Z`
    EnableSsl,
    /// `-S`
    EnableSasl,
    /// `-Y`
    AuthFile,
    /// `--sasl-pwdb`
    SaslPwdb,
    /// `-L`
    LargePages,
    /// `-N`
    NapiIds,
    /// `-D`
    Delimiter,
    /// `-o`
    Extended,
    /// `--udp-writes`
    UdpWrites,
    /// `--read-timeout`
    ReadTimeout,
    /// `--write-timeout`
    WriteTimeout,
    /// `--buffer-limit`
    BufferLimit,
    /// `--protect`
    Protect,
    /// `--io`
    Io,
    /// `--admin`
    Admin,
    /// `--allow`
    Allow,
    /// `--allow-file`
    AllowFile,
    /// `--allow-any`
    AllowAny,
    /// `--interface`
    Interface,
    /// `--guard`
    Guard,
    /// `--guard-mode`
    GuardMode,
    /// `--refuse`
    Refuse,
    /// `--control`
    Control,
    /// `--state`
    State,
    /// `--bpffs`
    Bpffs,
    /// `--metrics-listen`
    MetricsListen,
    /// `-e`
    MemoryFile,
    /// `--kernel-plane`
    KernelPlane,
    /// `--config`
    Config,
    /// A flag of memcached's that is recognised so that the refusal can name it.
    Unserved(&'static Unserved),
}

/// A flag of memcached's that `sessiond` refuses by name.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Unserved {
    /// memcached's letter.
    pub short: char,
    /// memcached's long name, empty where it has none.
    pub long: &'static str,
    /// Whether it takes an argument.
    pub argument: bool,
}

/// Every flag of memcached's that is refused by name.
pub const UNSERVED: &[Unserved] = &[];

/// Whether a flag takes an argument, as in `getopt_long`'s `has_arg`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Argument {
    None,
    Required,
    /// Only as `--name=value`.
    Optional,
}

/// One row: letter, long name, argument, meaning. A NUL letter stands for none.
pub(super) struct Row {
    pub(super) short: char,
    pub(super) long: &'static str,
    pub(super) argument: Argument,
    pub(super) flag: Flag,
}

const fn row(short: char, long: &'static str, argument: Argument, flag: Flag) -> Row {
    Row { short, long, argument, flag }
}

const FLAGS: &[Row] = &[
    row('p', "port", Argument::Required, Flag::Port),
    row('U', "udp-port", Argument::Required, Flag::UdpPort),
    row('s', "unix-socket", Argument::Required, Flag::UnixSocket),
    row('a', "unix-mask", Argument::Required, Flag::UnixMask),
    row('A', "enable-shutdown", Argument::None, Flag::EnableShutdown),
    row('l', "listen", Argument::Required, Flag::Listen),
    row('d', "daemon", Argument::None, Flag::Daemon),
    row('r', "enable-coredumps", Argument::None, Flag::EnableCoredumps),
    row('u', "user", Argument::Required, Flag::User),
    row('m', "memory-limit", Argument::Required, Flag::MemoryLimit),
    row('e', "memory-file", Argument::Required, Flag::MemoryFile),
    row('M', "disable-evictions", Argument::None, Flag::DisableEvictions),
    row('c', "conn-limit", Argument::Required, Flag::ConnLimit),
    row('k', "lock-memory", Argument::None, Flag::LockMemory),
    row('v', "verbose", Argument::Optional, Flag::Verbose),
    row('h', "help", Argument::None, Flag::Help),
    row('i', "license", Argument::None, Flag::License),
    row('V', "version", Argument::None, Flag::Version),
    row('P', "pidfile", Argument::Required, Flag::Pidfile),
    row('f', "slab-growth-factor", Argument::Required, Flag::GrowthFactor),
    row('n', "slab-min-size", Argument::Required, Flag::SlabMinSize),
    row('t', "threads", Argument::Required, Flag::Threads),
    row('R', "max-reqs-per-event", Argument::Required, Flag::MaxReqsPerEvent),
    row('C', "disable-cas", Argument::None, Flag::DisableCas),
    row('b', "listen-backlog", Argument::Required, Flag::ListenBacklog),
    row('B', "protocol", Argument::Required, Flag::Protocol),
    row('I', "max-item-size", Argument::Required, Flag::MaxItemSize),
    row('F', "disable-flush-all", Argument::None, Flag::DisableFlushAll),
    row('X', "disable-dumping", Argument::None, Flag::DisableDumping),
    row('W', "disable-watch", Argument::None, Flag::DisableWatch),
    row('Z', "enable-ssl", Argument::None, Flag::EnableSsl),
    row('S', "enable-sasl", Argument::None, Flag::EnableSasl),
    row('Y', "auth-file", Argument::Required, Flag::AuthFile),
    row('\0', "sasl-pwdb", Argument::Required, Flag::SaslPwdb),
    row('L', "enable-largepages", Argument::None, Flag::LargePages),
    row('N', "napi-ids", Argument::Required, Flag::NapiIds),
    row('D', "", Argument::Required, Flag::Delimiter),
    row('o', "extended", Argument::Required, Flag::Extended),
    row('\0', "config", Argument::Required, Flag::Config),
    row('\0', "udp-writes", Argument::None, Flag::UdpWrites),
    row('\0', "kernel-plane", Argument::Optional, Flag::KernelPlane),
    row('\0', "read-timeout", Argument::Required, Flag::ReadTimeout),
    row('\0', "write-timeout", Argument::Required, Flag::WriteTimeout),
    row('\0', "buffer-limit", Argument::Required, Flag::BufferLimit),
    row('\0', "protect", Argument::Required, Flag::Protect),
    row('\0', "io", Argument::Required, Flag::Io),
    row('\0', "allow", Argument::Required, Flag::Allow),
    row('\0', "allow-file", Argument::Required, Flag::AllowFile),
    row('\0', "allow-any", Argument::None, Flag::AllowAny),
    row('\0', "interface", Argument::Required, Flag::Interface),
    row('\0', "guard", Argument::Required, Flag::Guard),
    row('\0', "guard-mode", Argument::Required, Flag::GuardMode),
    row('\0', "refuse", Argument::Required, Flag::Refuse),
    row('\0', "admin", Argument::Required, Flag::Admin),
    row('\0', "control", Argument::Required, Flag::Control),
    row('\0', "state", Argument::Required, Flag::State),
    row('\0', "bpffs", Argument::Required, Flag::Bpffs),
    row('\0', "metrics-listen", Argument::Required, Flag::MetricsListen),
];

/// How the flag is written: its letter, or its long name where it has none.
#[must_use]
pub fn spelling(flag: Flag) -> String {
    let row = rows().find(|row| row.flag == flag);
    row.map_or_else(String::new, |row| match row.short {
        '\0' => format!("--{}", row.long),
        letter => format!("-{letter}"),
    })
}

/// Every row, those that are refused by name included.
pub(super) fn rows() -> impl Iterator<Item = Row> {
    let served = FLAGS.iter().map(|flag| row(flag.short, flag.long, flag.argument, flag.flag));
    let unserved = UNSERVED.iter().map(|flag| {
        let argument = if flag.argument { Argument::Required } else { Argument::None };
        row(flag.short, flag.long, argument, Flag::Unserved(flag))
    });
    served.chain(unserved)
}
