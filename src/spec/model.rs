//! A decoder's architecture, from any Hugging Face `config.json`.
//!
//! Families differ by data, not by code: every difference that matters for memory, time or the
//! forward pass is a field of [`ModelSpec`]. Names are Hugging Face's.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The families, by the `model_type` they carry in config.json.
pub const SUPPORTED: &str = "llama, mistral, qwen2, qwen3, starcoder2, gpt2, gemma2, gemma3_text, phi3";

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

/// Number formats that weights are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Dtype {
    F32,
    F16,
    Bf16,
}

impl Dtype {
    /// Bytes of one number.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
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
    /// Positions.
    pub positions: Positions,
    /// Embeddings are multiplied by this (Gemma: the root of the hidden size).
    pub embedding_scale: f64,
    /// `cap * tanh(logit / cap)` (Gemma 2).
    pub final_logit_softcapping: Option<f64>,
    /// The format the checkpoint is stored in.
    pub dtype: Dtype,
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
        let spec = config.spec()?;
        spec.check()?;
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
        if let Positions::Rope { global, .. } = &self.positions {
            if !global.dims.is_multiple_of(2) || global.dims > a.head_dim || global.dims == 0 {
                return Err(Error::invalid("head_dim", a.head_dim, "even, and at least as wide as the rotated part"));
            }
        }
        Ok(())
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

/// config.json with its spellings hidden.
struct Config<'a> {
    model_type: &'a str,
    map: &'a Map<String, Value>,
    /// The whole file, where `map` is its `text_config`: some keys are written only there.
    outer: &'a Map<String, Value>,
}

impl<'a> Config<'a> {
    /// Steps into `text_config` where a multimodal wrapper has one.
    fn new(outer: &'a Map<String, Value>) -> Result<Self> {
        let model_type = |m: &'a Map<String, Value>| m.get("model_type").and_then(Value::as_str);
        let map = match (model_type(outer), outer.get("text_config")) {
            (Some("gemma3"), Some(Value::Object(inner))) => inner,
            _ => outer,
        };
        let name = model_type(map).or_else(|| model_type(outer)).ok_or_else(|| Error::Parse {
            path: "config.json".into(),
            line: None,
            message: "has no `model_type`".into(),
            hint: Some("this does not look like a Hugging Face model folder".into()),
        })?;
        Ok(Self { model_type: name, map, outer })
    }

