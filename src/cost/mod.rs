//! What a run should cost, from shapes alone. No fitted number lives here.

pub mod candle;
pub mod ledger;
pub mod mlx;
pub mod params;
pub mod time;
pub mod timeline;
pub mod work;

use crate::error::Result;
use crate::spec::machine::Machine;
use crate::spec::model::ModelSpec;
use crate::spec::run::{Engine, RunConfig};
use ledger::MemoryLedger;

/// What is in memory when, for the run's engine on a machine, when its longest micro-batch has `tokens_per_row`
/// tokens a row.
pub fn ledger(spec: &ModelSpec, run: &RunConfig, machine: &Machine, tokens_per_row: usize) -> Result<MemoryLedger> {
    match run.engine {
        Engine::Candle => {
            candle::ledger(spec, run, &candle::Micro::full(run.execution.batch_size, tokens_per_row, machine))
        }
        Engine::MlxLm => mlx::ledger(spec, run, tokens_per_row),
    }
}
