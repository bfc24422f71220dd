//! `-o`: memcached's extended options, every one of them: honoured, accepted with a remark for the
//! log because it tunes what is not here, or refused by name with the reason.
#![forbid(unsafe_code)]

use crate::config::{Config, Refusal};
use crate::server::tuning::{AUTOMOVE_WINDOW, CRAWLER_SLEEP_MAX_US, Hundredths, LRU_PCT_MAX};

/// Options that change nothing here, and why.
const SETTLED: &[(&str, &str)] = &[
    ("modern", "it is a no-op in memcached too"),
    ("inline_ascii_resp", "it is a no-op in memcached too"),
    ("no_inline_ascii_resp", "it is a no-op in memcached too"),
    ("resp_obj_mem_limit", "it is a no-op in memcached too"),
    ("no_hashexpand", "the table grows a bucket at a time, which nobody waits for"),
    ("slab_automove_freeratio", "pages move to the class that needs them"),
    ("slab_sizes", "the classes are fine enough for any mix of sizes; -f makes others"),
    ("slab_chunk_max", "long values are chains of pages"),
    ("no_chunked_items", "long values are chains of pages"),
];

/// Options of parts of memcached that are not here: their beginning, and the part.
const ABSENT: &[(&str, &str)] = &[
    ("ext_", "sessiond keeps items in memory only; there is no extstore"),
    ("proxy_", "sessiond is no proxy"),
];

/// Applies the comma-separated list of one `-o`.
pub(super) fn take(config: &mut Config, list: &str) -> Result<(), Refusal> {
    // getsubopt skips what is empty.
    list.split(',').filter(|word| !word.is_empty()).try_for_each(|word| take_one(config, word))
}

fn take_one(config: &mut Config, option: &str) -> Result<(), Refusal> {
    let (name, value) = match option.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (option, None),
    };
    let word = Word { name, value };
    match name {
        "maxconns_fast" => config.maxconns_fast = true,
        "no_maxconns_fast" => config.maxconns_fast = false,
        "idle_timeout" => config.idle_timeout_s = word.number()?,
        "track_sizes" => config.tuning.track_sizes = true,
        "drop_privileges" => (config.tuning.drop_privileges, config.files_open) = (true, false),
        "no_drop_privileges" => (config.tuning.drop_privileges, config.files_open) = (false, true),
        "watcher_logbuf_size" => config.tuning.watcher_logbuf_len = word.kilobytes()?,
        "no_modern" => old_defaults(config),
        "relaxed_privileges" => config.debug_commands = true,
        "sock_cookie_id" => config.socket_mark = Some(word.number()?),
        _ if config.tls.take(name, word.value)? => {}
        _ if tuned(config, &word)? => {}
        _ => return settled_or_refused(config, option, name),
    }
    Ok(())
}

/// Whether the option is one of those that an administration command can set as well.
fn tuned(config: &mut Config, word: &Word<'_>) -> Result<bool, Refusal> {
    slabs(config, word)?;
    lru(config, word)?;
    let tuning = &mut config.tuning;
    let why = match word.name {
        "hashpower" => {
            tuning.hashpower_init = word.bounded(12, 32, "hashpower must be from 12 to 32")?;
            "the table begins small and grows by itself"
        }
        "hash_algorithm" => {
            if !matches!(word.value, Some("jenkins" | "murmur3" | "xxh3")) {
                let text = "Unknown hash_algorithm option (jenkins, murmur3, xxh3)";
                return Err(Refusal::new(1, text));
            }
            "there is one hash, keyed anew at every start, and no reply shows it"
        }
        "tail_repair_time" => {
            let text = "Cannot set tail_repair_time to less than 10 seconds";
            tuning.tail_repair_time_s = word.bounded(10, u32::MAX, text)?;
            "no item can be stuck: there are no reference counts"
        }
        "worker_logbuf_size" => {
            tuning.worker_logbuf_len = word.kilobytes()?;
            "workers write to the watchers' buffers themselves"
        }
        "read_buf_mem_limit" => {
            tuning.read_buf_mem_limit = u64::from(word.number()?) << 20;
            "a connection that waits holds no read buffer"
        }
        "slab_reassign"
        | "slab_automove"
        | "no_slab_automove"
        | "slab_automove_ratio"
        | "slab_automove_window" => "pages move to the class that needs them",
        "lru_crawler_sleep" | "lru_crawler_tocrawl" | "lru_crawler" => {
            "expired items are always swept, in slices of the workers' turns"
        }
        "lru_maintainer" | "hot_lru_pct" | "warm_lru_pct" | "hot_max_factor"
        | "warm_max_factor" | "temporary_ttl" => "eviction is adaptive and takes no such setting",
        "no_slab_reassign" => "it refuses `slabs reassign`; pages move in any case",
        "no_lru_crawler" => "it refuses `lru_crawler`; expired items are swept in any case",
        "no_lru_maintainer" => "it refuses `lru mode`; eviction order is kept in any case",
        _ => return Ok(false),
    };
    let Word { name, .. } = word;
    config.remarks.push(match *name {
        "no_slab_reassign" | "no_lru_crawler" | "no_lru_maintainer" => format!("-o {name}: {why}"),
        _ => format!("-o {}: {why}; the option changes nothing", word.whole()),
    });
    Ok(true)
}

