//! Which rows of the field can be compared, and with what: every rule by which one is left out.

use serde::Serialize;

use crate::accuracy::field::{Ending, FieldRun};
use crate::spec::machine::Machine;
use crate::spec::model::catalogue::{self, Relation, Said, Understood};
use crate::spec::model::storage::{AFFINE_BITS, Format, Storage};
use crate::spec::model::{Dtype, MLX_GROUP, ModelSpec};
use crate::spec::run::{Data, Engine, Execution, Lora, Recipe, RunConfig, TokenLengths, Weights};
use crate::units::Bytes;

/// Reason for which a published run, or one figure of it, is not compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Rule {
    /// Another trainer, another attention or another loss than mlx-lm's own.
    Trainer,
    /// It is full fine-tuning, DoRA or preference tuning.
    FineTuneType,
    /// The row names no model.
    NoModel,
    /// An architecture that is refused: hybrid attention, state space.
    Architecture,
    /// A model that is not in the catalogue.
    UnknownModel,
    /// The format of the base weights is not stated.
    Format,
    /// Batch size, rank or number of layers is not stated, or the targets are not the model's.
    Settings,
    /// Before mlx-lm's step was compiled and its logits were kept in 16 bits.
    Version,
    /// Peak: no peak was printed.
    NoPeak,
    /// Peak: the run died, so what was printed is a lower bound.
    LowerBound,
    /// Peak: neither the longest example nor the average is stated.
    NoLength,
    /// Speed: no speed was printed.
    NoSpeed,
    /// Speed: the run swapped or died.
    Paged,
    /// Speed: chip or memory are not stated, or no such Mac was sold.
    NoMachine,
    /// Speed: prompts are masked, so that what was printed is not what was worked on.
    Masked,
    /// Verdict: memory is not stated, or no such Mac was sold.
    NoMemory,
    /// A measurement of our own without a prediction from before it, or without a figure.
    NotPredicted,
}

impl Rule {
    /// The rule in a few words, for tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Trainer => "another trainer, attention or loss than mlx-lm's",
            Self::FineTuneType => "not LoRA: full, DoRA, preference tuning",
            Self::NoModel => "no model named",
            Self::Architecture => "refused: hybrid or state-space layers",
            Self::UnknownModel => "model not in the catalogue",
            Self::Format => "format of the weights not stated",
            Self::Settings => "batch, rank or layers not stated",
            Self::Version => "mlx-lm before April 2025: another step",
            Self::NoPeak => "no peak printed",
            Self::LowerBound => "died: its peak is a lower bound",
            Self::NoLength => "no length stated",
            Self::NoSpeed => "no speed printed",
            Self::Paged => "paged or died",
            Self::NoMachine => "chip or memory not stated, or never sold",
            Self::Masked => "masked prompts: printed tokens are not those worked on",
            Self::NoMemory => "memory not stated, or never sold",
            Self::NotPredicted => "measured without a prediction before it",
        }
    }
}

/// What is known of the token lengths of a run's examples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum LengthKnowledge {
    /// All examples have this many tokens.
    Fixed(usize),
    /// The length of the longest example and the mean are known.
    Longest {
        /// Mean length of the examples, tokens.
        mean: usize,
        /// Length of the longest example, tokens.
        longest: usize,
    },
    /// Only the average number of target tokens is known.
    Average(usize),
    /// Only the length that examples are cut to is known.
    Cap,
}

/// A published run that can be predicted.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// Id of the published run.
    pub id: String,
    /// Name of the chip as published, empty where it is not stated.
    pub chip: String,
    /// Architecture of the base model.
    pub spec: ModelSpec,
    /// Configuration of the run.
    pub run: RunConfig,
    /// The Macs it may have run on: the bins of the chip that were sold with that memory. Empty where not stated.
    pub machines: Vec<Machine>,
    /// What is known of the token lengths of its examples.
    pub known: LengthKnowledge,
}

/// mlx-lm's own defaults, which a row that is silent about them is taken to have used.
const DEFAULT_CAP: usize = 2048;
/// Before this, the adapters sat on q and v alone (mlx-lm 0.28.2).
const ALL_LINEAR_SINCE: &str = "2025-09-30";
/// Before this, the step was not compiled, or the logits were made in 32 bits (mlx-lm 0.22.3 and the change of
/// 2025-04-03).
const LIKE_TODAY_SINCE: &str = "2025-04-04";

/// Number of examples that stand for the data of a published run.
const EXAMPLES: usize = 1000;

