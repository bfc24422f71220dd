//! `stats items` and `stats slabs`: figures of each slab class in memcached's names and order.
//! This store keeps all items of a class in one list, which `cold` stands for.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::plane::ClassHits;
use crate::server::shared::Shared;
use crate::server::statistics::Sink;
use crate::store::stats::ClassStats;

/// The hits of a class, those that the kernel has answered among them.
fn hits(class: &ClassStats, in_kernel: Option<&ClassHits>) -> u64 {
    let idx = usize::try_from(class.class).unwrap_or(usize::MAX);
    let in_kernel = in_kernel.and_then(|hits| hits.get(idx)).copied();
    class.get_hits.wrapping_add(in_kernel.unwrap_or(0))
}

fn in_kernel(shared: &Shared) -> Option<ClassHits> {
    Some(shared.config.plane.as_ref()?.class_hits())
}

pub(super) fn items(shared: &Shared, sink: &mut Sink<'_>) {
    let (tuning, in_kernel) = (shared.tuning(), in_kernel(shared));
    for class in shared.store.classes().iter().filter(|class| class.number > 0) {
        let mut item = |name: &str, value: u64| {
            sink(&format!("items:{}:{name}", class.class), &value);
        };
        item("number", class.number);
        if tuning.lru_segmented {
            item("number_hot", 0);
            item("number_warm", 0);
            item("number_cold", class.number);
            if tuning.temporary_ttl_s.is_some() {
                item("number_temp", 0);
            }
            item("age_hot", 0);
            item("age_warm", 0);
        }
        item("age", 0);
        removals(class, &mut item);
        if tuning.lru_segmented {
            ["moves_to_cold", "moves_to_warm", "moves_within_lru", "direct_reclaims"]
                .into_iter()
                .for_each(|name| item(name, 0));
            item("hits_to_hot", 0);
            item("hits_to_warm", 0);
            item("hits_to_cold", hits(class, in_kernel.as_ref()));
            item("hits_to_temp", 0);
        }
    }
}

fn removals(class: &ClassStats, item: &mut dyn FnMut(&str, u64)) {
    item("mem_requested", class.mem_requested);
    item("evicted", class.evicted);
    item("evicted_nonzero", class.evicted_nonzero);
    item("evicted_time", class.evicted_time);
    item("outofmemory", class.outofmemory);
    item("tailrepairs", 0);
    item("reclaimed", class.reclaimed);
    item("expired_unfetched", class.expired_unfetched);
    item("evicted_unfetched", class.evicted_unfetched);
    item("evicted_active", class.evicted_active);
    item("crawler_reclaimed", class.crawler_reclaimed);
    item("crawler_items_checked", class.crawler_items_checked);
    item("lrutail_reflocked", 0);
}

pub(super) fn slabs(shared: &Shared, sink: &mut Sink<'_>) {
    let (classes, in_kernel) = (shared.store.classes(), in_kernel(shared));
    for class in &classes {
        let mut slab = |name: &str, value: u64| sink(&format!("{}:{name}", class.class), &value);
        slab("chunk_size", class.chunk_size);
        slab("chunks_per_page", class.chunks_per_page);
        slab("total_pages", class.total_pages);
        slab("total_chunks", class.total_chunks);
        slab("used_chunks", class.used_chunks);
        slab("free_chunks", class.free_chunks);
        slab("free_chunks_end", 0);
        slab("get_hits", hits(class, in_kernel.as_ref()));
        slab("cmd_set", class.cmd_set);
        slab("delete_hits", class.delete_hits);
        slab("incr_hits", class.incr_hits);
        slab("decr_hits", class.decr_hits);
        slab("cas_hits", class.cas_hits);
        slab("cas_badval", class.cas_badval);
        slab("touch_hits", class.touch_hits);
    }
    sink("active_slabs", &classes.len());
    sink("total_malloced", &shared.store.totals().total_malloced);
}
