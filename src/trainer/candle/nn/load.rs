//! From the tensors of a checkpoint to the parts of a decoder, one tensor at a time.
//!
//! Every stored tensor is read, put into the format it will be held in, and let go again, so loading needs no second copy
//! of the model.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::checkpoint::stored::Stored;
use crate::checkpoint::weights::BaseWeights;
use crate::error::{Error, Result};
use crate::ops::{Backend, NormWeights, RopeTables, attention};
use crate::spec::model::frequencies::inverse_frequencies;
use crate::spec::model::{ModelSpec, Positions};
use crate::spec::run::RunConfig;
use crate::trainer::candle::nn::block::Block;
use crate::trainer::candle::nn::frozen::Frozen;
use crate::trainer::candle::nn::linear::{Linear, LoraSettings};

/// Builds the model's parts out of a [`BaseWeights`].
pub(crate) struct Loader<'a> {
    /// Where from.
    pub base: &'a BaseWeights,
    /// What.
    pub spec: &'a ModelSpec,
    /// For which run.
    pub run: &'a RunConfig,
    /// Where to.
    pub device: &'a Device,
    /// What computes there.
    pub backend: Backend,
}

impl Loader<'_> {
    /// A vector as it is stored, on the CPU: what is made of it goes to the device at its exact size.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.base.vector(name, shape, &Device::Cpu)
    }

    fn bias(&self, path: &str, width: usize) -> Result<Tensor> {
        let bias = self.tensor(&format!("{path}.bias"), &[width])?.to_dtype(DType::F32)?;
        Ok(self.backend.upload(bias.to_vec1::<f32>()?, width, self.device)?)
    }

    /// A matrix in the run's weight format.
    pub(crate) fn matrix(&self, name: &str, shape: &[usize]) -> Result<Stored> {
        let wanted = self.spec.format(self.run.execution.weights, name, shape[1]);
        if let Backend::Metal(queue) = self.backend {
            queue.keeps(wanted.matrix_bytes(shape[0], shape[1]));
        }
        let stored = self.base.format(name, shape).map_err(|e| self.base.wrong(e))?;
        if self.base.is_blank() {
            return Ok(Stored::blank(wanted, (shape[0], shape[1]))?);
        }
        if let Backend::Metal(_) = self.backend {
            let on_cpu = self.base.matrix(name, shape, stored, &Device::Cpu)?;
            let put = on_cpu.put(wanted, &Device::Cpu).and_then(|m| m.for_kernels(self.device));
            return put.map_err(|e| self.base.wrong(format!("`{name}` cannot be converted: {e}")));
        }
        if stored == wanted {
            return self.base.matrix(name, shape, stored, self.device);
        }
        // Another format is made on the CPU; only its bytes go to the device.
        let put = self.base.matrix(name, shape, stored, &Device::Cpu)?.put(wanted, self.device);
        put.map_err(|e| self.base.wrong(format!("`{name}` cannot be converted: {e}")))
    }

    /// A norm by its path.
    pub(crate) fn norm(&self, path: &str, width: usize, layer_norm: bool) -> Result<NormWeights> {
        let weight = self.tensor(&format!("{path}.weight"), &[width])?;
        let bias = if layer_norm { Some(self.tensor(&format!("{path}.bias"), &[width])?) } else { None };
        Ok(NormWeights::new(&self.spec.norm, &weight, bias.as_ref(), (self.device, self.backend))?)
    }

    /// Rope tables of the layers that see everything and of those with a window.
    pub(crate) fn ropes(&self) -> Result<[Option<Arc<RopeTables>>; 2]> {
        let Positions::Rope { global, local } = &self.spec.positions else { return Ok([None, None]) };
        let length = self.run.recipe.max_seq_length;
        let make = |rope| {
            let (frequencies, factor) = inverse_frequencies(rope, length);
            Ok::<_, Error>(Arc::new(RopeTables::new(&frequencies, factor, length, (self.device, self.backend))?))
        };
        let global = make(global)?;
        let local = local.as_ref().map_or_else(|| Ok(global.clone()), make)?;
        Ok([Some(global), Some(local)])
    }

    /// Block `i`, without adapters.
    pub(crate) fn block(&self, i: usize, ropes: &[Option<Arc<RopeTables>>; 2]) -> Result<Block> {
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
            let bias = if p.bias { Some(self.bias(&format!("{path}.{}", p.path), p.out_features)?) } else { None };
            linears.push((p.role, Linear::new(Frozen::new(self.backend, weight, bias, spec.conv1d())?, lora)));
        }
        let window = a.windows.get(i).copied().flatten();
        Ok(Block {
            backend: self.backend,
            input_norm: norm(names.input)?,
            post_attention_norm: names.post_attention.map(norm).transpose()?,
            mlp_norm: norm(names.pre_mlp)?,
            post_mlp_norm: names.post_mlp.map(norm).transpose()?,
            qk_norm: if a.qk_norm { Some((head_norm("q_norm")?, head_norm("k_norm")?)) } else { None },
            first_site: (i * linears.len()) as u64,
            linears,
            rope: ropes[usize::from(window.is_some())].clone(),
            attention: attention::Shape {
                backend: self.backend,
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
