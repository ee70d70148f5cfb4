//! The committed reports are what the tool makes today from the committed results, byte for byte.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests too

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

fn files(folder: &Path, root: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, root, found);
        } else {
            found.insert(path.strip_prefix(root).unwrap().into(), std::fs::read(&path).unwrap());
        }
    }
}

#[test]
fn reports_are_made_from_results_byte_for_byte() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let made = tempfile::tempdir().unwrap();
    let script = Command::new(root.join("scripts/reports.sh"))
        .arg(made.path())
        .env("HEADROOM", env!("CARGO_BIN_EXE_headroom"))
        .output()
        .unwrap();
    assert!(script.status.success(), "{}", String::from_utf8_lossy(&script.stderr));
    let (mut now, mut committed) = (BTreeMap::new(), BTreeMap::new());
    files(made.path(), made.path(), &mut now);
    files(&root.join("reports"), &root.join("reports"), &mut committed);
    assert_eq!(now.keys().collect::<Vec<_>>(), committed.keys().collect::<Vec<_>>());
    assert!(now.len() >= 7, "only {} files were made", now.len());
    let other: Vec<_> = now.iter().filter(|(path, bytes)| committed[*path] != **bytes).map(|(path, _)| path).collect();
    assert!(other.is_empty(), "run scripts/reports.sh: {other:?} differ from what is committed");
}
