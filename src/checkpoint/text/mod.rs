//! From text to tokens: the model's own tokenizer and chat template.

mod message;
mod methods;
mod template;
mod tokenizer;

use std::sync::Arc;

use serde_json::Value;
use tokenizers::Tokenizer;

pub(crate) use self::message::*;
use self::template::{SpecialTokens, Template};
use crate::checkpoint::source::ModelSource;
use crate::error::{Error, Result};
use crate::memory;
use crate::memory::bounded::{self, Bounds};
use crate::spec::model::ModelSpec;
use crate::units::Bytes;

/// What is at fault when work on a text is ended.
const TOKENIZER: &str = "the tokenizer";

const TEMPLATE: &str = "the chat template";

/// Largest tokenizer_config.json, bytes: several times the largest that is published.
const LARGEST_CONFIG: usize = 8 << 20;

/// Bytes that stand for the text of one token.
const BYTES_OF_TOKEN: usize = 64;

/// A model's tokenizer and its chat template.
#[derive(Clone)]
pub struct Text {
    inside: Arc<Inside>,
    /// Tokens that end generation.
    pub eos_ids: Vec<u32>,
    name: String,
    /// Tokens of the model; the tokenizer may have more, as long as no text uses one.
    vocab_size: usize,
}

/// What works on texts, in threads that may have to be given up.
struct Inside {
    tokenizer: Tokenizer,
    /// Parsed chat template, or why it is not valid: rows without a chat do not need it.
    template: Option<Result<Template, String>>,
    tokens: SpecialTokens,
    /// Token that closes a training example.
    end: Option<u32>,
}

impl Text {
    /// Opens the tokenizer of a model.
    pub fn open(source: &ModelSource, spec: &ModelSpec, name: &str) -> Result<Self> {
        let wrong = |reason: String| Error::Tokenizer { model: name.into(), reason };
        let tokenizer = tokenizer::parse(source.tokenizer()?).map_err(wrong)?;
        let of = |file: &str, text: Option<String>| text.map_or(Ok(Value::Null), |text| config_of(file, &text));
        let config = of("tokenizer_config.json", source.tokenizer_config()?).map_err(wrong)?;
        let map = of("special_tokens_map.json", source.special_tokens_map()?).map_err(wrong)?;
        let ends = ids_of_ends(source)?;
        let template = chat_template(source, &config)?.map(parsed);
        let named = |key: &str| special(&config, key).or_else(|| special(&map, key));
        // Where nothing names it, its number does.
        let numbered = || ends.first().and_then(|id| tokenizer.id_to_token(*id));
        let tokens = SpecialTokens { bos: named("bos_token"), eos: named("eos_token").or_else(numbered) };
        let end = tokens.eos.as_deref().and_then(|t| tokenizer.token_to_id(t));
        let mut eos_ids = ends;
        eos_ids.extend(end);
        eos_ids.sort_unstable();
        eos_ids.dedup();
        let inside = Arc::new(Inside { tokenizer, template, tokens, end });
        Ok(Self { inside, eos_ids, name: name.into(), vocab_size: spec.vocab_size })
    }

    /// Whether an end-of-text token is known, which closes every example.
    pub(crate) fn has_end(&self) -> bool {
        self.inside.end.is_some()
    }

    fn wrong(&self, reason: String) -> Error {
        Error::Tokenizer { model: self.name.clone(), reason }
    }

