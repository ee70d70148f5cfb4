//! The forward pass for texts that grow: what attention needs of the earlier tokens is kept, and only new ones are run.

use candle_core::Tensor;
use candle_nn::kv_cache::KvCache;

use crate::error::Result;
use crate::ops::Index;
use crate::trainer::candle::nn::block::Block;
use crate::trainer::candle::nn::decoder::Decoder;
use crate::trainer::candle::nn::tape::{Projected, Rows};

/// Tokens for which a cache makes room at a time.
const ROOM: usize = 256;

/// Keys and values of the tokens of one text, of every layer.
///
/// In f32 it takes `2 * 4 * layers * kv_heads * head_dim` bytes a token (24 KiB for Qwen2.5-0.5B, 3 KiB for the built-in
/// model), for a number of tokens rounded up to 256; while a layer's room grows, that layer is there twice. Layers with a
/// window keep what lies before it too.
pub struct Cache {
    layers: Vec<KvCache>,
    tokens: usize,
}

impl Cache {
    /// How many tokens are in it.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

impl Decoder {
    /// A cache for a new text.
    pub fn cache(&self) -> Cache {
        Cache { layers: vec![KvCache::new(0, ROOM); self.blocks.len()], tokens: 0 }
    }

    /// Runs `tokens`, which follow those in `cache`, and adds them to it. Gives the logits after those of them whose
    /// numbers are `selected`, `[selected, vocab]`: what [`Decoder::logits`] gives for the whole text.
    pub fn extend(&self, tokens: &[u32], selected: &[u32], cache: &mut Cache) -> Result<Tensor> {
        let (start, new) = (cache.tokens as u32, tokens.len());
        let place = (self.device(), self.backend());
        let positions = Index::new((start..start + new as u32).collect(), place)?;
        let rows = Rows { examples: std::iter::once(0..new).collect(), positions, dropout: None };
        let mut x = self.embed(&Index::new(tokens.to_vec(), place)?, &rows)?;
        for (block, layer) in self.blocks.iter().zip(&mut cache.layers) {
            x = block.extend(&x, &rows, layer)?;
        }
        cache.tokens += new;
        self.logits_at(&x, selected)
    }
}

impl Block {
    /// The block's output for rows that follow those in `cache`; their keys and values are added to it.
    fn extend(&self, x: &Tensor, rows: &Rows, cache: &mut KvCache) -> candle_core::Result<Tensor> {
        let Projected { q, k, v, .. } = self.qkv(&self.input_norm.forward(x)?, rows)?;
        let (k, v) = cache.append(&k, &v)?;
        let out = self.attention.forward_last(&q, &k, &v)?;
        self.mlp_forward(self.after_attention(&out, x, rows)?, rows, None)
    }
}
