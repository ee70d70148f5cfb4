//! Where the rows of a run are.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The model and data that ship inside the binary.
pub(crate) const BUILTIN: &str = "builtin";

/// Where the rows are: one path, or one for training and one for validation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Data {
    /// Training rows only.
    Train(PathBuf),
    /// Both.
    Split(DataSplit),
}

/// `[data]` as a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSplit {
    /// Training rows.
    pub train: PathBuf,
    /// Validation rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<PathBuf>,
}

impl Data {
    /// The rows that ship.
    pub(crate) fn builtin() -> Self {
        Self::Train(BUILTIN.into())
    }

    /// Training rows.
    pub(crate) fn train(&self) -> &Path {
        match self {
            Self::Train(path) => path,
            Self::Split(split) => &split.train,
        }
    }

    /// Validation rows, if any.
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
