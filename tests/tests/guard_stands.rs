//! The guard's life: attached before anything listens, in force after `kill -9`, adopted by the
//! next daemon without a gap, in every mode.
#![forbid(unsafe_code)]

use anyhow::Result;
use session_daemon::guard::interfaces::Interfaces;
use session_daemon::guard::lists::Protocol;
use session_daemon::guard::status::InterfaceState;
use session_daemon::guard::{Mode, ModeChoice};
use session_tests::guard_bed::{Bed, EVERY_WAY, PORT, interface, packets};
use session_tests::guard_holder::Setup;
use session_tests::{kernel, require_root};

#[test]
fn strangers_reach_nothing_and_allowed_hosts_everything() -> Result<()> {
    require_root!();
    let bed = Bed::new(2)?;
    let (mut holder, status) = bed.start(&bed.setup())?;
    assert!(status.complete && status.warnings.is_empty(), "{status:?}");
    assert_eq!(interface(&status, "lo").state, InterfaceState::Excluded);
    let eth0 = interface(&status, "eth0");
    let best = if kernel::is_before(5, 18) { Mode::Native } else { Mode::NativeFrags };
    assert_eq!((eth0.state, eth0.mode), (InterfaceState::Guarded, Some(best)));
    assert_eq!(eth0.program_id.map(u64::from), bed.program_on("eth0")?);
    let sockets = bed.listen()?;
    bed.assert_guarded(&sockets);
    // The host reaches itself by its own addresses and by the loopback.
    assert_eq!(sockets.reached_by(&bed.topology.cache), EVERY_WAY);
    let status = holder.status();
    assert!(packets(&status, "not_listed") >= 4, "{status:?}");
    assert!(packets(&status, "allowed") >= 8, "{status:?}");
    for count in &status.counts {
        assert!(count.packets > 0 && count.bytes > 60, "{count:?}");
    }
    Ok(())
}

#[test]
fn a_killed_daemon_leaves_the_port_guarded_and_the_next_adopts_the_link() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    let (mut holder, first) = bed.start(&bed.setup())?;
    bed.assert_guarded(&sockets);
    let counted = packets(&holder.status(), "allowed");
    holder.kill();
    bed.assert_guarded(&sockets);
    let (_holder, second) = bed.start(&bed.setup())?;
    bed.assert_guarded(&sockets);
    assert_eq!(interface(&second, "eth0").link_id, interface(&first, "eth0").link_id);
    assert_ne!(interface(&second, "eth0").program_id, interface(&first, "eth0").program_id);
    assert!(interface(&second, "eth0").pinned);
    assert_ne!(second.generation, first.generation);
    assert!(packets(&second, "allowed") > counted, "counters are kept");
    assert!(second.counts.iter().all(|count| count.packets > 0), "{:?}", second.counts);
    Ok(())
}

#[test]
fn another_port_is_nobodys_business_and_a_port_given_up_is_open() -> Result<()> {
    require_root!();
    let bed = Bed::new(0)?;
    let sockets = bed.listen()?;
    let elsewhere = Setup {
        endpoints: vec![(Protocol::Tcp, PORT + 1), (Protocol::Udp, PORT)],
        ..Setup::new(&bed.bpffs, "")
    };
    let (mut holder, status) = bed.start(&elsewhere)?;
    assert!(status.warnings.iter().any(|text| text.contains("list is empty")), "{status:?}");
    let ways = sockets.reached_by(&bed.topology.stranger);
    assert_eq!(ways, [(Protocol::Tcp, "IPv4"), (Protocol::Tcp, "IPv6")]);
    holder.kill();
    let udp_given_up = Setup { endpoints: vec![(Protocol::Tcp, PORT)], ..elsewhere };
    let _holder = bed.start(&udp_given_up)?;
    let ways = sockets.reached_by(&bed.topology.stranger);
    assert_eq!(ways, [(Protocol::Udp, "IPv4"), (Protocol::Udp, "IPv6")]);
    Ok(())
}

