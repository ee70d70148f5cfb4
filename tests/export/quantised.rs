//! Exports of quantised bases and of DoRA adapters: what the model computes with its adapter, the export computes alone.

use super::*;
use candle_core::DType;
use headroom::spec::model::ModelSpec;
use headroom::spec::model::storage::{Dtype, Format};
use headroom::trainer::candle::nn::adapter;

/// Seven, because llama.cpp has no window in some of the families (windows here are of eight).
const TOKENS: [u32; 7] = [47, 68, 25, 67, 83, 23, 92];

fn source(model: &Path) -> ModelSource {
    ModelSource::find(model.to_str().unwrap()).unwrap()
}

/// Logits of a model as it is stored, with an adapter if one is given.
fn computed(model: &Path, with: Option<&Path>) -> Vec<Vec<f32>> {
    let text = "model = \"m\"\ndata = \"d\"\n[recipe]\nmax_seq_length = 64\n[execution]\nweights = \"stored\"";
    let mut run = RunConfig::from_toml(text, Path::new("run.toml")).unwrap();
    if let Some(folder) = with {
        run.recipe.lora = AdapterFile::read(folder).unwrap().lora();
    }
    let source = source(model);
    let spec = source.spec().unwrap();
    let mut decoder = Decoder::load(&source.weights().unwrap(), &spec, &run, (&Device::Cpu, Backend::Fused)).unwrap();
    if let Some(folder) = with {
        adapter::load(&mut decoder, &run, folder).unwrap();
    }
    let n = TOKENS.len();
    let batch = MicroBatch { tokens: TOKENS.to_vec(), examples: std::iter::once(0..n).collect(), targets: vec![] };
    decoder.logits(&batch, &(0..n as u32).collect::<Vec<_>>()).unwrap().to_vec2().unwrap()
}

/// An adapter on two projections of each block, with alpha unlike the rank and B not zero.
fn make_adapter(spec: &ModelSpec, folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let wanted = ["q_proj", "down_proj", "c_attn", "c_proj", "qkv_proj", "c_fc"];
    let mut tensors = std::collections::HashMap::new();
    for tensor in spec.tensors() {
        let Some(path) = tensor.name.strip_suffix(".weight") else { continue };
        // All of these bases keep `[out, in]`.
        let &[out, inside] = tensor.shape.as_slice() else { continue };
        if wanted.iter().any(|end| path.ends_with(end)) {
            let mut put = |part: &str, shape: &[usize]| {
                tensors.insert(
                    format!("base_model.model.{path}.lora_{part}.weight"),
                    common::drawn(&format!("{path}.{part}"), shape, 0.0, 0.2),
                );
            };
            put("A", &[3, inside]);
            put("B", &[out, 3]);
        }
    }
    assert!(!tensors.is_empty());
    candle_core::safetensors::save(&tensors, folder.join("adapter_model.safetensors")).unwrap();
    let config = r#"{"peft_type": "LORA", "r": 3, "lora_alpha": 5, "target_modules": "all-linear"}"#;
    std::fs::write(folder.join("adapter_config.json"), config).unwrap();
}

/// How far an export in f32 may be from its base: Gemma's factor on the embeddings is rounded to the base's numbers.
fn tolerance(base: &Path) -> f32 {
    let spec = source(base).spec().unwrap();
    if spec.embedding_scale != 1.0 && spec.dtype != Dtype::F32 { 1e-3 } else { 2e-5 }
}

