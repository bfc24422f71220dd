//! The bytes of a connection on their way in and out, and the pool that lends the memory. It owns
//! the sizes; it never reads a byte's meaning. A connection that waits holds no pooled buffer.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

/// Bytes that one read takes at most.
pub const INPUT_LEN: usize = 64 << 10;

/// Bytes of answers after which no further request is looked at until they have been taken. One
/// answer may stand above it, so a connection holds this and one item at most.
pub const OUTPUT_LEN_HIGH: usize = 64 << 10;

/// Output buffers that have grown beyond this are freed, not pooled.
const OUTPUT_KEEP_MAX: usize = 4 * OUTPUT_LEN_HIGH;

/// What a fresh output buffer holds.
const OUTPUT_LEN_FIRST: usize = 4 << 10;

/// Buffers of each kind that a worker keeps for the next turn.
const POOLED_MAX: usize = 16;

/// A worker's spare buffers.
#[derive(Debug, Default)]
pub struct Pool {
    inputs: Vec<Vec<u8>>,
    outputs: Vec<Vec<u8>>,
}

impl Pool {
    fn take_input(&mut self) -> Vec<u8> {
        self.inputs.pop().unwrap_or_else(|| vec![0; INPUT_LEN])
    }

    fn give_input(&mut self, buffer: Vec<u8>) {
        if buffer.len() == INPUT_LEN && self.inputs.len() < POOLED_MAX {
            self.inputs.push(buffer);
        }
    }

    fn take_output(&mut self) -> Vec<u8> {
        self.outputs.pop().unwrap_or_else(|| Vec::with_capacity(OUTPUT_LEN_FIRST))
    }

    fn give_output(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() <= OUTPUT_KEEP_MAX && self.outputs.len() < POOLED_MAX {
            buffer.clear();
            self.outputs.push(buffer);
        }
    }
}

/// Bytes received and not yet consumed.
///
/// ```text
/// buffer: | consumed | waiting        | free           |
///         0          start            end              buffer.len()
/// ```
#[derive(Debug, Default)]
pub struct Input {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    /// The bytes that wait.
    #[must_use]
    pub fn waiting(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Bytes of memory that it holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    /// Takes `len` of the waiting bytes away.
    pub fn consume(&mut self, len: usize) {
        self.start = self.start.saturating_add(len).min(self.end);
    }

    /// Room for what is read next, after what waits.
    pub fn space(&mut self, pool: &mut Pool) -> &mut [u8] {
        let waiting_len = self.end.saturating_sub(self.start);
        if self.buffer.len() < INPUT_LEN {
            let mut buffer = pool.take_input();
            if let Some(front) = buffer.get_mut(..waiting_len) {
                front.copy_from_slice(self.waiting());
            }
            self.buffer = buffer;
        } else if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
        }
        self.start = 0;
        self.end = waiting_len;
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// Says that `len` bytes were read into [`Input::space`].
    pub fn filled(&mut self, len: usize) {
        self.end = self.end.saturating_add(len).min(self.buffer.len());
    }

    /// Forgets what waits.
    pub fn clear(&mut self, pool: &mut Pool) {
        self.start = self.end;
        self.rest(pool);
    }

    /// Gives the pooled buffer back, because nothing may come for a long time; what waits moves
    /// to memory of its own size.
    pub fn rest(&mut self, pool: &mut Pool) {
        if self.buffer.len() == INPUT_LEN {
            let waiting = self.waiting().to_vec();
            self.start = 0;
            self.end = waiting.len();
            pool.give_input(std::mem::replace(&mut self.buffer, waiting));
        }
    }
}

/// Answers not yet taken by the client.
#[derive(Debug, Default)]
pub struct Output {
    buffer: Vec<u8>,
    sent: usize,
}

impl Output {
    /// The bytes to be sent.
    #[must_use]
    pub fn waiting(&self) -> &[u8] {
        self.buffer.get(self.sent..).unwrap_or_default()
    }

    /// Bytes of memory that it holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    /// Whether no further answer may be added until some are sent.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.buffer.len() >= OUTPUT_LEN_HIGH
    }

    /// Where answers are appended.
    pub fn tail(&mut self, pool: &mut Pool) -> &mut Vec<u8> {
        if self.buffer.capacity() == 0 {
            self.buffer = pool.take_output();
        }
        &mut self.buffer
    }

    /// Bytes appended since everything was sent last.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether nothing is to be sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sent == self.buffer.len()
    }

    /// Takes back what was appended behind the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.buffer.truncate(len.max(self.sent));
    }

    /// Forgets what is to be sent.
    pub fn clear(&mut self, pool: &mut Pool) {
        let left_len = self.waiting().len();
        self.sent(left_len, pool);
    }

    /// Says that `len` bytes were sent.
    pub fn sent(&mut self, len: usize, pool: &mut Pool) {
        self.sent = self.sent.saturating_add(len).min(self.buffer.len());
        if self.is_empty() {
            self.sent = 0;
            pool.give_output(std::mem::take(&mut self.buffer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{INPUT_LEN, Input, Output, Pool};

    #[test]
    fn what_waits_survives_a_rest() {
        let mut pool = Pool::default();
        let mut input = Input::default();
        input.space(&mut pool).get_mut(..5).expect("space").copy_from_slice(b"abcde");
        input.filled(5);
        input.consume(2);
        input.rest(&mut pool);
        assert_eq!(input.waiting(), b"cde");
        assert_eq!(pool.inputs.len(), 1);
        assert_eq!(input.space(&mut pool).len(), INPUT_LEN.saturating_sub(3));
        assert_eq!(input.waiting(), b"cde");
        assert_eq!(pool.inputs.len(), 0);
    }

    #[test]
    fn output_goes_back_when_it_is_sent() {
        let mut pool = Pool::default();
        let mut output = Output::default();
        output.tail(&mut pool).extend_from_slice(b"hello");
        output.sent(2, &mut pool);
        output.truncate(1);
        assert_eq!(output.waiting(), b"");
        output.tail(&mut pool).extend_from_slice(b"y");
        assert_eq!(output.waiting(), b"y");
        output.sent(1, &mut pool);
        assert!(output.is_empty());
        assert_eq!(pool.outputs.len(), 1);
    }
}
