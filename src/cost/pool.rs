//! candle's Metal allocator, as its source has it (`candle-core/src/metal_backend/device.rs`). No Mac has proved it yet.
//!
//! A buffer that an operation fills is as large as the next power of two, and one that data are sent in is exact. A
//! request takes the smallest free buffer that is large enough, however much larger that is (`find_available_buffer`).
//! Free buffers are given back where the device is waited for, and only there (`drop_unused_buffers`). Private buffers
//! and those that the processor can read have a pool each; a third kind is beside both.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::memory::trace::{Event, Source};
use crate::units::Bytes;

/// Metal hands memory out in pages of this size.
const PAGE: u64 = 16 << 10;

/// A buffer that was taken; it must be given back to the pool that it is from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    size: u64,
    source: Source,
}

/// The allocator, with what is in its hands and what is taken.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    /// Free buffers by their sizes, and how many of each: private ones and shared ones.
    free: [BTreeMap<u64, usize>; 2],
    total: u64,
    peak: u64,
}

/// Memory that Metal takes for a buffer of this size.
pub(crate) fn pages(size: u64) -> u64 {
    size.next_multiple_of(PAGE)
}

impl Pool {
    /// Takes a buffer for so many bytes.
    pub(crate) fn take(&mut self, bytes: u64, source: Source) -> Slot {
        let kind = match source {
            Source::Private => Some(0),
            Source::Shared => Some(1),
            Source::Upload | Source::Fixed => None,
        };
        if let Some(free) = kind.map(|kind| &mut self.free[kind])
            && let Some((&size, count)) = free.range_mut(bytes..).next()
        {
            *count -= 1;
            if *count == 0 {
                free.remove(&size);
            }
            return Slot { size, source };
        }
        let size = if kind.is_some() { bytes.next_power_of_two() } else { bytes };
        self.total += pages(size);
        self.peak = self.peak.max(self.total);
        Slot { size, source }
    }

    /// Gives a buffer back: to be taken again, or to the system at the next wait.
    pub(crate) fn give(&mut self, slot: Slot) {
        let kind = match slot.source {
            Source::Private => 0,
            Source::Shared | Source::Upload => 1,
            Source::Fixed => {
                self.total -= pages(slot.size);
                return;
            }
        };
        *self.free[kind].entry(slot.size).or_default() += 1;
    }

    /// The device is waited for.
    pub(crate) fn wait(&mut self) {
        for free in &mut self.free {
            self.total -= std::mem::take(free).into_iter().map(|(size, count)| pages(size) * count as u64).sum::<u64>();
        }
    }

    /// Bytes of all buffers, free or not.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The most that they have been.
    pub(crate) fn peak(&self) -> u64 {
        self.peak
    }
}

/// What Metal would make of recorded work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Replay {
    /// Most bytes that were in use at one time.
    pub alive_bytes: Bytes,
    /// Most bytes that the device had allocated at one time.
    pub peak_bytes: Bytes,
    /// Kernels launched.
    pub launches: u64,
    /// Times that the processor waited.
    pub waits: u64,
    /// Bytes that kernels read and wrote, those of matrix products left out.
    pub moved_bytes: Bytes,
    /// Multiplications and additions of matrix products.
    pub flops: u64,
}

/// Plays recorded work through the allocator.
pub fn replay(events: &[Event]) -> Replay {
    let (mut pool, mut open, mut seen) = (Pool::default(), HashMap::new(), Replay::default());
    let mut alive = 0u64;
    for event in events {
        match *event {
            Event::Take { id, bytes, source } if bytes > 0 => {
                open.insert(id, (pool.take(bytes, source), bytes));
                alive += bytes;
                seen.alive_bytes = seen.alive_bytes.max(Bytes(alive));
            }
            Event::Take { .. } => {}
            Event::Give { id } => {
                if let Some((slot, bytes)) = open.remove(&id) {
                    pool.give(slot);
                    alive -= bytes;
                }
            }
            Event::Wait => {
                pool.wait();
                seen.waits += 1;
            }
            Event::Launch { moved, flops, .. } => {
                seen.launches += 1;
                seen.flops += flops;
                if flops == 0 {
                    seen.moved_bytes += Bytes(moved);
                }
            }
        }
    }
    seen.peak_bytes = Bytes(pool.peak());
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes in pages, so that their rounding does not enter.
    fn whole(n: u64) -> u64 {
        n * PAGE
    }

    #[test]
    fn sizes_are_powers_of_two_and_freed_buffers_are_used_again() {
        let mut pool = Pool::default();
        let a = pool.take(whole(3), Source::Private);
        let b = pool.take(whole(9), Source::Private);
        assert_eq!(pool.total(), whole(4 + 16));
        pool.give(a);
        pool.give(b);
        // The smallest that is large enough, and no second one while it is free.
        assert_eq!(pool.take(whole(2), Source::Private).size, whole(4));
        // A small tensor takes a large buffer where nothing else is free: there is no upper bound.
        assert_eq!((pool.take(1, Source::Private).size, pool.total()), (whole(16), whole(20)));
        pool.take(10, Source::Private);
        assert_eq!(pool.total(), whole(21));
    }

    #[test]
    fn what_is_free_goes_at_a_wait_and_what_is_sent_is_exact() {
        let mut pool = Pool::default();
        let sent = pool.take(whole(3), Source::Upload);
        let stays = pool.take(whole(5), Source::Fixed);
        let filled = pool.take(whole(3), Source::Private);
        assert_eq!(pool.total(), whole(3 + 5 + 4));
        pool.give(sent);
        pool.give(stays);
        // It is beside the pools and goes at once; the others serve their own kind.
        assert_eq!(pool.total(), whole(7));
        assert_eq!((pool.take(whole(2), Source::Shared).size, pool.total()), (whole(3), whole(7)));
        pool.give(filled);
        pool.wait();
        assert_eq!((pool.total(), pool.peak()), (whole(3), whole(12)));
    }

    #[test]
    fn a_replay_counts_what_happened() {
        let take = |id, bytes| Event::Take { id, bytes, source: Source::Private };
        let launch = |moved, flops| Event::Launch { kernel: "k", moved, flops };
        let events = [
            take(0, whole(3)),
            launch(10, 0),
            take(1, 0),
            Event::Give { id: 0 },
            take(2, whole(1)),
            launch(5, 8),
            Event::Wait,
        ];
        let expected = Replay {
            alive_bytes: Bytes(whole(3)),
            peak_bytes: Bytes(whole(4)),
            launches: 2,
            waits: 1,
            moved_bytes: Bytes(10),
            flops: 8,
        };
        assert_eq!(replay(&events), expected);
    }
}
