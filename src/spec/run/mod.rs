//! A run: what is learned (the recipe) and how it is run (the execution).
//!
//! This is `run.toml`. The only defaults of any run setting are here and in [`crate::spec::run::recipe`].

pub(crate) mod data;
pub mod export_format;
pub(crate) mod grid;
pub(crate) mod grids;
pub(crate) mod packing;
pub(crate) mod recipe;

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::spec::model::Dtype;
pub use crate::spec::model::storage::Weights;
use crate::spec::run::recipe::within;
pub use crate::spec::run::recipe::{DEFAULT_EPOCHS, Lora, LrSchedule, OPTIMIZER_BLOCK, Optimizer, Recipe};

/// The model and data that ship inside the binary.
pub const BUILTIN: &str = "builtin";

/// Who runs the job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// Headroom's own trainer.
    #[default]
    Candle,
    /// The user's mlx-lm.
    MlxLm,
}

impl Engine {
    /// All of them, in the order in which they are listed.
    pub(crate) const ALL: [Self; 2] = [Self::Candle, Self::MlxLm];

    /// As written in files.
    pub(crate) fn name(self) -> &'static str {
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
    pub(crate) fn builtin() -> Self {
        Self::Train(BUILTIN.into())
    }

    /// Training rows.
    pub(crate) fn train(&self) -> &Path {
        match self {
            Self::Train(path) => path,
            Self::Split(split) => &split.train,
        }
    }

    /// Validation rows, if any.
    pub(crate) fn valid(&self) -> Option<&Path> {
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

/// Tokens of a micro-batch that no machine works on at one time; what is counted of a run is counted by them.
const MOST_TOKENS: usize = 1 << 22;

/// Chunks of a micro-batch, each of which is counted.
const MOST_CHUNKS: usize = 1 << 16;

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

/// Where the base weights live while it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Residency {
    /// In memory.
    #[default]
    Resident,
}

/// How it is run; none of it changes the recipe.
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
    pub(crate) fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::Serialise { what: "run.toml", reason: e.to_string() })
    }

    /// The same with models and files as others may know them: of each path only its last part.
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

    /// Every rule that one value alone, or two together, must keep.
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

    /// What the file format knows and this version cannot do yet.
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

    /// Micro-batches that are accumulated in an optimizer step.
    pub fn accumulation(&self) -> usize {
        self.recipe.effective_batch_size / self.execution.batch_size
    }
}

/// A model or a file as others may know it: a hub id or a name as it is, and the last part of a path that begins at a root
/// or leads upwards, because the rest tells whose machine it was on. A folder of Hugging Face's cache, whose own name is
/// a commit's, is known by its hub id.
pub(crate) fn public_name(name: &str) -> String {
    let path = Path::new(name);
    let leads_out = path.components().any(|part| part == Component::ParentDir) || name.starts_with('~');
    if !path.is_absolute() && !leads_out {
        return name.into();
    }
    let mut parts = path.components().rev().skip(1).map(|part| part.as_os_str().to_string_lossy());
    if let (Some("snapshots"), Some(repo)) = (parts.next().as_deref(), parts.next())
        && let Some(id) = repo.strip_prefix("models--")
    {
        return id.replacen("--", "/", 1);
    }
    path.file_name().map_or_else(|| "folder".into(), |last| last.to_string_lossy().into_owned())
}

/// A TOML error with its file, its line and the key that was probably meant.
pub(crate) fn toml_error(error: &toml::de::Error, text: &str, path: &Path) -> Error {
    let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let message = error.message().trim().to_owned();
    let hint = message.strip_prefix("unknown field `").and_then(|rest| {
        let (wrong, rest) = rest.split_once('`')?;
        let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
        closest(wrong, known.iter().copied()).map(|k| format!("did you mean `{k}`?"))
    });
    Error::Parse { path: path.into(), line, message, hint }
}

/// Bytes of a name from which on it is no misspelling of another, and is not compared: that takes the square of it.
pub(super) const LONGEST_NAME: usize = 200;

/// The known word nearest to `wrong`, if one is near.
pub(crate) fn closest<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .filter(|_| wrong.len() <= LONGEST_NAME)
        .map(|k| (k, strsim::jaro_winkler(wrong, k)))
        .filter(|(_, s)| *s > 0.75)
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .map(|(k, _)| k)
}

