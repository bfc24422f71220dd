//! The boot rule as a start sees it: which ports one is for, and a daemon that lifts none.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::cli::Flag;
use crate::config::{Config, GuardKind, Port};
use crate::guard::boot::BootRules;
use crate::startup::flag_files;
use crate::startup::sockets::is_loopback;

/// As [`super::boot_ports`].
pub(super) fn ports(path: &Path) -> Result<BTreeSet<u16>> {
    let what = || format!("--config {}", path.display());
    let named = path.to_str().with_context(|| format!("{}: not UTF-8", what()))?;
    let (flags, _) = flag_files::expand(vec![(Flag::Config, Some(named.to_owned()))])?;
    let is_any = |(flag, value): &(Flag, Option<String>)| {
        *flag == Flag::UdpPort && value.as_deref().is_some_and(|text| text.trim() == "-1")
    };
    let any_udp = flags.iter().rev().find(|(flag, _)| *flag == Flag::UdpPort).is_some_and(is_any);
    let config = Config::from_flags(flags).with_context(what)?;
    if any_udp || config.port == Port::Any {
        bail!("{}: -1 is a port that nobody knows before sessiond has it; write a number", what());
    }
    Ok(guarded(&config))
}

/// The ports that the guard will stand before.
fn guarded(config: &Config) -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    if config.guard != GuardKind::Xdp || config.unix_socket.is_some() {
        return ports;
    }
    let udp = Some(config.udp_port).filter(|port| *port != 0);
    let common = [config.port_number(), udp];
    if config.listen.is_empty() {
        ports.extend(common.into_iter().flatten());
    }
    for word in config.listen.iter().filter(|word| !is_own_host(&word.host)) {
        match word.port {
            Some(port) => drop(ports.insert(port)),
            None => ports.extend(common.into_iter().flatten()),
        }
    }
    ports
}

/// Whether a host of `-l` is this host's loopback. Other names are not resolved: there may be no
/// network yet.
fn is_own_host(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| is_loopback(address))
}

/// Says that a rule stands which a daemon without a guard does not lift. Asked in vain without
/// CAP_NET_ADMIN, which a daemon without a guard need not have.
pub(super) fn warn(addresses: &[SocketAddr]) {
    let outside: BTreeSet<u16> = addresses
        .iter()
        .filter(|address| !is_loopback(address.ip()))
        .map(SocketAddr::port)
        .collect();
    if outside.is_empty() {
        return;
    }
    let standing = BootRules::open().and_then(|mut rules| rules.standing()).unwrap_or_default();
    for port in standing.intersection(&outside) {
        log::warn!(
            "the boot rule keeps port {port} closed to everybody, and without --guard=xdp nobody \
             lifts it: sessionctl boot-rule clear"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_rule_is_for_the_ports_that_the_guard_will_stand_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sessiond.conf");
        for (text, expected) in [
            ("-m 64\n", &[11_211][..]),
            ("-p 11311\n-U 11312\n", &[11_311, 11_312]),
            ("-l 127.0.0.1\n", &[]),
            ("-l ::1,localhost:1\n", &[]),
            ("-l 127.0.0.1\n-l cache.example:11400,192.0.2.5\n", &[11_211, 11_400]),
            ("-l [2001:db8::5]:11500\n-p 0\n", &[11_500]),
            ("--guard=user\n", &[]),
            ("--guard=audit\n", &[11_211]),
            ("-s /run/cache.sock\n", &[]),
        ] {
            fs::write(&path, text).unwrap();
            let ports: Vec<u16> = ports(&path).unwrap().into_iter().collect();
            assert_eq!(ports, expected, "{text}");
        }
        for (text, word) in [
            ("-p -1\n", "nobody knows"),
            ("-p 1\n-U -1\n", "nobody knows"),
            ("-p x\n", "port number x"),
        ] {
            fs::write(&path, text).unwrap();
            let error = format!("{:#}", ports(&path).unwrap_err());
            assert!(error.contains("--config") && error.contains(word), "{error}");
        }
    }
}
