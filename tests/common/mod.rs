//! What several tests know of the fixtures.

#![allow(dead_code)] // none of them needs all of it

use std::path::{Path, PathBuf};

/// The models that `tests/fixtures/reference/make.py` made.
pub const FAMILIES: [&str; 14] = [
    "llama",
    "llama3_rope",
    "llama_linear_rope",
    "llama_yarn",
    "llama_biased",
    "mistral",
    "qwen2",
    "qwen2_untied",
    "qwen3",
    "starcoder2",
    "gpt2",
    "gemma2",
    "gemma3",
    "phi3",
];

/// A file or folder of the fixtures.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}
