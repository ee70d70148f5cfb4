//! What is asked of a trainer and what it reports, as plain records: a job, a step, an evaluation, the end.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::spec::run::RunConfig;
use crate::units::Bytes;

/// A training run for a trainer to do, with where to write and when to stop.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// Configuration of the run.
    pub config: RunConfig,
    /// Run folder for checkpoints and the adapter; nothing is written without one.
    pub out: Option<PathBuf>,
    /// Number of optimizer steps after which to stop, before the recipe's end.
    pub stop_after: Option<usize>,
    /// Whether to resume from the newest whole checkpoint in `out`.
    pub resume: bool,
    /// Resume even if the model, the tokenizer or the data is not what it was when the run began.
    #[serde(default)]
    pub accept_changes: bool,
    /// Optimizer steps between checkpoints; 0 writes none before the end.
    pub save_every: usize,
    /// Whether to pad every micro-batch to `max_seq_length`, so that a short trial shows the worst case.
    pub pad_to_max: bool,
}

impl Job {
    /// A job for all steps of a run that writes nothing; change the fields for anything else.
    pub fn new(config: RunConfig) -> Self {
        Self {
            config,
            out: None,
            stop_after: None,
            resume: false,
            accept_changes: false,
            save_every: 0,
            pad_to_max: false,
        }
    }
}

/// One optimizer step: a line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Number of the optimizer step, counted from 1.
    pub step: usize,
    /// Mean loss over all target tokens of the step.
    pub loss: f64,
    /// Learning rate applied in this step.
    pub learning_rate: f64,
    /// Global norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Tokens processed in the step, padding included.
    pub padded_tokens: u64,
    /// Tokens of the step's examples, without padding.
    pub tokens: u64,
    /// Wall time of the step, s.
    pub step_time_s: f64,
    /// Throughput without padding, tokens/s: `tokens / step_time_s`.
    pub tokens_per_s: f64,
    /// Peak of tensor allocations so far, bytes; on Metal, those alive at the end of the step.
    pub allocated_peak_bytes: Bytes,
    /// Peak footprint of the process so far, bytes.
    pub footprint_bytes: Bytes,
}

/// Result of an evaluation on the validation rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// Number of optimizer steps done before the evaluation.
    pub step: usize,
    /// Mean loss over all target tokens of the validation rows.
    pub validation_loss: f64,
    /// Step of the evaluation with the lowest validation loss so far.
    pub best_step: usize,
    /// Lowest validation loss so far.
    pub best_validation_loss: f64,
}

/// A line of `metrics.jsonl`: an optimizer step, and the evaluation after it where there was one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Metrics {
    /// Figures of the optimizer step.
    #[serde(flatten)]
    pub step: Step,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    validation_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    best_step: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    best_validation_loss: Option<f64>,
}

impl Metrics {
    /// The line for a step and the evaluation that followed it, if any.
    pub(crate) fn new(step: Step, validation: Option<&Validation>) -> Self {
        Self {
            step,
            validation_loss: validation.map(|v| v.validation_loss),
            best_step: validation.map(|v| v.best_step),
            best_validation_loss: validation.map(|v| v.best_validation_loss),
        }
    }

    /// The evaluation that this line records, if there was one after the step.
    pub(crate) fn validation(&self) -> Option<Validation> {
        Some(Validation {
            step: self.step.step,
            validation_loss: self.validation_loss?,
            best_step: self.best_step?,
            best_validation_loss: self.best_validation_loss?,
        })
    }
}

/// How a run ended. Running out of memory is an answer, not an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// All steps of the run are done.
    Finished,
    /// Validation loss had stopped improving; the best adapter was kept.
    EarlyStopped {
        /// Number of optimizer steps done.
        at_step: usize,
    },
    /// The caller stopped the run.
    Stopped {
        /// Number of optimizer steps done.
        at_step: usize,
    },
    /// The run ran out of memory, or reached its memory limit.
    OutOfMemory {
        /// Number of optimizer steps done.
        at_step: usize,
    },
    /// The run was too slow for its time limit.
    TimedOut {
        /// Number of optimizer steps done.
        at_step: usize,
    },
    /// The training process died.
    Crashed {
        /// Number of optimizer steps done.
        at_step: usize,
        /// Signal or exit code, and the last lines the process wrote.
        reason: String,
    },
}

impl Outcome {
    /// Name of the outcome as tables write it, such as `out_of_memory`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::EarlyStopped { .. } => "early_stopped",
            Self::Stopped { .. } => "stopped",
            Self::OutOfMemory { .. } => "out_of_memory",
            Self::TimedOut { .. } => "timed_out",
            Self::Crashed { .. } => "crashed",
        }
    }
}
