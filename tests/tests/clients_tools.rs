//! The programs of libmemcached-tools and memcached's own script, in both protocols, over the
//! loopback: what one stores another finds, shows, touches and removes.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use session_tests::require_program;
use session_tests::sessiond::{Sessiond, Setup};

/// memcached's own script, where Debian puts it.
const SCRIPT: &str = "/usr/share/memcached/scripts/memcached-tool";

/// What it needs beside its own text.
const PERL: &str = "perl";

fn run(program: &str, arguments: &[&str]) -> Result<Output> {
    Command::new(program).args(arguments).output().with_context(|| program.to_owned())
}

/// Runs a program that has to end well; what it printed.
fn said(program: &str, arguments: &[&str]) -> Result<String> {
    let output = run(program, arguments)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{program} {arguments:?}: {output:?}");
    Ok(text)
}

fn server(daemon: &Sessiond<'_>) -> String {
    format!("--servers=127.0.0.1:{}", daemon.setup.port())
}

#[test]
fn what_one_tool_stores_another_finds() -> Result<()> {
    require_program!("memcdump");
    for binary in [&[][..], &["--binary"]] {
        let setup = Setup::loopback()?;
        let daemon = setup.start(None)?;
        let server = server(&daemon);
        let with = |arguments: &[&'static str]| [&[server.as_str()], binary, arguments].concat();
        let file = setup.scratch().join("greeting");
        fs::write(&file, "hello from a file\n")?;
        let path = file.to_str().context("a path of letters")?;
        said("memcping", &[server.as_str()])?;
        said("memccp", &[with(&[]), vec![path]].concat())?;
        ensure!(
            said("memccat", &with(&["greeting"]))?.trim_end() == "hello from a file",
            "memccat"
        );
        said("memcexist", &with(&["greeting"]))?;
        ensure!(!run("memcexist", &with(&["none"]))?.status.success(), "memcexist of nothing");
        said("memctouch", &with(&["--expire=100", "greeting"]))?;
        ensure!(said("memcdump", &[server.as_str()])?.contains("greeting"), "memcdump");
        said("memcrm", &with(&["greeting"]))?;
        ensure!(!run("memccat", &with(&["greeting"]))?.status.success(), "memccat of nothing");
        said("memccp", &[with(&[]), vec![path]].concat())?;
        said("memcflush", &with(&[]))?;
        ensure!(!run("memcexist", &with(&["greeting"]))?.status.success(), "memcflush");
    }
    Ok(())
}

#[test]
fn what_the_load_generators_verify_is_right() -> Result<()> {
    require_program!("memcaslap");
    let setup = Setup::loopback()?;
    let daemon = setup.start(None)?;
    let address = format!("127.0.0.1:{}", daemon.setup.port());
    for binary in [&[][..], &["--binary"]] {
        let load = ["-s", &address, "-T", "2", "-c", "16", "-x", "20000", "-v", "1", "-d", "10"];
        let told = said("memcaslap", &[&load[..], binary].concat())?;
        for right in ["verify_misses: 0", "verify_failed: 0", "get_misses: 0"] {
            ensure!(told.contains(right), "not {right}: {told}");
        }
        let server = server(&daemon);
        for test in ["get", "set", "mget"] {
            let test = format!("--test={test}");
            let load = [&server, "--concurrency=4", "--execute-number=500", &test];
            let told = said("memcslap", &[&load[..], binary].concat())?;
            ensure!(!told.to_lowercase().contains("fail"), "{told}");
        }
    }
    Ok(())
}

#[test]
fn memcached_s_own_script_shows_what_is_there() -> Result<()> {
    require_program!(PERL);
    if !Path::new(SCRIPT).exists() {
        session_tests::skip!("needs {SCRIPT} of Debian's memcached");
    }
    let setup = Setup::loopback()?;
    let daemon = setup.start(None)?;
    let mut client = daemon.client();
    for idx in 0..50 {
        ensure!(client.set(&format!("key{idx}"), &[b'v'; 100])? == "STORED", "key{idx}");
    }
    let address = format!("127.0.0.1:{}", daemon.setup.port());
    let tool = |mode: &'static str| said(PERL, &[SCRIPT, &address, mode]);
    for (mode, shown) in [
        ("display", "Item_Size"),
        ("stats", "curr_items"),
        ("settings", "maxbytes"),
        ("sizes", "Size"),
        ("keys", "key=key49 "),
        ("dump", "add key49 0 "),
    ] {
        let told = tool(mode)?;
        ensure!(told.contains(shown), "{mode} does not say {shown}: {told}");
    }
    ensure!(tool("dump")?.matches("add key").count() == 50, "not all keys are dumped");
    Ok(())
}
