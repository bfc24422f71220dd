//! From statistics to the text that Prometheus reads. Names are memcached_exporter's where it has
//! one, so that dashboards made for it work, and begin with `session_` where it has none.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::control::metrics::Figures;

/// Whether a figure only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It only grows; the text adds `_total` to its name.
    Counter,
    Gauge,
}
use Kind::{Counter, Gauge};

impl Kind {
    fn encode(self, value: f64, metric: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        match self {
            Counter => ConstCounter::new(value).encode(metric),
            Gauge => ConstGauge::new(value).encode(metric),
        }
    }
}

/// One figure: its name, kind, statistic and meaning.
type Row = (&'static str, Kind, &'static str, &'static str);

/// Of `stats`.
const GENERAL: &[Row] = &[
    ("memcached_uptime_seconds", Gauge, "uptime", "Number of seconds since the server started."),
    ("memcached_time_seconds", Gauge, "time", "current UNIX time according to the server."),
    ("memcached_process_user_cpu_seconds", Counter, "rusage_user", "Accumulated user time."),
    ("memcached_process_system_cpu_seconds", Counter, "rusage_system", "Accumulated system time."),
    ("memcached_read_bytes", Counter, "bytes_read", "Bytes read from the network."),
    ("memcached_written_bytes", Counter, "bytes_written", "Bytes sent to the network."),
    ("memcached_current_connections", Gauge, "curr_connections", "Open connections."),
    ("memcached_connections", Counter, "total_connections", "Connections opened since the start."),
    (
        "memcached_connections_rejected",
        Counter,
        "rejected_connections",
        "Connections refused by -c.",
    ),
    ("memcached_connections_yielded", Counter, "conn_yields", "Connections that hit the -R limit."),
    (
        "memcached_connections_listener_disabled",
        Counter,
        "listen_disabled_num",
        "Times that -c stopped accepting.",
    ),
    (
        "memcached_accepting_connections",
        Gauge,
        "accepting_conns",
        "Whether connections are accepted.",
    ),
    ("memcached_current_bytes", Gauge, "bytes", "Bytes used to store items."),
    ("memcached_limit_bytes", Gauge, "limit_maxbytes", "Bytes that may be used for storage."),
    ("memcached_current_items", Gauge, "curr_items", "Items stored now."),
    ("memcached_items", Counter, "total_items", "Items stored since the start."),
    (
        "memcached_items_evicted",
        Counter,
        "evictions",
        "Valid items removed to free memory for new ones.",
    ),
    (
        "memcached_items_reclaimed",
        Counter,
        "reclaimed",
        "Entries stored in the memory of expired ones.",
    ),
    ("memcached_item_too_large", Counter, "store_too_large", "Items refused for their size."),
    ("memcached_item_no_memory", Counter, "store_no_memory", "Items refused for want of memory."),
    (
        "memcached_direct_reclaims",
        Counter,
        "direct_reclaims",
        "Times that a worker freed memory itself.",
    ),
    ("memcached_lru_crawler_starts", Counter, "lru_crawler_starts", "Runs of the crawler."),
    (
        "memcached_lru_crawler_reclaimed",
        Counter,
        "crawler_reclaimed",
        "Items freed by the crawler.",
    ),
    (
        "memcached_lru_crawler_items_checked",
        Counter,
        "crawler_items_checked",
        "Items looked at by the crawler.",
    ),
    (
        "session_memory_file_items_kept",
        Gauge,
        "memory_file_items",
        "Items that the start found in the memory file.",
    ),
    (
        "session_memory_file_items_lost",
        Gauge,
        "memory_file_lost",
        "Items that the start could not keep.",
    ),
    ("session_protected_items", Gauge, "protected_items", "Items whose keys are protected."),
    ("session_protected_bytes", Gauge, "protected_bytes", "Memory of items with protected keys."),
    (
        "session_protected_limit_bytes",
        Gauge,
        "protected_limit_bytes",
        "Memory up to which such items are evicted last.",
    ),
    (
        "session_protected_items_lost",
        Counter,
        "protected_lost",
        "Items with protected keys evicted before their end.",
    ),
];

/// Of `stats guard`.
const GUARD: &[Row] = &[
    ("session_guard_generation", Gauge, "guard_generation", "How often the list was replaced."),
    (
        "session_guard_complete",
        Gauge,
        "guard_complete",
        "Whether every interface is guarded that should be.",
    ),
    ("session_guard_audit", Gauge, "guard_audit", "Whether what would be dropped is let in."),
    ("session_list_pending", Gauge, "list_pending", "Whether a change waits to be confirmed."),
    (
        "session_connections_rejected_by_list",
        Counter,
        "rejected_by_list",
        "Connections refused by the list at accept.",
    ),
    (
        "session_connections_reset_by_list",
        Counter,
        "reset_by_list",
        "Live connections ended by a change of the list.",
    ),
];

/// Of one class in `stats items`.
const ITEMS: &[Row] = &[
    ("memcached_slab_current_items", Gauge, "number", "Items stored in this slab class."),
    ("memcached_slab_items_age_seconds", Gauge, "age", "Age of the oldest item of the class."),
    (
        "memcached_slab_mem_requested_bytes",
        Gauge,
        "mem_requested",
        "Bytes of the items in the class.",
    ),
    ("memcached_slab_items_evicted", Counter, "evicted", "Items removed before they expired."),
    (
        "memcached_slab_items_evicted_nonzero",
        Counter,
        "evicted_nonzero",
        "Items with an expiry removed before it.",
    ),
    (
        "memcached_slab_items_evicted_time_seconds",
        Gauge,
        "evicted_time",
        "Idle time of the last evicted item.",
    ),
    (
        "memcached_slab_items_evicted_unfetched",
        Counter,
        "evicted_unfetched",
        "Items evicted and never fetched.",
    ),
    (
        "memcached_slab_items_expired_unfetched",
        Counter,
        "expired_unfetched",
        "Items expired and never fetched.",
    ),
    (
        "memcached_slab_items_outofmemory",
        Counter,
        "outofmemory",
        "Items refused for want of memory.",
    ),
    (
        "memcached_slab_items_reclaimed",
        Counter,
        "reclaimed",
        "Items stored in the memory of expired ones.",
    ),
    ("memcached_slab_items_tailrepairs", Counter, "tailrepairs", "Repairs of references."),
    (
        "memcached_slab_items_crawler_reclaimed",
        Counter,
        "crawler_reclaimed",
        "Items freed by the crawler.",
    ),
];

/// Of one class in `stats slabs`.
const SLABS: &[Row] = &[
    ("memcached_slab_chunk_size_bytes", Gauge, "chunk_size", "Bytes of each chunk of the class."),
    ("memcached_slab_chunks_per_page", Gauge, "chunks_per_page", "Chunks in a page."),
    ("memcached_slab_current_pages", Gauge, "total_pages", "Pages of the class."),
    ("memcached_slab_current_chunks", Gauge, "total_chunks", "Chunks of the class."),
    ("memcached_slab_chunks_used", Gauge, "used_chunks", "Chunks with an item."),
    ("memcached_slab_chunks_free", Gauge, "free_chunks", "Chunks without an item."),
];

/// Commands with hits and misses in `stats`.
const COMMANDS: [&str; 6] = ["get", "delete", "incr", "decr", "cas", "touch"];

/// What a sample is about.
type Labels = Vec<(&'static str, String)>;

#[derive(Debug)]
struct Family {
    kind: Kind,
    help: &'static str,
    samples: Vec<(Labels, f64)>,
}

/// Families by name; each stands in one piece in the text.
#[derive(Debug, Default)]
struct Page {
    families: BTreeMap<&'static str, Family>,
    turns: Turns,
}

/// Workers' turns: in seconds all together, and by the bounds between which they are.
#[derive(Debug, Default)]
struct Turns {
    sum_s: f64,
    buckets: Vec<(f64, u64)>,
}

impl Turns {
    /// What `stats guard` tells of them.
    fn of(guard: &[(String, String)]) -> Self {
        let bucket = |(name, count): &(String, String)| {
            let bound = match name.strip_prefix("turns_below_us:") {
                Some(bound_us) => bound_us.parse::<f64>().ok()? / 1e6,
                None => (name == "turns_longer").then_some(f64::INFINITY)?,
            };
            Some((bound, count.parse().ok()?))
        };
        let sum_s = value(guard, "turns_sum_us").unwrap_or(0.0) / 1e6;
        Self { sum_s, buckets: guard.iter().filter_map(bucket).collect() }
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Turns of the workers, one in some; a client waits for two at most";
        let count = self.buckets.iter().map(|(_, count)| count).sum();
        encoder
            .encode_descriptor("session_turn_seconds", help, None, MetricType::Histogram)?
            .encode_histogram::<NoLabelSet>(self.sum_s, count, &self.buckets, None)
    }
}

/// The page.
pub(crate) fn render(figures: &Figures) -> String {
    let mut page = Page::default();
    page.put("memcached_up", Gauge, "Could the memcached server be reached.", Vec::new(), 1.0);
    page.general(&figures.general, &figures.settings);
    page.kernel_plane(&figures.general);
    page.rows(GENERAL, &figures.general);
    page.rows(GUARD, &figures.guard);
    page.classes(&figures.items, &figures.slabs);
    page.guard(&figures.guard);
    page.turns = Turns::of(&figures.guard);
    let mut registry = Registry::default();
    registry.register_collector(Box::new(page));
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) => text,
        // Writing to a string does not fail.
        Err(error) => format!("# {error}\n# EOF\n"),
    }
}

