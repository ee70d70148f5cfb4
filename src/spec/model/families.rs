//! What the families make of their `config.json`: defaults, keys of their own, and what is refused.

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::spec::model::config::{Config, parse, shown};
use crate::spec::model::storage::Storage;
use crate::spec::model::{
    Activation, Attention, Dtype, Experts, Mlp, ModelSpec, ModelType, Norm, Positions, SUPPORTED, quantization, rope,
};

/// The reason for which hybrid models are refused.
pub(super) const HYBRID: &str = "its hybrid or state-space layers take several times the memory of attention layers, and no model of them has been checked";

/// Parameters of the largest model that is believed, some thirty times the largest there is. Bytes and operations of a
/// model of this size fit into 64 bits.
const LARGEST_MODEL: u128 = 1 << 45;

impl ModelSpec {
    /// Reads the text of a config.json, in the spelling of transformers 4 or 5.
    pub fn from_config(text: &str) -> Result<Self> {
        Self::from_map(&parse(text)?)
    }

    /// Reads the architecture from a parsed config.json.
    pub(crate) fn from_map(outer: &Map<String, Value>) -> Result<Self> {
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
            let must = format!("at most {LARGEST_MODEL}: the sizes in the file are wrong");
            return Err(Error::invalid("number of parameters", all, must));
        }
        Ok(())
    }
}

impl Config<'_> {
    /// The architecture that the file describes, not checked yet.
    fn spec(&self) -> Result<ModelSpec> {
        let model_type = family(self.model_type, self.map)?;
        self.refuse_what_is_not_computed(model_type)?;
        use ModelType::*;
        let gemma = matches!(model_type, Gemma2 | Gemma3);
        let hidden_size = self.usize(&["hidden_size", "n_embd"])?;
        let num_hidden_layers = self.usize(&["num_hidden_layers", "n_layer"])?;
        let experts = self.experts()?;
        // Qwen3's file has the width of a dense MLP too, which none of its blocks has.
        let width: &[&str] =
            if self.model_type == "qwen3_moe" { &["moe_intermediate_size"] } else { &["intermediate_size", "n_inner"] };
        let intermediate_size = match self.usize_opt(width)? {
            Some(n) => n,
            None if model_type == Gpt2 => 4 * hidden_size,
            None => self.usize(&["intermediate_size"])?,
        };
        let layer_norm = matches!(model_type, Starcoder2 | Gpt2);
        let eps = self.typed(
            &["rms_norm_eps", "layer_norm_epsilon", "norm_epsilon", "layer_norm_eps"],
            "a number from 0 to 1",
            |v| v.as_f64().filter(|x| (0.0..1.0).contains(x)),
        )?;
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
            rope::positions(self, model_type, &attention, max_position_embeddings)?
        };
        let dtype = self.dtype()?;
        // Transformers leaves out what equals the family's default.
        let tied = !matches!(model_type, Llama | Mistral | Phi3 | Qwen2 | Qwen3 | GptOss);
        Ok(ModelSpec {
            model_type,
            part_of: self.wrapper.map(str::to_owned),
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
            experts,
            positions,
            embedding_scale: if gemma { (hidden_size as f64).sqrt() } else { 1.0 },
            final_logit_softcapping: if gemma { self.positive(&["final_logit_softcapping"])? } else { None },
            dtype,
            storage: Storage::uniform(dtype.into()),
        })
    }

    /// Settings that change what transformers computes, and that are not built here.
    fn refuse_what_is_not_computed(&self, model_type: ModelType) -> Result<()> {
        let gpt2 = [("scale_attn_weights", true), ("scale_attn_by_inverse_layer_idx", false)];
        for (key, built) in gpt2.into_iter().filter(|_| model_type == ModelType::Gpt2) {
            if self.bool_or(&[key], built)? != built {
                let must = format!("{built}: other attention scaling is not supported");
                return Err(Self::wrong(key, &(!built).into(), must));
            }
        }
        Ok(())
    }

    fn dtype(&self) -> Result<Dtype> {
        let names = ["dtype", "torch_dtype"];
        Ok(match self.str_opt(&names)?.map(|name| name.strip_prefix("torch.").unwrap_or(name)) {
            None | Some("float32") => Dtype::F32,
            Some("bfloat16") => Dtype::Bf16,
            Some("float16") => Dtype::F16,
            Some(_) => {
                let (name, value) = self.find(&names).unwrap_or((names[0], &Value::Null));
                return Err(Self::wrong(name, value, "float32, bfloat16 or float16"));
            }
        })
    }

    /// The mixture of experts, where the family has one.
    fn experts(&self) -> Result<Option<Experts>> {
        let gpt_oss = self.model_type == "gpt_oss";
        if !gpt_oss && self.model_type != "qwen3_moe" {
            return Ok(None);
        }
        // A block without experts among others would need a spec of its own.
        if let Some(step) = self.get(&["decoder_sparse_step"]).filter(|v| v.as_u64() != Some(1)) {
            return Err(Self::wrong("decoder_sparse_step", step, "1: every block must be a mixture"));
        }
        if let Some(dense) = self.get(&["mlp_only_layers"]).filter(|v| v.as_array().is_none_or(|l| !l.is_empty())) {
            return Err(Self::wrong("mlp_only_layers", dense, "empty: every block must be a mixture"));
        }
        let num_experts = self.usize(&["num_experts", "num_local_experts"])?;
        let num_experts_per_tok = self.usize(&["num_experts_per_tok", "experts_per_token"])?;
        if num_experts == 0 {
            return Err(Error::invalid("num_experts", num_experts, "at least 1"));
        }
        if num_experts_per_tok == 0 || num_experts_per_tok > num_experts {
            return Err(Error::invalid(
                "num_experts_per_tok",
                num_experts_per_tok,
                format!("between 1 and {num_experts}"),
            ));
        }
        Ok(Some(Experts { num_experts, num_experts_per_tok, gpt_oss }))
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
        let activation = match self.str_opt(names)?.unwrap_or(default) {
            "silu" | "swish" => Activation::Silu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
            "gelu" => Activation::Gelu,
            other => {
                let field = format!("{}` in `config.json", names[0]);
                return Err(Error::invalid(field, shown(other), "silu, gelu, gelu_new or gelu_pytorch_tanh"));
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
            GptOss => self.usize_opt(&["head_dim"])?.unwrap_or(64),
            _ => self.usize_opt(&["head_dim"])?.unwrap_or(default_dim),
        };
        let bias = match model_type {
            Qwen2 | Gpt2 => true,
            Starcoder2 => self.bool_or(&["use_bias"], true)?,
            GptOss => self.bool_or(&["attention_bias"], true)?,
            _ => self.bool_or(&["attention_bias"], false)?,
        };
        let scalar = if matches!(model_type, Gemma2 | Gemma3) {
            self.positive(&["query_pre_attn_scalar"])?.unwrap_or(256.0)
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
            softcap: if model_type == Gemma2 { self.positive(&["attn_logit_softcapping"])? } else { None },
            windows: self.windows(model_type, layers)?,
        })
    }
}

