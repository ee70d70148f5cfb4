//! The learning rate over a run.

use crate::spec::run::{LrSchedule, RunConfig};

/// Learning rate of optimizer step `step`, counted from 0: linear rise, then the schedule down to zero at the end.
pub fn learning_rate(run: &RunConfig, step: usize, total: usize) -> f64 {
    let (r, warmup) = (&run.recipe, run.recipe.warmup_steps.min(total.saturating_sub(1)));
    if step < warmup {
        return r.learning_rate * (step + 1) as f64 / warmup as f64;
    }
    let progress = (step - warmup) as f64 / (total - warmup).max(1) as f64;
    r.learning_rate
        * match r.lr_schedule {
            LrSchedule::Constant => 1.0,
            LrSchedule::Linear => 1.0 - progress,
            LrSchedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        }
}
