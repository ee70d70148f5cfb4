//! `headroom calibrate`: a few short runs under a hard memory limit, and what they change.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Instant;

use serde::Serialize;

use crate::cli::CalibrateArgs;
use crate::commands::bench::{self, Bench, Subject};
use crate::commands::common;
use crate::commands::interrupt::{interrupted, typed_again};
use crate::commands::output::Output;
use crate::error::{Error, Result};
use crate::measure::observe::{Limits, observe};
use crate::measure::{Measurement, probe};
use crate::plan::Assessment;
use crate::plan::trials::{self, Candidate, Decision, MIN_STEPS, MIN_TIME, Standing};
use crate::predict::calibration::Calibration;
use crate::predict::predict;
use crate::report::brief;
use crate::spec::record::{Job, Outcome};
use crate::spec::run::data::TokenLengths;
use crate::spec::run::{BUILTIN, Data, Execution, Recipe, RunConfig, Weights};
use crate::trainer::TrainEvent;
use crate::units::{Estimate, Seconds};

/// Steps after the warm-up, more than which no trial takes.
const MAX_STEPS: usize = 100;
/// A trial whose steps are not alike goes on for this many times the least it takes. Two trials of different runs say
/// more than one that is twice as long.
const LONGER: f64 = 1.5;
/// A trial that gives no sign of life for this many times its time hangs.
const SLOWEST: f64 = 10.0;
/// Trials that show nothing one after the other, after which no more are made.
const FAILURES: usize = 3;
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
    /// Why no more were made.
    pub ended: Option<Ended>,
    /// The run that would be chosen now, and the share of its speed that is lost on the average against the best one.
    pub choice: Option<RunConfig>,
    /// See `choice`.
    pub regret: Option<f64>,
    /// What its levers cost, as measured.
    pub levers: Option<String>,
    /// Measurements that the calibration rests on.
    pub runs: usize,
    /// What is expected of the planned run, before and after.
    pub changes: Vec<(&'static str, [Estimate<f64>; 2])>,
    /// What is known now.
    pub calibration: Option<Calibration>,
}

/// Why no more trials were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// None could change the choice by anything that matters.
    Settled,
    /// Those that could do not fit into what is left of the time.
    Time,
    /// None that fits into the memory is left.
    Nothing,
    /// They show nothing.
    Failing,
    /// The user stopped it.
    Interrupted,
}

impl Ended {
    fn says(self) -> &'static str {
        match self {
            Self::Settled => "No further trial could change that by anything that matters.",
            Self::Time => "The time was over; with more of it (--budget) more would be known.",
            Self::Nothing => "There is no further short run that surely fits.",
            Self::Failing => "Three trials one after the other showed nothing: see `doctor`.",
            Self::Interrupted => "Interrupted: what was measured so far is kept, and the choice may still change.",
        }
    }
}

/// The verb.
pub fn run(args: &CalibrateArgs, output: &Output) -> Result<()> {
    let run = match &args.run {
        Some(path) => bench::read_run(path)?,
        None => builtin_run(),
    };
    let mut bench = Bench::open(run.engine, &args.bench)?;
    let subject = Subject::to_train(&run, output)?;
    let script = args.bench.script.as_deref();
    let what = Calibrating { run: &run, subject: &subject, budget: args.budget, again: args.again, script };
    let result = calibrate(&mut bench, &what, output)?;
    output.data(&result)?;
    result.uninterrupted().map(drop)
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
    output.part(&result.verdict())?;
    Ok(result)
}

