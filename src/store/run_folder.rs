//! The folder of one run: what it was, what was predicted, what happened and what came out.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::store;

/// A run folder: `run.toml`, `prediction.json`, `metrics.jsonl`, `outcome.json`, `checkpoints/`, `adapter/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// A new one. A folder that holds a run already is refused: nothing is ever overwritten.
    pub fn create(path: &Path) -> Result<Self> {
        let folder = Self { path: path.into() };
        if folder.config().exists() || folder.metrics().exists() || folder.outcome().exists() {
            return Err(Error::RunExists { path: path.into() });
        }
        store::make_folder(path)?;
        Ok(folder)
    }

    /// One that is there.
    pub fn open(path: &Path) -> Result<Self> {
        let folder = Self { path: path.into() };
        if folder.config().exists() {
            Ok(folder)
        } else {
            Err(Error::Mismatch { path: path.into(), reason: "it holds no run (there is no `run.toml`)".into() })
        }
    }

    /// All of them directly inside a folder, by name.
    pub fn all_in(path: &Path) -> Result<Vec<Self>> {
        Ok(store::folders_in(path)?.iter().filter_map(|p| Self::open(p).ok()).collect())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its last path component.
    pub fn name(&self) -> String {
        let full = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        full.file_name().map_or_else(|| "run".into(), |n| n.to_string_lossy().into_owned())
    }

    /// What is run, with nothing left to default.
    pub fn config(&self) -> PathBuf {
        self.path.join("run.toml")
    }

    /// What was expected before it began.
    pub fn prediction(&self) -> PathBuf {
        self.path.join("prediction.json")
    }

    /// One line an optimizer step.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// How it ended.
    pub fn outcome(&self) -> PathBuf {
        self.path.join("outcome.json")
    }

    /// The trainer's state, to go on from.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// What was learned, in PEFT's layout.
    pub fn adapter(&self) -> PathBuf {
        self.path.join("adapter")
    }
}
