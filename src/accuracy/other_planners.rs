//! What other planners say of the published runs: `results/other-planners/predictions.csv`, made by the script beside it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::accuracy::field::unreadable;
use crate::accuracy::score::{Figure, Quantity, Summary};
use crate::error::Result;
use crate::stats::{median, quantile};
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
pub(crate) fn compare(said: &[Said], figures: &[Figure]) -> Vec<PlannerScore> {
    let mut tools: Vec<&str> = Vec::new();
    said.iter().for_each(|s| {
        if !tools.contains(&s.tool.as_str()) {
            tools.push(&s.tool)
        }
    });
    tools.into_iter().filter_map(|tool| of(tool, said, figures)).collect()
}

fn of(tool: &str, said: &[Said], figures: &[Figure]) -> Option<PlannerScore> {
    let peaks = || figures.iter().filter(|f| f.quantity == Quantity::PeakMemory);
    let both: Vec<(&Figure, Option<f64>)> =
        peaks().filter_map(|f| said.iter().find(|s| s.tool == tool && s.id == f.id).map(|s| (f, s.peak_gb))).collect();
    let error = |(f, gb): &(&Figure, Option<f64>)| gb.map(|gb| Bytes::from_decimal_gb(gb).as_f64() / f.measured - 1.0);
    let errors: Vec<f64> = both.iter().filter_map(error).collect();
    let sizes: Vec<f64> = errors.iter().map(|e| e.abs()).collect();
    let ours = Summary::of(both.iter().filter(|(_, gb)| gb.is_some()).map(|(f, _)| *f))?;
    Some(PlannerScore {
        tool: tool.into(),
        refused: both.len() - errors.len(),
        n: errors.len(),
        median: median(&sizes),
        p95: quantile(&sizes, 0.95),
        bias: median(&errors),
        ours,
    })
}
