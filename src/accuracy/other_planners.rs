//! What other planners say of the published runs: `results/other-planners/predictions.csv`, made by the script beside it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::accuracy::field::unreadable;
use crate::accuracy::score::{Figure, Quantity, Summary};
use crate::error::Result;
use crate::tables::{Claimed, Measured, PlannerErrors, against_planners};
use crate::units::Bytes;

/// What other planners say of them, which ships inside.
pub(crate) const BUNDLED: &str = include_str!("../../results/other-planners/predictions.csv");

/// What one planner says of one row.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Said {
    /// Of the row in `results/field/runs.csv`.
    pub id: String,
    /// Name and version.
    pub tool: String,
    /// In 1e9 bytes; empty where it refuses.
    pub peak_gb: Option<f64>,
    /// Why it refuses.
    pub refused: String,
}

/// A planner beside ours, on the rows that both answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct PlannerScore {
    /// Name and version.
    pub tool: String,
    /// Rows of known longest batch that it refuses.
    pub refused: usize,
    /// Rows that it answers.
    pub n: usize,
    /// Its median absolute error.
    pub median: f64,
    /// The 95th percentile.
    pub p95: f64,
    /// How far it is too high on the median: negative where too low.
    pub bias: f64,
    /// Ours, on the same rows.
    pub ours: Summary,
}

/// The table in `text`, which was read from `path`.
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
