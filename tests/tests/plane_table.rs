//! What the kernel plane answers and what it leaves to the daemon, packet by packet, on the real
//! program over a real store. An answer must be the daemon's, byte for byte.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use session_common::plane::{Verdict, orders};
use session_daemon::clock::Now;
use session_daemon::store::types::{CasUnique, Key, Lifetime, StoreConfig};
use session_daemon::store::{Start, Store};
use session_tests::conversation::Conversation;
use session_tests::plane_program::{CLIENT4, HOST4, HOST6, PORT, Path, PlaneProgram};
use session_tests::{kernel, require_root, skip};

/// Bytes of a reply at most: of its datagram, and for each byte of the request's.
const REPLY_LEN_MAX: usize = 1392;
const AMPLIFICATION_MAX: usize = 32;

fn config() -> StoreConfig {
    StoreConfig { memory_limit: 8 << 20, workers: 3, ..StoreConfig::default() }
}

fn load() -> Result<PlaneProgram> {
    PlaneProgram::load(&config(), Now::sample())
}

macro_rules! plane_or_skip {
    () => {{
        require_root!();
        if kernel::is_before(5, 18) {
            skip!("the plane needs Linux 5.18");
        }
        load()?
    }};
}

/// Has the daemon do `commands`, none of which is refused.
fn told(daemon: &mut Conversation, commands: &[u8]) -> Result<Vec<u8>> {
    let (reply, closed) = daemon.feed(&[commands]);
    ensure!(!closed && !reply.windows(5).any(|part| part == b"ERROR"), "{reply:?}");
    Ok(reply)
}

/// The daemon's answer and the plane's, which are the same.
fn asked(
    plane: &PlaneProgram,
    daemon: &mut Conversation,
    path: &Path,
    request: &[u8],
) -> Result<Option<Vec<u8>>> {
    let shown = String::from_utf8_lossy(request).into_owned();
    for program in ["plane", "plane_frags"] {
        // A second may end between the two answers, which `t` shows.
        let mut agreed = false;
        for _ in 0..3 {
            let id = 0xbeef;
            let reply = plane.run_by(program, &path.frame(id, request))?;
            let expected = told(daemon, request)?;
            let len_max = REPLY_LEN_MAX.min(AMPLIFICATION_MAX * (8 + request.len()) - 8);
            let Some(reply) = reply else {
                ensure!(expected.len() > len_max, "{shown:?} by {program}: not answered");
                return Ok(None);
            };
            let text = path.text(id, &reply).with_context(|| shown.clone())?;
            ensure!(text.len() <= len_max, "{shown:?}: {} bytes", text.len());
            agreed = text == expected;
            if agreed {
                break;
            }
        }
        ensure!(agreed, "{shown:?} by {program}: not as the daemon answers");
    }
    Ok(Some(told(daemon, request)?))
}

#[test]
fn answers_are_those_of_the_daemon() -> Result<()> {
    let plane = plane_or_skip!();
    let mut daemon = Conversation::over(&plane.store)?;
    let (mut answered, mut keys) = (0, Vec::new());
    for (number, key_len) in
        [1, 2, 3, 7, 8, 9, 15, 16, 17, 40, 100, 249, 250].into_iter().enumerate()
    {
        for (place, value_len) in [0, 1, 7, 8, 63, 100, 700, 1100, 1500].into_iter().enumerate() {
            let mut key = format!("{number}{place}").into_bytes();
            key.resize(key_len.max(key.len()), b'k');
            let value: Vec<u8> = (0..value_len).map(|at| b'a' + (at % 26) as u8).collect();
            let flags = [0, 1, 77_777, u32::MAX][(number + place) % 4];
            let exptime = [0, 0, 3000][place % 3];
            let text = String::from_utf8(key.clone())?;
            let mut set = match number % 3 {
                0 => format!("ms {text} {value_len} F{flags} T{exptime} E{number}999{place}\r\n"),
                _ => format!("set {text} {flags} {exptime} {value_len}\r\n"),
            }
            .into_bytes();
            set.extend(value);
            set.extend(b"\r\n");
            told(&mut daemon, &set)?;
            keys.push(text);
        }
    }
    let paths = [
        Path::v4(),
        Path::v6(),
        Path::v4().tagged(&[(0x8100, 7)]),
        Path::v6().tagged(&[(0x88a8, 7), (0x8100, 8)]),
    ];
    let flags = ["", " v", " v f c", " s v k t", " t f s c k v", " k", " f"];
    for (number, key) in keys.iter().enumerate() {
        let path = &paths[number % paths.len()];
        let mut requests = vec![format!("get {key}\r\n"), format!("gets {key}\r\n")];
        requests.extend(flags.iter().map(|flags| format!("mg {key}{flags}\r\n")));
        for request in requests {
            answered +=
                usize::from(asked(&plane, &mut daemon, path, request.as_bytes())?.is_some());
        }
    }
    let all = keys.len() * (2 + flags.len());
    ensure!(answered > all / 2, "only {answered} of {all} answered");
    ensure!(plane.counted(Verdict::Hit)? >= answered as u64);
    Ok(())
}

