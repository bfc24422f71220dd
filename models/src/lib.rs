//! The store's atomic protocols under a model checker.
//!
//! The modules below `store` are those of the daemon, file for file; only the atomics, the locks
//! and the steps at which crash tests end the process are others here. The models are tests:
//! `cargo test -p session-models --release`.

mod store;
