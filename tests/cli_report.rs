//! `headroom report` on folders that are damaged or were made to do harm, and what reaches a terminal.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests too

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use headroom::trainer::scripted::Script;
use headroom::units::Bytes;
use serde_json::{Value, json};

/// Exit code, stdout and stderr, as on a terminal: with colours.
fn headroom(folder: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_headroom"));
    command.current_dir(folder).args(args).env("HEADROOM_RESULTS", "results");
    let out = command.env("CLICOLOR_FORCE", "1").env_remove("NO_COLOR").output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (out.status.code().unwrap_or(-1), text(&out.stdout), text(&out.stderr))
}

/// A finished run of the scripted trainer in `runs/NAME`.
fn run(folder: &Path, name: &str) {
    let script = Script { process_memory: Bytes::from_mib(40), lengths: vec![64; 10], ..Script::default() };
    fs::write(folder.join("script.json"), serde_json::to_string(&script).unwrap()).unwrap();
    let run = "model = \"builtin\"\ndata = \"builtin\"\n[recipe]\nsteps = 12\nmax_seq_length = 64\n";
    fs::write(folder.join("run.toml"), run).unwrap();
    let out = format!("runs/{name}");
    let (code, _, said) = headroom(folder, &["launch", "run.toml", "--out", &out, "--script", "script.json"]);
    assert_eq!(code, 0, "{said}");
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// Styles of our own are bold, dim and colours; with them taken out, nothing is left that a terminal acts on.
fn is_harmless(text: &str) -> bool {
    let mut rest = text.to_owned();
    for code in ["0", "1", "2", "31", "32", "33", "34", "35", "36", "94"] {
        rest = rest.replace(&format!("\u{1b}[{code}m"), "");
    }
    !rest.contains(|c: char| (c.is_control() && c != '\n' && c != '\t') || ('\u{202a}'..='\u{202e}').contains(&c))
}

#[test]
fn a_damaged_run_keeps_no_one_from_seeing_the_others() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), "good");
    let bad = folder.path().join("runs/bad");
    type Damage = fn(&Path);
    let cases: [(&str, Damage, &[&str]); 6] = [
        ("metrics.jsonl", |path| fs::write(path, "{}\n").unwrap(), &["metrics.jsonl`, line 1", "missing field"]),
        (
            "prediction.json",
            |path| edit(path, |p| p["tokens_per_s"]["high"] = Value::Null),
            &["prediction.json`, line 1"],
        ),
        ("outcome.json", |path| edit(path, |o| o["schema"] = json!(999)), &["outcome.json`", "`schema` is 999"]),
        ("outcome.json", |path| fs::write(path, "{").unwrap(), &["outcome.json`, line 1"]),
        ("run.toml", |path| fs::write(path, "\n=").unwrap(), &["run.toml`, line 2"]),
        ("run.toml", |path| fs::remove_file(path).unwrap(), &["runs/bad", "is not a run folder"]),
    ];
    for (file, damage, parts) in cases {
        let _ = fs::remove_dir_all(&bad);
        let _ = fs::remove_dir_all(folder.path().join("reports"));
        run(folder.path(), "bad");
        damage(&bad.join(file));
        let (code, stdout, stderr) = headroom(folder.path(), &["report", "runs/bad", "runs/good", "--quiet"]);
        assert_eq!(code, 2, "{file}: {stderr}");
        for part in parts.iter().chain(&["1 of 2 runs could not be read", "the page shows the others"]) {
            assert!(stderr.contains(part), "{file}: `{part}` is not in {stderr}");
        }
        assert!(stdout.contains("good: It fit and it finished"), "{stdout}");
        let page = fs::read_to_string(folder.path().join("reports/runs/index.html")).unwrap();
        assert!(page.contains("It fit and it finished") && !page.contains(">bad<"), "{page}");
        // Alone it is the answer.
        let (code, _, stderr) = headroom(folder.path(), &["report", "runs/bad"]);
        assert!(code == 2 && parts.iter().all(|part| stderr.contains(part)), "{file}: {stderr}");
        assert!(!folder.path().join("reports/bad").exists());
    }
}

