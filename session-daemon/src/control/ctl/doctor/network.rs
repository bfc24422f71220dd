//! The network stack: who holds the port, what leads to it, how long its queues are.
#![forbid(unsafe_code)]

use std::path::Path;

use crate::control::ctl::doctor::{Finding, Plan, number, output};
use crate::control::ctl::import;

/// Shortest queue of connections that wait to be accepted.
const SOMAXCONN: u64 = 1024;

pub(super) fn findings(plan: &Plan) -> Vec<Finding> {
    let mut findings = vec![redirects(plan.port)];
    findings.extend(conntrack(plan.port));
    findings.push(at_least("net.core.somaxconn", SOMAXCONN, "a burst of connections is refused"));
    findings.push(at_least(
        "net.ipv4.tcp_max_syn_backlog",
        SOMAXCONN,
        "a burst of connections waits for a retry",
    ));
    findings.push(at_least(
        "net.core.netdev_max_backlog",
        1000,
        "packets are lost before the stack sees them",
    ));
    findings.push(at_least("net.ipv4.tcp_syncookies", 1, "a flood of SYNs fills the queue"));
    findings.push(reverse_path());
    findings
}

/// Rules that turn another port into the guarded one, or that one into another.
fn redirects(port: u16) -> Finding {
    let check = "redirects";
    let fix = "iptables-save -t nat; nft list ruleset";
    match import::redirects(port) {
        Ok(found) if found.is_empty() => {
            Finding::ok(check, format!("no rule of NAT names port {port}"))
        }
        Ok(found) => Finding::warn(
            check,
            format!(
                "{}: the guard judges ports on the wire, and the sockets' own filter what comes \
                 through",
                found.join("; ")
            ),
            fix,
        ),
        Err(error) => Finding::warn(check, format!("the rules cannot be read: {error:#}"), fix),
    }
}

/// Connection tracking in front of the port.
fn conntrack(port: u16) -> Option<Finding> {
    let check = "conntrack";
    let (Some(most), Some(now)) = (
        number("/proc/sys/net/netfilter/nf_conntrack_max"),
        number("/proc/sys/net/netfilter/nf_conntrack_count"),
    ) else {
        return Some(Finding::ok(check, "not loaded"));
    };
    let rules = [output("iptables-save", &[]), output("nft", &["list", "ruleset"])];
    let rules: String = rules.into_iter().flatten().collect();
    Some(tracked(port, &rules, now, most))
}

/// What rules make of `now` tracked connections, of `most`.
pub(super) fn tracked(port: u16, rules: &str, now: u64, most: u64) -> Finding {
    let check = "conntrack";
    if rules.contains("NOTRACK") || rules.contains("notrack") {
        return Finding::ok(check, "a rule leaves connections untracked");
    }
    let tracks = ["--state", "--ctstate", "ct state", "MASQUERADE", "DNAT", "SNAT", "REDIRECT"];
    if !tracks.iter().any(|word| rules.contains(word)) {
        return Finding::ok(check, "no rule asks for it");
    }
    let fix = format!(
        "iptables -t raw -I PREROUTING -p tcp --dport {port} -j NOTRACK; \
         iptables -t raw -I OUTPUT -p tcp --sport {port} -j NOTRACK"
    );
    if now.saturating_mul(5) > most.saturating_mul(4) {
        let text = format!("{now} of {most} connections are tracked: new ones will be dropped");
        return Finding::fail(check, text, fix);
    }
    let text =
        format!("{now} of {most}: each page of a web server adds connections, which cost 1 us");
    Finding::warn(check, text, fix)
}

/// A setting that should not be smaller.
fn at_least(setting: &str, least: u64, otherwise: &str) -> Finding {
    let path = Path::new("/proc/sys").join(setting.replace('.', "/"));
    match number(path) {
        None => Finding::ok(setting, "this kernel or namespace has no such setting"),
        Some(value) if value >= least => Finding::ok(setting, value.to_string()),
        Some(value) => Finding::warn(
            setting,
            format!("{value}: {otherwise}"),
            format!("sysctl -w {setting}={least}"),
        ),
    }
}

fn reverse_path() -> Finding {
    let setting = "net.ipv4.conf.all.rp_filter";
    let directory = Path::new("/proc/sys/net/ipv4/conf");
    let value = |name: &str| number(directory.join(name).join("rp_filter")).unwrap_or(0);
    let names = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let open: Vec<String> = names
        .filter(|name| !["all", "default", "lo"].contains(&name.as_str()) && value(name) == 0)
        .collect();
    if value("all") > 0 || open.is_empty() {
        return Finding::ok(setting, "forged sources are refused where routing shows them");
    }
    Finding::warn(
        setting,
        format!(
            "packets with forged sources come in through {}, which matters for UDP",
            open.join(", ")
        ),
        format!("sysctl -w {setting}=1"),
    )
}
