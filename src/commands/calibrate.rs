//! `headroom calibrate`: a few short runs under a hard memory limit, and what they change.

use serde::Serialize;

use crate::checkpoint::hub::Part;
use crate::cli::measure::CalibrateArgs;
use crate::commands::interrupt::{interrupted, typed_again};
use crate::commands::output::Output;
use crate::commands::{fetch, inputs};
use crate::error::{Error, Result};
use crate::experiment::calibration::{self, Calibrating, Ended, Price, TrialEvent};
use crate::experiment::run_file;
use crate::experiment::session::Session;
use crate::measure::Measurement;
use crate::measure::awake::Awake;
use crate::predict::calibration::Calibration;
use crate::predict::predict;
use crate::report::brief;
use crate::spec::record::Outcome;
use crate::spec::run::RunConfig;
use crate::units::{Estimate, Seconds, counted};

/// Level of the intervals that are shown.
const LEVEL: f64 = 0.9;

/// Result of `headroom calibrate` for `--json`.
#[derive(Debug, Serialize)]
pub(crate) struct Calibrated {
    /// Number of trials made now.
    pub measured: usize,
    /// Number of trials that had been made before.
    pub reused: usize,
    /// Reason for which no more trials were made.
    pub ended: Option<Ended>,
    /// Run that would be chosen now.
    pub choice: Option<RunConfig>,
    /// Mean loss of speed of the choice against the best one, as a share.
    pub regret: Option<f64>,
    /// What activation checkpointing costs, as measured, in a sentence.
    pub trade_offs: Option<String>,
    /// Number of measurements that the calibration is fitted to.
    pub runs: usize,
    /// Predictions of the planned run before and after, by the name of the quantity.
    pub changes: Vec<(&'static str, [Estimate<f64>; 2])>,
    /// Calibration after the trials.
    pub calibration: Calibration,
}

/// Runs `headroom calibrate`: makes trials and says what they changed.
pub(crate) fn run(args: &CalibrateArgs, output: &Output) -> Result<()> {
    let run = match &args.run {
        Some(path) => run_file::read_run(path)?,
        None => RunConfig::builtin(),
    };
    let mut session = inputs::session(run.engine, &args.measure)?;
    let workload = inputs::workload(&run, output)?;
    let script = args.measure.script.as_deref();
    let what = Calibrating { run: &run, workload: &workload, budget: args.time_limit, again: args.again, script };
    let result = calibrate(&mut session, &what, output)?;
    output.data(&result)?;
    result.uninterrupted()
}

/// Makes the trials that are missing and says what they changed.
pub(crate) fn calibrate(session: &mut Session, what: &Calibrating<'_>, output: &Output) -> Result<Calibrated> {
    fetch::model(&what.run.model, Part::Weights, output)?;
    let _awake = Awake::during("calibrating");
    let old = session.calibration.clone();
    let trials = make_trials(session, what, output)?;
    if session.unusable > 0 {
        let older = counted(session.unusable, "older measurement");
        output.note(&format!("  {older} could not be used: the model is no longer available"));
    }
    let by = |calibration| predict(&session.request(what.workload, what.run, calibration), LEVEL);
    let changes = brief::changes(&by(&old)?, &by(&session.calibration)?);
    let result = Calibrated {
        measured: trials.measured,
        reused: trials.reused,
        ended: trials.ended,
        choice: trials.choice,
        regret: trials.regret,
        trade_offs: trials.price.as_ref().map(price),
        runs: session.calibration.runs,
        changes: changes.iter().map(|c| (c.quantity.name(), [c.before, c.after])).collect(),
        calibration: session.calibration.clone(),
    };
    output.part(&format!(
        "\n{} measured, {} reused; calibrated by {} of this machine and engine. The planned run:",
        counted(result.measured, "trial"),
        counted(result.reused, "earlier one"),
        counted(result.runs, "run")
    ))?;
    output.part(&brief::change_table(&changes))?;
    output.part(&format!("  {}", brief::moved(&old, &session.calibration)))?;
    output.part(&result.verdict())?;
    Ok(result)
}

/// Shows the trials as they are made.
fn make_trials(session: &mut Session, what: &Calibrating<'_>, output: &Output) -> Result<calibration::Calibrated> {
    let bar = output.bar(what.budget.0 as u64);
    calibration::calibrate(session, what, interrupted(), &mut |event| {
        match event {
            TrialEvent::Remark(remark) => {
                output.note(&format!("  note: {remark}; an idle machine gives better measurements"));
            }
            TrialEvent::Begins(run, elapsed) => {
                bar.set_position(elapsed.0 as u64);
                bar.set_message(name(run));
            }
            TrialEvent::Ends(m) => bar.suspend(|| output.part(&format!("  {}: {}", name(&m.config), seen(m))))?,
            TrialEvent::Over => bar.finish_and_clear(),
        }
        Ok(())
    })
}

fn price(price: &Price) -> String {
    let percent = 100.0 * (price.faster - 1.0);
    format!("  Measured there: without activation checkpointing {percent:+.0} % speed and {} more memory", price.saves)
}

fn says(ended: Ended) -> &'static str {
    match ended {
        Ended::Settled => "No further trial would change this choice",
        Ended::Time => "Time limit reached; a longer `--time-limit` would narrow the intervals",
        Ended::Nothing => "No remaining trial is certain to fit",
        Ended::Failing => "Stopped after three failed trials in a row; see `headroom doctor`",
        Ended::Interrupted => "Interrupted; the measurements are kept, and the choice may still change",
    }
}

impl Calibrated {
    /// # Errors
    /// Where the trials were interrupted.
    pub(crate) fn uninterrupted(&self) -> Result<()> {
        if self.ended != Some(Ended::Interrupted) {
            return Ok(());
        }
        let what = format!("{} measured and saved", counted(self.measured, "trial"));
        Err(Error::Interrupted { kept: what, resume: Some(typed_again(Some("--again"))) })
    }

    /// What the trials say about the choice, and why there are no more.
    fn verdict(&self) -> String {
        let choice = match (&self.choice, self.regret) {
            (Some(run), Some(lost)) => {
                format!(
                    "  Fastest execution that fits: {}; expected slowdown against the best {:.1} %",
                    name(run),
                    100.0 * lost
                )
            }
            _ => "  No execution is certain to fit".into(),
        };
        let trade_offs = self.trade_offs.as_ref().map_or(String::new(), |told| format!("\n{told}"));
        format!("{choice}{trade_offs}\n  {}", self.ended.map_or("", says))
    }
}

fn name(run: &RunConfig) -> String {
    let (r, e) = (&run.recipe, &run.execution);
    let checkpointed = if e.grad_checkpoint { ", activation checkpointing" } else { "" };
    let (batch, length, rank, weights) = (e.batch_size, r.max_seq_length, r.lora.rank, e.weights.name());
    format!("{batch} x {length} tokens, rank {rank}, {weights}{checkpointed}")
}

/// What a trial showed, in a few words.
pub(crate) fn seen(m: &Measurement) -> String {
    let seen = match (m.measured.step_time_s, m.measured.footprint_bytes) {
        (Some(time), Some(footprint)) => format!("{} per step, {footprint}", Seconds(time)),
        _ => "no measurement".into(),
    };
    match &m.outcome {
        Outcome::Stopped { .. } | Outcome::Finished => seen,
        _ if m.was_killed() => format!("{seen}, killed from outside"),
        other => format!("{seen}, {}", other.name()),
    }
}
