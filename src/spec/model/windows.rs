//! Which layers attend to a sliding window only.

use serde_json::Value;

use crate::error::{Error, Result};
use crate::spec::model::ModelType;
use crate::spec::model::config::Config;

impl Config<'_> {
    /// Which layers see only a window, by `layer_types` where it is written and by the family's rule where not.
    pub(super) fn windows(&self, model_type: ModelType, layers: usize) -> Result<Vec<Option<usize>>> {
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
