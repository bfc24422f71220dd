//! One function a kind of argument: its rule, memcached's text and exit status.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::str::FromStr;

use crate::cli::Unserved;
use crate::config::{EXIT_USAGE, GuardKind, GuardMode, Io, MetricsListen, Port, Refusal};
use crate::guard::Refuse;
use crate::server::binding::Binding;

/// memcached warns above this many threads.
const THREADS_MAX: u16 = 1024;

pub(super) fn usage(text: impl Into<String>) -> Refusal {
    Refusal::new(EXIT_USAGE, text)
}

/// What asks for any port that is free.
pub(super) const ANY_PORT: &str = "-1";

pub(super) fn port(text: &str) -> Result<Port, Refusal> {
    match text.trim().parse::<i64>() {
        Ok(-1) => Ok(Port::Any),
        Ok(0) => Ok(Port::Off),
        Ok(number) => u16::try_from(number).map(Port::Number).map_err(|_| bad_port(text)),
        Err(_) => Err(bad_port(text)),
    }
}

fn bad_port(text: &str) -> Refusal {
    usage(format!("ERROR: Invalid port number {text}."))
}

/// The number that `-U` gives; of `-1` one that is free now, 0 for none.
pub(super) fn udp_port(text: &str) -> Result<u16, Refusal> {
    let bad = || usage(format!("ERROR: Invalid UDP port number {text}."));
    if text.trim() != ANY_PORT {
        return text.trim().parse().map_err(|_| bad());
    }
    let free = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|free| free.local_addr());
    free.map(|free| free.port()).map_err(|_| bad())
}

pub(super) fn path(flag: &str, text: &str) -> Result<PathBuf, Refusal> {
    if text.is_empty() {
        return Err(usage(format!("{flag} needs a path")));
    }
    Ok(PathBuf::from(text))
}

pub(super) fn octal(text: &str) -> Result<u32, Refusal> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mask| *mask <= 0o777)
        .ok_or_else(|| usage(format!("-a {text}: write the access mask in octal, 0 to 777")))
}

/// A count from 1; anything else is refused with `text` and memcached's status 1.
pub(super) fn positive<N: FromStr + Default + PartialOrd>(
    argument: &str,
    text: &str,
) -> Result<N, Refusal> {
    argument
        .trim()
        .parse::<N>()
        .ok()
        .filter(|number| *number > N::default())
        .ok_or_else(|| Refusal::new(1, text))
}

pub(super) fn threads(argument: &str) -> Result<u16, Refusal> {
    let number: u16 = positive(argument, "Number of threads must be greater than 0")?;
    if number > THREADS_MAX {
        return Err(Refusal::new(1, format!("Number of threads must be at most {THREADS_MAX}")));
    }
    Ok(number)
}

pub(super) fn megabytes(text: &str) -> Result<u64, Refusal> {
    let number: u64 = text
        .trim()
        .parse()
        .map_err(|_| usage(format!("-m {text}: write the memory limit in megabytes")))?;
    number.checked_mul(1 << 20).ok_or_else(|| usage(format!("-m {text}: too many megabytes")))
}

/// `-I`: leading digits and a `k` or `m` at the end; what is no number counts as 0, as `atoi`
/// has it, and is refused as too small.
pub(super) fn size(text: &str) -> u64 {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().unwrap_or(0);
    let unit = match &text[digits..] {
        "" => 1,
        "k" | "K" => 1 << 10,
        "m" | "M" => 1 << 20,
        _ => 0,
    };
    number.saturating_mul(unit)
}

pub(super) fn factor(text: &str) -> Result<f64, Refusal> {
    text.trim()
        .parse::<f64>()
        .ok()
        .filter(|factor| factor.is_finite() && *factor > 1.0)
        .ok_or_else(|| Refusal::new(1, "Factor must be greater than 1"))
}

/// `-v` once more, or `--verbose=N`.
pub(super) fn verbosity(before: u8, argument: &str) -> Result<u8, Refusal> {
    if argument.is_empty() {
        return Ok(before.saturating_add(1));
    }
    argument.parse().map_err(|_| usage(format!("--verbose={argument}: write a number, 0 to 3")))
}

