//! A run held against the limits of a machine.

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::plan::limit::{Limit, LimitKind, limits};
use crate::predict::calibration::Calibration;
use crate::predict::{Formula, Prediction, Request, predict};
use crate::units::Bytes;

/// Whether a run fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The upper bound is under every limit.
    Fits,
    /// The most likely value is under every limit, the upper bound is not.
    Tight,
    /// More than is free or than Metal keeps resident, but no more than is installed: it runs, and pages.
    Pages,
    /// Over a limit that ends the run.
    DoesNotFit,
}

impl Verdict {
    /// As written in files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fits => "fits",
            Self::Tight => "tight",
            Self::Pages => "pages",
            Self::DoesNotFit => "does_not_fit",
        }
    }
}

/// A prediction held against the machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Assessment {
    /// What it takes. Its intervals are two-sided; their upper ends hold with the confidence that was asked for.
    pub prediction: Prediction,
    /// Whether it fits.
    pub verdict: Verdict,
    /// What it was held against.
    pub limits: Vec<Limit>,
    /// Probability that the upper bounds hold.
    pub confidence: f64,
    /// It fails with that confidence: even the lower bound is over what ends a run.
    pub surely_fails: bool,
}

/// Level of the two-sided interval whose upper end is not exceeded with probability `confidence`.
fn two_sided(confidence: f64) -> f64 {
    2.0 * confidence - 1.0
}

/// The footprint's upper bound lies within `limit`.
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

    /// Fits by the formulas, whatever died here.
    pub(crate) fn fits_by_formula(&self) -> bool {
        self.limits.iter().all(|l| l.kind == LimitKind::DiedHere || l.high <= l.limit)
    }

    /// Fits with the confidence that was asked for.
    pub(crate) fn fits(&self) -> bool {
        self.verdict == Verdict::Fits
    }
}