#[test]
fn every_mode_guards_and_is_named() -> Result<()> {
    require_root!();
    for (choice, mode) in [
        (ModeChoice::Native, Mode::NativeFrags),
        (ModeChoice::Tcx, Mode::Tcx),
        (ModeChoice::Generic, Mode::Generic),
    ] {
        let bed = Bed::new(1)?;
        let sockets = bed.listen()?;
        let (mut holder, status) = bed.start(&Setup { mode: choice, ..bed.setup() })?;
        assert_eq!(interface(&status, "eth0").mode, Some(mode));
        bed.assert_guarded(&sockets);
        holder.kill();
        let (_holder, again) = bed.start(&Setup { mode: choice, ..bed.setup() })?;
        assert_eq!(interface(&again, "eth0").mode, Some(mode));
        assert_eq!(interface(&again, "eth0").link_id, interface(&status, "eth0").link_id);
        bed.assert_guarded(&sockets);
    }
    Ok(())
}

#[test]
fn a_change_of_hooks_puts_the_new_one_up_before_the_old_one_goes() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    for (choice, mode) in [
        (ModeChoice::Tcx, Mode::Tcx),
        (ModeChoice::Auto, Mode::NativeFrags),
        (ModeChoice::Tcx, Mode::Tcx),
        (ModeChoice::Generic, Mode::Generic),
        // In the driver and on socket buffers exclude each other: the one there is stays.
        (ModeChoice::Auto, Mode::Generic),
    ] {
        let (_holder, status) = bed.start(&Setup { mode: choice, ..bed.setup() })?;
        let eth0 = interface(&status, "eth0");
        assert_eq!((eth0.mode, eth0.pinned), (Some(mode), true));
        assert_eq!(eth0.warning.is_some(), choice == ModeChoice::Auto && mode == Mode::Generic);
        bed.assert_guarded(&sockets);
        assert_eq!(bed.program_on("eth0")?.is_some(), mode != Mode::Tcx);
    }
    Ok(())
}

#[test]
fn devices_without_xdp_or_without_an_ethernet_header_get_tcx() -> Result<()> {
    require_root!();
    let bed = Bed::new(0)?;
    bed.topology.cache.namespace.ip_batch(
        "tuntap add tun0 mode tun
         link set tun0 up
         link add br0 type bridge
         link set br0 up",
    )?;
    let (_holder, status) = bed.start(&bed.setup())?;
    assert!(status.complete, "{status:?}");
    for name in ["tun0", "br0"] {
        let status = interface(&status, name);
        assert_eq!((status.state, status.mode), (InterfaceState::Guarded, Some(Mode::Tcx)));
    }
    Ok(())
}

#[test]
fn named_interfaces_only_and_an_absent_one_is_an_error() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    bed.topology.cache.namespace.ip("link add spare0 type veth peer name spare1")?;
    let named = |name: &str| Interfaces::Named(vec![name.to_owned()]);
    let absent = Setup { interfaces: named("nope"), ..bed.setup() };
    let error = bed.start(&absent).unwrap_err().to_string();
    assert!(error.contains("no interface `nope`") && error.contains("ip link"), "{error}");
    let (_holder, status) = bed.start(&Setup { interfaces: named("eth0"), ..bed.setup() })?;
    assert_eq!(interface(&status, "spare0").state, InterfaceState::Excluded);
    assert_eq!(interface(&status, "eth0").state, InterfaceState::Guarded);
    assert_eq!(bed.program_on("spare0")?, None);
    Ok(())
}

#[test]
fn audit_counts_and_passes() -> Result<()> {
    require_root!();
    let bed = Bed::new(0)?;
    let sockets = bed.listen()?;
    let (mut holder, _) = bed.start(&Setup { audit: true, ..bed.setup() })?;
    assert_eq!(sockets.reached_by(&bed.topology.stranger), EVERY_WAY);
    assert!(packets(&holder.status(), "not_listed") >= 4);
    holder.kill();
    let _holder = bed.start(&bed.setup())?;
    assert_eq!(sockets.reached_by(&bed.topology.stranger), []);
    Ok(())
}
