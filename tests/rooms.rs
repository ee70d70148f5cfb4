//! The rules of the house: which room may name which, which may touch the world, no circle of files, and no room, file or
//! public surface that grows too large. `docs/design.md` explains the rooms.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of tests are tests too

mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Each room and the rooms it may name. Change the table when you change your mind, in the same commit.
const MAY_KNOW: [(&str, &[&str]); 24] = [
    ("units", &[]),
    ("stats", &[]),
    ("error", &["units"]),
    ("memory", &["units"]),
    ("store", &["units", "error"]),
    ("spec", &["units", "error"]),
    ("ops", &["memory", "spec"]),
    ("checkpoint", &["units", "error", "memory", "store", "spec", "ops"]),
    ("data", &["units", "error", "store", "spec", "checkpoint"]),
    ("cost", &["units", "stats", "error", "memory", "spec"]),
    ("trainer", &["units", "stats", "error", "memory", "store", "spec", "ops", "checkpoint", "data"]),
    ("export", &["units", "error", "store", "spec", "checkpoint", "trainer"]),
    ("measure", &["units", "stats", "error", "memory", "store", "spec", "ops", "trainer"]),
    ("predict", &["units", "stats", "error", "spec", "cost"]),
    ("plan", &["units", "stats", "error", "spec", "cost", "predict"]),
    (
        "experiment",
        &["units", "stats", "error", "store", "spec", "checkpoint", "data", "trainer", "measure", "predict", "plan"],
    ),
    ("tables", &["units", "stats", "error"]),
    ("accuracy", &["units", "stats", "error", "spec", "cost", "measure", "predict", "plan", "tables"]),
    ("guides", &["units", "stats", "error", "spec", "cost", "measure", "predict", "plan", "tables"]),
    (
        "report",
        &["units", "stats", "error", "spec", "cost", "measure", "predict", "plan", "tables", "accuracy", "guides"],
    ),
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
            "experiment",
            "tables",
            "accuracy",
            "guides",
            "report",
            "cli",
        ],
    ),
    ("main", &["cli", "commands", "error", "memory", "ops", "report"]),
    ("lib", &["memory"]),
];

/// Rooms that may touch the disk or another process.
const MAY_TOUCH: [&str; 7] = ["store", "memory", "checkpoint", "trainer", "measure", "commands", "main"];
/// Rooms that may print.
const MAY_PRINT: [&str; 2] = ["commands", "main"];
/// Share of all lines that one room may have, per cent.
const LARGEST_ROOM: usize = 15;
/// Lines of one file, tests at its foot included.
const LONGEST_FILE: usize = 350;

struct File {
    /// Such as `spec/model/mod.rs`.
    path: String,
    room: String,
    /// Such as `spec::model`.
    module: String,
    /// Without comments and without the tests at its foot.
    code: String,
}

/// Every source file but those that hold nothing but tests.
fn files() -> Vec<File> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    sources::sources(&src, &mut paths);
    paths.sort();
    let read = |path: &std::path::PathBuf| {
        let inside = path.strip_prefix(&src).unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(path).unwrap();
        let steps: Vec<&str> = inside.trim_end_matches(".rs").split('/').filter(|s| *s != "mod").collect();
        let (room, module) = (steps[0].to_owned(), steps.join("::"));
        File { code: code(&text), path: inside, room, module }
    };
    paths.iter().map(read).filter(|f| !is_test(&f.path)).collect()
}

fn is_test(path: &str) -> bool {
    let stem = path.rsplit('/').next().unwrap().trim_end_matches(".rs");
    stem.ends_with("tests") || stem == "testing"
}

