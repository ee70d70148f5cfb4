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

/// Something that runs jobs.
pub trait Trainer {
    /// Which engine this is.
    fn engine(&self) -> Engine;
    /// Its version, part of the key of a calibration.
    fn version(&self) -> String;
    /// Runs the job, telling `on` what happens.
    fn train(&mut self, job: &Job, on: &mut dyn FnMut(&TrainEvent) -> Flow) -> Result<Outcome>;
}
