//! A decoder's architecture, from any Hugging Face `config.json`.
//!
//! Families differ by data, not by code: every difference that matters for memory, time or the
//! forward pass is a field of [`ModelSpec`]. Names are Hugging Face's.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::spec::config::Config;
use crate::spec::quantization;
use crate::spec::storage::Storage;

pub use crate::spec::storage::Dtype;

/// The families, by the `model_type` they carry in config.json.
pub const SUPPORTED: &str = "llama, mistral, qwen2, qwen3, starcoder2, gpt2, gemma2, gemma3_text, phi3; to plan for mlx-lm also qwen3_moe, gpt_oss";

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
    /// Reads the text of a config.json, in the spelling of transformers 4 or 5.
    pub fn from_config(text: &str) -> Result<Self> {
        let bad = |message: String, line| Error::Parse { path: "config.json".into(), line, message, hint: None };
        let value: Value = serde_json::from_str(text).map_err(|e| bad(e.to_string(), Some(e.line())))?;
        let Value::Object(map) = value else { return Err(bad("is no JSON object".into(), None)) };
        Self::from_map(&map)
    }

    /// Reads a parsed config.json.
    pub fn from_map(outer: &Map<String, Value>) -> Result<Self> {
        let config = Config::new(outer)?;
        let mut spec = config.spec()?;
        spec.check()?;
        spec.storage = quantization::storage(&config, &spec)?;
        Ok(spec)
    }

    fn check(&self) -> Result<()> {
        let a = &self.attention;
        let positive = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("num_attention_heads", a.num_attention_heads),
            ("num_key_value_heads", a.num_key_value_heads),
            ("head_dim", a.head_dim),
        ];
        for (field, value) in positive {
            // 2^24 of anything is beyond every model; it guards the arithmetic against overflow.
            if value == 0 || value > 1 << 24 {
                return Err(Error::invalid(field, value, "between 1 and 16777216"));
            }
        }
        if !a.num_attention_heads.is_multiple_of(a.num_key_value_heads) {
            return Err(Error::invalid(
                "num_key_value_heads",
                a.num_key_value_heads,
                format!("a divisor of num_attention_heads ({})", a.num_attention_heads),
            ));
        }
        if let Positions::Rope { global, .. } = &self.positions
            && (!global.dims.is_multiple_of(2) || global.dims > a.head_dim || global.dims == 0)
        {
            return Err(Error::invalid("head_dim", a.head_dim, "even, and at least as wide as the rotated part"));
        }
        Ok(())
    }

    /// Refuses what our own trainer does not train.
    pub fn trained_here(&self) -> Result<()> {
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
    pub fn q_size(&self) -> usize {
        self.attention.num_attention_heads * self.attention.head_dim
    }

    /// Width of all key heads together (and of all value heads).
    pub fn kv_size(&self) -> usize {
        self.attention.num_key_value_heads * self.attention.head_dim
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(extra: &str) -> String {
        format!(
            r#"{{"hidden_size":64,"intermediate_size":176,"num_hidden_layers":4,"num_attention_heads":4,"num_key_value_heads":2,"vocab_size":101,"max_position_embeddings":512{extra}}}"#
        )
    }

    #[test]
    fn both_spellings_describe_the_same_model() {
        let old = ModelSpec::from_config(&config(r#","model_type":"llama","torch_dtype":"bfloat16","rope_theta":500000.0,"rope_scaling":{"type":"linear","factor":4.0}"#)).unwrap();
        let new = ModelSpec::from_config(&config(
            r#","model_type":"llama","dtype":"bfloat16","rope_parameters":{"rope_type":"linear","factor":4.0,"rope_theta":500000.0}"#,
        ))
        .unwrap();
        assert_eq!(old, new);
        assert_eq!(old.dtype, Dtype::Bf16);
        let Positions::Rope { global, .. } = &old.positions else { panic!("llama has rope") };
        assert_eq!((global.theta, &global.scaling), (500_000.0, &Some(RopeScaling::Linear { factor: 4.0 })));
    }

    #[test]
    fn windows_follow_the_family_and_its_layer_types() {
        let windows = |extra: &str| ModelSpec::from_config(&config(extra)).unwrap().attention.windows;
        assert_eq!(windows(r#","model_type":"mistral","sliding_window":8"#), vec![Some(8); 4]);
        assert_eq!(windows(r#","model_type":"mistral","sliding_window":null"#), vec![None; 4]);
        assert_eq!(windows(r#","model_type":"gemma2","sliding_window":8"#), [Some(8), None, Some(8), None]);
        assert_eq!(
            windows(r#","model_type":"gemma3_text","sliding_window":8,"sliding_window_pattern":3"#),
            [Some(8), Some(8), None, Some(8)]
        );
        let typed = r#","model_type":"gemma3_text","sliding_window":8,"layer_types":["full_attention","sliding_attention","full_attention","full_attention"]"#;
        assert_eq!(windows(typed), [None, Some(8), None, None]);
        assert_eq!(windows(r#","model_type":"qwen2","sliding_window":8,"use_sliding_window":false"#), vec![None; 4]);
        assert_eq!(
            windows(r#","model_type":"qwen2","sliding_window":8,"use_sliding_window":true,"max_window_layers":3"#),
            [None, None, None, Some(8)]
        );
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let refuse = |extra: &str| ModelSpec::from_config(&config(extra)).unwrap_err().to_string();
        assert!(refuse(r#","model_type":"t5""#).contains("unknown architecture `t5`"));
        assert!(refuse(r#","model_type":"mixtral","num_local_experts":8"#).contains("mixture of experts"));
        assert!(refuse(r#","model_type":"qwen3_next""#).contains("hybrid"));
        assert!(
            refuse(r#","model_type":"llama","rope_scaling":{"rope_type":"dynamic","factor":2.0}"#)
                .contains("is dynamic")
        );
        assert!(refuse(r#","model_type":"llama","head_dim":0"#).contains("`head_dim` is 0"));
        assert!(refuse("").contains("no `model_type`"));
        assert!(ModelSpec::from_config("{").is_err());
        assert!(
            ModelSpec::from_config(r#"{"model_type":"llama","hidden_size":"big"}"#)
                .unwrap_err()
                .to_string()
                .contains("whole number")
        );
    }

    #[test]
    fn mixtures_are_read_and_not_trained_here() {
        let moe = |extra: &str| {
            ModelSpec::from_config(&config(&format!(
                r#","model_type":"qwen3_moe","num_experts":16,"num_experts_per_tok":2,"moe_intermediate_size":48,"head_dim":16{extra}"#
            )))
        };
        let spec = moe("").unwrap();
        assert_eq!(spec.experts, Some(Experts { num_experts: 16, num_experts_per_tok: 2, gpt_oss: false }));
        assert_eq!((spec.intermediate_size, spec.attention.qk_norm), (48, true));
        let refused = spec.trained_here().unwrap_err().to_string();
        assert!(refused.contains("`qwen3_moe`") && refused.contains("mlx-lm"), "{refused}");
        assert!(moe(r#","decoder_sparse_step":2"#).unwrap_err().to_string().contains("decoder_sparse_step"));
        assert!(moe(r#","mlp_only_layers":[0]"#).unwrap_err().to_string().contains("mlp_only_layers"));
        let oss = r#","model_type":"gpt_oss","num_local_experts":8,"num_experts_per_tok":4,"head_dim":16,"sliding_window":128"#;
        let spec = ModelSpec::from_config(&config(oss)).unwrap();
        assert_eq!(spec.attention.windows, [Some(128), None, Some(128), None]);
        assert!(spec.attention.qkv_bias && spec.attention.o_bias && !spec.tie_word_embeddings);
    }

    #[test]
    fn odd_shapes_are_caught() {
        let text =
            config(r#","model_type":"llama""#).replace(r#""num_key_value_heads":2"#, r#""num_key_value_heads":3"#);
        assert!(ModelSpec::from_config(&text).unwrap_err().to_string().contains("divisor"));
    }
}
