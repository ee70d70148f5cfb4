//! Every format that a base can be held in: a model in it learns what the model learns whose dense weights are the
//! values that the format holds. MLX's and GGUF's files, written by their own libraries, give the logits that mlx-lm and
//! transformers computed from them (`tests/fixtures/{mlx,gguf}/make.py`).

#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of tests are tests too

mod files;
mod vision;

#[allow(unused_imports)] // some hold tests alone
use self::files::*;

#[path = "../common/mod.rs"]
mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use common::fixture;
use headroom::checkpoint::adapter::Adapter;
use headroom::checkpoint::source::ModelSource;
use headroom::checkpoint::stored::Stored;
use headroom::checkpoint::tensor_file;
use headroom::checkpoint::text::Text;
use headroom::data::batches::{Batches, MicroBatch};
use headroom::data::example::Example;
use headroom::ops::Backend;
use headroom::spec::model::ModelSpec;
use headroom::spec::model::storage::{Dtype, Format};
use headroom::spec::run::{Recipe, RunConfig, Weights};
use headroom::trainer::candle::nn::adapter;
use headroom::trainer::candle::nn::decoder::Decoder;
use headroom::trainer::candle::optim::{self, Optimizer};
use serde_json::Value;

const VOCAB: u32 = 101;

struct Model {
    run: RunConfig,
    spec: ModelSpec,
    decoder: Decoder,
}

/// A model with adapters whose B is not zero.
fn open(path: &Path, weights: &str) -> Model {
    let text = format!(
        r#"
        model = "m"
        data = "d"
        [recipe]
        max_seq_length = 64
        effective_batch_size = 2
        steps = 4
        learning_rate = 1e-2
        warmup_steps = 0
        shuffle = false
        lora = {{ rank = 4, alpha = 6 }}
        [execution]
        weights = "{weights}"
        batch_size = 2
        loss_chunk = 7
        attention_chunk = 5
        mlp_chunk = 11
        "#
    );
    let run = RunConfig::from_toml(&text, Path::new("run.toml")).unwrap();
    let source = ModelSource::find(path.to_str().unwrap()).unwrap();
    let spec = source.spec().unwrap();
    let mut decoder =
        Decoder::load(&source.weights().unwrap(), &spec, &run, (&Device::Cpu, common::backend())).unwrap();
    for i in 0..decoder.sites.len() {
        let fresh = adapter::fresh(&decoder.sites[i], i, 4, 7, (&Device::Cpu, common::backend())).unwrap();
        let (out, rank) = fresh.b.dims2().unwrap();
        let b: Vec<f32> = (0..out * rank).map(|j| 0.05 * ((j + i) as f32).sin()).collect();
        let b = Tensor::from_vec(b, (out, rank), &Device::Cpu).unwrap();
        decoder.set_adapter(i, Adapter { b, ..fresh }).unwrap();
    }
    Model { run, spec, decoder }
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// What a model computes.
struct Studied {
    logits: Vec<f32>,
    /// Of every adapter, in the first of the steps.
    grads: Vec<(String, Vec<f32>)>,
    /// Of four steps.
    losses: Vec<f64>,
}

fn study(mut model: Model) -> Studied {
    let tokens = |n: usize, k: u32| (0..n as u32).map(|t| (t * t + k * t + 3) % VOCAB).collect::<Vec<u32>>();
    let row = tokens(23, 5);
    let batch = MicroBatch { tokens: row.clone(), examples: std::iter::once(0..row.len()).collect(), targets: vec![] };
    let logits = flat(&model.decoder.logits(&batch, &Vec::from_iter(0..row.len() as u32)).unwrap());
    let rows: Vec<Example> =
        [(9, 1), (31, 2), (17, 3)].map(|(n, k)| Example { tokens: tokens(n, k), prompt: 0 }).into();
    let mut batches = Batches::new(&rows, &model.run, false);
    let mut optimizer =
        Optimizer::new(&model.decoder, &Recipe { weight_decay: 0.01, ..model.run.recipe.clone() }).unwrap();
    let (mut first, mut losses) = (Vec::new(), Vec::new());
    for step in 0..4 {
        let micro_batches = batches.step(step);
        let scale = 1.0 / micro_batches.iter().map(|b| b.targets.len()).sum::<usize>() as f64;
        let (mut loss, mut buffers) = (0.0, model.decoder.buffers().unwrap());
        for batch in &micro_batches {
            loss += scale * model.decoder.loss_and_grads(batch, scale, (0, 0), &mut buffers).unwrap();
        }
        if step == 0 {
            let both = |i: usize| {
                let grad = buffers.grads[model.decoder.place(i)].as_ref().unwrap();
                (model.decoder.sites[i].path.clone(), [flat(&grad.a), flat(&grad.b)].concat())
            };
            first = (0..model.decoder.sites.len()).map(both).collect();
        }
        losses.push(loss);
        let norm = optim::grad_norm(&model.decoder, &buffers.grads).unwrap();
        optimizer.step(&mut model.decoder, &buffers.grads, optim::clip(norm, 1.0), 1e-2).unwrap();
    }
    Studied { logits, grads: first, losses }
}

/// Largest difference, as a share of the largest number.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0f32, |m, v| m.max(v.abs()));
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max) / largest
}

