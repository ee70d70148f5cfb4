//! The one error type. Variants hold values; the sentence is made in `Display`, the mend in `hint`.

mod hint;

use std::io;
use std::path::PathBuf;

use crate::units::{Bytes, Seconds};

/// What went wrong, with the values a person needs to mend it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A table could not be joined, grouped or written.
    #[error("table: {reason}")]
    Table {
        /// Message of polars.
        reason: String,
    },
    /// The system does not say which folder is the user's.
    #[error("no home folder is known for this user")]
    NoHome,
    /// A file or folder could not be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Reason that the system gives.
        source: io::Error,
    },
    /// A file or folder could not be written.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// Path of the file.
        path: PathBuf,
        /// Reason that the system gives.
        source: io::Error,
    },
    /// A file does not say what its format demands.
    #[error("`{}`{}: {message}", path.display(), line.map(|l| format!(", line {l}")).unwrap_or_default())]
    Parse {
        /// Path of the file.
        path: PathBuf,
        /// Line, counted from 1, when known.
        line: Option<usize>,
        /// Description of what is wrong there.
        message: String,
        /// Word that was probably meant, if it can be guessed.
        hint: Option<String>,
    },
    /// A value that parsed but cannot be used.
    #[error("`{field}` is {got}, but must be {must}")]
    Invalid {
        /// Name of the field or flag.
        field: String,
        /// Value that was given.
        got: String,
        /// Clause that says what it must be.
        must: String,
    },
    /// An architecture that Headroom has no model of.
    #[error("unknown architecture `{model_type}`{}", reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default())]
    UnknownArchitecture {
        /// Value of `model_type` in config.json.
        model_type: String,
        /// Reason of the refusal, for an architecture that is known.
        reason: Option<String>,
        /// Architectures that are supported.
        supported: &'static str,
    },
    /// A model name that is neither in the catalogue nor a folder.
    #[error("unknown model `{name}`")]
    UnknownModel {
        /// Name as it was given.
        name: String,
        /// Names that look like it.
        close: Vec<String>,
        /// Why the hub does not know it either, where it was asked.
        hub: Option<String>,
    },
    /// A model on the hub that cannot be fetched.
    #[error("cannot fetch `{name}`: {reason}")]
    Hub {
        /// Name as it was given.
        name: String,
        /// Reason, in words.
        reason: String,
        /// What helps.
        remedy: Option<String>,
    },
    /// The weights of a model that is known by name are not on this machine.
    #[error("the weights of `{name}` are not on this machine")]
    NoWeights {
        /// Name as it was given.
        name: String,
        /// The model on the hub that is meant, where the name is none there.
        meant: Option<String>,
    },
    /// A folder without a tokenizer.json, and without the files that one can be made of.
    #[error("`{}` has no tokenizer.json", folder.display())]
    NoTokenizer {
        /// Folder of the model.
        folder: PathBuf,
        /// Whether it has a tokenizer.model.
        model_file: bool,
    },
    /// A machine that is not in the chip table.
    #[error("unknown machine `{name}`")]
    UnknownMachine {
        /// Name as it was given.
        name: String,
        /// Chips that are known.
        known: String,
    },
    /// A tensor is absent or has another shape, or a weights file is damaged.
    #[error("weights in `{}`: {reason}", path.display())]
    Weights {
        /// Path of the folder or file.
        path: PathBuf,
        /// Description of the fault.
        reason: String,
    },
    /// Data that cannot be trained on.
    #[error("data in `{}`: {reason}", path.display())]
    Data {
        /// Path of the file.
        path: PathBuf,
        /// Description of the fault.
        reason: String,
    },
    /// The tokenizer does not fit the model, or cannot be used.
    #[error("tokenizer of `{model}`: {reason}")]
    Tokenizer {
        /// Name of the model.
        model: String,
        /// Description of the fault.
        reason: String,
    },
    /// A table was written with other columns.
    #[error("`{}` was written with schema `{found}`, which this version cannot add to ({difference})", path.display())]
    Schema {
        /// Path of the table.
        path: PathBuf,
        /// Version that it says it has.
        found: String,
        /// Columns that differ.
        difference: String,
    },
    /// A run folder is in use.
    #[error("`{}` already holds a run", path.display())]
    RunExists {
        /// Path of the folder.
        path: PathBuf,
    },
    /// A run was to be begun in a folder that holds other things.
    #[error("`{}` is not empty (it contains `{holds}`); a run needs its own folder", path.display())]
    NotEmpty {
        /// Path of the folder.
        path: PathBuf,
        /// One of the things in it.
        holds: String,
    },
    /// Another process works in a run folder.
    #[error("`{}` is in use by another process{}", path.display(), pid.map(|p| format!(" ({p})")).unwrap_or_default())]
    InUse {
        /// Path of the folder.
        path: PathBuf,
        /// Number of the process, where it is known.
        pid: Option<u32>,
    },
    /// A file that a run wrote is not as it was written.
    #[error("`{}` is damaged: {reason}", path.display())]
    Damaged {
        /// Path of the file or folder.
        path: PathBuf,
        /// Description of what is wrong with it.
        reason: String,
        /// Remedy that the hint names.
        remedy: String,
    },
    /// What a run is made from is not what it was when the run began.
    #[error("changed since the run in `{}` began: {}", path.display(), what.join(", "))]
    Changed {
        /// Path of the run folder.
        path: PathBuf,
        /// Files of the model or the data.
        what: Vec<String>,
    },
    /// Something is where a result was to be written.
    #[error("`{}` exists already", path.display())]
    Exists {
        /// Path of the file or folder.
        path: PathBuf,
    },
    /// Run folders that could not be read; what could be is reported.
    #[error("{} of {of} runs could not be read: {}", unread.len(), messages(unread))]
    Unread {
        /// Description of what is wrong with each.
        unread: Vec<Error>,
        /// Number of folders that were asked for.
        of: usize,
    },
    /// A signal, such as Ctrl-C, was obeyed.
    #[error("interrupted: {kept}")]
    Interrupted {
        /// State that the run was left in.
        kept: String,
        /// Command that goes on from there.
        resume: Option<String>,
    },
    /// A form that cannot hold this model.
    #[error("`{model}` cannot be written as {format}: {reason}")]
    NoSuchExport {
        /// Name of the model.
        model: String,
        /// Name of the form.
        format: &'static str,
        /// Part of the model that it cannot hold.
        reason: String,
    },
    /// An adapter, checkpoint or run folder that does not belong to this run.
    #[error("`{}` does not match this run: {reason}", path.display())]
    Mismatch {
        /// Path of the folder or file.
        path: PathBuf,
        /// Every difference found.
        reason: String,
    },
    /// The training diverged.
    #[error("the {what} of step {step} is {value}; the run was stopped before the optimizer step")]
    NotFinite {
        /// `loss` or `gradient norm`.
        what: &'static str,
        /// Optimizer step, counted from 1.
        step: usize,
        /// Value that was computed.
        value: f64,
    },
    /// A child process or an engine failed in a way that is no answer.
    #[error("{engine}: {reason}")]
    Engine {
        /// Name of the child process or engine.
        engine: String,
        /// Description of the failure.
        reason: String,
    },
    /// Metal was asked for where it cannot be used.
    #[error("`metal` cannot be used here, because {reason}")]
    NoMetal {
        /// Reason, as a clause that follows "because".
        reason: String,
    },
    /// An allocation failed while a run was on its way.
    #[error("memory ran out after step {at_step}")]
    OutOfMemory {
        /// Optimizer steps that were done.
        at_step: usize,
        /// Remedy that the hint names.
        remedy: &'static str,
        /// Message of the device.
        source: Box<Error>,
    },
    /// The system ended what a run did on the GPU.
    #[error("{what}, after step {at_step}")]
    Gpu {
        /// Clause that says what the system did.
        what: &'static str,
        /// Optimizer steps that were done.
        at_step: usize,
        /// Remedy that the hint names.
        remedy: &'static str,
        /// Message of the device.
        source: Box<Error>,
    },
    /// Refused, because it would not fit.
    #[error("{what} needs {needs}, but {limit} is available")]
    DoesNotFit {
        /// Run or model that was asked for.
        what: String,
        /// Upper bound of what it takes.
        needs: Bytes,
        /// Amount that is available.
        limit: Bytes,
    },
    /// A plan that was asked for and is not to be had on this machine.
    #[error("{what} does not fit: even the smallest configuration may need {needs}, over the {limit} of {name}")]
    NothingFits {
        /// Run or model that was asked for.
        what: String,
        /// Upper bound of what it takes.
        needs: Bytes,
        /// Name of the limit that binds.
        name: &'static str,
        /// Amount that is available.
        limit: Bytes,
        /// Smallest Mac that holds it as it is.
        larger: Option<String>,
    },
    /// Refused, because it would not finish.
    #[error("{what} may take {needs}, over the time limit of {limit}")]
    TooSlow {
        /// Run or model that was asked for.
        what: String,
        /// Upper bound of its time.
        needs: Seconds,
        /// Time that was given.
        limit: Seconds,
    },
    /// A tensor operation failed: a broken invariant of ours, or the device.
    #[error("tensor operation failed")]
    Tensor(#[from] candle_core::Error),
    /// A value could not be written as JSON or TOML: a broken invariant of ours.
    #[error("cannot serialise {what}: {reason}")]
    Serialise {
        /// Name of the value.
        what: &'static str,
        /// Message of the serialiser.
        reason: String,
    },
}

/// Each error on a line of its own, with its causes.
fn messages(errors: &[Error]) -> String {
    let mut text = String::new();
    for error in errors {
        text += &format!("\n  {error}");
        let mut cause = std::error::Error::source(error);
        while let Some(inner) = cause {
            text += &format!(": {inner}");
            cause = inner.source();
        }
    }
    text
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Invalid`] in one line.
    pub(crate) fn invalid(field: impl Into<String>, got: impl ToString, must: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), got: got.to_string(), must: must.into() }
    }
}
