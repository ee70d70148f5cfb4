//! What can be asked for: models, machines, runs and data, as plain values.
//!
//! Everything here is validated when it is made and touches no disk: a config.json comes in as a
//! string, the catalogue and the chip table are compiled in.

pub mod machine;
pub mod model;
pub mod record;
pub mod run;
