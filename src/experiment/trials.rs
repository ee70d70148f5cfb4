//! Which short run teaches most about a choice that is to be made, and whether another one could still change it.
//!
//! The choice is between executions of one recipe: the fastest whose upper bound stays under the limit. Guesses drawn
//! from what is known say how likely each execution is to be the best that fits, and what is lost on the average by
//! taking the one that seems best now. A trial is worth the variance it takes from the times of those executions, in
//! proportion to their chances, and from the memory of those that are not yet known to fit; the next trial is the one
//! that is worth most for each second it takes. What it would take is known before it is made: the variance after a
//! run does not depend on what the run shows (see [`Calibration::after`]).

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::error::Result;
use crate::plan::ask::executions;
use crate::plan::{Held, fits_within};
use crate::predict::calibration::Calibration;
use crate::predict::{Formula, Request};
use crate::spec::machine::Machine;
use crate::spec::model::ModelSpec;
use crate::spec::run::{Engine, RunConfig, TokenLengths};
use crate::units::{Bytes, Seconds};

/// Shortest rows that are tried; below, overheads are all there is.
const SHORTEST: usize = 32;

/// Guesses that chances are taken from: they are known to a few per cent.
const GUESSES: usize = 200;

/// Share of a trial's worth that counts all options alike, however likely they are: levers and runners-up are told by
/// the same calibration.
const ALIKE: f64 = 0.5;

/// Loss of speed that is not worth another trial, as a share.
const SETTLED: f64 = 0.01;
/// Standard deviation of the logarithm of the choice's speed at which it is known well enough.
const KNOWN: f64 = 0.02;

/// Steps after the warm-up that a trial takes at least, and the time that they take together at least: two or three may
/// be alike by chance, and a machine has good and bad tenths of a second.
pub(crate) const MIN_STEPS: usize = 3;
/// Least time that the steps of a trial after the warm-up take together; see [`MIN_STEPS`].
pub(crate) const MIN_TIME: Seconds = Seconds(1.0);
/// Time to start a trial's process and load a small model, s.
const START: f64 = 0.3;

/// A run with its cost and memory by the formulas.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// Configuration of the run.
    pub run: RunConfig,
    /// Cost and memory of the run by the formulas.
    pub formula: Formula,
    /// Whether a run that needs no more died of memory on this machine; see [`Around::mark`].
    pub deadly: bool,
}

impl Candidate {
    /// Whether its upper bound lies within the limit, and nothing that needs less has died.
    pub(crate) fn surely_fits(&self, limit: Bytes, calibration: &Calibration, confidence: f64) -> bool {
        !self.deadly && fits_within(limit, calibration, &self.formula, confidence)
    }

    /// Least time that it takes as a trial, by what is known.
    pub(crate) fn seconds(&self, calibration: &Calibration) -> Seconds {
        let step = calibration.typical_time(&self.formula.cost);
        Seconds(START + step + MIN_TIME.0.max(MIN_STEPS as f64 * step))
    }
}

/// The choice that trials are made for: one of several executions of a recipe.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decision<'a> {
    /// Executions of the recipe to choose from.
    pub options: &'a [Candidate],
    /// Footprint that is not to be exceeded with probability `confidence`, bytes.
    pub limit: Bytes,
    /// Probability with which `limit` is not to be exceeded.
    pub confidence: f64,
}

/// Current state of a choice: the best option, and what more trials could change.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Standing {
    /// Index of the fastest option that fits with the confidence asked for, if any does.
    pub choice: Option<usize>,
    /// What is lost on the average by taking it and not the best, as a share of the time; infinite without a choice.
    pub regret: f64,
    /// Standard deviation of the logarithm of the choice's time that more trials would take away.
    pub unknown: f64,
    /// Chance of each option to be the fastest that fits.
    chances: Vec<f64>,
    /// Whether each option fits with the confidence asked for.
    fit: Vec<bool>,
}

impl Standing {
    /// No further trial could change the choice by anything that matters, and its speed is known.
    pub(crate) fn settled(&self) -> bool {
        self.regret < SETTLED && self.unknown < KNOWN
    }
}

