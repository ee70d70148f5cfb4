//! What a block works on, and what its forward pass leaves for the backward pass.

use std::ops::Range;

use candle_core::Tensor;

use crate::ops::Index;

/// A micro-batch as the blocks see it.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    /// Each example's rows.
    pub examples: Vec<Range<usize>>,
    /// Each row's place in its example.
    pub positions: Index,
    /// Run seed and micro-batch, for dropout; `None` outside of training.
    pub dropout: Option<(u64, u64)>,
}

/// What forward leaves for backward when nothing is to be made again.
#[derive(Debug)]
pub(crate) struct Tape {
    pub(super) x: Tensor,
    pub(super) attention: AttentionTape,
    pub(super) mid: Tensor,
    pub(super) mlp: Option<(Tensor, Option<Tensor>)>,
}

#[derive(Debug)]
pub(super) struct AttentionTape {
    pub(super) normed: Tensor,
    /// Before the head norms, where there are any.
    pub(super) raw: Option<(Tensor, Tensor)>,
    pub(super) q: Tensor,
    pub(super) k: Tensor,
    pub(super) v: Tensor,
    pub(super) out: Tensor,
}

/// What attention takes, `[rows, heads * head_dim]` each.
pub(super) struct Projected {
    /// Queries and keys before the head norms, where there are any.
    pub(super) raw: Option<(Tensor, Tensor)>,
    pub(super) q: Tensor,
    pub(super) k: Tensor,
    pub(super) v: Tensor,
}
