//! Adapters as files, in the two layouts people have: PEFT's and mlx-lm's.
//!
//! | | PEFT | mlx-lm |
//! |---|---|---|
//! | weights | `adapter_model.safetensors` | `adapters.safetensors` |
//! | description | `adapter_config.json` | `adapter_config.json` |
//! | A | `base_model.model.PATH.lora_A.weight`, `[rank, in]` | `PATH.lora_a`, `[in, rank]` |
//! | B | `base_model.model.PATH.lora_B.weight`, `[out, rank]` | `PATH.lora_b`, `[rank, out]` |
//! | DoRA's magnitude | `base_model.model.PATH.lora_magnitude_vector`, `[out]` | not read or written |
//! | factor | `lora_alpha / r`, or over the root of r | `scale` |
//!
//! PATH is the linear layer in transformers' names; mlx-lm writes GPT-2's `transformer.h` as `model.h`.

mod description;
mod layout;
mod pair;
mod patterns;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use candle_core::{DType, Tensor};
use serde_json::Value;

pub use self::description::About;
use self::description::*;
pub use self::layout::Layout;
use self::layout::*;
pub use self::pair::{Adapter, AdapterGrad};
use self::patterns::Patterns;
use crate::checkpoint::tensor_file;
use crate::error::{Error, Result};
use crate::spec::model::ModelSpec;
use crate::spec::run::Lora;
use crate::store;
use crate::store::checksums::{self, Checked, SUMS};

/// Name of the file that describes an adapter, in either layout.
pub(crate) const CONFIG_FILE: &str = "adapter_config.json";

/// An adapter read from its folder, in either layout.
#[derive(Debug)]
pub struct AdapterFile {
    /// Layout of the folder it was read from.
    pub layout: Layout,
    /// Settings of the adapter, such as rank and scale.
    pub about: About,
    /// A, B and magnitude of each linear layer, by its path in transformers' names; turned as PEFT has them.
    parts: BTreeMap<String, [Option<Tensor>; 3]>,
    /// Names of the tensors that belong to no adapter.
    others: Vec<String>,
    /// Settings of the adapter that are not supported, as messages.
    refused: Vec<String>,
    /// Whether its layers differed in rank or alpha, and were made even: it computes the same, and would learn otherwise.
    pub(crate) evened: bool,
}

impl AdapterFile {
    /// Reads an adapter of either layout; which one it is shows in its description.
    pub fn read(folder: &Path) -> Result<Self> {
        // The file of the weights stands for its folder.
        let folder = match folder.parent() {
            Some(parent) if folder.is_file() && folder.extension().is_some_and(|end| end == "safetensors") => parent,
            _ => folder,
        };
        if let Checked::Damaged(reason) = checksums::check(folder, &[]) {
            let remedy =
                format!("resume the run that wrote it; or, if it was changed on purpose, remove `{SUMS}` there");
            return Err(Error::Damaged { path: folder.into(), reason, remedy });
        }
        let path = folder.join(CONFIG_FILE);
        if !path.is_file() && folder.join("adapters.npz").is_file() {
            let reason = "it has no adapter_config.json, which tells rank and scale".into();
            return Err(Error::Mismatch { path: folder.into(), reason });
        }
        let config: Value = store::load_json(&path)?;
        let bad = |message: String| Error::Parse { path: path.clone(), line: None, message, hint: None };
        let (layout, about, mut refused) = if config.get("peft_type").is_some() {
            let (about, refused) = peft_about(&config).map_err(|e| bad(e.to_string()))?;
            (Layout::Peft, about, refused)
        } else if config.get("fine_tune_type").is_some() || config.get("lora_parameters").is_some() {
            let (about, refused) = mlx_about(&config).map_err(|e| bad(e.to_string()))?;
            (Layout::MlxLm, about, refused)
        } else {
            return Err(bad("is neither PEFT's (no `peft_type`) nor mlx-lm's (no `lora_parameters`)".into()));
        };
        if about.rank == 0 {
            return Err(bad("its rank is 0".into()));
        }
        older_weights(folder, layout)?;
        let (mut parts, mut others) = (BTreeMap::<String, [Option<Tensor>; 3]>::new(), Vec::new());
        for (name, tensor) in tensor_file::load(&folder.join(layout.weights_file()))? {
            match layout.part(&name) {
                Some((layer, part)) if tensor.rank() == if part == 2 { 1 } else { 2 } => {
                    if !finite(&tensor)? {
                        return Err(bad(format!("has NaN or infinity in `{name}`")));
                    }
                    parts.entry(layer).or_default()[part] = Some(layout.turned(&tensor.to_dtype(DType::F32)?)?);
                }
                _ => others.push(name),
            }
        }
        others.sort();
        let patterns = Patterns::of(&config).filter(|_| layout == Layout::Peft);
        let evened = patterns.is_some();
        let (about, parts) = match patterns {
            Some(patterns) => patterns.even(about, parts, &mut refused)?,
            None => (about, parts),
        };
        Ok(Self { layout, about, parts, others, refused, evened })
    }

