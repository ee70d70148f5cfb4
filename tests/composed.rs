//! All of `tests/reference.rs`, `tests/formats.rs` and `tests/inference.rs` again, computed by candle's operations alone in the place of the
//! fused CPU kernels: this is what runs on Metal, proved where there is none.

#![allow(clippy::duplicate_mod)] // each of them has tests/common, as it must where it stands alone

#[path = "reference/main.rs"]
mod reference;

#[path = "formats/main.rs"]
mod formats;

#[path = "inference.rs"]
mod inference;