fn value(statistics: &[(String, String)], name: &str) -> Option<f64> {
    let (_, value) = statistics.iter().find(|(found, _)| found == name)?;
    number(value)
}

fn number(text: &str) -> Option<f64> {
    match text {
        "yes" => Some(1.0),
        "no" => Some(0.0),
        text => text.parse().ok(),
    }
}

impl Page {
    fn put(
        &mut self,
        name: &'static str,
        kind: Kind,
        help: &'static str,
        labels: Labels,
        value: f64,
    ) {
        let family = Family { kind, help, samples: Vec::new() };
        self.families.entry(name).or_insert(family).samples.push((labels, value));
    }

    fn rows(&mut self, rows: &[Row], statistics: &[(String, String)]) {
        for (name, kind, statistic, help) in rows {
            if let Some(value) = value(statistics, statistic) {
                self.put(name, *kind, help, Vec::new(), value);
            }
        }
    }

    fn general(&mut self, general: &[(String, String)], settings: &[(String, String)]) {
        if let Some((_, version)) = general.iter().find(|(name, _)| name == "version") {
            let labels = vec![("version", version.clone())];
            self.put("memcached_version", Gauge, "The version of this server.", labels, 1.0);
        }
        if let Some(most) = value(settings, "maxconns") {
            let help = "Maximum number of clients allowed.";
            self.put("memcached_max_connections", Gauge, help, Vec::new(), most);
        }
        let mut command = |command: &str, status: &str, count: f64| {
            let labels = vec![("command", command.to_owned()), ("status", status.to_owned())];
            let help = "Requests by command and status.";
            self.put("memcached_commands", Counter, help, labels, count);
        };
        let mut checked = 0.0;
        for name in COMMANDS {
            for (status, suffix) in [("hit", "hits"), ("miss", "misses")] {
                let count = value(general, &format!("{name}_{suffix}")).unwrap_or(0.0);
                command(name, status, count);
                checked += if name == "cas" { count } else { 0.0 };
            }
        }
        let bad = value(general, "cas_badval").unwrap_or(0.0);
        command("cas", "badval", bad);
        command("flush", "hit", value(general, "cmd_flush").unwrap_or(0.0));
        // `cmd_set` counts the stores with a version again.
        let sets = value(general, "cmd_set").unwrap_or(0.0) - checked - bad;
        command("set", "hit", sets.max(0.0));
    }

