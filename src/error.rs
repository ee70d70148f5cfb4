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
        /// What polars says.
        reason: String,
    },
    /// The system does not say which folder is the user's.
    #[error("no home folder is known for this user")]
    NoHome,
    /// A file or folder could not be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file or folder could not be written.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not say what its format demands.
    #[error("`{}`{}: {message}", path.display(), line.map(|l| format!(", line {l}")).unwrap_or_default())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1, when known.
        line: Option<usize>,
        /// What is wrong there.
        message: String,
        /// What was meant, when it can be guessed.
        hint: Option<String>,
    },
    /// A value that parsed but cannot be used.
    #[error("`{field}` is {got}, but must be {must}")]
    Invalid {
        /// Field or flag.
        field: String,
        /// What was given.
        got: String,
        /// What it must be.
        must: String,
    },
    /// An architecture that Headroom has no model of.
    #[error("unknown architecture `{model_type}`{}", reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default())]
    UnknownArchitecture {
        /// `model_type` of the config.json.
        model_type: String,
        /// Why it is refused, where it is known and refused.
        reason: Option<String>,
        /// What is supported.
        supported: &'static str,
    },
    /// A model name that is neither in the catalogue nor a folder.
    #[error("unknown model `{name}`")]
    UnknownModel {
        /// As given.
        name: String,
        /// Names that look like it.
        close: Vec<String>,
    },
    /// The weights of a model that is known by name are not on this machine.
    #[error("the weights of `{name}` are not on this machine")]
    NoWeights {
        /// As given.
        name: String,
    },
    /// A machine that is not in the chip table.
    #[error("unknown machine `{name}`")]
    UnknownMachine {
        /// As given.
        name: String,
        /// What is known.
        known: String,
    },
    /// A tensor is absent or has another shape, or a weights file is damaged.
    #[error("weights in `{}`: {reason}", path.display())]
    Weights {
        /// Folder or file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Data that cannot be trained on.
    #[error("data in `{}`: {reason}", path.display())]
    Data {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The tokenizer does not fit the model, or cannot be used.
    #[error("tokenizer of `{model}`: {reason}")]
    Tokenizer {
        /// The model.
        model: String,
        /// What is wrong.
        reason: String,
    },
    /// A table was written with other columns.
    #[error("`{}` was written with schema `{found}`, which this version cannot add to ({difference})", path.display())]
    Schema {
        /// The table.
        path: PathBuf,
        /// The version it says it has.
        found: String,
        /// Columns that differ.
        difference: String,
    },
    /// A run folder is in use.
    #[error("`{}` already holds a run", path.display())]
    RunExists {
        /// The folder.
        path: PathBuf,
    },
    /// A run was to be begun in a folder that holds other things.
    #[error("`{}` is not empty (it contains `{holds}`); a run needs its own folder", path.display())]
    NotEmpty {
        /// The folder.
        path: PathBuf,
        /// One of the things in it.
        holds: String,
    },
    /// Another process works in a run folder.
    #[error("`{}` is in use by another process{}", path.display(), pid.map(|p| format!(" ({p})")).unwrap_or_default())]
    InUse {
        /// The folder.
        path: PathBuf,
        /// Number of the process, where it is known.
        pid: Option<u32>,
    },
    /// A file that a run wrote is not as it was written.
    #[error("`{}` is damaged: {reason}", path.display())]
    Damaged {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What can be done about it.
        remedy: String,
    },
    /// What a run is made from is not what it was when the run began.
    #[error("changed since the run in `{}` began: {}", path.display(), what.join(", "))]
    Changed {
        /// The run folder.
        path: PathBuf,
        /// Files of the model or the data.
        what: Vec<String>,
    },
    /// Something is where a result was to be written.
    #[error("`{}` exists already", path.display())]
    Exists {
        /// The file or folder.
        path: PathBuf,
    },
    /// Run folders that could not be read; what could be is reported.
    #[error("{} of {of} runs could not be read: {}", unread.len(), messages(unread))]
    Unread {
        /// What is wrong with each.
        unread: Vec<Error>,
        /// How many were asked for.
        of: usize,
    },
    /// A signal, such as Ctrl-C, was obeyed.
    #[error("interrupted: {kept}")]
    Interrupted {
        /// What there is now.
        kept: String,
        /// The command that goes on from there.
        resume: Option<String>,
    },
    /// A form that cannot hold this model.
    #[error("`{model}` cannot be written as {format}: {reason}")]
    NoSuchExport {
        /// The model.
        model: String,
        /// The form.
        format: &'static str,
        /// What it cannot hold.
        reason: String,
    },
    /// An adapter, checkpoint or run folder that does not belong to this run.
    #[error("`{}` does not match this run: {reason}", path.display())]
    Mismatch {
        /// The folder or file.
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
        /// The value.
        value: f64,
    },
    /// A child process or an engine failed in a way that is no answer.
    #[error("{engine}: {reason}")]
    Engine {
        /// Which.
        engine: String,
        /// Why.
        reason: String,
    },
    /// Metal was asked for where it cannot be used.
    #[error("`metal` cannot be used here, because {reason}")]
    NoMetal {
        /// Why, as a clause.
        reason: String,
    },
    /// An allocation failed while a run was on its way.
    #[error("memory ran out after step {at_step}")]
    OutOfMemory {
        /// Optimizer steps that were done.
        at_step: usize,
        /// What helps.
        remedy: &'static str,
        /// What the device said.
        source: Box<Error>,
    },
    /// The system ended what a run did on the GPU.
    #[error("{what}, after step {at_step}")]
    Gpu {
        /// What happened.
        what: &'static str,
        /// Optimizer steps that were done.
        at_step: usize,
        /// What helps.
        remedy: &'static str,
        /// What the device said.
        source: Box<Error>,
    },
    /// Refused, because it would not fit.
    #[error("{what} needs {needs}, but {limit} is available")]
    DoesNotFit {
        /// What was to be run.
        what: String,
        /// Upper bound of what it takes.
        needs: Bytes,
        /// The limit that binds.
        limit: Bytes,
    },
    /// A plan that was asked for and is not to be had on this machine.
    #[error("{what} does not fit: even the smallest configuration may need {needs}, over the {limit} of {name}")]
    NothingFits {
        /// What was to be run.
        what: String,
        /// Upper bound of what it takes.
        needs: Bytes,
        /// Name of the limit that binds.
        name: &'static str,
        /// The limit.
        limit: Bytes,
        /// A weight format in which it fits.
        weights: Option<&'static str>,
        /// The smallest Mac that holds it as it is.
        larger: Option<String>,
    },
    /// Refused, because it would not finish.
    #[error("{what} takes about {needs}, over the time limit of {limit}")]
    TooSlow {
        /// What was to be run.
        what: String,
        /// Most likely time.
        needs: Seconds,
        /// The time given.
        limit: Seconds,
    },
    /// A tensor operation failed: a broken invariant of ours, or the device.
    #[error("tensor operation failed")]
    Tensor(#[from] candle_core::Error),
    /// A value could not be written as JSON or TOML: a broken invariant of ours.
    #[error("cannot serialise {what}: {reason}")]
    Serialise {
        /// What.
        what: &'static str,
        /// Why.
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
    /// The exit code: 1 where the answer is "no", 2 where there is no answer, 130 where it was interrupted (by another signal
    /// than SIGINT, whose number is not known here, `main` takes 128 and that).
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::DoesNotFit { .. } | Self::NothingFits { .. } | Self::TooSlow { .. } | Self::OutOfMemory { .. } => 1,
            Self::Interrupted { .. } => 130,
            _ => 2,
        }
    }

    /// An [`Error::Invalid`] in one line.
    pub(crate) fn invalid(field: impl Into<String>, got: impl ToString, must: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), got: got.to_string(), must: must.into() }
    }
}
