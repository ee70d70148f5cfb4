//! Every format that a base can be held in: a model in it learns what the model learns whose dense weights are the
//! values that the format holds. MLX's and GGUF's files, written by their own libraries, give the logits that mlx-lm and
//! transformers computed from them (`tests/fixtures/{mlx,gguf}/make.py`).

#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of tests are tests too

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
use headroom::spec::model::ModelSpec;
use headroom::spec::model::storage::Format;
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
    // The same tests once more, by candle's operations alone: see tests/composed.rs.
    if env!("CARGO_CRATE_NAME") == "composed" {
        headroom::ops::compose_everything();
    }
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
    let mut decoder = Decoder::load(&source.weights().unwrap(), &spec, &run, &Device::Cpu).unwrap();
    for i in 0..decoder.sites.len() {
        let fresh = adapter::fresh(&decoder.sites[i], i, 4, 7, &Device::Cpu).unwrap();
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
        let (mut loss, mut grads) = (0.0, model.decoder.no_grads());
        for batch in &micro_batches {
            loss += scale * model.decoder.loss_and_grads(batch, scale, (0, 0), &mut grads).unwrap();
        }
        if step == 0 {
            let both = |i: usize| {
                let grad = grads[model.decoder.place(i)].as_ref().unwrap();
                (model.decoder.sites[i].path.clone(), [flat(&grad.a), flat(&grad.b)].concat())
            };
            first = (0..model.decoder.sites.len()).map(both).collect();
        }
        losses.push(loss);
        let norm = optim::grad_norm(&grads).unwrap();
        optimizer.step(&mut model.decoder, optim::clip(grads, norm, 1.0).unwrap(), 1e-2).unwrap();
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
                (t.name, Tensor::randn(mean, sd, t.shape, &Device::Cpu).unwrap())
            })
            .collect();
        let quantised = tempfile::tempdir().unwrap();
        std::fs::write(quantised.path().join("config.json"), &text).unwrap();
        let tensors: HashMap<String, Tensor> = original.iter().cloned().collect();
        tensor_file::save(&quantised.path().join("model.safetensors"), &tensors).unwrap();
        for weights in
            [Weights::F16, Weights::Bf16, Weights::Int8, Weights::Q8_0, Weights::Q6K, Weights::Q4K, Weights::Q4_0]
        {
            let dense = tempfile::tempdir().unwrap();
            std::fs::write(dense.path().join("config.json"), &text).unwrap();
            let held = |t: &Tensor| match t.dims() {
                [rows, _] => {
                    let stored = Stored::Dense(t.clone()).put(weights.format().unwrap(), &Device::Cpu).unwrap();
                    stored.panel(0, *rows).unwrap()
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
        let fresh = adapter::fresh(&model.decoder.sites[i], i, 4, 7, &Device::Cpu).unwrap();
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

const MLX: [&str; 11] =
    ["llama", "mistral", "qwen2", "qwen2_mixed", "wide", "qwen3", "starcoder2", "gpt2", "gemma2", "gemma3", "phi3"];

#[test]
fn mlx_checkpoints_give_the_logits_of_mlx_lm() {
    for case in MLX {
        let folder = fixture("mlx").join(case);
        // Both compute in f32 from the same codes, scales and biases, and differ in the order of their sums.
        let (worst, largest) = against(&folder, &folder.join("logits.json"), "stored");
        println!("{case}: {worst:e} of {largest}");
        assert!(worst < 1e-5 * largest.max(1.0), "{case}: logits differ by {worst} (they reach {largest})");
        let spec = ModelSource::find(folder.to_str().unwrap()).unwrap().spec().unwrap();
        assert!(
            matches!(spec.storage.format, Format::Affine { .. }) && spec.storage.out_in,
            "{case}: {:?}",
            spec.storage
        );
        hold(&format!("{case} of MLX"), open(&folder, "stored"), open(&folder, "f32"));
    }
    let spec = |case: &str| ModelSource::find(fixture("mlx").join(case).to_str().unwrap()).unwrap().spec().unwrap();
    let format = |name: &str| spec("qwen2_mixed").format(Weights::Stored, name, 32);
    assert!(matches!(format("model.layers.1.self_attn.v_proj.weight"), Format::Affine { bits: 8, .. }));
    assert!(matches!(format("model.layers.1.self_attn.k_proj.weight"), Format::Affine { bits: 4, .. }));
    assert_eq!(format("lm_head.weight"), Format::Bf16); // which config.json does not say
}

const GGUF: [&str; 12] = [
    "llama",
    "llama_biased",
    "llama_k",
    "mistral",
    "qwen2",
    "qwen3",
    "starcoder2",
    "gpt2",
    "gemma2",
    "gemma3",
    "phi3",
    "chat",
];

#[test]
fn gguf_files_give_the_logits_of_transformers() {
    let mut seen = std::collections::HashSet::new();
    for case in GGUF {
        let file = fixture("gguf").join(format!("{case}.gguf"));
        let (worst, largest) = against(&file, &file.with_extension("json"), "stored");
        println!("{case}: {worst:e} of {largest}");
        assert!(worst < 1e-5 * largest.max(1.0), "{case}: logits differ by {worst} (they reach {largest})");
        let stored = open(&file, "stored");
        seen.extend(stored.spec.storage.others.iter().map(|o| o.format));
        hold(&format!("{case} of GGUF"), stored, open(&file, "f32"));
    }
    assert!(seen.len() >= 12, "only {seen:?}");
}

#[test]
fn a_gguf_file_brings_its_tokenizer_and_template() {
    let text = |path: PathBuf| {
        let source = ModelSource::find(path.to_str().unwrap()).unwrap();
        Text::open(&source, &source.spec().unwrap(), "m").unwrap()
    };
    let (gguf, folder) = (text(fixture("gguf/chat.gguf")), text(fixture("hf_folder")));
    let rows = std::fs::read_to_string(fixture("hf_folder/train.jsonl")).unwrap();
    let mut chats = 0;
    for line in rows.lines() {
        assert_eq!(gguf.plain(line).unwrap(), folder.plain(line).unwrap());
        let row: Value = serde_json::from_str(line).unwrap();
        if let Ok(messages) = serde_json::from_value::<Vec<_>>(row["messages"].clone()) {
            assert_eq!(gguf.chat(&messages).unwrap(), folder.chat(&messages).unwrap());
            chats += 1;
        }
    }
    assert!(chats > 0);
    assert_eq!(gguf.eos_ids.last(), folder.eos_ids.last());
    // The others have none, and say what to do.
    let source = ModelSource::find(fixture("gguf/llama.gguf").to_str().unwrap()).unwrap();
    let error = Text::open(&source, &source.spec().unwrap(), "m").err().unwrap().to_string();
    assert!(error.contains("put the model's tokenizer.json beside"), "{error}");
}

#[test]
fn a_folder_may_hold_a_gguf_file() {
    let folder = tempfile::tempdir().unwrap();
    let from = |name: &str| fixture("gguf").join(name);
    let to = |name: &str| folder.path().join(name);
    std::fs::copy(from("qwen2.gguf"), to("model-q4.gguf")).unwrap();
    let find = || ModelSource::find(folder.path().to_str().unwrap());
    assert_eq!(find().unwrap(), ModelSource::Gguf(to("model-q4.gguf")));
    // A config.json beside it does not make it a folder of safetensors.
    std::fs::write(to("config.json"), "{}").unwrap();
    assert_eq!(find().unwrap(), ModelSource::Gguf(to("model-q4.gguf")));
    std::fs::copy(from("qwen2.gguf"), to("model-q8.gguf")).unwrap();
    let error = find().unwrap_err().to_string();
    assert!(error.contains("model-q4.gguf, model-q8.gguf: name one"), "{error}");
    std::fs::write(to("model.safetensors"), "").unwrap();
    assert_eq!(find().unwrap(), ModelSource::Folder(folder.path().into()));
}

#[test]
fn damaged_checkpoints_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    let whole = std::fs::read(fixture("gguf/llama.gguf")).unwrap();
    let refuse = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        ModelSource::find(path.to_str().unwrap()).unwrap().spec().unwrap_err().to_string()
    };
    assert!(refuse(&whole[..whole.len() - 100]).contains("is the download complete?"));
    assert!(refuse(&whole[..300]).contains("is it a complete GGUF file?"));
    assert!(refuse(b"not a model").contains("is it a GGUF file"));
    let mut wide = whole.clone();
    let key = b"llama.feed_forward_length";
    let at = whole.windows(key.len()).position(|w| w == key).unwrap() + key.len() + 4;
    wide[at] += 32;
    let error = refuse(&wide);
    assert!(error.contains("`blk.0.ffn_gate.weight` is [") && error.contains("but its metadata say ["), "{error}");
    let mut part = whole.clone();
    let key = b"llama.embedding_length";
    let at = whole.windows(key.len()).position(|w| w == key).unwrap() + key.len() + 4;
    part[at] += 32;
    assert!(refuse(&part).contains("`llama.rope.dimension_count` is"));
    let mut mamba = whole.clone();
    let at = whole.windows(5).position(|w| w == b"llama").unwrap();
    mamba[at..at + 5].copy_from_slice(b"mamba");
    assert!(refuse(&mamba).contains("unknown architecture `mamba`"));

    // MLX: the codes of one matrix cut short of what config.json's shape needs, and scales that are gone.
    let config = |text: &str| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(fixture("mlx/qwen2/model.safetensors"), folder.path().join("model.safetensors")).unwrap();
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        let source = ModelSource::find(folder.path().to_str().unwrap()).unwrap();
        let spec = source.spec()?;
        source.weights()?.check(&spec)
    };
    let text = std::fs::read_to_string(fixture("mlx/qwen2/config.json")).unwrap();
    config(&text).unwrap();
    let wider = text.replace("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 4");
    let error = config(&wider).unwrap_err().to_string();
    assert!(
        error.contains("k_proj.weight` holds [16, 4] words with [16, 1] scales, which make no [32, 32]"),
        "{error}"
    );
    let error = config(&text.replace("\"affine\"", "\"mxfp4\"")).unwrap_err().to_string();
    assert!(error.contains("`quantization.mode` in `config.json` is mxfp4"), "{error}");
}
