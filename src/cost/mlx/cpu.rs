//! On a CPU (mlx 0.32.4, mlx-lm 0.32.2).
//!
//! What is alive at a tall moment beside what the blocks keep is counted off traces of the allocations of real steps,
//! in `cpu.csv`; `scripts/mlx_lm_cpu/trace.py` makes that file. It is more than the block at work: mlx allocates
//! results ahead of the thread that computes, by ten tasks of ten dispatches (`MAX_ACTIVE_TASKS`,
//! `DISPATCHES_PER_TASK`; some fifty operations, half a block), and keeps what they read until they are done. So the
//! last block's backward overlaps the loss, a checkpointed block is run again before the gradient it is run again for
//! is there, and gradients wait with the new states that Adam makes of them: those of up to six blocks at once, however
//! many blocks there are. Where a group of ten ends depends on all that was dispatched before, which moves single peaks
//! by some percent either way; the prediction is the mean over the traced depths. None of the counts depends on a
//! shape. `tests/mlx_ledger.rs` holds the result to measured steps of llama, qwen2 and qwen3 models; other families are
//! taken to be alike.
//!
//! On Metal the order differs: that is [`crate::cost::mlx::metal`].

use std::collections::BTreeMap;
use std::sync::LazyLock;

use crate::cost::ledger::{Item, MemoryLedger, Phase};
use crate::cost::mlx::graph::Sizes;
use crate::cost::mlx::{F32, largest_buffer, resident};
use crate::cost::params::{adapted, trainable};
use crate::error::Result;
use crate::spec::model::ModelSpec;
use crate::spec::model::tensors::Role;
use crate::spec::run::RunConfig;

/// Kinds of arrays, in the order of the columns of the counts: hidden, MLP, q, k or v, scores, logits, x A.
const KINDS: usize = 7;
const SCORES: usize = 4;
const LOGITS: usize = 5;

/// What is alive at a tall moment of a traced step, beyond what all blocks keep.
#[derive(Debug)]
struct Moment {
    of: Variant,
    /// Number of blocks of the traced model.
    depth: u32,
    phase: &'static str,
    /// Bytes per element of each kind. Fewer than none where the last blocks let go of some already.
    alive: [f64; KINDS],
    /// Gradients and new states of adapters, in units of one block's adapters.
    adapters: f64,
}

/// Settings that the graph depends on, beside shapes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Variant {
    base: &'static str,
    in_mlp: bool,
    checkpoint: bool,
    head_norms: bool,
}

static MOMENTS: LazyLock<Vec<Moment>> = LazyLock::new(|| {
    // A line that cannot be read would be missed by the test below.
    include_str!("cpu.csv").lines().skip(1).filter_map(moment).collect()
});

fn moment(line: &'static str) -> Option<Moment> {
    let mut fields = line.split(',');
    let of = Variant {
        base: fields.next()?,
        in_mlp: fields.next()? == "all",
        checkpoint: fields.next()? == "1",
        head_norms: fields.next()? == "1",
    };
    let (depth, phase) = (fields.next()?.parse().ok()?, fields.next()?);
    let counts: Vec<f64> = fields.map_while(|n| n.parse().ok()).collect();
    let (adapters, alive) = counts.split_last()?;
    Some(Moment { of, depth, phase, alive: alive.try_into().ok()?, adapters: *adapters })
}

impl Sizes {
    fn kinds(&self) -> [f64; KINDS] {
        [self.hidden, self.mlp, self.q, self.kv, self.scores, self.logits, self.low_rank].map(|n| n as f64)
    }

