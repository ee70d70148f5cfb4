//! What a run will take, with intervals.

use serde::{Deserialize, Serialize};

use crate::cost::ledger::MemoryLedger;
use crate::cost::params::{Parameters, trainable};
use crate::cost::time::StepCost;
use crate::error::{Error, Result};
use crate::predict::calibration::LogNormal;
use crate::predict::request::Request;
use crate::units::{Bytes, Estimate, Seconds, watt_hours};

/// Relative error of a published power figure: counters understate the whole machine's draw.
const POWER_SD: f64 = 0.3;

/// Source of a prediction's numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Basis {
    /// Formulas over the model's shapes and published figures, without any run on this machine.
    Formula,
    /// Coefficients refitted to runs on this machine.
    Calibrated {
        /// Number of runs that were fitted.
        runs: usize,
        /// Whether this configuration lies within what those runs covered.
        inside: bool,
    },
}

/// Predicted memory, time and size of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// Peak of tensor allocations, bytes, as the engine itself reports it.
    pub peak_memory: Estimate<Bytes>,
    /// Peak footprint of the process, bytes.
    pub footprint: Estimate<Bytes>,
    /// Throughput, tokens/s, padding not counted.
    pub tokens_per_s: Estimate<f64>,
    /// Time of one optimizer step, s.
    pub step_time: Estimate<Seconds>,
    /// Time of the whole run, s, loading included.
    pub total_time: Estimate<Seconds>,
    /// Energy of the whole run, Wh, where the machine's power is known.
    pub energy_wh: Option<Estimate<f64>>,
    /// Memory of a step, phase by phase.
    pub ledger: MemoryLedger,
    /// Arithmetic, memory traffic and launches of one optimizer step.
    pub cost: StepCost,
    /// Number of trainable parameters.
    pub trainable_params: u64,
    /// Number of all parameters, adapters included.
    pub total_params: u64,
    /// Number of optimizer steps of the whole run.
    pub steps: usize,
    /// Source of these numbers.
    pub basis: Basis,
    /// Whether runs have checked these figures, but none like this one: the intervals are wider.
    pub outside: bool,
}

fn estimate<T>(figure: LogNormal, level: f64, make: impl Fn(f64) -> T) -> Estimate<T> {
    let (point, low, high) = figure.interval(level);
    Estimate { point: make(point), low: make(low), high: make(high), level }
}

/// Predicts memory and time of a run, in intervals that hold the truth with probability `level`.
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
            let must = "a finite number; the run or one of its measurements is out of range";
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::calibration::{Calibration, Observation};
    use crate::predict::observation::Measured;
    use crate::spec::machine::Machine;
    use crate::spec::model::catalogue;
    use crate::spec::run::{Engine, RunConfig};

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
        let seen = vec![Observation { formula: request.formula().unwrap(), measured }; 3];
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
