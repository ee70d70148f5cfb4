//! Predictions held against what happened: published runs, and measurements of our own.
//!
//! Rows are left out by rules that stand in [`rules`], each with a name and a count, and never by hand.

pub mod field;
pub mod other_planners;
pub mod rules;
pub mod score;
pub mod spread;
pub mod table;

pub use table::Accuracy;
