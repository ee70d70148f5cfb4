//! The differentiable operations a decoder needs besides matrix products, forward and backward.
//!
//! Each takes contiguous `f32` tensors of `[rows, width]`. On the CPU they run as one fused, threaded
//! kernel; elsewhere as the same formula composed of candle's ops, which have Metal kernels.

pub(crate) mod attention;
pub mod device;
pub(crate) mod kernels;
pub(crate) mod matmul;
#[cfg(test)]
pub(crate) mod testing;
mod vector;

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, D, DType, Device, InplaceOp2, InplaceOp3, Layout, Result, Storage, Tensor, bail};

use crate::ops::matmul::{Into, View, gemm_strided};
use crate::spec::model::{Activation, Norm};

static COMPOSED: AtomicBool = AtomicBool::new(false);

/// From here on the CPU computes as other devices do, by candle's operations alone: so that what runs on Metal can be
/// proved on a machine without it.
pub fn compose_everything() {
    COMPOSED.store(true, Relaxed);
}

/// Whether this tensor is worked on by the fused kernels.
pub(crate) fn fused(t: &Tensor) -> bool {
    fused_on(t.device())
}

/// Whether tensors on this device are.
pub(crate) fn fused_on(device: &Device) -> bool {
    device.is_cpu() && !COMPOSED.load(Relaxed)
}

/// Calls `f` with the numbers of a contiguous f32 tensor on the CPU.
pub(crate) fn with_slice<R>(t: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = t.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(slice(storage, layout)?)),
        _ => bail!("expected a tensor on the CPU"),
    }
}

fn like(t: &Tensor, data: Vec<f32>) -> Result<Tensor> {
    Tensor::from_vec(data, t.shape(), t.device())
}

fn map1(x: &Tensor, f: impl FnOnce(&[f32]) -> Vec<f32>) -> Result<Tensor> {
    like(x, with_slice(x, f)?)
}

fn map2(x: &Tensor, y: &Tensor, f: impl FnOnce(&[f32], &[f32]) -> Vec<f32>) -> Result<Tensor> {
    like(x, with_slice(x, |x| with_slice(y, |y| f(x, y)))??)
}

/// A frozen norm.
#[derive(Clone, Debug)]
pub(crate) struct NormWeights {
    weight: Tensor,
    bias: Option<Tensor>,
    eps: f64,
}

impl NormWeights {
    /// `weight` and `bias` as stored; the family's offset is added here, once.
    pub(crate) fn new(norm: &Norm, weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let weight = (weight.to_dtype(DType::F32)? + norm.offset)?;
        let bias = bias.map(|b| b.to_dtype(DType::F32)).transpose()?;
        Ok(Self { weight, bias, eps: norm.eps })
    }

    /// `y [rows, width]`
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if !fused(x) {
            return self.forward_composed(x);
        }
        let eps = self.eps as f32;
        match &self.bias {
            Some(b) => with_slice(b, |b| map2(x, &self.weight, |x, w| kernels::layer_norm(x, w, b, eps)))?,
            None => map2(x, &self.weight, |x, w| kernels::rms_norm(x, w, eps)),
        }
    }

    /// Gradient with respect to `x`.
    pub(crate) fn backward(&self, x: &Tensor, g: &Tensor) -> Result<Tensor> {
        if !fused(x) {
            return self.backward_composed(x, g);
        }
        let (eps, layer) = (self.eps as f32, self.bias.is_some());
        with_slice(&self.weight, |w| {
            map2(
                x,
                g,
                |x, g| {
                    if layer { kernels::layer_norm_bwd(x, w, eps, g) } else { kernels::rms_norm_bwd(x, w, eps, g) }
                },
            )
        })?
    }

    /// `(x_hat, 1 / std)` with the mean removed for a layer norm.
    fn normalised(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let x = if self.bias.is_some() { x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)? } else { x.clone() };
        let inv = (x.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?.sqrt()?.recip()?;
        Ok((x.broadcast_mul(&inv)?, inv))
    }

    fn forward_composed(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.normalised(x)?.0.broadcast_mul(&self.weight)?;
        match &self.bias {
            Some(b) => y.broadcast_add(b),
            None => Ok(y),
        }
    }

    fn backward_composed(&self, x: &Tensor, g: &Tensor) -> Result<Tensor> {
        let (x_hat, inv) = self.normalised(x)?;
        let gw = g.broadcast_mul(&self.weight)?;
        let along = x_hat.broadcast_mul(&(&gw * &x_hat)?.mean_keepdim(D::Minus1)?)?;
        let mut dx = (&gw - along)?;
        if self.bias.is_some() {
            dx = dx.broadcast_sub(&gw.mean_keepdim(D::Minus1)?)?;
        }
        dx.broadcast_mul(&inv)
    }
}

/// `act(x)`
pub(crate) fn act(a: Activation, x: &Tensor) -> Result<Tensor> {
    if fused(x) { map1(x, |x| kernels::act(a, x)) } else { composed_act(a, x) }
}

