//! What several verbs are given: the machine, the confidence, the data, a run folder.

use std::path::{Path, PathBuf};

use crate::checkpoint::hub::Part;
use crate::cli::measure::MeasureArgs;
use crate::cli::plan::MachineArgs;
use crate::commands::fetch;
use crate::commands::output::Output;
use crate::data::lengths::Counted;
use crate::error::Result;
use crate::experiment::session::{Session, Settings};
use crate::experiment::workload::Workload;
use crate::measure::probe;
use crate::plan::DEFAULT_CONFIDENCE;
use crate::predict::ASSUMED_EXAMPLES;
use crate::spec::machine::Machine;
use crate::spec::run::{DEFAULT_EPOCHS, Data, Engine, RunConfig, TokenLengths};
use crate::store;
use crate::units::grouped;

/// The machine that was named, or this one.
pub(crate) fn machine(args: &MachineArgs) -> Result<Machine> {
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

/// The confidence that was asked for, or the default.
pub(crate) fn confidence(asked: Option<f64>) -> f64 {
    asked.unwrap_or(DEFAULT_CONFIDENCE)
}

/// The run of a run folder, and its adapter; the adapter folder of a run is that run too, and any other folder is an
/// adapter alone.
pub(crate) fn run_or_adapter(folder: &Path) -> Result<(Option<RunConfig>, Option<PathBuf>)> {
    let read = |file: PathBuf| RunConfig::from_toml(&store::read_text(&file)?, &file);
    let file = folder.join("run.toml");
    if file.is_file() {
        return Ok((Some(read(file)?), Some(folder.join("adapter"))));
    }
    let whole = folder.canonicalize().ok().filter(|f| f.ends_with("adapter"));
    let beside = whole.as_deref().and_then(Path::parent).map(|run| run.join("run.toml")).filter(|file| file.is_file());
    Ok((beside.map(read).transpose()?, Some(folder.into())))
}

/// The data that was given; `builtin` is a name and no path.
pub(crate) fn data(path: &Path) -> Data {
    Data::Train(PathBuf::from(path))
}

/// What was taken for granted of data that is not at hand.
pub(crate) fn assumed(run: &RunConfig, longest: usize) -> String {
    let passes = match (run.recipe.steps, run.recipe.epochs) {
        (Some(_), _) => String::new(),
        (_, epochs) => format!(", {} epochs", epochs.unwrap_or(DEFAULT_EPOCHS)),
    };
    let lengths = TokenLengths::assumed(ASSUMED_EXAMPLES, longest);
    let (examples, mean) = (grouped(ASSUMED_EXAMPLES as u64), lengths.mean_cut(run.recipe.max_seq_length));
    format!("{examples} examples of {mean:.0} tokens, the longest of {longest}{passes}")
}

/// The folder of measurements that was named, or the user's.
pub(crate) fn results(named: Option<&PathBuf>) -> Result<PathBuf> {
    named.map_or_else(store::results_folder, |folder| Ok(folder.clone()))
}

/// A session on this machine, as the options say.
pub(crate) fn session(engine: Engine, args: &MeasureArgs) -> Result<Session> {
    let results = results(args.results.as_ref())?;
    let script = args.script.as_deref();
    Session::open(engine, &Settings { results: &results, memory_limit: args.memory_limit, script })
}

/// Model and data of a run that is to be done; what is to be said of its rows is said.
pub(crate) fn workload(run: &RunConfig, output: &Output) -> Result<Workload> {
    fetch::model(&run.model, Part::Texts, output)?;
    let (workload, note) = Workload::to_train(run)?;
    note.iter().for_each(|note| output.note(note));
    Ok(workload)
}

/// Lengths as they were found; what is to be said of that is said.
pub(crate) fn said(counted: Counted, output: &Output) -> TokenLengths {
    counted.note.iter().for_each(|note| output.note(note));
    counted.lengths
}