    /// Factor on the low-rank update.
    pub(crate) fn scale(&self) -> f64 {
        self.about.scale()
    }

    /// A run's settings that fit this adapter, so that it can be used without a run file.
    pub fn lora(&self) -> Lora {
        let (layers, modules) = places(self.parts.keys());
        Lora {
            rank: self.about.rank,
            alpha: self.about.alpha,
            use_rslora: self.about.use_rslora,
            use_dora: self.about.use_dora,
            dropout: 0.0,
            target_modules: modules.into_iter().collect(),
            // Only the last blocks can be meant; others show as mismatches.
            num_layers: if layers.contains(&0) { -1 } else { layers.len() as i64 },
            init_adapter: None,
        }
    }

    /// Every difference from a run with these settings, whose adapters sit on `sites` (path, `[in, out]`).
    pub(crate) fn mismatches<'a>(
        &self,
        lora: &Lora,
        sites: impl Iterator<Item = (&'a str, [usize; 2])>,
    ) -> Vec<String> {
        let mut wrong = self.refused.clone();
        let about = &self.about;
        if about.rank != lora.rank {
            wrong.push(format!("its rank is {}, the run's is {}", about.rank, lora.rank));
        }
        // mlx-lm writes the factor and not alpha, so alpha is known up to rounding.
        if (about.alpha - lora.alpha).abs() > 1e-9 * lora.alpha.abs() {
            wrong.push(format!("its alpha is {}, the run's is {}", about.alpha, lora.alpha));
        }
        for (key, its, ours) in
            [("use_dora", about.use_dora, lora.use_dora), ("use_rslora", about.use_rslora, lora.use_rslora)]
        {
            if its != ours {
                wrong.push(format!("its {key} is {its}, the run's is {ours}"));
            }
        }
        let mut expected = BTreeSet::new();
        for (path, features) in sites {
            expected.insert(path.to_owned());
            let found = self.parts.get(path);
            let ours = Layout::Peft.shapes(about.rank, features);
            let theirs = self.layout.shapes(about.rank, features);
            for (i, name) in self.layout.names(path).iter().enumerate().take(if about.use_dora { 3 } else { 2 }) {
                match found.and_then(|pair| pair[i].as_ref()) {
                    None => wrong.push(format!("`{name}` is missing")),
                    Some(t) if t.dims() != ours[i] => {
                        let dims: Vec<usize> = match self.layout {
                            Layout::Peft => t.dims().to_vec(),
                            Layout::MlxLm => t.dims().iter().rev().copied().collect(),
                        };
                        wrong.push(format!("`{name}` has shape {dims:?}, expected {:?}", theirs[i]));
                    }
                    Some(_) => {}
                }
            }
        }
        for (path, parts) in &self.parts {
            let names = self.layout.names(path);
            // Without DoRA a magnitude has no place on any layer.
            let meant = |part| expected.contains(path) && (part < 2 || about.use_dora);
            let lost = names.iter().zip(parts).enumerate().filter(|(i, (_, t))| t.is_some() && !meant(*i));
            wrong.extend(lost.map(|(_, (name, _))| format!("`{name}` does not belong to this run")));
        }
        wrong.extend(self.others.iter().map(|name| format!("`{name}` does not belong to this run")));
        wrong
    }

    /// The adapter on the linear layer at `path`, in f32.
    pub fn adapter(&self, path: &str) -> Option<Adapter> {
        match self.parts.get(path)? {
            [Some(a), Some(b), magnitude] => Some(Adapter { a: a.clone(), b: b.clone(), magnitude: magnitude.clone() }),
            _ => None,
        }
    }

