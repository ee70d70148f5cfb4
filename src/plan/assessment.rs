//! A run held against the limits of a machine.

use serde::{Serialize, Serializer};

use crate::error::Result;
use crate::predict::calibration::Calibration;
use crate::predict::{Formula, Prediction, Request, predict};
use crate::spec::machine::{Accelerator, Machine};
use crate::spec::run::Engine;
use crate::units::{Bytes, Estimate};

/// What is to be kept under.
#[derive(Clone, Debug, PartialEq)]
pub struct Limit {
    /// What it is.
    pub name: &'static str,
    /// Not to be exceeded.
    pub limit: Bytes,
    /// Reached with the probability that was asked for.
    pub low: Bytes,
    /// Most likely.
    pub point: Bytes,
    /// Not exceeded with the probability that was asked for.
    pub high: Bytes,
}

impl Limit {
    /// Room left at the upper bound; negative where there is none.
    pub(crate) fn spare(&self) -> f64 {
        self.limit.as_f64() - self.high.as_f64()
    }

    /// Going over it costs time and does not end the run. Published runs went 6 % over the working set and finished
    /// (FR171), and to the last of the installed memory at half their speed (FR163).
    fn can_page(&self) -> bool {
        self.name == FREE_MEMORY || self.name == WORKING_SET
    }

    /// Upper bound as a share of the limit.
    pub(crate) fn load(&self) -> f64 {
        self.high.as_f64() / self.limit.as_f64().max(1.0)
    }
}

/// Names of the limits.
pub(crate) const FREE_MEMORY: &str = "free memory";

/// Of Metal's recommendation.
pub(crate) const WORKING_SET: &str = "Metal working set";

/// Of one allocation.
pub(crate) const LARGEST_BUFFER: &str = "largest buffer";

/// Of what the user is willing to give.
pub(crate) const BUDGET: &str = "budget";

/// Of a run that needs no more than this one, and died of memory on this machine.
pub(crate) const DIED: &str = "a run that died of memory here";

/// Whether a run fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
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

/// Predicts a run and holds it against the machine's limits, and against `budget` where one is given.
pub fn assess(request: &Request<'_>, confidence: f64, budget: Option<Bytes>) -> Result<Assessment> {
    let prediction = predict(request, two_sided(confidence))?;
    let limits = limits(request, &prediction, budget)?;
    let over = |limit: &Limit| limit.point > limit.limit;
    let verdict = if limits.iter().all(|l| l.high <= l.limit) {
        Verdict::Fits
    } else if !limits.iter().any(over) {
        Verdict::Tight
    } else if limits.iter().all(|l| !over(l) || (l.can_page() && l.point <= request.machine.memory)) {
        Verdict::Pages
    } else {
        Verdict::DoesNotFit
    };
    let ends = |l: &Limit| l.low > if l.can_page() { request.machine.memory } else { l.limit };
    let surely_fails = verdict == Verdict::DoesNotFit && limits.iter().any(|l| l.name != BUDGET && ends(l));
    Ok(Assessment { prediction, verdict, limits, confidence, surely_fails })
}

fn limits(request: &Request<'_>, prediction: &Prediction, budget: Option<Bytes>) -> Result<Vec<Limit>> {
    let Machine { available, working_set, max_buffer, accelerator, .. } = *request.machine;
    let (footprint, peak) = (&prediction.footprint, &prediction.peak_memory);
    let of = |name, limit, e: &Estimate<Bytes>| Limit { name, limit, low: e.low, point: e.point, high: e.high };
    let mut limits = vec![of(FREE_MEMORY, available, footprint)];
    if accelerator == Accelerator::Metal {
        let exact = prediction.ledger.largest_buffer.bytes;
        // candle's Metal allocator rounds computed buffers up to powers of two.
        let rounded = match request.run.engine {
            Engine::Candle => Bytes(exact.0.next_power_of_two()),
            Engine::MlxLm => exact,
        };
        limits.push(of(WORKING_SET, working_set, peak));
        let known = Limit { name: LARGEST_BUFFER, limit: max_buffer, low: rounded, point: rounded, high: rounded };
        limits.push(known);
    }
    limits.extend(budget.map(|b| of(BUDGET, b, footprint)));
    if let Some(died) = request.outdoes_a_dead_run()? {
        // However little the formulas think that it takes: it takes more than that one had when it died.
        let least = |bytes: Bytes| bytes.max(Bytes(died.had_taken.0 + 1));
        limits.push(of(DIED, died.had_taken, &footprint.map(least)));
    }
    Ok(limits)
}

impl Assessment {
    /// The limit that is nearest, or furthest exceeded.
    pub(crate) fn binding(&self) -> Option<&Limit> {
        self.limits.iter().max_by(|a, b| a.load().total_cmp(&b.load()))
    }

    /// Fits by the formulas, whatever died here.
    pub(crate) fn fits_by_formula(&self) -> bool {
        self.limits.iter().all(|l| l.name == DIED || l.high <= l.limit)
    }

    /// Fits with the confidence that was asked for.
    pub(crate) fn fits(&self) -> bool {
        self.verdict == Verdict::Fits
    }
}

impl Serialize for Assessment {
    /// As `prediction.json`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Row<'a> {
            name: &'a str,
            bytes: Bytes,
            phase: &'a str,
        }
        #[derive(Serialize)]
        struct Limited<'a> {
            name: &'a str,
            limit: Bytes,
            predicted: Bytes,
        }
        use serde::ser::SerializeStruct;
        let p = &self.prediction;
        let ledger: Vec<Row<'_>> =
            p.ledger.at_peak().into_iter().map(|(i, phase)| Row { name: &i.name, bytes: i.bytes, phase }).collect();
        let limits: Vec<Limited<'_>> =
            self.limits.iter().map(|l| Limited { name: l.name, limit: l.limit, predicted: l.high }).collect();
        let mut out = serializer.serialize_struct("Assessment", 16)?;
        out.serialize_field("peak_memory_bytes", &p.peak_memory)?;
        out.serialize_field("footprint_bytes", &p.footprint)?;
        out.serialize_field("tokens_per_s", &p.tokens_per_s)?;
        out.serialize_field("step_time_s", &p.step_time)?;
        out.serialize_field("total_time_s", &p.total_time)?;
        out.serialize_field("energy_wh", &p.energy_wh)?;
        out.serialize_field("steps", &p.steps)?;
        out.serialize_field("ledger", &ledger)?;
        out.serialize_field("verdict", &self.verdict)?;
        out.serialize_field("confidence", &self.confidence)?;
        out.serialize_field("limits", &limits)?;
        out.serialize_field("trainable_params", &p.trainable_params)?;
        out.serialize_field("total_params", &p.total_params)?;
        out.serialize_field("basis", &p.basis)?;
        out.serialize_field("outside_what_was_checked", &p.outside)?;
        out.serialize_field("surely_fails", &self.surely_fails)?;
        out.end()
    }
}
