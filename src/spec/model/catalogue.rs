//! The models known by name, with their architectures compiled in, so that planning needs no download.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::spec::model::architecture::{ModelSpec, SUPPORTED};
use crate::spec::model::families::HYBRID;
use crate::spec::run::LONGEST_NAME;

/// A published model of the embedded catalogue.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Name of the model on the Hugging Face hub.
    pub id: String,
    /// Number of parameters, a tied head counted once.
    pub parameters: u64,
    /// Year and month of release, such as `2024-09`.
    pub released: String,
    /// Where the model's config.json is published.
    pub source: String,
    /// What the model is for, such as `code`; absent where it is for everything.
    pub(crate) purpose: Option<String>,
    /// Architecture of the model.
    pub spec: ModelSpec,
}

#[derive(Deserialize)]
struct Raw {
    id: String,
    parameters: u64,
    released: String,
    source: String,
    purpose: Option<String>,
    /// The model whose config this one shares, but for the keys that it gives itself.
    #[serde(rename = "as")]
    sister: Option<String>,
    #[serde(default)]
    config: Map<String, Value>,
}

impl Raw {
    /// The whole config; `whole` has those of the models that are no one's sister.
    fn config(&self, whole: &HashMap<&str, &Map<String, Value>>) -> Map<String, Value> {
        let Some(sister) = &self.sister else { return self.config.clone() };
        let mut config = whole.get(sister.as_str()).map(|c| (*c).clone()).unwrap_or_default();
        config.extend(self.config.clone());
        config
    }
}

static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let raw: Vec<Raw> = serde_json::from_str(include_str!("catalogue.json")).expect("the embedded catalogue is JSON");
    let whole = raw.iter().filter(|r| r.sister.is_none()).map(|r| (r.id.as_str(), &r.config)).collect();
    let spec = |r: &Raw| {
        ModelSpec::from_map(&r.config(&whole))
            .unwrap_or_else(|e| panic!("the embedded config of {} is supported, as a test holds: {e}", r.id))
    };
    let specs: Vec<ModelSpec> = raw.iter().map(spec).collect();
    let entry = |(r, spec): (Raw, ModelSpec)| Entry {
        id: r.id,
        parameters: r.parameters,
        released: r.released,
        source: r.source,
        purpose: r.purpose,
        spec,
    };
    raw.into_iter().zip(specs).map(entry).collect()
});

/// How alike two names must be to be offered for each other (Jaro-Winkler, 1 is equal).
const CLOSE: f64 = 0.6;

impl Entry {
    /// Name of the model without its owner: `Qwen3-8B` of `Qwen/Qwen3-8B`.
    pub(crate) fn short_name(&self) -> &str {
        self.id.rsplit('/').next().unwrap_or(&self.id)
    }
}

/// All models of the catalogue, in its order.
pub fn all() -> &'static [Entry] {
    &ENTRIES
}

/// The model of this name: the whole id, or its part after the owner where only one model has it; case is ignored.
pub fn find(name: &str) -> Result<&'static Entry> {
    let wanted = name.trim();
    let whole = all().iter().find(|e| e.id.eq_ignore_ascii_case(wanted));
    let mut by_suffix = all().iter().filter(|e| e.short_name().eq_ignore_ascii_case(wanted));
    match (whole, by_suffix.next(), by_suffix.next()) {
        (Some(entry), _, _) | (None, Some(entry), None) => Ok(entry),
        _ => Err(match refused(wanted) {
            Some(reason) => Error::UnknownArchitecture {
                model_type: name.into(),
                reason: Some(reason.into()),
                supported: SUPPORTED,
            },
            None => Error::UnknownModel { name: name.into(), close: close_names(wanted) },
        }),
    }
}

/// Endings that tell how a copy was converted, and nothing of its shape.
const CONVERSIONS: &[&str] = &[
    "-mxfp4",
    "-5bit",
    "-int8",
    "-int4",
    "-nvfp4",
    "-4bit",
    "-6bit",
    "-8bit",
    "-3bit",
    "-bf16",
    "-fp16",
    "-q8",
    "-q4",
    "-mlx",
    "-dwq",
    "-4bit-dwq",
    "-gptq",
    "-awq",
    "-hf",
];

/// Families whose layers are not all attention, by how their names begin, and what is said of them.
const HYBRIDS: [(&str, &str); 8] = [
    ("qwen3.5", HYBRID),
    ("qwen3.6", HYBRID),
    ("qwen3-next", HYBRID),
    ("lfm2", "it mixes convolutions with attention, and no model of them has been checked"),
    ("nvidia nemotron-3", HYBRID),
    ("nemotron-3", HYBRID),
    ("granite-4", HYBRID),
    ("falcon-h1", HYBRID),
];

/// Why a model of this name is refused although its family is known: `None` of any other name.
pub(crate) fn refused(name: &str) -> Option<&'static str> {
    let short = name.rsplit('/').next().unwrap_or(name).trim().to_lowercase();
    HYBRIDS.iter().find(|(begin, _)| short.starts_with(begin)).map(|(_, reason)| *reason)
}

