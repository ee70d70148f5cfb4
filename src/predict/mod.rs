//! Cost and calibration together: what will happen, with an interval and where it came from.

pub mod calibration;
pub mod coefficients;
pub mod coverage;

use serde::{Deserialize, Serialize};

use crate::cost::ledger::MemoryLedger;
use crate::units::{Bytes, Estimate, Seconds};

/// Where a prediction's numbers come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Basis {
    /// Shapes and published figures alone.
    Formula,
    /// Refitted to runs on this machine.
    Calibrated {
        /// How many.
        runs: usize,
        /// Whether this configuration lies within what they covered.
        inside: bool,
    },
}

/// What a run will take.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// Highest allocation of tensors (what the engine itself reports).
    pub peak_memory: Estimate<Bytes>,
    /// Highest memory of the process.
    pub footprint: Estimate<Bytes>,
    /// Tokens of the examples per second, padding not counted.
    pub tokens_per_s: Estimate<f64>,
    /// One optimizer step.
    pub step_time: Estimate<Seconds>,
    /// The whole run, loading included.
    pub total_time: Estimate<Seconds>,
    /// Energy of the whole run, where the machine's power is known.
    pub energy_wh: Option<Estimate<f64>>,
    /// What is in memory when.
    pub ledger: MemoryLedger,
    /// Parameters that learn.
    pub trainable_params: u64,
    /// All parameters, adapters included.
    pub total_params: u64,
    /// Optimizer steps of the whole run.
    pub steps: usize,
    /// Where the numbers come from.
    pub basis: Basis,
}
