//! What can be asked for: models, machines, runs and data, as plain values.
//!
//! Everything here is validated when it is made and touches no disk: a config.json comes in as a
//! string, the catalogue and the chip table are compiled in.

pub mod catalogue;
pub mod chips;
mod config;
pub mod data;
pub mod exchange;
pub mod gguf;
pub mod grid;
pub mod machine;
pub mod model;
pub mod packing;
mod quantization;
pub mod recipe;
mod rope;
pub mod run;
pub mod storage;
pub mod tensors;
