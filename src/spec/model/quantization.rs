//! What config.json says of a quantised checkpoint: MLX's affine quantisation is supported, every other is named.

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::spec::model::config::{Config, shown};
use crate::spec::model::storage::{AFFINE_BITS, AFFINE_GROUPS, Format, Other, Storage};
use crate::spec::model::{Dtype, ModelSpec, ModelType};

/// What to give in the place of a checkpoint that cannot be read.
const MUST: &str = "MLX's affine quantisation (2, 3, 4, 6 or 8 bits in groups of 32, 64 or 128), or absent: \
                    give the unquantised checkpoint, an MLX one, or a GGUF file";

/// How the checkpoint holds its matrices, as far as config.json tells: the files' own headers know better which matrix
/// was left as it was, and what the scales are in.
pub(super) fn storage(config: &Config<'_>, spec: &ModelSpec) -> Result<Storage> {
    let dense = Storage::uniform(spec.dtype.into());
    // Mixtures are planned for mlx-lm and not loaded here.
    if spec.experts.is_some() {
        return Ok(dense);
    }
    let Some(table) = table(config)? else { return Ok(dense) };
    let format = affine(table, spec.dtype)?;
    let mut others = Vec::new();
    for tensor in spec.tensors() {
        let &[rows, columns] = tensor.shape.as_slice() else { continue };
        let own = match names(&tensor.name, spec.model_type).iter().find_map(|n| table.get(n)) {
            Some(Value::Object(own)) => affine(own, spec.dtype)?,
            Some(Value::Bool(false)) => spec.dtype.into(),
            Some(Value::Bool(true)) | None => continue,
            Some(other) => {
                return Err(Config::wrong(&format!("quantization.{}", tensor.name), other, "a table, true or false"));
            }
        };
        others.push(Other { name: tensor.name, shape: [rows, columns], format: own.for_columns(columns) });
    }
    others.retain(|o| o.format != format.for_columns(o.shape[1]));
    Ok(Storage { format, others, out_in: true })
}

/// The table that MLX writes, under one key or, for the hub, under two.
fn table<'a>(config: &Config<'a>) -> Result<Option<&'a Map<String, Value>>> {
    let found = config.get(&["quantization"]).or_else(|| config.get(&["quantization_config"]));
    let Some(value) = found else { return Ok(None) };
    let Value::Object(table) = value else {
        return Err(Config::wrong("quantization", value, MUST));
    };
    // Everyone but MLX names the method: gptq, awq, bitsandbytes, fp8, mxfp4, compressed-tensors, ...
    match table.get("quant_method") {
        Some(method) if !table.contains_key("group_size") || method.as_str() != Some("mlx") => {
            let method = method.as_str().map_or_else(|| method.to_string(), str::to_owned);
            Err(Error::invalid("quantization_config.quant_method` in `config.json", shown(&method), MUST))
        }
        _ => Ok(Some(table)),
    }
}

/// Reads one `{group_size, bits, mode}` table of MLX as a format.
fn affine(table: &Map<String, Value>, scales: Dtype) -> Result<Format> {
    let wrong = |key: &str, value: &Value| {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        Error::invalid(format!("quantization.{key}` in `config.json"), shown(&value), MUST)
    };
    match table.get("mode") {
        None => {}
        Some(Value::String(mode)) if mode == "affine" => {}
        Some(mode) => return Err(wrong("mode", mode)),
    }
    let number = |key: &str, known: &[usize]| {
        let value = table.get(key).unwrap_or(&Value::Null);
        let known = known.iter().find(|n| value.as_u64() == Some(**n as u64));
        known.map(|n| *n as u8).ok_or_else(|| wrong(key, value))
    };
    Ok(Format::Affine { bits: number("bits", &AFFINE_BITS)?, group: number("group_size", &AFFINE_GROUPS)?, scales })
}

/// Keys under which a layer may stand: its path in mlx-lm's model, which is transformers' but for a wrapper's prefix
/// and for GPT-2.
fn names(tensor: &str, model_type: ModelType) -> Vec<String> {
    let path = tensor.strip_suffix(".weight").unwrap_or(tensor);
    let path = match model_type {
        ModelType::Gpt2 => path.replacen("transformer.", "model.", 1),
        _ => path.to_owned(),
    };
    vec![format!("language_model.{path}"), path]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::run::Weights;

    fn config(extra: &str) -> Result<ModelSpec> {
        ModelSpec::from_config(&format!(
            r#"{{"model_type":"llama","hidden_size":64,"intermediate_size":100,"num_hidden_layers":2,"num_attention_heads":4,"vocab_size":101,"max_position_embeddings":512,"torch_dtype":"float16"{extra}}}"#
        ))
    }

    #[test]
    fn mlx_says_its_bits_and_the_layers_that_differ() {
        let spec = config(
            r#","quantization":{"group_size":32,"bits":4,"mode":"affine",
            "model.layers.1.self_attn.v_proj":{"group_size":64,"bits":8},"model.embed_tokens":false,"lm_head":true}"#,
        )
        .unwrap();
        let format = |name: &str, columns| spec.format(Weights::Stored, name, columns);
        let affine = |bits, group| Format::Affine { bits, group, scales: Dtype::F16 };
        assert_eq!(format("model.layers.0.self_attn.v_proj.weight", 64), affine(4, 32));
        assert_eq!(format("model.layers.1.self_attn.v_proj.weight", 64), affine(8, 64));
        assert_eq!(format("model.embed_tokens.weight", 64), Format::F16);
        assert_eq!(format("lm_head.weight", 64), affine(4, 32));
        // 100 columns are no whole groups: MLX leaves such a matrix alone.
        assert_eq!(format("model.layers.0.mlp.down_proj.weight", 100), Format::F16);
        assert_eq!(spec.storage.others.len(), 2);
        let hub = config(r#","quantization_config":{"group_size":64,"bits":8}"#).unwrap();
        assert_eq!(hub.storage.format, affine(8, 64));
        assert_eq!(config("").unwrap().storage, Storage::uniform(Format::F16));
    }

    #[test]
    fn other_quantisations_are_named() {
        let refuse = |extra: &str| config(extra).unwrap_err().to_string();
        for method in ["gptq", "awq", "bitsandbytes", "fp8", "mxfp4", "compressed-tensors", "hqq"] {
            let message = refuse(&format!(r#","quantization_config":{{"quant_method":"{method}","bits":4}}"#));
            assert!(message.contains(&format!("quant_method` in `config.json` is {method}, but")), "{message}");
            assert!(message.contains("GGUF"), "{message}");
        }
        assert!(
            refuse(r#","quantization":{"group_size":32,"bits":4,"mode":"mxfp4"}"#)
                .contains("mode` in `config.json` is mxfp4")
        );
        assert!(refuse(r#","quantization":{"group_size":64,"bits":5}"#).contains("bits` in `config.json` is 5"));
        assert!(refuse(r#","quantization":{"group_size":48,"bits":4}"#).contains("group_size` in `config.json` is 48"));
        assert!(refuse(r#","quantization":{"bits":4}"#).contains("group_size` in `config.json` is null"));
        assert!(refuse(r#","quantization":4"#).contains("is 4"));
        assert!(
            refuse(r#","quantization":{"group_size":64,"bits":4,"lm_head":4}"#)
                .contains("`quantization.lm_head.weight` in `config.json` is 4")
        );
        assert!(
            refuse(r#","quantization":{"group_size":64,"bits":4,"lm_head":{"group_size":64,"bits":4,"mode":"nvfp4"}}"#)
                .contains("is nvfp4")
        );
    }
}
