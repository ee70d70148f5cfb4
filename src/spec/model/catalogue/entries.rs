//! The entries of the catalogue, and which of them stand for a size.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::spec::model::architecture::{ModelSpec, ModelType};

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
    /// Architecture of the model.
    pub spec: ModelSpec,
}

#[derive(Deserialize)]
struct Raw {
    id: String,
    parameters: u64,
    released: String,
    source: String,
    /// Another entry whose config it shares but for what `config` says.
    #[serde(rename = "as")]
    sister: Option<String>,
    /// `model_type` of the vision-language model whose text part the config describes.
    part_of: Option<String>,
    #[serde(default)]
    config: Map<String, Value>,
}

static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let raw: Vec<Raw> =
        serde_json::from_str(include_str!("../catalogue.json")).expect("the embedded catalogue is JSON");
    let by_id: HashMap<&str, &Raw> = raw.iter().map(|r| (r.id.as_str(), r)).collect();
    let configs: Vec<Map<String, Value>> = raw.iter().map(|r| r.whole(&by_id)).collect();
    raw.into_iter()
        .zip(configs)
        .map(|(r, config)| Entry {
            spec: ModelSpec::from_map(&config)
                .unwrap_or_else(|e| panic!("the embedded config of {} is supported, as a test holds: {e}", r.id)),
            id: r.id,
            parameters: r.parameters,
            released: r.released,
            source: r.source,
        })
        .collect()
});

impl Raw {
    /// The config with that of the sister under it, and the wrapper around it.
    fn whole(&self, by_id: &HashMap<&str, &Self>) -> Map<String, Value> {
        let text = self.text(by_id);
        let Some(wrapper) = &self.part_of else { return text };
        Map::from_iter([("model_type".into(), wrapper.clone().into()), ("text_config".into(), text.into())])
    }

    fn text(&self, by_id: &HashMap<&str, &Self>) -> Map<String, Value> {
        let mut whole = match &self.sister {
            Some(id) => {
                by_id.get(id.as_str()).unwrap_or_else(|| panic!("{} is as {id}, as a test holds", self.id)).text(by_id)
            }
            None => Map::new(),
        };
        whole.extend(self.config.clone());
        whole
    }
}

/// Owners who make models from the ground up: what others made of these is known, and not offered unasked.
const MAKERS: [&str; 7] = ["Qwen", "meta-llama", "google", "mistralai", "microsoft", "HuggingFaceTB", "openai"];

/// Uses that a model without a given task should not be planned on, by what their names say.
const SPECIALISED: [&str; 22] = [
    "coder",
    "codellama",
    "starcoder",
    "math",
    "codestral",
    "devstral",
    "magistral",
    "reasoning",
    "thinking",
    "qwq",
    "guard",
    "shield",
    "safeguard",
    "medgemma",
    "functiongemma",
    "jpn",
    "-vl-",
    "small-3.1",
    "-1m",
    "preview",
    "distill",
    "zephyr",
];

/// Older models are known, but not offered unasked: every size has a better one since.
const OLDEST_OFFERED: &str = "2024-07";

/// Two models whose sizes differ by less than this factor are one size to a person.
pub(crate) const SAME_SIZE: f64 = 1.25;

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
        let of_others = !self.id.split_once('/').is_some_and(|(owner, _)| MAKERS.contains(&owner));
        of_others || SPECIALISED.iter().any(|word| name.contains(word))
    }

    /// Which of two models of one size to offer: the newer, then the one made to follow instructions, then the larger.
    fn preference(&self) -> impl Ord + use<> {
        (self.released.clone(), self.instruct(), self.parameters, Reverse(self.id.clone()))
    }

    fn same_size(&self, other: &Self) -> bool {
        (1.0 / SAME_SIZE..=SAME_SIZE).contains(&(other.parameters as f64 / self.parameters as f64))
    }

    /// `model_type` of the model, as its config.json has it.
    pub(crate) fn family(&self) -> &'static str {
        use ModelType::*;
        match (self.spec.model_type, self.spec.experts.is_some()) {
            (Llama, _) => "llama",
            (Mistral, _) => "mistral",
            (Qwen2, _) => "qwen2",
            (Qwen3, false) => "qwen3",
            (Qwen3, true) => "qwen3_moe",
            (Starcoder2, _) => "starcoder2",
            (Gpt2, _) => "gpt2",
            (Gemma2, _) => "gemma2",
            (Gemma3, _) => "gemma3_text",
            (Phi3, _) => "phi3",
            (GptOss, _) => "gpt_oss",
        }
    }

    /// Whether it is of a family: by its `model_type`, that of the whole it is a part of, or how its name begins.
    pub(crate) fn is_of(&self, family: &str) -> bool {
        let wanted = family.to_lowercase();
        self.family() == wanted
            || self.spec.part_of.as_ref() == Some(&wanted)
            || self.short_name().to_lowercase().starts_with(&wanted)
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

#[cfg(test)]
mod tests {
    use super::*;

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
