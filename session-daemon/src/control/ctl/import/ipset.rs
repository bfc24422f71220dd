//! From `ipset save` to sets of sources.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};

use crate::control::ctl::import::iptables::network;
use crate::control::ctl::import::ranges::{Family, Ranges, number};

/// Sets by name.
#[derive(Debug, Default)]
pub(super) struct Sets(HashMap<String, Result<Set, String>>);

#[derive(Debug)]
struct Set {
    family: Family,
    addresses: Ranges,
}

impl Sets {
    /// Reads what `ipset save` wrote. A set that cannot be said as sources is an error only to
    /// whoever asks for it.
    pub(super) fn read(text: &str) -> Result<Self> {
        let mut sets = Self::default();
        for (idx, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                [] => {}
                ["create", name, kind, options @ ..] => {
                    sets.0.insert((*name).to_owned(), created(kind, options));
                }
                ["add", name, element, options @ ..] => sets
                    .add(name, element, options)
                    .with_context(|| format!("ipset, line {}: `{line}`", idx + 1))?,
                _ => bail!("ipset, line {}: `{line}` is not of `ipset save`", idx + 1),
            }
        }
        Ok(sets)
    }

    /// The addresses of a set; None of one that was not read.
    pub(super) fn get(&self, name: &str, family: Family) -> Result<Option<Ranges>> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Err(reason)) => bail!("the set {name} {reason}"),
            // A set of the other family holds no source of this one.
            Some(Ok(set)) if set.family != family => Ok(Some(Ranges::default())),
            Some(Ok(set)) => Ok(Some(set.addresses.clone())),
        }
    }

    fn add(&mut self, name: &str, element: &str, options: &[&str]) -> Result<()> {
        let Some(set) = self.0.get_mut(name) else { bail!("the set {name} was not created") };
        let Ok(held) = set else { return Ok(()) };
        if let Some(option) =
            options.iter().find(|option| matches!(**option, "timeout" | "nomatch"))
        {
            *set = Err(format!("has elements with {option}, which a list does not say"));
            return Ok(());
        }
        let more = match element.split_once('-') {
            Some((first, last)) => {
                let (first, last): (IpAddr, IpAddr) = (first.parse()?, last.parse()?);
                ensure!(Family::of(first) == held.family, "{element} is of the other family");
                Ranges::between(number(first), number(last))
            }
            None => Ranges::of(network(element, held.family)?),
        };
        held.addresses = held.addresses.union(&more);
        Ok(())
    }
}

fn created(kind: &str, options: &[&str]) -> Result<Set, String> {
    if !matches!(kind, "hash:ip" | "hash:net" | "bitmap:ip") {
        return Err(format!("is of type {kind}, which holds more than sources"));
    }
    let family = match options.iter().skip_while(|option| **option != "family").nth(1) {
        Some(&"inet6") => Family::V6,
        _ => Family::V4,
    };
    if options.contains(&"timeout") {
        return Err("has elements that end by themselves; allow those with --for".to_owned());
    }
    if options.contains(&"netmask") || options.contains(&"bitmask") {
        return Err("keeps networks under a mask of its own".to_owned());
    }
    Ok(Set { family, addresses: Ranges::default() })
}
