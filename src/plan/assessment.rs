//! A run held against the limits of a machine.

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::plan::limit::{Limit, LimitKind, limits};
use crate::predict::calibration::Calibration;
use crate::predict::{Formula, Prediction, Request, predict};
use crate::units::Bytes;

/// Whether a run fits in the memory of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The upper bound is under every limit.
    Fits,
    /// The most likely value is under every limit, but the upper bound is not.
    Tight,
    /// Over the free memory or Metal's working set, but within the installed memory: it runs slowly, with swapping.
    Pages,
    /// The most likely value is over a limit that ends the run.
    DoesNotFit,
}

impl Verdict {
    /// Name of the verdict as files write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fits => "fits",
            Self::Tight => "tight",
            Self::Pages => "pages",
            Self::DoesNotFit => "does_not_fit",
        }
    }
}

/// A prediction held against the limits of the machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Assessment {
    /// Predicted memory and time. The intervals are two-sided; their upper ends hold with `confidence`.
    pub prediction: Prediction,
    /// Whether the run fits.
    pub verdict: Verdict,
    /// Limits that the run was held against, with what is predicted of each.
    pub limits: Vec<Limit>,
    /// Probability with which each upper bound holds.
    pub confidence: f64,
    /// Whether the run fails with that confidence: even the lower bound is over what ends a run.
    pub surely_fails: bool,
}

/// Level of the two-sided interval whose upper end is not exceeded with probability `confidence`.
fn two_sided(confidence: f64) -> f64 {
    2.0 * confidence - 1.0
}

/// Whether the footprint's upper bound at this confidence lies within `limit`.
pub(crate) fn fits_within(limit: Bytes, calibration: &Calibration, formula: &Formula, confidence: f64) -> bool {
    calibration.footprint(formula).interval(two_sided(confidence)).2 <= limit.as_f64()
}

/// Predicts a run and holds it against the machine's limits, and against `memory_limit` where one is given.
pub fn assess(request: &Request<'_>, confidence: f64, memory_limit: Option<Bytes>) -> Result<Assessment> {
    let prediction = predict(request, two_sided(confidence))?;
    let limits = limits(request, &prediction, memory_limit)?;
    let over = |limit: &Limit| limit.point > limit.limit;
    let verdict = if limits.iter().all(|l| l.high <= l.limit) {
        Verdict::Fits
    } else if !limits.iter().any(over) {
        Verdict::Tight
    } else if limits.iter().all(|l| !over(l) || (l.kind.can_page() && l.point <= request.machine.memory)) {
        Verdict::Pages
    } else {
        Verdict::DoesNotFit
    };
    let ends = |l: &Limit| l.low > if l.kind.can_page() { request.machine.memory } else { l.limit };
    let surely_fails =
        verdict == Verdict::DoesNotFit && limits.iter().any(|l| l.kind != LimitKind::MemoryLimit && ends(l));
    Ok(Assessment { prediction, verdict, limits, confidence, surely_fails })
}

impl Assessment {
    /// The limit that is nearest, or furthest exceeded.
    pub(crate) fn binding(&self) -> Option<&Limit> {
        self.limits.iter().max_by(|a, b| a.load().total_cmp(&b.load()))
    }

    /// Whether it fits by the formulas, whatever run died on this machine.
    pub(crate) fn fits_by_formula(&self) -> bool {
        self.limits.iter().all(|l| l.kind == LimitKind::DiedHere || l.high <= l.limit)
    }

    /// Whether it fits with the confidence that was asked for.
    pub(crate) fn fits(&self) -> bool {
        self.verdict == Verdict::Fits
    }
}
