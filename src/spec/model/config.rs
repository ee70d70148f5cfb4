//! config.json with its spellings hidden: transformers 4 and 5, every family's own names and defaults.

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The longest config.json that is read, bytes. Real ones have a few thousand.
const LONGEST: usize = 1 << 20;

/// The largest sizes that are believed, by the name of their key: several times what any model has. They are held before
/// a size is used, so no table that is made of one and no product of a few of them grows beyond reason.
const LARGEST: [(&str, usize); 11] = [
    ("num_hidden_layers", 2048),
    ("hidden_size", 1 << 20),
    ("intermediate_size", 1 << 22),
    ("moe_intermediate_size", 1 << 22),
    ("num_attention_heads", 1 << 14),
    ("num_key_value_heads", 1 << 14),
    ("head_dim", 1 << 14),
    ("vocab_size", 1 << 24),
    ("max_position_embeddings", LARGEST_LENGTH),
    ("num_experts", 1 << 16),
    ("num_experts_per_tok", 1 << 16),
];

/// The longest sequence that a config.json may claim, tokens.
pub(super) const LARGEST_LENGTH: usize = 1 << 24;

/// The largest of every other whole number: a window may be written as large as "everything".
const LARGEST_OTHER: usize = 1 << 32;

/// A parsed config.json, read by the names of its keys.
pub(crate) struct Config<'a> {
    pub(super) model_type: &'a str,
    pub(super) map: &'a Map<String, Value>,
    /// The whole file, where `map` is its `text_config`: some keys are written only there.
    outer: &'a Map<String, Value>,
    /// `model_type` of the vision-language model whose text part this is.
    pub(super) wrapper: Option<&'a str>,
}

/// Vision-language models whose text part is a model that is known, and its family where the file has no name of its own
/// for it.
const WRAPPERS: [(&str, &str); 8] = [
    ("gemma3", "gemma3_text"),
    ("mistral3", "mistral"),
    ("llava", "llama"),
    ("idefics3", "llama"),
    ("smolvlm", "llama"),
    ("qwen2_vl", "qwen2"),
    ("qwen2_5_vl", "qwen2"),
    ("qwen3_vl", "qwen3"),
];

/// The text of a config.json as a table.
pub(super) fn parse(text: &str) -> Result<Map<String, Value>> {
    let bad = |message: String, line| Error::Parse { path: "config.json".into(), line, message, hint: None };
    if text.len() > LONGEST {
        return Err(bad(format!("has {} bytes, and at most {LONGEST} are allowed", text.len()), None));
    }
    match serde_json::from_str(text).map_err(|e| bad(e.to_string(), Some(e.line())))? {
        Value::Object(map) => Ok(map),
        _ => Err(bad("is not a JSON object".into(), None)),
    }
}

impl<'a> Config<'a> {
    /// Steps into `text_config` where a vision-language model has one: its text part is what is meant.
    pub(crate) fn new(outer: &'a Map<String, Value>) -> Result<Self> {
        let model_type = |m: &'a Map<String, Value>| match m.get("model_type") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(name)) => Ok(Some(name.as_str())),
            Some(other) => Err(Self::wrong("model_type", other, "a text")),
        };
        let wrapper = model_type(outer)?.filter(|name| WRAPPERS.iter().any(|(wrapper, _)| wrapper == name));
        let map = match (wrapper, outer.get("text_config")) {
            (Some(_), Some(Value::Object(inner))) => inner,
            (Some(_), Some(other)) => return Err(Self::wrong("text_config", other, "a table")),
            _ => outer,
        };
        let name = model_type(map)?.or(model_type(outer)?).ok_or_else(|| Error::Parse {
            path: "config.json".into(),
            line: None,
            message: "has no `model_type`".into(),
            hint: Some("this does not look like a Hugging Face model folder".into()),
        })?;
        // Some have no name for their text part, or one of its own for a family that has another.
        let family =
            WRAPPERS.iter().find(|(wrapper, _)| *wrapper == name || name.strip_suffix("_text") == Some(wrapper));
        Ok(Self { model_type: family.map_or(name, |(_, family)| family), map, outer, wrapper })
    }

    /// The first of the names that has a value, and its value.
    pub(super) fn find<'n>(&self, names: &[&'n str]) -> Option<(&'n str, &'a Value)> {
        let written = |map: &'a Map<String, Value>, name: &str| map.get(name).filter(|v| !v.is_null());
        names.iter().find_map(|n| written(self.map, n).or_else(|| written(self.outer, n)).map(|v| (*n, v)))
    }

    pub(super) fn get(&self, names: &[&str]) -> Option<&'a Value> {
        self.find(names).map(|(_, value)| value)
    }

    /// The value of the first of the names that has one, in the type that `read` makes of it; every other type is refused.
    pub(super) fn typed<T>(
        &self,
        names: &[&str],
        must: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        self.find(names).map(|(name, v)| read(v).ok_or_else(|| Self::wrong(name, v, must))).transpose()
    }

    pub(super) fn wrong(field: &str, value: &Value, must: impl Into<String>) -> Error {
        Error::invalid(format!("{field}` in `config.json"), shown(&value.to_string()), must)
    }

    /// A whole number by the first of its names that has a value, held to the largest that is believed.
    pub(super) fn usize_opt(&self, names: &[&str]) -> Result<Option<usize>> {
        let Some(n) = self.typed(names, "a whole number", Value::as_u64)? else { return Ok(None) };
        let largest = LARGEST.iter().find(|(key, _)| *key == names[0]).map_or(LARGEST_OTHER, |(_, largest)| *largest);
        match usize::try_from(n) {
            Ok(n) if n <= largest => Ok(Some(n)),
            _ => Err(Self::wrong(self.find(names).map_or(names[0], |f| f.0), &n.into(), format!("at most {largest}"))),
        }
    }

    pub(super) fn usize(&self, names: &[&str]) -> Result<usize> {
        self.usize_opt(names)?.ok_or_else(|| Error::Parse {
            path: "config.json".into(),
            line: None,
            message: format!("has no `{}`", names[0]),
            hint: None,
        })
    }

    /// A number that is divided by, or whose root or logarithm is taken.
    pub(super) fn positive(&self, names: &[&str]) -> Result<Option<f64>> {
        self.typed(names, "a number above 0", |v| v.as_f64().filter(|x| *x > 0.0))
    }

    pub(super) fn bool_or(&self, names: &[&str], default: bool) -> Result<bool> {
        Ok(self.typed(names, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    pub(super) fn str_opt(&self, names: &[&str]) -> Result<Option<&'a str>> {
        self.typed(names, "a text", Value::as_str)
    }
}

/// A text of the file for a message, cut where it is long.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}
