//! The port is never open to a stranger while the daemon starts: the guard stands before it.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use session_tests::client::{Client, is_refusal};
use session_tests::require_root;
use session_tests::sessiond::{PORT, Setup};
use session_tests::topology::{Host, Topology};
use session_tests::wait::{self, EndOnDrop};

/// One attempt; short, so that many fall into the moments around the opening of the port.
const ATTEMPT: Duration = Duration::from_millis(40);

/// Between two attempts that were answered at once.
const PAUSE: Duration = Duration::from_millis(1);

/// What became of the attempts to connect.
#[derive(Debug, Default)]
struct Attempts {
    connected: usize,
    refused: usize,
    silent: usize,
}

#[test]
fn a_stranger_that_connects_in_a_loop_never_gets_in_during_the_start() {
    require_root!();
    let rounds = if session_tests::skip::all() { 30 } else { 4 };
    for _ in 0..rounds {
        let topology = Topology::new(1).unwrap();
        let setup = Setup::guarded().unwrap().arg(format!("--allow={}", topology.allow_argument()));
        let (strangers, allowed) = during_a_start(&topology, &setup);
        for attempts in &strangers {
            assert_eq!(attempts.connected, 0, "{strangers:?}");
            // Before the guard a closed port answers, after it nothing does: both were seen.
            assert!(attempts.refused > 0 && attempts.silent > 0, "{strangers:?}");
        }
        assert!(allowed.connected > 0, "{allowed:?}");
    }
}

/// Starts the daemon while the stranger knocks over both families, and an allowed host too.
fn during_a_start(topology: &Topology, setup: &Setup) -> (Vec<Attempts>, Attempts) {
    let end = AtomicBool::new(false);
    let cache = &topology.cache;
    thread::scope(|scope| {
        let _end = EndOnDrop(&end);
        let knocking: Vec<_> = cache
            .addresses()
            .map(|address| {
                let end = &end;
                scope.spawn(move || knock(&topology.stranger, address, end))
            })
            .into();
        let allowed = scope.spawn(|| knock(&topology.allowed[0], cache.v4.into(), &end));
        // The closed port must have answered before the daemon comes.
        wait::until("a reset of the closed port", || {
            let refused = topology.stranger.run(|| attempt(cache.v4.into()));
            refused.is_err_and(|error| is_refusal(&error)).then_some(())
        });
        let daemon = setup.start(Some(&cache.namespace)).unwrap();
        // It serves; the stranger goes on until the guard has counted more of its attempts.
        let before = daemon.dropped().unwrap();
        wait::until("more attempts of the stranger", || {
            (daemon.dropped().unwrap() > before + 10).then_some(())
        });
        end.store(true, Ordering::Relaxed);
        let strangers = knocking.into_iter().map(|thread| thread.join().unwrap()).collect();
        (strangers, allowed.join().unwrap())
    })
}

fn knock(host: &Host, address: IpAddr, end: &AtomicBool) -> Attempts {
    host.run(|| {
        let mut attempts = Attempts::default();
        while !end.load(Ordering::Relaxed) {
            match attempt(address) {
                Ok(_) => attempts.connected += 1,
                Err(error) if is_refusal(&error) => {
                    attempts.refused += 1;
                    // Resets come at once: without a pause this loop keeps the daemon off the CPU.
                    wait::pause(PAUSE);
                }
                Err(_) => attempts.silent += 1,
            }
        }
        attempts
    })
}

fn attempt(address: IpAddr) -> io::Result<Client> {
    Client::connect_within(address, PORT, ATTEMPT)
}
