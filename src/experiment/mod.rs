//! Short runs that teach the most: which to make next, when to stop, and what has been measured here before.
//!
//! Nothing is printed: a caller is told by events.

pub(crate) mod calibration;
pub(crate) mod engine;
pub(crate) mod run_file;
pub(crate) mod session;
pub(crate) mod sweep;
pub(crate) mod trial;
pub(crate) mod trials;
pub(crate) mod workload;

#[cfg(test)]
mod calibrated_tests;
#[cfg(test)]
mod packing_tests;
