//! `sessionctl locks` with what PHP's two handlers write.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use session_tests::sessiond::Setup;

const SESSION: &str = "0123456789abcdefghijklmnop";

#[test]
fn locks_of_both_handlers_are_found_and_others_are_not() {
    let setup = Setup::loopback().unwrap();
    let daemon = setup.start(None).unwrap();
    assert!(daemon.ctl(&["locks"]).unwrap().contains("no session is locked for more than 5 s"));
    let mut client = daemon.client();
    // 600 items more, so that the walk takes several pieces.
    for n in 0..600 {
        client.set(&format!("memc.sess.key.{SESSION}{n}"), b"data").unwrap();
    }
    for (key, exptime, value) in [
        // Taken ten seconds ago with an expiry of 15, just now, given back, without an end.
        (format!("{SESSION}.lock"), 5, "1"),
        (format!("{SESSION}x.lock"), 15, "1"),
        (format!("{SESSION}y.lock"), 5, "0"),
        (format!("memc.sess.key.lock.{SESSION}"), 0, "1"),
        ("door.lock".to_owned(), 5, "1"),
    ] {
        let answer = client.command(&format!("set {key} 0 {exptime} 1\r\n{value}")).unwrap();
        assert_eq!(answer, "STORED");
    }
    let answer = daemon.ctl_json(&["locks"]).unwrap();
    let locks = answer["locks"].as_array().unwrap();
    let keys: Vec<&str> = locks.iter().map(|lock| lock["key"].as_str().unwrap()).collect();
    assert_eq!(keys, [format!("memc.sess.key.lock.{SESSION}"), format!("{SESSION}.lock")]);
    assert!(locks[0]["age_s"].is_null() && locks[1]["age_s"].as_u64() >= Some(10), "{answer}");
    let text = daemon.ctl(&["locks", "--longer", "1s", "--memcache-expiry", "60s"]).unwrap();
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(text.contains("never ends by itself"), "{text}");
}