    fn get(&self, names: &[&str]) -> Option<&'a Value> {
        names.iter().find_map(|n| self.map.get(*n).or_else(|| self.outer.get(*n))).filter(|v| !v.is_null())
    }

    fn wrong(field: &str, value: &Value, must: &str) -> Error {
        Error::invalid(format!("{field}` in `config.json"), value, must)
    }

    fn usize_opt(&self, names: &[&str]) -> Result<Option<usize>> {
        self.get(names)
            .map(|v| v.as_u64().map(|n| n as usize).ok_or_else(|| Self::wrong(names[0], v, "a whole number")))
            .transpose()
    }

    fn usize(&self, names: &[&str]) -> Result<usize> {
        self.usize_opt(names)?.ok_or_else(|| Error::Parse {
            path: "config.json".into(),
            line: None,
            message: format!("has no `{}`", names[0]),
            hint: None,
        })
    }

    fn f64_opt(&self, names: &[&str]) -> Result<Option<f64>> {
        self.get(names).map(|v| v.as_f64().ok_or_else(|| Self::wrong(names[0], v, "a number"))).transpose()
    }

    fn bool_or(&self, names: &[&str], default: bool) -> Result<bool> {
        self.get(names).map_or(Ok(default), |v| v.as_bool().ok_or_else(|| Self::wrong(names[0], v, "true or false")))
    }

    fn str_opt(&self, names: &[&str]) -> Option<&'a str> {
        self.get(names).and_then(Value::as_str)
    }

    fn spec(&self) -> Result<ModelSpec> {
        let model_type = family(self.model_type, self.map)?;
        use ModelType::*;
        let gemma = matches!(model_type, Gemma2 | Gemma3);
        let hidden_size = self.usize(&["hidden_size", "n_embd"])?;
        let num_hidden_layers = self.usize(&["num_hidden_layers", "n_layer"])?;
        let intermediate_size = match self.usize_opt(&["intermediate_size", "n_inner"])? {
            Some(n) => n,
            None if model_type == Gpt2 => 4 * hidden_size,
            None => self.usize(&["intermediate_size"])?,
        };
        let layer_norm = matches!(model_type, Starcoder2 | Gpt2);
        let eps = self.f64_opt(&["rms_norm_eps", "layer_norm_epsilon", "norm_epsilon", "layer_norm_eps"])?;
        let max_position_embeddings =
            self.usize_opt(&["max_position_embeddings", "n_positions", "n_ctx"])?.unwrap_or(match model_type {
                Gemma2 => 8192,
                Gemma3 => 131_072,
                _ => 4096,
            });
        let attention = self.attention(model_type, hidden_size, num_hidden_layers)?;
        let positions = if model_type == Gpt2 {
            Positions::Learned
        } else {
            self.rope(model_type, &attention, max_position_embeddings)?
        };
        // Transformers leaves out what equals the family's default.
        let tied = !matches!(model_type, Llama | Mistral | Phi3 | Qwen2 | Qwen3);
        Ok(ModelSpec {
            model_type,
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            vocab_size: self.usize_opt(&["vocab_size"])?.unwrap_or(if gemma { 262_208 } else { 0 }),
            max_position_embeddings,
            tie_word_embeddings: self.bool_or(&["tie_word_embeddings"], tied)?,
            norm: Norm {
                layer_norm,
                eps: eps.unwrap_or(if layer_norm { 1e-5 } else { 1e-6 }),
                offset: if gemma { 1.0 } else { 0.0 },
            },
            post_norms: gemma,
            attention,
            mlp: self.mlp(model_type)?,
            positions,
            embedding_scale: if gemma { (hidden_size as f64).sqrt() } else { 1.0 },
            final_logit_softcapping: if gemma { self.f64_opt(&["final_logit_softcapping"])? } else { None },
            dtype: match self.str_opt(&["dtype", "torch_dtype"]) {
                Some("bfloat16") => Dtype::Bf16,
                Some("float16") => Dtype::F16,
                _ => Dtype::F32,
            },
        })
    }

    fn mlp(&self, model_type: ModelType) -> Result<Mlp> {
        use ModelType::*;
        let gated = !matches!(model_type, Starcoder2 | Gpt2);
        let default = match model_type {
            Starcoder2 | Gemma2 | Gemma3 => "gelu_pytorch_tanh",
            Gpt2 => "gelu_new",
            _ => "silu",
        };
        let names: &[&str] = match model_type {
            Gemma2 | Gemma3 => &["hidden_activation"],
            Gpt2 => &["activation_function"],
            _ => &["hidden_act"],
        };
        let activation = match self.str_opt(names).unwrap_or(default) {
            "silu" | "swish" => Activation::Silu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
            "gelu" => Activation::Gelu,
            other => {
                return Err(Error::invalid(
                    "hidden_act` in `config.json",
                    other,
                    "silu, gelu, gelu_new or gelu_pytorch_tanh",
                ));
            }
        };
        let bias = match model_type {
            Gpt2 => true,
            Starcoder2 => self.bool_or(&["use_bias"], true)?,
            Llama => self.bool_or(&["mlp_bias"], false)?,
            _ => false,
        };
        Ok(Mlp { gated, fused: model_type == Phi3, activation, bias })
    }

    fn attention(&self, model_type: ModelType, hidden_size: usize, layers: usize) -> Result<Attention> {
        use ModelType::*;
        let heads = match self.usize_opt(&["num_attention_heads", "n_head"])? {
            Some(n) => n,
            None if model_type == Gemma3 => 8, // transformers' default, left out of the 4B file
            None => self.usize(&["num_attention_heads"])?,
        };
        if heads == 0 {
            return Err(Error::invalid("num_attention_heads", heads, "at least 1"));
        }
        let kv_heads = match self.usize_opt(&["num_key_value_heads"])? {
            _ if model_type == Gpt2 => heads,
            Some(n) => n,
            None if model_type == Gemma3 => 4,
            None => heads,
        };
        let default_dim = if matches!(model_type, Gemma2 | Gemma3) { 256 } else { hidden_size / heads };
        let head_dim = match model_type {
            Qwen2 | Gpt2 | Starcoder2 | Phi3 => hidden_size / heads,
            Qwen3 => self.usize_opt(&["head_dim"])?.unwrap_or(128),
            _ => self.usize_opt(&["head_dim"])?.unwrap_or(default_dim),
        };
        let bias = match model_type {
            Qwen2 | Gpt2 => true,
            Starcoder2 => self.bool_or(&["use_bias"], true)?,
            _ => self.bool_or(&["attention_bias"], false)?,
        };
        let scalar = if matches!(model_type, Gemma2 | Gemma3) {
            self.f64_opt(&["query_pre_attn_scalar"])?.unwrap_or(256.0)
        } else {
            head_dim as f64
        };
        Ok(Attention {
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            qkv_bias: bias,
            o_bias: bias && model_type != Qwen2,
            fused_qkv: matches!(model_type, Gpt2 | Phi3),
            qk_norm: matches!(model_type, Qwen3 | Gemma3),
            scale: scalar.powf(-0.5),
            softcap: if model_type == Gemma2 { self.f64_opt(&["attn_logit_softcapping"])? } else { None },
            windows: self.windows(model_type, layers)?,
        })
    }

    /// Which layers see only a window, by `layer_types` where it is written and by the family's rule where not.
    fn windows(&self, model_type: ModelType, layers: usize) -> Result<Vec<Option<usize>>> {
        use ModelType::*;
        let window = match model_type {
            Mistral | Starcoder2 | Phi3 => self.usize_opt(&["sliding_window"])?,
            Gemma2 | Gemma3 => Some(self.usize_opt(&["sliding_window"])?.unwrap_or(4096)),
            Qwen2 | Qwen3 if self.bool_or(&["use_sliding_window"], false)? => {
                Some(self.usize_opt(&["sliding_window"])?.unwrap_or(4096))
            }
            _ => None,
        };
        if let (Some(_), Some(Value::Array(types))) = (window, self.get(&["layer_types"])) {
            if types.len() != layers {
                return Err(Error::invalid(
                    "layer_types",
                    format!("{} long", types.len()),
                    format!("as long as num_hidden_layers ({layers})"),
                ));
            }
            return Ok(types
                .iter()
                .map(|t| if t.as_str() == Some("sliding_attention") { window } else { None })
                .collect());
        }
        let from = self.usize_opt(&["max_window_layers"])?.unwrap_or(28);
        let pattern = self.usize_opt(&["sliding_window_pattern", "_sliding_window_pattern"])?.unwrap_or(6);
        Ok((0..layers)
            .map(|i| match model_type {
                Qwen2 | Qwen3 if i < from => None,
                Gemma2 if !i.is_multiple_of(2) => None,
                Gemma3 if pattern > 0 && (i + 1).is_multiple_of(pattern) => None,
                _ => window,
            })
            .collect())
    }

    fn rope(&self, model_type: ModelType, attention: &Attention, max_positions: usize) -> Result<Positions> {
        use ModelType::*;
        let dims = match model_type {
            Phi3 => {
                let nested =
                    self.get(&["rope_parameters"]).and_then(|r| r.get("partial_rotary_factor")).and_then(Value::as_f64);
                let factor = nested.or(self.f64_opt(&["partial_rotary_factor"])?).unwrap_or(1.0);
                (attention.head_dim as f64 * factor) as usize
            }
            _ => attention.head_dim,
        };
        let default_theta = if model_type == Gemma3 { 1e6 } else { 1e4 };
        let theta_of = |v: Option<&Value>| v.and_then(|v| v.get("rope_theta")).and_then(Value::as_f64);
        let written = self.get(&["rope_parameters"]);
        // Gemma 3 in transformers 5: one set of parameters a layer type.
        if let (Some(full), Some(sliding)) =
            (written.and_then(|r| r.get("full_attention")), written.and_then(|r| r.get("sliding_attention")))
        {
            let make = |v: &Value, theta| {
                Ok::<_, Error>(Rope {
                    theta: theta_of(Some(v)).unwrap_or(theta),
                    dims,
                    scaling: scaling(v, dims, max_positions)?,
                })
            };
            return Ok(Positions::Rope { global: make(full, default_theta)?, local: Some(make(sliding, 1e4)?) });
        }
        let theta = match theta_of(written) {
            Some(theta) => theta,
            None => self.f64_opt(&["rope_theta"])?.unwrap_or(default_theta),
        };
        let scaling_value = written.or_else(|| self.get(&["rope_scaling"]));
        // Longrope keeps its original length outside of rope_scaling.
        let original = self.usize_opt(&["original_max_position_embeddings"])?;
        let scaling = match scaling_value {
            Some(v) => scaling_with(v, dims, max_positions, original)?,
            None => None,
        };
        let local = match model_type {
            Gemma3 => {
                Some(Rope { theta: self.f64_opt(&["rope_local_base_freq"])?.unwrap_or(1e4), dims, scaling: None })
            }
            _ => None,
        };
        Ok(Positions::Rope { global: Rope { theta, dims, scaling }, local })
    }
}

