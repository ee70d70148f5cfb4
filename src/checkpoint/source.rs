//! Where a model is: inside the binary, in a folder, or in Hugging Face's cache.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use hf_hub::Cache;

use crate::checkpoint::gguf::GgufFile;
use crate::checkpoint::safetensors::CheckpointFile;
use crate::checkpoint::weights::{BaseWeights, Files};
use crate::error::{Error, Result};
use crate::spec::model::catalogue::{self, Copy};
use crate::spec::model::{Model, ModelSpec, ModelType};
use crate::spec::run::BUILTIN;
use crate::{spec, store};

const BUILTIN_CONFIG: &str = include_str!("../../assets/model/config.json");

const BUILTIN_WEIGHTS: &[u8] = include_bytes!("../../assets/model/model.safetensors");

const BUILTIN_TOKENIZER: &str = include_str!("../../assets/model/tokenizer.json");

const BUILTIN_TOKENIZER_CONFIG: &str = include_str!("../../assets/model/tokenizer_config.json");

const BUILTIN_TRAIN: &str = include_str!("../../assets/data/train.jsonl");

const BUILTIN_VALID: &str = include_str!("../../assets/data/valid.jsonl");

/// Source of a model whose files can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// The model embedded in the binary.
    Builtin,
    /// A Hugging Face folder, with config.json and safetensors.
    Folder(PathBuf),
    /// A GGUF file; what it lacks is looked for beside it.
    Gguf(PathBuf),
}

impl ModelSource {
    /// `builtin`, a folder, a GGUF file, or a hub id whose files are in the local cache.
    pub fn find(model: &str) -> Result<Self> {
        if model == BUILTIN {
            return Ok(Self::Builtin);
        }
        let folder = Path::new(model);
        if folder.is_dir() {
            return Self::in_folder(folder);
        }
        if folder.is_file() && is_gguf(folder) {
            return Ok(Self::Gguf(folder.into()));
        }
        if looks_like_path(model) {
            let source = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(Error::Read { path: folder.into(), source });
        }
        match hub_folder(|name| std::env::var_os(name)).and_then(|hub| cached(hub, model)) {
            Some(folder) => Self::in_folder(&folder),
            None => Err(Error::NoWeights { name: model.into() }),
        }
    }

    /// A folder with safetensors in it, or with one GGUF file and none.
    fn in_folder(folder: &Path) -> Result<Self> {
        let mut files = store::files_in(folder)?;
        files.retain(|f| is_gguf(f));
        match files.as_slice() {
            [one] if safetensors_files(folder).is_err() => Ok(Self::Gguf(one.clone())),
            [_, _, ..] if safetensors_files(folder).is_err() => {
                let names: Vec<String> =
                    files.iter().filter_map(|f| Some(f.file_name()?.to_string_lossy().into())).collect();
                Err(wrong(folder, format!("it holds {}: name one of them as the model", names.join(", "))))
            }
            _ => Ok(Self::Folder(folder.into())),
        }
    }

    /// A file of the model's folder, or beside its file.
    fn beside(&self, file: &str) -> Option<PathBuf> {
        match self {
            Self::Builtin => None,
            Self::Folder(folder) => Some(folder.join(file)),
            Self::Gguf(path) => Some(path.with_file_name(file)),
        }
    }

    fn text(&self, file: &str, builtin: &'static str) -> Result<String> {
        self.beside(file).map_or_else(|| Ok(builtin.to_owned()), |path| store::read_text(&path))
    }

    /// The architecture, from config.json or a GGUF file's metadata.
    pub fn spec(&self) -> Result<ModelSpec> {
        if let Self::Gguf(path) = self {
            return Ok(GgufFile::open(path)?.spec);
        }
        let mut spec = self.described()?;
        // What is quantised, and how GPT-2's matrices lie, the files tell better, where they are at hand.
        if (spec.storage.out_in || spec.model_type == ModelType::Gpt2)
            && let Ok(store) = self.weights()
        {
            spec.storage = store.storage(&spec);
        }
        Ok(spec)
    }

