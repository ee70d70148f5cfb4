//! Rows of data as examples with what is learned of them, and examples as micro-batches.

pub mod batches;
pub mod example;
pub(crate) mod examples;
pub(crate) mod lengths;
