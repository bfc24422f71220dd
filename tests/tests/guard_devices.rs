//! Devices of every kind that packets can come in by: a stranger does not reach the sockets through
//! any, an allowed host does.
//!
//! Each host of the playground has one more device, with addresses of its own. What this kernel
//! does not have is skipped; `cargo xtask test --kernels` has it.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use session_daemon::guard::status::InterfaceState;
use session_daemon::guard::{Mode, ModeChoice};
use session_tests::guard_bed::{Bed, EVERY_WAY, interface};
use session_tests::guard_holder::Setup;
use session_tests::netns::Namespace;
use session_tests::topology::Host;
use session_tests::{kernel, require_program, require_root, skip};

/// The last group of a host's addresses.
fn number(host: &Host) -> u8 {
    host.v4.octets()[3]
}

/// The addresses on the device under test: 198.18.7.0/24 and 2001:db8:7::/64.
fn addresses(host: &Host) -> [IpAddr; 2] {
    let last = host.v6.segments()[7];
    [
        Ipv4Addr::new(198, 18, 7, number(host)).into(),
        Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, last).into(),
    ]
}

/// Gives a host its addresses on a device.
fn address(host: &Host, device: &str) -> Result<()> {
    let [v4, v6] = addresses(host);
    host.namespace.ip_batch(&format!(
        "addr add {v4}/24 dev {device}\naddr add {v6}/64 dev {device} nodad\nlink set {device} up"
    ))
}

/// Runs `ip`, unless the kernel has no such device: then why.
fn make(namespace: &Namespace, line: &str) -> Result<Option<String>> {
    let Err(error) = namespace.ip(line) else { return Ok(None) };
    let text = format!("{error:#}");
    let unknown = ["Unknown device type", "Operation not supported", "not supported"];
    ensure!(unknown.iter().any(|words| text.contains(words)), "{text}");
    Ok(Some(text))
}

/// What `status` must say of a device: how it is guarded, and by which mode where that is certain.
type Expected<'a> = (&'a str, InterfaceState, Option<Mode>);

/// The best mode of a device with XDP of its own.
fn native() -> Option<Mode> {
    Some(if kernel::is_before(5, 18) { Mode::Native } else { Mode::NativeFrags })
}

/// Whether devices without XDP of their own are guarded unasked.
fn has_tcx() -> bool {
    !kernel::is_before(6, 6)
}

/// Starts the guard over devices that stand already, and sees who reaches the sockets on the
/// addresses of the device under test: `others` are strangers too.
fn assert_guarded(bed: &Bed, expected: &[Expected<'_>], others: &[Host]) -> Result<()> {
    let topology = &bed.topology;
    let sockets = bed.listen_on(&addresses(&topology.cache))?;
    let strangers = || std::iter::once(&topology.stranger).chain(others);
    for host in strangers() {
        assert_eq!(sockets.reached_by(host), EVERY_WAY, "{} without a guard", host.role);
    }
    let allowed: Vec<String> =
        topology.allowed.iter().flat_map(addresses).map(|address| address.to_string()).collect();
    let needs_tcx = expected.iter().any(|(_, _, mode)| *mode == Some(Mode::Tcx));
    let mut setup = Setup::new(&bed.bpffs, &allowed.join(","));
    if needs_tcx && !has_tcx() {
        let error = bed.start(&setup).expect_err("there is no tcx").to_string();
        assert!(error.contains("--guard-mode generic"), "{error}");
        setup.mode = ModeChoice::Generic;
    }
    let (_holder, status) = bed.start(&setup)?;
    assert!(status.complete, "{status:?}");
    for (name, state, mode) in expected {
        let one = interface(&status, name);
        assert_eq!(one.state, *state, "{one:?}");
        assert!(setup.mode == ModeChoice::Generic || one.mode == *mode, "{one:?}");
    }
    for host in &topology.allowed {
        assert_eq!(sockets.reached_by(host), EVERY_WAY, "{}", host.role);
    }
    for host in strangers() {
        assert_eq!(sockets.reached_by(host), [], "{}", host.role);
    }
    Ok(())
}

/// One more stranger, on a device made by `line` in the cache host, which goes into its namespace.
fn sibling(bed: &Bed, line: &str) -> Result<Host> {
    let namespace = Namespace::new("sibling")?;
    bed.topology.cache.namespace.ip(&line.replace("@NETNS@", namespace.name()))?;
    let v4 = Ipv4Addr::new(198, 18, 0, 67);
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x67);
    let host = Host { role: "sibling".to_owned(), namespace, v4, v6 };
    address(&host, "kin0")?;
    Ok(host)
}

const GUARDED: InterfaceState = InterfaceState::Guarded;
const COVERED: InterfaceState = InterfaceState::Covered;

#[test]
fn a_vlan_is_covered_by_its_parent() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    for host in bed.topology.hosts() {
        let line = "link add link eth0 name eth0.5 type vlan id 5";
        if let Some(reason) = make(&host.namespace, line)? {
            skip!("{reason}");
        }
        address(host, "eth0.5")?;
    }
    assert_guarded(&bed, &[("eth0", GUARDED, native()), ("eth0.5", COVERED, None)], &[])
}

