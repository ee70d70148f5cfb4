//! Where pages go: a folder for each report, in which nothing is replaced that was not written here.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::{store, tables};

const PAGE: &str = "index.html";

/// What every page of ours says in its head, and no other.
const GENERATOR: &str = "<meta name=\"generator\" content=\"headroom\">";

/// Bytes in which the head of a page says who wrote it.
const HEAD: u64 = 2048;

/// A table written beside a page, as CSV and as parquet.
pub(crate) struct Table<'a> {
    /// Name of the CSV file.
    pub name: &'a str,
    /// Names of the columns.
    pub header: &'a [String],
    /// Cells of each row, in the order of the columns.
    pub rows: &'a [Vec<String>],
}

/// Puts a page, and a table beside it, into `folder`; returns where the page is.
pub(crate) fn put(folder: &Path, page: &str, table: Option<Table<'_>>) -> Result<PathBuf> {
    check(folder, table.as_ref().map(|table| table.name))?;
    let index = folder.join(PAGE);
    // The page first: it is what tells that the table is ours too.
    store::write(&index, page.as_bytes())?;
    if let Some(table) = table {
        let csv = folder.join(table.name);
        store::write_csv(&csv, table.header, table.rows)?;
        store::write(&csv.with_extension("parquet"), &tables::parquet(table.header, table.rows)?)?;
    }
    Ok(index)
}

/// Refuses a folder in which somebody else's files would be replaced.
pub(crate) fn check(folder: &Path, table: Option<&str>) -> Result<()> {
    let index = folder.join(PAGE);
    let csv = table.map(|name| folder.join(name));
    let taken = |path: &PathBuf| path.symlink_metadata().is_ok();
    let there = [Some(index.clone()), csv.clone(), csv.map(|csv| csv.with_extension("parquet"))]
        .into_iter()
        .flatten()
        .find(taken);
    match there {
        Some(path) if !is_ours(&index) => {
            let must = format!("a folder of its own; `{}` was not written by headroom", path.display());
            Err(Error::invalid("folder of the report", format!("`{}`", folder.display()), must))
        }
        _ => Ok(()),
    }
}

fn is_ours(page: &Path) -> bool {
    let mut head = Vec::new();
    let read = page.is_file().then(|| std::fs::File::open(page).ok()).flatten();
    let read = read.and_then(|file| file.take(HEAD).read_to_end(&mut head).ok());
    read.is_some() && String::from_utf8_lossy(&head).contains(GENERATOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_replace_pages_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let page = format!("<html><head>{GENERATOR}</head></html>");
        let rows = [vec!["1".to_owned()]];
        let header = ["a".to_owned()];
        let table = || Some(Table { name: "data.csv", header: &header, rows: &rows });
        for name in ["fresh", "fresh"] {
            put(&dir.path().join(name), &page, table()).unwrap();
        }
        for (name, file) in [("site", "index.html"), ("tables", "data.csv")] {
            let folder = dir.path().join(name);
            store::write(&folder.join(file), b"mine").unwrap();
            let error = put(&folder, &page, table()).unwrap_err().to_string();
            assert!(error.contains(file), "{error}");
            assert_eq!(std::fs::read(folder.join(file)).unwrap(), b"mine");
            assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        }
        assert!(include_str!("../report/head.html").split("<style>").next().unwrap().contains(GENERATOR));
        assert!(include_str!("../report/head.html").find(GENERATOR).unwrap() < HEAD as usize);
    }
}
