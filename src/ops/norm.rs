//! Frozen RMS and layer norms.

use candle_core::{D, DType, Device, Result, Tensor};

use crate::ops::access::*;
use crate::ops::backend::Backend;
use crate::ops::kernels;
use crate::spec::model::Norm;

/// A frozen norm.
#[derive(Clone, Debug)]
pub(crate) struct NormWeights {
    backend: Backend,
    weight: Tensor,
    bias: Option<Tensor>,
    eps: f64,
}

impl NormWeights {
    /// `weight` and `bias` as stored, on the CPU; the family's offset is added here, once.
    pub(crate) fn new(
        norm: &Norm,
        weight: &Tensor,
        bias: Option<&Tensor>,
        (device, backend): (&Device, Backend),
    ) -> Result<Self> {
        let put = |t: Tensor| backend.upload(t.to_vec1::<f32>()?, t.shape(), device);
        let weight = put((weight.to_dtype(DType::F32)? + norm.offset)?)?;
        let bias = bias.map(|b| put(b.to_dtype(DType::F32)?)).transpose()?;
        Ok(Self { backend, weight, bias, eps: norm.eps })
    }

    /// `y [rows, width]`
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self.backend {
            Backend::Fused => {}
            Backend::Metal(queue) => return queue.norm(x, &self.weight, self.bias.as_ref(), self.eps),
            Backend::Composed => return self.forward_composed(x),
        }
        let eps = self.eps as f32;
        match &self.bias {
            Some(b) => with_slice(b, |b| map2(x, &self.weight, |x, w| kernels::layer_norm(x, w, b, eps)))?,
            None => map2(x, &self.weight, |x, w| kernels::rms_norm(x, w, eps)),
        }
    }

    /// Gradient with respect to `x`.
    pub(crate) fn backward(&self, x: &Tensor, g: &Tensor) -> Result<Tensor> {
        match self.backend {
            Backend::Fused => {}
            Backend::Metal(queue) => return queue.norm_back(x, &self.weight, self.bias.is_some(), self.eps, g),
            Backend::Composed => return self.backward_composed(x, g),
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

    pub(super) fn forward_composed(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.normalised(x)?.0.broadcast_mul(&self.weight)?;
        match &self.bias {
            Some(b) => y.broadcast_add(b),
            None => Ok(y),
        }
    }

    pub(super) fn backward_composed(&self, x: &Tensor, g: &Tensor) -> Result<Tensor> {
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
