//! What a list of steps says: the warm-up is cut by rule, and the rest is put in a few robust figures.

use crate::spec::record::Step;
use crate::stats::{MAD_TO_SD, mad, median};

/// The first step compiles kernels, touches memory for the first time and grows pools; it is never counted.
pub(crate) const WARMUP_STEPS: usize = 1;

/// The steps after the warm-up; a single step is better than none.
pub(crate) fn counted(steps: &[Step]) -> &[Step] {
    if steps.len() > WARMUP_STEPS { &steps[WARMUP_STEPS..] } else { steps }
}

/// Time of a step, and how far single steps lie from it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct StepTime {
    /// Median time of a step, s.
    pub median: f64,
    /// Robust standard deviation of single steps, relative: 1.4826 x the median absolute deviation / the median.
    pub spread: f64,
    /// Standard error of the median, relative: 1.2533 x spread / sqrt(n).
    pub relative_error: f64,
}

/// The time of a padded token, as a step time, over the counted steps; `None` of no steps.
///
/// Steps of unlike length are put on the scale of the median step before they are compared, or the
/// data's spread would pass for the machine's.
pub(crate) fn time(steps: &[Step]) -> Option<StepTime> {
    let steps = counted(steps);
    if steps.is_empty() {
        return None;
    }
    let times: Vec<f64> = steps.iter().map(|s| s.step_time_s).collect();
    let per_token: Vec<f64> = steps.iter().map(|s| s.step_time_s / s.padded_tokens.max(1) as f64).collect();
    let spread = MAD_TO_SD * mad(&per_token) / median(&per_token);
    Some(StepTime { median: median(&times), spread, relative_error: 1.2533 * spread / (steps.len() as f64).sqrt() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Bytes;

    fn step(time: f64, padded_tokens: u64) -> Step {
        Step {
            step: 1,
            loss: 1.0,
            learning_rate: 0.1,
            grad_norm: 1.0,
            padded_tokens,
            tokens: padded_tokens,
            step_time_s: time,
            tokens_per_s: padded_tokens as f64 / time,
            allocated_peak_bytes: Bytes(1),
            footprint_bytes: Bytes(1),
        }
    }

    #[test]
    fn the_first_step_does_not_count() {
        let steps = [step(9.0, 100), step(1.0, 100), step(1.2, 100), step(1.1, 100)];
        let time = time(&steps).unwrap();
        assert_eq!(time.median, 1.1);
        // Deviations 0.1, 0.1, 0: their median is 0.1.
        assert!((time.spread - MAD_TO_SD * 0.1 / 1.1).abs() < 1e-9);
        assert!((time.relative_error - 1.2533 * time.spread / 3f64.sqrt()).abs() < 1e-12);
        assert_eq!(counted(&steps[..1]).len(), 1);
    }

    #[test]
    fn unlike_lengths_are_no_noise() {
        let steps = [step(1.0, 1), step(1.0, 100), step(2.0, 200), step(3.0, 300)];
        assert!(time(&steps).unwrap().spread < 1e-12);
        assert_eq!(time(&[]), None);
    }
}
