//! The command line: what can be typed. No default values of settings, and no work: those are in `spec` and in `commands`.
//!
//! A help text is a sentence or a noun phrase without a period at its end; `docs/style.md` says how they are written, and
//! `tests/style.rs` reads them all.

pub(crate) mod export;
pub(crate) mod measure;
pub(crate) mod plan;
pub(crate) mod report;
mod values;

use clap::{Args, Parser, Subcommand};

use self::export::{ExportArgs, GenerateArgs};
use self::measure::{AutoArgs, CalibrateArgs, LaunchArgs, SweepArgs, TrialArgs};
use self::plan::{DeviceArgs, DoctorArgs, PlanArgs, PredictArgs};
use self::report::ReportArgs;

/// Plan, calibrate and run LoRA fine-tunes that fit this Mac
#[derive(Debug, Parser)]
#[command(name = "headroom", version, about, max_term_width = 100)]
#[command(
    after_help = "Exit status: 0 success, 1 the run does not fit or would take too long, 2 error, 130 interrupted (143 by SIGTERM, 129 by SIGHUP)"
)]
pub struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Options of every command.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct OutputArgs {
    /// Print the answer as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Print only the answer
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Find the best run that fits a Mac; trains nothing
    Plan(Box<PlanArgs>),
    /// Predict the memory, speed and time of one run
    Predict(PredictArgs),
    /// Rank every configuration of a grid, and measure those that fit with `--measure`
    Sweep(SweepArgs),
    /// Describe this machine and the models it can train
    Doctor(DoctorArgs),
    /// Measure a few short runs under a hard memory limit and refit the predictions
    Calibrate(CalibrateArgs),
    /// Train: check that the run fits, enforce the memory limit, save checkpoints
    Launch(LaunchArgs),
    /// Plan, calibrate, launch and report in one go; without arguments on the bundled model and data
    Auto(AutoArgs),
    /// Compare finished runs with their predictions on a page
    Report(ReportArgs),
    /// Generate text from a prompt, with an adapter and without
    Generate(GenerateArgs),
    /// Convert an adapter or a whole model for PEFT, mlx-lm, transformers, llama.cpp or Ollama
    Export(ExportArgs),
    /// Run one job from stdin and print its events
    #[command(hide = true)]
    Trial(TrialArgs),
}

impl Command {
    /// The option of the device; `None` for commands that compute nothing.
    pub(crate) fn device(&self) -> Option<DeviceArgs> {
        Some(match self {
            Self::Plan(args) => args.machine.device,
            Self::Predict(args) => args.machine.device,
            Self::Sweep(args) => args.machine.device,
            Self::Doctor(args) => args.machine.device,
            Self::Calibrate(args) => args.measure.device,
            Self::Launch(args) => args.measure.device,
            Self::Auto(args) => args.measure.device,
            Self::Generate(args) => args.device,
            Self::Trial(args) => args.device,
            Self::Report(_) | Self::Export(_) => return None,
        })
    }

    /// Whether a person waits for something to be computed on that device.
    pub(crate) fn computes(&self) -> bool {
        match self {
            Self::Sweep(args) => args.measure,
            Self::Calibrate(_) | Self::Launch(_) | Self::Auto(_) | Self::Generate(_) => true,
            Self::Plan(_) | Self::Predict(_) | Self::Doctor(_) => false,
            Self::Trial(_) | Self::Report(_) | Self::Export(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn numbers_that_cannot_be_are_refused() {
        let plan = &["plan"][..];
        let auto = &["auto"][..];
        let sweep = &["sweep", "g.toml", "--measure"][..];
        let launch = &["launch", "r.toml"][..];
        let calibrate = &["calibrate"][..];
        let generate = &["generate", "hello"][..];
        type Words<'a> = &'a [&'a str];
        let cases: [(Words, &str, Words, Words); 14] = [
            (plan, "--time-limit", &["0s", "-1h", "nan", "inf", "1e300h", "8"], &["30m", "8h"]),
            (auto, "--time-limit", &["0s", "-1h", "nan", "inf", "1e300h", "8"], &["30m", "8h"]),
            (plan, "--ram", &["0G", "-8G", "nanG", "1e300G", "99999999T"], &["8G"]),
            (plan, "--memory-limit", &["0G", "0.0000000001M", "99999999T"], &["100M"]),
            (sweep, "--repeats", &["0", "-1", "1001", "18446744073709551615", "1.5"], &["1", "20"]),
            (sweep, "--trial-time", &["0s", "nans", "1e300h", "90"], &["90s"]),
            (launch, "--save-every", &["0", "-1", "18446744073709551615"], &["1", "50"]),
            (launch, "--confidence", &["nan", "0", "1", "-1", "inf"], &["0.5", "0.99"]),
            (launch, "--memory-limit", &["0G", "-1G", "99999999T"], &["60M"]),
            (calibrate, "--time-limit", &["0s", "-3m", "1e300h", "infm"], &["3m"]),
            (calibrate, "--memory-limit", &["0G"], &["60M"]),
            (generate, "--top-p", &["0", "-1", "5", "nan"], &["1", "0.5"]),
            (generate, "--temperature", &["-1", "nan", "inf", "11"], &["0", "0.7"]),
            (generate, "--max-tokens", &["0", "-1", "18446744073709551615"], &["1", "128"]),
        ];
        for (verb, option, bad, good) in cases {
            let parse = |value: &str| {
                let option = format!("{option}={value}");
                Cli::try_parse_from(["headroom"].iter().chain(verb).chain([&option.as_str()]))
            };
            for value in bad {
                let error = parse(value).expect_err(value).to_string();
                assert!(error.contains(option) && error.contains(value), "{verb:?} {option} {value}: {error}");
            }
            good.iter().for_each(|value| drop(parse(value).unwrap_or_else(|e| panic!("{verb:?} {option}: {e}"))));
        }
    }
}
