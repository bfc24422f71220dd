//! `--protect`: keys that are evicted last, and how much memory they may hold for that.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use crate::config::value::usage;
use crate::config::{Config, Refusal};
use crate::store::PROTECTED_PREFIXES_MAX;
use crate::store::types::KEY_LEN_MAX;

/// The share of `-m` where none is named, in percent.
const PERCENT: u8 = 50;
/// Largest share of `-m`, in percent: the index and what is not protected need some too.
const PERCENT_MAX: u8 = 90;

/// One `--protect`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protect {
    /// How the keys begin.
    pub prefix: String,
    /// The share of `-m`, in percent.
    pub percent: u8,
}

/// `PREFIX` or `PREFIX=SHARE`. Only a number behind the last `=` is a share, so that a prefix may
/// hold one.
pub(super) fn protect(text: &str) -> Result<Protect, Refusal> {
    let parsed = |(prefix, share): (&str, &str)| {
        let number = share.strip_suffix('%').unwrap_or(share);
        Some((prefix.to_owned(), number.parse::<u32>().ok()?))
    };
    let shared = text.rsplit_once('=').and_then(parsed);
    let (prefix, percent) = shared.unwrap_or_else(|| (text.to_owned(), u32::from(PERCENT)));
    let percent = u8::try_from(percent).ok().filter(|percent| (1..=PERCENT_MAX).contains(percent));
    let Some(percent) = percent else {
        return Err(usage(format!(
            "--protect={text}: the share is a number from 1 to {PERCENT_MAX}, percent of -m"
        )));
    };
    let fits = (1..=KEY_LEN_MAX).contains(&prefix.len());
    if !fits || prefix.contains(|c: char| c.is_ascii_whitespace() || c.is_ascii_control()) {
        return Err(usage(format!(
            "--protect={text}: no key begins so; write 1 to {KEY_LEN_MAX} bytes without blanks"
        )));
    }
    Ok(Protect { prefix, percent })
}

/// What all of them ask of each other and of `-M`.
pub(super) fn check(all: &[Protect], evictions: bool) -> Result<(), Refusal> {
    let percent = percent(all);
    if percent > u32::from(PERCENT_MAX) {
        return Err(usage(format!(
            "--protect: the shares add up to {percent} percent of -m; name shares that leave 10"
        )));
    }
    if all.len() > PROTECTED_PREFIXES_MAX {
        return Err(usage(format!("--protect: at most {PROTECTED_PREFIXES_MAX} prefixes")));
    }
    if !all.is_empty() && !evictions {
        return Err(usage("--protect: with -M nothing is evicted; leave one of the two out"));
    }
    Ok(())
}

fn percent(all: &[Protect]) -> u32 {
    all.iter().map(|one| u32::from(one.percent)).sum()
}

impl Config {
    /// The share of `-m` that all of `--protect` have together, in percent.
    #[must_use]
    pub fn protected_percent(&self) -> u8 {
        u8::try_from(percent(&self.protect)).unwrap_or(u8::MAX)
    }
}
