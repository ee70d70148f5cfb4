//! A decoder's architecture, from any Hugging Face `config.json`.
//!
//! Families differ by data, not by code: every difference that matters for memory, time or the
//! forward pass is a field of [`ModelSpec`]. Names are Hugging Face's.

pub mod catalogue;
mod config;
pub mod frequencies;
pub mod gguf;
mod quantization;
mod rope;
pub mod storage;
pub mod tensors;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::spec::model::config::Config;
pub use crate::spec::model::storage::Dtype;
use crate::spec::model::storage::Storage;

/// The families, by the `model_type` they carry in config.json.
pub const SUPPORTED: &str = "llama, mistral, qwen2, qwen3, starcoder2, gpt2, gemma2, gemma3_text, phi3; to plan for mlx-lm also qwen3_moe, gpt_oss";

/// Parameters of the largest model that is believed, some thirty times the largest there is. Bytes and operations of a
/// model of this size fit into 64 bits.
const LARGEST_MODEL: u128 = 1 << 45;

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
        Self::from_map(&config::parse(text)?)
    }

    /// Reads a parsed config.json.
    pub fn from_map(outer: &Map<String, Value>) -> Result<Self> {
        let config = Config::new(outer)?;
        let mut spec = config.spec()?;
        spec.check()?;
        spec.storage = quantization::storage(&config, &spec)?;
        Ok(spec)
    }

    /// Sizes have been held to their bounds when they were read; here it is how they go together.
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
        if let Some((field, value)) = positive.into_iter().find(|(_, value)| *value == 0) {
            return Err(Error::invalid(field, value, "at least 1"));
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
        let numbers = |shape: &[usize]| shape.iter().map(|n| *n as u128).product::<u128>();
        let block: u128 = self.block_tensors().iter().map(|(_, shape)| numbers(shape)).sum();
        let learned = if self.positions == Positions::Learned { self.max_position_embeddings } else { 0 };
        let tables = numbers(&[2 * self.vocab_size + learned, self.hidden_size]);
        let all = self.num_hidden_layers as u128 * block + tables;
        if all > LARGEST_MODEL {
            let must = format!("at most {LARGEST_MODEL}: its sizes cannot be right");
            return Err(Error::invalid("number of parameters", all, must));
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

    /// A config of four layers with some of its keys replaced.
    fn with(changes: &str) -> Result<ModelSpec> {
        let mut map = config::parse(&config(r#","model_type":"llama""#)).unwrap();
        map.extend(config::parse(changes).unwrap());
        ModelSpec::from_map(&map)
    }

    #[test]
    fn sizes_are_held_before_they_are_used() {
        for (changes, said) in [
            (
                r#"{"num_hidden_layers":1000000000000}"#,
                "`num_hidden_layers` in `config.json` is 1000000000000, but must be at most 2048",
            ),
            (r#"{"num_hidden_layers":9223372036854775808}"#, "at most 2048"),
            (
                r#"{"num_hidden_layers":null,"n_layer":64000}"#,
                "`n_layer` in `config.json` is 64000, but must be at most 2048",
            ),
            (r#"{"num_hidden_layers":0}"#, "`num_hidden_layers` is 0, but must be at least 1"),
            (r#"{"num_hidden_layers":4.0}"#, "a whole number"),
            (r#"{"num_hidden_layers":-1}"#, "a whole number"),
            (r#"{"hidden_size":18446744073709551615}"#, "`hidden_size` in `config.json` is 18446744073709551615"),
            (r#"{"head_dim":10000000000}"#, "`head_dim` in `config.json` is 10000000000, but must be at most 16384"),
            (r#"{"head_dim":15}"#, "`head_dim` is 15, but must be even"),
            (r#"{"vocab_size":16777217}"#, "`vocab_size` in `config.json` is 16777217"),
            (r#"{"max_position_embeddings":4294967296}"#, "`max_position_embeddings` in `config.json`"),
            (
                r#"{"num_hidden_layers":2048,"hidden_size":1048576,"intermediate_size":4194304,"head_dim":16384,"num_attention_heads":16384}"#,
                "`number of parameters` is",
            ),
            (
                r#"{"model_type":"phi3","partial_rotary_factor":1e30}"#,
                "`partial_rotary_factor` in `config.json` is 1000",
            ),
            (r#"{"model_type":"phi3","partial_rotary_factor":0}"#, "`partial_rotary_factor` in `config.json` is 0"),
            (r#"{"partial_rotary_factor":0.5}"#, "must be 1: the heads of this family are rotated whole"),
            (r#"{"rms_norm_eps":-1e-6}"#, "a number from 0 to 1"),
            (r#"{"model_type":"gemma2","attn_logit_softcapping":0}"#, "`attn_logit_softcapping` in `config.json` is 0"),
            (r#"{"model_type":"gemma2","query_pre_attn_scalar":-4}"#, "`query_pre_attn_scalar` in `config.json` is -4"),
        ] {
            let error = with(changes).unwrap_err().to_string();
            assert!(error.contains(said), "{changes}: {error}");
        }
        let long = format!("{}{}", " ".repeat(1 << 20), config(""));
        assert!(ModelSpec::from_config(&long).unwrap_err().to_string().contains("at most 1048576 are read"));
    }

    #[test]
    fn keys_that_change_the_result_are_obeyed_or_refused_by_name() {
        let long = |n: usize| vec!["1.0"; n].join(",");
        let longrope = |short: &str, more: &str| {
            format!(
                r#"{{"rope_scaling":{{"rope_type":"longrope","short_factor":[{short}],"long_factor":[{}]{more}}}}}"#,
                long(8)
            )
        };
        for (changes, said) in [
            (r#"{"model_type":5}"#.to_owned(), "`model_type` in `config.json` is 5, but must be a text"),
            (r#"{"hidden_act":5}"#.into(), "`hidden_act` in `config.json` is 5, but must be a text"),
            (r#"{"hidden_act":"relu6"}"#.into(), "`hidden_act` in `config.json` is relu6"),
            (r#"{"dtype":"float8_e4m3fn"}"#.into(), "float32, bfloat16 or float16"),
            (r#"{"torch_dtype":16}"#.into(), "`torch_dtype` in `config.json` is 16, but must be a text"),
            (r#"{"tie_word_embeddings":"no"}"#.into(), "true or false"),
            (r#"{"rope_theta":"10000"}"#.into(), r#"`rope_theta` in `config.json` is "10000", but must be a number"#),
            (r#"{"rope_theta":0}"#.into(), "a number above 0"),
            (r#"{"rope_parameters":{"rope_theta":"1e6"}}"#.into(), r#"`rope_parameters.rope_theta` in `config.json` is "1e6""#),
            (r#"{"rope_parameters":{"rope_type":3}}"#.into(), "`rope_parameters.rope_type` in `config.json` is 3, but must be a text"),
            (r#"{"rope_scaling":{"type":3}}"#.into(), "`rope_scaling.type` in `config.json` is 3"),
            (r#"{"rope_scaling":"linear"}"#.into(), "must be a table"),
            (r#"{"rope_scaling":{"type":"linear","factor":"4"}}"#.into(), "`rope_scaling.factor` in `config.json`"),
            (r#"{"rope_scaling":{"type":"linear"}}"#.into(), "`rope_scaling.factor` in `config.json` is absent"),
            (r#"{"rope_scaling":{"type":"linear","factor":2},"rope_parameters":{"rope_type":"default"}}"#.into(), "the same as `rope_parameters`"),
            (r#"{"rope_scaling":{"type":"yarn","factor":4,"truncate":"no"}}"#.into(), "`rope_scaling.truncate` in `config.json`"),
            (r#"{"rope_scaling":{"type":"llama3","factor":4,"low_freq_factor":2,"high_freq_factor":2}}"#.into(), "above low_freq_factor (2)"),
            (r#"{"rope_scaling":{"type":"yarn","factor":4,"original_max_position_embeddings":1e30}}"#.into(), "a whole number between 1 and"),
            (r#"{"rope_parameters":{"full_attention":{}}}"#.into(), "absent from the rope parameters of this family"),
            (r#"{"rope_scaling":{"type":"longrope"}}"#.into(), "`rope_scaling.short_factor` in `config.json` is absent, but must be a list of 8 numbers"),
            (longrope(&long(7), ""), "is 7 long, but must be a list of 8 numbers above 0"),
            (longrope(&format!("{},0", long(7)), ""), "a list of 8 numbers above 0"),
            (longrope(&format!("{},true", long(7)), ""), "a list of 8 numbers above 0"),
            (longrope(&long(8), r#","original_max_position_embeddings":1"#), "at least 2 with longrope"),
            (r#"{"layer_types":["full_attention"]}"#.into(), "as long as num_hidden_layers (4)"),
            (r#"{"layer_types":"full_attention"}"#.into(), "must be a list"),
            (r#"{"layer_types":["full_attention","full_attention","full","full_attention"]}"#.into(), r#"`layer_types[2]` in `config.json` is "full""#),
            (r#"{"layer_types":["full_attention","full_attention","full_attention",1]}"#.into(), "`layer_types[3]` in `config.json` is 1"),
            (
                r#"{"model_type":"qwen2","layer_types":["sliding_attention","full_attention","full_attention","full_attention"]}"#.into(),
                "no window is set",
            ),
            (
                r#"{"model_type":"mistral","sliding_window":8,"layer_types":["sliding_attention","full_attention","full_attention","full_attention"]}"#.into(),
                "transformers does not read it for `mistral`",
            ),
            (r#"{"model_type":"mistral","sliding_window":0}"#.into(), "`sliding_window` in `config.json` is 0, but must be at least 1"),
            (r#"{"model_type":"gpt2","scale_attn_weights":false}"#.into(), "`scale_attn_weights` in `config.json` is false, but must be true"),
            (r#"{"model_type":"gpt2","scale_attn_by_inverse_layer_idx":true}"#.into(), "`scale_attn_by_inverse_layer_idx` in `config.json` is true"),
        ] {
            let error = with(&changes).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(said), "{changes}: {error}");
        }
        with(&longrope(&long(8), "")).unwrap();
        with(r#"{"model_type":"gpt2","scale_attn_weights":true,"scale_attn_by_inverse_layer_idx":false}"#).unwrap();
        with(r#"{"layer_types":["full_attention","full_attention","full_attention","full_attention"]}"#).unwrap();
        with(r#"{"model_type":"phi3","partial_rotary_factor":0.75,"torch_dtype":"torch.float16"}"#).unwrap();
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
