//! Memory of Headroom's own engine, moment by moment.
//!
//! The trainer walks block by block with f32 activations, so a step has few tall moments, and each is a sum of
//! tensors whose shapes are known. With N rows in a micro-batch, width H, MLP width F, vocabulary V and L blocks:
//!
//! - forward: N H for each block input kept so far, plus the tallest moment inside one block;
//! - loss: the block inputs, plus a chunk of logits (c V), plus the head in f32 where it is stored narrower (H V);
//! - backward: the block inputs, the output's gradient, one block made again, and the tallest moment inside it;
//! - optimizer: the gradients and the temporaries of one update.
//!
//! Inside a block attention holds `heads x chunk x S` scores, and the MLP holds `chunk x F`, never more.

use super::ledger::{Item, MemoryLedger, Phase};
use super::params::{Parameters, adapted, trainable};
use crate::error::Result;
use crate::spec::model::{ModelSpec, Positions};
use crate::spec::run::RunConfig;
use crate::spec::tensors::Role;

/// Bytes of an f32.
const F32: u64 = 4;

/// Score matrices of one chunk that exist together: scores, exponentials and probabilities forward; probabilities,
/// their gradient and two temporaries backward.
const SCORES_FORWARD: u64 = 3;
const SCORES_BACKWARD: u64 = 4;

/// Logit-sized tensors of one chunk that exist together: logits, exponentials, probabilities and gradient.
const LOGITS: u64 = 3;

/// Copies of an adapter's tensors that one update makes before the old ones go.
const UPDATE_TEMPORARIES: u64 = 6;

/// Sizes that every moment is made of, in numbers.
struct Sizes<'a> {
    spec: &'a ModelSpec,
    run: &'a RunConfig,
    /// Rows of a micro-batch, and of its longest example.
    rows: u64,
    length: u64,
    h: u64,
    f: u64,
    q: u64,
    kv: u64,
    /// Blocks that keep their input (or tape) for backward.
    kept: u64,
    adapters: u64,
}

/// All of it, when every row of the micro-batch has `tokens_per_row` tokens.
pub fn ledger(spec: &ModelSpec, run: &RunConfig, tokens_per_row: usize) -> Result<MemoryLedger> {
    let s = Sizes::new(spec, run, tokens_per_row)?;
    Ok(MemoryLedger {
        resident: s.resident(),
        phases: vec![
            Phase::new("forward", s.forward()),
            Phase::new("loss", s.loss()),
            Phase::new("backward", s.backward()),
            Phase::new("optimizer", s.optimizer()),
        ],
        largest_buffer: s.largest_buffer(),
    })
}

impl<'a> Sizes<'a> {
    fn new(spec: &'a ModelSpec, run: &'a RunConfig, tokens_per_row: usize) -> Result<Self> {
        Ok(Self {
            rows: (run.execution.batch_size * tokens_per_row) as u64,
            length: tokens_per_row as u64,
            h: spec.hidden_size as u64,
            f: spec.intermediate_size as u64,
            q: spec.q_size() as u64,
            kv: spec.kv_size() as u64,
            kept: adapted(spec, &run.recipe.lora)?.1 as u64,
            adapters: trainable(spec, &run.recipe.lora)?,
            spec,
            run,
        })
    }

    /// Bytes of `numbers` in the base's format.
    fn stored(&self, numbers: u64) -> u64 {
        (numbers as f64 * self.run.execution.weights.bits() / 8.0).round() as u64
    }

    /// Bytes of a copy in f32 of a matrix of `numbers`, which only narrower formats need.
    fn converted(&self, numbers: u64) -> u64 {
        if self.run.execution.weights.bits() < 8.0 * F32 as f64 { F32 * numbers } else { 0 }
    }

