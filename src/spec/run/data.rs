//! Where the rows of a run are.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The model and data that ship inside the binary.
pub(crate) const BUILTIN: &str = "builtin";

/// Files of the rows: one path, or one for training and one for validation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Data {
    /// Training rows only, by the path of their file.
    Train(PathBuf),
    /// Training rows, and validation rows where a file of them is given.
    Split(DataSplit),
}

/// The `[data]` table of a run file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSplit {
    /// Path of the training rows.
    pub train: PathBuf,
    /// Path of the validation rows, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<PathBuf>,
}

impl Data {
    /// The rows embedded in the binary.
    pub(crate) fn builtin() -> Self {
        Self::Train(BUILTIN.into())
    }

    /// Path of the training rows.
    pub(crate) fn train(&self) -> &Path {
        match self {
            Self::Train(path) => path,
            Self::Split(split) => &split.train,
        }
    }

    /// Path of the validation rows, if any.
    pub(crate) fn valid(&self) -> Option<&Path> {
        match self {
            Self::Train(_) => None,
            Self::Split(split) => split.valid.as_deref(),
        }
    }

    pub(super) fn resolve(&mut self, base: &Path) {
        let fix = |p: &mut PathBuf| {
            if p.as_os_str() != BUILTIN {
                *p = base.join(&*p);
            }
        };
        match self {
            Self::Train(path) => fix(path),
            Self::Split(split) => {
                fix(&mut split.train);
                split.valid.iter_mut().for_each(fix);
            }
        }
    }
}
