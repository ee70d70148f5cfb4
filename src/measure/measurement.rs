//! One measured run as a flat row: the joint between measuring and predicting.

use serde::{Deserialize, Serialize};

use crate::measure::observe::Observed;
use crate::measure::probe::MachineState;
use crate::measure::{child, probe, summary};
use crate::spec::record::Job;
/// What a measurement is made of, for those who read measurements and know no trainer.
use crate::spec::record::Outcome;
/// What a measurement is made of, for those who read measurements and know no trainer.
use crate::spec::record::Step;
/// What a measurement is made of, for those who read measurements and know no trainer.
use crate::spec::record::Validation;
use crate::spec::run::{Data, DataSplit, RunConfig};
use crate::stats;
use crate::units::{Bytes, Estimate};

/// Version of the columns, raised whenever they change their meaning.
pub(crate) const SCHEMA: u32 = 1;

/// What was measured of one run, and what had been predicted of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// Version of the table's columns when the row was written.
    pub schema: u32,
    /// Time when the run began, seconds since 1970.
    pub unix_time: u64,
    /// Name of the machine the run was measured on.
    pub machine: String,
    /// Operating system of the machine, with its version.
    pub os: String,
    /// Version of the engine (which one is in the configuration).
    pub engine_version: String,
    /// Version of Headroom that measured.
    pub tool_version: String,
    /// Configuration of the measured run.
    pub config: RunConfig,
    /// Whether rows were padded to `max_seq_length`.
    pub pad_to_max: bool,
    /// What was predicted of the run before it began.
    #[serde(default)]
    pub predicted: Predicted,
    /// What was measured of the run.
    #[serde(default)]
    pub measured: Measured,
    /// How the run ended.
    pub outcome: Outcome,
    /// Load and power state of the machine when the run began.
    #[serde(default)]
    pub state: MachineState,
}

/// What was predicted of a run before it was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Predicted {
    /// Predicted peak of tensor allocations, bytes.
    pub peak_memory_bytes: Option<Estimate<Bytes>>,
    /// Predicted peak footprint of the process, bytes.
    pub footprint_bytes: Option<Estimate<Bytes>>,
    /// Predicted throughput without padding, tokens/s.
    pub tokens_per_s: Option<Estimate<f64>>,
    /// Predicted time of one optimizer step, s.
    pub step_time_s: Option<Estimate<f64>>,
}

/// What was measured of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Measured peak of tensor allocations, bytes.
    pub peak_memory_bytes: Option<Bytes>,
    /// Measured peak footprint of the process, bytes.
    pub footprint_bytes: Option<Bytes>,
    /// Time from the start until training was ready for its first step, s.
    pub load_time_s: Option<f64>,
    /// Median time of an optimizer step, s.
    pub step_time_s: Option<f64>,
    /// Robust standard deviation of single steps, relative to the median step.
    pub step_time_spread: Option<f64>,
    /// Median throughput of the counted steps, tokens/s, padding excluded.
    pub tokens_per_s: Option<f64>,
    /// Median number of tokens in a step, padding excluded.
    pub tokens_per_step: Option<f64>,
    /// Median number of tokens processed in a step, padding included.
    pub padded_tokens_per_step: Option<f64>,
    /// Lowest loss on the validation rows, if they were evaluated.
    pub best_validation_loss: Option<f64>,
    /// Optimizer step with the lowest validation loss; with early stopping, the step whose adapter was kept.
    pub best_step: Option<usize>,
    /// Number of steps that count in these figures.
    pub steps: usize,
    /// Number of steps that were dropped before them as warm-up.
    pub warmup_steps: usize,
    /// Number of lines of the engine that were not recognised.
    pub garbage_lines: usize,
    /// Wall time of the whole trial, s.
    pub wall_time_s: f64,
}

impl Measured {
    /// Summarises the steps of a trial in robust figures.
    pub(crate) fn of(observed: &Observed) -> Self {
        use crate::trainer::TrainEvent;
        let counted = summary::counted(&observed.steps);
        let middle = |of: fn(&Step) -> f64| {
            (!counted.is_empty()).then(|| stats::median(&counted.iter().map(of).collect::<Vec<_>>()))
        };
        let time = summary::time(&observed.steps);
        let load_time_s = match &observed.ready {
            Some(TrainEvent::Ready { load_time, .. }) => Some(load_time.0),
            _ => None,
        };
        Self {
            // The warm-up counts here: a peak is a peak.
            peak_memory_bytes: observed.steps.iter().map(|s| s.allocated_peak_bytes).max(),
            footprint_bytes: (observed.footprint > Bytes(0)).then_some(observed.footprint),
            load_time_s,
            step_time_s: time.map(|t| t.median),
            step_time_spread: time.map(|t| t.spread),
            tokens_per_s: middle(|s| s.tokens_per_s),
            tokens_per_step: middle(|s| s.tokens as f64),
            padded_tokens_per_step: middle(|s| s.padded_tokens as f64),
            best_validation_loss: None,
            best_step: None,
            steps: counted.len(),
            warmup_steps: observed.steps.len() - counted.len(),
            garbage_lines: observed.garbage,
            wall_time_s: observed.wall_time.0,
        }
    }
}