impl Decision<'_> {
    /// How it stands by what is known.
    pub(crate) fn standing(&self, calibration: &Calibration) -> Standing {
        let formulas: Vec<&Formula> = self.options.iter().map(|o| &o.formula).collect();
        let fit: Vec<bool> =
            self.options.iter().map(|o| o.surely_fits(self.limit, calibration, self.confidence)).collect();
        let time = |i: &usize| calibration.typical_time(&formulas[*i].cost);
        let choice = (0..formulas.len()).filter(|i| fit[*i]).min_by(|a, b| time(a).total_cmp(&time(b)));
        // The same guesses each time, so that a run of trials can be repeated.
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let (mut chances, mut lost) = (vec![0.0; formulas.len()], 0.0);
        for _ in 0..GUESSES {
            let guess = calibration.guess(&formulas, &mut rng);
            let fits = |i: &usize| !self.options[*i].deadly && guess[*i][1] <= self.limit.as_f64().ln();
            let best = (0..guess.len()).filter(fits).min_by(|a, b| guess[*a][0].total_cmp(&guess[*b][0]));
            if let Some(best) = best {
                chances[best] += 1.0 / GUESSES as f64;
                lost += choice.map_or(0.0, |c| (guess[c][0] - guess[best][0]).max(0.0)) / GUESSES as f64;
            }
        }
        Standing {
            choice,
            regret: if choice.is_some() { lost } else { f64::INFINITY },
            unknown: choice.map_or(f64::INFINITY, |c| calibration.step_time(formulas[c]).unknown),
            chances,
            fit,
        }
    }

    /// Variance that a trial takes from what decides.
    fn worth(&self, standing: &Standing, before: &Calibration, after: &Calibration) -> f64 {
        let alike = ALIKE / self.options.len() as f64;
        let options = self.options.iter().enumerate();
        options
            .map(|(i, option)| {
                let f = &option.formula;
                let mut less = before.step_time(f).unknown.powi(2) - after.step_time(f).unknown.powi(2);
                if !standing.fit[i] {
                    less += before.footprint(f).unknown.powi(2) - after.footprint(f).unknown.powi(2);
                }
                ((1.0 - ALIKE) * standing.chances[i] + alike) * less
            })
            .sum()
    }
}

/// The trial of those at hand that is worth most for its time to these choices; `None` where none is worth anything.
pub(crate) fn next<'a>(
    calibration: &Calibration,
    decisions: &[(Decision<'_>, Standing)],
    trials: impl Iterator<Item = &'a Candidate>,
) -> Option<&'a Candidate> {
    let worth = |trial: &Candidate| {
        let after = calibration.after(&trial.formula);
        let all: f64 = decisions.iter().map(|(decision, standing)| decision.worth(standing, calibration, &after)).sum();
        all / trial.seconds(calibration).0
    };
    let best = trials.map(|trial| (worth(trial), trial)).max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(worth, _)| *worth > 0.0).map(|(_, trial)| trial)
}

/// Model, machine and data that all candidates of a choice share.
pub(crate) struct Around<'a> {
    /// Architecture of the model.
    pub spec: &'a ModelSpec,
    /// Machine that the trials run on.
    pub machine: &'a Machine,
    /// Token lengths of the examples.
    pub lengths: &'a TokenLengths,
    /// A calibration for requests to the formulas, which do not depend on it.
    pub calibration: &'a Calibration,
}

impl Around<'_> {
    fn candidate(&self, run: RunConfig, lengths: &TokenLengths) -> Result<Candidate> {
        let Self { spec, machine, calibration, .. } = *self;
        let request = Request { spec, machine, run: &run, lengths: Some(lengths), calibration };
        Ok(Candidate { formula: request.formula()?, run, deadly: false })
    }

    /// Marks those that need at least as much memory, by the ledger, as a run that died of it.
    pub(crate) fn mark(&self, candidates: &mut [Candidate], calibration: &Calibration) -> Result<()> {
        let Self { spec, machine, lengths, .. } = *self;
        for candidate in candidates {
            let request = Request { spec, machine, run: &candidate.run, lengths: Some(lengths), calibration };
            candidate.deadly = request.outdoes_a_dead_run()?.is_some();
        }
        Ok(())
    }

    /// Every execution of this run's recipe, this run's own among them.
    pub(crate) fn options(&self, run: &RunConfig) -> Result<Vec<Candidate>> {
        let mut all = executions(Held::default(), self.spec, run, self.machine.accelerator);
        if !all.contains(run) {
            all.push(run.clone());
        }
        all.into_iter().map(|run| self.candidate(run, self.lengths)).collect()
    }

    /// Short runs around these options: their micro-batches, and those of shorter rows and twice the rank, each padded to
    /// its length and with one micro-batch a step, as accumulating more would only repeat it.
    pub(crate) fn trials(&self, run: &RunConfig) -> Result<Vec<Candidate>> {
        let padded = TokenLengths::filled();
        let (length, lora) = (run.recipe.max_seq_length, &run.recipe.lora);
        let lengths = [8, 4, 2, 1].map(|part| (length / part).max(SHORTEST.min(length)));
        let mut trials: Vec<RunConfig> = Vec::new();
        for option in executions(Held::default(), self.spec, run, self.machine.accelerator).iter().chain([run]) {
            for length in lengths {
                for rank in [lora.rank, 2 * lora.rank] {
                    let mut trial = option.clone();
                    trial.recipe.max_seq_length = length;
                    trial.recipe.effective_batch_size = trial.execution.batch_size;
                    // The scale stays: a trial differs in what is measured, not in how it learns.
                    trial.recipe.lora = lora.with_rank(rank);
                    if trial.engine == Engine::Candle {
                        let e = &mut trial.execution;
                        (e.loss_chunk, e.attention_chunk) = (run.execution.loss_chunk, run.execution.attention_chunk);
                    }
                    if !trials.contains(&trial) {
                        trials.push(trial);
                    }
                }
            }
        }
        trials.into_iter().map(|run| self.candidate(run, &padded)).collect()
    }
}

#[cfg(test)]
#[path = "trials_tests.rs"]
mod tests;