#[test]
fn what_it_does_not_understand_goes_up() -> Result<()> {
    let plane = plane_or_skip!();
    let mut daemon = Conversation::over(&plane.store)?;
    told(&mut daemon, b"set key 5 0 3\r\nabc\r\n")?;
    let path = Path::v4();
    ensure!(plane.run(&path.frame(1, b"get key\r\n"))?.is_some(), "the key is there");
    let long = [b"get ".as_slice(), &[b'k'; 251], b"\r\n"].concat();
    let requests: [&[u8]; 31] = [
        b"get key key\r\n",
        b"get key \r\n",
        b"get  key\r\n",
        b"get key\n",
        b"get key",
        b"get key\r",
        b"get key\r\nget key\r\n",
        b"get \r\n",
        b"get\r\n",
        b"GET key\r\n",
        b"gat 0 key\r\n",
        b"gats 0 key\r\n",
        b"get key\t\r\n",
        b"get ke\x01\r\n",
        &long,
        b"mg key q\r\n",
        b"mg none q\r\n",
        b"mg none N30 v\r\n",
        b"mg key v O1\r\n",
        b"mg key v v\r\n",
        b"mg key vf\r\n",
        b"mg key  v\r\n",
        b"mg key v \r\n",
        b"mg key T5\r\n",
        b"mg key h l\r\n",
        b"mg a2V5 b\r\n",
        b"mg key v E5\r\n",
        b"mn\r\n",
        b"set key 0 0 1\r\nx\r\n",
        b"delete key\r\n",
        b"version\r\n",
    ];
    for request in requests {
        let shown = String::from_utf8_lossy(request);
        ensure!(plane.run(&path.frame(1, request))?.is_none(), "{shown:?} was answered");
    }
    // memcached's header: of several datagrams, not the first one, cut off.
    for payload in [
        &b"\0\x01\0\0\0\x02\0\0get key\r\n"[..],
        b"\0\x01\0\x01\0\x01\0\0get key\r\n",
        b"\0\x01\0\0\0\0\0\0get key\r\n",
        b"\0\x01\0\0\0\x01",
        b"get key\r\n",
    ] {
        ensure!(plane.run(&path.frame_of(payload))?.is_none(), "{payload:?}");
    }
    Ok(())
}

#[test]
fn that_there_is_no_item_is_told() -> Result<()> {
    let plane = plane_or_skip!();
    let mut daemon = Conversation::over(&plane.store)?;
    told(&mut daemon, b"set key 5 0 3\r\nabc\r\nset other 0 0 1\r\na\r\n")?;
    let long = [b"get ".as_slice(), &[b'k'; 250], b"\r\n"].concat();
    let requests: [&[u8]; 9] = [
        b"get kez\r\n",
        b"get ke\r\n",
        b"get keyx\r\n",
        b"gets k\r\n",
        &long,
        b"mg kez\r\n",
        b"mg kez v\r\n",
        b"mg kez k s t f c v\r\n",
        b"mg a2V5 t\r\n",
    ];
    let paths = [Path::v4(), Path::v6(), Path::v6().tagged(&[(0x8100, 7)])];
    for request in requests {
        for path in &paths {
            let reply = asked(&plane, &mut daemon, path, request)?.context("not answered")?;
            ensure!(reply.starts_with(if request[0] == b'm' { b"EN" } else { b"END" }));
        }
    }
    let all = (requests.len() * paths.len() * 2) as u64;
    ensure!(plane.counted(Verdict::Miss)? == all && plane.counted(Verdict::Hit)? == 0);
    let reports = plane.reports()?;
    let meta: u64 = reports.iter().map(|report| report.meta_answers).sum();
    ensure!(meta == all * 4 / 9, "{meta} of {all}");
    ensure!(plane.accesses()?.is_empty(), "no item was accessed");
    Ok(())
}

