//! Where a model is: inside the binary, in a folder, or in Hugging Face's cache.

use std::path::{Path, PathBuf};

use super::candle::checkpoint_file::CheckpointFile;
use super::candle::weights::Store;
use crate::error::{Error, Result};
use crate::spec::model::ModelSpec;
use crate::spec::run::BUILTIN;
use crate::store;

const BUILTIN_CONFIG: &str = include_str!("../../assets/model/config.json");
const BUILTIN_WEIGHTS: &[u8] = include_bytes!("../../assets/model/model.safetensors");
const BUILTIN_TOKENIZER: &str = include_str!("../../assets/model/tokenizer.json");
const BUILTIN_TOKENIZER_CONFIG: &str = include_str!("../../assets/model/tokenizer_config.json");
const BUILTIN_TRAIN: &str = include_str!("../../assets/data/train.jsonl");
const BUILTIN_VALID: &str = include_str!("../../assets/data/valid.jsonl");

/// A model whose files can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// Inside the binary.
    Builtin,
    /// A Hugging Face folder.
    Folder(PathBuf),
}

impl ModelSource {
    /// `builtin`, a folder, or a hub id whose files are in the local cache.
    pub fn find(model: &str) -> Result<Self> {
        if model == BUILTIN {
            return Ok(Self::Builtin);
        }
        let folder = Path::new(model);
        if folder.is_dir() {
            return Ok(Self::Folder(folder.into()));
        }
        if looks_like_path(model) {
            let source = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(Error::Read { path: folder.into(), source });
        }
        match cached(model) {
            Some(folder) => Ok(Self::Folder(folder)),
            None => Err(Error::NoWeights { name: model.into() }),
        }
    }

    fn text(&self, file: &str, builtin: &'static str) -> Result<String> {
        match self {
            Self::Builtin => Ok(builtin.to_owned()),
            Self::Folder(folder) => store::read_text(&folder.join(file)),
        }
    }

    /// config.json
    pub fn config(&self) -> Result<String> {
        self.text("config.json", BUILTIN_CONFIG)
    }

    /// The architecture, from config.json.
    pub fn spec(&self) -> Result<ModelSpec> {
        ModelSpec::from_config(&self.config()?).map_err(|e| match (e, self) {
            (Error::Parse { line, message, hint, .. }, Self::Folder(folder)) => {
                Error::Parse { path: folder.join("config.json"), line, message, hint }
            }
            (e, _) => e,
        })
    }

    /// Whether a folder holds a file of this name.
    pub fn has(&self, file: &str) -> bool {
        matches!(self, Self::Folder(folder) if folder.join(file).is_file())
    }

    /// tokenizer.json
    pub fn tokenizer(&self) -> Result<String> {
        self.text("tokenizer.json", BUILTIN_TOKENIZER)
    }

    /// tokenizer_config.json, or nothing where there is none.
    pub fn tokenizer_config(&self) -> Result<Option<String>> {
        self.optional("tokenizer_config.json", BUILTIN_TOKENIZER_CONFIG)
    }

    /// generation_config.json of a folder, or nothing.
    pub fn generation_config(&self) -> Result<Option<String>> {
        self.optional("generation_config.json", include_str!("../../assets/model/generation_config.json"))
    }

    /// chat_template.jinja of a folder, where newer checkpoints keep the template.
    pub fn chat_template_file(&self) -> Result<Option<String>> {
        match self {
            Self::Builtin => Ok(None),
            Self::Folder(_) => self.optional("chat_template.jinja", ""),
        }
    }

    fn optional(&self, file: &str, builtin: &'static str) -> Result<Option<String>> {
        match self {
            Self::Folder(folder) if !folder.join(file).is_file() => Ok(None),
            _ => self.text(file, builtin).map(Some),
        }
    }

    /// Opens the weights.
    pub fn weights(&self) -> Result<Store> {
        let folder = match self {
            Self::Builtin => {
                let file = CheckpointFile::embedded(BUILTIN_WEIGHTS).map_err(|e| wrong(Path::new(BUILTIN), e))?;
                return Ok(Store { folder: BUILTIN.into(), files: vec![file] });
            }
            Self::Folder(folder) => folder,
        };
        let open = |path: PathBuf| CheckpointFile::open(&path).map_err(|reason| wrong(&path, reason));
        let files = safetensors_files(folder)?.into_iter().map(open).collect::<Result<_>>()?;
        Ok(Store { folder: folder.clone(), files })
    }
}

fn wrong(path: &Path, reason: String) -> Error {
    Error::Weights { path: path.into(), reason }
}

/// The rows that ship: training and validation.
pub fn builtin_rows() -> (&'static str, &'static str) {
    (BUILTIN_TRAIN, BUILTIN_VALID)
}

/// A name that was meant as a path, by its look.
pub fn looks_like_path(model: &str) -> bool {
    model.starts_with(['.', '/', '~']) || model.matches('/').count() > 1 || model.contains('\\')
}

/// The weights of a folder: those its index names, or every *.safetensors in it.
fn safetensors_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let index = folder.join("model.safetensors.index.json");
    if index.is_file() {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: std::collections::BTreeMap<String, String>,
        }
        let index: Index = store::load_json(&index)?;
        let mut names: Vec<String> = index.weight_map.into_values().collect();
        names.sort();
        names.dedup();
        return names.into_iter().map(|name| shard(folder, &name)).collect();
    }
    let single = folder.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    Err(wrong(folder, "there is no model.safetensors and no model.safetensors.index.json".into()))
}

/// A shard that an index names: a plain file name inside the folder, nothing that leads out of it.
fn shard(folder: &Path, name: &str) -> Result<PathBuf> {
    let plain = Path::new(name).components().all(|c| matches!(c, std::path::Component::Normal(_)));
    let path = folder.join(name);
    if !plain {
        return Err(wrong(folder, format!("its index names `{name}`, which is not a file in the folder")));
    }
    if !path.is_file() {
        return Err(wrong(folder, format!("`{name}` is missing, though the index names it")));
    }
    Ok(path)
}

/// The newest snapshot of a hub id in Hugging Face's cache.
fn cached(model: &str) -> Option<PathBuf> {
    let hub = std::env::var_os("HF_HUB_CACHE").map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HF_HOME").map(PathBuf::from);
        let home = home.or_else(|| std::env::home_dir().map(|h| h.join(".cache/huggingface")));
        home.map(|h| h.join("hub"))
    })?;
    let repo = hub.join(format!("models--{}", model.replace('/', "--")));
    let commit = store::read_text(&repo.join("refs/main")).ok();
    let named = commit.map(|c| repo.join("snapshots").join(c.trim())).filter(|p| p.join("config.json").is_file());
    named.or_else(|| {
        let mut snapshots = store::folders_in(&repo.join("snapshots")).ok()?;
        snapshots.retain(|p| p.join("config.json").is_file());
        snapshots.pop()
    })
}
