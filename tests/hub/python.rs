//! One cache for two tools: huggingface_hub finds what was fetched here, and what it fetched is found here.
//! Needs a Python with huggingface_hub: `HEADROOM_PYTHON=python3 cargo test --release --test hub -- --ignored`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::desk::{ALL, Desk, WEIGHTS, files, read};
use crate::server::{COMMIT, Fault};

const NAMES: &str = "LICENSE config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json";

fn python(desk: &Desk, what: &str) -> Command {
    let python = std::env::var_os("HEADROOM_PYTHON").expect("HEADROOM_PYTHON names a Python with huggingface_hub");
    let mut command = Command::new(python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hub/cache.py")).arg(what);
    command.env("HF_HOME", desk.folder.path().join("hf")).env("HF_ENDPOINT", &desk.hub.endpoint);
    command.env("HF_HUB_OFFLINE", if what == "here" { "1" } else { "0" }).env("HF_HUB_DISABLE_PROGRESS_BARS", "1");
    command
}

/// What huggingface_hub says of the cache when it holds all that is needed.
fn says(desk: &Desk) -> String {
    let snapshot = desk.repo().join("snapshots").join(COMMIT);
    format!("{}\norg/tiny {COMMIT} main\n{NAMES}\n", snapshot.display())
}

#[test]
#[ignore = "needs a Python with huggingface_hub, named by HEADROOM_PYTHON"]
fn the_cache_is_the_one_of_huggingface_hub() {
    // What was fetched here is whole there, and is not fetched again.
    let desk = Desk::new();
    assert_eq!(desk.launch().0, 0);
    for what in ["here", "fetch"] {
        desk.hub.seen();
        let (code, out, err) = read(python(&desk, what).output().unwrap());
        assert_eq!((code, out), (0, says(&desk)), "{err}");
        assert_eq!(desk.transfers(), []);
    }
    // And the other way round.
    let desk = Desk::new();
    let (code, out, err) = read(python(&desk, "fetch").output().unwrap());
    assert_eq!((code, out), (0, says(&desk)), "{err}");
    desk.holds(&ALL);
    desk.hub.seen();
    assert_eq!(desk.launch().0, 0);
    assert!(desk.hub.seen().is_empty());
    // What it leaves half done, under names of its own, is in nobody's way.
    let desk = Desk::new();
    let half = files()[WEIGHTS].len() / 2;
    desk.hub.fault(WEIGHTS, &[Fault::Stall(half)]);
    let mut child = python(&desk, "fetch").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while desk.transfers().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(60), "huggingface_hub asks for nothing");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let (code, out, err) = desk.launch();
    assert_eq!(code, 0, "{out}{err}");
    let (code, out, err) = read(python(&desk, "here").output().unwrap());
    assert_eq!((code, out), (0, says(&desk)), "{err}");
}
