//! What the guard is measured against, and what it is measured with: a bare drop, a bare pass
//! and a packet generator. Tests flood with the same generator. None of it is in the daemon.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod generator;

#[cfg(not(target_arch = "bpf"))]
fn main() {}
