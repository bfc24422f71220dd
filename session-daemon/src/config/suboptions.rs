//! `-o`: memcached's extended options.
#![forbid(unsafe_code)]

use crate::config::{Config, Refusal};

/// Options that ask for what is so here in any case, and what that is.
const SETTLED: [(&str, &str); 10] = [
    ("modern", "it is a no-op in memcached too"),
    ("inline_ascii_resp", "it is a no-op in memcached too"),
    ("no_inline_ascii_resp", "it is a no-op in memcached too"),
    ("resp_obj_mem_limit", "it is a no-op in memcached too"),
    ("hashpower", "the table begins small and grows by itself"),
    ("hash_algorithm", "there is one hash, and no reply shows it"),
    ("lru_crawler", "expired items are always swept"),
    ("lru_maintainer", "eviction order is always kept up"),
    ("slab_reassign", "pages always move to the class that needs them"),
    ("slab_automove", "pages always move to the class that needs them"),
];

/// memcached's options that would have to be honoured and are not.
const UNSERVED: [&str; 52] = [
    "no_hashexpand",
    "no_slab_reassign",
    "no_slab_automove",
    "slab_automove_ratio",
    "slab_automove_window",
    "slab_automove_freeratio",
    "tail_repair_time",
    "no_lru_crawler",
    "lru_crawler_sleep",
    "lru_crawler_tocrawl",
    "no_lru_maintainer",
    "hot_lru_pct",
    "warm_lru_pct",
    "hot_max_factor",
    "warm_max_factor",
    "temporary_ttl",
    "watcher_logbuf_size",
    "worker_logbuf_size",
    "slab_sizes",
    "slab_chunk_max",
    "track_sizes",
    "no_modern",
    "no_chunked_items",
    "read_buf_mem_limit",
    "drop_privileges",
    "no_drop_privileges",
    "sock_cookie_id",
    "ssl_chain_cert",
    "ssl_key",
    "ssl_verify_mode",
    "ssl_keyformat",
    "ssl_ciphers",
    "ssl_ca_cert",
    "ssl_wbuf_size",
    "ssl_session_cache",
    "ssl_kernel_tls",
    "ssl_min_version",
    "ext_path",
    "ext_page_size",
    "ext_wbuf_size",
    "ext_threads",
    "ext_io_depth",
    "ext_item_size",
    "ext_item_age",
    "ext_low_ttl",
    "ext_recache_rate",
    "ext_compact_under",
    "ext_drop_under",
    "ext_max_frag",
    "ext_max_sleep",
    "ext_drop_unread",
    "proxy_config",
];

/// Applies the comma-separated list of one `-o`.
pub(super) fn take(config: &mut Config, list: &str) -> Result<(), Refusal> {
    list.split(',').try_for_each(|option| take_one(config, option))
}

fn take_one(config: &mut Config, option: &str) -> Result<(), Refusal> {
    let (name, value) = match option.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (option, None),
    };
    match name {
        "maxconns_fast" => config.maxconns_fast = true,
        "no_maxconns_fast" => config.maxconns_fast = false,
        "idle_timeout" => config.idle_timeout_s = number(name, value)?,
        _ => {
            if let Some((_, why)) = SETTLED.iter().find(|(settled, _)| *settled == name) {
                config.remarks.push(format!("-o {option}: {why}; the option changes nothing"));
            } else if UNSERVED.contains(&name) {
                let text = format!("-o {name} is not served by sessiond; leave it out");
                return Err(Refusal::new(1, text));
            } else {
                return Err(Refusal::new(1, format!("Illegal suboption \"{option}\"")));
            }
        }
    }
    Ok(())
}

fn number(name: &str, value: Option<&str>) -> Result<u32, Refusal> {
    let value =
        value.ok_or_else(|| Refusal::new(1, format!("Missing numeric argument for {name}")))?;
    value.parse().map_err(|_| Refusal::new(1, format!("could not parse argument to {name}")))
}
