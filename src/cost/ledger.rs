//! A memory ledger: a timeline of phases, each with what is alive in it. The peak is the tallest phase.

use serde::{Deserialize, Serialize};

use crate::units::Bytes;

/// Bytes of a number that is computed with.
pub(crate) const F32: u64 = 4;

/// One named thing in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// What it is: `base weights`, `block inputs`, `logits`.
    pub name: String,
    /// Its size.
    pub bytes: Bytes,
}

/// A moment of the run, with everything alive in it besides what is resident.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// `load`, `forward`, `loss`, `backward`, `optimizer`, `save`.
    pub name: String,
    /// Alive in this phase only.
    pub items: Vec<Item>,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryLedger {
    /// Alive from loading to the end.
    pub resident: Vec<Item>,
    /// In the order they happen in a step.
    pub phases: Vec<Phase>,
    /// The largest single buffer.
    pub largest_buffer: Item,
}

impl Item {
    /// A new one.
    pub(crate) fn new(name: &str, bytes: u64) -> Self {
        Self { name: name.into(), bytes: Bytes(bytes) }
    }
}

impl Phase {
    /// A new one.
    pub(crate) fn new(name: &str, items: Vec<Item>) -> Self {
        Self { name: name.into(), items }
    }

    /// Sum of what is alive in this phase only.
    pub fn total(&self) -> Bytes {
        self.items.iter().map(|i| i.bytes).sum()
    }
}

impl MemoryLedger {
    /// Sum of what is always alive.
    pub fn resident_total(&self) -> Bytes {
        self.resident.iter().map(|i| i.bytes).sum()
    }

    /// The tallest phase.
    pub fn tallest(&self) -> Option<&Phase> {
        self.phases.iter().max_by_key(|p| p.total())
    }

    /// Height of the tallest moment.
    pub fn peak(&self) -> Bytes {
        self.resident_total() + self.tallest().map_or(Bytes(0), Phase::total)
    }

    /// Everything alive at the tallest moment, with the phase it belongs to, largest first.
    pub(crate) fn at_peak(&self) -> Vec<(&Item, &str)> {
        let resident = self.resident.iter().map(|i| (i, "resident"));
        let tallest = self.tallest().into_iter().flat_map(|p| p.items.iter().map(|i| (i, p.name.as_str())));
        let mut all: Vec<_> = resident.chain(tallest).filter(|(i, _)| i.bytes > Bytes(0)).collect();
        all.sort_by_key(|(i, _)| std::cmp::Reverse(i.bytes));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_the_tallest_moment_and_not_the_sum() {
        let ledger = MemoryLedger {
            resident: vec![Item::new("weights", 100)],
            phases: vec![
                Phase::new("loss", vec![Item::new("logits", 70)]),
                Phase::new("backward", vec![Item::new("scores", 50), Item::new("grads", 30)]),
            ],
            largest_buffer: Item::new("logits", 70),
        };
        assert_eq!(ledger.peak(), Bytes(180));
        let names: Vec<_> = ledger.at_peak().iter().map(|(i, phase)| (i.name.clone(), phase.to_string())).collect();
        assert_eq!(
            names,
            [("weights", "resident"), ("scores", "backward"), ("grads", "backward")]
                .map(|(a, b)| (a.to_string(), b.to_string()))
        );
    }
}
