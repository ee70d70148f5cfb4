//! A projection: a frozen weight, and the adapter on it, forward and backward.
//!
//! The frozen weight gets no gradient; it only carries the gradient through.

use candle_core::{Device, Result, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::checkpoint::adapter::{Adapter, AdapterGrad};
use crate::trainer::candle::nn::frozen::Frozen;
use crate::trainer::candle::nn::norms::Norms;

/// What stays the same for all adapters of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoraSettings {
    /// Factor of the update.
    pub scale: f64,
    /// Probability that an input is dropped.
    pub dropout: f64,
    /// Learn each output's length.
    pub use_dora: bool,
}

/// Which numbers a dropout draws: the same in the forward pass and when it is made again in backward.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DropoutKey {
    /// Of the run.
    pub seed: u64,
    /// Micro-batch, counted over the whole run.
    pub micro_step: u64,
    /// Projection, counted over the whole model.
    pub site: u64,
}

impl DropoutKey {
    /// Factors for `[rows, width]`: 0, or 1 / (1 - p). Row r is drawn from the stream of its own position, so that
    /// working in chunks draws the same numbers.
    fn mask(self, p: f64, first_row: usize, (rows, width): (usize, usize), device: &Device) -> Result<Tensor> {
        let keep = (1.0 / (1.0 - p)) as f32;
        let mut data = Vec::with_capacity(rows * width);
        for row in first_row..first_row + rows {
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ self.micro_step.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            rng.set_stream(self.site << 32 | row as u64);
            data.extend((0..width).map(|_| if rng.random::<f64>() < p { 0.0 } else { keep }));
        }
        Tensor::from_vec(data, (rows, width), device)
    }
}

/// A projection of a block, ready to run.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// The base.
    pub frozen: Frozen,
    /// The adapter, where this projection has one.
    pub adapter: Option<Adapter>,
    /// With DoRA.
    pub norms: Option<Norms>,
    /// Scale and dropout.
    pub lora: LoraSettings,
}

/// Where in the run a projection is being used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Use {
    /// Draws the dropout; `None` outside of training.
    pub dropout: Option<DropoutKey>,
    /// Row of the micro-batch that the input starts at.
    pub first_row: usize,
}

impl Linear {
    /// A projection without an adapter.
    pub(crate) fn new(frozen: Frozen, lora: LoraSettings) -> Self {
        Self { frozen, adapter: None, norms: None, lora }
    }

    /// Puts an adapter in the place of the one before. With DoRA the lengths are taken; a magnitude that is missing
    /// begins as they are, so that nothing changes.
    pub(crate) fn set_adapter(&mut self, mut adapter: Adapter) -> Result<()> {
        if self.lora.use_dora {
            let norms = Norms::new(self.norms.as_ref(), &self.frozen, &adapter, self.lora.scale)?;
            adapter.magnitude.get_or_insert_with(|| norms.current.clone());
            self.norms = Some(norms);
        }
        self.adapter = Some(adapter);
        Ok(())
    }

    pub(super) fn drops(&self, at: Use) -> bool {
        at.dropout.is_some() && self.lora.dropout > 0.0
    }

    /// Dropout's factors for `x`, where it is dropped from.
    pub(super) fn mask(&self, x: &Tensor, at: Use) -> Result<Option<Tensor>> {
        let key = at.dropout.filter(|_| self.drops(at));
        key.map(|key| key.mask(self.lora.dropout, at.first_row, x.dims2()?, x.device())).transpose()
    }

    pub(super) fn dropped(&self, x: &Tensor, at: Use) -> Result<Tensor> {
        match self.mask(x, at)? {
            Some(mask) => x * mask,
            None => Ok(x.clone()),
        }
    }

    /// `x W' + b + scale (drop(x) A') B'`, and with DoRA what [`crate::trainer::candle::nn::dora`] says.
    pub(crate) fn forward(&self, x: &Tensor, at: Use) -> Result<Tensor> {
        if let Some(dora) = self.dora() {
            return self.forward_dora(x, at, dora);
        }
        let y = self.frozen.forward(x)?;
        let Some(Adapter { a, b, .. }) = &self.adapter else { return Ok(y) };
        let hidden = self.frozen.backend.product(&self.dropped(x, at)?, &a.t()?, self.lora.scale)?;
        self.frozen.backend.add_product(y, &hidden, &b.t()?, 1.0)
    }

    /// Gradient with respect to `x`, unless `need_dx` is false; that of the adapter is added to `grad`.
    pub(crate) fn backward(
        &self,
        x: &Tensor,
        g: &Tensor,
        at: Use,
        (need_dx, grad): (bool, &mut Option<AdapterGrad>),
    ) -> Result<Option<Tensor>> {
        if let Some(dora) = self.dora() {
            return self.backward_dora(x, g, at, dora, (need_dx, grad));
        }
        let dx = if need_dx { Some(self.frozen.backward(g)?) } else { None };
        let Some(adapter @ Adapter { a, b, .. }) = &self.adapter else { return Ok(dx) };
        let x = self.dropped(x, at)?;
        let hidden = self.frozen.backend.product(&x, &a.t()?, self.lora.scale)?;
        let d_hidden = self.frozen.backend.product(g, b, self.lora.scale)?;
        let old = adapter.grad_or_zero(grad)?;
        *grad = Some(AdapterGrad {
            a: self.frozen.backend.add_product(old.a, &d_hidden.t()?, &x, 1.0)?,
            b: self.frozen.backend.add_product(old.b, &g.t()?, &hidden, 1.0)?,
            magnitude: None,
        });
        let Some(dx) = dx else { return Ok(None) };
        match self.mask(&x, at)? {
            Some(mask) => {
                Ok(Some(self.frozen.backend.add(dx, &(self.frozen.backend.product(&d_hidden, a, 1.0)? * mask)?)?))
            }
            None => Ok(Some(self.frozen.backend.add_product(dx, &d_hidden, a, 1.0)?)),
        }
    }
}

#[cfg(test)]
#[path = "linear_tests.rs"]
mod tests;
