//! The bytes of a connection on their way in and out, and the pool that lends the memory. It owns
//! the sizes; it never reads a byte's meaning. A connection that waits holds no pooled buffer.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::store::{Item, PinnedValue};
use std::io::IoSlice;

/// Bytes that one read takes at most.
pub const INPUT_LEN: usize = 64 << 10;

/// Bytes of answers after which no further request is looked at until they have been taken. One
/// answer may stand above it, so a connection holds this and one item at most.
pub const OUTPUT_LEN_HIGH: usize = 64 << 10;

/// Values from this length on go from the store to the kernel. Below it a copy costs less than a
/// system call for each of several pipelined values.
const DIRECT_LEN_MIN: usize = 32 << 10;

/// The same for a value that is the last answer before the next wait, which has its system call
/// in any case.
pub const DIRECT_LEN_MIN_LAST: usize = 4 << 10;

/// Bytes of a value that are left in the store while the kernel takes no more; fewer are copied.
const PINNED_LEN_MIN: usize = 32 << 10;

/// Pieces of a value that are handed over at once.
const PARTS_MAX: usize = 32;

/// Output buffers that have grown beyond this are freed, not pooled.
const OUTPUT_KEEP_MAX: usize = 4 * OUTPUT_LEN_HIGH;

/// What a fresh output buffer holds.
const OUTPUT_LEN_FIRST: usize = 4 << 10;

/// Input buffers that a worker keeps for the next turn.
const INPUTS_POOLED_MAX: usize = 16;

/// Bytes of output buffers that it keeps: all connections may have answers under way at once.
const OUTPUTS_POOLED_LEN_MAX: usize = 4 << 20;

/// Bytes that wait in an input and are worth copying, so that its buffer serves others meanwhile.
const GIVE_WAY_LEN_MAX: usize = 4 << 10;

/// A worker's spare buffers.
#[derive(Debug, Default)]
pub struct Pool {
    inputs: Vec<Vec<u8>>,
    outputs: Vec<Vec<u8>>,
    /// Bytes of `outputs`.
    outputs_len: usize,
}

impl Pool {
    fn take_input(&mut self) -> Vec<u8> {
        self.inputs.pop().unwrap_or_else(|| vec![0; INPUT_LEN])
    }

    fn give_input(&mut self, buffer: Vec<u8>) {
        if buffer.len() == INPUT_LEN && self.inputs.len() < INPUTS_POOLED_MAX {
            self.inputs.push(buffer);
        }
    }

    fn take_output(&mut self) -> Vec<u8> {
        let Some(buffer) = self.outputs.pop() else { return Vec::with_capacity(OUTPUT_LEN_FIRST) };
        self.outputs_len = self.outputs_len.saturating_sub(buffer.capacity());
        buffer
    }

    /// Takes the memory of answers back.
    pub fn give_output(&mut self, mut buffer: Vec<u8>) {
        let len = self.outputs_len.saturating_add(buffer.capacity());
        if buffer.capacity() <= OUTPUT_KEEP_MAX && len <= OUTPUTS_POOLED_LEN_MAX {
            buffer.clear();
            self.outputs.push(buffer);
            self.outputs_len = len;
        }
    }
}