    /// Text of the model's config.json.
    pub(crate) fn config(&self) -> Result<String> {
        self.text("config.json", BUILTIN_CONFIG)
    }

    fn described(&self) -> Result<ModelSpec> {
        ModelSpec::from_config(&self.config()?).map_err(|e| match (e, self) {
            (Error::Parse { line, message, hint, .. }, Self::Folder(folder)) => {
                Error::Parse { path: folder.join("config.json"), line, message, hint }
            }
            (e, _) => e,
        })
    }

    /// Whether there is a file of this name in the model's folder, or beside its file.
    pub(crate) fn has(&self, file: &str) -> bool {
        self.beside(file).is_some_and(|path| path.is_file())
    }

    /// Text of the model's tokenizer.json.
    pub fn tokenizer(&self) -> Result<String> {
        if let (Self::Gguf(path), Some(beside)) = (self, self.beside("tokenizer.json"))
            && !beside.is_file()
        {
            let rebuilt = GgufFile::open(path)?.tokenizer();
            return rebuilt.map_err(|reason| Error::Tokenizer { model: path.display().to_string(), reason });
        }
        self.text("tokenizer.json", BUILTIN_TOKENIZER)
    }

    /// tokenizer_config.json, or nothing where there is none.
    pub fn tokenizer_config(&self) -> Result<Option<String>> {
        if let (Self::Gguf(path), Some(beside)) = (self, self.beside("tokenizer_config.json"))
            && !beside.is_file()
        {
            return Ok(Some(GgufFile::open(path)?.tokenizer_config()));
        }
        self.optional("tokenizer_config.json", BUILTIN_TOKENIZER_CONFIG)
    }

    /// Text of generation_config.json, where the model has one.
    pub(crate) fn generation_config(&self) -> Result<Option<String>> {
        self.optional("generation_config.json", include_str!("../../assets/model/generation_config.json"))
    }

    /// chat_template.jinja of a folder, where newer checkpoints keep the template.
    pub(crate) fn chat_template_file(&self) -> Result<Option<String>> {
        match self {
            Self::Builtin => Ok(None),
            _ => self.optional("chat_template.jinja", ""),
        }
    }

    fn optional(&self, file: &str, builtin: &'static str) -> Result<Option<String>> {
        match self.beside(file) {
            Some(path) if !path.is_file() => Ok(None),
            _ => self.text(file, builtin).map(Some),
        }
    }

    /// Every file that is read of it, weights last; none of the model inside the binary.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        let described = ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];
        let described = described.into_iter().filter(|name| self.has(name)).filter_map(|name| self.beside(name));
        let weights = match self {
            Self::Builtin => Vec::new(),
            Self::Gguf(path) => vec![path.clone()],
            Self::Folder(folder) => safetensors_files(folder)?,
        };
        Ok(described.chain(weights).collect())
    }

    /// SHA-256 of the model inside the binary.
    pub(crate) fn builtin_checksum(&self) -> String {
        let texts = [BUILTIN_CONFIG, BUILTIN_TOKENIZER, BUILTIN_TOKENIZER_CONFIG];
        let parts: Vec<&[u8]> = texts.iter().map(|text| text.as_bytes()).chain([BUILTIN_WEIGHTS]).collect();
        store::checksums::of_bytes(&parts.concat())
    }

    /// Opens the files of the model's weights.
    pub fn weights(&self) -> Result<BaseWeights> {
        let folder = match self {
            Self::Builtin => {
                let file = CheckpointFile::embedded(BUILTIN_WEIGHTS).map_err(|e| wrong(Path::new(BUILTIN), e))?;
                return Ok(BaseWeights { folder: BUILTIN.into(), files: Files::Safetensors(vec![file]) });
            }
            Self::Gguf(path) => {
                return Ok(BaseWeights { folder: path.clone(), files: Files::Gguf(Box::new(GgufFile::open(path)?)) });
            }
            Self::Folder(folder) => folder,
        };
        let open = |path: PathBuf| {
            let mut file = CheckpointFile::open(&path).map_err(|reason| wrong(&path, reason))?;
            if let Ok(inside) = path.strip_prefix(folder) {
                file.name = inside.to_string_lossy().into_owned();
            }
            Ok(file)
        };
        let files = safetensors_files(folder)?.into_iter().map(open).collect::<Result<_>>()?;
        Ok(BaseWeights { folder: folder.clone(), files: Files::Safetensors(files) })
    }
}

