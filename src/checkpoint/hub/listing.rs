//! What a model on the hub consists of, and which of its files are needed.

use std::path::{Component, Path};

use serde::Deserialize;

use crate::checkpoint::hub::client::{Client, Refusal};
use crate::checkpoint::hub::repo::Repo;

/// A longer description of a model is none.
const LONGEST: u64 = 32 << 20;

/// The index of shards.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// The largest file of text that is fetched, bytes: twice the largest tokenizer.json.
const LARGEST_TEXT: u64 = 64 << 20;

/// Texts beside config.json, the tokenizer last: where it is, the others are.
const TEXTS: [&str; 11] = [
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer_config.json",
    "merges.txt",
    "vocab.json",
];

/// Tokenizers, the best first: one of them is needed.
pub(super) const TOKENIZERS: [&str; 2] = ["tokenizer.json", "tokenizer.model"];

/// A file of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct File {
    /// Path inside the model's folder: plain names, nothing that leads out of it.
    pub(super) path: String,
    /// Size, bytes.
    pub(super) size: u64,
    /// SHA-256 of a large file, or git's hash of a small one, in hexadecimal.
    pub(super) etag: String,
}

/// A revision of a model: its commit and its files.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<File>,
}

#[derive(Deserialize)]
struct Raw {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Listing {
    /// Asks the hub.
    pub(super) fn of(client: &Client, repo: &Repo) -> Result<Self, Refusal> {
        let revision = repo.revision.replace('/', "%2F");
        let path = format!("/api/models/{}/revision/{revision}?blobs=true", repo.id);
        let body = client.get(&path, 0)?.into_body().into_with_config().limit(LONGEST).read_to_vec();
        let body = body.map_err(|e| Refusal::Broken(format!("its list of files did not arrive: {e}")))?;
        let raw = serde_json::from_slice(&body)
            .map_err(|e| Refusal::No(format!("the hub's list of its files cannot be read: {e}"), None))?;
        Self::read(raw)
    }

    fn read(raw: Raw) -> Result<Self, Refusal> {
        if !hexadecimal(&raw.sha, 40) {
            return Err(Refusal::No("the hub names no commit of it".into(), None));
        }
        // A name that leads out of the folder is no file that is needed.
        let files = raw.siblings.into_iter().filter(|s| plain(&s.rfilename)).filter_map(File::read).collect();
        Ok(Self { commit: raw.sha, files })
    }

    pub(super) fn find(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|f| f.path == path)
    }

    /// The index of shards, where there is one.
    pub(super) fn index(&self) -> Result<Option<&File>, Refusal> {
        self.find(INDEX).map(bounded).transpose()
    }

    /// config.json.
    pub(super) fn config(&self) -> Result<&File, Refusal> {
        self.find("config.json").map(bounded).transpose()?.ok_or_else(|| {
            let ggufs: Vec<&str> =
                self.files.iter().map(|f| f.path.as_str()).filter(|p| p.ends_with(".gguf")).collect();
            match ggufs.first() {
                Some(first) => Refusal::No(
                    format!("it has no config.json, but {} GGUF files in several formats", ggufs.len()),
                    Some(format!("download one of them, such as `{first}`, and name that file as the model")),
                ),
                None => Refusal::No("it has no config.json: it is no model in transformers' form".into(), None),
            }
        })
    }

    /// The texts that are read of a model, config.json first and the tokenizer last.
    pub(super) fn texts(&self) -> Result<Vec<&File>, Refusal> {
        let tokenizer = TOKENIZERS.iter().find_map(|name| self.find(name));
        let others = TEXTS.iter().filter_map(|name| self.find(name)).chain(tokenizer);
        std::iter::once(self.config()).chain(others.map(bounded)).collect()
    }

    /// The files of weights: those that `index`, the text of the index, names; or model.safetensors; or every file of
    /// safetensors that is no adapter and no copy in another form.
    pub(super) fn weights(&self, index: Option<&str>) -> Result<Vec<&File>, Refusal> {
        let no = |reason: String| Refusal::No(reason, None);
        if let Some(index) = index {
            #[derive(Deserialize)]
            struct Index {
                weight_map: std::collections::BTreeMap<String, String>,
            }
            let index: Index = serde_json::from_str(index).map_err(|e| no(format!("its index of weights: {e}")))?;
            let names: std::collections::BTreeSet<String> = index.weight_map.into_values().collect();
            let named = names.iter().map(|name| self.find(name).ok_or(name)).collect::<Result<Vec<_>, _>>();
            // A stale index is none.
            if let Ok(files) = named {
                return Ok(files);
            }
        }
        if let Some(file) = self.find("model.safetensors") {
            return Ok(vec![file]);
        }
        let wanted = |f: &&File| {
            let other = f.path.starts_with("adapter") || f.path.starts_with("consolidated");
            f.path.ends_with(".safetensors") && !f.path.contains('/') && !other
        };
        let found: Vec<&File> = self.files.iter().filter(wanted).collect();
        match found.is_empty() {
            true => Err(Refusal::No(
                "it has no weights in safetensors, and other files are not read, because they can run code".into(),
                Some("look for a conversion of it, or convert it with transformers' `save_pretrained`".into()),
            )),
            false => Ok(found),
        }
    }
}

