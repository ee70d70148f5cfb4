//! A tokenizer from `vocab.json` and `merges.txt`, where a folder has no tokenizer.json: byte-level BPE as the classes of
//! GPT-2 and Qwen2 build it in transformers. How text is cut into words is in neither file, so other classes are refused.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// How Qwen2's tokenizer cuts a text into words (transformers, `tokenization_qwen2.py`).
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Names under which tokenizer_config.json has the special tokens.
const SPECIAL: [&str; 7] = ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];

/// The files that make a tokenizer, as texts.
pub(super) struct Parts<'a> {
    pub(super) vocab: &'a str,
    pub(super) merges: &'a str,
    /// tokenizer_config.json, or an empty table.
    pub(super) config: &'a Value,
    /// added_tokens.json, or null.
    pub(super) added: &'a Value,
    /// `model_type` of the model, which tells the class where the configuration does not.
    pub(super) model_type: &'a str,
}

/// The text of a tokenizer.json, or why these files make none.
pub(super) fn tokenizer_json(parts: &Parts<'_>) -> Result<String, String> {
    let qwen2 = class(parts)?;
    let vocab: Map<String, Value> = serde_json::from_str(parts.vocab).map_err(|e| format!("vocab.json: {e}"))?;
    let merges = merges(parts.merges)?;
    let prefix = parts.config["add_prefix_space"] == true;
    let bytes = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": regex});
    let (normalizer, cut) = if qwen2 {
        let split = json!({"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": false});
        (json!({"type": "NFC"}), json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]}))
    } else {
        (Value::Null, bytes(true))
    };
    let added = added(parts, &vocab, qwen2);
    let whole = json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": cut,
        "post_processor": null,
        "decoder": bytes(true),
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    });
    Ok(whole.to_string())
}

/// Whether the class is Qwen2's; the other one that is known is GPT-2's.
fn class(parts: &Parts<'_>) -> Result<bool, String> {
    let named = parts.config["tokenizer_class"].as_str().map(|class| class.trim_end_matches("Fast"));
    match (named, parts.model_type) {
        (Some("Qwen2Tokenizer"), _) | (None, "qwen2" | "qwen3" | "qwen3_moe") => Ok(true),
        (Some("GPT2Tokenizer"), _) | (None, "gpt2") => Ok(false),
        (Some(other), _) => Err(format!("a tokenizer of class {other} cannot be made of vocab.json and merges.txt")),
        (None, other) => {
            Err(format!("no class is named for its vocab.json and merges.txt, and {other} has none of its own"))
        }
    }
}

/// A line is a merge: two tokens with a space between them. The first may tell the version.
fn merges<'a>(text: &'a str) -> Result<Vec<[&'a str; 2]>, String> {
    let version = |(i, line): &(usize, &str)| *i == 0 && line.starts_with("#version");
    let lines = text.lines().enumerate().filter(|numbered| !numbered.1.is_empty() && !version(numbered));
    let merge = |(i, line): (usize, &'a str)| match line.split_once(' ') {
        Some((a, b)) => Ok([a, b]),
        None => Err(format!("merges.txt: line {} is not two tokens", i + 1)),
    };
    lines.map(merge).collect()
}

