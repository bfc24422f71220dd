//! What a PHP page costs the cache host, beside memcached in the same run, each behind what refuses
//! strangers: the guard, and the iptables chain of docs/migrate-from-memcached.md.
//!
//! A server at rest works too: it sweeps, and the guard's parent looks after every interface each
//! second, whether there are ten pages in that second or a thousand. That is measured by itself and
//! taken off, since the few pages of a demonstration would carry all of it.
#![forbid(unsafe_code)]

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use session_tests::memcached::Memcached;
use session_tests::php::browser::Browser;
use session_tests::sessiond::{PORT, Sessiond};

use super::shop::Shop;
use super::story::Story;
use crate::bench::statistics::median;

/// Rounds of each server, in turns, so that what else the machine does hits both.
const ROUNDS: usize = 4;
const BROWSERS: usize = 4;
const PAGES_PER_BROWSER: usize = 20;
/// How long a server is watched at rest.
const REST: Duration = Duration::from_secs(4);

/// CPU time of the server's processes for a page, both handlers, median of the rounds.
pub(super) fn show(
    story: &mut Story,
    shop: &Shop,
    daemon: &Sessiond<'_>,
    debug: bool,
) -> Result<()> {
    story.heading("CPU on the cache host for a PHP page (user and system time of the server)");
    if debug {
        story.line("sessiond is a debug build here: its figure says nothing about a released one");
    }
    let other = shop.other.v4;
    story.line("memcached stands behind the iptables chain of docs/migrate-from-memcached.md");
    let memcached = Memcached::start_in(Some(&shop.other.namespace), other.into(), PORT, &[])?;
    // Afterwards: from its own address nobody reaches it any more, as on the page.
    put_chain(shop)?;
    let (ours, theirs) = (daemon.process.pid(), memcached.process.pid());
    let at_rest = [at_rest(ours)?, at_rest(theirs)?];
    let [our_rest, their_rest] = at_rest.map(|share| share * 1e6);
    story.line(&format!(
        "at rest: sessiond {our_rest:.0} us a second, memcached {their_rest:.0} us; taken off below"
    ));
    for (name, handler, scheme) in
        [("memcache, text   ", "memcache", "tcp://"), ("memcached, binary", "memcached", "")]
    {
        let settings = |server| {
            let path = format!("session.save_path = {scheme}{server}:{PORT}");
            format!("session.save_handler = {handler}\n{path}")
        };
        let (mut our_pages, mut their_pages) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let cache = settings(shop.topology.cache.v4);
            our_pages.push(round(shop, ours, at_rest[0], &cache)?);
            their_pages.push(round(shop, theirs, at_rest[1], &settings(other))?);
        }
        let (ours, theirs) = (median(our_pages), median(their_pages));
        ensure!(ours > 0.0 && theirs > 0.0, "{name}: nothing was measured");
        story.good(&format!(
            "{name}  sessiond {ours:.0} us, memcached {theirs:.0} us: {:.2} of memcached's",
            ours / theirs
        ));
    }
    Ok(())
}

/// Has memcached's host refuse whoever is no web server, as the page on migration finds it.
fn put_chain(shop: &Shop) -> Result<()> {
    let accept = |host: Ipv4Addr| format!("-A MEMCACHED -s {host} -j ACCEPT");
    let webs = shop.topology.allowed.iter().map(|web| accept(web.v4));
    let rules = std::iter::once("-N MEMCACHED".to_owned()).chain(webs).chain([
        accept(Ipv4Addr::LOCALHOST),
        "-A MEMCACHED -j REJECT --reject-with icmp-host-prohibited".to_owned(),
        format!("-A INPUT -p tcp --dport {PORT} -j MEMCACHED"),
    ]);
    for rule in rules {
        let mut command = Command::new("iptables");
        let output = shop.other.namespace.output(command.args(rule.split(' ')))?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "iptables {rule}: {}", told.trim());
    }
    Ok(())
}

/// Share of one processor that the process and its child take while nobody asks them for anything.
fn at_rest(pid: u32) -> Result<f64> {
    let (before, begun) = (cpu_ns(pid)?, Instant::now());
    thread::sleep(REST);
    Ok((cpu_ns(pid)? - before) as f64 / begun.elapsed().as_nanos() as f64)
}

/// Microseconds of CPU that the process and its child took for each page of a round, without what
/// they take at rest.
fn round(shop: &Shop, pid: u32, at_rest: f64, settings: &str) -> Result<f64> {
    let (before, begun) = (cpu_ns(pid)?, Instant::now());
    let web = shop.topology.allowed[0].v4;
    thread::scope(|scope| -> Result<()> {
        let mut windows = Vec::new();
        for _ in 0..BROWSERS {
            windows.push(scope.spawn(|| -> Result<()> {
                let mut browser = Browser::with(settings);
                for _ in 0..PAGES_PER_BROWSER {
                    shop.page_of(&mut browser, web, "")?;
                }
                Ok(())
            }));
        }
        for window in windows {
            window.join().map_err(|_| anyhow::anyhow!("a browser panicked"))??;
        }
        Ok(())
    })?;
    let pages = (BROWSERS * PAGES_PER_BROWSER) as f64;
    let ran = (cpu_ns(pid)? - before) as f64 - at_rest * begun.elapsed().as_nanos() as f64;
    Ok(ran / 1000.0 / pages)
}

/// Nanoseconds that all threads of the process and of its children have run.
fn cpu_ns(pid: u32) -> Result<u64> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let children = children.split_whitespace().map(str::parse);
    let pids: Vec<u32> = std::iter::once(Ok(pid)).chain(children).collect::<Result<_, _>>()?;
    let mut sum = 0;
    for pid in pids {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let text = fs::read_to_string(thread?.path().join("schedstat"))?;
            let ran = text.split(' ').next().context("a schedstat without figures")?;
            sum += ran.parse::<u64>()?;
        }
    }
    Ok(sum)
}
