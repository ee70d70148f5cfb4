//! Launches and traffic of a micro-batch and an update on Metal, kernel by kernel, beside candle's matrix products; the
//! counts are those of a recording (`tests/replay.rs` holds them to it).

use crate::cost::time::shapes::{F32, Shapes};
use crate::cost::time::step::Term;
use crate::spec::model::Positions;
use crate::spec::model::storage::Format;
use crate::spec::model::tensors::{Projection, Role};
use crate::spec::run::{Optimizer, engine};

/// Kernels launched, and bytes that they move.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    launches: f64,
    bytes: f64,
}

impl Count {
    /// So many launches that move so many f32 numbers in all.
    fn add(&mut self, launches: f64, numbers: f64) {
        self.launches += launches;
        self.bytes += F32 * numbers;
    }
}

/// A stored matrix: rows, columns, and its bytes where it must be decoded.
struct Stored {
    rows: f64,
    width: f64,
    decoded: Option<f64>,
}

impl Stored {
    fn panels(&self) -> f64 {
        (self.rows / engine::metal_panel_rows(self.width as usize) as f64).ceil()
    }

    /// A product with its rows as columns, of `uses` parts with `n` rows in all.
    fn by_panels(&self, c: &mut Count, uses: f64, n: f64) {
        self.used(c, uses);
        if self.decoded.is_some() && self.panels() > 1.0 {
            c.add(uses * self.panels(), 2.0 * n * self.rows);
        }
    }

    /// A product that sums over its rows.
    fn summed(&self, c: &mut Count, uses: f64, n: f64) {
        self.used(c, uses);
        let more = self.panels() - 1.0;
        if self.decoded.is_some() && more > 0.0 {
            c.add(uses * (self.panels() + more), 2.0 * n * self.rows + 3.0 * more * n * self.width);
        }
    }

    /// Its products, and what is decoded for them.
    fn used(&self, c: &mut Count, uses: f64) {
        match self.decoded {
            None => c.launches += uses,
            Some(bytes) => {
                c.launches += 2.0 * uses * self.panels();
                c.bytes += uses * (bytes + F32 * self.rows * self.width);
            }
        }
    }
}

