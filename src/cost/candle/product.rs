//! What the `gemm` crate packs for itself while a product runs: a mirror of `gemm_basic_generic` and `kernel_params` of
//! `gemm-common` 0.19. It works on the transposed product, so that its "left" is our right.

use crate::cost::ledger::F32;
use crate::spec::machine::processor::{Cache, Instructions, Processor};

/// Inner elements are taken at least this many at a time, where there are so many.
const DEPTH: u64 = 512;
/// Rows and columns up to which the sizes of the caches are not asked.
const SMALL: u64 = 64;
/// Tiles of the left matrix, more than which are not packed at one time.
const MOST_TILES: u64 = 8;

/// Rows and columns of a kernel's tile.
fn tile(instructions: Instructions) -> (u64, u64) {
    match instructions {
        Instructions::Avx512 => (64, 6),
        Instructions::Fma => (16, 6),
        Instructions::Neon => (16, 4),
        Instructions::Scalar => (2, 4),
    }
}

/// Columns, in tiles, beyond which the other side is packed though it lies along its rows.
fn far(instructions: Instructions) -> u64 {
    // On Arm it is packed early, as its kernel wants it so.
    if instructions == Instructions::Neon { 2 } else { 128 }
}

/// A matrix product, `[rows, depth] x [depth, columns]`.
pub(super) struct Product {
    pub rows: u64,
    pub depth: u64,
    pub columns: u64,
    /// Whether the left matrix is read across its rows in memory, as a transposed one is.
    pub left_across: bool,
    /// Whether the right matrix is read across its rows in memory, as a transposed one is.
    pub right_across: bool,
}

impl Product {
    /// The product `x W`, both as they lie in memory.
    pub(super) fn plain(rows: u64, depth: u64, columns: u64) -> Self {
        Self { rows, depth, columns, left_across: false, right_across: false }
    }

    /// The product `x W'`, with the right matrix transposed.
    pub(super) fn with_transposed(rows: u64, depth: u64, columns: u64) -> Self {
        Self { right_across: true, ..Self::plain(rows, depth, columns) }
    }

    /// The product `g' x`, with the left matrix transposed.
    pub(super) fn of_transposed(rows: u64, depth: u64, columns: u64) -> Self {
        Self { left_across: true, ..Self::plain(rows, depth, columns) }
    }

    /// Bytes packed by this processor, beside the slabs that stay.
    pub(super) fn packed(&self, processor: &Processor) -> u64 {
        let columns = self.columns;
        if self.depth <= 2 || self.rows <= 1 || columns <= 1 {
            return 0;
        }
        let ((height, width), kind) = (tile(processor.instructions), processor.instructions);
        let Blocks { depth, right: block, left: span } = self.blocks(processor);
        let left =
            columns > far(kind) * height || kind != Instructions::Neon && self.left_across && columns > 2 * height;
        let right = columns <= 2 * block && (self.right_across || !columns.is_multiple_of(kind.lanes() as u64));
        let left = if left { span / width * width } else { 0 };
        let right = if right { columns.next_multiple_of(height) } else { 0 };
        F32 * depth * (left + right)
    }

    /// Sizes of the blocks, as `kernel_params` chooses them, with left and right exchanged.
    fn blocks(&self, processor: &Processor) -> Blocks {
        let (height, width) = tile(processor.instructions);
        let [l1, l2, l3] = processor.caches;
        if self.columns <= SMALL && self.rows <= SMALL {
            let depth = self.depth.min(DEPTH);
            let right = l2.bytes as u64 / F32 / depth / height * height;
            return Blocks { depth, right, left: self.rows.next_multiple_of(width) };
        }
        let most = depth_of(l1, (height, width)).max(DEPTH).min(self.depth);
        let depth = self.depth.div_ceil(self.depth.div_ceil(most));
        let ways = l2.ways.max(2) as u64;
        let strip = (width * depth * F32).div_ceil(l2.bytes as u64 / ways);
        let kept = ways.saturating_sub(1 + strip).max(1);
        let block = (kept * l2.bytes as u64 / (ways * F32 * depth) / height * height).max(height);
        let right = self.columns.div_ceil(self.columns.div_ceil(block) * height) * height;
        // Without a third level the rows are taken all at once by several threads.
        let left = match l3.bytes as u64 {
            0 => self.rows.next_multiple_of(width),
            bytes => {
                let ways = l3.ways.max(2) as u64;
                let span = ((ways - 1) * bytes / ways / (F32 * depth) / width * width).max(width);
                self.rows.div_ceil(self.rows.div_ceil(span) * width) * width
            }
        };
        Blocks { depth, right: right.min(MOST_TILES * height), left }
    }
}

/// How a product is cut: the inner elements, our right's columns and our left's rows that are worked on at one time.
struct Blocks {
    depth: u64,
    right: u64,
    left: u64,
}

/// Inner elements for which a strip of either side stays in the first cache.
fn depth_of(l1: Cache, (height, width): (u64, u64)) -> u64 {
    let (bytes, ways, line) = (l1.bytes.max(32 << 10) as u64, l1.ways.max(2) as u64, l1.line.max(64) as u64);
    let row = bytes / (line * ways) * line;
    let common = gcd(height * F32, row);
    let (least, left) = (row / common, height * F32 / common);
    let right = width * least * F32 / row;
    least * (ways / (left + right)).next_power_of_two()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_what_lies_across_and_what_leaves_a_remainder() {
        let of = |p: Product| p.packed(&Processor::default()) / F32;
        assert_eq!(of(Product::plain(100, 500, 576)), 0);
        assert_eq!(of(Product::plain(100, 500, 577)), 500 * 640);
        assert_eq!(of(Product::with_transposed(100, 576, 576)), 288 * 576);
        // Too wide to be packed as a whole: the threads pack it into their slabs.
        assert_eq!(of(Product::with_transposed(100, 576, 1536)), 0);
        // So wide that packing the other side pays.
        assert_eq!(of(Product::with_transposed(100, 576, 49152)), 288 * 102);
        assert_eq!(of(Product::of_transposed(8, 1024, 576)), 512 * 12);
    }

    #[test]
    fn blocks_are_those_of_the_crate_on_this_processor() {
        use gemm_common::cache::{CACHE_INFO, kernel_params};
        let level = |i: usize| Cache {
            bytes: CACHE_INFO[i].cache_bytes,
            ways: CACHE_INFO[i].associativity,
            line: CACHE_INFO[i].cache_line_bytes,
        };
        let caches = [level(0), level(1), level(2)];
        let mut seen = 0;
        for instructions in [Instructions::Avx512, Instructions::Fma, Instructions::Neon, Instructions::Scalar] {
            let processor = Processor { caches, instructions };
            let (height, width) = tile(instructions);
            for (rows, depth, columns) in
                [(100, 576, 1536), (7, 64, 65), (900, 8, 4000), (65, 4096, 64), (3000, 1537, 99_999), (512, 513, 513)]
            {
                let theirs = kernel_params(columns, rows, depth, height as usize, width as usize, F32 as usize);
                let ours = Product::plain(rows as u64, depth as u64, columns as u64).blocks(&processor);
                assert_eq!((ours.depth, ours.right), (theirs.kc as u64, theirs.mc as u64), "{instructions:?}");
                if theirs.nc > 0 {
                    assert_eq!(ours.left, theirs.nc as u64, "{instructions:?} {rows} {depth} {columns}");
                    seen += 1;
                }
            }
        }
        assert!(caches[2].bytes == 0 || seen == 24);
    }
}