fn apart(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    let largest = b.iter().flatten().fold(0f32, |m, x| m.max(x.abs()));
    a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

/// Every quantised base of the fixtures: MLX's codes in four widths, GGUF's blocks, in every family.
fn bases() -> Vec<std::path::PathBuf> {
    let mlx =
        ["qwen2", "wide", "qwen2_mixed", "qwen3", "llama", "mistral", "starcoder2", "gpt2", "gemma2", "gemma3", "phi3"];
    let gguf = [
        "llama_k",
        "llama",
        "llama_biased",
        "mistral",
        "qwen2",
        "qwen3",
        "starcoder2",
        "gpt2",
        "gemma2",
        "gemma3",
        "phi3",
    ];
    let mlx = mlx.iter().map(|name| fixture("mlx").join(name));
    mlx.chain(gguf.iter().map(|name| fixture("gguf").join(format!("{name}.gguf")))).collect()
}

#[test]
fn a_quantised_base_is_fused_into_what_it_computes_with_its_adapter() {
    let work = tempfile::tempdir().unwrap();
    for (i, base) in bases().into_iter().enumerate() {
        let name = base.display().to_string();
        let adapter = work.path().join(format!("adapter-{i}"));
        make_adapter(&source(&base).spec().unwrap(), &adapter);
        let expected = computed(&base, Some(&adapter));
        assert!(apart(&computed(&base, None), &expected) > 1e-2, "{name}: the adapter does nothing");
        let out = format!("fused-{i}");
        let args =
            [adapter.to_str().unwrap(), "--model", &name, "--format", "fused", "--weights", "f32", "--out", &out];
        let (code, _, said) = export(work.path(), &args);
        assert_eq!(code, 0, "{name}: {said}");
        let config = std::fs::read_to_string(work.path().join(&out).join("config.json")).unwrap();
        assert!(!config.contains("quantization") && config.contains("float32"), "{name}: {config}");
        let found = computed(&work.path().join(&out), None);
        assert!(apart(&found, &expected) < tolerance(&base), "{name}: {}", apart(&found, &expected));
        exported(work.path(), &["--model", &name, "--format", "fused", "--out", &format!("plain-{i}")]);
        assert!(
            apart(&computed(&work.path().join(format!("plain-{i}")), None), &computed(&base, None)) < 0.06,
            "{name}"
        );
        // The base alone, in half the bytes.
        let alone = format!("alone-{i}");
        exported(work.path(), &["--model", &name, "--format", "fused", "--weights", "bf16", "--out", &alone]);
        let found = computed(&work.path().join(&alone), None);
        assert!(apart(&found, &computed(&base, None)) < 0.06, "{name}: {}", apart(&found, &computed(&base, None)));
    }
}

#[test]
fn a_quantised_base_becomes_a_gguf_of_what_it_computes_with_its_adapter() {
    let work = tempfile::tempdir().unwrap();
    let mut refused = 0;
    for (i, base) in bases().into_iter().enumerate() {
        let name = base.display().to_string();
        // Windows that llama.cpp knows are all that a GGUF file can tell.
        let adapter = work.path().join(format!("adapter-{i}"));
        make_adapter(&source(&base).spec().unwrap(), &adapter);
        let args = [
            adapter.to_str().unwrap(),
            "--model",
            &name,
            "--format",
            "gguf",
            "--weights",
            "f32",
            "--out",
            "m.gguf",
            "--force",
        ];
        let (code, _, said) = export(work.path(), &args);
        if code != 0 {
            // What llama.cpp computes otherwise is refused, from any base.
            assert!(said.contains("cannot be written as GGUF: llama.cpp "), "{name}: {said}");
            refused += 1;
            continue;
        }
        let held = source(&base).spec().unwrap().storage.format;
        let quantised = matches!(held, Format::Affine { .. } | Format::Gguf(_));
        assert_eq!(said.contains("its matrices are written in f32"), quantised, "{name}: {said}");
        let (found, expected) = (computed(&work.path().join("m.gguf"), None), computed(&base, Some(&adapter)));
        assert!(apart(&found, &expected) < tolerance(&base), "{name}: {}", apart(&found, &expected));
    }
    assert!(refused <= 4, "{refused} are refused");
}

#[test]
fn formats_are_chosen_so_that_least_is_lost_and_said() {
    let work = tempfile::tempdir().unwrap();
    let mlx = fixture("mlx/wide").display().to_string();
    let (code, _, said) = export(work.path(), &["--model", &mlx, "--format", "fused", "--out", "a"]);
    assert!(
        code == 0 && said.contains("the base is in MLX's 4 bits, groups of 32; its matrices are written in bf16"),
        "{said}"
    );
    let load = |file: &str| candle_core::safetensors::load(work.path().join(file), &Device::Cpu).unwrap();
    assert!(load("a/model.safetensors").values().all(|t| t.dtype() == DType::BF16));
    let (code, _, said) =
        export(work.path(), &["--model", &mlx, "--format", "fused", "--weights", "q8_0", "--out", "b"]);
    assert!(
        code == 2 && said.contains("`--weights` is q8_0, but must be f32, f16 or bf16 with `--format fused`"),
        "{said}"
    );
    // A GGUF file alone is what it is.
    let chat = fixture("gguf/chat.gguf");
    let gguf = chat.display().to_string();
    exported(work.path(), &["--model", &gguf, "--format", "gguf", "--out", "copy.gguf"]);
    assert_eq!(std::fs::read(work.path().join("copy.gguf")).unwrap(), std::fs::read(chat).unwrap());
    let (code, _, said) =
        export(work.path(), &["--model", &gguf, "--format", "gguf", "--weights", "q4_0", "--out", "q.gguf"]);
    assert!(code == 0 && said.contains("which rounds once more"), "{said}");
    // A plain base in another format.
    let plain = fixture("hf_folder").display().to_string();
    exported(work.path(), &["--model", &plain, "--format", "fused", "--weights", "f16", "--out", "half"]);
    assert!(load("half/model.safetensors").values().all(|t| t.dtype() == DType::F16));
    assert!(!work.path().join("half/model.safetensors.index.json").exists());
}

#[test]
fn dora_is_worked_in_as_peft_computes_it() {
    let work = tempfile::tempdir().unwrap();
    for family in ["qwen2_dora", "gpt2_dora", "gemma3_dora", "phi3_dora_rslora"] {
        let folder = fixture("reference").join(family);
        let reference: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(folder.join("reference.json")).unwrap()).unwrap();
        let model = fixture("reference").join(reference["model"].as_str().unwrap());
        let tokens: Vec<u32> = serde_json::from_value(reference["logits_tokens"].clone()).unwrap();
        let expected: Vec<Vec<f32>> = serde_json::from_value(reference["adapter_logits"].clone()).unwrap();
        let (adapter, model) = (folder.join("adapter").display().to_string(), model.display().to_string());
        exported(work.path(), &[&adapter, "--model", &model, "--format", "fused", "--out", family]);
        let found = logits(&work.path().join(family), &tokens);
        let worst =
            found.iter().flatten().zip(expected.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-4, "{family}: {worst}");
        let (code, _, said) = export(work.path(), &[&adapter, "--model", &model, "--format", "mlx-lm", "--out", "no"]);
        assert!(code == 2 && said.contains("peft, fused or gguf for a DoRA adapter"), "{said}");
    }
}