impl Shapes<'_> {
    fn stored(&self, format: Format, rows: usize, width: usize) -> Stored {
        let decoded = (format != Format::F32).then(|| format.matrix_bytes(rows, width) as f64);
        Stored { rows: rows as f64, width: width as f64, decoded }
    }

    fn projection(&self, p: &Projection) -> Stored {
        let turned = self.spec.conv1d();
        let (rows, width) = if turned { (p.in_features, p.out_features) } else { (p.out_features, p.in_features) };
        self.stored(self.spec.usual_format(self.run.execution.weights).for_columns(width), rows, width)
    }

    /// `uses` parts of a projection's input with `n` rows in all, forward.
    fn projected(&self, c: &mut Count, p: &Projection, adapted: bool, (uses, n): (f64, f64)) {
        let (from, to) = (p.in_features as f64, p.out_features as f64);
        let stored = self.projection(p);
        if self.spec.conv1d() {
            stored.summed(c, uses, n)
        } else {
            stored.by_panels(c, uses, n)
        }
        if p.bias {
            c.add(uses, 3.0 * n * to);
        }
        if adapted {
            c.add(2.0 * uses, 2.0 * n * to + n * self.rank());
            if self.run.recipe.lora.dropout > 0.0 {
                c.add(uses, 2.0 * n * from);
            }
        }
    }

    /// The same backward.
    fn projected_back(&self, c: &mut Count, p: &Projection, adapted: bool, (uses, n): (f64, f64)) {
        let (from, to) = (p.in_features as f64, p.out_features as f64);
        let stored = self.projection(p);
        if self.spec.conv1d() {
            stored.by_panels(c, uses, n)
        } else {
            stored.summed(c, uses, n)
        }
        if adapted {
            c.add(6.0 * uses, 3.0 * uses * self.rank() * (from + to));
            if self.run.recipe.lora.dropout > 0.0 {
                c.add(4.0 * uses, 7.0 * n * from);
            } else {
                c.add(uses, 2.0 * n * from + n * self.rank());
            }
        }
    }

    /// Norms, rotations and sums of a block's attention half, forward.
    fn attention_rest(&self, c: &mut Count, n: f64) {
        let (h, q, kv) = (self.spec.hidden_size as f64, self.spec.q_size() as f64, self.spec.kv_size() as f64);
        c.add(2.0, 5.0 * n * h);
        if self.spec.post_norms {
            c.add(1.0, 2.0 * n * h);
        }
        if self.spec.attention.qk_norm {
            c.add(2.0, 2.0 * n * (q + kv));
        }
        if self.spec.positions != Positions::Learned {
            c.add(2.0, 2.0 * n * (q + kv));
        }
    }

    /// The kernels of one micro-batch, and of an update.
    pub(super) fn on_metal(&self) -> [Term; 2] {
        let (n, spec, execution) = (self.work.rows, self.spec, &self.run.execution);
        let (h, f) = (spec.hidden_size as f64, spec.intermediate_size as f64);
        let (q, kv) = (spec.q_size() as f64, spec.kv_size() as f64);
        let adapted = |p: &Projection| self.targets.contains(p);
        let all = spec.projections();
        let in_mlp = |p: &&Projection| matches!(p.role, Role::Gate | Role::Up | Role::GateUp | Role::Down);
        let mlp_uses = (n / execution.mlp_chunk as f64).ceil();
        let uses = |p: &Projection| if in_mlp(&p) { (mlp_uses, n) } else { (1.0, n) };
        let gated = if spec.mlp.gated { 3.0 } else { 2.0 };
        let (mut once, mut again, mut back) = (Count::default(), Count::default(), Count::default());
        // Forward, and what backward makes again: all but the down projection and the sum behind it.
        for (c, whole) in [(&mut once, true), (&mut again, false)] {
            for p in &all {
                if whole || p.role != Role::Down {
                    self.projected(c, p, adapted(p), uses(p));
                }
            }
            self.attention_rest(c, n);
            c.add(2.0 * mlp_uses, n * (2.0 * h + gated * f));
            if spec.mlp.fused && spec.mlp.gated {
                c.add(2.0 * mlp_uses, 4.0 * n * f);
            }
            if whole {
                c.add(mlp_uses, 3.0 * n * h);
                if spec.post_norms {
                    c.add(mlp_uses, 2.0 * n * h);
                }
            }
        }
        for p in &all {
            self.projected_back(&mut back, p, adapted(p), uses(p));
        }
        if spec.post_norms {
            // Both outputs are made again for the norms behind them.
            for p in all.iter().filter(|p| matches!(p.role, Role::Down | Role::O)) {
                self.projected(&mut back, p, adapted(p), uses(p));
            }
            back.add(1.0 + mlp_uses, 6.0 * n * h);
        }
        // The norms' gradients and sums, the activation's, and sums of what comes through q, k and v or gate and up.
        back.add(2.0 * mlp_uses + 2.0, 12.0 * n * h);
        back.add(mlp_uses, (if spec.mlp.gated { 5.0 } else { 3.0 }) * n * f);
        if !execution.grad_checkpoint {
            // The MLP's normed input and its activation are not kept all the same.
            back.add(2.0 * mlp_uses, n * (2.0 * h + gated * f));
        }
        if spec.mlp.gated {
            match spec.mlp.fused {
                true => back.add(2.0 * mlp_uses, 4.0 * n * f),
                false => back.add(mlp_uses, 3.0 * n * h),
            }
        }
        match all.iter().any(|p| p.role == Role::Qkv) {
            true => back.add(3.0, 2.0 * n * (q + 2.0 * kv)),
            false => back.add(2.0, 6.0 * n * h),
        }
        if spec.attention.qk_norm {
            back.add(2.0, 3.0 * n * (q + kv));
        }
        if spec.positions != Positions::Learned {
            back.add(2.0, 2.0 * n * (q + kv));
        }
        let mut total = Count::default();
        for (c, times) in [(once, self.blocks), (again, self.again), (back, self.back_blocks)] {
            total.launches += times * c.launches;
            total.bytes += times * c.bytes;
        }
        self.attention_on_metal(&mut total);
        self.head_on_metal(&mut total);
        [self.term("kernels and traffic", 0.0, total.bytes, total.launches), self.update_on_metal()]
    }

    fn attention_on_metal(&self, total: &mut Count) {
        let (spec, chunk, n) = (self.spec, self.run.execution.attention_chunk, self.work.rows);
        let first = self.run.recipe.lora.first_layer(spec.num_hidden_layers);
        let (all, learned) = self.work.pairs_by_layer(spec, chunk, first);
        let again = if self.run.execution.grad_checkpoint { learned } else { 0.0 };
        let heads = spec.attention.num_attention_heads as f64;
        let (q, kv) = (spec.q_size() as f64, spec.kv_size() as f64);
        let examples: f64 = self.work.sequences.iter().map(|&(_, count)| count).sum();
        let chunks: f64 = self.work.sequences.iter().map(|&(n, count)| count * n.div_ceil(chunk) as f64).sum();
        let capped = if spec.attention.softcap.is_some() { 1.0 } else { 0.0 };
        let (forward, back) = (self.blocks + self.again, self.back_blocks);
        total.add(forward * (2.0 * examples + 5.0 * chunks), forward * 4.0 * n * (q + kv));
        total.add(0.0, heads * (2.0 + capped) * (all + again + learned));
        total.add(back * (6.0 * examples + 12.0 * chunks), back * n * (6.0 * q + 10.0 * kv));
        total.add(0.0, heads * (3.0 + capped) * learned);
        // What each chunk adds to the gradients of the keys that it sees.
        let keys = spec.kv_size() as f64 / chunk as f64;
        total.add(0.0, 6.0 * keys * learned);
    }

    fn head_on_metal(&self, total: &mut Count) {
        let (spec, n) = (self.spec, self.work.rows);
        let (h, vocab) = (spec.hidden_size as f64, spec.vocab_size as f64);
        let format = spec.format(self.run.execution.weights, spec.head_name(), spec.hidden_size);
        let head = self.stored(format, spec.vocab_size, spec.hidden_size);
        let parts = (n / self.run.execution.loss_chunk as f64).ceil();
        // The embedding, the gradient's zeros, rows taken and put back, norms, and the cross-entropy.
        total.add(2.0 + 5.0 * parts, n * (h + h + 2.0 * h + 2.0 * h + 3.0 * h + 2.0 * h + 3.0 * vocab));
        head.by_panels(total, parts, n);
        head.summed(total, parts, n);
    }

    /// Setting the gradients to zero, their norm, and the update, once a step.
    fn update_on_metal(&self) -> Term {
        let tensors = self.back_blocks * self.adapters * if self.run.recipe.lora.use_dora { 3.0 } else { 2.0 };
        let (launches, numbers) = match self.run.recipe.optimizer {
            Optimizer::Adamw => (1.0, 7.0),
            Optimizer::Adamw8bit => (1.0, 4.0),
            Optimizer::Adafactor => (7.0, 9.0),
        };
        Term {
            name: "optimizer".into(),
            flops: 0.0,
            bytes: F32 * self.trained * (2.0 + numbers),
            launches: tensors * (2.0 + launches),
        }
    }
}
