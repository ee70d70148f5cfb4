//! Headroom: what is the best LoRA run this Mac can finish, and will it really fit?
//!
//! The library behind the `headroom` command. Rooms, from those that know nothing to those that know all:
//!
//! - [`units`], `stats`, [`error`], [`memory`]: quantities, numbers, what went wrong, what this process has taken.
//! - `store`: the disk. Whole files at once, logs that survive a tear, run folders.
//! - [`spec`]: what can be asked for and reported, as plain values: [`spec::model::ModelSpec`] from a `config.json`,
//!   [`spec::machine::Machine`] from the chip table, [`spec::run::RunConfig`] from a `run.toml`, [`spec::record`].
//! - [`ops`]: tensor operations with their backward passes, fused on the CPU and composed elsewhere.
//! - [`checkpoint`]: what is on disk and how a frozen matrix is held: safetensors, GGUF, adapters, tokenizers, templates.
//! - [`data`]: rows as examples with what is learned of them, and examples as micro-batches.
//! - [`cost`]: what a run should cost, from shapes alone: parameters, a memory ledger by phase, a step's FLOPs and bytes.
//! - [`trainer`]: engines that run a job and report events. Ours is [`trainer::candle`].
//! - [`export`]: models and adapters in the forms that other tools read.
//! - `experiment`: calibration and measured sweeps: what to run next, when to stop.
//! - [`measure`]: a job observed in a child process under a limit; this machine probed.
//! - [`predict`]: cost and calibration together, with intervals.
//! - [`plan`]: limits, verdicts, trade-offs, and the search for the best run.
//! - `accuracy`: predictions held against published runs, our own measurements and other planners.
//! - `guides`: claims of guides held against predictions.
//! - `tables`: every table that is joined, grouped or written for others (polars).
//! - `report`: values to text, pictures and a page.
//! - [`cli`], [`commands`]: the command line, and one file a verb.
//!
//! `cost` and `trainer` never see each other: they meet in `predict`, so that a calibration cannot confirm itself.
//! Data flows one way:
//!
//! ```text
//! run.toml, config.json, machine -> spec -> cost ---> predict -> plan -> report -> commands
//!                                        -> trainer -> measure -^
//! ```
//!
//! What a run takes on a Mac that is not at hand:
//!
//! ```
//! use headroom::predict::{Request, calibration::Calibration, predict};
//! use headroom::spec::{machine::Machine, model::catalogue, run::RunConfig};
//!
//! let model = catalogue::find("Qwen2.5-0.5B-Instruct")?;
//! let machine = Machine::named("M2 Pro", None, None)?;
//! let run = RunConfig::from_toml("model = 'Qwen/Qwen2.5-0.5B-Instruct'\ndata = 'train.jsonl'", "run.toml".as_ref())?;
//! let calibration = Calibration::prior(&machine, run.engine);
//! let request =
//!     Request { spec: &model.spec, machine: &machine, run: &run, lengths: None, calibration: &calibration };
//! let prediction = predict(&request, 0.9)?;
//! assert_eq!(prediction.trainable_params, 8_798_208); // rank 16 on every linear layer
//! assert!(prediction.footprint.low < prediction.footprint.point);
//! println!("{} at most, at {:.0} tokens/s", prediction.footprint.high, prediction.tokens_per_s.point);
//! # Ok::<(), headroom::error::Error>(())
//! ```

pub(crate) mod accuracy;
pub mod checkpoint;
pub mod cli;
pub mod commands;
pub mod cost;
pub mod data;
pub mod error;
pub(crate) mod experiment;
pub mod export;
pub(crate) mod guides;
pub mod measure;
pub mod memory;
pub mod ops;
pub mod plan;
pub mod predict;
pub(crate) mod report;
pub mod spec;
pub(crate) mod stats;
pub(crate) mod store;
pub(crate) mod tables;
pub mod trainer;
pub mod units;

/// The tests of the library look at what is allocated.
#[cfg(test)]
#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod kernel_tests;

/// Helpers that integration tests use too name the library from outside.
#[cfg(test)]
extern crate self as headroom;
