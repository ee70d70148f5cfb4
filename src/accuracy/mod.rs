//! Predictions held against what happened: published runs, and measurements of our own.
//!
//! Rows are left out by rules that stand in [`rules`], each with a name and a count, and never by hand.

pub(crate) mod field;
pub(crate) mod other_planners;
pub(crate) mod rules;
pub(crate) mod score;
pub(crate) mod spread;
pub(crate) mod table;

pub(crate) use table::Accuracy;

#[cfg(test)]
mod mlx_prior_tests;
