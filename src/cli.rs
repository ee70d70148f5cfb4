//! What can be typed. No default values of settings, and no work: those are in `spec` and in `commands`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::spec::run::{Engine, Weights};
use crate::units::Bytes;

/// What is the best LoRA run this Mac can finish, and will it really fit?
#[derive(Debug, Parser)]
#[command(name = "headroom", version, about, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 answered, 1 answered \"no\", 2 could not answer.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How to answer.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// How to answer.
#[derive(Clone, Copy, Debug, Args)]
pub struct OutputArgs {
    /// Answer in JSON, for machines
    #[arg(long, global = true)]
    pub json: bool,
    /// Say nothing but the answer
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The best safe run for a Mac; trains nothing
    Plan(Box<PlanArgs>),
    /// Memory, speed, hours and verdict of one given run
    Predict(PredictArgs),
    /// What this machine is, and which models it can train
    Doctor(DoctorArgs),
}

/// Which machine.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Machine (this one, where nothing is given)")]
pub struct MachineArgs {
    /// Memory, such as 8G; alone it means the plainest Mac sold with it
    #[arg(long, value_name = "SIZE")]
    pub ram: Option<Bytes>,
    /// Chip, such as "M2 Pro"
    #[arg(long, value_name = "CHIP")]
    pub machine: Option<String>,
    /// GPU cores, where the chip was sold with several
    #[arg(long, value_name = "N", requires = "machine")]
    pub gpu_cores: Option<usize>,
}

/// How sure and how much.
#[derive(Clone, Copy, Debug, Default, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Probability that a bound holds [default: 0.99]
    #[arg(long, value_name = "P")]
    pub confidence: Option<f64>,
    /// Memory the run may take at most, where that is less than is free
    #[arg(long, value_name = "SIZE")]
    pub budget: Option<Bytes>,
}

/// `headroom plan`
#[derive(Clone, Debug, Default, Args)]
pub struct PlanArgs {
    /// Which machine.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Limits.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Longest run, in hours [default: 8]
    #[arg(long, value_name = "H", help_heading = "Limits")]
    pub hours: Option<f64>,
    /// What is to be kept.
    #[command(flatten)]
    pub given: GivenArgs,
    /// Write the run here, for `headroom launch`
    #[arg(long, value_name = "RUN.toml")]
    pub out: Option<PathBuf>,
}

/// Settings that are kept and not searched.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Given (kept; only the rest is searched)")]
pub struct GivenArgs {
    /// A name from `headroom doctor --models`, or a folder with config.json
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Rows to learn from: JSONL or `builtin`
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Who runs it
    #[arg(long, value_enum)]
    pub engine: Option<Engine>,
    /// Longest example, in tokens
    #[arg(long, value_name = "N")]
    pub seq: Option<usize>,
    /// LoRA rank
    #[arg(long, value_name = "N")]
    pub rank: Option<usize>,
    /// Passes over the data
    #[arg(long, value_name = "N", conflicts_with = "steps")]
    pub epochs: Option<f64>,
    /// Optimizer steps
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Examples of an optimizer step
    #[arg(long, value_name = "N")]
    pub effective_batch_size: Option<usize>,
    /// Examples worked on at one time
    #[arg(long, value_name = "N")]
    pub batch_size: Option<usize>,
    /// Format of the base weights: f32, f16, bf16
    #[arg(long, value_name = "FORMAT", value_parser = weights)]
    pub weights: Option<Weights>,
}

fn weights(text: &str) -> Result<Weights, String> {
    serde_json::from_value(serde_json::Value::String(text.into())).map_err(|e| e.to_string())
}

/// `headroom predict`
#[derive(Clone, Debug, Args)]
pub struct PredictArgs {
    /// The run
    #[arg(value_name = "RUN.toml")]
    pub run: PathBuf,
    /// Which machine.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Limits.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Show the phases of a step
    #[arg(long)]
    pub timeline: bool,
}

/// `headroom doctor`
#[derive(Clone, Debug, Default, Args)]
pub struct DoctorArgs {
    /// Which machine.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Every known model: yes, tight or no
    #[arg(long)]
    pub models: bool,
}
