//! What one optimizer step makes a machine do: arithmetic, memory traffic and kernel launches, term by term.
//!
//! A frozen matrix of P parameters costs 2P FLOPs a token forward, 2P to carry the gradient through it, and 2P
//! more where checkpointing runs the block again; it gets no gradient of its own. Bytes are those that must move
//! between memory and the processor; what stays in a cache is not known here and falls to calibration.
//! Left out: the data loader, and what the engines do once in a while (checkpoints, validation).

use serde::{Deserialize, Serialize};

use crate::cost::params::{Parameters, adapted, bits, trainable};
use crate::cost::work::Work;
use crate::error::Result;
use crate::spec::machine::{Accelerator, Machine};
use crate::spec::model::ModelSpec;
use crate::spec::model::tensors::{Projection, Role};
use crate::spec::run::data::TokenLengths;
use crate::spec::run::{Engine, Optimizer, RunConfig};

/// One thing that is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Term {
    /// What.
    pub name: String,
    /// Floating-point operations; a multiply-add counts as two. Those that a waiting thread could have done count too.
    pub flops: f64,
    /// Bytes read and written.
    pub bytes: f64,
    /// Kernels started.
    pub launches: f64,
}

/// One optimizer step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepCost {
    /// What is done.
    pub terms: Vec<Term>,
    /// Tokens of the examples.
    pub tokens: f64,
    /// Rows worked on, padding included.
    pub rows: f64,
}

/// Bytes of an f32.
const F32: f64 = 4.0;

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
/// Launches of one chunk of the loss.
const LOSS_CHUNK: f64 = 20.0;

impl StepCost {
    /// Sum of the FLOPs.
    pub fn flops(&self) -> f64 {
        self.terms.iter().map(|t| t.flops).sum()
    }

    /// Sum of the bytes.
    pub fn bytes(&self) -> f64 {
        self.terms.iter().map(|t| t.bytes).sum()
    }

    /// Sum of the launches.
    pub fn launches(&self) -> f64 {
        self.terms.iter().map(|t| t.launches).sum()
    }
}

/// Shapes that every term needs.
struct Shapes<'a> {
    spec: &'a ModelSpec,
    run: &'a RunConfig,
    work: Work,
    /// Matrix parameters of one block, and those of them that a token meets: fewer in a mixture of experts.
    block: f64,
    met: f64,
    /// Blocks, and those that backward passes through.
    blocks: f64,
    back_blocks: f64,
    /// Blocks that backward makes again, and the projection that it needs not make: what comes out of a block is known.
    again: f64,
    not_again: Option<Projection>,
    /// The same, where it has an adapter.
    not_adapted_again: Option<Projection>,
    /// Width of what goes in and comes out of the adapted projections of a block.
    adapter_in: f64,
    adapter_out: f64,
    adapters: f64,
    /// Matrix parameters of the adapted projections of a block.
    adapted: f64,
    /// Parameters of all adapters.
    trained: f64,
    projections: f64,
    /// Numbers that elementwise work touches for one token in one block: forward, in what backward makes again in any
    /// case, and in the rest of it, which it makes again with checkpointing.
    elementwise: [f64; 3],
    /// Threads that attention is handed out to.
    threads: usize,
}

