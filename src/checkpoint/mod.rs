//! What is on disk and how a frozen matrix is held: safetensors, GGUF, the codes of MLX and GGML, adapters, tokenizers and
//! chat templates.

pub mod adapter;
pub mod affine;
pub mod finite;
pub mod ggml;
pub mod gguf;
mod gguf_header;
mod int8;
pub mod safetensors;
pub mod source;
pub mod stored;
pub mod tensor_file;
pub mod text;
pub mod weights;
