//! The grammar, flag by flag, and its properties.
use super::base64::{Buffer, DECODED_LEN_MAX};
use super::encode::{self, Echo, Hit};
use super::flags::MetaError;
use super::parse::{self, Rejected, Verb};
use crate::command::request::{
    Counting, Direction, Exptime, Key, Lease, Outcome, Removal, StoreMode, StoreTerms,
};
use crate::protocol::text::SWALLOW_LEN_MAX;
use crate::protocol::text::parse::After;
use crate::protocol::text::words::Words;
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

const EMPTY: Buffer = [0; DECODED_LEN_MAX];

fn key(bytes: &[u8]) -> Key<'_> {
    Key::new(bytes).expect("test keys are short")
}

fn lease(line: &str) -> Result<Lease, MetaError> {
    let mut buffer = EMPTY;
    parse::asked(Words(line.as_bytes()), &mut buffer).and_then(|asked| parse::lease(&asked))
}

fn set(line: &str) -> Result<(StoreTerms, u64), Rejected> {
    let mut buffer = EMPTY;
    let (_, store, value_len) = parse::set(Words(line.as_bytes()), &mut buffer)?;
    Ok((store.terms, value_len))
}

#[test]
fn verbs() {
    let all = [b"mg", b"ms", b"md", b"ma", b"me", b"mn"];
    assert!(all.iter().all(|verb| Verb::of(*verb).is_some()));
    for other in [&b"mx"[..], b"m", b"mgx", b"MG", b""] {
        assert_eq!(Verb::of(other), None);
    }
}

#[test]
fn lookups() {
    assert_eq!(lease("k v t f c h l s k O9 q P1 L2"), Ok(Lease::default()));
    let all = Lease {
        touch: Some(Exptime(-1)),
        vivify: Some(Exptime(30)),
        recache: Some(Exptime(5)),
        touch_first: false,
        version: Some(7),
        key_is_binary: true,
        unmarked: true,
    };
    assert_eq!(lease("Zm9v b u N30 R5 T-1 E7"), Ok(all));
    assert_eq!(lease("Zm9v b u T-1 N30 R5 E7"), Ok(Lease { touch_first: true, ..all }));
    let mut buffer = EMPTY;
    let asked = parse::asked(Words(b"Zm9v b"), &mut buffer).expect("base64");
    assert_eq!(asked.key, key(b"foo"));
}

#[test]
fn wrong_flags() {
    for (line, error) in [
        ("", MetaError::BadFormat),
        ("k !", MetaError::BadFormat),
        ("k 5", MetaError::BadFormat),
        ("k \u{e9}", MetaError::BadFormat),
        ("k v v", MetaError::DuplicateFlag),
        ("k O1 O2", MetaError::DuplicateFlag),
        ("k y", MetaError::InvalidFlag),
        ("k S5", MetaError::InvalidFlag),
        ("k _", MetaError::InvalidFlag),
        ("k T", MetaError::BadToken),
        ("k T1x", MetaError::BadToken),
        ("k T+1", MetaError::BadToken),
        ("k N-", MetaError::BadToken),
        ("k R9223372036854775808", MetaError::BadToken),
        ("k C-1", MetaError::BadToken),
        ("k E18446744073709551616", MetaError::BadToken),
        ("k F4294967296", MetaError::BadFormat),
        ("k Jx", MetaError::BadInitial),
        ("k D-1", MetaError::BadDelta),
        ("k Tx Dx", MetaError::BadDelta),
        ("k Tx v v", MetaError::DuplicateFlag),
        ("Zm9 b", MetaError::BadKey),
        ("!!!! b", MetaError::BadKey),
    ] {
        assert_eq!(lease(line), Err(error), "{line}");
    }
    let long = |len: usize| lease(&format!("k O{}", "x".repeat(len)));
    assert!(long(31).is_ok());
    assert_eq!(long(32), Err(MetaError::OpaqueTooLong));
    assert!(lease(&"k".repeat(250)).is_ok());
    assert_eq!(lease(&"k".repeat(251)), Err(MetaError::BadFormat));
    let flags = "c f h k l O1 q s t u v R1 T5 N5 F1 J1 D1";
    assert!(lease(&format!("k {flags} I")).is_ok());
    assert_eq!(lease(&format!("k {flags} I x")), Err(MetaError::TooManyFlags));
}

