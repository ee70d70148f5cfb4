//! `headroom auto`: plan, calibrate, launch and report in one go.

use std::path::Path;

use crate::cli::measure::AutoArgs;
use crate::cli::report::ReportArgs;
use crate::commands::launch::{self, Place, Settings};
use crate::commands::output::Output;
use crate::commands::{calibrate, inputs, report};
use crate::error::Result;
use crate::experiment::calibration::Calibrating;
use crate::experiment::run_file;
use crate::experiment::session::Session;
use crate::experiment::workload::Workload;
use crate::measure::awake::Awake;
use crate::plan::{Ask, DEFAULT_CONFIDENCE, DEFAULT_HOURS, Held, Plan, plan};
use crate::spec::model::Model;
use crate::spec::run::{BUILTIN, Execution, Prefer, Recipe, RunConfig};
use crate::store::RunFolder;
use crate::units::Seconds;

/// Longest run of the model that ships, hours: a minute and a half.
const HOURS_BUILTIN: f64 = 1.5 / 60.0;
/// Passes over the rows that ship, where three take too long.
const EPOCHS_BUILTIN: [f64; 3] = [1.0, 0.3, 0.1];
/// Time for the trials; for the model that ships they take seconds.
const CALIBRATING: Seconds = Seconds(180.0);
const CALIBRATING_BUILTIN: Seconds = Seconds(20.0);
/// Number of optimizer steps between checkpoints.
const SAVE_EVERY: usize = 50;

/// Runs `headroom auto`: plans, calibrates, trains and reports.
pub(crate) fn run(args: &AutoArgs, output: &Output) -> Result<()> {
    let builtin = args.model.is_none();
    let mut start = RunConfig::builtin();
    if let (Some(model), Some(data)) = (&args.model, &args.data) {
        if model != BUILTIN {
            // The built-in recipe is for the model that it was tried on.
            (start.recipe, start.execution) = (Recipe::default(), Execution::default());
        }
        (start.model, start.data) = (model.clone(), inputs::data(data));
    }
    start.engine = args.engine.unwrap_or_default();
    run_file::anchor(&mut start);
    let workload = inputs::workload(&start, output)?;
    let mut session = inputs::session(start.engine, &args.measure)?;
    if let Some(out) = &args.out {
        // Found out before the trials and not after them.
        RunFolder::check(out)?;
    }
    let hours = args.time_limit.map_or(if builtin { HOURS_BUILTIN } else { DEFAULT_HOURS }, Seconds::hours);

    let _awake = Awake::during("calibrating and training");
    // For machines the answer is the report's alone.
    let steps = output.step();
    let head = |title: &str| output.part(&format!("\n{title}"));
    head("1. Plan, from formulas")?;
    let epochs: &[f64] = if builtin { &EPOCHS_BUILTIN } else { &[] };
    let first = search(&session, &workload, &start, (hours, epochs))?;
    output.part(&describe(&first))?;
    head("2. Calibrate")?;
    let budget = if builtin { CALIBRATING_BUILTIN } else { CALIBRATING };
    let script = args.measure.script.as_deref();
    let what = Calibrating { run: &first.best.run, workload: &workload, budget, again: false, script };
    calibrate::calibrate(&mut session, &what, &steps)?.uninterrupted()?;
    head("3. Plan, calibrated")?;
    let best = search(&session, &workload, &start, (hours, epochs))?;
    output.part(&describe(&best))?;
    head("4. Launch")?;
    let settings = Settings {
        force: false,
        accept_changes: false,
        save_every: SAVE_EVERY,
        confidence: DEFAULT_CONFIDENCE,
        measure: &args.measure,
    };
    let folder = launch::start(best.best.run.clone(), &place(args, &best.best.run), &settings, &steps)?;
    head("5. Report")?;
    let report = ReportArgs {
        of: None,
        runs: vec![folder.path().into()],
        name: None,
        reports: args.reports.clone(),
        results: args.measure.results.clone(),
    };
    report::run(&report, output).map(|_| ())
}

/// The best run within `hours`. Of `epochs` the first is taken for which there is one: the model that ships is
/// there to show the way from end to end, on a slow machine with fewer passes.
fn search(session: &Session, workload: &Workload, start: &RunConfig, (hours, epochs): (f64, &[f64])) -> Result<Plan> {
    let mut ask = Ask {
        machine: &session.machine,
        calibration: &session.calibration,
        run: start.clone(),
        held: Held::default(),
        model: Some(Model::new(&start.model, workload.spec.clone())),
        lengths: &workload.lengths,
        prefer: Prefer::default(),
        hours,
        confidence: DEFAULT_CONFIDENCE,
        budget: Some(session.limit),
    };
    let mut answer = plan(&ask);
    for &fewer in epochs {
        if answer.is_ok() {
            break;
        }
        ask.run.recipe.epochs = Some(fewer);
        answer = plan(&ask);
    }
    answer
}

fn describe(plan: &Plan) -> String {
    let (run, p) = (&plan.best.run, &plan.best.assessment.prediction);
    format!(
        "  {}: {} tokens, rank {}, micro-batch {} of {}, {} steps\n  {} ({} to {}), {:.0} tok/s, {} in all",
        run.model,
        run.recipe.max_seq_length,
        run.recipe.lora.rank,
        run.execution.batch_size,
        run.recipe.effective_batch_size,
        p.steps,
        p.footprint.point,
        p.footprint.low,
        p.footprint.high,
        p.tokens_per_s.point,
        p.total_time.point
    )
}

/// The folder that was named, or the first free one under `runs/` with the model's name.
fn place(args: &AutoArgs, run: &RunConfig) -> Place {
    match &args.out {
        Some(out) => Place::New(out.clone()),
        None => {
            let name = Path::new(&run.model).file_name().unwrap_or_default().to_string_lossy().into_owned();
            Place::Numbered("runs".into(), name)
        }
    }
}
