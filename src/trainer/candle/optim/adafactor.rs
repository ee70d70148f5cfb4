//! Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) as `transformers` runs it for `optim = "adafactor"`: no first
//! moment, no step relative to the weights, updates clipped to a root mean square of 1.
//!
//! The squared gradients of a matrix are remembered by their means over its columns and over its rows; their product
//! over the mean of both is the estimate of each.

use candle_core::{D, Result, Tensor};

use crate::ops::metal::FactorStep;

/// Constant added to the squared gradients.
const EPS: f64 = 1e-30;
/// The decay of step t is `1 - t^this`.
const DECAY_EXPONENT: f64 = -0.8;
/// Updates with a larger root mean square are scaled down to it.
const CLIP: f64 = 1.0;

/// Share of a step's squares in what is remembered of them.
pub(crate) fn share(step: usize) -> f64 {
    (step as f64).powf(DECAY_EXPONENT)
}

/// The update of a matrix before the learning rate; the means over columns and rows become the new ones.
pub(crate) fn factored(g: &Tensor, (row, column): (&Tensor, &Tensor), share: f64) -> Result<Tensor> {
    let squares = (g.sqr()? + EPS)?;
    mix(row, squares.mean(1)?, share)?;
    mix(column, squares.mean(0)?, share)?;
    drop(squares);
    let of_row = row.broadcast_div(&row.mean_keepdim(0)?)?.sqrt()?.recip()?;
    let update = g.broadcast_mul(&of_row.unsqueeze(1)?)?.broadcast_mul(&column.sqrt()?.recip()?)?;
    clipped(update)
}

/// The update of a vector before the learning rate; the mean becomes the new one.
pub(crate) fn whole(g: &Tensor, v: &Tensor, share: f64) -> Result<Tensor> {
    mix(v, (g.sqr()? + EPS)?, share)?;
    clipped((g * v.sqrt()?.recip()?)?)
}

/// Takes an update off the weights, in their place.
pub(crate) fn descend(p: &Tensor, update: Tensor, s: &FactorStep) -> Result<()> {
    p.slice_set(&((p * s.decay)? - (update * s.rate)?)?, 0, 0)
}

fn mix(old: &Tensor, new: Tensor, share: f64) -> Result<()> {
    old.slice_set(&((old * (1.0 - share))? + (new * share)?)?, 0, 0)
}

fn clipped(update: Tensor) -> Result<Tensor> {
    let mean = update.flatten_all()?.sqr()?.mean_keepdim(D::Minus1)?;
    let rms = f64::from(mean.squeeze(0)?.to_scalar::<f32>()?).sqrt();
    update / (rms / CLIP).max(1.0)
}
