//! Sums and matrix products, in place where nobody else holds the output; and rows and columns that change their places.

use candle_core::{CpuStorage, D, DType, Device, InplaceOp1, InplaceOp2, InplaceOp3, Layout, Result, Tensor};

use crate::ops::access::*;
use crate::ops::backend::Backend;
use crate::ops::index::Index;
use crate::ops::kernels;
use crate::ops::matmul::{Into, gemm_strided};

impl Backend {
    /// `a + b`, in the place of `a`, where nobody else holds it.
    pub(crate) fn add(self, a: Tensor, b: &Tensor) -> Result<Tensor> {
        match self {
            Self::Fused => a.inplace_op2(b, &AddInto)?,
            Self::Metal(queue) => queue.accumulate(&a, b, 1.0)?,
            Self::Composed => return a.broadcast_add(b),
        }
        Ok(a)
    }

    /// `scale * a b` of two matrices: on the CPU with any strides, elsewhere each row after row or column after column.
    pub(crate) fn product(self, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
        match self {
            Self::Fused => {
                let data = with_view(a, |a| with_view(b, |b| crate::ops::matmul::product(a, b, scale as f32)))??;
                Tensor::from_vec(data, (a.dim(0)?, b.dim(1)?), a.device())
            }
            Self::Metal(queue) => {
                let y = queue.product(a, b)?;
                if scale != 1.0 {
                    queue.scale(&y, scale)?;
                }
                Ok(y)
            }
            Self::Composed if scale == 1.0 => a.matmul(b),
            Self::Composed => a.matmul(b)? * scale,
        }
    }

    /// `out + scale * a b`, in the place of `out`, where nobody else holds it.
    pub(crate) fn add_product(self, out: Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
        match self {
            Self::Fused => out.inplace_op3(a, b, &Product { first_column: 0, scale, into: Into::Accumulate })?,
            Self::Metal(queue) => return queue.add_product(out, a, b, scale),
            Self::Composed => return &out + (a.contiguous()?.matmul(b)? * scale)?,
        }
        Ok(out)
    }

    /// Adds `scale * a b` to a sum that stays where it is.
    pub(crate) fn gather_product(self, sum: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<()> {
        match self {
            Self::Composed => sum.slice_set(&(sum + (a.contiguous()?.matmul(b)? * scale)?)?, 0, 0),
            _ => self.add_product(sum.clone(), a, b, scale).map(|_| ()),
        }
    }

    /// Adds to a sum that stays where it is.
    pub(crate) fn gather_sum(self, sum: &Tensor, part: &Tensor) -> Result<()> {
        match self {
            Self::Composed => sum.slice_set(&(sum + part)?, 0, 0),
            _ => self.add(sum.clone(), part).map(|_| ()),
        }
    }

    /// `a b` into the columns of `out` from `first` on, where nobody else holds it.
    pub(crate) fn product_into_columns(self, out: &Tensor, first: usize, a: &Tensor, b: &Tensor) -> Result<()> {
        match self {
            Self::Fused => out.inplace_op3(a, b, &Product { first_column: first, scale: 1.0, into: Into::Overwrite }),
            Self::Metal(queue) => queue.put_columns(out, first, &queue.product(a, b)?),
            Self::Composed => out.slice_set(&a.matmul(b)?, D::Minus1, first),
        }
    }

    /// A matrix that is written as a whole before it is read.
    pub(crate) fn empty(self, (rows, width): (usize, usize), device: &Device) -> Result<Tensor> {
        match self {
            Self::Metal(queue) => queue.empty((rows, width), device),
            _ => Tensor::zeros((rows, width), DType::F32, device),
        }
    }

    /// A matrix of zeros.
    pub(crate) fn zeros(self, (rows, width): (usize, usize), device: &Device) -> Result<Tensor> {
        match self {
            Self::Metal(queue) => queue.zeros((rows, width), device),
            _ => Tensor::zeros((rows, width), DType::F32, device),
        }
    }

    /// Sets a tensor that stays where it is to zero.
    pub(crate) fn clear(self, t: &Tensor) -> Result<()> {
        match self {
            Self::Fused => t.inplace_op1(&Clear),
            Self::Metal(queue) => queue.fill(t, 0.0),
            Self::Composed => t.slice_set(&t.zeros_like()?, 0, 0),
        }
    }

    /// `x *= factor`, where nobody else holds it.
    pub(crate) fn scaled(self, x: Tensor, factor: f64) -> Result<Tensor> {
        match self {
            Self::Metal(queue) => {
                queue.scale(&x, factor)?;
                Ok(x)
            }
            _ => x * factor,
        }
    }

    /// `a + b` into the rows of `out` from `first` on; on the CPU in the place of `a` before.
    pub(crate) fn place_sum(self, out: &Tensor, first: usize, a: Tensor, b: &Tensor) -> Result<()> {
        match self {
            Self::Metal(queue) => queue.sum(&a, b, &out.narrow(0, first, a.dim(0)?)?),
            _ => out.slice_set(&self.add(a, b)?, 0, first),
        }
    }

    /// Columns of a matrix in memory of their own.
    pub(crate) fn columns(self, x: &Tensor, from: usize, width: usize) -> Result<Tensor> {
        match self {
            Self::Metal(queue) => queue.columns(x, from, width),
            // A single row would be contiguous as it is; what is asked for is memory that can be written over.
            _ => x.narrow(1, from, width)?.force_contiguous(),
        }
    }

    /// Matrices side by side.
    pub(crate) fn beside(self, parts: &[&Tensor]) -> Result<Tensor> {
        match self {
            Self::Metal(queue) => queue.beside(parts),
            _ => Tensor::cat(parts, 1),
        }
    }

    /// A matrix with its columns as rows, in memory of its own.
    pub(crate) fn turned(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Metal(queue) => queue.turned(x),
            _ => x.t()?.contiguous(),
        }
    }

    /// Rows of these indices.
    pub(crate) fn take_rows(self, x: &Tensor, rows: &Index) -> Result<Tensor> {
        match self {
            Self::Metal(queue) => queue.gather(x, rows.tensor()),
            _ => x.index_select(rows.tensor(), 0),
        }
    }

    /// Writes row i of `part` to row `rows[i]` of `out`, which nobody else holds; the rows are distinct.
    pub(crate) fn place_rows(self, out: &Tensor, part: &Tensor, rows: &Index) -> Result<()> {
        match self {
            Self::Metal(queue) => queue.scatter(out, part, rows.tensor()),
            _ => place_rows(out, part, rows.numbers()),
        }
    }
}

fn place_rows(out: &Tensor, part: &Tensor, rows: &[u32]) -> Result<()> {
    // Targets are mostly runs of rows one after the other: each run is one copy.
    let mut from = 0;
    while from < rows.len() {
        let mut to = from + 1;
        while to < rows.len() && rows[to] == rows[to - 1] + 1 {
            to += 1;
        }
        out.slice_set(&part.narrow(0, from, to - from)?, 0, rows[from] as usize)?;
        from = to;
    }
    Ok(())
}

struct Clear;

impl InplaceOp1 for Clear {
    fn name(&self) -> &'static str {
        "clear"
    }

    fn cpu_fwd(&self, t: &mut CpuStorage, layout: &Layout) -> Result<()> {
        slice_mut(t, layout)?.fill(0.0);
        Ok(())
    }
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