    fn kernel_plane(&mut self, general: &[(String, String)]) {
        for (name, text) in general {
            if let (Some(outcome), Some(count)) = (name.strip_prefix("kernel_plane_"), number(text))
            {
                let help = "Datagrams of allowed sources by what the kernel plane did with them.";
                let labels = vec![("outcome", outcome.to_owned())];
                self.put("session_kernel_plane_datagrams", Counter, help, labels, count);
            }
        }
    }

    fn classes(&mut self, items: &[(String, String)], slabs: &[(String, String)]) {
        for (name, text) in items {
            let mut parts = name.splitn(3, ':');
            if let (Some("items"), Some(class), Some(statistic)) =
                (parts.next(), parts.next(), parts.next())
            {
                self.class(ITEMS, class, statistic, text);
            }
        }
        for (name, text) in slabs {
            if let Some((class, statistic)) = name.split_once(':') {
                self.class(SLABS, class, statistic, text);
            }
            if name == "total_malloced"
                && let Some(bytes) = number(text)
            {
                let help = "Bytes of memory allocated to slab pages.";
                self.put("memcached_malloced_bytes", Gauge, help, Vec::new(), bytes);
            }
        }
    }

    fn class(&mut self, rows: &[Row], class: &str, statistic: &str, text: &str) {
        let row = rows.iter().find(|(_, _, name, _)| *name == statistic);
        if let (Some((name, kind, _, help)), Some(value)) = (row, number(text)) {
            self.put(name, *kind, help, vec![("slab", class.to_owned())], value);
        }
    }