/// 802.1ad outside, 802.1Q inside.
#[test]
fn a_vlan_on_a_vlan_is_covered_by_the_device_below_both() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    for host in bed.topology.hosts() {
        let line = "link add link eth0 name outer type vlan proto 802.1ad id 5";
        if let Some(reason) = make(&host.namespace, line)? {
            skip!("{reason}");
        }
        host.namespace
            .ip_batch("link set outer up\nlink add link outer name inner type vlan id 6")?;
        address(host, "inner")?;
    }
    let expected =
        [("eth0", GUARDED, native()), ("outer", COVERED, None), ("inner", COVERED, None)];
    assert_guarded(&bed, &expected, &[])
}

#[test]
fn a_bond_is_guarded_and_covers_its_members() -> Result<()> {
    require_root!();
    // Before that a bond takes no program, and its members are not asked instead.
    let has_xdp = !kernel::is_before(5, 15);
    let bed = Bed::new(1)?;
    let cache = &bed.topology.cache;
    if let Some(reason) = make(&cache.namespace, "link add bond0 type bond mode active-backup")? {
        skip!("{reason}");
    }
    cache.namespace.ip_batch("link set eth0 down\nlink set eth0 master bond0")?;
    address(cache, "bond0")?;
    for host in bed.topology.hosts().skip(1) {
        address(host, "eth0")?;
    }
    let mode = if has_xdp { native() } else { Some(Mode::Tcx) };
    assert_guarded(&bed, &[("bond0", GUARDED, mode), ("eth0", COVERED, None)], &[])
}

#[test]
fn a_bridge_is_guarded_and_so_are_its_ports() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    let cache = &bed.topology.cache;
    cache
        .namespace
        .ip_batch("link add br0 type bridge forward_delay 0\nlink set eth0 master br0")?;
    address(cache, "br0")?;
    for host in bed.topology.hosts().skip(1) {
        address(host, "eth0")?;
    }
    // Before Linux 6.6 the bridge itself is covered by its ports.
    let br0 = if has_tcx() { ("br0", GUARDED, Some(Mode::Tcx)) } else { ("br0", COVERED, None) };
    assert_guarded(&bed, &[("eth0", GUARDED, native()), br0], &[])
}

/// Its packets come by the parent, and from other children of that without passing it.
#[test]
fn a_macvlan_is_guarded_from_its_parent_and_from_its_siblings() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    let cache = &bed.topology.cache;
    if let Some(reason) =
        make(&cache.namespace, "link add link eth0 name mac0 type macvlan mode bridge")?
    {
        skip!("{reason}");
    }
    address(cache, "mac0")?;
    for host in bed.topology.hosts().skip(1) {
        address(host, "eth0")?;
    }
    let line = "link add link eth0 name kin0 netns @NETNS@ type macvlan mode bridge";
    let sibling = sibling(&bed, line)?;
    let expected = [("eth0", GUARDED, native()), ("mac0", GUARDED, Some(Mode::Tcx))];
    assert_guarded(&bed, &expected, &[sibling])
}

#[test]
fn an_ipvlan_is_guarded_from_its_parent_and_from_its_siblings() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    let cache = &bed.topology.cache;
    if let Some(reason) = make(&cache.namespace, "link add link eth0 name ip0 type ipvlan mode l2")?
    {
        skip!("{reason}");
    }
    address(cache, "ip0")?;
    for host in bed.topology.hosts().skip(1) {
        address(host, "eth0")?;
    }
    let sibling = sibling(&bed, "link add link eth0 name kin0 netns @NETNS@ type ipvlan mode l2")?;
    let expected = [("eth0", GUARDED, native()), ("ip0", GUARDED, Some(Mode::Tcx))];
    assert_guarded(&bed, &expected, &[sibling])
}

#[test]
fn a_device_in_a_vrf_is_guarded() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    let cache = &bed.topology.cache;
    if let Some(reason) = make(&cache.namespace, "link add vrf0 type vrf table 10")? {
        skip!("{reason}");
    }
    cache.namespace.ip_batch("link set vrf0 up\nlink set eth0 master vrf0")?;
    // Sockets that are bound to no device serve all of them, and their own addresses.
    for setting in ["tcp_l3mdev_accept", "udp_l3mdev_accept", "ip_nonlocal_bind"] {
        cache.namespace.sysctl(&format!("net/ipv4/{setting}"), "1")?;
    }
    cache.namespace.sysctl("net/ipv6/ip_nonlocal_bind", "1")?;
    for host in bed.topology.hosts() {
        address(host, "eth0")?;
    }
    let expected = [("eth0", GUARDED, native()), ("vrf0", GUARDED, Some(Mode::Tcx))];
    assert_guarded(&bed, &expected, &[])
}

