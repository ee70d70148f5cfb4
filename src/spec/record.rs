//! What is asked of a trainer and what it reports, as plain records: a job, a step, an evaluation, the end.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::spec::run::RunConfig;
use crate::units::Bytes;

/// One run to be done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// What to run.
    pub config: RunConfig,
    /// Run folder for checkpoints and the adapter; nothing is written without one.
    pub out: Option<PathBuf>,
    /// Optimizer steps after which to stop, before the recipe's end.
    pub stop_after: Option<usize>,
    /// Go on from the newest checkpoint in `out` that is whole.
    pub resume: bool,
    /// When going on, do so even if the model, the tokenizer or the data is not what it was when the run began.
    #[serde(default)]
    pub accept_changes: bool,
    /// Optimizer steps between checkpoints.
    pub save_every: usize,
    /// Pad every micro-batch to `max_seq_length`, so that a short trial shows the worst case.
    pub pad_to_max: bool,
}

impl Job {
    /// All steps of a run, of which nothing is written; what differs is set on top.
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
    /// Counted from 1.
    pub step: usize,
    /// Mean over all target tokens of the step.
    pub loss: f64,
    /// As applied.
    pub learning_rate: f64,
    /// Global norm before clipping.
    pub grad_norm: f64,
    /// Tokens worked on, padding included.
    pub padded_tokens: u64,
    /// Tokens of the examples.
    pub tokens: u64,
    /// Wall time of the step, s.
    pub step_time_s: f64,
    /// `tokens / step_time_s`.
    pub tokens_per_s: f64,
    /// Highest allocation of tensors so far, bytes.
    pub allocated_peak_bytes: Bytes,
    /// Highest memory of the process so far, bytes.
    pub footprint_bytes: Bytes,
}

/// A look at the validation rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// After this many optimizer steps.
    pub step: usize,
    /// Mean over all target tokens.
    pub validation_loss: f64,
    /// Where it was lowest so far.
    pub best_step: usize,
    /// How low.
    pub best_validation_loss: f64,
}

/// A line of `metrics.jsonl`: an optimizer step, and what validation said after it if it was asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Metrics {
    /// The step.
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
    /// The line of a step.
    pub(crate) fn new(step: Step, validation: Option<&Validation>) -> Self {
        Self {
            step,
            validation_loss: validation.map(|v| v.validation_loss),
            best_step: validation.map(|v| v.best_step),
            best_validation_loss: validation.map(|v| v.best_validation_loss),
        }
    }

    /// What validation said, where it was asked.
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
    /// All steps done.
    Finished,
    /// Validation had stopped to improve; the best adapter was kept.
    EarlyStopped {
        /// Optimizer steps done.
        at_step: usize,
    },
    /// Stopped by the caller.
    Stopped {
        /// Optimizer steps done.
        at_step: usize,
    },
    /// Memory ran out, or the limit set for it was reached.
    OutOfMemory {
        /// Optimizer steps done.
        at_step: usize,
    },
    /// Too slow for the time it was given.
    TimedOut {
        /// Optimizer steps done.
        at_step: usize,
    },
    /// The process died.
    Crashed {
        /// Optimizer steps done.
        at_step: usize,
        /// Signal or exit code and the last words.
        reason: String,
    },
}

impl Outcome {
    /// As written in tables.
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
