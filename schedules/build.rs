//! Tells the store's modules that a scheduler decides which thread takes the next step, unless
//! the store is to run as it is, under a sanitizer.
#![forbid(unsafe_code)]

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=SESSION_PLAIN_ATOMICS");
    if std::env::var_os("SESSION_PLAIN_ATOMICS").is_none() {
        println!("cargo::rustc-cfg=session_schedule");
    }
}