pub(super) fn binding(text: &str) -> Result<Binding, Refusal> {
    match text {
        "auto" => Ok(Binding::Auto),
        "ascii" => Ok(Binding::Ascii),
        "binary" => Ok(Binding::Binary),
        _ => Err(usage(format!(
            "Invalid value for binding protocol: {text}\n -- should be one of auto, binary, or ascii"
        ))),
    }
}

/// `-D`: one byte that a key can hold.
pub(super) fn delimiter(text: &str) -> Result<u8, Refusal> {
    match text.as_bytes() {
        [byte] if byte.is_ascii_graphic() => Ok(*byte),
        _ => Err(usage(format!("-D {text}: write one visible character"))),
    }
}

/// `--admin`: whether commands that change the server are confined to the control socket.
pub(super) fn admin(text: &str) -> Result<bool, Refusal> {
    match text {
        "control" => Ok(true),
        "clients" => Ok(false),
        _ => Err(usage(format!("--admin={text}: should be one of clients or control"))),
    }
}

/// Names of at most 15 bytes without a slash or a blank, as the kernel has them.
pub(super) fn interfaces(text: &str) -> Result<Vec<String>, Refusal> {
    let name = |name: &str| {
        let fits = (1..=15).contains(&name.len());
        if !fits || name.contains(|c: char| c == '/' || c.is_whitespace()) {
            return Err(usage(format!("--interface: `{name}` is no interface name")));
        }
        if name == "lo" {
            return Err(usage(
                "--interface lo: nothing comes in over lo but this host's own traffic, \
                 which is allowed",
            ));
        }
        Ok(name.to_owned())
    };
    text.split(',').map(|part| name(part.trim())).collect()
}

pub(super) fn io(text: &str) -> Result<Io, Refusal> {
    match text {
        "auto" => Ok(Io::Auto),
        "uring" => Ok(Io::Uring),
        "tokio" => Ok(Io::Tokio),
        _ => Err(usage(format!("--io={text}: should be one of auto, uring, or tokio"))),
    }
}

/// `--guard`: who refuses strangers, and whether they are only counted.
pub(super) fn guard(text: &str) -> Result<(GuardKind, bool), Refusal> {
    match text {
        "xdp" => Ok((GuardKind::Xdp, false)),
        "audit" => Ok((GuardKind::Xdp, true)),
        "user" => Ok((GuardKind::User, false)),
        "off" => Ok((GuardKind::Off, false)),
        _ => Err(usage(format!("--guard={text}: should be one of xdp, audit, user, or off"))),
    }
}

/// `--metrics-listen`: `unix:PATH`, an address with a port, or a port of the loopback.
pub(super) fn metrics(text: &str) -> Result<MetricsListen, Refusal> {
    let fault = || {
        usage(format!(
            "--metrics-listen={text}: write a port, an address with a port such as \
             127.0.0.1:9150 or [::1]:9150, or unix:PATH"
        ))
    };
    if let Some(path) = text.strip_prefix("unix:") {
        return self::path("--metrics-listen", path).map(MetricsListen::Unix);
    }
    if let Ok(port) = text.parse::<u16>() {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        return if port == 0 { Err(fault()) } else { Ok(MetricsListen::Tcp(address)) };
    }
    let address = text.parse::<SocketAddr>().map_err(|_| fault())?;
    if address.port() == 0 { Err(fault()) } else { Ok(MetricsListen::Tcp(address)) }
}

pub(super) fn guard_mode(text: &str) -> Result<GuardMode, Refusal> {
    match text {
        "auto" => Ok(GuardMode::Auto),
        "native" => Ok(GuardMode::Native),
        "tcx" => Ok(GuardMode::Tcx),
        "generic" => Ok(GuardMode::Generic),
        _ => Err(usage(format!(
            "--guard-mode={text}: should be one of auto, native, tcx, or generic"
        ))),
    }
}

pub(super) fn refuse(text: &str) -> Result<Refuse, Refusal> {
    let unknown = || usage(format!("--refuse={text}: should be one of drop, reset, or icmp"));
    Refuse::of_name(text).ok_or_else(unknown)
}

pub(super) fn unserved(flag: &Unserved) -> Refusal {
    let long = if flag.long.is_empty() { String::new() } else { format!(" (--{})", flag.long) };
    usage(format!("-{}{long} is not served by sessiond; leave it out", flag.short))
}
