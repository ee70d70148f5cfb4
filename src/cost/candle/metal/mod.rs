//! The step of our own engine on Metal, played through with sizes in place of tensors.
//!
//! Each function mirrors the function of the same name in `trainer/candle` and `ops/metal`, buffer by buffer, because
//! candle's pool hands out what was given back: `tests/replay.rs` holds the two together, the order of sizes included.

mod attention;
mod linear;
mod mlp;
mod step;

use self::linear::panels;
use self::step::Step;
use crate::cost::candle::step_ledger::*;
use crate::cost::candle::tape::{AttentionTape, Tape};
use crate::cost::ledger::MemoryLedger;
use crate::cost::pool::pages;
use crate::cost::timeline::{Live, Timeline};
use crate::error::Result;
use crate::memory::trace::Source;
use crate::spec::model::tensors::Projection;
use crate::spec::model::{ModelSpec, Positions};
use crate::spec::run::engine::NORM_PARTS;
use crate::spec::run::{OPTIMIZER_BLOCK, Optimizer, RunConfig};

/// Size of an index, bytes.
const INDEX: u64 = 4;

/// Size of the parts that the sum of a tensor's squares is left in, bytes.
const PARTS: u64 = NORM_PARTS as u64 * F32;

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
    /// What Metal's pages add to the buffers that stay, of which there are many small ones; and what stays on a GPU alone.
    fn resident_rounding(&mut self) {
        if self.run.execution.grad_checkpoint {
            let blocks = (self.spec.num_hidden_layers - self.first) as u64;
            let bytes = blocks * self.micro.rows() * self.h();
            self.t.resident(INPUTS, bytes);
        }
        let beside = |bytes: u64| pages(bytes) - bytes;
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
                    Optimizer::Adamw8bit => 2 * (beside(n) + beside(n.div_ceil(OPTIMIZER_BLOCK as u64) * F32)),
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
        let bytes = (adapted.len() * per) as u64 * PARTS;
        let parts = self.t.alloc(OWN, bytes);
        self.read(parts, bytes);
        for p in &adapted {
            let (rank, from, to) = (self.rank(), p.in_features as u64, p.out_features as u64);
            if self.run.recipe.optimizer == Optimizer::Adafactor {
                for (n, matrix) in [(rank * from, true), (to * rank, true), (to, false)].into_iter().take(per) {
                    let mean = matrix.then(|| self.t.alloc(OWN, F32));
                    let update = self.t.alloc(OWN, n * F32);
                    let (parts, clip) = (self.t.alloc(OWN, PARTS), self.t.alloc(OWN, F32));
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
