//! config.json with its spellings hidden: transformers 4 and 5, every family's own names and defaults.

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::spec::model::storage::Storage;
use crate::spec::model::{
    Activation, Attention, Dtype, Experts, Mlp, ModelSpec, ModelType, Norm, Positions, SUPPORTED, rope,
};

/// What hybrid models are refused with.
pub(super) const HYBRID: &str = "its hybrid or state-space layers take several times the memory of attention layers, and no model of them has been checked";

/// The longest config.json that is read, bytes. Real ones have a few thousand.
const LONGEST: usize = 1 << 20;

/// The largest sizes that are believed, by the name of their key: several times what any model has. They are held before
/// a size is used, so no table that is made of one and no product of a few of them grows beyond reason.
const LARGEST: [(&str, usize); 11] = [
    ("num_hidden_layers", 2048),
    ("hidden_size", 1 << 20),
    ("intermediate_size", 1 << 22),
    ("moe_intermediate_size", 1 << 22),
    ("num_attention_heads", 1 << 14),
    ("num_key_value_heads", 1 << 14),
    ("head_dim", 1 << 14),
    ("vocab_size", 1 << 24),
    ("max_position_embeddings", LARGEST_LENGTH),
    ("num_experts", 1 << 16),
    ("num_experts_per_tok", 1 << 16),
];

/// The longest sequence that is believed.
pub(super) const LARGEST_LENGTH: usize = 1 << 24;

/// The largest of every other whole number: a window may be written as large as "everything".
const LARGEST_OTHER: usize = 1 << 32;

/// A parsed config.json.
pub struct Config<'a> {
    model_type: &'a str,
    map: &'a Map<String, Value>,
    /// The whole file, where `map` is its `text_config`: some keys are written only there.
    outer: &'a Map<String, Value>,
}

/// The text of a config.json as a table.
pub(super) fn parse(text: &str) -> Result<Map<String, Value>> {
    let bad = |message: String, line| Error::Parse { path: "config.json".into(), line, message, hint: None };
    if text.len() > LONGEST {
        return Err(bad(format!("has {} bytes, and at most {LONGEST} are read", text.len()), None));
    }
    match serde_json::from_str(text).map_err(|e| bad(e.to_string(), Some(e.line())))? {
        Value::Object(map) => Ok(map),
        _ => Err(bad("is no JSON object".into(), None)),
    }
}

