//! A run beside what was predicted of it.

use crate::measure::{Measurement, Predicted};
use crate::plan::prediction_file::PredictionFile;
use crate::spec::record::{Outcome, Step, Validation};
use crate::spec::run::RunConfig;
use crate::units::{Bytes, Estimate, Seconds};

/// Whether a process works on a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Activity {
    /// No process works on the run.
    #[default]
    Idle,
    /// A process works on the run now.
    Running,
    /// A process worked on the run and was ended without a chance to say so.
    Killed,
    /// A process worked on the run and ended itself because memory was about to run out.
    GaveUp,
}

/// A prediction as a row of measurements keeps it.
pub(crate) fn predicted(file: &PredictionFile) -> Predicted {
    Predicted {
        peak_memory_bytes: Some(file.peak_memory_bytes),
        footprint_bytes: Some(file.footprint_bytes),
        tokens_per_s: Some(file.tokens_per_s),
        step_time_s: Some(file.step_time_s.map(|s| s.0)),
    }
}

/// Everything that is known of one run, for its report.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RunReport {
    /// Name of the run's folder.
    pub name: String,
    /// Whether a process works on the run.
    pub activity: Activity,
    /// Configuration of the run.
    pub config: RunConfig,
    /// Prediction made before the run, if there is one.
    pub prediction: Option<PredictionFile>,
    /// Outcome and measurement of the run; absent until it has ended once.
    pub record: Option<Measurement>,
    /// Optimizer steps of the run.
    pub steps: Vec<Step>,
    /// Evaluations of the run on the validation rows.
    pub validations: Vec<Validation>,
    /// Changes that calibrating has made to the predictions of the run.
    pub calibration: Vec<Change>,
}

/// A predicted figure before and after calibrating.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    /// Quantity that is predicted.
    pub quantity: Quantity,
    /// Prediction before calibrating, from formulas alone.
    pub before: Estimate<f64>,
    /// Prediction after calibrating to runs on this machine.
    pub after: Estimate<f64>,
}

/// Quantity that is compared: memory in bytes, speed in tokens/s, time in s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub(crate) enum Quantity {
    Peak,
    Footprint,
    Speed,
    StepTime,
    TotalTime,
}

impl Quantity {
    /// Name of the quantity for tables and pages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Peak => "peak memory (tensors)",
            Self::Footprint => "footprint (process)",
            Self::Speed => "speed",
            Self::StepTime => "optimizer step",
            Self::TotalTime => "whole run",
        }
    }

    /// Unit of the value in tables for machines.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Peak | Self::Footprint => "bytes",
            Self::Speed => "tokens/s",
            Self::StepTime | Self::TotalTime => "s",
        }
    }

    /// A value of the quantity with its unit, for tables and pages.
    pub(crate) fn show(self, value: f64) -> String {
        match self {
            Self::Peak | Self::Footprint => Bytes::from_f64(value).to_string(),
            Self::Speed if value >= 1e9 => format!("{value:.1e} tok/s"),
            Self::Speed if value >= 99.5 => format!("{value:.0} tok/s"),
            Self::Speed => format!("{value:.1} tok/s"),
            // Finer than times are shown elsewhere: here they stand beside each other.
            Self::StepTime | Self::TotalTime if value < 9.95 => format!("{value:.2} s"),
            Self::StepTime | Self::TotalTime if (119.5..7200.0).contains(&value) => format!("{:.1} min", value / 60.0),
            Self::StepTime | Self::TotalTime => Seconds(value).to_string(),
        }
    }
}

/// Predicted and measured value of one quantity of a run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Comparison {
    /// Quantity that is compared.
    pub quantity: Quantity,
    /// Predicted value with its interval.
    pub predicted: Estimate<f64>,
    /// Measured value, if there is one.
    pub measured: Option<f64>,
}

impl Comparison {
    /// How far the prediction was from the measurement, relative to the measurement; positive if too high.
    pub(crate) fn error(&self) -> Option<f64> {
        self.measured.filter(|&m| m > 0.0).map(|m| (self.predicted.point - m) / m)
    }

    /// Whether the measurement lies in the interval.
    pub(crate) fn inside(&self) -> Option<bool> {
        self.measured.map(|m| (self.predicted.low..=self.predicted.high).contains(&m))
    }
}

