//! All of `tests/reference.rs` and `tests/formats.rs` again, computed by candle's operations alone in the place of the
//! fused CPU kernels: this is what runs on Metal, proved where there is none.

#[path = "reference.rs"]
mod reference;

#[path = "formats.rs"]
mod formats;
