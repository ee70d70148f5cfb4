//! Experience: the coefficients refitted to runs on this machine.
//!
//! With F FLOPs, B bytes and n launches a step takes `F / (e_c peak) + B / (e_b bandwidth) + n t`; with the ledger
//! split into what is resident (R) and what is transient (T), the peak is `R + a T` and the footprint `R + (a + f) T`
//! plus a fixed part. The logarithms of the coefficients are normal beforehand; each round linearises the logarithm
//! of the formula about the last estimate and updates them (Gauss-Newton), so they stay positive and errors are
//! relative. A run further than 2.5 robust standard deviations from the fit counts in inverse proportion to its
//! distance (Huber). The fit always starts from the prior and sees all raw runs, so it can be repeated.

use nalgebra::{DMatrix, DVector};
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::cost::time::StepCost;
use crate::error::{Error, Result};
use crate::predict::coefficients::{COUNT, Coefficients, Noise};
use crate::predict::coverage::{Coverage, Point};
use crate::predict::observation::{Formula, Measured};
use crate::spec::machine::{Accelerator, Machine};
use crate::spec::run::Engine;
use crate::stats::{Belief, huber_weights, normal_quantile, student_t_quantile};
use crate::units::Bytes;

/// Robust standard deviations beyond which a run counts less; 95 % efficient on normal errors at 1.345, and 2.5
/// hardly touches them.
const HUBER: f64 = 2.5;

/// Degrees of freedom that the prior noise is worth: a handful of runs outweigh it.
const NOISE_FREEDOM: f64 = 4.0;

/// [`Calibration::memory_outside`] of our engine on a CPU: its ledger mirrors the trainer, and random shapes of all
/// families and settings lie within 2.8 % of it, however large or small (`tests/ledger.rs`).
const MIRRORED: f64 = 0.1;

/// Rounds of linearising; the fit is settled after about five.
const ROUNDS: usize = 25;

/// Indices of the coefficients of time, in the order of [`Coefficients`]' fields.
pub(crate) const TIME: [usize; 3] = [0, 1, 2];
const FIXED: usize = 3;
pub(crate) const ALLOCATION: usize = 4;
const FRAGMENTATION: usize = 5;

/// A measured run beside what the formulas say it should have cost.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Observation {
    /// Cost and memory of the run by the formulas.
    pub formula: Formula,
    /// Time and memory that were measured.
    pub measured: Measured,
}

/// A run that died for want of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Died {
    /// Peak of the ledger with every row filled up, bytes.
    pub peak: Bytes,
    /// Footprint of the process when it ended, bytes: the run needs more than that.
    pub had_taken: Bytes,
}

/// Fitted coefficients of a machine and an engine, with their uncertainty.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Name of the machine that was calibrated.
    pub machine: String,
    /// Engine that was calibrated.
    pub engine: Engine,
    /// Most likely values of the coefficients.
    pub coefficients: Coefficients,
    /// Covariance of the coefficients' logarithms, in the order of the fields.
    pub covariance: [[f64; COUNT]; COUNT],
    /// How far single runs lie from the formulas.
    pub noise: Noise,
    /// Number of measurements that were fitted; 0 before any run.
    pub runs: usize,
    /// Kinds and sizes of runs that the formulas have been checked on.
    pub coverage: Coverage,
    /// Share of the error outside of the coverage that memory has, against time.
    pub memory_outside: f64,
    /// Rates that the efficiencies are shares of: FLOP/s and bytes/s.
    pub rates: [f64; 2],
    /// The smallest run that died of memory here and has not been outdone since. What needs as much by the ledger does
    /// not fit, whatever its bound: the ledger orders runs better than the bound knows their size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub died: Option<Died>,
}

/// A figure's logarithm: its mean, its standard deviation, and the degrees of freedom of the latter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LogNormal {
    /// Logarithm of the most likely value.
    pub mean: f64,
    /// Standard deviation of the logarithm.
    pub sd: f64,
    /// Part of `sd` that is not the noise of single runs, and that more runs would remove.
    pub unknown: f64,
    /// Degrees of freedom of Student's t for the interval.
    pub freedom: f64,
}

