//! Short runs that teach the most: which to make next, when to stop, and what has been measured here before.
//!
//! Nothing is printed: a caller is told by events.

pub mod calibration;
pub mod engine;
pub mod run_file;
pub mod session;
pub mod trial;
pub mod trials;
pub mod workload;
