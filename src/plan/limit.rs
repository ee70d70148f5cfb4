//! The limits that a run is held to.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::predict::{Prediction, Request};
use crate::spec::machine::{Accelerator, Machine};
use crate::spec::run::Engine;
use crate::units::{Bytes, Estimate};

/// What is limited, and by whom; files write it by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LimitKind {
    /// Footprint of the process, limited by the free memory.
    #[serde(rename = "free memory")]
    FreeMemory,
    /// Peak of tensor allocations, limited by the working set that Metal recommends.
    #[serde(rename = "Metal working set")]
    WorkingSet,
    /// Size of a single buffer, limited by Metal.
    #[serde(rename = "largest buffer")]
    LargestBuffer,
    /// Footprint of the process, limited by the user.
    #[serde(rename = "memory limit", alias = "budget")]
    MemoryLimit,
    /// Footprint of the process, limited by a run that needed no more and ran out of memory on this machine.
    #[serde(rename = "a run that died of memory here")]
    DiedHere,
}

impl LimitKind {
    /// Name of the limit as it is shown and written in files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::FreeMemory => "free memory",
            Self::WorkingSet => "Metal working set",
            Self::LargestBuffer => "largest buffer",
            Self::MemoryLimit => "memory limit",
            Self::DiedHere => "a run that died of memory here",
        }
    }

    /// Whether going over it costs time and does not end the run. Published runs went 6 % over the working set and
    /// finished (FR171), and to the last of the installed memory at half their speed (FR163).
    pub(super) fn can_page(self) -> bool {
        matches!(self, Self::FreeMemory | Self::WorkingSet)
    }
}

impl fmt::Display for LimitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A limit, and the prediction of what it limits.
#[derive(Clone, Debug, PartialEq)]
pub struct Limit {
    /// What is limited, and by whom.
    pub kind: LimitKind,
    /// Amount that is not to be exceeded, bytes.
    pub limit: Bytes,
    /// Lower bound of the prediction, reached with the probability that was asked for.
    pub low: Bytes,
    /// Most likely value of the prediction.
    pub point: Bytes,
    /// Upper bound of the prediction, not exceeded with the probability that was asked for.
    pub high: Bytes,
}

impl Limit {
    fn of(kind: LimitKind, limit: Bytes, e: &Estimate<Bytes>) -> Self {
        Self { kind, limit, low: e.low, point: e.point, high: e.high }
    }

    /// Room left at the upper bound, bytes; negative where there is none.
    pub(crate) fn spare(&self) -> f64 {
        self.limit.as_f64() - self.high.as_f64()
    }

    /// Upper bound of the prediction as a share of the limit.
    pub(crate) fn load(&self) -> f64 {
        self.high.as_f64() / self.limit.as_f64().max(1.0)
    }
}

/// Every limit that holds for a run, with `memory_limit` where the user set one. The first is the free memory.
pub(super) fn limits(
    request: &Request<'_>,
    prediction: &Prediction,
    memory_limit: Option<Bytes>,
) -> Result<Vec<Limit>> {
    let Machine { available, working_set, max_buffer, accelerator, .. } = *request.machine;
    let (footprint, peak) = (&prediction.footprint, &prediction.peak_memory);
    let mut limits = vec![Limit::of(LimitKind::FreeMemory, available, footprint)];
    if accelerator == Accelerator::Metal {
        let exact = prediction.ledger.largest_buffer.bytes;
        // candle's Metal allocator rounds computed buffers up to powers of two.
        let rounded = match request.run.engine {
            Engine::Candle => Bytes(exact.0.next_power_of_two()),
            Engine::MlxLm => exact,
        };
        limits.push(Limit::of(LimitKind::WorkingSet, working_set, peak));
        let (kind, low, point, high) = (LimitKind::LargestBuffer, rounded, rounded, rounded);
        limits.push(Limit { kind, limit: max_buffer, low, point, high });
    }
    limits.extend(memory_limit.map(|limit| Limit::of(LimitKind::MemoryLimit, limit, footprint)));
    if let Some(died) = request.outdoes_a_dead_run()? {
        // However little the formulas think that it takes: it takes more than that one had when it died.
        let least = |bytes: Bytes| bytes.max(Bytes(died.had_taken.0 + 1));
        limits.push(Limit::of(LimitKind::DiedHere, died.had_taken, &footprint.map(least)));
    }
    Ok(limits)
}
