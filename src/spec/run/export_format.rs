//! Formats that `headroom export` writes for other tools.

use serde::Serialize;

/// Format in which `headroom export` writes an adapter or a merged model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExportFormat {
    /// The adapter as PEFT loads it, a folder.
    Peft,
    /// The adapter as mlx-lm loads it, a folder.
    MlxLm,
    /// The merged model as transformers and mlx-lm load it, a folder in the base's sharding and dtype.
    Fused,
    /// The merged model, or without an adapter the base alone, as one file for llama.cpp and Ollama.
    Gguf,
    /// The adapter as one file, to be used with a base model in GGUF.
    GgufAdapter,
}

impl ExportFormat {
    /// Every export format, in the order in which they are listed.
    pub(crate) const ALL: [Self; 5] = [Self::Peft, Self::MlxLm, Self::Fused, Self::Gguf, Self::GgufAdapter];

    /// Description of the format in a few words, for help texts.
    pub(crate) fn about(self) -> &'static str {
        match self {
            Self::Peft => "Adapter for PEFT (folder)",
            Self::MlxLm => "Adapter for mlx-lm (folder)",
            Self::Fused => "Merged model for transformers and mlx-lm (folder)",
            Self::Gguf => "Merged model, or the base alone, for llama.cpp and Ollama (file)",
            Self::GgufAdapter => "Adapter for llama.cpp (file)",
        }
    }

    /// Name of the format as typed on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Peft => "peft",
            Self::MlxLm => "mlx-lm",
            Self::Fused => "fused",
            Self::Gguf => "gguf",
            Self::GgufAdapter => "gguf-adapter",
        }
    }

    /// Whether the export is one file and not a folder.
    pub(crate) fn is_file(self) -> bool {
        matches!(self, Self::Gguf | Self::GgufAdapter)
    }
}
