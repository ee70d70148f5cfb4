//! Calibration: a few short runs chosen for what they teach, until the choice is settled, the time is over or nothing is left.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::Serialize;

use crate::error::Result;
use crate::experiment::session::Session;
use crate::experiment::trial::{self, TrialLimits};
use crate::experiment::trials::{self, Candidate, Decision, Standing};
use crate::experiment::workload::Workload;
use crate::measure::{Measurement, probe};
use crate::plan::DEFAULT_CONFIDENCE;
use crate::spec::run::{RunConfig, TokenLengths, Weights};
use crate::units::{Bytes, Seconds};

/// A trial whose steps are not alike goes on for this many times the least it takes. Two trials of different runs say
/// more than one that is twice as long.
const LONGER: f64 = 1.5;

/// A trial that gives no sign of life for this many times its time hangs.
const SLOWEST: f64 = 10.0;

/// Number of trials without a result, one after the other, after which no more are made.
const FAILURES: usize = 3;

/// Probability that a trial stays under its predicted bound. A miss is ended by the watch, so it costs a trial.
const TRIAL_CONFIDENCE: f64 = 0.95;

/// What a calibration is made for, and how.
pub(crate) struct Calibrating<'a> {
    /// The planned run.
    pub run: &'a RunConfig,
    /// Model and data lengths of the run.
    pub workload: &'a Workload,
    /// Time limit of all trials together.
    pub budget: Seconds,
    /// Whether to measure again what was measured before.
    pub again: bool,
    /// Path of a script that is played in the place of the engine.
    pub script: Option<&'a Path>,
}

/// Result of the trials: how many were made, and the run to choose.
#[derive(Debug, Default)]
pub(crate) struct Calibrated {
    /// Number of trials made now.
    pub measured: usize,
    /// Number of trials that had been made before.
    pub reused: usize,
    /// Reason for which no more trials were made.
    pub ended: Option<Ended>,
    /// Run that would be chosen now.
    pub choice: Option<RunConfig>,
    /// Mean loss of speed of the choice against the best one, as a share.
    pub regret: Option<f64>,
    /// Cost and saving of activation checkpointing at the choice, as measured.
    pub price: Option<Price>,
}

/// Cost and saving of activation checkpointing, where both ways were measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Price {
    /// Speed without checkpointing as a multiple of the speed with it.
    pub faster: f64,
    /// Footprint that checkpointing saves, bytes.
    pub saves: Bytes,
}

