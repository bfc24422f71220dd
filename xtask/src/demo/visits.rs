//! A login on four web servers; who is let in, who is not, and changes while it runs.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use session_tests::client::Client;
use session_tests::php::browser::Browser;
use session_tests::sessiond::{PORT, Sessiond};
use session_tests::wait;

use super::shop::Shop;
use super::story::Story;

/// Pages of the first visit: a multiple of the sum of the weights.
const PAGES: u64 = 24;

/// How long a stranger's attempt may take.
const ATTEMPT: Duration = Duration::from_millis(800);

/// One login, carried by four web servers.
pub(super) fn the_shop(story: &mut Story, shop: &Shop) -> Result<()> {
    story.heading("A shop: nginx in front of four web servers with PHP, sessions in sessiond");
    story.line("php.ini as it was: session.save_handler = memcache, tcp://198.18.0.1:11211");
    let mut ann = shop.logged_in("ann", "")?;
    let mut served: BTreeMap<String, u32> = BTreeMap::new();
    for visit in 2..=PAGES {
        let page = shop.knows(&mut ann, "ann")?;
        ensure!(page.visits == visit, "visit {visit} is counted as {}", page.visits);
        *served.entry(page.web).or_default() += 1;
    }
    let servers: Vec<String> = served.iter().map(|(web, pages)| format!("{web} {pages}")).collect();
    ensure!(served.len() == 4, "not every web server took part: {}", servers.join(", "));
    ensure!(served["web1"] > 2 * served["web2"], "the weights are not kept: {served:?}");
    story.good(&format!(
        "ann logs in once and is known on all four; pages: {} (web1 has weight 3)",
        servers.join(", ")
    ));
    Ok(())
}

/// Strangers are refused; the list changes while pages are served.
pub(super) fn strangers(story: &mut Story, shop: &Shop, daemon: &Sessiond<'_>) -> Result<()> {
    story.heading("Who may reach the cache: four web servers, and nobody else");
    let cache = &shop.topology.cache;
    let before = daemon.dropped()?;
    for address in cache.addresses() {
        let attempt = || Client::connect_within(address, PORT, ATTEMPT).map(drop);
        if shop.topology.stranger.run(attempt).is_ok() {
            bail!("the stranger reached {address}");
        }
    }
    let dropped = daemon.dropped()? - before;
    ensure!(dropped > 0, "the guard has not seen the stranger");
    story.good(&format!(
        "a stranger gets no answer, over IPv4 and IPv6: {dropped} packets dropped in the driver"
    ));
    fifth(story, shop, daemon)?;
    removed(story, shop, daemon)
}

fn fifth(story: &mut Story, shop: &Shop, daemon: &Sessiond<'_>) -> Result<()> {
    let mut visitor = Browser::default();
    let refused = shop.street.run(|| visitor.log_in(shop.fifth.v4, "eve"))?;
    ensure!(!refused.errors.is_empty(), "a page without the cache: {refused:?}");
    let start = Instant::now();
    daemon.ctl(&["allow", &shop.fifth.v4.to_string(), "--comment", "web5"])?;
    let allowed_ms = start.elapsed().as_millis();
    shop.balancer.balance(&shop.all_weights())?;
    let mut bob = shop.logged_in("bob", "")?;
    let mut pages = 0;
    wait::within(wait::PATIENCE, || {
        pages += 1;
        let page = shop.knows(&mut bob, "bob");
        page.map_or_else(|error| Some(Err(error)), |page| (page.web == "web5").then_some(Ok(())))
    })
    .context("the balancer never chose web5")??;
    story.good(&format!(
        "a fifth web server has no sessions, until `sessionctl allow {}` ({allowed_ms} ms); then it \
         serves bob",
        shop.fifth.v4
    ));
    Ok(())
}

fn removed(story: &mut Story, shop: &Shop, daemon: &Sessiond<'_>) -> Result<()> {
    let fourth = &shop.topology.allowed[3];
    let cache = shop.topology.cache.v4;
    let mut open = fourth.run(|| Client::connect(cache.into(), PORT))?;
    open.command("version")?;
    let start = Instant::now();
    let answer = daemon.ctl_json(&["remove", &fourth.v4.to_string()])?;
    open.closed().context("the connection of a removed server")?;
    let us = start.elapsed().as_micros();
    let reset = answer["reset"].as_u64().unwrap_or_default();
    ensure!(reset >= 1, "no connection was reset: {answer}");
    let again = fourth.run(|| Client::connect_within(cache.into(), PORT, ATTEMPT).map(drop));
    ensure!(again.is_err(), "a removed server connects again");
    daemon.ctl(&["allow", &fourth.v4.to_string()])?;
    shop.knows(&mut shop.logged_in("cyd", "")?, "cyd")?;
    story.good(&format!(
        "`sessionctl remove {}`: its connection is reset after {us} us, it cannot come again, and \
         the others notice nothing",
        fourth.v4
    ));
    Ok(())
}
