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
    fn factor(&self, backend: Backend) -> Result<Tensor> {
        quotient(backend, self.magnitude, &self.norms.current)
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
        self.frozen.backend.add_product(self.frozen.product(dropped)?, hidden, &b.t()?, self.lora.scale)
    }

    /// [`Linear::forward`] with DoRA.
    pub(super) fn forward_dora(&self, x: &Tensor, at: Use, dora: Dora<'_>) -> Result<Tensor> {
        let dropped = self.dropped(x, at)?;
        let ops = self.frozen.backend;
        let hidden = ops.product(&dropped, &dora.adapter.a.t()?, 1.0)?;
        let y = self.undirected(&dropped, &hidden, &dora.adapter.b)?;
        drop((dropped, hidden));
        let mut y = scale_columns(ops, y, &dora.factor(ops)?)?;
        if let Some(dropout) = self.dropout(at) {
            let rest = ops.part(x, &dropout, Part::Rest)?;
            y = ops.add(y, &self.frozen.product(&rest)?)?;
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
        (need_dx, grad): (bool, Option<&AdapterGrad>),
    ) -> Result<Option<Tensor>> {
        let Adapter { a, b, .. } = dora.adapter;
        let (ops, scale) = (self.frozen.backend, self.lora.scale);
        let through = scale_columns(ops, ops.copied(g)?, &dora.factor(ops)?)?;
        let dx = if need_dx { Some(self.frozen.backward(&through)?) } else { None };
        let dropped = self.dropped(x, at)?;
        let hidden = ops.product(&dropped, &a.t()?, 1.0)?;
        let d_hidden = ops.product(&through, b, 1.0)?;
        if let Some(grad) = grad {
            let along = column_dots(ops, g, &self.undirected(&dropped, &hidden, b)?)?;
            if let Some(sum) = &grad.magnitude {
                ops.gather_sum(sum, &quotient(ops, &along, &dora.norms.current)?)?;
            }
            ops.gather_product(&grad.a, &d_hidden.t()?, &dropped, scale)?;
            ops.gather_product(&grad.b, &through.t()?, &hidden, scale)?;
        }
        drop((hidden, dropped, through));
        let Some(dx) = dx else { return Ok(None) };
        let dx = ops.add_product(dx, &d_hidden, a, scale)?;
        let Some(dropout) = self.dropout(at) else { return Ok(Some(dx)) };
        // What reached the rest of the input, and what reached the dropped one.
        let rest = ops.drop_part(self.frozen.backward(g)?, &dropout, Part::Rest)?;
        Ok(Some(ops.add(rest, &ops.drop_part(dx, &dropout, Part::Kept)?)?))
    }
}

/// Column j of `y [rows, width]` times `factor[j]`, in the place of `y`, where nobody else holds it.
fn scale_columns(backend: Backend, y: Tensor, factor: &Tensor) -> Result<Tensor> {
    match backend {
        Backend::Fused => y.inplace_op2(factor, &ScaleColumns)?,
        Backend::Metal(queue) => queue.scale_columns(&y, factor)?,
        Backend::Composed => return y.broadcast_mul(factor),
    }
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
    match backend {
        Backend::Fused => {
            let width = g.dim(1)?;
            let sums = with_slice(g, |g| with_slice(y, |y| kernels::column_dots(g, y, width)))??;
            Tensor::from_vec(sums, width, g.device())
        }
        Backend::Metal(queue) => queue.column_dots(g, y),
        Backend::Composed => (g * y)?.sum(0),
    }
}

/// `a / b` of two vectors.
fn quotient(backend: Backend, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    match backend {
        Backend::Metal(queue) => queue.quotient(a, b),
        _ => a / b,
    }
}

#[cfg(test)]
#[path = "dora_tests.rs"]
mod tests;
