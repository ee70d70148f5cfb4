//! Adapters whose layers differ in rank and alpha (PEFT's `rank_pattern` and `alpha_pattern`), made even.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde_json::{Map, Value};

use crate::checkpoint::adapter::description::About;
use crate::error::Result;

/// Characters that make a key of a pattern more than a path.
const REGEX: [char; 12] = ['*', '+', '?', '[', ']', '(', ')', '{', '}', '|', '^', '$'];

/// A, B and magnitude of each layer, by its path.
pub(super) type Parts = BTreeMap<String, [Option<Tensor>; 3]>;

/// What an adapter's description says of single layers.
pub(super) struct Patterns<'a> {
    rank: Option<&'a Map<String, Value>>,
    alpha: Option<&'a Map<String, Value>>,
}

impl<'a> Patterns<'a> {
    pub(super) fn of(config: &'a Value) -> Option<Self> {
        let table = |key: &str| config.get(key).and_then(Value::as_object).filter(|table| !table.is_empty());
        let found = Self { rank: table("rank_pattern"), alpha: table("alpha_pattern") };
        (found.rank.is_some() || found.alpha.is_some()).then_some(found)
    }

    /// Gives every layer the largest rank, by rows and columns of zeros, and works its factor into B, so that the factor is
    /// one for all. What cannot be understood is added to `refused`.
    pub(super) fn even(&self, about: About, parts: Parts, refused: &mut Vec<String>) -> Result<(About, Parts)> {
        let rank_of = |a: &Tensor| a.dim(0).unwrap_or(0);
        let largest = parts.values().filter_map(|[a, ..]| a.as_ref().map(rank_of)).max().unwrap_or(about.rank);
        let mut even = Parts::new();
        for (path, [a, b, magnitude]) in parts {
            let (Some(a), Some(b)) = (a, b) else {
                refused.push(format!("`{path}` has not both of its matrices"));
                continue;
            };
            let rank = rank_of(&a);
            let said = number(self.rank, "rank_pattern", &path, refused).unwrap_or(about.rank as f64);
            if rank as f64 != said {
                refused.push(format!("`{path}` has rank {rank}, and its description says {said}"));
            }
            let alpha = number(self.alpha, "alpha_pattern", &path, refused).unwrap_or(about.alpha);
            let factor = About { rank, alpha, ..about.clone() }.scale();
            let a = a.pad_with_zeros(0, 0, largest - rank)?;
            let b = (b * factor)?.pad_with_zeros(1, 0, largest - rank)?;
            even.insert(path, [Some(a), Some(b), magnitude]);
        }
        Ok((About { rank: largest, alpha: largest as f64, use_rslora: false, ..about }, even))
    }
}

/// The number that a table has for a layer: of the key that is the end of its path.
fn number(table: Option<&Map<String, Value>>, name: &str, path: &str, refused: &mut Vec<String>) -> Option<f64> {
    let mut refuse = |reason: String| {
        if !refused.contains(&reason) {
            refused.push(reason);
        }
    };
    let mut found = None;
    for (key, value) in table? {
        if key.contains(REGEX) || key.contains('\\') {
            refuse(format!("its `{name}` has the regular expression `{key}`; names of layers are supported"));
            continue;
        }
        let meant = path.strip_suffix(key.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        if !meant {
            continue;
        }
        match (value.as_f64(), found) {
            (None, _) => refuse(format!("its `{name}` has no number for `{key}`")),
            (Some(new), Some(old)) if new != old => refuse(format!("its `{name}` has two numbers for `{path}`")),
            (Some(new), _) => found = Some(new),
        }
    }
    found
}
