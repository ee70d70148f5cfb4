//! Cost and calibration together: what will happen, with an interval and where it came from.

pub mod calibration;
pub mod coefficients;
pub mod coverage;

use serde::{Deserialize, Serialize};

use self::calibration::{Calibration, Died, LogNormal, Observation};
use self::coverage::Point;
use crate::cost;
use crate::cost::Heaviest;
use crate::cost::ledger::MemoryLedger;
use crate::cost::params::{Parameters, bits, trainable};
use crate::cost::time::{StepCost, step_cost};
use crate::cost::work::{heaviest, heaviest_validation, mlx_longest, rows};
use crate::error::{Error, Result};
use crate::spec::machine::{Accelerator, Machine};
use crate::spec::model::ModelSpec;
use crate::spec::run::data::TokenLengths;
use crate::spec::run::{Engine, RunConfig, Weights};
use crate::units::{Bytes, Estimate, Seconds, watt_hours};

/// Examples that are assumed where no data is at hand.
pub const ASSUMED_EXAMPLES: usize = 2000;

/// Bytes/s at which weights come off the disk and are put in place; Mac SSDs read 1.5 to 5 GB/s.
const LOADING_RATE: f64 = 1e9;

/// Start of the process and tokenizing, s; on Metal the kernels are compiled too.
const START: f64 = 0.5;
const START_METAL: f64 = 5.0;

/// The heaviest micro-batch of a usual run: half of all runs have a heavier one.
const USUAL: f64 = 0.5;

/// Relative error of a published power figure: counters understate the whole machine's draw.
const POWER_SD: f64 = 0.3;

/// Where a prediction's numbers come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Basis {
    /// Shapes and published figures alone.
    Formula,
    /// Refitted to runs on this machine.
    Calibrated {
        /// How many.
        runs: usize,
        /// Whether this configuration lies within what they covered.
        inside: bool,
    },
}

/// What a run will take.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// Highest allocation of tensors (what the engine itself reports).
    pub peak_memory: Estimate<Bytes>,
    /// Highest memory of the process.
    pub footprint: Estimate<Bytes>,
    /// Tokens of the examples per second, padding not counted.
    pub tokens_per_s: Estimate<f64>,
    /// One optimizer step.
    pub step_time: Estimate<Seconds>,
    /// The whole run, loading included.
    pub total_time: Estimate<Seconds>,
    /// Energy of the whole run, where the machine's power is known.
    pub energy_wh: Option<Estimate<f64>>,
    /// What is in memory when.
    pub ledger: MemoryLedger,
    /// What a step does.
    pub cost: StepCost,
    /// Parameters that learn.
    pub trainable_params: u64,
    /// All parameters, adapters included.
    pub total_params: u64,
    /// Optimizer steps of the whole run.
    pub steps: usize,
    /// Where the numbers come from.
    pub basis: Basis,
    /// Runs have checked these figures, and none of them was like this one: the intervals are wider.
    pub outside: bool,
}

/// What the formulas say of a run, before any coefficient.
#[derive(Clone, Debug, PartialEq)]
pub struct Formula {
    /// What a step does.
    pub cost: StepCost,
    /// What is in memory when.
    pub ledger: MemoryLedger,
    /// What kind of run it is.
    pub point: Point,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The base model.
    pub spec: &'a ModelSpec,
    /// Where it runs.
    pub machine: &'a Machine,
    /// The run.
    pub run: &'a RunConfig,
    /// Lengths of its examples; without them each is taken to be as long as it may be.
    pub lengths: Option<&'a TokenLengths>,
    /// What is known of the machine.
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

    /// The micro-batch that decides the memory of a usual run, for our own engine.
    pub fn worst_micro(&self) -> cost::candle::Micro {
        let heaviest = self.heaviest(USUAL);
        let batch_size = self.run.execution.batch_size;
        cost::candle::Micro::full(batch_size, heaviest.tokens_per_row, heaviest.learned, self.machine)
    }