#[test]
fn other_packets_go_up() -> Result<()> {
    let mut plane = plane_or_skip!();
    let mut daemon = Conversation::over(&plane.store)?;
    told(&mut daemon, b"set key 5 0 3\r\nabc\r\n")?;
    let request = b"get key\r\n";
    let frame = Path::v4().frame(1, request);
    ensure!(plane.run(&frame)?.is_some());
    let changed = |at: usize, byte: u8| {
        let mut changed = frame.clone();
        changed[at] = byte;
        changed
    };
    let forms = [
        ("a group of stations", changed(0, 0x03)),
        ("IPv4 with options", changed(14, 0x46)),
        ("IP of another version", changed(14, 0x65)),
        ("a first fragment", changed(20, 0x20)),
        ("a later fragment", changed(21, 1)),
        ("TCP", changed(23, 6)),
        ("another length of IP", changed(17, frame[17] + 1)),
        ("another length of UDP", changed(39, frame[39] - 1)),
        ("another port", changed(37, frame[37] ^ 1)),
        ("another host", changed(33, 99)),
        ("another ethertype", changed(13, 6)),
    ];
    for (name, form) in forms {
        ensure!(plane.run(&form)?.is_none(), "{name}");
    }
    for port in [0, PORT] {
        let path = Path { source_port: port, ..Path::v4() };
        ensure!(plane.run(&path.frame(1, request))?.is_none(), "from port {port}");
    }
    let tags = Path::v4().tagged(&[(0x8100, 1), (0x8100, 2), (0x8100, 3)]);
    ensure!(plane.run(&tags.frame(1, request))?.is_none(), "three tags");
    for cut in 15..frame.len() {
        ensure!(plane.run(&frame[..cut])?.is_none(), "cut at {cut}");
    }
    let mut padded = frame.clone();
    padded.resize(frame.len() + 30, 0);
    let reply = plane.run(&padded)?.context("a padded frame is answered")?;
    ensure!(Path::v4().text(1, &reply)? == b"VALUE key 5 3\r\nabc\r\nEND\r\n");
    // Sockets that are bound to addresses, and none at all.
    let (v4, v6) = (Path::v4().frame(1, request), Path::v6().frame(1, request));
    plane.order(|said| said.settings &= !(orders::ANY_V4 | orders::ANY_V6))?;
    ensure!(plane.run(&v4)?.is_none() && plane.run(&v6)?.is_none(), "no address");
    for (address, [one, other]) in [
        (IpAddr::from(HOST4), [true, false]),
        (HOST6.into(), [false, true]),
        (CLIENT4.into(), [false, false]),
    ] {
        let octets = match address {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        };
        let halves = octets.as_chunks::<8>().0;
        plane.order(|said| {
            said.listens[0] = [u64::from_ne_bytes(halves[0]), u64::from_ne_bytes(halves[1])];
            said.listens_count = 1;
        })?;
        ensure!(plane.run(&v4)?.is_some() == one, "{address}");
        ensure!(plane.run(&v6)?.is_some() == other, "{address}");
    }
    plane.order(|said| said.settings |= orders::ANY_V4)?;
    ensure!(plane.run(&v4)?.is_some());
    plane.order(|said| said.until_ns = 0)?;
    ensure!(plane.run(&v4)?.is_none(), "the daemon does not serve");
    Ok(())
}