/// An event while trials are made.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TrialEvent<'a> {
    /// A condition of the machine that distorts measurements.
    Remark(&'a str),
    /// A trial of this run is about to begin; with the time since the first one began.
    Begins(&'a RunConfig, Seconds),
    /// A trial has ended and is written down.
    Ends(&'a Measurement),
    /// No more trials are made.
    Over,
}

/// Reason for which no more trials were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ended {
    /// No further trial could change the choice by anything that matters.
    Settled,
    /// Trials that could change the choice do not fit into the remaining time.
    Time,
    /// No trial that fits into the memory is left.
    Nothing,
    /// Several trials in a row gave no result.
    Failing,
    /// The user interrupted the calibration.
    Interrupted,
}

/// Makes the trials that are missing for the choice.
///
/// # Errors
/// Where a trial cannot be begun or written down, and what `on` returns.
pub(crate) fn calibrate(
    session: &mut Session,
    what: &Calibrating<'_>,
    interrupted: &AtomicBool,
    on: &mut dyn FnMut(TrialEvent<'_>) -> Result<()>,
) -> Result<Calibrated> {
    let (machine, prior) = (session.machine.clone(), session.prior.clone());
    let subject = what.workload;
    let around =
        trials::Around { spec: &subject.spec, machine: &machine, lengths: &subject.lengths, calibration: &prior };
    let mut options = around.options(what.run)?;
    let padded = trials::Around { lengths: &TokenLengths::filled(), ..around };
    let (old, new): (Vec<Candidate>, Vec<Candidate>) = around
        .trials(what.run)?
        .into_iter()
        .partition(|t| session.times_measured(&t.run) > 0 || session.died(&t.run).is_some());
    for remark in probe::state().remarks(session.machine.memory) {
        on(TrialEvent::Remark(&remark))?;
    }
    let mut result = Calibrated::default();
    // Of those that were killed for reasons unknown more is to be known.
    let (mut again, mut new): (Vec<Candidate>, Vec<Candidate>) = new.into_iter().partition(|t| {
        session.killed(&t.run).is_some() && t.surely_fits(session.limit, &session.calibration, TRIAL_CONFIDENCE)
    });
    if what.again {
        again.extend(old);
    } else {
        result.reused = old.len();
    }
    let started = Instant::now();
    let mut failures = 0;
    let ended = loop {
        around.mark(&mut options, &session.calibration)?;
        padded.mark(&mut new, &session.calibration)?;
        let decision = Decision { options: &options, limit: session.limit, confidence: DEFAULT_CONFIDENCE };
        let standing = decision.standing(&session.calibration);
        let left = what.budget.0 - started.elapsed().as_secs_f64();
        let trial = match pick(session, (&decision, &standing), (&mut again, &mut new), left) {
            Ok(trial) => trial,
            Err(ended) => break ended,
        };
        on(TrialEvent::Begins(&trial.run, Seconds(started.elapsed().as_secs_f64())))?;
        let share = LONGER * trial.seconds(&session.calibration).0;
        let plan = session.assess(&subject.padded(), &trial.run, TRIAL_CONFIDENCE)?;
        // Before anything is measured a step may take several times as long as expected.
        let time = TrialLimits { time: Seconds(left.min(share)), silence: Seconds(left.min(SLOWEST * share)) };
        // Written down before it is shown, and learned from before the next one is chosen.
        if let Some(measurement) = trial::measure(session, &trial.run, (time, &plan), (what.script, interrupted))? {
            failures = if measurement.has_speed() { 0 } else { failures + 1 };
            on(TrialEvent::Ends(measurement))?;
            result.measured += 1;
        }
        if interrupted.load(Ordering::Relaxed) {
            break Ended::Interrupted;
        }
        if failures == FAILURES {
            break Ended::Failing;
        }
    };
    on(TrialEvent::Over)?;
    // The last trial counts too, above all if it died.
    around.mark(&mut options, &session.calibration)?;
    let decision = Decision { options: &options, limit: session.limit, confidence: DEFAULT_CONFIDENCE };
    let standing = decision.standing(&session.calibration);
    result.ended = Some(ended);
    result.choice = standing.choice.map(|i| options[i].run.clone());
    result.price = result.choice.as_ref().and_then(|choice| price(session, choice));
    result.regret = standing.choice.map(|_| standing.regret);
    Ok(result)
}

/// The next trial, taken out of those that are to be made again or of the new ones; or why there is none.
fn pick(
    session: &Session,
    (decision, standing): (&Decision<'_>, &Standing),
    (again, new): (&mut Vec<Candidate>, &mut Vec<Candidate>),
    left: f64,
) -> std::result::Result<Candidate, Ended> {
    if let Some(trial) = again.pop() {
        return if left > 0.0 { Ok(trial) } else { Err(Ended::Time) };
    }
    let calibration = &session.calibration;
    // What goes over its bound is ended by the watch, so a miss costs a trial and nothing else.
    let fits = |trial: &&Candidate| trial.surely_fits(session.limit, calibration, TRIAL_CONFIDENCE);
    let fitting: Vec<&Candidate> = new.iter().filter(fits).collect();
    let in_time = |trial: &&&Candidate| trial.seconds(calibration).0 <= left;
    let best = if standing.settled() {
        // The choice itself is run once, if it was not, and without its recompute, or with it: nothing is as sure as what
        // was seen.
        let choice = standing.choice.map(|c| &decision.options[c].run);
        let wanted = choice.map_or(Vec::new(), |c| vec![micro_batch(c), micro_batch(&recompute_switched(c))]);
        let mut wanted = wanted.iter().filter_map(|w| fitting.iter().find(|trial| micro_batch(&trial.run) == *w));
        wanted.find(in_time).copied().ok_or(Ended::Settled)?
    } else {
        let possible = fitting.iter().filter(in_time).copied();
        let best = trials::next(calibration, &[(*decision, standing.clone())], possible);
        best.ok_or(if fitting.is_empty() { Ended::Nothing } else { Ended::Time })?
    };
    let at = new.iter().position(|trial| trial.run == best.run).ok_or(Ended::Nothing)?;
    Ok(new.swap_remove(at))
}

/// What makes a micro-batch what it is, as far as trials differ.
fn micro_batch(run: &RunConfig) -> (usize, usize, usize, bool, Weights) {
    let (r, e) = (&run.recipe, &run.execution);
    (r.max_seq_length, r.lora.rank, e.batch_size, e.grad_checkpoint, e.weights)
}

fn recompute_switched(run: &RunConfig) -> RunConfig {
    let mut other = run.clone();
    other.execution.grad_checkpoint = !other.execution.grad_checkpoint;
    other
}

/// What activation checkpointing costs at a run's micro-batch, where both ways were measured.
fn price(session: &Session, run: &RunConfig) -> Option<Price> {
    let seen = |run: &RunConfig| {
        let of = |m: &&Measurement| {
            m.pad_to_max && m.config.model == run.model && micro_batch(&m.config) == micro_batch(run)
        };
        let figures = |m: &Measurement| Some((m.measured.tokens_per_s?, m.measured.footprint_bytes?));
        session.measurements.iter().filter(of).filter_map(figures).next_back()
    };
    let ((speed, footprint), (other_speed, other_footprint)) = (seen(run)?, seen(&recompute_switched(run))?);
    let (less, more) = (footprint.min(other_footprint), footprint.max(other_footprint));
    let faster = if run.execution.grad_checkpoint { other_speed / speed } else { speed / other_speed };
    Some(Price { faster, saves: more.saturating_sub(less) })
}
