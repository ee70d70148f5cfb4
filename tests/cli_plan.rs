//! `plan`, `predict` and `doctor` as a user meets them: exit code, standard output and standard error together.
//!
//! What is planned for a named Mac is arithmetic, so the figures themselves are in the snapshots: a change of
//! theirs is a change of an answer, and belongs in the changelog.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests too

use std::path::Path;
use std::process::Output;

use assert_cmd::Command;

fn headroom(args: &[&str]) -> Output {
    Command::cargo_bin("headroom").unwrap().env("NO_COLOR", "1").env_remove("COLUMNS").args(args).output().unwrap()
}

fn shown(args: &[&str]) -> String {
    let out = headroom(args);
    let code = out.status.code().unwrap();
    let (stdout, stderr) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap());
    format!("headroom {}\n----- exit {code}\n{stdout}----- stderr\n{stderr}", args.join(" "))
}

fn run_file(folder: &Path, extra: &str) -> String {
    let path = folder.join("run.toml");
    let text = format!("model = \"Qwen/Qwen2.5-1.5B-Instruct\"\ndata = \"train.jsonl\"\n{extra}");
    std::fs::write(&path, text).unwrap();
    path.to_string_lossy().into_owned()
}

/// Snapshots without the temporary folder's name.
fn settings() -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"(/[^ `\n]*)?/\.tmp[A-Za-z0-9]+", "[FOLDER]");
    settings
}

#[test]
fn the_seed_macs_get_a_plan() {
    insta::assert_snapshot!("plan_8g", shown(&["plan", "--ram", "8G"]));
    insta::assert_snapshot!("plan_16g", shown(&["plan", "--ram", "16G"]));
    for ram in ["8G", "16G"] {
        let out = headroom(&["plan", "--ram", ram]);
        let text = String::from_utf8(out.stdout).unwrap();
        let widest = text.lines().map(|l| l.chars().count()).max().unwrap();
        assert!(widest <= 80, "{widest} columns in\n{text}");
    }
}

#[test]
fn a_run_is_predicted_with_its_timeline() {
    let folder = tempfile::tempdir().unwrap();
    let run = run_file(folder.path(), "[recipe]\nsteps = 100\n[execution]\nbatch_size = 2\n");
    settings().bind(|| {
        insta::assert_snapshot!("predict", shown(&["predict", &run, "--machine", "M2 Pro", "--timeline"]));
    });
}

#[test]
fn a_run_that_does_not_fit_is_a_no() {
    let folder = tempfile::tempdir().unwrap();
    let run = run_file(folder.path(), "[recipe]\nsteps = 100\n[execution]\ngrad_checkpoint = false\n");
    let out = headroom(&["predict", &run, "--ram", "8G", "--json"]);
    assert_eq!(out.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(json["verdict"], "does_not_fit");
    assert!(json["limits"].as_array().unwrap().iter().any(|l| l["predicted"].as_u64() > l["limit"].as_u64()));
}

#[test]
fn a_plan_can_be_written_and_predicted_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    let path = path.to_string_lossy();
    let out = headroom(&["plan", "--ram", "16G", "--out", &path, "--json", "--quiet"]);
    assert!(out.status.success() && out.stderr.is_empty());
    let plan: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let again = headroom(&["predict", &path, "--ram", "16G", "--json"]);
    let again: serde_json::Value = serde_json::from_slice(&again.stdout).unwrap();
    for key in ["peak_memory_bytes", "footprint_bytes", "verdict", "trainable_params"] {
        assert_eq!(plan[key], again[key], "{key}");
    }
}

#[test]
fn bad_input_is_answered_with_what_was_meant() {
    let folder = tempfile::tempdir().unwrap();
    let misspelt = run_file(folder.path(), "[recipe]\nmax_seq_lenght = 512\n");
    let cases: [&[&str]; 9] = [
        &["plan", "--ram", "8"],
        &["plan", "--ram", "10G"],
        &["plan", "--machine", "M2 Pro", "--ram", "8G"],
        &["plan", "--machine", "M7"],
        &["plan", "--ram", "8G", "--model", "Qwen2.5-1.5B-Instuct"],
        &["plan", "--ram", "8G", "--model", "Llama-3.3-70B-Instruct"],
        &["plan", "--ram", "8G", "--model", "Qwen2.5-7B-Instruct"],
        &["plan", "--ram", "8G", "--confidence", "2"],
        &["plan", "--ram", "8G", "--time-limit", "36s"],
    ];
    let mut text: Vec<String> = cases.into_iter().map(shown).collect();
    text.push(shown(&["predict", &misspelt, "--ram", "8G"]));
    text.push(shown(&["predict", "missing.toml", "--ram", "8G"]));
    settings().bind(|| insta::assert_snapshot!("bad_input", text.join("\n")));
}