impl LogNormal {
    /// Most likely value, and the ends of the interval that holds the truth with probability `level`.
    pub(crate) fn interval(&self, level: f64) -> (f64, f64, f64) {
        let t = student_t_quantile(0.5 + level / 2.0, self.freedom);
        (self.mean.exp(), (self.mean - t * self.sd).exp(), (self.mean + t * self.sd).exp())
    }

    /// The same figure with another independent error, `sd` in the logarithm.
    pub(crate) fn widened(self, sd: f64) -> Self {
        Self { sd: self.sd.hypot(sd), ..self }
    }
}

/// One equation of the fit: the logarithm of `sum of exp(signs * theta) * amounts` plus `constant` was `target`.
struct Equation {
    amounts: [f64; COUNT],
    constant: f64,
    target: f64,
    kind: usize,
}

/// Sign of each coefficient's exponent: efficiencies divide, the others multiply.
const SIGNS: [f64; COUNT] = [-1.0, -1.0, 1.0, 1.0, 1.0, 1.0];

impl Equation {
    /// The logarithm of the formula at `theta`, and its slopes.
    fn at(&self, theta: &DVector<f64>) -> (f64, DVector<f64>) {
        let parts: Vec<f64> = (0..COUNT).map(|i| (SIGNS[i] * theta[i]).exp() * self.amounts[i]).collect();
        let sum = self.constant + parts.iter().sum::<f64>();
        (sum.ln(), DVector::from_iterator(COUNT, parts.iter().zip(SIGNS).map(|(p, sign)| sign * p / sum)))
    }
}

impl Calibration {
    /// The calibration before any run, from published figures of the machine.
    pub fn prior(machine: &Machine, engine: Engine) -> Self {
        let matrix =
            machine.matrix_flops.filter(|_| engine == Engine::MlxLm && machine.accelerator == Accelerator::Metal);
        let coefficients = Coefficients::prior(machine, engine);
        let belief = coefficients.belief();
        Self {
            machine: machine.name.clone(),
            engine,
            covariance: std::array::from_fn(|i| std::array::from_fn(|j| belief.covariance[(i, j)])),
            coefficients,
            noise: Noise::prior(engine),
            runs: 0,
            coverage: Coverage::published(engine),
            memory_outside: match (engine, machine.accelerator) {
                (Engine::Candle, Accelerator::Cpu) => MIRRORED,
                _ => 1.0,
            },
            rates: [matrix.unwrap_or(machine.peak_flops).0, machine.bandwidth],
            died: None,
        }
    }

    /// Refits the prior to everything that was observed.
    pub(crate) fn fit(prior: &Self, observations: &[Observation]) -> Result<Self> {
        if observations.is_empty() {
            return Ok(prior.clone());
        }
        let equations: Vec<Equation> = observations.iter().flat_map(|o| prior.observed(o)).collect();
        let before = prior.belief();
        let (mut after, mut noise) = (before.clone(), prior.noise.list());
        for _ in 0..ROUNDS {
            let rows: Vec<(f64, DVector<f64>)> = equations.iter().map(|e| e.at(&after.mean)).collect();
            let residuals: Vec<f64> = equations.iter().zip(&rows).map(|(e, (f, _))| e.target - f).collect();
            let weights = weights(&equations, &residuals, &noise);
            let x = DMatrix::from_fn(rows.len(), COUNT, |i, j| rows[i].1[j]);
            let y = DVector::from_fn(rows.len(), |i, _| residuals[i] + rows[i].1.dot(&after.mean));
            // Rows are scaled by their own noise, so that the update may take it to be 1.
            let scaled: Vec<f64> =
                equations.iter().zip(&weights).map(|(e, w)| w / (noise[e.kind] * noise[e.kind])).collect();
            after = before.updated(&x, &y, &scaled, 1.0).ok_or_else(|| Error::Engine {
                engine: prior.engine.name().into(),
                reason: "the runs do not determine a calibration: a figure is zero or not finite".into(),
            })?;
            noise = refit_noise(&prior.noise.list(), (&equations, &weights, &residuals), &rows, &after);
        }
        let mut fitted = prior.clone();
        fitted.coefficients.set(&after, &format!("{} runs on {}", observations.len(), prior.machine));
        fitted.covariance = std::array::from_fn(|i| std::array::from_fn(|j| after.covariance[(i, j)]));
        fitted.noise = Noise { time: noise[0], peak: noise[1], footprint: noise[2] };
        fitted.runs = observations.len();
        fitted.coverage = Coverage::of(observations.iter().map(|o| &o.formula.point));
        Ok(fitted)
    }

