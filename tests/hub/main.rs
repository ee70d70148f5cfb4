//! Models from the hub, as a user gets them: against a server that speaks the hub's protocol and can be made to fail.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests too

mod desk;
mod ends;
mod python;
mod refusals;
mod server;

use desk::{ALL, Desk, WEIGHTS, files, read};
use server::{COMMIT, Fault, listed};

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
    // Which bytes the name stood for is kept with the run.
    let run = std::fs::read_to_string(desk.folder.path().join("out/run.toml")).unwrap();
    assert!(
        run.starts_with(&format!("# The model's commit: {COMMIT}\n")) && run.contains("model = \"org/tiny\""),
        "{run}"
    );
    let (code, out, err) = desk.run(&["launch", "out", "--resume", "--results", "results"]);
    assert_eq!(code, 0, "{out}{err}");
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
    let mut child = desk.launching();
    desk.arrived(WEIGHTS, size as u64 / 2);
    child.kill().unwrap();
    child.wait().unwrap();
    desk.hub.seen();
    let (code, out, err) = desk.launch();
    assert_eq!(code, 0, "{out}{err}");
    desk.holds(&ALL);
    assert_eq!(desk.transfers(), [(WEIGHTS.to_owned(), size as u64 / 2)]);
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
fn a_hub_that_gets_nowhere_is_given_up() {
    let desk = Desk::new();
    // Again and again as far as that, and then from the beginning.
    let faults = [Fault::Cut(1000), Fault::Status(416, "X-A", "b")];
    desk.hub.fault(WEIGHTS, &faults.repeat(10));
    let (code, out, err) = desk.launch();
    assert_eq!(code, 2, "{out}{err}");
    assert!(err.contains("what has arrived is kept"), "{err}");
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
        ["../../../evil", "/tmp/evil.safetensors", "a/../../evil.json"].map(|name| listed(name, 3)).into();
    assert_eq!(desk.launch().0, 0);
    assert!(!desk.hub.seen().iter().any(|s| s.path.contains("evil")));
    assert!(!desk.folder.path().join("evil").exists() && !desk.folder.path().join("hf/evil").exists());
}
