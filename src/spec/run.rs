//! A run: what is learned (the recipe) and how it is run (the execution).
//!
//! This is `run.toml`. The only defaults of any run setting are here.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::spec::model::Dtype;

pub use crate::spec::storage::Weights;

/// The model and data that ship inside the binary.
pub const BUILTIN: &str = "builtin";

/// Who runs the job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// Headroom's own trainer.
    #[default]
    Candle,
    /// The user's mlx-lm.
    MlxLm,
}

impl Engine {
    /// As written in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Candle => "candle",
            Self::MlxLm => "mlx-lm",
        }
    }
}

/// Where the rows are: one path, or one for training and one for validation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Data {
    /// Training rows only.
    Train(PathBuf),
    /// Both.
    Split(DataSplit),
}

/// `[data]` as a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSplit {
    /// Training rows.
    pub train: PathBuf,
    /// Validation rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<PathBuf>,
}

impl Data {
    /// The rows that ship.
    pub fn builtin() -> Self {
        Self::Train(BUILTIN.into())
    }

    /// Training rows.
    pub fn train(&self) -> &Path {
        match self {
            Self::Train(path) => path,
            Self::Split(split) => &split.train,
        }
    }

    /// Validation rows, if any.
    pub fn valid(&self) -> Option<&Path> {
        match self {
            Self::Train(_) => None,
            Self::Split(split) => split.valid.as_deref(),
        }
    }

    fn resolve(&mut self, base: &Path) {
        let fix = |p: &mut PathBuf| {
            if p.as_os_str() != BUILTIN {
                *p = base.join(&*p);
            }
        };
        match self {
            Self::Train(path) => fix(path),
            Self::Split(split) => {
                fix(&mut split.train);
                split.valid.iter_mut().for_each(fix);
            }
        }
    }
}

/// One run, as `run.toml` says it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Hub id, folder, or `builtin`.
    pub model: String,
    /// The rows.
    pub data: Data,
    /// Who runs it.
    #[serde(default)]
    pub engine: Engine,
    /// Of everything random.
    #[serde(default)]
    pub seed: u64,
    /// What is learned.
    #[serde(default)]
    pub recipe: Recipe,
    /// How it is run.
    #[serde(default)]
    pub execution: Execution,
}

/// Shape of the learning rate over the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LrSchedule {
    /// Flat after the warm-up.
    Constant,
    /// Straight to zero.
    Linear,
    /// Half a cosine to zero.
    #[default]
    Cosine,
}

/// Update rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// As torch.optim.AdamW: betas 0.9 and 0.999, eps 1e-8, decoupled weight decay.
    #[default]
    Adamw,
}

/// What is learned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// Longer examples are cut to this many tokens.
    pub max_seq_length: usize,
    /// Examples per optimizer step.
    pub effective_batch_size: usize,
    /// Optimizer steps; exclusive with `epochs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Passes over the data; exclusive with `steps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Its shape.
    pub lr_schedule: LrSchedule,
    /// Steps of linear rise at the start.
    pub warmup_steps: usize,
    /// Decoupled weight decay of the adapters.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm; 0 leaves them alone.
    pub max_grad_norm: f64,
    /// Learn only from the completion.
    pub mask_prompt: bool,
    /// Put several examples in one row.
    pub packing: bool,
    /// Draw the examples in a new order each epoch.
    pub shuffle: bool,
    /// Update rule.
    pub optimizer: Optimizer,
    /// The adapters.
    pub lora: Lora,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            max_seq_length: 2048,
            effective_batch_size: 16,
            steps: None,
            epochs: None,
            learning_rate: 2e-4,
            lr_schedule: LrSchedule::Cosine,
            warmup_steps: 20,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            mask_prompt: false,
            packing: false,
            shuffle: true,
            optimizer: Optimizer::Adamw,
            lora: Lora::default(),
        }
    }
}

/// Passes over the data when neither `steps` nor `epochs` is given.
pub const DEFAULT_EPOCHS: f64 = 3.0;

/// Low-rank adapters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lora {
    /// Rank of A and B.
    pub rank: usize,
    /// The update is scaled by alpha / rank.
    pub alpha: f64,
    /// Probability that an input of A is dropped in training.
    pub dropout: f64,
    /// Projections by name, or `"all-linear"`.
    #[serde(deserialize_with = "one_or_many")]
    pub target_modules: Vec<String>,
    /// Only the last n blocks; -1 for all.
    pub num_layers: i64,
    /// Start from this adapter: a folder as PEFT or mlx-lm writes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_adapter: Option<PathBuf>,
}

impl Default for Lora {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            target_modules: vec!["all-linear".into()],
            num_layers: -1,
            init_adapter: None,
        }
    }
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a list of projection names, or \"all-linear\"")]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(name) => vec![name],
        OneOrMany::Many(names) => names,
    })
}