    fn belief(&self) -> Belief {
        Belief {
            mean: self.coefficients.belief().mean,
            covariance: DMatrix::from_fn(COUNT, COUNT, |i, j| self.covariance[i][j]),
        }
    }

    fn time_equation(&self, cost: &StepCost) -> Equation {
        let mut amounts = [0.0; COUNT];
        let parts = [cost.flops() / self.rates[0], cost.bytes() / self.rates[1], cost.launches()];
        TIME.into_iter().zip(parts).for_each(|(i, part)| amounts[i] = part);
        Equation { amounts, constant: 0.0, target: 0.0, kind: 0 }
    }

    fn peak_equation(&self, formula: &Formula) -> Equation {
        let mut amounts = [0.0; COUNT];
        let (peak, resident) = (formula.ledger.peak(), formula.ledger.resident_total());
        amounts[ALLOCATION] = peak.saturating_sub(resident).as_f64();
        Equation { amounts, constant: resident.as_f64(), target: 0.0, kind: 1 }
    }

    fn footprint_equation(&self, formula: &Formula) -> Equation {
        let mut equation = self.peak_equation(formula);
        (equation.amounts[FIXED], equation.amounts[FRAGMENTATION]) = (1.0, equation.amounts[ALLOCATION]);
        equation.kind = 2;
        equation
    }

    fn equations(&self, formula: &Formula) -> [Equation; 3] {
        [self.time_equation(&formula.cost), self.peak_equation(formula), self.footprint_equation(formula)]
    }

    fn observed(&self, o: &Observation) -> [Equation; 3] {
        let Measured { step_time, peak_memory, footprint } = o.measured;
        let mut equations = self.equations(&o.formula);
        let figures = [step_time.0, peak_memory.as_f64(), footprint.as_f64()];
        equations.iter_mut().zip(figures).for_each(|(equation, figure)| equation.target = figure.ln());
        equations
    }

    /// Error to add to the logarithm of a figure because the run is outside of what was covered.
    fn outside(&self, kind: usize, point: &Point) -> f64 {
        self.coverage.extra_sd(point) * if kind == 0 { 1.0 } else { self.memory_outside }
    }

    fn figure(&self, equation: &Equation, point: &Point) -> LogNormal {
        let belief = self.belief();
        let (mean, slopes) = equation.at(&belief.mean);
        let noise = self.noise.list()[equation.kind];
        let unknown = (belief.variance_of(&slopes) + self.outside(equation.kind, point).powi(2)).sqrt();
        let sd = unknown.hypot(noise);
        // Only the noise was estimated from few runs (Welch and Satterthwaite's effective degrees of freedom).
        let share = sd * sd / (noise * noise);
        LogNormal { mean, sd, unknown, freedom: (NOISE_FREEDOM + self.runs as f64) * share * share }
    }

    /// What would be known after one more run like this one, whatever it showed: the same values, less uncertainty.
    pub(crate) fn after(&self, formula: &Formula) -> Self {
        let belief = self.belief();
        let equations = self.equations(formula);
        let rows = equations.each_ref().map(|e| e.at(&belief.mean).1);
        let x = DMatrix::from_fn(rows.len(), COUNT, |i, j| rows[i][j]);
        let y = &x * &belief.mean;
        let weights = self.noise.list().map(|sd| 1.0 / (sd * sd));
        let mut after = self.clone();
        if let Some(updated) = belief.updated(&x, &y, &weights, 1.0) {
            after.covariance = std::array::from_fn(|i| std::array::from_fn(|j| updated.covariance[(i, j)]));
        }
        after.coverage.add(&formula.point);
        after.runs += 1;
        after
    }

