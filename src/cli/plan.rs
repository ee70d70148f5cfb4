//! Options of the commands that predict: `plan`, `predict`, `doctor`.

use std::path::PathBuf;

use clap::Args;

use super::values::{Sizes, duration, probability, sizes, weights};
use crate::spec::machine::Accelerator;
use crate::spec::run::{Engine, Prefer, Weights};
use crate::units::{Bytes, Seconds};

/// Which device computes.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct DeviceArgs {
    /// Device to train on [default: $HEADROOM_DEVICE, or Metal where it can be used]
    #[arg(long, value_enum, value_name = "DEVICE")]
    pub device: Option<Accelerator>,
}

/// Which machine is meant.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Machine [default: this one]")]
pub(crate) struct MachineArgs {
    /// Installed memory, such as 8G; without `--machine`, the most basic Mac sold with that much
    #[arg(long, value_name = "SIZE", conflicts_with = "device")]
    pub ram: Option<Bytes>,
    /// Chip, such as "M2 Pro"
    #[arg(long, value_name = "CHIP", conflicts_with = "device")]
    pub machine: Option<String>,
    /// Number of GPU cores, for chips sold with different numbers
    #[arg(long, value_name = "N", requires = "machine")]
    pub gpu_cores: Option<usize>,
    /// Major version of macOS on that Mac; Metal may use less memory up to version 15
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(13..100))]
    pub macos: Option<u32>,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Folder of measurements to calibrate with [default: $HEADROOM_RESULTS, ./results or the user's data folder]
    #[arg(long, value_name = "DIR")]
    pub results: Option<PathBuf>,
}

/// Limits that a run must stay under.
#[derive(Clone, Copy, Debug, Default, Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitArgs {
    /// Probability that an upper bound holds [default: 0.99]
    #[arg(long, value_name = "P", value_parser = probability)]
    pub confidence: Option<f64>,
    /// Memory limit of the run, where that is less than the free memory
    #[arg(long, value_name = "SIZE")]
    pub memory_limit: Option<Bytes>,
}

/// `headroom plan`
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub machine: MachineArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Longest run, such as 90m or 8h [default: 8h]
    #[arg(long, value_name = "TIME", help_heading = "Limits", value_parser = duration)]
    pub time_limit: Option<Seconds>,
    /// What comes first, after the sequence length that the data needs [default: size]
    #[arg(long, value_enum, value_name = "ORDER", help_heading = "Limits")]
    pub prefer: Option<Prefer>,
    #[command(flatten)]
    pub given: GivenArgs,
    /// File to write the run to, for `headroom launch`
    #[arg(long, value_name = "RUN.toml", help_heading = "Output")]
    pub out: Option<PathBuf>,
    /// Show every model in every format, with how far each goes
    #[arg(long, conflicts_with = "out", help_heading = "Output")]
    pub table: bool,
    /// Replace an existing file
    #[arg(long, requires = "out", help_heading = "Output")]
    pub force: bool,
}

/// Settings that are fixed; everything else is searched.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Fixed settings (everything else is searched)")]
pub(crate) struct GivenArgs {
    /// Model name as listed by `headroom doctor --models`, or a folder with config.json
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Training data in JSONL, or `builtin`
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Training engine
    #[arg(long, value_enum)]
    pub engine: Option<Engine>,
    /// Maximum sequence length in tokens
    #[arg(long, value_name = "N")]
    pub seq: Option<usize>,
    /// LoRA rank
    #[arg(long, value_name = "N")]
    pub rank: Option<usize>,
    /// Passes over the data
    #[arg(long, value_name = "N", conflicts_with = "steps")]
    pub epochs: Option<f64>,
    /// Number of optimizer steps
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Examples per optimizer step
    #[arg(long, value_name = "N")]
    pub effective_batch_size: Option<usize>,
    /// Examples per micro-batch
    #[arg(long, value_name = "N")]
    pub batch_size: Option<usize>,
    /// Weight format of the base model
    #[arg(long, value_name = "FORMAT", value_parser = weights())]
    pub weights: Option<Weights>,
}

/// `headroom predict`
#[derive(Clone, Debug, Args)]
pub(crate) struct PredictArgs {
    /// Run file
    #[arg(value_name = "RUN.toml")]
    pub run: PathBuf,
    #[command(flatten)]
    pub machine: MachineArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Show the phases of an optimizer step
    #[arg(long, help_heading = "Output")]
    pub timeline: bool,
    /// Play the step through the allocator of a Mac's GPU, buffer by buffer
    #[arg(long, help_heading = "Output")]
    pub replay: bool,
}

/// `headroom doctor`
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub machine: MachineArgs,
    /// List every known model and whether it fits
    #[arg(long, help_heading = "Output")]
    pub models: bool,
    /// List those of a family alone: a `model_type` such as qwen3, or how names begin, such as llama-3.2
    #[arg(long, value_name = "FAMILY", requires = "models", help_heading = "Output")]
    pub family: Option<String>,
    /// List those of a size alone: 8B for about so many parameters, or a range such as 3B..9B, 30B.. or ..4B
    #[arg(long, value_name = "SIZE", requires = "models", value_parser = sizes, help_heading = "Output")]
    pub size: Option<Sizes>,
    /// Train the built-in model on this machine's device and on its CPU, and compare
    #[arg(long, conflicts_with = "models")]
    pub self_test: bool,
    /// Where to write what the self-test saw
    #[arg(
        long,
        value_name = "FILE",
        default_value = "headroom-self-test.json",
        requires = "self_test",
        help_heading = "Output"
    )]
    pub out: PathBuf,
}
