//! How downloads end and go on: by a signal, by silence, beside another one, on what another tool began.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use crate::desk::{ALL, Desk, WEIGHTS, files, read};
use crate::server::{Fault, Files, etag};

const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// The same model in two shards with an index.
fn sharded() -> Files {
    let mut all = files();
    let whole = all.remove(WEIGHTS).unwrap();
    let tensors = SafeTensors::deserialize(&whole).unwrap();
    let mut parts: [BTreeMap<String, TensorView>; 2] = Default::default();
    let mut map = serde_json::Map::new();
    for (i, (name, view)) in tensors.tensors().into_iter().enumerate() {
        map.insert(name.clone(), SHARDS[i % 2].into());
        parts[i % 2].insert(name, view);
    }
    for (name, part) in SHARDS.iter().zip(parts) {
        all.insert((*name).into(), safetensors::serialize(part, None).unwrap());
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
    all.insert("model.safetensors.index.json".into(), index.into_bytes());
    all
}

#[test]
fn an_interrupt_keeps_what_has_arrived_and_says_how_to_go_on() {
    let desk = Desk::new();
    desk.hub.fault(WEIGHTS, &[Fault::Trickle]);
    let child = desk.launching();
    desk.arrived(WEIGHTS, 100_000);
    // SAFETY: sends a signal to a child of this test.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
    let (code, _, err) = read(child.wait_with_output().unwrap());
    assert_eq!(code, 130, "{err}");
    assert!(err.contains("interrupted: what has arrived stays in the cache"), "{err}");
    assert!(err.contains("continue with `headroom launch run.toml --out out --results results`"), "{err}");
    assert!(!desk.folder.path().join("out").exists());
    let here = desk.arrived(WEIGHTS, 1);
    desk.hub.seen();
    assert_eq!(desk.launch().0, 0);
    assert_eq!(desk.transfers(), [(WEIGHTS.to_owned(), here)]);
    desk.holds(&ALL);
}

#[test]
fn a_transfer_that_falls_silent_goes_on() {
    let desk = Desk::new();
    let half = files()[WEIGHTS].len() / 2;
    desk.hub.fault(WEIGHTS, &[Fault::Stall(half)]);
    let mut command = desk.command(&["launch", "run.toml", "--out", "out", "--results", "results"]);
    let (code, out, err) = read(command.env("HF_HUB_DOWNLOAD_TIMEOUT", "1").output().unwrap());
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(desk.transfers(), [(WEIGHTS.to_owned(), 0), (WEIGHTS.to_owned(), half as u64)]);
    desk.holds(&ALL);
}

#[test]
fn the_hub_is_given_the_time_that_it_asks_for() {
    let desk = Desk::new();
    desk.hub.fault(WEIGHTS, &[Fault::Status(429, "Retry-After", "3")]);
    let begun = Instant::now();
    assert_eq!(desk.launch().0, 0);
    // Unasked it would have waited for half a second.
    assert!(begun.elapsed() > Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[test]
fn two_at_once_fetch_each_file_once() {
    let desk = Desk::new();
    desk.write_run("org/tiny");
    let other = ["generate", "What sound does a cow make?", "--model", "org/tiny", "--max-tokens", "1"];
    desk.hub.fault(WEIGHTS, &[Fault::Stall(1000)]);
    let first = desk.command(&other).env("HF_HUB_DOWNLOAD_TIMEOUT", "2").spawn().unwrap();
    desk.arrived(WEIGHTS, 1000);
    let (code, out, err) = desk.launch();
    assert_eq!(code, 0, "{out}{err}");
    assert!(first.wait_with_output().unwrap().status.success());
    assert_eq!(desk.transfers(), [(WEIGHTS.to_owned(), 0), (WEIGHTS.to_owned(), 1000)]);
    desk.holds(&ALL);
}

#[test]
fn what_another_tool_began_may_be_no_beginning() {
    let whole = files()[WEIGHTS].clone();
    for begun in [vec![0; whole.len() / 2], vec![0; whole.len()], vec![0; whole.len() + 1]] {
        let desk = Desk::new();
        std::fs::create_dir_all(desk.repo().join("blobs")).unwrap();
        let path = desk.repo().join("blobs").join(format!("{}.incomplete", etag(WEIGHTS, &whole)));
        std::fs::write(path, begun).unwrap();
        let (code, out, err) = desk.launch();
        assert_eq!(code, 0, "{out}{err}");
        desk.holds(&ALL);
    }
}

#[test]
fn of_shards_only_what_is_missing_is_fetched() {
    let desk = Desk::new();
    desk.hub.state.lock().unwrap().models.insert("org/tiny".into(), sharded());
    desk.hub.fault(SHARDS[1], &[Fault::Stall(5000)]);
    let mut child = desk.launching();
    desk.arrived(SHARDS[1], 5000);
    child.kill().unwrap();
    child.wait().unwrap();
    desk.hub.seen();
    let (code, out, err) = desk.launch();
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(desk.transfers(), [(SHARDS[1].to_owned(), 5000)]);
}
