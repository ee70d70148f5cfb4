use super::*;

#[test]
fn a_model_is_found_by_id_or_by_a_unique_ending() {
    assert!(all().len() >= 200);
    for name in ["Qwen/Qwen2.5-1.5B-Instruct", "qwen/qwen2.5-1.5b-instruct", "Qwen2.5-1.5B-Instruct"] {
        assert_eq!(find(name).unwrap().id, "Qwen/Qwen2.5-1.5B-Instruct");
    }
    let close = |name: &str| match find(name).unwrap_err() {
        Error::UnknownModel { close, .. } => close,
        other => panic!("{name}: {other}"),
    };
    assert_eq!(close("Qwen/Qwen2.5-1.5B-Instuct")[0], "`Qwen/Qwen2.5-1.5B-Instruct`");
    assert!(
        close("mlx-community/Qwen3-9B-4bit").iter().all(|c| c.contains("Qwen3")),
        "{:?}",
        close("mlx-community/Qwen3-9B-4bit")
    );
    assert!(close("xyzzy").is_empty());
    assert!(close(&format!("Qwen/Qwen2.5-1.5B-Instruct{}", "-1".repeat(100))).is_empty());
}

#[test]
fn copies_are_known_by_what_they_were_made_of() {
    let of = |name: &str| understand(name).map(|u| (u.entry.id.as_str(), u.relation)).ok();
    for (name, base) in [
        ("mlx-community/Qwen3-8B-4bit", "Qwen/Qwen3-8B"),
        ("mlx-community/Llama-3.2-3B-4bit", "meta-llama/Llama-3.2-3B"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("alexgusevski/gemma-3-text-4b-it-q8-mlx", "google/gemma-3-4b-it"),
        ("mlx-community/gpt-oss-20b-MXFP4-Q8", "openai/gpt-oss-20b"),
        ("mlx-community/Qwen3-30B-A3B-4bit", "Qwen/Qwen3-30B-A3B"),
        ("Qwen3-4B (quantisation n/s)", "Qwen/Qwen3-4B"),
        ("unsloth/Llama-3.2-3B-Instruct", "meta-llama/Llama-3.2-3B-Instruct"),
        ("qwen3:8b", "Qwen/Qwen3-8B"),
        ("Qwen3-VL-8B-Thinking-4bit", "Qwen/Qwen3-VL-8B-Thinking"),
        ("llama3.2:3b-instruct-q4_K_M", "meta-llama/Llama-3.2-3B-Instruct"),
    ] {
        assert_eq!(of(name), Some((base, Relation::Copy)), "{name}");
    }
    for (name, base) in [
        ("wolf/Wolf-Llama3-70B-Chinese-Chat-v2", Some("shenzhi-wang/Llama3-70B-Chinese-Chat")),
        ("Wolf-Llama3-70B-Chinese-Chat-v2", None),
        ("Qwen/Qwen2.5-1.5B-Instuct", None),
        ("mlx-community/Josiefied-Qwen3-8B-abliterated-v1-4bit", Some("Qwen/Qwen3-8B")),
        ("someone/Qwen3-8B-vision-4bit", None),
        ("someone/Llama-3.2-1B-draft-of-8B", None),
    ] {
        assert_eq!(of(name), base.map(|b| (b, Relation::FineTune)), "{name}");
    }
    assert_eq!([of("google/gemma-3n-E4B"), of("HuggingFaceTB/SmolLM3-3B"), of("")], [None; 3]);
    let hybrid = understand("mlx-community/Qwen3.5-9B-4bit").unwrap_err().to_string();
    assert!(hybrid.contains("hybrid"), "{hybrid}");
}

#[test]
fn what_is_understood_is_said_and_held() {
    let model = |name: &str| understand(name).unwrap().model(name);
    let same = model("Qwen3-8B");
    assert_eq!((same.name.as_str(), same.understood, same.weights), ("Qwen/Qwen3-8B", None, None));

    let four = model("mlx-community/Qwen3-8B-4bit");
    let affine = |bits, group| Format::Affine { bits, group, scales: four.spec.dtype };
    assert_eq!((four.name.as_str(), four.weights), ("mlx-community/Qwen3-8B-4bit", None));
    assert_eq!(four.spec.storage.format, affine(4, 64));
    assert_eq!(
        four.understood.as_deref(),
        Some("`mlx-community/Qwen3-8B-4bit` is `Qwen/Qwen3-8B` in MLX's 4 bits, groups of 64")
    );
    assert_eq!(model("a/Qwen3-8B-6bit-g32").spec.storage.format, affine(6, 32));

    // No owner: no repository, but a format that the base can be put into.
    let nobody = model("Qwen3-8B-4bit");
    assert_eq!((nobody.name.as_str(), nobody.weights), ("Qwen/Qwen3-8B", Some(Weights::FourBit)));
    let cuda = model("unsloth/Qwen3-8B-bnb-4bit");
    assert_eq!((cuda.name.as_str(), cuda.weights), ("Qwen/Qwen3-8B", Some(Weights::FourBit)));
    assert!(cuda.understood.unwrap().contains("no engine here reads bitsandbytes (4 bits)"));
    assert_eq!(cuda.spec.storage, same.spec.storage);

    assert_eq!(model("x/Llama-3.2-3B-Instruct-Q4_K_M").spec.storage.format, Format::Gguf(Block::Q4K));
    let mirror = model("unsloth/Llama-3.2-3B-Instruct");
    assert_eq!((mirror.name.as_str(), mirror.weights), ("unsloth/Llama-3.2-3B-Instruct", None));
    let half = model("mlx-community/Llama-3.2-3B-Instruct-fp16");
    assert_eq!(half.spec.storage.format, Format::F16);
}

#[test]
fn names_of_the_same_words_are_of_one_shape() {
    for (words, entry) in SHAPES.iter() {
        for (other, twin) in SHAPES.iter().filter(|(other, _)| other.shape == words.shape) {
            assert_eq!(entry.parameters, twin.parameters, "{} {} {:?}", entry.id, twin.id, other.shape);
        }
        assert_eq!(words.format, None, "{}", entry.id);
        assert_eq!(understand(&entry.id).unwrap().entry.id, entry.id);
        assert!(refused(&entry.id).is_none(), "{}", entry.id);
    }
}
