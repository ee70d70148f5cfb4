//! Runs on real Macs that somebody published: one row of `results/field/runs.csv` a run.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Text of the embedded table of published runs.
pub(crate) const BUNDLED: &str = include_str!("../../results/field/runs.csv");

/// One published run, as its row says it. Nothing is filled in: an empty cell is `None`, or an empty text.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)] // the columns, which results/field/README.md explains
pub(crate) struct FieldRun {
    pub id: String,
    pub source_url: String,
    pub date: String,
    pub framework: String,
    pub framework_version: String,
    pub chip: String,
    pub gpu_cores: Option<usize>,
    pub ram_gb: Option<f64>,
    pub model: String,
    pub quant_bits: Option<f64>,
    pub quant_group: Option<f64>,
    pub dtype: String,
    pub fine_tune_type: String,
    pub lora_rank: Option<usize>,
    pub lora_layers: Option<usize>,
    pub lora_targets: String,
    pub lora_dropout: Option<f64>,
    pub batch_size: Option<usize>,
    pub grad_accum: Option<usize>,
    pub max_seq_len: Option<usize>,
    /// Loss tokens of an iteration, despite its name: what mlx-lm prints.
    pub avg_tokens_per_example_or_iter: Option<f64>,
    pub grad_checkpoint: Option<bool>,
    pub mask_prompt: Option<bool>,
    pub it_per_s: Option<f64>,
    pub tokens_per_s: Option<f64>,
    /// Printed peak memory, in units of 1e9 bytes.
    pub peak_mem_gb: Option<f64>,
    pub outcome: Ending,
    pub confidence: String,
    pub notes: String,
}

/// How a published run ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Ending {
    /// The run finished.
    #[default]
    Ok,
    /// The run finished, or continued, while the system swapped.
    Swap,
    /// The run ran out of memory.
    Oom,
}

/// The rows of the table in `text`, which was read from `path`.
pub(crate) fn read(text: &str, path: &Path) -> Result<Vec<FieldRun>> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let hint = Some("the columns are those of results/field/runs.csv");
    let wrong = |e: csv::Error| unreadable(path, &e, hint);
    let columns = reader.headers().map_err(wrong)?;
    if let Some(missing) = ["id", "framework", "model", "outcome"].iter().find(|c| !columns.iter().any(|h| h == **c)) {
        return Err(Error::Parse {
            path: path.into(),
            line: Some(1),
            message: format!("has no column `{missing}`"),
            hint: hint.map(Into::into),
        });
    }
    reader.deserialize().collect::<csv::Result<_>>().map_err(wrong)
}

/// What is wrong with a table that was read from `path`.
pub(super) fn unreadable(path: &Path, e: &csv::Error, hint: Option<&str>) -> Error {
    let line = e.position().map(|p| p.line() as usize);
    Error::Parse { path: path.into(), line, message: e.to_string(), hint: hint.map(Into::into) }
}

/// What the notes of a run say about the lengths of its examples, in tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct StatedLengths {
    /// Length of the average example, tokens.
    pub mean: usize,
    /// Length of the longest example, tokens.
    pub longest: usize,
}

impl FieldRun {
    /// Lengths as the notes state them: `full examples are 106-227 tokens (mean 134, ...)`, with `prompt 191 tok
    /// longer` where the run's prompt was.
    pub(crate) fn stated_lengths(&self) -> Option<StatedLengths> {
        let range = between(&self.notes, "full examples are ", " tokens")?;
        let longest: usize = range.split('-').nth(1)?.trim().parse().ok()?;
        let mean: usize = between(&self.notes, "(mean ", ",")?.trim().parse().ok()?;
        let longer = between(&self.notes, "(prompt ", " tok longer").and_then(|n| n.trim().parse().ok()).unwrap_or(0);
        Some(StatedLengths { mean: mean + longer, longest: longest + longer })
    }

    /// Whether it ran on a Mac without a fan, as far as the notes say.
    pub(crate) fn fanless(&self) -> bool {
        ["fanless", "MacBook Air"].iter().any(|word| self.notes.contains(word))
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let rest = &text[text.find(before)? + before.len()..];
    Some(&rest[..rest.find(after)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_as_they_are_written() {
        let text = "id,framework,model,outcome,ram_gb,grad_checkpoint,notes\n\
            FR1,mlx-lm,m,ok,24,true,\"full examples are 106-227 tokens (mean 134, v4 data). MacBook Air (fanless)\"\n\
            FR2,mlx-lm,m,oom,,,\"(prompt 191 tok longer): full examples are 106-227 tokens (mean 134, v4)\"\n";
        let runs = read(text, "runs.csv".as_ref()).unwrap();
        assert_eq!((runs[0].ram_gb, runs[0].grad_checkpoint, runs[0].fanless()), (Some(24.0), Some(true), true));
        assert_eq!(runs[0].stated_lengths(), Some(StatedLengths { mean: 134, longest: 227 }));
        assert_eq!((runs[1].ram_gb, runs[1].grad_checkpoint, runs[1].fanless()), (None, None, false));
        assert_eq!(runs[1].stated_lengths(), Some(StatedLengths { mean: 325, longest: 418 }));
        let wrong = |text: &str| read(text, "runs.csv".as_ref()).unwrap_err().to_string();
        assert!(wrong("id,model\n").contains("line 1: has no column `framework`"));
        assert!(
            wrong("id,framework,model,outcome,ram_gb\na,b,c,ok,lots\n").contains("line 2"),
            "{}",
            wrong("id,framework,model,outcome,ram_gb\na,b,c,ok,lots\n")
        );
    }
}