/// A file that is read whole, which a stranger's must not be too large for.
fn bounded(file: &File) -> Result<&File, Refusal> {
    match file.size > LARGEST_TEXT {
        true => Err(Refusal::No(format!("its `{}` has {} bytes, which no such file has", file.path, file.size), None)),
        false => Ok(file),
    }
}

impl File {
    fn read(raw: Sibling) -> Option<Self> {
        let (size, etag) = match (raw.lfs, raw.size, raw.blob_id) {
            (Some(lfs), _, _) => (lfs.size, lfs.sha256),
            (None, Some(size), Some(blob)) => (size, blob),
            _ => return None,
        };
        // It becomes a file's name.
        let known = hexadecimal(&etag, 64) || hexadecimal(&etag, 40);
        known.then_some(Self { path: raw.rfilename, size, etag })
    }
}

fn hexadecimal(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A relative path of plain names.
fn plain(path: &str) -> bool {
    let names = Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
    names
        && !path.is_empty()
        && path.len() < 256
        && !path.contains(['\\', ':', '%', '?', '#'])
        && !path.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(paths: &[&str]) -> Listing {
        let sibling = |path: &&str| serde_json::json!({"rfilename": path, "size": 7, "blobId": "a".repeat(40)});
        let raw = serde_json::json!({"sha": "0".repeat(40), "siblings": paths.iter().map(sibling).collect::<Vec<_>>()});
        Listing::read(serde_json::from_value(raw).unwrap()).unwrap()
    }

    fn names(files: Result<Vec<&File>, Refusal>) -> Vec<&str> {
        files.unwrap().iter().map(|f| f.path.as_str()).collect()
    }

    fn words(refusal: Refusal) -> String {
        let Refusal::No(reason, _) = refusal else { panic!("{refusal:?}") };
        reason
    }

    #[test]
    fn only_what_is_needed_is_chosen_and_never_a_pickle() {
        let all = listing(&[
            "pytorch_model.bin",
            "model.safetensors",
            "tokenizer.model",
            "tokenizer.json",
            "config.json",
            "onnx/model.onnx",
            "generation_config.json",
            "README.md",
            "tokenizer_config.json",
            "adapter_model.safetensors",
            "training_args.bin",
        ]);
        assert_eq!(
            names(all.texts()),
            ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]
        );
        assert_eq!(names(all.weights(None)), ["model.safetensors"]);
        let shards = ["config.json", "model-1.safetensors", "model-2.safetensors", "consolidated.safetensors"];
        let index = r#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#;
        assert_eq!(names(listing(&shards).weights(Some(index))), shards[1..3]);
        assert_eq!(names(listing(&shards).weights(Some(r#"{"weight_map":{"a":"gone"}}"#))), shards[1..3]);
        let refused = |paths: &[&str]| words(listing(paths).weights(None).unwrap_err());
        assert!(refused(&["pytorch_model.bin"]).contains("no weights in safetensors"));
        assert!(words(listing(&["a.gguf", "b.gguf"]).config().unwrap_err()).contains("2 GGUF files"));
    }

    #[test]
    fn names_that_lead_out_and_hashes_that_are_none_are_left_out() {
        for bad in ["../config.json", "/etc/passwd", "a/../../b", "a\\b", "x\n", "", "a?b"] {
            assert!(listing(&[bad]).files.is_empty(), "{bad}");
        }
        let raw = |etag: &str| serde_json::json!({"sha": "0".repeat(40), "siblings": [{"rfilename": "a", "size": 1, "blobId": etag}]});
        let read = |etag: &str| Listing::read(serde_json::from_value(raw(etag)).unwrap()).unwrap().files.len();
        assert_eq!([read("../../x"), read(&"A".repeat(40)), read(&"b".repeat(64))], [0, 0, 1]);
        let no_commit = serde_json::json!({"sha": "../x", "siblings": []});
        assert!(Listing::read(serde_json::from_value(no_commit).unwrap()).is_err());
    }
}
