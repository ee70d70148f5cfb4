//! What is exported, read back: fused folders by our own decoder, GGUF files by candle's reader. The numbers they are
//! held to are PEFT's. `tests/fixtures/exchange/check.py` opens the same exports in the tools they are for.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of tests are tests too

mod gguf;
mod quantised;

#[allow(unused_imports)] // some hold tests alone
use self::gguf::*;

#[path = "../common/mod.rs"]
mod common;

use std::path::Path;

use assert_cmd::Command;
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{Device, Tensor};
use common::{FAMILIES, fixture};
use headroom::checkpoint::adapter::AdapterFile;
use headroom::checkpoint::source::ModelSource;
use headroom::data::batches::MicroBatch;
use headroom::ops::Backend;
use headroom::spec::run::{Lora, RunConfig};
use headroom::trainer::candle::nn::decoder::Decoder;

/// Runs `headroom export` in `folder`: exit code, stdout, stderr.
fn export(folder: &Path, args: &[&str]) -> (i32, String, String) {
    let output = Command::cargo_bin("headroom").unwrap().current_dir(folder).arg("export").args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

fn exported(folder: &Path, args: &[&str]) {
    let (code, _, said) = export(folder, args);
    assert_eq!(code, 0, "{args:?}: {said}");
}

/// Model and adapter of a family, as arguments.
fn family_args(family: &str) -> [String; 3] {
    let model = fixture("reference").join(family);
    [model.join("adapter").display().to_string(), "--model".into(), model.display().to_string()]
}

fn logits(model: &Path, tokens: &[u32]) -> Vec<Vec<f32>> {
    let text = "model = \"m\"\ndata = \"d\"\n[recipe]\nmax_seq_length = 64\n[execution]\nweights = \"f32\"";
    let run = RunConfig::from_toml(text, Path::new("run.toml")).unwrap();
    let source = ModelSource::Folder(model.into());
    let decoder =
        Decoder::load(&source.weights().unwrap(), &source.spec().unwrap(), &run, (&Device::Cpu, Backend::Fused))
            .unwrap();
    let n = tokens.len();
    let batch = MicroBatch { tokens: tokens.to_vec(), examples: std::iter::once(0..n).collect(), targets: vec![] };
    decoder.logits(&batch, &(0..n as u32).collect::<Vec<_>>()).unwrap().to_vec2().unwrap()
}

#[test]
fn a_fused_model_gives_the_logits_of_its_adapter_in_peft() {
    let work = tempfile::tempdir().unwrap();
    for family in FAMILIES {
        let [adapter, flag, model] = family_args(family);
        exported(work.path(), &[&adapter, &flag, &model, "--format", "fused", "--out", family]);
        let reference: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(Path::new(&model).join("reference.json")).unwrap()).unwrap();
        let tokens: Vec<u32> = serde_json::from_value(reference["logits_tokens"].clone()).unwrap();
        let expected: Vec<Vec<f32>> = serde_json::from_value(reference["adapter_logits"].clone()).unwrap();
        let found = logits(&work.path().join(family), &tokens);
        let pairs = found.iter().flatten().zip(expected.iter().flatten());
        let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-4, "{family}: logits differ by {worst}");
        assert!(!work.path().join(family).join("adapter_config.json").exists());
    }
}

