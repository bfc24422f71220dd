//! The kernel plane: answers GETs from the daemon's own store. On the host it is an empty program.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod plane_program;

#[cfg(not(target_arch = "bpf"))]
fn main() {}
