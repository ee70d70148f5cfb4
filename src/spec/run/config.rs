//! `run.toml`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::spec::model::{Dtype, Model, Weights};
use crate::spec::run::data::{BUILTIN, Data};
use crate::spec::run::execution::Execution;
use crate::spec::run::names::*;
use crate::spec::run::recipe::{DEFAULT_EPOCHS, Optimizer, Recipe, within};

/// Trainer that runs the job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// Headroom's own trainer, built on candle.
    #[default]
    Candle,
    /// The mlx-lm that the user has installed.
    MlxLm,
}

impl Engine {
    /// Every engine, in the order in which they are listed.
    pub(crate) const ALL: [Self; 2] = [Self::Candle, Self::MlxLm];

    /// Name of the engine as files write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Candle => "candle",
            Self::MlxLm => "mlx-lm",
        }
    }

    /// Formats that it can hold the base weights in.
    pub(crate) fn weights(self) -> &'static [Weights] {
        match self {
            Self::Candle => &Weights::ALL,
            Self::MlxLm => &Weights::OF_MLX,
        }
    }
}

/// Tokens of a micro-batch that no machine works on at one time; what is counted of a run is counted by them.
const MOST_TOKENS: usize = 1 << 22;

/// Chunks of a micro-batch, each of which is counted.
const MOST_CHUNKS: usize = 1 << 16;

/// Configuration of one run, as `run.toml` writes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Base model: a hub id, a folder, a GGUF file, or `builtin`.
    pub model: String,
    /// Files of the training rows and of the validation rows.
    pub data: Data,
    /// Trainer that runs the job.
    #[serde(default)]
    pub engine: Engine,
    /// Seed of everything random in the run.
    #[serde(default)]
    pub seed: u64,
    /// What decides the result of training: data order, optimizer, adapters.
    #[serde(default)]
    pub recipe: Recipe,
    /// How the run is executed: what changes memory and speed, and not the result.
    #[serde(default)]
    pub execution: Execution,
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

    /// The configuration as the text of a run file.
    pub(crate) fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::Serialise { what: "run.toml", reason: e.to_string() })
    }

    /// A copy fit to be shared: of each path that would tell about this machine, only the last part.
    pub(crate) fn public(&self) -> Self {
        let mut config = self.clone();
        let cut = |path: &mut PathBuf| *path = public_name(&path.to_string_lossy()).into();
        config.model = public_name(&config.model);
        match &mut config.data {
            Data::Train(train) => cut(train),
            Data::Split(split) => {
                cut(&mut split.train);
                split.valid.iter_mut().for_each(cut);
            }
        }
        config.recipe.lora.init_adapter.iter_mut().for_each(cut);
        config
    }

    /// Checks every rule that one value alone, or two together, must keep.
    pub(crate) fn check(&self) -> Result<()> {
        let (r, e) = (&self.recipe, &self.execution);
        r.check()?;
        within("batch_size", e.batch_size, 1, 1 << 20)?;
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
        if e.batch_size > MOST_TOKENS / r.max_seq_length {
            let must = format!("at most {} with rows of {} tokens", MOST_TOKENS / r.max_seq_length, r.max_seq_length);
            return Err(Error::invalid("batch_size", e.batch_size, must));
        }
        let tokens = e.batch_size * r.max_seq_length;
        let chunks = [("loss_chunk", e.loss_chunk), ("attention_chunk", e.attention_chunk), ("mlp_chunk", e.mlp_chunk)];
        if let Some((field, chunk)) = chunks.into_iter().find(|(_, chunk)| tokens / chunk > MOST_CHUNKS) {
            let least = tokens.div_ceil(MOST_CHUNKS);
            return Err(Error::invalid(
                field,
                chunk,
                format!("at least {least} with micro-batches of {tokens} tokens"),
            ));
        }
        let unseen = self.data.valid().is_none() && self.data.train().as_os_str() != BUILTIN;
        for (field, value) in [("eval_steps", r.eval_steps), ("early_stopping_patience", r.early_stopping_patience)] {
            if let Some(value) = value.filter(|_| unseen) {
                return Err(Error::invalid(field, value, "left out when `[data]` has no `valid` file"));
            }
        }
        self.check_built()
    }

    /// Refuses what the file format knows and this version cannot do yet.
    fn check_built(&self) -> Result<()> {
        let (r, e) = (&self.recipe, &self.execution);
        if self.engine == Engine::MlxLm {
            let unknown = |field, got: &str, must: &str| {
                Err(Error::invalid(field, got, format!("{must}; not modelled for mlx-lm yet")))
            };
            if r.packing {
                return unknown("packing", "true", "false");
            }
            if r.lora.use_dora {
                return unknown("use_dora", "true", "false");
            }
            if r.optimizer != Optimizer::Adamw {
                return unknown("optimizer", r.optimizer.name(), "adamw");
            }
            if !self.engine.weights().contains(&e.weights) {
                let names: Vec<&str> = self.engine.weights().iter().map(|w| w.name()).collect();
                let must = format!("one of {}: mlx-lm has no other formats", names.join(", "));
                return Err(Error::invalid("weights", e.weights.name(), must));
            }
        }
        if e.compute_dtype != Dtype::F32 {
            return Err(Error::invalid(
                "compute_dtype",
                format!("{:?}", e.compute_dtype).to_lowercase(),
                "f32; other compute formats are not supported yet",
            ));
        }
        Ok(())
    }

    /// Optimizer steps for a data set of this many rows: its examples, or the rows that they are packed into.
    pub(crate) fn steps(&self, rows: usize) -> usize {
        let r = &self.recipe;
        r.steps.unwrap_or_else(|| {
            let epochs = r.epochs.unwrap_or(DEFAULT_EPOCHS);
            ((epochs * rows as f64 / r.effective_batch_size as f64).ceil() as usize).max(1)
        })
    }

    /// A model with the defaults of everything else, on the data inside.
    pub(crate) fn of_model(model: &str) -> Self {
        Self {
            model: model.into(),
            data: Data::builtin(),
            engine: Engine::default(),
            seed: 0,
            recipe: Recipe::default(),
            execution: Execution::default(),
        }
    }

    /// Takes over the weight format that a model's name asks for, where the run names none. Returns what it took.
    pub(crate) fn hold_as_named(&mut self, model: &Model) -> Option<Weights> {
        let asked = model.weights.filter(|_| self.execution.weights == Weights::Stored)?;
        self.execution.weights = asked;
        (asked != Weights::Stored).then_some(asked)
    }

    /// Micro-batches that are accumulated in an optimizer step.
    pub fn accumulation(&self) -> usize {
        self.recipe.effective_batch_size / self.execution.batch_size
    }
}

impl RunConfig {
    /// The embedded model and data, as `auto` runs them.
    pub(crate) fn builtin() -> Self {
        Self {
            // The recipe that `assets/check.py` tried: a model this small wants a higher rate than a large one.
            recipe: Recipe {
                max_seq_length: 512,
                effective_batch_size: 8,
                learning_rate: 3e-3,
                epochs: Some(1.5),
                warmup_steps: 5,
                mask_prompt: true,
                ..Recipe::default()
            },
            execution: Execution { batch_size: 4, ..Execution::default() },
            ..Self::of_model(BUILTIN)
        }
    }
}
