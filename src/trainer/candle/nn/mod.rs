//! The network: projections with their adapters, blocks, the decoder, each with its backward pass.

pub mod adapter;
pub mod block;
pub mod decoder;
pub mod dora;
pub mod frozen;
pub mod linear;
pub mod load;
pub mod norms;
pub mod panels;
