//! A run: what is learned (the recipe) and how it is run (the execution).
//!
//! This is `run.toml`. The only defaults of any run setting are here and in `recipe`.

mod config;
mod data;
pub(crate) mod engine;
mod execution;
pub mod export_format;
pub(crate) mod grid;
pub(crate) mod grids;
mod lengths;
mod names;
pub(crate) mod packing;
mod prefer;
pub(crate) mod recipe;

pub use self::config::{Engine, RunConfig};
pub(crate) use self::data::BUILTIN;
pub use self::data::{Data, DataSplit};
pub use self::execution::{Execution, Residency};
pub use self::lengths::TokenLengths;
pub(crate) use self::names::{LONGEST_NAME, public_name, toml_error};
pub use self::prefer::Prefer;
pub(crate) use self::recipe::{DEFAULT_EPOCHS, OPTIMIZER_BLOCK};
pub use self::recipe::{Lora, LrSchedule, Optimizer, Recipe};
pub use crate::spec::model::weights::Weights;

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
