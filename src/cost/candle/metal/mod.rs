//! The step of our own engine on Metal, played through with sizes in place of tensors.
//!
//! Each function mirrors the function of the same name in `trainer/candle` and `ops/metal`, buffer by buffer, because
//! candle's pool hands out what was given back: `tests/replay.rs` holds the two together, the order of sizes included.

mod attention;
mod linear;
mod mlp;

use std::ops::{Deref, DerefMut};

use self::attention::AttentionTape;
use self::linear::panels;
use crate::cost::candle::step_ledger::*;
use crate::cost::ledger::MemoryLedger;
use crate::cost::timeline::{Live, Timeline};
use crate::error::Result;
use crate::memory::trace::Source;
use crate::spec::model::storage::Format;
use crate::spec::model::tensors::Projection;
use crate::spec::model::{ModelSpec, Positions};
use crate::spec::run::{Optimizer, RunConfig};

/// Metal hands memory out in pages of this size.
const PAGE: u64 = 16 << 10;

/// Size of an index, bytes.
const INDEX: u64 = 4;

/// Parts that the sum of a tensor's squares is left in.
const PARTS: u64 = 256;

/// A [`StepLedger`] whose step is Metal's, at one of its blocks.
struct Step<'a> {
    ledger: StepLedger<'a>,
    layer: usize,
}

impl<'a> Deref for Step<'a> {
    type Target = StepLedger<'a>;

    fn deref(&self) -> &Self::Target {
        &self.ledger
    }
}

impl DerefMut for Step<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.ledger
    }
}

/// What a block's forward pass keeps for its backward pass.
struct Tape {
    x: Live,
    attention: AttentionTape,
    mid: Live,
    mlp: Option<[Option<Live>; 2]>,
}

/// The ledger of optimizer steps over micro-batches of one size, and of an evaluation, if there is one.
pub(super) fn ledger(
    spec: &ModelSpec,
    run: &RunConfig,
    micro: &Micro,
    validation: Option<&Micro>,
) -> Result<MemoryLedger> {
    let mut step = Step { ledger: StepLedger::new(spec, run, micro, Timeline::pooled())?, layer: 0 };
    step.resident_rounding();
    step.load();
    // What loading has left in the pool is there in the first step alone.
    for _ in 0..if run.recipe.lora.use_dora { 2 } else { 1 } {
        // The second micro-batch finds what the first has left.
        for _ in 0..run.accumulation().min(2) {
            step.micro_batch();
        }
        step.optimizer();
    }
    if let Some(micro) = validation {
        step.ledger = StepLedger { micro, training: false, ..step.ledger };
        step.validate();
    }
    Ok(step.ledger.t.ledger())
}