fn scaling(v: &Value, dims: usize, max_positions: usize) -> Result<Option<RopeScaling>> {
    scaling_with(v, dims, max_positions, None)
}

/// `rope_scaling` or `rope_parameters`, by its `rope_type` (older: `type`).
fn scaling_with(v: &Value, dims: usize, max_positions: usize, original: Option<usize>) -> Result<Option<RopeScaling>> {
    let kind = v.get("rope_type").or_else(|| v.get("type")).and_then(Value::as_str).unwrap_or("default");
    let number = |name: &str| v.get(name).and_then(Value::as_f64);
    let need =
        |name: &str| number(name).ok_or_else(|| Error::invalid(format!("rope_scaling.{name}"), "absent", "a number"));
    let original = number("original_max_position_embeddings").map(|n| n as usize).or(original).unwrap_or(max_positions);
    Ok(match kind {
        "default" => None,
        "linear" => Some(RopeScaling::Linear { factor: need("factor")? }),
        "llama3" => Some(RopeScaling::Llama3 {
            factor: need("factor")?,
            low_freq_factor: need("low_freq_factor")?,
            high_freq_factor: need("high_freq_factor")?,
            original_max_position_embeddings: original,
        }),
        "yarn" => {
            let factor = need("factor")?;
            let get_mscale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
            let attention_factor = match (number("attention_factor"), number("mscale"), number("mscale_all_dim")) {
                (Some(a), _, _) => a,
                (None, Some(m), Some(all)) => get_mscale(m) / get_mscale(all),
                _ => get_mscale(1.0),
            };
            Some(RopeScaling::Yarn {
                factor,
                beta_fast: number("beta_fast").unwrap_or(32.0),
                beta_slow: number("beta_slow").unwrap_or(1.0),
                attention_factor,
                original_max_position_embeddings: original,
                truncate: v.get("truncate").and_then(Value::as_bool).unwrap_or(true),
            })
        }
        "longrope" | "su" => {
            let list = |name: &str| {
                let found = v
                    .get(name)
                    .and_then(Value::as_array)
                    .map(|a| a.iter().filter_map(Value::as_f64).collect::<Vec<_>>());
                // They change no cost, so a planner can do without them.
                let list = found.unwrap_or_else(|| vec![1.0; dims / 2]);
                if list.len() == dims / 2 {
                    Ok(list)
                } else {
                    Err(Error::invalid(
                        format!("rope_scaling.{name}"),
                        format!("{} long", list.len()),
                        format!("{} long", dims / 2),
                    ))
                }
            };
            let factor = max_positions as f64 / original as f64;
            let attention = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
            Some(RopeScaling::LongRope {
                short_factor: list("short_factor")?,
                long_factor: list("long_factor")?,
                attention_factor: number("attention_factor").unwrap_or(attention),
                original_max_position_embeddings: original,
            })
        }
        other => {
            return Err(Error::invalid(
                "rope_type` in `config.json",
                other,
                "default, linear, llama3, yarn or longrope",
            ));
        }
    })
}

