//! Logs that only grow, and survive a torn last line.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::store::files::*;
use crate::store::paths::*;

/// The complete lines of a file; none if it is not there. A last line without its newline is torn and left out.
pub(crate) fn read_lines(path: &Path) -> Result<Vec<String>> {
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
pub(crate) fn append_line(path: &Path, line: &str) -> Result<()> {
    with_log(path, |file| add(file, line)).map_err(writing(path))
}

/// Opens a log with a lock on it, so that two processes do not mend it at once.
pub(super) fn with_log<T>(path: &Path, work: impl FnOnce(&mut File) -> io::Result<T>) -> io::Result<T> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
    file.lock()?;
    work(&mut file)
}

pub(super) fn add(file: &mut File, line: &str) -> io::Result<()> {
    let whole = whole_length(file)?;
    if whole < file.metadata()?.len() {
        file.set_len(whole)?;
    }
    // One write: another process that only reads sees all of it or a torn line.
    file.write_all(format!("{}\n", line.trim_end_matches('\n')).as_bytes())?;
    file.sync_data()
}

/// Bytes up to and including the last newline, found from the end.
pub(super) fn whole_length(file: &mut File) -> io::Result<u64> {
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
pub(crate) fn append_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_string(value)
        .map_err(|e| Error::Serialise { what: "JSON", reason: format!("{e}, for `{}`", path.display()) })?;
    append_line(path, &text)
}

/// Values from lines of JSON; none if the file is not there.
pub(crate) fn read_json_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let lines = read_lines(path)?;
    lines
        .iter()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(i, line)| from_json(line, path, Some(i + 1)))
        .collect()
}

/// The first line with its newline; `None` where there is no whole one.
pub(super) fn first_line(file: &mut File) -> io::Result<Option<String>> {
    file.seek(SeekFrom::Start(0))?;
    let mut line = Vec::new();
    io::BufRead::read_until(&mut io::BufReader::new(&*file), b'\n', &mut line)?;
    // A header that is no text is no header of ours, and is refused as one.
    Ok(line.ends_with(b"\n").then(|| String::from_utf8_lossy(&line).into_owned()))
}
