//! Unit tests of the command line and its meaning.

use std::ffi::OsString;

use super::*;
use crate::cli::parse;

fn read(words: &str) -> Result<Config, Refusal> {
    Config::from_flags(parse(words.split_whitespace().map(OsString::from)).unwrap())
}

fn refusal(words: &str) -> (u8, String) {
    let refusal = read(words).unwrap_err();
    (refusal.status, refusal.text)
}

#[test]
fn an_existing_sysconfig_line_is_honoured() {
    let config = read("-p 11311 -u memcache -m 128 -c 2048 -l 0.0.0.0").unwrap();
    assert_eq!(config.port, Port::Number(11311));
    assert_eq!(config.user.as_deref(), Some("memcache"));
    assert_eq!(config.memory_limit, 128 << 20);
    assert_eq!(config.connections_max, 2048);
    assert_eq!(config.listen[0].host, "0.0.0.0");
    assert_eq!(config.guard, GuardKind::Xdp);
}

#[test]
fn refusals_have_the_texts_and_statuses_of_memcached() {
    for (words, status, text) in [
        ("-p 70000", 64, "ERROR: Invalid port number 70000."),
        ("-p x", 64, "ERROR: Invalid port number x."),
        ("-c 0", 1, "Maximum connections must be greater than 0"),
        ("-c -1", 1, "Maximum connections must be greater than 0"),
        ("-t 0", 1, "Number of threads must be greater than 0"),
        ("-f 1", 1, "Factor must be greater than 1"),
        ("-f nan", 1, "Factor must be greater than 1"),
        ("-n 0", 1, "Chunk size must be greater than 0"),
        ("-R 0", 1, "Number of requests per event must be greater than 0"),
        ("--read-timeout 0", 1, "--read-timeout must be a number of seconds greater than 0"),
        ("--buffer-limit x", 1, "--buffer-limit must be a number of megabytes greater than 0"),
        ("-I 10", 64, "Item max size cannot be less than 1024 bytes."),
        ("-I 2g", 64, "Item max size cannot be less than 1024 bytes."),
        ("-I 33m", 64, "Cannot set item size limit higher than 1/2 of memory max."),
        ("-m 1", 64, "Cannot set item size limit higher than 1/2 of memory max."),
        ("-I 1100m -m 9000", 64, "Cannot set item size limit higher than a gigabyte."),
        ("-o zork=1", 1, "Illegal suboption \"zork=1\""),
        ("-o maxconns_fast,zork", 1, "Illegal suboption \"zork\""),
        ("-o idle_timeout", 1, "Missing numeric argument for idle_timeout"),
    ] {
        assert_eq!(refusal(words), (status, text.to_owned()), "{words}");
    }
}

#[test]
fn what_is_not_served_is_refused_by_name() {
    for words in [
        "-e /x",
        "-Z",
        "-L",
        "-D :",
        "-o ext_path=/x:1G",
        "-o no_lru_crawler",
        "-l mtls:127.0.0.1",
        "-l proto[binary]:127.0.0.1:5",
    ] {
        assert!(refusal(words).1.contains("not served"), "{words}: {}", refusal(words).1);
    }
    assert_eq!(read("-U 0 -B auto").unwrap(), Config::default());
    let udp = |words: &str| read(words).map(|config| (config.port, config.udp_port)).unwrap();
    assert_eq!(udp("-U 5"), (Port::Number(5), 5));
    assert_eq!(udp("-U 5 -p 6"), (Port::Number(6), 5));
    assert_eq!(udp("-p 0 -U 5"), (Port::Off, 5));
    assert!(read("-U 5 --udp-writes").unwrap().udp_writes);
    for (words, part) in [
        ("-U x", "Invalid UDP port number x."),
        ("-U -1", "Invalid UDP port number -1."),
        ("-U 65536", "Invalid UDP port number 65536."),
        ("-U 5 -s /x", "there is no network"),
        ("--udp-writes", "needs -U"),
    ] {
        let (status, text) = refusal(words);
        assert!(status == EXIT_USAGE && text.contains(part), "{words}: {text}");
    }
    assert_eq!(read("-B ascii").unwrap().binding, Binding::Ascii);
    assert_eq!(read("--protocol=binary").unwrap().binding, Binding::Binary);
}

