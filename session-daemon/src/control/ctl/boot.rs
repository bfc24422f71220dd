//! `sessionctl boot-rule`: the port closed by nftables from boot on, until the guard stands.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};

use crate::config::PORT;
use crate::control::ctl::args::{Arguments, BootRule};
use crate::control::ctl::{Offline, print};
use crate::guard::boot::{BootRules, rule};

/// Does what is asked for; no daemon has a part in it.
pub(super) fn run(arguments: &Arguments, what: &BootRule, offline: Offline) -> Result<()> {
    let ports = |config: &Option<std::path::PathBuf>| match config {
        Some(path) => (offline.boot_ports)(path),
        None => Ok(BTreeSet::from([arguments.port.unwrap_or(PORT)])),
    };
    let (ports, text) = match what {
        BootRule::Print { config } => {
            let ports = ports(config)?;
            let text = rule(&ports);
            (ports, text)
        }
        BootRule::Set { config } => {
            let ports = ports(config)?;
            set(&ports)?;
            let text = told(&ports, NOTHING_GUARDED, CLOSED);
            (ports, text)
        }
        BootRule::Clear => {
            let ports = clear(arguments.port)?;
            let text = told(&ports, "no boot rule stands", "the boot rule is gone");
            (ports, text)
        }
    };
    let answer = json!({"ok": true, "ports": ports, "rule": matches!(what, BootRule::Print { .. })
        .then_some(&text)});
    print(arguments, &answer, &text)
}

const NOTHING_GUARDED: &str =
    "nothing to close: with these settings sessiond has no guard, or serves nobody but this host";
const CLOSED: &str = "closed to all but this host, until sessiond has its guard on every interface";

/// One line a port.
fn told(ports: &BTreeSet<u16>, none: &str, each: &str) -> String {
    let mut text = String::new();
    for port in ports {
        let _ = writeln!(text, "port {port}: {each}");
    }
    if ports.is_empty() { format!("{none}\n") } else { text }
}

/// Loads the rule, and looks that it stands.
fn set(ports: &BTreeSet<u16>) -> Result<()> {
    if ports.is_empty() {
        return Ok(());
    }
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut nft = match command.spawn() {
        Ok(nft) => nft,
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(
            "nft, which loads the rule, is not installed: apt install nftables, or dnf install \
             nftables"
        ),
        Err(error) => return Err(error).context("starting nft"),
    };
    let mut input = nft.stdin.take().context("piped")?;
    // One that ends early says why.
    let _ = input.write_all(rule(ports).as_bytes());
    drop(input);
    let output = nft.wait_with_output().context("waiting for nft")?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "nft refuses the rule, so the port is as it was: {}; run sessionctl as root, on a kernel \
         with nf_tables and nft_fib_inet",
        told.trim()
    );
    let standing = standing()?;
    match ports.iter().find(|port| !standing.contains(port)) {
        Some(port) => Err(anyhow!("nft took the rule of port {port}, and the kernel has none")),
        None => Ok(()),
    }
}

/// Takes the rule of a port away, or all.
fn clear(port: Option<u16>) -> Result<BTreeSet<u16>> {
    let mut rules = BootRules::open().context(ASKING)?;
    let mut cleared = BTreeSet::new();
    for one in rules.standing().context(ASKING)? {
        if port.is_none_or(|port| port == one)
            && rules.remove(one).with_context(|| format!("taking the rule of port {one} away"))?
        {
            cleared.insert(one);
        }
    }
    Ok(cleared)
}

const ASKING: &str = "asking nftables (as root?)";

/// Ports that rules keep closed in this network namespace.
pub(super) fn standing() -> Result<BTreeSet<u16>> {
    BootRules::open().and_then(|mut rules| rules.standing()).context(ASKING)
}

/// Says to whom no daemon answers what is closed meanwhile.
pub(super) fn without_daemon(error: anyhow::Error) -> anyhow::Error {
    let standing = standing().unwrap_or_default();
    let Some(port) = standing.first() else { return error };
    anyhow!(
        "{error:#}; the boot rule keeps port {port} closed until sessiond guards it, or until \
         `sessionctl boot-rule clear`"
    )
}

/// What a daemon of `port` says of itself, beside the ports that rules keep closed.
pub(super) fn verdict(port: u16, standing: &BTreeSet<u16>, status: Option<&Value>) -> Verdict {
    if !standing.contains(&port) {
        return Verdict::None;
    }
    match status.map(|status| (&status["enforced"], status["guard"]["complete"] == true)) {
        None => Verdict::Waits,
        Some((enforced, complete)) if enforced == "xdp" || enforced == "audit" => {
            if complete {
                Verdict::BeingLifted
            } else {
                Verdict::Incomplete
            }
        }
        Some(_) => Verdict::ForEver,
    }
}

/// What a rule is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// There is none.
    None,
    /// No daemon answers.
    Waits,
    /// The guard stands.
    BeingLifted,
    /// It does not stand everywhere.
    Incomplete,
    /// There will be no guard.
    ForEver,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_judged_by_who_will_lift_it() {
        let standing = BTreeSet::from([11_211]);
        let status =
            |enforced, complete| json!({"enforced": enforced, "guard": {"complete": complete}});
        assert_eq!(verdict(11_311, &standing, None), Verdict::None);
        assert_eq!(verdict(11_211, &standing, None), Verdict::Waits);
        for (enforced, complete, expected) in [
            ("xdp", true, Verdict::BeingLifted),
            ("audit", true, Verdict::BeingLifted),
            ("xdp", false, Verdict::Incomplete),
            ("user", false, Verdict::ForEver),
            ("off", false, Verdict::ForEver),
        ] {
            let status = status(enforced, complete);
            assert_eq!(verdict(11_211, &standing, Some(&status)), expected, "{status}");
        }
    }
}
