//! The disk: whole files are replaced atomically, logs grow by whole lines, tables refuse what does
//! not belong in them.
//!
//! A process can die between any two instructions. So a whole file is written beside its place and
//! moved there, and a line of a log counts only once its newline is there: a torn last line is left
//! out when reading and cut off before the next append.

pub mod run_folder;
pub mod stream;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

pub use run_folder::RunFolder;

fn reading(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    |source| Error::Read { path, source }
}

fn writing(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    |source| Error::Write { path, source }
}

/// A text file.
pub fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(reading(path))
}

/// Makes a folder and those above it.
pub fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(writing(path))
}

/// Removes a folder and all in it; it is no error if it is not there.
pub fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(writing(path)(e)),
        _ => Ok(()),
    }
}

/// The folders directly inside `path`, by name; none if it is not there.
pub fn folders_in(path: &Path) -> Result<Vec<PathBuf>> {
    inside(path, Path::is_dir)
}

/// The files directly inside `path`, by name; none if it is not there. Links to files count: Hugging Face's cache is
/// made of them.
pub fn files_in(path: &Path) -> Result<Vec<PathBuf>> {
    inside(path, Path::is_file)
}

fn inside(path: &Path, keep: fn(&Path) -> bool) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(reading(path))?;
    let mut found: Vec<_> = entries.iter().map(fs::DirEntry::path).filter(|p| keep(p)).collect();
    found.sort();
    Ok(found)
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A hidden name in the same folder, so that taking the place is one step of the file system.
fn beside(path: &Path) -> PathBuf {
    // Numbered, so that two threads of one process do not write to the same temporary file.
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    parent(path).join(format!(".{name}.{}-{count}.tmp", std::process::id()))
}

/// Puts a whole file in place, so that a reader sees the old bytes or the new ones and never a part.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let (folder, temporary) = (parent(path), beside(path));
    make_folder(folder)?;
    let result = File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path))
        // The new name is only safe once the folder that holds it is.
        .and_then(|()| File::open(folder)?.sync_all());
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result.map_err(writing(path))
}

/// A value from a JSON file.
pub fn load_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    from_json(&read_text(path)?, path, None)
}

/// A value to a JSON file, readable by people.
pub fn save_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::Serialise { what: "JSON", reason: format!("{e}, for `{}`", path.display()) })?;
    write(path, format!("{text}\n").as_bytes())
}

fn from_json<T: DeserializeOwned>(text: &str, path: &Path, line: Option<usize>) -> Result<T> {
    serde_json::from_str(text).map_err(|e| Error::Parse {
        path: path.into(),
        line: line.or(Some(e.line())),
        message: e.to_string(),
        hint: None,
    })
}

/// The complete lines of a file; none if it is not there. A last line without its newline is torn and left out.
pub fn read_lines(path: &Path) -> Result<Vec<String>> {
    let bytes = match fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.map_err(reading(path))?,
    };
    // A tear can split a character, so the tail goes before the text is looked at.
    let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
    let text = std::str::from_utf8(&bytes[..whole]).map_err(|e| Error::Parse {
        path: path.into(),
        line: Some(bytes[..e.valid_up_to()].iter().filter(|&&b| b == b'\n').count() + 1),
        message: "not UTF-8".into(),
        hint: None,
    })?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Adds one line at the end and makes sure that it stays, cutting off a torn line before it.
pub fn append_line(path: &Path, line: &str) -> Result<()> {
    with_log(path, |file| add(file, line)).map_err(writing(path))
}

/// Opens a log with a lock on it, so that two processes do not mend it at once.
fn with_log<T>(path: &Path, work: impl FnOnce(&mut File) -> io::Result<T>) -> io::Result<T> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
    file.lock()?;
    work(&mut file)
}

fn add(file: &mut File, line: &str) -> io::Result<()> {
    let whole = whole_length(file)?;
    if whole < file.metadata()?.len() {
        file.set_len(whole)?;
    }
    // One write: another process that only reads sees all of it or a torn line.
    file.write_all(format!("{}\n", line.trim_end_matches('\n')).as_bytes())?;
    file.sync_data()
}

