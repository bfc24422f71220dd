//! From `nft --json list ruleset` to chains.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde_json::Value;

use crate::control::ctl::import::chain::{Chain, Chains, Rule, Target};
use crate::control::ctl::import::ranges::{Family, Ranges, number};
use crate::control::ctl::import::{Asked, Protocol};

/// Hooks that a packet to this host passes.
const HOOKS: [&str; 3] = ["ingress", "prerouting", "input"];

/// Reads what `nft --json list ruleset` wrote, for one family of addresses; tables that `skipped`
/// names are left to `iptables-save`.
pub(super) fn read(
    ruleset: &Value,
    family: Family,
    skipped: &dyn Fn(&str, &str) -> bool,
    asked: Asked,
) -> Result<Chains> {
    let objects = ruleset["nftables"].as_array().context("no `nftables` in it: not nft's JSON")?;
    let concerns = |object: &Value| {
        let (nft_family, table) = (text(&object["family"]), text(&object["table"]));
        let ours = match family {
            Family::V4 => ["ip", "inet", "netdev"].contains(&nft_family),
            Family::V6 => ["ip6", "inet", "netdev"].contains(&nft_family),
        };
        ours && !skipped(nft_family, table)
    };
    let mut reader = Reader { family, asked, sets: HashMap::new() };
    for set in objects.iter().filter_map(|object| object.get("set")).filter(|set| concerns(set)) {
        reader.sets.insert(key(set, "name"), set);
    }
    let mut chains: HashMap<String, Chain> = HashMap::new();
    let mut base = Vec::new();
    for chain in objects.iter().filter_map(|object| object.get("chain")).filter(|c| concerns(c)) {
        let name = key(chain, "name");
        let hook = text(&chain["hook"]);
        let is_base = HOOKS.contains(&hook) && text(&chain["type"]) != "nat";
        let accepts = is_base.then(|| text(&chain["policy"]) != "drop");
        chains.entry(name.clone()).or_default().accepts = accepts;
        if is_base {
            base.push(name);
        }
    }
    for rule in objects.iter().filter_map(|object| object.get("rule")).filter(|r| concerns(r)) {
        let read = reader.rule(rule)?;
        chains.entry(key(rule, "chain")).or_default().rules.push(read);
    }
    Ok(Chains { family, chains, base })
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Table and name of an object, which no other object has.
fn key(object: &Value, name: &str) -> String {
    format!("{} {} {}", text(&object["family"]), text(&object["table"]), text(&object[name]))
}

struct Reader<'a> {
    family: Family,
    asked: Asked,
    sets: HashMap<String, &'a Value>,
}

