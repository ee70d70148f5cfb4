//! What several verbs need: the machine, the model, the data.

use std::path::{Path, PathBuf};

use crate::checkpoint::source::{ModelSource, looks_like_path};
use crate::checkpoint::text::Text;
use crate::cli::{LimitArgs, MachineArgs};
use crate::commands::output::Output;
use crate::data::examples::{self, Rows};
use crate::error::{Error, Result};
use crate::measure::probe;
use crate::plan::Model;
use crate::predict::ASSUMED_EXAMPLES;
use crate::spec::machine::Machine;
use crate::spec::model::catalogue;
use crate::spec::run::data::TokenLengths;
use crate::spec::run::{BUILTIN, DEFAULT_EPOCHS, Data, RunConfig};
use crate::units::grouped;

/// Confidence where none is asked for.
pub const CONFIDENCE: f64 = 0.99;

/// Longest run where none is asked for, hours: a night.
pub const HOURS: f64 = 8.0;

/// The machine that was named, or this one.
pub fn machine(args: &MachineArgs) -> Result<Machine> {
    let named = match (&args.machine, args.ram) {
        (Some(chip), ram) => Machine::named(chip, ram, args.gpu_cores)?,
        (None, Some(ram)) => Machine::plainest(ram)?,
        // What it is running is known to itself.
        (None, None) => return probe::this_machine(),
    };
    Ok(match args.macos {
        Some(version) => named.under_macos(version),
        None => named,
    })
}

/// The confidence that was asked for.
pub fn confidence(args: &LimitArgs) -> Result<f64> {
    let confidence = args.confidence.unwrap_or(CONFIDENCE);
    if confidence > 0.5 && confidence < 1.0 {
        Ok(confidence)
    } else {
        Err(Error::invalid("--confidence", confidence, "more than 0.5 and less than 1"))
    }
}

/// A model by its name or folder; only its shape is needed, so its weights may be elsewhere.
pub fn model(name: &str) -> Result<Model> {
    if name == BUILTIN || Path::new(name).is_dir() || looks_like_path(name) {
        return Ok(Model { name: name.into(), spec: ModelSource::find(name)?.spec()? });
    }
    match catalogue::find(name) {
        Ok(entry) => Ok(Model { name: entry.id.clone(), spec: entry.spec.clone() }),
        // Not in the catalogue, but perhaps in Hugging Face's cache.
        Err(unknown) => match ModelSource::find(name) {
            Ok(source) => Ok(Model { name: name.into(), spec: source.spec()? }),
            Err(_) => Err(unknown),
        },
    }
}

/// The base that a run folder names, where it is one, and its adapter; any other folder is an adapter itself.
pub fn run_or_adapter(folder: &Path) -> Result<(Option<String>, Option<PathBuf>)> {
    let run_file = folder.join("run.toml");
    if !run_file.is_file() {
        return Ok((None, Some(folder.into())));
    }
    let run = RunConfig::from_toml(&crate::store::read_text(&run_file)?, &run_file)?;
    Ok((Some(run.model), Some(folder.join("adapter"))))
}

/// The data's examples under a model's tokenizer.
fn rows(model: &Model, data: &Data) -> Result<Rows> {
    let source = ModelSource::find(&model.name)?;
    let text = Text::open(&source, &model.spec, &model.name)?;
    Rows::read(data, &text, model.spec.vocab_size)
}

/// Lengths of the data's examples under a model's tokenizer.
pub fn lengths(model: &Model, data: &Data) -> Result<TokenLengths> {
    Ok(rows(model, data)?.lengths())
}

