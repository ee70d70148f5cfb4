//! Memory of our own engine: its step, played through with sizes in place of tensors.
//!
//! Each function here mirrors the function of the same name in `trainer/candle`, allocation by
//! allocation; `tests/ledger.rs` holds the two together with the counting allocator. What is left
//! out: tensors of a few numbers.

mod attention;
mod dora;
mod linear;
mod metal;
mod mlp;
mod product;
mod step_ledger;
mod tape;

use self::step_ledger::*;
pub use self::step_ledger::{Micro, SLABS};
use self::tape::Tape;
use crate::cost::ledger::MemoryLedger;
use crate::cost::timeline::{Live, Timeline};
use crate::error::Result;
use crate::spec::machine::Accelerator;
use crate::spec::model::storage::Format;
use crate::spec::model::tensors::Projection;
use crate::spec::model::{ModelSpec, Positions};
use crate::spec::run::{Optimizer, RunConfig};

/// The ledger of an optimizer step over micro-batches of one size, and of an evaluation on the validation rows, if
/// there are any.
pub fn ledger(spec: &ModelSpec, run: &RunConfig, micro: &Micro, validation: Option<&Micro>) -> Result<MemoryLedger> {
    if micro.accelerator == Accelerator::Metal {
        return metal::ledger(spec, run, micro, validation);
    }
    let mut engine = StepLedger::new(spec, run, micro, Timeline::default())?;
    engine.step();
    if let Some(micro) = validation {
        engine = StepLedger { micro, training: false, ..engine };
        engine.validate();
    }
    Ok(engine.t.ledger())
}

impl StepLedger<'_> {
    // --- the step (Session::step, Decoder::loss_and_grads) ---

    fn step(&mut self) {
        let (n, layers) = (self.micro.rows(), self.spec.num_hidden_layers);
        self.t.phase("forward");
        let indices = self.indices();
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
        for (i, kept) in (self.first..layers).zip(saved).rev() {
            let tape = match kept {
                Ok(tape) => tape,
                Err(x) => self.recompute(x),
            };
            g = self.backward(tape, g, i > self.first);
        }
        [g, indices].into_iter().for_each(|l| self.t.free(l));
        self.optimizer();
    }

    // --- a look at the validation rows (Decoder::loss) ---

    fn validate(&mut self) {
        self.t.phase("validation");
        let indices = self.indices();
        let mut x = self.embed(self.micro.rows());
        for _ in 0..self.spec.num_hidden_layers {
            let y = self.forward();
            self.t.free(std::mem::replace(&mut x, y));
        }
        let c = self.loss_rows();
        let (rows, logits) = self.logits_of(c);
        [x, rows, logits, indices].into_iter().for_each(|l| self.t.free(l));
    }

    /// A micro-batch's tokens, positions and targets, as the processor and as the device has them.
    fn indices(&mut self) -> Live {
        let numbers = 2 * (self.micro.rows() + self.micro.targets as u64);
        self.t.alloc("indices", 2 * numbers * size_of::<u32>() as u64)
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

    /// Temporaries of one adapter matrix (`optim::grad_norm`, `Optimizer::update`), in its sizes: its squares for the norm;
    /// Adafactor's four; with eight bits the clipped gradient, the new matrix and the codes.
    fn optimizer(&mut self) {
        self.t.phase("optimizer");
        let widest = |p: &Projection| p.in_features.max(p.out_features) as u64;
        let largest = self.linears.iter().filter(|(_, a)| *a).map(|(p, _)| widest(p)).max().unwrap_or(0);
        let temporaries = match self.run.recipe.optimizer {
            Optimizer::Adamw => 2,
            Optimizer::Adafactor => 8,
            Optimizer::Adamw8bit => 5,
        };
        self.t.brief("optimizer's own", temporaries * largest * self.rank() * F32 / 2);
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

    fn backward(&mut self, tape: Tape, g: Live, need_dx: bool) -> Live {
        let Tape { x, attention, mid, mlp } = tape;
        let g = self.mlp_backward(mlp, g);
        self.t.free(mid);
        let dx = self.attention_backward(attention, need_dx);
        [x, g].into_iter().for_each(|l| self.t.free(l));
        match dx {
            Some(dx) => dx,
            None => self.t.alloc(STATE, 0),
        }
    }

    // --- the head ---

    /// Most rows of the loss that are worked on at a time.
    fn loss_rows(&self) -> u64 {
        self.micro.targets.min(self.run.execution.loss_chunk) as u64
    }

    /// Picks `c` rows of the hidden state for the loss, and computes their logits.
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