impl LengthKnowledge {
    fn of(run: &FieldRun, cap: usize, batch: usize) -> Self {
        let average = run.avg_tokens_per_example_or_iter;
        if let Some(stated) = run.stated_lengths() {
            return Self::Longest { mean: stated.mean.min(cap), longest: stated.longest.min(cap) };
        }
        match average.map(|tokens| tokens / batch as f64) {
            // Rows of full length, to the last token or but for the one that has nothing to predict it.
            Some(mean) if run.max_seq_len.is_some() && mean >= cap as f64 - 1.0 => Self::Fixed(cap),
            Some(mean) => Self::Average((mean.ceil() as usize).clamp(1, cap)),
            None => Self::Cap,
        }
    }

    /// Whether the longest batch is known.
    pub(crate) fn longest(self) -> bool {
        matches!(self, Self::Fixed(_) | Self::Longest { .. })
    }
}

impl Case {
    /// The row as a run, or the rule that leaves it out.
    pub(crate) fn of(row: &FieldRun) -> Result<Self, Rule> {
        if !stock(&row.framework) {
            return Err(Rule::Trainer);
        }
        if row.fine_tune_type != "lora" {
            return Err(Rule::FineTuneType);
        }
        if row.model.trim().is_empty() || row.model.contains("unspecified") || row.model.contains("n/s ") {
            return Err(Rule::NoModel);
        }
        if catalogue::refused(&row.model).is_some() {
            return Err(Rule::Architecture);
        }
        let known = catalogue::understand(&row.model).map_err(|_| Rule::UnknownModel)?;
        // A fine-tune's shape is a guess.
        if known.relation == Relation::FineTune {
            return Err(Rule::UnknownModel);
        }
        let entry = known.entry;
        if !row.date.is_empty() && row.date.as_str() < LIKE_TODAY_SINCE {
            return Err(Rule::Version);
        }
        let mut spec = entry.spec.clone();
        let format = stored(row, &known, spec.dtype).ok_or(Rule::Format)?;
        spec.storage = Storage::uniform(format);
        let named = [Weights::FourBit, Weights::EightBit].into_iter().find(|w| w.format(spec.dtype) == Some(format));
        let (Some(batch), Some(rank), Some(layers)) = (row.batch_size, row.lora_rank, row.lora_layers) else {
            return Err(Rule::Settings);
        };
        let cap = row.max_seq_len.unwrap_or(DEFAULT_CAP);
        let blocks = entry.spec.num_hidden_layers;
        let lora = Lora {
            rank,
            dropout: row.lora_dropout.unwrap_or_default(),
            target_modules: targets(row),
            num_layers: if layers >= blocks { -1 } else { layers as i64 },
            ..Lora::default()
        };
        let run = RunConfig {
            model: entry.id.clone(),
            data: Data::Train("train.jsonl".into()),
            engine: Engine::MlxLm,
            seed: 0,
            recipe: Recipe {
                max_seq_length: cap,
                effective_batch_size: batch * row.grad_accum.unwrap_or(1).max(1),
                mask_prompt: row.mask_prompt.unwrap_or(false),
                lora,
                ..Recipe::default()
            },
            execution: Execution {
                batch_size: batch,
                grad_checkpoint: row.grad_checkpoint.unwrap_or(false),
                weights: named.unwrap_or(Weights::of(format)),
                ..Execution::default()
            },
        };
        if run.check().is_err() || entry.spec.targets(&run.recipe.lora.target_modules).is_err() {
            return Err(Rule::Settings);
        }
        Ok(Self {
            id: row.id.clone(),
            chip: row.chip.clone(),
            spec,
            machines: machines(row),
            known: LengthKnowledge::of(row, cap, batch),
            run,
        })
    }

    /// Lengths of the examples as far as they are known: all alike, or the mean and one of the longest.
    pub(crate) fn lengths(&self) -> TokenLengths {
        let all = |n: usize| vec![n as u32; EXAMPLES];
        TokenLengths::new(match self.known {
            LengthKnowledge::Fixed(n) | LengthKnowledge::Average(n) => all(n),
            LengthKnowledge::Longest { mean, longest } => {
                let mut lengths = all(mean);
                // A whole batch of them, so that the batches have one however they are cut.
                lengths[EXAMPLES - self.run.execution.batch_size.min(EXAMPLES)..].fill(longest as u32);
                lengths
            }
            LengthKnowledge::Cap => all(1),
        })
    }

