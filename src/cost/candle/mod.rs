//! Memory of our own engine: its step, played through with sizes in place of tensors.
//!
//! Each function here mirrors the function of the same name in `trainer/candle`, allocation by
//! allocation; `tests/ledger.rs` holds the two together with the counting allocator. What is left
//! out: tensors of a few numbers.

mod attention;
mod dora;
mod linear;
mod mlp;
mod product;

use self::attention::AttentionTape;
use crate::cost::ledger::MemoryLedger;
use crate::cost::params::Parameters;
use crate::cost::timeline::{Live, Timeline};
use crate::error::Result;
use crate::spec::machine::{Accelerator, Machine};
use crate::spec::model::storage::Format;
use crate::spec::model::tensors::{Projection, Role};
use crate::spec::model::{ModelSpec, Positions};
use crate::spec::run::{Optimizer, RunConfig};
use crate::units::Bytes;

/// Bytes of an f32.
const F32: u64 = 4;

const INPUTS: &str = "block inputs";
const STATE: &str = "hidden state";
const ATTENTION: &str = "attention";
const SCORES: &str = "attention scores";
const MLP: &str = "MLP";
const LOGITS: &str = "logits";
const PANEL: &str = "weights in f32";
const LORA: &str = "adapter activations";
const GRADIENTS: &str = "adapter gradients";
const PRODUCT: &str = "matrix product's own";

/// Name of what the matrix product keeps for each thread.
pub const SLABS: &str = "matrix product's buffers";
/// The `gemm` crate keeps a buffer of the size of a core's L2 cache for every thread that ever multiplied: 1 MiB on
/// the processors of today's servers, between 0.5 and 2 elsewhere.
const SLAB: u64 = 1 << 20;

/// Score-sized temporaries of candle's ops on Metal beside those of the CPU kernels: scaled, masked, shifted and
/// exponentiated scores live at one time. Read off `attention::Shape::probabilities_composed`; unproven on a Mac.
const COMPOSED_SCORES: u64 = 3;

/// A micro-batch by its sizes.
#[derive(Clone, Debug)]
pub struct Micro {
    /// Rows of each example: its tokens less one.
    pub examples: Vec<usize>,
    /// Rows that are learned from.
    pub targets: usize,
    /// What does the arithmetic: on Metal the fused CPU kernels give way to candle's ops, with their temporaries.
    pub accelerator: Accelerator,
    /// Threads that compute, on a CPU.
    pub threads: usize,
}

impl Micro {
    /// `batch_size` examples of like length, of whose tokens this share is learned from.
    pub fn full(batch_size: usize, tokens_per_row: usize, learned: f64, machine: &Machine) -> Self {
        let rows = tokens_per_row.saturating_sub(1).max(1);
        let (accelerator, threads) = (machine.accelerator, machine.cores);
        let targets = (learned * (rows * batch_size) as f64).ceil() as usize;
        Self { examples: vec![rows; batch_size], targets, accelerator, threads }
    }

    fn rows(&self) -> u64 {
        self.examples.iter().sum::<usize>() as u64
    }
}

/// The ledger of an optimizer step over micro-batches of one size, and of a look at the validation rows, if there are
/// any.
pub fn ledger(spec: &ModelSpec, run: &RunConfig, micro: &Micro, validation: Option<&Micro>) -> Result<MemoryLedger> {
    let mut engine = Engine::new(spec, run, micro, Timeline::default())?;
    engine.step();
    if let Some(micro) = validation {
        engine = Engine { micro, training: false, ..engine };
        engine.validate();
    }
    Ok(engine.t.ledger())
}

/// What candle's Metal allocator would hold for the same step, beside what is resident. Unproven on a Mac.
pub fn pool(spec: &ModelSpec, run: &RunConfig, micro: &Micro) -> Result<Bytes> {
    let mut engine = Engine::new(spec, run, micro, Timeline::pooled())?;
    engine.step();
    Ok(engine.t.pool())
}

struct Engine<'a> {
    spec: &'a ModelSpec,
    run: &'a RunConfig,
    micro: &'a Micro,
    /// Dropout is for training alone.
    training: bool,
    linears: Vec<(Projection, bool)>,
    first: usize,
    t: Timeline,
}

/// What forward leaves for backward.
struct Tape {
    x: Live,
    attention: AttentionTape,
    mid: Live,
    mlp: Option<[Option<Live>; 2]>,
}

impl<'a> Engine<'a> {
    /// With what stays for the whole run.
    fn new(spec: &'a ModelSpec, run: &'a RunConfig, micro: &'a Micro, t: Timeline) -> Result<Self> {
        let targets = spec.targets(&run.recipe.lora.target_modules)?;
        let first = run.recipe.lora.first_layer(spec.num_hidden_layers);
        let linears = spec.projections().into_iter().map(|p| (p.clone(), targets.contains(&p))).collect();
        let mut engine = Self { spec, run, micro, training: true, linears, first, t };
        engine.resident();
        Ok(engine)
    }
}

