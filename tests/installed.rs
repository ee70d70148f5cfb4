//! The binary alone, from an empty folder, as `cargo install` leaves it: nothing depends on the folder one stands in.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests too

use std::path::Path;
use std::process::{Command, Output};

fn headroom(folder: &Path, home: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_headroom"));
    command
        .current_dir(folder)
        .env("HOME", home)
        .env_remove("XDG_DATA_HOME")
        .env_remove("HEADROOM_RESULTS")
        .env("NO_COLOR", "1");
    command.args(args).output().unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn every_answer_is_there_in_an_empty_folder() {
    let (desk, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for args in [
        &["plan", "--ram", "8G"][..],
        &["report", "accuracy"],
        &["report", "guides"],
        &["sweep", "m1-8g"],
        &["doctor", "--models"],
    ] {
        let out = headroom(desk.path(), home.path(), args);
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        assert!(!out.stdout.is_empty(), "{args:?}");
    }
    assert_eq!(names(desk.path()), ["reports"]);
    assert_eq!(names(&desk.path().join("reports")), ["accuracy", "guides", "m1-8g"]);
    assert_eq!(names(&desk.path().join("reports/m1-8g")), ["index.html", "sweep.csv", "sweep.parquet"]);
    let out = headroom(desk.path(), home.path(), &["sweep", "m1-9g"]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(2) && said.contains("m1-8g"), "{said}");
}

#[test]
fn measurements_are_the_users_wherever_they_were_made() {
    let (desk, other, home) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let calibrate = ["calibrate", "--time-limit", "2s", "--json", "--quiet"];
    let first = headroom(desk.path(), home.path(), &calibrate);
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    assert!(names(desk.path()).is_empty(), "{:?}", names(desk.path()));
    let second = headroom(other.path(), home.path(), &calibrate);
    let of = |out: &Output| serde_json::from_slice::<serde_json::Value>(&out.stdout).unwrap();
    let measured = of(&first)["measured"].as_u64().unwrap();
    assert!(measured > 0 && of(&second)["reused"].as_u64() >= Some(measured), "{:?}", of(&second)["reused"]);
    // A folder of that name here comes first.
    std::fs::create_dir(desk.path().join("results")).unwrap();
    let third = headroom(desk.path(), home.path(), &calibrate);
    assert_eq!(of(&third)["reused"].as_u64(), Some(0));
    assert_eq!(names(&desk.path().join("results")).len(), 1);
}
