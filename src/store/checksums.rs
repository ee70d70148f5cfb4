//! Checksums of what a run writes, in the form that `sha256sum --check` reads.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::store::files;
use crate::store::paths::reading;

/// Name of the file of checksums in a folder.
pub(crate) const SUMS: &str = "SHA256SUMS";

/// Number of bytes read at a time.
const PIECE: usize = 1 << 20;

/// SHA-256 of a byte string, in hexadecimal.
pub(crate) fn of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a regular file, in hexadecimal: for a file of a published model the hash that the hub shows.
pub(crate) fn of_file(path: &Path) -> Result<String> {
    let mut file = files::open_regular(path)?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece).map_err(reading(path))? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&piece[..n]),
        }
    }
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes the checksums of the files `names` of `folder` into its [`SUMS`].
pub(crate) fn write(folder: &Path, names: &[&str]) -> Result<()> {
    let line = |name: &&str| Ok(format!("{}  {name}\n", of_file(&folder.join(name))?));
    let lines: String = names.iter().map(line).collect::<Result<_>>()?;
    files::write(&folder.join(SUMS), lines.as_bytes())
}

/// Result of checking a folder's files against its checksums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Checked {
    /// Every file is as it was written.
    Whole,
    /// The folder has no file of checksums.
    Unknown,
    /// What differs, in words: "`state.json` is not as it was written".
    Damaged(String),
}

/// Holds the files of `folder` to its [`SUMS`], which must list at least those of `required`.
pub(crate) fn check(folder: &Path, required: &[&str]) -> Checked {
    let sums = folder.join(SUMS);
    if File::open(&sums).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
        return Checked::Unknown;
    }
    let Ok(text) = files::read_text(&sums) else { return Checked::Damaged(format!("`{SUMS}` cannot be read")) };
    for line in text.lines() {
        // One plain name a line: a damaged list must not lead out of the folder.
        let (sum, name) = match line.split_once("  ") {
            Some((sum, name)) if sum.len() == 64 && Path::new(name).file_name() == Some(name.as_ref()) => (sum, name),
            _ => return Checked::Damaged(format!("`{SUMS}` is damaged")),
        };
        match of_file(&folder.join(name)) {
            Ok(found) if found == sum => {}
            Ok(_) => return Checked::Damaged(format!("`{name}` has changed since it was written (checksum mismatch)")),
            Err(_) => return Checked::Damaged(format!("`{name}` is missing or cannot be read")),
        }
    }
    let listed = |name: &&&str| text.lines().any(|line| line.ends_with(&format!("  {name}")));
    match required.iter().find(|name| !listed(name)) {
        Some(name) => Checked::Damaged(format!("`{SUMS}` does not list `{name}`")),
        None if !text.ends_with('\n') => Checked::Damaged(format!("`{SUMS}` is cut short")),
        None => Checked::Whole,
    }
}
