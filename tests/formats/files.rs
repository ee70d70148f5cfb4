//! Checkpoints of MLX and GGUF files.

use super::*;

pub(crate) const MLX: [&str; 11] =
    ["llama", "mistral", "qwen2", "qwen2_mixed", "wide", "qwen3", "starcoder2", "gpt2", "gemma2", "gemma3", "phi3"];

#[test]
pub(crate) fn mlx_checkpoints_give_the_logits_of_mlx_lm() {
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

pub(crate) const GGUF: [&str; 12] = [
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
pub(crate) fn gguf_files_give_the_logits_of_transformers() {
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
pub(crate) fn a_gguf_file_brings_its_tokenizer_and_template() {
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
pub(crate) fn a_folder_may_hold_a_gguf_file() {
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
pub(crate) fn damaged_checkpoints_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    let whole = std::fs::read(fixture("gguf/llama.gguf")).unwrap();
    let refuse = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        ModelSource::find(path.to_str().unwrap()).unwrap().spec().unwrap_err().to_string()
    };
    assert!(refuse(&whole[..whole.len() - 100]).contains("is the download complete?"));
    assert!(refuse(&whole[..300]).contains("is it a complete GGUF file?"));
    assert!(refuse(b"not a model").contains("is it a complete GGUF file"));
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
