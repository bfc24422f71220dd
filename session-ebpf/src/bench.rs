//! What the guard and the plane are measured against, and what they are measured with: a bare drop,
//! a bare pass, a packet generator, and a client that asks by datagrams. Tests use the same ones. None
//! of it is in the daemon.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod exchange;
#[cfg(target_arch = "bpf")]
mod generator;

#[cfg(not(target_arch = "bpf"))]
fn main() {}