fn slabs(config: &mut Config, word: &Word<'_>) -> Result<(), Refusal> {
    let tuning = &mut config.tuning;
    match word.name {
        "slab_reassign" => tuning.slab_reassign = true,
        "no_slab_reassign" => tuning.slab_reassign = false,
        "no_slab_automove" => tuning.slab_automove = 0,
        "slab_automove" => {
            let text = "slab_automove must be between 0 and 2";
            tuning.slab_automove = match word.value {
                None => 1,
                Some(_) => word.bounded(0, 2, text)?,
            };
        }
        "slab_automove_ratio" => {
            let text = "slab_automove_ratio must be > 0 and < 1";
            tuning.slab_automove_ratio = word.ratio(text)?;
            if tuning.slab_automove_ratio > Hundredths(100) {
                return Err(Refusal::new(1, text));
            }
        }
        "slab_automove_window" => {
            let text = "slab_automove_window must be from 3 to 1800";
            let (least, most) = (*AUTOMOVE_WINDOW.start(), *AUTOMOVE_WINDOW.end());
            tuning.slab_automove_window = word.bounded(least, most, text)?;
        }
        _ => {}
    }
    Ok(())
}

fn lru(config: &mut Config, word: &Word<'_>) -> Result<(), Refusal> {
    let tuning = &mut config.tuning;
    match word.name {
        "lru_crawler" => tuning.lru_crawler = true,
        "no_lru_crawler" => tuning.lru_crawler = false,
        "lru_crawler_sleep" => {
            let text = "LRU crawler sleep value must be between 0 and 1 second";
            tuning.lru_crawler_sleep_us = word.bounded(0, CRAWLER_SLEEP_MAX_US, text)?;
        }
        "lru_crawler_tocrawl" => tuning.lru_crawler_tocrawl = word.number()?,
        "lru_maintainer" => tuning.lru_maintainer = true,
        "no_lru_maintainer" => tuning.lru_maintainer = false,
        "hot_lru_pct" => tuning.hot_lru_pct = word.percentage()?,
        "warm_lru_pct" => tuning.warm_lru_pct = word.percentage()?,
        "hot_max_factor" => tuning.hot_max_factor = word.ratio("hot_max_factor must be > 0")?,
        "warm_max_factor" => tuning.warm_max_factor = word.ratio("warm_max_factor must be > 0")?,
        "temporary_ttl" => tuning.temporary_ttl_s = Some(word.number()?),
        _ => {}
    }
    Ok(())
}

/// Checks that need several options together.
pub(super) fn check(config: &Config) -> Result<(), Refusal> {
    let tuning = &config.tuning;
    if tuning.hot_lru_pct + tuning.warm_lru_pct > LRU_PCT_MAX {
        let text = "hot_lru_pct + warm_lru_pct cannot be more than 80% combined";
        return Err(Refusal::new(1, text));
    }
    if tuning.temporary_ttl_s.is_some() && !tuning.lru_maintainer {
        return Err(Refusal::new(1, "temporary_ttl requires lru_maintainer to be enabled"));
    }
    Ok(())
}

/// `no_modern`: what memcached was before 1.5.
fn old_defaults(config: &mut Config) {
    config.maxconns_fast = false;
    let tuning = &mut config.tuning;
    (tuning.slab_reassign, tuning.slab_automove) = (false, 0);
    (tuning.lru_crawler, tuning.lru_maintainer, tuning.lru_segmented) = (false, false, false);
    let text = "-o no_modern: it sets no_maxconns_fast, and refuses `slabs reassign`, `lru_crawler` \
                and `lru mode`; the store is the same";
    config.remarks.push(text.to_owned());
}

fn settled_or_refused(config: &mut Config, option: &str, name: &str) -> Result<(), Refusal> {
    if let Some((_, why)) = SETTLED.iter().find(|(settled, _)| *settled == name) {
        config.remarks.push(format!("-o {option}: {why}; the option changes nothing"));
        return Ok(());
    }
    if let Some((_, why)) = ABSENT.iter().find(|(part, _)| name.starts_with(part)) {
        return Err(Refusal::new(1, format!("-o {name} is not served: {why}")));
    }
    Err(Refusal::new(1, format!("Illegal suboption \"{option}\"")))
}

/// One option as given.
struct Word<'a> {
    name: &'a str,
    value: Option<&'a str>,
}

impl Word<'_> {
    fn whole(&self) -> String {
        match self.value {
            Some(value) => format!("{}={value}", self.name),
            None => self.name.to_owned(),
        }
    }

    fn argument(&self) -> Result<&str, Refusal> {
        let missing = || Refusal::new(1, format!("Missing numeric argument for {}", self.name));
        self.value.ok_or_else(missing)
    }

    fn number(&self) -> Result<u32, Refusal> {
        let bad = |_| Refusal::new(1, format!("could not parse argument to {}", self.name));
        self.argument()?.parse().map_err(bad)
    }

    fn bounded(&self, least: u32, most: u32, text: &str) -> Result<u32, Refusal> {
        let number = self.number()?;
        if (least..=most).contains(&number) { Ok(number) } else { Err(Refusal::new(1, text)) }
    }

    fn percentage(&self) -> Result<u32, Refusal> {
        let text = format!("{} must be > 1 and < 80", self.name);
        self.bounded(1, LRU_PCT_MAX - 1, &text)
    }

    fn ratio(&self, text: &str) -> Result<Hundredths, Refusal> {
        Hundredths::read(self.argument()?)
            .filter(|ratio| ratio.0 > 0)
            .ok_or_else(|| Refusal::new(1, text))
    }

    /// Kilobytes as bytes, at least one.
    fn kilobytes(&self) -> Result<usize, Refusal> {
        let text = format!("could not parse argument to {}", self.name);
        Ok(self.bounded(1, KILOBYTES_MAX, &text)? as usize * 1024)
    }
}

/// Largest log buffer: a gigabyte.
const KILOBYTES_MAX: u32 = 1 << 20;
