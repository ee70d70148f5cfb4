//! What can be typed. No default values of settings, and no work: those are in `spec` and in `commands`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::spec::run::exchange::Format;
use crate::spec::run::{Engine, Weights};
use crate::units::{Bytes, Seconds};

/// What is the best LoRA run this Mac can finish, and will it really fit?
#[derive(Debug, Parser)]
#[command(name = "headroom", version, about, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 answered, 1 answered \"no\", 2 could not answer, 130 interrupted (143 by SIGTERM, 129 by SIGHUP)."
)]
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
    /// Every configuration of a grid, ranked; measured too, if asked
    Sweep(SweepArgs),
    /// What this machine is, and which models it can train
    Doctor(DoctorArgs),
    /// Measure a few short runs under a hard memory limit, and refit the predictions to them
    Calibrate(CalibrateArgs),
    /// Do a run: check that it fits, guard it, keep checkpoints
    Launch(LaunchArgs),
    /// Plan, calibrate, launch and report in one go; without arguments on the model and data that ship inside
    Auto(AutoArgs),
    /// Write a page that compares runs with what was predicted of them
    Report(ReportArgs),
    /// Ask a model something, with an adapter and without
    Generate(GenerateArgs),
    /// Hand an adapter or a whole model to other tools: PEFT, mlx-lm, transformers, llama.cpp, Ollama
    Export(ExportArgs),
    /// Run one job from stdin and print what happens
    #[command(hide = true)]
    Trial(TrialArgs),
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
    /// Version of macOS, where the Mac is not this one: up to 15 it leaves Metal less
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(13..100))]
    pub macos: Option<u32>,
    /// Folder of measurements, which calibrate what is said of the machine they were made on
    #[arg(long, value_name = "DIR", default_value = "results")]
    pub results: PathBuf,
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
    #[arg(long, value_name = "H", help_heading = "Limits", value_parser = hours)]
    pub hours: Option<f64>,
    /// What is to be kept.
    #[command(flatten)]
    pub given: GivenArgs,
    /// Write the run here, for `headroom launch`
    #[arg(long, value_name = "RUN.toml")]
    pub out: Option<PathBuf>,
    /// Replace the plan that is there
    #[arg(long, requires = "out")]
    pub force: bool,
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
    /// Format of the base weights: stored, f32, f16, bf16, int8, q8_0, q6_k, q4_k, q4_0
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

/// `headroom sweep`
#[derive(Clone, Debug, Args)]
pub struct SweepArgs {
    /// A run file in which any value may be a list or a range, and `[[machine]]` tables
    #[arg(value_name = "GRID.toml")]
    pub grid: PathBuf,
    /// In the place of the grid's machines.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Limits.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Run what fits here for a few steps each; what was measured before is not measured again
    #[arg(long)]
    pub measure: bool,
    /// Longest time for one of them, as `90s` or `3m`
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = duration, requires = "measure")]
    pub trial_time: Seconds,
    /// Measure each configuration this often, in turns: on a busy machine the same run differs from minute to minute
    #[arg(long, value_name = "N", default_value_t = 1, requires = "measure", value_parser = repeats)]
    pub repeats: usize,
    /// Folder of reports; the table goes to `<name of the grid>/sweep.csv` in it
    #[arg(long, value_name = "DIR", default_value = "reports")]
    pub reports: PathBuf,
    /// Play this script in the place of the engine
    #[arg(long, value_name = "FILE", hide = true)]
    pub script: Option<PathBuf>,
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
    /// With --resume: go on although the model, the tokenizer or the data changed since the run began; the rest of the
    /// run learns from what is there now
    #[arg(long, requires = "resume")]
    pub accept_changes: bool,
    /// Run even if it is not sure to fit
    #[arg(long)]
    pub force: bool,
    /// Optimizer steps between checkpoints
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = count)]
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
    #[arg(long, value_name = "HOURS", value_parser = hours)]
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
#[command(args_conflicts_with_subcommands = true)]
pub struct ReportArgs {
    /// Something else than runs.
    #[command(subcommand)]
    pub of: Option<ReportOf>,
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

/// What else can be reported on.
#[derive(Subcommand, Clone, Debug)]
pub enum ReportOf {
    /// How right the predictions are: beside published runs, our own measurements and other planners
    Accuracy(AccuracyArgs),
    /// What popular guides claim, held against the model
    Guides(GuidesArgs),
}

/// Arguments of `report accuracy`.
#[derive(Args, Clone, Debug)]
pub struct AccuracyArgs {
    /// Folder of results: `field/runs.csv`, `neighbours/predictions.csv` and any `measurements.csv` under it
    #[arg(long, value_name = "DIR", default_value = "results")]
    pub results: PathBuf,
    /// Published runs, in the columns of `results/field/runs.csv`, in the place of those in the folder
    #[arg(long, value_name = "FILE")]
    pub field: Option<PathBuf>,
    /// Folder of reports
    #[arg(long, value_name = "DIR", default_value = "reports")]
    pub reports: PathBuf,
}

/// Arguments of `report guides`.
#[derive(Args, Clone, Debug)]
pub struct GuidesArgs {
    /// The claims
    #[arg(long, value_name = "FILE", default_value = "grids/guides.toml")]
    pub claims: PathBuf,
    /// Folder of reports
    #[arg(long, value_name = "DIR", default_value = "reports")]
    pub reports: PathBuf,
}

/// Arguments of `trial`.
#[derive(Args, Clone, Debug)]
pub struct TrialArgs {
    /// Read the job from the first line of stdin, and end as soon as stdin is closed
    #[arg(long)]
    pub tethered: bool,
    /// Play this script in the place of the engine
    #[arg(long, value_name = "FILE")]
    pub script: Option<PathBuf>,
}

// ---- generate ----

/// Arguments of `generate`.
#[derive(Args, Clone, Debug)]
pub struct GenerateArgs {
    /// What to ask
    pub prompt: String,
    /// Hub id or folder; that of the run, or the model that ships inside
    #[arg(long)]
    pub model: Option<String>,
    /// Folder of a run, or of an adapter (PEFT's or mlx-lm's)
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Show the answer without the adapter too
    #[arg(long, requires = "adapter")]
    pub compare: bool,
    /// 0 takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature)]
    pub temperature: f64,
    /// Keep only the likeliest tokens up to this share
    #[arg(long, value_name = "P", value_parser = share)]
    pub top_p: Option<f64>,
    /// Of the drawing
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = tokens)]
    pub max_tokens: usize,
}

