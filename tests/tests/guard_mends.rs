//! What others do to the guard: noticed within a second and mended, or refused by the kernel.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::EbpfLoader;
use aya::maps::{HashMap, Map, MapData};
use aya::programs::xdp::XdpMode;
use aya::programs::{SchedClassifier, Xdp};
use nix::sys::signal::Signal;
use session_daemon::guard::lists::Protocol;
use session_daemon::guard::status::{GuardStatus, InterfaceState};
use session_daemon::guard::{Mode, ModeChoice};
use session_daemon::sys;
use session_tests::guard_bed::{Bed, PORT, interface};
use session_tests::guard_holder::{Holder, Setup};
use session_tests::{flood, require_program, require_root, skip, wait};

/// How soon the daemon must have noticed and mended.
const SOON: Duration = Duration::from_secs(1);

/// The directory of the guard's pins.
fn pins(status: &GuardStatus) -> PathBuf {
    PathBuf::from(&status.pins)
}

fn id(status: &GuardStatus, name: &str) -> u32 {
    interface(status, name).link_id.expect("the interface is guarded")
}

/// Waits until the holder's state is as `done` says, and fails if that takes longer than [`SOON`].
fn soon<T>(what: &str, holder: &mut Holder, done: impl Fn(&GuardStatus) -> Option<T>) -> T {
    let watch = holder.stopwatch();
    let value = wait::until(what, || done(&holder.status()));
    let took = watch.elapsed();
    assert!(took <= SOON, "{what} took {took:?}");
    value
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn a_detached_link_is_replaced() -> Result<()> {
    require_root!();
    require_program!("bpftool");
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    let (mut holder, before) = bed.start(&bed.setup())?;
    run(Command::new("bpftool").args(["link", "detach", "id", &id(&before, "eth0").to_string()]))?;
    let took = holder.event("the guard was detached from eth0");
    assert!(took <= SOON, "{took:?}");
    bed.assert_guarded(&sockets);
    let after = holder.status();
    assert_ne!(id(&after, "eth0"), id(&before, "eth0"));
    assert!(interface(&after, "eth0").pinned, "the new link has the old one's pin");
    holder.kill();
    bed.assert_guarded(&sockets);
    Ok(())
}

#[test]
fn removed_pins_come_back() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    let (mut holder, status) = bed.start(&bed.setup())?;
    let ifindex = interface(&status, "eth0").ifindex;
    for (pin, event) in [
        (format!("links/{ifindex}"), "pins were removed (links/eth0)"),
        ("maps/HOSTS4".to_owned(), "pins were removed (maps/HOSTS4)"),
        ("maps/LISTS".to_owned(), "pins were removed (maps/LISTS)"),
    ] {
        let pin = pins(&status).join(pin);
        std::fs::remove_file(&pin)?;
        let took = holder.event(event);
        assert!(took <= SOON && pin.exists(), "{event}: {took:?}");
    }
    std::fs::remove_dir_all(pins(&status))?;
    let took = holder.event("the bpffs was unmounted");
    assert!(took <= SOON, "{took:?}");
    assert_eq!(id(&holder.status(), "eth0"), id(&status, "eth0"));
    assert!(holder.status().complete);
    holder.kill();
    bed.assert_guarded(&sockets);
    let (_holder, again) = bed.start(&bed.setup())?;
    assert_eq!(id(&again, "eth0"), id(&status, "eth0"), "all pins were good");
    Ok(())
}

#[test]
fn an_unmounted_bpffs_is_mounted_and_filled_again() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    let (mut holder, status) = bed.start(&bed.setup())?;
    // The daemon's lock keeps the file system busy.
    assert!(run(Command::new("umount").arg(&bed.bpffs)).is_err());
    run(Command::new("umount").arg("--lazy").arg(&bed.bpffs))?;
    let took = holder.event("the bpffs was unmounted");
    assert!(took <= SOON, "{took:?}");
    let after = holder.status();
    assert_eq!(id(&after, "eth0"), id(&status, "eth0"), "the daemon's descriptor held the link");
    assert!(interface(&after, "eth0").pinned);
    // Another daemon of the same name still sees that this one lives.
    let error = bed.start(&bed.setup()).unwrap_err().to_string();
    assert!(error.contains("already runs"), "{error}");
    holder.kill();
    bed.assert_guarded(&sockets);
    Ok(())
}