#[test]
fn what_comes_out_of_a_vxlan_tunnel_is_judged_there() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    for host in bed.topology.hosts() {
        let line = "link add vx0 type vxlan id 7 dev eth0 dstport 4789 group 239.1.1.1";
        if let Some(reason) = make(&host.namespace, line)? {
            skip!("{reason}");
        }
        address(host, "vx0")?;
    }
    let expected = [("eth0", GUARDED, native()), ("vx0", GUARDED, Some(Mode::Tcx))];
    assert_guarded(&bed, &expected, &[])
}

/// One more way for packets to come out of a tunnel, and one without an Ethernet header.
#[test]
fn what_comes_out_of_wireguard_is_judged_there() -> Result<()> {
    require_root!();
    require_program!("wg");
    let bed = Bed::new(1)?;
    if kernel::is_before(6, 6) {
        skip!("no tcx: `status` calls such a device open");
    }
    let topology = &bed.topology;
    let mut keys = Vec::new();
    for host in topology.hosts() {
        if let Some(reason) = make(&host.namespace, "link add wg0 type wireguard")? {
            skip!("{reason}");
        }
        let private = wg(&host.namespace, &["genkey"], "")?;
        let public = wg(&host.namespace, &["pubkey"], &private)?;
        let file = bed.scratch.join(&host.role);
        std::fs::write(&file, &private)?;
        let file = file.to_str().context("a path of ours")?;
        wg(&host.namespace, &["set", "wg0", "listen-port", "51820", "private-key", file], "")?;
        keys.push(public.trim().to_owned());
    }
    let cache = &topology.cache;
    for (host, key) in topology.hosts().zip(&keys).skip(1) {
        for (from, to, key) in [(cache, host, key), (host, cache, &keys[0])] {
            let [v4, v6] = addresses(to);
            let (allowed, endpoint) = (format!("{v4}/32,{v6}/128"), format!("{}:51820", to.v4));
            let words = ["set", "wg0", "peer", key, "endpoint", &endpoint, "allowed-ips", &allowed];
            wg(&from.namespace, &words, "")?;
        }
    }
    topology.hosts().try_for_each(|host| address(host, "wg0"))?;
    let expected = [("eth0", GUARDED, native()), ("wg0", GUARDED, Some(Mode::Tcx))];
    assert_guarded(&bed, &expected, &[])
}

/// Runs `wg` with something to read.
fn wg(namespace: &Namespace, arguments: &[&str], input: &str) -> Result<String> {
    let mut command = Command::new("wg");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = namespace.spawn(&mut command)?;
    std::io::Write::write_all(&mut child.stdin.take().context("piped")?, input.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "wg: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Carries packets between a tun device and a socket: its arguments are the device, its own
/// address, the other end's address, and the port of both.
const TUNNEL: &str = "
import fcntl, os, select, socket, struct, sys
name, own, other, port = sys.argv[1:]
device = os.open('/dev/net/tun', os.O_RDWR)
# TUNSETIFF with IFF_TUN and IFF_NO_PI
fcntl.ioctl(device, 0x400454ca, struct.pack('16sH', name.encode(), 0x1001))
wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
wire.bind((own, int(port)))
wire.connect((other, int(port)))
print('up', flush=True)
while True:
    for ready in select.select([device, wire], [], [])[0]:
        try:
            if ready is device:
                wire.send(os.read(device, 65536))
            else:
                os.write(device, wire.recv(65536))
        except OSError:
            pass
";

/// A running end of such a tunnel.
struct Tunnel(Child);

impl Tunnel {
    fn start(from: &Host, device: &str, to: &Host, port: u16) -> Result<Self> {
        let mut python = Command::new("python3");
        python.args(["-c", TUNNEL, device, &from.v4.to_string(), &to.v4.to_string()]);
        python.arg(port.to_string()).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut tunnel = Self(from.namespace.spawn(&mut python)?);
        let output = tunnel.0.stdout.as_mut().context("piped")?;
        let mut word = [0; 3];
        std::io::Read::read_exact(output, &mut word).context("no tun device")?;
        Ok(tunnel)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_comes_by_a_tun_device_is_judged_there() -> Result<()> {
    require_root!();
    require_program!("python3");
    if kernel::is_before(6, 6) {
        skip!("no tcx: `status` calls such a device open");
    }
    let bed = Bed::new(1)?;
    let topology = &bed.topology;
    let mut tunnels = Vec::new();
    for (idx, host) in topology.hosts().skip(1).enumerate() {
        let device = format!("tun{idx}");
        let port = 7_000 + u16::try_from(idx)?;
        tunnels.push(Tunnel::start(&topology.cache, &device, host, port)?);
        tunnels.push(Tunnel::start(host, "tun0", &topology.cache, port)?);
        address(host, "tun0")?;
        let [v4, v6] = addresses(host);
        if idx == 0 {
            address(&topology.cache, &device)?;
        }
        topology.cache.namespace.ip_batch(&format!(
            "link set {device} up\nroute add {v4}/32 dev {device}\nroute add {v6}/128 dev {device}"
        ))?;
    }
    let expected = [("tun0", GUARDED, Some(Mode::Tcx)), ("tun1", GUARDED, Some(Mode::Tcx))];
    assert_guarded(&bed, &expected, &[])
}