impl RunConfig {
    /// The model and the data that ship inside, as `auto` runs them.
    pub(crate) fn builtin() -> Self {
        RunConfig {
            model: BUILTIN.into(),
            data: Data::builtin(),
            engine: Default::default(),
            seed: 0,
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
        }
    }
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
            ("[recipe]\neval_steps = 0", "`eval_steps` is 0"),
            ("[recipe]\nearly_stopping_patience = 3", "there are no validation rows"),
            (
                "[recipe]\nmax_seq_length = 32768\neffective_batch_size = 1024\n[execution]\nbatch_size = 1024",
                "`batch_size` is 1024, but must be at most 128 with rows of 32768 tokens",
            ),
            (
                "[recipe]\nmax_seq_length = 1048576\n[execution]\nmlp_chunk = 1",
                "`mlp_chunk` is 1, but must be at least 16",
            ),
            ("[recipe]\nepochs = nan", "`epochs` is NaN"),
            ("[recipe]\nepochs = 1e300", "at most a million"),
            ("[recipe]\nsteps = 0", "`steps` is 0"),
            ("[recipe]\nsteps = 9223372036854775807", "`steps` is 9223372036854775807"),
            ("[recipe]\nwarmup_steps = 9223372036854775807", "`warmup_steps` is 9223372036854775807"),
            ("[execution]\nbatch_size = 9223372036854775807", "`batch_size` is 9223372036854775807"),
        ];
        for (text, expected) in cases {
            let error = parse(&format!("{base}{text}")).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn others_learn_no_folder_of_this_machine() {
        for (name, public) in [
            ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
            ("builtin", "builtin"),
            ("/home/somebody/models/mine", "mine"),
            ("/home/somebody/models/mine/", "mine"),
            ("/Users/somebody/a b/rows.jsonl", "rows.jsonl"),
            ("~/rows.jsonl", "rows.jsonl"),
            ("grids/../../somebody/rows.jsonl", "rows.jsonl"),
            ("/home/somebody/.cache/huggingface/hub/models--org--a-b/snapshots/0123abc", "org/a-b"),
            ("/home/somebody/snapshots/0123abc", "0123abc"),
            ("..", "folder"),
            ("/", "folder"),
        ] {
            assert_eq!(public_name(name), public);
        }
        let text = "model = \"/home/somebody/m.gguf\"\n[data]\ntrain = \"/home/somebody/t\"\nvalid = \"/home/somebody/v\"\n\
                    [recipe.lora]\ninit_adapter = \"/home/somebody/a\"";
        let public = parse(text).unwrap().public().to_toml().unwrap();
        assert!(!public.contains("somebody") && public.contains("\"m.gguf\""), "{public}");
    }

    #[test]
    fn a_name_of_a_megabyte_is_no_misspelling() {
        let error = parse(&format!("model = \"m\"\ndata = \"d\"\n{} = 1", "x".repeat(1 << 20))).unwrap_err();
        assert_eq!(error.hint(), None);
        assert_eq!(closest(&"x".repeat(LONGEST_NAME + 1), ["x"].into_iter()), None);
    }

    #[test]
    fn rslora_divides_by_the_root_of_the_rank() {
        let lora = Lora { rank: 16, alpha: 8.0, ..Lora::default() };
        assert_eq!(lora.scale(), 0.5);
        let rslora = Lora { use_rslora: true, ..lora };
        assert_eq!(rslora.scale(), 2.0);
        assert_eq!((rslora.with_rank(4).alpha, rslora.with_rank(4).scale()), (4.0, 2.0));
    }

    #[test]
    fn what_an_optimizer_remembers_of_a_tensor() {
        // 64 x 100 numbers: 25 blocks of 256; fewer than 4096 stay in f32.
        assert_eq!(Optimizer::Adamw.state_bytes(&[64, 100]), 2 * 4 * 6400);
        assert_eq!(Optimizer::Adamw8bit.state_bytes(&[64, 100]), 2 * (6400 + 4 * 25));
        assert_eq!(Optimizer::Adamw8bit.state_bytes(&[4, 100]), 2 * 4 * 400);
        assert_eq!(Optimizer::Adafactor.state_bytes(&[64, 100]), 4 * 164);
        assert_eq!(Optimizer::Adafactor.state_bytes(&[100]), 400);
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