/// Another daemon that has the new directory for long keeps nobody from looking at the links.
#[test]
fn a_directory_that_another_daemon_has_is_waited_for_beside_the_watch() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    let (mut holder, status) = bed.start(&bed.setup())?;
    let ifindex = interface(&status, "eth0").ifindex.to_string();
    let link = sys::object_open(&pins(&status).join("links").join(ifindex))?;
    holder.signal(Signal::SIGSTOP);
    run(Command::new("umount").arg("--lazy").arg(&bed.bpffs))?;
    run(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&bed.bpffs))?;
    std::fs::create_dir_all(pins(&status))?;
    for directory in pins(&status).ancestors().take(3) {
        std::fs::set_permissions(directory, PermissionsExt::from_mode(0o700))?;
    }
    let theirs = std::fs::File::open(pins(&status))?;
    theirs.lock()?;
    holder.signal(Signal::SIGCONT);

    let mut object = EbpfLoader::new().load_file(flood::object_path())?;
    let pass: &mut Xdp = object.program_mut("bare_pass").context("no program")?.try_into()?;
    pass.load()?;
    sys::link_update(link.as_fd(), pass.fd()?.as_fd())?;
    holder.event("took the guard's place on eth0");
    bed.assert_guarded(&sockets);
    let events = holder.events();
    assert!(!events.iter().any(|event| event.contains("unmounted")), "{events:?}");
    drop(theirs);
    holder.event("the bpffs was unmounted");
    drop(link);
    assert!(interface(&holder.status(), "eth0").pinned);
    holder.kill();
    bed.assert_guarded(&sockets);
    Ok(())
}

#[test]
fn the_kernel_refuses_to_take_it_off() -> Result<()> {
    require_root!();
    require_program!("bpftool");
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    let (mut holder, status) = bed.start(&bed.setup())?;
    let program = bed.program_on("eth0")?;
    for off in ["xdp off", "xdpdrv off", "xdpgeneric off"] {
        let outcome = bed.topology.cache.namespace.ip(&format!("link set dev eth0 {off}"));
        // Taking off a generic program, of which there is none, changes nothing and succeeds.
        assert!(outcome.is_err() || off == "xdpgeneric off", "{off}");
        assert_eq!(bed.program_on("eth0")?, program, "{off}");
    }
    for hook in ["xdp", "xdpdrv"] {
        assert!(bed.on_cache("bpftool", &["net", "detach", hook, "dev", "eth0"]).is_err());
    }
    assert_eq!(bed.program_on("eth0")?, program);
    bed.assert_guarded(&sockets);
    assert_eq!(id(&holder.status(), "eth0"), id(&status, "eth0"));
    assert_eq!(holder.events(), Vec::<String>::new(), "nothing had to be mended");
    Ok(())
}

/// Whatever asks for the interface, by netlink with and without force, by another link, in another mode.
#[test]
fn no_other_loader_takes_its_place() -> Result<()> {
    require_root!();
    require_program!("bpftool");
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    let (mut holder, status) = bed.start(&bed.setup())?;
    let ours = bed.program_on("eth0")?;
    let mut object = EbpfLoader::new().load_file(flood::object_path())?;
    let pass: &mut Xdp = object.program_mut("bare_pass").context("no program")?.try_into()?;
    pass.load()?;
    let pin = bed.bpffs.join("pass");
    sys::object_pin(pass.fd()?.as_fd(), &pin)?;
    let pin = pin.to_str().context("a path of ours")?;
    let host = &bed.topology.cache.namespace;
    for hook in ["xdp", "xdpdrv", "xdpgeneric"] {
        let attach = ["net", "attach", hook, "pinned", pin, "dev", "eth0"];
        for words in [&attach[..], &[&attach[..], &["overwrite"]].concat()] {
            assert!(bed.on_cache("bpftool", words).is_err(), "{words:?}");
        }
        for force in ["", "-force "] {
            let words = ["-n", host.name()].into_iter().chain(force.split_whitespace());
            let words = words.chain(["link", "set", "dev", "eth0", hook, "pinned", pin]);
            assert!(run(Command::new("ip").args(words)).is_err(), "{force}{hook}");
        }
    }
    for mode in [XdpMode::Driver, XdpMode::Skb] {
        assert!(host.run(|| pass.attach("eth0", mode)).is_err(), "{mode:?}");
    }
    host.ip("link set dev eth0 mtu 9000")?;
    assert_eq!(bed.program_on("eth0")?, ours);
    bed.assert_guarded(&sockets);
    assert_eq!(id(&holder.status(), "eth0"), id(&status, "eth0"));
    assert_eq!(holder.events(), Vec::<String>::new(), "nothing had to be mended");
    Ok(())
}

