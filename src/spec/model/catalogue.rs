//! The models known by name, with their architectures compiled in, so that planning needs no download.

use std::cmp::Reverse;
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
    /// Where the model's config.json was read.
    pub source: String,
    /// Architecture of the model.
    pub spec: ModelSpec,
}

#[derive(Deserialize)]
struct Raw {
    id: String,
    parameters: u64,
    released: String,
    source: String,
    config: Map<String, Value>,
}

static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let raw: Vec<Raw> = serde_json::from_str(include_str!("catalogue.json")).expect("the embedded catalogue is JSON");
    raw.into_iter()
        .map(|r| Entry {
            spec: ModelSpec::from_map(&r.config)
                .unwrap_or_else(|e| panic!("the embedded config of {} is supported, as a test holds: {e}", r.id)),
            id: r.id,
            parameters: r.parameters,
            released: r.released,
            source: r.source,
        })
        .collect()
});

/// How alike two names must be to be offered for each other (Jaro-Winkler, 1 is equal).
const CLOSE: f64 = 0.6;

/// Uses that a model without a given task should not be planned on, by what their names say.
const SPECIALISED: [&str; 6] = ["coder", "codellama", "starcoder", "distill", "hermes", "zephyr"];

/// Older models are known, but not offered unasked: every size has a better one since.
const OLDEST_OFFERED: &str = "2024-07";

/// Two models whose sizes differ by less than this factor are one size to a person.
const SAME_SIZE: f64 = 1.25;

impl Entry {
    /// Name of the model without its owner: `Qwen3-8B` of `Qwen/Qwen3-8B`.
    pub(crate) fn short_name(&self) -> &str {
        self.id.rsplit('/').next().unwrap_or(&self.id)
    }

    /// Whether the model was made to follow instructions, as far as its name says.
    fn instruct(&self) -> bool {
        let name = self.id.to_lowercase();
        ["instruct", "-it", "chat"].iter().any(|word| name.contains(word))
    }

    fn specialised(&self) -> bool {
        let name = self.id.to_lowercase();
        SPECIALISED.iter().any(|word| name.contains(word))
    }

    /// Which of two models of one size to offer: the newer, then the one made to follow instructions, then the larger.
    fn preference(&self) -> impl Ord + use<> {
        (self.released.clone(), self.instruct(), self.parameters, Reverse(self.id.clone()))
    }

    fn same_size(&self, other: &Self) -> bool {
        (1.0 / SAME_SIZE..=SAME_SIZE).contains(&(other.parameters as f64 / self.parameters as f64))
    }
}

/// All models of the catalogue, in its order.
pub fn all() -> &'static [Entry] {
    &ENTRIES
}

/// One general model a size, largest first: the newest of each size.
pub(crate) fn representatives() -> Vec<&'static Entry> {
    let mut general: Vec<&Entry> = all()
        .iter()
        .filter(|e| e.spec.experts.is_none() && !e.specialised() && e.released.as_str() >= OLDEST_OFFERED)
        .collect();
    general.sort_by_key(|e| Reverse(e.preference()));
    let mut kept: Vec<&Entry> = Vec::new();
    for entry in general {
        if !kept.iter().any(|k| k.same_size(entry)) {
            kept.push(entry);
        }
    }
    kept.sort_by_key(|e| Reverse(e.parameters));
    kept
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
        assert!(all().len() > 70);
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
            ("Qwen2.5-0.5B-4bit", "Qwen/Qwen2.5-0.5B-Instruct"),
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
    fn one_general_model_stands_for_a_size() {
        let kept = representatives();
        for pair in kept.windows(2) {
            assert!(pair[0].parameters > pair[1].parameters, "{} {}", pair[0].id, pair[1].id);
        }
        let ids: Vec<&str> = kept.iter().map(|e| e.id.as_str()).collect();
        insta::assert_debug_snapshot!(ids);
    }
}
