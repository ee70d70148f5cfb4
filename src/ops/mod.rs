//! The differentiable operations a decoder needs besides matrix products, forward and backward.
//!
//! Each takes contiguous `f32` tensors of `[rows, width]`. On the CPU they run as one fused, threaded kernel, on a Mac's
//! GPU as a kernel of the same buffers; the same formulas composed of candle's operations are what both are held to.

mod access;
mod activation;
pub(crate) mod attention;
mod backend;
mod cross_entropy;
pub mod device;
pub(crate) mod dropout;
mod index;
pub(crate) mod kernels;
pub(crate) mod matmul;
pub mod metal;
mod norm;
mod product;
mod rope;
mod vector;

#[cfg(test)]
pub(crate) mod testing;

pub(crate) use self::access::*;
pub use self::backend::Backend;
pub(crate) use self::cross_entropy::Losses;
pub(crate) use self::index::Index;
pub(crate) use self::norm::NormWeights;
pub(crate) use self::rope::RopeTables;

#[cfg(test)]
#[path = "ops_tests.rs"]
mod tests;
