//! DoRA (Liu and others 2024, arXiv:2402.09353), as PEFT computes it: each output's weights keep the direction of
//! `W + scale B A` and learn their length apart.
//!
//! `y = c (d W' + scale d A' B') + (x - d) W' + b` with `c = magnitude / ||W + scale B A||` for each output and `d` the
//! input after dropout. The norm counts as a constant in the gradient (the paper's section 4.3). `W + scale B A` is never
//! made: with the squared norms of the frozen rows known,
//! `||w + s b A||^2 = ||w||^2 + 2 s b . (A w') + s^2 b (A A') b'`, which is one product of `rank` rows with W, and A and B
//! change once in an optimizer step.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor};

use crate::checkpoint::adapter::{Adapter, AdapterGrad};
use crate::ops::dropout::Part;
use crate::ops::{Backend, kernels, slice, slice_mut, with_slice};
use crate::trainer::candle::nn::linear::{Linear, Use};
use crate::trainer::candle::nn::norms::Norms;

/// What DoRA adds to an adapter: the norms, and the magnitude that is learned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dora<'a> {
    adapter: &'a Adapter,
    norms: &'a Norms,
    magnitude: &'a Tensor,
}

impl Dora<'_> {
    /// Of each output.
    fn factor(&self) -> Result<Tensor> {
        self.magnitude / &self.norms.current
    }
}

impl Linear {
    /// Where this projection has one.
    pub(super) fn dora(&self) -> Option<Dora<'_>> {
        let adapter = self.adapter.as_ref()?;
        Some(Dora { adapter, norms: self.norms.as_ref()?, magnitude: adapter.magnitude.as_ref()? })
    }

    /// `d W' + scale d A' B'`
    fn undirected(&self, dropped: &Tensor, hidden: &Tensor, b: &Tensor) -> Result<Tensor> {
        self.frozen.backend.add_product(self.frozen.product(dropped)?, hidden, &b.t()?, 1.0)
    }

    /// [`Linear::forward`] with DoRA.
    pub(super) fn forward_dora(&self, x: &Tensor, at: Use, dora: Dora<'_>) -> Result<Tensor> {
        let dropped = self.dropped(x, at)?;
        let hidden = self.frozen.backend.product(&dropped, &dora.adapter.a.t()?, self.lora.scale)?;
        let y = self.undirected(&dropped, &hidden, &dora.adapter.b)?;
        let mut y = scale_columns(self.frozen.backend, y, &dora.factor()?)?;
        if self.dropout(at).is_some() {
            y = self.frozen.backend.add(y, &self.frozen.product(&(x - &dropped)?)?)?;
        }
        self.frozen.add_bias(y)
    }

    /// [`Linear::backward`] with DoRA.
    pub(super) fn backward_dora(
        &self,
        x: &Tensor,
        g: &Tensor,
        at: Use,
        dora: Dora<'_>,
        (need_dx, grad): (bool, &mut Option<AdapterGrad>),
    ) -> Result<Option<Tensor>> {
        let Adapter { a, b, .. } = dora.adapter;
        let through = scale_columns(
            self.frozen.backend,
            if self.frozen.backend.fused() { g.force_contiguous()? } else { g.clone() },
            &dora.factor()?,
        )?;
        let dx = if need_dx { Some(self.frozen.backward(&through)?) } else { None };
        let dropped = self.dropped(x, at)?;
        let hidden = self.frozen.backend.product(&dropped, &a.t()?, self.lora.scale)?;
        let d_hidden = self.frozen.backend.product(&through, b, self.lora.scale)?;
        let along = column_dots(self.frozen.backend, g, &self.undirected(&dropped, &hidden, b)?)?;
        let d_magnitude = (along / &dora.norms.current)?;
        let old = dora.adapter.grad_or_zero(grad)?;
        *grad = Some(AdapterGrad {
            a: self.frozen.backend.add_product(old.a, &d_hidden.t()?, &dropped, 1.0)?,
            b: self.frozen.backend.add_product(old.b, &through.t()?, &hidden, 1.0)?,
            magnitude: old.magnitude.map(|old| old + d_magnitude).transpose()?,
        });
        drop((hidden, dropped, through));
        let Some(dx) = dx else { return Ok(None) };
        let dx = self.frozen.backend.add_product(dx, &d_hidden, a, 1.0)?;
        let Some(dropout) = self.dropout(at) else { return Ok(Some(dx)) };
        let ops = self.frozen.backend;
        // What reached the rest of the input, and what reached the dropped one.
        let rest = ops.drop_part(self.frozen.backward(g)?, &dropout, Part::Rest)?;
        Ok(Some(ops.add(rest, &ops.drop_part(dx, &dropout, Part::Kept)?)?))
    }
}

/// Column j of `y [rows, width]` times `factor[j]`, where nobody else holds `y`: on the CPU it is done in its memory.
fn scale_columns(backend: Backend, y: Tensor, factor: &Tensor) -> Result<Tensor> {
    if !backend.fused() {
        return y.broadcast_mul(factor);
    }
    y.inplace_op2(factor, &ScaleColumns)?;
    Ok(y)
}

struct ScaleColumns;

impl InplaceOp2 for ScaleColumns {
    fn name(&self) -> &'static str {
        "scale columns"
    }

    fn cpu_fwd(&self, y: &mut CpuStorage, ly: &Layout, factor: &CpuStorage, lf: &Layout) -> Result<()> {
        kernels::scale_columns(slice_mut(y, ly)?, slice(factor, lf)?);
        Ok(())
    }
}

/// `sum over rows of g y`, `[width]`, of two `[rows, width]`.
fn column_dots(backend: Backend, g: &Tensor, y: &Tensor) -> Result<Tensor> {
    if !backend.fused() {
        return (g * y)?.sum(0);
    }
    let width = g.dim(1)?;
    let sums = with_slice(g, |g| with_slice(y, |y| kernels::column_dots(g, y, width)))??;
    Tensor::from_vec(sums, width, g.device())
}

#[cfg(test)]
#[path = "dora_tests.rs"]
mod tests;
