//! A whole conversation without a socket: every way of cutting the bytes gives the same replies.
use crate::allowlist::Allowlist;
use crate::clock::Now;
use crate::command::counters::Counters;
use crate::command::execute::Executor;
use crate::command::request::{Shutdown, StatsTopic};
use crate::server::administration::Administration;
use crate::server::binding::Binding;
use crate::server::buffers::Pool;
use crate::server::config::ServerConfig;
use crate::server::connection::{Connection, Services, Step, Turn};
use crate::server::login::Login;
use crate::server::shared::Shared;
use crate::store::Store;
use crate::store::types::{ClientFlags, Key, Lifetime, Mode, StoreConfig};
use arc_swap::ArcSwap;
use proptest::prelude::{any, prop, prop_assert_eq, prop_oneof, proptest};
use proptest::strategy::{Just, Strategy};
use std::sync::Arc;

struct Nobody;

impl Administration for Nobody {}

impl Services for Nobody {
    fn stats(&self, _: StatsTopic, take: &mut dyn FnMut(&str, &str)) {
        take("a", "b");
    }
    fn stats_reset(&self) {}
    fn verbosity(&self, _: u32) {}
    fn authenticate(&self, user: &[u8], password: &[u8]) -> bool {
        (user, password) == (b"user", b"pass")
    }
    fn shutdown(&self, _: Option<Shutdown>) -> bool {
        false
    }
}

/// Sends the pieces one read each; the replies, and `<closed>` if it came to that.
fn converse(pieces: &[&[u8]], requests_per_turn: u32) -> Vec<u8> {
    converse_as(Binding::Auto, pieces, requests_per_turn)
}

/// [`converse`] where one protocol alone may be spoken.
pub(crate) fn converse_as(binding: Binding, pieces: &[&[u8]], requests_per_turn: u32) -> Vec<u8> {
    converse_in(Connection::new(binding), pieces, requests_per_turn)
}

fn converse_in(mut connection: Connection, pieces: &[&[u8]], requests_per_turn: u32) -> Vec<u8> {
    let config = StoreConfig {
        memory_limit: 16 << 20,
        item_size_max: 16 << 10,
        workers: 1,
        ..StoreConfig::default()
    };
    let store = Store::create(&config).expect("a small store");
    let mut worker = store.worker().expect("the first worker");
    let (counters, mut pool) = (Counters::default(), Pool::default());
    let mut replies = Vec::new();
    let now = Now { realtime_ns: 1_700_000_000_000_000_000, boottime_ns: 1_000_000_000_000 };
    for piece in pieces {
        let mut rest = *piece;
        while !rest.is_empty() {
            let space = connection.space(&mut pool);
            let len = space.len().min(rest.len());
            space[..len].copy_from_slice(&rest[..len]);
            connection.filled(len);
            rest = &rest[len..];
            loop {
                let executor = Executor {
                    store: &mut worker,
                    counters: &counters,
                    now,
                    flush_allowed: true,
                    reads_only: false,
                    observer: None,
                };
                let step = connection.drive(&mut Turn {
                    executor,
                    pool: &mut pool,
                    services: &Nobody,
                    requests_left: requests_per_turn,
                    wire: None,
                });
                if step == Step::Yield {
                    continue;
                }
                replies.extend_from_slice(connection.output());
                connection.sent(connection.output().len(), &mut pool);
                worker.quiesce();
                match step {
                    Step::Close => {
                        replies.extend_from_slice(b"<closed>");
                        return replies;
                    }
                    Step::Read | Step::Watch => break,
                    Step::Write | Step::Yield => {}
                }
            }
            connection.rest(&mut pool);
        }
    }
    replies
}

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn conversation() -> Vec<u8> {
    let long = "k".repeat(251);
    let value = "v".repeat(9000);
    let mut all = String::from("set a 1 0 3\r\nabc\r\nset b 2 0 0\r\n\r\nget a b c\r\n");
    all.push_str(&format!("set {long} 0 0 9\r\nflush_all\r\nget a {long} b\r\nget {long}\n"));
    all.push_str(&format!("set big 0 0 {}\r\n{value}\r\nappend big 0 0 3\r\nend\r\n", value.len()));
    all.push_str("get big\r\nget\r\n\r\ngat x a\r\ngat 0 a b\r\ngats\r\nstats\r\nfoo bar\r\n");
    all.push_str(
        "add n 0 0 2\r\n10\r\nincr n 7\r\ndecr n 12\r\nget n\r\ntouch n 0\r\ndelete n 1\r\n",
    );
    all.push_str(&format!(
        "set too 0 0 2000000\r\n{}\r\nversion\r\n",
        "flush_all\r".repeat(200_000)
    ));
    all.push_str(&format!("get {} a\r\n", "missing ".repeat(100)));
    all.push_str(&format!("get {} b {long}\r\n", "a ".repeat(70)));
    all.push_str("set a 0 0 3\r\nabcd\r\nflush_all\r\n");
    all.into_bytes()
}

