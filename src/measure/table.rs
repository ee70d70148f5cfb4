//! The table of a machine's measurements: where it is, and its rows.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::measure::measurement::Measurement;
use crate::spec::machine::Machine;
use crate::store;

/// Reads everything that was measured on a machine.
pub(crate) fn measurements(machine: &Machine, results: &Path) -> Result<Vec<Measurement>> {
    read_measurements(&table(machine, results))
}

/// Path of a machine's table of measurements in a folder of results.
pub fn table(machine: &Machine, results: &Path) -> PathBuf {
    results.join(store::file_name(&machine.name)).join("measurements.csv")
}

/// Reads all rows of a table of measurements.
pub fn read_measurements(path: &Path) -> Result<Vec<Measurement>> {
    let (columns, rows) = store::read_csv(path)?;
    let parse = |(i, row): (usize, &Vec<String>)| {
        Measurement::from_row(&columns, row).map_err(|message| Error::Parse {
            path: path.into(),
            line: Some(i + 2),
            message,
            hint: None,
        })
    };
    rows.iter().enumerate().map(parse).collect()
}
