//! The terms of an optimizer step.
//!
//! A frozen matrix of P parameters costs 2P FLOPs a token forward, 2P to carry the gradient through it, and 2P
//! more where checkpointing runs the block again; it gets no gradient of its own. Bytes are those that must move
//! between memory and the processor; what stays in a cache is not known here and falls to calibration.
//! Left out: the data loader, and what the engines do once in a while (checkpoints, validation).

use crate::cost::time::shapes::{Elementwise, F32, Shapes};
use crate::cost::time::step::{StepCost, Term};
use crate::error::Result;
use crate::spec::machine::Machine;
use crate::spec::model::ModelSpec;
use crate::spec::run::{Engine, Optimizer, RunConfig, TokenLengths};

/// Passes of a stable softmax over its numbers, forward (maximum, exponential, sum, division: read and write) and
/// backward (product, row sum, difference, product).
const SOFTMAX_PASSES: f64 = 6.0;

const SOFTMAX_BACKWARD_PASSES: f64 = 8.0;

/// Passes of the update over each trainable number. AdamW: three states and a gradient read, three written, and as
/// many temporaries again because the update is composed of single operations. Adafactor: seven operations over the
/// gradient, three over the weights. With eight bits: weights and gradient read, weights written, codes both ways.
fn update_passes(optimizer: Optimizer) -> f64 {
    match optimizer {
        Optimizer::Adamw => 22.0,
        Optimizer::Adafactor => 21.0,
        Optimizer::Adamw8bit => 4.0,
    }
}

/// Launches of one projection: conversion, product, bias; an adapter's two products, scaling and sum; backward the
/// conversion, the product, and the adapter's eight.
const LINEAR: f64 = 3.0;

const ADAPTER: f64 = 4.0;

const LINEAR_BACKWARD: f64 = 2.0;

const ADAPTER_BACKWARD: f64 = 8.0;

/// Launches that DoRA adds to a projection with an adapter, forward and backward.
const DORA: f64 = 2.0;

const DORA_BACKWARD: f64 = 8.0;

/// Launches of the rest of a block: norms, rope, residual sums, activation.
const BLOCK_REST: f64 = 12.0;

/// Launches of one chunk of attention, forward and backward.
const CHUNK: f64 = 16.0;

const CHUNK_BACKWARD: f64 = 36.0;

/// Launches of the update of one adapted projection: two matrices, eleven operations each, and their clipping.
const UPDATE: f64 = 26.0;

/// Kernel launches of one chunk of the loss, forward and backward.
const LOSS_CHUNK: f64 = 20.0;

