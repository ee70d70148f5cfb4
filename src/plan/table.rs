//! The feasible set of a Mac: models by formats, with how far each goes.

use rayon::prelude::*;
use serde::Serialize;

use crate::error::Result;
use crate::plan::ask::{Ask, BATCH_SIZES, RANKS};
use crate::plan::assessment::Assessment;
use crate::plan::quality::Quality;
use crate::plan::search::Search;
use crate::spec::model::Model;
use crate::spec::run::{Engine, RunConfig, TokenLengths, Weights};
use crate::units::{Bytes, Estimate, Seconds};

/// Sequence lengths that are tried, longest first.
const LENGTHS: [usize; 9] = [32768, 16384, 8192, 4096, 2048, 1024, 512, 256, 128];

/// A model in a format: how far it goes on this Mac.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cell {
    /// Name of the model.
    pub model: String,
    /// Number of its parameters.
    pub parameters: u64,
    /// Format of the base as a run file writes it.
    pub weights: Weights,
    /// Bits of a weight.
    pub bits: f64,
    /// Trainer.
    pub engine: Engine,
    /// Sequence length that the batch size, the rank and the run are for, tokens.
    pub seq: usize,
    /// Longest sequence that fits, of one example at a time, tokens.
    pub longest_seq: Option<usize>,
    /// Largest micro-batch that fits.
    pub largest_batch: Option<usize>,
    /// Largest rank that fits.
    pub largest_rank: Option<usize>,
    /// Memory of the leanest run: its upper bound.
    pub least_memory_bytes: Bytes,
    /// Time of the fastest run that fits, whether or not it is in time.
    pub total_time_s: Option<Estimate<Seconds>>,
    /// Energy of that run, Wh.
    pub energy_wh: Option<f64>,
    /// Memory of that run: its upper bound.
    pub memory_bytes: Option<Bytes>,
    /// Whether that run is in time at the asked confidence.
    pub in_time: bool,
    /// Why it does not fit: the limit that binds.
    pub why_not: Option<String>,
    /// What the format costs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quality: Option<Quality>,
}

/// Every model that may be planned, in each of its formats, the largest first.
pub(crate) fn table(ask: &Ask<'_>) -> Result<Vec<Cell>> {
    let models = ask.models();
    // How far a model goes is asked of rows that fill the length.
    let filled = TokenLengths::filled();
    let full = &Ask { lengths: &filled, ..ask.clone() };
    let each: Vec<(&Model, Weights)> =
        models.iter().flat_map(|m| ask.formats(&m.spec).into_iter().map(move |weights| (m, weights))).collect();
    each.into_par_iter().map(|(model, weights)| Place { ask, full, model, weights }.cell()).collect()
}

/// A place in the table.
struct Place<'a> {
    ask: &'a Ask<'a>,
    /// The same with rows that fill the length.
    full: &'a Ask<'a>,
    model: &'a Model,
    weights: Weights,
}

impl Place<'_> {
    fn cell(&self) -> Result<Cell> {
        let spec = &self.model.spec;
        let seq = self.ask.needed_length().min(spec.max_position_embeddings);
        let rank = self.ask.ranks(spec, seq)?.last().copied().unwrap_or(RANKS[0]);
        let least = self.assess(&self.lean(seq, rank, None))?;
        let longest_seq =
            first(&LENGTHS, |n| Ok(*n <= spec.max_position_embeddings && self.fits(&self.lean(*n, rank, None))?))?;
        let descending = |all: &[usize]| all.iter().rev().copied().collect::<Vec<_>>();
        let largest_batch = first(&descending(&BATCH_SIZES), |n| self.fits(&self.lean(seq, rank, Some(*n))))?;
        let largest_rank = first(&descending(&RANKS), |n| self.fits(&self.lean(seq, *n, None)))?;
        let mut search = Search { ask: self.ask, considered: 0 };
        let run = search.in_format(self.model, self.weights, seq, f64::INFINITY)?.map(|found| found.assessment);
        let limit = Seconds::from_hours(self.ask.hours);
        let parameters = least.prediction.total_params - least.prediction.trainable_params;
        Ok(Cell {
            model: self.model.name.clone(),
            parameters,
            weights: self.weights,
            bits: spec.usual_format(self.weights).bits(),
            engine: self.ask.run.engine,
            seq,
            longest_seq,
            largest_batch,
            largest_rank,
            least_memory_bytes: least.prediction.footprint.high,
            in_time: run.as_ref().is_some_and(|a| a.prediction.total_time.high <= limit),
            total_time_s: run.as_ref().map(|a| a.prediction.total_time),
            energy_wh: run.as_ref().and_then(|a| Some(a.prediction.energy_wh?.point)),
            memory_bytes: run.as_ref().map(|a| a.prediction.footprint.high),
            why_not: why_not(&least),
            quality: Quality::of(spec, self.weights, parameters),
        })
    }

    /// The run that takes least at a length, with a rank and a micro-batch.
    fn lean(&self, seq: usize, rank: usize, batch: Option<usize>) -> RunConfig {
        let recipe = self.ask.recipe(self.model, self.weights, seq, rank);
        let mut lean = self.ask.executions(&self.model.spec, &recipe).swap_remove(0);
        if let Some(batch) = batch {
            lean.execution.batch_size = batch;
            lean.recipe.effective_batch_size = lean.recipe.effective_batch_size.max(batch);
        }
        lean
    }

    fn assess(&self, run: &RunConfig) -> Result<Assessment> {
        Search { ask: self.full, considered: 0 }.assess(&self.model.spec, run)
    }

    fn fits(&self, run: &RunConfig) -> Result<bool> {
        Ok(run.check().is_ok() && self.assess(run)?.fits())
    }
}

/// The first of a list for which it holds.
fn first(all: &[usize], holds: impl Fn(&usize) -> Result<bool>) -> Result<Option<usize>> {
    for n in all {
        if holds(n)? {
            return Ok(Some(*n));
        }
    }
    Ok(None)
}

fn why_not(least: &Assessment) -> Option<String> {
    let limit = least.binding().filter(|_| !least.fits())?;
    Some(format!("{} of {} {}", limit.high, limit.limit, limit.kind))
}