    /// The longest that the examples may have been.
    pub(crate) fn longest(&self) -> TokenLengths {
        let cap = self.run.recipe.max_seq_length;
        match self.known {
            LengthKnowledge::Fixed(_) | LengthKnowledge::Longest { .. } => self.lengths(),
            LengthKnowledge::Average(_) | LengthKnowledge::Cap => TokenLengths::new(vec![cap as u32; EXAMPLES]),
        }
    }

    /// Throughput of the run, tokens/s over whole examples, from what was printed.
    pub(crate) fn speed(&self, row: &FieldRun) -> Result<f64, Rule> {
        if row.outcome != Ending::Ok {
            return Err(Rule::Paged);
        }
        if row.it_per_s.is_none() && row.tokens_per_s.is_none() {
            return Err(Rule::NoSpeed);
        }
        if self.machines.is_empty() {
            return Err(Rule::NoMachine);
        }
        match (self.known, row.it_per_s, row.tokens_per_s) {
            // What was printed counts answers only where prompts are masked; iterations count everything.
            (LengthKnowledge::Longest { mean, .. }, Some(it), _) => {
                Ok(it * (mean * self.run.execution.batch_size) as f64)
            }
            (_, _, Some(tokens)) if !self.run.recipe.mask_prompt && self.known != LengthKnowledge::Cap => Ok(tokens),
            (LengthKnowledge::Cap, ..) => Err(Rule::NoLength),
            _ => Err(Rule::Masked),
        }
    }

    /// Peak memory that was printed.
    pub(crate) fn peak(&self, row: &FieldRun) -> Result<Bytes, Rule> {
        let printed = row.peak_mem_gb.map(Bytes::from_decimal_gb).ok_or(Rule::NoPeak)?;
        match row.outcome {
            Ending::Oom => Err(Rule::LowerBound),
            _ if self.known == LengthKnowledge::Cap => Err(Rule::NoLength),
            _ => Ok(printed),
        }
    }
}

/// mlx-lm's own step: no patch, no kernel of another project.
fn stock(framework: &str) -> bool {
    let lower = framework.to_lowercase();
    let other = ["patched", "orpo", "dpo", "grpo", "fused", "flash", "kernel"];
    lower.starts_with("mlx-lm") && !lower.starts_with("mlx-lm-") && !other.iter().any(|word| lower.contains(word))
}

/// Format of the base: by the row's columns, or else by the model's name.
fn stored(row: &FieldRun, known: &Understood, dtype: Dtype) -> Option<Format> {
    let affine = |bits: f64, group: Option<u8>| {
        let bits = AFFINE_BITS.into_iter().find(|b| *b as f64 == bits)? as u8;
        Some(Format::Affine { bits, group: group.unwrap_or(MLX_GROUP), scales: dtype })
    };
    match row.quant_bits {
        Some(bits) => affine(bits, row.quant_group.map(|g| g as u8)),
        None if row.dtype.contains("bf16") => Some(Format::Bf16),
        None if row.dtype.contains("fp16") || row.dtype.contains("f16") => Some(Format::F16),
        None => match known.format? {
            Said::Affine { bits, group, mixed: false } => affine(bits.into(), Some(group)),
            Said::Dense(dtype) => Some(dtype.into()),
            _ => None,
        },
    }
}

fn targets(row: &FieldRun) -> Vec<String> {
    // What stands in brackets is a remark.
    let text = row.lora_targets.split('(').next().unwrap_or_default().trim().to_lowercase();
    let known_since = row.date.as_str() >= ALL_LINEAR_SINCE || row.date.is_empty();
    if text.starts_with("all") || (text.is_empty() && known_since) {
        return vec!["all-linear".into()];
    }
    if text.is_empty() {
        return vec!["q_proj".into(), "v_proj".into()];
    }
    let name = |part: &str| {
        let last = part.trim().rsplit('.').next().unwrap_or_default().to_owned();
        if last.contains('_') { last } else { format!("{last}_proj") }
    };
    text.split(',').map(name).collect()
}

/// The Macs that a row may speak of; the notes say whether they have a fan.
fn machines(row: &FieldRun) -> Vec<Machine> {
    let Some(ram) = row.ram_gb else { return Vec::new() };
    let mut all = Machine::bins(&row.chip, Bytes::from_gib(ram), row.gpu_cores);
    all.iter_mut().for_each(|m| m.fanless |= row.fanless());
    all
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
