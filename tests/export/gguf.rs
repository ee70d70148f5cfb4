//! Exports to GGUF.

use super::*;

pub(crate) fn gguf(path: &Path) -> (Content, std::fs::File) {
    let mut file = std::fs::File::open(path).unwrap();
    (Content::read(&mut file).unwrap(), file)
}

pub(crate) fn text(content: &Content, key: &str) -> String {
    content.metadata[key].to_string().unwrap().clone()
}

/// Llama's queries stand in pairs in a GGUF; turned back they are the fused folder's.
#[test]
pub(crate) fn a_gguf_holds_the_fused_matrices() {
    let work = tempfile::tempdir().unwrap();
    for (family, arch, from, to) in [
        ("llama", "llama", "model.layers.1.self_attn.q_proj.weight", "blk.1.attn_q.weight"),
        ("qwen2", "qwen2", "model.layers.2.self_attn.k_proj.weight", "blk.2.attn_k.weight"),
        ("gpt2", "gpt2", "transformer.h.1.mlp.c_fc.weight", "blk.1.ffn_up.weight"),
        ("phi3", "phi3", "model.layers.0.mlp.gate_up_proj.weight", "blk.0.ffn_up.weight"),
    ] {
        let [adapter, flag, model] = family_args(family);
        exported(work.path(), &[&adapter, &flag, &model, "--format", "fused", "--out", family]);
        exported(
            work.path(),
            &[&adapter, &flag, &model, "--format", "gguf", "--weights", "f32", "--out", "m.gguf", "--force"],
        );
        exported(work.path(), &[&adapter, &flag, &model, "--format", "gguf-adapter", "--out", "a.gguf", "--force"]);
        let source = ModelSource::Folder(work.path().join(family));
        let spec = source.spec().unwrap();
        let fused = source.weights().unwrap();
        let (content, mut file) = gguf(&work.path().join("m.gguf"));
        assert_eq!(
            (text(&content, "general.architecture").as_str(), text(&content, "general.type").as_str()),
            (arch, "model")
        );
        assert_eq!(content.metadata[&format!("{arch}.block_count")].to_u32().unwrap(), 3);
        let found = content.tensor(&mut file, to, &Device::Cpu).unwrap().dequantize(&Device::Cpu).unwrap();
        let rows = found.dims()[if family == "gpt2" { 1 } else { 0 }];
        let shape = spec.tensors().into_iter().find(|t| t.name == from).unwrap().shape;
        let stored = fused.rows(from, &shape, 0..rows).unwrap();
        let expected = match family {
            "gpt2" => stored.t().unwrap(),
            "llama" => {
                let (head, width) = (spec.attention.head_dim, stored.dims()[1]);
                // Row 2 j + t of a head is row j + t head / 2 of transformers'.
                let order: Vec<u32> = (0..rows as u32)
                    .map(|r| {
                        let (h, r, n) = (r / head as u32, r % head as u32, head as u32);
                        h * n + r / 2 + (r % 2) * (n / 2)
                    })
                    .collect();
                let index = Tensor::from_slice(&order, rows, &Device::Cpu).unwrap();
                stored.index_select(&index, 0).unwrap().reshape((rows, width)).unwrap()
            }
            _ => stored,
        };
        assert_eq!(found.to_vec2::<f32>().unwrap(), expected.to_vec2::<f32>().unwrap(), "{family}");
        // The adapter stands beside: B A in the file's own order is the difference from the base.
        let (adapter_file, mut raw) = gguf(&work.path().join("a.gguf"));
        assert_eq!(text(&adapter_file, "general.type"), "adapter");
        assert_eq!(text(&adapter_file, "adapter.type"), "lora");
        assert!(matches!(adapter_file.metadata["adapter.lora.alpha"], Value::F32(alpha) if alpha == 6.0));
        exported(work.path(), &[&flag, &model, "--format", "gguf", "--weights", "f32", "--out", "b.gguf", "--force"]);
        let (base, mut base_file) = gguf(&work.path().join("b.gguf"));
        let dense = |content: &Content, file: &mut std::fs::File, name: &str| {
            content.tensor(file, name, &Device::Cpu).unwrap().dequantize(&Device::Cpu).unwrap()
        };
        let base = dense(&base, &mut base_file, to);
        let a = dense(&adapter_file, &mut raw, &format!("{to}.lora_a"));
        let b = dense(&adapter_file, &mut raw, &format!("{to}.lora_b"));
        let error = ((b.matmul(&a).unwrap() * 1.5).unwrap() + base - found).unwrap();
        let worst = error.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(worst < 1e-5, "{family}: {worst}");
    }
}