/// A bf16 base in two shards: only the adapted matrices change, and everything else of the folder comes along.
#[test]
fn fusing_keeps_shards_formats_and_companions() {
    let work = tempfile::tempdir().unwrap();
    let base = fixture("hf_folder");
    let (name, out) = ("model.layers.1.self_attn.k_proj", [32usize, 64]);
    let part = |side: &str, rows, columns| common::drawn(side, &[rows, columns], 0.0, 1.0);
    let tensors = [
        (format!("base_model.model.{name}.lora_A.weight"), part("A", 3, out[1])),
        (format!("base_model.model.{name}.lora_B.weight"), part("B", out[0], 3)),
    ];
    let adapter = work.path().join("adapter");
    std::fs::create_dir(&adapter).unwrap();
    candle_core::safetensors::save(&tensors.clone().into(), adapter.join("adapter_model.safetensors")).unwrap();
    let config = r#"{"peft_type": "LORA", "r": 3, "lora_alpha": 5, "target_modules": ["k_proj"]}"#;
    std::fs::write(adapter.join("adapter_config.json"), config).unwrap();
    let base_arg = base.display().to_string();
    // mlx-lm counts layers from the end: the pair on the last of two blocks is one layer.
    exported(work.path(), &["adapter", "--model", &base_arg, "--format", "mlx-lm", "--out", "mlx"]);
    let mlx = std::fs::read_to_string(work.path().join("mlx/adapter_config.json")).unwrap();
    let mlx: serde_json::Value = serde_json::from_str(&mlx).unwrap();
    assert_eq!(
        (&mlx["num_layers"], &mlx["lora_parameters"]["keys"]),
        (&1.into(), &serde_json::json!(["self_attn.k_proj"]))
    );
    assert_eq!(mlx["lora_parameters"]["scale"].as_f64().unwrap(), 5.0 / 3.0);
    exported(work.path(), &["adapter", "--model", &base_arg, "--format", "fused", "--out", "out"]);
    let out = work.path().join("out");
    for file in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "model.safetensors.index.json",
    ] {
        assert_eq!(std::fs::read(base.join(file)).unwrap(), std::fs::read(out.join(file)).unwrap(), "{file}");
    }
    let mut changed = Vec::new();
    for shard in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] {
        let load = |folder: &Path| candle_core::safetensors::load(folder.join(shard), &Device::Cpu).unwrap();
        let (before, after) = (load(&base), load(&out));
        assert_eq!(before.len(), after.len());
        for (tensor, before) in before {
            let after = &after[&tensor];
            assert_eq!((before.dtype(), before.shape()), (after.dtype(), after.shape()), "{tensor}");
            let f32s = |t: &Tensor| {
                t.to_dtype(candle_core::DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            if f32s(&before) != f32s(after) {
                let update = (tensors[1].1.matmul(&tensors[0].1).unwrap() * (5.0 / 3.0)).unwrap();
                let wanted = (before.to_dtype(candle_core::DType::F32).unwrap() + update).unwrap();
                assert_eq!(f32s(&wanted.to_dtype(before.dtype()).unwrap()), f32s(after));
                changed.push(tensor);
            }
        }
    }
    assert_eq!(changed, [format!("{name}.weight")]);
}

#[test]
fn an_adapter_goes_to_mlx_lm_and_back_unchanged() {
    let work = tempfile::tempdir().unwrap();
    for family in ["gpt2", "phi3"] {
        let [adapter, flag, model] = family_args(family);
        exported(work.path(), &[&adapter, &flag, &model, "--format", "mlx-lm", "--out", &format!("{family}-mlx")]);
        let mlx = format!("{family}-mlx");
        exported(work.path(), &[&mlx, &flag, &model, "--format", "peft", "--out", &format!("{family}-peft")]);
        let read = |folder: &Path| AdapterFile::read(folder).unwrap();
        let (first, last) = (read(Path::new(&adapter)), read(&work.path().join(format!("{family}-peft"))));
        assert_eq!((first.about.rank, first.about.alpha), (last.about.rank, last.about.alpha));
        assert_eq!(first.paths().collect::<Vec<_>>(), last.paths().collect::<Vec<_>>());
        for path in first.paths() {
            let (a, b) = (first.adapter(path).unwrap(), last.adapter(path).unwrap());
            assert_eq!(a.a.to_vec2::<f32>().unwrap(), b.a.to_vec2::<f32>().unwrap(), "{path}");
            assert_eq!(a.b.to_vec2::<f32>().unwrap(), b.b.to_vec2::<f32>().unwrap(), "{path}");
        }
        let lora: Lora = read(&work.path().join(mlx)).lora();
        assert_eq!((lora.rank, lora.alpha), (4, 6.0));
    }
}
