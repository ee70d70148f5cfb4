//! The architecture of a decoder, as plain values. Families differ by data, not by code: every difference that matters for
//! memory, time or the forward pass is a field of [`ModelSpec`]. Names are Hugging Face's.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::spec::model::storage::{Dtype, Format, Storage};
use crate::spec::model::weights::Weights;

/// Families that are supported, by the `model_type` in their config.json.
pub(crate) const SUPPORTED: &str = "llama, mistral, qwen2, qwen3, starcoder2, gpt2, gemma2, gemma3_text, phi3; to plan for mlx-lm also qwen3_moe, gpt_oss";

/// A family of decoders; the names are Hugging Face's `model_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the names are the documentation
pub enum ModelType {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Starcoder2,
    Gpt2,
    Gemma2,
    Gemma3,
    Phi3,
    #[serde(rename = "gpt_oss")]
    GptOss,
}

/// How the hidden state is normalised before a sublayer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Norm {
    /// Whether it is layer norm (mean removed, with bias) instead of RMS norm.
    pub layer_norm: bool,
    /// Constant added to the variance (or mean square) under the root.
    pub eps: f64,
    /// Constant added to the stored weight: 1 in Gemma, 0 elsewhere.
    pub offset: f64,
}

/// Non-linearity of a block's MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// SiLU: `x * sigmoid(x)`.
    Silu,
    /// The tanh approximation of GELU (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// The exact GELU, computed with the error function.
    Gelu,
}

/// The MLP (feed-forward layer) of a block.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mlp {
    /// Whether the MLP is gated: `down(act(gate(x)) * up(x))` if true, `down(act(up(x)))` if not.
    pub gated: bool,
    /// Whether gate and up are stored as one matrix, gate first (Phi-3).
    pub fused: bool,
    /// Non-linearity between the projections.
    pub activation: Activation,
    /// Whether the projections of the MLP have a bias.
    pub bias: bool,
}

/// A mixture of experts in the place of a block's MLP: a router picks a few of many small MLPs for each token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Experts {
    /// Number of MLPs in a block, each as wide as `intermediate_size`.
    pub num_experts: usize,
    /// Number of experts that each token goes through.
    pub num_experts_per_tok: usize,
    /// Whether router and experts have biases, and attention a learned sink a head (gpt-oss).
    pub gpt_oss: bool,
}

/// How rope frequencies are stretched beyond the trained length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // Hugging Face's names
pub enum RopeScaling {
    Linear {
        factor: f64,
    },
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: usize,
    },
    Yarn {
        factor: f64,
        beta_fast: f64,
        beta_slow: f64,
        attention_factor: f64,
        original_max_position_embeddings: usize,
        truncate: bool,
    },
    LongRope {
        short_factor: Vec<f64>,
        long_factor: Vec<f64>,
        attention_factor: f64,
        original_max_position_embeddings: usize,
    },
}

/// Rotary position embedding: how queries and keys are rotated by their position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    /// Base of the rotation frequencies (`rope_theta`).
    pub theta: f64,
    /// Number of leading dimensions of each head that are rotated.
    pub dims: usize,
    /// How the frequencies are stretched beyond the trained length, if at all.
    pub scaling: Option<RopeScaling>,
}

/// How attention knows the position of a token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Positions {
    /// A learned table added to the embeddings (GPT-2).
    Learned,
    /// Rotation of queries and keys; `local` is used in the layers with a sliding window where it differs (Gemma 3).
    Rope {
        /// Rotation in layers that see every earlier token, and in all layers where `local` is absent.
        global: Rope,
        /// Rotation in layers with a sliding window, where it differs.
        local: Option<Rope>,
    },
}

/// The attention of a block, and the sliding windows of all layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attention {
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads; a divisor of the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Whether the query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub o_bias: bool,
    /// Whether queries, keys and values are projected by one stored matrix (GPT-2, Phi-3).
    pub fused_qkv: bool,
    /// Whether RMS norm is applied to each head of queries and keys (Qwen3, Gemma 3).
    pub qk_norm: bool,
    /// Factor on the attention scores before softmax, usually `1 / sqrt(head_dim)`.
    pub scale: f64,
    /// Soft cap of the attention scores, `cap * tanh(score / cap)` (Gemma 2).
    pub softcap: Option<f64>,
    /// Sliding window of each layer in keys: a query at `t` sees `t - window < s <= t`; `None` sees all earlier keys.
    pub windows: Vec<Option<usize>>,
}

