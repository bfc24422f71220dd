//! A short run of the differential fuzzer with a fixed seed; `cargo xtask fuzz diff` runs longer.
#![forbid(unsafe_code)]

use anyhow::Result;
use session_tests::fuzz::{self, Options, Protocol};
use session_tests::memcached::Memcached;
use session_tests::sessiond::Setup;

#[test]
fn random_streams_are_answered_as_memcached_answers_them() -> Result<()> {
    session_tests::require_program!("memcached");
    let memcached = Memcached::start(&[])?;
    let setup = Setup::loopback()?;
    let daemon = setup.start(None)?;
    for protocol in [Protocol::Text, Protocol::Meta, Protocol::Binary] {
        let (ours, theirs) = (daemon.setup.port(), memcached.port);
        let options = Options { commands: 4_000, seed: 5, protocol, ours, theirs };
        let found = fuzz::run(&options, 5)?;
        let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(found.is_empty(), "{protocol:?}:\n{}", shown.join("\n"));
    }
    Ok(())
}

#[test]
fn every_known_difference_is_one() -> Result<()> {
    session_tests::require_program!("memcached");
    let memcached = Memcached::start(&[])?;
    let setup = Setup::loopback()?;
    let daemon = setup.start(None)?;
    let stale = fuzz::stale(daemon.setup.port(), memcached.port)?;
    assert!(stale.is_empty(), "both answer the same by now: {stale:#?}");
    Ok(())
}