fn make_trials(bench: &mut Bench, what: &Calibrating<'_>, output: &Output) -> Result<Calibrated> {
    let (machine, prior) = (bench.machine.clone(), bench.prior.clone());
    let subject = &what.subject;
    let around =
        trials::Subject { spec: &subject.spec, machine: &machine, lengths: &subject.lengths, calibration: &prior };
    let mut options = around.options(what.run)?;
    let padded = trials::Subject { lengths: &TokenLengths::filled(), ..around };
    let (old, new): (Vec<Candidate>, Vec<Candidate>) = around
        .trials(what.run)?
        .into_iter()
        .partition(|t| bench.times_measured(&t.run) > 0 || bench.died(&t.run).is_some());
    for remark in probe::state().remarks(bench.machine.memory) {
        output.note(&format!("  note: {remark}; a quiet machine is measured better"));
    }
    let mut result = Calibrated::default();
    // Of those that were killed for reasons unknown more is to be known.
    let (mut again, mut new): (Vec<Candidate>, Vec<Candidate>) = new
        .into_iter()
        .partition(|t| bench.killed(&t.run).is_some() && t.surely_fits(bench.limit, &bench.calibration, CONFIDENCE));
    if what.again {
        again.extend(old);
    } else {
        result.reused = old.len();
    }
    let started = Instant::now();
    let bar = output.bar(what.budget.0 as u64);
    let mut failures = 0;
    let ended = loop {
        around.mark(&mut options, &bench.calibration)?;
        padded.mark(&mut new, &bench.calibration)?;
        let decision = Decision { options: &options, limit: bench.limit, confidence: common::CONFIDENCE };
        let standing = decision.standing(&bench.calibration);
        let left = what.budget.0 - started.elapsed().as_secs_f64();
        let trial = match pick(bench, (&decision, &standing), (&mut again, &mut new), left) {
            Ok(trial) => trial,
            Err(ended) => break ended,
        };
        bar.set_position(started.elapsed().as_secs());
        bar.set_message(name(&trial.run));
        let share = LONGER * trial.seconds(&bench.calibration).0;
        let plan = bench.assess(&subject.padded(), &trial.run, CONFIDENCE)?;
        // Before anything is measured a step may take several times as long as expected.
        let time = (Seconds(left.min(share)), Seconds(left.min(SLOWEST * share)));
        // Written down before it is shown, and learned from before the next one is chosen.
        if let Some(measurement) = measure(bench, &trial.run, (time, &plan), what.script)? {
            failures = if measurement.has_speed() { 0 } else { failures + 1 };
            bar.suspend(|| output.part(&format!("  {}: {}", name(&measurement.config), seen(measurement))))?;
            result.measured += 1;
        }
        if interrupted().load(Ordering::Relaxed) {
            break Ended::Interrupted;
        }
        if failures == FAILURES {
            break Ended::Failing;
        }
    };
    bar.finish_and_clear();
    // The last trial counts too, above all if it died.
    around.mark(&mut options, &bench.calibration)?;
    let decision = Decision { options: &options, limit: bench.limit, confidence: common::CONFIDENCE };
    let standing = decision.standing(&bench.calibration);
    result.ended = Some(ended);
    result.choice = standing.choice.map(|i| options[i].run.clone());
    result.levers = result.choice.as_ref().and_then(|choice| price(bench, choice));
    result.regret = standing.choice.map(|_| standing.regret);
    Ok(result)
}

