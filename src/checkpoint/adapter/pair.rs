//! The matrices of an adapter on one projection.

use candle_core::Tensor;

/// What learns of one projection: the update is `scale * B A`.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// `[rank, in]`
    pub a: Tensor,
    /// `[out, rank]`
    pub b: Tensor,
    /// `[out]`: the length of each output's weights, with DoRA.
    pub magnitude: Option<Tensor>,
}

/// Gradients of an adapter, in its shapes.
pub type AdapterGrad = Adapter;

impl Adapter {
    /// Its tensors, in a fixed order.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [&self.a, &self.b].into_iter().chain(&self.magnitude)
    }

    /// `f` of each of its tensors, in the same order.
    pub fn map<E>(&self, mut f: impl FnMut(&Tensor) -> std::result::Result<Tensor, E>) -> std::result::Result<Self, E> {
        Ok(Self { a: f(&self.a)?, b: f(&self.b)?, magnitude: self.magnitude.as_ref().map(f).transpose()? })
    }

    /// The gradient gathered so far, taken out of its place.
    pub(crate) fn grad_or_zero(&self, grad: &mut Option<AdapterGrad>) -> candle_core::Result<AdapterGrad> {
        match grad.take() {
            Some(old) => Ok(old),
            None => self.map(Tensor::zeros_like),
        }
    }
}
