//! Rows of data as examples with what is learned of them, and examples as micro-batches.

pub mod batches;
pub mod example;
pub mod examples;
pub mod lengths;
