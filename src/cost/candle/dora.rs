//! A projection with DoRA (`Linear::forward_dora`, `Linear::backward_dora`).

use crate::cost::candle::linear::name_of;
use crate::cost::candle::product::Product;
use crate::cost::candle::step_ledger::{F32, LORA, StepLedger};
use crate::cost::timeline::Live;
use crate::spec::model::tensors::Projection;

impl StepLedger<'_> {
    /// Squared norms of the frozen rows and norms of the adapted ones, of all adapted projections.
    pub(super) fn dora_norms(&self) -> u64 {
        let outputs: usize = self.linears.iter().filter(|(_, a)| *a).map(|(p, _)| p.out_features).sum();
        2 * outputs as u64 * F32 * (self.spec.num_hidden_layers - self.first) as u64
    }

    pub(super) fn linear_dora(&mut self, p: &Projection, rows: u64, name: &'static str) -> Live {
        let (from, to, rank) = (p.in_features as u64, p.out_features as u64, self.rank());
        let input = self.dropped(rows, p);
        let drops = input.is_some();
        let hidden = self.t.alloc(LORA, rows * rank * F32);
        self.product(&Product::with_transposed(rows, from, rank));
        let y = self.output(p, rows, name);
        self.product(&Product::with_transposed(rows, rank, to));
        input.into_iter().chain([hidden]).for_each(|l| self.t.free(l));
        if drops {
            let rest = self.t.alloc(LORA, rows * from * F32);
            let part = self.output(p, rows, LORA);
            [rest, part].into_iter().for_each(|l| self.t.free(l));
        }
        y
    }

    pub(super) fn linear_dora_back(&mut self, p: &Projection, rows: u64, need_dx: bool) -> Option<Live> {
        let (from, to, rank) = (p.in_features as u64, p.out_features as u64, self.rank());
        let scaled = self.t.alloc(LORA, rows * to * F32);
        let dx = need_dx.then(|| self.through(p, rows, name_of(p.role)));
        let input = self.dropped(rows, p);
        let drops = input.is_some();
        let hidden = self.t.alloc(LORA, 2 * rows * rank * F32);
        let undirected = self.output(p, rows, LORA);
        self.product(&Product::with_transposed(rows, rank, to));
        self.t.free(undirected);
        self.product(&Product::of_transposed(rank, rows, from));
        self.product(&Product::of_transposed(to, rows, rank));
        input.into_iter().chain([hidden, scaled]).for_each(|l| self.t.free(l));
        if drops && need_dx {
            // The gradient through the whole input.
            let whole = self.through(p, rows, LORA);
            self.t.free(whole);
        }
        dx
    }
}
