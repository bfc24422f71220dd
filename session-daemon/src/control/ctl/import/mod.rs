//! `sessionctl import iptables`: the list that equals a firewall's chains for a port.
//!
//! It reads rules and prints a list; it changes nothing. What a list of sources cannot say is
//! refused by the rule's name, and nobody is let in by a guess.
#![forbid(unsafe_code)]

mod chain;
mod ipset;
mod iptables;
mod nft;
mod ranges;
#[cfg(test)]
mod tests;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::allowlist::{Allowlist, Entry};
use crate::control::changes::entry_line;
use crate::control::ctl::import::chain::{Chains, entries};
use crate::control::ctl::import::ipset::Sets;
use crate::control::ctl::import::ranges::{Family, Ranges};

/// Tables that iptables keeps in nftables where it is built on them.
const IPTABLES_TABLES: [&str; 5] = ["raw", "mangle", "nat", "security", "filter"];

/// What is said where nothing filters.
const NO_RULES: &str = "no rules for packets to this host were found; name files of \
     iptables-save, ip6tables-save or `nft --json list ruleset`";

/// Over what is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    fn is(self, text: &str) -> bool {
        match self {
            Self::Tcp => matches!(text, "tcp" | "6"),
            Self::Udp => matches!(text, "udp" | "17"),
        }
    }
}

/// The port that the chains are asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) port: u16,
    pub(super) protocol: Protocol,
}

/// One text to read, and what it is.
pub(super) struct Source {
    name: String,
    text: String,
}

/// The list of chains, with what the operator should know.
#[derive(Debug)]
pub(super) struct Imported {
    pub(super) entries: Vec<Entry>,
    pub(super) remarks: Vec<String>,
}

/// Reads files, or this host's rules if none is named.
pub(super) fn sources(files: &[PathBuf]) -> Result<Vec<Source>> {
    let read = |path: &PathBuf| -> Result<Source> {
        let name = path.display().to_string();
        let text = if path == Path::new("-") {
            std::io::read_to_string(std::io::stdin()).context("reading standard input")?
        } else {
            std::fs::read_to_string(path).with_context(|| format!("reading {name}"))?
        };
        Ok(Source { name, text })
    };
    if files.is_empty() { live() } else { files.iter().map(read).collect() }
}

/// What this host's own tools say.
fn live() -> Result<Vec<Source>> {
    let found = live_or_none()?;
    ensure!(!found.is_empty(), NO_RULES);
    Ok(found)
}

fn live_or_none() -> Result<Vec<Source>> {
    let mut found = Vec::new();
    for (program, arguments) in [
        ("iptables-save", &[][..]),
        ("ip6tables-save", &[]),
        ("nft", &["--json", "list", "ruleset"]),
        ("ipset", &["save"]),
    ] {
        let name = format!("{program} {}", arguments.join(" ")).trim().to_owned();
        match Command::new(program).args(arguments).output() {
            Ok(output) if output.status.success() => {
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                if !text.trim().is_empty() {
                    found.push(Source { name, text });
                }
            }
            Ok(output) if program != "ipset" => {
                let why = String::from_utf8_lossy(&output.stderr);
                bail!("{name}: {}; run sessionctl as root, or name a file", why.trim());
            }
            // Not installed: then nothing was made with it.
            _ => {}
        }
    }
    Ok(found)
}

/// What a text is, by its form.
enum Form {
    Iptables(Family),
    Nft(Value),
    Ipset,
}

fn form(source: &Source) -> Result<Form> {
    let text = source.text.trim_start();
    if text.starts_with('{') {
        let value = serde_json::from_str(text).context("not the JSON of nft")?;
        return Ok(Form::Nft(value));
    }
    if text.starts_with("create ") {
        return Ok(Form::Ipset);
    }
    ensure!(
        text.lines().any(|line| line.starts_with('*')),
        "neither iptables-save, ip6tables-save, `ipset save` nor `nft --json list ruleset`"
    );
    let says = |what: &str| text.contains(what);
    let by_name = source.name.contains("ip6tables") || source.name.ends_with("v6");
    let by_text = says("by ip6tables-save") || says("ipv6-icmp") || says("-s ::") || has_v6(text);
    Ok(Form::Iptables(if by_name || by_text { Family::V6 } else { Family::V4 }))
}

/// Whether a rule names an IPv6 source.
fn has_v6(text: &str) -> bool {
    text.split_whitespace().any(|word| {
        let address = word.split('/').next().unwrap_or_default();
        address.parse::<std::net::Ipv6Addr>().is_ok()
    })
}