#[test]
fn authentication_narrows_the_protocol_and_has_no_udp() {
    let config = read("-Y /x").unwrap();
    assert_eq!(
        (config.binding, config.passwords()),
        (Binding::Ascii, Some(("-Y", Path::new("/x"))))
    );
    let config = read("-S --sasl-pwdb /y -B binary").unwrap();
    assert_eq!(
        (config.binding, config.passwords()),
        (Binding::Binary, Some(("-S", Path::new("/y"))))
    );
    assert_eq!(read("").unwrap().passwords(), None);
    for (words, part) in [
        ("-S --sasl-pwdb /y -B ascii", "cannot allow the ASCII protocol while using SASL"),
        ("-S --sasl-pwdb /y -B auto", "cannot allow the ASCII protocol while using SASL"),
        ("-Y /x -B binary", "cannot allow the BINARY protocol"),
        ("-Y /x -U 5", "Cannot enable UDP"),
        ("-S --sasl-pwdb /y -U 5", "Cannot enable UDP"),
        ("-S -Y /x", "leave one of them out"),
        ("-S", "--sasl-pwdb or MEMCACHED_SASL_PWDB"),
        ("--sasl-pwdb /y", "needs -S"),
    ] {
        let (status, text) = refusal(words);
        assert!(status == EXIT_USAGE && text.contains(part), "{words}: {text}");
    }
}

#[test]
fn listen_words() {
    let config = read("-l 127.0.0.1,[::1]:5;*:6 -l ::1 -l notls:localhost:7").unwrap();
    let words: Vec<_> =
        config.listen.iter().map(|address| (address.host.as_str(), address.port)).collect();
    assert_eq!(
        words,
        [
            ("127.0.0.1", None),
            ("::1", Some(5)),
            ("*", Some(6)),
            ("::1", None),
            ("localhost", Some(7))
        ]
    );
    for bad in ["-l :11", "-l 127.0.0.1:0", "-l [::1", "-l [::1]x", "-l a,,b", "-l 1.2.3.4:70000"] {
        assert_eq!(refusal(bad).0, EXIT_USAGE, "{bad}");
    }
}

#[test]
fn sizes_take_k_and_m() {
    assert_eq!(read("-I 2k").unwrap().item_size_max, 2048);
    assert_eq!(read("-I 2M").unwrap().item_size_max, 2 << 20);
    assert_eq!(read("-I 4096").unwrap().item_size_max, 4096);
}

#[test]
fn allowing_everybody_needs_a_second_flag() {
    for all in ["0.0.0.0/0", "::/0", "198.18.0.0/24,::/0"] {
        let (status, text) = refusal(&format!("--allow {all}"));
        assert_eq!(status, EXIT_USAGE);
        assert!(text.contains("--allow-any"), "{text}");
        read(&format!("--allow {all} --allow-any")).unwrap();
    }
    let (_, text) = refusal("--allow 198.18.0.7/24");
    assert!(text.contains("198.18.0.0/24"), "{text}");
}

#[test]
fn settled_options_say_why_they_change_nothing() {
    let config = read("-o modern,hashpower=20,slab_automove=1 -X -W").unwrap();
    assert_eq!(config.remarks.len(), 5);
    assert!(config.remarks.iter().all(|remark| remark.contains("changes nothing")));
}

#[test]
fn files_have_the_port_in_their_names_unless_it_is_the_usual_one() {
    let config = Config::default();
    let state = |port| config.state_path(port, true).unwrap();
    assert_eq!(state(Some(11211)), PathBuf::from("/var/lib/sessiond/overlay.json"));
    assert_eq!(state(Some(5)), PathBuf::from("/var/lib/sessiond/overlay-5.json"));
    let control = |port| config.control_path(port, true).unwrap();
    assert_eq!(control(None), PathBuf::from("/run/sessiond/control.sock"));
    assert_eq!(control(Some(5)), PathBuf::from("/run/sessiond/control-5.sock"));
    let named = read("--state /x --control /y").unwrap();
    assert_eq!(named.state_path(Some(5), false), Some(PathBuf::from("/x")));
    assert_eq!(named.control_path(Some(5), false), Some(PathBuf::from("/y")));
}

#[test]
fn nothing_to_listen_on_is_refused() {
    assert_eq!(refusal("-p 0").0, EXIT_USAGE);
    read("-p 0 -s /run/x").unwrap();
    assert_eq!(read("-p -1").unwrap().port, Port::Any);
}
