//! Models of drawn sizes, of every family that our own engine trains.

/// The families, by `model_type`.
pub const FAMILIES: [&str; 9] =
    ["llama", "mistral", "qwen2", "qwen3", "starcoder2", "gpt2", "gemma2", "gemma3_text", "phi3"];

/// Sizes of a model.
pub struct Sizes {
    /// Key heads, heads, and the width of one.
    pub heads: [usize; 3],
    pub intermediate: usize,
    pub layers: usize,
    pub vocab: usize,
    pub tied: bool,
    /// Window of the layers that have one; families that need one take `gemma_window`.
    pub window: Option<usize>,
    pub gemma_window: usize,
    /// Longest sequence.
    pub positions: usize,
}

impl Sizes {
    /// Width of the hidden state.
    pub fn hidden(&self) -> usize {
        self.heads[1] * self.heads[2]
    }

    /// A config.json of a family.
    pub fn config(&self, family: &str) -> String {
        let ([kv, heads, head_dim], hidden) = (self.heads, self.hidden());
        let Self { intermediate, layers, vocab, tied, positions, .. } = *self;
        if family == "gpt2" {
            return format!(
                r#"{{"model_type":"gpt2","n_embd":{hidden},"n_layer":{layers},"n_head":{heads},"n_positions":{positions},"n_inner":{intermediate},"vocab_size":{vocab}}}"#
            );
        }
        let window = if family.starts_with("gemma") { Some(self.gemma_window) } else { self.window };
        let window = window.map_or("null".into(), |n| n.to_string());
        format!(
            r#"{{"model_type":"{family}","hidden_size":{hidden},"intermediate_size":{intermediate},"num_hidden_layers":{layers},"num_attention_heads":{heads},"num_key_value_heads":{kv},"head_dim":{head_dim},"vocab_size":{vocab},"tie_word_embeddings":{tied},"sliding_window":{window},"max_position_embeddings":{positions},"attn_logit_softcapping":20.0,"attention_bias":true}}"#
        )
    }
}
