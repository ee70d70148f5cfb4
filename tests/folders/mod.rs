//! Model folders with random weights, in every kind of checkpoint.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Value, write};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Tensor};
use headroom::checkpoint::tensor_file;
use headroom::spec::model::ModelSpec;

#[path = "../common/mod.rs"]
mod common;

fn random(name: &str, shape: &[usize]) -> Tensor {
    common::drawn(name, shape, 0.0, 0.05)
}

/// As transformers saves it, in f32.
pub fn dense(spec: &ModelSpec, config: &str, at: &Path) {
    std::fs::write(at.join("config.json"), config).unwrap();
    let tensors: HashMap<String, Tensor> =
        spec.tensors().into_iter().map(|t| (t.name.clone(), random(&t.name, &t.shape))).collect();
    tensor_file::save(&at.join("model.safetensors"), &tensors).unwrap();
}

#[allow(dead_code)] // not every test that shares this file needs it
/// As mlx-lm converts it, in f16: matrices whose rows groups do not divide stay as they are.
pub fn mlx(spec: &ModelSpec, config: &str, (bits, group): (usize, usize), at: &Path) {
    let quantization = format!(r#","quantization":{{"group_size":{group},"bits":{bits}}}}}"#);
    std::fs::write(at.join("config.json"), config.trim_end().trim_end_matches('}').to_owned() + &quantization).unwrap();
    let half = |t: Tensor| t.to_dtype(DType::F16).unwrap();
    let mut tensors = HashMap::new();
    let mut spec = spec.clone();
    spec.storage.out_in = true;
    for t in spec.tensors() {
        // mlx-lm has all of GPT-2 under `model`.
        let name = t.name.replacen("transformer.", "model.", 1);
        match *t.shape.as_slice() {
            [rows, columns] if columns % group == 0 => {
                let words = common::drawn(&name, &[rows, columns * bits / 32], 2e9, 1e9);
                let path = name.strip_suffix("weight").unwrap();
                tensors.insert(
                    format!("{path}scales"),
                    half((random(&format!("{path}scales"), &[rows, columns / group]) * 0.1).unwrap()),
                );
                tensors
                    .insert(format!("{path}biases"), half(random(&format!("{path}biases"), &[rows, columns / group])));
                tensors.insert(name, words.to_dtype(DType::U32).unwrap());
            }
            _ => {
                let numbers = half(random(&name, &t.shape));
                tensors.insert(name, numbers);
            }
        }
    }
    tensor_file::save(&at.join("model.safetensors"), &tensors).unwrap();
}

/// A Llama as llama.cpp's `Q4_K_M` has it: some matrices in a wider format, vectors in f32.
#[allow(dead_code)] // not every test that shares this file needs it
pub fn gguf(spec: &ModelSpec, at: &Path) -> PathBuf {
    let number = |n: usize| Value::U32(n as u32);
    let metadata = [
        ("general.architecture", Value::String("llama".into())),
        ("llama.context_length", number(spec.max_position_embeddings)),
        ("llama.embedding_length", number(spec.hidden_size)),
        ("llama.block_count", number(spec.num_hidden_layers)),
        ("llama.feed_forward_length", number(spec.intermediate_size)),
        ("llama.attention.head_count", number(spec.attention.num_attention_heads)),
        ("llama.attention.head_count_kv", number(spec.attention.num_key_value_heads)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("llama.rope.freq_base", Value::F32(1e4)),
    ];
    let quantised = |t: &headroom::spec::model::tensors::TensorSpec| {
        let wide = t.name.contains("v_proj") || t.name.contains("embed");
        let dtype = match t.shape.len() {
            1 => GgmlDType::F32,
            _ if wide => GgmlDType::Q6K,
            _ => GgmlDType::Q4K,
        };
        (spec.gguf_name(&t.name).unwrap(), QTensor::quantize(&random(&t.name, &t.shape), dtype).unwrap())
    };
    let tensors: Vec<(String, QTensor)> = spec.tensors().iter().map(quantised).collect();
    let path = at.join("model.gguf");
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(k, v)| (*k, v)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
    write(&mut std::fs::File::create(&path).unwrap(), &metadata, &tensors).unwrap();
    path
}
