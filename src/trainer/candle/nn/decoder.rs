//! The decoder: embedding, blocks, head and loss, and the walk through them forward and backward.

use candle_core::{DType, Device, Tensor};

use crate::checkpoint::adapter::Adapter;
use crate::checkpoint::weights::BaseWeights;
use crate::data::batches::MicroBatch;
use crate::error::Result;
use crate::ops::{Backend, NormWeights, place_rows};
use crate::spec::model::{ModelSpec, Positions};
use crate::spec::run::{Lora, RunConfig};
use crate::trainer::candle::nn::block::{Block, Grads};
use crate::trainer::candle::nn::frozen::Frozen;
use crate::trainer::candle::nn::load::Loader;
use crate::trainer::candle::nn::tape::{Rows, Tape};

fn rows(batch: &MicroBatch, dropout: Option<(u64, u64)>) -> Rows {
    let positions = batch.examples.iter().flat_map(|e| 0..e.len() as u32).collect();
    Rows { examples: batch.examples.clone(), positions, dropout }
}

/// Where an adapter sits, and its path in Hugging Face's names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Site {
    /// Block.
    pub layer: usize,
    /// Index of the projection in the block.
    pub linear: usize,
    /// Such as `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// Width of the input.
    pub in_features: usize,
    /// Width of the output.
    pub out_features: usize,
}

/// The sites that a run adapts, in a fixed order: by block, then in running order.
pub(crate) fn sites(spec: &ModelSpec, lora: &Lora) -> Result<Vec<Site>> {
    let all = spec.projections();
    let targets = spec.targets(&lora.target_modules)?;
    let first = lora.first_layer(spec.num_hidden_layers);
    let of_layer = |layer: usize| {
        let block = spec.block_path(layer);
        let named = all.iter().enumerate().filter(|(_, p)| targets.contains(p));
        let site = |(linear, p): (usize, &crate::spec::model::tensors::Projection)| Site {
            layer,
            linear,
            path: format!("{block}.{}", p.path),
            in_features: p.in_features,
            out_features: p.out_features,
        };
        named.map(site).collect::<Vec<_>>()
    };
    Ok((first..spec.num_hidden_layers).flat_map(of_layer).collect())
}

/// A decoder with its adapters.
pub struct Decoder {
    embedding: Frozen,
    positions: Option<Frozen>,
    embedding_scale: f64,
    pub(super) blocks: Vec<Block>,
    final_norm: NormWeights,
    head: Option<Frozen>,
    softcap: Option<f64>,
    loss_chunk: usize,
    grad_checkpoint: bool,
    /// Where the adapters are.
    pub sites: Vec<Site>,
    device: Device,
    backend: Backend,
}

impl Decoder {
    /// Loads the base onto `device`, to be computed by `backend`; there are no adapters on it yet.
    ///
    /// # Errors
    /// Where a tensor is missing, has another shape than `spec` says, or cannot be converted to the run's format.
    pub fn load(
        base: &BaseWeights,
        spec: &ModelSpec,
        run: &RunConfig,
        (device, backend): (&Device, Backend),
    ) -> Result<Self> {
        base.check(spec)?;
        let loader = Loader { base, spec, run, device, backend };
        let ropes = loader.ropes()?;
        let vocab = [spec.vocab_size, spec.hidden_size];
        let table = |name: &str, shape: &[usize]| {
            Ok::<_, crate::error::Error>(Frozen::new(backend, loader.matrix(name, shape)?, None, false)?)
        };
        // The reference multiplies by the scale rounded to the checkpoint's format.
        let scale = Tensor::new(spec.embedding_scale, &Device::Cpu)?;
        let rounded = match spec.dtype {
            crate::spec::model::Dtype::Bf16 => scale.to_dtype(DType::BF16)?.to_dtype(DType::F64)?,
            crate::spec::model::Dtype::F16 => scale.to_dtype(DType::F16)?.to_dtype(DType::F64)?,
            crate::spec::model::Dtype::F32 => scale,
        };
        Ok(Self {
            embedding: table(spec.embedding_name(), &vocab)?,
            positions: match spec.positions {
                Positions::Learned => {
                    Some(table("transformer.wpe.weight", &[spec.max_position_embeddings, spec.hidden_size])?)
                }
                Positions::Rope { .. } => None,
            },
            embedding_scale: rounded.to_scalar::<f64>()?,
            blocks: (0..spec.num_hidden_layers).map(|i| loader.block(i, &ropes)).collect::<Result<_>>()?,
            final_norm: loader.norm(spec.final_norm_name(), spec.hidden_size, spec.norm.layer_norm)?,
            head: if spec.tie_word_embeddings { None } else { Some(table("lm_head.weight", &vocab)?) },
            softcap: spec.final_logit_softcapping,
            loss_chunk: run.execution.loss_chunk,
            grad_checkpoint: run.execution.grad_checkpoint,
            sites: sites(spec, &run.recipe.lora)?,
            device: device.clone(),
            backend,
        })
    }

    /// The device it lives on.
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// Puts an adapter on a site.
    pub fn set_adapter(&mut self, site: usize, adapter: Adapter) -> Result<()> {
        let at = &self.sites[site];
        Ok(self.blocks[at.layer].linears[at.linear].1.set_adapter(adapter)?)
    }

    /// The adapter of a site, if one was put there.
    pub fn adapter(&self, site: usize) -> Option<&Adapter> {
        let at = &self.sites[site];
        self.blocks[at.layer].linears[at.linear].1.adapter.as_ref()
    }