/// Where bytes can be sent at once.
pub trait Wire {
    /// Hands over `parts` in their order without a wait; how many bytes were taken. Whatever
    /// keeps it from taking any is met again by whoever sends the rest.
    fn send(&self, parts: &[IoSlice<'_>]) -> usize;
}

/// The wire for a value of this length, if that is worth a system call of its own. `last`:
/// nothing else will be answered before the next wait.
#[must_use]
pub fn wire_for(wire: Option<&dyn Wire>, value_len: usize, last: bool) -> Option<&dyn Wire> {
    let least = if last { DIRECT_LEN_MIN_LAST } else { DIRECT_LEN_MIN };
    wire.filter(|_| value_len >= least)
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

    /// [`Input::rest`] for as long as others have their turn, unless more waits than that is worth.
    pub fn give_way(&mut self, pool: &mut Pool) {
        if self.waiting().len() <= GIVE_WAY_LEN_MAX {
            self.rest(pool);
        }
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
///
/// ```text
/// sent first          then, if there is one      then
/// buffer[sent..at]    the rest of a value        buffer[at..]
/// ```
#[derive(Debug, Default)]
pub struct Output {
    buffer: Vec<u8>,
    sent: usize,
    rest: Option<Box<Rest>>,
}

/// The rest of a value that stays in the store until the client has taken it.
#[derive(Debug)]
struct Rest {
    value: PinnedValue,
    /// What follows the value.
    end: &'static [u8],
    /// Bytes of value and end that were taken.
    taken: usize,
    /// Where in the buffer it has its place.
    at: usize,
}

impl Rest {
    /// What was not taken, as slices.
    fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let mut taken = self.taken;
        self.value.slices().chain(std::iter::once(self.end)).filter_map(move |slice| {
            let left = slice.get(taken.min(slice.len())..).unwrap_or_default();
            taken = taken.saturating_sub(slice.len());
            Some(left).filter(|left| !left.is_empty())
        })
    }

    /// Bytes that were not taken.
    fn len(&self) -> usize {
        self.value.len().saturating_add(self.end.len()).saturating_sub(self.taken)
    }
}

impl Output {
    /// The bytes to be sent next, as far as they stand in one place. Empty when there are none.
    #[must_use]
    pub fn waiting(&self) -> &[u8] {
        match &self.rest {
            None => self.buffer.get(self.sent..).unwrap_or_default(),
            Some(rest) if self.sent < rest.at => {
                self.buffer.get(self.sent..rest.at).unwrap_or_default()
            }
            Some(rest) => rest.slices().next().unwrap_or_default(),
        }
    }

    /// All that is to be sent, in its order, as far as `parts` has room; how many places it took.
    pub fn parts<'a>(&'a self, parts: &mut [IoSlice<'a>]) -> usize {
        let at = self.rest.as_ref().map_or(self.buffer.len(), |rest| rest.at);
        let before = self.buffer.get(self.sent..at).unwrap_or_default();
        let behind = self.buffer.get(self.sent.max(at)..).unwrap_or_default();
        let rest = self.rest.iter().flat_map(|rest| rest.slices());
        let all = std::iter::once(before).chain(rest).chain(std::iter::once(behind));
        let mut count: usize = 0;
        for (place, slice) in parts.iter_mut().zip(all.filter(|slice| !slice.is_empty())) {
            *place = IoSlice::new(slice);
            count = count.saturating_add(1);
        }
        count
    }

    /// Whether a part of a value is still in the store.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.rest.is_some()
    }

    /// Copies what is still in the store, so that it is not kept there any longer.
    pub fn settle(&mut self) {
        let Some(rest) = self.rest.take() else { return };
        let mut buffer = Vec::with_capacity(self.buffer.len().saturating_add(rest.len()));
        buffer.extend_from_slice(self.buffer.get(self.sent..rest.at).unwrap_or_default());
        rest.slices().for_each(|slice| buffer.extend_from_slice(slice));
        buffer.extend_from_slice(self.buffer.get(self.sent.max(rest.at)..).unwrap_or_default());
        self.buffer = buffer;
        self.sent = 0;
    }

    /// Bytes of memory that it holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        let pinned_len = self.rest.as_ref().map_or(0, |rest| rest.value.len());
        self.buffer.capacity().saturating_add(pinned_len)
    }

    /// Whether no further answer may be added until some are sent.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.buffer.len() >= OUTPUT_LEN_HIGH || self.rest.is_some()
    }

    /// Where answers are appended.
    pub fn tail(&mut self, pool: &mut Pool) -> &mut Vec<u8> {
        if self.buffer.capacity() == 0 {
            self.buffer = pool.take_output();
        }
        &mut self.buffer
    }

