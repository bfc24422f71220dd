//! Serves on a loopback port without a guard: `cargo run --example loopback -- PORT THREADS`.
#![forbid(unsafe_code)]

use std::net::TcpListener;
use std::sync::Arc;

use session_daemon::allowlist::Allowlist;
use session_daemon::server::Server;
use session_daemon::server::config::{Listener, ServerConfig};
use session_daemon::store::Store;
use session_daemon::store::types::StoreConfig;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let port: u16 = arguments.next().unwrap_or_default().parse().unwrap_or(0);
    let threads = arguments.next().unwrap_or_default().parse().unwrap_or(1);
    let store = Store::create(&StoreConfig { workers: threads, ..StoreConfig::default() })?;
    let mut listeners = Vec::new();
    let mut port = port;
    for _ in 0..threads {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.set_reuse_port(true)?;
        socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], port)).into())?;
        socket.listen(1024)?;
        let listener = TcpListener::from(socket);
        port = listener.local_addr()?.port();
        listeners.push(Listener::Tcp(listener));
    }
    println!("{port}");
    let config = ServerConfig { threads, judge_sources: false, ..ServerConfig::default() };
    let list = Arc::new(Arc::new(Allowlist::new()).into());
    let _server = Server::start(config, listeners, store, list)?;
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}
