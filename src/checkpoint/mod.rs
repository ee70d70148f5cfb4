//! What is on disk and how a frozen matrix is held: safetensors, GGUF, the codes of MLX and GGML, adapters, tokenizers and
//! chat templates.

pub mod adapter;
pub(crate) mod affine;
mod byte_level;
pub(crate) mod finite;
pub(crate) mod ggml;
pub(crate) mod gguf;
mod gguf_header;
mod gguf_metadata;
pub(crate) mod hub;
mod int8;
mod kernels;
pub(crate) mod safetensors;
mod shards;
pub mod source;
pub mod stored;
pub mod tensor_file;
pub mod text;
mod texts;
pub(crate) mod weights;
