//! One prediction beside one measurement, and what many of them say together.

use serde::Serialize;

use crate::accuracy::field::{Ending, FieldRun};
use crate::accuracy::rules::{Case, Rule};
use crate::cost::work::mlx_padded;
use crate::error::Result;
use crate::measure::Measurement;
use crate::plan::{Verdict, assess};
use crate::predict::calibration::Calibration;
use crate::predict::{Request, predict};
use crate::spec::machine::Machine;
use crate::spec::run::{Engine, RunConfig, TokenLengths};
use crate::stats::{median, quantile};
use crate::units::{Bytes, Estimate};

/// Level of the intervals that are judged.
pub(crate) const LEVEL: f64 = 0.9;

/// Confidence of the verdicts that are judged: what `predict` takes where nothing else is asked for.
const CONFIDENCE: f64 = 0.99;

/// A quantity that is predicted and measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Quantity {
    /// Peak of tensor allocations, bytes.
    PeakMemory,
    /// Peak footprint of the process, bytes.
    Footprint,
    /// Throughput without padding, tokens/s.
    Speed,
}

impl Quantity {
    /// Name of the quantity for tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PeakMemory => "peak memory",
            Self::Footprint => "footprint",
            Self::Speed => "speed",
        }
    }
}

/// A predicted quantity of a run beside the measured one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Figure {
    /// Id of the run.
    pub id: String,
    /// Engine that trained.
    pub engine: Engine,
    /// Chip or machine it ran on; empty where it is not stated.
    pub chip: String,
    /// Quantity that is compared.
    pub quantity: Quantity,
    /// Predicted value with its interval.
    pub predicted: Estimate<f64>,
    /// Measured value.
    pub measured: f64,
}

impl Figure {
    /// Error relative to the measured value; positive where the prediction was too high.
    pub(crate) fn error(&self) -> f64 {
        self.predicted.point / self.measured - 1.0
    }

    /// Whether the measured value lies in the predicted interval.
    pub(crate) fn inside(&self) -> bool {
        (self.predicted.low..=self.predicted.high).contains(&self.measured)
    }
}

/// A measured peak beside the predictions for the lightest and the heaviest batch that the row allows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Bracket {
    /// Id of the run.
    pub id: String,
    /// Chip it ran on; empty where it is not stated.
    pub chip: String,
    /// Predicted peak if every example were as long as the average, bytes.
    pub at_average: f64,
    /// Predicted peak if the longest example were cut to the cap, bytes.
    pub at_cap: f64,
    /// Measured peak, bytes.
    pub measured: f64,
}

impl Bracket {
    /// Whether the measured peak lies between the two predictions.
    pub(crate) fn inside(&self) -> bool {
        (self.at_average..=self.at_cap).contains(&self.measured)
    }
}

/// Verdict on a run beside how it ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Judged {
    /// Id of the run.
    pub id: String,
    /// Name of the machine it ran on.
    pub machine: String,
    /// How the run ended.
    pub outcome: Ending,
    /// Verdict on the run with the longest examples that the row allows.
    pub verdict: Verdict,
    /// Whether it is predicted to fail, with confidence, even with the shortest examples that the row allows.
    pub surely_fails: bool,
}

impl Judged {
    /// Whether the run died although it was predicted to fit with confidence.
    pub(crate) fn unsafe_fit(&self) -> bool {
        self.outcome == Ending::Oom && self.verdict == Verdict::Fits
    }

    /// Whether the run finished although it was predicted to fail with confidence.
    pub(crate) fn refused_success(&self) -> bool {
        self.outcome == Ending::Ok && self.surely_fails
    }
}

/// Errors and interval coverage of a group of figures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// Number of figures.
    pub n: usize,
    /// Median of the absolute relative errors.
    pub median: f64,
    /// 95th percentile of the absolute relative errors.
    pub p95: f64,
    /// Number of figures whose measured value lies in the predicted interval.
    pub inside: usize,
}