    fn guard(&mut self, guard: &[(String, String)]) {
        for (name, text) in guard {
            let parts: Vec<&str> = name.split(':').collect();
            let Some(value) = number(text) else { continue };
            match parts.as_slice() {
                [verdict @ ("dropped" | "passed"), reason, what @ ("packets" | "bytes")] => {
                    let labels =
                        vec![("verdict", (*verdict).to_owned()), ("reason", (*reason).to_owned())];
                    let (name, help) = match *what {
                        "packets" => ("session_guard_packets", "Packets by what became of them."),
                        _ => ("session_guard_bytes", "Bytes of packets by what became of them."),
                    };
                    self.put(name, Counter, help, labels, value);
                }
                ["interface", .., "dropped", reason] => {
                    let interface = parts[1..parts.len() - 2].join(":");
                    let labels = vec![("interface", interface), ("reason", (*reason).to_owned())];
                    let help = "Dropped packets by interface and reason, estimated from samples.";
                    self.put("session_guard_interface_dropped", Counter, help, labels, value);
                }
                ["interface", .., "open"] => {
                    let interface = parts[1..parts.len() - 1].join(":");
                    let help = "Whether strangers reach the port through the interface.";
                    let labels = vec![("interface", interface)];
                    self.put("session_guard_interface_open", Gauge, help, labels, value);
                }
                _ => {}
            }
        }
        for (action, statistic) in [("allow", "list_allow"), ("deny", "list_deny")] {
            if let Some(count) = value(guard, statistic) {
                let labels = vec![("action", action.to_owned())];
                self.put("session_list_entries", Gauge, "Entries of the list.", labels, count);
            }
        }
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, family) in &self.families {
            let kind = match family.kind {
                Counter => MetricType::Counter,
                Gauge => MetricType::Gauge,
            };
            let mut metric =
                encoder.encode_descriptor(name, family.help.trim_end_matches('.'), None, kind)?;
            if let [(labels, value)] = family.samples.as_slice()
                && labels.is_empty()
            {
                family.kind.encode(*value, metric)?;
                continue;
            }
            for (labels, value) in &family.samples {
                family.kind.encode(*value, metric.encode_family(labels)?)?;
            }
        }
        self.turns.encode(&mut encoder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_have_the_exporters_names() {
        let pairs = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let text = render(&Figures {
            general: pairs(&[
                ("version", "1.6.45"),
                ("get_hits", "7"),
                ("cmd_set", "5"),
                ("cas_hits", "2"),
                ("bytes", "100"),
                ("kernel_plane_hits", "6"),
                ("kernel_plane_passed_item", "1"),
            ]),
            settings: pairs(&[("maxconns", "1024")]),
            items: pairs(&[("items:3:number", "9"), ("items:3:evicted_nonzero", "1")]),
            slabs: pairs(&[("3:chunk_size", "96"), ("total_malloced", "65536")]),
            guard: pairs(&[
                ("dropped:not_listed:packets", "4"),
                ("interface:eth0.7:open", "no"),
                ("interface:eth0:1:dropped:not_listed", "3"),
                ("guard_complete", "yes"),
                ("list_allow", "2"),
                ("turns_below_us:1", "3"),
                ("turns_below_us:2", "4"),
                ("turns_longer", "1"),
                ("turns_sum_us", "2000000"),
            ]),
        });
        for line in [
            "memcached_up 1.0",
            "memcached_version{version=\"1.6.45\"} 1.0",
            "memcached_commands_total{command=\"get\",status=\"hit\"} 7.0",
            "memcached_commands_total{command=\"set\",status=\"hit\"} 3.0",
            "memcached_current_bytes 100.0",
            "session_kernel_plane_datagrams_total{outcome=\"hits\"} 6.0",
            "session_kernel_plane_datagrams_total{outcome=\"passed_item\"} 1.0",
            "memcached_max_connections 1024.0",
            "memcached_slab_current_items{slab=\"3\"} 9.0",
            "memcached_slab_items_evicted_nonzero_total{slab=\"3\"} 1.0",
            "memcached_slab_chunk_size_bytes{slab=\"3\"} 96.0",
            "memcached_malloced_bytes 65536.0",
            "session_guard_packets_total{verdict=\"dropped\",reason=\"not_listed\"} 4.0",
            "session_guard_interface_dropped_total{interface=\"eth0:1\",reason=\"not_listed\"} 3.0",
            "session_guard_interface_open{interface=\"eth0.7\"} 0.0",
            "session_guard_complete 1.0",
            "session_list_entries{action=\"allow\"} 2.0",
            "session_turn_seconds_sum 2.0",
            "session_turn_seconds_count 8",
            "session_turn_seconds_bucket{le=\"0.000002\"} 7",
            "session_turn_seconds_bucket{le=\"+Inf\"} 8",
        ] {
            assert!(text.lines().any(|found| found == line), "no `{line}` in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
