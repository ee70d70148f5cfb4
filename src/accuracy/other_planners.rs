//! What other planners say of the published runs: `results/other-planners/predictions.csv`, made by the script beside it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::accuracy::field::unreadable;
use crate::accuracy::score::{Figure, Quantity, Summary};
use crate::error::Result;
use crate::tables::{Claimed, Measured, PlannerErrors, against_planners};
use crate::units::Bytes;

/// Text of the embedded table of what other planners predict of the published runs.
pub(crate) const BUNDLED: &str = include_str!("../../results/other-planners/predictions.csv");

/// Prediction of one planner for one published run.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Said {
    /// Id of the run in `results/field/runs.csv`.
    pub id: String,
    /// Name and version of the planner.
    pub tool: String,
    /// Predicted peak memory, in units of 1e9 bytes; empty where the planner refuses.
    pub peak_gb: Option<f64>,
    /// Reason for which the planner refuses the run.
    pub refused: String,
}

/// Errors of a planner beside Headroom's, on the runs that both answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct PlannerScore {
    /// Name and version of the planner.
    pub tool: String,
    /// Number of runs of known longest batch that it refuses.
    pub refused: usize,
    /// Number of runs that it answers.
    pub n: usize,
    /// Median of its absolute relative errors.
    pub median: f64,
    /// 95th percentile of its absolute relative errors.
    pub p95: f64,
    /// Median of its relative errors: negative where its predictions are too low.
    pub bias: f64,
    /// Headroom's errors on the same runs.
    pub ours: Summary,
}

/// Reads the table in `text`, which came from `path`.
pub(crate) fn read(text: &str, path: &Path) -> Result<Vec<Said>> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    reader.deserialize().collect::<csv::Result<_>>().map_err(|e| unreadable(path, &e, None))
}

/// Each planner on the peaks whose longest batch is known.
pub(crate) fn compare(said: &[Said], figures: &[Figure]) -> Result<Vec<PlannerScore>> {
    let peaks: Vec<&Figure> = figures.iter().filter(|f| f.quantity == Quantity::PeakMemory).collect();
    let measured: Vec<Measured<'_>> = peaks.iter().map(|f| Measured { id: &f.id, value: f.measured }).collect();
    let bytes = |gb: f64| Bytes::from_decimal_gb(gb).as_f64();
    let claimed: Vec<Claimed<'_>> =
        said.iter().map(|s| Claimed { id: &s.id, tool: &s.tool, value: s.peak_gb.map(bytes) }).collect();
    let score = |errors: PlannerErrors| {
        let ours = Summary::of(peaks.iter().filter(|f| errors.answered.contains(&f.id)).copied())?;
        Some(PlannerScore {
            tool: errors.tool,
            refused: errors.refused,
            n: errors.answered.len(),
            median: errors.median,
            p95: errors.p95,
            bias: errors.bias,
            ours,
        })
    };
    Ok(against_planners(&measured, &claimed)?.into_iter().filter_map(score).collect())
}
