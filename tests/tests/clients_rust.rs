//! Clients from crates.io over the loopback: what each of them can ask.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::collections::HashMap;

use async_memcached::{AsciiProtocol, MetaProtocol};
use memcache::exp::{GetStatus, MetaClient, MutationStatus};
use session_tests::sessiond::Setup;

/// Values that the crates send and expect back: the usual, none, and a large one.
fn values() -> [Vec<u8>; 3] {
    [b"value".to_vec(), Vec::new(), (0..=255).cycle().take(900_000).collect()]
}

#[test]
fn memcache_in_text_and_binary() {
    let setup = Setup::loopback().unwrap();
    let _daemon = setup.start(None).unwrap();
    for protocol in ["?protocol=ascii", ""] {
        let client =
            memcache::connect(format!("memcache://127.0.0.1:{}{protocol}", setup.port())).unwrap();
        client.flush().unwrap();
        for value in values() {
            client.set("a", &value[..], 0).unwrap();
            assert_eq!(client.get::<Vec<u8>>("a").unwrap().unwrap(), value);
        }
        assert_eq!(client.get::<String>("none").unwrap(), None);
        assert!(client.version().unwrap()[0].1.starts_with("1.6.45"));
        client.set("b", "b", 100).unwrap();
        client.replace("b", "3", 100).unwrap();
        client.append("b", "4").unwrap();
        client.prepend("b", "2").unwrap();
        let both: HashMap<String, (Vec<u8>, u32, Option<u64>)> =
            client.gets(&["a", "none", "b"]).unwrap();
        assert_eq!((both.len(), &both["b"].0[..]), (2, &b"234"[..]));
        let cas = both["b"].2.unwrap();
        assert!(client.cas("b", "5", 0, cas).unwrap());
        assert!(!client.cas("b", "6", 0, cas).unwrap());
        assert_eq!(client.increment("b", 10).unwrap(), 15);
        assert_eq!(client.decrement("b", 20).unwrap(), 0);
        assert!(client.touch("b", 100).unwrap());
        assert!(!client.touch("none", 100).unwrap());
        assert!(client.delete("b").unwrap());
        assert!(!client.delete("b").unwrap());
        assert!(client.set("k".repeat(251).as_str(), "x", 0).is_err());
    }
}

#[test]
fn memcache_in_meta() {
    let setup = Setup::loopback().unwrap();
    let _daemon = setup.start(None).unwrap();
    let client = MetaClient::connect(format!("127.0.0.1:{}", setup.port())).unwrap();
    client.noop().unwrap();
    for value in values() {
        assert!(client.set("a", &value).send().unwrap().applied());
        assert_eq!(client.get("a").send().unwrap().value.unwrap(), value);
    }
    assert_eq!(client.get("none").send().unwrap().status, GetStatus::Miss);
    let stored = client.set("b", "1").return_cas().send().unwrap();
    let cas = stored.cas.unwrap();
    assert!(client.set("b", "2").compare_cas(cas).send().unwrap().applied());
    let again = client.set("b", "3").compare_cas(cas).send().unwrap();
    assert_eq!(again.status, MutationStatus::CasMismatch);
    assert_eq!(client.set("b", "x").add().send().unwrap().status, MutationStatus::AlreadyExists);
    assert!(client.set("b", "!").append().send().unwrap().applied());
    assert_eq!(client.get("b").send().unwrap().value.unwrap(), b"2!");
    // A key that no line can hold goes in base64.
    assert!(client.set(b"a\0 b", "x").send().unwrap().applied());
    assert_eq!(client.get(b"a\0 b").send().unwrap().value.unwrap(), b"x");
    assert!(client.delete("b").send().unwrap().applied());
    assert_eq!(client.delete("b").send().unwrap().status, MutationStatus::NotFound);
}

#[test]
fn async_memcached() {
    let setup = Setup::loopback().unwrap();
    let _daemon = setup.start(None).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let server = format!("tcp://127.0.0.1:{}", setup.port());
        let mut client = async_memcached::Client::new(server).await.unwrap();
        text(&mut client).await;
        meta(&mut client).await;
    });
}

async fn text(client: &mut async_memcached::Client) {
    client.flush_all().await.unwrap();
    assert_eq!(client.version().await.unwrap().trim_end(), "1.6.45");
    for value in values() {
        client.set("a", &value[..], None, Some(7)).await.unwrap();
        let got = client.get("a").await.unwrap().unwrap();
        assert_eq!((got.data.unwrap_or_default(), got.flags), (value, Some(7)));
    }
    assert!(client.get("none").await.unwrap().is_none());
    assert!(client.add("a", "x", None, None).await.is_err());
    client.set("n", 5u64, Some(100), None).await.unwrap();
    assert_eq!(client.increment("n", 3).await.unwrap(), 8);
    client.increment_no_reply("n", 1).await.unwrap();
    client.decrement_no_reply("n", 2).await.unwrap();
    assert_eq!(client.decrement("n", 1).await.unwrap(), 6);
    let keys: Vec<String> = (0..200).map(|idx| format!("many{idx}")).collect();
    let many: Vec<(&str, &str)> = keys.iter().map(|key| (key.as_str(), "v")).collect();
    let stored = client.set_multi(&many, None, None).await.unwrap();
    assert!(stored.len() == 200 && stored.values().all(Result::is_ok));
    assert_eq!(client.get_multi(&keys).await.unwrap().len(), 200);
    client.delete_multi_no_reply(&keys).await.unwrap();
    client.delete("n").await.unwrap();
    assert!(client.delete("n").await.is_err());
    assert_eq!(client.stats().await.unwrap()["curr_items"], "1");
}

async fn meta(client: &mut async_memcached::Client) {
    for value in values() {
        client.meta_set("m", &value[..], false, Some(b"9"), Some(&["T100", "F3"])).await.unwrap();
        let got = client.meta_get("m", false, None, Some(&["v", "f", "t", "k"])).await;
        let got = got.unwrap().unwrap();
        assert_eq!((got.data.unwrap_or_default(), got.flags), (value, Some(3)));
    }
    assert!(client.meta_get("none", true, None, Some(&["v"])).await.unwrap().is_none());
    client.meta_increment("c", false, None, Some(2), Some(&["N0", "J5"])).await.unwrap();
    let counted = client.meta_increment("c", false, None, Some(2), Some(&["v"])).await.unwrap();
    assert_eq!(counted.unwrap().data.unwrap(), b"7");
    let items: Vec<(String, &str)> = (0..100).map(|idx| (format!("mm{idx}"), "v")).collect();
    assert!(client.meta_set_multi(&items, None).await.unwrap().is_empty());
    let keys: Vec<&String> = items.iter().map(|(key, _)| key).chain([&items[0].0]).collect();
    assert_eq!(client.meta_get_multi(&keys, Some(&["v", "k"])).await.unwrap().len(), 101);
    client.meta_delete("m", true, None, None).await.unwrap();
    assert!(client.meta_get("m", false, None, Some(&["v"])).await.unwrap().is_none());
}
