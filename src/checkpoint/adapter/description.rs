//! What describes an adapter, `adapter_config.json`, in PEFT's words and in mlx-lm's.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::spec::run::Lora;

/// The keys of PEFT's `adapter_config.json` that matter here.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PeftConfig {
    pub(super) peft_type: String,
    pub(super) task_type: Option<String>,
    pub(super) base_model_name_or_path: Option<String>,
    pub(super) r: usize,
    pub(super) lora_alpha: f64,
    #[serde(default)]
    pub(super) lora_dropout: f64,
    pub(super) target_modules: Value,
    // One number or a list; which layers it is for shows in the tensors.
    #[serde(default)]
    pub(super) layers_to_transform: Value,
    #[serde(default)]
    pub(super) fan_in_fan_out: bool,
    #[serde(default)]
    pub(super) bias: Option<String>,
    #[serde(default)]
    pub(super) inference_mode: bool,
    #[serde(default)]
    pub(super) use_dora: bool,
    #[serde(default)]
    pub(super) use_rslora: bool,
}

/// Keys of PEFT's description beside those of [`PeftConfig`] that change nothing in what a trained adapter computes.
/// Every other key that is set is refused: newer versions bring new ones, and most of them change the computation.
pub(super) const PEFT_WITHOUT_EFFECT: [&str; 22] = [
    // These two are read apart.
    "alpha_pattern",
    "rank_pattern",
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "lora_dtype",
    "lora_ga_config",
    "loraplus_lr_ratio",
    "lorap_lr_ratio",
    "lorap_emb_lr",
    "loftq_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "tokenizer_name_or_path",
];

/// Starts that leave the base as it was. The others take out of the base what the adapter begins with, or replace it.
pub(super) const PEFT_STARTS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// The keys of mlx-lm's `adapter_config.json` that matter here; the others are the settings of its training.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct MlxConfig {
    #[serde(default = "lora")]
    pub(super) fine_tune_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) model: Option<String>,
    // Until mid-2024 under another name.
    #[serde(alias = "lora_layers")]
    pub(super) num_layers: i64,
    pub(super) lora_parameters: MlxParameters,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct MlxParameters {
    pub(super) rank: usize,
    pub(super) scale: f64,
    #[serde(default)]
    pub(super) dropout: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) keys: Option<Vec<String>>,
}

pub(super) fn lora() -> String {
    "lora".into()
}

/// Settings of an adapter that its weights alone do not tell.
#[derive(Clone, Debug, PartialEq)]
pub struct About {
    /// Rank of the adapter: the rows of A.
    pub rank: usize,
    /// Numerator of the scale of the update, `alpha / rank`.
    pub alpha: f64,
    /// Whether the update is scaled by `alpha / sqrt(rank)` instead (rsLoRA).
    pub use_rslora: bool,
    /// Whether the adapter has a magnitude for each output (DoRA).
    pub use_dora: bool,
    /// Dropout probability in training.
    pub dropout: f64,
    /// Name or path of the base model, where it is given.
    pub base: Option<String>,
}

impl About {
    /// Factor on the low-rank update: `alpha / rank`, or `alpha / sqrt(rank)` with rsLoRA.
    pub(crate) fn scale(&self) -> f64 {
        Lora { rank: self.rank, alpha: self.alpha, use_rslora: self.use_rslora, ..Lora::default() }.scale()
    }
}

pub(super) fn peft_about(config: &Value) -> serde_json::Result<(About, Vec<String>)> {
    let peft = PeftConfig::deserialize(config)?;
    let mut refused = Vec::new();
    if peft.peft_type != "LORA" {
        refused.push(format!("its peft_type is {}; only LORA is supported", peft.peft_type));
    }
    if peft.bias.as_ref().is_some_and(|b| b != "none") {
        refused.push("it trains biases (`bias`), which are not supported".into());
    }
    refused.extend(config.get("init_lora_weights").and_then(another_base));
    let set = |v: &Value| match v {
        Value::Null | Value::Bool(false) => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => true,
    };
    let known = serde_json::to_value(&peft)?;
    let harmless = |key: &str| known.get(key).is_some() || PEFT_WITHOUT_EFFECT.contains(&key);
    let used = config.as_object().into_iter().flatten().filter(|(key, value)| set(value) && !harmless(key));
    refused.extend(used.map(|(key, _)| format!("it uses `{key}`, which is not supported")));
    let about = About {
        rank: peft.r,
        alpha: peft.lora_alpha,
        use_rslora: peft.use_rslora,
        use_dora: peft.use_dora,
        dropout: peft.lora_dropout,
        base: peft.base_model_name_or_path.filter(|b| !b.is_empty()),
    };
    Ok((about, refused))
}

/// Why an adapter with this `init_lora_weights` does not belong on the base as it is published.
pub(super) fn another_base(start: &Value) -> Option<String> {
    let name = match start {
        Value::Null | Value::Bool(_) => return None,
        Value::String(name) if PEFT_STARTS.contains(&name.as_str()) => return None,
        Value::String(name) => name.clone(),
        other => other.to_string(),
    };
    let convert = "save it with PEFT's `path_initial_model_for_weight_conversion`, which converts it to plain LoRA";
    let merge = "merge it in PEFT into the base that it was trained on, and use the merged model";
    let remedy = if name == "loftq" { merge } else { convert };
    Some(format!(
        "its `init_lora_weights` is {name}, which changes the base model before training, so it cannot be applied to \
         the original base: {remedy}"
    ))
}

pub(super) fn mlx_about(config: &Value) -> serde_json::Result<(About, Vec<String>)> {
    let mlx = MlxConfig::deserialize(config)?;
    let refused = match mlx.fine_tune_type.as_str() {
        "lora" => vec![],
        other => vec![format!("its fine_tune_type is {other}; only lora is supported")],
    };
    let p = mlx.lora_parameters;
    let about = About {
        rank: p.rank,
        alpha: p.scale * p.rank as f64,
        use_rslora: false,
        use_dora: false,
        dropout: p.dropout,
        base: mlx.model,
    };
    Ok((about, refused))
}
