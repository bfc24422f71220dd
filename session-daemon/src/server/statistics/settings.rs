//! `stats settings`: memcached's names in memcached's order. What the server runs by, and what
//! administration commands have set, whether or not it steers anything here (docs/protocol.md).
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::server::config::TlsShown;
use crate::server::login::Login;
use crate::server::shared::Shared;
use crate::server::statistics::Sink;
use crate::server::tls::Verify;
use crate::server::tuning::{TEMPORARY_TTL_S, Tuning};
use std::sync::atomic::Ordering;

pub(super) fn list(shared: &Shared, sink: &mut Sink<'_>) {
    let tuning = shared.tuning();
    server(shared, sink);
    keys(shared, &tuning, sink);
    slabs(shared, &tuning, sink);
    lru(&tuning, shared, sink);
    buffers(shared, &tuning, sink);
    own(shared, sink);
}

fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

fn server(shared: &Shared, sink: &mut Sink<'_>) {
    let config = &shared.config;
    let store = shared.store.config();
    sink("maxbytes", &shared.store.memory_limit());
    sink("maxconns", &config.conns_max);
    sink("tcpport", &config.tcp_port);
    sink("udpport", &config.udp_port);
    sink("inter", &config.inter.as_deref().unwrap_or("NULL"));
    sink("verbosity", &shared.verbosity.load(Ordering::Relaxed));
    sink("oldest", &0);
    sink("evictions", &if store.evictions { "on" } else { "off" });
    sink("domain_socket", &config.unix_path.as_deref().unwrap_or("NULL"));
    sink("umask", &format!("{:o}", config.unix_mask));
    sink("shutdown_command", &yes_no(config.shutdown.is_some()));
    sink("growth_factor", &format!("{:.2}", store.growth_factor.unwrap_or(GROWTH_FACTOR)));
    sink("chunk_size", &store.chunk_min.unwrap_or(CHUNK_SIZE));
    sink("num_threads", &config.threads);
    sink("num_threads_per_udp", &config.threads);
}

/// memcached's, which stand for the store's own classes.
const GROWTH_FACTOR: f64 = 1.25;
const CHUNK_SIZE: usize = 48;

fn keys(shared: &Shared, tuning: &Tuning, sink: &mut Sink<'_>) {
    let config = &shared.config;
    sink("stat_key_prefix", &char::from(tuning.prefix_delimiter));
    sink("detail_enabled", &yes_no(tuning.detail));
    sink("reqs_per_event", &config.requests_per_turn);
    sink("cas_enabled", &yes_no(shared.store.config().cas));
    sink("tcp_backlog", &config.backlog);
    sink("binding_protocol", &config.binding.name());
    sink("auth_enabled_sasl", &yes_no(config.login == Login::Sasl));
    sink("auth_enabled_ascii", &yes_no(config.login == Login::Token));
    sink("item_size_max", &shared.store.config().item_size_max);
    sink("maxconns_fast", &yes_no(config.maxconns_fast));
    sink("hashpower_init", &tuning.hashpower_init);
}

fn slabs(shared: &Shared, tuning: &Tuning, sink: &mut Sink<'_>) {
    sink("slab_reassign", &yes_no(tuning.slab_reassign));
    sink("slab_automove", &tuning.slab_automove);
    sink("slab_automove_ratio", &tuning.slab_automove_ratio);
    sink("slab_automove_window", &tuning.slab_automove_window);
    sink("slab_chunk_max", &shared.store.chunk_len_max());
}

fn lru(tuning: &Tuning, shared: &Shared, sink: &mut Sink<'_>) {
    sink("lru_crawler", &yes_no(tuning.lru_crawler));
    sink("lru_crawler_sleep", &tuning.lru_crawler_sleep_us);
    sink("lru_crawler_tocrawl", &tuning.lru_crawler_tocrawl);
    sink("tail_repair_time", &tuning.tail_repair_time_s);
    sink("flush_enabled", &yes_no(shared.config.flush_allowed));
    sink("dump_enabled", &yes_no(shared.config.dumps_allowed));
    sink("hash_algorithm", &"nh");
    sink("lru_maintainer_thread", &yes_no(tuning.lru_maintainer));
    sink("lru_segmented", &yes_no(tuning.lru_segmented));
    sink("hot_lru_pct", &tuning.hot_lru_pct);
    sink("warm_lru_pct", &tuning.warm_lru_pct);
    sink("hot_max_factor", &tuning.hot_max_factor);
    sink("warm_max_factor", &tuning.warm_max_factor);
    sink("temp_lru", &yes_no(tuning.temporary_ttl_s.is_some()));
    sink("temporary_ttl", &tuning.temporary_ttl_s.unwrap_or(TEMPORARY_TTL_S));
}

fn buffers(shared: &Shared, tuning: &Tuning, sink: &mut Sink<'_>) {
    sink("idle_timeout", &shared.config.idle_timeout.map_or(0, |timeout| timeout.as_secs()));
    sink("watcher_logbuf_size", &tuning.watcher_logbuf_len);
    sink("worker_logbuf_size", &tuning.worker_logbuf_len);
    sink("read_buf_mem_limit", &tuning.read_buf_mem_limit);
    sink("track_sizes", &yes_no(tuning.track_sizes));
    sink("inline_ascii_response", &"no");
    sink("drop_privileges", &yes_no(tuning.drop_privileges));
    tls(&shared.config.tls_shown, sink);
    sink("num_napi_ids", &tuning.napi_ids);
    sink("memory_file", &shared.config.memory_file.as_deref().unwrap_or("(null)"));
    sink("client_flags_size", &size_of::<u32>());
}

fn tls(tls: &TlsShown, sink: &mut Sink<'_>) {
    sink("ssl_enabled", &yes_no(tls.enabled));
    sink("ssl_chain_cert", &tls.chain.as_deref().unwrap_or("(null)"));
    sink("ssl_key", &tls.key.as_deref().unwrap_or("(null)"));
    // OpenSSL's bits, which memcached shows: asked for, and not served without one.
    let verify = match tls.verify {
        Verify::None => 0,
        Verify::Request => 1,
        Verify::Require => 3,
    };
    sink("ssl_verify_mode", &verify);
    sink("ssl_keyformat", &if tls.terms.key_der { 2 } else { 1 });
    sink("ssl_ciphers", &"NULL");
    sink("ssl_ca_cert", &tls.ca.as_deref().unwrap_or("NULL"));
    sink("ssl_wbuf_size", &tls.terms.wbuf_len);
    sink("ssl_session_cache", &yes_no(tls.terms.session_cache));
    sink("ssl_kernel_tls", &"no");
    sink("ssl_min_version", &if tls.terms.tls13_only { "tlsv1.3" } else { "tlsv1.2" });
}

fn own(shared: &Shared, sink: &mut Sink<'_>) {
    sink("write_timeout", &shared.config.write_timeout.as_secs());
    sink("read_timeout", &shared.config.read_timeout.as_secs());
    sink("buffer_limit", &shared.config.buffers_len_max);
    sink("admin", &if shared.config.admin_confined { "control" } else { "clients" });
    sink("sessiond_version", &env!("CARGO_PKG_VERSION"));
}
