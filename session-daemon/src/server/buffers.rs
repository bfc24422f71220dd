//! The bytes of a connection on their way in and out, and the pool that lends the memory. It owns
//! the sizes; it never reads a byte's meaning. A connection that waits holds no pooled buffer.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use std::io::IoSlice;

/// Bytes that one read takes at most.
pub const INPUT_LEN: usize = 64 << 10;

/// Bytes of answers after which no further request is looked at until they have been taken. One
/// answer may stand above it, so a connection holds this and one item at most.
pub const OUTPUT_LEN_HIGH: usize = 64 << 10;

/// Values from this length on go from the store to the kernel, if it takes them at once. Below it
/// a copy costs less than a system call for each of several pipelined values.
const DIRECT_LEN_MIN: usize = 32 << 10;

/// Pieces of a value that are handed over at once.
const PARTS_MAX: usize = 32;

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

/// Where bytes can be sent at once.
pub trait Wire {
    /// Hands over `parts` in their order without a wait; how many bytes were taken. Whatever
    /// keeps it from taking any is met again by whoever sends the rest.
    fn send(&self, parts: &[IoSlice<'_>]) -> usize;
}

/// The wire for a value of this length, if that is worth a system call of its own.
#[must_use]
pub fn wire_for(wire: Option<&dyn Wire>, value_len: usize) -> Option<&dyn Wire> {
    wire.filter(|_| value_len >= DIRECT_LEN_MIN)
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

    /// Appends a value and what follows it. With a wire the kernel is offered all that waits and
    /// the value where it stands, and only what it does not take is copied.
    pub fn append_value<'v>(
        &mut self,
        value: impl Iterator<Item = &'v [u8]>,
        end: &'v [u8],
        wire: Option<&dyn Wire>,
        pool: &mut Pool,
    ) {
        let Some(wire) = wire else {
            let out = self.tail(pool);
            value.for_each(|slice| out.extend_from_slice(slice));
            return out.extend_from_slice(end);
        };
        let mut rest = value.chain(std::iter::once(end));
        loop {
            let mut slices: [&[u8]; PARTS_MAX] = [&[]; PARTS_MAX];
            let mut count: usize = 0;
            for (place, slice) in slices.iter_mut().zip(rest.by_ref()) {
                *place = slice;
                count = count.saturating_add(1);
            }
            let slices = slices.get(..count).unwrap_or_default();
            if count == 0 {
                return;
            }
            let missing = self.offer(slices, wire, pool);
            if missing > 0 {
                let out = self.tail(pool);
                let offered: usize = slices.iter().map(|slice| slice.len()).sum();
                let mut taken = offered.saturating_sub(missing);
                for slice in slices {
                    out.extend_from_slice(slice.get(taken..).unwrap_or_default());
                    taken = taken.saturating_sub(slice.len());
                }
                return rest.for_each(|slice| out.extend_from_slice(slice));
            }
        }
    }

    /// Offers what waits and `slices` behind it; how many bytes of the slices were not taken.
    fn offer(&mut self, slices: &[&[u8]], wire: &dyn Wire, pool: &mut Pool) -> usize {
        let mut parts = [IoSlice::new(&[]); PARTS_MAX + 1];
        let all = std::iter::once(self.waiting()).chain(slices.iter().copied());
        for (place, slice) in parts.iter_mut().zip(all) {
            *place = IoSlice::new(slice);
        }
        let taken_len = wire.send(parts.get(..=slices.len()).unwrap_or_default());
        let waiting_len = self.waiting().len();
        self.sent(taken_len.min(waiting_len), pool);
        let offered: usize = slices.iter().map(|slice| slice.len()).sum();
        offered.saturating_sub(taken_len.saturating_sub(waiting_len))
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
    use super::{INPUT_LEN, Input, Output, Pool, Wire};
    use std::cell::{Cell, RefCell};
    use std::io::IoSlice;

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

    /// Takes so many bytes in all, then none.
    struct Greedy {
        left: Cell<usize>,
        taken: RefCell<Vec<u8>>,
    }

    impl Wire for Greedy {
        fn send(&self, parts: &[IoSlice<'_>]) -> usize {
            let all: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
            let len = all.len().min(self.left.get());
            self.left.set(self.left.get().saturating_sub(len));
            self.taken.borrow_mut().extend(all.iter().take(len));
            len
        }
    }

    #[test]
    fn a_value_is_sent_whole_and_in_order_wherever_the_kernel_stops() {
        let value: Vec<u8> = (0..=255).cycle().take(1000).collect();
        let expected = [b"head ", value.as_slice(), b"\r\n"].concat();
        // More slices than are handed over at once, and fewer.
        for slice_len in [1000, 300, 7] {
            for limit in 0..=expected.len() {
                let mut pool = Pool::default();
                let mut output = Output::default();
                output.tail(&mut pool).extend_from_slice(b"head ");
                let wire = Greedy { left: Cell::new(limit), taken: RefCell::default() };
                let slices = value.chunks(slice_len);
                output.append_value(slices, b"\r\n", Some(&wire), &mut pool);
                let sent = [wire.taken.into_inner().as_slice(), output.waiting()].concat();
                assert_eq!(sent, expected, "{slice_len} {limit}");
                let copied_len = output.waiting().len();
                assert_eq!(copied_len, expected.len().saturating_sub(limit));
            }
        }
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
