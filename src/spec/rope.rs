//! Rotary positions as config.json writes them: `rope_parameters`, `rope_scaling`, `rope_theta`.

use serde_json::Value;

use crate::error::{Error, Result};
use crate::spec::config::Config;
use crate::spec::model::{Attention, ModelType, Positions, Rope, RopeScaling};

/// Where tokens stand, for a model with rotary positions.
pub(super) fn positions(
    config: &Config<'_>,
    model_type: ModelType,
    attention: &Attention,
    max_positions: usize,
) -> Result<Positions> {
    use ModelType::*;
    let dims = match model_type {
        Phi3 => {
            let nested =
                config.get(&["rope_parameters"]).and_then(|r| r.get("partial_rotary_factor")).and_then(Value::as_f64);
            let factor = nested.or(config.f64_opt(&["partial_rotary_factor"])?).unwrap_or(1.0);
            (attention.head_dim as f64 * factor) as usize
        }
        _ => attention.head_dim,
    };
    let default_theta = if model_type == Gemma3 { 1e6 } else { 1e4 };
    let theta_of = |v: Option<&Value>| v.and_then(|v| v.get("rope_theta")).and_then(Value::as_f64);
    let written = config.get(&["rope_parameters"]);
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
        None => config.f64_opt(&["rope_theta"])?.unwrap_or(default_theta),
    };
    let scaling_value = written.or_else(|| config.get(&["rope_scaling"]));
    // Longrope keeps its original length outside of rope_scaling.
    let original = config.usize_opt(&["original_max_position_embeddings"])?;
    let scaling = match scaling_value {
        Some(v) => scaling_with(v, dims, max_positions, original)?,
        None => None,
    };
    let local = match model_type {
        Gemma3 => Some(Rope { theta: config.f64_opt(&["rope_local_base_freq"])?.unwrap_or(1e4), dims, scaling: None }),
        _ => None,
    };
    Ok(Positions::Rope { global: Rope { theta, dims, scaling }, local })
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