/// Blocks where a row is whole blocks, f16 where it is not, f32 for vectors; the tokenizer in llama.cpp's terms.
#[test]
pub(crate) fn a_quantised_gguf_says_what_it_holds() {
    let work = tempfile::tempdir().unwrap();
    let base = fixture("hf_folder").display().to_string();
    let (code, said, noted) =
        export(work.path(), &["--model", &base, "--format", "gguf", "--weights", "q8_0", "--out", "m.gguf"]);
    assert_eq!(code, 0, "{noted}");
    assert!(said.starts_with("model for llama.cpp and Ollama: m.gguf ("), "{said}");
    assert!(noted.contains("accents"), "{noted}");
    let (content, _) = gguf(&work.path().join("m.gguf"));
    let format = |name: &str| format!("{:?}", content.tensor_infos[name].ggml_dtype);
    assert_eq!(
        ["token_embd.weight", "blk.0.attn_q.weight", "blk.0.attn_q.bias", "output_norm.weight"].map(format),
        ["Q8_0", "Q8_0", "F32", "F32"]
    );
    assert_eq!(content.metadata["general.file_type"].to_u32().unwrap(), 7);
    assert_eq!(text(&content, "tokenizer.ggml.model"), "gpt2");
    assert_eq!(text(&content, "tokenizer.ggml.pre"), "qwen2");
    assert!(text(&content, "tokenizer.chat_template").contains("<|im_start|>"));
    let tokens = content.metadata["tokenizer.ggml.tokens"].to_vec().unwrap();
    let kinds = content.metadata["tokenizer.ggml.token_type"].to_vec().unwrap();
    assert_eq!((tokens.len(), kinds.len()), (336, 336));
    let eos = content.metadata["tokenizer.ggml.eos_token_id"].to_u32().unwrap() as usize;
    assert_eq!(tokens[eos].to_string().unwrap(), "<|im_end|>");
    // A control token, and a row of the embedding that no token stands for.
    assert_eq!((kinds[eos].to_i32().unwrap(), kinds[335].to_i32().unwrap()), (3, 5));
    assert!(!content.metadata["tokenizer.ggml.add_bos_token"].to_bool().unwrap());
    assert!(content.metadata["tokenizer.ggml.merges"].to_vec().unwrap().len() > 20);
}

#[test]
pub(crate) fn mistakes_are_named_and_leave_nothing_behind() {
    let work = tempfile::tempdir().unwrap();
    let [adapter, flag, model] = family_args("qwen2");
    let here = |name: &str| work.path().join(name);
    std::fs::create_dir(here("other")).unwrap();
    std::fs::write(here("other/diary.txt"), "mine").unwrap();
    std::fs::write(here("there.gguf"), "old").unwrap();
    let llama = fixture("reference/llama").display().to_string();
    let gemma = fixture("reference/gemma2").display().to_string();
    let fused = ["--format", "fused", "--out", "new"];
    let gguf = ["--format", "gguf", "--out", "new.gguf"];
    let cases: [(Vec<&str>, &str); 10] = [
        (
            [&[&*flag, &model][..], &["--format", "peft", "--out", "new"]].concat(),
            "fused or gguf where no run and no adapter is given",
        ),
        ([&[&*adapter][..], &fused].concat(), "`--model` is absent"),
        ([&[&*adapter, &flag, &llama][..], &fused].concat(), "has shape [4, 32], expected [4, 48]"),
        ([&[&*adapter, &flag, &model, "--weights", "q4_k"][..], &fused].concat(), "f32, f16 or bf16"),
        ([&[&*flag, &model, "--weights", "int8"][..], &gguf].concat(), "`--weights` is int8"),
        (
            [&[&*flag, &gemma][..], &gguf].concat(),
            "llama.cpp scales gemma2's scores by 0.288675, this model by 0.223607",
        ),
        (vec![&flag, &model, "--format", "gguf", "--out", "there.gguf"], "`there.gguf` exists already"),
        (
            vec![&flag, &model, "--format", "gguf", "--out", "other", "--force"],
            "the name of a file, such as model.gguf",
        ),
        (vec![&adapter, &flag, &model, "--format", "peft", "--out", "other"], "`other` exists already"),
        (vec![&adapter, &flag, &model, "--format", "peft", "--out", "other", "--force"], "it holds `diary.txt`"),
    ];
    for (args, part) in cases {
        let (code, _, said) = export(work.path(), &args);
        assert_eq!(code, 2, "{args:?}: {said}");
        assert!(said.contains(part), "{args:?}: `{part}` is not in\n{said}");
    }
    // What the export is made from is never replaced by it.
    let (code, _, said) =
        export(work.path(), &[&adapter, &flag, &model, "--format", "fused", "--out", &model, "--force"]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("another folder than the one it is made from"), "{said}");
    let mut left: Vec<_> = std::fs::read_dir(work.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["other", "there.gguf"]);
    assert_eq!(std::fs::read_to_string(here("there.gguf")).unwrap(), "old");
}

