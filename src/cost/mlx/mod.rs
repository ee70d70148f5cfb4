//! Memory of mlx-lm's LoRA trainer, as `mx.get_peak_memory` counts it.
//!
//! `graph` says what a block keeps for its backward pass, which follows from mlx-lm's graph; [`metal`] and [`cpu`] say
//! what else is alive at the tall moments of a step.

pub(crate) mod cpu;
mod graph;
pub(crate) mod metal;

use crate::cost::ledger::{F32, Item, Phase};
use crate::cost::params::{Parameters, bits, trainable};
use crate::error::Result;
use crate::spec::machine::Accelerator;
use crate::spec::model::ModelSpec;
use crate::spec::run::RunConfig;

/// A look at validation rows of `tokens_per_row` tokens before padding, without a gradient: one block at work, or two arrays
/// of the size of the logits.
///
/// The logits are exact (`mlx_lm.tuner.trainer.evaluate` on a CPU, by differences). The block is rough, because mlx runs
/// ahead here too: counts fitted to 120 shapes on a CPU, where all of it is in f32, miss half of them by less than 15 % and
/// the worst by half. It decides where the rows are much longer than those of training and the vocabulary is small.
pub(crate) fn validation(spec: &ModelSpec, run: &RunConfig, accelerator: Accelerator, tokens_per_row: usize) -> Phase {
    let sizes = graph::Sizes::new(spec, run, tokens_per_row);
    let logits = 2 * sizes.format * sizes.logits;
    let at_work = 8 * sizes.hidden + 5 * sizes.mlp + sizes.q + 9 * sizes.kv + sizes.scores;
    let block = at_work * if accelerator == Accelerator::Cpu { F32 } else { sizes.format };
    let (name, bytes) = if logits > block { ("logits", logits) } else { ("one block at work", block) };
    Phase::new("validation", vec![Item::new(name, bytes)])
}

/// The largest single buffer that a step allocates.
fn largest_buffer(spec: &ModelSpec, run: &RunConfig, sizes: &graph::Sizes) -> Item {
    [
        Item::new("logits", F32 * sizes.logits),
        Item::new("attention scores", sizes.format * sizes.scores),
        Item::new("embedding", stored(spec, run, (spec.vocab_size * spec.hidden_size) as u64)),
    ]
    .into_iter()
    .max_by_key(|b| b.bytes)
    .unwrap_or_else(|| Item::new("none", 0))
}

/// Bytes that so many numbers of the base take in its format, scales included.
fn stored(spec: &ModelSpec, run: &RunConfig, numbers: u64) -> u64 {
    (numbers as f64 * bits(spec, run.execution.weights) / 8.0).round() as u64
}

/// Items held for the whole run: the base in its format, adapters and Adam's state in f32.
fn resident(spec: &ModelSpec, run: &RunConfig) -> Result<Vec<Item>> {
    let p = Parameters::of(spec);
    let adapters = F32 * trainable(spec, &run.recipe.lora)?;
    let base = stored(spec, run, p.blocks * (p.block_matrices + p.block_vectors));
    let ends = stored(spec, run, p.embedding + p.head + p.final_norm);
    let sum = if run.accumulation() > 1 { adapters } else { 0 };
    Ok(vec![
        Item::new("base weights", base),
        Item::new("embedding and head", ends),
        Item::new("adapters", adapters),
        Item::new("optimizer state", 2 * adapters),
        Item::new("gradient sum", sum),
    ])
}

#[cfg(test)]
mod steps_tests;
