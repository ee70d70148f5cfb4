//! What guides claim: `grids/guides.toml`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::spec::machine::Machine;
use crate::spec::model::Dtype;
use crate::spec::model::catalogue;
use crate::spec::model::storage::Format;
use crate::spec::run::{Data, Engine, Execution, Lora, Recipe, RunConfig, Weights, toml_error};
use crate::units::Bytes;

/// Text of the embedded file of claims.
pub(crate) const BUNDLED: &str = include_str!("../../grids/guides.toml");

/// The guides and their claims, as the file has them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Guides {
    /// Pages that the claims were read from.
    pub guide: Vec<Guide>,
    /// Claims that those pages make.
    pub claim: Vec<Claim>,
}

/// A guide to fine-tuning that people follow.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Guide {
    /// Key by which claims name the guide.
    pub key: String,
    /// Title of the guide.
    pub name: String,
    /// Address of the guide, where it is known.
    #[serde(default)]
    pub url: String,
}

/// A figure that a guide claims for one run on one Mac.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Claim {
    /// Key of the guide that makes the claim.
    pub guide: String,
    /// Name of the base model in the catalogue.
    pub model: String,
    /// Name of the Mac's chip.
    pub machine: String,
    /// Installed memory of the Mac, GiB.
    pub ram_gib: f64,
    /// Number of GPU cores, where the chip was sold with several.
    #[serde(default)]
    pub gpu_cores: Option<usize>,
    /// Format of the base weights.
    pub weights: Weights,
    /// Rank of the adapters, on every linear layer.
    #[serde(default = "eight")]
    pub rank: usize,
    /// Number of examples in a micro-batch.
    #[serde(default = "one")]
    pub batch_size: usize,
    /// Length of an example, tokens.
    #[serde(default = "length")]
    pub seq: usize,
    /// Figure that is claimed.
    pub says: Figure,
}

fn eight() -> usize {
    8
}

fn one() -> usize {
    1
}

fn length() -> usize {
    2048
}

/// A claimed figure, by its kind.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Figure {
    /// Peak memory of a training run, in units of 1e9 bytes.
    MemoryGb(f64),
    /// Throughput of a training run, tokens/s.
    TokensPerS(f64),
    /// Duration of a training run with three passes over 2,000 examples, hours.
    Hours(f64),
    /// Whether the run fits the Mac.
    Fits(bool),
    /// Size of the weights, in units of 1e9 bytes.
    WeightsGb(f64),
    /// Installed memory of the smallest Mac that trains the model, GiB.
    MinimumRamGb(f64),
    /// Speed of generation from 4-bit weights, tokens/s.
    GeneratedPerS(f64),
}

impl Figure {
    /// Refuses a figure that cannot be held against another, such as one that is not positive.
    fn check(self) -> Result<()> {
        let (field, value) = match self {
            Self::MemoryGb(value) => ("memory_gb", value),
            Self::TokensPerS(value) => ("tokens_per_s", value),
            Self::Hours(value) => ("hours", value),
            Self::Fits(_) => return Ok(()),
            Self::WeightsGb(value) => ("weights_gb", value),
            Self::MinimumRamGb(value) => ("minimum_ram_gb", value),
            Self::GeneratedPerS(value) => ("generated_per_s", value),
        };
        if value > 0.0 && value <= MOST { Ok(()) } else { Err(Error::invalid(field, value, "more than 0")) }
    }
}

/// The text of the file at `path`, with every claim checked as a run is that somebody wants to make.
pub(crate) fn read(text: &str, path: &Path) -> Result<Guides> {
    let guides: Guides = toml::from_str(text).map_err(|e| toml_error(&e, text, path))?;
    for (i, claim) in guides.claim.iter().enumerate() {
        claim.may_be_asked(&guides.guide).map_err(as_claims_say).map_err(|e| Error::Parse {
            path: path.into(),
            line: claim_line(text, i),
            message: format!("claim {} (`{}`): {e}", i + 1, claim.guide),
            hint: e.hint(),
        })?;
    }
    Ok(guides)
}

