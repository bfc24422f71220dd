//! The hosts and the programs on them.
//!
//! ```text
//!   browser .22   balancer .21   web1 .11 (weight 3)  web2 .12  web3 .13  web4 .14   web5 .15
//!   cache .1   second cache .2   memcached .3   faked clock .4   twemproxy .23   stranger .66
//! ```
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use session_tests::php::browser::{Browser, Page};
use session_tests::php::web::{Balancer, Web};
use session_tests::sessiond::Setup;
use session_tests::topology::{Host, Topology};

/// Web servers from the first day on.
const WEBS: u8 = 4;

/// Room for the memory file of a daemon with the default `-m`.
const MEMORY_FILE_ROOM_MB: u32 = 80;

/// Everything but the caches.
pub(super) struct Shop {
    /// The cache, four web servers, a stranger.
    pub(super) topology: Topology,
    /// A fifth web server, which nobody has allowed yet.
    pub(super) fifth: Host,
    /// Where the browsers are.
    pub(super) street: Host,
    /// Another cache host.
    pub(super) second: Host,
    /// A host with memcached, to compare with.
    pub(super) other: Host,
    /// A host whose clock is wrong.
    pub(super) wrong_clock: Host,
    /// A host with twemproxy.
    pub(super) proxy: Host,
    /// nginx in front of the web servers.
    pub(super) balancer: Balancer,
    webs: Vec<Web>,
    _balancer_host: Host,
}

impl Shop {
    /// Makes the hosts and starts the web servers, as the page on migration has them.
    pub(super) fn build() -> Result<Self> {
        let topology = Topology::new(WEBS)?;
        let fifth = topology.join("web5", 15)?;
        let street = topology.join("street", 22)?;
        let balancer_host = topology.join("balancer", 21)?;
        let settings = document_settings(topology.cache.v4);
        let mut webs = Vec::new();
        for host in topology.allowed.iter().chain([&fifth]) {
            webs.push(Web::start(host, &settings)?);
        }
        let balancer = Balancer::start(&balancer_host, &weights(topology.allowed.iter()))?;
        Ok(Self {
            second: topology.join("second", 2)?,
            other: topology.join("other", 3)?,
            wrong_clock: topology.join("clock", 4)?,
            proxy: topology.join("proxy", 23)?,
            topology,
            fifth,
            street,
            balancer,
            webs,
            _balancer_host: balancer_host,
        })
    }

    /// The cache host's daemon: guarded, with a memory file.
    pub(super) fn cache_setup(&self) -> Result<Setup> {
        let setup = self.guarded()?;
        let memory = setup.scratch().mount_tmpfs(MEMORY_FILE_ROOM_MB)?.join("store");
        Ok(setup.arg("-e").arg(memory))
    }

    /// A guarded daemon that the four web servers and twemproxy may reach.
    pub(super) fn guarded(&self) -> Result<Setup> {
        let allow = format!("--allow={},{}", self.topology.allow_argument(), self.proxy.v4);
        Ok(Setup::guarded()?.arg(allow).arg("--guard-mode=native"))
    }

    /// Web servers by name and weight, the fifth included.
    pub(super) fn all_weights(&self) -> Vec<(Ipv4Addr, u32)> {
        weights(self.topology.allowed.iter().chain([&self.fifth]))
    }

    /// The page for a browser, over the balancer.
    pub(super) fn page(&self, browser: &mut Browser, query: &str) -> Result<Page> {
        self.page_of(browser, self.balancer.address, query)
    }

    /// The page for a browser from one web server; an error if PHP complained of anything.
    pub(super) fn page_of(
        &self,
        browser: &mut Browser,
        web: Ipv4Addr,
        query: &str,
    ) -> Result<Page> {
        let page = self.street.run(|| browser.get(web, query))?;
        ensure!(page.errors.is_empty(), "{}: {}\n{}", page.web, page.errors.join("; "), self.log());
        Ok(page)
    }

    /// A browser that is logged in as `user`, with these settings of PHP.
    pub(super) fn logged_in(&self, user: &str, settings: &str) -> Result<Browser> {
        let mut browser = Browser::with(settings);
        let page = self.page(&mut browser, &format!("login={user}"));
        let page = page.with_context(|| format!("{user} logs in with\n{settings}"))?;
        ensure!(page.user.as_deref() == Some(user), "{user} is not logged in: {page:?}");
        Ok(browser)
    }

    /// Looks whether the browser is still logged in, over the balancer.
    pub(super) fn knows(&self, browser: &mut Browser, user: &str) -> Result<Page> {
        let page = self.page(browser, "").with_context(|| format!("{user} asks for a page"))?;
        ensure!(page.user.as_deref() == Some(user), "{user} is logged out: {page:?}");
        Ok(page)
    }

    fn log(&self) -> String {
        self.webs.iter().map(Web::log).collect()
    }
}

/// php.ini of the web servers before and after: not a line changes.
fn document_settings(cache: Ipv4Addr) -> String {
    format!("session.save_handler = memcache\nsession.save_path = tcp://{cache}:11211\n")
}

/// The first server is three times as strong as the others.
fn weights<'a>(hosts: impl Iterator<Item = &'a Host>) -> Vec<(Ipv4Addr, u32)> {
    hosts.enumerate().map(|(number, host)| (host.v4, if number == 0 { 3 } else { 1 })).collect()
}