fn wrong(path: &Path, reason: String) -> Error {
    Error::Weights { path: path.into(), reason }
}

/// The name of a model as others may know it, in what is handed on: a hub id, or the last part of a path.
pub fn public_name(model: &str) -> String {
    let path = Path::new(model);
    if model == BUILTIN || !(path.exists() || looks_like_path(model)) {
        return model.to_owned();
    }
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.into());
    spec::run::public_name(&whole.to_string_lossy())
}

/// The rows that ship: training and validation.
pub(crate) fn builtin_rows() -> (&'static str, &'static str) {
    (BUILTIN_TRAIN, BUILTIN_VALID)
}

/// A name that was meant as a path, by its look.
pub(crate) fn looks_like_path(model: &str) -> bool {
    model.starts_with(['.', '/', '~'])
        || is_gguf(Path::new(model))
        || model.matches('/').count() > 1
        || model.contains('\\')
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}

/// A larger index is none: real ones have about 100 bytes a tensor.
const LARGEST_INDEX: u64 = 16 << 20;

/// The weights of a folder: those its index names, or every *.safetensors in it.
fn safetensors_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let index = folder.join("model.safetensors.index.json");
    if index.is_file() {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: std::collections::BTreeMap<String, String>,
        }
        if index.metadata().is_ok_and(|meta| meta.len() > LARGEST_INDEX) {
            return Err(wrong(&index, format!("it is not a weight index: it has more than {LARGEST_INDEX} bytes")));
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

/// Hugging Face's cache, found as huggingface_hub finds it. hf-hub's own search knows `HF_HOME` alone, and fails hard
/// where nobody has a home.
fn hub_folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let folder = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let hub = folder("HF_HUB_CACHE").or_else(|| folder("HUGGINGFACE_HUB_CACHE"));
    hub.or_else(|| folder("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache/huggingface/hub")))
}

/// The snapshot of a hub id in a cache: the one that `main` names, or the last by name where none is named, as after a
/// download of one revision, which hf-hub does not look for.
fn cached(hub: PathBuf, model: &str) -> Option<PathBuf> {
    let repo = Cache::new(hub).model(model.into());
    let named = repo.get("config.json").and_then(|config| config.parent().map(PathBuf::from));
    named.or_else(|| {
        // The folder of a snapshot without a name is that of all of them.
        let mut snapshots = store::folders_in(&repo.pointer_path("")).ok()?;
        snapshots.retain(|p| p.join("config.json").is_file());
        snapshots.pop()
    })
}

/// A model by its name or folder; only its shape is needed, so its weights may be elsewhere. A name is an entry of the
/// catalogue, or what is in Hugging Face's cache, or else what its words say.
pub(crate) fn model(name: &str) -> Result<Model> {
    if name == BUILTIN || Path::new(name).is_dir() || looks_like_path(name) {
        return Ok(Model::new(name, ModelSource::find(name)?.spec()?));
    }
    let understood = catalogue::understand(name);
    if let Ok(known) = understood
        && known.copy == Copy::Same
    {
        return Ok(known.model(name));
    }
    match ModelSource::find(name) {
        Ok(source) => Ok(Model::new(name, source.spec()?)),
        Err(_) => Ok(understood?.model(name)),
    }
}

/// Whether an error says that a file, or the weights of a model, are not on this machine.
pub(crate) fn is_absent(error: &Error) -> bool {
    match error {
        Error::NoWeights { .. } => true,
        Error::Read { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
