//! What a model's folder says in texts beside config.json: tokenizer, chat template, how generation ends.

use std::path::Path;

use serde_json::Value;

use crate::checkpoint::byte_level::{self, Parts};
use crate::checkpoint::gguf::GgufFile;
use crate::checkpoint::source::{BUILTIN_TOKENIZER, BUILTIN_TOKENIZER_CONFIG, ModelSource};
use crate::error::{Error, Result};

impl ModelSource {
    /// Text of the model's tokenizer.json; made of vocab.json and merges.txt, or of a GGUF file's metadata, where there is
    /// none.
    pub fn tokenizer(&self) -> Result<String> {
        let Some(beside) = self.beside("tokenizer.json").filter(|path| !path.is_file()) else {
            return self.text("tokenizer.json", BUILTIN_TOKENIZER);
        };
        let named = |path: &Path| path.display().to_string();
        match self {
            Self::Gguf(path) => {
                let rebuilt = GgufFile::open(path)?.tokenizer();
                rebuilt.map_err(|reason| Error::Tokenizer { model: named(path), reason })
            }
            _ => {
                let folder = beside.parent().unwrap_or(&beside);
                if !(self.has("vocab.json") && self.has("merges.txt")) {
                    let model_file = self.has("tokenizer.model");
                    return Err(Error::NoTokenizer { folder: folder.into(), model_file });
                }
                let made = self.byte_level()?;
                made.map_err(|reason| Error::Tokenizer { model: named(folder), reason: format!("{reason}; {CONVERT}") })
            }
        }
    }

    fn byte_level(&self) -> Result<Result<String, String>> {
        let json = |text: Option<String>| text.and_then(|t| serde_json::from_str(&t).ok()).unwrap_or(Value::Null);
        let config = json(self.tokenizer_config()?);
        let added = json(self.optional("added_tokens.json", "")?);
        let model = json(Some(self.config()?));
        Ok(byte_level::tokenizer_json(&Parts {
            vocab: &self.text("vocab.json", "")?,
            merges: &self.text("merges.txt", "")?,
            config: &config,
            added: &added,
            model_type: model["model_type"].as_str().unwrap_or_default(),
        }))
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

    /// Text of special_tokens_map.json, where older checkpoints keep the special tokens.
    pub(crate) fn special_tokens_map(&self) -> Result<Option<String>> {
        match self {
            Self::Builtin => Ok(None),
            _ => self.optional("special_tokens_map.json", ""),
        }
    }

    /// chat_template.jinja of a folder, where newer checkpoints keep the template.
    pub(crate) fn chat_template_file(&self) -> Result<Option<String>> {
        match self {
            Self::Builtin => Ok(None),
            _ => self.optional("chat_template.jinja", ""),
        }
    }
}

/// What makes a tokenizer.json of what transformers reads.
const CONVERT: &str = "transformers' `AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)` writes a tokenizer.json";
