//! Names as people write them, each planned without a network: the right size, the right format, and what was understood.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests too

use std::process::Command;

use serde_json::Value;

/// A name, the millions of parameters of its model, and the bits of a weight in the format that the name says.
const NAMES: [(&str, u64, f64); 66] = [
    // As published runs name them.
    ("HuggingFaceTB/SmolLM2-1.7B-Instruct", 1711, 16.0),
    ("Llama-3.2-3B-4bit", 3213, 4.5),
    ("Llama3-70B-Chinese-Chat", 70554, 16.0),
    ("Mistral-Nemo-Instruct-2407-4bit", 12248, 4.5),
    ("Qwen/Qwen1.5-32B-Chat", 32512, 16.0),
    ("Qwen/Qwen2-72B-Instruct", 72706, 16.0),
    ("Qwen/Qwen2.5-1.5B-Instruct", 1544, 16.0),
    ("Qwen/Qwen3-1.7B-Base", 1721, 16.0),
    ("Qwen/Qwen3-1.7B-MLX-bf16", 1721, 16.0),
    ("Qwen2.5-3B (fp16)", 3086, 16.0),
    ("Qwen2.5-3B-Instruct-4bit", 3086, 4.5),
    ("Qwen2.5-Coder-1.5B (16-bit)", 1544, 16.0),
    ("Qwen3-0.6B-bf16", 596, 16.0),
    ("Qwen3-4B (quantisation n/s)", 4022, 16.0),
    ("Qwen3-4B-Instruct-2507-8bit", 4022, 8.5),
    ("Qwen3-8B", 8191, 16.0),
    ("Qwen3-8B-4bit", 8191, 4.5),
    ("Qwen3-VL-8B-Thinking-4bit", 8191, 4.5),
    ("alexgusevski/gemma-3-text-4b-it-q8-mlx", 3880, 8.5),
    ("meta-llama/Llama-3.1-8B-Instruct (mlx 4-bit g64)", 8030, 16.0),
    ("meta-llama/Meta-Llama-3.1-8B-Instruct", 8030, 16.0),
    ("mistralai/Mistral-7B-Instruct-v0.2", 7242, 16.0),
    ("mistralai/Mistral-7B-v0.1", 7242, 16.0),
    ("mlx-community/Llama-3.2-1B-Instruct-4bit", 1236, 4.5),
    ("mlx-community/Llama-3.2-3B-Instruct", 3213, 16.0),
    ("mlx-community/Llama-3.2-3B-Instruct-4bit", 3213, 4.5),
    ("mlx-community/Llama-3.2-3B-Instruct-bf16", 3213, 16.0),
    ("mlx-community/Ministral-8b-Instruct-2410-4bit", 8020, 4.5),
    ("mlx-community/Mistral-7B-Instruct-v0.2-4bit", 7242, 4.5),
    ("mlx-community/Qwen2-0.5B-Instruct-4bit", 494, 4.5),
    ("mlx-community/Qwen2.5-1.5B-Instruct-4bit", 1544, 4.5),
    ("mlx-community/Qwen2.5-7B-Instruct-4bit", 7616, 4.5),
    ("mlx-community/Qwen3-1.7B-4bit", 1721, 4.5),
    ("mlx-community/Qwen3-4B-4bit", 4022, 4.5),
    ("mlx-community/Qwen3-4B-Instruct-2507-4bit", 4022, 4.5),
    ("mlx-community/Qwen3-4B-Instruct-2507-bf16", 4022, 16.0),
    ("mlx-community/Qwen3-8B-4bit", 8191, 4.5),
    ("mlx-community/Qwen3-VL-2B-Instruct-bf16", 1721, 16.0),
    ("mlx-community/SmolLM2-1.7B-Instruct", 1711, 16.0),
    ("mlx-community/gemma-3-4b-it-bf16", 3880, 16.0),
    // As people ask for them.
    ("Qwen/Qwen3-8B-MLX-4bit", 8191, 4.5),
    ("mlx-community/Mistral-7B-Instruct-v0.3-4bit", 7248, 4.5),
    ("mlx-community/gemma-3-1b-it-4bit", 1000, 4.5),
    ("unsloth/Llama-3.2-1B-Instruct", 1236, 16.0),
    ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", 1236, 4.5),
    ("unsloth/Qwen3-14B-unsloth-bnb-4bit", 14768, 4.5),
    ("unsloth/gemma-3-4b-it-GGUF", 3880, 16.0),
    ("bartowski/Llama-3.2-3B-Instruct-Q8_0", 3213, 8.5),
    ("lmstudio-community/Qwen3-4B-Instruct-2507-MLX-6bit", 4022, 6.5),
    ("lmstudio-community/DeepSeek-R1-0528-Qwen3-8B-MLX-4bit", 8191, 4.5),
    ("NousResearch/Meta-Llama-3-8B-Instruct", 8030, 16.0),
    ("NousResearch/Llama-2-7b-hf", 6738, 16.0),
    ("mlx-community/Llama-3.3-70B-Instruct-4bit", 70554, 4.5),
    ("mlx-community/Qwen2.5-Coder-32B-Instruct-4bit", 32764, 4.5),
    ("mlx-community/Qwen3-4B-4bit-DWQ-053125", 4022, 4.5),
    ("mlx-community/gemma-3-27b-it-qat-4bit", 27009, 4.5),
    ("mlx-community/phi-4-8bit", 14660, 8.5),
    ("mlx-community/Phi-3.5-mini-instruct-4bit", 3821, 4.5),
    ("mlx-community/DeepSeek-R1-Distill-Qwen-7B-3bit", 7616, 3.5),
    ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", 7616, 4.5),
    ("Qwen/Qwen3-8B-FP8", 8191, 8.5),
    ("neuralmagic/Meta-Llama-3.1-8B-Instruct-quantized.w4a16", 8030, 16.0),
    ("https://huggingface.co/Qwen/Qwen3-0.6B", 596, 16.0),
    ("qwen3:8b", 8191, 16.0),
    ("llama3.1:8b", 8030, 16.0),
    ("gemma3:1b", 1000, 16.0),
];

