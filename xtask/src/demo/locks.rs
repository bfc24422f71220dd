//! Both save handlers, text and binary, with pages of one session at the same time.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Result, ensure};

use super::shop::Shop;
use super::story::Story;

const MEMCACHE_TEXT: &str = "session.save_handler = memcache\n\
    session.save_path = tcp://CACHE:11211\nmemcache.protocol = ascii";
const MEMCACHE_BINARY: &str = "session.save_handler = memcache\n\
    session.save_path = tcp://CACHE:11211\nmemcache.protocol = binary";
const MEMCACHED_TEXT: &str = "session.save_handler = memcached\nsession.save_path = CACHE:11211\n\
    memcached.sess_binary_protocol = 0\nmemcached.sess_lock_retries = 2000\n\
    memcached.sess_lock_wait_min = 5\nmemcached.sess_lock_wait_max = 20";
/// The other handler, in its protocol of choice. `CACHE` stands for the address. It waits for a
/// lock for longer than Debian's 0.75 s, with which some of many pages at once give up.
pub(super) const MEMCACHED_BINARY: &str = "session.save_handler = memcached\n\
    session.save_path = CACHE:11211\nmemcached.sess_binary_protocol = 1\n\
    memcached.sess_lock_retries = 2000\nmemcached.sess_lock_wait_min = 5\n\
    memcached.sess_lock_wait_max = 20";

/// Pages of one session that are asked for at the same time, and how often.
const WINDOWS: u64 = 8;
const PAGES_PER_WINDOW: u64 = 3;

/// Counts visits of one session from several windows at once.
pub(super) fn show(story: &mut Story, shop: &Shop) -> Result<()> {
    story.heading("Locks: eight windows of one browser, over five web servers");
    for (name, settings) in [
        ("memcache,  text  ", MEMCACHE_TEXT),
        ("memcache,  binary", MEMCACHE_BINARY),
        ("memcached, text  ", MEMCACHED_TEXT),
        ("memcached, binary", MEMCACHED_BINARY),
    ] {
        let settings = settings.replace("CACHE", &shop.topology.cache.v4.to_string());
        let mut browser = shop.logged_in("dan", &settings)?;
        let start = Instant::now();
        let failed = AtomicU64::new(0);
        thread::scope(|scope| {
            for _ in 0..WINDOWS {
                let (mut window, failed) = (browser.clone(), &failed);
                scope.spawn(move || {
                    for _ in 0..PAGES_PER_WINDOW {
                        if let Err(error) = shop.page(&mut window, "hold_us=1000") {
                            println!("    {error:#}");
                            // Relaxed: read after the scope has ended, which joins.
                            failed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let ms = start.elapsed().as_millis();
        let pages = WINDOWS * PAGES_PER_WINDOW;
        let failed = failed.into_inner();
        let counted = shop.knows(&mut browser, "dan")?.visits - 2;
        ensure!(failed == 0, "{name}: {failed} of {pages} pages failed");
        ensure!(counted == pages, "{name}: {pages} visits, {counted} counted");
        story.good(&format!("{name}  {pages} pages at once in {ms} ms, {counted} visits counted"));
    }
    Ok(())
}
