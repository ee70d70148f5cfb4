//! The metadata of a GGUF file as JSON, and the factors of its rope.

use std::fs::File;
use std::os::unix::fs::FileExt;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value};
use serde_json::{Map, json};

use crate::error::Result;
use crate::spec::model::ModelSpec;
use crate::spec::model::gguf::{Described, from_metadata};

/// Rope factors of a head, at most.
const MOST_FACTORS: usize = 1 << 14;

/// Longest array that says something of the architecture: a value a layer.
const LONGEST_ARRAY: usize = 2048;

/// A value of the metadata as config.json would have it; the arrays of a tokenizer are left where they are.
fn plain_value(value: &Value) -> Option<serde_json::Value> {
    Some(match value {
        Value::String(text) => json!(text),
        Value::Bool(flag) => json!(flag),
        Value::Array(all) if all.len() > LONGEST_ARRAY => return None,
        Value::Array(all) => json!(all.iter().map(plain_value).collect::<Vec<_>>()),
        Value::F32(_) | Value::F64(_) => json!(as_number(value)),
        _ => json!(as_number(value).map(|n| n as i64)),
    })
}

pub(super) fn number(content: &Content, key: &str) -> Option<f64> {
    as_number(content.metadata.get(key)?)
}

fn as_number(value: &Value) -> Option<f64> {
    Some(match value {
        Value::I8(n) => f64::from(*n),
        Value::I16(n) => f64::from(*n),
        Value::I32(n) => f64::from(*n),
        Value::I64(n) => *n as f64,
        Value::F32(n) => f64::from(*n),
        Value::F64(n) => *n,
        other => other.to_u64().ok()? as f64,
    })
}

/// The architecture, and the config.json that says the same.
type Architecture = (ModelSpec, Map<String, serde_json::Value>);

/// The architecture, from the metadata and the few tensors that belong to them.
pub(super) fn describe(content: &Content, file: &File) -> Result<Result<Architecture>, String> {
    let mut metadata = Map::new();
    for (key, value) in &content.metadata {
        metadata.extend(plain_value(value).map(|plain| (key.clone(), plain)));
    }
    let factors = |name: &str| {
        let Some(info) = content.tensor_infos.get(name) else { return Ok(None) };
        if info.ggml_dtype != GgmlDType::F32 {
            return Err(format!("`{name}` is in {:?} and not in F32", info.ggml_dtype));
        }
        let count = info.shape.dims().iter().try_fold(1usize, |n, d| n.checked_mul(*d)).filter(|n| *n <= MOST_FACTORS);
        let count = count.ok_or_else(|| format!("`{name}` has the shape {:?}", info.shape.dims()))?;
        let mut bytes = vec![0u8; 4 * count];
        let at = content.tensor_data_offset.saturating_add(info.offset);
        file.read_exact_at(&mut bytes, at).map_err(|e| format!("`{name}` cannot be read: {e}"))?;
        let number = |b: &[u8]| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let factors: Vec<f64> = bytes.chunks_exact(4).map(number).collect();
        match factors.iter().all(|f| *f > 0.0 && f.is_finite()) {
            true => Ok(Some(factors)),
            false => Err(format!("`{name}` holds numbers that are not above 0")),
        }
    };
    let described = Described {
        metadata: &metadata,
        tensors: &|name| content.tensor_infos.get(name).map(|t| t.shape.dims().to_vec()),
        rope_freqs: factors("rope_freqs.weight")?,
        rope_factors: factors("rope_factors_short.weight")?.zip(factors("rope_factors_long.weight")?),
    };
    Ok(from_metadata(&described))
}
