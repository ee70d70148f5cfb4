//! A decoder's architecture, from any Hugging Face `config.json`.
//!
//! Families differ by data, not by code: every difference that matters for memory, time or the
//! forward pass is a field of [`ModelSpec`]. Names are Hugging Face's.

mod architecture;
pub mod catalogue;
mod config;
mod families;
pub(crate) mod frequencies;
pub(crate) mod gguf;
mod quantization;
mod rope;
pub mod storage;
pub mod tensors;
pub(crate) mod weights;
mod windows;

pub use self::architecture::*;
pub(crate) use self::storage::Dtype;
pub(crate) use self::weights::{MLX_GROUP, Weights};
