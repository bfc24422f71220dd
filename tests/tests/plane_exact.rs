//! Readers by UDP whose answers come from the kernel or, for what it passes up, from the store's
//! own commands, while writers of every kind change what they read. No answer may be torn, stale
//! after an acknowledged write, or of an item that was deleted, has expired or was flushed.
//!
//! Each key has one writer, which numbers its changes and says before a change how far it may
//! be, and after it how far it is. What a change leaves follows from key and number alone.
#![forbid(unsafe_code)]

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use aya::EbpfLoader;
use session_common::plane::Verdict;
use session_daemon::clock::Now;
use session_daemon::store::Worker;
use session_daemon::store::types::{
    Arithmetic, CasUnique, ClientFlags, Flush, Key, Lifetime, Mode, StoreConfig,
};
use session_tests::conversation::Conversation;
use session_tests::netns::Namespace;
use session_tests::plane_program::{CLIENT4, HOST4, PORT, PlaneProgram};
use session_tests::{attach, flood, kernel, require_root, skip};

const WRITERS: usize = 4;
const READERS: usize = 2;
/// Keys of a writer: few, so that readers and writers meet; some of each kind.
const KEYS: usize = 8;
/// Kinds of keys, by their number: values that are set, numbers that are counted, values that grow,
/// values that end.
const KINDS: usize = 4;
/// Questions of a reader that are without an answer at a time.
const WINDOW: u64 = 16;
/// Other keys, by which the index grows, pages move and items are evicted.
const FILLERS: u64 = 30_000;

/// What every thread knows of a key.
#[derive(Default)]
struct Known {
    /// Changes that were begun, and changes that were acknowledged.
    begun: AtomicU64,
    done: AtomicU64,
    /// Changes up to this one are flushed.
    flushed: AtomicU64,
}

struct Bed {
    known: Vec<Known>,
    ends: AtomicBool,
}

/// What a change leaves of a key.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    Value(Vec<u8>),
    Nothing,
}

fn name(key: usize) -> String {
    format!("key:{key:03}")
}

/// The kind of a key: each writer has as many of each.
fn kind(key: usize) -> usize {
    key / WRITERS % KINDS
}

fn second() -> u64 {
    Now::sample().boottime_ns / 1_000_000_000
}

/// Letters that all follow from key and change.
fn letters(key: usize, change: u64) -> impl Iterator<Item = u8> {
    let len = (mixed(key, change) >> 8) as usize % 900;
    std::iter::repeat_n(b'a' + (mixed(key, change) % 26) as u8, len)
}

/// A number that follows from key and change.
fn mixed(key: usize, change: u64) -> u64 {
    let mut x = change.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (key as u64) << 40;
    x ^= x >> 31;
    x.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 20
}

/// What a change leaves of a key; of a value that ends, when `until_s` is.
fn left(key: usize, change: u64, until_s: u64) -> Left {
    match kind(key) {
        // The number, and letters that all follow from it.
        0 if mixed(key, change).is_multiple_of(5) => Left::Nothing,
        0 => Left::Value(
            format!("{change}:").into_bytes().into_iter().chain(letters(key, change)).collect(),
        ),
        1 => Left::Value(change.to_string().into_bytes()),
        2 => Left::Value(vec![b'0' + (change / 100 % 10) as u8; change as usize % 100 + 1]),
        _ => {
            let begin = format!("{change}:{until_s}:").into_bytes();
            Left::Value(begin.into_iter().chain(letters(key, change)).collect())
        }
    }
}