    /// Paths of the linear layers that the adapter has tensors for.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.parts.keys().map(String::as_str)
    }
}

/// Refuses files that the weights lay in once, with what converts them.
fn older_weights(folder: &Path, layout: Layout) -> Result<()> {
    let (old, convert) = match layout {
        Layout::Peft => (
            "adapter_model.bin",
            "is a pickle, which can run code, and is not read: `PeftModel.from_pretrained(BASE, DIR).save_pretrained(DIR)` \
             in Python writes adapter_model.safetensors",
        ),
        Layout::MlxLm => (
            "adapters.npz",
            "is of an older mlx-lm, and is not read: `mx.save_safetensors(\"adapters.safetensors\", \
             dict(mx.load(\"adapters.npz\")))` in Python converts it",
        ),
    };
    if !folder.join(layout.weights_file()).exists() && folder.join(old).is_file() {
        return Err(Error::Mismatch { path: folder.into(), reason: format!("its `{old}` {convert}") });
    }
    Ok(())
}

/// Whether the sum of all magnitudes is a number; adapters are small.
fn finite(tensor: &Tensor) -> Result<bool> {
    Ok(tensor.to_dtype(DType::F64)?.abs()?.sum_all()?.to_scalar::<f64>()?.is_finite())
}

/// Blocks and projections that paths such as `model.layers.3.self_attn.q_proj` speak of.
fn places<'a>(paths: impl Iterator<Item = &'a String>) -> (BTreeSet<usize>, BTreeSet<String>) {
    let (mut layers, mut modules) = (BTreeSet::new(), BTreeSet::new());
    for path in paths {
        let mut parts = path.splitn(4, '.');
        let (layer, module) = (parts.nth(2).and_then(|n| n.parse().ok()), parts.next());
        layers.extend::<Option<usize>>(layer);
        modules.extend(module.map(str::to_owned));
    }
    (layers, modules)
}

/// Writes adapters (path of the linear layer, A `[rank, in]`, B `[out, rank]`) of a model with `layers` blocks.
pub(crate) fn write(
    folder: &Path,
    layout: Layout,
    about: &About,
    adapters: &BTreeMap<String, Adapter>,
    spec: &ModelSpec,
) -> Result<()> {
    let (layers, wrapped) = (spec.num_hidden_layers, spec.part_of.is_some());
    let mut tensors = HashMap::new();
    for (path, adapter) in adapters {
        let place = if wrapped { layout.wrapped(path) } else { path.clone() };
        for (name, tensor) in layout.names(&place).into_iter().zip(adapter.tensors()) {
            tensors.insert(name, layout.turned(tensor)?);
        }
    }
    tensor_file::save(&folder.join(layout.weights_file()), &tensors)?;
    let (adapted, modules) = places(adapters.keys());
    match layout {
        Layout::Peft => store::save_json(
            &folder.join(CONFIG_FILE),
            &PeftConfig {
                peft_type: "LORA".into(),
                task_type: Some("CAUSAL_LM".into()),
                base_model_name_or_path: about.base.clone(),
                r: about.rank,
                lora_alpha: about.alpha,
                lora_dropout: about.dropout,
                target_modules: match wrapped {
                    // The vision tower has projections of the same names.
                    true => format!(r".*language_model.*\.({})", short_names(&modules).join("|")).into(),
                    false => short_names(&modules).into(),
                },
                layers_to_transform: match adapted.len() < layers {
                    true => adapted.into_iter().collect(),
                    false => Value::Null,
                },
                fan_in_fan_out: spec.conv1d(),
                bias: Some("none".into()),
                inference_mode: true,
                use_dora: about.use_dora,
                use_rslora: about.use_rslora,
            },
        ),
        Layout::MlxLm => store::save_json(
            &folder.join(CONFIG_FILE),
            &MlxConfig {
                fine_tune_type: lora(),
                model: about.base.clone(),
                // It adapts the last ones, so all from the first adapted one on; a pair that is not there adds nothing.
                num_layers: (layers - adapted.first().copied().unwrap_or(0).min(layers)) as i64,
                lora_parameters: MlxParameters {
                    rank: about.rank,
                    scale: about.scale(),
                    dropout: about.dropout,
                    keys: Some(modules.into_iter().collect()),
                },
            },
        ),
    }
}