impl Lora {
    /// Factor of the update.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// First block that has adapters, of `layers`.
    pub fn first_layer(&self, layers: usize) -> usize {
        if self.num_layers < 0 { 0 } else { layers.saturating_sub(self.num_layers as usize) }
    }
}

/// Where the base weights live while it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Residency {
    /// In memory.
    #[default]
    Resident,
}

/// How it is run; none of it changes what is learned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Execution {
    /// Examples per micro-batch; a divisor of `effective_batch_size`.
    pub batch_size: usize,
    /// Keep each block's input only, and run the block again in backward.
    pub grad_checkpoint: bool,
    /// Format of the base weights.
    pub weights: Weights,
    /// Format that activations are computed in.
    pub compute_dtype: Dtype,
    /// Tokens whose logits exist at one time.
    pub loss_chunk: usize,
    /// Query rows whose scores exist at one time.
    pub attention_chunk: usize,
    /// Rows of a block's MLP that exist at one time.
    pub mlp_chunk: usize,
    /// Where the base lives.
    pub residency: Residency,
}

impl Default for Execution {
    fn default() -> Self {
        Self {
            batch_size: 1,
            grad_checkpoint: true,
            weights: Weights::Stored,
            compute_dtype: Dtype::F32,
            loss_chunk: 512,
            attention_chunk: 256,
            mlp_chunk: 1024,
            residency: Residency::Resident,
        }
    }
}

impl RunConfig {
    /// Parses the text of the run file at `path`; relative paths in it are taken relative to it.
    pub fn from_toml(text: &str, path: &Path) -> Result<Self> {
        let mut config: Self = toml::from_str(text).map_err(|e| toml_error(&e, text, path))?;
        let base = path.parent().unwrap_or(Path::new(""));
        config.data.resolve(base);
        // A model that starts like a path is a folder, and a GGUF file is a file; anything else is a name.
        if ["./", "../"].iter().any(|p| config.model.starts_with(p)) || config.model.ends_with(".gguf") {
            config.model = base.join(&config.model).to_string_lossy().into_owned();
        }
        if let Some(adapter) = &mut config.recipe.lora.init_adapter {
            *adapter = base.join(&*adapter);
        }
        config.check()?;
        Ok(config)
    }

    /// The text of a run file.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::Serialise { what: "run.toml", reason: e.to_string() })
    }

    /// Every rule that one value alone, or two together, must keep.
    pub fn check(&self) -> Result<()> {
        let (r, e) = (&self.recipe, &self.execution);
        let within = |field: &str, value: usize, low: usize, high: usize| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(Error::invalid(field, value, format!("between {low} and {high}")))
            }
        };
        within("max_seq_length", r.max_seq_length, 2, 1 << 20)?;
        within("effective_batch_size", r.effective_batch_size, 1, 1 << 20)?;
        within("batch_size", e.batch_size, 1, 1 << 20)?;
        within("rank", r.lora.rank, 1, 4096)?;
        within("loss_chunk", e.loss_chunk, 1, 1 << 20)?;
        within("attention_chunk", e.attention_chunk, 1, 1 << 20)?;
        within("mlp_chunk", e.mlp_chunk, 1, 1 << 20)?;
        if !r.effective_batch_size.is_multiple_of(e.batch_size) {
            return Err(Error::invalid(
                "batch_size",
                e.batch_size,
                format!("a divisor of effective_batch_size ({})", r.effective_batch_size),
            ));
        }
        if r.steps.is_some() && r.epochs.is_some() {
            return Err(Error::invalid("epochs", "given together with `steps`", "given alone"));
        }
        if r.steps == Some(0) {
            return Err(Error::invalid("steps", 0, "at least 1"));
        }
        let real = |field: &str, value: f64, ok: bool, must: &str| {
            if ok && value.is_finite() { Ok(()) } else { Err(Error::invalid(field, value, must)) }
        };
        real("epochs", r.epochs.unwrap_or(1.0), r.epochs.unwrap_or(1.0) > 0.0, "more than 0")?;
        real("learning_rate", r.learning_rate, r.learning_rate > 0.0, "more than 0")?;
        real("weight_decay", r.weight_decay, r.weight_decay >= 0.0, "0 or more")?;
        real("max_grad_norm", r.max_grad_norm, r.max_grad_norm >= 0.0, "0 (off) or more")?;
        real("alpha", r.lora.alpha, r.lora.alpha > 0.0, "more than 0")?;
        real("dropout", r.lora.dropout, (0.0..1.0).contains(&r.lora.dropout), "0 or more and less than 1")?;
        if r.lora.num_layers == 0 || r.lora.num_layers < -1 {
            return Err(Error::invalid("num_layers", r.lora.num_layers, "-1 for all blocks, or at least 1"));
        }
        if r.lora.target_modules.is_empty() {
            return Err(Error::invalid("target_modules", "empty", "\"all-linear\" or a list of projections"));
        }
        self.check_built()
    }

    /// What the file format knows and this version cannot do yet.
    fn check_built(&self) -> Result<()> {
        let (r, e) = (&self.recipe, &self.execution);
        if r.packing {
            return Err(Error::invalid("packing", true, "false: it is not built yet"));
        }
        if e.compute_dtype != Dtype::F32 {
            return Err(Error::invalid(
                "compute_dtype",
                format!("{:?}", e.compute_dtype).to_lowercase(),
                "f32: others are not built yet",
            ));
        }
        Ok(())
    }

    /// Optimizer steps for a data set of `examples` rows.
    pub fn steps(&self, examples: usize) -> usize {
        let r = &self.recipe;
        r.steps.unwrap_or_else(|| {
            let epochs = r.epochs.unwrap_or(DEFAULT_EPOCHS);
            ((epochs * examples as f64 / r.effective_batch_size as f64).ceil() as usize).max(1)
        })
    }

    /// Micro-batches that are accumulated in an optimizer step.
    pub fn accumulation(&self) -> usize {
        self.recipe.effective_batch_size / self.execution.batch_size
    }
}

