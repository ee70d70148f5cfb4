//! Models and adapters that came from somebody else: what their files hold beside what a reader expects is refused by
//! name, reaches nothing outside of their folder, and an export touches nothing that no export made.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests too

mod folders_of_others;

#[allow(unused_imports)] // some hold tests alone
use self::folders_of_others::*;

#[path = "../common/mod.rs"]
mod common;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use assert_cmd::Command;
use candle_core::{Device, Tensor};
use common::fixture;
use headroom::checkpoint::source::{ModelSource, public_name};
use headroom::ops::Backend;
use headroom::spec::run::RunConfig;
use headroom::trainer::candle::nn::adapter;
use headroom::trainer::candle::nn::decoder::Decoder;
use serde_json::{Value, json};

fn export(folder: &Path, args: &[&str]) -> (i32, String) {
    let output = Command::cargo_bin("headroom").unwrap().current_dir(folder).arg("export").args(args).output().unwrap();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn exported(folder: &Path, args: &[&str]) {
    let (code, said) = export(folder, args);
    assert_eq!(code, 0, "{args:?}: {said}");
}

fn refused(folder: &Path, args: &[&str], part: &str) {
    let (code, said) = export(folder, args);
    assert_eq!(code, 2, "{args:?}: {said}");
    assert!(said.contains(part), "{args:?}: `{part}` is not in\n{said}");
}

/// A folder with a copy of a reference model in `model` and of its adapter in `adapter`.
fn copied(family: &str) -> tempfile::TempDir {
    let (from, work) = (fixture("reference").join(family), tempfile::tempdir().unwrap());
    for (folder, files) in [
        ("model", ["config.json", "model.safetensors"]),
        ("adapter", ["adapter_config.json", "adapter_model.safetensors"]),
    ] {
        fs::create_dir(work.path().join(folder)).unwrap();
        for file in files {
            let inside = if folder == "model" { from.join(file) } else { from.join(folder).join(file) };
            fs::copy(inside, work.path().join(folder).join(file)).unwrap();
        }
    }
    work
}

fn change_json(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

fn change_weights(model: &Path, change: impl FnOnce(&mut HashMap<String, Tensor>)) {
    let path = model.join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    change(&mut tensors);
    candle_core::safetensors::save(&tensors, path).unwrap();
}

/// The tensor with one of its numbers, the last but one, another.
fn spoil(tensors: &mut HashMap<String, Tensor>, name: &str, number: f32) {
    let tensor = &tensors[name];
    let mut numbers: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    let at = numbers.len() - 2;
    numbers[at] = number;
    let spoiled = Tensor::from_vec(numbers, tensor.shape(), &Device::Cpu).unwrap();
    tensors.insert(name.into(), spoiled);
}

/// Loads a model as a run does.
fn loaded(model: &Path, weights: &str) -> Result<Decoder, String> {
    let text =
        format!("model = \"m\"\ndata = \"d\"\n[recipe]\nmax_seq_length = 8\n[execution]\nweights = \"{weights}\"");
    let run = RunConfig::from_toml(&text, Path::new("run.toml")).unwrap();
    let source = ModelSource::find(model.to_str().unwrap()).map_err(|e| e.to_string())?;
    let spec = source.spec().map_err(|e| e.to_string())?;
    let store = source.weights().map_err(|e| e.to_string())?;
    Decoder::load(&store, &spec, &run, (&Device::Cpu, Backend::Fused)).map_err(|e| e.to_string())
}

fn not_loaded(model: &Path, weights: &str, part: &str) {
    let error = loaded(model, weights).err().unwrap_or_else(|| panic!("loaded, without: {part}"));
    assert!(error.contains(part), "`{part}` is not in\n{error}");
}

const FUSED: [&str; 6] = ["adapter", "--model", "model", "--format", "fused", "--out"];

#[test]
fn weights_that_are_no_numbers_are_refused_by_the_name_of_their_tensor() {
    for (name, number) in [
        ("model.layers.1.mlp.down_proj.weight", f32::NAN),
        ("model.layers.0.input_layernorm.weight", f32::INFINITY),
        ("model.embed_tokens.weight", f32::NEG_INFINITY),
    ] {
        let work = copied("qwen2");
        let model = work.path().join("model");
        change_weights(&model, |tensors| spoil(tensors, name, number));
        let said = format!("`{name}` cannot be read: it contains NaN or infinity");
        for weights in ["f32", "q8_0"] {
            not_loaded(&model, weights, &said);
        }
        refused(work.path(), &["--model", "model", "--format", "gguf", "--weights", "q8_0", "--out", "m.gguf"], &said);
        // Copied or with the adapter worked in: neither is written.
        refused(work.path(), &[&FUSED[..], &["out"]].concat(), "it contains NaN or infinity");
        assert!(!work.path().join("out").exists() && !work.path().join("m.gguf").exists());
    }
    // A tensor that the model does not use is copied as it is.
    let work = copied("qwen2");
    change_weights(&work.path().join("model"), |tensors| {
        tensors.insert("vision.weight".into(), Tensor::full(f32::NAN, (3, 4), &Device::Cpu).unwrap());
    });
    exported(work.path(), &[&FUSED[..], &["out"]].concat());
    loaded(&work.path().join("out"), "f32").unwrap();
}

#[test]
fn weights_too_large_for_a_format_are_refused_by_the_name_of_their_tensor() {
    let work = copied("qwen2");
    let name = "model.layers.1.mlp.up_proj.weight";
    change_weights(&work.path().join("model"), |tensors| spoil(tensors, name, 3e8));
    for weights in ["f16", "q8_0"] {
        let args = ["--model", "model", "--format", "gguf", "--weights", weights, "--out", "m.gguf"];
        refused(work.path(), &args, &format!("`{name}` cannot be written: it has numbers that are larger than"));
        not_loaded(&work.path().join("model"), weights, &format!("`{name}` cannot be converted"));
    }
    exported(work.path(), &["--model", "model", "--format", "gguf", "--weights", "bf16", "--out", "m.gguf"]);
}

#[test]
fn a_head_that_is_tied_and_another_is_refused() {
    let work = copied("qwen2");
    let model = work.path().join("model");
    let with_head = |scale: f64| {
        change_weights(&model, |tensors| {
            let head = (&tensors["model.embed_tokens.weight"] * scale).unwrap();
            tensors.insert("lm_head.weight".into(), head);
        });
    };
    with_head(1.0);
    loaded(&model, "f32").unwrap();
    exported(work.path(), &[&FUSED[..], &["same"]].concat());
    with_head(1.5);
    let said = "it has an `lm_head.weight` of its own, but `tie_word_embeddings` in its config.json is true";
    not_loaded(&model, "f32", said);
    refused(work.path(), &[&FUSED[..], &["other"]].concat(), said);
    change_json(&model.join("config.json"), |config| config["tie_word_embeddings"] = false.into());
    loaded(&model, "f32").unwrap();
}

#[test]
fn settings_of_an_adapter_are_obeyed_or_refused_by_name() {
    let convert = "path_initial_model_for_weight_conversion";
    for (key, value, said) in [
        ("init_lora_weights", json!("pissa"), convert),
        ("init_lora_weights", json!("pissa_niter_16"), convert),
        ("init_lora_weights", json!("olora"), "is olora, which changes the base model before training"),
        ("init_lora_weights", json!("corda"), convert),
        ("init_lora_weights", json!("loftq"), "merge it in PEFT into the base that it was trained on"),
        ("init_lora_weights", json!("lora_ga"), "is lora_ga"),
        ("rank_pattern", json!({"q_proj": 2}), "has rank 4, and its description says 2"),
        ("alpha_pattern", json!({".*q_proj": 2}), "its `alpha_pattern` has the regular expression `.*q_proj`"),
        (
            "alpha_pattern",
            json!({"q_proj": 2, "self_attn.q_proj": 3}),
            "has two numbers for `model.layers.0.self_attn.q_proj`",
        ),
        ("alpha_pattern", json!({"q_proj": "2"}), "has no number for `q_proj`"),
        ("layer_replication", json!([[0, 2], [1, 3]]), "it uses `layer_replication`"),
        ("modules_to_save", json!(["lm_head"]), "it uses `modules_to_save`"),
        ("bias", json!("lora_only"), "it trains biases"),
        ("lora_bias", json!(true), "it uses `lora_bias`"),
        ("trainable_token_indices", json!([1, 2]), "it uses `trainable_token_indices`"),
        ("alora_invocation_tokens", json!([1, 2]), "it uses `alora_invocation_tokens`"),
        ("target_parameters", json!(["mlp.experts"]), "it uses `target_parameters`"),
        ("arrow_config", json!({"top_k": 3}), "it uses `arrow_config`"),
        ("something_new", json!(0.5), "it uses `something_new`"),
        ("use_dora", json!("yes"), "expected a boolean"),
    ] {
        let work = copied("qwen2");
        change_json(&work.path().join("adapter/adapter_config.json"), |config| config[key] = value.clone());
        refused(work.path(), &[&FUSED[..], &["out"]].concat(), said);
    }
    for (key, value) in [
        ("init_lora_weights", json!("gaussian")),
        ("init_lora_weights", json!("eva")),
        ("init_lora_weights", json!(false)),
        ("rank_pattern", json!({})),
        ("layers_to_transform", json!(1)),
        ("peft_version", json!("0.19.0")),
        ("megatron_core", json!("megatron.core")),
        ("lorap_emb_lr", json!(1e-6)),
    ] {
        let work = copied("qwen2");
        change_json(&work.path().join("adapter/adapter_config.json"), |config| config[key] = value.clone());
        exported(work.path(), &[&FUSED[..], &["out"]].concat());
    }
}

#[test]
fn adapters_of_older_tools_are_read_or_told_how() {
    // Until mid-2024 mlx-lm called the number of layers another name.
    let work = copied("qwen2");
    exported(work.path(), &["adapter", "--model", "model", "--format", "mlx-lm", "--out", "mlx"]);
    change_json(&work.path().join("mlx/adapter_config.json"), |config| {
        let layers = config["num_layers"].take();
        config.as_object_mut().unwrap().remove("num_layers");
        config["lora_layers"] = layers;
        config["lora_parameters"]["alpha"] = 16.into();
    });
    exported(work.path(), &["mlx", "--model", "model", "--format", "fused", "--out", "old"]);
    // The file of the weights stands for the folder.
    let file = "mlx/adapters.safetensors";
    exported(work.path(), &[file, "--model", "model", "--format", "fused", "--out", "by-file"]);
    let bytes = |folder: &str| fs::read(work.path().join(folder).join("model.safetensors")).unwrap();
    assert_eq!(bytes("old"), bytes("by-file"));
    for (folder, new, old, said) in [
        ("mlx", "adapters.safetensors", "adapters.npz", "mx.save_safetensors"),
        ("adapter", "adapter_model.safetensors", "adapter_model.bin", "is a pickle, which can run code"),
    ] {
        let at = work.path().join(folder);
        fs::remove_file(at.join("SHA256SUMS")).ok();
        fs::rename(at.join(new), at.join(old)).unwrap();
        refused(work.path(), &[folder, "--model", "model", "--format", "fused", "--out", "no"], said);
    }
    fs::remove_file(work.path().join("mlx/adapter_config.json")).unwrap();
    refused(
        work.path(),
        &["mlx", "--model", "model", "--format", "fused", "--out", "no"],
        "has no adapter_config.json",
    );
}
