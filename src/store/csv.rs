//! Tables in CSV, as logs under a header.

use std::path::Path;

use crate::error::{Error, Result};
use crate::store::files::*;
use crate::store::logs::*;
use crate::store::paths::*;

/// Adds a row to a table, which is begun with `header` if it is not there.
///
/// A table with other columns is left as it is: [`Error::Schema`] says how they differ. Several processes may add to one
/// table, or begin it, at the same time.
pub(crate) fn append_csv(path: &Path, header: &[String], row: &[String]) -> Result<()> {
    under_header(path, header, &csv_line(row)?)
}

/// Finds out whether rows with these columns can be added to a table, before there are any; a table that is not there is
/// begun.
pub(crate) fn check_csv(path: &Path, header: &[String]) -> Result<()> {
    under_header(path, header, "")
}

/// Adds whole lines to a table that has these columns or is begun with them, all under one lock.
pub(super) fn under_header(path: &Path, header: &[String], lines: &str) -> Result<()> {
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

/// Puts a whole table in place, for people and their spreadsheets: nothing in it is a formula. Tables that are read back
/// grow by [`append_csv`] and hold what was written.
pub(crate) fn write_csv(path: &Path, header: &[String], rows: &[Vec<String>]) -> Result<()> {
    let text = |row: &[String]| csv_line(&row.iter().map(|cell| no_formula(cell)).collect::<Vec<_>>());
    let lines: Vec<String> =
        std::iter::once(header).chain(rows.iter().map(Vec::as_slice)).map(text).collect::<Result<_>>()?;
    write(path, lines.concat().as_bytes())
}

/// A cell that a spreadsheet would compute is marked as text, as one does it there by hand.
pub(super) fn no_formula(cell: &str) -> String {
    let computed = cell.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']) && cell.parse::<f64>().is_err();
    if computed { format!("'{cell}") } else { cell.to_owned() }
}

/// Columns and rows of a table; both empty if the file is not there.
pub(crate) fn read_csv(path: &Path) -> Result<(Vec<String>, Vec<Vec<String>>)> {
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

pub(super) fn csv_error(path: &Path, error: &csv::Error) -> Error {
    let line = error.position().map(|p| p.line() as usize);
    Error::Parse { path: path.into(), line, message: error.to_string(), hint: None }
}

/// The cells of a line; none where it is no CSV.
pub(super) fn csv_fields(line: &str) -> Vec<String> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(line.as_bytes());
    let record = reader.records().next().and_then(Result::ok);
    record.iter().flatten().map(str::to_owned).collect()
}

/// One line; newlines inside cells become spaces, because a line is what survives a tear.
pub(super) fn csv_line(cells: &[String]) -> Result<String> {
    let failed = |reason: String| Error::Serialise { what: "CSV", reason };
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(cells.iter().map(|c| c.replace(['\n', '\r'], " "))).map_err(|e| failed(e.to_string()))?;
    let bytes = writer.into_inner().map_err(|e| failed(e.to_string()))?;
    String::from_utf8(bytes).map_err(|e| failed(e.to_string()))
}

/// The error that says how the columns of a table differ from those known here.
pub(super) fn other_columns(path: &Path, found: &[String], known: &[String]) -> Result<Error> {
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