/// The next trial, taken out of those that are to be made again or of the new ones; or why there is none.
fn pick(
    bench: &Bench,
    (decision, standing): (&Decision<'_>, &Standing),
    (again, new): (&mut Vec<Candidate>, &mut Vec<Candidate>),
    left: f64,
) -> std::result::Result<Candidate, Ended> {
    if let Some(trial) = again.pop() {
        return if left > 0.0 { Ok(trial) } else { Err(Ended::Time) };
    }
    let calibration = &bench.calibration;
    // What goes over its bound is ended by the watch, so a miss costs a trial and nothing else.
    let fits = |trial: &&Candidate| trial.surely_fits(bench.limit, calibration, CONFIDENCE);
    let fitting: Vec<&Candidate> = new.iter().filter(fits).collect();
    let in_time = |trial: &&&Candidate| trial.seconds(calibration).0 <= left;
    let best = if standing.settled() {
        // The choice itself is run once, if it was not, and without its recompute, or with it: nothing is as sure as what
        // was seen.
        let choice = standing.choice.map(|c| &decision.options[c].run);
        let wanted = choice.map_or(Vec::new(), |c| vec![micro_batch(c), micro_batch(&recompute_switched(c))]);
        let mut wanted = wanted.iter().filter_map(|w| fitting.iter().find(|trial| micro_batch(&trial.run) == *w));
        wanted.find(in_time).copied().ok_or(Ended::Settled)?
    } else {
        let possible = fitting.iter().filter(in_time).copied();
        let best = trials::next(calibration, &[(*decision, standing.clone())], possible);
        best.ok_or(if fitting.is_empty() { Ended::Nothing } else { Ended::Time })?
    };
    let at = new.iter().position(|trial| trial.run == best.run).ok_or(Ended::Nothing)?;
    Ok(new.swap_remove(at))
}

/// What makes a micro-batch what it is, as far as trials differ.
fn micro_batch(run: &RunConfig) -> (usize, usize, usize, bool, Weights) {
    let (r, e) = (&run.recipe, &run.execution);
    (r.max_seq_length, r.lora.rank, e.batch_size, e.grad_checkpoint, e.weights)
}

fn recompute_switched(run: &RunConfig) -> RunConfig {
    let mut other = run.clone();
    other.execution.grad_checkpoint = !other.execution.grad_checkpoint;
    other
}

/// What recompute costs and saves at a run's micro-batch, where both ways were measured: the lever with the most behind
/// it.
fn price(bench: &Bench, run: &RunConfig) -> Option<String> {
    let seen = |run: &RunConfig| {
        let of = |m: &&Measurement| {
            m.pad_to_max && m.config.model == run.model && micro_batch(&m.config) == micro_batch(run)
        };
        let figures = |m: &Measurement| Some((m.measured.tokens_per_s?, m.measured.footprint_bytes?));
        bench.measurements.iter().filter(of).filter_map(figures).next_back()
    };
    let ((speed, footprint), (other_speed, other_footprint)) = (seen(run)?, seen(&recompute_switched(run))?);
    let (less, more) = (footprint.min(other_footprint), footprint.max(other_footprint));
    let faster = if run.execution.grad_checkpoint { other_speed / speed } else { speed / other_speed };
    let (percent, bytes) = (100.0 * (faster - 1.0), more.saturating_sub(less));
    Some(format!("  Measured there: recompute off is {percent:+.0} % speed and takes {bytes} more."))
}

impl Calibrated {
    /// Itself, or that it was interrupted.
    pub fn uninterrupted(self) -> Result<Self> {
        if self.ended != Some(Ended::Interrupted) {
            return Ok(self);
        }
        let what = format!("{} trials were measured and are kept", self.measured);
        Err(Error::Interrupted { kept: what, resume: Some(typed_again(Some("--again"))) })
    }

    /// What the trials say about the choice, and why there are no more.
    fn verdict(&self) -> String {
        let choice = match (&self.choice, self.regret) {
            (Some(run), Some(lost)) => {
                format!("  Its fastest execution that fits: {}; expected loss {:.1} %", name(run), 100.0 * lost)
            }
            _ => "  None of its executions surely fits.".into(),
        };
        let levers = self.levers.as_ref().map_or(String::new(), |levers| format!("\n{levers}"));
        format!("{choice}{levers}\n  {}", self.ended.map_or("", Ended::says))
    }
}

/// One trial in a process of its own, for `time` after which it ends, and `silence` after which it hangs. It is written
/// down, unless it was interrupted before it had anything to say.
pub fn measure<'a>(
    bench: &'a mut Bench,
    trial: &RunConfig,
    ((time, silence), plan): ((Seconds, Seconds), &Assessment),
    script: Option<&Path>,
) -> Result<Option<&'a Measurement>> {
    bench.check_writable()?;
    let mut config = trial.clone();
    (config.recipe.steps, config.recipe.epochs) = (Some(MAX_STEPS + 1), None);
    let job = Job { pad_to_max: true, ..Job::new(config) };
    let limits = Limits {
        memory: bench.limit,
        time,
        silence,
        min_steps: MIN_STEPS,
        max_steps: MAX_STEPS,
        min_time: MIN_TIME,
        precision: PRECISION,
    };
    let program = std::env::current_exe()
        .map_err(|e| Error::Engine { engine: "trial".into(), reason: format!("this program cannot be found: {e}") })?;
    let mut command = Command::new(program);
    command.args(["trial", "--tethered"]);
    if let Some(script) = script {
        command.arg("--script").arg(script);
    }
    let state = probe::state();
    let observed = observe(&mut command, &job, &limits, interrupted(), &mut |_: &TrainEvent| {})?;
    let measurement = Measurement::new(&bench.place, &job, &observed, bench::predicted(&plan.prediction), state);
    if interrupted().load(Ordering::Relaxed) && !measurement.says_something() {
        return Ok(None);
    }
    bench.add(measurement)?;
    Ok(bench.measurements.last())
}

fn name(run: &RunConfig) -> String {
    let (r, e) = (&run.recipe, &run.execution);
    let recompute = if e.grad_checkpoint { ", recompute" } else { "" };
    let (batch, length, rank, weights) = (e.batch_size, r.max_seq_length, r.lora.rank, e.weights.name());
    format!("{batch} x {length} tokens, rank {rank}, {weights}{recompute}")
}

/// What a trial showed, in a few words.
pub fn seen(m: &Measurement) -> String {
    let seen = match (m.measured.step_time_s, m.measured.footprint_bytes) {
        (Some(time), Some(footprint)) => format!("{} a step, {footprint}", Seconds(time)),
        _ => "nothing measured".into(),
    };
    match &m.outcome {
        Outcome::Stopped { .. } | Outcome::Finished => seen,
        _ if m.was_killed() => format!("{seen}, killed by the system or by hand"),
        other => format!("{seen}, {}", other.name()),
    }
}