    /// Appends the value of an item and what follows it. With a wire the kernel is offered all
    /// that waits and the value where it stands; what it does not take stays in the store if it
    /// is much and may be kept there, and is copied else.
    pub fn append_value(
        &mut self,
        item: &Item<'_>,
        end: &'static [u8],
        wire: Option<&dyn Wire>,
        pool: &mut Pool,
    ) {
        let Some(wire) = wire.filter(|_| self.rest.is_none()) else {
            let out = self.tail(pool);
            match item.value_in_one() {
                Some(value) => out.extend_from_slice(value),
                None => item.value().for_each(|slice| out.extend_from_slice(slice)),
            }
            return out.extend_from_slice(end);
        };
        let all_len = item.value_len().saturating_add(end.len());
        let slices = || item.value().chain(std::iter::once(end));
        let taken = self.offer_all(slices(), wire, pool);
        let left_len = all_len.saturating_sub(taken);
        if left_len >= PINNED_LEN_MIN
            && let Some(value) = item.pin()
        {
            let at = self.buffer.len();
            self.rest = Some(Box::new(Rest { value, end, taken, at }));
        } else if left_len > 0 {
            let (out, mut taken) = (self.tail(pool), taken);
            for slice in slices() {
                out.extend_from_slice(slice.get(taken..).unwrap_or_default());
                taken = taken.saturating_sub(slice.len());
            }
        }
    }