    /// One guess at the logarithms of step time and footprint of each of these runs, as likely as what is known makes
    /// it: the coefficients are the same for all of them.
    pub(crate) fn guess(&self, runs: &[&Formula], rng: &mut impl Rng) -> Vec<[f64; 2]> {
        let mut normal = || normal_quantile(rng.random_range(1e-9..1.0));
        let belief = self.belief();
        let spread = belief.covariance.clone().cholesky().map(|c| c.l());
        let z = DVector::from_fn(COUNT, |_, _| normal());
        let theta = spread.map_or_else(|| belief.mean.clone(), |l| &belief.mean + l * z);
        let mut at =
            |equation: Equation, point: &Point| equation.at(&theta).0 + self.outside(equation.kind, point) * normal();
        let both = |f: &&Formula| [at(self.time_equation(&f.cost), &f.point), at(self.footprint_equation(f), &f.point)];
        runs.iter().map(both).collect()
    }

    /// Most likely time of one step, s, without its interval.
    pub(crate) fn typical_time(&self, cost: &StepCost) -> f64 {
        let c = &self.coefficients;
        cost.flops() / (self.rates[0] * c.compute_efficiency.value)
            + cost.bytes() / (self.rates[1] * c.bandwidth_efficiency.value)
            + cost.launches() * c.launch_overhead.value
    }

    /// Predicted time of one step, s.
    pub(crate) fn step_time(&self, formula: &Formula) -> LogNormal {
        self.figure(&self.time_equation(&formula.cost), &formula.point)
    }

    /// Predicted peak of tensor allocations, bytes.
    pub(crate) fn peak(&self, formula: &Formula) -> LogNormal {
        self.figure(&self.peak_equation(formula), &formula.point)
    }

    /// Predicted peak footprint of the process, bytes.
    pub(crate) fn footprint(&self, formula: &Formula) -> LogNormal {
        self.figure(&self.footprint_equation(formula), &formula.point)
    }
}

impl Noise {
    fn list(&self) -> [f64; 3] {
        [self.time, self.peak, self.footprint]
    }
}

/// Huber's weights of the residuals, within each kind of equation.
fn weights(equations: &[Equation], residuals: &[f64], noise: &[f64; 3]) -> Vec<f64> {
    let mut all = vec![1.0; residuals.len()];
    for (kind, sd) in noise.iter().enumerate() {
        let of_kind: Vec<usize> = (0..equations.len()).filter(|i| equations[*i].kind == kind).collect();
        let sizes: Vec<f64> = of_kind.iter().map(|i| residuals[*i]).collect();
        for (i, w) in of_kind.into_iter().zip(huber_weights(&sizes, HUBER, *sd)) {
            all[i] = w;
        }
    }
    all
}

/// Each kind's noise: the prior's, as if seen [`NOISE_FREEDOM`] times, and the residuals with what the coefficients
/// are still unsure of.
fn refit_noise(
    prior: &[f64; 3],
    (equations, weights, residuals): (&[Equation], &[f64], &[f64]),
    rows: &[(f64, DVector<f64>)],
    after: &Belief,
) -> [f64; 3] {
    std::array::from_fn(|kind| {
        let mut sum = NOISE_FREEDOM * prior[kind] * prior[kind];
        let mut count = NOISE_FREEDOM;
        for i in (0..equations.len()).filter(|i| equations[*i].kind == kind) {
            sum += weights[i] * (residuals[i] * residuals[i] + after.variance_of(&rows[i].1));
            count += 1.0;
        }
        (sum / count).sqrt()
    })
}

#[cfg(test)]
#[path = "calibration_tests.rs"]
mod tests;