#[test]
fn storage() {
    let terms = StoreTerms::new(0, Exptime(0), StoreMode::Set);
    assert_eq!(set("k 5"), Ok((terms, 5)));
    let modes = [
        ("S", StoreMode::Set),
        ("Set", StoreMode::Set),
        ("E", StoreMode::Add),
        ("A", StoreMode::Append),
        ("P", StoreMode::Prepend),
        ("R", StoreMode::Replace),
    ];
    for (letter, mode) in modes {
        assert_eq!(set(&format!("k 0 M{letter}")), Ok((StoreTerms { mode, ..terms }, 0)));
    }
    let cas = |terms: StoreTerms| StoreTerms { mode: StoreMode::Cas(9), ..terms };
    assert_eq!(set("k 1 C9"), Ok((cas(terms), 1)));
    assert_eq!(set("k 1 MR C9 I"), Ok((StoreTerms { older_is_stale: true, ..cas(terms) }, 1)));
    assert_eq!(set("k 1 ME C9"), Ok((StoreTerms { mode: StoreMode::Add, ..terms }, 1)));
    let append = StoreTerms { mode: StoreMode::Append, ..terms };
    assert_eq!(set("k 1 MA C9"), Ok((StoreTerms { joined_to: Some(9), ..append }, 1)));
    assert_eq!(set("k 1 MA C0"), Ok((append, 1)));
    let vivify = Some(Exptime(4));
    assert_eq!(set("k 1 N4 MA"), Ok((StoreTerms { vivify, ..append }, 1)));
    assert_eq!(set("k 1 N4"), Ok((terms, 1)));
    let all = StoreTerms { flags: 3, exptime: Exptime(60), version: Some(2), ..terms };
    assert_eq!(set("Zm9v 1 F3 T60 E2 b c k s q O1"), {
        Ok((StoreTerms { key_is_binary: true, ..all }, 1))
    });
}

#[test]
fn values_are_never_left_behind() {
    let rejected = |error, after| Err(Rejected { error, after });
    let close = rejected(MetaError::BadFormat, After::Close);
    for bad in ["", "k", "k S5", "k -1", "k +1", "k 1x", "k 2147483646"] {
        assert_eq!(set(bad), close, "{bad}");
    }
    for (line, error) in [
        ("k 5 M", MetaError::BadSetMode),
        ("k 5 MI", MetaError::BadSetMode),
        ("k 5 Me", MetaError::BadSetMode),
        ("k 5 v v", MetaError::DuplicateFlag),
        ("k 5 T", MetaError::BadToken),
        ("k 5 !", MetaError::BadFormat),
        ("Zm9 5 b", MetaError::BadKey),
        ("k 5 O23456789012345678901234567890123", MetaError::OpaqueTooLong),
    ] {
        assert_eq!(set(line), rejected(error, After::Swallow(5)), "{line}");
    }
    let long = format!("{} 5", "k".repeat(251));
    assert_eq!(set(&long), rejected(MetaError::BadFormat, After::Swallow(5)));
}

