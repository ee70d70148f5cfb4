//! A projection: a frozen weight, and the adapter on it, forward and backward.
//!
//! The frozen weight gets no gradient; it only carries the gradient through.

use candle_core::{Result, Tensor};

use crate::checkpoint::adapter::{Adapter, AdapterGrad};
use crate::ops::dropout::{Dropout, DropoutKey, Part};
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

    /// Puts an adapter in the place of the one before. Its tensors are changed in their
    /// places by the optimizer. With DoRA the lengths are taken; a magnitude that is missing
    /// begins as they are, so that nothing changes.
    pub(crate) fn set_adapter(&mut self, mut adapter: Adapter) -> Result<()> {
        if self.lora.use_dora {
            let norms = Norms::new(self.norms.take(), &self.frozen, &adapter, self.lora.scale)?;
            if adapter.magnitude.is_none() {
                // In memory of its own: the norms stay what they are while it learns.
                let zeros = self.frozen.backend.lasting_zeros(norms.current.shape(), norms.current.device())?;
                self.frozen.backend.gather_sum(&zeros, &norms.current)?;
                adapter.magnitude = Some(zeros);
            }
            self.norms = Some(norms);
        }
        self.adapter = Some(adapter);
        Ok(())
    }

    /// Takes the lengths anew, where they are needed, after the adapter has changed in its place.
    pub(crate) fn adapter_changed(&mut self) -> Result<()> {
        if let (Some(norms), Some(adapter)) = (self.norms.take(), &self.adapter) {
            self.norms = Some(Norms::new(Some(norms), &self.frozen, adapter, self.lora.scale)?);
        }
        Ok(())
    }

    /// The dropout of this projection's adapter, where there is one.
    pub(super) fn dropout(&self, at: Use) -> Option<Dropout> {
        let key = at.dropout.filter(|_| self.lora.dropout > 0.0)?;
        Some(Dropout { key, p: self.lora.dropout, first_row: at.first_row })
    }

    /// The adapter's input.
    pub(super) fn dropped(&self, x: &Tensor, at: Use) -> Result<Tensor> {
        match self.dropout(at) {
            Some(dropout) => self.frozen.backend.dropped(x, &dropout),
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
        let hidden = self.frozen.backend.product(&self.dropped(x, at)?, &a.t()?, 1.0)?;
        self.frozen.backend.add_product(y, &hidden, &b.t()?, self.lora.scale)
    }

    /// Gradient with respect to `x`, unless `need_dx` is false; that of the adapter is added to `grad`, where it is.
    pub(crate) fn backward(
        &self,
        x: &Tensor,
        g: &Tensor,
        at: Use,
        (need_dx, grad): (bool, Option<&AdapterGrad>),
    ) -> Result<Option<Tensor>> {
        if let Some(dora) = self.dora() {
            return self.backward_dora(x, g, at, dora, (need_dx, grad));
        }
        let dx = if need_dx { Some(self.frozen.backward(g)?) } else { None };
        let Some(Adapter { a, b, .. }) = &self.adapter else { return Ok(dx) };
        let (ops, scale) = (self.frozen.backend, self.lora.scale);
        let x = self.dropped(x, at)?;
        let d_hidden = ops.product(g, b, 1.0)?;
        if let Some(grad) = grad {
            let hidden = ops.product(&x, &a.t()?, 1.0)?;
            ops.gather_product(&grad.b, &g.t()?, &hidden, scale)?;
            drop(hidden);
            ops.gather_product(&grad.a, &d_hidden.t()?, &x, scale)?;
        }
        drop(x);
        let Some(dx) = dx else { return Ok(None) };
        match self.dropout(at) {
            Some(dropout) => {
                let through = ops.drop_part(ops.product(&d_hidden, a, scale)?, &dropout, Part::Kept)?;
                Ok(Some(ops.add(dx, &through)?))
            }
            None => Ok(Some(ops.add_product(dx, &d_hidden, a, scale)?)),
        }
    }
}

#[cfg(test)]
#[path = "linear_tests.rs"]
mod tests;
