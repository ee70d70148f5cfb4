//! The tokenizer as llama.cpp keeps it: tokens with their kinds, merges or scores, and the name of how text is cut
//! into words.
//!
//! llama.cpp does not read the cutting pattern, it knows a list of them by name. A tokenizer that cuts otherwise
//! would give other tokens there than the model learned, so it is refused.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value as Stored;
use serde_json::Value as Json;

use crate::checkpoint::source::ModelSource;
use crate::checkpoint::text::{chat_template, special};
use crate::error::Error;
use crate::export::gguf::file::{Metadata, Value};
use crate::spec::model::ModelSpec;

/// Token of the plain vocabulary; this and the next are llama.cpp's numbers for kinds of tokens.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

const CONTRACTIONS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+";
const REST: &str = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const CASED: &str = "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+SUFFIX|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*SUFFIX";
const CASED_REST: &str = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
/// The mark for a space in SentencePiece's vocabularies.
const SPACE: char = '\u{2581}';

/// The tokenizer's metadata, and a note where there is none; or why llama.cpp cannot have it.
pub(crate) fn describe(source: &ModelSource, spec: &ModelSpec) -> Result<(Metadata, Option<String>), String> {
    if let Some(file) = source.gguf_without("tokenizer.json").map_err(|e| e.to_string())? {
        // llama.cpp's own words for it are there.
        return Ok((file.tokenizer_metadata().into_iter().map(carried).collect::<Result<_, _>>()?, None));
    }
    let text = match source.tokenizer() {
        Ok(text) => text,
        Err(Error::NoTokenizer { model_file: false, .. }) => {
            let note = "the model has no tokenizer: the file takes token numbers only";
            return Ok((vec![key("model", "none".into())], Some(note.into())));
        }
        Err(_) => {
            return Err("its tokenizer is a tokenizer.model without a tokenizer.json; transformers' `AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)` writes one".into());
        }
    };
    let parse = |text: &str, file: &str| serde_json::from_str::<Json>(text).map_err(|e| format!("{file}: {e}"));
    let json = parse(&text, "tokenizer.json")?;
    let config = source.tokenizer_config().map_err(|e| e.to_string())?;
    let config = config.map_or(Ok(Json::Null), |text| parse(&text, "tokenizer_config.json"))?;
    let model = match source {
        ModelSource::Gguf(_) if !source.has("config.json") => Json::Null,
        _ => parse(&source.config().map_err(|e| e.to_string())?, "config.json")?,
    };

    let vocabulary = Vocabulary::read(&json, spec.vocab_size)?;
    let sentencepiece = json["model"]["byte_fallback"] == true;
    if json["model"]["type"].as_str().is_some_and(|kind| kind != "BPE") {
        return Err(format!("its tokenizer is a {} model, and BPE is supported", json["model"]["type"]));
    }
    let mut out = vec![key("model", if sentencepiece { "llama" } else { "gpt2" }.into())];
    out.push(key("pre", if sentencepiece { "default" } else { cutting(&json, &config)? }.into()));
    out.push(key("tokens", Value::Strings(vocabulary.texts(sentencepiece))));
    out.push(key("token_type", Value::I32s(vocabulary.kinds(sentencepiece))));
    let merges = merges(&json);
    if sentencepiece {
        out.push(key("scores", Value::F32s(vocabulary.scores(&merges))));
        out.push(key("add_space_prefix", Value::Bool(prefixed(&json))));
    } else {
        // Spaces inside a merge would end it.
        let escaped =
            merges.iter().map(|(a, b)| format!("{} {}", a.replace(' ', "\u{120}"), b.replace(' ', "\u{120}")));
        out.push(key("merges", Value::Strings(escaped.collect())));
    }
    let ids = [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")];
    for (ours, theirs) in ids {
        let named = special(&config, &format!("{ours}_token")).and_then(|t| vocabulary.id(&t));
        let first = |v: &Json| v.as_u64().or_else(|| v.get(0)?.as_u64()).map(|n| n as u32);
        let id =
            named.or_else(|| first(&model[format!("{ours}_token_id")]).filter(|id| (*id as usize) < spec.vocab_size));
        out.extend(id.map(|id| key(&format!("{theirs}_token_id"), Value::U32(id))));
    }
    let (bos, eos) = around(&json["post_processor"]);
    out.push(key("add_bos_token", Value::Bool(bos)));
    out.push(key("add_eos_token", Value::Bool(eos)));
    let template = chat_template(source, &config).map_err(|e| e.to_string())?;
    out.extend(template.map(|t| ("tokenizer.chat_template".to_owned(), Value::String(t))));
    let composes = !sentencepiece && !json["normalizer"].is_null();
    let note = "llama.cpp does not compose characters: letters whose accents are written apart become other tokens than the model learned";
    Ok((out, composes.then(|| note.to_owned())))
}

/// A value of another file's metadata.
fn carried((key, value): (&str, &Stored)) -> Result<(String, Value), String> {
    let unknown = || format!("its metadata have a value at `{key}` that is not carried over");
    let number = |value: &Stored| match value {
        Stored::U8(n) => Some(u32::from(*n)),
        Stored::U16(n) => Some(u32::from(*n)),
        Stored::U32(n) => Some(*n),
        Stored::U64(n) => u32::try_from(*n).ok(),
        Stored::I32(n) => u32::try_from(*n).ok(),
        Stored::I64(n) => u32::try_from(*n).ok(),
        _ => None,
    };
    fn all<T>(list: &[Stored], of: impl Fn(&Stored) -> Option<T>) -> Option<Vec<T>> {
        list.iter().map(of).collect()
    }
    let made = match value {
        Stored::String(text) => Some(Value::String(text.clone())),
        Stored::Bool(flag) => Some(Value::Bool(*flag)),
        Stored::F32(x) => Some(Value::F32(*x)),
        Stored::Array(list) => match list.first() {
            Some(Stored::F32(_)) => all(list, |v| v.to_f32().ok()).map(Value::F32s),
            Some(Stored::I32(_)) => all(list, |v| v.to_i32().ok()).map(Value::I32s),
            Some(Stored::Bool(_)) => all(list, |v| v.to_bool().ok()).map(Value::Bools),
            _ => all(list, |v| v.to_string().ok().cloned()).map(Value::Strings),
        },
        other => number(other).map(Value::U32),
    };
    Ok((key.to_owned(), made.ok_or_else(unknown)?))
}

fn key(name: &str, value: Value) -> (String, Value) {
    (format!("tokenizer.ggml.{name}"), value)
}

/// Words of the tokens by their number, and which of them were added.
struct Vocabulary {
    words: Vec<Option<String>>,
    added: HashMap<usize, (String, bool)>,
    unknown: Option<String>,
}

impl Vocabulary {
    fn read(json: &Json, rows: usize) -> Result<Self, String> {
        let mut words = vec![None; rows];
        let vocabulary =
            json["model"]["vocab"].as_object().ok_or("its tokenizer.json has no `model.vocab` of words")?;
        for (word, id) in vocabulary {
            let id = id.as_u64().ok_or_else(|| format!("its token `{word}` has no number"))? as usize;
            // The model has no row for what is beyond its vocabulary (Gemma 3's image token): it is left out.
            if let Some(place) = words.get_mut(id) {
                *place = Some(word.clone());
            }
        }
        let mut added = HashMap::new();
        for token in json["added_tokens"].as_array().into_iter().flatten() {
            let (Some(id), Some(text)) = (token["id"].as_u64(), token["content"].as_str()) else { continue };
            let Some(place) = words.get_mut(id as usize) else { continue };
            *place = Some(text.into());
            added.insert(id as usize, (text.to_owned(), token["special"] == true || looks_special(text)));
        }
        Ok(Self { words, added, unknown: json["model"]["unk_token"].as_str().map(Into::into) })
    }

    fn id(&self, word: &str) -> Option<u32> {
        self.words.iter().position(|w| w.as_deref() == Some(word)).map(|i| i as u32)
    }

    fn texts(&self, sentencepiece: bool) -> Vec<String> {
        let text = |(i, word): (usize, &Option<String>)| match word {
            None => format!("[PAD{i}]"),
            // What users defined is matched before spaces are marked.
            Some(word) if sentencepiece && self.added.get(&i).is_some_and(|(_, special)| !special) => {
                word.replace(SPACE, " ")
            }
            Some(word) => word.clone(),
        };
        self.words.iter().enumerate().map(text).collect()
    }

    fn kinds(&self, sentencepiece: bool) -> Vec<i32> {
        let kind = |(i, word): (usize, &Option<String>)| match (word, self.added.get(&i)) {
            (None, _) => UNUSED,
            (Some(word), _) if sentencepiece && byte(word) => BYTE,
            (Some(word), _) if sentencepiece && self.unknown.as_ref() == Some(word) => UNKNOWN,
            (Some(_), Some((_, true))) => CONTROL,
            (Some(_), Some((_, false))) => USER_DEFINED,
            (Some(_), None) => NORMAL,
        };
        self.words.iter().enumerate().map(kind).collect()
    }

    /// SentencePiece joins the pair with the highest score first; the merges stand in that order.
    fn scores(&self, merges: &[(&str, &str)]) -> Vec<f32> {
        let mut ranks: HashMap<String, usize> = HashMap::new();
        for (rank, (a, b)) in merges.iter().enumerate() {
            ranks.entry(format!("{a}{b}")).or_insert(rank);
        }
        let score = |(i, word): (usize, &Option<String>)| match word {
            Some(_) if self.added.contains_key(&i) => -1000.0,
            Some(word) => -(ranks.get(word).copied().unwrap_or(merges.len()) as f32),
            None => -1000.0,
        };
        self.words.iter().enumerate().map(score).collect()
    }
}

/// Whether a word stands for a byte, such as `<0x0A>`.
fn byte(word: &str) -> bool {
    let digits = word.strip_prefix("<0x").and_then(|w| w.strip_suffix('>'));
    digits.is_some_and(|d| d.len() == 2 && d.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Tokens that are marks by their look, though some files do not say so (llama.cpp's own list).
fn looks_special(word: &str) -> bool {
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&word)
        || [("<|", "|>"), ("<\u{ff5c}", "\u{ff5c}>"), ("<unused", ">")]
            .iter()
            .any(|(start, end)| word.starts_with(start) && word.ends_with(end))
}

/// Pairs that are joined, in their order; older files write a pair as one text.
fn merges(json: &Json) -> Vec<(&str, &str)> {
    let all = json["model"]["merges"].as_array().into_iter().flatten();
    all.filter_map(|merge| match merge {
        Json::String(text) => text.split_once(' '),
        pair => Some((pair.get(0)?.as_str()?, pair.get(1)?.as_str()?)),
    })
    .collect()
}

/// llama.cpp's name for how a byte-level tokenizer cuts text into words.
fn cutting(json: &Json, config: &Json) -> Result<&'static str, String> {
    let normalizer = json["normalizer"]["type"].as_str();
    if normalizer.is_some_and(|n| n != "NFC") {
        return Err(format!("its tokenizer rewrites text first ({}), which llama.cpp does not", json["normalizer"]));
    }
    let before = &json["pre_tokenizer"];
    let steps: Vec<&Json> = match before["pretokenizers"].as_array() {
        Some(all) => all.iter().collect(),
        None => vec![before],
    };
    let whole = json["model"]["ignore_merges"] == true;
    let byte_level = |step: &Json, regex: bool| {
        step["type"] == "ByteLevel" && step["add_prefix_space"] != true && (step["use_regex"] != false) == regex
    };
    let found = match steps[..] {
        [last] if byte_level(last, true) && !whole => Some("gpt-2"),
        [digits, last]
            if digits["type"] == "Digits"
                && digits["individual_digits"] == true
                && byte_level(last, true)
                && !whole =>
        {
            // The two differ in whether text is tidied when it is put together again.
            Some(if config["clean_up_tokenization_spaces"] == false { "smollm" } else { "starcoder" })
        }
        [split, last] if split["type"] == "Split" && byte_level(last, false) => {
            split["pattern"]["Regex"].as_str().and_then(|pattern| pattern_name(pattern, whole))
        }
        _ => None,
    };
    found.ok_or_else(|| format!("its tokenizer cuts text in a way that llama.cpp has no name for here: {before}"))
}

/// By the pattern, and by whether a word that is a token is taken whole whatever the merges say.
fn pattern_name(pattern: &str, whole: bool) -> Option<&'static str> {
    let cased = |suffix: &str, digits: &str| format!("{}|{digits}{CASED_REST}", CASED.replace("SUFFIX", suffix));
    let known = [
        (format!("{CONTRACTIONS}|\\p{{N}}{REST}"), false, "qwen2"),
        (format!("{CONTRACTIONS}|\\p{{N}}{{1,3}}{REST}"), true, "llama-bpe"),
        (format!("{CONTRACTIONS}|\\p{{N}}{{1,3}}{REST}"), false, "smaug-bpe"),
        (cased("", "\\p{N}"), true, "tekken"),
        (cased("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "\\p{N}{1,3}"), false, "gpt-4o"),
    ];
    known.into_iter().find(|(p, w, _)| p == pattern && *w == whole).map(|(_, _, name)| name)
}

/// Whether a space is put before the text.
fn prefixed(json: &Json) -> bool {
    let parts = |v: &Json, list: &str| v[list].as_array().cloned().unwrap_or_else(|| vec![v.clone()]);
    let normalizers = parts(&json["normalizer"], "normalizers");
    let metaspace = parts(&json["pre_tokenizer"], "pretokenizers");
    normalizers.iter().any(|n| n["type"] == "Prepend")
        || metaspace
            .iter()
            .any(|p| p["type"] == "Metaspace" && p["prepend_scheme"] != "never" && p["add_prefix_space"] != false)
}

/// Whether a mark is put before a text, and after it.
fn around(processor: &Json) -> (bool, bool) {
    if let Some(all) = processor["processors"].as_array() {
        return all.iter().map(around).fold((false, false), |a, b| (a.0 || b.0, a.1 || b.1));
    }
    let template = processor["single"].as_array().map_or(&[][..], Vec::as_slice);
    let mark = |part: Option<&Json>| part.is_some_and(|p| p.get("SpecialToken").is_some());
    (mark(template.first()), mark(template.last()))
}
