//! A step played through without a step: what is alive after each allocation and each release.

use crate::cost::ledger::{Item, MemoryLedger, Phase};
use crate::cost::pool::{Pool, Slot};
use crate::memory::trace::Source;

/// What Metal's allocator holds beside what was asked for: sizes rounded up, and free buffers.
const BESIDE: &str = "Metal's pool";

/// Memory over time. Things of the same name are counted together.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    resident: Vec<Item>,
    /// Bytes alive now, by name: a few, so that a search by name is quicker than any map.
    live: Vec<(&'static str, u64)>,
    total: u64,
    phases: Vec<Highest>,
    largest: Option<(&'static str, u64)>,
    /// Buffers that candle's Metal allocator would hold, where that is asked for.
    pool: Option<Pool>,
}

#[derive(Debug)]
struct Highest {
    name: &'static str,
    /// Bytes held, and those of them that are in use.
    total: u64,
    alive: u64,
    live: Vec<(&'static str, u64)>,
}

/// Something alive; it must be given back to [`Timeline::free`].
#[derive(Debug)]
#[must_use]
pub(crate) struct Live {
    name: &'static str,
    bytes: u64,
    slot: Option<Slot>,
}

impl Timeline {
    /// A timeline of what candle's Metal allocator holds: what is alive, and what it has beside.
    pub(crate) fn pooled() -> Self {
        Self { pool: Some(Pool::default()), ..Self::default() }
    }

    /// Adds memory that stays for the whole run.
    pub(crate) fn resident(&mut self, name: &str, bytes: u64) {
        self.resident.push(Item::new(name, bytes));
    }

    /// Begins a phase, to which everything after it belongs; a phase may come again.
    pub(crate) fn phase(&mut self, name: &'static str) {
        match self.phases.iter().position(|p| p.name == name) {
            Some(i) => self.phases[i..].rotate_left(1),
            None => self.phases.push(Highest { name, total: 0, alive: 0, live: Vec::new() }),
        }
        self.note();
    }

    /// Counts an allocation of so many bytes under this name.
    pub(crate) fn alloc(&mut self, name: &'static str, bytes: u64) -> Live {
        self.alloc_from(name, bytes, Source::Private)
    }

    /// [`Timeline::alloc`] of a buffer that a device takes from elsewhere.
    pub(crate) fn alloc_from(&mut self, name: &'static str, bytes: u64, source: Source) -> Live {
        *self.place(name) += bytes;
        self.total += bytes;
        if self.largest.is_none_or(|(_, largest)| largest < bytes) {
            self.largest = Some((name, bytes));
        }
        let slot = self.pool.as_mut().filter(|_| bytes > 0).map(|pool| pool.take(bytes, source));
        self.note();
        Live { name, bytes, slot }
    }

    fn place(&mut self, name: &'static str) -> &mut u64 {
        let i = self.live.iter().position(|(n, _)| std::ptr::eq(*n, name) || *n == name).unwrap_or_else(|| {
            self.live.push((name, 0));
            self.live.len() - 1
        });
        &mut self.live[i].1
    }

    /// Counts the release of an allocation.
    pub(crate) fn free(&mut self, live: Live) {
        self.total -= live.bytes;
        *self.place(live.name) -= live.bytes;
        if let (Some(pool), Some(slot)) = (&mut self.pool, live.slot) {
            pool.give(slot);
        }
    }

    /// The device is waited for, and what is free there is given back.
    pub(crate) fn wait(&mut self) {
        if let Some(pool) = &mut self.pool {
            pool.wait();
        }
    }

    /// The same memory under another name: a tensor's role changes as the step goes on.
    pub(crate) fn rename(&mut self, live: Live, name: &'static str) -> Live {
        *self.place(live.name) -= live.bytes;
        *self.place(name) += live.bytes;
        Live { name, ..live }
    }

    /// Counts an allocation and its release, with nothing between.
    pub(crate) fn brief(&mut self, name: &'static str, bytes: u64) {
        let live = self.alloc(name, bytes);
        self.free(live);
    }

    fn note(&mut self) {
        let held = self.pool.as_ref().map_or(self.total, Pool::total);
        if let Some(phase) = self.phases.last_mut()
            // Of moments that hold the same, the one in which most of it is in use.
            && (held, self.total) >= (phase.total, phase.alive)
        {
            (phase.total, phase.alive) = (held, self.total);
            phase.live.clone_from(&self.live);
            phase.live.push((BESIDE, held.saturating_sub(self.total)));
        }
    }

    /// The ledger of the step: the highest moment of each phase.
    pub(crate) fn ledger(self) -> MemoryLedger {
        let items = |mut live: Vec<(&str, u64)>| {
            live.sort_unstable();
            live.into_iter().filter(|(_, b)| *b > 0).map(|(n, b)| Item::new(n, b)).collect()
        };
        MemoryLedger {
            resident: self.resident,
            phases: self.phases.into_iter().map(|p| Phase::new(p.name, items(p.live))).collect(),
            largest_buffer: self.largest.map_or(Item::new("nothing", 0), |(n, b)| Item::new(n, b)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Bytes;

    #[test]
    fn each_phase_keeps_its_tallest_moment() {
        let mut t = Timeline::default();
        t.resident("weights", 100);
        t.phase("forward");
        let x = t.alloc("x", 10);
        t.brief("scores", 30);
        t.phase("backward");
        let g = t.alloc("g", 10);
        t.free(x);
        t.brief("scores", 5);
        t.phase("forward");
        t.brief("scores", 1);
        t.free(g);
        let ledger = t.ledger();
        assert_eq!(ledger.peak(), Bytes(140));
        assert_eq!(ledger.largest_buffer, Item::new("scores", 30));
        let backward = ledger.phases.iter().find(|p| p.name == "backward").unwrap();
        assert_eq!(backward.total(), Bytes(20));
    }
}
