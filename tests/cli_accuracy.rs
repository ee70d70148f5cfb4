//! `headroom report accuracy` on the committed rows, as a user meets it.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests too

use std::path::Path;
use std::process::Output;

use assert_cmd::Command;

fn report(args: &[&str], reports: &Path) -> Output {
    let mut command = Command::cargo_bin("headroom").unwrap();
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env("NO_COLOR", "1").env_remove("COLUMNS");
    command.args(["report"]).args(args).arg("--reports").arg(reports).output().unwrap()
}

/// What stands in docs/accuracy.md between two markers.
fn held_by_the_page(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/accuracy.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = (format!("<!-- {name} -->"), format!("<!-- /{name} -->"));
    let from = page.find(&begin).unwrap() + begin.len();
    let to = from + page[from..].find(&end).unwrap();
    let wanted = format!("\n```console\n$ headroom report {name}\n{}\n```\n", text.trim_end());
    assert!(page[from..to] == wanted, "docs/accuracy.md is not today's; between its markers belongs:{wanted}");
}

#[test]
fn the_page_shows_the_accuracy_of_the_committed_rows() {
    let folder = tempfile::tempdir().unwrap();
    let out = report(&["accuracy", "--quiet"], folder.path());
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success() && out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
    let widest = text.lines().map(|l| l.chars().count()).max().unwrap();
    assert!(widest <= 80, "{widest} columns in\n{text}");
    held_by_the_page("accuracy", &text);
    let page = std::fs::read_to_string(folder.path().join("accuracy/index.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("FR168") && !page.contains("<script"));
}

#[test]
fn machines_get_every_row_and_every_rule() {
    let folder = tempfile::tempdir().unwrap();
    let out = report(&["accuracy", "--json"], folder.path());
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let field = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/results/field/runs.csv")).unwrap();
    let rows = csv::Reader::from_reader(field.as_bytes()).records().count();
    assert_eq!(json["published"].as_u64(), Some(rows as u64));
    // Every row is compared, or left out by a rule that counts it: nothing goes missing.
    let whole =
        ["trainer", "fine_tune_type", "no_model", "architecture", "unknown_model", "format", "settings", "version"];
    let left: u64 = whole.iter().filter_map(|rule| json["left_out"][rule].as_u64()).sum();
    let judged = json["judged"].as_array().unwrap().len() as u64;
    assert_eq!(left + judged + json["left_out"]["no_memory"].as_u64().unwrap_or(0), rows as u64);
    let fixed = json["cases"].as_array().unwrap().iter().find(|c| c["id"] == "FR168").unwrap();
    assert_eq!((&fixed["tokens_per_row"], &fixed["run"]["execution"]["weights"]), (&8192.into(), &"4bit".into()));
}

#[test]
fn a_broken_table_is_named_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("runs.csv");
    let said = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let out = report(&["accuracy", "--field", &path.to_string_lossy()], folder.path());
        assert_eq!(out.status.code(), Some(2));
        String::from_utf8(out.stderr).unwrap()
    };
    assert!(said("id,model\n").contains("has no column `framework`"));
    assert!(said("id,framework,model,outcome,ram_gb\nFR1,mlx-lm,m,ok,lots\n").contains("line 2"));
    let out = report(&["accuracy", "--results", "nowhere"], folder.path());
    assert_eq!(out.status.code(), Some(2));
}

#[test]
fn every_claim_of_the_guides_gets_a_verdict() {
    let folder = tempfile::tempdir().unwrap();
    let out = report(&["guides", "--json"], folder.path());
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let claims = json.as_array().unwrap();
    let verdict = |what: &str, says: &str| {
        let claim = claims.iter().find(|c| c["what"].as_str().unwrap().starts_with(what) && c["says"] == says).unwrap();
        claim["verdict"].as_str().unwrap().to_owned()
    };
    // The logits of 8,192 rows alone are more than the guide has for everything.
    assert_eq!(verdict("Qwen2.5-1.5B-Instruct f16, rank 32, 4 x 2048", "5.2 GB"), "impossible");
    assert_eq!(verdict("Llama-3.1-70B-Instruct f16, rank 64, 4 x 4096", "fits"), "impossible");
    assert_eq!(verdict("Llama-2-7b-hf, weights in 16 bits", "14.0 GB"), "right");
    assert!(claims.iter().all(|c| !c["why"].as_str().unwrap().is_empty()));
    let page = std::fs::read_to_string(folder.path().join("guides/index.html")).unwrap();
    assert!(page.matches("class=\"muted\">at the peak").count() > 10);
    let text = String::from_utf8(report(&["guides", "--quiet"], folder.path()).stdout).unwrap();
    assert!(text.lines().all(|l| l.chars().count() <= 100), "{text}");
}