/// The reference llama with a tokenizer.json.
pub(crate) fn with_tokenizer(tokenizer: &serde_json::Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("reference/llama").join(file), folder.path().join(file)).unwrap();
    }
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    folder
}

pub(crate) fn spaced() -> serde_json::Value {
    serde_json::json!({
        "model": {
            "type": "BPE", "byte_fallback": true, "unk_token": "<unk>",
            "vocab": {"<unk>": 0, "<s>": 1, "<0x0A>": 2, "▁": 3, "a": 4, "b": 5, "ab": 6, "▁ab": 7, "<x▁y>": 8},
            "merges": [["a", "b"], ["▁", "ab"]]
        },
        "added_tokens": [
            {"id": 0, "content": "<unk>", "special": true},
            {"id": 1, "content": "<s>", "special": true},
            {"id": 8, "content": "<x▁y>", "special": false}
        ],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        ]},
        "post_processor": {"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
        ]}
    })
}

/// SentencePiece's kind: scores fall in the order of the merges, bytes and marks are told apart.
#[test]
pub(crate) fn a_tokenizer_with_marked_spaces_keeps_its_order_of_merges() {
    let folder = with_tokenizer(&spaced());
    exported(folder.path(), &["--model", ".", "--format", "gguf", "--out", "m.gguf"]);
    let (content, _) = gguf(&folder.path().join("m.gguf"));
    let list = |key: &str| content.metadata[&format!("tokenizer.ggml.{key}")].to_vec().unwrap();
    assert_eq!(text(&content, "tokenizer.ggml.model"), "llama");
    let kinds: Vec<i32> = list("token_type")[..10].iter().map(|k| k.to_i32().unwrap()).collect();
    assert_eq!(kinds, [2, 3, 6, 1, 1, 1, 1, 1, 4, 5]);
    let scores: Vec<f32> = list("scores")[3..8].iter().map(|s| s.to_f32().unwrap()).collect();
    assert_eq!(scores, [-2.0, -2.0, -2.0, 0.0, -1.0]);
    assert_eq!(list("tokens")[8].to_string().unwrap(), "<x y>");
    let flags = ["add_space_prefix", "add_bos_token", "add_eos_token"];
    let flag = |key: &str| content.metadata[&format!("tokenizer.ggml.{key}")].to_bool().unwrap();
    assert_eq!(flags.map(flag), [true, true, false]);
}