impl<'a> Config<'a> {
    /// Steps into `text_config` where a multimodal wrapper has one.
    pub fn new(outer: &'a Map<String, Value>) -> Result<Self> {
        let model_type = |m: &'a Map<String, Value>| match m.get("model_type") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(name)) => Ok(Some(name.as_str())),
            Some(other) => Err(Self::wrong("model_type", other, "a text")),
        };
        let map = match (model_type(outer)?, outer.get("text_config")) {
            (Some("gemma3"), Some(Value::Object(inner))) => inner,
            (Some("gemma3"), Some(other)) => return Err(Self::wrong("text_config", other, "a table")),
            _ => outer,
        };
        let name = model_type(map)?.or(model_type(outer)?).ok_or_else(|| Error::Parse {
            path: "config.json".into(),
            line: None,
            message: "has no `model_type`".into(),
            hint: Some("this does not look like a Hugging Face model folder".into()),
        })?;
        Ok(Self { model_type: name, map, outer })
    }

    /// The first of the names that has a value, and its value.
    fn find<'n>(&self, names: &[&'n str]) -> Option<(&'n str, &'a Value)> {
        let written = |map: &'a Map<String, Value>, name: &str| map.get(name).filter(|v| !v.is_null());
        names.iter().find_map(|n| written(self.map, n).or_else(|| written(self.outer, n)).map(|v| (*n, v)))
    }

    pub(super) fn get(&self, names: &[&str]) -> Option<&'a Value> {
        self.find(names).map(|(_, value)| value)
    }

    /// The value of the first of the names that has one, in the type that `read` makes of it; every other type is refused.
    fn typed<T>(&self, names: &[&str], must: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        self.find(names).map(|(name, v)| read(v).ok_or_else(|| Self::wrong(name, v, must))).transpose()
    }

    pub(super) fn wrong(field: &str, value: &Value, must: impl Into<String>) -> Error {
        Error::invalid(format!("{field}` in `config.json"), shown(&value.to_string()), must)
    }

    /// A whole number, held to the largest that is believed.
    pub(super) fn usize_opt(&self, names: &[&str]) -> Result<Option<usize>> {
        let Some(n) = self.typed(names, "a whole number", Value::as_u64)? else { return Ok(None) };
        let largest = LARGEST.iter().find(|(key, _)| *key == names[0]).map_or(LARGEST_OTHER, |(_, largest)| *largest);
        match usize::try_from(n) {
            Ok(n) if n <= largest => Ok(Some(n)),
            _ => Err(Self::wrong(self.find(names).map_or(names[0], |f| f.0), &n.into(), format!("at most {largest}"))),
        }
    }

    pub(super) fn usize(&self, names: &[&str]) -> Result<usize> {
        self.usize_opt(names)?.ok_or_else(|| Error::Parse {
            path: "config.json".into(),
            line: None,
            message: format!("has no `{}`", names[0]),
            hint: None,
        })
    }

    /// A number that is divided by, or whose root or logarithm is taken.
    pub(super) fn positive(&self, names: &[&str]) -> Result<Option<f64>> {
        self.typed(names, "a number above 0", |v| v.as_f64().filter(|x| *x > 0.0))
    }

    pub(super) fn bool_or(&self, names: &[&str], default: bool) -> Result<bool> {
        Ok(self.typed(names, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    pub(super) fn str_opt(&self, names: &[&str]) -> Result<Option<&'a str>> {
        self.typed(names, "a text", Value::as_str)
    }

    /// The architecture that the file describes, not checked yet.
    pub fn spec(&self) -> Result<ModelSpec> {
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
                let must = format!("{built}: attention that is scaled otherwise is not built here");
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

    /// The mixture, where the family is one.
    fn experts(&self) -> Result<Option<Experts>> {
        let gpt_oss = self.model_type == "gpt_oss";
        if !gpt_oss && self.model_type != "qwen3_moe" {
            return Ok(None);
        }
        // A block without experts among others would need a spec of its own.
        if let Some(step) = self.get(&["decoder_sparse_step"]).filter(|v| v.as_u64() != Some(1)) {
            return Err(Self::wrong("decoder_sparse_step", step, "1: every block a mixture"));
        }
        if let Some(dense) = self.get(&["mlp_only_layers"]).filter(|v| v.as_array().is_none_or(|l| !l.is_empty())) {
            return Err(Self::wrong("mlp_only_layers", dense, "empty: every block a mixture"));
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

    /// Which layers see only a window, by `layer_types` where it is written and by the family's rule where not.
    fn windows(&self, model_type: ModelType, layers: usize) -> Result<Vec<Option<usize>>> {
        use ModelType::*;
        let written = || self.sliding_window();
        let window = match model_type {
            Mistral | Starcoder2 | Phi3 => written()?,
            GptOss => Some(written()?.unwrap_or(128)),
            Gemma2 | Gemma3 => Some(written()?.unwrap_or(4096)),
            Qwen2 | Qwen3 if self.bool_or(&["use_sliding_window"], false)? => Some(written()?.unwrap_or(4096)),
            _ => None,
        };
        let from = self.usize_opt(&["max_window_layers"])?.unwrap_or(28);
        let pattern = self.usize_opt(&["sliding_window_pattern", "_sliding_window_pattern"])?.unwrap_or(6);
        let ruled = (0..layers).map(|i| match model_type {
            Qwen2 | Qwen3 if i < from => None,
            Gemma2 | GptOss if !i.is_multiple_of(2) => None,
            Gemma3 if pattern > 0 && (i + 1).is_multiple_of(pattern) => None,
            _ => window,
        });
        let ruled: Vec<Option<usize>> = ruled.collect();
        let Some(types) = self.layer_types(layers)? else { return Ok(ruled) };
        let reads_types = matches!(model_type, Qwen2 | Qwen3 | Gemma2 | Gemma3 | GptOss);
        if types.contains(&true) && window.is_none() {
            let must = "full_attention in all layers: no window is set (`sliding_window`, `use_sliding_window`)";
            return Err(Error::invalid("layer_types` in `config.json", "sliding_attention in some layers", must));
        }
        let typed: Vec<Option<usize>> = types.iter().map(|sliding| window.filter(|_| *sliding)).collect();
        if !reads_types && typed != ruled {
            let must = format!(
                "absent, or the same kind in all layers: transformers does not read it for `{}`, and gives every layer \
                 the same window",
                self.model_type
            );
            return Err(Error::invalid("layer_types` in `config.json", "another kind in some layers", must));
        }
        Ok(typed)
    }

    fn sliding_window(&self) -> Result<Option<usize>> {
        match self.usize_opt(&["sliding_window"])? {
            Some(0) => Err(Self::wrong("sliding_window", &0.into(), "at least 1, or null for none")),
            window => Ok(window),
        }
    }

    /// Whether each layer has a window, where `layer_types` says.
    fn layer_types(&self, layers: usize) -> Result<Option<Vec<bool>>> {
        let Some(types) = self.typed(&["layer_types"], "a list", Value::as_array)? else { return Ok(None) };
        if types.len() != layers {
            let must = format!("as long as num_hidden_layers ({layers})");
            return Err(Error::invalid("layer_types", format!("{} long", types.len()), must));
        }
        let kind = |(i, v): (usize, &Value)| match v.as_str() {
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => Err(Self::wrong(&format!("layer_types[{i}]"), v, "full_attention or sliding_attention")),
        };
        types.iter().enumerate().map(kind).collect::<Result<_>>().map(Some)
    }
}

/// A text of the file for a message, cut where it is long.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
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