#[test]
fn removals_and_numbers() {
    let mut buffer = EMPTY;
    let asked = parse::asked(Words(b"k I T5 C4 E6 x F2"), &mut buffer).expect("flags");
    let removal = Removal {
        key: key(b"k"),
        cas: Some(4),
        stale: true,
        emptied: Some(2),
        exptime: Some(Exptime(5)),
        version: Some(6),
    };
    assert_eq!(parse::removal(&asked), Ok(removal));
    let counting = |line: &'static str| {
        let mut buffer = EMPTY;
        let asked = parse::asked(Words(line.as_bytes()), &mut buffer).expect("flags");
        let Counting { direction, delta, cas, create, touch, version, .. } =
            parse::counting(&asked)?;
        Ok((direction, delta, cas, create, touch, version))
    };
    let (up, down) = (Direction::Increment, Direction::Decrement);
    assert_eq!(counting("k"), Ok((up, 1, None, None, None, None)));
    assert_eq!(counting("k M+ C0"), Ok((up, 1, None, None, None, None)));
    assert_eq!(counting("k MI J8"), Ok((up, 1, None, None, None, None)));
    assert_eq!(counting("k MD D5 C3 E2"), Ok((down, 5, Some(3), None, None, Some(2))));
    let (five, nine) = (Exptime(5), Exptime(9));
    assert_eq!(counting("k M- N9 J7"), Ok((down, 1, None, Some((7, nine)), None, None)));
    assert_eq!(counting("k N9 T5"), Ok((up, 1, None, Some((0, five)), Some(five), None)));
    assert_eq!(counting("k T5 N9"), Ok((up, 1, None, Some((0, nine)), Some(five), None)));
    assert_eq!(counting("k MX"), Err(MetaError::BadArithmeticMode));
    for error in [MetaError::BadToken, MetaError::DuplicateFlag, MetaError::InvalidFlag] {
        assert_eq!(parse::arithmetic_error(error), MetaError::InvalidOrDuplicateFlag);
    }
}

#[test]
fn keys_to_tell_of() {
    let told = |line: &'static str| {
        let mut buffer = EMPTY;
        parse::told(Words(line.as_bytes()), &mut buffer).map(|key| key.bytes().to_vec())
    };
    assert_eq!(told("foo"), Ok(b"foo".to_vec()));
    assert_eq!(told("Zm9v b"), Ok(b"foo".to_vec()));
    assert_eq!(told("Zm9 b"), Err(MetaError::BadKey));
    for bad in ["", "a b c", "a c"] {
        assert_eq!(told(bad), Err(MetaError::BadFormat), "{bad}");
    }
}

const FOUND: Hit = Hit {
    with_value: true,
    value_len: 3,
    flags: 7,
    cas: 99,
    fetched: true,
    idle_s: 4,
    ttl: None,
    ttl_vivified: None,
    ttl_touched: None,
    won: false,
    stale: false,
    sent: false,
    key_is_binary: false,
};

fn shown(line: &str, hit: &Hit) -> String {
    let (mut buffer, mut out) = (EMPTY, Vec::new());
    let asked = parse::asked(Words(line.as_bytes()), &mut buffer).expect("flags");
    encode::hit(&mut out, &Echo::of(&asked), hit);
    String::from_utf8(out).expect("text")
}

#[test]
fn flags_come_back_in_the_order_of_the_request() {
    assert_eq!(shown("k", &Hit { with_value: false, ..FOUND }), "HD\r\n");
    assert_eq!(shown("k t Oab l s k f h c v", &FOUND), "VA 3 t-1 Oab l4 s3 kk f7 h1 c99\r\n");
    let touched = Hit { ttl: Some(10), ttl_touched: Some(Some(60)), ..FOUND };
    assert_eq!(shown("k t T60 v", &touched), "VA 3 t10\r\n");
    assert_eq!(shown("k T60 t v", &touched), "VA 3 t60\r\n");
    let made = Hit { ttl_vivified: Some(Some(30)), value_len: 0, won: true, ..FOUND };
    assert_eq!(shown("k t N30", &made), "VA 0 t-1 W\r\n");
    assert_eq!(shown("k N30 t", &made), "VA 0 t30 W\r\n");
    let stale = Hit { stale: true, sent: true, ..FOUND };
    assert_eq!(shown("k", &stale), "VA 3 Z X\r\n");
    assert_eq!(shown("k", &Hit { sent: false, won: true, ..stale }), "VA 3 X W\r\n");
}

#[test]
fn keys_are_spelled_so_that_they_fit_a_line() {
    let binary = Hit { key_is_binary: true, ..FOUND };
    assert_eq!(shown("foo k s", &binary), "VA 3 kZm9v b s3\r\n");
    assert_eq!(shown("Zm9v b k", &FOUND), "VA 3 kfoo\r\n");
    assert_eq!(shown("DQo= k b", &FOUND), "VA 3 kDQo= b\r\n");
}

