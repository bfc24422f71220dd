//! No value of a storage command that was refused is ever run as a command.
#![forbid(unsafe_code)]

use std::io::Read;

use anyhow::Result;
use session_tests::sessiond::Setup;

/// What an attacker puts into a value: commands, alone on their lines.
const HIDDEN: &str = "set smuggled 0 0 1 noreply\r\nx";

/// Each form is a line that is refused, or a value that does not fit its line; `{v}` is the value
/// and `{n}` its length.
const FORMS: [&str; 28] = [
    "set k -1 0 {n}\r\n{v}\r\n",
    "set k 4294967296 0 {n}\r\n{v}\r\n",
    "set k x 0 {n}\r\n{v}\r\n",
    "set k +1 0 {n}\r\n{v}\r\n",
    "set k 0 x {n}\r\n{v}\r\n",
    "set k 0 99999999999999999999 {n}\r\n{v}\r\n",
    "set {long} 0 0 {n}\r\n{v}\r\n",
    "add {long} 0 0 {n} noreply\r\n{v}\r\n",
    "cas k 0 0 {n}\r\n{v}\r\n",
    "cas k 0 0 {n} x\r\n{v}\r\n",
    "cas k 0 0 {n} -1 noreply\r\n{v}\r\n",
    "set k 0 0 -1\r\n{v}\r\n",
    "set k 0 0 +{n}\r\n{v}\r\n",
    "set k 0 0 {n}x\r\n{v}\r\n",
    "set k 0 0 4294967301\r\n{v}\r\n",
    "set k 0 0 18446744073709551621\r\n{v}\r\n",
    "set k 0 0\r\n{v}\r\n",
    "set k\r\n{v}\r\n",
    "set k 0 0 2\r\nab{v}\r\n",
    "set k 0 0 2\r\nab\n{v}\r\n",
    "ms k S{n}\r\n{v}\r\n",
    "ms k {n} !\r\n{v}\r\n",
    "ms k {n} v v\r\n{v}\r\n",
    "ms k {n} MX q\r\n{v}\r\n",
    "ms Zm9 {n} b\r\n{v}\r\n",
    "ms {long} {n}\r\n{v}\r\n",
    "ms k 4294967301\r\n{v}\r\n",
    "ms k 2\r\nab{v}\r\n",
];

#[test]
fn no_value_is_run_as_a_command() -> Result<()> {
    let setup = Setup::loopback()?;
    let daemon = setup.start(None)?;
    let mut run = Vec::new();
    for form in FORMS {
        let sent = form
            .replace("{long}", &"k".repeat(251))
            .replace("{v}", HIDDEN)
            .replace("{n}", &HIDDEN.len().to_string());
        let mut client = daemon.client();
        client.send(sent.as_bytes())?;
        // The server has looked at all of it when it has closed, or answered what comes behind.
        client.send(b"quit\r\n").ok();
        let mut replies = Vec::new();
        client.socket().try_clone()?.read_to_end(&mut replies).ok();
        let replies = String::from_utf8_lossy(&replies);
        let answered = replies.contains("ERROR") || form.contains("noreply");
        assert!(answered, "{form:?} was answered by {replies:?}");
        if daemon.client().get("smuggled")?.is_some() {
            run.push(form);
            daemon.client().command("delete smuggled")?;
        }
    }
    assert!(run.is_empty(), "{} of {} were run: {run:#?}", run.len(), FORMS.len());
    Ok(())
}