/// Does change `change` to a key.
fn change(worker: &mut Worker, key: usize, change: u64, now: Now) -> Result<()> {
    let name = name(key);
    let at = Key::new(name.as_bytes()).context("a key")?;
    let set = |worker: &mut Worker, value: &[u8], mode| {
        worker.set(at, value, ClientFlags((change % 3) as u32), Lifetime::Never, mode, now)
    };
    let until_s = now.boottime_ns / 1_000_000_000 + 2;
    match (kind(key), left(key, change, until_s)) {
        (0, Left::Nothing) if change.is_multiple_of(2) => {
            worker.delete(at, None, now);
        }
        (0, Left::Nothing) => {
            worker.touch(at, Lifetime::Past, now);
        }
        (1, Left::Value(value)) => {
            // What was evicted or flushed begins again where it was.
            if !matches!(
                worker.arithmetic(at, Arithmetic::Increment, 1, None, now),
                session_daemon::store::types::Counted::Value { value: counted, .. } if counted == change
            ) {
                set(worker, &value, Mode::Set);
            }
        }
        (2, Left::Value(value)) => {
            let behind = value.len() > 1;
            let there = worker.get(at, now).map_or(0, |item| item.value_len());
            if behind && there + 1 == value.len() {
                set(worker, &value[..1], Mode::Append);
            } else {
                set(worker, &value, Mode::Set);
            }
        }
        (3, Left::Value(value)) => {
            let flags = ClientFlags((change % 3) as u32);
            let until_s = u32::try_from(until_s)?;
            // Of every other one a touch says when it ends, which is later than it did.
            let is_touched = change.is_multiple_of(2);
            let first = Lifetime::Until(until_s - u32::from(is_touched));
            worker.set(at, &value, flags, first, Mode::Set, now);
            if is_touched {
                worker.touch(at, Lifetime::Until(until_s), now);
            }
        }
        (_, Left::Value(value)) => {
            let cas = worker.get(at, now).map(|item| item.cas());
            let mode = match cas {
                Some(cas) if change.is_multiple_of(2) => Mode::Cas(CasUnique(cas.0)),
                _ => Mode::Set,
            };
            set(worker, &value, mode);
        }
        (_, Left::Nothing) => bail!("only values that are set end"),
    }
    Ok(())
}

fn write(bed: &Bed, mut worker: Worker, number: usize) -> Result<u64> {
    let mut changes = 0_u64;
    let (mut filler, mut ended) = (0_u64, 0);
    while !bed.ends.load(Ordering::Relaxed) {
        let now = Now::sample();
        // Values that end are given time to.
        let ends_now = now.boottime_ns / 3_000_000_000;
        for key in (number..WRITERS * KEYS).step_by(WRITERS) {
            if kind(key) == 3 && ends_now == ended {
                continue;
            }
            let known = &bed.known[key];
            let next = known.done.load(Ordering::Relaxed) + 1;
            known.begun.store(next, Ordering::SeqCst);
            change(&mut worker, key, next, now)?;
            known.done.store(next, Ordering::SeqCst);
            changes += 1;
        }
        ended = ends_now;
        filler += 1;
        let other = format!("filler:{}", mixed(number, filler) % FILLERS);
        let len = (mixed(7, filler / 2000) % 1500) as usize;
        let at = Key::new(other.as_bytes()).context("a key")?;
        worker.set(at, &vec![b'f'; len], ClientFlags(0), Lifetime::Never, Mode::Set, now);
        worker.maintain(now);
        worker.quiesce();
    }
    Ok(changes)
}