impl Shapes<'_> {
    /// The frozen matrices of that many blocks: `2 P` FLOPs a row, the stored numbers read
    /// once a micro-batch, and where they are not stored in f32 a copy in f32 written and read.
    fn matrices(&self, name: &str, blocks: f64, launches: f64) -> Term {
        let parameters = blocks * self.block;
        self.term(name, 2.0 * blocks * self.active * self.work.rows, parameters * self.read(), blocks * launches)
    }

    /// The matrices that backward makes products with again.
    fn matrices_again(&self) -> Term {
        let p = self.not_recomputed.as_ref();
        let (saved, active) = p.map_or((0.0, 0.0), |p| {
            let one = (p.in_features * p.out_features) as f64;
            (p.copies as f64 * one, p.active as f64 * one)
        });
        let launches = self.projections - f64::from(u8::from(p.is_some()));
        let mut term = self.matrices("forward again", self.again, launches * LINEAR);
        let n = self.work.micro_batches * self.again;
        term.flops -= 2.0 * active * self.work.rows * n;
        term.bytes -= saved * self.read() * n;
        term
    }

    /// DoRA: backward makes the projection's output once more for the magnitude's gradient, dropout sends the rest of
    /// the input through the base by itself, both ways, and once a step the norms are taken, a product of `rank` rows.
    fn dora(&self) -> Term {
        let lora = &self.run.recipe.lora;
        if !lora.use_dora {
            return self.term("DoRA", 0.0, 0.0, 0.0);
        }
        let (forward, back) = (self.back_blocks + self.again, self.back_blocks);
        let products = back + if lora.dropout > 0.0 { forward + back } else { 0.0 };
        let outputs = F32 * self.work.rows * self.adapter_out * (2.0 * forward + 4.0 * back);
        let mut term = self.term(
            "DoRA",
            2.0 * self.adapted * self.work.rows * products,
            self.adapted * self.read() * products + outputs,
            self.adapters * (forward * DORA + back * DORA_BACKWARD),
        );
        term.flops += 2.0 * self.adapted * self.rank() * back;
        term.bytes += self.adapted * self.read() * back;
        term
    }

    fn adapters(&self) -> Term {
        let forward = self.adapter_in + self.adapter_out;
        let backward = 3.0 * self.adapter_in + 2.0 * self.adapter_out;
        let (saved, fewer) = match &self.not_recomputed_adapter {
            Some(p) => ((p.active * (p.in_features + p.out_features)) as f64, 1.0),
            None => (0.0, 0.0),
        };
        let numbers = self.back_blocks * (forward + backward) + self.again * (forward - saved);
        let launches = self.back_blocks * self.adapters * (ADAPTER + ADAPTER_BACKWARD)
            + self.again * (self.adapters - fewer) * ADAPTER;
        self.term("adapters", 2.0 * self.work.rows * self.rank() * numbers, 0.0, launches)
    }

    /// Two products forward, five backward (scores again, and the gradients of P, V, Q and K).
    fn attention(&self) -> [Term; 2] {
        let chunk = self.run.execution.attention_chunk;
        let first = self.run.recipe.lora.first_layer(self.spec.num_hidden_layers);
        let (all, back) = self.work.pairs_by_layer(self.spec, chunk, first);
        // mlx-lm has a fused causal forward, and no fused backward: that works on whole squares.
        let back_pairs = match self.run.engine {
            Engine::Candle => back,
            Engine::MlxLm => self.back_blocks * self.work.squares(),
        };
        let again = if self.run.execution.grad_checkpoint { back } else { 0.0 };
        let width = self.spec.q_size() as f64;
        let heads = self.spec.attention.num_attention_heads as f64;
        let (forward, back_pairs) = ((all + again) * self.waiting(chunk), back_pairs * self.waiting_back());
        let flops = width * (4.0 * forward + 10.0 * back_pairs);
        // Ours keeps no probabilities: backward makes them again from q and k.
        let softmax = if self.run.engine == Engine::Candle { SOFTMAX_PASSES } else { 0.0 };
        let bytes = F32 * heads * (softmax * forward + (softmax + SOFTMAX_BACKWARD_PASSES) * back_pairs);
        let chunks: f64 = match self.run.engine {
            Engine::Candle => self.work.sequences.iter().map(|&(n, c)| c * n.div_ceil(chunk) as f64).sum(),
            Engine::MlxLm => 1.0,
        };
        let launches = chunks * ((self.blocks + self.again) * CHUNK + self.back_blocks * CHUNK_BACKWARD);
        [self.term("attention", flops, 0.0, launches), self.term("attention scores", 0.0, bytes, 0.0)]
    }

    /// Time of attention's forward pass on all threads as a multiple of what it would be were the work spread evenly:
    /// a thread takes whole chunks of an example, the largest first, so one short example keeps one thread busy.
    fn waiting(&self, chunk: usize) -> f64 {
        let examples = self.work.examples();
        let (mut busy, mut spent) = (0.0, 0.0);
        for &(n, count) in &self.work.sequences {
            let pairs = |first: usize| (chunk.min(n - first) * (first + chunk).min(n)) as f64;
            let all: f64 = (0..n).step_by(chunk).map(pairs).sum();
            let largest = (0..n).step_by(chunk).map(pairs).fold(1.0, f64::max);
            busy += count * all;
            spent += count * all.max(largest * self.threads as f64 / examples);
        }
        if busy > 0.0 { spent / busy } else { 1.0 }
    }

    /// The same of the backward pass, in which a thread takes a key head of an example.
    fn waiting_back(&self) -> f64 {
        let tasks = self.work.examples() * self.spec.attention.num_key_value_heads as f64;
        (self.threads as f64 / tasks).max(1.0)
    }

    /// Elementwise work; backward touches about twice what forward does.
    fn elementwise(&self) -> Term {
        let Elementwise { forward, always_again: always, with_checkpointing: rest } = self.elementwise;
        let numbers = (self.blocks + 2.0 * self.back_blocks) * forward + self.back_blocks * always + self.again * rest;
        let passes = self.blocks + self.again + 2.0 * self.back_blocks;
        self.term("elementwise", 0.0, F32 * self.work.rows * numbers, passes * BLOCK_REST)
    }

    /// Logits and the gradient through them, of the rows that are learned from: all but the last of each example.
    fn head(&self) -> Term {
        let (h, v) = (self.spec.hidden_size as f64, self.spec.vocab_size as f64);
        let rows = self.work.rows;
        let chunks = match self.run.engine {
            Engine::Candle => (rows / self.run.execution.loss_chunk as f64).ceil(),
            Engine::MlxLm => 1.0,
        };
        let bytes = 2.0 * chunks * h * v * self.read() + rows * v * F32 * SOFTMAX_PASSES;
        self.term("head and loss", 4.0 * rows * h * v, bytes, chunks * LOSS_CHUNK)
    }

    /// The optimizer's update, once a step, however many micro-batches it has.
    fn optimizer(&self) -> Term {
        let launches = self.back_blocks * self.adapters * UPDATE;
        let bytes = self.trained * F32 * update_passes(self.run.recipe.optimizer);
        Term { name: "optimizer".into(), flops: 0.0, bytes, launches }
    }
}

