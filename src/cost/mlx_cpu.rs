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
//! What else is alive at a tall moment is counted off the same traces, as numbers of arrays by kind. It is more than the
//! block at work: mlx allocates results up to ten tasks ahead of the thread that computes (`MAX_ACTIVE_TASKS`) and a
//! checkpointed block does not wait for the gradient that it is run again for, so the last block's backward overlaps the
//! loss. None of the counts depends on a shape. `tests/mlx_ledger.rs` holds the result to measured steps of llama, qwen2
//! and qwen3 models; other families are taken to be alike.
//!
//! On Metal, norms and attention have kernels of their own and the order differs: that is [`super::mlx`].

use super::ledger::{Item, MemoryLedger, Phase};
use super::mlx;
use super::params::{adapted, trainable};
use super::work::mlx_padded;
use crate::error::Result;
use crate::spec::model::ModelSpec;
use crate::spec::run::RunConfig;
use crate::spec::tensors::{Projection, Role};

const F32: i64 = 4;

/// Numbers of arrays that are alive at a moment, beyond what all blocks keep: of the hidden state's size, the MLP's,
/// of q, of k and v, each in the activations' format and in f32; of the scores, the logits (activations' format) and
/// of x A (f32). Fewer than none where the moment comes after the last block let go of some.
struct Alive {
    phase: &'static str,
    hidden: [i64; 2],
    mlp: [i64; 2],
    q: [i64; 2],
    kv: [i64; 2],
    scores: i64,
    logits: i64,
    low_rank: i64,
    /// Gradients are there: half of them, since the block at work is one in the middle.
    gradients: bool,
}

const NONE: Alive = Alive {
    phase: "",
    hidden: [0; 2],
    mlp: [0; 2],
    q: [0; 2],
    kv: [0; 2],
    scores: 0,
    logits: 0,
    low_rank: 0,
    gradients: false,
};

/// Adapters in the MLP too; every trained block's activations kept.
const KEPT: [Alive; 3] = [
    Alive { phase: "loss", logits: 4, mlp: [3, 3], hidden: [4, 7], q: [0, 1], low_rank: 4, ..NONE },
    Alive { phase: "last block", logits: 2, mlp: [3, 3], hidden: [4, 7], q: [4, 0], scores: 2, ..NONE },
    Alive { phase: "backward", logits: 1, mlp: [-2, 0], hidden: [4, 4], q: [11, 0], kv: [8, 0], scores: 2, ..NONE },
];

/// Adapters in attention alone; every trained block's activations kept.
const KEPT_ATTENTION: [Alive; 1] =
    [Alive { phase: "loss", logits: 4, mlp: [3, 0], hidden: [3, 4], q: [9, 0], kv: [2, 0], scores: 2, ..NONE }];

/// Adapters in the MLP too; every trained block's input kept.
const AGAIN: [Alive; 4] = [
    Alive { phase: "loss", logits: 4, mlp: [7, 5], hidden: [3, 7], q: [2, 0], scores: 1, ..NONE },
    Alive { phase: "last block", mlp: [6, 6], hidden: [4, 7], q: [12, 0], kv: [7, 0], scores: 3, low_rank: 15, ..NONE },
    Alive {
        phase: "backward, MLP",
        gradients: true,
        mlp: [8, 9],
        hidden: [4, 13],
        q: [5, 0],
        kv: [6, 0],
        scores: 1,
        low_rank: 24,
        ..NONE
    },
    Alive {
        phase: "backward, attention",
        gradients: true,
        mlp: [2, 2],
        hidden: [3, 3],
        q: [13, 3],
        kv: [11, 2],
        scores: 4,
        low_rank: 14,
        ..NONE
    },
];

/// Adapters in attention alone; every trained block's input kept.
const AGAIN_ATTENTION: [Alive; 2] = [
    Alive { phase: "loss", logits: 4, mlp: [5, 0], hidden: [7, 7], q: [6, 0], kv: [3, 0], scores: 1, ..NONE },
    Alive {
        phase: "backward, attention",
        gradients: true,
        hidden: [3, 0],
        q: [18, 0],
        kv: [13, 0],
        scores: 4,
        logits: 1,
        low_rank: 12,
        ..NONE
    },
];

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

    fn phase(&self, moment: &Alive, kept: &Item, adapters: u64) -> Phase {
        let both = |n: [i64; 2], size: i64| (n[0] * self.format + n[1] * F32) * size;
        let rest = both(moment.hidden, self.hidden)
            + both(moment.mlp, self.mlp)
            + both(moment.q, self.q)
            + both(moment.kv, self.kv)
            + F32 * moment.low_rank * self.low_rank;
        // Less than nothing more: what was kept and is gone already.
        let gone = (-rest).clamp(0, kept.bytes.0 as i64) as u64;
        let items = vec![
            Item::new(&kept.name, kept.bytes.0 - gone),
            Item::new("logits", (moment.logits * self.format * self.logits) as u64),
            Item::new("attention scores", (moment.scores * self.format * self.scores) as u64),
            Item::new("one block at work", rest.max(0) as u64),
            Item::new("gradients", if moment.gradients { F32 as u64 * adapters / 2 } else { 0 }),
        ];
        Phase::new(moment.phase, items)
    }
}

/// All of it, when every row of the micro-batch has `tokens_per_row` tokens before padding.
pub fn ledger(spec: &ModelSpec, run: &RunConfig, tokens_per_row: usize) -> Result<MemoryLedger> {
    let sizes = Sizes::new(spec, run, tokens_per_row);
    let (targets, blocks) = adapted(spec, &run.recipe.lora)?;
    let blocks = blocks as i64;
    let in_mlp = targets.iter().any(|p| matches!(p.role, Role::Gate | Role::Up | Role::GateUp | Role::Down));
    let moments: &[Alive] = match (run.execution.grad_checkpoint, in_mlp) {
        (true, true) => &AGAIN,
        (true, false) => &AGAIN_ATTENTION,
        (false, true) => &KEPT,
        (false, false) => &KEPT_ATTENTION,
    };
    let kept = match run.execution.grad_checkpoint {
        true => Item::new("block inputs", (blocks * sizes.format * sizes.hidden) as u64),
        false => Item::new("activations kept", (blocks * sizes.kept(spec, &targets)) as u64),
    };
    let adapters = trainable(spec, &run.recipe.lora)?;
    let phases = moments.iter().map(|moment| sizes.phase(moment, &kept, adapters)).collect();
    // Weights, adapters and Adam's states are the same everywhere.
    Ok(MemoryLedger { phases, ..mlx::ledger(spec, run, tokens_per_row)? })
}
