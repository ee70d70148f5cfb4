//! The matrices of an adapter on one projection.

use candle_core::Tensor;

/// Trainable tensors of one projection: the update is `scale * B A`.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// Matrix A, `[rank, in]`.
    pub a: Tensor,
    /// Matrix B, `[out, rank]`.
    pub b: Tensor,
    /// With DoRA, the length of each output's weights, `[out]`.
    pub magnitude: Option<Tensor>,
}

/// Gradients of an adapter, in the shapes of its tensors.
pub type AdapterGrad = Adapter;

impl Adapter {
    /// The tensors A, B and magnitude (where there is one), in this order.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [&self.a, &self.b].into_iter().chain(&self.magnitude)
    }

    /// Applies `f` to each tensor of the adapter, in the order of [`Adapter::tensors`].
    pub fn map<E>(&self, mut f: impl FnMut(&Tensor) -> std::result::Result<Tensor, E>) -> std::result::Result<Self, E> {
        Ok(Self { a: f(&self.a)?, b: f(&self.b)?, magnitude: self.magnitude.as_ref().map(f).transpose()? })
    }
}
