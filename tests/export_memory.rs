//! An export takes a few megabytes, whatever the model's size.
//! One test alone in its process: the allocator counts everything that the process does.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of tests are tests too

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use headroom::checkpoint::tensor_file;
use headroom::export::{Request, export};
use headroom::memory;
use headroom::spec::model::ModelSpec;
use headroom::spec::run::Weights;
use headroom::spec::run::export_format::ExportFormat;

#[global_allocator]
static ALLOCATOR: headroom::memory::Counting = headroom::memory::Counting;

const MIB: u64 = 1 << 20;

#[test]
fn an_export_takes_pieces_and_not_the_model() {
    let config = r#"{"model_type": "llama", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 6,
        "num_attention_heads": 12, "num_key_value_heads": 4, "vocab_size": 24000, "max_position_embeddings": 512,
        "tie_word_embeddings": true, "dtype": "float32"}"#;
    let work = tempfile::tempdir().unwrap();
    let (model, adapter) = (work.path().join("model"), work.path().join("adapter"));
    std::fs::create_dir(&model).unwrap();
    std::fs::create_dir(&adapter).unwrap();
    std::fs::write(model.join("config.json"), config).unwrap();
    let spec = ModelSpec::from_config(config).unwrap();
    // What the numbers are does not matter here.
    let draw = |shape: &[usize]| Tensor::full(0.03f32, shape, &Device::Cpu).unwrap();
    let tensors: HashMap<String, Tensor> = spec.tensors().into_iter().map(|t| (t.name, draw(&t.shape))).collect();
    let bytes: usize = tensors.values().map(|t| 4 * t.elem_count()).sum();
    tensor_file::save(&model.join("model.safetensors"), &tensors).unwrap();
    let pairs: HashMap<String, Tensor> = (0..6)
        .flat_map(|i| {
            let path = format!("model.layers.{i}.mlp.down_proj");
            [(format!("{path}.lora_a"), draw(&[3072, 8])), (format!("{path}.lora_b"), draw(&[8, 768]))]
        })
        .collect();
    tensor_file::save(&adapter.join("adapters.safetensors"), &pairs).unwrap();
    let about = r#"{"num_layers": 6, "lora_parameters": {"rank": 8, "scale": 2.0}}"#;
    std::fs::write(adapter.join("adapter_config.json"), about).unwrap();
    drop((tensors, pairs));

    // 268 MiB of weights, whose embedding alone is 70 MiB; measured: 28 MiB.
    assert!(bytes as u64 > 200 * MIB, "{bytes}");
    let from = |base: &str| work.path().join(base).display().to_string();
    for (base, format, weights, out) in [
        ("model", ExportFormat::Fused, None, "fused"),
        ("model", ExportFormat::Gguf, None, "m.gguf"),
        ("model", ExportFormat::Gguf, Some(Weights::Q4_0), "q4.gguf"),
        // What is quantised is dequantised a piece at a time.
        ("q4.gguf", ExportFormat::Fused, Some(Weights::F32), "wide"),
    ] {
        let request = Request {
            model: from(base),
            adapter: Some(adapter.clone()),
            format,
            weights,
            out: work.path().join(out),
            force: false,
        };
        let before = memory::live();
        memory::reset_peak();
        let mut last = (0, 0);
        let exported = export(&request, &mut |done, total| {
            assert!(done >= last.0 && done <= total);
            last = (done, total);
            Ok(())
        });
        let peak = memory::peak().saturating_sub(before);
        println!("{format:?}: {peak} above what was there, of {bytes} bytes of weights");
        let written = exported.unwrap().bytes.0 as usize;
        assert!(weights == Some(Weights::Q4_0) || written > bytes, "{out}: {written}");
        assert_eq!(last.0, last.1);
        assert!(peak.0 < 64 * MIB, "{format:?}: {peak}");
    }
}
