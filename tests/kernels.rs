//! All of `tests/reference.rs`, `tests/formats.rs` and `tests/inference.rs` again, by the Metal back end: its launches one
//! for one, to its kernels compiled as C++. What is left to a Mac to prove are candle's products and Apple's compiler.

#![allow(clippy::duplicate_mod)] // each of them has tests/common, as it must where it stands alone

#[path = "reference/main.rs"]
mod reference;

#[path = "formats/main.rs"]
mod formats;

#[path = "inference.rs"]
mod inference;