#[test]
fn layers_of_other_ranks_and_alphas_are_worked_in_as_peft_computes_them() {
    let work = tempfile::tempdir().unwrap();
    let model = fixture("reference/llama").display().to_string();
    for name in ["plain", "rslora", "dora"] {
        let folder = fixture("patterns").join(name);
        let answer: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(folder.join("logits.json")).unwrap()).unwrap();
        let tokens: Vec<u32> = serde_json::from_value(answer["tokens"].clone()).unwrap();
        let expected: Vec<Vec<f32>> = serde_json::from_value(answer["logits"].clone()).unwrap();
        let adapter = folder.display().to_string();
        exported(work.path(), &[&adapter, "--model", &model, "--format", "fused", "--out", name]);
        let found = logits(&work.path().join(name), &tokens);
        assert!(apart(&found, &expected) < 1e-5, "{name}: {}", apart(&found, &expected));
        // Made even, it is an adapter that every tool reads.
        let even = format!("even-{name}");
        exported(work.path(), &[&adapter, "--model", &model, "--format", "peft", "--out", &even]);
        exported(work.path(), &[&even, "--model", &model, "--format", "fused", "--out", &format!("again-{name}")]);
        let again = logits(&work.path().join(format!("again-{name}")), &tokens);
        assert!(apart(&again, &expected) < 1e-5, "{name}: {}", apart(&again, &expected));
    }
}