#[test]
fn a_conversation_is_answered() {
    let replies = text(&converse(&[&conversation()], 20));
    let start = "STORED\\r\\nSTORED\\r\\nVALUE a 1 3\\r\\nabc\\r\\nVALUE b 2 0\\r\\n\\r\\nEND\\r\\n\
                 CLIENT_ERROR bad command line format\\r\\nCLIENT_ERROR bad command line format\\r\\n\
                 CLIENT_ERROR bad command line format\\r\\nSTORED\\r\\nSTORED\\r\\nVALUE big 0 9003";
    assert!(replies.starts_with(start), "{}", &replies[..600]);
    let end = "SERVER_ERROR object too large for cache\\r\\nVERSION 1.6.45\\r\\nVALUE a 1 3\\r\\nabc\\r\\n\
               END\\r\\nCLIENT_ERROR bad command line format\\r\\n\
               CLIENT_ERROR bad data chunk\\r\\n<closed>";
    assert!(replies.ends_with(end), "{}", &replies[replies.len() - 600..]);
}

#[test]
fn cuts_and_turns_do_not_matter() {
    let all = conversation();
    let whole = converse(&[&all], 20);
    for at in (0..1100).chain(all.len() - 1000..all.len()) {
        let (one, two) = all.split_at(at);
        assert_eq!(text(&converse(&[one, two], 20)), text(&whole), "cut at {at}");
    }
    for size in [1, 2, 3, 7, 1000, 2048, 65_536] {
        let pieces: Vec<&[u8]> = all.chunks(size).collect();
        assert_eq!(text(&converse(&pieces, 1)), text(&whole), "pieces of {size}");
    }
}

#[test]
fn pipelined_meta_lookups_are_answered_in_order() {
    let value = "v".repeat(9000);
    let mut all = format!("ms big 9000 T90\r\n{value}\r\nms s 1\r\nx\r\n");
    let mut expected = String::from("HD\r\nHD\r\n");
    for idx in 0..100 {
        all.push_str(&format!(
            "mg big v O{idx}\r\nmg s h\r\nmg none q\r\nmg s k\n mg Ymln b s\r\n"
        ));
        let hit = u8::from(idx > 0);
        expected
            .push_str(&format!("VA 9000 O{idx}\r\n{value}\r\nHD h{hit}\r\nHD ks\r\nHD s9000\r\n"));
    }
    all.push_str("mn\r\nmg");
    expected.push_str("MN\r\n");
    for requests in [1, 3, 20] {
        let whole = converse(&[all.as_bytes()], requests);
        assert!(whole == expected.as_bytes(), "{requests} requests a turn");
        for size in [1, 5, 17, 2048, 65_536] {
            let pieces: Vec<&[u8]> = all.as_bytes().chunks(size).collect();
            assert!(converse(&pieces, requests) == whole, "pieces of {size}");
        }
    }
}