    /// Works on a text of that many bytes within bounds; `what` works on it.
    fn bounded<T: Send + 'static>(
        &self,
        what: &'static str,
        bytes: usize,
        work: impl FnOnce(&Inside) -> Result<T, String> + Send + 'static,
    ) -> Result<T> {
        let inside = Arc::clone(&self.inside);
        let done = bounded::run(what, Bounds::of(bytes), move || work(&inside));
        done.unwrap_or_else(|stopped| Err(stopped.to_string())).map_err(|reason| self.wrong(reason))
    }

    /// Tokens of a text; `special` adds what the tokenizer puts around a text (such as a first BOS).
    fn encode(&self, text: String, prompt_bytes: usize, special: bool) -> Result<Encoded> {
        if text.len() > LONGEST_TEXT {
            let (long, most) = (Bytes(text.len() as u64), Bytes(LONGEST_TEXT as u64));
            return Err(self.wrong(format!("a text of {long} is too long to be tokenised: at most {most} are allowed")));
        }
        self.bounded(TOKENIZER, text.len(), move |inside| {
            tokenizer::encode(&inside.tokenizer, &text, prompt_bytes, special)
        })
    }

    fn ended(&self, mut encoded: Encoded) -> Encoded {
        if let Some(end) = self.inside.end.filter(|end| encoded.tokens.last() != Some(end)) {
            encoded.tokens.push(end);
        }
        encoded
    }

    /// A plain text, closed with the end token.
    pub fn plain(&self, text: &str) -> Result<Encoded> {
        Ok(self.ended(self.encode(text.into(), 0, true)?))
    }

    /// A prompt and its completion, one after the other, closed with the end token.
    pub(crate) fn completion(&self, prompt: &str, completion: &str) -> Result<Encoded> {
        Ok(self.ended(self.encode(format!("{prompt}{completion}"), prompt.len(), true)?))
    }

    /// A chat in the model's own template; the prompt is everything before the last message's content.
    pub fn chat(&self, messages: &[Message]) -> Result<Encoded> {
        let whole = self.render(messages, false)?;
        let before = match messages.split_last() {
            Some((last, rest)) if last.role == "assistant" && !rest.is_empty() => self.render(rest, true)?,
            _ => String::new(),
        };
        // Templates that rewrite earlier turns leave no common start: then all of it is learned.
        let prompt = if whole.starts_with(&before) { before.len() } else { 0 };
        // The template writes the special tokens itself.
        self.encode(whole, prompt, false)
    }

    /// The tokens that ask for an answer to a chat.
    pub(crate) fn question(&self, messages: &[Message]) -> Result<Vec<u32>> {
        self.known(self.encode(self.render(messages, true)?, 0, false)?.tokens)
    }

    /// The tokens of a text to be continued.
    pub(crate) fn beginning(&self, text: &str) -> Result<Vec<u32>> {
        let mut tokens = self.encode(text.into(), 0, true)?.tokens;
        if tokens.last().is_some_and(|last| self.eos_ids.contains(last)) {
            tokens.pop();
        }
        self.known(tokens)
    }

    /// Tokens that the model has, too.
    fn known(&self, tokens: Vec<u32>) -> Result<Vec<u32>> {
        match tokens.iter().find(|t| **t as usize >= self.vocab_size) {
            Some(token) => {
                let last = self.vocab_size - 1;
                Err(self.wrong(format!("the text has token {token}, but the model's vocabulary ends at {last}")))
            }
            None => Ok(tokens),
        }
    }

    /// Whether the model has a chat template.
    pub(crate) fn has_template(&self) -> bool {
        self.inside.template.is_some()
    }

    /// Renders a chat as text by the model's template.
    pub(crate) fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let owned = messages.to_vec();
        let bytes = messages.iter().map(|m| m.role.len() + m.content.len() + m.rest.values().map(size).sum::<usize>());
        self.bounded(TEMPLATE, bytes.sum(), move |inside| match &inside.template {
            Some(Ok(template)) => template.render(&owned, add_generation_prompt, &inside.tokens),
            Some(Err(reason)) => Err(reason.clone()),
            None => Err("it has no chat template, which rows with `messages` need".into()),
        })
    }

    /// Text of tokens, with special ones left out.
    pub(crate) fn decode(&self, tokens: &[u32]) -> Result<String> {
        let tokens = tokens.to_vec();
        self.bounded(TOKENIZER, BYTES_OF_TOKEN * tokens.len(), move |inside| {
            tokenizer::decode(&inside.tokenizer, &tokens)
        })
    }

    /// Does work that asks for many texts at once, with this as its argument: in one thread instead of one for each text.
    pub(crate) fn at_once<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let text = self.clone();
        let done = bounded::run("a row", Bounds::NONE, move || work(&text));
        memory::hand_back_freed_memory();
        done.unwrap_or_else(|stopped| Err(self.wrong(stopped.to_string())))
    }
}

/// A file of settings. JSON takes up to 80 times its size in memory, so none is longer than those of real models.
fn config_of(file: &str, text: &str) -> Result<Value, String> {
    if text.len() > LARGEST_CONFIG {
        let (large, most) = (Bytes(text.len() as u64), Bytes(LARGEST_CONFIG as u64));
        return Err(format!("{file} is {large}, and at most {most} are allowed"));
    }
    serde_json::from_str(text).map_err(|e| format!("{file}: {e}"))
}

/// Parses a chat template within bounds on time and memory.
fn parsed(source: String) -> Result<Template, String> {
    let bounds = Bounds::of(source.len());
    bounded::run(TEMPLATE, bounds, move || Template::parse(source)).unwrap_or_else(|stopped| Err(stopped.to_string()))
}

/// About the bytes of a value as text.
fn size(value: &Value) -> usize {
    const OTHERS: usize = 8;
    match value {
        Value::String(text) => OTHERS + text.len(),
        Value::Array(list) => OTHERS + list.iter().map(size).sum::<usize>(),
        Value::Object(map) => OTHERS + map.iter().map(|(key, value)| key.len() + size(value)).sum::<usize>(),
        _ => OTHERS,
    }
}

/// The chat template: a file of its own, or a key of tokenizer_config.json (`config`).
pub(crate) fn chat_template(source: &ModelSource, config: &Value) -> Result<Option<String>> {
    Ok(source.chat_template_file()?.or_else(|| template_of(config)))
}

fn template_of(config: &Value) -> Option<String> {
    match &config["chat_template"] {
        Value::String(text) => Some(text.clone()),
        // Several named templates: the default one.
        Value::Array(list) => {
            let named = |t: &&Value| t["name"] == "default";
            list.iter().find(named).or(list.first()).and_then(|t| t["template"].as_str()).map(Into::into)
        }
        _ => None,
    }
}

/// A special token, such as `bos_token`, as tokenizer_config.json (`config`) names it.
pub(crate) fn special(config: &Value, key: &str) -> Option<String> {
    match &config[key] {
        Value::String(token) => Some(token.clone()),
        Value::Object(token) => token.get("content").and_then(Value::as_str).map(Into::into),
        _ => None,
    }
}

/// The numbers of the tokens that end a text, as generation_config.json has them, or else config.json.
fn ids_of_ends(source: &ModelSource) -> Result<Vec<u32>> {
    let of = |text: Option<String>| text.and_then(|text| config_of("", &text).ok()).map(|v| ids(&v["eos_token_id"]));
    let generation = of(source.generation_config()?).filter(|ids| !ids.is_empty());
    match (generation, source) {
        (Some(ids), _) => Ok(ids),
        (None, ModelSource::Gguf(_)) => Ok(Vec::new()),
        (None, _) => Ok(of(source.config().ok()).unwrap_or_default()),
    }
}

fn ids(value: &Value) -> Vec<u32> {
    match value {
        Value::Number(n) => n.as_u64().map(|n| n as u32).into_iter().collect(),
        Value::Array(list) => list.iter().flat_map(ids).collect(),
        _ => vec![],
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

#[cfg(test)]
mod bounds_tests;
