//! `headroom sweep` as it is typed.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests too

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use headroom::trainer::scripted::Script;

fn headroom(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_headroom"));
    command.current_dir(folder).env("HEADROOM_RESULTS", "results").args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn every_grid_that_ships_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let grids = Path::new(env!("CARGO_MANIFEST_DIR")).join("grids");
    let mut answered = 0;
    for file in fs::read_dir(grids).unwrap() {
        let file = file.unwrap().path();
        if file.file_name().unwrap() == "guides.toml" {
            continue; // of `report guides`
        }
        let out = headroom(folder.path(), &["sweep", file.to_str().unwrap(), "--quiet"]);
        assert!(out.status.success(), "{}: {}", file.display(), text(&out.stderr));
        answered += 1;
        if file.ends_with("m1-8g.toml") {
            insta::assert_snapshot!("sweep_m1_8g", text(&out.stdout));
            let csv = fs::read_to_string(folder.path().join("reports/m1-8g/sweep.csv")).unwrap();
            assert!(csv.starts_with("machine,model,recipe.lora.rank,recipe.max_seq_length,engine,"));
            assert_eq!(csv.lines().count(), 1 + 4 * 2 * 2 * 2 * 4 * 3);
        }
    }
    assert_eq!(answered, 8); // of seven Macs, and of the model that ships
}

#[test]
fn a_machine_that_was_typed_takes_the_place_of_the_grids() {
    let folder = tempfile::tempdir().unwrap();
    let grid = Path::new(env!("CARGO_MANIFEST_DIR")).join("grids/m1-8g.toml");
    let out = headroom(folder.path(), &["sweep", grid.to_str().unwrap(), "--ram", "16G", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let rows = json["rows"].as_array().unwrap();
    assert!(rows.len() == 384 && rows.iter().all(|r| r["machine"].as_str().unwrap().contains("16 GiB")));
    // With so small a budget nothing fits: an answer, and a no.
    let args = ["sweep", grid.to_str().unwrap(), "--memory-limit", "100M", "--quiet"];
    let out = headroom(folder.path(), &args);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out.stderr));
    assert!(text(&out.stdout).contains("0 of 384 runs fit"));
}

#[test]
fn what_was_measured_is_kept_and_not_measured_again() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let script =
        Script { process_memory: headroom::units::Bytes::from_mib(40), lengths: vec![64; 10], ..Script::default() };
    write("script.json", &serde_json::to_string(&script).unwrap());
    write(
        "grid.toml",
        "model = \"builtin\"\ndata = \"builtin\"\n[recipe]\nmax_seq_length = [32, 64]\neffective_batch_size = 4\n\
         [execution]\nbatch_size = { from = 1, to = 4, factor = 2 }\n",
    );
    let sweep = || {
        headroom(folder.path(), &["sweep", "grid.toml", "--measure", "--script", "script.json", "--trial-time", "20s"])
    };
    let rows = || {
        let results = folder.path().join("results");
        let table = fs::read_dir(results).unwrap().next().unwrap().unwrap().path().join("measurements.csv");
        fs::read_to_string(table).unwrap()
    };
    let first = sweep();
    assert!(first.status.success(), "{}", text(&first.stderr));
    let measured = rows();
    assert_eq!(measured.lines().count(), 1 + 6, "{measured}");
    let second = sweep();
    assert!(second.status.success());
    assert_eq!(rows(), measured);
    // The table tells them side by side.
    let csv = fs::read_to_string(folder.path().join("reports/grid/sweep.csv")).unwrap();
    assert!(csv.lines().skip(1).all(|l| !l.ends_with(",,")), "{csv}");
}

#[test]
fn bad_grids_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let base = "model = \"builtin\"\ndata = \"builtin\"\n";
    for (grid, args, expected) in [
        ("[recipe.lora]\nrnak = [1, 2]", vec![], "did you mean `rank`?"),
        ("[execution]\nbatch_size = []", vec![], "execution.batch_size: no values"),
        ("[[machine]]\nchip = \"M99\"", vec![], "M99"),
        ("[[machine]]\nchip = \"M1\"", vec!["--measure"], "for the machine it runs on"),
        ("[recipe]", vec!["--measure", "--ram", "8G"], "for the machine it runs on"),
        ("[recipe]", vec!["--measure", "--repeats", "0"], "'--repeats <N>': it must be between 1 and 1000"),
    ] {
        fs::write(folder.path().join("grid.toml"), format!("{base}{grid}")).unwrap();
        let out = headroom(folder.path(), &[&["sweep", "grid.toml"], &args[..]].concat());
        let error = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{error}");
        assert!(error.contains(expected), "{grid}: {error}");
    }
}