#[test]
fn dead_items_and_unusual_ones_go_up() -> Result<()> {
    let plane = plane_or_skip!();
    let mut daemon = Conversation::over(&plane.store)?;
    let path = Path::v4();
    let answers = |text: &[u8]| -> Result<bool> { Ok(plane.run(&path.frame(9, text))?.is_some()) };
    told(&mut daemon, b"set gone 0 0 1\r\na\r\n")?;
    ensure!(answers(b"get gone\r\n")?);
    told(&mut daemon, b"delete gone\r\n")?;
    let reply = plane.run(&path.frame(9, b"get gone\r\n"))?.context("deleted: nothing there")?;
    ensure!(path.text(9, &reply)? == b"END\r\n", "deleted");
    told(&mut daemon, b"ms stale 1\r\na\r\nmd stale I T30\r\n")?;
    ensure!(!answers(b"mg stale v\r\n")?, "stale");
    told(&mut daemon, b"ms won 1 T10\r\na\r\nmg won R30\r\n")?;
    ensure!(!answers(b"mg won v\r\n")?, "won");
    told(&mut daemon, b"ms a2V5 1 b\r\na\r\n")?;
    ensure!(!answers(b"get key\r\n")?, "a key in base64");
    let large = [b"set large 0 0 20000\r\n".as_slice(), &vec![b'x'; 20_000], b"\r\n"].concat();
    told(&mut daemon, &large)?;
    ensure!(!answers(b"get large\r\n")?, "of several pieces");
    // Expired a moment ago, and in a moment.
    let mut worker = plane.store.worker()?;
    let now = Now::sample();
    let second = u32::try_from(now.boottime_ns / 1_000_000_000)?;
    for (name, lifetime, is_alive) in [
        (&b"past"[..], Lifetime::Past, false),
        (b"over", Lifetime::Until(second), false),
        (b"alive", Lifetime::Until(second + 3000), true),
        (b"never", Lifetime::Never, true),
    ] {
        let key = Key::new(name).context("a key")?;
        worker.set(
            key,
            b"1",
            session_daemon::store::types::ClientFlags(0),
            lifetime,
            session_daemon::store::types::Mode::Set,
            now,
        );
        let text = [b"get ".as_slice(), name, b"\r\n"].concat();
        ensure!(answers(&text)? == is_alive, "{name:?}");
    }
    worker.quiesce();
    told(&mut daemon, b"touch never -1\r\n")?;
    ensure!(!answers(b"get never\r\n")?, "touched to its end");
    ensure!(answers(b"get alive\r\n")?);
    told(&mut daemon, b"flush_all\r\n")?;
    ensure!(!answers(b"get alive\r\n")?, "flushed");
    told(&mut daemon, b"set alive 0 0 2\r\nab\r\n")?;
    ensure!(answers(b"get alive\r\n")?, "stored after the flush");
    Ok(())
}

#[test]
fn a_grown_index_is_followed() -> Result<()> {
    let plane = plane_or_skip!();
    let mut daemon = Conversation::over(&plane.store)?;
    let count = 40_000;
    for part in 0..count / 1000 {
        let sets: Vec<u8> = (part * 1000..part * 1000 + 1000)
            .flat_map(|number| {
                format!("set key:{number} 0 0 8 noreply\r\n{number:08}\r\n").into_bytes()
            })
            .collect();
        told(&mut daemon, &sets)?;
    }
    let (mut answered, mut tried) = (0, 0);
    for number in (0..count).step_by(37) {
        let text = format!("get key:{number}\r\n");
        tried += 1;
        if let Some(reply) = plane.run(&Path::v4().frame(3, text.as_bytes()))? {
            let expected = format!("VALUE key:{number} 0 8\r\n{number:08}\r\nEND\r\n");
            ensure!(Path::v4().text(3, &reply)? == expected.as_bytes(), "{number}");
            answered += 1;
        }
    }
    // Few stand across an element of the map, behind a colliding tag or in a third line.
    ensure!(answered * 100 >= tried * 97, "{answered} of {tried} answered");
    Ok(())
}

/// Whether the machine has so many megabytes to spare.
fn has_memory(megabytes: u64) -> bool {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.is_some_and(|kib| kib / 1024 > megabytes)
}