impl Summary {
    /// Summarises these figures; `None` where there are none.
    pub(crate) fn of<'a>(figures: impl Iterator<Item = &'a Figure>) -> Option<Self> {
        let figures: Vec<&Figure> = figures.collect();
        let errors: Vec<f64> = figures.iter().map(|f| f.error().abs()).collect();
        (!figures.is_empty()).then(|| Self {
            n: figures.len(),
            median: median(&errors),
            p95: quantile(&errors, 0.95),
            inside: figures.iter().filter(|f| f.inside()).count(),
        })
    }

    /// Share of the figures that lie in their intervals.
    pub(crate) fn coverage(&self) -> f64 {
        self.inside as f64 / self.n as f64
    }
}

/// Figures and verdict of one published run, and what was left out of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scored {
    /// Predictions beside measurements of the run.
    pub figures: Vec<Figure>,
    /// Peaks of a run whose longest batch is not known.
    pub brackets: Vec<Bracket>,
    /// Verdict on the run beside how it ended.
    pub judged: Option<Judged>,
    /// The run, where its peak is among the figures.
    pub case: Option<UnderstoodRun>,
    /// Rules that left figures of the run out.
    pub left_out: Vec<Rule>,
}

/// Calibration of a machine before anything is measured on it.
pub(crate) type Prior<'a> = &'a dyn Fn(&Machine) -> Calibration;

/// Compares a published run with what is predicted of it.
pub(crate) fn score(row: &FieldRun) -> Result<Scored> {
    score_with(row, &|machine| Calibration::prior(machine, Engine::MlxLm))
}

/// Compares a published run with what is predicted of it by another prior; the rows are all of mlx-lm.
pub(crate) fn score_with(row: &FieldRun, prior: Prior<'_>) -> Result<Scored> {
    let mut scored = Scored::default();
    let case = match Case::of(row) {
        Ok(case) => case,
        Err(rule) => return Ok(Scored { left_out: vec![rule], ..scored }),
    };
    match case.peak(row) {
        Ok(peak) => score_peak(&case, peak, &mut scored, prior)?,
        Err(rule) => scored.left_out.push(rule),
    }
    match case.speed(row) {
        Ok(speed) => scored.figures.push(figure(&case, Quantity::Speed, speed, &case.lengths(), prior)?),
        Err(rule) => scored.left_out.push(rule),
    }
    match case.machines.first() {
        Some(machine) => scored.judged = Some(judge(&case, machine, row.outcome, prior)?),
        None => scored.left_out.push(Rule::NoMemory),
    }
    Ok(scored)
}

fn score_peak(case: &Case, peak: Bytes, scored: &mut Scored, prior: Prior<'_>) -> Result<()> {
    if case.known.longest() {
        let tokens_per_row = mlx_padded(case.longest().max(), case.run.recipe.max_seq_length);
        scored.case = Some(UnderstoodRun { id: case.id.clone(), tokens_per_row, run: case.run.clone() });
        scored.figures.push(figure(case, Quantity::PeakMemory, peak.as_f64(), &case.lengths(), prior)?);
        return Ok(());
    }
    let at =
        |lengths: &TokenLengths| -> Result<f64> { Ok(estimate(case, Quantity::PeakMemory, lengths, prior)?.point) };
    scored.brackets.push(Bracket {
        id: case.id.clone(),
        chip: case.chip.clone(),
        at_average: at(&case.lengths())?,
        at_cap: at(&case.longest())?,
        measured: peak.as_f64(),
    });
    Ok(())
}

fn figure(case: &Case, quantity: Quantity, measured: f64, lengths: &TokenLengths, prior: Prior<'_>) -> Result<Figure> {
    Ok(Figure {
        id: case.id.clone(),
        engine: case.run.engine,
        chip: case.chip.clone(),
        quantity,
        predicted: estimate(case, quantity, lengths, prior)?,
        measured,
    })
}

