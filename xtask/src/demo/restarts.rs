//! The daemon ends in two ways, and is replaced while it runs, and no session is lost.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
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

/// Ends the daemon and starts it again, replaces its program, and looks for every session.
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
        let lost = lost(shop, &mut people);
        ensure!(lost == 0, "{how}: {lost} of {PEOPLE} sessions are lost");
        story.good(&format!(
            "{how}: served again after {ms} ms, {lost} of {PEOPLE} sessions lost (both handlers)"
        ));
    }
    upgrade(story, shop, &daemon, &mut people)?;
    Ok(daemon)
}

/// How many are not known any more.
fn lost(shop: &Shop, people: &mut [(String, Browser)]) -> usize {
    let unknown = |(name, browser): &mut (String, Browser)| shop.knows(browser, name).is_err();
    people.iter_mut().filter_map(|person| unknown(person).then_some(())).count()
}

/// Replaces the program of the running daemon while people ask for pages.
fn upgrade(
    story: &mut Story,
    shop: &Shop,
    daemon: &Sessiond<'_>,
    people: &mut [(String, Browser)],
) -> Result<()> {
    let over = AtomicBool::new(false);
    let (ms, pages, failed) = thread::scope(|scope| -> Result<_> {
        let asking = scope.spawn(|| {
            let (mut pages, mut failed) = (0, 0);
            // Relaxed: the flag stands for itself.
            while !over.load(Ordering::Relaxed) {
                for (name, browser) in &mut *people {
                    pages += 1;
                    failed += usize::from(shop.knows(browser, name).is_err());
                }
            }
            (pages, failed)
        });
        let start = Instant::now();
        let upgraded = daemon.ctl(&["upgrade"]);
        let ms = start.elapsed().as_millis();
        over.store(true, Ordering::Relaxed);
        let (pages, failed) = asking.join().expect("who asks for pages does not panic");
        upgraded.map(|_| (ms, pages, failed)).context("the upgrade")
    })?;
    ensure!(failed == 0, "{failed} of {pages} pages failed during the upgrade");
    let lost = lost(shop, people);
    ensure!(lost == 0, "upgrade: {lost} of {PEOPLE} sessions are lost");
    story.good(&format!(
        "sessionctl upgrade: {ms} ms, {pages} pages meanwhile and none failed, {lost} of {PEOPLE} \
         sessions lost"
    ));
    Ok(())
}
