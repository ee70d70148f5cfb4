//! What can be typed. No default values of any run setting here, and no work.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::spec::run::Engine;
use crate::units::{Bytes, Seconds};

/// What is the best LoRA run this Mac can finish, and will it really fit?
#[derive(Debug, Parser)]
#[command(name = "headroom", version)]
pub struct Cli {
    /// Write JSON for machines
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress and no notes
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure a few short runs under a hard memory limit, and refit the predictions to them
    Calibrate(CalibrateArgs),
    /// Do a run: check that it fits, guard it, keep checkpoints
    Launch(LaunchArgs),
    /// Plan, calibrate, launch and report in one go; without arguments on the model and data that ship inside
    Auto(AutoArgs),
    /// Write a page that compares runs with what was predicted of them
    Report(ReportArgs),
    /// Run one job from stdin and print what happens
    #[command(hide = true)]
    Trial(TrialArgs),
}

// ---- calibrate, launch, auto, report, trial ----

/// Where measurements are kept, and what plays the engine.
#[derive(Args, Clone, Debug)]
pub struct Bench {
    /// Folder of measurements
    #[arg(long, value_name = "DIR", default_value = "results")]
    pub results: PathBuf,
    /// Never go above this footprint; what is free now if not given
    #[arg(long, value_name = "SIZE")]
    pub limit: Option<Bytes>,
    /// Play this script in the place of the engine
    #[arg(long, value_name = "FILE", hide = true)]
    pub script: Option<PathBuf>,
}

/// Arguments of `calibrate`.
#[derive(Args, Clone, Debug)]
pub struct CalibrateArgs {
    /// The run to be sure about; one of the model and data that ship inside if not given
    pub run: Option<PathBuf>,
    /// Time for all trials, as `90s` or `3m`
    #[arg(long, value_name = "TIME", default_value = "3m", value_parser = duration)]
    pub budget: Seconds,
    /// Measure again what was measured already
    #[arg(long)]
    pub again: bool,
    /// Shared settings.
    #[command(flatten)]
    pub bench: Bench,
}

/// Arguments of `launch`.
#[derive(Args, Clone, Debug)]
pub struct LaunchArgs {
    /// The run, or the folder of a run to resume
    pub run: PathBuf,
    /// Its folder; under `runs/` if not given
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Go on from the newest checkpoint
    #[arg(long)]
    pub resume: bool,
    /// Run even if it is not sure to fit
    #[arg(long)]
    pub force: bool,
    /// Optimizer steps between checkpoints
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub save_every: usize,
    /// Probability that the upper bounds hold
    #[arg(long, value_name = "P", default_value_t = 0.99, value_parser = probability)]
    pub confidence: f64,
    /// Shared settings.
    #[command(flatten)]
    pub bench: Bench,
}

/// Arguments of `auto`.
#[derive(Args, Clone, Debug)]
pub struct AutoArgs {
    /// Hub id or folder
    #[arg(long, requires = "data")]
    pub model: Option<String>,
    /// Rows to train on
    #[arg(long, value_name = "FILE", requires = "model")]
    pub data: Option<PathBuf>,
    /// Who trains
    #[arg(long)]
    pub engine: Option<Engine>,
    /// Longest run
    #[arg(long, value_name = "HOURS")]
    pub hours: Option<f64>,
    /// Folder of the run; under `runs/` if not given
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Folder of reports
    #[arg(long, value_name = "DIR", default_value = "reports")]
    pub reports: PathBuf,
    /// Shared settings.
    #[command(flatten)]
    pub bench: Bench,
}

/// Arguments of `report`.
#[derive(Args, Clone, Debug)]
pub struct ReportArgs {
    /// Run folders; all under `runs/` if none is given
    pub runs: Vec<PathBuf>,
    /// Name of the report; that of the run, or `runs` for several
    #[arg(long)]
    pub name: Option<String>,
    /// Folder of reports
    #[arg(long, value_name = "DIR", default_value = "reports")]
    pub reports: PathBuf,
    /// Folder of measurements
    #[arg(long, value_name = "DIR", default_value = "results")]
    pub results: PathBuf,
}

/// Arguments of `trial`.
#[derive(Args, Clone, Debug)]
pub struct TrialArgs {
    /// Play this script in the place of the engine
    #[arg(long, value_name = "FILE")]
    pub script: Option<PathBuf>,
}

/// `90s`, `3m`, `1.5h`; the unit is required.
fn duration(text: &str) -> Result<Seconds, String> {
    let wrong = || format!("`{text}` is not a time such as 90s or 3m");
    let text = text.trim();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let factor = match unit {
        's' => 1.0,
        'm' => 60.0,
        'h' => 3600.0,
        _ => return Err(wrong()),
    };
    let value: f64 = text[..text.len() - 1].trim().parse().map_err(|_| wrong())?;
    if value > 0.0 && value.is_finite() { Ok(Seconds(value * factor)) } else { Err(wrong()) }
}

fn probability(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    if (0.5..1.0).contains(&value) { Ok(value) } else { Err("it must be at least 0.5 and less than 1".into()) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        Cli::command().debug_assert();
        assert_eq!(["90s", "3m", "0.5h"].map(duration), [Ok(Seconds(90.0)), Ok(Seconds(180.0)), Ok(Seconds(1800.0))]);
        for bad in ["", "m", "3", "-3m", "3x", "infs"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