/// Cost of one optimizer step. Without `lengths` every example is taken to be as long as it may be.
pub fn step_cost(
    spec: &ModelSpec,
    machine: &Machine,
    run: &RunConfig,
    lengths: Option<&TokenLengths>,
) -> Result<StepCost> {
    let s = Shapes::new(spec, machine, run, lengths)?;
    let mut terms = vec![
        s.matrices("forward", s.blocks, s.projections * LINEAR),
        s.matrices_again(),
        s.matrices("backward", s.back_blocks, s.projections * LINEAR_BACKWARD),
        s.adapters(),
        s.dora(),
    ];
    terms.extend(s.attention());
    terms.extend([s.elementwise(), s.head()]);
    if s.metal {
        // The arithmetic stays; traffic and launches are those of the kernels.
        terms.iter_mut().for_each(|t| (t.bytes, t.launches) = (0.0, 0.0));
        terms.extend(s.on_metal());
    } else {
        terms.push(s.optimizer());
    }
    terms.retain(|t| t.flops + t.bytes + t.launches > 0.0);
    let n = s.work.micro_batches;
    Ok(StepCost { terms, tokens: s.work.tokens * n, rows: s.work.rows * n })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::machine::Accelerator;
    use crate::spec::model::catalogue;

    fn run(extra: &str) -> RunConfig {
        RunConfig::from_toml(&format!("model = \"m\"\ndata = \"d\"\n{extra}"), "run.toml".as_ref()).unwrap()
    }

    fn mac() -> Machine {
        Machine::named("M2 Pro", None, None).unwrap()
    }

    #[test]
    fn threads_wait_for_the_longest_chunk() {
        let spec = &catalogue::find("Qwen2.5-0.5B-Instruct").unwrap().spec;
        let cpu = Machine { accelerator: Accelerator::Cpu, cores: 4, ..mac() };
        let of = |machine: &Machine, batch: usize| {
            let text =
                format!("[recipe]\nmax_seq_length = 512\neffective_batch_size = 8\n[execution]\nbatch_size = {batch}");
            let cost = step_cost(spec, machine, &run(&text), None).unwrap();
            cost.terms.iter().find(|t| t.name == "attention").unwrap().flops
        };
        // One example: chunks of 256 x 256 and 256 x 512, the larger of which takes as long as 8/3 of all the work would
        // on four threads; backward has two key heads for four threads. Forward twice 4 and backward 10 of 18.
        let (even, one) = (of(&mac(), 1), of(&cpu, 1));
        assert!((one / even - (8.0 * 8.0 / 3.0 + 10.0 * 2.0) / 18.0).abs() < 1e-9, "{}", one / even);
        assert_eq!(of(&cpu, 8), of(&mac(), 8));
    }

    #[test]
    fn frozen_matrices_cost_six_flops_a_parameter_and_token() {
        let spec = &catalogue::find("Qwen2.5-0.5B-Instruct").unwrap().spec;
        let cost =
            step_cost(spec, &mac(), &run("[recipe]\nmax_seq_length = 512\neffective_batch_size = 4"), None).unwrap();
        let of = |name: &str| cost.terms.iter().find(|t| t.name == name).unwrap().flops;
        // 24 blocks of 2 x 896^2 + 2 x 896 x 128 + 3 x 896 x 4864 weights; 4 examples of 512 tokens.
        let matrices = 24.0 * (2.0 * 896.0 * 896.0 + 2.0 * 896.0 * 128.0 + 3.0 * 896.0 * 4864.0);
        // Backward makes all but the down projection again.
        let down = 24.0 * 896.0 * 4864.0;
        assert_eq!(of("forward") + of("forward again") + of("backward"), (6.0 * matrices - 2.0 * down) * 2048.0);
        assert_eq!(of("head and loss"), 4.0 * 896.0 * 151_936.0 * 2048.0);
        // Chunks of 256 in 512: 512 x (512 + 256) / 2 pairs; (4 + 4 + 10) x 896 each, 24 layers, 4 examples.
        assert_eq!(of("attention"), 512.0 * 384.0 * 18.0 * 896.0 * 24.0 * 4.0);
        assert_eq!((cost.tokens, cost.rows), (2048.0, 2048.0));
    }

    #[test]
    fn a_mixture_is_as_slow_as_the_experts_that_a_token_meets() {
        let spec = &catalogue::find("Qwen3-30B-A3B").unwrap().spec;
        let run = run("engine = \"mlx-lm\"\n[recipe]\nmax_seq_length = 512\neffective_batch_size = 1");
        let cost = step_cost(spec, &mac(), &run, None).unwrap();
        let forward = cost.terms.iter().find(|t| t.name == "forward").unwrap();
        // Attention, the router and 8 of 128 experts; read from memory are all of them.
        let met = 2048.0 * (4096.0 + 2.0 * 512.0) + 4096.0 * 2048.0 + 128.0 * 2048.0 + 8.0 * 3.0 * 2048.0 * 768.0;
        assert_eq!(forward.flops, 2.0 * 48.0 * met * 512.0);
        assert!(forward.bytes > 2.0 * 48.0 * 128.0 * 3.0 * 2048.0 * 768.0);
    }

    #[test]
    fn levers_move_the_terms_they_should() {
        let spec = &catalogue::find("Qwen2.5-0.5B-Instruct").unwrap().spec;
        let cost = |extra: &str| step_cost(spec, &mac(), &run(extra), None).unwrap();
        let base = cost("");
        assert!(cost("[execution]\ngrad_checkpoint = false").flops() < base.flops());
        assert!(cost("[execution]\nbatch_size = 4").bytes() < base.bytes());
        assert!(cost("[execution]\nweights = \"f32\"").bytes() < base.bytes());
        assert!(cost("[recipe.lora]\nnum_layers = 4").flops() < 0.6 * base.flops());
        assert!(cost("[recipe.lora]\nrank = 64").flops() > base.flops());
        let dora = |more: &str| cost(&format!("[recipe.lora]\nuse_dora = true\n{more}")).flops();
        assert!(dora("dropout = 0.1") > dora("") && dora("") > base.flops());
    }
}