fn family(model_type: &str, map: &Map<String, Value>) -> Result<ModelType> {
    let refuse = |reason: Option<&str>| Error::UnknownArchitecture {
        model_type: shown(model_type),
        reason: reason.map(Into::into),
        supported: SUPPORTED,
    };
    Ok(match model_type {
        "llama" => ModelType::Llama,
        "mistral" => ModelType::Mistral,
        "qwen2" => ModelType::Qwen2,
        // The same attention; the experts are a field.
        "qwen3" | "qwen3_moe" => ModelType::Qwen3,
        "gpt_oss" => ModelType::GptOss,
        "starcoder2" => ModelType::Starcoder2,
        "gpt2" => ModelType::Gpt2,
        "gemma2" => ModelType::Gemma2,
        "gemma3_text" => ModelType::Gemma3,
        "phi3" => ModelType::Phi3,
        "qwen3_next" | "qwen3_5" | "qwen3_5_text" | "qwen3_5_moe" | "falcon_mamba" | "mamba" | "mamba2" | "jamba"
        | "bamba" | "zamba2" => {
            return Err(refuse(Some(HYBRID)));
        }
        _ if ["num_experts", "num_local_experts", "n_routed_experts"].iter().any(|k| map.contains_key(*k)) => {
            return Err(refuse(Some("it is a mixture of experts")));
        }
        _ => return Err(refuse(None)),
    })
}

#[cfg(test)]
#[path = "families_tests.rs"]
mod tests;
