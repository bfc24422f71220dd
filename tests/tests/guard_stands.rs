//! The guard's life: attached before anything listens, in force after `kill -9`, adopted by the
//! next daemon without a gap.
#![forbid(unsafe_code)]

use session_daemon::guard::Mode;
use session_daemon::guard::status::{GuardStatus, InterfaceState, InterfaceStatus};
use session_tests::guard_holder::{Holder, Setup};
use session_tests::require_root;
use session_tests::scratch::Scratch;
use session_tests::topology::Topology;

const HOLDER: &str = env!("CARGO_BIN_EXE_guard_holder");

fn eth0(status: &GuardStatus) -> &InterfaceStatus {
    status.interfaces.iter().find(|one| one.name == "eth0").expect("the host has an eth0")
}

#[test]
fn the_next_daemon_adopts_the_link_of_a_killed_one() {
    require_root!();
    let topology = Topology::new(1).unwrap();
    let scratch = Scratch::new("guard").unwrap();
    let bpffs = scratch.mount_bpffs().unwrap();
    let setup = Setup::new(&bpffs, &topology.allow_argument());
    let (mut holder, first) = Holder::start(HOLDER, &topology.cache.namespace, &setup).unwrap();
    assert!(first.complete, "{first:?}");
    assert_eq!(eth0(&first).state, InterfaceState::Guarded);
    assert_eq!(eth0(&first).mode, Some(Mode::NativeFrags));
    assert!(eth0(&first).pinned);
    holder.kill();
    let (_holder, second) = Holder::start(HOLDER, &topology.cache.namespace, &setup).unwrap();
    assert_eq!(eth0(&second).link_id, eth0(&first).link_id);
    assert_ne!(eth0(&second).program_id, eth0(&first).program_id);
    assert_ne!(second.generation, first.generation);
}
