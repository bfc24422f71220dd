//! `sessionctl import iptables` against the machine's own iptables and nft: the list says of every
//! source what the rules say of its packets.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::process::{Command, Output};

use session_tests::binaries;
use session_tests::client::REFUSAL_TIMEOUT;
use session_tests::require_root;
use session_tests::scratch::Scratch;
use session_tests::sessiond::PORT;
use session_tests::topology::{Host, Topology};

/// A chain as such hosts have it: accepts by source, a jump, and a rejecting tail.
const RULES: &str = "*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:CACHE - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p icmp -j ACCEPT
-A INPUT -p tcp -m multiport --dports 11200:11300 -j CACHE
-A INPUT -j REJECT --reject-with icmp-host-prohibited
-A CACHE -s 198.18.0.13/32 -j RETURN
-A CACHE -s 198.18.0.11/32 -m comment --comment \"web one\" -j ACCEPT
-A CACHE -m iprange --src-range 198.18.0.12-198.18.0.14 -j ACCEPT
COMMIT
";

const LIST: [&str; 4] = [
    "allow 198.18.0.11/32 # web one",
    "allow 198.18.0.12/31",
    "deny 198.18.0.13/32",
    "allow 198.18.0.14/32",
];

fn ctl(topology: &Topology, arguments: &[&str]) -> Output {
    let mut command = Command::new(binaries::sessionctl());
    topology.cache.namespace.output(command.args(arguments)).unwrap()
}

fn entries(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

fn install(topology: &Topology, scratch: &Scratch) -> bool {
    let file = scratch.join("rules");
    fs::write(&file, RULES).unwrap();
    let mut restore = Command::new("iptables-restore");
    let output = topology.cache.namespace.output(restore.arg(&file));
    output.is_ok_and(|output| output.status.success())
}

fn reaches(host: &Host, topology: &Topology) -> bool {
    let address = (topology.cache.v4, PORT).into();
    match host.run(|| std::net::TcpStream::connect_timeout(&address, REFUSAL_TIMEOUT)) {
        Ok(_) => true,
        Err(error) => {
            let refusals = [ErrorKind::TimedOut, ErrorKind::HostUnreachable];
            assert!(refusals.contains(&error.kind()), "{error}");
            false
        }
    }
}

#[test]
fn the_hosts_own_chain_is_read_and_the_list_says_what_it_does() {
    require_root!();
    let topology = Topology::new(4).unwrap();
    let scratch = Scratch::new("import").unwrap();
    if !install(&topology, &scratch) {
        session_tests::skip!("iptables-restore does not work here");
    }
    let output = ctl(&topology, &["import", "iptables"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(entries(&output), LIST);
    let remarks = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!remarks.contains("IPv4"), "{remarks}");
    // The same from a file, and again as what an allow file may be.
    let rules = scratch.join("rules");
    let from_file = ctl(&topology, &["import", "iptables", rules.to_str().unwrap()]);
    assert_eq!(entries(&from_file), LIST);
    let server = topology.cache.run(|| TcpListener::bind(("0.0.0.0", PORT)).unwrap());
    let reached: Vec<bool> = topology.allowed.iter().map(|host| reaches(host, &topology)).collect();
    assert_eq!(reached, [true, true, false, true], "what the chain itself does");
    assert!(!reaches(&topology.stranger, &topology));
    drop(server);
}

#[test]
fn nft_rules_are_read_and_refused_by_handle() {
    require_root!();
    let topology = Topology::new(0).unwrap();
    let nft = |rules: &str| {
        let mut command = Command::new("nft");
        topology.cache.namespace.output(command.arg(rules))
    };
    let rules = "table inet fw {
        set web { type ipv4_addr; flags interval; elements = { 198.18.0.11, 198.18.2.0/24 }; }
        chain incoming {
            type filter hook input priority 0; policy drop;
            iifname lo accept
            ct state established,related accept
            ip saddr @web tcp dport { 22, 11211 } accept
            ip6 saddr 2001:db8::/64 tcp dport 11211 accept comment \"web\"
        }
    }";
    if !nft(rules).is_ok_and(|output| output.status.success()) {
        session_tests::skip!("nft does not work here");
    }
    let output = ctl(&topology, &["import", "iptables"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        entries(&output),
        ["allow 198.18.0.11/32", "allow 198.18.2.0/24", "allow 2001:db8::/64 # web"]
    );
    let limited =
        nft("add rule inet fw incoming limit rate 5/second tcp dport 11211 accept").unwrap();
    assert!(limited.status.success(), "{limited:?}");
    let output = ctl(&topology, &["import", "iptables"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("handle") && error.contains("limit"), "{error}");
    assert!(output.stdout.is_empty());
}
