//! Clients from PyPI: what each of them can ask, over the loopback. `cargo xtask test` installs
//! them; tests/clients/requirements.txt names their versions.
#![forbid(unsafe_code)]

use std::process::Command;

use anyhow::{Result, ensure};
use session_tests::binaries::workspace_root;
use session_tests::sessiond::Setup;
use session_tests::skip;

#[test]
fn aiomcache() -> Result<()> {
    check("aiomcache", "aiomcache_commands.py")
}

#[test]
fn django() -> Result<()> {
    check("django", "django_backends.py")
}

#[test]
fn pymemcache() -> Result<()> {
    check("pymemcache", "pymemcache_kinds.py")
}

#[test]
fn python_binary_memcached() -> Result<()> {
    check("bmemcached", "python_binary_memcached_commands.py")
}

#[test]
fn python_memcached() -> Result<()> {
    check("memcache", "python_memcached_commands.py")
}

/// Runs a client's script, which says `ok` when everything was answered as the client expects.
fn check(module: &str, script: &str) -> Result<()> {
    let python = workspace_root().join("target/clients/bin/python");
    let import = Command::new(&python).args(["-B", "-c", &format!("import {module}")]).output();
    if !import.is_ok_and(|output| output.status.success()) {
        skip!("needs {module} in target/clients: `cargo xtask test` installs it");
    }
    let setup = Setup::loopback()?;
    let daemon = setup.start(None)?;
    let mut client = Command::new(python);
    client.arg("-B").arg(workspace_root().join("tests/clients").join(script));
    let output = client.args(["127.0.0.1", &daemon.setup.port().to_string()]).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let wrong = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said == "ok\n", "{script}: {said}{wrong}");
    Ok(())
}
