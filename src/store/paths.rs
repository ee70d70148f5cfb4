//! Paths: what they are beside, and whether they stay inside.

use std::path::{Path, PathBuf};
use std::{fs, io};

use etcetera::base_strategy::{BaseStrategy, choose_base_strategy};

use crate::error::{Error, Result};

pub(super) fn inside(path: &Path, keep: fn(&Path) -> bool) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(reading(path))?;
    let mut found: Vec<_> = entries.iter().map(fs::DirEntry::path).filter(|p| keep(p)).collect();
    found.sort();
    Ok(found)
}

pub(super) fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A name that is one harmless path component: letters, digits, `.`, `_` and `-`, never hidden, never empty.
pub(crate) fn file_name(name: &str) -> String {
    let mut out = String::new();
    for c in name.trim().chars() {
        let kept = if c.is_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
        // Runs of what was replaced read as one dash.
        if !(kept == '-' && out.ends_with('-')) {
            out.push(kept);
        }
    }
    let out = out.trim_matches(['.', '-']);
    // File systems count bytes, and what is written beside a file has a longer name.
    let out = &out[..out.floor_char_boundary(100)];
    if out.is_empty() { "unnamed".into() } else { out.into() }
}

/// The error of a file that could not be read.
pub(crate) fn reading(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    |source| Error::Read { path, source }
}

/// The error of a file that could not be written.
pub(crate) fn writing(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    |source| Error::Write { path, source }
}

/// Where measurements of this user are kept: the folder that `HEADROOM_RESULTS` names, else `./results` where there is
/// such a folder, else `headroom/results` in the system's folder for a user's data.
///
/// # Errors
/// Where the system does not say which folder is the user's.
pub(crate) fn results_folder() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("HEADROOM_RESULTS").filter(|name| !name.is_empty()) {
        return Ok(named.into());
    }
    let here = PathBuf::from("results");
    if here.is_dir() {
        return Ok(here);
    }
    let folders = choose_base_strategy().map_err(|_| Error::NoHome)?;
    Ok(folders.data_dir().join("headroom").join("results"))
}
