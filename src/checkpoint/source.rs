//! Where a model is: inside the binary, in a folder, or in Hugging Face's cache.

use std::path::{Path, PathBuf};

use crate::checkpoint::gguf::GgufFile;
use crate::checkpoint::hub::{self, Part, Repo};
use crate::checkpoint::safetensors::CheckpointFile;
use crate::checkpoint::shards::{safetensors_files, wrong};
use crate::checkpoint::weights::{BaseWeights, Files};
use crate::error::{Error, Result};
use crate::spec::model::catalogue::{self, Relation, Understood};
use crate::spec::model::{Model, ModelSpec, ModelType};
use crate::spec::run::BUILTIN;
use crate::{spec, store};

const BUILTIN_CONFIG: &str = include_str!("../../assets/model/config.json");

const BUILTIN_WEIGHTS: &[u8] = include_bytes!("../../assets/model/model.safetensors");

pub(super) const BUILTIN_TOKENIZER: &str = include_str!("../../assets/model/tokenizer.json");

pub(super) const BUILTIN_TOKENIZER_CONFIG: &str = include_str!("../../assets/model/tokenizer_config.json");

const BUILTIN_TRAIN: &str = include_str!("../../assets/data/train.jsonl");

const BUILTIN_VALID: &str = include_str!("../../assets/data/valid.jsonl");

/// Files beside config.json that are read of a folder.
const TEXTS: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
];

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
        match hub::cached(model) {
            Some(folder) => Self::in_folder(&folder),
            None => {
                let meant = catalogue::find(model).ok().map(|entry| entry.id.clone()).filter(|id| id != model);
                Err(Error::NoWeights { name: model.into(), meant })
            }
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

    /// The open GGUF file, where the model is one and has no file of this name beside it, which would tell more.
    pub(crate) fn gguf_without(&self, file: &str) -> Result<Option<GgufFile>> {
        match self {
            Self::Gguf(path) if !self.has(file) => GgufFile::open(path).map(Some),
            _ => Ok(None),
        }
    }

    /// A file of the model's folder, or beside its file.
    pub(super) fn beside(&self, file: &str) -> Option<PathBuf> {
        match self {
            Self::Builtin => None,
            Self::Folder(folder) => Some(folder.join(file)),
            Self::Gguf(path) => Some(path.with_file_name(file)),
        }
    }

    pub(super) fn text(&self, file: &str, builtin: &'static str) -> Result<String> {
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

    pub(super) fn optional(&self, file: &str, builtin: &'static str) -> Result<Option<String>> {
        match self.beside(file) {
            Some(path) if !path.is_file() => Ok(None),
            _ => self.text(file, builtin).map(Some),
        }
    }

    /// Every file that is read of it, weights last; none of the model inside the binary.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        let described = ["config.json"].into_iter().chain(TEXTS);
        let described = described.filter(|name| self.has(name)).filter_map(|name| self.beside(name));
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
        || (model.matches('/').count() > 1 && Repo::parse(model).is_none())
        || model.contains('\\')
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}

/// A model by its name or folder; only its shape is needed, so its weights may be elsewhere. A name is an entry of the
/// catalogue, or what is in Hugging Face's cache, or else what its words say.
pub(crate) fn model(name: &str) -> Result<Model> {
    if name == BUILTIN || Path::new(name).is_dir() || looks_like_path(name) {
        return Ok(Model::new(name, ModelSource::find(name)?.spec()?));
    }
    let repo = Repo::parse(name);
    let understood = catalogue::understand(repo.as_ref().map_or(name, |repo| &repo.id));
    // A revision stays named; an address becomes a name.
    let written = repo.as_ref().map_or_else(|| name.to_owned(), Repo::name);
    let name = written.as_str();
    if let Ok(known) = understood
        && known.relation == Relation::Same
    {
        let model = known.model(name);
        return Ok(if name.contains('@') { Model { name: written, ..model } } else { model });
    }
    if let Ok(source) = ModelSource::find(name) {
        return Ok(Model::new(name, source.spec()?));
    }
    match understood {
        Ok(known) if known.relation == Relation::Copy || repo.is_none() => Ok(known.model(name)),
        Err(Error::UnknownModel { .. }) | Ok(_) if repo.is_some() => asked(name, understood),
        other => Ok(other?.model(name)),
    }
}

/// A model that only the hub knows, by its config.json; where that is not to be had, what was understood of the name.
fn asked(name: &str, understood: Result<Understood>) -> Result<Model> {
    match (hub::fetch(name, Part::Config, &mut |_| Ok(())), understood) {
        (Ok(_), _) => Ok(Model::new(name, ModelSource::find(name)?.spec()?)),
        (Err(_), Ok(known)) => Ok(known.model(name)),
        (Err(Error::Hub { reason, .. }), Err(Error::UnknownModel { name, close, .. })) => {
            Err(Error::UnknownModel { name, close, hub: Some(reason) })
        }
        (Err(error), Err(_)) => Err(error),
    }
}

/// Whether an error says that a file, or the weights of a model, are not on this machine.
pub(crate) fn is_absent(error: &Error) -> bool {
    match error {
        Error::NoWeights { .. } | Error::NoTokenizer { .. } => true,
        Error::Read { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
