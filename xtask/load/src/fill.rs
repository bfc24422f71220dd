//! What comes before a load: asking whether the server serves it at all, and storing the items.
//! And what stands in for one: getting every item once, to count those that are there.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::connection::{Connection, Judge, Received};
use crate::options::Protocol;
use crate::tally::Tally;
use crate::target::Target;
use crate::wire::{Exchange, Expect, Step, text_get};
use crate::worker::Plan;

/// Items stored or got in one go, and the bytes that end a go earlier.
const GO_ITEMS: u32 = 64;
const GO_BYTES: usize = 256 * 1024;
/// How long a reply may take.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);
const BUFFER_LEN: usize = 1024 * 1024;

/// Asks the server for each kind of request of the load. What it says when it does not serve
/// one, or nothing when it serves all.
pub(crate) fn refusal(plan: &Plan) -> Result<Option<String>> {
    let mut kinds = Vec::new();
    if plan.gets > 0.0 {
        kinds.push(true);
    }
    if plan.gets < 1.0 {
        kinds.push(false);
    }
    for is_get in kinds {
        if let Some(words) = refusal_of(plan, is_get)? {
            return Ok(Some(words));
        }
    }
    Ok(None)
}

fn refusal_of(plan: &Plan, is_get: bool) -> Result<Option<String>> {
    let mut stream = blocking(&plan.target)?;
    let (mut bytes, mut expects) = (Vec::new(), VecDeque::new());
    let mut exchange = Exchange { bytes: &mut bytes, expects: &mut expects };
    match is_get {
        true => plan.protocol.get(&plan.items, 0, 0, &mut exchange),
        false => plan.protocol.set(&plan.items, 0, 0, &mut exchange),
    }
    let expect: Expect = *expects.front().context("a request awaits a reply")?;
    // A server that knows the protocol not may answer and close before it has read all.
    let _ = stream.write_all(&bytes);
    let (mut reply, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let read = match stream.read(&mut part) {
            Ok(0) => return Ok(Some("it closes the connection".into())),
            Ok(read) => read,
            Err(error) => return Ok(Some(format!("no reply: {error}"))),
        };
        reply.extend_from_slice(&part[..read]);
        match plan.protocol.step(&plan.items, &expect, &reply, &mut Vec::new()) {
            Step::More => {}
            Step::Wrong => {
                let line = reply.split(|&byte| byte == b'\r').next().unwrap_or(&reply);
                return Ok(Some(String::from_utf8_lossy(line).into_owned()));
            }
            Step::Header(_) | Step::Done(_) | Step::Miss(_) => return Ok(None),
        }
    }
}

/// Stores every item once, by the text protocol.
pub(crate) fn fill(plan: &Plan) -> Result<()> {
    walk(plan, |plan, idx, exchange| Protocol::Text.set(&plan.items, idx, 0, exchange)).map(drop)
}

/// Gets every item once and counts those that are there.
pub(crate) fn scan(plan: &Plan) -> Result<Tally> {
    walk(plan, |plan, idx, exchange| text_get(&plan.items, &[idx], 0, exchange))
}

/// Makes a request for every item, many at once, over one connection.
fn walk(plan: &Plan, push: impl Fn(&Plan, u32, &mut Exchange<'_>)) -> Result<Tally> {
    let socket = plan.target.connect().context("connecting to the server")?;
    rustix::net::sockopt::set_socket_timeout(
        &socket,
        rustix::net::sockopt::Timeout::Recv,
        Some(REPLY_TIMEOUT),
    )?;
    let mut connection = Connection::new(socket);
    let judge = Judge { items: &plan.items, protocol: Protocol::Text, misses: plan.misses };
    let (mut buffer, mut line, mut tally) = (vec![0; BUFFER_LEN], Vec::new(), Tally::new());
    let (mut bytes, mut next) = (Vec::new(), 0);
    while next < plan.items.count() {
        bytes.clear();
        let end = next.saturating_add(GO_ITEMS).min(plan.items.count());
        while next < end && bytes.len() < GO_BYTES {
            push(plan, next, &mut connection.exchange(&mut bytes));
            next += 1;
        }
        let mut sent = connection.send(&bytes)?;
        while !sent {
            sent = connection.flush()?;
        }
        while !connection.is_idle() {
            let received = connection.receive(&judge, &mut buffer, &mut line, || 0, &mut tally)?;
            ensure!(received != Received::Nothing, "no reply for {} s", REPLY_TIMEOUT.as_secs());
        }
    }
    Ok(tally)
}

/// A stream whose reads end after a time.
fn blocking(target: &Target) -> Result<Box<dyn Stream>> {
    let socket = target.connect().context("connecting to the server")?;
    Ok(match target {
        Target::Tcp(_) => {
            let stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
            Box::new(stream)
        }
        Target::Unix(_) => {
            let stream = UnixStream::from(socket);
            stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
            Box::new(stream)
        }
    })
}

/// Either kind of stream.
trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}
