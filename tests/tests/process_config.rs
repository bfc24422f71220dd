//! Files that memcached's services read start sessiond, unchanged.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use session_tests::client::Client;
use session_tests::netns::Namespace;
use session_tests::process::Process;
use session_tests::scratch::Scratch;
use session_tests::{binaries, require_root, wait};

/// As Fedora's package installs it, with another size.
const SYSCONFIG: &str = "PORT=\"11211\"\nUSER=\"nobody\"\nMAXCONN=\"777\"\nCACHESIZE=\"96\"\n\
                         OPTIONS=\"-l 127.0.0.1,::1 -o idle_timeout=90\"\n";

/// As Debian's package installs it, with a user that every machine has.
const DEBIAN: &str = "\
# memcached default config file
# 2003 - Jay Bonci <jaybonci@debian.org>

# Run memcached as a daemon. This command is implied, and is not needed for the
# daemon to run. See the README.Debian that comes with this package for more
# information.
-d

# Log memcached's output to /var/log/memcached
logfile /var/log/memcached.log

# Start with a cap of 64 megs of memory.
-m 96

-p 11211

-u nobody

-l 127.0.0.1
#-l ::1

-c 777

-o idle_timeout=90
";

#[test]
fn both_forms_start_it_unchanged() {
    require_root!();
    for (text, remarks) in [(SYSCONFIG, 0), (DEBIAN, 2)] {
        let scratch = Scratch::new("config").unwrap();
        let namespace = Namespace::new("config").unwrap();
        let path = scratch.join("memcached");
        fs::write(&path, text).unwrap();
        let mut command = sessiond(&scratch);
        command.arg("--config").arg(&path);
        let log = scratch.join("log");
        let mut daemon = Process::start(&mut command, Some(&namespace), &log).unwrap();
        let settings = daemon.until("answer", || {
            namespace.run(|| {
                let mut client = Client::connect("127.0.0.1".parse().unwrap(), 11211).ok()?;
                client.stats("settings").ok()
            })
        });
        assert_eq!(settings["maxbytes"], (96 << 20).to_string());
        assert_eq!(settings["maxconns"], "777");
        assert_eq!(settings["idle_timeout"], "90");
        let said = daemon.log().matches("the line changes nothing").count();
        assert_eq!(said, remarks, "{}", daemon.log());
    }
}

#[test]
fn the_command_line_goes_on_where_the_file_ends() {
    require_root!();
    let scratch = Scratch::new("config").unwrap();
    let namespace = Namespace::new("config").unwrap();
    let path = scratch.join("memcached");
    fs::write(&path, SYSCONFIG).unwrap();
    let mut command = sessiond(&scratch);
    command.arg("--config").arg(&path).args(["-p", "11311"]);
    let log = scratch.join("log");
    let mut daemon = Process::start(&mut command, Some(&namespace), &log).unwrap();
    daemon.until("answer on the other port", || {
        namespace.run(|| Client::connect("127.0.0.1".parse().unwrap(), 11311).ok())
    });
}

#[test]
fn a_file_that_cannot_be_trusted_or_read_ends_the_start() {
    require_root!();
    let scratch = Scratch::new("config").unwrap();
    let path = scratch.join("memcached");
    for (text, mode, expected) in [
        (SYSCONFIG, 0o666, "others can write to it; run: chmod go-w"),
        ("-m 64\nlisten on 1.2.3.4\n", 0o644, "line 2: `listen on 1.2.3.4` is neither a flag"),
        ("PORT=\"x\"\n", 0o644, "Invalid port number x"),
    ] {
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let mut command = sessiond(&scratch);
        command.arg("--config").arg(&path).args(["-l", "127.0.0.1"]);
        let log = scratch.join("log");
        let namespace = Namespace::new("config").unwrap();
        let mut daemon = Process::start(&mut command, Some(&namespace), &log).unwrap();
        let status = daemon.wait(wait::PATIENCE).expect("it does not start");
        assert!(!status.success() && daemon.log().contains(expected), "{}", daemon.log());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    }
}

fn sessiond(scratch: &Scratch) -> Command {
    let mut command = Command::new(binaries::sessiond());
    command.arg("--control").arg(scratch.join("control.sock"));
    command.arg("--state").arg(scratch.join("overlay.json"));
    command
}
