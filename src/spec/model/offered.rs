//! The models that are planned with where none is named: one a size.

use std::cmp::Reverse;

use crate::spec::model::catalogue::{Entry, all};

/// Makers of the models that are offered unasked. Fine-tunes by others, and models that few tools carry, are known but
/// not offered.
const MAKERS: [&str; 6] = ["HuggingFaceTB", "Qwen", "google", "meta-llama", "microsoft", "mistralai"];

/// Older models are known, but not offered unasked: every size has a better one since.
const OLDEST: &str = "2024-07";

/// Two models whose sizes differ by less than this factor are one size to a person.
const SAME_SIZE: f64 = 1.25;

impl Entry {
    /// Whether the model may be planned with where none is named. A mixture of experts needs mlx-lm.
    fn offered(&self) -> bool {
        let maker = self.id.split('/').next().unwrap_or_default();
        MAKERS.contains(&maker)
            && self.purpose.is_none()
            && self.spec.experts.is_none()
            && self.released.as_str() >= OLDEST
    }

    /// Whether the model was made to follow instructions, as far as its name says.
    fn instruct(&self) -> bool {
        let name = self.id.to_lowercase();
        ["instruct", "-it", "chat"].iter().any(|word| name.contains(word))
    }

    /// Whether the model was made to be trained further, as far as its name says.
    fn base(&self) -> bool {
        let name = self.id.to_lowercase();
        ["-base", "-pt"].iter().any(|end| name.ends_with(end))
    }

    /// Which of two models of one size to offer: the newer, then the one made to follow instructions, then the larger.
    fn preference(&self) -> impl Ord + use<> {
        (self.released.clone(), self.instruct(), !self.base(), self.parameters, Reverse(self.id.clone()))
    }

    fn same_size(&self, other: &Self) -> bool {
        (1.0 / SAME_SIZE..=SAME_SIZE).contains(&(other.parameters as f64 / self.parameters as f64))
    }
}

/// One general model a size, largest first: the newest of each size.
pub(crate) fn representatives() -> Vec<&'static Entry> {
    let mut general: Vec<&Entry> = all().iter().filter(|e| e.offered()).collect();
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
