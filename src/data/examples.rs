//! Rows of data: JSON lines to examples.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use serde::Deserialize;

use crate::checkpoint::source::builtin_rows;
use crate::checkpoint::text::{Encoded, LONGEST_TEXT, Message, Text};
use crate::data::example::{Example, targets};
use crate::error::{Error, Result};
use crate::spec::run::{BUILTIN, Data, RunConfig, TokenLengths};
use crate::store;
use crate::units::Bytes;

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
pub(crate) struct Rows {
    /// Training examples, in the order of the file.
    pub train: Vec<Example>,
    /// Validation examples; empty without a validation file.
    pub valid: Vec<Example>,
}

impl Rows {
    /// Reads and tokenises the data of a run.
    pub(crate) fn read(data: &Data, text: &Text, vocab_size: usize) -> Result<Self> {
        let parse = |rows: Cow<'static, str>, path: &Path| examples(rows, path, text, vocab_size);
        if data.train().as_os_str() == BUILTIN {
            let (train, valid) = builtin_rows();
            return Ok(Self {
                train: parse(train.into(), Path::new("builtin train.jsonl"))?,
                valid: parse(valid.into(), Path::new("builtin valid.jsonl"))?,
            });
        }
        let read = |path: &Path| parse(store::read_text(path)?.into(), path);
        Ok(Self { train: read(data.train())?, valid: data.valid().map(read).transpose()?.unwrap_or_default() })
    }

    /// How many training rows have nothing to learn, because their prompt fills `max_seq_length` and is masked; an error
    /// where it is all of the training rows, or all of the validation rows.
    pub(crate) fn untrained(&self, run: &RunConfig) -> Result<usize> {
        let without = |rows: &[Example]| rows.iter().filter(|row| targets(row, run).is_empty()).count();
        let files = [(Some(run.data.train()), &self.train), (run.data.valid(), &self.valid)];
        for (path, rows) in files {
            if !rows.is_empty() && without(rows) == rows.len() {
                let cut = run.recipe.max_seq_length;
                let reason = format!(
                    "no row has target tokens: `mask_prompt` leaves only completions, and every prompt \
                     fills the {cut} tokens of `max_seq_length`"
                );
                return Err(Error::Data { path: path.unwrap_or(run.data.train()).into(), reason });
            }
        }
        Ok(without(&self.train))
    }

    /// Token lengths of the training and validation examples.
    pub(crate) fn lengths(&self) -> TokenLengths {
        let all: usize = self.train.iter().map(|e| e.tokens.len()).sum();
        let completion: usize = self.train.iter().map(|e| e.tokens.len() - e.prompt.min(e.tokens.len())).sum();
        let lengths = TokenLengths::new(self.train.iter().map(|e| e.tokens.len() as u32).collect());
        let validation = self.valid.iter().map(|e| e.tokens.len() as u32).collect();
        lengths.with_completion(completion as f64 / all.max(1) as f64).with_validation(validation)
    }
}

/// The examples of a JSON-lines text; `path` is for messages.
pub(crate) fn examples(lines: Cow<'static, str>, path: &Path, text: &Text, vocab_size: usize) -> Result<Vec<Example>> {
    let line = Arc::new(AtomicUsize::new(0));
    let (at, file) = (Arc::clone(&line), path.to_path_buf());
    let found = text.at_once(move |text| {
        let mut found = Vec::new();
        for (i, row) in lines.lines().enumerate().filter(|(_, row)| !row.trim().is_empty()) {
            at.store(i + 1, Relaxed);
            found.extend(example(row, (&file, i + 1), text, vocab_size)?);
        }
        Ok(found)
    });
    let found = found.map_err(|error| match error {
        Error::Tokenizer { model, reason } => {
            let row = format!("row of `{}`, line {}", path.display(), line.load(Relaxed));
            Error::Tokenizer { model, reason: format!("{reason} ({row})") }
        }
        other => other,
    })?;
    if found.is_empty() {
        return Err(Error::Data { path: path.into(), reason: "it has no example of two tokens or more".into() });
    }
    Ok(found)
}

/// The example of a row; none where it is one token alone, which predicts nothing.
fn example(row: &str, (path, line): (&Path, usize), text: &Text, vocab_size: usize) -> Result<Option<Example>> {
    let wrong =
        |message: String, hint: Option<String>| Error::Parse { path: path.into(), line: Some(line), message, hint };
    let value = parsed(row, path, line)?;
    let row: Row = serde_json::from_value(value)
        .map_err(|_| wrong("has an unrecognised row format".into(), Some(FORMS.into())))?;
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
    Ok((tokens.len() >= 2).then_some(Example { tokens, prompt }))
}

/// Whether the rows of a data set are chats, which are put into the model's template, by the first of them; `None` where
/// that cannot be read.
pub(crate) fn are_chats(data: &Data) -> Option<bool> {
    let path = data.train();
    let first = match path.as_os_str() == BUILTIN {
        true => builtin_rows().0.lines().next()?.to_owned(),
        false => store::opening_line(path, LONGEST_TEXT).ok()??,
    };
    let row: serde_json::Value = parsed(&first, path, 1).ok()?;
    Some(row.get("messages").is_some())
}

/// A row as JSON, if it is not too long.
pub(crate) fn parsed(row: &str, path: &Path, line: usize) -> Result<serde_json::Value> {
    let wrong = |message: String, hint: &str| Error::Parse {
        path: path.into(),
        line: Some(line),
        message,
        hint: Some(hint.into()),
    };
    if row.len() > LONGEST_TEXT {
        let (long, most) = (Bytes(row.len() as u64), Bytes(LONGEST_TEXT as u64));
        let hint = "split it into several; tokens beyond `max_seq_length` would be cut off";
        return Err(wrong(format!("is {long}, and a row may have at most {most}"), hint));
    }
    serde_json::from_str(row).map_err(|e| wrong(format!("is not valid JSON: {e}"), FORMS))
}

#[cfg(test)]
#[path = "examples_tests.rs"]
mod tests;
