//! What is assumed of a question where it does not say.

/// Probability with which upper bounds hold where no confidence is given.
pub(crate) const DEFAULT_CONFIDENCE: f64 = 0.99;

/// Longest run where none is asked for, hours: a night.
pub(crate) const DEFAULT_HOURS: f64 = 8.0;
