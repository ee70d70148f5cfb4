//! The network: projections with their adapters, blocks, the decoder, each with its backward pass.

pub mod adapter;
mod batch;
pub mod block;
pub mod decoder;
pub(crate) mod dora;
pub(crate) mod frozen;
pub(crate) mod inference;
pub(crate) mod linear;
pub mod load;
mod mlp;
pub(crate) mod norms;
pub(crate) mod panels;
mod tape;