impl Reader<'_> {
    fn rule(&self, rule: &Value) -> Result<Rule> {
        let place = key(rule, "chain");
        let mut read = Rule {
            text: format!("{place}, handle {}: `{}`", rule["handle"], rule["expr"]),
            comment: rule["comment"].as_str().map(str::to_owned),
            matches: true,
            sources: Ranges::all(self.family),
            unknown: None,
            target: Target::Continue,
        };
        let table = format!("{} {}", text(&rule["family"]), text(&rule["table"]));
        for statement in rule["expr"].as_array().into_iter().flatten() {
            let Some((word, value)) = statement.as_object().and_then(|one| one.iter().next())
            else {
                bail!("{}: a statement that is no object", read.text);
            };
            let jump = |value: &Value| format!("{table} {}", text(&value["target"]));
            match word.as_str() {
                "match" => {
                    self.condition(value, &table, &mut read).with_context(|| read.text.clone())?
                }
                "accept" => read.target = Target::Accept,
                "drop" | "reject" => read.target = Target::Drop,
                "return" => read.target = Target::Return,
                "jump" => read.target = Target::Jump(jump(value)),
                "goto" => read.target = Target::Goto(jump(value)),
                "counter" | "log" | "mangle" | "notrack" | "meter" => {}
                other => {
                    let what = format!("it has `{other}`, which a list of sources cannot say");
                    read.unknown.get_or_insert(what);
                    // It might decide by itself, as a verdict map does.
                    if read.target == Target::Continue && matches!(other, "vmap" | "xt" | "queue") {
                        read.target = Target::Unknown(format!("`{other}` may decide"));
                    }
                }
            }
        }
        Ok(read)
    }

    /// One `match`: what it asks of the packet that opens a connection.
    fn condition(&self, value: &Value, table: &str, read: &mut Rule) -> Result<()> {
        let (left, right) = (&value["left"], &value["right"]);
        let negated = match text(&value["op"]) {
            "==" | "in" => false,
            "!=" => true,
            other => {
                read.unknown.get_or_insert(format!("it compares by {other}"));
                return Ok(());
            }
        };
        let mut needs = |met: bool| read.matches &= met != negated;
        let payload = (text(&left["payload"]["protocol"]), text(&left["payload"]["field"]));
        let meta = text(&left["meta"]["key"]);
        let protocol = self.asked.protocol.name();
        match (payload, meta) {
            (("ip", "saddr"), _) | (("ip6", "saddr"), _) => {
                if (payload.0 == "ip") != (self.family == Family::V4) {
                    read.matches = false;
                    return Ok(());
                }
                let Some(sources) = self.sources(right, table)? else {
                    read.unknown.get_or_insert("its set has more than addresses".to_owned());
                    return Ok(());
                };
                let sources = if negated { sources.complement(self.family) } else { sources };
                read.sources = read.sources.intersection(&sources);
            }
            ((by @ ("tcp" | "udp" | "th"), "dport"), _) => {
                if by != "th" && by != protocol {
                    read.matches = false;
                    return Ok(());
                }
                match self.has_port(right, table)? {
                    Some(met) => needs(met),
                    None => {
                        read.unknown.get_or_insert("its ports are not numbers".to_owned());
                    }
                }
            }
            (("ip" | "ip6", "protocol" | "nexthdr"), _) | (_, "l4proto") => {
                needs(one_of(right).any(|word| word == protocol));
            }
            (_, "nfproto") => {
                let ours = if self.family == Family::V4 { "ipv4" } else { "ipv6" };
                needs(one_of(right).any(|word| word == ours));
            }
            (_, "protocol") => {
                let ours = if self.family == Family::V4 { "ip" } else { "ip6" };
                needs(one_of(right).any(|word| word == ours));
            }
            (_, "iifname" | "iif") if right == "lo" => needs(false),
            _ if text(&left["ct"]["key"]) == "state" => {
                needs(one_of(right).any(|word| word == "new" || word == "untracked"));
            }
            _ => {
                read.unknown.get_or_insert(format!("it depends on {left}"));
            }
        }
        Ok(())
    }

    /// The elements of a set, named or written out.
    fn elements(&self, value: &Value, table: &str) -> Result<Vec<Value>> {
        if let Some(name) = value.as_str().and_then(|name| name.strip_prefix('@')) {
            let key = format!("{table} {name}");
            let set = self.sets.get(&key).with_context(|| format!("there is no set {name}"))?;
            return Ok(set["elem"].as_array().cloned().unwrap_or_default());
        }
        match value["set"].as_array() {
            Some(elements) => Ok(elements.clone()),
            None => Ok(vec![value.clone()]),
        }
    }

    /// The addresses of a right side; None if it holds anything else.
    fn sources(&self, value: &Value, table: &str) -> Result<Option<Ranges>> {
        let mut all = Ranges::default();
        for element in self.elements(value, table)? {
            // One with a counter, a comment or an end of its own is an object.
            let inner = element.get("elem");
            if inner.is_some_and(|inner| !inner["expires"].is_null() || !inner["timeout"].is_null())
            {
                return Ok(None);
            }
            let Some(one) = address(inner.map_or(&element, |inner| &inner["val"])) else {
                return Ok(None);
            };
            all = all.union(&one);
        }
        Ok(Some(all))
    }

    /// Whether the port is among those of a right side; None if they are no numbers.
    fn has_port(&self, value: &Value, table: &str) -> Result<Option<bool>> {
        let mut found = false;
        for element in self.elements(value, table)? {
            let element = element.get("elem").map_or(&element, |inner| &inner["val"]);
            let (first, last) = match element["range"].as_array().map(Vec::as_slice) {
                Some([first, last]) => (first.as_u64(), last.as_u64()),
                _ => (element.as_u64(), element.as_u64()),
            };
            let (Some(first), Some(last)) = (first, last) else { return Ok(None) };
            found |= (first..=last).contains(&u64::from(self.asked.port));
        }
        Ok(Some(found))
    }
}

/// The words of a right side: one, or those of a set.
fn one_of(value: &Value) -> impl Iterator<Item = &str> {
    let set = value["set"].as_array().or(value.as_array());
    let many = set.into_iter().flatten().filter_map(Value::as_str);
    many.chain(value.as_str())
}

/// An address, a prefix or a range.
fn address(value: &Value) -> Option<Ranges> {
    let of = |text: &Value| text.as_str()?.parse::<IpAddr>().ok();
    if let Some([first, last]) = value["range"].as_array().map(Vec::as_slice) {
        return Some(Ranges::between(number(of(first)?), number(of(last)?)));
    }
    let prefix = &value["prefix"];
    if prefix.is_object() {
        let length = u8::try_from(prefix["len"].as_u64()?).ok()?;
        return Some(Ranges::of(IpNet::new(of(&prefix["addr"])?, length).ok()?));
    }
    of(value).map(|address| Ranges::of(IpNet::from(address)))
}

impl Protocol {
    /// nft's name of the protocol.
    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}