/// Bytes up to and including the last newline, found from the end.
fn whole_length(file: &mut File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut block = [0u8; 4096];
    while end > 0 {
        let start = end.saturating_sub(block.len() as u64);
        let part = &mut block[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(part)?;
        if let Some(i) = part.iter().rposition(|&b| b == b'\n') {
            return Ok(start + i as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// One value as a line of JSON.
pub fn append_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_string(value)
        .map_err(|e| Error::Serialise { what: "JSON", reason: format!("{e}, for `{}`", path.display()) })?;
    append_line(path, &text)
}

/// Values from lines of JSON; none if the file is not there.
pub fn read_json_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let lines = read_lines(path)?;
    lines
        .iter()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(i, line)| from_json(line, path, Some(i + 1)))
        .collect()
}

/// Adds a row to a table, which is made with `header` if it is not there.
///
/// A table with other columns is left as it is: [`Error::Schema`] says how they differ.
pub fn append_csv(path: &Path, header: &[String], row: &[String]) -> Result<()> {
    let first = read_lines(path)?.into_iter().next();
    match first {
        None => append_line(path, &csv_line(header)?)?,
        Some(line) => check_header(path, &csv_fields(path, &line)?, header)?,
    }
    append_line(path, &csv_line(row)?)
}

/// Puts a whole table in place.
pub fn write_csv(path: &Path, header: &[String], rows: &[Vec<String>]) -> Result<()> {
    let lines: Vec<String> =
        std::iter::once(header).chain(rows.iter().map(Vec::as_slice)).map(csv_line).collect::<Result<_>>()?;
    write(path, lines.concat().as_bytes())
}

/// Columns and rows of a table; both empty if the file is not there.
pub fn read_csv(path: &Path) -> Result<(Vec<String>, Vec<Vec<String>>)> {
    let text = read_lines(path)?.join("\n");
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(text.as_bytes());
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| csv_error(path, &e))?;
        rows.push(record.iter().map(str::to_owned).collect::<Vec<_>>());
    }
    let rows_from = usize::from(!rows.is_empty());
    let rest = rows.split_off(rows_from);
    Ok((rows.pop().unwrap_or_default(), rest))
}

fn csv_error(path: &Path, error: &csv::Error) -> Error {
    let line = error.position().map(|p| p.line() as usize);
    Error::Parse { path: path.into(), line, message: error.to_string(), hint: None }
}

fn csv_fields(path: &Path, line: &str) -> Result<Vec<String>> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(line.as_bytes());
    let record = reader.records().next().transpose().map_err(|e| csv_error(path, &e))?;
    Ok(record.iter().flatten().map(str::to_owned).collect())
}

/// One line; newlines inside cells become spaces, because a line is what survives a tear.
fn csv_line(cells: &[String]) -> Result<String> {
    let failed = |reason: String| Error::Serialise { what: "CSV", reason };
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(cells.iter().map(|c| c.replace(['\n', '\r'], " "))).map_err(|e| failed(e.to_string()))?;
    let bytes = writer.into_inner().map_err(|e| failed(e.to_string()))?;
    String::from_utf8(bytes).map_err(|e| failed(e.to_string()))
}

fn check_header(path: &Path, found: &[String], known: &[String]) -> Result<()> {
    if found == known {
        return Ok(());
    }
    let (_, rows) = read_csv(path)?;
    let version = found.iter().position(|c| c == "schema").and_then(|i| rows.first()?.get(i).cloned());
    let only = |these: &[String], those: &[String]| {
        let names: Vec<_> = these.iter().filter(|c| !those.contains(c)).cloned().collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    Err(Error::Schema {
        path: path.into(),
        found: version.unwrap_or_else(|| "unknown".into()),
        difference: format!("columns only there: {}; only here: {}", only(found, known), only(known, found)),
    })
}

/// A name that is one harmless path component: letters, digits, `.`, `_` and `-`, never hidden, never empty.
pub fn file_name(name: &str) -> String {
    let mut out = String::new();
    for c in name.trim().chars() {
        let kept = if c.is_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
        // Runs of what was replaced read as one dash.
        if !(kept == '-' && out.ends_with('-')) {
            out.push(kept);
        }
    }
    let out: String = out.trim_matches(['.', '-']).chars().take(100).collect();
    if out.is_empty() { "unnamed".into() } else { out }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