#[test]
fn absurd_figures_are_reported_without_end_or_hunger() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), "absurd");
    let run = folder.path().join("runs/absurd");
    edit(&run.join("prediction.json"), |p| {
        p["tokens_per_s"]["high"] = json!(1.75e308);
        p["total_time_s"] = json!({ "point": 1e308, "low": -1e308, "high": 1.75e308, "level": 1e300 });
        p["peak_memory_bytes"]["high"] = json!(u64::MAX);
        let phases =
            (0..100_000).map(|i| json!({ "name": format!("n{i}"), "bytes": u64::MAX, "phase": format!("p{i}") }));
        p["timeline"] = phases.collect();
    });
    edit(&run.join("outcome.json"), |o| {
        o["measured"]["tokens_per_s"] = json!(1e308);
        o["measured"]["wall_time_s"] = json!(1e308);
        o["measured"]["footprint_bytes"] = json!(u64::MAX);
    });
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let huge = |(i, line): (usize, &str)| {
        let mut value: Value = serde_json::from_str(line).unwrap();
        value["loss"] = json!([9e307, -9e307, f64::MAX][i % 3]);
        value.to_string() + "\n"
    };
    fs::write(run.join("metrics.jsonl"), metrics.lines().enumerate().map(huge).collect::<String>()).unwrap();
    let (code, _, stderr) = headroom(folder.path(), &["report", "runs/absurd"]);
    assert_eq!(code, 0, "{stderr}");
    let page = fs::read_to_string(folder.path().join("reports/absurd/index.html")).unwrap();
    assert!(page.len() < 1_000_000 && page.contains("and 99970 more phases"), "{} bytes", page.len());
}

#[test]
fn nothing_from_a_file_commands_the_terminal() {
    const EVIL: &str = "\\u001b]52;c;ZXZpbA==\\u0007\\u001b[2J\\u009b8m\\u202e\\u007f";
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
        fs::write(folder.path().join(name), text).unwrap();
    };
    let base = "data = \"builtin\"\n[recipe]\nsteps = 2\nmax_seq_length = 64\n";
    write("model.toml", format!("model = \"{EVIL}\"\n{base}"));
    write("rows.toml", format!("model = \"builtin\"\ndata = \"{EVIL}\"\n[recipe]\nmax_seq_length = 64\n"));
    write("key.toml", format!("model = \"builtin\"\n\"{EVIL}\" = 1\n{base}"));
    write("targets.toml", format!("model = \"builtin\"\n{base}lora = {{ target_modules = [\"{EVIL}\"] }}\n"));
    write("grid.toml", format!("model = [\"builtin\", \"{EVIL}\"]\n{base}"));
    write("folder/config.json", format!("{{\"model_type\": \"{EVIL}\"}}"));
    write("folder.toml", format!("model = \"./folder\"\n{base}"));
    let guide = "[[guide]]\nkey = \"g\"\nname = \"NAME\"\nurl = \"NAME\"\n[[claim]]\nguide = \"g\"\nmodel = \"Qwen3-8B\"\nmachine = \"M2\"\nram_gib = 8\nweights = \"bf16\"\nsays = { fits = true }\n";
    write("guides.toml", guide.replace("NAME", EVIL));
    let name = "\u{1b}]0;title\u{7}\u{9b}31m";
    run(folder.path(), name);
    let path = format!("runs/{name}");
    let asked: [(&[&str], i32); 13] = [
        (&["predict", "model.toml"], 2),
        (&["predict", "rows.toml"], 0),
        (&["predict", "rows.toml", "--json"], 0),
        (&["launch", "key.toml"], 2),
        (&["predict", "targets.toml"], 2),
        (&["predict", "folder.toml"], 2),
        (&["sweep", "grid.toml"], 2),
        (&["report", "guides", "--claims", "guides.toml"], 0),
        (&["report", "guides", "--claims", "guides.toml", "--json"], 0),
        (&["report", &path], 0),
        (&["report", &path, "--json"], 0),
        (&["plan", "--ram", name], 2),
        (&["plan", "--help"], 0),
    ];
    for (args, expected) in asked {
        let (code, stdout, stderr) = headroom(folder.path(), args);
        assert_eq!(code, expected, "{args:?}: {stderr}");
        // clap's own help is underlined, and quotes nothing.
        assert!(args.contains(&"--help") || is_harmless(&stdout), "{args:?}: {stdout:?}");
        assert!(is_harmless(&stderr), "{args:?}: {stderr:?}");
    }
    // What was in it can still be read.
    let (_, _, stderr) = headroom(folder.path(), &["predict", "model.toml"]);
    assert!(stderr.contains(r"\u{1b}]52;c;ZXZpbA==\u{7}\u{1b}[2J\u{9b}8m\u{202e}\u{7f}"), "{stderr}");
    assert!(stderr.contains("\u{1b}[1m\u{1b}[31merror:\u{1b}[0m"), "{stderr:?}");
}