impl<'a> Shapes<'a> {
    fn new(spec: &'a ModelSpec, machine: &Machine, run: &'a RunConfig, lengths: Option<&TokenLengths>) -> Result<Self> {
        let lora = &run.recipe.lora;
        let (targets, back) = adapted(spec, lora)?;
        let experts = spec.experts.map_or(1.0, |e| e.num_experts_per_tok as f64);
        let (h, f) = (spec.hidden_size as f64, experts * spec.intermediate_size as f64);
        let (q, kv) = (spec.q_size() as f64, spec.kv_size() as f64);
        let norms = if spec.post_norms { 4.0 } else { 2.0 };
        let gates = if spec.mlp.gated { 3.0 } else { 2.0 };
        let biases: f64 =
            spec.projections().iter().filter(|p| p.bias).map(|p| 2.0 * (p.active * p.out_features) as f64).sum();
        let adapter_out = targets.iter().map(|p| (p.active * p.out_features) as f64).sum::<f64>();
        let unmet = |p: &Projection| ((p.copies - p.active) * p.in_features * p.out_features) as f64;
        let block = Parameters::of(spec).block_matrices as f64;
        // A norm behind it wants its output; mlx-lm makes the whole block again.
        let not_again = spec.projections().into_iter().find(|p| {
            p.role == Role::Down && !spec.post_norms && run.engine == Engine::Candle && run.execution.grad_checkpoint
        });
        let head_norms = if spec.attention.qk_norm { 2.0 * (q + kv) } else { 0.0 };
        // A norm reads and writes, a residual sum reads twice and writes, rope reads and writes q and k, the activation
        // reads gate and up and writes, an adapter's sum reads twice and writes.
        let forward = norms * 2.0 * h + 6.0 * h + 2.0 * (q + kv) + head_norms + gates * f + biases + 3.0 * adapter_out;
        // Our backward keeps neither the normed input of the MLP nor its activation; the last sums it needs not.
        let always = if run.engine == Engine::Candle { 2.0 * h + gates * f } else { 0.0 };
        let last = not_again.as_ref().map_or(0.0, |p| {
            let adapter = if targets.contains(p) { 3.0 * h } else { 0.0 };
            3.0 * h + adapter
        });
        Ok(Self {
            work: Work::of(run, lengths),
            block,
            met: block - spec.projections().iter().map(unmet).sum::<f64>(),
            trained: trainable(spec, lora)? as f64,
            blocks: spec.num_hidden_layers as f64,
            back_blocks: back as f64,
            again: if run.execution.grad_checkpoint { back as f64 } else { 0.0 },
            not_adapted_again: not_again.clone().filter(|p| targets.contains(p)),
            not_again,
            adapter_in: targets.iter().map(|p| (p.active * p.in_features) as f64).sum(),
            adapter_out,
            adapters: targets.len() as f64,
            adapted: targets.iter().map(|p| (p.in_features * p.out_features) as f64).sum(),
            projections: spec.projections().len() as f64,
            elementwise: [forward, always, forward - always - last],
            threads: match (run.engine, machine.accelerator) {
                (Engine::Candle, Accelerator::Cpu) => machine.cores,
                _ => 1,
            },
            spec,
            run,
        })
    }

    fn rank(&self) -> f64 {
        self.run.recipe.lora.rank as f64
    }

    /// `passes` over the frozen matrices of all blocks that `blocks` counts: `2 P` a row, the stored numbers read
    /// once a micro-batch, and where they are not stored in f32 a copy in f32 written and read.
    fn matrices(&self, name: &str, blocks: f64, launches: f64) -> Term {
        let parameters = blocks * self.block;
        self.term(name, 2.0 * blocks * self.met * self.work.rows, parameters * self.read(), blocks * launches)
    }

    /// The matrices that backward makes products with again.
    fn matrices_again(&self) -> Term {
        let p = self.not_again.as_ref();
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

    /// Bytes moved for a frozen number each time it is used.
    fn read(&self) -> f64 {
        let stored = bits(self.spec, self.run.execution.weights) / 8.0;
        let converted = if stored < F32 && self.run.engine == Engine::Candle { 2.0 * F32 } else { 0.0 };
        stored + converted
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

    /// A term of one micro-batch, for the whole step.
    fn term(&self, name: &str, flops: f64, bytes: f64, launches: f64) -> Term {
        let n = self.work.micro_batches;
        Term { name: name.into(), flops: flops * n, bytes: bytes * n, launches: launches * n }
    }

    fn adapters(&self) -> Term {
        let forward = self.adapter_in + self.adapter_out;
        let backward = 3.0 * self.adapter_in + 2.0 * self.adapter_out;
        let (saved, fewer) = match &self.not_adapted_again {
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

    /// Backward touches about twice what forward does.
    fn elementwise(&self) -> Term {
        let [forward, always, rest] = self.elementwise;
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

    /// Once a step, however many micro-batches it has.
    fn optimizer(&self) -> Term {
        let launches = self.back_blocks * self.adapters * UPDATE;
        let bytes = self.trained * F32 * update_passes(self.run.recipe.optimizer);
        Term { name: "optimizer".into(), flops: 0.0, bytes, launches }
    }
}

/// What a step costs. Without `lengths` every example is taken to be as long as it may be.
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
    terms.extend([s.elementwise(), s.head(), s.optimizer()]);
    terms.retain(|t| t.flops + t.bytes + t.launches > 0.0);
    let n = s.work.micro_batches;
    Ok(StepCost { terms, tokens: s.work.tokens * n, rows: s.work.rows * n })
}

#[cfg(test)]
mod tests {
    use super::*;
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
