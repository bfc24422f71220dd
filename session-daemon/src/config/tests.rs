//! Unit tests of the command line and its meaning.

use std::ffi::OsString;

use super::*;
use crate::cli::parse;
use crate::server::tls::Verify;

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
        ("--io poll", 64, "--io=poll: should be one of auto, uring, or tokio"),
        ("-o zork=1", 1, "Illegal suboption \"zork=1\""),
        ("-o maxconns_fast,zork", 1, "Illegal suboption \"zork\""),
        ("-o idle_timeout", 1, "Missing numeric argument for idle_timeout"),
    ] {
        assert_eq!(refusal(words), (status, text.to_owned()), "{words}");
    }
}

#[test]
fn what_is_protected_has_a_share_of_the_memory() {
    let protected = |words: &str| {
        let config = read(words).unwrap();
        let prefixes: Vec<_> = config.protect.iter().map(|one| one.prefix.clone()).collect();
        (prefixes.join(" "), config.protected_percent())
    };
    assert_eq!(protected("--protect memc.sess.key."), ("memc.sess.key.".to_owned(), 50));
    assert_eq!(protected("--protect a=30 --protect=b:=40%"), ("a b:".to_owned(), 70));
    assert_eq!(protected("--protect k=v"), ("k=v".to_owned(), 50));
    assert_eq!(protected("-m 64"), (String::new(), 0));
    for (words, text) in [
        ("--protect =30", "--protect==30: no key begins so; write 1 to 250 bytes without blanks"),
        ("--protect a=0", "--protect=a=0: the share is a number from 1 to 90, percent of -m"),
        ("--protect a=91", "--protect=a=91: the share is a number from 1 to 90, percent of -m"),
        (
            "--protect a --protect b",
            "--protect: the shares add up to 100 percent of -m; name shares that leave 10",
        ),
        ("-M --protect a", "--protect: with -M nothing is evicted; leave one of the two out"),
    ] {
        assert_eq!(refusal(words), (64, text.to_owned()), "{words}");
    }
}

