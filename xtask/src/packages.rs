//! The Debian packages that the tests use, installed as root, otherwise named; and clients of PyPI.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Result;

use crate::shell;

/// What the tests drive or compare with.
pub(crate) const FOR_TESTS: &[&str] = &[
    "bpftool",
    "ethtool",
    "iproute2",
    "iptables",
    "libmemcached-tools",
    "memcached",
    "nftables",
    "python3-prometheus-client",
    "python3-pylibmc",
    "python3-pymemcache",
    "python3-venv",
    "rpm",
    "systemd",
    "xdp-tools",
];

/// What keeps sessions of PHP in a cache, and stands around it.
pub(crate) const FOR_PHP: &[&str] = &[
    "faketime",
    "iproute2",
    "iptables",
    "memcached",
    "nginx-light",
    "nutcracker",
    "php-memcache",
    "php-memcached",
    "php8.2-fpm",
];

/// How to get [`FOR_PHP`].
pub(crate) fn advice() -> String {
    format!("on Debian 12: apt-get install {}", FOR_PHP.join(" "))
}

/// Debian's Python, whose modules the clients from PyPI use as well.
const PYTHON: &str = "/usr/bin/python3";

/// Installs the clients from PyPI in `target/clients`, or says why not: their tests skip
/// themselves then, and are counted.
pub(crate) fn ensure_clients() {
    let directory = shell::root().join("target/clients");
    let wanted = shell::root().join("tests/clients/requirements.txt");
    let installed = directory.join("requirements.txt");
    let same = |a: &Path, b: &Path| std::fs::read(a).ok().zip(std::fs::read(b).ok());
    if same(&wanted, &installed).is_some_and(|(wanted, installed)| wanted == installed) {
        return;
    }
    if let Err(error) = install_clients(&directory, &wanted)
        .and_then(|()| Ok(std::fs::copy(&wanted, &installed).map(drop)?))
    {
        println!("cannot install {}: {error:#}", wanted.display());
    }
}

fn install_clients(directory: &Path, wanted: &Path) -> Result<()> {
    let mut environment = Command::new(PYTHON);
    environment.args(["-m", "venv", "--system-site-packages"]).arg(directory);
    shell::run(&mut environment)?;
    let mut pip = Command::new(directory.join("bin/pip"));
    pip.args(["install", "--quiet", "--no-input", "--disable-pip-version-check", "-r"]);
    shell::run(pip.arg(wanted))
}

/// Installs the packages that are missing, or says which they are.
///
/// A machine that has no apt-get or does not reach its archive goes on without them: the tests
/// that need them skip themselves, and are counted.
pub(crate) fn ensure(packages: &[&str]) {
    if shell::find("dpkg-query").is_none() || shell::find("apt-get").is_none() {
        println!("not a Debian machine; needed in its own packaging: {}", packages.join(" "));
        return;
    }
    let missing: Vec<&str> = packages.iter().copied().filter(|name| !installed(name)).collect();
    if missing.is_empty() {
        return;
    }
    if !shell::is_root() {
        println!("missing, install as root: apt-get install {}", missing.join(" "));
        return;
    }
    if let Err(error) = install(&missing) {
        println!("cannot install {}: {error:#}", missing.join(" "));
    }
}

fn install(packages: &[&str]) -> Result<()> {
    // An archive list that is already there may be enough, so a failed update is no error yet.
    let _ = shell::run(apt().args(["update", "-qq"]));
    shell::run(apt().args(["install", "-qq", "-y", "--no-install-recommends"]).args(packages))
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    // Only the programs are wanted: nginx and memcached are not to begin to serve here.
    command.env("SYSTEMD_OFFLINE", "1").env("RUNLEVEL", "1");
    command
}

fn installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${db:Status-Status}", package]).stderr(Stdio::null());
    query.output().is_ok_and(|output| output.stdout == b"installed")
}