/// `act'(x) g`; uses up `g`.
pub(crate) fn act_bwd(a: Activation, x: &Tensor, g: Tensor) -> Result<Tensor> {
    if !fused(x) {
        return composed_slope(a, x)? * g;
    }
    g.inplace_op2(x, &ActBackward(a))?;
    Ok(g)
}

/// `act(gate) * up`
pub(crate) fn gated(a: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if fused(gate) { map2(gate, up, |x, y| kernels::gated(a, x, y)) } else { composed_act(a, gate)? * up }
}

/// Gradients of [`gated`] with respect to gate and up; uses up `up`.
pub(crate) fn gated_bwd(a: Activation, gate: &Tensor, up: Tensor, g: &Tensor) -> Result<(Tensor, Tensor)> {
    if !fused(gate) {
        return Ok((((composed_slope(a, gate)? * up)? * g)?, (composed_act(a, gate)? * g)?));
    }
    let op = GatedBackward { activation: a, dgate: Mutex::default() };
    up.inplace_op3(gate, g, &op)?;
    let dgate = op.dgate.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok((like(gate, dgate)?, up))
}

struct ActBackward(Activation);

impl InplaceOp2 for ActBackward {
    fn name(&self) -> &'static str {
        "activation-backward"
    }

    fn cpu_fwd(&self, g: &mut CpuStorage, lg: &Layout, x: &CpuStorage, lx: &Layout) -> Result<()> {
        kernels::act_bwd(self.0, slice(x, lx)?, slice_mut(g, lg)?);
        Ok(())
    }
}

struct GatedBackward {
    activation: Activation,
    dgate: Mutex<Vec<f32>>,
}

impl InplaceOp3 for GatedBackward {
    fn name(&self) -> &'static str {
        "gated-backward"
    }

    fn cpu_fwd(
        &self,
        up: &mut CpuStorage,
        lu: &Layout,
        gate: &CpuStorage,
        lgate: &Layout,
        g: &CpuStorage,
        lg: &Layout,
    ) -> Result<()> {
        let dgate = kernels::gated_bwd(self.activation, slice(gate, lgate)?, slice_mut(up, lu)?, slice(g, lg)?);
        *self.dgate.lock().unwrap_or_else(PoisonError::into_inner) = dgate;
        Ok(())
    }
}

/// `a + b`, where nobody else holds `a`: on the CPU it is done in its memory.
pub(crate) fn add(a: Tensor, b: &Tensor) -> Result<Tensor> {
    if !fused(&a) {
        return a.broadcast_add(b);
    }
    a.inplace_op2(b, &AddInto)?;
    Ok(a)
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

/// `scale * a b` of two matrices with any strides.
pub(crate) fn product(a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    if !fused(a) {
        let y = a.matmul(b)?;
        return if scale == 1.0 { Ok(y) } else { y * scale };
    }
    let data = with_view(a, |a| with_view(b, |b| crate::ops::matmul::product(a, b, scale as f32)))??;
    Tensor::from_vec(data, (a.dim(0)?, b.dim(1)?), a.device())
}

/// Calls `f` with a matrix on the CPU, whatever its strides.
fn with_view<R>(t: &Tensor, f: impl FnOnce(View<'_>) -> R) -> Result<R> {
    let (storage, layout) = t.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(view(storage, layout)?)),
        _ => bail!("expected a tensor on the CPU"),
    }
}

/// Writes `a b` into the columns of `out` from `first` on; nobody else holds `out`, which is on the CPU.
pub(crate) fn product_into_columns(out: &Tensor, first: usize, a: &Tensor, b: &Tensor) -> Result<()> {
    out.inplace_op3(a, b, &Product { first_column: first, scale: 1.0, into: Into::Overwrite })
}

/// `out + scale * a b`, where nobody else holds `out`: on the CPU it is done in its memory.
pub(crate) fn add_product(out: Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    if !fused(&out) {
        return &out + (a.contiguous()?.matmul(b)? * scale)?;
    }
    out.inplace_op3(a, b, &Product { first_column: 0, scale, into: Into::Accumulate })?;
    Ok(out)
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

fn numbers(storage: &CpuStorage) -> Result<&[f32]> {
    match storage {
        CpuStorage::F32(data) => Ok(data),
        _ => bail!("expected f32 numbers"),
    }
}

pub(super) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&numbers(storage)?[start..end]),
        None => bail!("expected a contiguous tensor, got {layout:?}"),
    }
}

pub(super) fn slice_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&mut data[start..end]),
        _ => bail!("expected contiguous f32 numbers, got {layout:?}"),
    }
}

fn view<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<View<'a>> {
    let &[row_stride, col_stride] = layout.stride() else { bail!("expected a matrix, got {layout:?}") };
    let data = &numbers(storage)?[layout.start_offset()..];
    Ok(View::strided(data, layout.shape().dims2()?, (row_stride, col_stride)))
}