#[test]
fn a_foreign_program_in_the_link_is_put_out() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    let (mut holder, status) = bed.start(&bed.setup())?;
    let mut object = EbpfLoader::new().load_file(flood::object_path())?;
    let pass: &mut Xdp = object.program_mut("bare_pass").context("no program")?.try_into()?;
    pass.load()?;
    let ifindex = interface(&status, "eth0").ifindex.to_string();
    let link = sys::object_open(&pins(&status).join("links").join(ifindex))?;
    sys::link_update(link.as_fd(), pass.fd()?.as_fd())?;
    let took = holder.event("took the guard's place on eth0");
    assert!(took <= SOON, "{took:?}");
    assert_eq!(bed.program_on("eth0")?, interface(&status, "eth0").program_id.map(u64::from));
    bed.assert_guarded(&sockets);
    Ok(())
}

#[test]
fn down_up_and_rename_change_nothing() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    let (mut holder, status) = bed.start(&bed.setup())?;
    let host = &bed.topology.cache.namespace;
    host.ip_batch("link set eth0 down\nlink set eth0 name wan\nlink set wan up")?;
    let took = holder.event("interface eth0 is called wan now");
    assert!(took <= SOON, "{took:?}");
    let v6 = bed.topology.cache.v6;
    // IPv6 addresses go with the link.
    host.ip(&format!("addr replace {v6}/64 dev wan nodad"))?;
    bed.assert_guarded(&sockets);
    let after = holder.status();
    assert_eq!(id(&after, "wan"), id(&status, "eth0"));
    assert_eq!(interface(&after, "wan").program_id, interface(&status, "eth0").program_id);
    assert!(after.complete && after.warnings.is_empty(), "{after:?}");
    Ok(())
}

/// Joins a new interface of the cache host to the link of all others.
fn add_interface(bed: &Bed, name: &str) -> Result<()> {
    let cache = bed.topology.cache.namespace.name();
    let switch = bed.topology.switch();
    switch.ip_batch(&format!(
        "link add port-{name} type veth peer name {name} netns {cache}
         link set port-{name} master bridge up"
    ))
}

/// Gives the cache host's addresses to its new `eth0`, and makes the others forget the old one.
fn bring_up(bed: &Bed) -> Result<()> {
    let (v4, v6) = (bed.topology.cache.v4, bed.topology.cache.v6);
    bed.topology.cache.namespace.ip_batch(&format!(
        "addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\nlink set eth0 up"
    ))?;
    for host in bed.topology.hosts() {
        host.namespace.ip("neighbour flush all")?;
    }
    Ok(())
}

fn assert_guarded_soon(bed: &Bed, holder: &mut Holder, name: &str) -> Result<()> {
    let took = holder.event(&format!("interface {name} is guarded now; open for at most"));
    assert!(took <= SOON, "{took:?}");
    assert!(bed.program_on(name)?.is_some(), "no program on {name}");
    let status = holder.status();
    let one = interface(&status, name);
    ensure!(one.state == InterfaceState::Guarded && one.pinned, "{one:?}");
    Ok(())
}

