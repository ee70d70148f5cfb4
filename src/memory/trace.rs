//! What a back end takes, launches and waits for, in order: the record that a replay is played from.
//!
//! A back end tells of each buffer it takes. That it was given back, the counting allocator sees: a recording needs
//! [`crate::memory::Counting`] as the global allocator, and work that is done on one thread.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

/// Where a device would take a buffer from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Buffers that operations fill, which nobody but the device can read.
    Private,
    /// Buffers that the processor can read too.
    Shared,
    /// A buffer made for data that the processor sends.
    Upload,
    /// A buffer that is made once and stays, beside any pool.
    Fixed,
}

/// One thing that happened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// A buffer was taken; buffers are counted from 0.
    Take {
        /// Its number.
        id: usize,
        /// Its size, bytes.
        bytes: u64,
        /// Where from.
        source: Source,
    },
    /// A buffer was given back.
    Give {
        /// Its number.
        id: usize,
    },
    /// The processor waited for the device.
    Wait,
    /// A kernel was launched.
    Launch {
        /// Its name.
        kernel: &'static str,
        /// Bytes that it reads and writes.
        moved: u64,
        /// Multiplications and additions of a matrix product, else 0.
        flops: u64,
    },
}

#[derive(Default)]
struct Recorder {
    events: Vec<Event>,
    /// Numbers of the buffers that are taken, by their address.
    open: HashMap<usize, usize>,
    taken: usize,
}

impl Recorder {
    /// Notes that a buffer was taken, and gives its number.
    fn take(&mut self, bytes: u64, source: Source) -> usize {
        let id = self.taken;
        self.taken += 1;
        self.events.push(Event::Take { id, bytes, source });
        id
    }
}

thread_local! {
    /// Whether this thread records, and is not at it just now.
    static RECORDING: Cell<bool> = const { Cell::new(false) };
    static RECORDER: RefCell<Recorder> = RefCell::default();
}

/// Whether this thread records.
pub(crate) fn recording() -> bool {
    RECORDING.get()
}

/// Changes the record; what that allocates and frees itself is not in it.
fn record(f: impl FnOnce(&mut Recorder)) {
    if RECORDING.get() {
        RECORDING.set(false);
        // A thread that ends frees what it kept for itself after its records are gone.
        let there = RECORDER.try_with(|r| f(&mut r.borrow_mut())).is_ok();
        RECORDING.set(there);
    }
}

/// Ends a recording, whatever becomes of what is recorded.
struct Recording;

impl Drop for Recording {
    fn drop(&mut self) {
        RECORDING.set(false);
    }
}

/// Records what `f` does on this thread, and gives it with what `f` gives.
pub(crate) fn recorded<R>(f: impl FnOnce() -> R) -> (R, Vec<Event>) {
    RECORDER.with_borrow_mut(|r| *r = Recorder::default());
    RECORDING.set(true);
    let recording = Recording;
    let result = f();
    drop(recording);
    (result, RECORDER.with_borrow_mut(std::mem::take).events)
}

/// How many events there are so far.
pub(crate) fn recorded_so_far() -> usize {
    RECORDER.with_borrow(|r| r.events.len())
}

/// A buffer that stands at this address was taken.
pub(crate) fn take(address: usize, bytes: u64, source: Source) {
    record(|r| {
        let id = r.take(bytes, source);
        r.open.insert(address, id);
    });
}

/// A buffer was taken that stays to the end.
pub(crate) fn keep(bytes: u64, source: Source) {
    record(|r| _ = r.take(bytes, source));
}

/// The processor read `bytes` back: into a buffer of its own, for which it waited.
pub(crate) fn read_back(bytes: u64) {
    record(|r| {
        let id = r.take(bytes, Source::Shared);
        r.events.extend([Event::Wait, Event::Give { id }]);
    });
}

/// The processor waited.
pub(crate) fn wait() {
    record(|r| r.events.push(Event::Wait));
}

/// A kernel was launched.
pub(crate) fn launch(kernel: &'static str, moved: u64, flops: u64) {
    record(|r| r.events.push(Event::Launch { kernel, moved, flops }));
}

/// Memory at this address is no longer anybody's.
pub(super) fn freed(address: usize) {
    if RECORDING.try_with(Cell::get).unwrap_or(false) {
        record(|r| {
            if let Some(id) = r.open.remove(&address) {
                r.events.push(Event::Give { id });
            }
        });
    }
}
