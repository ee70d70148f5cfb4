//! The pages are true: what they link to exists, what they show as typed can be typed, and the README stays short.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests too

use std::path::{Path, PathBuf};

use clap::Parser;
use headroom::cli::Cli;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pages() -> Vec<(PathBuf, String)> {
    let docs = std::fs::read_dir(root().join("docs")).unwrap().map(|e| e.unwrap().path());
    let mut paths: Vec<PathBuf> = docs.filter(|p| p.extension().is_some_and(|e| e == "md")).collect();
    paths.extend(["README.md", "CONTRIBUTING.md"].map(|name| root().join(name)));
    assert!(paths.len() > 10);
    paths.into_iter().map(|p| (p.clone(), std::fs::read_to_string(p).unwrap())).collect()
}

/// Words of a command line, as a shell splits it.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut quoted) = (vec![String::new()], false);
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().unwrap().push(c),
        }
    }
    words.into_iter().filter(|w| !w.is_empty()).collect()
}

#[test]
fn the_readme_is_short() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    assert!(readme.lines().count() <= 130, "{} lines", readme.lines().count());
}

#[test]
fn links_and_named_files_exist() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for (path, text) in pages() {
        let folder = path.parent().unwrap();
        let pictures = text.split("src=\"").skip(1).map(|rest| rest.split('"').next().unwrap());
        let links = text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()).chain(pictures);
        let local = links.filter(|l| !l.starts_with("http")).map(|l| folder.join(l.split('#').next().unwrap()));
        let code = text.split('`').skip(1).step_by(2);
        let roots = ["src/", "tests/", "benches/", "scripts/", "results/", "grids/", "assets/", "docs/"];
        let named = code.filter(|c| roots.iter().any(|r| c.starts_with(r)) && !c.contains([' ', '<', '{', '*']));
        for target in local.chain(named.map(|c| root().join(c))) {
            seen += 1;
            if !target.exists() {
                wrong.push(format!("{}: {}", path.display(), target.display()));
            }
        }
    }
    assert!(seen > 80, "only {seen} links and paths were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn commands_can_be_typed() {
    let mut seen = 0;
    for (path, text) in pages() {
        let lines = text.lines().map(|l| l.trim_start().trim_start_matches("$ "));
        let blocks = lines.filter(|l| l.starts_with("headroom ") && !l.contains(['|', '`']));
        for line in blocks {
            let line = line.split(" #").next().unwrap();
            seen += 1;
            if let Err(error) = Cli::try_parse_from(words(line)) {
                panic!("{}: `{line}`: {error}", path.display());
            }
        }
    }
    assert!(seen >= 8, "only {seen} commands were found");
}
