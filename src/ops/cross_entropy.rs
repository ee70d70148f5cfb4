//! Cross-entropy with its gradient in the place of the logits.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, D, Device, Layout, Result, Tensor};

use crate::ops::access::*;
use crate::ops::backend::Backend;
use crate::ops::index::Index;
use crate::ops::kernels;

/// The losses of the targets of a micro-batch. A GPU leaves them where they are until the sum is asked for, because it
/// has to be waited for then.
pub(crate) struct Losses {
    backend: Backend,
    sum: f64,
    on_device: Option<Tensor>,
    seen: usize,
}

impl Losses {
    /// Of `targets` targets, none of them there yet.
    pub(crate) fn new(targets: usize, (device, backend): (&Device, Backend)) -> Result<Self> {
        let on_device = match backend {
            Backend::Metal(queue) if targets > 0 => Some(queue.empty(targets, device)?),
            _ => None,
        };
        Ok(Self { backend, sum: 0.0, on_device, seen: 0 })
    }

    /// Adds the cross-entropies of `logits [rows, vocab]`, which become their gradient times `scale` (or anything, where
    /// that is `None`).
    pub(crate) fn add(
        &mut self,
        logits: Tensor,
        targets: &Index,
        softcap: Option<f64>,
        scale: Option<f64>,
    ) -> Result<Tensor> {
        let rows = targets.numbers().len();
        match (self.backend, &self.on_device) {
            (Backend::Metal(queue), Some(losses)) => {
                let own = losses.narrow(0, self.seen, rows)?;
                queue.cross_entropy(&logits, targets.tensor(), &own, (softcap, scale))?;
                self.seen += rows;
                Ok(logits)
            }
            (Backend::Composed, _) => {
                let (loss, g) = cross_entropy_composed(&logits, targets.tensor(), softcap, scale.unwrap_or(1.0))?;
                self.sum += loss;
                Ok(g)
            }
            _ => {
                let (softcap, scale) = (softcap.map(|c| c as f32), scale.unwrap_or(1.0) as f32);
                let op = CrossEntropy { targets: targets.numbers(), softcap, scale, loss: 0.0.into() };
                logits.inplace_op1(&op)?;
                self.sum += *op.loss.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(logits)
            }
        }
    }

    /// Sum of all losses.
    pub(crate) fn total(self) -> Result<f64> {
        match (self.backend, &self.on_device) {
            (Backend::Metal(queue), Some(losses)) => {
                Ok(queue.read(losses)?[..self.seen].iter().map(|loss| f64::from(*loss)).sum())
            }
            _ => Ok(self.sum),
        }
    }
}

struct CrossEntropy<'a> {
    targets: &'a [u32],
    softcap: Option<f32>,
    scale: f32,
    loss: Mutex<f64>,
}

impl candle_core::InplaceOp1 for CrossEntropy<'_> {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let loss = kernels::cross_entropy(slice_mut(storage, layout)?, self.targets, self.softcap, self.scale);
        *self.loss.lock().unwrap_or_else(PoisonError::into_inner) = loss;
        Ok(())
    }
}

pub(super) fn cross_entropy_composed(
    z: &Tensor,
    targets: &Tensor,
    softcap: Option<f64>,
    scale: f64,
) -> Result<(f64, Tensor)> {
    let logits = match softcap {
        Some(cap) => ((z / cap)?.tanh()? * cap)?,
        None => z.clone(),
    };
    let index = targets.unsqueeze(1)?;
    let max = logits.max_keepdim(D::Minus1)?;
    let exp = logits.broadcast_sub(&max)?.exp()?;
    let sum = exp.sum_keepdim(D::Minus1)?;
    let losses = ((sum.log()? + max)? - logits.gather(&index, 1)?)?;
    let probabilities = exp.broadcast_div(&sum)?;
    let minus = Tensor::full(-1f32, index.shape(), z.device())?;
    let mut g = (probabilities.scatter_add(&index, &minus, 1)? * scale)?;
    if let Some(cap) = softcap {
        g = (g * (logits / cap)?.sqr()?.affine(-1.0, 1.0)?)?;
    }
    Ok((f64::from(losses.sum_all()?.to_scalar::<f32>()?), g))
}
