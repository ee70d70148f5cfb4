//! The lengths of the rows of `W + scale B A`, which DoRA divides by.

use candle_core::{Result, Tensor};

use crate::checkpoint::adapter::Adapter;
use crate::ops::Backend;
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
    /// Of an adapter on a frozen weight; `earlier` are those of what was on it before.
    pub(crate) fn new(earlier: Option<Self>, frozen: &Frozen, adapter: &Adapter, scale: f64) -> Result<Self> {
        let ops = frozen.backend;
        let (squares, old) = match earlier {
            Some(norms) => (norms.squares, Some(norms.current)),
            None => (frozen.squares()?, None),
        };
        let Adapter { a, b, .. } = adapter;
        let aw = ops.turned(&frozen.product(a)?)?;
        let gram = ops.product(a, &a.t()?, 1.0)?;
        let mixed = ops.add_product(ops.scaled(aw, 2.0 * scale)?, b, &gram, scale * scale)?;
        if let Backend::Metal(queue) = ops {
            let current = match old {
                Some(current) => current,
                None => queue.fixed(squares.shape(), squares.dtype(), squares.device())?,
            };
            queue.row_dots(&mixed, b, &current)?;
            queue.lengths(&squares, &current, SMALLEST_SQUARE)?;
            return Ok(Self { squares, current });
        }
        let moved = (mixed * b)?.sum(1)?;
        let current = (&squares + moved)?.maximum(SMALLEST_SQUARE)?.sqrt()?;
        Ok(Self { squares, current })
    }
}
