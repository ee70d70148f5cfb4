//! The ledger of a step while it is made: what is asked, what stays, and the names under which memory is listed.

pub(super) use crate::cost::ledger::F32;
use crate::cost::params::Parameters;
use crate::cost::timeline::Timeline;
use crate::error::Result;
use crate::spec::machine::processor::Processor;
use crate::spec::machine::{Accelerator, Machine};
use crate::spec::model::storage::Format;
use crate::spec::model::tensors::{Projection, Role};
use crate::spec::model::{ModelSpec, Positions};
use crate::spec::run::RunConfig;

pub(super) const INPUTS: &str = "block inputs";

pub(super) const STATE: &str = "hidden state";

pub(super) const ATTENTION: &str = "attention";

pub(super) const SCORES: &str = "attention scores";

pub(super) const MLP: &str = "MLP";

pub(super) const LOGITS: &str = "logits";

pub(super) const PANEL: &str = "weights in f32";

pub(super) const LORA: &str = "adapter activations";

pub(super) const GRADIENTS: &str = "adapter gradients";

pub(super) const PRODUCT: &str = "matrix product's own";

/// Name of the buffers that the matrix product keeps for each thread.
pub const SLABS: &str = "matrix product's buffers";

/// Sizes of a micro-batch and the device that computes it.
#[derive(Clone, Debug)]
pub struct Micro {
    /// Rows of each example: its tokens less one.
    pub examples: Vec<usize>,
    /// Number of target tokens, whose rows enter the loss.
    pub targets: usize,
    /// Device that does the arithmetic.
    pub accelerator: Accelerator,
    /// Number of threads that compute, on a CPU.
    pub threads: usize,
    /// Caches and instruction set that matrix products use, on a CPU.
    pub processor: Processor,
}

impl Micro {
    /// A micro-batch of `batch_size` examples of like length, of whose tokens the share `learned` are targets.
    pub(crate) fn full(batch_size: usize, tokens_per_row: usize, learned: f64, machine: &Machine) -> Self {
        let rows = tokens_per_row.saturating_sub(1).max(1);
        let Machine { accelerator, cores: threads, processor, .. } = *machine;
        let targets = (learned * (rows * batch_size) as f64).ceil() as usize;
        Self { examples: vec![rows; batch_size], targets, accelerator, threads, processor }
    }

    /// The `gemm` crate keeps a buffer of the size of a core's L2 cache for every thread; the trainer makes all of them
    /// before its first step (`ops::device::prepare_products`).
    fn slabs(&self) -> u64 {
        (self.threads * self.processor.caches[1].bytes) as u64
    }

    pub(super) fn rows(&self) -> u64 {
        self.examples.iter().sum::<usize>() as u64
    }
}

/// An optimizer step played through with sizes in place of tensors.
pub(super) struct StepLedger<'a> {
    pub(super) spec: &'a ModelSpec,
    pub(super) run: &'a RunConfig,
    pub(super) micro: &'a Micro,
    /// Whether the pass is one of training, and dropout applies.
    pub(super) training: bool,
    pub(super) linears: Vec<(Projection, bool)>,
    pub(super) first: usize,
    pub(super) t: Timeline,
}

impl<'a> StepLedger<'a> {
    /// A ledger that holds what stays for the whole run, before the step begins.
    pub(super) fn new(spec: &'a ModelSpec, run: &'a RunConfig, micro: &'a Micro, t: Timeline) -> Result<Self> {
        let targets = spec.targets(&run.recipe.lora.target_modules)?;
        let first = run.recipe.lora.first_layer(spec.num_hidden_layers);
        let linears = spec.projections().into_iter().map(|p| (p.clone(), targets.contains(&p))).collect();
        let mut engine = Self { spec, run, micro, training: true, linears, first, t };
        engine.resident();
        Ok(engine)
    }
}

impl StepLedger<'_> {
    pub(super) fn h(&self) -> u64 {
        self.spec.hidden_size as u64 * F32
    }

    pub(super) fn f(&self) -> u64 {
        self.spec.intermediate_size as u64 * F32
    }

    pub(super) fn q(&self) -> u64 {
        self.spec.q_size() as u64 * F32
    }

    pub(super) fn kv(&self) -> u64 {
        self.spec.kv_size() as u64 * F32
    }

    pub(super) fn rank(&self) -> u64 {
        self.run.recipe.lora.rank as u64
    }

    pub(super) fn adapter_params(&self) -> u64 {
        let one: u64 = self.linears.iter().filter(|(_, a)| *a).map(|(p, _)| p.lora_params(&self.run.recipe.lora)).sum();
        one * (self.spec.num_hidden_layers - self.first) as u64
    }

    pub(super) fn find(&self, role: Role) -> Option<(Projection, bool)> {
        self.linears.iter().find(|(p, _)| p.role == role).cloned()
    }

    /// Format, rows and columns of the head's matrix.
    pub(super) fn head(&self) -> (Format, u64, u64) {
        let (spec, hidden) = (self.spec, self.spec.hidden_size);
        let name = spec.head_name();
        (spec.format(self.run.execution.weights, name, hidden), spec.vocab_size as u64, hidden as u64)
    }

    pub(super) fn resident(&mut self) {
        let (spec, counted) = (self.spec, Parameters::of(self.spec));
        // Norms and biases are held in f32.
        let vectors = counted.blocks * counted.block_vectors + counted.final_norm;
        let base = spec.matrices_bytes(self.run.execution.weights) + vectors * F32;
        self.t.resident("base weights", base);
        let adapters = self.adapter_params() * F32;
        self.t.resident("adapters", adapters);
        self.t.resident(GRADIENTS, adapters);
        let recipe = &self.run.recipe;
        let adapted = self.linears.iter().filter(|(_, a)| *a);
        let state: u64 = adapted.map(|(p, _)| p.optimizer_bytes(&recipe.lora, recipe.optimizer)).sum();
        self.t.resident("optimizer state", state * (spec.num_hidden_layers - self.first) as u64);
        if self.run.recipe.lora.use_dora {
            self.t.resident("DoRA norms", self.dora_norms());
        }
        if self.micro.accelerator == Accelerator::Cpu {
            self.t.resident(SLABS, self.micro.slabs());
        }
        if let Positions::Rope { global, local } = &self.spec.positions {
            let table = |dims: usize| (self.run.recipe.max_seq_length * dims) as u64 * F32; // cos and sin, dims / 2 each
            let bytes = table(global.dims) + local.as_ref().map_or(0, |l| table(l.dims));
            self.t.resident("rope tables", bytes);
        }
    }
}
