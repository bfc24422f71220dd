//! Sessions in two caches: copies by both handlers, and twemproxy in front.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use session_tests::client::Client;
use session_tests::php::browser::Browser;
use session_tests::php::proxy::{PROXY_PORT, Proxy};
use session_tests::sessiond::{PORT, Sessiond};

use super::shop::Shop;
use super::story::Story;

/// Sessions that are kept twice; enough that each cache is the first choice for some.
const PEOPLE: usize = 10;

/// Two caches of ours.
pub(super) fn show(story: &mut Story, shop: &Shop, first: &Sessiond<'_>) -> Result<()> {
    story.heading("Two caches of ours: copies, and twemproxy");
    let setup = shop.guarded()?;
    let second = setup.start(Some(&shop.second.namespace))?;
    second.ctl(&["allow", &shop.fifth.v4.to_string()])?;
    let caches = [shop.topology.cache.v4, shop.second.v4];
    proxied(story, shop, caches, [first, &second])?;
    let memcache = settings(
        &format!("tcp://{}:{PORT},tcp://{}:{PORT}", caches[0], caches[1]),
        "memcache",
        &["memcache.session_redundancy = 2"],
    );
    let memcached = settings(
        &format!("{}:{PORT},{}:{PORT}", caches[0], caches[1]),
        "memcached",
        &[
            "memcached.sess_binary_protocol = 1",
            "memcached.sess_number_of_replicas = 1",
            "memcached.sess_consistent_hash = 1",
            // A lock lies in one cache only, so with a dead one half of the locks fail.
            "memcached.sess_locking = 0",
        ],
    );
    let mut people = Vec::new();
    for (handler, settings) in [("memcache", &memcache), ("memcached", &memcached)] {
        for number in 0..PEOPLE {
            let name = format!("{handler}{number}");
            people.push((handler, name.clone(), shop.logged_in(&name, settings)?));
        }
    }
    for cache in caches {
        let held = held(shop, cache, people.iter().map(|(.., browser)| browser))?;
        ensure!(held == people.len(), "{cache} has {held} of {} sessions", people.len());
    }
    story.good(&format!(
        "session_redundancy = 2 and sess_number_of_replicas = 1: all {} sessions are in both",
        people.len()
    ));
    drop(second);
    let mut known = [0; 2];
    for (handler, name, browser) in &mut people {
        // libmemcached reads the copy and complains that it cannot write to the dead cache, which
        // is the same with any server.
        let page = shop.street.run(|| browser.get(shop.balancer.address, ""))?;
        let complains = *handler == "memcache" && !page.errors.is_empty();
        let is_known = page.user.as_deref() == Some(name) && !complains;
        known[usize::from(*handler == "memcached")] += usize::from(is_known);
    }
    ensure!(known == [PEOPLE; 2], "known of {PEOPLE} after a cache was killed: {known:?}");
    story.good(&format!(
        "one cache is killed: memcache goes on with {} of {PEOPLE} sessions, memcached reads {} of \
         {PEOPLE}",
        known[0], known[1]
    ));
    Ok(())
}

fn settings(path: &str, handler: &str, more: &[&str]) -> String {
    let first =
        [format!("session.save_handler = {handler}"), format!("session.save_path = {path}")];
    let more = more.iter().map(|line| (*line).to_owned());
    first.into_iter().chain(more).collect::<Vec<_>>().join("\n")
}

/// Sessions of both handlers through twemproxy, which speaks text only.
fn proxied(
    story: &mut Story,
    shop: &Shop,
    caches: [Ipv4Addr; 2],
    daemons: [&Sessiond<'_>; 2],
) -> Result<()> {
    let _proxy = Proxy::start(&shop.proxy, &caches, PORT)?;
    let proxy = shop.proxy.v4;
    let memcache = settings(&format!("tcp://{proxy}:{PROXY_PORT}"), "memcache", &[]);
    let memcached = settings(
        &format!("{proxy}:{PROXY_PORT}"),
        "memcached",
        &["memcached.sess_binary_protocol = 0"],
    );
    let mut people: Vec<(String, Browser)> = Vec::new();
    for number in 0..2 * PEOPLE {
        let name = format!("proxied{number}");
        let settings = if number % 2 == 0 { &memcache } else { &memcached };
        people.push((name.clone(), shop.logged_in(&name, settings)?));
    }
    for (name, browser) in &mut people {
        shop.knows(browser, name)?;
    }
    let browsers = || people.iter().map(|(_, browser)| browser);
    let in_each = [held(shop, caches[0], browsers())?, held(shop, caches[1], browsers())?];
    ensure!(!in_each.contains(&0), "ketama uses one cache only: {in_each:?}");
    ensure!(in_each[0] + in_each[1] == people.len(), "not each once: {in_each:?}");
    for daemon in daemons {
        ensure!(daemon.ctl(&["status"])?.contains("eth0"), "a cache is not guarded");
    }
    story.good(&format!(
        "twemproxy with ketama: {} sessions of both handlers, {} in one cache and {} in the other",
        people.len(),
        in_each[0],
        in_each[1]
    ));
    Ok(())
}

/// How many of the browsers' sessions a cache has, asked from a web server.
fn held<'a>(
    shop: &Shop,
    cache: Ipv4Addr,
    browsers: impl Iterator<Item = &'a Browser>,
) -> Result<usize> {
    let web = &shop.topology.allowed[0];
    let mut client = web.run(|| Client::connect(cache.into(), PORT))?;
    let mut held = 0;
    for id in browsers.filter_map(Browser::session) {
        let keys = [id.to_owned(), format!("memc.sess.key.{id}")];
        for key in keys {
            held += usize::from(client.get(&key)?.is_some());
        }
    }
    Ok(held)
}
