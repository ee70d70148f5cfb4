//! Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) as `transformers` runs it for `optim = "adafactor"`: no first
//! moment, no step relative to the weights, updates clipped to a root mean square of 1.
//!
//! The squared gradients of a matrix are remembered by their means over its columns and over its rows; their product
//! over the mean of both is the estimate of each.

use candle_core::{D, Result, Tensor};

/// Constant added to the squared gradients.
const EPS: f64 = 1e-30;
/// The decay of step t is `1 - t^this`.
const DECAY_EXPONENT: f64 = -0.8;
/// Updates with a larger root mean square are scaled down to it.
const CLIP: f64 = 1.0;

/// The update of a matrix before the learning rate, and the new means over columns and rows.
pub(crate) fn factored(g: &Tensor, (row, column): (&Tensor, &Tensor), step: usize) -> Result<(Tensor, Tensor, Tensor)> {
    let squares = (g.sqr()? + EPS)?;
    let row = mixed(row, squares.mean(1)?, step)?;
    let column = mixed(column, squares.mean(0)?, step)?;
    drop(squares);
    let of_row = row.broadcast_div(&row.mean_keepdim(0)?)?.sqrt()?.recip()?;
    let update = g.broadcast_mul(&of_row.unsqueeze(1)?)?.broadcast_mul(&column.sqrt()?.recip()?)?;
    Ok((clipped(update)?, row, column))
}

/// The update of a vector before the learning rate, and the new mean.
pub(crate) fn whole(g: &Tensor, v: &Tensor, step: usize) -> Result<(Tensor, Tensor)> {
    let v = mixed(v, (g.sqr()? + EPS)?, step)?;
    Ok((clipped((g * v.sqrt()?.recip()?)?)?, v))
}

fn mixed(old: &Tensor, new: Tensor, step: usize) -> Result<Tensor> {
    let share = (step as f64).powf(DECAY_EXPONENT);
    (old * (1.0 - share))? + (new * share)?
}

fn clipped(update: Tensor) -> Result<Tensor> {
    let mean = update.flatten_all()?.sqr()?.mean_keepdim(D::Minus1)?;
    let rms = f64::from(mean.squeeze(0)?.to_scalar::<f32>()?).sqrt();
    update / (rms / CLIP).max(1.0)
}
