//! What a run is made from, known by content: the files of the model, its tokenizer and the data.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rayon::prelude::*;

use crate::checkpoint::source::{ModelSource, builtin_rows};
use crate::error::Result;
use crate::spec::run::{BUILTIN, Data};
use crate::store::checksums;

/// SHA-256 of each file, by its part in the run: `model/config.json`, `data/train`.
pub(crate) type Inputs = BTreeMap<String, String>;

/// Reads every file once: a model of 16 GB takes about ten seconds, and is in the page cache afterwards.
///
/// # Errors
/// Where a file cannot be read.
pub(crate) fn inputs(source: &ModelSource, data: &Data) -> Result<Inputs> {
    let mut files: Vec<(String, PathBuf)> = source
        .files()?
        .into_iter()
        .map(|path| (format!("model/{}", path.file_name().unwrap_or_default().to_string_lossy()), path))
        .collect();
    let mut known = Inputs::new();
    if *source == ModelSource::Builtin {
        known.insert("model/builtin".into(), source.builtin_checksum());
    }
    if data.train().as_os_str() == BUILTIN {
        let (train, valid) = builtin_rows();
        known.insert("data/builtin".into(), checksums::of_bytes(format!("{train}{valid}").as_bytes()));
    } else {
        files.push(("data/train".into(), data.train().into()));
        files.extend(data.valid().map(|path| ("data/valid".into(), path.into())));
    }
    let hashed = files.into_par_iter().map(|(part, path)| Ok((part, checksums::of_file(&path)?)));
    known.extend(hashed.collect::<Result<Vec<_>>>()?);
    Ok(known)
}

/// The parts that differ, with what happened to each.
pub(crate) fn changes(then: &Inputs, now: &Inputs) -> Vec<String> {
    let lost = then.keys().filter(|part| !now.contains_key(*part)).map(|part| format!("`{part}` (missing)"));
    let other = now.iter().filter_map(|(part, sum)| match then.get(part) {
        None => Some(format!("`{part}` (new)")),
        Some(before) if before != sum => Some(format!("`{part}` (different content)")),
        Some(_) => None,
    });
    lost.chain(other).collect()
}
