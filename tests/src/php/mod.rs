//! Web servers of a shop: nginx and php-fpm of Debian on hosts of the playground, a load balancer
//! in front of them, browsers, and twemproxy. They keep sessions where the test says.
#![forbid(unsafe_code)]

pub mod browser;
pub mod proxy;
pub mod web;

use crate::skip;

/// The programs without which there is no shop: what is missing on this machine.
#[must_use]
pub fn missing() -> Vec<&'static str> {
    let programs = ["nginx", "php-fpm8.2", "nutcracker", "memcached"];
    let mut missing: Vec<_> =
        programs.into_iter().filter(|program| !skip::has_program(program)).collect();
    for module in ["memcache", "memcached"] {
        let loaded = format!("/etc/php/8.2/mods-available/{module}.ini");
        if !std::path::Path::new(&loaded).exists() {
            missing.push(if module == "memcache" { "php-memcache" } else { "php-memcached" });
        }
    }
    missing
}
