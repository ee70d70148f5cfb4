//! The house has rules: who may know whom, who may print, who may touch the disk. This test is the rules.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of tests are tests too

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Each room and the rooms it may name. Change the table when you change your mind, in the same commit.
const MAY_KNOW: [(&str, &[&str]); 21] = [
    ("units", &[]),
    ("stats", &[]),
    ("error", &["units"]),
    ("memory", &["units"]),
    ("store", &["units", "error"]),
    ("spec", &["units", "error"]),
    ("ops", &["spec"]),
    ("checkpoint", &["units", "error", "memory", "store", "spec", "ops"]),
    ("data", &["units", "error", "store", "spec", "checkpoint"]),
    ("cost", &["units", "stats", "error", "spec"]),
    ("trainer", &["units", "stats", "error", "memory", "store", "spec", "ops", "checkpoint", "data"]),
    ("export", &["units", "error", "store", "spec", "checkpoint", "trainer"]),
    ("measure", &["units", "stats", "error", "memory", "store", "spec", "ops", "trainer"]),
    ("predict", &["units", "stats", "error", "spec", "cost"]),
    ("plan", &["units", "stats", "error", "spec", "cost", "predict"]),
    ("accuracy", &["units", "stats", "error", "spec", "cost", "measure", "predict", "plan"]),
    ("report", &["units", "stats", "error", "spec", "cost", "measure", "predict", "plan", "accuracy"]),
    ("cli", &["units", "error", "spec"]),
    (
        "commands",
        &[
            "units",
            "stats",
            "error",
            "memory",
            "store",
            "spec",
            "cost",
            "checkpoint",
            "data",
            "trainer",
            "export",
            "measure",
            "predict",
            "plan",
            "accuracy",
            "report",
            "cli",
        ],
    ),
    ("main", &["cli", "commands", "error", "memory", "ops", "report"]),
    ("lib", &["memory"]),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Every source file with its room and its text, tests at its foot cut off.
fn files() -> Vec<(PathBuf, String, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    sources(&src, &mut paths);
    paths.sort();
    let not_tests = |p: &PathBuf| !p.file_stem().is_some_and(|s| s.to_string_lossy().ends_with("tests"));
    paths
        .into_iter()
        .filter(not_tests)
        .map(|path| {
            let inside = path.strip_prefix(&src).unwrap();
            let first = inside.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
            let room = first.trim_end_matches(".rs").to_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned();
            (inside.to_owned(), room, text)
        })
        .collect()
}

/// The rooms that a text names by `crate::room` or, in the binary, `headroom::room`.
fn named(text: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    let code = text.lines().filter(|l| !l.trim_start().starts_with("//"));
    for line in code {
        for prefix in ["crate::", "headroom::"] {
            for rest in line.split(prefix).skip(1) {
                match rest.strip_prefix('{') {
                    Some(group) => {
                        rooms.extend(group.split([',', '}']).map(|r| r.split("::").next().unwrap().trim().to_owned()))
                    }
                    None => {
                        rooms.extend(rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().map(str::to_owned))
                    }
                }
            }
        }
    }
    rooms
}

#[test]
fn rooms_know_only_whom_they_may() {
    let table: BTreeMap<&str, &[&str]> = MAY_KNOW.into_iter().collect();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (path, room, text) in files() {
        let allowed =
            table.get(room.as_str()).unwrap_or_else(|| panic!("{} is in no room of the table", path.display()));
        for other in named(&text) {
            if other != room && table.contains_key(other.as_str()) {
                seen += 1;
                if !allowed.contains(&other.as_str()) {
                    wrong.push(format!("{} ({room}) names {other}", path.display()));
                }
            }
        }
    }
    assert!(seen > 50, "only {seen} imports found: is the test still looking at the right lines?");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_those_who_may_touch_the_world() {
    let may_touch = ["store", "memory", "checkpoint", "trainer", "measure", "commands", "main"];
    let may_print = ["commands", "main"];
    let mut wrong = Vec::new();
    for (path, room, text) in files() {
        let has = |word: &str| text.lines().any(|l| !l.trim_start().starts_with("//") && l.contains(word));
        if ["std::fs", "File::open", "std::process::Command"].iter().any(|w| has(w))
            && !may_touch.contains(&room.as_str())
        {
            wrong.push(format!("{} touches the disk or another process", path.display()));
        }
        if ["println!", "print!", "eprintln!", "eprint!"].iter().any(|w| has(w)) && !may_print.contains(&room.as_str())
        {
            wrong.push(format!("{} prints", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_and_lines_stay_readable() {
    let code = |text: &str| text.lines().filter(|l| !l.trim().is_empty() && !l.trim_start().starts_with("//")).count();
    let long: Vec<String> = files()
        .into_iter()
        .filter(|(_, _, text)| code(text) > 400)
        .map(|(path, _, text)| format!("{}: {} lines of code", path.display(), code(&text)))
        .collect();
    assert!(long.is_empty(), "split these: {}", long.join(", "));
}
