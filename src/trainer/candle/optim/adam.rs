//! AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), as torch.optim.AdamW computes it.

use candle_core::{CpuStorage, InplaceOp2, InplaceOp3, Layout, Result, Tensor};

use crate::ops::metal::AdamStep;
use crate::ops::{kernels, slice, slice_mut};

/// AdamW's decay of the mean of the gradients, and of their squares.
pub(crate) const BETA1: f64 = 0.9;
pub(crate) const BETA2: f64 = 0.999;
/// Constant added to the root of the second moment.
pub(crate) const EPS: f64 = 1e-8;

/// One update of a tensor and of its moments by a gradient that is clipped already, composed of candle's operations; the
/// results are put in their places.
pub(crate) fn update(p: &Tensor, g: &Tensor, (m, v): (&Tensor, &Tensor), s: &AdamStep) -> Result<()> {
    let new_m = ((m * s.betas.0)? + (g * (1.0 - s.betas.0))?)?;
    let new_v = ((v * s.betas.1)? + (g.sqr()? * (1.0 - s.betas.1))?)?;
    let denominator = ((new_v.sqrt()? / s.root_bias2)? + s.eps)?;
    let new_p = ((p * s.decay)? - ((&new_m / denominator)? * s.rate)?)?;
    m.slice_set(&new_m, 0, 0)?;
    v.slice_set(&new_v, 0, 0)?;
    p.slice_set(&new_p, 0, 0)
}

/// The same on the CPU, without memory of its own.
pub(crate) fn update_in_place(p: &Tensor, g: &Tensor, (m, v): (&Tensor, &Tensor), s: &AdamStep) -> Result<()> {
    m.inplace_op2(g, &Mixed { beta: s.betas.0, factor: s.factor, squared: false })?;
    v.inplace_op2(g, &Mixed { beta: s.betas.1, factor: s.factor, squared: true })?;
    p.inplace_op3(m, v, &Descent(*s))
}

/// A running mean of gradients or of their squares.
struct Mixed {
    beta: f64,
    factor: f64,
    squared: bool,
}

impl InplaceOp2 for Mixed {
    fn name(&self) -> &'static str {
        "running mean"
    }

    fn cpu_fwd(&self, mean: &mut CpuStorage, lm: &Layout, g: &CpuStorage, lg: &Layout) -> Result<()> {
        let (old, new, factor) = (self.beta as f32, (1.0 - self.beta) as f32, self.factor as f32);
        let (mean, g) = (slice_mut(mean, lm)?, slice(g, lg)?);
        match self.squared {
            true => kernels::update_each(mean, g, |mean, g| mean * old + (g * factor) * (g * factor) * new),
            false => kernels::update_each(mean, g, |mean, g| mean * old + g * factor * new),
        }
        Ok(())
    }
}

struct Descent(AdamStep);

impl InplaceOp3 for Descent {
    fn name(&self) -> &'static str {
        "AdamW"
    }

    fn cpu_fwd(
        &self,
        p: &mut CpuStorage,
        lp: &Layout,
        m: &CpuStorage,
        lm: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Result<()> {
        let s = self.0;
        let (root, eps) = ((1.0 / s.root_bias2) as f32, s.eps as f32);
        let (decay, rate) = (s.decay as f32, s.rate as f32);
        let (p, m, v) = (slice_mut(p, lp)?, slice(m, lm)?, slice(v, lv)?);
        kernels::update_each2(p, m, v, |p, m, v| p * decay - m / (v.sqrt() * root + eps) * rate);
        Ok(())
    }
}