#[test]
fn of_pipelined_meta_lookups_one_wins_a_stale_item() {
    let all = "ms a 1\r\nx\r\nms b 1\r\ny\r\nmd a I\r\nmg b v\r\nmg a v\r\nmg b v k\r\n\
               mg a v\r\nmg none v\r\nmg b s\r\n";
    let expected = "HD\r\nHD\r\nHD\r\nVA 1\r\ny\r\nVA 1 X W\r\nx\r\nVA 1 kb\r\ny\r\n\
                    VA 1 Z X\r\nx\r\nEN\r\nHD s1\r\n";
    for requests in [1, 2, 20] {
        assert_eq!(text(&converse(&[all.as_bytes()], requests)), text(expected.as_bytes()));
        let pieces: Vec<&[u8]> = all.as_bytes().chunks(1).collect();
        assert_eq!(text(&converse(&pieces, requests)), text(expected.as_bytes()));
    }
}

#[test]
fn meta_lines_without_end_are_closed() {
    for start in ["mg ", "ms ", "mx", "mn "] {
        let all = format!("{start}{}", "k".repeat(3000));
        assert_eq!(text(&converse(&[all.as_bytes()], 20)), "<closed>");
    }
    let long = format!("mg {}\r\nmn\r\n", " ".repeat(2050));
    assert_eq!(text(&converse(&[long.as_bytes()], 20)), "<closed>");
}

#[test]
fn a_value_that_is_too_large_is_so_however_it_comes() {
    let value = "v".repeat(20_000);
    let command = format!("set a 0 0 1\r\nx\r\nadd a 0 0 20000\r\n{value}\r\nget a\r\n");
    let (head, tail) = command.as_bytes().split_at(40);
    let replies = "STORED\r\nSERVER_ERROR object too large for cache\r\n\
                   VALUE a 0 1\r\nx\r\nEND\r\n";
    assert_eq!(text(&converse(&[command.as_bytes()], 20)), text(replies.as_bytes()));
    assert_eq!(text(&converse(&[head, tail], 20)), text(replies.as_bytes()));
}

#[test]
fn values_that_are_too_large_together_are_not_joined() {
    let value = "v".repeat(9_000);
    let whole = format!("set a 0 0 9000\r\n{value}\r\nappend a 0 0 9000\r\n{value}\r\n");
    assert_eq!(text(&converse(&[whole.as_bytes()], 20)), text(b"STORED\r\nNOT_STORED\r\n"));
}

#[test]
fn a_reset_reaches_the_counters_of_the_store() {
    let store = Store::create(&StoreConfig::default()).expect("a store");
    let mut worker = store.worker().expect("the first worker");
    let now = Now::sample();
    for number in 0..3_u32 {
        let name = number.to_le_bytes();
        let key = Key::new(&name).expect("four bytes");
        worker.set(key, b"v", ClientFlags(0), Lifetime::Never, Mode::Set, now);
    }
    let allowlist = Arc::new(ArcSwap::from_pointee(Allowlist::new()));
    let shared = Shared::new(ServerConfig::default(), store, allowlist, Box::default());
    assert_eq!(shared.store.totals().total_items, 3);
    shared.reset_counters();
    assert_eq!(shared.store.totals().total_items, 0);
    assert_eq!(shared.store.totals().curr_items, 3);
}

/// What a client that logs in is told, however its bytes are cut.
fn logged_in(login: Login, binding: Binding, all: &[u8]) -> String {
    let connection = || Connection::new(binding).with_login(login);
    let whole = text(&converse_in(connection(), &[all], 20));
    for at in 0..all.len() {
        let (one, two) = all.split_at(at);
        assert_eq!(text(&converse_in(connection(), &[one, two], 1)), whole, "cut at {at}");
    }
    whole
}

