//! `generate`: tries a model, with an adapter and without.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::checkpoint::hub::Part;
use crate::cli::export::GenerateArgs;
use crate::commands::output::{Answer, Output};
use crate::commands::{fetch, inputs};
use crate::data::examples;
use crate::error::Result;
use crate::spec::run::{BUILTIN, Data};
use crate::trainer::candle::generate::{self, Choice, Prompt};

#[derive(Serialize)]
struct Answers {
    prompt: String,
    base: Option<String>,
    adapted: Option<String>,
}

/// Runs `headroom generate`: answers a prompt with a model and its adapter.
pub(crate) fn run(args: &GenerateArgs, output: &Output) -> Result<Answer> {
    let (model, adapter, data) = subject(args)?;
    fetch::model(&model, Part::Weights, output)?;
    let choice =
        Choice { temperature: args.temperature, top_p: args.top_p, seed: args.seed, max_tokens: args.max_tokens };
    let prompt = Prompt { text: &args.prompt, chat: form(args, data.as_ref(), output) };
    let ask = |adapter: Option<&Path>| generate::answer(&model, adapter, prompt, choice);
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

/// Whether the prompt is a message of a chat: as was asked, or as the rows of the run were, which is said where it is not what
/// the model would be asked without them.
fn form(args: &GenerateArgs, data: Option<&Data>, output: &Output) -> Option<bool> {
    if args.raw || args.chat {
        return Some(args.chat);
    }
    let chats = data.and_then(examples::are_chats)?;
    if !chats {
        output.note(
            "the prompt is continued as plain text, as the run was trained; `--chat` puts it into the chat template",
        );
    }
    // Without a template there is no choice.
    (!chats).then_some(false)
}

/// The model, the adapter folder and the data: of a run folder, or as given.
fn subject(args: &GenerateArgs) -> Result<(String, Option<PathBuf>, Option<Data>)> {
    let Some(folder) = &args.adapter else {
        return Ok((args.model.clone().unwrap_or_else(|| BUILTIN.into()), None, None));
    };
    let (run, adapter) = inputs::run_or_adapter(folder)?;
    let data = run.as_ref().map(|run| run.data.clone());
    let model = args.model.clone().or(run.map(|run| run.model));
    Ok((model.unwrap_or_else(|| BUILTIN.into()), adapter, data))
}