/// Tokens beside those of the merges: listed with their numbers, or special ones that the vocabulary has.
fn added(parts: &Parts<'_>, vocab: &Map<String, Value>, qwen2: bool) -> Vec<Value> {
    let mut found: BTreeMap<u64, Value> = BTreeMap::new();
    let token = |id: u64, content: &str, given: &Value, special: bool| {
        let flag = |key: &str, default: bool| given[key].as_bool().unwrap_or(default);
        let special = flag("special", special);
        json!({
            "id": id, "content": content, "special": special, "single_word": flag("single_word", false),
            "lstrip": flag("lstrip", false), "rstrip": flag("rstrip", false), "normalized": flag("normalized", !special),
        })
    };
    let default = "<|endoftext|>";
    let content = |value: &Value| value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned);
    let mut special: Vec<String> = SPECIAL.iter().filter_map(|key| content(&parts.config[*key])).collect();
    special.extend(parts.config["additional_special_tokens"].as_array().into_iter().flatten().filter_map(content));
    if qwen2 || parts.config["eos_token"].is_null() {
        special.push(default.into());
    }
    for text in &special {
        if let Some(id) = vocab.get(text).or(parts.added.get(text)).and_then(Value::as_u64) {
            found.insert(id, token(id, text, &Value::Null, true));
        }
    }
    for (text, id) in parts.added.as_object().into_iter().flatten() {
        if let Some(id) = id.as_u64() {
            found.entry(id).or_insert_with(|| token(id, text, &Value::Null, false));
        }
    }
    for (id, given) in parts.config["added_tokens_decoder"].as_object().into_iter().flatten() {
        if let (Ok(id), Some(text)) = (id.parse(), given["content"].as_str()) {
            found.insert(id, token(id, text, given, false));
        }
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::source::ModelSource;
    use crate::checkpoint::text::Text;
    use crate::spec::model::ModelSpec;

    /// A folder of the fixtures with a model's description beside.
    fn folder(class: &str, model_type: &str) -> (tempfile::TempDir, ModelSource) {
        let from = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/byte_level").join(class);
        let folder = tempfile::tempdir().unwrap();
        for file in ["vocab.json", "merges.txt", "tokenizer_config.json", "tokens.json"] {
            std::fs::copy(from.join(file), folder.path().join(file)).unwrap();
        }
        let config = json!({"model_type": model_type, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 400, "max_position_embeddings": 64, "n_embd": 32, "n_layer": 1, "n_head": 2});
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let source = ModelSource::Folder(folder.path().into());
        (folder, source)
    }

    #[test]
    fn two_files_give_the_tokens_that_transformers_makes_of_them() {
        for (class, model_type) in [("gpt2", "gpt2"), ("qwen2", "qwen2")] {
            let (folder, source) = folder(class, model_type);
            let text = Text::open(&source, &source.spec().unwrap(), "m").unwrap();
            let rows: Vec<Value> =
                serde_json::from_str(&std::fs::read_to_string(folder.path().join("tokens.json")).unwrap()).unwrap();
            assert!(rows.len() > 10);
            for row in &rows {
                let mut expected: Vec<u32> =
                    row["tokens"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect();
                let written = row["text"].as_str().unwrap();
                // A row of text is closed with the end token.
                let end = *text.eos_ids.last().unwrap();
                expected.extend((expected.last() != Some(&end)).then_some(end));
                assert_eq!(text.plain(written).unwrap().tokens, expected, "{class}: {written:?}");
            }
            // The class may be known by the model alone.
            let config = folder.path().join("tokenizer_config.json");
            let without = std::fs::read_to_string(&config).unwrap().replace("tokenizer_class", "other");
            std::fs::write(&config, without).unwrap();
            let again = Text::open(&source, &source.spec().unwrap(), "m").unwrap();
            assert_eq!(again.plain("ducks can't").unwrap().tokens, text.plain("ducks can't").unwrap().tokens);
        }
    }

    #[test]
    fn what_two_files_do_not_tell_is_refused() {
        let (folder, source) = folder("gpt2", "llama");
        let refused = || {
            Text::open(&source, &ModelSpec::from_config(&source.config().unwrap()).unwrap(), "m")
                .err()
                .unwrap()
                .to_string()
        };
        let config = folder.path().join("tokenizer_config.json");
        std::fs::write(&config, r#"{"tokenizer_class":"CodeGenTokenizer"}"#).unwrap();
        assert!(refused().contains("class CodeGenTokenizer"), "{}", refused());
        std::fs::write(&config, "{}").unwrap();
        assert!(refused().contains("llama has none of its own"), "{}", refused());
        std::fs::write(&config, r#"{"tokenizer_class":"GPT2TokenizerFast"}"#).unwrap();
        std::fs::write(folder.path().join("merges.txt"), "#version: 0.2\na b\nab\n").unwrap();
        assert!(refused().contains("merges.txt: line 3 is not two tokens"), "{}", refused());
        std::fs::remove_file(folder.path().join("merges.txt")).unwrap();
        assert!(refused().contains("has no tokenizer.json"), "{}", refused());
    }
}