impl Step<'_> {
    fn free(&mut self, lives: impl IntoIterator<Item = Live>) {
        lives.into_iter().for_each(|l| self.t.free(l));
    }

    /// What Metal's pages add to the buffers that stay, of which there are many small ones; and what stays on a GPU alone.
    fn resident_rounding(&mut self) {
        if self.run.execution.grad_checkpoint {
            let blocks = (self.spec.num_hidden_layers - self.first) as u64;
            let bytes = blocks * self.micro.rows() * self.h();
            self.t.resident(INPUTS, bytes);
        }
        let beside = |bytes: u64| bytes.next_multiple_of(PAGE) - bytes;
        let (recipe, layers) = (&self.run.recipe, (self.spec.num_hidden_layers - self.first) as u64);
        let mut rounding = 0;
        for (p, _) in self.linears.iter().filter(|(_, adapted)| *adapted) {
            let (rank, from, to) = (self.rank(), p.in_features as u64, p.out_features as u64);
            let mut sizes = vec![rank * from, to * rank];
            sizes.extend(recipe.lora.use_dora.then_some(to));
            for n in sizes {
                // The weights and their gradients.
                rounding += 2 * beside(n * F32);
                rounding += match recipe.optimizer {
                    Optimizer::Adamw => 2 * beside(n * F32),
                    Optimizer::Adamw8bit => 2 * (beside(n) + beside(n.div_ceil(256) * F32)),
                    Optimizer::Adafactor => beside(from * F32) + beside(rank * F32),
                };
            }
        }
        rounding *= layers;
        for t in self.spec.tensors() {
            rounding += match *t.shape.as_slice() {
                [n] => beside(n as u64 * F32),
                [rows, columns] => {
                    beside(self.spec.format(self.run.execution.weights, &t.name, columns).matrix_bytes(rows, columns))
                }
                _ => 0,
            };
        }
        self.t.resident("Metal's pages", rounding);
    }

    // --- what is computed while adapters are put on (Linear::set_adapter) ---

    fn load(&mut self) {
        if !self.run.recipe.lora.use_dora {
            return;
        }
        self.t.phase("load");
        for p in self.adapted() {
            let (_, stored, width) = self.stored(&p);
            for rows in panels(stored, width) {
                let panel = self.panel(&p, rows, width);
                if self.spec.conv1d() {
                    self.t.brief(PANEL, width * F32);
                }
                self.free(panel);
            }
            self.norms(&p);
        }
    }

    /// The adapted projections of all blocks.
    fn adapted(&self) -> Vec<Projection> {
        let one: Vec<Projection> = self.linears.iter().filter(|(_, a)| *a).map(|(p, _)| p.clone()).collect();
        let layers = self.spec.num_hidden_layers - self.first;
        one.iter().cycle().take(one.len() * layers).cloned().collect()
    }

    /// The lengths that DoRA takes after each change (`Norms::new`).
    fn norms(&mut self, p: &Projection) {
        let (rank, to) = (self.rank(), p.out_features as u64);
        let made = self.product_of(p, rank, PANEL);
        let turned = self.t.alloc(PANEL, to * rank * F32);
        self.free([made]);
        let gram = self.t.alloc(PANEL, rank * rank * F32);
        self.low_rank(to, rank, rank);
        self.free([gram, turned]);
    }

    // --- a micro-batch (Decoder::loss_and_grads) ---

    fn indices(&mut self) -> Live {
        let (rows, targets) = (self.micro.rows(), self.micro.targets as u64);
        self.t.alloc_from("indices", 2 * (rows + targets) * INDEX, Source::Upload)
    }

    fn micro_batch(&mut self) {
        let (rows, layers) = (self.micro.rows(), self.spec.num_hidden_layers);
        self.t.phase("forward");
        let indices = self.indices();
        let mut x = self.embed();
        let mut saved = Vec::new();
        for layer in 0..layers {
            self.layer = layer;
            if layer < self.first {
                let y = self.forward(true);
                self.free([std::mem::replace(&mut x, y)]);
            } else if self.run.execution.grad_checkpoint {
                let y = self.forward(false);
                saved.push(Err(self.t.rename(std::mem::replace(&mut x, y), INPUTS)));
            } else {
                let (y, attention, mid, mlp) = self.forward_keep();
                let x = self.t.rename(std::mem::replace(&mut x, y), INPUTS);
                saved.push(Ok(Tape { x, attention, mid, mlp: Some(mlp) }));
            }
        }
        self.t.phase("loss");
        let mut g = self.head_backward(x);
        self.t.phase("backward");
        for (i, kept) in (self.first..layers).zip(saved).rev() {
            self.layer = i;
            let tape = match kept {
                Ok(tape) => tape,
                Err(x) => {
                    let (attention, mid) = self.attend(rows);
                    Tape { x, attention, mid, mlp: None }
                }
            };
            g = self.backward(tape, g, i > self.first);
        }
        self.free([g, indices]);
    }

    fn embed(&mut self) -> Live {
        let wide = self.micro.rows() * self.h();
        let x = self.t.alloc(STATE, wide);
        if self.spec.positions == Positions::Learned {
            self.t.brief(STATE, wide);
        }
        x
    }

    /// A block's output: of the pool, or in memory that stays.
    fn forward(&mut self, pooled: bool) -> Live {
        let rows = self.micro.rows();
        let (tape, mid) = self.attend(rows);
        self.free_tape(tape);
        self.mlp_forward(mid, pooled)
    }

    fn forward_keep(&mut self) -> (Live, AttentionTape, Live, [Option<Live>; 2]) {
        let rows = self.micro.rows();
        let (attention, mid) = self.attend(rows);
        let wide = rows * self.h();
        let n = self.t.alloc(MLP, wide);
        let (gate, up, hidden) = self.mlp_hidden(rows);
        self.free([n]);
        let y = self.mlp_out(rows);
        self.free([hidden]);
        let y = self.t.rename(y, STATE);
        (y, attention, mid, [Some(gate), up])
    }

    fn backward(&mut self, tape: Tape, g: Live, need_dx: bool) -> Live {
        let Tape { x, attention, mid, mlp } = tape;
        let g = self.mlp_backward(mlp, g);
        self.free([mid]);
        let dx = self.attention_backward(attention, need_dx);
        self.free([x, g]);
        match dx {
            Some(dx) => dx,
            None => self.t.alloc(STATE, 0),
        }
    }

    // --- the head ---

    /// Rows of each part of the loss.
    fn loss_parts(&self) -> Vec<u64> {
        let (all, most) = (self.micro.targets as u64, self.run.execution.loss_chunk as u64);
        (0..all.div_ceil(most)).map(|i| most.min(all - i * most)).collect()
    }

    fn head(&self) -> (Format, u64, u64) {
        let (spec, hidden) = (self.spec, self.spec.hidden_size);
        let name = if spec.tie_word_embeddings { spec.embedding_name() } else { "lm_head.weight" };
        (spec.format(self.run.execution.weights, name, hidden), spec.vocab_size as u64, hidden as u64)
    }

    fn logits_of(&mut self, c: u64) -> (Live, Live) {
        let wide = c * self.h();
        let rows = self.t.alloc(STATE, wide);
        let normed = self.t.alloc(STATE, wide);
        let logits = self.by_panels(c, self.head(), LOGITS);
        self.free([normed]);
        (rows, logits)
    }

    /// Room for the losses of all targets.
    fn losses(&mut self) -> Live {
        let bytes = self.micro.targets as u64 * F32;
        self.t.alloc(LOGITS, bytes)
    }

    /// Numbers that the processor reads: it waits for them.
    fn read(&mut self, from: Live, bytes: u64) {
        let to = self.t.alloc_from(LOGITS, bytes, Source::Shared);
        self.t.wait();
        self.free([to, from]);
    }

    fn head_backward(&mut self, x: Live) -> Live {
        let (losses, wide) = (self.losses(), self.h());
        let rows = self.micro.rows();
        let g = self.t.alloc(STATE, rows * wide);
        for c in self.loss_parts() {
            let (rows, logits) = self.logits_of(c);
            let d_normed = self.summed(c, self.head(), STATE);
            self.free([logits]);
            let dx = self.t.alloc(STATE, c * wide);
            self.free([rows, d_normed, dx]);
        }
        let bytes = self.micro.targets as u64 * F32;
        self.read(losses, bytes);
        self.free([x]);
        g
    }

    // --- an evaluation (Decoder::loss) ---

    fn validate(&mut self) {
        self.t.phase("validation");
        let indices = self.indices();
        let mut x = self.embed();
        for layer in 0..self.spec.num_hidden_layers {
            self.layer = layer;
            let y = self.forward(true);
            self.free([std::mem::replace(&mut x, y)]);
        }
        let losses = self.losses();
        for c in self.loss_parts() {
            let (rows, logits) = self.logits_of(c);
            self.free([rows, logits]);
        }
        let bytes = self.micro.targets as u64 * F32;
        self.read(losses, bytes);
        self.free([x, indices]);
    }

    // --- the optimizer (optim::grad_norm, Optimizer::step) ---

    fn optimizer(&mut self) {
        const OWN: &str = "optimizer's own";
        self.t.phase("optimizer");
        let (adapted, use_dora) = (self.adapted(), self.run.recipe.lora.use_dora);
        let per = if use_dora { 3 } else { 2 };
        let bytes = (adapted.len() * per) as u64 * PARTS * F32;
        let parts = self.t.alloc(OWN, bytes);
        self.read(parts, bytes);
        for p in &adapted {
            let (rank, from, to) = (self.rank(), p.in_features as u64, p.out_features as u64);
            if self.run.recipe.optimizer == Optimizer::Adafactor {
                for (n, matrix) in [(rank * from, true), (to * rank, true), (to, false)].into_iter().take(per) {
                    let mean = matrix.then(|| self.t.alloc(OWN, F32));
                    let update = self.t.alloc(OWN, n * F32);
                    let (parts, clip) = (self.t.alloc(OWN, PARTS * F32), self.t.alloc(OWN, F32));
                    self.free(mean.into_iter().chain([update, parts, clip]));
                }
            }
            if use_dora {
                self.norms(p);
            }
        }
        self.t.wait();
    }
}
