//! `headroom plan`: the best safe run for a Mac.

use std::path::Path;

use serde::Serialize;

use crate::checkpoint::source;
use crate::cli::plan::{GivenArgs, PlanArgs};
use crate::commands::inputs;
use crate::commands::interrupt::typed_again;
use crate::commands::output::{Answer, Output};
use crate::data::lengths;
use crate::error::{Error, Result};
use crate::experiment::session;
use crate::plan::table::table;
use crate::plan::{Ask, DEFAULT_HOURS, Held, Plan, plan};
use crate::predict::ASSUMED_EXAMPLES;
use crate::report::feasible;
use crate::report::table::{self as page, Context};
use crate::spec::model::Model;
use crate::spec::run::{DEFAULT_EPOCHS, Data, Execution, Recipe, RunConfig, TokenLengths};
use crate::units::Seconds;

/// Longest example where no data says otherwise, in tokens.
const LONGEST: usize = 2048;

/// Where the rows are said to be in a plan that was made without data.
const DATA: &str = "train.jsonl";

/// First line of a run file that was planned: what tells it from all other files.
const HEADER: &str = "# Written by `headroom plan`.\n";

/// Result of `headroom plan` for `--json`.
#[derive(Serialize)]
struct Answered<'a> {
    #[serde(flatten)]
    plan: &'a Plan,
    #[serde(skip_serializing_if = "Option::is_none")]
    understood: Option<&'a str>,
}

/// Runs `headroom plan`: searches for the best run and writes it.
pub(crate) fn run(args: &PlanArgs, output: &Output) -> Result<Answer> {
    if let Some(path) = &args.out {
        check_out(path, args.force)?;
    }
    let machine = inputs::machine(&args.machine)?;
    let confidence = inputs::confidence(args.limits.confidence);
    let hours = args.time_limit.map_or(DEFAULT_HOURS, Seconds::hours);
    let model = args.given.model.as_deref().map(source::model).transpose()?;
    let mut start = start(&args.given)?;
    let named = model.as_ref().filter(|_| args.given.weights.is_none());
    let asked = named.and_then(|model| start.hold_as_named(model));
    let counted = lengths(&args.given, model.as_ref(), output)?;
    let longest = args.given.seq.unwrap_or(LONGEST);
    let lengths = counted.clone().unwrap_or_else(|| TokenLengths::assumed(ASSUMED_EXAMPLES, longest));
    let calibration = session::known(start.engine, &machine, &inputs::results(args.machine.results.as_ref())?)?;
    let held = Held {
        max_seq_length: args.given.seq.is_some(),
        rank: args.given.rank.is_some(),
        batch_size: args.given.batch_size.is_some(),
        weights: args.given.weights.is_some() || asked.is_some(),
        grad_checkpoint: false,
    };
    let ask = Ask {
        machine: &machine,
        calibration: &calibration,
        run: start,
        held,
        model,
        lengths: &lengths,
        prefer: args.prefer.unwrap_or_default(),
        hours,
        confidence,
        budget: args.limits.memory_limit,
    };
    if args.table {
        let cells = table(&ask)?;
        let assumed = counted.is_none().then(|| inputs::assumed(&ask.run, longest));
        let about = feasible::About { machine: &machine, limit: Seconds::from_hours(hours), assumed };
        output.answer(&cells, |_| feasible::table(&cells, &about))?;
        return Ok(if cells.iter().any(|cell| cell.in_time) { Answer::Yes } else { Answer::No });
    }
    let found = plan(&ask)?;
    if let Some(path) = &args.out {
        check_out(path, args.force)?;
        crate::store::write(path, format!("{HEADER}{}", found.best.run.to_toml()?).as_bytes())?;
        output.note(&format!("wrote `{}`", path.display()));
    }
    let understood = ask.model.as_ref().and_then(|model| model.understood.clone());
    output.answer(&Answered { plan: &found, understood: understood.as_deref() }, |width| {
        let assumed = counted.is_none().then(|| inputs::assumed(&found.best.run, longest));
        page::plan(&found, &machine, &Context { width, assumed, understood: understood.clone(), launch: launch(args) })
    })?;
    Ok(Answer::Yes)
}

/// Refuses to write over anything, and with `--force` over anything but an earlier plan.
fn check_out(path: &Path, force: bool) -> Result<()> {
    // A link that leads nowhere is something too.
    if std::fs::symlink_metadata(path).is_err() {
        return Ok(());
    }
    if !force {
        return Err(Error::Exists { path: path.into() });
    }
    let planned = crate::store::read_text(path).is_ok_and(|text| text.starts_with(HEADER));
    let got = format!("`{}`", path.display());
    if planned {
        Ok(())
    } else {
        Err(Error::invalid("--out", got, "a file that `headroom plan` wrote, to be replaced"))
    }
}

/// The run to start from: the defaults, and what was given.
fn start(given: &GivenArgs) -> Result<RunConfig> {
    let mut run = RunConfig {
        model: given.model.clone().unwrap_or_default(),
        data: given.data.as_deref().map_or_else(|| Data::Train(DATA.into()), inputs::data),
        engine: given.engine.unwrap_or_default(),
        seed: 0,
        recipe: Recipe::default(),
        execution: Execution::default(),
    };
    let r = &mut run.recipe;
    r.steps = given.steps;
    r.epochs = if given.steps.is_some() { None } else { Some(given.epochs.unwrap_or(DEFAULT_EPOCHS)) };
    if let Some(seq) = given.seq {
        r.max_seq_length = seq;
    }
    if let Some(rank) = given.rank {
        (r.lora.rank, r.lora.alpha) = (rank, 2.0 * rank as f64);
    }
    if let Some(n) = given.effective_batch_size {
        r.effective_batch_size = n;
    }
    if let Some(n) = given.batch_size {
        run.execution.batch_size = n;
    }
    if let Some(weights) = given.weights {
        run.execution.weights = weights;
    }
    run.check()?;
    Ok(run)
}

/// Lengths of the data, counted where the model's tokenizer is at hand and estimated where it is not.
fn lengths(given: &GivenArgs, model: Option<&Model>, output: &Output) -> Result<Option<TokenLengths>> {
    let Some(path) = &given.data else { return Ok(None) };
    let data = inputs::data(path);
    let counted = match model.map(|m| lengths::lengths_or_estimate(m, &data)) {
        Some(Err(Error::NoWeights { .. } | Error::NoTokenizer { .. })) | None => lengths::estimate(&data)?,
        Some(counted) => counted?,
    };
    Ok(Some(inputs::said(counted, output)))
}

/// Commands that launch the plan.
fn launch(args: &PlanArgs) -> Vec<String> {
    let Some(path) = &args.out else {
        // What was typed, and where to write the run.
        let again = typed_again(None);
        let data = if args.given.data.is_some() { String::new() } else { format!(" --data {DATA}") };
        return vec![format!("{again}{data} --out run.toml"), "headroom launch run.toml".into()];
    };
    vec![format!("headroom launch {}", crate::store::quoted(path))]
}