/// Over every Mac that it may have been: the middle of the points, and an interval that holds all of theirs.
fn estimate(case: &Case, quantity: Quantity, lengths: &TokenLengths, prior: Prior<'_>) -> Result<Estimate<f64>> {
    // Memory is the same on every Mac; where none is stated any will do.
    let any = [Machine::plainest(Bytes::from_gib(128.0))?];
    let machines = if case.machines.is_empty() { &any[..] } else { &case.machines };
    let mut all = Vec::new();
    for machine in machines {
        let (spec, run, calibration) = (&case.spec, &case.run, &prior(machine));
        let prediction = predict(&Request { spec, machine, run, lengths: Some(lengths), calibration }, LEVEL)?;
        all.push(match quantity {
            Quantity::PeakMemory => prediction.peak_memory.map(Bytes::as_f64),
            Quantity::Footprint => prediction.footprint.map(Bytes::as_f64),
            Quantity::Speed => prediction.tokens_per_s,
        });
    }
    let mean = all.iter().map(|e| e.point.ln()).sum::<f64>() / all.len() as f64;
    let low = all.iter().map(|e| e.low).fold(f64::INFINITY, f64::min);
    let high = all.iter().map(|e| e.high).fold(0.0, f64::max);
    Ok(Estimate { point: mean.exp(), low, high, level: LEVEL })
}

fn judge(case: &Case, machine: &Machine, outcome: Ending, prior: Prior<'_>) -> Result<Judged> {
    let calibration = &prior(machine);
    let (spec, run) = (&case.spec, &case.run);
    let at = |lengths: &TokenLengths| {
        assess(&Request { spec, machine, run, lengths: Some(lengths), calibration }, CONFIDENCE, None)
    };
    Ok(Judged {
        id: case.id.clone(),
        machine: machine.name.clone(),
        outcome,
        verdict: at(&case.longest())?.verdict,
        surely_fails: at(&case.lengths())?.surely_fails,
    })
}

/// Figures of a local measurement, beside what had been predicted before it was made.
pub(crate) fn of_measurement(m: &Measurement, number: usize) -> Vec<Figure> {
    let bytes = |e: Option<Estimate<Bytes>>| e.map(|e| e.map(Bytes::as_f64));
    let (p, seen) = (&m.predicted, &m.measured);
    let all = [
        (Quantity::PeakMemory, bytes(p.peak_memory_bytes), seen.peak_memory_bytes.map(Bytes::as_f64)),
        (Quantity::Footprint, bytes(p.footprint_bytes), seen.footprint_bytes.map(Bytes::as_f64)),
        (Quantity::Speed, p.tokens_per_s, seen.tokens_per_s),
    ];
    let figure = |(quantity, predicted, measured): (Quantity, Option<Estimate<f64>>, Option<f64>)| {
        Some(Figure {
            id: format!("{} {number}", m.machine),
            engine: m.config.engine,
            chip: m.machine.clone(),
            quantity,
            predicted: predicted?,
            measured: measured.filter(|v| *v > 0.0)?,
        })
    };
    all.into_iter().filter_map(figure).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::coverage::{Coverage, Point};

    #[test]
    fn what_is_said_to_be_checked_is_what_the_rows_check() {
        let text = include_str!("../../results/field/runs.csv");
        let rows = crate::accuracy::field::read(text, "runs.csv".as_ref()).unwrap();
        let published = Coverage::published(Engine::MlxLm);
        let known: Vec<Point> = rows
            .iter()
            .filter(|row| row.peak_mem_gb.is_some())
            .filter_map(|row| Case::of(row).ok().filter(|c| c.known.longest()))
            .map(|case| Point::of(&case.spec, &case.run))
            .collect();
        assert!(known.len() > 15 && known.iter().all(|p| published.inside(p)));
        // And no more: twice the largest and half of the smallest are outside.
        let by = |of: fn(&Point) -> f64| known.iter().max_by(|a, b| of(a).total_cmp(&of(b))).unwrap().clone();
        let (large, long) = (by(|p| p.parameters), by(|p| p.max_seq_length));
        let small = by(|p| -p.parameters);
        assert!(published.outside(&Point { parameters: 2.0 * large.parameters, ..large }));
        assert!(published.outside(&Point { max_seq_length: 2.0 * long.max_seq_length, ..long }));
        assert!(published.outside(&Point { parameters: 0.5 * small.parameters, ..small }));
    }
}

/// A published run as it was understood.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct UnderstoodRun {
    /// Id of the published run.
    pub id: String,
    /// Tokens of each row of its longest batch, padding included.
    pub tokens_per_row: usize,
    /// Configuration of the run.
    pub run: RunConfig,
}
