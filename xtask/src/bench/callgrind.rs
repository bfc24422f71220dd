//! Reads callgrind's profile: how many instructions each function took itself.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use anyhow::{Context, Result};

/// Instructions by function, without those of the functions it calls. The profile has its names
/// written out and no line numbers.
pub(super) fn parse(profile: &str) -> Result<BTreeMap<String, u64>> {
    let mut functions = BTreeMap::new();
    let mut current = None;
    // The line behind `calls=` is the cost of the callee, which has its own lines.
    let mut is_of_callee = false;
    for line in profile.lines() {
        if let Some(name) = line.strip_prefix("fn=") {
            current = Some(plain(name));
        } else if line.starts_with("calls=") {
            is_of_callee = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit()) {
            let cost = line.split(' ').nth(1).unwrap_or("0");
            let cost: u64 = cost.parse().with_context(|| format!("no cost: {line}"))?;
            if !std::mem::take(&mut is_of_callee)
                && let Some(name) = &current
            {
                *functions.entry(name.clone()).or_default() += cost;
            }
        }
    }
    Ok(functions)
}

/// A function's name without the compiler's own suffix, which changes with the sources.
fn plain(name: &str) -> String {
    let name = name.split('\'').next().unwrap_or(name);
    match name.rsplit_once("::h") {
        Some((path, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => {
            path.to_owned()
        }
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn own_instructions_are_added_and_those_of_callees_are_not() {
        let profile = "events: Ir\n\nob=/a\nfl=x.rs\nfn=a::outer::h0123456789abcdef\n0 5\n\
                       cfn=a::inner\ncalls=2 0\n0 90\n0 2\n\nfn=a::inner\n0 40\nfi=y.rs\n0 50\n\
                       totals: 97\n";
        let functions = parse(profile).unwrap();
        assert_eq!(functions, [("a::inner".to_owned(), 90), ("a::outer".to_owned(), 7)].into());
    }
}
