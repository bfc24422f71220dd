//! What the programs in the kernel take of a packet by themselves, with the kernel plane and without.
//! Each run is one packet of its own, because what was answered is a request no more; caches are as
//! cold as they are behind a system call. docs/kernel-plane.md has the figures.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::EbpfLoader;
use aya::programs::Xdp;
use session_common::guard::ListWord;
use session_daemon::clock::Now;
use session_daemon::store::types::{ClientFlags, Key, Lifetime, Mode, StoreConfig};
use session_tests::exchange::{ABSENT, KEY_MAX, key, value};
use session_tests::guard_program::{GuardProgram, Hook, time};
use session_tests::plane_program::{CLIENT4, CLIENT6, HOST4, HOST6, PORT, Path, PlaneProgram};
use session_tests::{flood, kernel, require_root, skip};

const KEYS: u64 = 100_000;
/// Packets of each kind.
const PACKETS: u64 = 20_000;

/// A packet's text by a key's number.
type Text = fn(u32) -> Vec<u8>;

/// Kinds of packets. Those from [`PASSED`] on go up.
const KINDS: [(&str, Text); 4] = [
    ("GET, hit", |number| format!("get {}\r\n", key(number)).into_bytes()),
    ("GET, miss", |number| format!("get {}\r\n", key(KEY_MAX + 1 + number)).into_bytes()),
    ("GET of two keys", |number| format!("get {} {ABSENT}\r\n", key(number)).into_bytes()),
    ("SET of 100 bytes", |number| {
        let value = value(number);
        let line = format!("set {} 0 0 {}\r\n", key(number), value.len());
        [line.as_bytes(), &value, b"\r\n"].concat()
    }),
];
const PASSED: usize = 2;

fn fill(plane: &PlaneProgram) -> Result<()> {
    let mut worker = plane.store.worker()?;
    for number in 0..KEYS as u32 {
        let (name, now) = (key(number), Now::sample());
        let key = Key::new(name.as_bytes()).context("a key")?;
        worker.set(key, &value(number), ClientFlags(0), Lifetime::Never, Mode::Set, now);
        worker.maintain(now);
        worker.quiesce();
    }
    Ok(())
}

/// Median of packets that ask for keys here and there, in nanoseconds.
fn median(text: Text, time: impl Fn(&[u8]) -> Result<Duration>) -> Result<u128> {
    let path = Path::v4();
    let number = |packet: u64| (packet.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % KEYS;
    let times = (0..PACKETS)
        .map(|packet| Ok(time(&path.frame(7, &text(number(packet) as u32)))?.as_nanos()));
    let mut times = times.collect::<Result<Vec<_>>>()?;
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

#[test]
fn what_goes_up_costs_less_than_what_is_answered() -> Result<()> {
    require_root!();
    if kernel::is_before(5, 18) {
        skip!("the plane needs Linux 5.18");
    }
    if !skip::all() {
        skip!("measures for some seconds: SESSION_TEST_ALL=1");
    }
    let config = StoreConfig { memory_limit: 64 << 20, workers: 1, ..StoreConfig::default() };
    let plane = PlaneProgram::load(&config, Now::sample())?;
    fill(&plane)?;
    let list = ListWord::new(0, 1);
    let guard = || GuardProgram::letting_in(list, (CLIENT4, CLIENT6), (HOST4, HOST6), PORT);
    let (without, mut with) = (guard()?, guard()?);
    with.plane(0, plane.programs()?)?;
    let mut bare = EbpfLoader::new().load_file(flood::object_path())?;
    let nothing: &mut Xdp = bare.program_mut("bare_pass").context("no such program")?.try_into()?;
    nothing.load()?;
    let nothing: &Xdp = nothing;
    eprintln!(
        "| ns | nothing | plane | guard, empty place | guard and plane |\n|---|--:|--:|--:|--:|"
    );
    let mut of_plane = Vec::new();
    for (name, text) in KINDS {
        let columns = [
            median(text, |frame| time(nothing, frame))?,
            median(text, |frame| plane.time("plane_frags", frame))?,
            median(text, |frame| without.time(Hook::NativeFrags, frame))?,
            median(text, |frame| with.time(Hook::NativeFrags, frame))?,
        ];
        of_plane.push(columns[1]);
        eprintln!("| {name} | {} |", columns.map(|column| column.to_string()).join(" | "));
    }
    for (kind, ns) in KINDS.iter().zip(&of_plane).skip(PASSED) {
        ensure!(*ns < of_plane[0], "{}: {ns} ns, and {} ns for a hit", kind.0, of_plane[0]);
    }
    Ok(())
}
