//! Tells the store's modules that a model checker runs them: buckets have fewer slots then.
#![forbid(unsafe_code)]

fn main() {
    println!("cargo::rustc-cfg=session_model");
    println!("cargo::rerun-if-changed=build.rs");
}