/// An error of a run or a machine, with the field named as a claim names it.
fn as_claims_say(error: Error) -> Error {
    let names = [
        ("--ram", "ram_gib"),
        ("--gpu-cores", "gpu_cores"),
        ("max_seq_length", "seq"),
        ("effective_batch_size", "batch_size"),
    ];
    match error {
        Error::Invalid { field, got, must } => {
            let name = names.iter().find(|(known, _)| *known == field).map(|(_, name)| (*name).to_owned());
            Error::Invalid { field: name.unwrap_or(field), got, must }
        }
        other => other,
    }
}

/// Line of the file on which claim `number` begins, both counted from the start.
fn claim_line(text: &str, number: usize) -> Option<usize> {
    let heads = text.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with("[[claim]]"));
    heads.map(|(i, _)| i + 1).nth(number)
}

/// More than this of anything that guides give figures of is a slip of the pen.
const MOST: f64 = 1e9;

impl Claim {
    /// What it names exists, it is a run, and its figure is one.
    pub(super) fn may_be_asked(&self, guides: &[Guide]) -> Result<()> {
        if !guides.iter().any(|g| g.key == self.guide) {
            return Err(Error::invalid("guide", format!("`{}`", self.guide), "the key of a [[guide]]"));
        }
        let spec = &catalogue::find(&self.model)?.spec;
        if !(self.ram_gib > 0.0 && self.ram_gib <= MOST) {
            return Err(Error::invalid("ram_gib", self.ram_gib, "more than 0"));
        }
        Machine::named(&self.machine, Some(Bytes::from_gib(self.ram_gib)), self.gpu_cores)?;
        self.run(Engine::MlxLm).check()?;
        if self.seq > spec.max_position_embeddings {
            let must = format!("at most {}, the longest sequence of `{}`", spec.max_position_embeddings, self.model);
            return Err(Error::invalid("seq", self.seq, must));
        }
        self.says.check()
    }

    pub(super) fn run(&self, engine: Engine) -> RunConfig {
        let lora = Lora { rank: self.rank, alpha: 2.0 * self.rank as f64, ..Lora::default() };
        let recipe = Recipe {
            max_seq_length: self.seq,
            effective_batch_size: self.batch_size,
            epochs: Some(EPOCHS),
            lora,
            ..Recipe::default()
        };
        let execution = Execution { batch_size: self.batch_size, weights: self.weights, ..Execution::default() };
        RunConfig { model: self.model.clone(), data: Data::builtin(), engine, seed: 0, recipe, execution }
    }

    /// Bits of a weight; a model as it is published has 16.
    pub(super) fn bits(&self) -> f64 {
        self.weights.format(Dtype::Bf16).map_or(16.0, Format::bits)
    }

    pub(super) fn what(&self, model: &str) -> String {
        let run = format!("rank {}, {} x {}", self.rank, self.batch_size, self.seq);
        match self.says {
            Figure::WeightsGb(_) => format!("{model}, weights in {} bits", self.bits() as u32),
            Figure::MinimumRamGb(_) => format!("{model}, smallest Mac to train in {} bits", self.bits() as u32),
            Figure::GeneratedPerS(_) => format!("{model} in 4 bits, generating"),
            Figure::Hours(_) => format!("{model} {run}, 3 x 2,000 examples"),
            _ => format!("{model} {}, {run}", self.weights.name()),
        }
    }

    pub(super) fn says(&self) -> String {
        match self.says {
            Figure::MemoryGb(gb) | Figure::WeightsGb(gb) => decimal(Bytes::from_decimal_gb(gb)),
            Figure::TokensPerS(n) | Figure::GeneratedPerS(n) => format!("{n:.0} tok/s"),
            Figure::Hours(hours) => format!("{hours:.0} h"),
            Figure::Fits(fits) => if fits { "fits" } else { "does not fit" }.into(),
            Figure::MinimumRamGb(gb) => format!("{gb:.0} GiB"),
        }
    }
}

/// Number of examples that [`Figure::Hours`] is for; the next is the number of passes over them.
pub(super) const EXAMPLES: usize = 2000;

pub(super) const EPOCHS: f64 = 3.0;

/// A size in decimal gigabytes, as guides write it.
pub(super) fn decimal(bytes: Bytes) -> String {
    format!("{:.1} GB", bytes.decimal_gb())
}
