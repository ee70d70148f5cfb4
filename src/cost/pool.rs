//! What candle's Metal allocator makes of a step: a layer above the ledger. No Mac has proved it yet.
//!
//! Every buffer that an operation fills is as large as the next power of two, a request is served by the smallest free
//! buffer that is large enough (however much larger that is), and what is free is given back only when the device is
//! waited for, once a step (`candle-core/src/metal_backend/device.rs`: `buf_size`, `find_available_buffer`,
//! `drop_unused_buffers`). Weights and rows are uploaded at their exact size, in a second pool that a step does not
//! draw from: they are the ledger's resident part.

/// The private buffer pool of candle's Metal allocator through one step.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    /// Size of each buffer in bytes, and whether it is in use.
    buffers: Vec<(u64, bool)>,
}

impl Pool {
    /// Takes a buffer for so many bytes and returns its number.
    pub(crate) fn take(&mut self, bytes: u64) -> usize {
        let size = bytes.next_power_of_two();
        let free = (0..self.buffers.len()).filter(|&i| !self.buffers[i].1 && self.buffers[i].0 >= size);
        let slot = free.min_by_key(|&i| self.buffers[i].0).unwrap_or_else(|| {
            self.buffers.push((size, false));
            self.buffers.len() - 1
        });
        self.buffers[slot].1 = true;
        slot
    }

    /// Frees a buffer for others; the pool keeps its memory.
    pub(crate) fn give(&mut self, slot: usize) {
        self.buffers[slot].1 = false;
    }

    /// Sum of all buffers of the pool, bytes: nothing is given back within a step.
    pub(crate) fn total(&self) -> u64 {
        self.buffers.iter().map(|b| b.0).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_two_and_freed_buffers_are_used_again() {
        let mut pool = Pool::default();
        let a = pool.take(1000);
        let b = pool.take(3000);
        assert_eq!(pool.total(), 1024 + 4096);
        pool.give(a);
        pool.give(b);
        // The smallest that is large enough, and no second one while it is free.
        let c = pool.take(1024);
        assert_eq!((c, pool.total()), (a, 5120));
        // A small tensor takes a large buffer where nothing else is free: there is no upper bound.
        let d = pool.take(10);
        assert_eq!((d, pool.total()), (b, 5120));
        pool.take(10);
        assert_eq!(pool.total(), 5120 + 16);
    }
}
