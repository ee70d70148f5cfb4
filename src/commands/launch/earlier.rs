//! What an earlier part of a run left in its folder, and whether it can be gone on with.

use std::path::Path;

use crate::commands::bench;
use crate::error::{Error, Result};
use crate::measure::Measurement;
use crate::spec::run::RunConfig;
use crate::store::checksums::{self, Checked, SUMS};
use crate::store::{self, RunFolder, RunLock};
use crate::trainer::candle::adapter_file::Layout;
use crate::trainer::{Metrics, Outcome, Validation};

/// Files that are final once a part of a run has ended.
const FINAL: [&str; 3] = ["prediction.json", "metrics.jsonl", "outcome.json"];

/// A run that is gone on with: its folder, locked and looked through. Nothing in it was changed.
pub struct Earlier {
    /// The folder.
    pub folder: RunFolder,
    /// Nobody else works in it.
    pub lock: RunLock,
    /// One line a step.
    pub metrics: Vec<Metrics>,
}

impl Earlier {
    /// Opens the folder of `run`.
    ///
    /// # Errors
    /// Where it holds another run or none, where a process works in it, and where a file in it is damaged.
    pub fn open(path: &Path, run: &RunConfig) -> Result<Self> {
        let folder = RunFolder::open(path)?;
        let lock = folder.lock()?;
        let (there, here) = (bench::read_run(&folder.config())?.to_toml()?, run.to_toml()?);
        if there != here {
            let differing = here.lines().zip(there.lines()).filter(|(h, t)| h != t);
            let lines: Vec<String> = differing.map(|(h, t)| format!("`{t}` there, `{h}` here")).collect();
            return Err(Error::Mismatch { path: path.into(), reason: lines.join("; ") });
        }
        if let Checked::Damaged(reason) = checksums::check(path, &FINAL) {
            return Err(damaged(path, reason));
        }
        let metrics: Vec<Metrics> = store::read_json_lines(&folder.metrics())?;
        for (i, line) in metrics.iter().enumerate() {
            if line.step.step != i + 1 {
                let reason = format!("line {} is of step {}", i + 1, line.step.step);
                return Err(damaged(&folder.metrics(), reason));
            }
        }
        Ok(Self { folder, lock, metrics })
    }
}

impl Earlier {
    /// There is nothing left to do: it ended by itself, and what it learned is there.
    pub fn is_finished(&self) -> bool {
        let outcome = store::load_json::<Measurement>(&self.folder.outcome()).map(|m| m.outcome);
        matches!(outcome, Ok(Outcome::Finished | Outcome::EarlyStopped { .. }))
            && checksums::check(self.folder.path(), &FINAL) == Checked::Whole
            && checksums::check(&self.folder.adapter(), &[Layout::Peft.weights_file()]) == Checked::Whole
    }
}

fn damaged(path: &Path, reason: String) -> Error {
    let remedy = "put the file back as the run wrote it, or begin again in another folder with `--out`".into();
    Error::Damaged { path: path.into(), reason, remedy }
}

/// Makes the folder ready for steps after `done`: the lines of later steps go, because these are taken again, and so does
/// what is said of the end.
pub fn reopen(folder: &RunFolder, metrics: &[Metrics], done: usize) -> Result<()> {
    if metrics.len() < done {
        let reason = format!("it ends after step {}, but the checkpoint is of step {done}", metrics.len());
        return Err(damaged(&folder.metrics(), reason));
    }
    if metrics.len() > done {
        rewrite(folder, &metrics[..done])?;
    }
    store::remove_files(folder.path(), &[SUMS, "outcome.json"])
}

/// Adds what an evaluation found to the line of its step, which was written when the evaluation was interrupted.
pub fn amend(folder: &RunFolder, validation: &Validation) -> Result<()> {
    let mut metrics: Vec<Metrics> = store::read_json_lines(&folder.metrics())?;
    if let Some(line) = metrics.iter_mut().find(|line| line.step.step == validation.step) {
        *line = Metrics::new(line.step.clone(), Some(validation));
    }
    rewrite(folder, &metrics)
}

fn rewrite(folder: &RunFolder, metrics: &[Metrics]) -> Result<()> {
    let line = |m| serde_json::to_string(m).map(|text| text + "\n");
    let text: String = metrics
        .iter()
        .map(line)
        .collect::<std::result::Result<_, _>>()
        .map_err(|e| Error::Serialise { what: "metrics", reason: e.to_string() })?;
    store::write(&folder.metrics(), text.as_bytes())
}

/// Writes down the checksums of what is final now.
pub fn seal(folder: &RunFolder) -> Result<()> {
    let there: Vec<&str> = FINAL.into_iter().filter(|name| folder.path().join(name).is_file()).collect();
    checksums::write(folder.path(), &there)
}
