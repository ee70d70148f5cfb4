//! What the terms of a step are made of: parameters, widths and counts of a block, and the work of a step.

use crate::cost::params::{Parameters, adapted, bits, trainable};
use crate::cost::time::step::Term;
use crate::cost::work::Work;
use crate::error::Result;
use crate::spec::machine::{Accelerator, Machine};
use crate::spec::model::ModelSpec;
use crate::spec::model::tensors::{Projection, Role};
use crate::spec::run::{Engine, RunConfig, TokenLengths};

/// Size of an f32 number, bytes.
pub(super) const F32: f64 = 4.0;

/// Numbers that elementwise work touches for one token in one block.
#[derive(Clone, Copy)]
pub(super) struct Elementwise {
    /// Numbers touched in the forward pass.
    pub(super) forward: f64,
    /// Numbers touched in what backward computes again in any case.
    pub(super) always_again: f64,
    /// Numbers touched in the rest, which backward computes again with activation checkpointing.
    pub(super) with_checkpointing: f64,
}

/// Shapes and counts that the terms of a step are computed from.
pub(super) struct Shapes<'a> {
    pub(super) spec: &'a ModelSpec,
    pub(super) run: &'a RunConfig,
    pub(super) work: Work,
    /// Number of matrix parameters of one block.
    pub(super) block: f64,
    /// Matrix parameters of a block that one token is multiplied with: fewer in a mixture of experts.
    pub(super) active: f64,
    /// Number of blocks of the model.
    pub(super) blocks: f64,
    /// Number of blocks that backward passes through.
    pub(super) back_blocks: f64,
    /// Number of blocks that backward computes again (activation checkpointing).
    pub(super) again: f64,
    /// The projection of a block that is not computed again, as the block's output is known.
    pub(super) not_recomputed: Option<Projection>,
    /// The projection that is not computed again, where it has an adapter.
    pub(super) not_recomputed_adapter: Option<Projection>,
    /// Input widths of the adapted projections of a block, summed.
    pub(super) adapter_in: f64,
    /// Output widths of the adapted projections of a block, summed.
    pub(super) adapter_out: f64,
    /// Number of adapted projections of a block.
    pub(super) adapters: f64,
    /// Matrix parameters of the adapted projections of a block.
    pub(super) adapted: f64,
    /// Number of trainable parameters, over all adapters.
    pub(super) trained: f64,
    /// Number of projections of a block.
    pub(super) projections: f64,
    /// Numbers that elementwise work touches for one token in one block.
    pub(super) elementwise: Elementwise,
    /// Projections with adapters.
    pub(super) targets: Vec<Projection>,
    /// Whether our own engine computes on Metal, with kernels of its own.
    pub(super) metal: bool,
    /// Number of threads that attention is handed out to.
    pub(super) threads: usize,
}

impl<'a> Shapes<'a> {
    pub(super) fn new(
        spec: &'a ModelSpec,
        machine: &Machine,
        run: &'a RunConfig,
        lengths: Option<&TokenLengths>,
    ) -> Result<Self> {
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
        let inactive = |p: &Projection| ((p.copies - p.active) * p.in_features * p.out_features) as f64;
        let block = Parameters::of(spec).block_matrices as f64;
        // A norm behind it wants its output; mlx-lm makes the whole block again.
        let not_recomputed = spec.projections().into_iter().find(|p| {
            p.role == Role::Down && !spec.post_norms && run.engine == Engine::Candle && run.execution.grad_checkpoint
        });
        let head_norms = if spec.attention.qk_norm { 2.0 * (q + kv) } else { 0.0 };
        // A norm reads and writes, a residual sum reads twice and writes, rope reads and writes q and k, the activation
        // reads gate and up and writes, an adapter's sum reads twice and writes.
        let forward = norms * 2.0 * h + 6.0 * h + 2.0 * (q + kv) + head_norms + gates * f + biases + 3.0 * adapter_out;
        // Our backward keeps neither the normed input of the MLP nor its activation; the last sums it needs not.
        let always = if run.engine == Engine::Candle { 2.0 * h + gates * f } else { 0.0 };
        let last = not_recomputed.as_ref().map_or(0.0, |p| {
            let adapter = if targets.contains(p) { 3.0 * h } else { 0.0 };
            3.0 * h + adapter
        });
        Ok(Self {
            work: Work::of(run, lengths),
            block,
            active: block - spec.projections().iter().map(inactive).sum::<f64>(),
            trained: trainable(spec, lora)? as f64,
            blocks: spec.num_hidden_layers as f64,
            back_blocks: back as f64,
            again: if run.execution.grad_checkpoint { back as f64 } else { 0.0 },
            not_recomputed_adapter: not_recomputed.clone().filter(|p| targets.contains(p)),
            not_recomputed,
            adapter_in: targets.iter().map(|p| (p.active * p.in_features) as f64).sum(),
            adapter_out,
            adapters: targets.len() as f64,
            adapted: targets.iter().map(|p| (p.in_features * p.out_features) as f64).sum(),
            projections: spec.projections().len() as f64,
            elementwise: Elementwise { forward, always_again: always, with_checkpointing: forward - always - last },
            targets,
            metal: run.engine == Engine::Candle && machine.accelerator == Accelerator::Metal,
            threads: match (run.engine, machine.accelerator) {
                (Engine::Candle, Accelerator::Cpu) => machine.cores,
                _ => 1,
            },
            spec,
            run,
        })
    }

    pub(super) fn rank(&self) -> f64 {
        self.run.recipe.lora.rank as f64
    }

    /// Bytes moved for a frozen number each time it is used.
    pub(super) fn read(&self) -> f64 {
        let stored = bits(self.spec, self.run.execution.weights) / 8.0;
        let converted = if stored < F32 && self.run.engine == Engine::Candle { 2.0 * F32 } else { 0.0 };
        stored + converted
    }

    /// A term of one micro-batch, for the whole step.
    pub(super) fn term(&self, name: &str, flops: f64, bytes: f64, launches: f64) -> Term {
        let n = self.work.micro_batches;
        Term { name: name.into(), flops: flops * n, bytes: bytes * n, launches: launches * n }
    }
}
