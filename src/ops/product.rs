//! Sums and matrix products, in place where nobody else holds the output.

use candle_core::{CpuStorage, InplaceOp2, InplaceOp3, Layout, Result, Tensor};

use crate::ops::access::*;
use crate::ops::backend::Backend;
use crate::ops::kernels;
use crate::ops::matmul::{Into, gemm_strided};

impl Backend {
    /// `a + b`, where nobody else holds `a`: on the CPU it is done in its memory.
    pub(crate) fn add(self, a: Tensor, b: &Tensor) -> Result<Tensor> {
        if !self.fused() {
            return a.broadcast_add(b);
        }
        a.inplace_op2(b, &AddInto)?;
        Ok(a)
    }

    /// `scale * a b` of two matrices with any strides.
    pub(crate) fn product(self, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
        if !self.fused() {
            let y = a.matmul(b)?;
            return if scale == 1.0 { Ok(y) } else { y * scale };
        }
        let data = with_view(a, |a| with_view(b, |b| crate::ops::matmul::product(a, b, scale as f32)))??;
        Tensor::from_vec(data, (a.dim(0)?, b.dim(1)?), a.device())
    }

    /// `out + scale * a b`, where nobody else holds `out`: on the CPU it is done in its memory.
    pub(crate) fn add_product(self, out: Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
        if !self.fused() {
            return &out + (a.contiguous()?.matmul(b)? * scale)?;
        }
        out.inplace_op3(a, b, &Product { first_column: 0, scale, into: Into::Accumulate })?;
        Ok(out)
    }
}

/// Writes row i of `part` to row `targets[i].0` of `out`, which nobody else holds; the rows are distinct.
pub(crate) fn place_rows(out: &Tensor, part: &Tensor, targets: &[(u32, u32)]) -> Result<()> {
    // Targets are mostly runs of rows one after the other: each run is one copy.
    let mut from = 0;
    while from < targets.len() {
        let mut to = from + 1;
        while to < targets.len() && targets[to].0 == targets[to - 1].0 + 1 {
            to += 1;
        }
        out.slice_set(&part.narrow(0, from, to - from)?, 0, targets[from].0 as usize)?;
        from = to;
    }
    Ok(())
}

/// Adds the second operand to the first; one row is added to every row.
struct AddInto;

impl InplaceOp2 for AddInto {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(&self, a: &mut CpuStorage, la: &Layout, b: &CpuStorage, lb: &Layout) -> Result<()> {
        kernels::add_into(slice_mut(a, la)?, slice(b, lb)?);
        Ok(())
    }
}

/// Writes `a b` into the columns of `out` from `first` on; nobody else holds `out`, which is on the CPU.
pub(crate) fn product_into_columns(out: &Tensor, first: usize, a: &Tensor, b: &Tensor) -> Result<()> {
    out.inplace_op3(a, b, &Product { first_column: first, scale: 1.0, into: Into::Overwrite })
}

/// A product into the columns of its output from `first_column` on.
struct Product {
    first_column: usize,
    scale: f64,
    into: Into,
}

impl InplaceOp3 for Product {
    fn name(&self) -> &'static str {
        "product"
    }

    fn cpu_fwd(
        &self,
        out: &mut CpuStorage,
        lo: &Layout,
        a: &CpuStorage,
        la: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<()> {
        let row_stride = lo.stride()[0];
        let out = &mut slice_mut(out, lo)?[self.first_column..];
        gemm_strided(out, row_stride, (view(a, la)?, view(b, lb)?), self.scale as f32, self.into, true);
        Ok(())
    }
}