// ---- export ----

/// Arguments of `export`.
#[derive(Args, Clone, Debug)]
pub struct ExportArgs {
    /// Folder of a run, or of an adapter (PEFT's or mlx-lm's); without it the base alone is written, as GGUF
    #[arg(value_name = "DIR")]
    pub source: Option<PathBuf>,
    /// What to write
    #[arg(long, value_enum)]
    pub format: Format,
    /// The folder or file to write
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
    /// The base, as hub id or folder; that of the run, or the one the adapter names
    #[arg(long)]
    pub model: Option<String>,
    /// Matrices of a GGUF: f32, f16, bf16, q8_0, q6_k, q4_k, q4_0; as the base is stored if not given
    #[arg(long, value_name = "FORMAT", value_parser = weights)]
    pub weights: Option<Weights>,
    /// Replace what is there
    #[arg(long)]
    pub force: bool,
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
    let time = Seconds(value * factor);
    if time > Seconds::from_hours(MOST_HOURS) {
        return Err(format!("it must be at most {MOST_HOURS} hours"));
    }
    if time > Seconds(0.0) { Ok(time) } else { Err(wrong()) }
}

/// Longest time that may be asked for: eleven years.
const MOST_HOURS: f64 = 1e5;

/// A number for which `ok` holds, which is never so for NaN.
fn number(text: &str, ok: impl Fn(f64) -> bool, must: impl std::fmt::Display) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    if ok(value) { Ok(value) } else { Err(format!("it must be {must}")) }
}

fn probability(text: &str) -> Result<f64, String> {
    number(text, |p| (0.5..1.0).contains(&p), "at least 0.5 and less than 1")
}

fn hours(text: &str) -> Result<f64, String> {
    number(text, |h| h > 0.0 && h <= MOST_HOURS, format!("more than 0 and at most {MOST_HOURS}"))
}

fn share(text: &str) -> Result<f64, String> {
    number(text, |p| p > 0.0 && p <= 1.0, "more than 0 and at most 1")
}

fn temperature(text: &str) -> Result<f64, String> {
    number(text, |t| (0.0..=10.0).contains(&t), "between 0 and 10")
}

/// A whole number from 1 to `most`.
fn up_to(text: &str, most: usize) -> Result<usize, String> {
    let value: usize = text.parse().map_err(|_| format!("`{text}` is not a whole number"))?;
    if (1..=most).contains(&value) { Ok(value) } else { Err(format!("it must be between 1 and {most}")) }
}

fn count(text: &str) -> Result<usize, String> {
    up_to(text, 1_000_000_000)
}

fn repeats(text: &str) -> Result<usize, String> {
    up_to(text, 1000)
}

fn tokens(text: &str) -> Result<usize, String> {
    up_to(text, 1 << 20)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        Cli::command().debug_assert();
        assert_eq!(["90s", "3m", "0.5h"].map(duration), [Ok(Seconds(90.0)), Ok(Seconds(180.0)), Ok(Seconds(1800.0))]);
        for bad in ["", "m", "3", "-3m", "3x", "infs", "nans", "0s", "1e308h", "1e300s", "\u{e9}", "3\u{e9}"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
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
            (plan, "--hours", &["0", "-1", "nan", "inf", "1e300", "x"], &["0.01", "8"]),
            (auto, "--hours", &["0", "-1", "nan", "inf", "1e300", "x"], &["0.01", "8"]),
            (plan, "--ram", &["0G", "-8G", "nanG", "1e300G", "99999999T"], &["8G"]),
            (plan, "--budget", &["0G", "0.0000000001M", "99999999T"], &["100M"]),
            (sweep, "--repeats", &["0", "-1", "1001", "18446744073709551615", "1.5"], &["1", "20"]),
            (sweep, "--trial-time", &["0s", "nans", "1e300h", "90"], &["90s"]),
            (launch, "--save-every", &["0", "-1", "18446744073709551615"], &["1", "50"]),
            (launch, "--confidence", &["nan", "0", "1", "-1", "inf"], &["0.5", "0.99"]),
            (launch, "--limit", &["0G", "-1G", "99999999T"], &["60M"]),
            (calibrate, "--budget", &["0s", "-3m", "1e300h", "infm"], &["3m"]),
            (calibrate, "--limit", &["0G"], &["60M"]),
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
