//! A measured sweep: a short run of every configuration of a grid that fits here, each written down as it ends.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, Ordering};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::error::Result;
use crate::experiment::run_file;
use crate::experiment::session::{Session, Settings};
use crate::experiment::trial::{self, TrialLimits};
use crate::experiment::workload::Workload;
use crate::measure::Measurement;
use crate::spec::run::grid::Grid;
use crate::spec::run::{Engine, RunConfig};
use crate::stats::median;
use crate::units::{Bytes, Seconds};

/// The models and data of a grid's runs, each read once.
pub(crate) type Workloads = HashMap<(String, String), Workload>;

/// The place of a run's model and data among the [`Workloads`].
pub(crate) fn key(run: &RunConfig) -> (String, String) {
    (run.model.clone(), run.data.train().to_string_lossy().into_owned())
}

/// What a sweep measures, and how.
pub(crate) struct Sweeping<'a> {
    /// Configurations to measure.
    pub grid: &'a Grid,
    /// Models and data lengths of the configurations.
    pub workloads: &'a Workloads,
    /// Number of trials of each configuration.
    pub repeats: usize,
    /// Time limit of one trial.
    pub trial_time: Seconds,
    /// Probability with which a configuration must fit to be tried.
    pub confidence: f64,
    /// Where measurements are kept, and their memory limit.
    pub settings: Settings<'a>,
}

/// An event of a sweep, with the configuration's values of the fields that the grid varies.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SweepEvent<'a> {
    /// A trial of this configuration is considered.
    Begins(&'a [String]),
    /// This model is trained next, so that its weights are needed.
    Needs(&'a str),
    /// A trial of this configuration has ended and is written down.
    Ends(&'a [String], &'a Measurement),
}

/// How a measured sweep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Swept {
    /// Every configuration that fits is measured.
    Whole,
    /// The user interrupted the sweep.
    Interrupted {
        /// Number of trials that are measured.
        done: usize,
        /// Number of trials of the whole sweep.
        all: usize,
    },
}

/// Makes the trials that are missing.
///
/// # Errors
/// Where a trial cannot be begun or written down, and what `on` returns.
pub(crate) fn measure(
    what: &Sweeping<'_>,
    interrupted: &AtomicBool,
    on: &mut dyn FnMut(SweepEvent<'_>) -> Result<()>,
) -> Result<Swept> {
    let mut sessions: HashMap<Engine, Session> = HashMap::new();
    for (run, _) in &what.grid.runs {
        if let Entry::Vacant(place) = sessions.entry(run.engine) {
            place.insert(Session::open(run.engine, &what.settings)?);
        }
    }
    // In turns, so that a bad minute of the machine is not all that is seen of a configuration; and each in another order,
    // so that it does not fall on the same neighbours.
    for round in 1..=what.repeats {
        let mut order: Vec<_> = what.grid.runs.iter().collect();
        if what.repeats > 1 {
            order.shuffle(&mut ChaCha8Rng::seed_from_u64(round as u64));
        }
        for (run, values) in order {
            on(SweepEvent::Begins(values))?;
            let Some(session) = sessions.get_mut(&run.engine) else { continue };
            if let Some(seen) = what.trial(session, (run, round), interrupted, on)? {
                on(SweepEvent::Ends(values, seen))?;
            }
            if interrupted.load(Ordering::Relaxed) {
                return what.progress(&sessions);
            }
        }
    }
    Ok(Swept::Whole)
}

/// A run as its trials have it.
fn anchored(run: &RunConfig) -> RunConfig {
    let mut trial = run.clone();
    run_file::anchor(&mut trial);
    trial
}

impl Sweeping<'_> {
    /// One trial, where it fits and has not been made often enough.
    fn trial<'s>(
        &self,
        session: &'s mut Session,
        (run, round): (&RunConfig, usize),
        interrupted: &AtomicBool,
        on: &mut dyn FnMut(SweepEvent<'_>) -> Result<()>,
    ) -> Result<Option<&'s Measurement>> {
        let trial = anchored(run);
        if session.times_measured(&trial) >= round || session.died(&trial).is_some() {
            return Ok(None);
        }
        let plan = session.assess(&self.workloads[&key(run)].padded(), &trial, self.confidence)?;
        // Of what was killed for reasons unknown more is to be known.
        if !(plan.fits() || session.killed(&trial).is_some() && plan.fits_by_formula()) {
            return Ok(None);
        }
        on(SweepEvent::Needs(&trial.model))?;
        let limits = TrialLimits { time: self.trial_time, silence: self.trial_time };
        trial::measure(session, &trial, (limits, &plan), (self.settings.script, interrupted))
    }

    fn progress(&self, sessions: &HashMap<Engine, Session>) -> Result<Swept> {
        let (mut done, mut all) = (0, 0);
        for (run, _) in &self.grid.runs {
            let Some(session) = sessions.get(&run.engine) else { continue };
            let trial = anchored(run);
            let times = session.times_measured(&trial).min(self.repeats);
            if times > 0 || session.assess(&self.workloads[&key(run)].padded(), &trial, self.confidence)?.fits() {
                done += times;
                all += self.repeats;
            }
        }
        Ok(Swept::Interrupted { done, all })
    }
}

/// The middle of the speeds (tokens/s) and of the footprints that were measured.
pub(crate) fn middle<'a>(measured: impl Iterator<Item = &'a Measurement>) -> Option<(f64, Bytes)> {
    let both = |m: &Measurement| Some((m.measured.tokens_per_s?, m.measured.footprint_bytes?.as_f64()));
    let (speeds, footprints): (Vec<f64>, Vec<f64>) = measured.filter_map(both).unzip();
    (!speeds.is_empty()).then(|| (median(&speeds), Bytes::from_f64(median(&footprints))))
}