#[test]
fn nothing_is_done_for_a_text_client_that_is_not_known() {
    let all =
        b"get a\r\nset a 0 0 9\r\nuser xxxx\r\nset a 0 0 4\r\nuser\r\nadd a 0 0 1\r\n1\r\n\r\n\
                set a 0 0 9\r\nuser passXXversion\r\n\
                set a 0 0 9\r\nuser pass\r\nget a\r\nset a 0 0 9\r\nuser pass\r\nget a\r\n";
    let unknown = "CLIENT_ERROR unauthenticated\\r\\n";
    let expected = format!(
        "{unknown}CLIENT_ERROR authentication failure\\r\\n\
         CLIENT_ERROR bad authentication token format\\r\\n{unknown}{unknown}{unknown}\
         CLIENT_ERROR bad command line termination\\r\\n{unknown}STORED\\r\\nEND\\r\\nSTORED\\r\\n\
         VALUE a 0 9\\r\\nuser pass\\r\\nEND\\r\\n"
    );
    assert_eq!(logged_in(Login::Token, Binding::Ascii, all), expected);
    let huge = b"set foo 0 0 2147483646\r\nuser pass\r\nversion\r\n";
    let told = format!("CLIENT_ERROR auth token too long\\r\\n{unknown}{unknown}");
    assert_eq!(logged_in(Login::Token, Binding::Ascii, huge), told);
    assert_eq!(
        text(&converse_in(
            Connection::new(Binding::Ascii).with_login(Login::Token),
            &[&[b'x'; 5000]],
            20,
        )),
        "<closed>"
    );
}

#[test]
fn nothing_is_done_for_a_binary_client_that_is_not_known() {
    let frame = |opcode: u8, key: &[u8], value: &[u8]| {
        let (key_len, body_len) = (key.len() as u8, (key.len() + value.len()) as u8);
        let mut frame = vec![0x80, opcode, 0, key_len, 0, 0, 0, 0, 0, 0, 0, body_len];
        frame.extend_from_slice(&[7; 4]);
        frame.extend_from_slice(&[0; 8]);
        frame.extend_from_slice(key);
        frame.extend_from_slice(value);
        frame
    };
    // Opcode and status of every reply.
    let replies = |frames: &[Vec<u8>]| {
        let all = frames.concat();
        let connection = || Connection::new(Binding::Binary).with_login(Login::Sasl);
        let mut whole = converse_in(connection(), &[&all], 20);
        for at in 0..all.len() {
            let (one, two) = all.split_at(at);
            assert_eq!(converse_in(connection(), &[one, two], 1), whole, "cut at {at}");
        }
        let mut told = Vec::new();
        while whole.len() >= 24 {
            let body_len = usize::from(whole[11]);
            told.push((whole[1], whole[7]));
            whole.drain(..24 + body_len);
        }
        (told, whole == b"<closed>")
    };
    let (right, wrong) = (&b"\0user\0pass"[..], &b"\0user\0paXX"[..]);
    let (mechanisms, version) = (frame(0x20, b"", b""), frame(0x0b, b"", b""));
    let (get, login) = (frame(0x00, b"key", b""), frame(0x21, b"PLAIN", right));
    assert_eq!(
        replies(&[mechanisms.clone(), version.clone(), get.clone(), version.clone()]),
        (vec![(0x20, 0), (0x0b, 0), (0x00, 0x20)], true)
    );
    assert_eq!(
        replies(&[login.clone(), get.clone(), version]),
        (vec![(0x21, 0), (0x00, 0x01), (0x0b, 0)], false)
    );
    // A client that tries again is unknown again.
    let again = frame(0x21, b"PLAIN", wrong);
    assert_eq!(
        replies(&[login.clone(), again, get.clone()]),
        (vec![(0x21, 0), (0x21, 0x20), (0x00, 0x20)], true)
    );
    let step = frame(0x22, b"PLAIN", right);
    assert_eq!(replies(&[step.clone(), get.clone()]), (vec![(0x22, 0x20), (0x00, 0x20)], true));
    assert_eq!(
        replies(&[frame(0x21, b"PLAIN", b""), step.clone(), get.clone()]),
        (vec![(0x21, 0x21), (0x22, 0), (0x00, 0x01)], false)
    );
    assert_eq!(
        replies(&[frame(0x21, b"CRAM-MD5", right), step, mechanisms, get]),
        (vec![(0x21, 0x20), (0x22, 0x20), (0x20, 0), (0x00, 0x20)], true)
    );
}