/// What the texts say together, over TCP, and where UDP differs.
pub(super) fn import(sources: &[Source], port: u16, any: bool) -> Result<Imported> {
    let mut sets = Sets::default();
    let mut forms = Vec::new();
    for source in sources {
        match form(source).with_context(|| source.name.clone())? {
            Form::Ipset => sets = Sets::read(&source.text).with_context(|| source.name.clone())?,
            form => forms.push((source, form)),
        }
    }
    ensure!(!forms.is_empty(), "there are sets, and no rules; give the rules as well");
    let (mut all, mut remarks) = (Vec::new(), Vec::new());
    let mut families = 0;
    for family in [Family::V4, Family::V6] {
        let asked = Asked { port, protocol: Protocol::Tcp };
        let groups = chains(&forms, family, &sets, asked, &mut remarks)?;
        if groups.is_empty() {
            remarks.push(format!(
                "no rules for {0} were given: every {0} source will be refused",
                family.name()
            ));
            continue;
        }
        families += 1;
        let (mut accepted, mut grants) = (Ranges::all(family), Vec::new());
        for group in &groups {
            let outcome = group.outcome()?;
            accepted = accepted.intersection(&outcome.accepted);
            grants.extend(outcome.grants);
        }
        ensure!(
            any || !accepted.is_most(family),
            "the rules let nearly every {} source reach port {port}; name the networks in a list \
             of your own, or pass --any if that is meant",
            family.name()
        );
        let udp = Asked { port, protocol: Protocol::Udp };
        remarks.extend(udp_remark(&forms, family, &sets, udp, &accepted));
        all.extend(entries(&accepted, &grants, family));
    }
    ensure!(families > 0, NO_RULES);
    let list: Allowlist = all.iter().cloned().collect();
    list.check_size()?;
    if all.is_empty() {
        remarks.push(format!("the rules let nobody reach port {port}: the list is empty"));
    }
    remarks.dedup();
    Ok(Imported { entries: all, remarks })
}

/// The chains of one family in all texts.
fn chains(
    forms: &[(&Source, Form)],
    family: Family,
    sets: &Sets,
    asked: Asked,
    remarks: &mut Vec<String>,
) -> Result<Vec<Chains>> {
    let mut groups = Vec::new();
    let mut tables = Vec::new();
    for (source, form) in forms {
        if let Form::Iptables(of) = form
            && *of == family
        {
            let saved = iptables::read(&source.text, family, sets, asked);
            let saved = saved.with_context(|| source.name.clone())?;
            tables.extend(saved.tables);
            remarks.extend(saved.remarks);
            groups.push(saved.chains);
        }
    }
    let skipped = |nft_family: &str, table: &str| {
        let iptables = if family == Family::V4 { "ip" } else { "ip6" };
        nft_family == iptables
            && IPTABLES_TABLES.contains(&table)
            && tables.iter().any(|name| name == table)
    };
    for (source, form) in forms {
        if let Form::Nft(ruleset) = form {
            let read = nft::read(ruleset, family, &skipped, asked);
            let read = read.with_context(|| source.name.clone())?;
            if !read.base.is_empty() {
                groups.push(read);
            }
        }
    }
    Ok(groups)
}

/// Says where UDP is treated otherwise; a list is for both.
fn udp_remark(
    forms: &[(&Source, Form)],
    family: Family,
    sets: &Sets,
    asked: Asked,
    tcp: &Ranges,
) -> Option<String> {
    let udp = (|| -> Result<Ranges> {
        let groups = chains(forms, family, sets, asked, &mut Vec::new())?;
        groups.iter().try_fold(Ranges::all(family), |all, group| {
            Ok(all.intersection(&group.outcome()?.accepted))
        })
    })();
    let name = family.name();
    match udp {
        Ok(udp) if udp == *tcp => None,
        Ok(udp) if udp.is_empty() => None,
        Ok(_) => Some(format!(
            "{name}: the rules let other sources in over UDP than over TCP; the list is that of \
             TCP, and sessiond serves UDP only with -U"
        )),
        Err(error) => Some(format!("{name}, UDP: {error:#}; the list is that of TCP")),
    }
}

/// Rules of this host's NAT that lead to the port or away from it.
///
/// # Errors
/// The rules cannot be read.
pub(super) fn redirects(port: u16) -> Result<Vec<String>> {
    let sources = live_or_none()?;
    let word = port.to_string();
    let names_port = |line: &str| line.split([' ', ':', ',']).any(|part| part == word);
    let translates = |line: &str| {
        ["DNAT", "REDIRECT", "dnat", "redirect"].iter().any(|verb| line.contains(verb))
    };
    let mut found = Vec::new();
    for source in &sources {
        let lines: Vec<String> = match form(source) {
            Ok(Form::Nft(ruleset)) => ruleset["nftables"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|object| object.get("rule"))
                .map(|rule| rule["expr"].to_string().replace(['{', '}', '"', '[', ']'], " "))
                .collect(),
            _ => source.text.lines().map(str::to_owned).collect(),
        };
        let named = lines.into_iter().filter(|line| translates(line) && names_port(line));
        found.extend(named.map(|line| format!("{}: `{}`", source.name, line.trim())));
    }
    Ok(found)
}

/// The list as a file that `sync` and `--allow-file` read.
pub(super) fn render(imported: &Imported, port: u16) -> String {
    let mut text = format!("# who the firewall's rules let reach port {port}\n");
    for remark in &imported.remarks {
        let _ = writeln!(text, "# {remark}");
    }
    for entry in &imported.entries {
        let _ = writeln!(text, "{}", entry_line(entry));
    }
    text
}

/// The same as JSON.
pub(super) fn to_json(imported: &Imported) -> Value {
    json!({"ok": true, "entries": imported.entries, "remarks": imported.remarks})
}
