//! Where an export goes, and what may not be lost there.

use std::path::{Path, PathBuf};

use super::Request;
use crate::error::{Error, Result};
use crate::store;
use crate::store::stream::Staged;
use crate::trainer::source::ModelSource;
use crate::units::Bytes;

/// What tells a folder that may be replaced: a model's or an adapter's description.
const DESCRIPTIONS: [&str; 2] = ["config.json", "adapter_config.json"];

/// A place that was looked at.
pub struct Place {
    out: PathBuf,
}

impl Place {
    /// Refuses to write over anything without leave, over what is being read, and over what is no export.
    pub fn check(request: &Request, source: &ModelSource) -> Result<Self> {
        let out = &request.out;
        let place = Self { out: out.clone() };
        if !out.exists() {
            return Ok(place);
        }
        let must = |must: &str| Err(Error::invalid("--out", format!("`{}`", out.display()), must));
        if request.format.is_file() {
            return match out.is_dir() {
                true => must("the name of a file, such as model.gguf"),
                false if request.force => Ok(place),
                false => Err(Error::Exists { path: out.clone() }),
            };
        }
        if !out.is_dir() {
            return must("a folder");
        }
        let files = store::files_in(out)?;
        let folders = store::folders_in(out)?;
        if files.is_empty() && folders.is_empty() {
            return Ok(place);
        }
        if !request.force {
            return Err(Error::Exists { path: out.clone() });
        }
        let base = if let ModelSource::Folder(folder) = source { Some(folder) } else { None };
        let same = |a: &Path| a.canonicalize().is_ok_and(|a| out.canonicalize().is_ok_and(|o| a.starts_with(o)));
        if base.into_iter().chain(&request.adapter).any(|read| same(read)) {
            return must("another folder than the one it is made from");
        }
        if !folders.is_empty() || !files.iter().any(|f| DESCRIPTIONS.iter().any(|d| f.ends_with(d))) {
            return must("empty, or a folder of an earlier export: this one holds other things");
        }
        Ok(place)
    }

    /// A folder that takes the place once it is full.
    pub fn stage(&self) -> Result<Staged> {
        Staged::create(&self.out)
    }
}

/// Bytes of a file, or of the files in a folder.
pub fn size(path: &Path) -> Result<Bytes> {
    let of = |path: PathBuf| {
        let meta = path.metadata();
        meta.map(|m| m.len()).map_err(|source| Error::Read { path, source })
    };
    if path.is_dir() {
        return Ok(Bytes(store::files_in(path)?.into_iter().map(of).sum::<Result<u64>>()?));
    }
    of(path.into()).map(Bytes)
}
