//! The io_uring engine: one ring a worker, which moves the bytes of its plain connections; TLS,
//! datagrams and accepting stay with tokio, whose poll the ring's doorbell wakes.
#![forbid(unsafe_code)]

pub mod probe;
pub mod reactor;
pub mod rounds;
pub mod stream;
