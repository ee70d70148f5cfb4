//! The source files of the project, for tests that read them.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests too

use std::path::{Path, PathBuf};

/// Adds every Rust file under a folder to `found`.
pub fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}
