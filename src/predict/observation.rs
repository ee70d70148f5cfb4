//! What the formulas say of a run, and what was measured of one.

use crate::cost::ledger::MemoryLedger;
use crate::cost::time::StepCost;
use crate::predict::coverage::Point;
use crate::units::{Bytes, Seconds};

/// Cost and memory of a run by the formulas, before any coefficient.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Formula {
    /// Arithmetic, memory traffic and launches of one optimizer step.
    pub cost: StepCost,
    /// Memory of a step, phase by phase.
    pub ledger: MemoryLedger,
    /// Kind and size of the run, for its place in the coverage.
    pub point: Point,
}

/// What was measured of a run: the step's time, the peak of the tensors and the footprint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Measured {
    /// Median time of one optimizer step.
    pub step_time: Seconds,
    /// Peak of tensor allocations, bytes.
    pub peak_memory: Bytes,
    /// Peak footprint of the process, bytes.
    pub footprint: Bytes,
}
