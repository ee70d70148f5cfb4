//! The decoder: embedding, blocks, head and loss, and the walk through them forward and backward.

use candle_core::{DType, Device, Tensor};

use crate::checkpoint::adapter::Adapter;
use crate::checkpoint::weights::BaseWeights;
use crate::data::batches::MicroBatch;
use crate::error::Result;
use crate::ops::device::autoreleased;
use crate::ops::{Backend, Index, Losses, NormWeights};
use crate::spec::model::{ModelSpec, Positions};
use crate::spec::run::{Lora, RunConfig};
use crate::trainer::candle::nn::batch::Batch;
use crate::trainer::candle::nn::block::{Block, Grads};
use crate::trainer::candle::nn::frozen::Frozen;
use crate::trainer::candle::nn::load::Loader;
use crate::trainer::candle::nn::tape::{Rows, Tape};

/// Memory of the gradients and of what else stays from one micro-batch to the next.
pub struct Buffers {
    /// Gradients of the adapters, a place for each projection.
    pub grads: Grads,
    /// The blocks' inputs on a GPU, `[blocks, rows, hidden]`: its pool must not hand them out.
    inputs: Option<Tensor>,
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
    hidden: usize,
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
            hidden: spec.hidden_size,
            device: device.clone(),
            backend,
        })
    }

    /// The device it lives on.
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// What computes it.
    pub(crate) fn backend(&self) -> Backend {
        self.backend
    }

    /// Puts an adapter on a site.
    pub fn set_adapter(&mut self, site: usize, adapter: Adapter) -> Result<()> {
        let at = &self.sites[site];
        Ok(self.blocks[at.layer].linears[at.linear].1.set_adapter(adapter)?)
    }

    /// To be told when the adapter of a site has changed in its place.
    pub(crate) fn adapter_changed(&mut self, site: usize) -> Result<()> {
        let at = &self.sites[site];
        Ok(self.blocks[at.layer].linears[at.linear].1.adapter_changed()?)
    }

    /// The adapter of a site, if one was put there.
    pub fn adapter(&self, site: usize) -> Option<&Adapter> {
        let at = &self.sites[site];
        self.blocks[at.layer].linears[at.linear].1.adapter.as_ref()
    }

    fn head(&self) -> &Frozen {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    pub(super) fn embed(&self, tokens: &Index, rows: &Rows) -> Result<Tensor> {
        let mut x = self.embedding.rows(tokens)?;
        if self.embedding_scale != 1.0 {
            x = self.backend.scaled(x, self.embedding_scale)?;
        }
        if let Some(table) = &self.positions {
            x = self.backend.add(x, &table.rows(&rows.positions)?)?;
        }
        Ok(x)
    }

    /// Logits of selected rows, `[selected, vocab]`.
    pub fn logits(&self, batch: &MicroBatch, selected: &[u32]) -> Result<Tensor> {
        let x = self.last_hidden(&Batch::new(batch, None, (&self.device, self.backend))?)?;
        self.logits_at(&x, selected)
    }

    /// The last block's output, where nothing is to be learned.
    fn last_hidden(&self, batch: &Batch) -> Result<Tensor> {
        let mut x = self.embed(&batch.tokens, &batch.rows)?;
        for block in &self.blocks {
            x = autoreleased(|| block.forward(&x, &batch.rows, None))?;
        }
        Ok(x)
    }

    /// Logits of the rows `selected` of the last block's output.
    pub(super) fn logits_at(&self, x: &Tensor, selected: &[u32]) -> Result<Tensor> {
        let selected = Index::new(selected.to_vec(), (&self.device, self.backend))?;
        let rows = self.backend.take_rows(x, &selected)?;
        let logits = self.head().forward(&self.final_norm.forward(&rows)?)?;
        match self.softcap {
            Some(cap) => Ok(((logits / cap)?.tanh()? * cap)?),
            None => Ok(logits),
        }
    }

    /// Sum of the cross-entropies of a micro-batch, without gradients.
    pub fn loss(&self, batch: &MicroBatch) -> Result<f64> {
        let batch = Batch::new(batch, None, (&self.device, self.backend))?;
        let x = self.last_hidden(&batch)?;
        let mut losses = Losses::new(batch.targets.0.numbers().len(), (&self.device, self.backend))?;
        for part in batch.target_chunks(self.loss_chunk) {
            let (rows, tokens) = part?;
            losses.add(self.logits_of(&x, &rows)?.1, &tokens, self.softcap, None)?;
        }
        Ok(losses.total()?)
    }

    /// Memory for the gradients of this decoder's adapters, which are zero at first, made once for a run.
    pub fn buffers(&self) -> Result<Buffers> {
        let linears = self.blocks.iter().flat_map(|b| b.linears.iter().map(|(_, linear)| linear));
        let zeros = |t: &Tensor| self.backend.lasting_zeros(t.shape(), t.device());
        let grads = linears.map(|linear| linear.adapter.as_ref().map(|a| a.map(zeros)).transpose());
        Ok(Buffers { grads: grads.collect::<candle_core::Result<_>>()?, inputs: None })
    }

    /// Where the blocks from `first` on put their outputs, which are the next ones' inputs: on a GPU memory that stays.
    fn input_places(&self, buffers: &mut Buffers, first: usize, rows: usize) -> Result<Vec<Option<Tensor>>> {
        let (blocks, hidden) = (self.blocks.len() - first, self.hidden);
        let Backend::Metal(queue) = self.backend else { return Ok(vec![None; blocks]) };
        if !self.grad_checkpoint {
            return Ok(vec![None; blocks]);
        }
        if buffers.inputs.as_ref().is_none_or(|old| old.dims()[1] < rows) {
            buffers.inputs = None;
            buffers.inputs = Some(queue.fixed((blocks, rows, hidden), DType::F32, &self.device)?);
        }
        let Some(all) = &buffers.inputs else { return Ok(vec![None; blocks]) };
        let most = all.dim(1)? * hidden;
        let flat = all.flatten_all()?;
        let place = |i: usize| flat.narrow(0, i * most, rows * hidden)?.reshape((rows, hidden));
        Ok((0..blocks).map(|i| place(i).map(Some)).collect::<candle_core::Result<_>>()?)
    }

    /// Index of a site among the model's projections, which is its place in [`Grads`].
    pub fn place(&self, site: usize) -> usize {
        let at = &self.sites[site];
        self.blocks[at.layer].first_site as usize + at.linear
    }

    /// Sum of the cross-entropies of a micro-batch; the gradients of `grad_scale` times that sum are added to `buffers`.
    /// `dropout` is the run's seed and the micro-batch's number.
    pub fn loss_and_grads(
        &self,
        batch: &MicroBatch,
        grad_scale: f64,
        dropout: (u64, u64),
        buffers: &mut Buffers,
    ) -> Result<f64> {
        let batch = Batch::new(batch, Some(dropout), (&self.device, self.backend))?;
        let rows = &batch.rows;
        let first = self.sites.first().map_or(self.blocks.len(), |s| s.layer);
        let places = self.input_places(buffers, first, batch.tokens.numbers().len())?;
        let mut x = self.embed(&batch.tokens, rows)?;
        let mut saved = Vec::with_capacity(self.blocks.len() - first);
        for (i, block) in self.blocks.iter().enumerate() {
            if i < first {
                x = autoreleased(|| block.forward(&x, rows, None))?;
            } else if self.grad_checkpoint {
                let y = autoreleased(|| block.forward(&x, rows, places[i - first].clone()))?;
                saved.push(Saved::Input(std::mem::replace(&mut x, y)));
            } else {
                let (y, tape) = autoreleased(|| block.forward_keep(&x, rows))?;
                saved.push(Saved::Tape(tape));
                x = y;
            }
        }
        let (loss, mut g) = self.head_backward(x, &batch, grad_scale)?;
        for (i, kept) in (first..self.blocks.len()).zip(saved).rev() {
            let block = &self.blocks[i];
            let own = block.first_site as usize..block.first_site as usize + block.linears.len();
            let dx = autoreleased(|| {
                let tape = match kept {
                    Saved::Input(x) => block.recompute(&x, rows)?,
                    Saved::Tape(tape) => tape,
                };
                block.backward(tape, g, rows, (i > first, &buffers.grads[own]))
            })?;
            let Some(dx) = dx else { break };
            g = dx;
        }
        Ok(loss)
    }

    /// Loss and the gradient with respect to the last block's output, the logits a chunk of targets at a time.
    fn head_backward(&self, x: Tensor, batch: &Batch, scale: f64) -> Result<(f64, Tensor)> {
        let mut losses = Losses::new(batch.targets.0.numbers().len(), (&self.device, self.backend))?;
        let g = self.backend.zeros(x.dims2()?, &self.device)?;
        for part in batch.target_chunks(self.loss_chunk) {
            let (rows, tokens) = part?;
            let dx = self.loss_of(&x, (&rows, &tokens), scale, &mut losses)?;
            self.backend.place_rows(&g, &dx, &rows)?;
        }
        Ok((losses.total()?, g))
    }

    /// The rows of `x` that targets belong to, and their logits.
    fn logits_of(&self, x: &Tensor, rows: &Index) -> Result<(Tensor, Tensor)> {
        let rows = self.backend.take_rows(x, rows)?;
        let logits = self.head().forward(&self.final_norm.forward(&rows)?)?;
        Ok((rows, logits))
    }

    /// Adds the losses of some targets, and gives their gradient with respect to their rows of `x`.
    fn loss_of(&self, x: &Tensor, (rows, tokens): (&Index, &Index), scale: f64, losses: &mut Losses) -> Result<Tensor> {
        let (rows, logits) = self.logits_of(x, rows)?;
        let d_logits = losses.add(logits, tokens, self.softcap, Some(scale))?;
        let d_normed = self.head().backward(&d_logits)?;
        drop(d_logits);
        Ok(self.final_norm.backward(&rows, &d_normed)?)
    }
}

enum Saved {
    Input(Tensor),
    Tape(Tape),
}