    /// Offers what waits and the slices behind it; how many bytes of the slices were taken.
    fn offer_all<'v>(
        &mut self,
        mut rest: impl Iterator<Item = &'v [u8]>,
        wire: &dyn Wire,
        pool: &mut Pool,
    ) -> usize {
        let mut taken: usize = 0;
        loop {
            let mut slices: [&[u8]; PARTS_MAX] = [&[]; PARTS_MAX];
            let mut count: usize = 0;
            for (place, slice) in slices.iter_mut().zip(rest.by_ref()) {
                *place = slice;
                count = count.saturating_add(1);
            }
            let slices = slices.get(..count).unwrap_or_default();
            if count == 0 {
                return taken;
            }
            let missing = self.offer(slices, wire, pool);
            let offered: usize = slices.iter().map(|slice| slice.len()).sum();
            taken = taken.saturating_add(offered.saturating_sub(missing));
            if missing > 0 {
                return taken;
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
        self.rest.is_none() && self.sent == self.buffer.len()
    }

    /// Takes back what was appended behind the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        let kept = self.rest.as_ref().map_or(self.sent, |rest| rest.at);
        self.buffer.truncate(len.max(kept));
    }

    /// Gives all away that is to be sent: the memory, and the index from which it is. What is
    /// still in the store is copied.
    pub fn take(&mut self) -> (Vec<u8>, usize) {
        self.settle();
        (std::mem::take(&mut self.buffer), std::mem::take(&mut self.sent))
    }

    /// Forgets what is to be sent.
    pub fn clear(&mut self, pool: &mut Pool) {
        self.rest = None;
        self.sent = 0;
        self.buffer.clear();
        self.sent(0, pool);
    }

    /// Says that `len` bytes were sent.
    pub fn sent(&mut self, len: usize, pool: &mut Pool) {
        let mut len = len;
        if let Some(rest) = &mut self.rest {
            let before = len.min(rest.at.saturating_sub(self.sent));
            self.sent = self.sent.saturating_add(before);
            len = len.saturating_sub(before);
            let within = len.min(rest.len());
            rest.taken = rest.taken.saturating_add(within);
            len = len.saturating_sub(within);
            if rest.len() > 0 {
                return;
            }
            self.rest = None;
        }
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
    use crate::clock::Now;
    use crate::store::Store;
    use crate::store::types::{ClientFlags, Key, Lifetime, Mode, StoreConfig};
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

    #[test]
    fn an_input_gives_way_unless_much_waits_in_it() {
        let mut pool = Pool::default();
        for (waiting_len, gives) in [(0, true), (4 << 10, true), ((4 << 10) + 1, false)] {
            let mut input = Input::default();
            input.space(&mut pool).fill(b'i');
            input.filled(waiting_len);
            pool.inputs.clear();
            input.give_way(&mut pool);
            assert_eq!(pool.inputs.len(), usize::from(gives), "{waiting_len}");
            assert!(input.waiting() == vec![b'i'; waiting_len], "{waiting_len}");
        }
    }

    #[test]
    fn buffers_of_answers_are_kept_by_their_bytes() {
        let mut pool = Pool::default();
        for _ in 0..100 {
            pool.give_output(Vec::with_capacity(128 << 10));
        }
        assert_eq!(pool.outputs.len(), (4 << 20) / (128 << 10));
        (0..pool.outputs.len()).for_each(|_| drop(pool.take_output()));
        assert_eq!(pool.outputs_len, 0);
        assert_eq!(pool.take_output().capacity(), 4 << 10);
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

    const NOW: Now = Now { realtime_ns: 1_700_000_000_000_000_000, boottime_ns: 1_000_000_000 };

    /// Sends a value of so many bytes to a client that takes `limit` at once and then, in turns
    /// of `step`, the rest; when `settles`, the store is left after the first of them. Whether a
    /// part stayed in the store.
    fn send(value_len: usize, limit: usize, step: usize, settles: bool) -> bool {
        let config = StoreConfig { workers: 1, ..StoreConfig::default() };
        let store = Store::create(&config).expect("a small store");
        let mut worker = store.worker().expect("the first worker");
        let key = Key::new(b"key").expect("a key");
        let value: Vec<u8> = (0..=250).cycle().take(value_len).collect();
        worker.set(key, &value, ClientFlags(0), Lifetime::Never, Mode::Set, NOW);
        let expected = [b"head ", value.as_slice(), b"\r\n", b"more"].concat();
        let (mut pool, mut output) = (Pool::default(), Output::default());
        output.tail(&mut pool).extend_from_slice(b"head ");
        let wire = Greedy { left: Cell::new(limit), taken: RefCell::default() };
        let item = worker.get(key, NOW).expect("it was stored");
        output.append_value(&item, b"\r\n", Some(&wire), &mut pool);
        let was_pinned = output.is_pinned();
        worker.set(key, b"other", ClientFlags(0), Lifetime::Never, Mode::Set, NOW);
        worker.quiesce();
        output.tail(&mut pool).extend_from_slice(b"more");
        output.truncate(output.len());
        let mut sent = wire.taken.into_inner();
        while !output.is_empty() {
            let mut parts = [IoSlice::new(&[]); 3];
            let count = output.parts(&mut parts);
            let all: Vec<u8> = parts.iter().take(count).flat_map(|part| part.to_vec()).collect();
            assert!(all.starts_with(output.waiting()) && !output.waiting().is_empty());
            let len = all.len().min(step);
            sent.extend(all.iter().take(len));
            output.sent(len, &mut pool);
            if settles {
                output.settle();
                assert!(!output.is_pinned());
            }
        }
        assert!(sent == expected, "{value_len} {limit} {step} {settles}");
        assert_eq!((output.len(), output.capacity()), (0, 0));
        worker.quiesce();
        store.validate().expect("nothing is kept");
        was_pinned
    }

    #[test]
    fn a_value_is_sent_whole_and_in_order_wherever_the_kernel_stops() {
        for settles in [false, true] {
            for limit in (0..20).chain(990..1010) {
                assert!(!send(1000, limit, 7, settles), "little is copied");
            }
            for limit in [0, 3, 5, 6, 65_000, 65_536, 70_000, 167_000] {
                for step in [999, 65_537, 1 << 20] {
                    assert!(send(200_000, limit, step, settles), "much stays in the store");
                }
            }
            for limit in [199_990, 200_004, 200_005, 200_006, 200_007] {
                assert!(!send(200_000, limit, 1, settles));
            }
        }
    }

    #[test]
    fn what_is_forgotten_is_kept_no_longer() {
        let store = Store::create(&StoreConfig::default()).expect("a small store");
        let mut worker = store.worker().expect("the first worker");
        let key = Key::new(b"key").expect("a key");
        worker.set(key, &vec![1; 100_000], ClientFlags(0), Lifetime::Never, Mode::Set, NOW);
        let (mut pool, mut output) = (Pool::default(), Output::default());
        let wire = Greedy { left: Cell::new(0), taken: RefCell::default() };
        let item = worker.get(key, NOW).expect("it was stored");
        output.append_value(&item, b"", Some(&wire), &mut pool);
        assert!(output.is_pinned() && output.is_full() && output.capacity() >= 100_000);
        output.clear(&mut pool);
        assert!(output.is_empty() && !output.is_pinned() && output.capacity() == 0);
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
