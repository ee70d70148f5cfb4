//! From the command line, on bases that are quantised on disk: predicted, trained, asked, and refused by name.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of tests are tests too

mod common;

use std::path::Path;

use assert_cmd::Command;
use common::fixture;

fn headroom(folder: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::cargo_bin("headroom").unwrap();
    let output = command.current_dir(folder).args(args).env("HEADROOM_RESULTS", "results").output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// A place with the tiny chat model as mlx-lm and as gguf-py wrote it.
fn place() -> tempfile::TempDir {
    let at = tempfile::tempdir().unwrap();
    std::fs::create_dir(at.path().join("mlx")).unwrap();
    for (from, to) in [
        ("mlx/wide/config.json", "mlx/config.json"),
        ("mlx/wide/model.safetensors", "mlx/model.safetensors"),
        ("hf_folder/tokenizer.json", "mlx/tokenizer.json"),
        ("hf_folder/tokenizer_config.json", "mlx/tokenizer_config.json"),
        ("hf_folder/train.jsonl", "train.jsonl"),
        ("gguf/chat.gguf", "chat.gguf"),
    ] {
        std::fs::copy(fixture(from), at.path().join(to)).unwrap();
    }
    for (file, model) in [("mlx.toml", "./mlx"), ("gguf.toml", "chat.gguf")] {
        let text = format!(
            "model = \"{model}\"\ndata = \"train.jsonl\"\n[recipe]\nsteps = 2\nmax_seq_length = 64\n\
             effective_batch_size = 2\nlora = {{ rank = 2 }}\n"
        );
        std::fs::write(at.path().join(file), text).unwrap();
    }
    at
}

#[test]
fn a_quantised_base_is_predicted_trained_and_asked() {
    let place = place();
    for (run, model, most) in [("mlx.toml", "mlx", 90_000.0), ("gguf.toml", "chat.gguf", 130_000.0)] {
        let (code, json, said) = headroom(place.path(), &["predict", run, "--json"]);
        assert_eq!(code, 0, "{run}: {said}");
        let predicted: serde_json::Value = serde_json::from_str(&json).unwrap();
        let ledger = predicted["ledger"].as_array().unwrap();
        let base = ledger.iter().find(|i| i["name"] == "base weights").unwrap()["bytes"].as_f64().unwrap();
        // As large as the file, which holds nothing else to speak of.
        assert!(base > 0.6 * most && base < most, "{run}: {base}");
        let (code, _, said) = headroom(place.path(), &["launch", run, "--quiet"]);
        assert_eq!(code, 0, "{run}: {said}");
        let adapter = format!("runs/{}/adapter", run.trim_end_matches(".toml"));
        assert!(place.path().join(&adapter).join("adapter_model.safetensors").is_file());
        let asked = ["generate", "Hello", "--model", model, "--adapter", &adapter, "--max-tokens", "4"];
        let (code, _, said) = headroom(place.path(), &asked);
        assert_eq!(code, 0, "{run}: {said}");
    }
}

#[test]
fn other_quantisations_are_refused_by_name() {
    let place = place();
    let config = place.path().join("mlx/config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let start = text.find("\"quantization\"").unwrap();
    let end = text.find("\"rms_norm_eps\"").unwrap();
    for method in ["gptq", "awq", "bitsandbytes", "fp8", "mxfp4"] {
        let other = format!("\"quantization_config\": {{\"quant_method\": \"{method}\", \"bits\": 4}}, ");
        std::fs::write(&config, format!("{}{other}{}", &text[..start], &text[end..])).unwrap();
        for verb in ["predict", "launch"] {
            let (code, _, said) = headroom(place.path(), &[verb, "mlx.toml"]);
            assert_eq!(code, 2, "{verb} {method}: {said}");
            assert!(said.contains(&format!("quant_method` in `config.json` is {method}, but must be MLX's")), "{said}");
        }
    }
    let whole = std::fs::read(place.path().join("chat.gguf")).unwrap();
    std::fs::write(place.path().join("chat.gguf"), &whole[..whole.len() / 2]).unwrap();
    let (code, _, said) = headroom(place.path(), &["predict", "gguf.toml"]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("is the download complete?"), "{said}");
    assert!(!place.path().join("runs").exists());
}

#[test]
fn a_prompt_is_put_as_the_run_was_trained() {
    let place = place();
    let write = |name: &str, text: &str| std::fs::write(place.path().join(name), text).unwrap();
    write("texts.jsonl", "\n{\"text\": \"The cow says moo and walks away.\"}\n{\"text\": \"The duck swims.\"}\n");
    write(
        "chats.jsonl",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"Hello.\"}]}\n",
    );
    for (name, plain) in [("texts", true), ("chats", false)] {
        write(
            &format!("{name}.toml"),
            &format!(
                "model = \"builtin\"\ndata = \"{name}.jsonl\"\n[recipe]\nsteps = 1\neffective_batch_size = 1\nmax_seq_length = 64\nlora = {{ rank = 2 }}\n"
            ),
        );
        let (code, _, said) = headroom(place.path(), &["launch", &format!("{name}.toml"), "--quiet"]);
        assert_eq!(code, 0, "{said}");
        let run = format!("runs/{name}");
        let ask =
            |more: &[&str]| headroom(place.path(), &[&["generate", "The cow", "--max-tokens", "5"], more].concat());
        for folder in [run.clone(), format!("{run}/adapter")] {
            let (code, inferred, said) = ask(&["--adapter", &folder]);
            assert_eq!(
                (code, said.contains("continued as plain text, as the run was trained")),
                (0, plain),
                "{name}: {said}"
            );
            let (_, raw, said) = ask(&["--adapter", &folder, "--raw"]);
            assert!(said.is_empty(), "{said}");
            let (_, chat, _) = ask(&["--adapter", &folder, "--chat"]);
            assert_ne!(raw, chat);
            assert_eq!(inferred, if plain { raw } else { chat });
        }
    }
}
