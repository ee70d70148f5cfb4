//! A memory ledger: a timeline of phases, each with what is alive in it. The peak is the tallest phase.

use serde::{Deserialize, Serialize};

use crate::units::Bytes;

/// Size of an f32 number, bytes.
pub(crate) const F32: u64 = 4;

/// A named use of memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Name of the use, such as `base weights`, `block inputs` or `logits`.
    pub name: String,
    /// Size of the item in memory, bytes.
    pub bytes: Bytes,
}

/// A phase of the run at its highest moment, with everything alive in it besides what is resident.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// Name of the phase: `load`, `forward`, `loss`, `backward`, `optimizer`, `save`, `validation`.
    pub name: String,
    /// Everything alive at the phase's highest moment that is not resident.
    pub items: Vec<Item>,
}

/// Memory of a run: what is resident, and what each phase of a step adds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryLedger {
    /// Items alive from loading to the end of the run.
    pub resident: Vec<Item>,
    /// Phases of a step, in the order in which they happen.
    pub phases: Vec<Phase>,
    /// Largest single buffer of a step.
    pub largest_buffer: Item,
}

impl Item {
    /// A use of memory of this name and size in bytes.
    pub(crate) fn new(name: &str, bytes: u64) -> Self {
        Self { name: name.into(), bytes: Bytes(bytes) }
    }
}

impl Phase {
    /// A phase of this name with these items.
    pub(crate) fn new(name: &str, items: Vec<Item>) -> Self {
        Self { name: name.into(), items }
    }

    /// Sum of the items of this phase, bytes.
    pub fn total(&self) -> Bytes {
        self.items.iter().map(|i| i.bytes).sum()
    }
}

impl MemoryLedger {
    /// Sum of the resident items, bytes.
    pub fn resident_total(&self) -> Bytes {
        self.resident.iter().map(|i| i.bytes).sum()
    }

    /// The phase that takes the most memory, in which the peak is reached.
    pub fn tallest(&self) -> Option<&Phase> {
        self.phases.iter().max_by_key(|p| p.total())
    }

    /// Peak memory, bytes: what is resident and the phase that takes the most.
    pub fn peak(&self) -> Bytes {
        self.resident_total() + self.tallest().map_or(Bytes(0), Phase::total)
    }

    /// Everything alive at the peak, with the phase it belongs to, largest first.
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