fn composed_act(a: Activation, x: &Tensor) -> Result<Tensor> {
    match a {
        Activation::Silu => x.silu(),
        Activation::GeluTanh => x.gelu(),
        Activation::Gelu => x.gelu_erf(),
    }
}

fn composed_slope(a: Activation, x: &Tensor) -> Result<Tensor> {
    match a {
        Activation::Silu => {
            let s = (x.neg()?.exp()? + 1.0)?.recip()?;
            let inner = (x * s.affine(-1.0, 1.0)?)?.affine(1.0, 1.0)?;
            s * inner
        }
        Activation::GeluTanh => {
            const C: f64 = 0.797_884_560_802_865_4; // sqrt(2 / pi)
            const A: f64 = 0.044_715;
            let x2 = x.sqr()?;
            let t = ((x * x2.affine(A, 1.0)?)? * C)?.tanh()?;
            let dt = (t.sqr()?.affine(-1.0, 1.0)? * x2.affine(3.0 * A * C, C)?)?;
            t.affine(0.5, 0.5)? + ((x * dt)? * 0.5)?
        }
        Activation::Gelu => {
            let cdf = (x / std::f64::consts::SQRT_2)?.erf()?.affine(0.5, 0.5)?;
            let pdf = ((x.sqr()? * -0.5)?.exp()? * 0.398_942_280_401_432_7)?; // 1 / sqrt(2 pi)
            cdf + (x * pdf)?
        }
    }
}

/// Cosines and sines for every position: `[positions, half]` each.
#[derive(Clone, Debug)]
pub(crate) struct RopeTables {
    cos: Tensor,
    sin: Tensor,
    half: usize,
}

impl RopeTables {
    /// From inverse frequencies and the factor that some scalings put on both tables.
    pub(crate) fn new(inv_freq: &[f64], factor: f64, positions: usize, device: &candle_core::Device) -> Result<Self> {
        let half = inv_freq.len();
        let angles = || (0..positions).flat_map(|p| inv_freq.iter().map(move |f| (p as f64 * f) as f32));
        let cos: Vec<f32> = angles().map(|a| a.cos() * factor as f32).collect();
        let sin: Vec<f32> = angles().map(|a| a.sin() * factor as f32).collect();
        let make = |v| Tensor::from_vec(v, (positions, half), device);
        Ok(Self { cos: make(cos)?, sin: make(sin)?, half })
    }

    /// Rotates `x [rows, heads * head_dim]`; row r stands at `positions[r]`. `backward` rotates back.
    pub(crate) fn apply(&self, x: &Tensor, head_dim: usize, positions: &[u32], backward: bool) -> Result<Tensor> {
        let sign = if backward { -1.0 } else { 1.0 };
        if !fused(x) {
            return self.apply_composed(x, head_dim, positions, sign);
        }
        let data = with_slice(x, |x| {
            with_slice(&self.cos, |cos| {
                with_slice(&self.sin, |sin| {
                    kernels::rope(
                        x,
                        head_dim,
                        &kernels::RopeTable { cos, sin, half: self.half },
                        positions,
                        sign as f32,
                    )
                })
            })
        })???;
        like(x, data)
    }

    fn apply_composed(&self, x: &Tensor, head_dim: usize, positions: &[u32], sign: f64) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let index = Tensor::from_slice(positions, rows, x.device())?;
        let cos = self.cos.index_select(&index, 0)?.unsqueeze(1)?;
        let sin = (self.sin.index_select(&index, 0)?.unsqueeze(1)? * sign)?;
        let heads = x.reshape((rows, width / head_dim, head_dim))?;
        let (a, b) = (heads.narrow(2, 0, self.half)?, heads.narrow(2, self.half, self.half)?);
        let rest = heads.narrow(2, 2 * self.half, head_dim - 2 * self.half)?;
        let ra = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let rb = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        Tensor::cat(&[ra, rb, rest], 2)?.reshape((rows, width))?.contiguous()
    }
}

/// Sum of the cross-entropies of `logits [rows, vocab]` and its gradient times `scale`; uses up the logits.
pub(crate) fn cross_entropy(
    logits: Tensor,
    targets: &[u32],
    softcap: Option<f64>,
    scale: f64,
) -> Result<(f64, Tensor)> {
    if !fused(&logits) {
        return cross_entropy_composed(&logits, targets, softcap, scale);
    }
    let op = CrossEntropy { targets, softcap: softcap.map(|c| c as f32), scale: scale as f32, loss: 0.0.into() };
    logits.inplace_op1(&op)?;
    let loss = *op.loss.lock().unwrap_or_else(PoisonError::into_inner);
    Ok((loss, logits))
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

fn cross_entropy_composed(z: &Tensor, targets: &[u32], softcap: Option<f64>, scale: f64) -> Result<(f64, Tensor)> {
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

#[cfg(test)]
#[path = "ops_tests.rs"]
mod tests;
