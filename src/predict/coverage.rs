//! How far a run lies from the runs that a calibration was made of.

use serde::{Deserialize, Serialize};

use crate::cost::params::Parameters;
use crate::spec::model::ModelSpec;
use crate::spec::model::storage::Format;
use crate::spec::run::{Engine, RunConfig, Weights};

/// Kind and size of a run, as far as they matter for trusting a calibration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Point {
    /// Number of parameters of the base model.
    pub parameters: f64,
    /// Length of the longest row, tokens.
    pub max_seq_length: f64,
    /// Tokens of a full micro-batch: `batch_size * max_seq_length`.
    pub rows: f64,
    /// Format of the base weights.
    pub weights: Weights,
    /// Whether activation checkpointing is on.
    pub grad_checkpoint: bool,
}

/// Kinds and sizes of runs that a calibration has seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Coverage {
    points: Vec<Point>,
}

/// Steps beyond the seen range up to this factor still count as inside.
const MARGIN: f64 = 1.25;

/// Added relative error for each doubling beyond the range: chosen, not measured; a formula that scales wrongly
/// by a square root over a decade would err by this much.
const SD_PER_DOUBLING: f64 = 0.05;

/// Added relative error for a weight format or checkpointing that was never run.
const SD_UNSEEN_KIND: f64 = 0.10;

/// The corners of what published runs of mlx-lm have checked: parameters, longest row, tokens of a micro-batch,
/// format and checkpointing of the rows of `results/field/runs.csv` whose longest batch is known. A test holds them to
/// the rows.
const PUBLISHED: [(f64, f64, f64, Weights, bool); 6] = [
    (8.19e9, 8704.0, 8704.0, Weights::FourBit, true),
    (8.19e9, 1024.0, 1024.0, Weights::FourBit, false),
    (1.72e9, 512.0, 2048.0, Weights::Bf16, false),
    (4.02e9, 256.0, 1024.0, Weights::Bf16, false),
    (4.02e9, 512.0, 2048.0, Weights::Bf16, true),
    (4.02e9, 512.0, 2048.0, Weights::EightBit, false),
];

/// The kind of a stored format: MLX's codes go by their bits, whatever their groups.
fn kind(format: Format) -> Weights {
    match format {
        Format::Affine { bits, .. } if bits <= 4 => Weights::FourBit,
        Format::Affine { .. } => Weights::EightBit,
        other => Weights::of(other),
    }
}

impl Point {
    /// Kind and size of this run.
    pub(crate) fn of(spec: &ModelSpec, run: &RunConfig) -> Self {
        Self {
            parameters: Parameters::of(spec).total() as f64,
            max_seq_length: run.recipe.max_seq_length as f64,
            rows: (run.execution.batch_size * run.recipe.max_seq_length) as f64,
            weights: match run.execution.weights {
                Weights::Stored => kind(spec.storage.format),
                weights => weights,
            },
            grad_checkpoint: run.execution.grad_checkpoint,
        }
    }

    fn sizes(&self) -> [f64; 3] {
        [self.parameters, self.max_seq_length, self.rows]
    }
}

impl Coverage {
    /// The coverage of these runs.
    pub(crate) fn of<'a>(points: impl Iterator<Item = &'a Point>) -> Self {
        Self { points: points.cloned().collect() }
    }

    /// Adds one more run to the coverage.
    pub(crate) fn add(&mut self, point: &Point) {
        self.points.push(point.clone());
    }

    /// What published runs have checked of an engine's formulas, before anything is measured here.
    pub(crate) fn published(engine: Engine) -> Self {
        let point = |&(parameters, max_seq_length, rows, weights, grad_checkpoint)| Point {
            parameters,
            max_seq_length,
            rows,
            weights,
            grad_checkpoint,
        };
        match engine {
            Engine::MlxLm => Self { points: PUBLISHED.iter().map(point).collect() },
            // No published run is of our own engine.
            Engine::Candle => Self::default(),
        }
    }

    /// Whether runs were seen, but none like this one.
    pub(crate) fn outside(&self, point: &Point) -> bool {
        !self.points.is_empty() && !self.inside(point)
    }

    /// Sum of the doublings by which each size lies beyond the range seen.
    fn doublings(&self, point: &Point) -> f64 {
        let beyond = |i: usize, value: f64| {
            let seen = self.points.iter().map(|p| p.sizes()[i]);
            let (low, high) = seen.fold((f64::INFINITY, 0.0f64), |(l, h), v| (l.min(v), h.max(v)));
            (value / (high * MARGIN)).max(low / MARGIN / value).max(1.0).log2()
        };
        point.sizes().iter().enumerate().map(|(i, v)| beyond(i, *v)).sum()
    }

    fn unseen_kind(&self, point: &Point) -> bool {
        let alike = |p: &Point| p.weights == point.weights && p.grad_checkpoint == point.grad_checkpoint;
        !self.points.iter().any(alike)
    }

    /// Whether a run of this kind and size was seen. Nothing is inside an empty calibration.
    pub(crate) fn inside(&self, point: &Point) -> bool {
        !self.points.is_empty() && self.doublings(point) == 0.0 && !self.unseen_kind(point)
    }

    /// Relative error to add for a run outside; the prior, having seen nothing, is wide already and gets none.
    pub(crate) fn extra_sd(&self, point: &Point) -> f64 {
        if self.points.is_empty() {
            return 0.0;
        }
        let kind = if self.unseen_kind(point) { SD_UNSEEN_KIND } else { 0.0 };
        (SD_PER_DOUBLING * self.doublings(point)).hypot(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(parameters: f64, rows: f64) -> Point {
        Point { parameters, max_seq_length: 512.0, rows, weights: Weights::Bf16, grad_checkpoint: true }
    }

    #[test]
    fn outside_is_wider() {
        let seen = Coverage::of([point(1e9, 512.0), point(1e9, 2048.0)].iter());
        assert!(seen.inside(&point(1.1e9, 1024.0)) && !seen.inside(&point(4e9, 1024.0)));
        assert_eq!(seen.extra_sd(&point(1e9, 512.0)), 0.0);
        let far = seen.extra_sd(&point(8e9, 512.0));
        assert!(far > seen.extra_sd(&point(4e9, 512.0)) && far < 0.2, "{far}");
        let other = Point { weights: Weights::F32, ..point(1e9, 512.0) };
        assert!(!seen.inside(&other) && seen.extra_sd(&other) >= SD_UNSEEN_KIND);
        assert!(!Coverage::default().inside(&other) && !Coverage::default().outside(&other));
        let published = Coverage::published(Engine::MlxLm);
        assert!(published.inside(&point(3e9, 2048.0)) && published.outside(&point(70e9, 2048.0)));
        assert!(published.extra_sd(&point(70e9, 2048.0)) > 0.1);
        assert!(!Coverage::published(Engine::Candle).outside(&other));
        assert_eq!(Coverage::default().extra_sd(&other), 0.0);
    }
}
