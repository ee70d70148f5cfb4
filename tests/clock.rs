//! The wall clock jumps while something is measured: after sleep, by the network's time, across a change of summer time.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // the helpers of tests are tests too

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use headroom::measure::table::read_measurements;

/// Built beside the run: a library that a process preloads.
fn jumping_clock(folder: &Path) -> String {
    let library = folder.join("jumping.so");
    let source = common::fixture("clock/jumping.c");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).status().unwrap();
    assert!(built.success());
    library.to_str().unwrap().to_owned()
}

#[test]
fn what_is_measured_does_not_depend_on_the_wall_clock() {
    let folder = tempfile::tempdir().unwrap();
    let clock = jumping_clock(folder.path());
    let run = "model = \"builtin\"\ndata = \"builtin\"\n[recipe]\nmax_seq_length = 64\neffective_batch_size = 1\n";
    fs::write(folder.path().join("grid.toml"), format!("{run}[recipe.lora]\nrank = [2, 4]\n")).unwrap();
    fs::write(folder.path().join("run.toml"), format!("{run}steps = 3\n")).unwrap();
    let headroom = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headroom"));
        command.current_dir(folder.path()).env("LD_PRELOAD", &clock).env("HEADROOM_RESULTS", "results");
        let out = command.args(args).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    };
    let started = Instant::now();
    headroom(&["sweep", "grid.toml", "--measure", "--trial-time", "1s"]);
    let measurements = || {
        let machine = fs::read_dir(folder.path().join("results")).unwrap().next().unwrap().unwrap().path();
        read_measurements(&machine.join("measurements.csv")).unwrap()
    };
    let (rows, longest) = (measurements(), started.elapsed().as_secs_f64());
    assert_eq!(rows.len(), 2);
    for m in &rows {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert!(m.unix_time.abs_diff(now) > 1000, "the clock did not jump");
        assert!(m.has_speed() && m.measured.wall_time_s > 0.0 && m.measured.wall_time_s < longest);
        let step = m.measured.step_time_s.unwrap();
        assert!(step > 0.0 && step * (m.measured.steps as f64) < longest, "{step} s a step");
    }
    // What was measured at such times is learned from, and a run goes through to its end.
    headroom(&["sweep", "grid.toml", "--measure"]);
    assert_eq!(measurements().len(), 2);
    headroom(&["launch", "run.toml"]);
    let launched = measurements().pop().unwrap();
    assert!(launched.measured.steps > 0 && launched.measured.wall_time_s < started.elapsed().as_secs_f64());
}