    /// What the formulas say of it.
    pub fn formula(&self) -> Result<Formula> {
        Ok(Formula {
            cost: step_cost(self.spec, self.machine, self.run, self.lengths)?,
            ledger: self.ledger(USUAL)?,
            point: Point::of(self.spec, self.run),
        })
    }

    /// What is in memory when, in a usual run.
    pub fn worst_ledger(&self) -> Result<MemoryLedger> {
        self.ledger(USUAL)
    }

    /// The run that died of memory on this machine though it needs no more than this one, if there is one.
    pub fn outdoes_a_dead_run(&self) -> Result<Option<Died>> {
        let Some(died) = self.calibration.died else { return Ok(None) };
        Ok((self.filled_peak()? >= died.peak).then_some(died))
    }

    /// Peak of the ledger with every row filled up to the greatest length.
    pub fn filled_peak(&self) -> Result<Bytes> {
        Ok(Request { lengths: Some(&TokenLengths::filled()), ..*self }.worst_ledger()?.peak())
    }

    fn ledger(&self, quantile: f64) -> Result<MemoryLedger> {
        cost::ledger(self.spec, self.run, self.machine, self.heaviest(quantile))
    }

    /// How far the peak of a lucky and of an unlucky run lies from that of a usual one, as factors: what the draw of
    /// the examples adds to the interval at this level.
    fn draw(&self, usual: &MemoryLedger, level: f64) -> Result<(f64, f64)> {
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

    /// Most likely time of one step alone, for when nothing else is asked.
    pub fn step_time(&self) -> Result<Seconds> {
        let cost = step_cost(self.spec, self.machine, self.run, self.lengths)?;
        Ok(Seconds(self.calibration.typical_time(&cost)))
    }

    /// Starting, and bringing the weights in.
    fn loading(&self, parameters: u64) -> f64 {
        let start = if self.machine.accelerator == Accelerator::Metal { START_METAL } else { START };
        start + parameters as f64 * bits(self.spec, Weights::Stored) / 8.0 / LOADING_RATE
    }

    /// Most likely time of the whole run, when a step takes this long.
    pub fn total_time(&self, step: Seconds) -> Seconds {
        let steps = self.run.steps(self.rows()) as f64;
        Seconds(self.loading(Parameters::of(self.spec).total()) + step.0 * steps)
    }

    /// Rows of the data.
    fn rows(&self) -> usize {
        self.lengths.map_or(ASSUMED_EXAMPLES, |lengths| rows(lengths, self.run).len())
    }
}

fn estimate<T>(figure: LogNormal, level: f64, make: impl Fn(f64) -> T) -> Estimate<T> {
    let (point, low, high) = figure.interval(level);
    Estimate { point: make(point), low: make(low), high: make(high), level }
}

/// What the run will take, in intervals that hold the truth with probability `level`.
pub fn predict(request: &Request<'_>, level: f64) -> Result<Prediction> {
    let Request { spec, machine, run, calibration, .. } = *request;
    let formula = request.formula()?;
    let step_time = estimate(calibration.step_time(&formula), level, Seconds);
    let tokens = formula.cost.tokens;
    let steps = run.steps(request.rows());
    let parameters = Parameters::of(spec).total();
    // Loading is a guess of its own: from nothing, where the system has the file at hand, to twice as long.
    let loading = request.loading(parameters);
    let whole = |step: Seconds, loading: f64| Seconds(loading + step.0 * steps as f64);
    let total_time = Estimate {
        point: whole(step_time.point, loading),
        low: whole(step_time.low, 0.0),
        high: whole(step_time.high, 2.0 * loading),
        level,
    };
    let (lucky, unlucky) = request.draw(&formula.ledger, level)?;
    let drawn = |e: Estimate<Bytes>| Estimate { low: e.low.scale(lucky), high: e.high.scale(unlucky), ..e };
    let trainable_params = trainable(spec, &run.recipe.lora)?;
    let tokens_per_s = Estimate {
        // Faster is less time, so the ends change places.
        point: tokens / step_time.point.0,
        low: tokens / step_time.high.0,
        high: tokens / step_time.low.0,
        level,
    };
    // JSON has no word for them: what is written here is read again.
    for (field, e) in [("tokens_per_s", tokens_per_s), ("total_time_s", total_time.map(|t| t.0))] {
        if let Some(figure) = [e.point, e.low, e.high].into_iter().find(|f| !f.is_finite()) {
            let must = "a number: this run, or a measurement that its prediction rests on, is beyond all measure";
            return Err(Error::invalid(field, figure, must));
        }
    }
    Ok(Prediction {
        peak_memory: drawn(estimate(calibration.peak(&formula), level, Bytes::from_f64)),
        footprint: drawn(estimate(calibration.footprint(&formula), level, Bytes::from_f64)),
        tokens_per_s,
        energy_wh: machine.power_w.map(|watts| {
            let wh = watt_hours(watts, total_time.point).ln();
            let time = calibration.step_time(&formula);
            estimate(LogNormal { mean: wh, ..time }.widened(POWER_SD), level, |wh| wh)
        }),
        step_time,
        total_time,
        trainable_params,
        total_params: parameters + trainable_params,
        steps,
        basis: match calibration.runs {
            0 => Basis::Formula,
            runs => Basis::Calibrated { runs, inside: calibration.coverage.inside(&formula.point) },
        },
        outside: calibration.coverage.outside(&formula.point),
        ledger: formula.ledger,
        cost: formula.cost,
    })
}

/// What was measured of a run: the step's time, the peak of the tensors and of the process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Of one optimizer step.
    pub step_time: Seconds,
    /// Of the tensors.
    pub peak_memory: Bytes,
    /// Of the process.
    pub footprint: Bytes,
}

