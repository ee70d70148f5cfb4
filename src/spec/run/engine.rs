//! Sizes that our own engine works in, fixed for every run: the engine keeps to them, and the ledger counts with them.

/// An f32 panel of a frozen weight is at most about this large: large enough for the product to run at full speed,
/// small beside anything else.
pub(crate) const PANEL_BYTES: usize = 32 << 20;

/// The same on Metal, where a product into some columns is a product and a copy, and 64 MiB are a power of two.
pub(crate) const METAL_PANEL_BYTES: usize = 64 << 20;

/// Rows of an f32 panel of a weight of this width.
pub(crate) fn panel_rows(width: usize) -> usize {
    (PANEL_BYTES / (size_of::<f32>() * width)).max(1)
}

/// Rows of an f32 panel on Metal.
pub(crate) fn metal_panel_rows(width: usize) -> usize {
    (METAL_PANEL_BYTES / (size_of::<f32>() * width)).max(1)
}
