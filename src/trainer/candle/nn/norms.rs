//! The lengths of the rows of `W + scale B A`, which DoRA divides by.

use candle_core::{Result, Tensor};

use crate::checkpoint::adapter::Adapter;
use crate::trainer::candle::nn::frozen::Frozen;

/// A row of weights whose square sums to less is taken to have this, so that a row of zeros stays one.
const SMALLEST_SQUARE: f64 = 1e-30;

/// The lengths that DoRA needs of a projection, `[out]` each.
#[derive(Clone, Debug)]
pub(crate) struct Norms {
    /// `||w||^2` of the frozen weight.
    pub(super) squares: Tensor,
    /// `||w + scale b A||` of the adapter as it is now.
    pub current: Tensor,
}

impl Norms {
    /// Of an adapter on a frozen weight; `earlier` are those of another adapter on it.
    pub(crate) fn new(earlier: Option<&Self>, frozen: &Frozen, adapter: &Adapter, scale: f64) -> Result<Self> {
        let squares = match earlier {
            Some(norms) => norms.squares.clone(),
            None => frozen.squares()?,
        };
        let Adapter { a, b, .. } = adapter;
        let aw = frozen.product(a)?.t()?.contiguous()?;
        let gram = frozen.backend.product(a, &a.t()?, scale * scale)?;
        let mixed = frozen.backend.add_product((aw * (2.0 * scale))?, b, &gram, 1.0)?;
        let moved = (mixed * b)?.sum(1)?;
        let current = (&squares + moved)?.maximum(SMALLEST_SQUARE)?.sqrt()?;
        Ok(Self { squares, current })
    }
}
