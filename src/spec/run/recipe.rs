//! What is learned: the `[recipe]` of a run.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Shape of the learning rate over the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LrSchedule {
    /// Stays at the peak rate after the warm-up.
    Constant,
    /// Falls in a straight line to zero after the warm-up.
    Linear,
    /// Falls along half a cosine to zero after the warm-up.
    #[default]
    Cosine,
}

/// Update rule of the adapters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// AdamW as in torch.optim: betas 0.9 and 0.999, eps 1e-8, decoupled weight decay.
    #[default]
    Adamw,
    /// AdamW with its moments in eight bits, as bitsandbytes quantises them.
    #[serde(rename = "adamw_8bit")]
    Adamw8bit,
    /// Adafactor as in transformers: factored second moments and no first moment.
    Adafactor,
}

/// Numbers that share a scale in [`Optimizer::Adamw8bit`].
pub(crate) const OPTIMIZER_BLOCK: usize = 256;
/// Tensors of fewer numbers keep their moments in f32, as in bitsandbytes.
const SMALLEST_QUANTISED: usize = 4096;

impl Optimizer {
    /// Name of the optimizer as files write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Adamw => "adamw",
            Self::Adamw8bit => "adamw_8bit",
            Self::Adafactor => "adafactor",
        }
    }

    /// Whether the moments of a tensor of this shape are held in eight bits.
    pub(crate) fn quantises(self, shape: &[usize]) -> bool {
        self == Self::Adamw8bit && shape.iter().product::<usize>() >= SMALLEST_QUANTISED
    }

    /// Size of the optimizer state for a tensor of this shape, bytes.
    pub(crate) fn state_bytes(self, shape: &[usize]) -> u64 {
        let n: usize = shape.iter().product();
        let bytes = match (self, shape) {
            (Self::Adamw8bit, shape) if self.quantises(shape) => 2 * (n + 4 * n.div_ceil(OPTIMIZER_BLOCK)),
            (Self::Adafactor, [rows, columns]) => 4 * (rows + columns),
            (Self::Adafactor, _) => 4 * n,
            _ => 8 * n,
        };
        bytes as u64
    }
}

/// What decides the result of training; the `[recipe]` table of a run file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// Length in tokens to which longer examples are cut.
    pub max_seq_length: usize,
    /// Effective batch size: examples per optimizer step, or rows with `packing`.
    pub effective_batch_size: usize,
    /// Number of optimizer steps; exclusive with `epochs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Number of passes over the data; exclusive with `steps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Peak learning rate, reached after the warm-up.
    pub learning_rate: f64,
    /// Shape of the learning rate after the warm-up.
    pub lr_schedule: LrSchedule,
    /// Optimizer steps over which the learning rate rises linearly at the start.
    pub warmup_steps: usize,
    /// Decoupled weight decay of the adapters.
    pub weight_decay: f64,
    /// Global norm to which larger gradients are scaled down; 0 leaves them alone.
    pub max_grad_norm: f64,
    /// Whether only the tokens of the completion count in the loss.
    pub mask_prompt: bool,
    /// Whether to put as many whole examples in one row as `max_seq_length` tokens hold; each still sees only itself.
    pub packing: bool,
    /// Whether to draw the examples in a new order each epoch.
    pub shuffle: bool,
    /// Update rule of the adapters.
    pub optimizer: Optimizer,
    /// Optimizer steps between evaluations; without it there is one at every checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_steps: Option<usize>,
    /// Number of evaluations in a row without a better loss after which to stop, keeping the best adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stopping_patience: Option<usize>,
    /// Low-rank adapters to train.
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
            eval_steps: None,
            early_stopping_patience: None,
            lora: Lora::default(),
        }
    }
}

/// Passes over the data when neither `steps` nor `epochs` is given.
pub(crate) const DEFAULT_EPOCHS: f64 = 3.0;

/// More passes than these are a slip of the pen, and steps are counted from them.
const MOST_EPOCHS: f64 = 1e6;

