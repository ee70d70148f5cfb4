//! Which files of a folder hold the weights.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use crate::checkpoint::safetensors::CheckpointFile;
use crate::error::{Error, Result};
use crate::store;

/// A larger index is none: real ones have about 100 bytes a tensor.
const LARGEST_INDEX: u64 = 16 << 20;

const INDEX: &str = "model.safetensors.index.json";

/// Weights that are no safetensors, which are not read: a pickle may run what it likes.
const OTHERS: [&str; 4] = [".bin", ".pt", ".pth", ".npz"];

pub(super) fn wrong(path: &Path, reason: String) -> Error {
    Error::Weights { path: path.into(), reason }
}

/// The weights of a folder: those its index names; where there is no index, or one that names what is not there, the shards
/// that are there, if together they hold every tensor that the index names.
pub(super) fn safetensors_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let index = folder.join(INDEX);
    if !index.is_file() {
        let single = folder.join("model.safetensors");
        let found = if single.is_file() { vec![single] } else { shards(folder)? };
        return if found.is_empty() { Err(wrong(folder, none(folder))) } else { Ok(found) };
    }
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    if index.metadata().is_ok_and(|meta| meta.len() > LARGEST_INDEX) {
        return Err(wrong(&index, format!("it is not a weight index: it has more than {LARGEST_INDEX} bytes")));
    }
    let index: Index = store::load_json(&index)?;
    let names: BTreeSet<&String> = index.weight_map.values().collect();
    let named = names.into_iter().map(|name| shard(folder, name)).collect::<Result<Vec<PathBuf>>>()?;
    let Some(missing) = named.iter().find(|path| !path.is_file()) else { return Ok(named) };
    let there = shards(folder)?;
    if holds_all(&there, index.weight_map.keys()) {
        return Ok(there);
    }
    let name = missing.strip_prefix(folder).unwrap_or(missing).display();
    Err(wrong(folder, format!("`{name}` is missing, though the index names it")))
}

/// A shard that an index names: a plain file name inside the folder, nothing that leads out of it.
fn shard(folder: &Path, name: &str) -> Result<PathBuf> {
    match Path::new(name).components().all(|c| matches!(c, Component::Normal(_))) {
        true => Ok(folder.join(name)),
        false => Err(wrong(folder, format!("its index names `{name}`, which is not a file in the folder"))),
    }
}

/// Shards by their names, or else every file of safetensors that is no adapter and no copy in another form.
fn shards(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = store::files_in(folder)?;
    let named =
        |path: &PathBuf, test: &dyn Fn(&str) -> bool| path.file_name().is_some_and(|n| test(&n.to_string_lossy()));
    files.retain(|path| {
        named(path, &|n| n.ends_with(".safetensors") && !n.starts_with("adapter") && !n.starts_with("consolidated"))
    });
    let numbered: Vec<PathBuf> =
        files.iter().filter(|path| named(path, &|n| n.starts_with("model") && n.contains("-of-"))).cloned().collect();
    Ok(if numbered.is_empty() { files } else { numbered })
}

fn holds_all<'a>(files: &[PathBuf], tensors: impl Iterator<Item = &'a String>) -> bool {
    let open: Vec<CheckpointFile> = files.iter().filter_map(|path| CheckpointFile::open(path).ok()).collect();
    let mut tensors = tensors.peekable();
    tensors.peek().is_some() && tensors.all(|name| open.iter().any(|file| file.shape(name).is_some()))
}

/// Why a folder has no weights that can be read.
fn none(folder: &Path) -> String {
    let other = store::files_in(folder).ok().into_iter().flatten().find_map(|path| {
        let name = path.file_name()?.to_string_lossy().into_owned();
        OTHERS.iter().any(|end| name.ends_with(end)).then_some(name)
    });
    match other {
        Some(name) => format!(
            "its weights are in `{name}`, which is not read, because such a file can run code: transformers' \
             `AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR)` writes model.safetensors"
        ),
        None => "there is no model.safetensors and no other file of safetensors".into(),
    }
}