#[test]
fn interfaces_added_and_made_anew_are_guarded() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    let (mut holder, status) = bed.start(&bed.setup())?;
    add_interface(&bed, "eth1")?;
    assert_guarded_soon(&bed, &mut holder, "eth1")?;

    let host = &bed.topology.cache.namespace;
    host.ip("link delete eth0")?;
    let gone = interface(&status, "eth0").ifindex;
    let took = holder.event(&format!("interface {gone} went away"));
    assert!(took <= SOON, "{took:?}");
    assert!(!pins(&status).join(format!("links/{gone}")).exists(), "the defunct pin is gone");
    add_interface(&bed, "eth0")?;
    assert_guarded_soon(&bed, &mut holder, "eth0")?;
    bring_up(&bed)?;
    bed.assert_guarded(&sockets);
    holder.kill();
    bed.assert_guarded(&sockets);
    Ok(())
}

#[test]
fn an_interface_that_was_made_anew_while_no_daemon_ran_is_guarded_at_start() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    let (mut holder, first) = bed.start(&bed.setup())?;
    holder.kill();
    let host = &bed.topology.cache.namespace;
    host.ip("link delete eth0")?;
    add_interface(&bed, "eth0")?;
    bring_up(&bed)?;
    let (_holder, second) = bed.start(&bed.setup())?;
    assert_ne!(id(&second, "eth0"), id(&first, "eth0"));
    let pinned = std::fs::read_dir(pins(&second).join("links"))?.count();
    assert_eq!(pinned, 1, "the defunct link is unpinned");
    bed.assert_guarded(&sockets);
    Ok(())
}

/// Whatever was done to the guard while nobody watched it.
#[test]
fn what_was_taken_off_while_no_daemon_ran_stands_again_after_the_start() -> Result<()> {
    type Act<'a> = &'a dyn Fn(&GuardStatus) -> Result<()>;
    require_root!();
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    let bpffs = bed.bpffs.as_path();
    let detach = |status: &GuardStatus| -> Result<()> {
        let ifindex = interface(status, "eth0").ifindex.to_string();
        let link = sys::object_open(&pins(status).join("links").join(ifindex))?;
        Ok(sys::link_detach(link.as_fd())?)
    };
    let unmount = || -> Result<()> {
        run(Command::new("umount").arg("--lazy").arg(bpffs))?;
        run(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(bpffs))
    };
    let acts: [Act<'_>; 4] = [
        &detach,
        &|status| Ok(std::fs::remove_dir_all(pins(status).join("links"))?),
        &|status| Ok(std::fs::remove_dir_all(pins(status))?),
        &|_| unmount(),
    ];
    for act in acts {
        let (mut holder, status) = bed.start(&bed.setup())?;
        holder.kill();
        assert!(bed.program_on("eth0")?.is_some());
        act(&status)?;
        // The kernel takes off a link that is gone when it comes to it.
        wait::until("the program to go", || bed.program_on("eth0").ok()?.is_none().then_some(()));
        let (_holder, again) = bed.start(&bed.setup())?;
        assert!(interface(&again, "eth0").pinned);
        bed.assert_guarded(&sockets);
    }
    Ok(())
}

