//! From text to tokens: the model's own tokenizer and chat template.

use minijinja::value::Serde;
use minijinja::{Environment, Error as TemplateError, ErrorKind, context};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokenizers::Tokenizer;

use super::source::ModelSource;
use crate::error::{Error, Result};
use crate::spec::model::ModelSpec;

/// One turn of a chat. Keys beyond role and content (tool calls, names) are handed to the template as they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, ...
    pub role: String,
    /// What is said.
    #[serde(default)]
    pub content: String,
    /// Anything else of the row.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, Value>,
}

/// A tokenizer with its chat template.
pub struct Text {
    tokenizer: Tokenizer,
    template: Option<String>,
    bos: Option<String>,
    eos: Option<String>,
    /// Tokens at which generation ends.
    pub eos_ids: Vec<u32>,
    name: String,
}

/// Tokens of a row, and how many of them are prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// All of it.
    pub tokens: Vec<u32>,
    /// Tokens that lie wholly in the prompt.
    pub prompt: usize,
}

impl Text {
    /// Opens the tokenizer of a model and holds it to the model's vocabulary.
    pub fn open(source: &ModelSource, spec: &ModelSpec, name: &str) -> Result<Self> {
        let wrong = |reason: String| Error::Tokenizer { model: name.into(), reason };
        let tokenizer = Tokenizer::from_bytes(source.tokenizer()?.as_bytes()).map_err(|e| wrong(e.to_string()))?;
        let largest = tokenizer.get_vocab(true).values().copied().max().unwrap_or(0) as usize;
        if largest >= spec.vocab_size {
            return Err(wrong(format!(
                "its largest token is {largest}, but the model's vocabulary ends at {}: they do not belong together",
                spec.vocab_size - 1
            )));
        }
        let config: Value = match source.tokenizer_config()? {
            Some(text) => serde_json::from_str(&text).map_err(|e| wrong(format!("tokenizer_config.json: {e}")))?,
            None => Value::Null,
        };
        let generation: Value = match source.generation_config()? {
            Some(text) => serde_json::from_str(&text).unwrap_or(Value::Null),
            None => Value::Null,
        };
        let template = chat_template(source, &config)?;
        let eos = special(&config, "eos_token");
        let mut eos_ids = ids(&generation["eos_token_id"]);
        eos_ids.extend(eos.as_deref().and_then(|t| tokenizer.token_to_id(t)));
        eos_ids.sort_unstable();
        eos_ids.dedup();
        Ok(Self { tokenizer, template, bos: special(&config, "bos_token"), eos, eos_ids, name: name.into() })
    }

    fn wrong(&self, reason: impl ToString) -> Error {
        Error::Tokenizer { model: self.name.clone(), reason: reason.to_string() }
    }

    /// Tokens of a text; `special` adds what the tokenizer puts around a text (such as a first BOS).
    fn encode(&self, text: &str, prompt_bytes: usize, special: bool) -> Result<Encoded> {
        let encoding = self.tokenizer.encode(text, special).map_err(|e| self.wrong(e))?;
        // A token that straddles the end of the prompt is learned: it holds the completion's first letters.
        let prompt = encoding.get_offsets().iter().take_while(|(_, end)| *end <= prompt_bytes).count();
        Ok(Encoded { tokens: encoding.get_ids().to_vec(), prompt: if prompt_bytes == 0 { 0 } else { prompt } })
    }

    fn ended(&self, mut encoded: Encoded) -> Encoded {
        let eos = self.eos.as_deref().and_then(|t| self.tokenizer.token_to_id(t));
        if let Some(eos) = eos.filter(|eos| encoded.tokens.last() != Some(eos)) {
            encoded.tokens.push(eos);
        }
        encoded
    }

    /// A plain text, closed with the end token.
    pub fn plain(&self, text: &str) -> Result<Encoded> {
        Ok(self.ended(self.encode(text, 0, true)?))
    }

    /// A prompt and its completion, one after the other, closed with the end token.
    pub fn completion(&self, prompt: &str, completion: &str) -> Result<Encoded> {
        Ok(self.ended(self.encode(&format!("{prompt}{completion}"), prompt.len(), true)?))
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
        self.encode(&whole, prompt, false)
    }

    /// The tokens that ask for an answer to a chat.
    pub fn question(&self, messages: &[Message]) -> Result<Vec<u32>> {
        Ok(self.encode(&self.render(messages, true)?, 0, false)?.tokens)
    }

    /// Whether the model has a chat template.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// The chat as text.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let Some(template) = &self.template else {
            return Err(self.wrong("it has no chat template, which rows with `messages` need"));
        };
        let mut env = Environment::new();
        // As transformers renders: block lines vanish, and Python's string methods work.
        let syntax = minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(|e| self.wrong(e))?);
        env.set_unknown_method_callback(python_methods);
        env.add_function("raise_exception", |message: String| -> Result<String, TemplateError> {
            Err(TemplateError::new(ErrorKind::InvalidOperation, message))
        });
        let value = env.render_str(
            template,
            context! { messages => Serde(messages), add_generation_prompt, bos_token => self.bos.as_deref(), eos_token => self.eos.as_deref() },
        );
        value.map_err(|e| self.wrong(format!("the chat template fails: {e}")))
    }

    /// Text of tokens, special ones left out.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.tokenizer.decode(tokens, true).map_err(|e| self.wrong(e))
    }
}

