//! What is asked: which run, on which machine, and what is known of it.

use crate::cost;
use crate::cost::Heaviest;
use crate::cost::ledger::MemoryLedger;
use crate::cost::params::{Parameters, bits};
use crate::cost::time::step_cost;
use crate::cost::work::{heaviest, heaviest_validation, mlx_longest, rows};
use crate::error::{Error, Result};
use crate::predict::calibration::{Calibration, Died};
use crate::predict::coverage::Point;
use crate::predict::observation::Formula;
use crate::spec::machine::{Accelerator, Machine};
use crate::spec::model::ModelSpec;
use crate::spec::run::{Engine, RunConfig, TokenLengths, Weights};
use crate::units::{Bytes, Seconds};

/// The heaviest micro-batch of a usual run: half of all runs have a heavier one.
pub(super) const USUAL: f64 = 0.5;

/// A run to predict, with the machine and what is known of it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Architecture of the base model.
    pub spec: &'a ModelSpec,
    /// Machine that the run is predicted for.
    pub machine: &'a Machine,
    /// Configuration of the run.
    pub run: &'a RunConfig,
    /// Token lengths of its examples; without them each is taken to be as long as it may be.
    pub lengths: Option<&'a TokenLengths>,
    /// Calibration of the machine and engine.
    pub calibration: &'a Calibration,
}

impl Request<'_> {
    /// The micro-batch that decides the memory, as heavy as it stays in a share `quantile` of all runs.
    fn heaviest(&self, quantile: f64) -> Heaviest {
        let cap = self.run.recipe.max_seq_length;
        let Some(lengths) = self.lengths.filter(|l| !l.is_empty()) else {
            return Heaviest { tokens_per_row: cap, learned: 1.0, validation_tokens: None };
        };
        let micro_batches = (self.run.steps(self.rows()) * self.run.accumulation()) as f64;
        let tokens_per_row = match self.run.engine {
            // Examples lie end to end: their sum counts, and not the longest of them.
            Engine::Candle => {
                heaviest(lengths, self.run, micro_batches, quantile).div_ceil(self.run.execution.batch_size)
            }
            // Each is padded to the longest.
            Engine::MlxLm => mlx_longest(lengths, self.run, micro_batches, quantile),
        };
        let learned = if self.run.recipe.mask_prompt { lengths.completion() } else { 1.0 };
        Heaviest { tokens_per_row, learned, validation_tokens: heaviest_validation(lengths, self.run) }
    }

    /// The micro-batches that decide the memory of a usual run, for the candle engine: of training, and of an evaluation.
    pub(crate) fn worst_micros(&self) -> (cost::candle::Micro, Option<cost::candle::Micro>) {
        let heaviest = self.heaviest(USUAL);
        let of =
            |tokens| cost::candle::Micro::full(self.run.execution.batch_size, tokens, heaviest.learned, self.machine);
        (of(heaviest.tokens_per_row), heaviest.validation_tokens.map(of))
    }

    /// Cost and memory of the run by the formulas.
    pub(crate) fn formula(&self) -> Result<Formula> {
        Ok(Formula {
            cost: step_cost(self.spec, self.machine, self.run, self.lengths)?,
            ledger: self.ledger(USUAL)?,
            point: Point::of(self.spec, self.run),
        })
    }

    /// Memory ledger of a step over the largest micro-batch of a usual run.
    pub(crate) fn worst_ledger(&self) -> Result<MemoryLedger> {
        self.ledger(USUAL)
    }

    /// The run that died for want of memory on this machine though it needs no more than this one, if any.
    pub(crate) fn outdoes_a_dead_run(&self) -> Result<Option<Died>> {
        let Some(died) = self.calibration.died else { return Ok(None) };
        Ok((self.filled_peak()? >= died.peak).then_some(died))
    }

    /// Peak of the ledger with every row filled up to the greatest length, bytes.
    pub(crate) fn filled_peak(&self) -> Result<Bytes> {
        Ok(Request { lengths: Some(&TokenLengths::filled()), ..*self }.worst_ledger()?.peak())
    }

    pub(super) fn ledger(&self, quantile: f64) -> Result<MemoryLedger> {
        cost::ledger(self.spec, self.run, self.machine, self.heaviest(quantile))
    }

    /// How far the peak of a lucky and of an unlucky run lies from that of a usual one, as factors: what the draw of
    /// the examples adds to the interval at this level.
    pub(super) fn draw(&self, usual: &MemoryLedger, level: f64) -> Result<(f64, f64)> {
        let tail = (1.0 - level) / 2.0;
        let usual_rows = self.heaviest(USUAL);
        let factor = |quantile| {
            if self.heaviest(quantile) == usual_rows {
                return Ok::<f64, Error>(1.0);
            }
            Ok(self.ledger(quantile)?.peak().as_f64() / usual.peak().as_f64())
        };
        Ok((factor(tail)?, factor(1.0 - tail)?))
    }

    /// Most likely time of one step, without an interval.
    pub(crate) fn step_time(&self) -> Result<Seconds> {
        let cost = step_cost(self.spec, self.machine, self.run, self.lengths)?;
        Ok(Seconds(self.calibration.typical_time(&cost)))
    }

    /// Time to start the process and load the weights, s.
    pub(super) fn loading(&self, parameters: u64) -> f64 {
        let start = if self.machine.accelerator == Accelerator::Metal { START_METAL } else { START };
        start + parameters as f64 * bits(self.spec, Weights::Stored) / 8.0 / LOADING_RATE
    }

    /// Most likely time of the whole run, when a step takes this long.
    pub(crate) fn total_time(&self, step: Seconds) -> Seconds {
        let steps = self.run.steps(self.rows()) as f64;
        Seconds(self.loading(Parameters::of(self.spec).total()) + step.0 * steps)
    }

    /// Number of rows of the data, after packing.
    pub(super) fn rows(&self) -> usize {
        self.lengths.map_or(ASSUMED_EXAMPLES, |lengths| rows(lengths, self.run).len())
    }
}

/// Rate at which weights are read and put in place, bytes/s; Mac SSDs read 1.5 to 5 GB/s.
const LOADING_RATE: f64 = 1e9;

/// Start of the process and tokenizing, s; on Metal the kernels are compiled too.
const START: f64 = 0.5;

const START_METAL: f64 = 5.0;

/// Number of examples assumed where no data is at hand.
pub(crate) const ASSUMED_EXAMPLES: usize = 2000;