/// Low-rank adapters: their rank, their scale, and where in the model they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lora {
    /// Rank of the adapter matrices A `[rank, in]` and B `[out, rank]`.
    pub rank: usize,
    /// Numerator of the scale of the update, `alpha / rank`.
    pub alpha: f64,
    /// Whether to scale by `alpha / sqrt(rank)` instead (Kalajdzievski 2023, arXiv:2312.03732).
    pub use_rslora: bool,
    /// Whether to train the length of each output's weights apart from their direction (DoRA; Liu and others 2024,
    /// arXiv:2402.09353).
    pub use_dora: bool,
    /// Probability that an input of A is dropped in training.
    pub dropout: f64,
    /// Names of the projections that get adapters, or `"all-linear"` for all.
    #[serde(deserialize_with = "one_or_many")]
    pub target_modules: Vec<String>,
    /// Number of blocks, counted from the last, that get adapters; -1 for all.
    pub num_layers: i64,
    /// Adapter to start from: a folder as PEFT or mlx-lm writes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_adapter: Option<PathBuf>,
}

impl Default for Lora {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            use_rslora: false,
            use_dora: false,
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
    /// Factor on the low-rank update: `alpha / rank`, or `alpha / sqrt(rank)` with rsLoRA.
    pub(crate) fn scale(&self) -> f64 {
        self.alpha / self.divisor()
    }

    fn divisor(&self) -> f64 {
        if self.use_rslora { (self.rank as f64).sqrt() } else { self.rank as f64 }
    }

    /// The same adapters with another rank, and alpha moved so that the scale stays.
    pub(crate) fn with_rank(&self, rank: usize) -> Self {
        let mut other = Self { rank, ..self.clone() };
        other.alpha = self.scale() * other.divisor();
        other
    }

    fn check(&self) -> Result<()> {
        within("rank", self.rank, 1, 4096)?;
        real("alpha", self.alpha, self.alpha > 0.0, "more than 0")?;
        real("dropout", self.dropout, (0.0..1.0).contains(&self.dropout), "0 or more and less than 1")?;
        if self.num_layers == 0 || self.num_layers < -1 {
            return Err(Error::invalid("num_layers", self.num_layers, "-1 for all blocks, or at least 1"));
        }
        if self.target_modules.is_empty() {
            return Err(Error::invalid("target_modules", "empty", "\"all-linear\" or a list of projections"));
        }
        Ok(())
    }

    /// Index of the first block that has adapters, in a model of `layers` blocks.
    pub(crate) fn first_layer(&self, layers: usize) -> usize {
        if self.num_layers < 0 { 0 } else { layers.saturating_sub(self.num_layers as usize) }
    }
}

/// Checks that a count lies between two others, both included.
pub(super) fn within(field: &str, value: usize, low: usize, high: usize) -> Result<()> {
    let must = || format!("between {low} and {high}");
    if (low..=high).contains(&value) { Ok(()) } else { Err(Error::invalid(field, value, must())) }
}

/// Checks that a number is finite and that `ok` holds.
fn real(field: &str, value: f64, ok: bool, must: &str) -> Result<()> {
    if ok && value.is_finite() { Ok(()) } else { Err(Error::invalid(field, value, must)) }
}

impl Recipe {
    /// Checks every rule that one value alone, or two together, must keep.
    pub(crate) fn check(&self) -> Result<()> {
        within("max_seq_length", self.max_seq_length, 2, 1 << 20)?;
        within("effective_batch_size", self.effective_batch_size, 1, 1 << 20)?;
        if self.steps.is_some() && self.epochs.is_some() {
            return Err(Error::invalid("epochs", "given together with `steps`", "given alone"));
        }
        let epochs = self.epochs.unwrap_or(1.0);
        real("epochs", epochs, epochs > 0.0 && epochs <= MOST_EPOCHS, "more than 0 and at most a million")?;
        real("learning_rate", self.learning_rate, self.learning_rate > 0.0, "more than 0")?;
        real("weight_decay", self.weight_decay, self.weight_decay >= 0.0, "0 or more")?;
        real("max_grad_norm", self.max_grad_norm, self.max_grad_norm >= 0.0, "0 (off) or more")?;
        let counts = [
            ("steps", self.steps),
            ("eval_steps", self.eval_steps),
            ("early_stopping_patience", self.early_stopping_patience),
        ];
        for (field, value) in counts {
            within(field, value.unwrap_or(1), 1, 1 << 40)?;
        }
        within("warmup_steps", self.warmup_steps, 0, 1 << 40)?;
        self.lora.check()
    }
}
