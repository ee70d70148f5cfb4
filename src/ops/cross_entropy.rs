//! Cross-entropy with its gradient in the place of the logits.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, D, Layout, Result, Tensor};

use crate::ops::access::*;
use crate::ops::backend::Backend;
use crate::ops::kernels;

impl Backend {
    /// Sum of the cross-entropies of `logits [rows, vocab]` and its gradient times `scale`; uses up the logits.
    pub(crate) fn cross_entropy(
        self,
        logits: Tensor,
        targets: &[u32],
        softcap: Option<f64>,
        scale: f64,
    ) -> Result<(f64, Tensor)> {
        if !self.fused() {
            return cross_entropy_composed(&logits, targets, softcap, scale);
        }
        let op = CrossEntropy { targets, softcap: softcap.map(|c| c as f32), scale: scale as f32, loss: 0.0.into() };
        logits.inplace_op1(&op)?;
        let loss = *op.loss.lock().unwrap_or_else(PoisonError::into_inner);
        Ok((loss, logits))
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
    targets: &[u32],
    softcap: Option<f64>,
    scale: f64,
) -> Result<(f64, Tensor)> {
    let rows = targets.len();
    let logits = match softcap {
        Some(cap) => ((z / cap)?.tanh()? * cap)?,
        None => z.clone(),
    };
    let index = Tensor::from_slice(targets, (rows, 1), z.device())?;
    let max = logits.max_keepdim(D::Minus1)?;
    let exp = logits.broadcast_sub(&max)?.exp()?;
    let sum = exp.sum_keepdim(D::Minus1)?;
    let losses = ((sum.log()? + max)? - logits.gather(&index, 1)?)?;
    let probabilities = exp.broadcast_div(&sum)?;
    let minus = Tensor::full(-1f32, (rows, 1), z.device())?;
    let mut g = (probabilities.scatter_add(&index, &minus, 1)? * scale)?;
    if let Some(cap) = softcap {
        g = (g * (logits / cap)?.sqr()?.affine(-1.0, 1.0)?)?;
    }
    Ok((f64::from(losses.sum_all()?.to_scalar::<f32>()?), g))
}
