//! The entries of the catalogue, and which of them stand for a size.

use std::cmp::Reverse;
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::spec::model::architecture::ModelSpec;

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
    let raw: Vec<Raw> =
        serde_json::from_str(include_str!("../catalogue.json")).expect("the embedded catalogue is JSON");
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
