//! What a run should cost, from shapes alone. No fitted number lives here.

pub mod candle;
pub mod ledger;
pub(crate) mod mlx;
pub(crate) mod params;
pub mod pool;
pub mod time;
pub(crate) mod timeline;
pub(crate) mod work;

use ledger::MemoryLedger;

use crate::error::Result;
use crate::spec::machine::{Accelerator, Machine};
use crate::spec::model::ModelSpec;
use crate::spec::run::{Engine, RunConfig};

/// The micro-batches that decide the peak memory of a run: those with the most tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heaviest {
    /// Tokens of each row of the largest micro-batch.
    pub tokens_per_row: usize,
    /// Share of those tokens that are target tokens.
    pub learned: f64,
    /// Tokens of each row of the largest validation batch, where there is one.
    pub validation_tokens: Option<usize>,
}

/// Memory ledger of a step over the largest micro-batch, for the run's engine on a machine.
pub fn ledger(spec: &ModelSpec, run: &RunConfig, machine: &Machine, heaviest: Heaviest) -> Result<MemoryLedger> {
    match run.engine {
        Engine::Candle => {
            spec.trained_here()?;
            let micro = |tokens| candle::Micro::full(run.execution.batch_size, tokens, heaviest.learned, machine);
            let validation = heaviest.validation_tokens.map(micro);
            candle::ledger(spec, run, &micro(heaviest.tokens_per_row), validation.as_ref())
        }
        Engine::MlxLm => {
            spec.read_by_mlx(run.execution.weights)?;
            let mut ledger = match machine.accelerator {
                // Experts were not measured on a CPU.
                Accelerator::Cpu if spec.experts.is_none() => mlx::cpu::ledger(spec, run, heaviest.tokens_per_row)?,
                Accelerator::Cpu | Accelerator::Metal => mlx::metal::ledger(spec, run, heaviest.tokens_per_row)?,
            };
            if let Some(tokens) = heaviest.validation_tokens {
                ledger.phases.push(mlx::validation(spec, run, machine.accelerator, tokens));
            }
            Ok(ledger)
        }
    }
}
