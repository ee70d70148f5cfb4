//! Things that can run a job and say what happens. Knows no prediction.
//!
//! Calibrating, sweeping and launching differ only in when they stop, so there is one method with a
//! callback, and the caller decides by returning [`Flow::Stop`].

pub mod batches;
pub(crate) mod bounded;
pub mod candle;
pub mod early_stopping;
pub mod generate;
pub mod inputs;
pub mod memory;
pub mod rows;
pub mod scripted;
pub mod source;
pub mod text;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::spec::run::{Engine, RunConfig};
use crate::units::{Bytes, Seconds};

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

/// What a trainer says while it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum TrainEvent {
    /// Where a resumed run goes on from, told before [`TrainEvent::Ready`].
    Resumed {
        /// The checkpoint; `None` where there is none, and the run begins again.
        from: Option<PathBuf>,
        /// Newer checkpoints that are damaged, and what is wrong with them.
        damaged: Vec<String>,
        /// Files of the model or the data that changed since the run began; only where that is accepted.
        changed: Vec<String>,
    },
    /// Still at work, between two micro-batches: nothing happened, but the caller may want to stop.
    Working,
    /// Loaded and about to take the first step.
    Ready {
        /// Parameters that learn.
        trainable_params: u64,
        /// All parameters, adapters included.
        total_params: u64,
        /// Optimizer steps of the whole run.
        total_steps: usize,
        /// Steps already done (after a resume).
        done_steps: usize,
        /// Time from start to here.
        load_time: Seconds,
    },
    /// One optimizer step.
    Step(Step),
    /// Loss on the validation rows, told before the step that it follows.
    Validation(Validation),
    /// A checkpoint or the adapter was written.
    Saved {
        /// Where.
        path: PathBuf,
    },
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
pub struct Metrics {
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
    pub fn new(step: Step, validation: Option<&Validation>) -> Self {
        Self {
            step,
            validation_loss: validation.map(|v| v.validation_loss),
            best_step: validation.map(|v| v.best_step),
            best_validation_loss: validation.map(|v| v.best_validation_loss),
        }
    }

    /// What validation said, where it was asked.
    pub fn validation(&self) -> Option<Validation> {
        Some(Validation {
            step: self.step.step,
            validation_loss: self.validation_loss?,
            best_step: self.best_step?,
            best_validation_loss: self.best_validation_loss?,
        })
    }
}

/// What the caller wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// Save and stop: after [`TrainEvent::Step`] the step counts, during one it is taken again when the run goes on.
    Stop,
    /// Stop at once and save nothing: what was told could not be written down, so it must happen again.
    Abort,
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

/// Something that runs jobs.
pub trait Trainer {
    /// Which engine this is.
    fn engine(&self) -> Engine;
    /// Its version, part of the key of a calibration.
    fn version(&self) -> String;
    /// Runs the job, telling `on` what happens.
    fn train(&mut self, job: &Job, on: &mut dyn FnMut(&TrainEvent) -> Flow) -> Result<Outcome>;
}
