//! Sizes that our own engine works in, fixed for every run: the engine keeps to them, and the ledger counts with them.

/// An f32 panel of a frozen weight is at most about this large: large enough for the product to run at full speed,
/// small beside anything else.
pub(crate) const PANEL_BYTES: usize = 32 << 20;

/// The same on Metal, where a product into some columns is a product and a copy, and 64 MiB are a power of two.
pub(crate) const METAL_PANEL_BYTES: usize = 64 << 20;

/// Most columns of a matrix that Metal's kernel for low ranks multiplies by: more are a product and a sum.
pub(crate) const LOW_RANK: usize = 128;

/// Parts that Metal leaves the sum of a tensor's squares in.
pub(crate) const NORM_PARTS: usize = 256;

fn rows(bytes: usize, width: usize) -> usize {
    (bytes / (size_of::<f32>() * width)).max(1)
}

/// Rows of an f32 panel of a weight of this width.
pub(crate) fn panel_rows(width: usize) -> usize {
    rows(PANEL_BYTES, width)
}

/// Rows of an f32 panel on Metal.
pub(crate) fn metal_panel_rows(width: usize) -> usize {
    rows(METAL_PANEL_BYTES, width)
}
