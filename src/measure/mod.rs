//! What really happens: jobs run under limits, and the machine they ran on.
//!
//! A [`Measurement`] is the joint between measuring and predicting: one flat row of
//! `results/<machine>/measurements.csv`, with all that is needed to fit to it again years later.

pub(crate) mod awake;
#[cfg(not(target_os = "macos"))]
mod cgroup;
pub(crate) mod child;
pub(crate) mod devices;
pub(crate) mod failure;
pub(crate) mod footprint;
pub mod guard;
mod measurement;
pub(crate) mod observe;
pub mod probe;
mod probe_processor;
pub(crate) mod room;
pub(crate) mod row;
pub(crate) mod summary;
pub mod table;

pub use self::measurement::*;
