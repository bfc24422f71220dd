//! What is read from statistics, and what is shown of them.
#![forbid(unsafe_code)]

use std::time::Instant;

use serde_json::json;

use super::*;
use crate::control::ctl::top::sample::{Class, classes, clients};

#[test]
fn classes_come_from_two_topics() {
    let items = "STAT items:3:number 9\r\nSTAT items:3:mem_requested 800\r\n\
                 STAT items:3:evicted 4\r\nSTAT items:3:evicted_nonzero 1\r\nEND\r\n";
    let slabs = "STAT 3:chunk_size 96\r\nSTAT 3:total_pages 1\r\nSTAT active_slabs 1\r\nEND\r\n";
    let class =
        Class { chunk_size: 96, items: 9, bytes: 800, pages: 1, evicted: 4, evicted_nonzero: 1 };
    assert_eq!(classes(items, slabs), [(3, class)].into());
}

#[test]
fn connections_are_counted_by_address_without_the_listening_ones() {
    let text = "STAT 26:addr tcp:0.0.0.0:11211\r\nSTAT 26:state conn_listening\r\n\
                STAT 30:addr tcp:198.18.0.11:40000\r\nSTAT 30:state conn_read\r\n\
                STAT 31:addr tcp:198.18.0.11:40001\r\nSTAT 31:state conn_read\r\n\
                STAT 32:addr tcp6:[2001:db8::11]:40000\r\nSTAT 32:state conn_read\r\nEND\r\n";
    let expected = [("198.18.0.11".to_owned(), 2), ("2001:db8::11".to_owned(), 1)];
    assert_eq!(clients(text), expected.into());
}

#[test]
fn a_frame_shows_rates_of_a_second() {
    let sample = |gets: u64, dropped: u64, at| Sample {
        at,
        status: json!({
            "version": "0.1.0", "enforced": "xdp", "uptime_s": 7,
            "serving": {"tcp": ["198.18.0.1:11211"]},
            "list": {"entries": 5},
            "guard": {
                "complete": true,
                "reasons": [{"reason": "not_listed", "dropped": true, "packets": dropped}],
                "counts": [{"prefix": "198.18.0.11/32", "name": "web1"}],
                "top_sources": [{"source": "198.18.0.66", "packets": 41}],
                "drops": [{"interface": "eth0", "reason": "not_listed", "packets": 40}],
            },
            "statistics": {
                "cmd_get": gets.to_string(), "get_hits": gets.to_string(),
                "turns_below_us:1": "0", "turns_below_us:2": gets.to_string(),
                "turns_below_us:4": (gets / 40).to_string(),
            },
        }),
        classes: [(3, Class { items: 9, ..Class::default() })].into(),
        clients: [("198.18.0.11".to_owned(), 4)].into(),
    };
    let start = Instant::now();
    let before = sample(100, 10, start);
    let now = sample(300, 50, start + Duration::from_secs(2));
    let mut terminal = Terminal::new(TestBackend::new(FRAME.0, FRAME.1)).unwrap();
    terminal.draw(|frame| draw::screen(frame, &before, &now)).unwrap();
    let text = text(terminal.backend().buffer());
    for part in [
        "198.18.0.1:11211  guarded  list 5  up 7 s",
        "gets        100/s",
        "hit ratio 100.0 % now",
        "half below 2 us, 99 of 100 below 4 us",
        "dropped  not_listed         50             20",
        "198.18.0.11",
        "web1",
        "198.18.0.66",
        "lately         41",
        "not_listed     40",
    ] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
    // A terminal that is far too small is drawn, somehow.
    let mut small = Terminal::new(TestBackend::new(8, 3)).unwrap();
    small.draw(|frame| draw::screen(frame, &before, &now)).unwrap();
}

#[test]
fn sizes_have_units() {
    for (bytes, text) in [(0.0, "0 B"), (1023.0, "1023 B"), (1536.0, "1.5 KB"), (3e9, "2.8 GB")] {
        assert_eq!(draw::size(bytes), text);
    }
}
