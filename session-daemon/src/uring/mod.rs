//! io_uring as the server uses it: requests, completions, and the memory that the kernel may touch
//! meanwhile. It owns what is unsafe about it; it never looks at a byte, and knows no protocol.

mod lent;
mod line;
pub mod ring;
#[cfg(test)]
mod tests;