    /// The tallest moment of a phase: by kind, then the adapters', bytes; in the mean over the traced depths that are
    /// like this model's.
    fn tallest(&self, of: Variant, phase: &str, blocks: f64, adapters: f64) -> Vec<f64> {
        let sizes = self.kinds();
        let bytes = |m: &Moment| -> Vec<f64> {
            let arrays = m.alive.iter().zip(sizes).map(|(count, size)| count * size);
            // A gradient and three new states (the adapter's and Adam's) of each block at most.
            arrays.chain([m.adapters.min(4.0 * blocks) * adapters / blocks]).collect()
        };
        // Moments of the third block from the end want a model that has one. Without checkpoints they are low anyway:
        // so many blocks have let go of what they kept.
        let alike = |depth: u32| !of.checkpoint || (depth < 4) == (blocks < 4.0);
        let mut highest: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
        for m in MOMENTS.iter().filter(|m| m.of == of && m.phase == phase && alike(m.depth)) {
            let (bytes, best) = (bytes(m), highest.entry(m.depth).or_default());
            if best.is_empty() || bytes.iter().sum::<f64>() > best.iter().sum() {
                *best = bytes;
            }
        }
        let depths = highest.len().max(1) as f64;
        (0..=KINDS).map(|i| highest.values().map(|b| b[i]).sum::<f64>() / depths).collect()
    }

    fn phase(&self, name: &str, alive: &[f64], kept: &Item) -> Phase {
        let scores_and_logits = [alive[SCORES], alive[LOGITS]].map(|bytes| bytes.max(0.0) as u64);
        let rest = alive[..KINDS].iter().sum::<f64>() - scores_and_logits.iter().sum::<u64>() as f64;
        // Less than nothing more: what was kept and is gone already.
        let gone = (-rest).clamp(0.0, kept.bytes.as_f64()) as u64;
        let items = vec![
            Item::new(&kept.name, kept.bytes.0 - gone),
            Item::new("logits", scores_and_logits[1]),
            Item::new("attention scores", scores_and_logits[0]),
            Item::new("one block at work", rest.max(0.0) as u64),
            Item::new("gradients", alive[KINDS].max(0.0) as u64),
        ];
        Phase::new(name, items)
    }
}

/// The memory ledger when every row of the micro-batch has `tokens_per_row` tokens before padding.
pub fn ledger(spec: &ModelSpec, run: &RunConfig, tokens_per_row: usize) -> Result<MemoryLedger> {
    let sizes = Sizes::new(spec, run, tokens_per_row);
    let (targets, blocks) = adapted(spec, &run.recipe.lora)?;
    let in_mlp = targets.iter().any(|p| matches!(p.role, Role::Gate | Role::Up | Role::GateUp | Role::Down));
    let kept = sizes.saved(run, blocks, sizes.kept(spec, &run.recipe.lora, &targets, F32));
    let adapters = trainable(spec, &run.recipe.lora)?;
    let of = Variant {
        // Under a quantised base mlx has products of its own.
        base: match spec.usual_format(run.execution.weights).bits() {
            bits if bits > 16.0 => "f32",
            bits if bits >= 16.0 => "bf16",
            _ => "4bit",
        },
        in_mlp,
        checkpoint: run.execution.grad_checkpoint,
        head_norms: spec.attention.qk_norm,
    };
    let phase = |name| {
        let alive = sizes.tallest(of, name, blocks as f64, adapters as f64 * F32 as f64);
        sizes.phase(name, &alive, &kept)
    };
    let phases = ["loss", "backward"].map(phase).into();
    Ok(MemoryLedger { resident: resident(spec, run)?, phases, largest_buffer: largest_buffer(spec, run, &sizes) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_was_traced_and_every_line_is_read() {
        assert_eq!(MOMENTS.len(), include_str!("cpu.csv").lines().count() - 1);
        for base in ["f32", "bf16", "4bit"] {
            for flags in 0..8 {
                let [in_mlp, checkpoint, head_norms] = [1, 2, 4].map(|bit| flags & bit > 0);
                let of = Variant { base, in_mlp, checkpoint, head_norms };
                for phase in ["loss", "backward"] {
                    let mut depths: Vec<u32> =
                        MOMENTS.iter().filter(|m| m.of == of && m.phase == phase).map(|m| m.depth).collect();
                    depths.dedup();
                    assert_eq!(depths, [2, 4, 6], "{of:?} {phase}");
                }
            }
        }
    }
}
