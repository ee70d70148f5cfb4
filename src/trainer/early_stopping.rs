//! When to stop for want of progress: Hugging Face's `EarlyStoppingCallback`, without a threshold.

use serde::{Deserialize, Serialize};

use crate::spec::record::Validation;

/// State of early stopping, from the evaluations so far; part of a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct EarlyStopping {
    best: Option<Validation>,
    /// Number of evaluations since the best.
    stale: usize,
}

impl EarlyStopping {
    /// Takes a loss after `step` optimizer steps; whether it is the best is in what comes back: then it is its own best.
    pub(crate) fn heard(&mut self, step: usize, validation_loss: f64) -> Validation {
        let mut now = Validation { step, validation_loss, best_step: step, best_validation_loss: validation_loss };
        match self.best.filter(|best| best.validation_loss <= validation_loss) {
            Some(best) => {
                (now.best_step, now.best_validation_loss) = (best.step, best.validation_loss);
                self.stale += 1;
            }
            None => (self.best, self.stale) = (Some(now), 0),
        }
        now
    }

    /// Whether so many evaluations in a row were no better than the best.
    pub(crate) fn is_over(&self, patience: Option<usize>) -> bool {
        patience.is_some_and(|patience| self.stale >= patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_counts_from_the_best() {
        let mut stopping = EarlyStopping::default();
        let mut best = Vec::new();
        let mut over = Vec::new();
        for (i, loss) in [3.0, 2.0, 2.0, 1.9, 2.5, 1.95, 2.1].into_iter().enumerate() {
            best.push(stopping.heard(10 * (i + 1), loss).best_step);
            over.push(stopping.is_over(Some(3)));
        }
        assert_eq!(best, [10, 20, 20, 40, 40, 40, 40]);
        assert_eq!(over, [false, false, false, false, false, false, true]);
        assert!(!stopping.is_over(None) && stopping.is_over(Some(1)));
    }
}