/// The model that a converted or quantised copy was made of, such as `mlx-community/Qwen3-8B-4bit`; a base model and
/// its instruction-tuned sister have one shape.
pub(crate) fn find_copy(name: &str) -> Option<&'static Entry> {
    // What follows in brackets is a remark.
    let name = name.split([' ', '(']).next().unwrap_or(name);
    let mut short = name.rsplit('/').next().unwrap_or(name).to_lowercase();
    while let Some(cut) = CONVERSIONS.iter().find_map(|end| short.strip_suffix(end).map(str::to_owned)) {
        short = cut;
    }
    let same = |candidate: &str| {
        let ending = |e: &&Entry| e.short_name().trim_end_matches("-hf").eq_ignore_ascii_case(candidate);
        all().iter().find(ending)
    };
    let plain = short.replace("-text", "").trim_start_matches("meta-").to_owned();
    let sisters = |s: &str| [s.to_owned(), format!("{s}-instruct"), format!("{s}-it")];
    let base = plain.trim_end_matches("-instruct").trim_end_matches("-it").to_owned();
    [sisters(&short), sisters(&plain), sisters(&base)].iter().flatten().find_map(|candidate| same(candidate))
}

/// Up to three ids that look like `name`, likest first.
fn close_names(name: &str) -> Vec<String> {
    if name.len() > LONGEST_NAME {
        return Vec::new();
    }
    let wanted = name.to_lowercase();
    let mut scored: Vec<(f64, &Entry)> = all()
        .iter()
        .map(|e| {
            let whole = strsim::jaro_winkler(&wanted, &e.id.to_lowercase());
            let short = strsim::jaro_winkler(&wanted, &e.short_name().to_lowercase());
            (whole.max(short), e)
        })
        .filter(|(score, _)| *score > CLOSE)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.iter().take(3).map(|(_, e)| format!("`{}`", e.id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_found_by_id_or_by_a_unique_ending() {
        assert!(all().len() >= 200);
        for name in ["Qwen/Qwen2.5-1.5B-Instruct", "qwen/qwen2.5-1.5b-instruct", "Qwen2.5-1.5B-Instruct"] {
            assert_eq!(find(name).unwrap().id, "Qwen/Qwen2.5-1.5B-Instruct");
        }
        let Err(Error::UnknownModel { close, .. }) = find("Qwen/Qwen2.5-1.5B-Instuct") else {
            panic!("it is misspelt")
        };
        assert_eq!(close[0], "`Qwen/Qwen2.5-1.5B-Instruct`");
        assert!(matches!(find("xyzzy"), Err(Error::UnknownModel { close, .. }) if close.is_empty()));
        let long = format!("Qwen/Qwen2.5-1.5B-Instruct{}", "-1".repeat(100));
        assert!(matches!(find(&long), Err(Error::UnknownModel { close, .. }) if close.is_empty()));
    }

    #[test]
    fn copies_are_known_by_what_they_were_made_of() {
        let of = |name: &str| find_copy(name).map(|e| e.id.as_str());
        for (copy, base) in [
            ("mlx-community/Qwen3-8B-4bit", "Qwen/Qwen3-8B"),
            ("mlx-community/Llama-3.2-3B-4bit", "meta-llama/Llama-3.2-3B"),
            ("Qwen2.5-0.5B-4bit", "Qwen/Qwen2.5-0.5B"),
            ("meta-llama/Meta-Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
            ("alexgusevski/gemma-3-text-4b-it-q8-mlx", "google/gemma-3-4b-it"),
            ("mlx-community/gpt-oss-20b-MXFP4-Q8", "openai/gpt-oss-20b"),
            ("mlx-community/Qwen3-30B-A3B-4bit", "Qwen/Qwen3-30B-A3B"),
            ("Qwen3-4B (quantisation n/s)", "Qwen/Qwen3-4B"),
        ] {
            assert_eq!(of(copy), Some(base), "{copy}");
        }
        assert_eq!([of("google/gemma-3n-E4B"), of("HuggingFaceTB/SmolLM3-3B"), of("")], [None; 3]);
        let hybrid = find("mlx-community/Qwen3.5-9B-4bit").unwrap_err().to_string();
        assert!(hybrid.contains("hybrid"), "{hybrid}");
    }

    #[test]
    fn every_entry_says_what_it_is_and_where_it_was_published() {
        let purposes = ["code", "language", "mathematics", "medicine", "reasoning", "safety", "tools"];
        let mut names = std::collections::HashSet::new();
        for entry in all() {
            let id = &entry.id;
            assert!(names.insert(entry.short_name().to_lowercase()), "{id}: two models have its name");
            let (year, month) = entry.released.split_once('-').unwrap();
            assert!(
                (2019..=2030).contains(&year.parse().unwrap()) && (1..=12).contains(&month.parse().unwrap()),
                "{id}"
            );
            assert_eq!(entry.source, format!("https://huggingface.co/{id}/blob/main/config.json"));
            assert!(entry.purpose.as_deref().is_none_or(|p| purposes.contains(&p)), "{id}: {:?}", entry.purpose);
        }
    }
}
