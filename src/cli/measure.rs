//! Options of the commands that train: `sweep --measure`, `calibrate`, `launch`, `auto`, and the hidden `trial`.

use std::path::PathBuf;

use clap::Args;

use super::plan::{DeviceArgs, LimitArgs, MachineArgs};
use super::values::{count, duration, probability, repeats};
use crate::spec::run::Engine;
use crate::units::{Bytes, Seconds};

/// Where measurements are kept, and under which limit they are made.
#[derive(Args, Clone, Debug)]
pub(crate) struct MeasureArgs {
    /// Folder of measurements [default: $HEADROOM_RESULTS, ./results or the user's data folder]
    #[arg(long, value_name = "DIR")]
    pub results: Option<PathBuf>,
    /// Memory limit of the training process [default: the free memory]
    #[arg(long, value_name = "SIZE")]
    pub memory_limit: Option<Bytes>,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Replay a scripted engine (for tests)
    #[arg(long, value_name = "FILE", hide = true)]
    pub script: Option<PathBuf>,
}

/// `headroom sweep`
#[derive(Clone, Debug, Args)]
pub(crate) struct SweepArgs {
    /// Grid file, or the name of a bundled grid: a run file whose values may be lists or ranges, with `[[machine]]` tables
    #[arg(value_name = "GRID.toml")]
    pub grid: PathBuf,
    #[command(flatten)]
    pub machine: MachineArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Train each configuration that fits here for a few steps, unless it was measured before
    #[arg(long, help_heading = "Measuring")]
    pub measure: bool,
    /// Time limit of one trial, such as 90s or 3m
    #[arg(
        long,
        value_name = "TIME",
        default_value = "1m",
        value_parser = duration,
        requires = "measure",
        help_heading = "Measuring"
    )]
    pub trial_time: Seconds,
    /// Interleaved repeats of each configuration
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        requires = "measure",
        value_parser = repeats,
        help_heading = "Measuring"
    )]
    pub repeats: usize,
    /// Folder of reports; the tables go to `GRID/sweep.csv` and `GRID/sweep.parquet` in it
    #[arg(long, value_name = "DIR", default_value = "reports", help_heading = "Output")]
    pub reports: PathBuf,
    /// Replay a scripted engine (for tests)
    #[arg(long, value_name = "FILE", hide = true)]
    pub script: Option<PathBuf>,
}

/// `headroom calibrate`
#[derive(Args, Clone, Debug)]
pub(crate) struct CalibrateArgs {
    /// Run file to calibrate for [default: the bundled model and data]
    #[arg(value_name = "RUN.toml")]
    pub run: Option<PathBuf>,
    /// Time limit of all trials together, such as 90s or 3m
    #[arg(long, value_name = "TIME", default_value = "3m", value_parser = duration)]
    pub time_limit: Seconds,
    /// Repeat trials that were measured before
    #[arg(long)]
    pub again: bool,
    #[command(flatten)]
    pub measure: MeasureArgs,
}

/// `headroom launch`
#[derive(Args, Clone, Debug)]
pub(crate) struct LaunchArgs {
    /// Run file, or the folder of a run to resume
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Run folder [default: a folder under runs/]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Resume from the newest checkpoint
    #[arg(long)]
    pub resume: bool,
    /// Resume although the model, the tokenizer or the data changed since the run began
    #[arg(long, requires = "resume")]
    pub accept_changes: bool,
    /// Train even if the run may not fit
    #[arg(long)]
    pub force: bool,
    /// Optimizer steps between checkpoints
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = count)]
    pub save_every: usize,
    /// Probability that an upper bound holds [default: 0.99]
    #[arg(long, value_name = "P", value_parser = probability)]
    pub confidence: Option<f64>,
    #[command(flatten)]
    pub measure: MeasureArgs,
}

/// `headroom auto`
#[derive(Args, Clone, Debug)]
pub(crate) struct AutoArgs {
    /// Model name, or a folder with config.json [default: the bundled model]
    #[arg(long, value_name = "NAME", requires = "data")]
    pub model: Option<String>,
    /// Training data in JSONL [default: the bundled data]
    #[arg(long, value_name = "FILE", requires = "model")]
    pub data: Option<PathBuf>,
    /// Training engine
    #[arg(long, value_enum)]
    pub engine: Option<Engine>,
    /// Longest run, such as 90m or 8h [default: 8h, or 90s with the bundled model]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub time_limit: Option<Seconds>,
    /// Run folder [default: a folder under runs/]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Folder of reports
    #[arg(long, value_name = "DIR", default_value = "reports")]
    pub reports: PathBuf,
    #[command(flatten)]
    pub measure: MeasureArgs,
}

/// `headroom trial`
#[derive(Args, Clone, Debug)]
pub(crate) struct TrialArgs {
    /// Read the job from the first line of stdin, and end when stdin is closed
    #[arg(long)]
    pub tethered: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Replay a scripted engine (for tests)
    #[arg(long, value_name = "FILE")]
    pub script: Option<PathBuf>,
}
