//! The daemon ends in two ways and no session is lost.
#![forbid(unsafe_code)]

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use session_tests::php::browser::Browser;
use session_tests::sessiond::{Sessiond, Setup};
use session_tests::wait;

use super::shop::Shop;
use super::story::Story;

/// People who are logged in.
const PEOPLE: usize = 24;

/// Ends the daemon and starts it again, and looks for every session.
pub(super) fn show<'a>(
    story: &mut Story,
    shop: &'a Shop,
    setup: &'a Setup,
    mut daemon: Sessiond<'a>,
) -> Result<Sessiond<'a>> {
    story.heading("Restarts: the memory file (-e) outlives the daemon");
    let mut people: Vec<(String, Browser)> = Vec::new();
    for number in 0..PEOPLE {
        let name = format!("person{number}");
        let handler = if number % 2 == 0 { "" } else { super::locks::MEMCACHED_BINARY };
        let handler = handler.replace("CACHE", &shop.topology.cache.v4.to_string());
        people.push((name.clone(), shop.logged_in(&name, &handler)?));
    }
    for how in ["kill -9", "SIGTERM"] {
        let start = Instant::now();
        if how == "SIGTERM" {
            daemon.process.signal(Signal::SIGTERM);
            daemon.process.wait(wait::PATIENCE).context("SIGTERM ends it")?;
        } else {
            daemon.process.kill();
        }
        drop(daemon);
        daemon = setup.start(Some(&shop.topology.cache.namespace))?;
        let ms = start.elapsed().as_millis();
        let mut lost = 0;
        for (name, browser) in &mut people {
            lost += usize::from(shop.knows(browser, name).is_err());
        }
        ensure!(lost == 0, "{how}: {lost} of {PEOPLE} sessions are lost");
        story.good(&format!(
            "{how}: served again after {ms} ms, {lost} of {PEOPLE} sessions lost (both handlers)"
        ));
    }
    Ok(daemon)
}
