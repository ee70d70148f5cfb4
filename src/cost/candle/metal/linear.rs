//! A projection: a frozen matrix and its adapter.

use crate::cost::candle::linear::name_of;
use crate::cost::candle::metal::step::Step;
use crate::cost::candle::step_ledger::{F32, LORA, PANEL};
use crate::cost::timeline::Live;
use crate::spec::model::storage::Format;
use crate::spec::model::tensors::{Projection, Role};
use crate::spec::run::engine::{LOW_RANK, metal_panel_rows};

/// Rows of the panels of a stored matrix.
pub(super) fn panels(rows: u64, width: u64) -> Vec<u64> {
    let most = metal_panel_rows(width as usize) as u64;
    (0..rows.div_ceil(most)).map(|i| most.min(rows - i * most)).collect()
}

impl Step<'_> {
    /// Rows of a projection's matrix in f32, where it is not.
    pub(super) fn panel(&mut self, p: &Projection, rows: u64, width: u64) -> Option<Live> {
        (self.stored(p).0 != Format::F32).then(|| self.t.alloc(PANEL, rows * width * F32))
    }

    /// `a b` added to `[rows, width]` with `inner` columns in `a`, where many columns need a product beside.
    pub(super) fn low_rank(&mut self, rows: u64, width: u64, inner: u64) {
        if inner > LOW_RANK as u64 {
            self.t.brief(LORA, rows * width * F32);
        }
    }

    /// A product with the rows of a stored matrix as columns (`product_by_panels`).
    pub(super) fn by_panels(
        &mut self,
        rows: u64,
        (format, stored, width): (Format, u64, u64),
        name: &'static str,
    ) -> Live {
        if format == Format::F32 {
            return self.t.alloc(name, rows * stored * F32);
        }
        let all = panels(stored, width);
        if all.len() == 1 {
            let panel = self.t.alloc(PANEL, stored * width * F32);
            let y = self.t.alloc(name, rows * stored * F32);
            self.t.free(panel);
            return y;
        }
        let y = self.t.alloc(name, rows * stored * F32);
        for columns in all {
            let panel = self.t.alloc(PANEL, columns * width * F32);
            self.t.brief(PANEL, rows * columns * F32);
            self.t.free(panel);
        }
        y
    }

    /// A product that sums over the rows of a stored matrix (`sum_over_panels`).
    pub(super) fn summed(
        &mut self,
        rows: u64,
        (format, stored, width): (Format, u64, u64),
        name: &'static str,
    ) -> Live {
        let bytes = rows * width * F32;
        if format == Format::F32 {
            return self.t.alloc(name, bytes);
        }
        let (all, mut sum) = (panels(stored, width), None);
        for &inner in &all {
            let panel = self.t.alloc(PANEL, inner * width * F32);
            let part = (all.len() > 1).then(|| self.t.alloc(PANEL, rows * inner * F32));
            match sum {
                None => sum = Some(self.t.alloc(name, bytes)),
                Some(_) => self.low_rank(rows, width, inner),
            }
            self.free(part.into_iter().chain([panel]));
        }
        sum.unwrap_or_else(|| self.t.alloc(name, 0))
    }

    /// `x W'` of a projection (`Frozen::product`).
    pub(super) fn product_of(&mut self, p: &Projection, rows: u64, name: &'static str) -> Live {
        let stored = self.stored(p);
        if self.spec.conv1d() { self.summed(rows, stored, name) } else { self.by_panels(rows, stored, name) }
    }

    /// `g W` of a projection (`Frozen::backward`).
    fn gradient_through(&mut self, p: &Projection, rows: u64, name: &'static str) -> Live {
        let stored = self.stored(p);
        if self.spec.conv1d() { self.by_panels(rows, stored, name) } else { self.summed(rows, stored, name) }
    }

    pub(super) fn linear(&mut self, role: Role, rows: u64, name: &'static str) -> Live {
        let Some((p, adapted)) = self.find(role) else { return self.t.alloc(name, 0) };
        // Blocks before the first adapted one have none.
        let adapted = adapted && self.layer >= self.first;
        let (to, rank) = (p.out_features as u64, self.rank());
        if adapted && self.run.recipe.lora.use_dora {
            return self.linear_dora(&p, rows, name);
        }
        let y = self.product_of(&p, rows, name);
        if adapted {
            let input = self.dropped(rows, &p);
            let hidden = self.t.alloc(LORA, rows * rank * F32);
            self.free(input);
            self.low_rank(rows, to, rank);
            self.free([hidden]);
        }
        y
    }

    fn linear_dora(&mut self, p: &Projection, rows: u64, name: &'static str) -> Live {
        let (from, to, rank) = (p.in_features as u64, p.out_features as u64, self.rank());
        let input = self.dropped(rows, p);
        let drops = input.is_some();
        let hidden = self.t.alloc(LORA, rows * rank * F32);
        let y = self.product_of(p, rows, name);
        self.low_rank(rows, to, rank);
        self.free(input.into_iter().chain([hidden]));
        self.t.brief(LORA, to * F32);
        if drops {
            let rest = self.t.alloc(LORA, rows * from * F32);
            let part = self.product_of(p, rows, LORA);
            self.free([part, rest]);
        }
        y
    }

    pub(super) fn linear_back(&mut self, role: Role, rows: u64, need_dx: bool) -> Option<Live> {
        let (p, adapted) = self.find(role)?;
        let (from, to, rank) = (p.in_features as u64, p.out_features as u64, self.rank());
        if adapted && self.run.recipe.lora.use_dora {
            return self.linear_dora_back(&p, rows, need_dx);
        }
        let dx = need_dx.then(|| self.gradient_through(&p, rows, name_of(role)));
        if adapted {
            let input = self.dropped(rows, &p);
            let drops = input.is_some();
            let d_hidden = self.t.alloc(LORA, rows * rank * F32);
            let hidden = self.t.alloc(LORA, rows * rank * F32);
            self.t.brief(LORA, to * rank * F32);
            self.free([hidden]);
            self.t.brief(LORA, rank * from * F32);
            self.free(input);
            match (need_dx, drops) {
                (true, true) => self.t.brief(LORA, rows * from * F32),
                (true, false) => self.low_rank(rows, from, rank),
                _ => {}
            }
            self.free([d_hidden]);
        }
        dx
    }

    fn linear_dora_back(&mut self, p: &Projection, rows: u64, need_dx: bool) -> Option<Live> {
        let (from, to, rank) = (p.in_features as u64, p.out_features as u64, self.rank());
        let through = self.t.alloc(LORA, rows * to * F32);
        self.t.brief(LORA, to * F32);
        let dx = need_dx.then(|| self.gradient_through(p, rows, name_of(p.role)));
        let input = self.dropped(rows, p);
        let drops = input.is_some();
        let hidden = self.t.alloc(LORA, rows * rank * F32);
        let d_hidden = self.t.alloc(LORA, rows * rank * F32);
        let undirected = self.product_of(p, rows, LORA);
        self.low_rank(rows, to, rank);
        let along = self.t.alloc(LORA, to * F32);
        self.free([undirected]);
        self.t.brief(LORA, to * F32);
        self.t.brief(LORA, rank * from * F32);
        self.t.brief(LORA, to * rank * F32);
        self.free([along, hidden, through]);
        self.free(input);
        if need_dx {
            self.low_rank(rows, from, rank);
            if drops {
                let rest = self.gradient_through(p, rows, LORA);
                // The sum is in the place of the rest.
                self.free(dx);
                self.free([d_hidden]);
                return Some(self.t.rename(rest, name_of(p.role)));
            }
        }
        self.free([d_hidden]);
        dx
    }
}
