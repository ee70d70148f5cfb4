//! The door to the base weights: from safetensors to blocks, a tensor at a time.
//!
//! Every stored tensor is read, put into the format it will be held in, and let go again, so loading needs
//! no second copy of the model.

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::attention;
use super::block::Block;
use super::checkpoint_file::CheckpointFile;
use super::frozen::Stored;
use super::linear::{Frozen, Linear, LoraSettings};
use super::ops::{NormWeights, RopeTables};
use super::rope::inverse_frequencies;
use crate::error::{Error, Result};
use crate::spec::model::{ModelSpec, Positions};
use crate::spec::run::RunConfig;

/// The open files of a checkpoint.
pub struct Store {
    /// For messages.
    pub folder: PathBuf,
    /// Each tensor is in one of them.
    pub files: Vec<CheckpointFile>,
}

/// Prefixes that other writers put before transformers' names, or leave out.
const PREFIXES: [(&str, &str); 3] =
    [("transformer.", ""), ("model.", "language_model.model."), ("model.", "model.language_model.")];

impl Store {
    fn wrong(&self, reason: String) -> Error {
        Error::Weights { path: self.folder.clone(), reason }
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.files.iter().find_map(|f| f.shape(name))
    }

    /// The name under which the file keeps the tensor that transformers calls `name`.
    pub fn stored_name(&self, name: &str) -> Option<String> {
        if self.shape(name).is_some() {
            return Some(name.to_owned());
        }
        let variants =
            PREFIXES.iter().filter_map(|(ours, theirs)| name.strip_prefix(ours).map(|n| format!("{theirs}{n}")));
        variants.into_iter().find(|n| self.shape(n).is_some())
    }

    /// A tensor in the format it is stored in; its name and shape are checked.
    pub fn load(&self, name: &str, shape: &[usize], device: &Device) -> Result<Tensor> {
        let stored = self.stored_name(name).ok_or_else(|| self.wrong(format!("`{name}` is missing")))?;
        let tensor = self.files.iter().find_map(|f| f.load(&stored, device)).unwrap_or(Err("it is gone".into()));
        let tensor = tensor.map_err(|e| self.wrong(format!("`{name}` cannot be read: {e}")))?;
        if tensor.dims() != shape {
            return Err(self.wrong(format!("`{name}` is {:?}, but config.json says {shape:?}", tensor.dims())));
        }
        if !matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16) {
            return Err(
                self.wrong(format!("`{name}` is stored as {:?}; f32, f16 and bf16 are understood", tensor.dtype()))
            );
        }
        Ok(tensor)
    }

    /// Some rows (first dimension) of a tensor that [`Store::check`] has seen, in f32.
    pub fn rows(&self, name: &str, rows: std::ops::Range<usize>) -> Result<Tensor> {
        let stored = self.stored_name(name).ok_or_else(|| self.wrong(format!("`{name}` is missing")))?;
        let found = self.files.iter().find_map(|f| f.load_rows(&stored, rows.clone(), &Device::Cpu));
        let tensor = found.unwrap_or(Err("it is gone".into()));
        let tensor = tensor.map_err(|e| self.wrong(format!("`{name}` cannot be read: {e}")))?;
        Ok(tensor.to_dtype(DType::F32)?)
    }

    /// Checks that every tensor of the model is there in its right shape, and lists all that are not.
    pub fn check(&self, spec: &ModelSpec) -> Result<()> {
        let wrong: Vec<String> = spec
            .tensors()
            .into_iter()
            .filter_map(|t| match self.stored_name(&t.name).and_then(|n| self.shape(&n)) {
                None => Some(format!("`{}` is missing", t.name)),
                Some(shape) if shape != t.shape => {
                    Some(format!("`{}` is {shape:?}, but config.json says {:?}", t.name, t.shape))
                }
                Some(_) => None,
            })
            .collect();
        match wrong.len() {
            0 => Ok(()),
            n => {
                let rest = if n > 5 { format!(" and {} more", n - 5) } else { String::new() };
                Err(self.wrong(format!("{}{rest}", wrong[..n.min(5)].join(", "))))
            }
        }
    }
}

