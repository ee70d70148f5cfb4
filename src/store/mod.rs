//! The disk: whole files are replaced atomically, logs grow by whole lines, tables refuse what does
//! not belong in them.
//!
//! A process can die between any two instructions. So a whole file is written beside its place and
//! moved there, and a line of a log counts only once its newline is there: a torn last line is left
//! out when reading and cut off before the next append.

pub mod checksums;
pub mod quote;
pub mod run_folder;
pub mod stream;
mod temporary;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub use quote::quoted;
pub use run_folder::{RunFolder, RunLock};
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::temporary::Temporary;
use crate::error::{Error, Result};

fn reading(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    |source| Error::Read { path, source }
}

fn writing(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    |source| Error::Write { path, source }
}

/// No text that is read whole is longer: rows of data are the longest there are.
const LONGEST_TEXT: u64 = 2 << 30;

/// Opens a regular file. A pipe would keep us waiting for ever and a device would never end, so neither is opened.
fn open_regular(path: &Path) -> Result<File> {
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

fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let mut file = open_regular(path)?;
    let length = file.metadata().map_err(reading(path))?.len();
    if length > LONGEST_TEXT {
        let why = format!("it has {length} bytes, and text of more than {LONGEST_TEXT} is not read");
        return Err(reading(path)(io::Error::new(io::ErrorKind::FileTooLarge, why)));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    file.read_to_end(&mut bytes).map_err(reading(path))?;
    Ok(bytes)
}

/// A text file; pipes, devices and what is no UTF-8 are refused.
pub fn read_text(path: &Path) -> Result<String> {
    let invalid = |_| reading(path)(io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"));
    String::from_utf8(read_bytes(path)?).map_err(invalid)
}

/// Makes a folder and those above it.
pub fn make_folder(path: &Path) -> Result<()> {
    make_folders(path).map(drop)
}

/// Makes a folder and those above it; returns those that were not there, the uppermost first.
fn make_folders(path: &Path) -> Result<Vec<PathBuf>> {
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
pub fn remove_files(folder: &Path, names: &[&str]) -> Result<()> {
    for name in names {
        let path = folder.join(name);
        fs::remove_file(&path).or_else(absent).map_err(writing(&path))?;
    }
    temporary::remove_abandoned(folder);
    Ok(())
}

/// Removes the files `names` of `folder`, and then the folder, if nothing else is in it.
pub fn remove_own(folder: &Path, names: &[&str]) -> Result<()> {
    remove_files(folder, names)?;
    let occupied = |e: io::Error| if e.kind() == io::ErrorKind::DirectoryNotEmpty { Ok(()) } else { absent(e) };
    fs::remove_dir(folder).or_else(occupied).map_err(writing(folder))
}

/// Removes temporary files and folders that killed processes left in the folder of `path`.
pub fn clear_beside(path: &Path) {
    temporary::remove_abandoned(parent(path));
}

/// What is not there need not be removed.
fn absent(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
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

/// Puts a whole file in place, so that a reader sees the old bytes or the new ones and never a part.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    make_folder(parent(path))?;
    let whole = || {
        let mut temporary = Temporary::file(path)?;
        temporary.handle().write_all(bytes)?;
        temporary.place(path)
    };
    whole().map_err(writing(path))
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
    let bytes = match read_bytes(path) {
        Err(Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read?,
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

/// Adds a row to a table, which is begun with `header` if it is not there.
///
/// A table with other columns is left as it is: [`Error::Schema`] says how they differ. Several processes may add to one
/// table, or begin it, at the same time.
pub fn append_csv(path: &Path, header: &[String], row: &[String]) -> Result<()> {
    under_header(path, header, &csv_line(row)?)
}

/// Finds out whether rows with these columns can be added to a table, before there are any; a table that is not there is
/// begun.
pub fn check_csv(path: &Path, header: &[String]) -> Result<()> {
    under_header(path, header, "")
}

/// Adds whole lines to a table that has these columns or is begun with them, all under one lock.
fn under_header(path: &Path, header: &[String], lines: &str) -> Result<()> {
    let head = csv_line(header)?;
    let different = with_log(path, |file| {
        let Some(first) = first_line(file)? else { return add(file, &format!("{head}{lines}")).map(|()| None) };
        let found = csv_fields(&first);
        if found != header {
            return Ok(Some(found));
        }
        if !lines.is_empty() {
            add(file, lines)?;
        }
        Ok(None)
    });
    match different.map_err(writing(path))? {
        Some(found) => Err(other_columns(path, &found, header)?),
        None => Ok(()),
    }
}

/// The first line with its newline; `None` where there is no whole one.
fn first_line(file: &mut File) -> io::Result<Option<String>> {
    file.seek(SeekFrom::Start(0))?;
    let mut line = Vec::new();
    io::BufRead::read_until(&mut io::BufReader::new(&*file), b'\n', &mut line)?;
    // A header that is no text is no header of ours, and is refused as one.
    Ok(line.ends_with(b"\n").then(|| String::from_utf8_lossy(&line).into_owned()))
}

/// Puts a whole table in place, for people and their spreadsheets: nothing in it is a formula. Tables that are read back
/// grow by [`append_csv`] and hold what was written.
pub fn write_csv(path: &Path, header: &[String], rows: &[Vec<String>]) -> Result<()> {
    let text = |row: &[String]| csv_line(&row.iter().map(|cell| no_formula(cell)).collect::<Vec<_>>());
    let lines: Vec<String> =
        std::iter::once(header).chain(rows.iter().map(Vec::as_slice)).map(text).collect::<Result<_>>()?;
    write(path, lines.concat().as_bytes())
}

/// A cell that a spreadsheet would compute is marked as text, as one does it there by hand.
fn no_formula(cell: &str) -> String {
    let computed = cell.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']) && cell.parse::<f64>().is_err();
    if computed { format!("'{cell}") } else { cell.to_owned() }
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

/// The cells of a line; none where it is no CSV.
fn csv_fields(line: &str) -> Vec<String> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(line.as_bytes());
    let record = reader.records().next().and_then(Result::ok);
    record.iter().flatten().map(str::to_owned).collect()
}

/// One line; newlines inside cells become spaces, because a line is what survives a tear.
fn csv_line(cells: &[String]) -> Result<String> {
    let failed = |reason: String| Error::Serialise { what: "CSV", reason };
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(cells.iter().map(|c| c.replace(['\n', '\r'], " "))).map_err(|e| failed(e.to_string()))?;
    let bytes = writer.into_inner().map_err(|e| failed(e.to_string()))?;
    String::from_utf8(bytes).map_err(|e| failed(e.to_string()))
}

/// The error that says how the columns of a table differ from those known here.
fn other_columns(path: &Path, found: &[String], known: &[String]) -> Result<Error> {
    let (_, rows) = read_csv(path)?;
    let version = found.iter().position(|c| c == "schema").and_then(|i| rows.first()?.get(i).cloned());
    let only = |these: &[String], those: &[String]| {
        let names: Vec<_> = these.iter().filter(|c| !those.contains(c)).cloned().collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    Ok(Error::Schema {
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
    let out = out.trim_matches(['.', '-']);
    // File systems count bytes, and what is written beside a file has a longer name.
    let out = &out[..out.floor_char_boundary(100)];
    if out.is_empty() { "unnamed".into() } else { out.into() }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
