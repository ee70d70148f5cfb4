//! Activations of an MLP, gated or not.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, InplaceOp2, InplaceOp3, Layout, Result, Tensor};

use crate::ops::access::*;
use crate::ops::backend::Backend;
use crate::ops::kernels;
use crate::spec::model::Activation;

impl Backend {
    /// `act(x)`
    pub(crate) fn act(self, a: Activation, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Fused => map1(x, |x| kernels::act(a, x)),
            Self::Metal(queue) => queue.act(a, x),
            Self::Composed => composed_act(a, x),
        }
    }

    /// `act'(x) g`; uses up `g`.
    pub(crate) fn act_bwd(self, a: Activation, x: &Tensor, g: Tensor) -> Result<Tensor> {
        match self {
            Self::Fused => g.inplace_op2(x, &ActBackward(a))?,
            Self::Metal(queue) => queue.act_back(a, x, &g)?,
            Self::Composed => return composed_slope(a, x)? * g,
        }
        Ok(g)
    }

    /// `act(gate) * up`
    pub(crate) fn gated(self, a: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        match self {
            Self::Fused => map2(gate, up, |x, y| kernels::gated(a, x, y)),
            Self::Metal(queue) => queue.gated(a, gate, up),
            Self::Composed => composed_act(a, gate)? * up,
        }
    }

    /// Gradients of [`Backend::gated`] with respect to gate and up, the latter in its place; uses up `up` and `g`.
    pub(crate) fn gated_bwd(self, a: Activation, gate: &Tensor, up: Tensor, g: Tensor) -> Result<(Tensor, Tensor)> {
        match self {
            Self::Fused => {
                let op = GatedBackward { activation: a, dgate: Mutex::default() };
                up.inplace_op3(gate, &g, &op)?;
                let dgate = op.dgate.into_inner().unwrap_or_else(PoisonError::into_inner);
                return Ok((like(gate, dgate)?, up));
            }
            Self::Metal(queue) => queue.gated_back(a, gate, &up, &g)?,
            Self::Composed => return Ok((((composed_slope(a, gate)? * up)? * &g)?, (composed_act(a, gate)? * g)?)),
        }
        Ok((g, up))
    }
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

pub(super) fn composed_act(a: Activation, x: &Tensor) -> Result<Tensor> {
    match a {
        Activation::Silu => x.silu(),
        Activation::GeluTanh => x.gelu(),
        Activation::Gelu => x.gelu_erf(),
    }
}

pub(super) fn composed_slope(a: Activation, x: &Tensor) -> Result<Tensor> {
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
