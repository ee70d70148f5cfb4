//! `headroom calibrate`: a few short runs under a hard memory limit, and what they change.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Instant;

use serde::Serialize;

use crate::cli::CalibrateArgs;
use crate::commands::Output;
use crate::commands::bench::{self, Bench, Subject};
use crate::commands::interrupt::interrupted;
use crate::error::{Error, Result};
use crate::measure::observe::{Limits, observe};
use crate::measure::{Measurement, probe};
use crate::plan::Assessment;
use crate::plan::trials::trials;
use crate::predict::calibration::Calibration;
use crate::predict::predict;
use crate::report::brief;
use crate::spec::run::{BUILTIN, Data, Execution, Recipe, RunConfig};
use crate::trainer::{Job, TrainEvent};
use crate::units::{Estimate, Seconds};

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
#[derive(Debug, Default, Serialize)]
pub struct Calibrated {
    /// Trials made now.
    pub measured: usize,
    /// Trials that had been made before.
    pub reused: usize,
    /// Trials that would not fit, or for which there was no time, with the reason.
    pub skipped: Vec<String>,
    /// Measurements that the calibration rests on.
    pub runs: usize,
    /// What is expected of the planned run, before and after.
    pub changes: Vec<(&'static str, [Estimate<f64>; 2])>,
    /// What is known now.
    pub calibration: Option<Calibration>,
}

/// The verb.
pub fn run(args: &CalibrateArgs, output: &Output) -> Result<()> {
    let run = match &args.run {
        Some(path) => bench::read_run(path)?,
        None => builtin_run(),
    };
    let mut bench = Bench::open(run.engine, &args.bench)?;
    let subject = Subject::of(&run)?;
    let script = args.bench.script.as_deref();
    let what = Calibrating { run: &run, subject: &subject, budget: args.budget, again: args.again, script };
    let result = calibrate(&mut bench, &what, output)?;
    output.data(&result)
}

/// What is calibrated for when nothing is asked: the model and data that ship inside.
pub fn builtin_run() -> RunConfig {
    RunConfig {
        model: BUILTIN.into(),
        data: Data::builtin(),
        engine: Default::default(),
        seed: 0,
        // The recipe that `assets/check.py` tried: a model this small wants a higher rate than a large one.
        recipe: Recipe {
            max_seq_length: 512,
            effective_batch_size: 8,
            learning_rate: 3e-3,
            epochs: Some(1.5),
            warmup_steps: 5,
            mask_prompt: true,
            ..Recipe::default()
        },
        execution: Execution { batch_size: 4, ..Execution::default() },
    }
}

/// Makes the trials that are missing and says what they changed.
pub fn calibrate(bench: &mut Bench, what: &Calibrating<'_>, output: &Output) -> Result<Calibrated> {
    let old = bench.calibration.clone();
    let mut result = make_trials(bench, what, output)?;
    result.skipped.iter().for_each(|s| output.note(&format!("  left out {s}")));
    if bench.unusable > 0 {
        let n = bench.unusable;
        output.note(&format!("  {n} older measurements could not be used: their model is gone"));
    }
    let by = |calibration| predict(&bench.request(what.subject, what.run, calibration), LEVEL);
    let changes = brief::changes(&by(&old)?, &by(&bench.calibration)?);
    result.runs = bench.calibration.runs;
    result.changes = changes.iter().map(|c| (c.quantity.name(), [c.before, c.after])).collect();
    result.calibration = Some(bench.calibration.clone());
    output.part(&format!(
        "\n{} trials measured, {} known from before; {} runs of this machine and engine count. The planned run:",
        result.measured, result.reused, result.runs
    ))?;
    output.part(&brief::change_table(&changes))?;
    output.part(&format!("  {}", brief::moved(&old, &bench.calibration)))?;
    Ok(result)
}

fn make_trials(bench: &mut Bench, what: &Calibrating<'_>, output: &Output) -> Result<Calibrated> {
    let mut result = Calibrated::default();
    let started = Instant::now();
    let all = trials(what.run);
    let bar = output.bar(all.len() as u64);
    for (i, trial) in all.iter().enumerate() {
        bar.set_position(i as u64);
        bar.set_message(name(trial));
        let known = bench.measurements.iter().any(|m| m.answers(trial, true, &bench.place.engine_version));
        if known && !what.again {
            result.reused += 1;
            continue;
        }
        // Time that earlier trials did not need goes to the later, larger ones.
        let share = (what.budget.0 - started.elapsed().as_secs_f64()) / (all.len() - i) as f64;
        let plan = bench.assess(&what.subject.padded(), trial, CONFIDENCE)?;
        if let Some(reason) = why_not(&plan, share) {
            result.skipped.push(format!("{}: {reason}", name(trial)));
            continue;
        }
        let measurement = measure(bench, trial, (Seconds(share), &plan), what.script)?;
        let text = line(&measurement);
        // Written down before it is shown, and learned from before the next, larger one is judged.
        bench.add(measurement)?;
        bar.suspend(|| output.part(&text))?;
        result.measured += 1;
        if interrupted().load(Ordering::Relaxed) {
            break;
        }
    }
    bar.finish_and_clear();
    Ok(result)
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

/// One trial in a process of its own, for at most `share` of the time.
pub fn measure(
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
    format!("  {}: {}", name(&m.config), seen(m))
}

/// What a trial showed, in a few words.
pub fn seen(m: &Measurement) -> String {
    let seen = match (m.measured.step_time_s, m.measured.footprint_bytes) {
        (Some(time), Some(footprint)) => format!("{} a step, {footprint}", Seconds(time)),
        _ => "nothing measured".into(),
    };
    format!("{seen}, {} steps, {}", m.measured.steps, m.outcome.name())
}
