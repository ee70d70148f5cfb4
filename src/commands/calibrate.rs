//! `headroom calibrate`: a few short runs under a hard memory limit, and what they change.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Instant;

use serde::Serialize;

use crate::cli::CalibrateArgs;
use crate::commands::Console;
use crate::commands::bench::{self, Bench, Subject};
use crate::commands::console::interrupted;
use crate::error::{Error, Result};
use crate::measure::observe::{Limits, observe};
use crate::measure::{Measurement, probe};
use crate::plan::Assessment;
use crate::plan::trials::trials;
use crate::predict::predict;
use crate::report::brief;
use crate::spec::run::{BUILTIN, Data, Execution, Recipe, RunConfig};
use crate::trainer::{Job, TrainEvent};
use crate::units::Seconds;

/// Steps after the warm-up that a trial is worth making for, and more than which none takes.
const MIN_STEPS: usize = 3;
const MAX_STEPS: usize = 30;
/// A median step time known to this is known well enough.
const PRECISION: f64 = 0.01;
/// Probability that a trial stays under its predicted bound. A miss is ended by the watch, so it costs a trial.
const CONFIDENCE: f64 = 0.95;
/// Of the intervals that are shown.
const LEVEL: f64 = 0.9;

/// What is to be calibrated for.
pub struct Calibrating<'a> {
    /// The planned run.
    pub run: &'a RunConfig,
    /// Its model and data.
    pub subject: &'a Subject,
    /// Time for all trials.
    pub budget: Seconds,
    /// Measure again what was measured.
    pub again: bool,
    /// Plays the engine.
    pub script: Option<&'a Path>,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Calibrated {
    /// Trials made now.
    pub measured: usize,
    /// Trials that had been made before.
    pub reused: usize,
    /// Trials that would not fit, or for which there was no time, with the reason.
    pub skipped: Vec<String>,
    /// Measurements that the calibration rests on.
    pub runs: usize,
    /// Relative widths of the intervals of memory and speed of the planned run, before and after.
    pub widths: [[f64; 2]; 2],
}

/// The verb.
pub fn run(args: &CalibrateArgs, console: Console) -> Result<()> {
    let run = match &args.run {
        Some(path) => bench::read_run(path)?,
        None => builtin_run(),
    };
    let mut bench = Bench::open(run.engine, &args.bench)?;
    let subject = Subject::of(&run)?;
    let script = args.bench.script.as_deref();
    let what = Calibrating { run: &run, subject: &subject, budget: args.budget, again: args.again, script };
    let result = calibrate(&mut bench, &what, console)?;
    console.data(&result)
}

/// What is calibrated for when nothing is asked: the model and data that ship inside.
pub fn builtin_run() -> RunConfig {
    RunConfig {
        model: BUILTIN.into(),
        data: Data::builtin(),
        engine: Default::default(),
        seed: 0,
        recipe: Recipe { max_seq_length: 512, ..Recipe::default() },
        execution: Execution { batch_size: 4, ..Execution::default() },
    }
}

/// Makes the trials that are missing and says what they changed.
pub fn calibrate(bench: &mut Bench, what: &Calibrating<'_>, console: Console) -> Result<Calibrated> {
    let old = bench.calibration.clone();
    let before = predict(&bench.request(what.subject, what.run, &old), LEVEL)?;
    let (mut measured, mut reused, mut skipped) = (0, 0, Vec::new());
    let started = Instant::now();
    let all = trials(what.run);
    let bar = console.bar(all.len() as u64);
    for (i, trial) in all.iter().enumerate() {
        bar.set_position(i as u64);
        let known = bench.measurements.iter().any(|m| m.answers(trial, true, &bench.place.engine_version));
        if known && !what.again {
            reused += 1;
            continue;
        }
        // Time that earlier trials did not need goes to the later, larger ones.
        let share = (what.budget.0 - started.elapsed().as_secs_f64()) / (all.len() - i) as f64;
        let plan = bench.assess(&what.subject.padded(), trial, CONFIDENCE)?;
        match why_not(&plan, share) {
            Some(reason) => skipped.push(format!("{}: {reason}", name(trial))),
            None => {
                let measurement = measure(bench, trial, (Seconds(share), &plan), what.script)?;
                bar.suspend(|| console.answer(&line(&measurement)));
                bench.add(measurement)?;
                measured += 1;
            }
        }
        if interrupted().load(Ordering::Relaxed) {
            break;
        }
    }
    bar.finish_and_clear();
    skipped.iter().for_each(|s| console.note(&format!("  left out {s}")));
    if bench.unusable > 0 {
        console
            .note(&format!("  {} older measurements could not be used: their model or data are gone", bench.unusable));
    }
    let after = predict(&bench.request(what.subject, what.run, &bench.calibration), LEVEL)?;
    let changes = brief::changes(&before, &after);
    console.answer(&format!(
        "\n{measured} trials measured, {reused} known from before; {} runs of this machine and engine count. The planned run:",
        bench.calibration.runs
    ));
    console.answer(&brief::change_table(&changes));
    console.answer(&format!("  {}", brief::moved(&old, &bench.calibration)));
    let width = |e: &crate::units::Estimate<f64>| (e.high - e.low) / e.point;
    let widths = [1, 2].map(|i| [width(&changes[i].before), width(&changes[i].after)]);
    Ok(Calibrated { measured, reused, skipped, runs: bench.calibration.runs, widths })
}

/// Why a trial is not made: too large, or too slow for its share of the time.
fn why_not(plan: &Assessment, share: f64) -> Option<String> {
    if let Some(over) = plan.limits.iter().find(|l| l.spare() < 0.0) {
        return Some(format!("it may take {}, and the {} is {}", over.high, over.name, over.limit));
    }
    let least = plan.prediction.step_time.low.0 * 2.0;
    (least > share)
        .then(|| format!("two steps take {} or more, and {} are left for it", Seconds(least), Seconds(share.max(0.0))))
}

fn measure(
    bench: &Bench,
    trial: &RunConfig,
    (share, plan): (Seconds, &Assessment),
    script: Option<&Path>,
) -> Result<Measurement> {
    let mut config = trial.clone();
    (config.recipe.steps, config.recipe.epochs) = (Some(MAX_STEPS + 1), None);
    let job = Job { config, out: None, stop_after: None, resume: false, save_every: 0, pad_to_max: true };
    let limits = Limits {
        memory: bench.limit,
        time: share,
        silence: share,
        min_steps: MIN_STEPS,
        max_steps: MAX_STEPS,
        precision: PRECISION,
    };
    let program = std::env::current_exe()
        .map_err(|e| Error::Engine { engine: "trial".into(), reason: format!("this program cannot be found: {e}") })?;
    let mut command = Command::new(program);
    command.arg("trial");
    if let Some(script) = script {
        command.arg("--script").arg(script);
    }
    let state = probe::state();
    let observed = observe(&mut command, &job, &limits, interrupted(), &mut |_: &TrainEvent| {})?;
    Ok(Measurement::new(&bench.place, &job, &observed, bench::predicted(&plan.prediction), state))
}

fn name(run: &RunConfig) -> String {
    format!("{} x {} tokens, rank {}", run.execution.batch_size, run.recipe.max_seq_length, run.recipe.lora.rank)
}

fn line(m: &Measurement) -> String {
    let seen = match (m.measured.step_time_s, m.measured.footprint_bytes) {
        (Some(time), Some(footprint)) => format!("{} a step, {footprint}", Seconds(time)),
        _ => "nothing measured".into(),
    };
    format!("  {}: {seen}, {} steps, {}", name(&m.config), m.measured.steps, m.outcome.name())
}
