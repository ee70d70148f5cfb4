//! What several tests know of the fixtures.

#![allow(dead_code, clippy::unwrap_used)] // none of them needs all of it

use std::path::{Path, PathBuf};

/// The models that `tests/fixtures/reference/make.py` made.
pub const FAMILIES: [&str; 14] = [
    "llama",
    "llama3_rope",
    "llama_linear_rope",
    "llama_yarn",
    "llama_biased",
    "mistral",
    "qwen2",
    "qwen2_untied",
    "qwen3",
    "starcoder2",
    "gpt2",
    "gemma2",
    "gemma3",
    "phi3",
];

/// A file or folder of the fixtures.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The header and the rows of a CSV file.
pub fn read_csv(path: &Path) -> (Vec<String>, Vec<Vec<String>>) {
    let mut reader = csv::Reader::from_path(path).unwrap();
    let columns = reader.headers().unwrap().iter().map(str::to_owned).collect();
    let rows = reader.records().map(|row| row.unwrap().iter().map(str::to_owned).collect()).collect();
    (columns, rows)
}

/// Writes a CSV file.
pub fn write_csv(path: &Path, columns: &[String], rows: &[Vec<String>]) {
    let mut writer = csv::Writer::from_path(path).unwrap();
    writer.write_record(columns).unwrap();
    rows.iter().for_each(|row| writer.write_record(row).unwrap());
    writer.flush().unwrap();
}
