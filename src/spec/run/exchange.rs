//! Forms in which a model or an adapter leaves.

use serde::Serialize;

/// What `headroom export` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// The adapter as PEFT has it: a folder
    Peft,
    /// The adapter as mlx-lm has it: a folder
    MlxLm,
    /// The base with the adapter worked in, as transformers and mlx-lm load it: a folder
    Fused,
    /// The same as one file for llama.cpp and Ollama; without an adapter, the base alone
    Gguf,
    /// The adapter as one file, beside a base in GGUF
    GgufAdapter,
}

impl Format {
    /// As typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Peft => "peft",
            Self::MlxLm => "mlx-lm",
            Self::Fused => "fused",
            Self::Gguf => "gguf",
            Self::GgufAdapter => "gguf-adapter",
        }
    }

    /// One file, and not a folder.
    pub fn is_file(self) -> bool {
        matches!(self, Self::Gguf | Self::GgufAdapter)
    }
}
