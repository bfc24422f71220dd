//! Every byte script against `sessiond` and against the real memcached. Where memcached differs
//! the script says how, and a difference that is no longer one fails as well.
#![forbid(unsafe_code)]

use anyhow::Result;
use session_tests::memcached::Memcached;
use session_tests::script::{self, Case, Side};
use session_tests::sessiond::Setup;
use std::time::Duration;

/// How long a reply that memcached does not give is waited for.
const DIFFERENCE_LIMIT: Duration = Duration::from_millis(250);

/// Plays all cases and lists those that fail.
fn play(cases: &[Case], port: u16, side: Side) -> Vec<String> {
    let failed = |case: &Case| {
        let error = case.play(port, side).err()?;
        Some(format!("{}: {error:#}", case.name))
    };
    cases.iter().filter_map(failed).collect()
}

fn assert_none(failures: &[String]) {
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn sessiond_answers_every_script() -> Result<()> {
    let setup = Setup::loopback()?;
    let daemon = setup.start(None)?;
    assert_none(&play(&script::all()?, daemon.setup.port(), Side::Ours));
    Ok(())
}

#[test]
fn memcached_answers_every_script() -> Result<()> {
    session_tests::require_program!("memcached");
    let memcached = Memcached::start(&[])?;
    assert_none(&play(&script::all()?, memcached.port, Side::Memcached));
    Ok(())
}

#[test]
fn every_listed_difference_is_one() -> Result<()> {
    session_tests::require_program!("memcached");
    let memcached = Memcached::start(&[])?;
    let cases = script::all()?;
    let differing: Vec<_> = cases.iter().filter(|case| case.differs()).collect();
    assert!(!differing.is_empty());
    let stale: Vec<_> = differing
        .iter()
        .filter(|case| case.play_within(memcached.port, Side::Ours, DIFFERENCE_LIMIT).is_ok())
        .map(|case| format!("{}: memcached answers as sessiond does", case.name))
        .collect();
    assert_none(&stale);
    Ok(())
}