fn plan(args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_headroom"));
    let nowhere = std::env::temp_dir().join("no-such-cache");
    let output = command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", nowhere).arg("plan").args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn names_as_people_write_them_are_planned() {
    for (name, millions, bits) in NAMES {
        let (code, out, err) = plan(&[
            "--machine",
            "M3 Ultra",
            "--ram",
            "512G",
            "--time-limit",
            "9000h",
            "--seq",
            "256",
            "--rank",
            "8",
            "--json",
            "--model",
            name,
        ]);
        assert_eq!(code, Some(0), "{name}: {err}");
        let found: Value = serde_json::from_str(&out).unwrap();
        let total = found["total_params"].as_u64().unwrap();
        assert_eq!((total - found["trainable_params"].as_u64().unwrap() + 500_000) / 1_000_000, millions, "{name}");
        let ledger = found["ledger"].as_array().unwrap();
        let base = ledger.iter().find(|item| item["name"] == "base weights").unwrap()["bytes"].as_f64().unwrap();
        let held = 8.0 * base / (millions as f64 * 1e6);
        assert!((held / bits - 1.0).abs() < 0.02, "{name}: {held:.2} bits");
    }
}

#[test]
fn what_is_refused_is_refused_by_its_family_and_what_is_unknown_gets_near_names() {
    for (name, said) in [
        ("mlx-community/Qwen3.5-9B-4bit", "hybrid"),
        ("google/gemma-4-E4B-it", "not supported yet"),
        ("HuggingFaceTB/SmolLM3-3B", "not supported yet"),
        ("mlx-community/Qwen3-9B-4bit", "did you mean `Qwen/Qwen3-"),
        ("Qwen/Qwen3-8", "did you mean `Qwen/Qwen3-8B`"),
    ] {
        let (code, _, err) = plan(&["--ram", "16G", "--model", name]);
        assert!(code == Some(2) && err.contains(said), "{name}: {err}");
    }
    // A revision stays named, and an address becomes a name.
    for (given, kept) in [
        ("Qwen/Qwen3-0.6B@v1", "Qwen/Qwen3-0.6B@v1"),
        ("https://huggingface.co/unsloth/Qwen3-0.6B/", "unsloth/Qwen3-0.6B"),
        ("mlx-community/Qwen3-0.6B-4bit@abc", "mlx-community/Qwen3-0.6B-4bit@abc"),
    ] {
        let (_, out, err) = plan(&["--ram", "64G", "--seq", "512", "--json", "--model", given]);
        let found: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{given}: {err}"));
        assert_eq!(found["run"]["model"], kept);
    }
    let (_, out, _) = plan(&["--ram", "64G", "--seq", "512", "--model", "mlx-community/Qwen3-8B-4bit"]);
    assert!(out.contains("model: `mlx-community/Qwen3-8B-4bit` is `Qwen/Qwen3-8B` in MLX's 4 bits"), "{out}");
}

