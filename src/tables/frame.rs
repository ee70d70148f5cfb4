//! Frames from plain columns, parts of frames by group, and files of them.

use polars::prelude::{
    AnyValue, ChunkQuantile, Column, DataFrame, GroupsIndicator, IdxCa, NamedFrom, ParquetWriter, PolarsError,
    QuantileMethod, Series,
};

use crate::error::{Error, Result};

/// An error of polars as one of Headroom's.
pub(super) fn broken(error: PolarsError) -> Error {
    Error::Table { reason: error.to_string() }
}

/// The parts of a frame whose rows agree in `keys`, in the order in which they first appear.
pub(super) fn parts(frame: &DataFrame, keys: &[&str]) -> Result<Vec<DataFrame>> {
    let groups = frame.group_by_stable(keys.iter().copied()).map_err(broken)?;
    let part = |group: GroupsIndicator<'_>| {
        let rows: Vec<u32> = match group {
            GroupsIndicator::Idx((_, rows)) => rows.iter().copied().collect(),
            GroupsIndicator::Slice([first, length]) => (first..first + length).collect(),
        };
        frame.take(&IdxCa::from_vec("rows".into(), rows)).map_err(broken)
    };
    groups.get_groups().iter().map(part).collect()
}

/// The text in the first row of a column.
pub(super) fn first_text(frame: &DataFrame, column: &str) -> Result<String> {
    let value = frame.column(column).and_then(|c| c.get(0).map(AnyValue::into_static)).map_err(broken)?;
    Ok(value.str_value().into_owned())
}

/// The quantile of a column of numbers, between ranks; NaN of an empty one.
pub(super) fn quantile(frame: &DataFrame, column: &str, at: f64) -> Result<f64> {
    let numbers = frame.column(column).and_then(|c| c.f64().cloned()).map_err(broken)?;
    Ok(numbers.quantile(at, QuantileMethod::Linear).map_err(broken)?.unwrap_or(f64::NAN))
}

/// The sum of a column of numbers.
pub(super) fn sum(frame: &DataFrame, column: &str) -> Result<f64> {
    let numbers = frame.column(column).and_then(|c| c.f64().cloned()).map_err(broken)?;
    Ok(numbers.iter().flatten().sum())
}

/// A table of texts as a parquet file: columns of which every cell is a number, or empty, are numbers in it.
pub(crate) fn parquet(header: &[String], rows: &[Vec<String>]) -> Result<Vec<u8>> {
    let column = |(i, name): (usize, &String)| {
        let cells: Vec<&str> = rows.iter().map(|row| row.get(i).map_or("", String::as_str)).collect();
        let numbers: Option<Vec<Option<f64>>> =
            cells.iter().map(|c| if c.is_empty() { Some(None) } else { c.parse().ok().map(Some) }).collect();
        match numbers.filter(|n| n.iter().any(Option::is_some)) {
            Some(numbers) => Column::from(Series::new(name.as_str().into(), numbers)),
            None => Column::from(Series::new(name.as_str().into(), cells)),
        }
    };
    let mut frame = DataFrame::new(rows.len(), header.iter().enumerate().map(column).collect()).map_err(broken)?;
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes).finish(&mut frame).map_err(broken)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use polars::prelude::{ParquetReader, SerReader};

    use super::*;

    #[test]
    fn numbers_are_numbers_in_a_parquet_file() {
        let strings = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let rows = [strings(&["M1", "2.5", "8"]), strings(&["M2", "", "16"]), strings(&["M3", "1e3", "x"])];
        let bytes = parquet(&strings(&["chip", "speed", "note"]), &rows).unwrap();
        let frame = ParquetReader::new(std::io::Cursor::new(bytes)).finish().unwrap();
        assert_eq!(frame.shape(), (3, 3));
        assert_eq!(
            frame.column("speed").unwrap().f64().unwrap().iter().collect::<Vec<_>>(),
            [Some(2.5), None, Some(1000.0)]
        );
        assert_eq!(first_text(&frame, "note").unwrap(), "8");
        assert_eq!(quantile(&frame, "speed", 0.5).unwrap(), 501.25);
        let parts = parts(&frame, &["chip"]).unwrap();
        assert_eq!(parts.iter().map(|p| first_text(p, "chip").unwrap()).collect::<Vec<_>>(), ["M1", "M2", "M3"]);
    }
}