#[test]
fn items_beyond_four_gibibytes_are_found() -> Result<()> {
    require_root!();
    if kernel::is_before(5, 18) {
        skip!("the plane needs Linux 5.18");
    }
    if !skip::all() {
        skip!("takes 5 GB and a minute: SESSION_TEST_ALL=1");
    }
    if !has_memory(8 << 10) {
        skip!("needs 8 GB of memory to spare");
    }
    const LEN: usize = 500_000;
    const SMALL_LEN: usize = 500;
    let config =
        StoreConfig { memory_limit: 5 << 30, item_size_max: 1 << 20, workers: 2, ..config() };
    let plane = PlaneProgram::load(&config, Now::sample())?;
    let mut daemon = Conversation::over(&plane.store)?;
    // Pages are taken in their order: what lies behind four gibibytes of large items is far.
    let mut is_far = false;
    for number in 0..10_000 {
        let large = [
            format!("set large:{number} 0 0 {LEN} noreply\r\n").as_bytes(),
            &vec![b'x'; LEN],
            format!("\r\nset small:{number} 0 0 {SMALL_LEN} noreply\r\n").as_bytes(),
            &[b's'; SMALL_LEN],
            b"\r\n",
        ]
        .concat();
        told(&mut daemon, &large)?;
        let text = format!("get small:{number}\r\n");
        let Some(reply) = plane.run(&Path::v4().frame(3, text.as_bytes()))? else { continue };
        let expected = told(&mut daemon, text.as_bytes())?;
        ensure!(Path::v4().text(3, &reply)? == expected, "{number}");
        is_far = plane.accesses()?.iter().any(|(item, _)| item >> 32 != 0);
        if is_far {
            break;
        }
    }
    ensure!(is_far, "no item lies so far");
    ensure!(plane.store.totals().evictions == 0);
    Ok(())
}

#[test]
fn accesses_reach_the_store() -> Result<()> {
    let plane = plane_or_skip!();
    let mut daemon = Conversation::over(&plane.store)?;
    told(&mut daemon, b"set key 0 0 1\r\na\r\nset other 0 0 1\r\nb\r\n")?;
    ensure!(told(&mut daemon, b"me key\r\n")?.windows(8).any(|part| part == b"fetch=no"));
    ensure!(plane.run(&Path::v4().frame(1, b"get key\r\n"))?.is_some());
    let accesses = plane.accesses()?;
    let [(item, cas)] = accesses[..] else { anyhow::bail!("{accesses:?}") };
    let mut worker = plane.store.worker()?;
    ensure!(!worker.note_access(item, CasUnique(cas + 1), Now::sample()), "another version");
    ensure!(!worker.note_access(item + 8, CasUnique(cas), Now::sample()), "no chunk begins there");
    ensure!(!worker.note_access(!7, CasUnique(cas), Now::sample()), "nowhere");
    ensure!(worker.note_access(item, CasUnique(cas), Now::sample()));
    worker.quiesce();
    ensure!(told(&mut daemon, b"me key\r\n")?.windows(9).any(|part| part == b"fetch=yes"));
    ensure!(told(&mut daemon, b"me other\r\n")?.windows(8).any(|part| part == b"fetch=no"));
    told(&mut daemon, b"delete key\r\n")?;
    ensure!(!worker.note_access(item, CasUnique(cas), Now::sample()), "deleted");
    worker.quiesce();
    plane.store.validate()?;
    Ok(())
}

#[test]
fn a_store_in_a_map_is_gone_on_with() -> Result<()> {
    require_root!();
    if kernel::is_before(5, 18) {
        skip!("the plane needs Linux 5.18");
    }
    let mut plane = load()?;
    let mut daemon = Conversation::over(&plane.store)?;
    told(&mut daemon, b"set key 3 0 4\r\nkept\r\n")?;
    drop(daemon);
    // Not closed, as by a process that was killed: another one maps it.
    let (store, start) = Store::open(&config(), plane.memory()?, Now::sample())?;
    ensure!(matches!(start, Start::Kept(_)), "{start:?}");
    let said = store.orders();
    plane.order(|orders| orders.secret = said.secret)?;
    let reply = plane.run(&Path::v4().frame(1, b"get key\r\n"))?.context("answered")?;
    ensure!(Path::v4().text(1, &reply)? == b"VALUE key 3 4\r\nkept\r\nEND\r\n");
    let mut daemon = Conversation::over(&store)?;
    ensure!(told(&mut daemon, b"get key\r\n")? == b"VALUE key 3 4\r\nkept\r\nEND\r\n");
    // Larger than the map.
    let large = StoreConfig { memory_limit: 64 << 20, ..config() };
    ensure!(Store::open(&large, plane.memory()?, Now::sample()).is_err());
    Ok(())
}
