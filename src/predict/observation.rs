//! What the formulas say of a run, and what was measured of one.

use crate::cost::ledger::MemoryLedger;
use crate::cost::time::StepCost;
use crate::predict::coverage::Point;
use crate::units::{Bytes, Seconds};

/// What the formulas say of a run, before any coefficient.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Formula {
    /// What a step does.
    pub cost: StepCost,
    /// What is in memory when.
    pub ledger: MemoryLedger,
    /// What kind of run it is.
    pub point: Point,
}

/// What was measured of a run: the step's time, the peak of the tensors and of the process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Measured {
    /// Of one optimizer step.
    pub step_time: Seconds,
    /// Of the tensors.
    pub peak_memory: Bytes,
    /// Of the process.
    pub footprint: Bytes,
}