/// Builds the model's parts out of a [`Store`].
pub struct Loader<'a> {
    /// Where from.
    pub store: &'a Store,
    /// What.
    pub spec: &'a ModelSpec,
    /// For which run.
    pub run: &'a RunConfig,
    /// Where to.
    pub device: &'a Device,
}

impl Loader<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.store.load(name, shape, self.device)
    }

    /// A matrix in the run's weight format.
    pub fn matrix(&self, name: &str, shape: &[usize]) -> Result<Stored> {
        // The format is made on the CPU; only its bytes go to the device.
        let tensor = self.store.load(name, shape, &Device::Cpu)?;
        Ok(Stored::new(&tensor, self.run.execution.weights, self.device)?)
    }

    /// A norm by its path.
    pub fn norm(&self, path: &str, width: usize, layer_norm: bool) -> Result<NormWeights> {
        let weight = self.tensor(&format!("{path}.weight"), &[width])?;
        let bias = if layer_norm { Some(self.tensor(&format!("{path}.bias"), &[width])?) } else { None };
        Ok(NormWeights::new(&self.spec.norm, &weight, bias.as_ref())?)
    }

    /// Rope tables of the layers that see everything and of those with a window.
    pub fn ropes(&self) -> Result<[Option<Arc<RopeTables>>; 2]> {
        let Positions::Rope { global, local } = &self.spec.positions else { return Ok([None, None]) };
        let length = self.run.recipe.max_seq_length;
        let make = |rope| {
            let (frequencies, factor) = inverse_frequencies(rope, length);
            Ok::<_, Error>(Arc::new(RopeTables::new(&frequencies, factor, length, self.device)?))
        };
        let global = make(global)?;
        let local = local.as_ref().map_or_else(|| Ok(global.clone()), make)?;
        Ok([Some(global), Some(local)])
    }

    /// Block `i`, without adapters.
    pub fn block(&self, i: usize, ropes: &[Option<Arc<RopeTables>>; 2]) -> Result<Block> {
        let (spec, path) = (self.spec, self.spec.block_path(i));
        let names = spec.norm_names();
        let norm = |name: &str| self.norm(&format!("{path}.{name}"), spec.hidden_size, spec.norm.layer_norm);
        let a = &spec.attention;
        let head_norm = |name: &str| self.norm(&format!("{path}.self_attn.{name}"), a.head_dim, false);
        let projections = spec.projections();
        let lora = &self.run.recipe.lora;
        let lora = LoraSettings { scale: lora.scale(), dropout: lora.dropout, use_dora: lora.use_dora };
        let mut linears = Vec::with_capacity(projections.len());
        for p in &projections {
            let shape = if spec.conv1d() { [p.in_features, p.out_features] } else { [p.out_features, p.in_features] };
            let weight = self.matrix(&format!("{path}.{}.weight", p.path), &shape)?;
            let bias =
                if p.bias { Some(self.tensor(&format!("{path}.{}.bias", p.path), &[p.out_features])?) } else { None };
            linears.push((p.role, Linear::new(Frozen::new(weight, bias, spec.conv1d())?, lora)));
        }
        let window = a.windows.get(i).copied().flatten();
        Ok(Block {
            input_norm: norm(names.input)?,
            post_attention_norm: names.post_attention.map(norm).transpose()?,
            mlp_norm: norm(names.pre_mlp)?,
            post_mlp_norm: names.post_mlp.map(norm).transpose()?,
            qk_norm: if a.qk_norm { Some((head_norm("q_norm")?, head_norm("k_norm")?)) } else { None },
            first_site: (i * linears.len()) as u64,
            linears,
            rope: ropes[usize::from(window.is_some())].clone(),
            attention: attention::Shape {
                heads: a.num_attention_heads,
                kv_heads: a.num_key_value_heads,
                head_dim: a.head_dim,
                scale: a.scale,
                softcap: a.softcap,
                window,
                chunk: self.run.execution.attention_chunk,
            },
            mlp: spec.mlp,
            mlp_chunk: self.run.execution.mlp_chunk,
        })
    }
}
