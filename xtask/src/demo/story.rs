//! What is printed: headings, and a line with a mark for everything that was seen to be so.
#![forbid(unsafe_code)]

use std::time::Instant;

/// The account of a run.
#[derive(Debug)]
pub(super) struct Story {
    begun: Instant,
    seen: u32,
}

impl Story {
    /// Begins an account.
    pub(super) fn begin() -> Self {
        Self { begun: Instant::now(), seen: 0 }
    }

    /// Prints a heading.
    pub(super) fn heading(&self, text: &str) {
        println!("\n{text}");
    }

    /// Prints a line that belongs to the heading.
    pub(super) fn line(&self, text: &str) {
        println!("    {text}");
    }

    /// Prints what was seen to be so.
    pub(super) fn good(&mut self, text: &str) {
        self.seen += 1;
        println!("  ✓ {text}");
    }

    /// Prints the closing line.
    pub(super) fn end(self) {
        println!("\n{} things shown in {} s", self.seen, self.begun.elapsed().as_secs());
    }
}
