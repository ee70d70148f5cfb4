//! A projection: a frozen weight, and the adapter on it, forward and backward.
//!
//! The frozen weight gets no gradient; it only carries the gradient through.

use candle_core::{DType, Device, Result, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::frozen::Stored;
use super::ops;
use super::panels::{Panels, product_by_panels, sum_over_panels};

/// A frozen weight in its storage format.
#[derive(Clone, Debug)]
pub struct Frozen {
    weight: Stored,
    bias: Option<Tensor>,
    /// Stored `[in, out]` (GPT-2) and not `[out, in]`.
    transposed: bool,
}

impl Frozen {
    /// `weight [out, in]`, or `[in, out]` if `transposed`; `bias [out]`.
    pub fn new(weight: Stored, bias: Option<Tensor>, transposed: bool) -> Result<Self> {
        let bias = bias.map(|b| b.to_dtype(DType::F32)).transpose()?;
        Ok(Self { weight, bias, transposed })
    }

    /// `x W' + b`, `[rows, out]`
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = match (self.weight.f32(), self.transposed) {
            (Some(w), false) => ops::product(x, &w.t()?, 1.0)?,
            (Some(w), true) => ops::product(x, w, 1.0)?,
            (None, false) => product_by_panels(x, Panels::new(&self.weight)?)?,
            (None, true) => sum_over_panels(x, Panels::new(&self.weight)?)?,
        };
        match &self.bias {
            Some(bias) => ops::add(y, bias),
            None => Ok(y),
        }
    }

    /// `g W`, the gradient with respect to `x`.
    pub fn backward(&self, g: &Tensor) -> Result<Tensor> {
        match (self.weight.f32(), self.transposed) {
            (Some(w), false) => ops::product(g, w, 1.0),
            (Some(w), true) => ops::product(g, &w.t()?, 1.0),
            (None, false) => sum_over_panels(g, Panels::new(&self.weight)?),
            (None, true) => product_by_panels(g, Panels::new(&self.weight)?),
        }
    }

    /// Selected rows of `[out, in]`, in f32: the embedding's lookup.
    pub fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        self.weight.rows(ids)
    }
}

/// The trainable pair of one projection: the update is `scale * B A`.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// `[rank, in]`
    pub a: Tensor,
    /// `[out, rank]`
    pub b: Tensor,
}

/// What stays the same for all adapters of a run.
#[derive(Clone, Copy, Debug)]
pub struct LoraSettings {
    /// alpha / rank
    pub scale: f64,
    /// Probability that an input is dropped.
    pub dropout: f64,
}

/// Which numbers a dropout draws: the same in the forward pass and when it is made again in backward.
#[derive(Clone, Copy, Debug)]
pub struct DropoutKey {
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
pub struct Linear {
    /// The base.
    pub frozen: Frozen,
    /// The adapter, where this projection has one.
    pub adapter: Option<Adapter>,
    /// Scale and dropout.
    pub lora: LoraSettings,
}

/// Where in the run a projection is being used.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    /// Draws the dropout; `None` outside of training.
    pub dropout: Option<DropoutKey>,
    /// Row of the micro-batch that the input starts at.
    pub first_row: usize,
}

/// Gradients of an adapter.
#[derive(Debug)]
pub struct AdapterGrad {
    /// `[rank, in]`
    pub a: Tensor,
    /// `[out, rank]`
    pub b: Tensor,
}

impl Linear {
    fn dropped(&self, x: &Tensor, at: Use) -> Result<Tensor> {
        match at.dropout {
            Some(key) if self.lora.dropout > 0.0 => {
                x * key.mask(self.lora.dropout, at.first_row, x.dims2()?, x.device())?
            }
            _ => Ok(x.clone()),
        }
    }

    /// `x W' + b + scale (drop(x) A') B'`
    pub fn forward(&self, x: &Tensor, at: Use) -> Result<Tensor> {
        let y = self.frozen.forward(x)?;
        let Some(Adapter { a, b }) = &self.adapter else { return Ok(y) };
        let hidden = ops::product(&self.dropped(x, at)?, &a.t()?, self.lora.scale)?;
        ops::add_product(y, &hidden, &b.t()?, 1.0)
    }

    /// Gradient with respect to `x`, unless `need_dx` is false; that of the adapter is added to `grad`.
    pub fn backward(
        &self,
        x: &Tensor,
        g: &Tensor,
        at: Use,
        (need_dx, grad): (bool, &mut Option<AdapterGrad>),
    ) -> Result<Option<Tensor>> {
        let dx = if need_dx { Some(self.frozen.backward(g)?) } else { None };
        let Some(Adapter { a, b }) = &self.adapter else { return Ok(dx) };
        let x = self.dropped(x, at)?;
        let hidden = ops::product(&x, &a.t()?, self.lora.scale)?;
        let d_hidden = ops::product(g, b, self.lora.scale)?;
        let old = match grad.take() {
            Some(old) => old,
            None => AdapterGrad { a: a.zeros_like()?, b: b.zeros_like()? },
        };
        *grad = Some(AdapterGrad {
            a: ops::add_product(old.a, &d_hidden.t()?, &x, 1.0)?,
            b: ops::add_product(old.b, &g.t()?, &hidden, 1.0)?,
        });
        let Some(dx) = dx else { return Ok(None) };
        match at.dropout {
            Some(key) if self.lora.dropout > 0.0 => {
                let mask = key.mask(self.lora.dropout, at.first_row, x.dims2()?, x.device())?;
                Ok(Some(ops::add(dx, &(ops::product(&d_hidden, a, 1.0)? * mask)?)?))
            }
            _ => Ok(Some(ops::add_product(dx, &d_hidden, a, 1.0)?)),
        }
    }
}

#[cfg(test)]
#[path = "linear_tests.rs"]
mod tests;
