//! Models from the hub, as a user gets them: against a server that speaks the hub's protocol and can be made to fail.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests too

mod server;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use server::{COMMIT, Fault, Hub, etag};

const WEIGHTS: &str = "model.safetensors";

/// The model that ships, with a licence and what nobody needs.
fn files() -> BTreeMap<String, Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/model");
    let names = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", WEIGHTS];
    let mut files: BTreeMap<String, Vec<u8>> =
        names.iter().map(|name| (name.to_string(), std::fs::read(folder.join(name)).unwrap())).collect();
    files.insert("LICENSE".into(), b"free".to_vec());
    files.insert("pytorch_model.bin".into(), b"\x80\x02evil".to_vec());
    files.insert("README.md".into(), b"# tiny".to_vec());
    files
}

struct Desk {
    hub: Hub,
    folder: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let desk = Self { hub: Hub::with(files()), folder: tempfile::tempdir().unwrap() };
        desk.write_run("org/tiny");
        desk
    }

    fn write_run(&self, model: &str) {
        let text = format!(
            "model = \"{model}\"\ndata = \"builtin\"\n[recipe]\nmax_seq_length = 64\nsteps = 2\neffective_batch_size = 2\n\
             [recipe.lora]\nrank = 4\n[execution]\nbatch_size = 1\n"
        );
        std::fs::write(self.folder.path().join("run.toml"), text).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headroom"));
        command.current_dir(self.folder.path()).args(args).env("NO_COLOR", "1").env("HF_HUB_OFFLINE", "0");
        command.env("HF_ENDPOINT", &self.hub.endpoint).env("HF_HOME", self.folder.path().join("hf"));
        for name in ["HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN"] {
            command.env_remove(name);
        }
        command
    }

    fn run(&self, args: &[&str]) -> (i32, String, String) {
        read(self.command(args).output().unwrap())
    }

    fn launch(&self) -> (i32, String, String) {
        let _ = std::fs::remove_dir_all(self.folder.path().join("out"));
        self.run(&["launch", "run.toml", "--out", "out", "--results", "results"])
    }

    fn repo(&self) -> PathBuf {
        self.folder.path().join("hf/hub/models--org--tiny")
    }

    /// Every file of the snapshot is what the hub has, and lies as huggingface_hub lays it.
    fn holds(&self, names: &[&str]) {
        let all = files();
        for name in names {
            let link = self.repo().join("snapshots").join(COMMIT).join(name);
            assert_eq!(std::fs::read(&link).unwrap(), all[*name], "{name}");
            let target = format!("../../blobs/{}", etag(name, &all[*name]));
            assert_eq!(std::fs::read_link(&link).unwrap(), Path::new(&target), "{name}");
        }
        assert_eq!(std::fs::read_to_string(self.repo().join("refs/main")).unwrap(), COMMIT);
        let left = std::fs::read_dir(self.repo().join("blobs")).unwrap();
        let left: Vec<_> = left.map(|f| f.unwrap().file_name().to_string_lossy().into_owned()).collect();
        assert!(left.iter().all(|name| !name.ends_with(".incomplete")), "{left:?}");
    }
}

