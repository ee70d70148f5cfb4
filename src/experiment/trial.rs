//! One trial: a short run of the real trainer in a process of its own, under hard limits.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Result;
use crate::experiment::session::{self, Session};
use crate::experiment::trials::{MIN_STEPS, MIN_TIME};
use crate::measure::child::this_program;
use crate::measure::observe::{Limits, observe};
use crate::measure::{Measurement, probe};
use crate::plan::Assessment;
use crate::spec::record::Job;
use crate::spec::run::RunConfig;
use crate::trainer::TrainEvent;
use crate::units::Seconds;

/// Most steps that a trial takes after the warm-up.
const MAX_STEPS: usize = 100;

/// Relative standard error at which the median step time is known well enough.
const PRECISION: f64 = 0.01;

/// Time limits of one trial.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TrialLimits {
    /// Time after which the trial ends.
    pub time: Seconds,
    /// Time without an event after which the trial is taken to hang.
    pub silence: Seconds,
}

/// Makes one trial and writes it down, unless it was interrupted before it had anything to say.
pub(crate) fn measure<'a>(
    session: &'a mut Session,
    trial: &RunConfig,
    (TrialLimits { time, silence }, plan): (TrialLimits, &Assessment),
    (script, interrupted): (Option<&Path>, &AtomicBool),
) -> Result<Option<&'a Measurement>> {
    session.check_writable()?;
    let mut config = trial.clone();
    (config.recipe.steps, config.recipe.epochs) = (Some(MAX_STEPS + 1), None);
    let job = Job { pad_to_max: true, ..Job::new(config) };
    let limits = Limits {
        memory: session.limit,
        time,
        silence,
        min_steps: MIN_STEPS,
        max_steps: MAX_STEPS,
        min_time: MIN_TIME,
        precision: PRECISION,
    };
    let mut command = this_program()?;
    command.args(["trial", "--tethered"]);
    if let Some(script) = script {
        command.arg("--script").arg(script);
    }
    let state = probe::state();
    let observed = observe(&mut command, &job, &limits, interrupted, &mut |_: &TrainEvent| {})?;
    let measurement = Measurement::new(&session.place, &job, &observed, session::predicted(&plan.prediction), state);
    if interrupted.load(Ordering::Relaxed) && !measurement.says_something() {
        return Ok(None);
    }
    session.add(measurement)?;
    Ok(session.measurements.last())
}
