//! What is concluded from what was found.
#![forbid(unsafe_code)]

use super::*;

#[test]
fn kernels_by_what_they_lack() {
    for (release, state, text) in [
        ("4.18.0-553.el8", State::Fail, "needs 5.10"),
        ("5.10.0-28-amd64", State::Warn, "3,500"),
        ("6.1.0-18-amd64", State::Warn, "no tcx"),
        ("6.18.2", State::Ok, "frags"),
        ("zork", State::Warn, "no version"),
    ] {
        let finding = host::kernel(release, host::version(release));
        assert_eq!(finding.state, state, "{release}");
        assert!(finding.text.contains(text), "{finding:?}");
        assert_eq!(finding.fix.is_some(), state != State::Ok);
    }
}

#[test]
fn offloads_are_named_with_the_command_that_ends_them() {
    let features = "Features for eth0:\ngeneric-receive-offload: on\n\
                    large-receive-offload: on\nrx-gro-hw: off [fixed]\n";
    let findings = devices::offloads("eth0", features);
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].fix.as_deref(), Some("ethtool -K eth0 lro off"));
    assert!(devices::offloads("eth0", "").is_empty());
}

#[test]
fn a_large_mtu_too_few_queues_and_tracked_connections_each_have_their_fix() {
    let mtu = devices::too_large("eth0", "ena", Some(9001)).unwrap();
    assert_eq!(mtu.fix.as_deref(), Some("ip link set eth0 mtu 3498"));
    assert!(devices::too_large("eth0", "ena", Some(1500)).is_none());
    let queues = devices::enough("eth0", 1, 4, 4);
    assert!(queues.fix.unwrap().starts_with("ethtool -L eth0 combined 4"));
    for (queues, wanted) in [(4, 4), (1, 0)] {
        assert_eq!(devices::enough("eth0", queues, wanted, 4).state, State::Ok);
    }
    let established = "-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT";
    for (rules, now, state) in [
        (established, 900, State::Fail),
        (established, 100, State::Warn),
        ("-A INPUT -p tcp --dport 11211 -j DROP", 900, State::Ok),
        ("-t raw -A PREROUTING -j NOTRACK -m state --state NEW", 900, State::Ok),
    ] {
        let finding = network::tracked(11211, rules, now, 1000);
        assert_eq!(finding.state, state, "{finding:?}");
        let fix = finding.fix.unwrap_or_default();
        assert_eq!(fix.contains("--dport 11211 -j NOTRACK"), state != State::Ok, "{fix}");
    }
}

#[test]
fn a_boot_rule_is_named_with_the_command_that_ends_it() {
    use crate::control::ctl::boot::Verdict;
    for (verdict, state) in [
        (Verdict::None, State::Ok),
        (Verdict::BeingLifted, State::Ok),
        (Verdict::Waits, State::Warn),
        (Verdict::Incomplete, State::Fail),
        (Verdict::ForEver, State::Fail),
    ] {
        let finding = boot::told(11_311, verdict);
        assert_eq!(finding.state, state, "{finding:?}");
        let fix = finding.fix.unwrap_or_default();
        assert_eq!(
            fix.contains("sessionctl -p 11311 boot-rule clear"),
            state != State::Ok,
            "{fix}"
        );
    }
}

#[test]
fn io_uring_by_its_setting() {
    let states = [None, Some(0), Some(1), Some(2)].map(|value| host::io_uring(value).state);
    assert_eq!(states, [State::Ok, State::Ok, State::Warn, State::Warn]);
}

#[test]
fn memory_is_read_in_bytes() {
    let text = "MemTotal:       16384000 kB\nMemAvailable:    1024 kB\n";
    assert_eq!(memory::meminfo(text, "MemAvailable"), Some(1 << 20));
    assert_eq!(memory::meminfo(text, "Mem"), None);
}

#[test]
fn a_daemon_is_judged_by_what_it_enforces() {
    let plan = Plan {
        port: 11211,
        memory_limit: 64 << 20,
        memory_file: None,
        bpffs: "/sys/fs/bpf".into(),
    };
    let state = |status: Value| daemon(&plan, Some(&status))[0].state;
    assert_eq!(state(json!({"enforced": "xdp", "guard": {"complete": true}})), State::Ok);
    assert_eq!(state(json!({"enforced": "xdp", "guard": {"complete": false}})), State::Fail);
    assert_eq!(state(json!({"enforced": "audit"})), State::Warn);
    assert_eq!(state(json!({"enforced": "off"})), State::Fail);
    assert_eq!(daemon(&plan, None)[0].state, State::Ok);
}