    fn resident(&self) -> Vec<Item> {
        let p = Parameters::of(self.spec);
        let blocks = p.blocks * p.block_matrices;
        let rope = match &self.spec.positions {
            Positions::Rope { global, local } => {
                // Cosines and sines, for each kind of rope.
                F32 * self.length * global.dims as u64 * if local.is_some() { 2 } else { 1 }
            }
            Positions::Learned => 0,
        };
        let sum = if self.run.accumulation() > 1 { F32 * self.adapters } else { 0 };
        vec![
            Item::new("base weights", self.stored(blocks) + F32 * p.vectors()),
            Item::new("embedding and head", self.stored(p.embedding + p.head)),
            Item::new("adapters", F32 * self.adapters),
            Item::new("optimizer state", 2 * F32 * self.adapters),
            Item::new("gradient sum", sum),
            Item::new("rope tables", rope),
        ]
    }

    /// What one block leaves for backward: its input, or all its intermediates.
    fn tape(&self) -> u64 {
        if self.run.execution.grad_checkpoint {
            return F32 * self.rows * self.h;
        }
        let gates = if self.spec.mlp.gated { 2 } else { 1 };
        F32 * self.rows * (self.attention_tape() + gates * self.f)
    }

    /// Numbers a row of: input, normed input, q, k, v, attention's output, and the sum with the residual.
    fn attention_tape(&self) -> u64 {
        let raw = if self.spec.attention.qk_norm { self.q + self.kv } else { 0 };
        3 * self.h + 2 * self.q + 2 * self.kv + raw
    }

    /// The last block's input is being worked on, the others wait.
    fn saved(&self) -> Item {
        let name = if self.run.execution.grad_checkpoint { "block inputs" } else { "activations kept" };
        Item::new(name, self.kept * self.tape())
    }

    fn scores(&self, copies: u64) -> u64 {
        let heads = self.spec.attention.num_attention_heads as u64;
        let chunk = (self.run.execution.attention_chunk as u64).min(self.length);
        copies * F32 * heads * chunk * self.length
    }

    fn mlp_rows(&self) -> u64 {
        (self.run.execution.mlp_chunk as u64).min(self.rows)
    }

    /// The widest conversion to f32 among the projections with (or without) a role of attention.
    fn widest_projection(&self, attention: bool) -> u64 {
        let of_attention = |role| matches!(role, Role::Q | Role::K | Role::V | Role::Qkv | Role::O);
        let all = self.spec.projections();
        let widths = all.iter().filter(|p| of_attention(p.role) == attention);
        self.converted(widths.map(|p| (p.in_features * p.out_features) as u64).max().unwrap_or(0))
    }

    fn forward(&self) -> Vec<Item> {
        // An adapter's update stands beside the base's output until they are added.
        let attention = F32 * self.rows * (self.attention_tape() + self.q.max(self.h)) + self.scores(SCORES_FORWARD);
        let attention_weight = self.widest_projection(true);
        let mlp = F32 * (self.mlp_rows() * (self.h + 4 * self.f) + 3 * self.rows * self.h);
        let mlp_weight = self.widest_projection(false);
        let (working, weight) = if attention + attention_weight > mlp + mlp_weight {
            (attention, attention_weight)
        } else {
            (mlp, mlp_weight)
        };
        vec![self.saved(), Item::new("one block forward", working), Item::new("one weight in f32", weight)]
    }

    fn loss(&self) -> Vec<Item> {
        let chunk = (self.run.execution.loss_chunk as u64).min(self.rows);
        let v = self.spec.vocab_size as u64;
        vec![
            self.saved(),
            Item::new("logits of one chunk", LOGITS * F32 * chunk * v),
            Item::new("head in f32", self.converted(v * self.h)),
            // The last output, its gradient in parts, and both again when they are put together.
            Item::new("last hidden state", F32 * self.h * (3 * self.rows + 3 * chunk)),
        ]
    }