/// Interfaces come, are renamed and go: what is held for them goes with them.
#[test]
fn interfaces_that_come_and_go_leave_nothing_behind() -> Result<()> {
    require_root!();
    const PAIRS: usize = 8;
    let rounds = if skip::all() { 25 } else { 3 };
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    let (mut holder, status) = bed.start(&bed.setup())?;
    let host = &bed.topology.cache.namespace;
    let links = || Ok::<_, anyhow::Error>(std::fs::read_dir(pins(&status).join("links"))?.count());
    // Without programs: another mode's may be loaded on the way, once, for a device that vanishes.
    let descriptors = |pid| {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
        let what = |entry: std::fs::DirEntry| std::fs::read_link(entry.path()).ok();
        let is_program = |what: &PathBuf| what.ends_with("anon_inode:bpf-prog");
        Ok::<_, anyhow::Error>(descriptors.filter_map(what).filter(|one| !is_program(one)).count())
    };
    let before = descriptors(holder.pid())?;
    for _ in 0..rounds {
        let lines = |line: &dyn Fn(usize) -> String| (0..PAIRS).map(line).collect::<String>();
        host.ip_batch(&lines(&|n| format!("link add a{n} type veth peer name b{n}\n")))?;
        let all = |status: &GuardStatus, state| {
            status.interfaces.iter().filter(|one| one.state == state && one.pinned).count()
        };
        wait::until("all to be guarded", || {
            (all(&holder.status(), InterfaceState::Guarded) == 2 * PAIRS + 1).then_some(())
        });
        assert_eq!(links()?, 2 * PAIRS + 1);
        host.ip_batch(&lines(&|n| format!("link set a{n} name c{n}\n")))?;
        host.ip_batch(&lines(&|n| format!("link delete c{n}\n")))?;
        wait::until("all to be forgotten", || {
            let status = holder.status();
            (status.interfaces.len() == 2 && links().ok()? == 1).then_some(())
        });
        // A look at the pins takes some for a moment.
        wait::until("no descriptor more than before", || {
            (descriptors(holder.pid()).ok()? <= before).then_some(())
        });
        // Each says how long it can have been open.
        let events = holder.events();
        let guarded = events.iter().filter(|event| event.contains("is guarded now; open for"));
        assert_eq!(guarded.count(), 2 * PAIRS, "{events:?}");
        assert!(!events.iter().any(|event| event.contains("strangers reach")), "{events:?}");
    }
    bed.assert_guarded(&sockets);
    Ok(())
}

#[test]
fn an_interface_that_moves_away_and_back_keeps_its_link() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    let (mut holder, _) = bed.start(&bed.setup())?;
    add_interface(&bed, "eth1")?;
    assert_guarded_soon(&bed, &mut holder, "eth1")?;
    let before = holder.status();
    let (cache, away) = (&bed.topology.cache.namespace, bed.topology.switch());
    cache.ip(&format!("link set eth1 netns {}", away.name()))?;
    soon("the interface to leave", &mut holder, |status| {
        status.interfaces.iter().all(|one| one.name != "eth1").then_some(())
    });
    away.ip(&format!("link set eth1 netns {}", cache.name()))?;
    soon("the interface to be guarded", &mut holder, |status| {
        let found = status.interfaces.iter().find(|one| one.name == "eth1")?;
        (found.state == InterfaceState::Guarded && found.pinned).then_some(())
    });
    assert_eq!(id(&holder.status(), "eth1"), id(&before, "eth1"));
    Ok(())
}

#[test]
fn an_interface_that_comes_with_another_program_is_guarded_behind_it() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    let (mut holder, _) = bed.start(&bed.setup())?;
    let (cache, switch) = (&bed.topology.cache.namespace, bed.topology.switch());
    cache.ip("link delete eth0")?;
    switch.ip_batch(
        "link add port-eth0 type veth peer name eth0
         link set port-eth0 master bridge up",
    )?;
    let mut object = EbpfLoader::new().load_file(flood::object_path())?;
    let pass: &mut Xdp = object.program_mut("bare_pass").context("no program")?.try_into()?;
    pass.load()?;
    switch.run(|| pass.attach("eth0", XdpMode::Driver))?;
    switch.ip(&format!("link set eth0 netns {}", cache.name()))?;
    let taken = bed.program_on("eth0")?.context("it came along")?;

    let stands_behind = |status: &GuardStatus| {
        let one = status.interfaces.iter().find(|one| one.name == "eth0")?;
        let warning = one.warning.as_deref().unwrap_or_default();
        (one.mode == Some(Mode::Tcx) && warning.contains("behind another XDP program"))
            .then_some(())
    };
    soon("the guard behind it", &mut holder, stands_behind);
    bring_up(&bed)?;
    bed.assert_guarded(&sockets);
    assert_eq!(bed.program_on("eth0")?, Some(taken), "it is left alone");
    // A start refuses to go behind another program unasked, but not to stay there.
    holder.kill();
    let (_holder, status) = bed.start(&bed.setup())?;
    stands_behind(&status).expect("it stayed there");
    bed.assert_guarded(&sockets);
    Ok(())
}