/// The architecture of a decoder-only language model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// Family that the model belongs to.
    pub model_type: ModelType,
    /// `model_type` of the vision-language model whose text part this is, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_of: Option<String>,
    /// Width of the hidden state between blocks.
    pub hidden_size: usize,
    /// Width inside a block's MLP, or inside one expert of a mixture.
    pub intermediate_size: usize,
    /// Number of transformer blocks.
    pub num_hidden_layers: usize,
    /// Number of tokens in the vocabulary: the rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence the model was made for, tokens.
    pub max_position_embeddings: usize,
    /// Whether the output head shares the weights of the embedding.
    pub tie_word_embeddings: bool,
    /// Kind of norm before each sublayer and after the last block.
    pub norm: Norm,
    /// Whether a second norm follows each sublayer, before the residual is added (Gemma).
    pub post_norms: bool,
    /// Attention of the blocks.
    pub attention: Attention,
    /// MLP of the blocks.
    pub mlp: Mlp,
    /// Experts of each block, where the model is a mixture: planned for mlx-lm, refused by the candle engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<Experts>,
    /// How the model encodes positions: a learned table, or rotation.
    pub positions: Positions,
    /// Factor on the embeddings (Gemma: the root of the hidden size; 1 elsewhere).
    pub embedding_scale: f64,
    /// Soft cap of the logits, `cap * tanh(logit / cap)` (Gemma 2).
    pub final_logit_softcapping: Option<f64>,
    /// Number format the checkpoint computes in, and is stored in where it is not quantised.
    pub dtype: Dtype,
    /// Formats in which the checkpoint stores its matrices.
    pub storage: Storage,
}

impl ModelSpec {
    /// Refuses architectures that the candle engine does not train: mixtures of experts.
    pub(crate) fn trained_here(&self) -> Result<()> {
        match self.experts {
            None => Ok(()),
            Some(_) => Err(Error::UnknownArchitecture {
                model_type: if self.model_type == ModelType::GptOss { "gpt_oss" } else { "qwen3_moe" }.into(),
                reason: Some("it is a mixture of experts, which is planned for mlx-lm (`engine = \"mlx-lm\"`) but not trained here".into()),
                supported: SUPPORTED,
            }),
        }
    }

    /// Refuses files that mlx-lm does not read.
    pub(crate) fn read_by_mlx(&self, weights: Weights) -> Result<()> {
        match self.storage.format {
            Format::Gguf(_) | Format::Int8 => {
                let stored = if weights == Weights::Stored { "stored" } else { weights.name() };
                let must = "used with the engine `candle`: mlx-lm trains on no GGUF file";
                Err(Error::invalid("weights", format!("{stored} of a GGUF file"), must))
            }
            _ => Ok(()),
        }
    }

    /// Width of the queries of a token, all heads together.
    pub(crate) fn q_size(&self) -> usize {
        self.attention.num_attention_heads * self.attention.head_dim
    }

    /// Width of the keys of a token, all heads together; that of the values is the same.
    pub(crate) fn kv_size(&self) -> usize {
        self.attention.num_key_value_heads * self.attention.head_dim
    }
}

/// A model's architecture with the name or the folder it was given by.
#[derive(Clone, Debug)]
pub struct Model {
    /// Name on the Hugging Face hub, or path of the model's folder.
    pub name: String,
    /// Architecture of the model.
    pub spec: ModelSpec,
    /// What was understood of the name, where it is not that of a model which is known: a sentence.
    pub understood: Option<String>,
    /// Weight format that the name asks for, where its own files are of no use.
    pub weights: Option<Weights>,
}

impl Model {
    /// A model that is what its name or its files say; of a vision-language model only the text part is meant.
    pub(crate) fn new(name: impl Into<String>, spec: ModelSpec) -> Self {
        let name = name.into();
        let understood = spec.part_of.as_ref().map(|whole| {
            format!("`{name}` is a vision-language model (`{whole}`); its text part is planned and trained")
        });
        Self { name, spec, understood, weights: None }
    }
}