/// Machine and engine that all measurements of one session have in common.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Place {
    /// Name of the machine.
    pub machine: String,
    /// Operating system of the machine, with its version.
    pub os: String,
    /// Version of the training engine.
    pub engine_version: String,
}

impl Measurement {
    /// A trial as a row of the table; `state` was asked before it began.
    pub(crate) fn new(
        place: &Place,
        job: &Job,
        observed: &Observed,
        predicted: Predicted,
        state: MachineState,
    ) -> Self {
        Self {
            schema: SCHEMA,
            unix_time: probe::unix_time().saturating_sub(observed.wall_time.0 as u64),
            machine: place.machine.clone(),
            os: place.os.clone(),
            engine_version: place.engine_version.clone(),
            tool_version: env!("CARGO_PKG_VERSION").into(),
            config: job.config.clone(),
            pad_to_max: job.pad_to_max,
            predicted,
            measured: Measured::of(observed),
            outcome: observed.outcome.clone(),
            state,
        }
    }

    /// Whether this has the speed and memory of `config` on the engine of this version: the same run but for
    /// what changes neither (steps, rate, seed).
    pub(crate) fn answers(&self, config: &RunConfig, pad_to_max: bool, engine_version: &str) -> bool {
        let plain = |config: &RunConfig| {
            let mut c = data_as_split(config.clone());
            let blank = crate::spec::run::Recipe::default();
            (c.seed, c.recipe.steps, c.recipe.epochs) = (0, None, None);
            (c.recipe.learning_rate, c.recipe.lr_schedule) = (blank.learning_rate, blank.lr_schedule);
            (c.recipe.warmup_steps, c.recipe.weight_decay) = (blank.warmup_steps, blank.weight_decay);
            (c.recipe.eval_steps, c.recipe.early_stopping_patience) = (None, None);
            c
        };
        self.engine_version == engine_version && self.pad_to_max == pad_to_max && plain(&self.config) == plain(config)
    }

    /// Whether it was made on this machine, under this system and by this version of the engine.
    pub(crate) fn was_made_at(&self, place: &Place) -> bool {
        self.machine == place.machine && self.os == place.os && self.engine_version == place.engine_version
    }

    /// Adds the best validation loss of these evaluations and its step.
    pub(crate) fn with_validations(mut self, all: &[Validation]) -> Self {
        let last = all.last();
        self.measured.best_validation_loss = last.map(|v| v.best_validation_loss);
        self.measured.best_step = last.map(|v| v.best_step);
        self
    }

    /// Whether it was ended for want of memory: by a watch over a limit, a guard, or a system that said so.
    pub fn died_of_memory(&self) -> bool {
        matches!(self.outcome, Outcome::OutOfMemory { .. })
    }

    /// Whether it was killed without a reason given: most often for want of memory.
    pub fn was_killed(&self) -> bool {
        matches!(&self.outcome, Outcome::Crashed { reason, .. } if reason.starts_with(child::KILLED))
    }

    /// What a run that died of memory had taken by then: it needs at least that.
    pub(crate) fn had_taken(&self) -> Bytes {
        let predicted = self.predicted.footprint_bytes.map(|f| f.high);
        self.measured.footprint_bytes.or(predicted).unwrap_or_default()
    }

    /// The memory that was there for a run that died of it, as far as the row tells: with more, it may end better.
    pub(crate) fn ran_into(&self) -> Bytes {
        let had_taken = self.had_taken();
        let bound = self.predicted.footprint_bytes.map_or(Bytes(0), |f| f.high);
        // No run starts under a limit below its bound. One that stayed below it was not ended by a limit that was set,
        // but by the system, and had all that was free.
        if had_taken <= bound { had_taken.max(self.state.available_bytes.unwrap_or_default()) } else { had_taken }
    }

    /// Whether it is of use for predicting: it has a speed, or shows that the run does not fit.
    pub fn says_something(&self) -> bool {
        self.has_speed() || self.died_of_memory() || self.was_killed()
    }

    /// Whether it ran long enough to have a speed.
    pub fn has_speed(&self) -> bool {
        self.measured.step_time_s.is_some()
    }
}

/// `data = "x"` and `[data] train = "x"` say the same; a row has columns for the second.
pub(crate) fn data_as_split(mut config: RunConfig) -> RunConfig {
    if let Data::Train(train) = config.data {
        config.data = Data::Split(DataSplit { train, valid: None });
    }
    config
}

#[cfg(test)]
#[path = "measurement_tests.rs"]
mod tests;
