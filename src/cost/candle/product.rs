//! What the `gemm` crate packs for itself while a product runs: a mirror of `gemm_basic_generic` and `kernel_params` of
//! `gemm-common` 0.19 with the tiles of AVX-512. It works on the transposed product, so that its "left" is our right.

use crate::cost::candle::{F32, SLAB};

/// Rows and columns of a tile, and the numbers in a register.
const TILE: (u64, u64) = (64, 6);
const LANES: u64 = 16;
/// Inner elements are taken this many at a time at most.
const DEPTH: u64 = 512;
/// The cache's ways, of which one goes to either side's strip.
const WAYS: u64 = 16;

/// `[rows, depth] x [depth, columns]`
pub(super) struct Product {
    pub rows: u64,
    pub depth: u64,
    pub columns: u64,
    /// The left matrix is read across its rows in memory, as a transposed one is.
    pub left_across: bool,
    /// So is the right one.
    pub right_across: bool,
}

impl Product {
    /// `x W`, both as they lie in memory.
    pub(super) fn plain(rows: u64, depth: u64, columns: u64) -> Self {
        Self { rows, depth, columns, left_across: false, right_across: false }
    }

    /// `x W'`
    pub(super) fn with_transposed(rows: u64, depth: u64, columns: u64) -> Self {
        Self { right_across: true, ..Self::plain(rows, depth, columns) }
    }

    /// `g' x`
    pub(super) fn of_transposed(rows: u64, depth: u64, columns: u64) -> Self {
        Self { left_across: true, ..Self::plain(rows, depth, columns) }
    }

    /// Bytes packed, beside the slabs that stay.
    pub(super) fn packed(&self) -> u64 {
        let ((height, width), columns) = (TILE, self.columns);
        if self.depth <= 2 || self.rows <= 1 || columns <= 1 {
            return 0;
        }
        let depth = self.depth.div_ceil(self.depth.div_ceil(DEPTH));
        let left = columns > 128 * height || self.left_across && columns > 2 * height;
        let block = ((WAYS - 2) * SLAB / (WAYS * F32 * depth) / height * height).max(height);
        let block = columns.div_ceil(columns.div_ceil(block) * height) * height;
        let right = columns <= 2 * block.min(8 * height) && (self.right_across || columns % LANES != 0);
        let left = if left { self.rows.next_multiple_of(width) } else { 0 };
        let right = if right { columns.next_multiple_of(height) } else { 0 };
        F32 * depth * (left + right)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_what_lies_across_and_what_leaves_a_remainder() {
        let of = |p: Product| p.packed() / F32;
        assert_eq!(of(Product::plain(100, 500, 576)), 0);
        assert_eq!(of(Product::plain(100, 500, 577)), 500 * 640);
        assert_eq!(of(Product::with_transposed(100, 576, 576)), 288 * 576);
        // Too wide to be packed as a whole: the threads pack it into their slabs.
        assert_eq!(of(Product::with_transposed(100, 576, 1536)), 0);
        // So wide that packing the other side pays.
        assert_eq!(of(Product::with_transposed(100, 576, 49152)), 288 * 102);
        assert_eq!(of(Product::of_transposed(8, 1024, 576)), 512 * 12);
    }
}
