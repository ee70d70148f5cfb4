//! The architecture of a decoder, as plain values. Families differ by data, not by code: every difference that matters for
//! memory, time or the forward pass is a field of [`ModelSpec`]. Names are Hugging Face's.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::spec::model::storage::{Dtype, Storage};

/// The families, by the `model_type` they carry in config.json.
pub(crate) const SUPPORTED: &str = "llama, mistral, qwen2, qwen3, starcoder2, gpt2, gemma2, gemma3_text, phi3; to plan for mlx-lm also qwen3_moe, gpt_oss";

/// A family of decoders.
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
    /// Layer norm (mean removed, with bias) or RMS norm.
    pub layer_norm: bool,
    /// Added under the root.
    pub eps: f64,
    /// Added to the stored weight: 1 in Gemma, 0 elsewhere.
    pub offset: f64,
}

/// Activation of the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// x * sigmoid(x)
    Silu,
    /// The tanh approximation of GELU (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// The exact GELU, with erf.
    Gelu,
}

/// The MLP of a block.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mlp {
    /// `down(act(gate(x)) * up(x))` if true, `down(act(up(x)))` if not.
    pub gated: bool,
    /// Gate and up are one stored matrix, gate first (Phi-3).
    pub fused: bool,
    /// Its non-linearity.
    pub activation: Activation,
    /// Whether its projections have a bias.
    pub bias: bool,
}

/// A mixture of experts in the place of a block's MLP: a router picks a few of many small MLPs for each token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Experts {
    /// MLPs of a block, each as wide as `intermediate_size`.
    pub num_experts: usize,
    /// Those that a token goes through.
    pub num_experts_per_tok: usize,
    /// Router and experts have biases, and attention a learned sink a head (gpt-oss).
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

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Leading dimensions of each head that are rotated.
    pub dims: usize,
    /// Stretching, if any.
    pub scaling: Option<RopeScaling>,
}

/// How attention knows where a token stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Positions {
    /// A learned table added to the embeddings (GPT-2).
    Learned,
    /// Rotation of queries and keys; `local` is used in the layers with a sliding window where it differs (Gemma 3).
    Rope {
        /// In layers that see everything, and in all layers where `local` is absent.
        global: Rope,
        /// In layers with a sliding window.
        local: Option<Rope>,
    },
}

/// The attention of a block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attention {
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; a divisor of the query heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Whether q, k and v have a bias.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub o_bias: bool,
    /// q, k and v are one stored matrix (GPT-2, Phi-3).
    pub fused_qkv: bool,
    /// RMS norm over each head of q and k (Qwen3, Gemma 3).
    pub qk_norm: bool,
    /// Scores are multiplied by this.
    pub scale: f64,
    /// `cap * tanh(score / cap)` (Gemma 2).
    pub softcap: Option<f64>,
    /// Keys visible in each layer: a query at `t` sees `t - window < s <= t`; `None` sees all.
    pub windows: Vec<Option<usize>>,
}

/// A decoder-only language model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// The family.
    pub model_type: ModelType,
    /// Width of the hidden state.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// The head is the embedding.
    pub tie_word_embeddings: bool,
    /// Norm before each sublayer, and at the end.
    pub norm: Norm,
    /// A second norm after each sublayer, before the residual is added (Gemma).
    pub post_norms: bool,
    /// Attention.
    pub attention: Attention,
    /// MLP.
    pub mlp: Mlp,
    /// Many of them, where it is a mixture of experts. Planned for mlx-lm; our own trainer refuses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<Experts>,
    /// Positions.
    pub positions: Positions,
    /// Embeddings are multiplied by this (Gemma: the root of the hidden size).
    pub embedding_scale: f64,
    /// `cap * tanh(logit / cap)` (Gemma 2).
    pub final_logit_softcapping: Option<f64>,
    /// The format the checkpoint computes in, and is stored in where it is not quantised.
    pub dtype: Dtype,
    /// How the checkpoint holds its matrices.
    pub storage: Storage,
}

impl ModelSpec {
    /// Refuses what our own trainer does not train.
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

    /// Width of all query heads together.
    pub(crate) fn q_size(&self) -> usize {
        self.attention.num_attention_heads * self.attention.head_dim
    }

    /// Width of all key heads together (and of all value heads).
    pub(crate) fn kv_size(&self) -> usize {
        self.attention.num_key_value_heads * self.attention.head_dim
    }
}

/// An architecture by the name, or the folder, that it is known by.
#[derive(Clone, Debug)]
pub struct Model {
    /// Name or folder.
    pub name: String,
    /// What it is.
    pub spec: ModelSpec,
}
