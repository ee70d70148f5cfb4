//! Memory of mlx-lm's LoRA trainer on a CPU, as `mx.get_peak_memory` counts it (mlx 0.32.4, mlx-lm 0.32.2).
//!
//! What one block keeps for its backward pass follows from mlx's graph, and was seen, array by array, in traces of the
//! allocations of real steps (sizes chosen so that every kind of array has its own):
//!
//! - gate, up, sigmoid and SiLU, because the activation is composed of single operations;
//! - the input of every adapted projection in f32, because A is in f32 and is multiplied by a converted copy;
//! - the inputs of both norms in f32, and the attention probabilities, because `mx.fast.rms_norm` and
//!   `scaled_dot_product_attention` have no kernel with a backward pass on a CPU and fall back to single operations;
//! - rotated q and k, v, and what each A gives.
//!
//! What else is alive at a tall moment is counted off the same traces, in `mlx_cpu.csv`; `results/mlx-lm-cpu/trace.py`
//! makes that file. It is more than the block at work: mlx allocates results ahead of the thread that computes, by ten
//! tasks of ten dispatches (`MAX_ACTIVE_TASKS`, `DISPATCHES_PER_TASK`; some fifty operations, half a block), and keeps
//! what they read until they are done. So the last block's backward overlaps the loss, a checkpointed block is run again
//! before the gradient it is run again for is there, and gradients wait with the new states that Adam makes of them:
//! those of up to six blocks at once, however many blocks there are. Where a group of ten ends depends on all that was
//! dispatched before, which moves single peaks by some percent either way; the prediction is the mean over the traced
//! depths. None of the counts depends on a shape. `tests/mlx_ledger.rs` holds the result to measured steps of llama,
//! qwen2 and qwen3 models; other families are taken to be alike.
//!
//! On Metal, norms and attention have kernels of their own and the order differs: that is [`super::mlx`].

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::ledger::{Item, MemoryLedger, Phase};
use super::mlx;
use super::params::{adapted, trainable};
use super::work::mlx_padded;
use crate::error::Result;
use crate::spec::model::ModelSpec;
use crate::spec::run::RunConfig;
use crate::spec::tensors::{Projection, Role};

const F32: i64 = 4;

/// Kinds of arrays, in the order of the columns of the counts: hidden, MLP, q, k or v, scores, logits, x A.
const KINDS: usize = 7;
const SCORES: usize = 4;
const LOGITS: usize = 5;

/// What is alive at a tall moment of a traced step, beyond what all blocks keep.
#[derive(Debug)]
struct Moment {
    of: Variant,
    /// Blocks of the traced model.
    depth: u32,
    phase: &'static str,
    /// Bytes per element of each kind. Fewer than none where the last blocks let go of some already.
    alive: [f64; KINDS],
    /// Gradients and new states of adapters, in units of one block's adapters.
    adapters: f64,
}

/// What the graph depends on, beside shapes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Variant {
    base: &'static str,
    in_mlp: bool,
    checkpoint: bool,
    head_norms: bool,
}

static MOMENTS: LazyLock<Vec<Moment>> = LazyLock::new(|| {
    // A line that cannot be read would be missed by the test below.
    include_str!("mlx_cpu.csv").lines().skip(1).filter_map(moment).collect()
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

/// Sizes of a micro-batch's arrays, in numbers.
struct Sizes {
    /// Bytes of an activation.
    format: i64,
    hidden: i64,
    mlp: i64,
    q: i64,
    kv: i64,
    scores: i64,
    logits: i64,
    low_rank: i64,
}

impl Sizes {
    fn new(spec: &ModelSpec, run: &RunConfig, tokens_per_row: usize) -> Self {
        // The last token of a row is a target and no input.
        let length = mlx_padded(tokens_per_row, run.recipe.max_seq_length).saturating_sub(1) as i64;
        let rows = run.execution.batch_size as i64 * length;
        Self {
            // Over a quantised base the activations are in 16 bits.
            format: if spec.usual_format(run.execution.weights).bits() > 16.0 { F32 } else { 2 },
            hidden: rows * spec.hidden_size as i64,
            mlp: rows * spec.intermediate_size as i64,
            q: rows * spec.q_size() as i64,
            kv: rows * spec.kv_size() as i64,
            scores: rows * length * spec.attention.num_attention_heads as i64,
            logits: rows * spec.vocab_size as i64,
            low_rank: rows * run.recipe.lora.rank as i64,
        }
    }

    /// What a trained block keeps without checkpoints.
    fn kept(&self, spec: &ModelSpec, adapted: &[Projection]) -> i64 {
        let has = |roles: &[Role]| i64::from(adapted.iter().any(|p| roles.contains(&p.role)));
        let activation = if spec.mlp.gated { 4 } else { 2 } * self.mlp + self.q + 2 * self.kv + self.scores;
        let inputs = has(&[Role::Q, Role::K, Role::V, Role::Qkv]) * self.hidden
            + has(&[Role::O]) * self.q
            + has(&[Role::Gate, Role::Up, Role::GateUp]) * self.hidden
            + has(&[Role::Down]) * self.mlp;
        let head_norms = if spec.attention.qk_norm { self.q + self.kv } else { 0 };
        let in_f32 = 2 * self.hidden + inputs + head_norms + adapted.len() as i64 * self.low_rank;
        self.format * activation + F32 * in_f32
    }

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

/// All of it, when every row of the micro-batch has `tokens_per_row` tokens before padding.
pub fn ledger(spec: &ModelSpec, run: &RunConfig, tokens_per_row: usize) -> Result<MemoryLedger> {
    let sizes = Sizes::new(spec, run, tokens_per_row);
    let (targets, blocks) = adapted(spec, &run.recipe.lora)?;
    let blocks = blocks as i64;
    let in_mlp = targets.iter().any(|p| matches!(p.role, Role::Gate | Role::Up | Role::GateUp | Role::Down));
    let kept = match run.execution.grad_checkpoint {
        true => Item::new("block inputs", (blocks * sizes.format * sizes.hidden) as u64),
        false => Item::new("activations kept", (blocks * sizes.kept(spec, &targets)) as u64),
    };
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
    // Weights, adapters and Adam's states are the same everywhere.
    Ok(MemoryLedger { phases, ..mlx::ledger(spec, run, tokens_per_row)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_was_traced_and_every_line_is_read() {
        assert_eq!(MOMENTS.len(), include_str!("mlx_cpu.csv").lines().count() - 1);
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
