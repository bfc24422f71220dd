//! nginx with php-fpm on one host, and nginx as the load balancer of several.
#![forbid(unsafe_code)]

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::process::Process;
use crate::scratch::Scratch;
use crate::topology::Host;

/// The page that every web server serves.
const PAGE: &str = include_str!("../../php/page.php");

/// Pages that one web server makes at a time.
const PAGES_AT_A_TIME: u32 = 4;

/// One web server: nginx and php-fpm.
#[derive(Debug)]
pub struct Web {
    nginx: Process,
    fpm: Process,
    _scratch: Scratch,
}

impl Web {
    /// Starts both on `host` and returns when they answer. `settings` are php.ini's, one a line:
    /// `session.save_handler = memcache`.
    ///
    /// # Errors
    /// When they are not installed.
    ///
    /// # Panics
    /// With their output, when they do not come up.
    pub fn start(host: &Host, settings: &str) -> Result<Self> {
        let scratch = Scratch::new(&host.role)?;
        let socket = scratch.join("fpm.sock");
        fs::write(scratch.join("page.php"), PAGE)?;
        fs::write(scratch.join("fpm.conf"), fpm_conf(&scratch, &host.role, settings))?;
        let mut command = Command::new("/usr/sbin/php-fpm8.2");
        command.arg("--nodaemonize").arg("--fpm-config").arg(scratch.join("fpm.conf"));
        let mut fpm = Process::start(&mut command, Some(&host.namespace), &scratch.join("fpm"))?;
        fpm.until("socket of php-fpm", || socket.exists().then_some(()));
        let server = format!(
            "server {{ listen 80; location / {{ \
             fastcgi_pass unix:{socket}; \
             fastcgi_param SCRIPT_FILENAME {page}; \
             fastcgi_param REQUEST_METHOD $request_method; \
             fastcgi_param QUERY_STRING $query_string; }} }}",
            socket = socket.display(),
            page = scratch.join("page.php").display(),
        );
        let nginx = nginx(host, &scratch, &server)?;
        Ok(Self { nginx, fpm, _scratch: scratch })
    }

    /// What both have written, for a message about a fault.
    #[must_use]
    pub fn log(&self) -> String {
        format!("{}{}", self.nginx.log(), self.fpm.log())
    }
}

fn fpm_conf(scratch: &Scratch, role: &str, settings: &str) -> String {
    let values: String = settings
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| format!("php_value[{}] = {}\n", name.trim(), value.trim()))
        .collect();
    format!(
        "[global]\nerror_log = /proc/self/fd/2\nlog_level = warning\npid = {pid}\n\
         [www]\nlisten = {socket}\nlisten.mode = 0666\nuser = nobody\ngroup = nogroup\n\
         pm = static\npm.max_children = {PAGES_AT_A_TIME}\nrequest_terminate_timeout = 60\n\
         env[WEB] = {role}\n{values}",
        pid = scratch.join("fpm.pid").display(),
        socket = scratch.join("fpm.sock").display(),
    )
}

/// The load balancer.
#[derive(Debug)]
pub struct Balancer {
    /// Where it listens, port 80.
    pub address: Ipv4Addr,
    nginx: Process,
    scratch: Scratch,
}

impl Balancer {
    /// Starts it on `host` in front of the servers, each with its weight.
    ///
    /// # Errors
    /// When nginx is not installed.
    ///
    /// # Panics
    /// With its output, when it does not come up.
    pub fn start(host: &Host, servers: &[(Ipv4Addr, u32)]) -> Result<Self> {
        let scratch = Scratch::new(&host.role)?;
        let nginx = nginx(host, &scratch, &balanced(servers))?;
        Ok(Self { address: host.v4, nginx, scratch })
    }

    /// Balances over other servers from now on, without losing a request.
    ///
    /// # Errors
    /// When the configuration cannot be written.
    pub fn balance(&self, servers: &[(Ipv4Addr, u32)]) -> Result<()> {
        write_conf(&self.scratch, &balanced(servers))?;
        self.nginx.signal(Signal::SIGHUP);
        Ok(())
    }
}

fn balanced(servers: &[(Ipv4Addr, u32)]) -> String {
    let servers: String = servers
        .iter()
        .map(|(address, weight)| format!("server {address}:80 weight={weight}; "))
        .collect();
    format!(
        "upstream webs {{ {servers}}} server {{ listen 80; location / {{ proxy_pass http://webs; }} }}"
    )
}

fn nginx(host: &Host, scratch: &Scratch, server: &str) -> Result<Process> {
    write_conf(scratch, server)?;
    let mut command = Command::new("/usr/sbin/nginx");
    command.arg("-p").arg(scratch.path()).arg("-c").arg(scratch.join("nginx.conf"));
    command.args(["-e", "stderr"]);
    let mut process = Process::start(&mut command, Some(&host.namespace), &scratch.join("nginx"))?;
    let address = host.v4;
    process.until("nginx", || host.run(|| TcpStream::connect((address, 80)).ok()));
    Ok(process)
}

fn write_conf(scratch: &Scratch, server: &str) -> Result<()> {
    let directory = scratch.path().display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {directory}/{kind}; "))
        .concat();
    let text = format!(
        "daemon off; worker_processes 1; user nobody nogroup; pid {directory}/nginx.pid;\n\
         error_log stderr; events {{ worker_connections 512; }}\n\
         http {{ access_log off; {temporary}\n{server}\n}}\n"
    );
    let path: &Path = &scratch.join("nginx.conf");
    fs::write(path, text).with_context(|| path.display().to_string())
}
