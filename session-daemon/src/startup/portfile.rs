//! The file that MEMCACHED_PORT_FILENAME names: which ports are served, for whoever asked for any
//! (`-p -1`). Written beside itself and renamed, so that nobody reads half of it.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// memcached's variable.
const VARIABLE: &str = "MEMCACHED_PORT_FILENAME";

/// Writes the file, if there is to be one. A failure is told, as memcached does, and ends nothing.
pub(super) fn write(addresses: &[SocketAddr], datagram_addresses: &[SocketAddr]) {
    let Some(path) = std::env::var_os(VARIABLE).map(PathBuf::from) else { return };
    if let Err(error) = write_to(&path, addresses, datagram_addresses) {
        log::warn!("{VARIABLE}: failed to write {}: {error}", path.display());
    }
}

fn write_to(
    path: &Path,
    addresses: &[SocketAddr],
    datagram_addresses: &[SocketAddr],
) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lck");
    let mut file = File::options().write(true).create_new(true).open(&beside)?;
    for (protocol, addresses) in [("TCP", addresses), ("UDP", datagram_addresses)] {
        for address in addresses {
            let family = if address.is_ipv4() { "INET" } else { "INET6" };
            writeln!(file, "{protocol} {family}: {}", address.port())?;
        }
    }
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::write_to;

    #[test]
    fn the_ports_stand_in_memcached_s_words() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ports");
        let addresses = ["127.0.0.1:5".parse().unwrap(), "[::1]:6".parse().unwrap()];
        write_to(&path, &addresses, &addresses[..1]).unwrap();
        let written = std::fs::read_to_string(&path).unwrap();
        assert_eq!(written, "TCP INET: 5\nTCP INET6: 6\nUDP INET: 5\n");
        assert!(!directory.path().join("ports.lck").exists());
    }
}