#[test]
fn the_doctor_judges_every_model() {
    let out = headroom(&["doctor", "--ram", "16G", "--models", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let models = json["models"].as_array().unwrap();
    let verdict = |name: &str| models.iter().find(|m| m["model"] == name).unwrap()["verdict"].clone();
    assert_eq!(verdict("HuggingFaceTB/SmolLM2-135M"), "yes");
    assert_eq!(verdict("meta-llama/Llama-3.3-70B-Instruct"), "no");
    let mixture = models.iter().find(|m| m["model"] == "Qwen/Qwen3-30B-A3B").unwrap();
    assert_eq!([&mixture["family"], &mixture["engine"]], ["qwen3_moe", "mlx-lm"]);
    assert!(headroom(&["doctor"]).status.success());
    let text = String::from_utf8(headroom(&["doctor", "--ram", "16G", "--models"]).stdout).unwrap();
    let widest = text.lines().map(|l| l.chars().count()).max().unwrap();
    assert!(widest <= 80 && models.len() >= 200, "{} models, {widest} columns in\n{text}", models.len());
}

#[test]
fn the_doctor_lists_a_family_and_a_size() {
    let ask = |args: &[&str]| shown(&[&["doctor", "--ram", "64G", "--models"], args].concat());
    let cases: [&[&str]; 6] = [
        &["--family", "llama-3.2"],
        &["--family", "qwen3", "--size", "3B..9B"],
        &["--family", "gpt_oss"],
        &["--family", "gpt2", "--size", "8B"],
        &["--family", "qwen9"],
        &["--size", "9B..3B"],
    ];
    let mut text: Vec<String> = cases.into_iter().map(ask).collect();
    text.push(shown(&["doctor", "--family", "qwen3"]));
    insta::assert_snapshot!("doctor_models", text.join("\n"));
    let small = headroom(&["doctor", "--ram", "64G", "--models", "--size", "..500M", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&small.stdout).unwrap();
    let models = json["models"].as_array().unwrap();
    assert!(models.len() > 10 && models.iter().all(|m| m["parameters"].as_u64() <= Some(500_000_000)));
}

#[test]
fn the_table_has_a_row_a_model_and_a_column_a_format() {
    let out = headroom(&["plan", "--ram", "16G", "--seq", "512", "--table"]);
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    for row in ["model", "Qwen3-8B", "gemma-3-1b-it", "assumed: 2,000 examples"] {
        assert!(text.contains(row), "{row} in\n{text}");
    }
    let json = headroom(&["plan", "--ram", "16G", "--seq", "512", "--table", "--json"]);
    let cells: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(cells.as_array().unwrap().len() > 30);
    // Nothing that fits in time is a no.
    let late = headroom(&["plan", "--ram", "16G", "--time-limit", "1s", "--table"]);
    assert_eq!(late.status.code(), Some(1));
}

#[test]
fn the_readme_shows_what_the_command_prints() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let plan = String::from_utf8(headroom(&["plan", "--ram", "8G"]).stdout).unwrap();
    assert!(readme.contains(plan.trim_end()), "the README's plan is not today's:\n{plan}");
}

/// The plan of the README is within its limits by the replay itself, and the ledger says what the replay says.
#[test]
fn the_plan_for_8_gb_fits_by_the_replay() {
    let at = tempfile::tempdir().unwrap();
    let file = at.path().join("run.toml");
    let file = file.to_str().unwrap();
    assert!(headroom(&["plan", "--ram", "8G", "--out", file]).status.success());
    let out = headroom(&["predict", file, "--ram", "8G", "--replay", "--json"]);
    let seen: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let replayed = seen["replay"]["peak_bytes"].as_f64().unwrap();
    let (alive, waits) = (seen["replay"]["alive_bytes"].as_f64().unwrap(), seen["replay"]["waits"].as_u64());
    assert!(alive > 2e9 && alive <= replayed && waits == Some(4), "{}", seen["replay"]);
    let limit = |name: &str| {
        let limits = seen["limits"].as_array().unwrap();
        limits.iter().find(|l| l["name"] == name).unwrap()["limit"].as_f64().unwrap()
    };
    assert!(replayed < limit("Metal working set") && replayed < limit("free memory"));
    let predicted = seen["peak_memory_bytes"]["point"].as_f64().unwrap();
    assert!((predicted / replayed - 1.0).abs() < 0.02, "{predicted} {replayed}");
}

/// On the CPU the same formulas, composed of candle's operations, are what training is held to.
#[test]
fn the_self_test_agrees_and_writes_a_file() {
    let at = tempfile::tempdir().unwrap();
    let file = at.path().join("seen.json");
    let out = headroom(&["doctor", "--self-test", "--device", "cpu", "--out", file.to_str().unwrap()]);
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success() && text.contains("learns the same"), "{text}");
    let seen: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let checks = seen["checks"].as_array().unwrap();
    assert!(checks.len() >= 12 && checks.iter().all(|c| c["agrees"] == true && c["losses"][0][2].as_f64() > Some(0.0)));
}
