//! `generate`: tries a model, with an adapter and without.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::checkpoint::hub::Part;
use crate::cli::export::GenerateArgs;
use crate::commands::output::{Answer, Output};
use crate::commands::{fetch, inputs};
use crate::error::Result;
use crate::spec::run::BUILTIN;
use crate::trainer::candle::generate::{self, Choice};

#[derive(Serialize)]
struct Answers {
    prompt: String,
    base: Option<String>,
    adapted: Option<String>,
}

/// Runs `headroom generate`: answers a prompt with a model and its adapter.
pub(crate) fn run(args: &GenerateArgs, output: &Output) -> Result<Answer> {
    let (model, adapter) = subject(args)?;
    fetch::model(&model, Part::Weights, output)?;
    let choice =
        Choice { temperature: args.temperature, top_p: args.top_p, seed: args.seed, max_tokens: args.max_tokens };
    let ask = |adapter: Option<&Path>| generate::answer(&model, adapter, &args.prompt, choice);
    let adapted = adapter.as_deref().map(|folder| ask(Some(folder))).transpose()?;
    // With an adapter the base's answer is the comparison, and asked for.
    let base = if adapted.is_none() || args.compare { Some(ask(None)?) } else { None };
    let answers = Answers { prompt: args.prompt.clone(), base, adapted };
    output.answer(&answers, |_| match (&answers.base, &answers.adapted) {
        (Some(base), Some(adapted)) => format!("before  {base}\nafter   {adapted}\n"),
        (Some(one), None) | (None, Some(one)) => format!("{one}\n"),
        (None, None) => String::new(),
    })?;
    Ok(Answer::Yes)
}

/// The model and the adapter folder: of a run folder, or as given.
fn subject(args: &GenerateArgs) -> Result<(String, Option<PathBuf>)> {
    let Some(folder) = &args.adapter else {
        return Ok((args.model.clone().unwrap_or_else(|| BUILTIN.into()), None));
    };
    let (of_run, adapter) = inputs::run_or_adapter(folder)?;
    Ok((args.model.clone().or(of_run).unwrap_or_else(|| BUILTIN.into()), adapter))
}