/// Flushes again and again, now and then by a flush that is still to come.
fn flush(bed: &Bed, mut worker: Worker) {
    let done = || bed.known.iter().map(|known| known.done.load(Ordering::SeqCst)).collect();
    let mut count = 0_u64;
    while !bed.ends.load(Ordering::Relaxed) {
        let mut before: Vec<u64> = done();
        count += 1;
        if count.is_multiple_of(200) {
            let flush_at_s = second() + 1;
            worker.flush_all(Flush::At(u32::try_from(flush_at_s).expect("small")), Now::sample());
            worker.quiesce();
            // What was acknowledged while the second had not come is older than it.
            loop {
                let seen = done();
                if second() >= flush_at_s || bed.ends.load(Ordering::Relaxed) {
                    break;
                }
                before = seen;
                thread::sleep(Duration::from_millis(1));
            }
            if second() < flush_at_s {
                return;
            }
        } else {
            worker.flush_all(Flush::Now, Now::sample());
            worker.quiesce();
        }
        for (known, done) in bed.known.iter().zip(before) {
            known.flushed.fetch_max(done, Ordering::SeqCst);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Answers what the plane passes up, as the daemon would.
fn serve(bed: &Bed, socket: &UdpSocket, mut daemon: Conversation) -> Result<u64> {
    let mut passed = 0;
    let mut bytes = [0; 2048];
    while !bed.ends.load(Ordering::Relaxed) {
        let Ok((len, client)) = socket.recv_from(&mut bytes) else { continue };
        let (reply, _) = daemon.feed(&[&bytes[8..len]]);
        let mut datagram = bytes[..8].to_vec();
        datagram.extend(reply);
        socket.send_to(&datagram, client)?;
        passed += 1;
    }
    Ok(passed)
}

/// A question that was asked.
struct Asked {
    id: [u8; 2],
    key: usize,
    /// The last change that was acknowledged before, and the second it was then.
    least: u64,
    at_s: u64,
}

/// Sends a reader's question of this number.
fn ask(bed: &Bed, socket: &UdpSocket, number: usize, question: u64) -> Result<Asked> {
    let key = (mixed(number, question) % (WRITERS * KEYS) as u64) as usize;
    let id = (question as u16).to_be_bytes();
    let request = [&id, b"\0\0\0\x01\0\0get ".as_slice(), name(key).as_bytes(), b"\r\n"].concat();
    let known = &bed.known[key];
    let least = known.done.load(Ordering::SeqCst);
    let least = least.max(known.flushed.load(Ordering::SeqCst) + 1);
    let at_s = second();
    socket.send(&request)?;
    Ok(Asked { id, key, least, at_s })
}

/// Asks for keys, and checks the answers; how many there were, and how many were hits.
fn read(bed: &Bed, socket: &UdpSocket, number: usize, reads: u64) -> Result<(u64, u64)> {
    let (mut answers, mut hits) = (0, 0);
    let mut open: Vec<Asked> = Vec::new();
    let mut bytes = [0; 2048];
    let mut question = 0;
    while question < reads {
        let end = reads.min(question + WINDOW);
        for question in question..end {
            open.push(ask(bed, socket, number, question)?);
        }
        question = end;
        while !open.is_empty() {
            // A datagram may be lost.
            let Ok(len) = socket.recv(&mut bytes) else { break };
            let Some(place) = open.iter().position(|asked| asked.id == bytes[..2]) else {
                continue;
            };
            let Asked { key, least, at_s, .. } = open.swap_remove(place);
            let most = bed.known[key].begun.load(Ordering::SeqCst);
            answers += 1;
            if &bytes[8..len] != b"END\r\n" {
                hits += 1;
                check(key, &bytes[8..len], least, most, at_s)?;
            }
        }
        open.clear();
    }
    Ok((answers, hits))
}

/// Whether an answer is what one of these changes left, and had not ended when it was asked for.
fn check(key: usize, text: &[u8], least: u64, most: u64, asked_s: u64) -> Result<()> {
    let shown = || String::from_utf8_lossy(text).into_owned();
    let end = text.iter().position(|byte| *byte == b'\n').context("a line")?;
    let line = std::str::from_utf8(&text[..end - 1])?;
    let words: Vec<&str> = line.split(' ').collect();
    let [_, named, flags, len] = words[..] else { bail!("{}", shown()) };
    ensure!(named == name(key), "asked for {}: {}", name(key), shown());
    let value = text[end + 1..].strip_suffix(b"\r\nEND\r\n").context("an end")?;
    ensure!(value.len() == len.parse::<usize>()?, "{}", shown());
    // Most values name their change; of the others the changes in question are few, and any will
    // do.
    let mut parts = value.split(|byte| *byte == b':');
    let named = match kind(key) {
        0 | 3 => parts.next(),
        1 => Some(value),
        _ => None,
    };
    let until_s: u64 = match (kind(key), parts.next()) {
        (3, Some(digits)) => std::str::from_utf8(digits)?.parse()?,
        _ => 0,
    };
    let is_over = kind(key) == 3 && until_s <= asked_s;
    ensure!(!is_over, "{} had ended at {asked_s}", shown());
    let mut changes = match named {
        Some(digits) => {
            let change: u64 = std::str::from_utf8(digits)?.trim_end().parse()?;
            ensure!((least..=most).contains(&change), "{change}, not {least} to {most}");
            change..=change
        }
        None => least..=most,
    };
    let has_flags = matches!(kind(key), 0 | 3);
    let is_left = |change: u64| match left(key, change, until_s) {
        Left::Value(expected) => {
            expected == value && (!has_flags || flags == (change % 3).to_string())
        }
        Left::Nothing => false,
    };
    ensure!(changes.any(is_left), "{}: not of changes {least} to {most}", shown());
    Ok(())
}

#[test]
fn no_answer_is_torn_or_stale() -> Result<()> {
    require_root!();
    if kernel::is_before(5, 18) {
        skip!("the plane needs Linux 5.18");
    }
    let is_long = skip::all();
    let reads = if is_long { 10_000_000 / READERS as u64 } else { 40_000 };
    let config = StoreConfig {
        memory_limit: 4 << 20,
        item_size_max: 1 << 20,
        workers: WRITERS + 2,
        ..StoreConfig::default()
    };
    let mut plane = PlaneProgram::load(&config, Now::sample())?;
    let before = plane.store.totals();
    let (cache, client) = (Namespace::new("cache")?, Namespace::new("client")?);
    cache.ip(&format!("link add eth0 type veth peer name eth0 netns {}", client.name()))?;
    cache.ip_batch(&format!("addr add {HOST4}/24 dev eth0\nlink set eth0 up\n"))?;
    client.ip_batch(&format!("addr add {CLIENT4}/24 dev eth0\nlink set eth0 up\n"))?;
    let attached = cache.run(|| plane.attach("eth0"))?;
    let mut bare = EbpfLoader::new().load_file(flood::object_path())?;
    // What is sent back by XDP is taken only by an interface that has a program.
    let passing =
        client.run(|| attach::attach(&mut bare, "bare_pass", "eth0", attach::Mode::Native))?;
    let host = SocketAddr::from((HOST4, PORT));
    let served = cache.run(|| UdpSocket::bind(host))?;
    served.set_read_timeout(Some(Duration::from_millis(50)))?;
    let bed = Bed {
        known: (0..WRITERS * KEYS).map(|_| Known::default()).collect(),
        ends: AtomicBool::new(false),
    };
    let workers = (0..=WRITERS).map(|_| plane.store.worker()).collect::<Result<Vec<_>, _>>()?;
    let daemon = Conversation::over(&plane.store)?;
    let (bed, served) = (&bed, &served);
    let (answers, hits, passed) = thread::scope(|scope| -> Result<(u64, u64, u64)> {
        let mut workers = workers.into_iter();
        let flusher = workers.next().context("a worker")?;
        let writers: Vec<_> = workers
            .enumerate()
            .map(|(number, worker)| scope.spawn(move || write(bed, worker, number)))
            .collect();
        scope.spawn(move || flush(bed, flusher));
        let server = scope.spawn(move || serve(bed, served, daemon));
        let readers: Vec<_> = (0..READERS)
            .map(|number| {
                let socket = client.run(|| -> Result<UdpSocket> {
                    let socket = UdpSocket::bind((CLIENT4, 0))?;
                    socket.connect(host)?;
                    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
                    Ok(socket)
                });
                scope.spawn(move || read(bed, &socket?, number, reads))
            })
            .collect();
        let read: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
        bed.ends.store(true, Ordering::Relaxed);
        let passed = server.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
        for writer in writers {
            writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))??;
        }
        let (mut answers, mut hits) = (0, 0);
        for one in read {
            let (a, h) = one.map_err(|_| anyhow::anyhow!("a reader panicked"))??;
            answers += a;
            hits += h;
        }
        Ok((answers, hits, passed))
    })?;
    drop((attached, passing));
    let in_kernel = plane.counted(Verdict::Hit)?;
    let (absent, raced) = (plane.counted(Verdict::Miss)?, plane.counted(Verdict::Raced)?);
    eprintln!(
        "{answers} answers, {hits} hits: in the kernel {in_kernel} hits and {absent} misses, \
         {passed} passed up, {raced} raced"
    );
    ensure!(answers * 10 >= reads * READERS as u64 * 9, "{answers} answers");
    ensure!(in_kernel * 4 >= hits, "{in_kernel} of {hits} hits in the kernel");
    ensure!(absent > 0, "no miss was answered in the kernel");
    let after = plane.store.totals();
    eprintln!(
        "{} evicted, {} pages moved, index slots 2^{} to 2^{}",
        after.evictions, after.slabs_moved, before.hash_power_level, after.hash_power_level
    );
    ensure!(after.evictions > 0 && after.slabs_moved > 0, "memory was not short: {after:?}");
    ensure!(after.hash_power_level > before.hash_power_level, "the index did not grow: {after:?}");
    plane.store.validate()?;
    Ok(())
}
