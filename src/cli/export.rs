//! Options of the commands that use an adapter: `generate`, `export`.

use std::path::PathBuf;

use clap::Args;

use super::plan::DeviceArgs;
use super::values::{share, temperature, tokens, weights};
use crate::spec::run::Weights;
use crate::spec::run::export_format::ExportFormat;

/// `headroom generate`
#[derive(Args, Clone, Debug)]
pub(crate) struct GenerateArgs {
    /// Prompt
    pub prompt: String,
    /// Model name or folder [default: the run's model, or the bundled one]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Folder of a run, or of an adapter written by PEFT or mlx-lm
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Show the answer without the adapter too
    #[arg(long, requires = "adapter")]
    pub compare: bool,
    /// Sampling temperature; 0 is greedy
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature)]
    pub temperature: f64,
    /// Nucleus sampling threshold
    #[arg(long, value_name = "P", value_parser = share)]
    pub top_p: Option<f64>,
    /// Sampling seed
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Maximum number of new tokens
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = tokens)]
    pub max_tokens: usize,
    /// Continue the prompt as plain text [default: as the run's rows were trained]
    #[arg(long, conflicts_with = "chat")]
    pub raw: bool,
    /// Put the prompt into the model's chat template, as a user's message
    #[arg(long)]
    pub chat: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// `headroom export`
#[derive(Args, Clone, Debug)]
pub(crate) struct ExportArgs {
    /// Folder of a run, or of an adapter written by PEFT or mlx-lm [default: the base model alone]
    #[arg(value_name = "DIR")]
    pub source: Option<PathBuf>,
    /// Format to write
    #[arg(long, value_enum)]
    pub format: ExportFormat,
    /// Folder or file to write
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
    /// Base model name or folder [default: the run's, or the one the adapter names]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Weight format of the matrices of a GGUF or a fused model [default: as stored, or 16 bits where the base is quantised]
    #[arg(long, value_name = "FORMAT", value_parser = weights())]
    pub weights: Option<Weights>,
    /// Replace what is there
    #[arg(long)]
    pub force: bool,
}
