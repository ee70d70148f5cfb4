//! Whole files, written at once or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::string::FromUtf8Error;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::store::paths::*;
use crate::store::temporary::Temporary;

/// No text that is read whole is longer: rows of data are the longest there are.
const LONGEST_TEXT: u64 = 2 << 30;

/// Opens a regular file. A pipe would keep us waiting for ever and a device would never end, so neither is opened.
pub(super) fn open_regular(path: &Path) -> Result<File> {
    // Not to wait for a pipe's other end; for regular files it means nothing.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(reading(path))?;
    let about = file.metadata().map_err(reading(path))?;
    let refused = |kind, why: &str| Err(reading(path)(io::Error::new(kind, why.to_owned())));
    if about.is_dir() {
        return refused(io::ErrorKind::IsADirectory, "it is a folder");
    }
    if !about.is_file() {
        return refused(io::ErrorKind::InvalidInput, "it is a pipe or a device, not a file");
    }
    Ok(file)
}

pub(super) fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let mut file = open_regular(path)?;
    let length = file.metadata().map_err(reading(path))?.len();
    if length > LONGEST_TEXT {
        let why = format!("it has {length} bytes, and at most {LONGEST_TEXT} are allowed");
        return Err(reading(path)(io::Error::new(io::ErrorKind::FileTooLarge, why)));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    file.read_to_end(&mut bytes).map_err(reading(path))?;
    Ok(bytes)
}

/// A text file, without the mark that some editors put before it; pipes, devices and what is no UTF-8 are refused.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    const MARK: &[u8] = "\u{feff}".as_bytes();
    let mut bytes = read_bytes(path)?;
    if bytes.starts_with(MARK) {
        bytes.drain(..MARK.len());
    }
    String::from_utf8(bytes).map_err(|e| reading(path)(io::Error::new(io::ErrorKind::InvalidData, no_utf8(&e))))
}

/// What a text is in the place of UTF-8, as far as its bytes tell, and what converts it.
fn no_utf8(error: &FromUtf8Error) -> String {
    let bytes = error.as_bytes();
    if bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF]) {
        return "it is UTF-16 text: `iconv -f UTF-16 -t UTF-8` converts it".into();
    }
    let line = 1 + bytes[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count();
    format!("line {line} is not UTF-8 text; `iconv -f LATIN1 -t UTF-8` converts the file if it is Latin-1")
}

/// Makes a folder and those above it.
pub(crate) fn make_folder(path: &Path) -> Result<()> {
    make_folders(path).map(drop)
}

/// Makes a folder and those above it; returns those that were not there, the uppermost first.
pub(super) fn make_folders(path: &Path) -> Result<Vec<PathBuf>> {
    let missing = |p: &&Path| !p.as_os_str().is_empty() && !p.exists();
    let mut made: Vec<PathBuf> = path.ancestors().take_while(missing).map(Path::to_path_buf).collect();
    fs::create_dir_all(path).map_err(writing(path))?;
    if let Some(top) = made.last() {
        // A new name lasts once the folder that holds it is on the disk; file systems that cannot do that are left alone.
        let _ = File::open(parent(top)).and_then(|folder| folder.sync_all());
    }
    made.reverse();
    Ok(made)
}

/// Removes the files `names` of `folder`, and temporary files of ours that were left there.
pub(crate) fn remove_files(folder: &Path, names: &[&str]) -> Result<()> {
    for name in names {
        let path = folder.join(name);
        fs::remove_file(&path).or_else(absent).map_err(writing(&path))?;
    }
    crate::store::temporary::remove_abandoned(folder);
    Ok(())
}

/// Removes the files `names` of `folder`, and then the folder, if nothing else is in it.
pub(crate) fn remove_own(folder: &Path, names: &[&str]) -> Result<()> {
    remove_files(folder, names)?;
    let occupied = |e: io::Error| if e.kind() == io::ErrorKind::DirectoryNotEmpty { Ok(()) } else { absent(e) };
    fs::remove_dir(folder).or_else(occupied).map_err(writing(folder))
}

/// Removes temporary files and folders that killed processes left in the folder of `path`.
pub(crate) fn clear_beside(path: &Path) {
    crate::store::temporary::remove_abandoned(parent(path));
}

/// What is not there need not be removed.
pub(super) fn absent(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// The folders directly inside `path`, by name; none if it is not there.
pub(crate) fn folders_in(path: &Path) -> Result<Vec<PathBuf>> {
    inside(path, Path::is_dir)
}

/// The files directly inside `path`, by name; none if it is not there. Links to files count: Hugging Face's cache is
/// made of them.
pub(crate) fn files_in(path: &Path) -> Result<Vec<PathBuf>> {
    inside(path, Path::is_file)
}

/// Everything directly inside `path`, of whatever kind and hidden or not, by name; nothing if it is not there.
pub(crate) fn entries_in(path: &Path) -> Result<Vec<PathBuf>> {
    inside(path, |_| true)
}

/// Whether a regular file begins with these bytes.
pub(crate) fn begins_with(path: &Path, bytes: &[u8]) -> Result<bool> {
    if !path.is_file() {
        return Ok(false);
    }
    let mut start = Vec::new();
    File::open(path).and_then(|file| file.take(bytes.len() as u64).read_to_end(&mut start)).map_err(reading(path))?;
    Ok(start == bytes)
}

/// The first line of a text file that is not blank, without the mark that may stand before it; `None` where there is none, or
/// where it is longer than `most` bytes.
pub(crate) fn opening_line(path: &Path, most: usize) -> Result<Option<String>> {
    let mut lines = BufReader::new(open_regular(path)?.take(most as u64)).lines();
    let line = lines.find(|line| line.as_ref().map_or(true, |line| !line.trim().is_empty()));
    let line = line.transpose().map_err(reading(path))?;
    Ok(line.map(|line| line.trim_start_matches('\u{feff}').to_owned()))
}

/// Puts a whole file in place, so that a reader sees the old bytes or the new ones and never a part.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    make_folder(parent(path))?;
    let whole = || {
        let mut temporary = Temporary::file(path)?;
        temporary.handle().write_all(bytes)?;
        temporary.place(path)
    };
    whole().map_err(writing(path))
}

/// Reads a value from a JSON file.
pub(crate) fn load_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    from_json(&read_text(path)?, path, None)
}

/// A value to a JSON file, readable by people.
pub(crate) fn save_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::Serialise { what: "JSON", reason: format!("{e}, for `{}`", path.display()) })?;
    write(path, format!("{text}\n").as_bytes())
}

pub(super) fn from_json<T: DeserializeOwned>(text: &str, path: &Path, line: Option<usize>) -> Result<T> {
    serde_json::from_str(text).map_err(|e| Error::Parse {
        path: path.into(),
        line: line.or(Some(e.line())),
        message: e.to_string(),
        hint: None,
    })
}