#[test]
fn a_report_holds_no_formula_and_no_folder_of_this_machine() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("somebody");
    fs::create_dir_all(&home).unwrap();
    fs::write(home.join("rows.jsonl"), "{\"text\": \"The bell rang twice.\"}\n".repeat(20)).unwrap();
    run(folder.path(), "=1+1");
    let file = folder.path().join("runs/=1+1/run.toml");
    let rows = format!("data = \"{}\"", home.join("rows.jsonl").display());
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("data = \"builtin\"", &rows)).unwrap();
    let (code, _, stderr) = headroom(folder.path(), &["report", "runs/=1+1"]);
    assert_eq!(code, 0, "{stderr}");
    let grid = format!("model = \"builtin\"\ndata = [\"{}\", \"builtin\"]\n", home.join("rows.jsonl").display());
    fs::write(folder.path().join("g.toml"), grid).unwrap();
    let (code, _, stderr) = headroom(folder.path(), &["sweep", "g.toml"]);
    assert_eq!(code, 0, "{stderr}");
    let mut seen = 0;
    for report in fs::read_dir(folder.path().join("reports")).unwrap() {
        for file in fs::read_dir(report.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
            assert!(!text.contains("somebody") && !text.contains(&*folder.path().to_string_lossy()), "{text}");
            if path.extension().is_some_and(|e| e == "parquet") {
                continue;
            }
            assert!(!text.lines().any(|line| line.starts_with('=')), "{text}");
            seen += usize::from(text.contains("rows.jsonl")) + usize::from(text.contains("\n'=1+1,"));
        }
    }
    assert_eq!(seen, 3); // the page's configuration, and both tables
}

#[test]
fn a_row_that_no_run_can_have_shown_is_named_by_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), "one");
    let machine = fs::read_dir(folder.path().join("results")).unwrap().next().unwrap().unwrap().path();
    let table = machine.join("measurements.csv");
    let (columns, rows) = common::read_csv(&table);
    for (column, cell, said) in [
        ("schema", "999", "`schema` is 999"),
        ("measured.step_time_s", "1e300", "`measured.step_time_s` is 1e300"),
        ("measured.step_time_s", "1e-300", "`measured.step_time_s` is 1e-300"),
        ("measured.tokens_per_s", "1e300", "`measured.tokens_per_s` is 1e300"),
        ("measured.peak_memory_bytes", "1e300", "`measured.peak_memory_bytes` is `1e300`"),
        ("config.execution.batch_size", "0", "`batch_size` is 0"),
    ] {
        let mut damaged = vec![rows[0].clone(), rows[0].clone()];
        damaged[1][columns.iter().position(|c| c == column).unwrap()] = cell.into();
        common::write_csv(&table, &columns, &damaged);
        for args in [&["predict", "run.toml"][..], &["launch", "run.toml"], &["sweep", "run.toml"]] {
            let (code, _, stderr) = headroom(folder.path(), args);
            assert_eq!(code, 2, "{args:?} {column}: {stderr}");
            assert!(
                stderr.contains("measurements.csv`, line 3") && stderr.contains(said),
                "{args:?} {column}: {stderr}"
            );
        }
        // The page says what it does without.
        let (code, _, stderr) = headroom(folder.path(), &["report", "runs/one"]);
        assert!(
            code == 0 && stderr.contains("the effect of the calibration is not shown") && stderr.contains(said),
            "{stderr}"
        );
        assert!(!folder.path().join("runs/run").exists());
    }
}
