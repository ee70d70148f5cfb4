//! Rotary position embedding.

use candle_core::{CpuStorage, Device, InplaceOp3, Layout, Result, Tensor};

use crate::ops::access::*;
use crate::ops::backend::Backend;
use crate::ops::index::Index;
use crate::ops::kernels;

/// Cosines and sines for every position: `[positions, half]` each.
#[derive(Clone, Debug)]
pub(crate) struct RopeTables {
    backend: Backend,
    cos: Tensor,
    sin: Tensor,
    pub(super) half: usize,
}

impl RopeTables {
    /// From inverse frequencies and the factor that some scalings put on both tables.
    pub(crate) fn new(
        inv_freq: &[f64],
        factor: f64,
        positions: usize,
        (device, backend): (&Device, Backend),
    ) -> Result<Self> {
        let half = inv_freq.len();
        let angles = || (0..positions).flat_map(|p| inv_freq.iter().map(move |f| (p as f64 * f) as f32));
        let cos: Vec<f32> = angles().map(|a| a.cos() * factor as f32).collect();
        let sin: Vec<f32> = angles().map(|a| a.sin() * factor as f32).collect();
        let make = |v: Vec<f32>| backend.upload(v, (positions, half), device);
        Ok(Self { backend, cos: make(cos)?, sin: make(sin)?, half })
    }

    /// Rotates `x [rows, heads * head_dim]`, which nobody else holds; row r stands at `positions[r]`. `backward` rotates
    /// back.
    pub(crate) fn apply(&self, x: Tensor, head_dim: usize, positions: &Index, backward: bool) -> Result<Tensor> {
        let sign = if backward { -1.0 } else { 1.0 };
        match self.backend {
            Backend::Fused => {
                let op = Rotate { head_dim, half: self.half, positions: positions.numbers(), sign: sign as f32 };
                x.inplace_op3(&self.cos, &self.sin, &op)?;
            }
            Backend::Metal(queue) => {
                queue.rope(&x, (&self.cos, &self.sin), positions.tensor(), (head_dim, sign))?;
            }
            Backend::Composed => return self.apply_composed(&x, head_dim, positions.tensor(), sign),
        }
        Ok(x)
    }

    pub(super) fn apply_composed(&self, x: &Tensor, head_dim: usize, index: &Tensor, sign: f64) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let cos = self.cos.index_select(index, 0)?.unsqueeze(1)?;
        let sin = (self.sin.index_select(index, 0)?.unsqueeze(1)? * sign)?;
        let heads = x.reshape((rows, width / head_dim, head_dim))?;
        let (a, b) = (heads.narrow(2, 0, self.half)?, heads.narrow(2, self.half, self.half)?);
        let rest = heads.narrow(2, 2 * self.half, head_dim - 2 * self.half)?;
        let ra = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let rb = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        Tensor::cat(&[ra, rb, rest], 2)?.reshape((rows, width))?.contiguous()
    }
}

/// The rotation of the CPU.
struct Rotate<'a> {
    head_dim: usize,
    half: usize,
    positions: &'a [u32],
    sign: f32,
}

impl InplaceOp3 for Rotate<'_> {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        lx: &Layout,
        cos: &CpuStorage,
        lc: &Layout,
        sin: &CpuStorage,
        ls: &Layout,
    ) -> Result<()> {
        let table = kernels::RopeTable { cos: slice(cos, lc)?, sin: slice(sin, ls)?, half: self.half };
        kernels::rope(slice_mut(x, lx)?, self.head_dim, &table, self.positions, self.sign);
        Ok(())
    }
}
