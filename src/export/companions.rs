//! What an exported folder holds beside its weights.

use std::path::{Path, PathBuf};

use crate::checkpoint::source::ModelSource;
use crate::error::{Error, Result};
use crate::store;
use crate::store::stream::copy;

/// A file of the export beside the weights.
pub(crate) enum Companion {
    Text(&'static str, String),
    Copy(PathBuf),
}

impl Companion {
    /// Whether it is about the weights as the base holds them.
    pub(crate) fn describes_weights(&self) -> bool {
        let name = match self {
            Self::Text(name, _) => Some(*name),
            Self::Copy(file) => file.file_name().and_then(|name| name.to_str()),
        };
        name.is_some_and(|name| name == "config.json" || name.ends_with(".index.json"))
    }

    pub(crate) fn write(&self, to: &Path) -> Result<()> {
        match self {
            Self::Text(name, text) => store::write(&to.join(name), text.as_bytes()),
            Self::Copy(file) => copy(file, &to.join(file.file_name().unwrap_or_default())),
        }
    }
}

/// What a model folder holds beside its weights: descriptions, tokenizer, templates, licence.
pub(crate) fn companions(source: &ModelSource) -> Result<Vec<Companion>> {
    let ModelSource::Folder(folder) = source else {
        let texts = [
            ("config.json", source.config().ok()),
            ("tokenizer.json", Some(source.tokenizer()?)),
            ("tokenizer_config.json", source.tokenizer_config()?),
            ("generation_config.json", source.generation_config()?),
        ];
        return Ok(texts.into_iter().filter_map(|(name, text)| Some(Companion::Text(name, text?))).collect());
    };
    let kept = |name: &str| {
        let upper = name.to_uppercase();
        let kind = [".json", ".model", ".txt", ".jinja", ".tiktoken"].iter().any(|end| name.ends_with(end));
        let other_weights = name.ends_with(".index.json") && name != "model.safetensors.index.json";
        (kind && !other_weights && name != "adapter_config.json") || upper.starts_with("LICENSE") || upper == "NOTICE"
    };
    let mut files = store::files_in(folder)?;
    files.retain(|file| kept(&file.file_name().unwrap_or_default().to_string_lossy()));
    if let Some(file) = files.iter().find(|file| leads_out(folder, file)) {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let reason = format!(
            "`{name}` is a link to a file outside the folder, which is not exported: replace the link \
             by the file, or remove it"
        );
        return Err(Error::Weights { path: folder.clone(), reason });
    }
    Ok(files.into_iter().map(Companion::Copy).collect())
}

/// Whether a file of the folder is a link to elsewhere. In Hugging Face's cache every file is one, from
/// `REPO/snapshots/COMMIT` into `REPO/blobs`.
fn leads_out(folder: &Path, file: &Path) -> bool {
    if !file.is_symlink() {
        return false;
    }
    let (Ok(folder), Ok(target)) = (folder.canonicalize(), file.canonicalize()) else { return true };
    let blobs = match folder.parent() {
        Some(snapshots) if snapshots.ends_with("snapshots") => snapshots.parent().map(|repo| repo.join("blobs")),
        _ => None,
    };
    !target.starts_with(&folder) && (blobs.is_none() || target.parent() != blobs.as_deref())
}
