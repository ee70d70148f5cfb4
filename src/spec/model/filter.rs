//! Which models of the catalogue are asked about: by family and by size.

use std::collections::BTreeSet;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::spec::model::catalogue::{Entry, all};

/// How far a model's size may be from the one size that is asked for, as a share of it.
const NEAR: f64 = 0.25;

/// Numbers of parameters, both ends included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sizes {
    least: f64,
    most: f64,
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = |part: &str| {
            parameters(part).ok_or_else(|| format!("`{text}` is not a size such as 8B, 3B..9B, 3B.. or ..9B"))
        };
        let Some((least, most)) = text.split_once("..") else {
            let size = parse(text)?;
            return Ok(Self { least: size * (1.0 - NEAR), most: size * (1.0 + NEAR) });
        };
        let sizes = match (least, most) {
            ("", most) => Self { least: 0.0, most: parse(most)? },
            (least, "") => Self { least: parse(least)?, most: f64::INFINITY },
            (least, most) => Self { least: parse(least)?, most: parse(most)? },
        };
        if sizes.least > sizes.most { Err("the first size must be at most the second".into()) } else { Ok(sizes) }
    }
}

/// A number of parameters in billions or millions, such as `1.5B` or `270M`.
fn parameters(text: &str) -> Option<f64> {
    let text = text.trim().to_ascii_uppercase();
    let (number, unit) = match text.strip_suffix('M') {
        Some(number) => (number, 1e6),
        None => (text.strip_suffix('B')?, 1e9),
    };
    let digits = number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    number.parse().ok().filter(|n| digits && *n > 0.0).map(|n: f64| n * unit)
}

/// The models that are asked about; of all families and sizes where none is given.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Filter<'a> {
    /// A `model_type`, or how the names begin.
    pub family: Option<&'a str>,
    /// How large the models are.
    pub sizes: Option<Sizes>,
}

impl Filter<'_> {
    /// The models that pass, smallest first.
    pub(crate) fn models(&self) -> Result<Vec<&'static Entry>> {
        let mut models = match self.family {
            Some(name) => in_family(name)?,
            None => all().iter().collect(),
        };
        let sizes = self.sizes.unwrap_or(Sizes { least: 0.0, most: f64::INFINITY });
        models.retain(|e| (sizes.least..=sizes.most).contains(&(e.parameters as f64)));
        models.sort_by_key(|e| e.parameters);
        Ok(models)
    }
}

/// The models of a `model_type`; or, where none has it, those whose names begin so, with or without the owner.
fn in_family(name: &str) -> Result<Vec<&'static Entry>> {
    let wanted = name.trim().to_lowercase();
    // The hub's files of the larger Gemma 3 say `gemma3`, those without a vision tower `gemma3_text`.
    let of_type = |e: &&Entry| e.spec.family().trim_end_matches("_text") == wanted.trim_end_matches("_text");
    let begins = |text: &str| text.to_lowercase().starts_with(&wanted);
    let named = |e: &&Entry| begins(&e.id) || begins(e.short_name());
    let mut found: Vec<&Entry> = all().iter().filter(of_type).collect();
    if found.is_empty() && !wanted.is_empty() {
        found = all().iter().filter(named).collect();
    }
    if found.is_empty() {
        let known: BTreeSet<&str> = all().iter().map(|e| e.spec.family()).collect();
        let known = known.into_iter().collect::<Vec<_>>().join(", ");
        let must = format!("one of {known}, or the beginning of a name, such as llama-3.2");
        return Err(Error::invalid("--family", format!("`{}`", name.trim()), must));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(text: &str) -> Sizes {
        text.parse().unwrap()
    }

    fn ids(family: Option<&str>, size: Option<&str>) -> Vec<&'static str> {
        let filter = Filter { family, sizes: size.map(sizes) };
        filter.models().unwrap().into_iter().map(|e| e.id.as_str()).collect()
    }

    #[test]
    fn sizes_are_ranges_or_near_one_size() {
        for (text, least, most) in [
            ("3B..9B", 3e9, 9e9),
            ("..1.5b", 0.0, 1.5e9),
            ("270M..", 270e6, f64::INFINITY),
            ("8B", 6e9, 10e9),
            ("500M..0.5B", 500e6, 500e6),
        ] {
            assert_eq!(sizes(text), Sizes { least, most }, "{text}");
        }
        for bad in ["", "..", "8", "8G", "9B..3B", "-3B", "0B", "infB", "nanB", "1e9B", "3B...9B", "3B..9B..", "B"] {
            assert!(bad.parse::<Sizes>().is_err(), "{bad}");
        }
    }

    #[test]
    fn families_are_types_or_beginnings_of_names() {
        let qwen3 = ids(Some("qwen3"), None);
        assert!(qwen3.contains(&"Qwen/Qwen3-8B") && qwen3.contains(&"Menlo/Jan-nano"));
        assert!(!qwen3.iter().any(|id| id.contains("A3B")));
        assert!(ids(Some("qwen3_moe"), None).iter().all(|id| id.contains("-A")));
        assert_eq!(
            ids(Some("Llama-3.2"), None),
            [
                "meta-llama/Llama-3.2-1B",
                "meta-llama/Llama-3.2-1B-Instruct",
                "meta-llama/Llama-3.2-3B",
                "meta-llama/Llama-3.2-3B-Instruct"
            ]
        );
        assert!(ids(Some("nousresearch/"), None).iter().all(|id| id.contains("ermes")));
        assert_eq!(ids(Some("gemma3"), None), ids(Some("gemma3_text"), None));
        assert!(ids(Some("gemma3"), None).contains(&"google/gemma-3-27b-it"));
        for unknown in ["qwen9", "", " "] {
            let said = Filter { family: Some(unknown), sizes: None }.models().unwrap_err().to_string();
            assert!(said.contains("gemma2, gemma3_text, gpt2") && said.contains("llama-3.2"), "{said}");
        }
    }

    #[test]
    fn family_and_size_go_together_and_the_smallest_is_first() {
        assert_eq!(ids(None, None).len(), all().len());
        assert_eq!(ids(Some("gpt2"), Some("..350M")), ["distilbert/distilgpt2", "openai-community/gpt2"]);
        assert!(ids(Some("gpt2"), Some("70B")).is_empty());
        let near = Filter { family: None, sizes: Some(sizes("8B")) }.models().unwrap();
        assert!(near.iter().all(|e| (6_000_000_000..=10_000_000_000).contains(&e.parameters)));
        assert!(near.is_sorted_by_key(|e| e.parameters) && near.len() > 60);
    }
}
