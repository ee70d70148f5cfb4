//! What a run should cost, from shapes alone. No fitted number lives here.

pub mod ledger;
pub mod memory;
pub mod mlx;

pub mod params;
pub mod time;
pub mod work;

use crate::error::Result;
use crate::spec::model::ModelSpec;
use crate::spec::run::{Engine, RunConfig};
use ledger::MemoryLedger;

/// What is in memory when, for the run's engine, when its longest micro-batch has `tokens_per_row` tokens a row.
pub fn ledger(spec: &ModelSpec, run: &RunConfig, tokens_per_row: usize) -> Result<MemoryLedger> {
    match run.engine {
        Engine::Candle => memory::ledger(spec, run, tokens_per_row),
        Engine::MlxLm => mlx::ledger(spec, run, tokens_per_row),
    }
}