#[test]
fn long_lists_are_answered_right() {
    let mut all = b"set here 0 0 1\r\nx\r\nget ".to_vec();
    for idx in 0..70_000 {
        let key = if idx % 7 == 0 { "here ".to_owned() } else { format!("missing{idx} ") };
        all.extend_from_slice(key.as_bytes());
    }
    all.extend_from_slice(b"\r\nversion\r\n");
    let mut expected = b"STORED\r\n".to_vec();
    expected.extend_from_slice(&b"VALUE here 0 1\r\nx\r\n".repeat(10_000));
    expected.extend_from_slice(b"END\r\nVERSION 1.6.45\r\n");
    for size in [1000, 4099, 65_536, all.len()] {
        let pieces: Vec<&[u8]> = all.chunks(size).collect();
        assert!(converse(&pieces, 20) == expected, "pieces of {size}");
    }
}

#[test]
fn lines_without_end_are_closed() {
    let endless = |start: &str, filler: &str, len: usize| {
        let mut all = start.as_bytes().to_vec();
        all.extend_from_slice(filler.repeat(len / filler.len()).as_bytes());
        let pieces: Vec<&[u8]> = all.chunks(50_000).collect();
        text(&converse(&pieces, 20))
    };
    assert_eq!(endless("set ", "k", 3000), "<closed>");
    assert_eq!(endless("", " ", 3000), "<closed>");
    assert_eq!(endless("\u{80}", "k", 10), "");
    let bad = "CLIENT_ERROR bad command line format\\r\\n<closed>";
    assert_eq!(endless("get ", "k", 3 << 20), bad);
    assert_eq!(endless("get ", "k ", 3 << 20), bad);
    assert_eq!(endless("gat 0 ", " ", 3 << 20), bad);
}

fn request() -> impl Strategy<Value = Vec<u8>> {
    let key = "[a-d]{1,2}";
    prop_oneof![
        (key, any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)).prop_map(
            |(key, flags, value)| {
                let mut all = format!("set {key} {flags} 0 {}\r\n", value.len()).into_bytes();
                all.extend_from_slice(&value);
                all.extend_from_slice(b"\r\n");
                all
            }
        ),
        prop::collection::vec(key, 0..9)
            .prop_map(|keys| format!("gets {}\r\n", keys.join(" ")).into()),
        prop::collection::vec(key, 0..90)
            .prop_map(|keys| format!("gat 9 {}\n", keys.join(" ")).into()),
        key.prop_map(|key| format!("get {key}\r\n").into()),
        (key, any::<u32>()).prop_map(|(key, delta)| format!("incr {key} {delta}\r\n").into()),
        key.prop_map(|key| format!("delete {key} noreply\r\n").into()),
        Just(b"set x y 0 5\r\nquit\r\r\n".to_vec()),
        Just(b"flush_all\r\n".to_vec()),
        prop::collection::vec(any::<u8>(), 0..20),
    ]
}

proptest! {
    #[test]
    fn any_cut_of_anything_gives_the_same_replies(
        requests in prop::collection::vec(request(), 1..30),
        cuts in prop::collection::vec(1usize..80, 1..60),
        requests_per_turn in 1u32..30,
    ) {
        let all = requests.concat();
        let mut rest = all.as_slice();
        let mut pieces = Vec::new();
        for cut in cuts.iter().cycle() {
            let Some((piece, after)) = rest.split_at_checked(*cut) else { break };
            pieces.push(piece);
            rest = after;
        }
        pieces.push(rest);
        let whole = text(&converse(&[&all], 20));
        prop_assert_eq!(text(&converse(&pieces, requests_per_turn)), whole);
    }
}
