//! What one block of mlx-lm keeps for its backward pass.
//!
//! Seen array by array in traces of real steps on a CPU (`results/mlx-lm-cpu`, sizes chosen so that every kind of array
//! has its own), and the same on Metal but for the norms:
//!
//! - gate, up, sigmoid and SiLU, because the activation is composed of single operations;
//! - the input of every adapted projection in f32, because A is in f32 and is multiplied by a converted copy; projections
//!   of the same input share it. With dropout each has a copy and a mask of its own;
//! - the attention probabilities: in training, attention is composed of single operations on Metal too (mlx 0.32.2,
//!   `ScaledDotProductAttention::use_fallback`: "faster for training on Metal"; a published run with 0.31.2 shows it, FR163),
//!   which makes what is kept without checkpoints quadratic in the length;
//! - the inputs of the norms: as they are on Metal, where `mx.fast.rms_norm` has a kernel with a backward pass; in f32 on
//!   a CPU, where it has none;
//! - rotated q and k, v, and what each A gives.

use std::collections::BTreeMap;

use crate::cost::ledger::{F32, Item};
use crate::cost::work::mlx_padded;
use crate::spec::model::ModelSpec;
use crate::spec::model::tensors::{Projection, Role};
use crate::spec::run::{Lora, RunConfig};

/// Sizes of the arrays of a micro-batch, in numbers (not bytes).
pub(super) struct Sizes {
    /// Bytes of one number of an activation.
    pub format: u64,
    /// Tokens of the micro-batch: the rows of its arrays.
    pub rows: u64,
    /// Size of an array as wide as the hidden state.
    pub hidden: u64,
    /// Size of an array as wide as the MLP, over all experts that a token goes through.
    pub mlp: u64,
    /// Size of the queries, all heads together.
    pub q: u64,
    /// Size of the keys, all heads together; that of the values is the same.
    pub kv: u64,
    /// Size of the attention scores of one block.
    pub scores: u64,
    /// Size of the logits: an array as wide as the vocabulary.
    pub logits: u64,
    /// Size of an array as wide as the adapters' rank.
    pub low_rank: u64,
}

impl Sizes {
    pub(super) fn new(spec: &ModelSpec, run: &RunConfig, tokens_per_row: usize) -> Self {
        // The last token of a row is a target and no input.
        let length = mlx_padded(tokens_per_row, run.recipe.max_seq_length).saturating_sub(1) as u64;
        let rows = run.execution.batch_size as u64 * length;
        let of = |width: usize| rows * width as u64;
        let experts = spec.experts.map_or(1, |e| e.num_experts_per_tok);
        Self {
            // Over a quantised base the activations are in 16 bits.
            format: if spec.usual_format(run.execution.weights).bits() > 16.0 { F32 } else { 2 },
            rows,
            hidden: of(spec.hidden_size),
            mlp: of(experts * spec.intermediate_size),
            q: of(spec.q_size()),
            kv: of(spec.kv_size()),
            scores: length * of(spec.attention.num_attention_heads),
            logits: of(spec.vocab_size),
            low_rank: of(run.recipe.lora.rank),
        }
    }

    /// Bytes that a trained block keeps without checkpoints, where a norm keeps its input in `norm_format` bytes a number.
    pub(super) fn kept(&self, spec: &ModelSpec, lora: &Lora, adapted: &[Projection], norm_format: u64) -> u64 {
        let activation = if spec.mlp.gated { 4 } else { 2 } * self.mlp;
        // What each expert makes of a token is weighed, and the weights have a gradient.
        let weighed = spec.experts.map_or(0, |e| e.num_experts_per_tok as u64 * self.hidden);
        let norms = if spec.post_norms { 4 } else { 2 } * self.hidden;
        let head_norms = if spec.attention.qk_norm { self.q + self.kv } else { 0 };
        let low_rank = adapted.iter().map(|p| p.active as u64).sum::<u64>() * self.low_rank;
        self.format * (activation + self.q + 2 * self.kv + self.scores + weighed)
            + norm_format * (norms + head_norms)
            + self.inputs(lora, adapted)
            + F32 * low_rank
    }