    fn head(&self) -> &Frozen {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    pub(super) fn embed(&self, tokens: &[u32], rows: &Rows) -> Result<Tensor> {
        let ids = Tensor::from_slice(tokens, tokens.len(), &self.device)?;
        let mut x = self.embedding.rows(&ids)?;
        if self.embedding_scale != 1.0 {
            x = (x * self.embedding_scale)?;
        }
        if let Some(table) = &self.positions {
            let at = Tensor::from_slice(&rows.positions, rows.positions.len(), &self.device)?;
            x = self.backend.add(x, &table.rows(&at)?)?;
        }
        Ok(x)
    }

    /// Logits of selected rows, `[selected, vocab]`.
    pub fn logits(&self, batch: &MicroBatch, selected: &[u32]) -> Result<Tensor> {
        let rows = rows(batch, None);
        let mut x = self.embed(&batch.tokens, &rows)?;
        for block in &self.blocks {
            x = block.forward(&x, &rows)?;
        }
        self.logits_at(&x, selected)
    }

    /// Logits of the rows `selected` of the last block's output.
    pub(super) fn logits_at(&self, x: &Tensor, selected: &[u32]) -> Result<Tensor> {
        let index = Tensor::from_slice(selected, selected.len(), &self.device)?;
        let logits = self.head().forward(&self.final_norm.forward(&x.index_select(&index, 0)?)?)?;
        match self.softcap {
            Some(cap) => Ok(((logits / cap)?.tanh()? * cap)?),
            None => Ok(logits),
        }
    }

    /// Sum of the cross-entropies of a micro-batch, without gradients.
    pub fn loss(&self, batch: &MicroBatch) -> Result<f64> {
        let rows = rows(batch, None);
        let mut x = self.embed(&batch.tokens, &rows)?;
        for block in &self.blocks {
            x = block.forward(&x, &rows)?;
        }
        let mut sum = 0.0;
        for targets in batch.targets.chunks(self.loss_chunk) {
            let (_, logits, tokens) = self.logits_of(&x, targets)?;
            sum += self.backend.cross_entropy(logits, &tokens, self.softcap, 1.0)?.0;
        }
        Ok(sum)
    }

    /// Places for the gradients of an optimizer step, empty.
    pub fn no_grads(&self) -> Grads {
        self.blocks.iter().flat_map(|b| b.linears.iter().map(|_| None)).collect()
    }

    /// Index of a site among the model's projections, which is its place in [`Grads`].
    pub fn place(&self, site: usize) -> usize {
        let at = &self.sites[site];
        self.blocks[at.layer].first_site as usize + at.linear
    }

    /// Sum of the cross-entropies of a micro-batch; the gradients of `grad_scale` times that sum are added to `grads`.
    /// `dropout` is the run's seed and the micro-batch's number.
    pub fn loss_and_grads(
        &self,
        batch: &MicroBatch,
        grad_scale: f64,
        dropout: (u64, u64),
        grads: &mut Grads,
    ) -> Result<f64> {
        let rows = rows(batch, Some(dropout));
        let first = self.sites.first().map_or(self.blocks.len(), |s| s.layer);
        let mut x = self.embed(&batch.tokens, &rows)?;
        let mut saved = Vec::with_capacity(self.blocks.len() - first);
        for (i, block) in self.blocks.iter().enumerate() {
            if i < first {
                x = block.forward(&x, &rows)?;
            } else if self.grad_checkpoint {
                let y = block.forward(&x, &rows)?;
                saved.push(Saved::Input(std::mem::replace(&mut x, y)));
            } else {
                let (y, tape) = block.forward_keep(&x, &rows)?;
                saved.push(Saved::Tape(tape));
                x = y;
            }
        }
        let (loss, mut g) = self.head_backward(x, batch, grad_scale)?;
        for (i, kept) in (first..self.blocks.len()).zip(saved).rev() {
            let block = &self.blocks[i];
            let tape = match kept {
                Saved::Input(x) => block.recompute(&x, &rows)?,
                Saved::Tape(tape) => tape,
            };
            let own = block.first_site as usize..block.first_site as usize + block.linears.len();
            let Some(dx) = block.backward(tape, g, &rows, (i > first, &mut grads[own]))? else { break };
            g = dx;
        }
        Ok(loss)
    }

    /// Loss and the gradient with respect to the last block's output, the logits a chunk of targets at a time.
    fn head_backward(&self, x: Tensor, batch: &MicroBatch, scale: f64) -> Result<(f64, Tensor)> {
        let mut loss = 0.0;
        let g = x.zeros_like()?;
        for targets in batch.targets.chunks(self.loss_chunk) {
            let (part, dx) = self.loss_of(&x, targets, scale)?;
            loss += part;
            place_rows(&g, &dx, targets)?;
        }
        Ok((loss, g))
    }

    /// The rows of `x` that these targets belong to, their logits, and the tokens that should come.
    fn logits_of(&self, x: &Tensor, targets: &[(u32, u32)]) -> Result<(Tensor, Tensor, Vec<u32>)> {
        let (index, tokens): (Vec<u32>, Vec<u32>) = targets.iter().copied().unzip();
        let rows = x.index_select(&Tensor::from_slice(&index, index.len(), &self.device)?, 0)?;
        let logits = self.head().forward(&self.final_norm.forward(&rows)?)?;
        Ok((rows, logits, tokens))
    }

    /// Loss of some targets and its gradient with respect to their rows of `x`.
    fn loss_of(&self, x: &Tensor, targets: &[(u32, u32)], scale: f64) -> Result<(f64, Tensor)> {
        let (rows, logits, tokens) = self.logits_of(x, targets)?;
        let (loss, d_logits) = self.backend.cross_entropy(logits, &tokens, self.softcap, scale)?;
        let d_normed = self.head().backward(&d_logits)?;
        drop(d_logits);
        Ok((loss, self.final_norm.backward(&rows, &d_normed)?))
    }
}

enum Saved {
    Input(Tensor),
    Tape(Tape),
}
