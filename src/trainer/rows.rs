//! Rows of data: JSON lines to examples.

use std::path::Path;

use serde::Deserialize;

use super::source::builtin_rows;
use super::text::{Encoded, Message, Text};
use crate::error::{Error, Result};
use crate::spec::data::TokenLengths;
use crate::spec::run::{BUILTIN, Data};
use crate::store;

/// One example: its tokens, and the first of them that is a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Not cut yet.
    pub tokens: Vec<u32>,
    /// Tokens before this one are prompt.
    pub prompt: usize,
}

#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Row {
    Tokens { tokens: Vec<u32> },
    Chat { messages: Vec<Message> },
    Completion { prompt: String, completion: String },
    Plain { text: String },
}

const FORMS: &str =
    "a row is {\"text\"}, {\"prompt\",\"completion\"}, {\"messages\":[{\"role\",\"content\"}]} or {\"tokens\":[..]}";

/// Training and validation examples of a run.
pub struct Rows {
    /// Training examples, in file order.
    pub train: Vec<Example>,
    /// Validation examples; empty without a validation file.
    pub valid: Vec<Example>,
}

impl Rows {
    /// Reads and tokenises the data of a run.
    pub fn read(data: &Data, text: &Text, vocab_size: usize) -> Result<Self> {
        if data.train().as_os_str() == BUILTIN {
            let (train, valid) = builtin_rows();
            let parse = |rows, name: &str| examples(rows, Path::new(name), text, vocab_size);
            return Ok(Self {
                train: parse(train, "builtin train.jsonl")?,
                valid: parse(valid, "builtin valid.jsonl")?,
            });
        }
        let read = |path: &Path| examples(&store::read_text(path)?, path, text, vocab_size);
        Ok(Self { train: read(data.train())?, valid: data.valid().map(read).transpose()?.unwrap_or_default() })
    }

    /// Lengths of the examples.
    pub fn lengths(&self) -> TokenLengths {
        let all: usize = self.train.iter().map(|e| e.tokens.len()).sum();
        let completion: usize = self.train.iter().map(|e| e.tokens.len() - e.prompt.min(e.tokens.len())).sum();
        let lengths = TokenLengths::new(self.train.iter().map(|e| e.tokens.len() as u32).collect());
        let validation = self.valid.iter().map(|e| e.tokens.len() as u32).collect();
        lengths.with_completion(completion as f64 / all.max(1) as f64).with_validation(validation)
    }
}

/// The examples of a JSON-lines text; `path` is for messages.
pub fn examples(lines: &str, path: &Path, text: &Text, vocab_size: usize) -> Result<Vec<Example>> {
    let mut found = Vec::new();
    for (i, line) in lines.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let wrong = |message: String, hint: Option<String>| Error::Parse {
            path: path.into(),
            line: Some(i + 1),
            message,
            hint,
        };
        let value: serde_json::Value =
            serde_json::from_str(line).map_err(|e| wrong(format!("is no JSON: {e}"), Some(FORMS.into())))?;
        let row: Row = serde_json::from_value(value)
            .map_err(|_| wrong("has none of the known forms".into(), Some(FORMS.into())))?;
        let Encoded { tokens, prompt } = match row {
            Row::Tokens { tokens } => Encoded { tokens, prompt: 0 },
            Row::Chat { messages } => text.chat(&messages)?,
            Row::Completion { prompt, completion } => text.completion(&prompt, &completion)?,
            Row::Plain { text: plain } => text.plain(&plain)?,
        };
        if let Some(token) = tokens.iter().find(|&&t| t as usize >= vocab_size) {
            let message = format!("has token {token}, but the model's vocabulary ends at {}", vocab_size - 1);
            return Err(wrong(message, None));
        }
        // One token alone predicts nothing.
        if tokens.len() >= 2 {
            found.push(Example { tokens, prompt });
        }
    }
    if found.is_empty() {
        return Err(Error::Data { path: path.into(), reason: "it holds no example of two tokens or more".into() });
    }
    Ok(found)
}