    /// What so many blocks leave for backward, where each keeps `kept` bytes without checkpoints.
    pub(super) fn saved(&self, run: &RunConfig, blocks: usize, kept: u64) -> Item {
        match run.execution.grad_checkpoint {
            true => Item::new("block inputs", blocks as u64 * self.format * self.hidden),
            false => Item::new("activations kept", blocks as u64 * kept),
        }
    }

    /// Bytes of the inputs of the adapters' first matrices.
    fn inputs(&self, lora: &Lora, adapted: &[Projection]) -> u64 {
        let wide = |p: &Projection| self.rows * (p.active * p.in_features) as u64;
        if lora.dropout > 0.0 {
            // Each draws a mask of its own, which is kept in the activations' format.
            return (F32 + self.format) * adapted.iter().map(wide).sum::<u64>();
        }
        let mut shared: BTreeMap<usize, u64> = BTreeMap::new();
        adapted.iter().for_each(|p| _ = shared.insert(input(p.role), wide(p)));
        F32 * shared.values().sum::<u64>()
    }
}

/// Projections with the same number here have the same input.
fn input(role: Role) -> usize {
    match role {
        Role::Q | Role::K | Role::V | Role::Qkv => 0,
        Role::O => 1,
        Role::Router => 2,
        Role::Gate | Role::Up | Role::GateUp => 3,
        Role::Down => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::params::adapted;
    use crate::spec::model::catalogue;

    fn kept(model: &str, lora: &str) -> u64 {
        let text = format!(
            "model = \"m\"\ndata = \"d\"\nengine = \"mlx-lm\"\n[recipe]\nmax_seq_length = 513\neffective_batch_size = 2\n\
             [recipe.lora]\nrank = 8\n{lora}\n[execution]\nbatch_size = 2\nweights = \"4bit\""
        );
        let run = RunConfig::from_toml(&text, "run.toml".as_ref()).unwrap();
        let spec = &catalogue::find(model).unwrap().spec;
        let (targets, _) = adapted(spec, &run.recipe.lora).unwrap();
        let sizes = Sizes::new(spec, &run, 513);
        assert_eq!((sizes.rows, sizes.format), (1024, 2));
        sizes.kept(spec, &run.recipe.lora, &targets, 2)
    }

    #[test]
    fn a_block_keeps_these_arrays() {
        // Qwen3-8B: hidden 4096, MLP 12288, 32 heads of 128, 8 of them for keys, norms of heads.
        let arrays = 2 * (4 * 12288 + 4096 + 2 * 1024 + 32 * 512 + 2 * 4096 + 4096 + 1024);
        let low_rank = 4 * 7 * 8;
        let all = |inputs: u64| 1024 * (arrays + inputs + low_rank);
        assert_eq!(kept("Qwen3-8B", ""), all(4 * (4096 + 4096 + 4096 + 12288)));
        assert_eq!(kept("Qwen3-8B", "dropout = 0.05"), all(6 * (3 * 4096 + 4096 + 2 * 4096 + 12288)));
        // Adapters on q and v alone share one input.
        let two = 1024 * (arrays + 4 * 4096 + 4 * 2 * 8);
        assert_eq!(kept("Qwen3-8B", "target_modules = [\"q_proj\", \"v_proj\"]"), two);
    }

    #[test]
    fn a_mixture_keeps_what_its_active_experts_make() {
        // Qwen3-30B-A3B: hidden 2048, 8 of 128 experts of 768, 32 heads of 128, 4 of them for keys.
        let arrays = 2 * (4 * 8 * 768 + 4096 + 2 * 512 + 32 * 512 + 8 * 2048 + 2 * 2048 + 4096 + 512);
        let q = 1024 * (arrays + 4 * 2048 + 4 * 8);
        assert_eq!(kept("Qwen3-30B-A3B", "target_modules = [\"q_proj\"]"), q);
        let down = 1024 * (arrays + 4 * 8 * 768 + 4 * 8 * 8);
        assert_eq!(kept("Qwen3-30B-A3B", "target_modules = [\"down_proj\"]"), down);
    }
}
