//! A projection with DoRA (`Linear::forward_dora`, `Linear::backward_dora`).

use super::{Engine, F32, GRADIENTS, LORA, name_of};
use crate::cost::timeline::Live;
use crate::spec::tensors::Projection;

impl Engine<'_> {
    /// Squared norms of the frozen rows and norms of the adapted ones, of all adapted projections.
    pub(super) fn dora_norms(&self) -> u64 {
        let outputs: usize = self.linears.iter().filter(|(_, a)| *a).map(|(p, _)| p.out_features).sum();
        2 * outputs as u64 * F32 * (self.spec.num_hidden_layers - self.first) as u64
    }

    /// A product with the frozen weight into `bytes` of its own.
    fn frozen_product(&mut self, p: &Projection, name: &'static str, bytes: u64, (rows, depth): (u64, usize)) -> Live {
        let y = self.t.alloc(name, bytes);
        let panel = self.panel(p);
        self.product(rows, depth as u64);
        panel.into_iter().for_each(|l| self.t.free(l));
        y
    }

    pub(super) fn linear_dora(&mut self, p: &Projection, rows: u64, name: &'static str) -> Live {
        let (wide_in, wide_out) = (rows * p.in_features as u64 * F32, rows * p.out_features as u64 * F32);
        let input = self.dropped(rows, p);
        let hidden = self.t.alloc(LORA, rows * self.rank() * F32);
        let y = self.frozen_product(p, name, wide_out, (rows, p.in_features));
        if input.is_some() {
            let rest = self.t.alloc(LORA, wide_in);
            let part = self.frozen_product(p, LORA, wide_out, (rows, p.in_features));
            [rest, part].into_iter().for_each(|l| self.t.free(l));
        }
        input.into_iter().chain([hidden]).for_each(|l| self.t.free(l));
        y
    }

    pub(super) fn linear_dora_back(
        &mut self,
        p: &Projection,
        rows: u64,
        need_dx: bool,
        grads: &mut Option<&mut Vec<Live>>,
    ) -> Option<Live> {
        let (wide_in, wide_out) = (rows * p.in_features as u64 * F32, rows * p.out_features as u64 * F32);
        let through = self.t.alloc(LORA, wide_out);
        let dx = need_dx.then(|| self.frozen_product(p, name_of(p.role), wide_in, (rows, p.out_features)));
        let input = self.dropped(rows, p);
        let drops = input.is_some();
        let hidden = self.t.alloc(LORA, 2 * rows * self.rank() * F32);
        let undirected = self.frozen_product(p, LORA, wide_out, (rows, p.in_features));
        self.t.free(undirected);
        if let Some(grads) = grads.as_deref_mut() {
            grads.push(self.t.alloc(GRADIENTS, p.lora_params(&self.run.recipe.lora) * F32));
        }
        self.product(rows, p.in_features.max(p.out_features) as u64);
        input.into_iter().chain([hidden, through]).for_each(|l| self.t.free(l));
        if drops && need_dx {
            // The mask, the gradient through the whole input, the mask's complement and their product.
            let mask = self.t.alloc(LORA, wide_in);
            let whole = self.frozen_product(p, LORA, wide_in, (rows, p.out_features));
            self.t.brief(LORA, 2 * wide_in);
            [mask, whole].into_iter().for_each(|l| self.t.free(l));
        }
        dx
    }
}