/// A TOML error with its file, its line and the key that was probably meant.
pub fn toml_error(error: &toml::de::Error, text: &str, path: &Path) -> Error {
    let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let message = error.message().trim().to_owned();
    let hint = message.strip_prefix("unknown field `").and_then(|rest| {
        let (wrong, rest) = rest.split_once('`')?;
        let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
        closest(wrong, known.iter().copied()).map(|k| format!("did you mean `{k}`?"))
    });
    Error::Parse { path: path.into(), line, message, hint }
}

/// The known word nearest to `wrong`, if one is near.
pub fn closest<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|k| (k, strsim::jaro_winkler(wrong, k)))
        .filter(|(_, s)| *s > 0.75)
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .map(|(k, _)| k)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RunConfig> {
        RunConfig::from_toml(text, Path::new("runs/run.toml"))
    }

    #[test]
    fn a_run_file_reads_back_as_it_was_written() {
        let text = r#"
            model = "Qwen/Qwen2.5-0.5B"
            [data]
            train = "a.jsonl"
            valid = "/b.jsonl"
            [recipe]
            max_seq_length = 1024
            steps = 10
            [recipe.lora]
            rank = 4
            alpha = 6
            target_modules = "all-linear"
        "#;
        let config = parse(text).unwrap();
        assert_eq!(config.data.train(), Path::new("runs/a.jsonl"));
        assert_eq!(config.data.valid(), Some(Path::new("/b.jsonl")));
        assert_eq!(config.recipe.lora.scale(), 1.5);
        let again = RunConfig::from_toml(&config.to_toml().unwrap(), Path::new("run.toml")).unwrap();
        assert_eq!(config, again);
    }

    #[test]
    fn mistakes_name_their_line_and_what_was_meant() {
        let error = parse("model = \"m\"\ndata = \"d\"\n[recipe]\nlearning_rat = 1e-4\n").unwrap_err();
        assert!(error.to_string().starts_with("`runs/run.toml`, line 4: unknown field `learning_rat`"), "{error}");
        assert_eq!(error.hint().as_deref(), Some("did you mean `learning_rate`?"));
        let error = parse("model = \"m\"\ndata = \"d\"\n[recipe]\nmax_seq_length = \"long\"\n").unwrap_err();
        assert!(error.to_string().contains("line 4") && error.to_string().contains("invalid type: string"), "{error}");
        assert!(parse("data = \"d\"").unwrap_err().to_string().contains("missing field `model`"));
    }

    #[test]
    fn values_that_cannot_be_are_refused() {
        let base = "model = \"m\"\ndata = \"d\"\n";
        let cases = [
            ("[execution]\nbatch_size = 3\n[recipe]\neffective_batch_size = 16", "`batch_size` is 3"),
            ("[recipe]\nsteps = 5\nepochs = 1.0", "`epochs` is given together"),
            ("[recipe]\nlearning_rate = -1.0", "`learning_rate` is -1"),
            ("[recipe.lora]\ndropout = 1.0", "`dropout` is 1"),
            ("[recipe.lora]\nrank = 0", "`rank` is 0"),
            ("[recipe.lora]\nnum_layers = 0", "`num_layers` is 0"),
            ("[recipe]\nlearning_rate = inf", "`learning_rate` is inf"),
        ];
        for (text, expected) in cases {
            let error = parse(&format!("{base}{text}")).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn steps_come_from_epochs_and_rows() {
        let mut config = parse("model = \"m\"\ndata = \"d\"").unwrap();
        assert_eq!(config.steps(2000), 375);
        config.recipe.epochs = Some(0.001);
        assert_eq!(config.steps(10), 1);
        config.recipe.epochs = None;
        config.recipe.steps = Some(7);
        assert_eq!(config.steps(2000), 7);
    }
}