fn family(model_type: &str, map: &Map<String, Value>) -> Result<ModelType> {
    let refuse = |reason: Option<&str>| Error::UnknownArchitecture {
        model_type: model_type.into(),
        reason: reason.map(Into::into),
        supported: SUPPORTED,
    };
    Ok(match model_type {
        "llama" => ModelType::Llama,
        "mistral" => ModelType::Mistral,
        "qwen2" => ModelType::Qwen2,
        "qwen3" => ModelType::Qwen3,
        "starcoder2" => ModelType::Starcoder2,
        "gpt2" => ModelType::Gpt2,
        "gemma2" => ModelType::Gemma2,
        "gemma3_text" => ModelType::Gemma3,
        "phi3" => ModelType::Phi3,
        "qwen3_next" | "qwen3_5" | "qwen3_5_text" | "qwen3_5_moe" | "falcon_mamba" | "mamba" | "mamba2" | "jamba"
        | "bamba" | "zamba2" => {
            return Err(refuse(Some(
                "its hybrid or state-space layers take several times the memory of attention layers, and no model of them has been checked",
            )));
        }
        _ if ["num_experts", "num_local_experts", "n_routed_experts"].iter().any(|k| map.contains_key(*k)) => {
            return Err(refuse(Some("it is a mixture of experts")));
        }
        _ => return Err(refuse(None)),
    })
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
    fn odd_shapes_are_caught() {
        let text =
            config(r#","model_type":"llama""#).replace(r#""num_key_value_heads":2"#, r#""num_key_value_heads":3"#);
        assert!(ModelSpec::from_config(&text).unwrap_err().to_string().contains("divisor"));
    }
}