#[test]
pub(crate) fn what_llama_cpp_cannot_have_is_refused_or_said() {
    let mut words = spaced();
    words["model"]["type"] = "WordPiece".into();
    let mut cut = spaced();
    cut["model"]["byte_fallback"] = false.into();
    cut["normalizer"] = serde_json::Value::Null;
    cut["pre_tokenizer"] = serde_json::json!({"type": "Whitespace"});
    for (tokenizer, part) in [
        (words, "its tokenizer is a \"WordPiece\" model, and BPE is supported"),
        (cut, "cuts text in a way that llama.cpp has no name for here: {\"type\":\"Whitespace\"}"),
    ] {
        let folder = with_tokenizer(&tokenizer);
        let (code, _, said) = export(folder.path(), &["--model", ".", "--format", "gguf", "--out", "m.gguf"]);
        assert_eq!(code, 2, "{said}");
        assert!(said.contains(part) && said.contains("hint: `--format fused`"), "{part} is not in {said}");
        assert!(!folder.path().join("m.gguf").exists());
    }
    let work = tempfile::tempdir().unwrap();
    for (family, part) in [
        ("mistral", "llama.cpp gives llama no sliding window: beyond 8 tokens it attends to more than the model does"),
        ("llama_yarn", "--yarn-beta-fast 2 --yarn-beta-slow 0.25"),
        ("gpt2", "the model has no tokenizer: the file takes token numbers only"),
    ] {
        let model = fixture("reference").join(family).display().to_string();
        let args = ["--model", &model, "--format", "gguf", "--out", "m.gguf", "--force"];
        let (code, _, said) = export(work.path(), &args);
        assert_eq!(code, 0, "{said}");
        assert!(said.contains(part), "{part} is not in {said}");
    }
}

/// Every tensor and key that llama.cpp's own converter writes for the same fused models; `check.py` summed them up.
#[test]
pub(crate) fn a_gguf_is_what_llama_cpp_converts() {
    let summary = std::fs::read_to_string(fixture("exchange/converted.json")).unwrap();
    let summary: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary.len(), 13);
    let work = tempfile::tempdir().unwrap();
    for (family, expected) in &summary {
        let model = work.path().join(family);
        std::fs::create_dir(&model).unwrap();
        let reference = fixture("reference").join(family);
        std::fs::copy(reference.join("model.safetensors"), model.join("model.safetensors")).unwrap();
        let config = std::fs::read_to_string(reference.join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
        if family.starts_with("gemma") {
            // llama.cpp knows no other scale of the scores than that of the heads.
            config["query_pre_attn_scalar"] = config["head_dim"].clone();
        }
        std::fs::write(model.join("config.json"), config.to_string()).unwrap();
        let (adapter, file) = (reference.join("adapter").display().to_string(), format!("{family}.gguf"));
        exported(work.path(), &[&adapter, "--model", family, "--format", "gguf", "--out", &file]);
        let (content, mut bytes) = gguf(&work.path().join(file));
        for (key, value) in expected["keys"].as_object().unwrap() {
            let found = content.metadata.get(key).unwrap_or_else(|| panic!("{family}: no {key}"));
            match found {
                Value::U32(n) => assert_eq!(Some(u64::from(*n)), value.as_u64(), "{family} {key}"),
                Value::F32(x) => {
                    assert!((f64::from(*x) - value.as_f64().unwrap()).abs() < 1e-9, "{family} {key}: {x} {value}")
                }
                Value::String(text) => assert_eq!(text, value, "{family} {key}"),
                other => panic!("{family} {key}: {other:?}"),
            }
        }
        let tensors = expected["tensors"].as_object().unwrap();
        assert_eq!(tensors.len(), content.tensor_infos.len(), "{family}");
        for (name, wanted) in tensors {
            let tensor = content.tensor(&mut bytes, name, &Device::Cpu).unwrap().dequantize(&Device::Cpu).unwrap();
            let shape: Vec<usize> = serde_json::from_value(wanted[0].clone()).unwrap();
            assert_eq!(tensor.dims(), shape, "{family} {name}");
            let numbers = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let sum: f64 = numbers.iter().map(|x| f64::from(*x)).sum();
            let placed = numbers.iter().enumerate().map(|(i, x)| f64::from(*x) * ((i * 7919 % 101) as f64 / 101.0));
            let placed: f64 = placed.sum();
            for (found, wanted) in [(sum, &wanted[1]), (placed, &wanted[2])] {
                let wanted = wanted.as_f64().unwrap();
                assert!(
                    (found - wanted).abs() < 1e-4 * wanted.abs().max(1.0),
                    "{family} {name}: {found}, not {wanted}"
                );
            }
        }
    }
}