#[test]
fn what_is_not_served_is_refused_by_name() {
    for words in ["-o ext_path=/x:1G", "-o proxy_config=/x", "-l proto[binary]:127.0.0.1:5"] {
        assert!(refusal(words).1.contains("not served"), "{words}: {}", refusal(words).1);
    }
    assert_eq!(read("-U 0 -B auto").unwrap(), Config::default());
    let udp = |words: &str| read(words).map(|config| (config.port, config.udp_port)).unwrap();
    assert_eq!(udp("-U 5"), (Port::Number(5), 5));
    assert_eq!(udp("-U 5 -p 6"), (Port::Number(6), 5));
    let (port, any) = udp("-U -1");
    assert!(port == Port::Any && any != 0, "{port:?} {any}");
    assert_eq!(udp("-U -1 -p 6").0, Port::Number(6));
    assert_eq!(udp("-p 0 -U 5"), (Port::Off, 5));
    assert!(read("-U 5 --udp-writes").unwrap().udp_writes);
    for (words, part) in [
        ("-U x", "Invalid UDP port number x."),
        ("-U -2", "Invalid UDP port number -2."),
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
fn tls_has_its_words() {
    let files = "-Z -o ssl_chain_cert=/c,ssl_key=/k";
    let config =
        read(&format!("{files},ssl_ca_cert=/a,ssl_verify_mode=2,ssl_min_version=3")).unwrap();
    assert_eq!(config.tls.default_for_listeners(), Some(Verify::Require));
    assert!(config.tls.terms.tls13_only && !config.tls.terms.session_cache);
    let words = format!(
        "{files},ssl_ca_cert=/a,ssl_wbuf_size=4,ssl_session_cache -l notls:a,btls:b,mtls:c:5,d"
    );
    let config = read(&words).unwrap();
    let tls: Vec<_> = config.listen.iter().map(|address| config.tls.of(address.tls)).collect();
    assert_eq!(tls, [None, Some(Verify::None), Some(Verify::Require), Some(Verify::None)]);
    assert_eq!((config.tls.terms.wbuf_len, config.tls.terms.session_cache), (4096, true));
    for (words, part) in [
        ("-Z".to_owned(), "ssl_chain_cert=FILE,ssl_key=FILE"),
        (format!("{files},ssl_verify_mode=1"), "ssl_ca_cert"),
        (format!("{files} -l mtls:a"), "ssl_ca_cert"),
        (format!("{files} -s /x"), "needs a TCP port"),
        (format!("{files} -p 0 -U 5"), "needs a TCP port"),
        ("-o ssl_key=/k".to_owned(), "needs -Z"),
        ("-l btls:a".to_owned(), "need -Z"),
        (format!("{files},ssl_ciphers=ALL"), "ssl_ciphers"),
        (format!("{files},ssl_kernel_tls"), "ssl_kernel_tls"),
        (format!("{files},ssl_min_version=1"), "TLS 1.0 and 1.1"),
        (format!("{files},ssl_verify_mode=4"), "Invalid ssl_verify_mode"),
        (format!("{files},ssl_keyformat=3"), "ssl_keyformat"),
        ("-Z -o ssl_key=".to_owned(), "Missing ssl_key argument"),
    ] {
        let (_, text) = refusal(&words);
        assert!(text.contains(part), "{words}: {text}");
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
    let words = "modern,no_hashexpand,hashpower=20,hash_algorithm=xxh3,slab_reassign,slab_automove,\
        slab_automove=2,no_slab_automove,slab_automove_ratio=0.5,slab_automove_window=30,\
        slab_automove_freeratio=0.1,slab_sizes=100-200,slab_chunk_max=512,no_chunked_items,\
        tail_repair_time=10,lru_crawler,lru_crawler_sleep=1,lru_crawler_tocrawl=5,lru_maintainer,\
        hot_lru_pct=10,warm_lru_pct=20,hot_max_factor=0.5,warm_max_factor=3,temporary_ttl=5,\
        worker_logbuf_size=64,read_buf_mem_limit=64,resp_obj_mem_limit=64,inline_ascii_resp,\
        no_inline_ascii_resp";
    let config = read(&format!("-o {words} -L -N 2")).unwrap();
    assert_eq!(config.remarks.len(), words.split(',').count() + 2);
    assert!(config.remarks.iter().all(|remark| remark.contains("changes nothing")));
    assert_eq!(config.tuning.slab_automove_ratio.to_string(), "0.50");
    assert_eq!((config.tuning.slab_automove, config.tuning.temporary_ttl_s), (0, Some(5)));
    for word in ["no_slab_reassign", "no_lru_crawler", "no_lru_maintainer", "no_modern"] {
        let config = read(&format!("-o {word}")).unwrap();
        assert!(config.remarks[0].contains("refuse"), "{word}");
        assert_ne!(config.tuning, Tuning::default(), "{word}");
    }
}

#[test]
fn options_with_meaning_are_taken() {
    let words = "-X -W -D / -o track_sizes,watcher_logbuf_size=2,relaxed_privileges,sock_cookie_id=7 \
        -o drop_privileges";
    let config = read(&format!("{words} --admin=control")).unwrap();
    assert_eq!(config.remarks, Vec::<String>::new());
    assert!(!config.dumps && !config.watch && config.admin_confined && config.debug_commands);
    assert!(config.tuning.drop_privileges);
    let open = read("-o drop_privileges,no_drop_privileges").unwrap();
    assert!(!open.tuning.drop_privileges && open.files_open && !config.files_open);
    let Tuning { track_sizes, detail, prefix_delimiter, watcher_logbuf_len, .. } = config.tuning;
    assert!(track_sizes && detail);
    assert_eq!((prefix_delimiter, watcher_logbuf_len), (b'/', 2048));
    assert_eq!(config.socket_mark, Some(7));
    assert_eq!(read("-o ,,").unwrap(), Config::default());
}

#[test]
fn bad_values_of_options_are_refused() {
    for word in [
        "hashpower=11",
        "hashpower=33",
        "hashpower",
        "hash_algorithm=md5",
        "slab_automove=3",
        "slab_automove_ratio=0",
        "slab_automove_ratio=1.5",
        "slab_automove_window=2",
        "tail_repair_time=9",
        "lru_crawler_sleep=1000001",
        "hot_lru_pct=80",
        "hot_lru_pct=70",
        "hot_max_factor=0",
        "warm_max_factor=-1",
        "no_lru_maintainer,temporary_ttl=5",
        "watcher_logbuf_size=0",
        "lru_crawler_tocrawl=-1",
        "ext_item_age=5",
        "ssl_ciphers=ALL",
    ] {
        assert_eq!(refusal(&format!("-o {word}")).0, 1, "{word}");
    }
    assert_eq!(refusal("-N 5").0, EXIT_USAGE);
    assert_eq!(refusal("-D ab").0, EXIT_USAGE);
    assert_eq!(refusal("--admin=me").0, EXIT_USAGE);
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
fn the_kernel_plane_says_what_it_needs() {
    let plane = |words: &str| read(words).unwrap().kernel_plane;
    assert_eq!(plane("-U 11211"), None);
    assert_eq!(plane("-U 11211 --kernel-plane"), Some(KernelPlane::Ends));
    assert_eq!(plane("-U 11211 --kernel-plane=persist"), Some(KernelPlane::Persists));
    for (words, needle) in [
        ("--kernel-plane", "needs -U"),
        ("-U 11211 --kernel-plane=for-ever", "--kernel-plane=persist"),
        ("-U 11211 --kernel-plane --guard=user", "needs --guard=xdp"),
        ("-U 11211 --kernel-plane --guard=off", "needs --guard=xdp"),
        ("-U 11211 --kernel-plane -e /dev/shm/store", "leave -e out"),
        ("-U 11211 --kernel-plane -B binary", "leave -B binary out"),
        ("-U 11211 --kernel-plane -o relaxed_privileges", "debugtime"),
    ] {
        let (status, text) = refusal(words);
        assert_eq!(status, EXIT_USAGE, "{words}");
        assert!(text.contains(needle), "{words}: {text}");
    }
}

#[test]
fn nothing_to_listen_on_is_refused() {
    assert_eq!(refusal("-p 0").0, EXIT_USAGE);
    read("-p 0 -s /run/x").unwrap();
    assert_eq!(read("-p -1").unwrap().port, Port::Any);
}