#[test]
fn quiet_commands_hide_the_commonest_answer() {
    let answered = |line: &str, outcome| {
        let (mut buffer, mut out) = (EMPTY, Vec::new());
        let asked = parse::asked(Words(line.as_bytes()), &mut buffer).expect("flags");
        let echo = Echo::of(&asked);
        match outcome {
            None => encode::miss(&mut out, &echo),
            Some(Outcome::Deleted) => encode::outcome(&mut out, &echo, Outcome::Deleted),
            Some(outcome) => encode::stored(&mut out, &echo, outcome, 5, 6),
        }
        String::from_utf8(out).expect("text")
    };
    assert_eq!(answered("k k O1", None), "EN kk O1\r\n");
    assert_eq!(answered("k q k", None), "");
    assert_eq!(answered("k", Some(Outcome::Deleted)), "HD\r\n");
    assert_eq!(answered("k q", Some(Outcome::Deleted)), "");
    assert_eq!(answered("k s c", Some(Outcome::Stored)), "HD s6 c5\r\n");
    assert_eq!(answered("k q s", Some(Outcome::Stored)), "");
    assert_eq!(answered("k q s", Some(Outcome::NotStored)), "NS s6\r\n");
    assert_eq!(answered("k q", Some(Outcome::Exists)), "EX\r\n");
    let too_large = "SERVER_ERROR object too large for cache\r\n";
    assert_eq!(answered("k q", Some(Outcome::TooLarge)), too_large);
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut buffer = EMPTY;
        let words = Words(&bytes);
        if let Ok(asked) = parse::asked(words, &mut buffer) {
            let _ = (parse::lease(&asked), parse::removal(&asked), parse::counting(&asked));
            let mut out = Vec::new();
            encode::miss(&mut out, &Echo::of(&asked));
        }
        let _ = parse::told(words, &mut buffer);
        match parse::set(words, &mut buffer) {
            Ok((_, _, value_len)) => prop_assert!(value_len <= SWALLOW_LEN_MAX),
            Err(rejected) => prop_assert!(rejected.after != After::NextLine),
        }
    }

    #[test]
    fn numbers_come_back(
        exptime: i64, vivify: i64, recache: i64, compare: u64, version: u64, client_flags: u32,
        initial: u64, delta: u64,
    ) {
        let times = format!("T{exptime} N{vivify} R{recache}");
        let line = format!(
            "k {times} C{compare} E{version} F{client_flags} J{initial} D{delta}"
        );
        let mut buffer = EMPTY;
        let flags = parse::asked(Words(line.as_bytes()), &mut buffer).expect("flags").flags;
        prop_assert_eq!(flags.exptime, Some(Exptime(exptime)));
        prop_assert_eq!(flags.vivify, Some(Exptime(vivify)));
        prop_assert_eq!(flags.recache, Some(Exptime(recache)));
        prop_assert_eq!((flags.compare, flags.version), (Some(compare), Some(version)));
        prop_assert_eq!((flags.client_flags, flags.initial), (client_flags, initial));
        prop_assert_eq!(flags.delta, Some(delta));
    }

    #[test]
    fn replies_are_one_line(
        name in proptest::collection::vec(any::<u8>(), 1..=187), binary: bool,
    ) {
        let mut spelled = Vec::new();
        super::base64::encode(&mut spelled, &name);
        spelled.extend_from_slice(b" b k s c");
        let (mut buffer, mut out) = (EMPTY, Vec::new());
        if let Ok(asked) = parse::asked(Words(&spelled), &mut buffer) {
            let hit = Hit { key_is_binary: binary, ..FOUND };
            encode::hit(&mut out, &Echo::of(&asked), &hit);
            let ends = out.iter().filter(|byte| **byte == b'\n').count();
            prop_assert_eq!(ends, 1);
            prop_assert!(out.ends_with(b" s3 c99\r\n"));
        }
    }
}