/// The string methods of Python that chat templates use.
fn python_methods(
    _: &mut minijinja::State<'_, '_>,
    value: &minijinja::Value,
    method: &str,
    args: &[minijinja::Value],
) -> Result<minijinja::Value, TemplateError> {
    let unknown = || TemplateError::new(ErrorKind::UnknownMethod, format!("no method `{method}`"));
    if let (Ok(entries), "items") = (value.try_iter(), method) {
        let pairs = entries.map(|k| minijinja::Value::from(vec![k.clone(), value.get_item(&k).unwrap_or_default()]));
        return Ok(pairs.collect::<Vec<_>>().into());
    }
    if method == "get" {
        let key = args.first().ok_or_else(unknown)?;
        let found = value.get_item(key)?;
        return Ok(if found.is_undefined() { args.get(1).cloned().unwrap_or_default() } else { found });
    }
    let text = value.as_str().ok_or_else(unknown)?;
    let arg = |i: usize| args.get(i).and_then(|a| a.as_str());
    let stripped = |c: char| arg(0).map_or(c.is_whitespace(), |set| set.contains(c));
    Ok(match (method, arg(0)) {
        ("strip", _) => text.trim_matches(stripped).into(),
        ("lstrip", _) => text.trim_start_matches(stripped).into(),
        ("rstrip", _) => text.trim_end_matches(stripped).into(),
        ("upper", _) => text.to_uppercase().into(),
        ("lower", _) => text.to_lowercase().into(),
        ("title" | "capitalize", _) => {
            let mut chars = text.chars();
            chars.next().map(|c| c.to_uppercase().chain(chars).collect::<String>()).unwrap_or_default().into()
        }
        ("startswith", Some(prefix)) => text.starts_with(prefix).into(),
        ("endswith", Some(suffix)) => text.ends_with(suffix).into(),
        ("split", Some(separator)) => text.split(separator).map(minijinja::Value::from).collect::<Vec<_>>().into(),
        ("split", None) => text.split_whitespace().map(minijinja::Value::from).collect::<Vec<_>>().into(),
        ("replace", Some(from)) => text.replace(from, arg(1).ok_or_else(unknown)?).into(),
        _ => return Err(unknown()),
    })
}

/// The chat template: a file of its own, or a key of tokenizer_config.json (`config`).
pub fn chat_template(source: &ModelSource, config: &Value) -> Result<Option<String>> {
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
pub fn special(config: &Value, key: &str) -> Option<String> {
    match &config[key] {
        Value::String(token) => Some(token.clone()),
        Value::Object(token) => token.get("content").and_then(Value::as_str).map(Into::into),
        _ => None,
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
mod tests {
    use super::*;
    use std::path::Path;

    /// Every row of the fixture as transformers rendered and tokenised it; `make.py` beside it made the file.
    #[test]
    fn rows_equal_transformers() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf_folder");
        let source = ModelSource::Folder(folder.clone());
        let spec = source.spec().unwrap();
        let text = Text::open(&source, &spec, "fixture").unwrap();
        let rows: Vec<Value> = crate::store::read_text(&folder.join("train.jsonl"))
            .unwrap()
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        let expected: Value = crate::store::load_json(&folder.join("rendered.json")).unwrap();
        let of = |kind: &str| expected[kind].as_array().unwrap().clone();
        for case in of("messages") {
            let row = &rows[case["row"].as_u64().unwrap() as usize];
            let messages: Vec<Message> = serde_json::from_value(row["messages"].clone()).unwrap();
            assert_eq!(text.render(&messages, false).unwrap(), case["text"].as_str().unwrap());
            assert_eq!(text.chat(&messages).unwrap().tokens, ids(&case["ids"]), "row {}", case["row"]);
        }
        for case in of("prompt_completion") {
            let row = &rows[case["row"].as_u64().unwrap() as usize];
            let (prompt, completion) = (row["prompt"].as_str().unwrap(), row["completion"].as_str().unwrap());
            let encoded = text.completion(prompt, completion).unwrap();
            let mut tokens = ids(&case["ids"]);
            tokens.extend(text.eos.as_deref().and_then(|t| text.tokenizer.token_to_id(t)));
            assert_eq!(encoded.tokens, tokens, "row {}", case["row"]);
            let straddling = case["straddling_token"].as_u64().map(|n| n as usize);
            assert_eq!(encoded.prompt, straddling.unwrap_or(case["prefix_tokens"].as_u64().unwrap() as usize));
        }
        for case in of("text") {
            let row = &rows[case["row"].as_u64().unwrap() as usize];
            let encoded = text.plain(row["text"].as_str().unwrap()).unwrap();
            assert_eq!(encoded.tokens[..encoded.tokens.len() - 1], ids(&case["ids"]), "row {}", case["row"]);
        }
    }
}
