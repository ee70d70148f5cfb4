//! The differentiable operations a decoder needs besides matrix products, forward and backward.
//!
//! Each takes contiguous `f32` tensors of `[rows, width]`. On the CPU they run as one fused, threaded
//! kernel; elsewhere as the same formula composed of candle's ops, which have Metal kernels.

mod access;
mod activation;
pub(crate) mod attention;
mod backend;
mod cross_entropy;
pub mod device;
pub(crate) mod dropout;
pub(crate) mod kernels;
pub(crate) mod matmul;
mod norm;
mod product;
mod rope;
mod vector;

#[cfg(test)]
pub(crate) mod testing;

pub(crate) use self::access::*;
pub use self::backend::Backend;
pub(crate) use self::norm::NormWeights;
pub(crate) use self::product::{place_rows, product_into_columns};
pub(crate) use self::rope::RopeTables;

#[cfg(test)]
#[path = "ops_tests.rs"]
mod tests;