    fn backward(&self) -> Vec<Item> {
        let again = F32 * self.rows * self.attention_tape();
        // Gradients of q, k, v beside those of attention's output, once by head and once by row.
        let attention = F32 * self.rows * (2 * (self.q + 2 * self.kv) + self.q + self.h) + self.scores(SCORES_BACKWARD);
        let attention_weight = self.widest_projection(true);
        let mlp = F32 * (self.mlp_rows() * (3 * self.h + 6 * self.f) + self.rows * self.h);
        let mlp_weight = self.widest_projection(false);
        let (working, weight) = if attention + attention_weight > mlp + mlp_weight {
            (attention, attention_weight)
        } else {
            (mlp, mlp_weight)
        };
        vec![
            self.saved(),
            Item::new("gradient of the output", F32 * self.rows * self.h),
            Item::new("one block again", again),
            Item::new("one block backward", working),
            Item::new("one weight in f32", weight),
            Item::new("gradients", F32 * self.adapters),
        ]
    }

    fn optimizer(&self) -> Vec<Item> {
        let widest = self.spec.projections().iter().map(|p| p.in_features.max(p.out_features)).max().unwrap_or(0);
        let one = F32 * (widest * self.run.recipe.lora.rank) as u64;
        vec![Item::new("gradients", 2 * F32 * self.adapters), Item::new("one update", UPDATE_TEMPORARIES * one)]
    }

    fn largest_buffer(&self) -> Item {
        let chunk = (self.run.execution.loss_chunk as u64).min(self.rows);
        let table = (self.spec.vocab_size as u64) * self.h;
        let buffers = [
            Item::new("embedding", self.stored(table)),
            Item::new("head in f32", self.converted(table)),
            Item::new("logits of one chunk", F32 * chunk * self.spec.vocab_size as u64),
            Item::new("attention scores of one chunk", self.scores(1)),
            Item::new("one MLP activation", F32 * self.mlp_rows() * self.f),
            Item::new("one activation", F32 * self.rows * self.h.max(self.q)),
        ];
        buffers.into_iter().max_by_key(|b| b.bytes).unwrap_or_else(|| Item::new("none", 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::catalogue;
    use crate::units::Bytes;

    fn of(model: &str, extra: &str, tokens: usize) -> MemoryLedger {
        let text = format!("model = \"m\"\ndata = \"d\"\n{extra}");
        let run = RunConfig::from_toml(&text, "run.toml".as_ref()).unwrap();
        ledger(&catalogue::find(model).unwrap().spec, &run, tokens).unwrap()
    }

    fn item(items: &[Item], name: &str) -> u64 {
        items.iter().find(|i| i.name == name).unwrap().bytes.0
    }

    #[test]
    fn what_is_resident_is_counted_from_the_tensors() {
        let l = of("Qwen2.5-0.5B-Instruct", "", 1024);
        // 24 blocks of 14,909,440 matrix numbers in bf16; 24 x (2 x 896 + 1152 biases) + 896 vectors in f32.
        assert_eq!(item(&l.resident, "base weights"), 2 * 24 * 14_909_440 + 4 * (24 * (2 * 896 + 1152) + 896));
        assert_eq!(item(&l.resident, "embedding and head"), 2 * 151_936 * 896);
        assert_eq!(item(&l.resident, "optimizer state"), 8 * 8_798_208);
        assert_eq!(item(&l.phases[2].items, "block inputs"), 24 * 4 * 1024 * 896);
    }

    #[test]
    fn every_lever_lowers_what_it_should() {
        let peak = |extra: &str| of("Qwen2.5-0.5B-Instruct", extra, 2048).peak();
        let base = peak("");
        assert!(peak("[execution]\ngrad_checkpoint = false") > base);
        assert!(peak("[execution]\nbatch_size = 2") > base);
        // Twice the base, less the copies in f32 that are no longer needed.
        assert!(peak("[execution]\nweights = \"f32\"") > base);
        assert!(peak("[execution]\nloss_chunk = 128") <= base);
        assert!(peak("[recipe.lora]\nnum_layers = 4") < base);
        assert!(base > Bytes::from_gib(1.5) && base < Bytes::from_gib(3.5), "{base}");
    }
}