/// Lengths of a run's examples, as [`lengths_or_estimate`] has them. Rows from which the run learns nothing are said; if
/// there are no others, it is an error.
pub fn lengths_of_run(model: &Model, run: &RunConfig, output: &Output) -> Result<TokenLengths> {
    match rows(model, &run.data) {
        Ok(rows) => {
            let (without, all) = (rows.untrained(run)?, rows.train.len());
            if without > 0 {
                let cut = run.recipe.max_seq_length;
                output.note(&format!(
                    "{without} of {all} rows teach nothing: their prompts, which `mask_prompt` leaves out, fill the {cut} tokens of `max_seq_length`"
                ));
            }
            Ok(rows.lengths())
        }
        Err(Error::NoWeights { .. }) if run.data.train().as_os_str() != BUILTIN => estimate(&run.data, output),
        Err(error) => Err(error),
    }
}

/// [`lengths`], or an estimate where the tokenizer is not on this machine, which is said. The rows that ship stand for no
/// one's data, so with another model they are not estimated.
pub fn lengths_or_estimate(model: &Model, data: &Data, output: &Output) -> Result<TokenLengths> {
    match lengths(model, data) {
        Err(Error::NoWeights { .. }) if data.train().as_os_str() != BUILTIN => estimate(data, output),
        counted => counted,
    }
}

/// Whether an error says that a file, or the weights of a model, are not on this machine.
pub fn is_absent(error: &Error) -> bool {
    match error {
        Error::NoWeights { .. } => true,
        Error::Read { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

/// Lengths without the model's tokenizer: by the one that ships, of the rows that ship, and else by the size of the text.
pub fn estimate(data: &Data, output: &Output) -> Result<TokenLengths> {
    if data.train().as_os_str() == BUILTIN {
        return lengths(&model(BUILTIN)?, data);
    }
    let validation = data.valid().map(estimated_lengths).transpose()?.unwrap_or_default();
    let lengths = TokenLengths::new(estimated_lengths(data.train())?).with_validation(validation);
    output.note("the tokenizer is not on this machine: lengths are estimated from the size of the text");
    Ok(lengths)
}

/// Bytes of text that one token stands for, where no tokenizer is at hand: 3.5 to 4.5 in English prose under
/// vocabularies of 32,000 to 152,000; the lower end gives longer examples, and so never flatters a plan.
const BYTES_PER_TOKEN: usize = 3;

/// Lengths estimated from the size of the rows' text, by the bundled tokenizer's reader but without a tokenizer.
fn estimated_lengths(data: &Path) -> Result<Vec<u32>> {
    let text = crate::store::read_text(data)?;
    let mut lengths = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let row = examples::parsed(line, data, i + 1)?;
        lengths.push(text_bytes(&row).div_ceil(BYTES_PER_TOKEN) as u32);
    }
    if lengths.is_empty() {
        return Err(Error::Data { path: data.into(), reason: "it holds no rows".into() });
    }
    Ok(lengths)
}

/// Bytes of all strings in a row; tokens that are given as such count as themselves.
fn text_bytes(value: &serde_json::Value) -> usize {
    match value {
        serde_json::Value::String(s) => s.len(),
        serde_json::Value::Array(all) => all.iter().map(text_bytes).sum(),
        serde_json::Value::Object(map) => map.values().map(text_bytes).sum(),
        serde_json::Value::Number(_) => BYTES_PER_TOKEN,
        _ => 0,
    }
}

/// The data that was given; `builtin` is a name and no path.
pub fn data(path: &Path) -> Data {
    Data::Train(PathBuf::from(path))
}

/// What was taken for granted of data that is not at hand.
pub fn assumed(run: &RunConfig, longest: usize) -> String {
    let passes = match (run.recipe.steps, run.recipe.epochs) {
        (Some(_), _) => String::new(),
        (_, epochs) => format!(", seen {} times", epochs.unwrap_or(DEFAULT_EPOCHS)),
    };
    let lengths = TokenLengths::assumed(ASSUMED_EXAMPLES, longest);
    let (examples, mean) = (grouped(ASSUMED_EXAMPLES as u64), lengths.mean_cut(run.recipe.max_seq_length));
    format!("{examples} examples of {mean:.0} tokens, the longest of {longest}{passes}")
}