impl RunReport {
    /// Every quantity that was predicted, beside what was measured.
    pub(crate) fn comparisons(&self) -> Vec<Comparison> {
        let Some(p) = &self.prediction else { return Vec::new() };
        let measured = self.record.as_ref().map(|r| r.measured);
        let row = |quantity, predicted, measured| Comparison { quantity, predicted, measured };
        let of = |pick: fn(&crate::measure::Measured) -> Option<f64>| measured.as_ref().and_then(pick);
        vec![
            row(Quantity::Peak, p.peak_memory_bytes.map(Bytes::as_f64), of(|m| m.peak_memory_bytes.map(Bytes::as_f64))),
            row(
                Quantity::Footprint,
                p.footprint_bytes.map(Bytes::as_f64),
                of(|m| m.footprint_bytes.map(Bytes::as_f64)),
            ),
            row(Quantity::Speed, p.tokens_per_s, of(|m| m.tokens_per_s)),
            row(Quantity::StepTime, p.step_time_s.map(|s| s.0), of(|m| m.step_time_s)),
            row(Quantity::TotalTime, p.total_time_s.map(|s| s.0), self.total_time()),
        ]
    }

    /// Wall time, where one process ran from the first step to the last.
    fn total_time(&self) -> Option<f64> {
        let record = self.record.as_ref().filter(|r| r.outcome == Outcome::Finished)?;
        let counted = record.measured.steps + record.measured.warmup_steps;
        (counted == self.steps.len()).then_some(record.measured.wall_time_s)
    }

    /// The last step that was written down, where it was taken after what is known of an end: a run that was gone on with
    /// has its next end only when it comes to it.
    fn open_since(&self) -> Option<usize> {
        let last = self.steps.iter().map(|s| s.step).max()?;
        let Some(record) = &self.record else { return Some(last) };
        match record.outcome {
            Outcome::Stopped { at_step }
            | Outcome::OutOfMemory { at_step }
            | Outcome::TimedOut { at_step }
            | Outcome::Crashed { at_step, .. } => (at_step > 0 && at_step < last).then_some(last),
            Outcome::Finished | Outcome::EarlyStopped { .. } => None,
        }
    }

    /// One sentence: what happened, and whether it was what had been said.
    pub(crate) fn answer(&self) -> String {
        let last = self.steps.iter().map(|s| s.step).max().unwrap_or_default();
        let ended = self.record.as_ref().map(|record| &record.outcome);
        match self.activity {
            // What came after the end is of no account.
            _ if matches!(ended, Some(Outcome::Finished | Outcome::EarlyStopped { .. })) => {}
            Activity::Running => return format!("It is running; the last finished step is {last}."),
            Activity::Killed => return format!("It was killed, or the machine restarted, after step {last}."),
            Activity::GaveUp => {
                return format!("It was stopped after step {last} because memory was about to run out.");
            }
            Activity::Idle => {}
        }
        if let Some(step) = self.open_since() {
            return format!("It has not ended, or ended without a report, after step {step}.");
        }
        let Some(record) = &self.record else { return "It has not ended yet.".into() };
        let what = match &record.outcome {
            Outcome::Finished => "It fit and it finished".to_owned(),
            Outcome::EarlyStopped { at_step } => {
                let best = record.measured.best_step.map_or(String::new(), |best| format!(", best after {best}"));
                format!("It fit and stopped improving by step {at_step}{best}")
            }
            Outcome::Stopped { at_step } => format!("It was stopped after step {at_step}"),
            Outcome::OutOfMemory { at_step } => format!("It ran out of memory after step {at_step}"),
            Outcome::TimedOut { at_step } => format!("It ran out of time after step {at_step}"),
            Outcome::Crashed { at_step, reason } => format!("It died after step {at_step} ({reason})"),
        };
        let judged: Vec<bool> = self.comparisons().iter().filter_map(Comparison::inside).collect();
        match judged.iter().filter(|&&inside| inside).count() {
            _ if judged.is_empty() => format!("{what}; there was no prediction."),
            n if n == judged.len() => format!("{what}; all {n} measured figures lie within their predicted intervals."),
            n => format!("{what}; {n} of {} measured figures lie within their predicted intervals.", judged.len()),
        }
    }
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
