//! What others wrote, read here: adapters that mlx-lm trained and saved give its logits. `tests/fixtures/exchange/make.py`
//! made them; `check.py` beside it does the other direction, with the tools that are not at hand in a test.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of tests are tests too

mod common;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use common::fixture;
use headroom::checkpoint::adapter::{AdapterFile, Layout};
use headroom::checkpoint::source::ModelSource;
use headroom::data::batches::MicroBatch;
use headroom::ops::Backend;
use headroom::spec::run::RunConfig;
use headroom::trainer::candle::nn::adapter;
use headroom::trainer::candle::nn::decoder::Decoder;
use serde_json::Value;

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn run(lora: headroom::spec::run::Lora) -> RunConfig {
    let text = "model = \"m\"\ndata = \"d\"\n[recipe]\nmax_seq_length = 64\n[execution]\nweights = \"f32\"";
    let mut run = RunConfig::from_toml(text, Path::new("run.toml")).unwrap();
    run.recipe.lora = lora;
    run
}

/// A model of the fixtures with an adapter on it, whose settings come from its own files.
fn adapted(model: &Path, adapter_folder: &Path) -> Decoder {
    let run = run(AdapterFile::read(adapter_folder).unwrap().lora());
    let source = ModelSource::Folder(model.into());
    let mut decoder =
        Decoder::load(&source.weights().unwrap(), &source.spec().unwrap(), &run, (&Device::Cpu, Backend::Fused))
            .unwrap();
    adapter::load(&mut decoder, &run, adapter_folder).unwrap();
    decoder
}

fn logits(decoder: &Decoder, tokens: &[u32]) -> Vec<Vec<f32>> {
    let n = tokens.len();
    let batch = MicroBatch { tokens: tokens.to_vec(), examples: std::iter::once(0..n).collect(), targets: vec![] };
    decoder.logits(&batch, &(0..n as u32).collect::<Vec<_>>()).unwrap().to_vec2().unwrap()
}

fn worst(logits: &[Vec<f32>], expected: &Value) -> f64 {
    let expected = expected.as_array().unwrap().iter().flat_map(|row| row.as_array().unwrap());
    let pairs = logits.iter().flatten().zip(expected);
    pairs.map(|(a, e)| (f64::from(*a) - e.as_f64().unwrap()).abs()).fold(0.0, f64::max)
}

#[test]
fn adapters_of_mlx_lm_give_its_logits() {
    // All layers and projections; the last two and three projections; fused qkv; GPT-2 under the hub's old names.
    for (name, model) in [
        ("llama", "reference/llama"),
        ("qwen2", "reference/qwen2"),
        ("phi3", "reference/phi3"),
        ("gpt2_hub", "exchange/gpt2_hub"),
    ] {
        let folder = fixture("exchange/mlx_lm").join(name);
        assert_eq!(AdapterFile::read(&folder).unwrap().layout, Layout::MlxLm);
        let decoder = adapted(&fixture(model), &folder);
        let expected = json(&folder.join("expected.json"));
        let tokens: Vec<u32> = serde_json::from_value(expected["tokens"].clone()).unwrap();
        let error = worst(&logits(&decoder, &tokens), &expected["logits"]);
        assert!(error < 1e-4, "{name}: logits differ by {error}");
    }
}

#[test]
fn an_adapter_of_peft_is_used_without_a_run_file() {
    for name in ["qwen3", "gpt2"] {
        let folder = fixture("reference").join(name);
        let reference = json(&folder.join("reference.json"));
        let tokens: Vec<u32> = serde_json::from_value(reference["logits_tokens"].clone()).unwrap();
        let error = worst(&logits(&adapted(&folder, &folder.join("adapter")), &tokens), &reference["adapter_logits"]);
        assert!(error < 1e-4, "{name}: logits differ by {error}");
    }
}

/// A copy of an adapter folder with its tensors or its description changed.
fn changed(
    name: &str,
    tensors: impl Fn(&mut std::collections::HashMap<String, Tensor>),
    config: impl Fn(&mut Value),
) -> tempfile::TempDir {
    let (from, to) = (fixture("exchange/mlx_lm").join(name), tempfile::tempdir().unwrap());
    let mut all = candle_core::safetensors::load(from.join("adapters.safetensors"), &Device::Cpu).unwrap();
    tensors(&mut all);
    candle_core::safetensors::save(&all, to.path().join("adapters.safetensors")).unwrap();
    let mut about = json(&from.join("adapter_config.json"));
    config(&mut about);
    std::fs::write(to.path().join("adapter_config.json"), about.to_string()).unwrap();
    to
}

#[test]
fn every_mismatch_of_an_adapter_is_listed_at_once() {
    let model = fixture("reference/qwen2");
    let source = ModelSource::Folder(model);
    let spoiled = changed(
        "qwen2",
        |tensors| {
            tensors.remove("model.layers.1.mlp.down_proj.lora_b");
            let wide = Tensor::zeros((7, 5), DType::F32, &Device::Cpu).unwrap();
            tensors.insert("model.layers.2.self_attn.q_proj.lora_a".into(), wide.clone());
            tensors.insert("model.embed_tokens.lora_a".into(), wide);
        },
        |config| config["fine_tune_type"] = "full".into(),
    );
    let mut lora = AdapterFile::read(&fixture("exchange/mlx_lm/qwen2")).unwrap().lora();
    (lora.rank, lora.alpha) = (4, 9.0);
    let run = run(lora);
    let mut decoder =
        Decoder::load(&source.weights().unwrap(), &source.spec().unwrap(), &run, (&Device::Cpu, Backend::Fused))
            .unwrap();
    let error = adapter::load(&mut decoder, &run, spoiled.path()).unwrap_err().to_string();
    for part in [
        "its fine_tune_type is full; only lora is supported",
        "its rank is 5, the run's is 4",
        "its alpha is 12.5, the run's is 9",
        "`model.layers.1.mlp.down_proj.lora_b` is missing",
        "`model.layers.2.self_attn.q_proj.lora_a` has shape [7, 5], expected [32, 5]",
        "`model.embed_tokens.lora_a` does not belong to this run",
    ] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
    let neither = changed("qwen2", |_| {}, |config| *config = serde_json::json!({"rank": 5}));
    let error = AdapterFile::read(neither.path()).unwrap_err().to_string();
    assert!(error.contains("is neither PEFT's (no `peft_type`) nor mlx-lm's"), "{error}");
}
