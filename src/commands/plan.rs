//! `headroom plan`: the best safe run for a Mac.

use super::{Answer, Output, bench, common};
use crate::cli::{GivenArgs, PlanArgs};
use crate::error::{Error, Result};
use crate::plan::{Ask, Held, Model, plan};
use crate::predict::ASSUMED_EXAMPLES;
use crate::report::table::{self, Context};
use crate::spec::data::TokenLengths;
use crate::spec::run::{DEFAULT_EPOCHS, Data, Execution, Recipe, RunConfig};

/// Longest example where no data says otherwise, in tokens.
const LONGEST: usize = 2048;

/// Where the rows are said to be in a plan that was made without data.
const DATA: &str = "train.jsonl";

/// Plans.
pub fn run(args: &PlanArgs, output: &Output) -> Result<Answer> {
    let machine = common::machine(&args.machine)?;
    let confidence = common::confidence(&args.limits)?;
    let hours = args.hours.unwrap_or(common::HOURS);
    if !(hours > 0.0 && hours.is_finite()) {
        return Err(Error::invalid("--hours", hours, "more than 0"));
    }
    let model = args.given.model.as_deref().map(common::model).transpose()?;
    let start = start(&args.given)?;
    let counted = lengths(&args.given, model.as_ref(), output)?;
    let longest = args.given.seq.unwrap_or(LONGEST);
    let lengths = counted.clone().unwrap_or_else(|| TokenLengths::assumed(ASSUMED_EXAMPLES, longest));
    let calibration = bench::known(start.engine, &machine, &args.machine.results)?;
    let held = Held {
        max_seq_length: args.given.seq.is_some(),
        rank: args.given.rank.is_some(),
        batch_size: args.given.batch_size.is_some(),
        weights: args.given.weights.is_some(),
        grad_checkpoint: false,
    };
    let ask = Ask {
        machine: &machine,
        calibration: &calibration,
        run: start,
        held,
        model,
        lengths: &lengths,
        hours,
        confidence,
        budget: args.limits.budget,
    };
    let found = plan(&ask)?;
    if let Some(path) = &args.out {
        crate::store::write(path, found.best.run.to_toml()?.as_bytes())?;
        output.note(&format!("wrote `{}`", path.display()));
    }
    output.answer(&found, |width| {
        let assumed = counted.is_none().then(|| common::assumed(&found.best.run, longest));
        table::plan(&found, &machine, &Context { width, assumed, launch: launch(args) })
    })?;
    Ok(Answer::Yes)
}

/// The run to start from: the defaults, and what was given.
fn start(given: &GivenArgs) -> Result<RunConfig> {
    let mut run = RunConfig {
        model: given.model.clone().unwrap_or_default(),
        data: given.data.as_deref().map_or_else(|| Data::Train(DATA.into()), common::data),
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
    let data = common::data(path);
    match model.map(|m| common::lengths_or_estimate(m, &data, output)) {
        Some(Err(Error::NoWeights { .. })) | None => common::estimate(&data, output).map(Some),
        Some(counted) => counted.map(Some),
    }
}

/// The commands that run the plan.
fn launch(args: &PlanArgs) -> Vec<String> {
    let Some(path) = &args.out else {
        // What was typed, and where to write the run.
        let typed = std::env::args().skip(1).map(|a| if a.contains(' ') { format!("\"{a}\"") } else { a });
        let again = typed.collect::<Vec<_>>().join(" ");
        let data = if args.given.data.is_some() { String::new() } else { format!(" --data {DATA}") };
        return vec![format!("headroom {again}{data} --out run.toml"), "headroom launch run.toml".into()];
    };
    vec![format!("headroom launch {}", path.display())]
}