#[test]
fn addresses_that_come_later_are_own_and_those_that_go_are_not() -> Result<()> {
    require_root!();
    let bed = Bed::new(0)?;
    let (mut holder, status) = bed.start(&bed.setup())?;
    let table = |name: &str| MapData::from_pin(pins(&status).join("maps").join(name));
    let v4 = HashMap::<_, [u8; 4], u32>::try_from(Map::HashMap(table("LOCAL4")?))?;
    let v6 = HashMap::<_, [u8; 16], u32>::try_from(Map::HashMap(table("LOCAL6")?))?;
    let holds = |address: IpAddr| match address {
        IpAddr::V4(address) => v4.get(&address.octets(), 0).is_ok(),
        IpAddr::V6(address) => v6.get(&address.octets(), 0).is_ok(),
    };
    let (later4, later6) = ("198.18.0.99".parse()?, "2001:db8::99".parse()?);
    assert!(holds(bed.topology.cache.v4.into()) && !holds(later4) && !holds(later6));
    let host = &bed.topology.cache.namespace;
    host.ip("addr add 198.18.0.99/24 dev eth0")?;
    soon("the address in the table", &mut holder, |_| holds(later4).then_some(()));
    host.ip("addr del 198.18.0.99/24 dev eth0")?;
    soon("the address out of the table", &mut holder, |_| (!holds(later4)).then_some(()));
    host.ip("addr add 2001:db8::99/64 dev eth0 nodad")?;
    soon("the IPv6 address in the table", &mut holder, |_| holds(later6).then_some(()));
    Ok(())
}

/// Whoever goes before the guard at tcx could pass everything on to the stack.
#[test]
fn a_program_that_was_put_before_the_guard_at_tcx_comes_after_it_again() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    let setup = Setup { mode: ModeChoice::Tcx, ..bed.setup() };
    let (mut holder, before) = bed.start(&setup)?;
    let (ifindex, link_before) = (interface(&before, "eth0").ifindex, id(&before, "eth0"));
    let host = &bed.topology.cache.namespace;
    let order = || host.run(|| sys::tcx_programs(ifindex));
    let program = |status: &GuardStatus| interface(status, "eth0").program_id.unwrap_or_default();

    let mut object = EbpfLoader::new().load_file(flood::object_path())?;
    let theirs = object.program_mut("bare_drop_tcx").context("no program")?;
    let theirs: &mut SchedClassifier = theirs.try_into()?;
    theirs.load()?;
    let theirs = theirs.fd()?.as_fd();
    let (id_theirs, _) = sys::program_facts(theirs)?;
    let go_before = || host.run(|| sys::link_create(theirs, ifindex, sys::Hook::Tcx));
    let link = go_before()?;
    let took = holder.event(&format!("program {id_theirs} was put before the guard on eth0"));
    assert!(took <= SOON, "{took:?}");
    let after = holder.status();
    assert_eq!(order()?, [program(&after), id_theirs], "it is left alone");
    assert!(interface(&after, "eth0").pinned && id(&after, "eth0") != link_before);
    // It drops what the guard lets through.
    drop(link);
    bed.assert_guarded(&sockets);

    // One of two daemons does it, and both hold the one link that the guard has then.
    let other = Setup {
        list: "other".to_owned(),
        endpoints: vec![(Protocol::Tcp, PORT + 1)],
        ..setup.clone()
    };
    let (mut second, _) = bed.start(&other)?;
    let link_before = id(&holder.status(), "eth0");
    let link = go_before()?;
    wait::until("one new link for both", || {
        let ids = [id(&holder.status(), "eth0"), id(&second.status(), "eth0")];
        (ids[0] == ids[1] && ids[0] != link_before).then_some(())
    });
    assert_eq!(order()?, [program(&holder.status()), id_theirs]);
    assert!(interface(&second.status(), "eth0").pinned);
    let events = [holder.events(), second.events()].concat();
    assert!(events.len() == 1 && events[0].contains("was put before"), "{events:?}");
    drop(link);
    bed.assert_guarded(&sockets);
    holder.kill();
    second.kill();
    bed.assert_guarded(&sockets);

    // A start puts itself first as well.
    let link = go_before()?;
    let (_holder, again) = bed.start(&setup)?;
    assert_eq!(order()?, [program(&again), id_theirs]);
    drop(link);
    bed.assert_guarded(&sockets);
    Ok(())
}
