//! The cache host's clock is wrong, and is set right: no session dies of it.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use session_tests::memcached::Memcached;
use session_tests::scratch::Scratch;
use session_tests::sessiond::PORT;

use super::shop::Shop;
use super::story::Story;

/// Where Debian keeps libfaketime.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// A wall clock that the run sets. The monotonic clocks stay as they are.
struct FakedClock {
    file: PathBuf,
    _scratch: Scratch,
}

impl FakedClock {
    fn new() -> Result<Self> {
        ensure!(Path::new(LIBRARY).exists(), "needs Debian's libfaketime");
        let scratch = Scratch::new("clock")?;
        Ok(Self { file: scratch.join("offset"), _scratch: scratch })
    }

    /// Sets the clock to so many seconds off.
    fn set(&self, seconds: i64) -> Result<()> {
        // Replaced at once, so that nobody reads half of it.
        let next = self.file.with_extension("next");
        fs::write(&next, format!("{seconds:+}\n"))?;
        fs::rename(&next, &self.file).context("setting the clock")
    }

    fn environment(&self) -> [(&'static str, String); 4] {
        [
            ("LD_PRELOAD", LIBRARY.to_owned()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }
}

const HOUR: i64 = 3600;

/// PECL memcache sends absolute expiry times, so it is the one that a clock can hurt.
pub(super) fn show(story: &mut Story, shop: &Shop) -> Result<()> {
    story.heading("Clocks: the cache host's clock is wrong, and NTP sets it right (libfaketime)");
    let host = &shop.wrong_clock;
    let settings =
        format!("session.save_handler = memcache\nsession.save_path = tcp://{}:{PORT}", host.v4);
    let clock = FakedClock::new()?;
    clock.set(HOUR)?;
    {
        let environment = clock.environment();
        let memcached =
            Memcached::start_with(Some(&host.namespace), host.v4.into(), PORT, &environment)?;
        clock.set(0)?;
        let known =
            shop.logged_in("fay", &settings).and_then(|mut fay| shop.knows(&mut fay, "fay"));
        ensure!(
            known.is_err(),
            "memcached has learnt to look at the clock: say so in the documents"
        );
        story.line("memcached, started an hour ahead: a login is forgotten before the next page");
        drop(memcached);
    }
    clock.set(HOUR)?;
    // The library in the serving process reads the file of its clock by name.
    let setup = shop.guarded()?.args(["-o", "no_drop_privileges"]);
    let mut setup = setup.arg(format!("--allow={}", shop.fifth.v4));
    for (name, value) in clock.environment() {
        setup = setup.env(name, value);
    }
    let daemon = setup.start(Some(&host.namespace))?;
    let seconds: i64 = daemon.client().stats("")?["time"].parse()?;
    let real = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_secs() as i64;
    ensure!((seconds - real - HOUR).abs() < 60, "the clock is not faked: {}", seconds - real);
    clock.set(0)?;
    let mut fay = shop.logged_in("fay", &settings)?;
    shop.knows(&mut fay, "fay")?;
    story.good("sessiond, started an hour ahead and set right: fay logs in and stays");
    for (step, text) in [(2 * HOUR, "two hours ahead"), (-2 * HOUR, "two hours back"), (0, "right")]
    {
        clock.set(step)?;
        // A look that writes nothing: what was stored before the step is what may not die of it.
        let id = fay.session().context("fay has a session")?.to_owned();
        let value = daemon.client().get(&id)?;
        ensure!(value.is_some(), "the session is gone when the clock is set {text}");
    }
    shop.knows(&mut fay, "fay")?;
    story.good("the clock is set two hours ahead, two back, and right again: fay is still known");
    Ok(())
}