impl Observation {
    /// A measured run, beside what it should have cost.
    pub fn new(request: &Request<'_>, measured: Measured) -> Result<Self> {
        Ok(Self { formula: request.formula()?, measured })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::model::catalogue;
    use crate::spec::run::Engine;

    #[test]
    fn a_calibrated_prediction_is_narrower_and_says_so() {
        let spec = &catalogue::find("Qwen2.5-0.5B-Instruct").unwrap().spec;
        let machine = &Machine::named("M2 Pro", None, None).unwrap();
        let run = &RunConfig::from_toml("model = \"m\"\ndata = \"d\"", "run.toml".as_ref()).unwrap();
        let prior = &Calibration::prior(machine, Engine::Candle);
        let request = Request { spec, machine, run, lengths: None, calibration: prior };
        let before = predict(&request, 0.9).unwrap();
        assert_eq!((before.basis.clone(), before.steps), (Basis::Formula, 375));
        assert_eq!(before.trainable_params, 8_798_208);
        let measured = Measured {
            step_time: Seconds(1.2 * before.step_time.point.0),
            peak_memory: before.peak_memory.point,
            footprint: before.footprint.point,
        };
        let seen = vec![Observation::new(&request, measured).unwrap(); 3];
        let fitted = Calibration::fit(prior, &seen).unwrap();
        let after = predict(&Request { calibration: &fitted, ..request }, 0.9).unwrap();
        let width = |e: Estimate<Seconds>| (e.high.0 / e.low.0).ln();
        assert!(width(after.step_time) < 0.6 * width(before.step_time));
        assert!((after.step_time.point.0 / measured.step_time.0 - 1.0).abs() < 0.05);
        assert_eq!(after.basis, Basis::Calibrated { runs: 3, inside: true });
        assert!(
            after.tokens_per_s.low < after.tokens_per_s.point && after.tokens_per_s.point < after.tokens_per_s.high
        );
    }
}
