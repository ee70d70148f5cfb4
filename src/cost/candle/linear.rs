//! A projection: a frozen matrix and its adapter (`trainer/candle/frozen.rs`, `linear.rs`).

use crate::cost::candle::product::Product;
use crate::cost::candle::step_ledger::{ATTENTION, F32, LORA, MLP, PANEL, PRODUCT, StepLedger};
use crate::cost::timeline::Live;
use crate::spec::model::storage::Format;
use crate::spec::model::tensors::{Projection, Role};
use crate::spec::run::engine;

impl StepLedger<'_> {
    /// Counts what a matrix product packs for itself while it runs.
    pub(super) fn product(&mut self, product: &Product) {
        self.t.brief(PRODUCT, product.packed(&self.micro.processor));
    }

    /// A product with a frozen `[out, in]` matrix, transposed or not, a panel at a time where it is not f32.
    pub(super) fn frozen(&mut self, rows: u64, (format, rows_stored, width): (Format, u64, u64), transposed: bool) {
        let panel = self.panel_of(format, rows_stored, width);
        let stored = if panel.is_some() { rows_stored.min(panel_rows(width)) } else { rows_stored };
        let product = if transposed {
            Product::with_transposed(rows, width, stored)
        } else {
            Product::plain(rows, stored, width)
        };
        self.product(&product);
        panel.into_iter().for_each(|l| self.t.free(l));
    }

    /// Format, rows and columns of a projection's matrix as it is stored.
    pub(super) fn stored(&self, p: &Projection) -> (Format, u64, u64) {
        let (rows, width) =
            if self.spec.conv1d() { (p.in_features, p.out_features) } else { (p.out_features, p.in_features) };
        let format = self.spec.usual_format(self.run.execution.weights).for_columns(width);
        (format, rows as u64, width as u64)
    }

    /// The f32 panel of a weight that is stored in another format.
    pub(super) fn panel_of(&mut self, format: Format, rows: u64, width: u64) -> Option<Live> {
        (format != Format::F32).then(|| self.t.alloc(PANEL, rows.min(panel_rows(width)) * width * F32))
    }

    /// Forward through a frozen matrix: `x W'` of `rows` rows, into memory of its own.
    pub(super) fn output(&mut self, p: &Projection, rows: u64, name: &'static str) -> Live {
        let y = self.t.alloc(name, rows * p.out_features as u64 * F32);
        let stored = self.stored(p);
        self.frozen(rows, stored, !self.spec.conv1d());
        y
    }

    /// Backward through a frozen matrix: `g W` of `rows` rows, into memory of its own.
    pub(super) fn through(&mut self, p: &Projection, rows: u64, name: &'static str) -> Live {
        let dx = self.t.alloc(name, rows * p.in_features as u64 * F32);
        let stored = self.stored(p);
        self.frozen(rows, stored, self.spec.conv1d());
        dx
    }

    pub(super) fn linear(&mut self, role: Role, rows: u64, name: &'static str) -> Live {
        let Some((p, adapted)) = self.find(role) else { return self.t.alloc(name, 0) };
        if adapted && self.run.recipe.lora.use_dora {
            return self.linear_dora(&p, rows, name);
        }
        let (from, to, rank) = (p.in_features as u64, p.out_features as u64, self.rank());
        let y = self.output(&p, rows, name);
        if adapted {
            let input = self.dropped(rows, &p);
            let hidden = self.t.alloc(LORA, rows * rank * F32);
            self.product(&Product::with_transposed(rows, from, rank));
            self.product(&Product::with_transposed(rows, rank, to));
            input.into_iter().chain([hidden]).for_each(|l| self.t.free(l));
        }
        y
    }

    /// The adapter's input after dropout; without dropout it is the input itself.
    pub(super) fn dropped(&mut self, rows: u64, p: &Projection) -> Option<Live> {
        let wide = rows * p.in_features as u64 * F32;
        (self.training && self.run.recipe.lora.dropout > 0.0).then(|| self.t.alloc(LORA, wide))
    }

    pub(super) fn linear_back(&mut self, role: Role, rows: u64, need_dx: bool) -> Option<Live> {
        let (p, adapted) = self.find(role)?;
        if adapted && self.run.recipe.lora.use_dora {
            return self.linear_dora_back(&p, rows, need_dx);
        }
        let (from, to, rank) = (p.in_features as u64, p.out_features as u64, self.rank());
        let dx = need_dx.then(|| self.through(&p, rows, name_of(role)));
        if adapted {
            let input = self.dropped(rows, &p);
            let drops = input.is_some();
            let d_hidden = self.t.alloc(LORA, rows * rank * F32);
            self.product(&Product::plain(rows, to, rank));
            let hidden = self.t.alloc(LORA, rows * rank * F32);
            self.product(&Product::with_transposed(rows, from, rank));
            self.product(&Product::of_transposed(to, rows, rank));
            self.t.free(hidden);
            self.product(&Product::of_transposed(rank, rows, from));
            input.into_iter().for_each(|l| self.t.free(l));
            if need_dx {
                // With dropout, what comes through the adapter is made apart.
                let apart = drops.then(|| self.t.alloc(LORA, rows * from * F32));
                self.product(&Product::plain(rows, rank, from));
                apart.into_iter().for_each(|l| self.t.free(l));
            }
            self.t.free(d_hidden);
        }
        dx
    }
}

/// Rows of an f32 panel of a weight that is not f32.
fn panel_rows(width: u64) -> u64 {
    engine::panel_rows(width as usize) as u64
}

pub(super) fn name_of(role: Role) -> &'static str {
    match role {
        Role::Gate | Role::Up | Role::GateUp | Role::Down => MLP,
        _ => ATTENTION,
    }
}