fn read(output: Output) -> (i32, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

const ALL: [&str; 6] =
    ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE", WEIGHTS];

#[test]
fn a_model_is_downloaded_trained_and_exported() {
    let desk = Desk::new();
    let (code, out, err) = desk.launch();
    assert_eq!(code, 0, "{out}{err}");
    assert!(err.contains("`org/tiny`: ") && err.contains("main is commit 01234567"), "{err}");
    desk.holds(&ALL);
    let names: Vec<String> = desk.hub.seen().into_iter().map(|s| s.path).collect();
    assert!(!names.iter().any(|n| n.contains(".bin") || n.contains("README")), "{names:?}");
    let (code, out, err) = desk.run(&["export", "out", "--format", "fused", "--out", "fused"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(desk.folder.path().join("fused/model.safetensors").is_file());
    let (code, out, err) = desk.run(&["generate", "What sound does a cow make?", "--model", "org/tiny"]);
    assert_eq!((code, out.trim().is_empty()), (0, false), "{err}");
    // Once here, nobody is asked again; and where the network is forbidden, it goes on.
    assert!(desk.hub.seen().is_empty());
    let offline = desk
        .command(&["launch", "run.toml", "--out", "again", "--results", "results"])
        .env("HF_HUB_OFFLINE", "1")
        .output();
    assert_eq!(read(offline.unwrap()).0, 0);
}

#[test]
fn a_killed_download_goes_on_where_it_was() {
    let desk = Desk::new();
    let size = files()[WEIGHTS].len();
    desk.hub.fault(WEIGHTS, &[Fault::Stall(size / 2)]);
    let mut child = desk
        .command(&["launch", "run.toml", "--out", "out", "--results", "results"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let incomplete = desk.repo().join("blobs").join(format!("{}.incomplete", etag(WEIGHTS, &files()[WEIGHTS])));
    let begun = Instant::now();
    while incomplete.metadata().map_or(0, |m| m.len()) < size as u64 / 2 {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing arrives");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    desk.hub.seen();
    let (code, out, err) = desk.launch();
    assert_eq!(code, 0, "{out}{err}");
    desk.holds(&ALL);
    let weights: Vec<_> = desk.hub.seen().into_iter().filter(|s| s.host == "store").collect();
    assert_eq!(weights.len(), 1);
    assert_eq!(weights[0].range.as_deref(), Some(format!("bytes={}-", size / 2).as_str()));
}

#[test]
fn what_breaks_is_tried_again() {
    let size = files()[WEIGHTS].len();
    for faults in [
        &[Fault::Cut(1000), Fault::Cut(70_000)][..],
        &[Fault::Cut(1000), Fault::IgnoreRange],
        &[Fault::Status(500, "X-A", "b"), Fault::Status(503, "Retry-After", "0")],
        &[Fault::Status(429, "Retry-After", "1")],
        &[Fault::Cut(size - 1), Fault::Status(416, "X-A", "b")],
    ] {
        let desk = Desk::new();
        desk.hub.fault(WEIGHTS, faults);
        let (code, out, err) = desk.launch();
        assert_eq!(code, 0, "{faults:?}: {out}{err}");
        desk.holds(&ALL);
    }
}

#[test]
fn what_is_wrong_is_refused_and_not_kept() {
    for (faults, expected) in [
        (&[Fault::Corrupt][..], "arrived with other bytes than the hub names by its hash"),
        (&[Fault::TooLong], "has more bytes than the hub said"),
        (
            &[Fault::Circle, Fault::Circle, Fault::Circle, Fault::Circle, Fault::Circle, Fault::Circle],
            "redirects in a circle",
        ),
        (&[Fault::Status(403, "X-Error-Code", "GatedRepo")], "it is gated"),
        (&[Fault::Status(404, "X-Error-Code", "EntryNotFound")], "it has no such file"),
    ] {
        let desk = Desk::new();
        desk.hub.fault(WEIGHTS, faults);
        let (code, out, err) = desk.launch();
        assert_eq!(code, 2, "{faults:?}: {out}{err}");
        assert!(err.contains("cannot fetch `org/tiny`") && err.contains(expected), "{faults:?}: {err}");
        assert!(!desk.folder.path().join("out").exists());
        // Nothing wrong stays: the next time it works.
        let (code, _, err) = desk.launch();
        assert_eq!(code, 0, "{faults:?}: {err}");
        desk.holds(&ALL);
    }
}

#[test]
fn a_token_stays_at_home_and_its_absence_is_explained() {
    let desk = Desk::new();
    desk.hub.state.lock().unwrap().private = Some("hf_secret".into());
    let (code, _, err) = desk.launch();
    assert_eq!(code, 2);
    assert!(err.contains("does not exist, or it is private") && err.contains("HF_TOKEN"), "{err}");
    desk.hub.seen();
    let launch = ["launch", "run.toml", "--out", "out", "--results", "results"];
    let (code, out, err) = read(desk.command(&launch).env("HF_TOKEN", "hf_secret").output().unwrap());
    assert_eq!(code, 0, "{out}{err}");
    let seen = desk.hub.seen();
    assert!(seen.iter().any(|s| s.host == "store"));
    for one in seen {
        assert_eq!(one.token.is_some(), one.host == "hub", "{one:?}");
    }
    // The file that `hf auth login` writes.
    let other = Desk::new();
    other.hub.state.lock().unwrap().private = Some("hf_secret".into());
    std::fs::create_dir_all(other.folder.path().join("hf")).unwrap();
    std::fs::write(other.folder.path().join("hf/token"), "hf_secret\n").unwrap();
    assert_eq!(other.launch().0, 0);
}

#[test]
fn a_plan_takes_the_description_alone() {
    let desk = Desk::new();
    let plan = ["plan", "--ram", "8G", "--model", "org/tiny", "--json"];
    let (code, out, err) = desk.run(&plan);
    assert_eq!(code, 0, "{err}");
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["run"]["model"], "org/tiny");
    let paths: Vec<String> = desk.hub.seen().into_iter().map(|s| s.path).collect();
    assert_eq!(paths.len(), 2, "{paths:?}");
    assert!(paths[1].ends_with("/config.json"), "{paths:?}");
    assert_eq!(desk.run(&plan).0, 0);
    assert!(desk.hub.seen().is_empty());
    // What was fetched for a plan is no whole model: a launch fetches the rest.
    let (code, out, err) = desk.launch();
    assert_eq!(code, 0, "{out}{err}");
    desk.holds(&ALL);
    // A name of the catalogue, and a copy of one, need nobody.
    desk.hub.seen();
    for model in ["Qwen/Qwen3-8B", "mlx-community/Qwen3-8B-4bit"] {
        assert_eq!(desk.run(&["plan", "--ram", "64G", "--seq", "512", "--model", model]).0, 0);
    }
    assert!(desk.hub.seen().is_empty());
}

#[test]
fn who_is_not_there_is_told_of() {
    let desk = Desk::new();
    let (code, _, err) = desk.run(&["plan", "--ram", "8G", "--model", "org/tyni"]);
    assert_eq!(code, 2);
    assert!(err.contains("unknown model `org/tyni`") && err.contains("hint: on the hub: it does not exist"), "{err}");
    let mut offline = desk.command(&["launch", "run.toml", "--out", "out"]);
    let (code, _, err) = read(offline.env("HF_HUB_OFFLINE", "1").output().unwrap());
    assert_eq!(code, 2);
    assert!(err.contains("HF_HUB_OFFLINE forbids"), "{err}");
    assert!(!desk.hub.seen().iter().any(|s| s.path.contains("tiny")));
    let mut nowhere = desk.command(&["plan", "--ram", "8G", "--model", "org/tiny"]);
    let (code, _, err) = read(nowhere.env("HF_ENDPOINT", "http://127.0.0.1:1").output().unwrap());
    assert_eq!(code, 2);
    assert!(err.contains("unknown model `org/tiny`") && err.contains("hint: on the hub: "), "{err}");
}

#[test]
fn a_revision_is_its_own_snapshot() {
    let desk = Desk::new();
    desk.write_run("org/tiny@v2");
    let (code, _, err) = desk.launch();
    assert_eq!(code, 2);
    assert!(err.contains("it has no such revision"), "{err}");
    desk.hub.state.lock().unwrap().revision = "v2".into();
    let (code, out, err) = desk.launch();
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(std::fs::read_to_string(desk.repo().join("refs/v2")).unwrap(), COMMIT);
    desk.hub.seen();
    // The commit is here already, by whatever name it came.
    desk.write_run(&format!("org/tiny@{COMMIT}"));
    assert_eq!(desk.launch().0, 0);
    assert!(desk.hub.seen().is_empty());
}

#[test]
fn names_of_files_that_lead_out_are_no_files() {
    let desk = Desk::new();
    desk.hub.state.lock().unwrap().listed =
        ["../../../evil", "/tmp/evil.safetensors", "a/../../evil.json"].map(Into::into).into();
    assert_eq!(desk.launch().0, 0);
    assert!(!desk.hub.seen().iter().any(|s| s.path.contains("evil")));
    assert!(!desk.folder.path().join("evil").exists() && !desk.folder.path().join("hf/evil").exists());
}