#[test]
fn each_engine_is_offered_what_it_has() {
    let (code, _, err) = plan(&["--ram", "8G", "--engine", "mlx-lm", "--model", "Qwen/Qwen3-8B", "--weights", "q4_k"]);
    assert!(
        code == Some(2) && err.contains("must be one of stored, f32, f16, bf16, 8bit, 4bit: mlx-lm has no other"),
        "{err}"
    );
    // What does not fit as it is stored is planned in the widest format that fits, of those the engine has.
    for engine in ["mlx-lm", "candle"] {
        let asked =
            ["--ram", "16G", "--engine", engine, "--model", "Qwen/Qwen3-8B", "--seq", "512", "--time-limit", "900h"];
        let (code, out, err) = plan(&[&asked[..], &["--json"]].concat());
        assert_eq!(code, Some(0), "{engine}: {err}");
        let found: Value = serde_json::from_str(&out).unwrap();
        let format = found["run"]["execution"]["weights"].as_str().unwrap();
        assert!(["8bit", "4bit"].contains(&format), "{engine}: {format}");
        assert!(found["quality"]["loss"].as_f64().unwrap() > 0.0);
        assert!(plan(&asked).1.contains("of a benchmark's score at this size"), "{engine}");
    }
    let (code, _, err) = plan(&["--ram", "64G", "--engine", "mlx-lm", "--model", "x/Llama-3.2-3B-Instruct-Q4_K_M"]);
    assert!(code == Some(2) && err.contains("mlx-lm trains on no GGUF file"), "{err}");
}

#[test]
fn the_order_of_a_plan_can_be_turned() {
    let planned = |prefer: &str| {
        let (code, out, err) =
            plan(&["--ram", "16G", "--seq", "256", "--time-limit", "900h", "--prefer", prefer, "--json"]);
        assert_eq!(code, Some(0), "{prefer}: {err}");
        let found: Value = serde_json::from_str(&out).unwrap();
        let time = found["total_time_s"]["point"].as_f64().unwrap();
        (
            found["total_params"].as_u64().unwrap(),
            found["run"]["execution"]["weights"].as_str().unwrap().to_owned(),
            time,
        )
    };
    let (size, quality, speed) = (planned("size"), planned("quality"), planned("speed"));
    // The largest model is quantised here; unquantised, it is a smaller one.
    assert!(["8bit", "4bit"].contains(&size.1.as_str()), "{size:?}");
    assert!(quality.1 == "bf16" && quality.0 < size.0, "{size:?} {quality:?}");
    assert!(speed.0 >= size.0 * 9 / 10 && speed.2 <= size.2 * 1.001, "{size:?} {speed:?}");
}
