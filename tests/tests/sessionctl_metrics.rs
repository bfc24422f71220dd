//! The metrics, scraped over TCP and a unix socket and read by Prometheus' own parser.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use session_tests::memcached::free_port;
use session_tests::sessiond::Setup;
use session_tests::wait;

fn exchange(mut stream: impl Read + Write, request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn get(port: u16, request: &str) -> (String, String) {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let answer = exchange(stream, request);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

const GET: &str = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Reads a page with the parser of Prometheus' Python client: samples as `name{labels}` to value.
const PARSER: &str = "
import json, sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
samples = {}
for family in parse(sys.stdin.read()):
    for sample in family.samples:
        labels = ','.join(f'{k}={v}' for k, v in sorted(sample.labels.items()))
        samples[f'{sample.name}{{{labels}}}'] = sample.value
print(json.dumps(samples))
";

fn parsed(page: &str) -> Option<Value> {
    let probe = ["-c", "import prometheus_client.openmetrics.parser"];
    let there = Command::new("/usr/bin/python3").args(probe).stderr(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        return None;
    }
    let mut python = Command::new("/usr/bin/python3");
    python.args(["-c", PARSER]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut python = python.spawn().unwrap();
    python.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "the page is refused:\n{page}");
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn a_scrape_is_what_prometheus_reads() {
    let port = free_port();
    let setup = Setup::loopback().unwrap().args([
        "--guard=user",
        "--allow=198.18.0.0/24",
        &format!("--metrics-listen={port}"),
    ]);
    let daemon = setup.start(None).unwrap();
    let mut client = daemon.client();
    client.set("key", b"value").unwrap();
    client.get("key").unwrap();
    client.get("missing").unwrap();
    wait::until("the list's figures", || get(port, GET).1.contains("session_list").then_some(()));
    let (head, page) = get(port, GET);
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert!(head.contains("application/openmetrics-text; version=1.0.0"), "{head}");
    let Some(samples) = parsed(&page) else {
        session_tests::skip!("needs python3-prometheus-client");
    };
    for (name, value) in [
        ("memcached_up{}", 1.0),
        ("memcached_version{version=1.6.45}", 1.0),
        ("memcached_commands_total{command=get,status=hit}", 1.0),
        ("memcached_commands_total{command=get,status=miss}", 1.0),
        ("memcached_commands_total{command=set,status=hit}", 1.0),
        ("memcached_current_items{}", 1.0),
        ("memcached_items_total{}", 1.0),
        ("memcached_limit_bytes{}", 67_108_864.0),
        ("memcached_items_evicted_total{}", 0.0),
        ("session_list_entries{action=allow}", 1.0),
        ("session_list_entries{action=deny}", 0.0),
        ("session_list_pending{}", 0.0),
    ] {
        assert_eq!(samples[name], value, "{name} in {samples:#}");
    }
    assert!(samples["memcached_current_connections{}"].as_f64().unwrap() >= 1.0);
    assert!(
        samples.as_object().unwrap().keys().any(|name| name.starts_with("memcached_slab_chunk"))
    );
}

#[test]
fn what_is_no_scrape_is_refused_and_holds_nobody_up() {
    let port = free_port();
    let setup = Setup::loopback().unwrap().arg(format!("--metrics-listen=127.0.0.1:{port}"));
    let _daemon = setup.start(None).unwrap();
    // One that says nothing does not keep others from being answered.
    let _silent = TcpStream::connect(("127.0.0.1", port)).unwrap();
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
        ("flush_all\r\n\r\n", "400"),
    ] {
        let (head, _) = get(port, request);
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {head}");
    }
    let (head, body) = get(port, "HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(head.contains("200 OK") && body.is_empty(), "{head}");
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(9_000));
    assert!(get(port, &long).0.starts_with("HTTP/1.1 400"));
}

#[test]
fn a_unix_socket_serves_the_same_and_goes_with_the_daemon() {
    let setup = Setup::loopback().unwrap();
    let path = setup.scratch().join("metrics/page.sock");
    let setup = setup.arg(format!("--metrics-listen=unix:{}", path.display()));
    let mut daemon = setup.start(None).unwrap();
    let page = exchange(UnixStream::connect(&path).unwrap(), GET);
    assert!(page.contains("memcached_up 1"), "{page}");
    daemon.process.signal(nix::sys::signal::Signal::SIGTERM);
    daemon.process.wait(wait::PATIENCE).unwrap();
    assert!(!path.exists());
}

#[test]
fn a_place_that_cannot_be_is_refused_with_what_to_write() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (place, status, text) in [
        ("zork", 64, "write a port"),
        ("0", 64, "write a port"),
        ("127.0.0.1", 64, "unix:PATH"),
        (address.as_str(), 71, "name another port"),
    ] {
        let setup = Setup::loopback().unwrap().arg(format!("--metrics-listen={place}"));
        let mut process = setup.spawn(None).unwrap();
        let ended = process.wait(wait::PATIENCE).unwrap();
        assert_eq!(ended.code(), Some(status), "{place}: {}", process.log());
        assert!(process.log().contains(text), "{place}: {}", process.log());
    }
}

/// Names of figures in a text: words that begin as ours do.
fn figures(text: &str) -> std::collections::BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours = words.filter(|word| word.starts_with("memcached_") || word.starts_with("session_"));
    ours.map(str::to_owned).collect()
}

#[test]
fn the_dashboard_asks_for_figures_that_are_there() {
    session_tests::require_root!();
    let namespace = session_tests::netns::Namespace::new("metrics").unwrap();
    namespace.ip("link add eth0 type veth peer name eth1").unwrap();
    let setup = Setup::guarded().unwrap().arg("--metrics-listen=9150");
    let daemon = setup.start(Some(&namespace)).unwrap();
    let mut client = daemon.client();
    client.set("key", b"value").unwrap();
    let page = wait::until("the guard's figures", || {
        let page = namespace.run(|| get(9150, GET).1);
        page.contains("session_guard_complete 1").then_some(page)
    });
    assert!(page.contains("session_guard_interface_open{interface=\"eth0\"} 0"), "{page}");
    let file = session_tests::binaries::workspace_root().join("packaging/grafana/session.json");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let asked = figures(&dashboard["panels"].to_string());
    assert!(asked.len() > 15, "{asked:?}");
    let missing: Vec<_> = asked.difference(&figures(&page)).cloned().collect();
    assert!(missing.is_empty(), "{missing:?} in\n{page}");
}
