//! What the guard program in the kernel and the daemon in user space must agree on, bit for bit.
//! It owns map layouts, constants and the hash's arithmetic; it never touches a map, a packet or a
//! system call.
#![no_std]
#![deny(unsafe_code)]

pub mod answer;
pub mod exchange;
pub mod flood;
pub mod guard;
pub mod hash;
pub mod plane;
pub mod region;