fn code(text: &str) -> String {
    let foot = text.find("#[cfg(test)]\nmod tests").or_else(|| text.find("#[cfg(all(test"));
    let lines = text[..foot.unwrap_or(text.len())].lines();
    lines.filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// `a::{b, c::{d, e}}` as `a::b`, `a::c::d` and `a::c::e`.
fn flat(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else { return vec![tree.split(" as ").next().unwrap().trim().to_owned()] };
    let (before, inside) = (&tree[..open], &tree[open + 1..tree.rfind('}').unwrap()]);
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for c in inside.chars() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if c == ',' && depth == 0 { parts.push(String::new()) } else { parts.last_mut().unwrap().push(c) }
    }
    let parts = parts.into_iter().filter(|p| !p.trim().is_empty());
    parts.flat_map(|p| flat(&p)).map(|p| format!("{before}{p}").trim_end_matches("::self").to_owned()).collect()
}

/// Paths within the crate that a file names, absolute and without `crate::`: by `use` (re-exports too) or in its code.
fn named(file: &File) -> BTreeSet<String> {
    let parent = file.module.rsplit_once("::").map_or("", |(parent, _)| parent);
    let mut found = BTreeSet::new();
    let declared =
        |line: &'_ str| line.rsplit_once("mod ").and_then(|(_, name)| name.strip_suffix(';')).map(str::to_owned);
    let children: BTreeSet<String> = file.code.lines().filter_map(declared).collect();
    let mut add = |path: &str| {
        let path = path.trim();
        if let Some(child) = path.split("::").next().filter(|first| children.contains(*first)) {
            found.insert(format!("{}::{child}{}", file.module, &path[child.len()..]));
        }
        for (prefix, base) in [("crate", ""), ("headroom", ""), ("self", file.module.as_str()), ("super", parent)] {
            if let Some(rest) = path.strip_prefix(prefix).and_then(|rest| rest.strip_prefix("::")) {
                found.insert(if base.is_empty() { rest.to_owned() } else { format!("{base}::{rest}") });
            }
        }
    };
    let (mut lines, mut body) = (file.code.lines(), String::new());
    while let Some(line) = lines.next() {
        let line = line.trim_start();
        let stripped =
            ["use ", "pub use ", "pub(crate) use ", "pub(super) use "].iter().find_map(|p| line.strip_prefix(p));
        let Some(start) = stripped else {
            body += line;
            body.push('\n');
            continue;
        };
        let mut tree = start.to_owned();
        while !tree.ends_with(';') {
            tree += lines.next().unwrap().trim();
        }
        flat(tree.trim_end_matches(';')).iter().for_each(|path| add(path));
    }
    for prefix in ["crate::", "headroom::", "super::"] {
        for (at, _) in body.match_indices(prefix) {
            let end = body[at..].find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
            add(body[at..at + end.unwrap_or(body.len() - at)].trim_end_matches(':'));
        }
    }
    // A parent that calls into a child by its name.
    for (at, _) in body.match_indices("mod ") {
        let name = body[at + 4..].split(';').next().unwrap();
        let used = body
            .match_indices(&format!("{name}::"))
            .any(|(at, _)| !body[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'));
        if used && name.chars().all(|c| c.is_alphanumeric() || c == '_') {
            found.insert(format!("{}::{name}", file.module));
        }
    }
    found
}

#[test]
fn rooms_know_only_whom_they_may() {
    let table: BTreeMap<&str, &[&str]> = MAY_KNOW.into_iter().collect();
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for file in files() {
        let allowed =
            table.get(file.room.as_str()).unwrap_or_else(|| panic!("{} is in no room of the table", file.path));
        for path in named(&file) {
            let other = path.split("::").next().unwrap();
            if other != file.room && table.contains_key(other) {
                seen += 1;
                if !allowed.contains(&other) {
                    wrong.push(format!("{} names {path}", file.path));
                }
            }
        }
    }
    assert!(seen > 500, "only {seen} imports found: is the test still looking at the right lines?");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_files_go_in_a_circle() {
    let files: Vec<File> = files().into_iter().filter(|f| !["lib", "main"].contains(&f.room.as_str())).collect();
    let modules: BTreeMap<&str, usize> = files.iter().enumerate().map(|(i, f)| (f.module.as_str(), i)).collect();
    let file_of = |path: &str| {
        let mut path = path;
        loop {
            if let Some(i) = modules.get(path) {
                return Some(*i);
            }
            path = path.rsplit_once("::")?.0;
        }
    };
    let next: Vec<BTreeSet<usize>> = files
        .iter()
        .enumerate()
        .map(|(i, file)| named(file).iter().filter_map(|path| file_of(path)).filter(|j| *j != i).collect())
        .collect();
    assert!(next.iter().map(BTreeSet::len).sum::<usize>() > 500, "too few arrows: the test no longer sees them");
    // Files with no arrow left that goes to another are taken away, until none can be.
    let mut left: BTreeSet<usize> = (0..files.len()).collect();
    loop {
        let free: Vec<usize> = left.iter().copied().filter(|i| next[*i].is_disjoint(&left)).collect();
        if free.is_empty() {
            break;
        }
        left.retain(|i| !free.contains(i));
    }
    // Those that only lead to a circle are not in it.
    let reaches = |from: usize, to: usize| {
        let (mut seen, mut todo) = (BTreeSet::new(), vec![from]);
        while let Some(i) = todo.pop() {
            for j in &next[i] {
                if *j == to {
                    return true;
                }
                if seen.insert(*j) {
                    todo.push(*j);
                }
            }
        }
        false
    };
    let circle: Vec<&str> = left.into_iter().filter(|i| reaches(*i, *i)).map(|i| files[i].path.as_str()).collect();
    assert!(circle.is_empty(), "these name each other in a circle: {circle:?}");
}

#[test]
fn only_those_who_may_touch_the_world() {
    let mut wrong = Vec::new();
    for File { path, room, code, .. } in files() {
        let has = |words: &[&str]| words.iter().any(|word| code.contains(word));
        if has(&["std::fs", "File::open", "process::Command"]) && !MAY_TOUCH.contains(&room.as_str()) {
            wrong.push(format!("{path} touches the disk or another process"));
        }
        if has(&["println!", "print!", "eprintln!", "eprint!"]) && !MAY_PRINT.contains(&room.as_str()) {
            wrong.push(format!("{path} prints"));
        }
        if has(&["#[global_allocator]"]) && !["main", "lib"].contains(&room.as_str()) {
            wrong.push(format!("{path} sets the allocator of every user of the library"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn rooms_and_files_stay_small() {
    let mut rooms: BTreeMap<String, usize> = BTreeMap::new();
    let mut long = Vec::new();
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for place in ["src", "tests", "benches"] {
        let mut paths = Vec::new();
        sources::sources(&src.with_file_name(place), &mut paths);
        for path in paths {
            let lines = std::fs::read_to_string(&path).unwrap().lines().count();
            if lines > LONGEST_FILE {
                long.push(format!("{} has {lines}", path.strip_prefix(src.parent().unwrap()).unwrap().display()));
            }
            if let Ok(inside) = path.strip_prefix(&src) {
                let room = inside.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
                *rooms.entry(room).or_default() += lines;
            }
        }
    }
    assert!(long.is_empty(), "lines of a file, {LONGEST_FILE} at most: {}", long.join(", "));
    let all: usize = rooms.values().sum();
    let large: Vec<_> = rooms.into_iter().filter(|(_, lines)| 100 * lines > LARGEST_ROOM * all).collect();
    assert!(large.is_empty(), "more than {LARGEST_ROOM} % of {all} lines: {large:?}");
}

/// Items that are public, whether they can be reached or not.
const MOST_PUBLIC: usize = 320;

#[test]
fn the_surface_stays_small() {
    let kinds = ["fn", "const", "unsafe", "struct", "enum", "trait", "mod", "static", "type", "use"];
    let public = |line: &str| {
        line.trim_start().strip_prefix("pub ").is_some_and(|rest| kinds.contains(&rest.split(' ').next().unwrap()))
    };
    let count: usize = files().iter().map(|f| f.code.lines().filter(|line| public(line)).count()).sum();
    assert!(
        (100..MOST_PUBLIC).contains(&count),
        "{count} public items, {MOST_PUBLIC} at most: what only rooms need is pub(crate)"
    );
}