/// Holds two models to each other: they differ in the order of their sums alone.
fn hold(what: &str, one: Model, other: Model) {
    let (Studied { logits, grads, losses }, other) = (study(one), study(other));
    let error = apart(&logits, &other.logits);
    assert!(error < 1e-5, "{what}: logits differ by {error}");
    assert!(!grads.is_empty() && grads.len() == other.grads.len());
    for ((site, grad), (_, theirs)) in grads.iter().zip(&other.grads) {
        let error = apart(grad, theirs);
        assert!(error < 1e-4, "{what}: the gradient of {site} differs by {error}");
    }
    for (step, (loss, theirs)) in losses.iter().zip(&other.losses).enumerate() {
        let error = ((loss - theirs) / theirs).abs();
        assert!(error < 1e-5, "{what}: the loss of step {step} differs by {error}");
    }
    assert!(losses[3] < losses[0], "{what}: nothing was learned");
}

const FAMILIES: [&str; 9] =
    ["llama", "mistral", "qwen2", "qwen3", "starcoder2", "gpt2", "gemma2", "gemma3_text", "phi3"];

/// 256 columns fill every block; 160 no block of 256, and int8's second group by half; 100 no block at all.
fn config(family: &str, intermediate: usize) -> String {
    if family == "gpt2" {
        return format!(
            r#"{{"model_type":"gpt2","n_embd":256,"n_layer":2,"n_head":4,"n_positions":64,"n_inner":{intermediate},"vocab_size":101}}"#
        );
    }
    format!(
        r#"{{"model_type":"{family}","hidden_size":256,"intermediate_size":{intermediate},"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":64,"vocab_size":101,"tie_word_embeddings":{},"sliding_window":8,"max_position_embeddings":64,"attn_logit_softcapping":20.0,"attention_bias":true}}"#,
        family.starts_with("gemma")
    )
}

const HELD: [Weights; 9] = [
    Weights::F16,
    Weights::Bf16,
    Weights::EightBit,
    Weights::FourBit,
    Weights::Int8,
    Weights::Q8_0,
    Weights::Q6K,
    Weights::Q4K,
    Weights::Q4_0,
];

#[test]
fn a_quantised_base_learns_what_its_dequantised_self_learns() {
    for (i, family) in FAMILIES.into_iter().enumerate() {
        let text = config(family, [160, 100][i % 2]);
        let spec = ModelSpec::from_config(&text).unwrap();
        let original: Vec<(String, Tensor)> = spec
            .tensors()
            .into_iter()
            .map(|t| {
                let norm = t.name.contains("norm") || t.name.contains("ln_");
                let (mean, sd) = if norm && t.name.ends_with("weight") { (1f32, 0.2) } else { (0.0, 0.06) };
                let numbers = common::drawn(&t.name, &t.shape, mean, sd);
                (t.name, numbers)
            })
            .collect();
        let quantised = tempfile::tempdir().unwrap();
        std::fs::write(quantised.path().join("config.json"), &text).unwrap();
        let tensors: HashMap<String, Tensor> = original.iter().cloned().collect();
        tensor_file::save(&quantised.path().join("model.safetensors"), &tensors).unwrap();
        for weights in HELD {
            let dense = tempfile::tempdir().unwrap();
            std::fs::write(dense.path().join("config.json"), &text).unwrap();
            let held = |t: &Tensor| match t.dims() {
                [rows, _] => {
                    let stored =
                        Stored::Dense(t.clone()).put(weights.format(Dtype::F32).unwrap(), &Device::Cpu).unwrap();
                    stored.panel(Backend::Fused, 0, *rows).unwrap()
                }
                _ => t.clone(),
            };
            let tensors: HashMap<String, Tensor> = original.iter().map(|(n, t)| (n.clone(), held(t))).collect();
            tensor_file::save(&dense.path().join("model.safetensors"), &tensors).unwrap();
            let what = format!("{family} in {}", weights.name());
            hold(&what, open(quantised.path(), weights.name()), open(dense.path(), "f32"));
        }
    }
}

/// (largest difference from the fixture's logits, largest of them), without adapters.
fn against(path: &Path, answer: &Path, weights: &str) -> (f32, f32) {
    let answer: Value = serde_json::from_str(&std::fs::read_to_string(answer).unwrap()).unwrap();
    let tokens: Vec<u32> = answer["tokens"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect();
    let every = answer["every"].as_u64().unwrap_or(1) as usize;
    let expected = answer["logits"].as_array().unwrap();
    let mut model = open(path, weights);
    for i in 0..model.decoder.sites.len() {
        let fresh = adapter::fresh(&model.decoder.sites[i], i, 4, 7, (&Device::Cpu, common::backend())).unwrap();
        model.decoder.set_adapter(i, fresh).unwrap();
    }
    let selected: Vec<u32> = (0..tokens.len() as u32).step_by(every).collect();
    let batch = MicroBatch { examples: std::iter::once(0..tokens.len()).collect(), tokens, targets: vec![] };
    let logits = model.decoder.logits(&batch, &selected).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(logits.len(), expected.len());
    let (mut worst, mut largest) = (0f32, 0f32);
    for (row, expected) in logits.iter().zip(expected) {
        for (a, e) in row.iter().zip(expected.as_array().unwrap()) {
            let e = e.as_f64().unwrap() as f32;
            (worst, largest) = (worst.max((a - e).abs()), largest.max(e.abs()));
        }
    }
    (worst, largest)
}
