//! Things that can run a job and say what happens. Knows no prediction.
//!
//! Calibrating, sweeping and launching differ only in when they stop, so there is one method with a
//! callback, and the caller decides by returning [`Flow::Stop`].

pub mod candle;
pub(crate) mod early_stopping;
pub(crate) mod inputs;
pub mod scripted;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::spec::record::{Job, Outcome, Step, Validation};
use crate::spec::run::Engine;
use crate::units::Seconds;

/// An event that a trainer reports while it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum TrainEvent {
    /// A resumed run has chosen its checkpoint; reported before [`TrainEvent::Ready`].
    Resumed {
        /// Checkpoint that the run continues from; `None` where there is none, and the run begins again.
        from: Option<PathBuf>,
        /// Newer checkpoints that are damaged, and what is wrong with them.
        damaged: Vec<String>,
        /// Files of the model or the data that changed since the run began; only where that is accepted.
        changed: Vec<String>,
    },
    /// The trainer is between two micro-batches; the caller may want to stop.
    Working,
    /// The model is loaded and the first step is about to begin.
    Ready {
        /// Number of trainable parameters.
        trainable_params: u64,
        /// Number of all parameters, adapters included.
        total_params: u64,
        /// Number of optimizer steps of the whole run.
        total_steps: usize,
        /// Number of steps already done, when a run is resumed.
        done_steps: usize,
        /// Time from the start until this event.
        load_time: Seconds,
    },
    /// An optimizer step is done.
    Step(Step),
    /// The validation rows were evaluated; reported before the step that it follows.
    Validation(Validation),
    /// A checkpoint or the adapter was written.
    Saved {
        /// Folder of the checkpoint or of the adapter.
        path: PathBuf,
    },
}

/// How the caller wants the run to proceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Continue with the run.
    Continue,
    /// Save and stop: after [`TrainEvent::Step`] the step counts, during one it is taken again on resuming.
    Stop,
    /// Stop at once and save nothing: the event could not be written down, so it must happen again.
    Abort,
}

/// An engine that runs training jobs.
pub trait Trainer {
    /// The engine that this trainer stands for.
    fn engine(&self) -> Engine;
    /// Version of the engine, part of the key of a calibration.
    fn version(&self) -> String;
    /// Runs the job and reports each event to `on`, whose answer says how to proceed.
    fn train(&mut self, job: &Job, on: &mut dyn FnMut(&TrainEvent) -> Flow) -> Result<Outcome>;
}