impl Engine<'_> {
    fn h(&self) -> u64 {
        self.spec.hidden_size as u64 * F32
    }

    fn f(&self) -> u64 {
        self.spec.intermediate_size as u64 * F32
    }

    fn q(&self) -> u64 {
        self.spec.q_size() as u64 * F32
    }

    fn kv(&self) -> u64 {
        self.spec.kv_size() as u64 * F32
    }

    fn rank(&self) -> u64 {
        self.run.recipe.lora.rank as u64
    }

    fn adapter_params(&self) -> u64 {
        let one: u64 = self.linears.iter().filter(|(_, a)| *a).map(|(p, _)| p.lora_params(&self.run.recipe.lora)).sum();
        one * (self.spec.num_hidden_layers - self.first) as u64
    }

    fn find(&self, role: Role) -> Option<(Projection, bool)> {
        self.linears.iter().find(|(p, _)| p.role == role).cloned()
    }

    // --- what stays ---

    fn resident(&mut self) {
        let (spec, counted) = (self.spec, Parameters::of(self.spec));
        // Norms and biases are held in f32.
        let vectors = counted.blocks * counted.block_vectors + counted.final_norm;
        let base = spec.matrices_bytes(self.run.execution.weights) + vectors * F32;
        self.t.resident("base weights", base);
        let adapters = self.adapter_params() * F32;
        self.t.resident("adapters", adapters);
        let recipe = &self.run.recipe;
        let adapted = self.linears.iter().filter(|(_, a)| *a);
        let state: u64 = adapted.map(|(p, _)| p.optimizer_bytes(&recipe.lora, recipe.optimizer)).sum();
        self.t.resident("optimizer state", state * (spec.num_hidden_layers - self.first) as u64);
        if self.run.recipe.lora.use_dora {
            self.t.resident("DoRA norms", self.dora_norms());
        }
        if self.micro.accelerator == Accelerator::Cpu {
            self.t.resident(SLABS, self.micro.threads as u64 * SLAB);
        }
        if let Positions::Rope { global, local } = &self.spec.positions {
            let table = |dims: usize| (self.run.recipe.max_seq_length * dims) as u64 * F32; // cos and sin, dims / 2 each
            let bytes = table(global.dims) + local.as_ref().map_or(0, |l| table(l.dims));
            self.t.resident("rope tables", bytes);
        }
    }

    // --- the step (Session::step, Decoder::loss_and_grads) ---

    fn step(&mut self) {
        let (n, layers) = (self.micro.rows(), self.spec.num_hidden_layers);
        self.t.phase("forward");
        // After the first micro-batch the gradients of every adapter are there.
        let gathered = self.run.accumulation() > 1;
        let early = gathered.then(|| self.t.alloc(GRADIENTS, self.adapter_params() * F32));
        let mut x = self.embed(n);
        let mut saved = Vec::new();
        for layer in 0..layers {
            if layer >= self.first && !self.run.execution.grad_checkpoint {
                let (y, tape) = self.forward_keep(x);
                saved.push(Ok(tape));
                x = y;
                continue;
            }
            let y = self.forward();
            if layer < self.first {
                self.t.free(x);
            } else {
                saved.push(Err(self.t.rename(x, INPUTS)));
            }
            x = y;
        }
        self.t.phase("loss");
        let mut g = self.head_backward(x);
        self.t.phase("backward");
        let mut gradients = Vec::from_iter(early);
        for (i, kept) in (self.first..layers).zip(saved).rev() {
            let tape = match kept {
                Ok(tape) => tape,
                Err(x) => self.recompute(x),
            };
            g = self.backward(tape, g, i > self.first, if gathered { None } else { Some(&mut gradients) });
        }
        self.t.free(g);
        self.optimizer();
        gradients.into_iter().for_each(|g| self.t.free(g));
    }

    // --- a look at the validation rows (Decoder::loss) ---

    fn validate(&mut self) {
        self.t.phase("validation");
        let mut x = self.embed(self.micro.rows());
        for _ in 0..self.spec.num_hidden_layers {
            let y = self.forward();
            self.t.free(std::mem::replace(&mut x, y));
        }
        let c = self.loss_rows();
        let (rows, logits) = self.logits_of(c);
        [x, rows, logits].into_iter().for_each(|l| self.t.free(l));
    }

    fn embed(&mut self, n: u64) -> Live {
        // The looked-up rows in their own format, then in f32, then scaled or moved.
        let (spec, hidden) = (self.spec, self.spec.hidden_size);
        let format = spec.format(self.run.execution.weights, spec.embedding_name(), hidden);
        let raw = (format != Format::F32).then(|| self.t.alloc(STATE, format.matrix_bytes(n as usize, hidden)));
        let x = self.t.alloc(STATE, n * self.h());
        raw.into_iter().for_each(|raw| self.t.free(raw));
        if self.spec.embedding_scale != 1.0 || self.spec.positions == Positions::Learned {
            self.t.brief(STATE, n * self.h());
        }
        x
    }

    /// Temporaries of one adapter matrix (`Optimizer::update`): AdamW's are up to five of its size, Adafactor's four;
    /// with eight bits the new matrix and codes.
    fn optimizer(&mut self) {
        self.t.phase("optimizer");
        let widest = |p: &Projection| p.in_features.max(p.out_features) as u64;
        let largest = self.linears.iter().filter(|(_, a)| *a).map(|(p, _)| widest(p)).max().unwrap_or(0);
        let temporaries = match self.run.recipe.optimizer {
            Optimizer::Adamw => 5,
            Optimizer::Adafactor => 4,
            Optimizer::Adamw8bit => 2,
        };
        self.t.brief("optimizer's own", temporaries * largest * self.rank() * F32);
        if self.run.recipe.lora.use_dora {
            // The norms are taken anew.
            for p in self.linears.iter().filter(|(_, a)| *a).map(|(p, _)| p.clone()).collect::<Vec<_>>() {
                let stored = self.stored(&p);
                self.frozen(self.rank(), stored, !self.spec.conv1d());
            }
        }
    }

    // --- the block ---

    fn forward(&mut self) -> Live {
        let (tape, mid) = self.attend(self.micro.rows());
        self.free_tape(tape);
        self.mlp_forward(mid)
    }

    fn forward_keep(&mut self, x: Live) -> (Live, Tape) {
        let rows = self.micro.rows();
        let x = self.t.rename(x, INPUTS);
        let (attention, mid) = self.attend(rows);
        let n = self.t.alloc(MLP, rows * self.h());
        let (gate, up, hidden) = self.mlp_hidden(rows);
        self.t.free(n);
        let y = self.mlp_out(rows);
        let y = self.t.rename(y, STATE);
        self.t.free(hidden);
        (y, Tape { x, attention, mid, mlp: Some([Some(gate), up]) })
    }

    fn recompute(&mut self, x: Live) -> Tape {
        let (attention, mid) = self.attend(self.micro.rows());
        Tape { x, attention, mid, mlp: None }
    }

    fn backward(&mut self, tape: Tape, g: Live, need_dx: bool, mut grads: Option<&mut Vec<Live>>) -> Live {
        let Tape { x, attention, mid, mlp } = tape;
        let g = self.mlp_backward(mlp, g, &mut grads);
        self.t.free(mid);
        let dx = self.attention_backward(attention, need_dx, grads);
        [x, g].into_iter().for_each(|l| self.t.free(l));
        match dx {
            Some(dx) => dx,
            None => self.t.alloc(STATE, 0),
        }
    }

    // --- the head ---

    /// Rows of the loss that are worked on at a time, at most.
    fn loss_rows(&self) -> u64 {
        self.micro.targets.min(self.run.execution.loss_chunk) as u64
    }

    /// Format, rows and columns of the head's matrix.
    fn head(&self) -> (Format, u64, u64) {
        let (spec, hidden) = (self.spec, self.spec.hidden_size);
        let name = if spec.tie_word_embeddings { spec.embedding_name() } else { "lm_head.weight" };
        (spec.format(self.run.execution.weights, name, hidden), spec.vocab_size as u64, hidden as u64)
    }

    /// The chosen rows, and their logits.
    fn logits_of(&mut self, c: u64) -> (Live, Live) {
        let rows = self.t.alloc(STATE, c * self.h());
        let normed = self.t.alloc(STATE, c * self.h());
        let logits = self.t.alloc(LOGITS, c * self.spec.vocab_size as u64 * F32);
        self.frozen(c, self.head(), true);
        self.t.free(normed);
        (rows, logits)
    }

    fn head_backward(&mut self, x: Live) -> Live {
        let g = self.t.alloc(STATE, self.micro.rows() * self.h());
        let c = self.loss_rows();
        let (rows, logits) = self.logits_of(c);
        let d_normed = self.t.alloc(STATE, c * self.h());
        self.frozen(c, self.head(), false);
        self.t.free(logits);
        self.t.brief(STATE, c * self.h());
        [rows, d_normed, x].into_iter().for_each(|l| self.t.free(l));
        g
    }
}
