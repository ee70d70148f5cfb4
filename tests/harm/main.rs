//! What is in the folder before and after each verb, however it ended: nothing that was there is gone or changed, and
//! nothing is new but what the verb is for. More moments by `HEADROOM_FAULTS=all cargo test --release --test harm --
//! --nocapture`.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of tests are tests too

mod failures;
mod kept;

#[allow(unused_imports)] // some hold tests alone
use self::failures::*;
#[allow(unused_imports)] // some hold tests alone
use self::kept::*;

#[path = "../disk/mod.rs"]
mod disk;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use disk::{
    Fault, Listing, Ran, Table, World, copy_tree, harm, is_in, moments as spread, run_file, temporary, with_model,
};

/// The folder of somebody who has used Headroom for a while, among other things.
struct Desk {
    world: World,
    saved: PathBuf,
}

impl Desk {
    fn new() -> Self {
        let world = with_model();
        world.put("exp.toml", run_file(4, "", ""));
        world.put(
            "grid.toml",
            "model = \"./model\"\ndata = \"data/train.jsonl\"\n[recipe]\nmax_seq_length = [32, 48]\n",
        );
        world.put("script.json", "{\"lengths\": [32, 32, 48], \"process_memory\": 41943040}");
        for out in ["done", "dora"] {
            let text = run_file(3, "", if out == "dora" { "use_dora = true" } else { "" });
            world.put(&format!("{out}.toml"), text);
            let ran = world.run(&["launch", &format!("{out}.toml")]);
            assert_eq!(ran.code, 0, "{}", ran.said);
        }
        world.remove("results");
        // What Headroom knows nothing of.
        world.put("thesis.txt", "seven years");
        world.put("mine/thesis.txt", "seven years");
        world.put("mine/notes/a.md", "# a");
        world.put("mine/checkpoints/step-000001/state.json", "{\"step\": 1}");
        world.put("mine/adapter/adapter_config.json", "{}");
        world.put("states/checkpoints/step-000001/state.json", "{\"step\": 1}");
        world.put("states/checkpoints/step-000002/state.json", "{\"step\": 2}");
        world.put("states/checkpoints/step-000003/state.json", "{\"step\": 3}");
        world.put("paper/config.json", "{\"title\": \"a thesis\"}");
        world.put("paper/adapter_config.json", "{}");
        world.put("paper/thesis.tex", "\\documentclass{book}");
        world.put("reports/done/thesis.txt", "seven years");
        world.put("reports/grid/thesis.txt", "seven years");
        world.put("reports/auto/thesis.txt", "seven years");
        world.put("runs/notes.txt", "which run was best");
        world.put("home/.netrc", "machine example.org login me password secret");
        fs::create_dir(world.at("empty")).unwrap();
        let saved = world.path.with_file_name("saved");
        copy_tree(&world.path, &saved);
        Self { world, saved }
    }

    fn restore(&self) {
        for entry in fs::read_dir(&self.world.path).unwrap() {
            disk::remove(&entry.unwrap().path());
        }
        copy_tree(&self.saved, &self.world.path);
    }
}

/// A command, and what it may write: files and folders that were not there before, but for tables and pages.
#[derive(Debug)]
struct Verb {
    args: &'static [&'static str],
    own: &'static [&'static str],
}

const fn verb(args: &'static [&'static str], own: &'static [&'static str]) -> Verb {
    Verb { args, own }
}

const VERBS: [Verb; 18] = [
    verb(&["doctor"], &[]),
    verb(&["plan", "--ram", "8G", "--out", "plan.toml"], &["plan.toml"]),
    verb(&["predict", "exp.toml", "--timeline"], &[]),
    verb(&["sweep", "grid.toml"], &["reports/grid/sweep.csv", "reports/grid/sweep.parquet", "reports/grid/index.html"]),
    verb(
        &["sweep", "grid.toml", "--measure", "--script", "script.json"],
        &["reports/grid/sweep.csv", "reports/grid/sweep.parquet", "reports/grid/index.html", "results"],
    ),
    verb(&["calibrate", "exp.toml", "--script", "script.json", "--time-limit", "20s"], &["results"]),
    verb(&["launch", "exp.toml", "--save-every", "2"], &["runs/exp", "results"]),
    verb(&["launch", "exp.toml", "--out", "fresh", "--save-every", "2"], &["fresh", "results"]),
    verb(&["launch", "exp.toml", "--out", "empty"], &["empty", "results"]),
    verb(&["launch", "exp.toml", "--out", "deep/er", "--results", "there"], &["deep/er", "there"]),
    verb(&["report", "runs/done"], &["reports/done/index.html", "reports/done/data.csv", "reports/done/data.parquet"]),
    verb(&["generate", "Hello", "--adapter", "runs/done", "--max-tokens", "3"], &[]),
    verb(&["export", "runs/done", "--format", "peft", "--out", "out"], &["out"]),
    verb(&["export", "runs/done", "--format", "mlx-lm", "--out", "out"], &["out"]),
    verb(&["export", "runs/done", "--format", "fused", "--out", "empty"], &["empty"]),
    verb(&["export", "runs/done", "--format", "gguf", "--out", "out.gguf"], &["out.gguf"]),
    verb(&["export", "runs/done", "--format", "gguf-adapter", "--out", "out.gguf"], &["out.gguf"]),
    AUTO,
];

/// The slowest of them, by far.
const AUTO: Verb = verb(
    &["auto", "--model", "./model", "--data", "data/train.jsonl", "--script", "script.json", "--out", "runs/auto"],
    &[
        "runs/auto",
        "runs/auto.toml",
        "results",
        "reports/auto/index.html",
        "reports/auto/data.csv",
        "reports/auto/data.parquet",
    ],
);

fn unharmed(before: &Listing, world: &World, own: &[&str]) -> Result<(), String> {
    // A temporary file beside what is being written is the verb's own, as long as it is cleared at the next start.
    let mut after = world.listing();
    for left in temporary(&after) {
        after.retain(|path, _| !is_in(path, &[&left]));
    }
    let found = harm(before, &after, own);
    if found.is_empty() { Ok(()) } else { Err(found.join(", ")) }
}

/// Nothing half written is left in the folder.
fn tidy(world: &World) -> Result<(), String> {
    let left = temporary(&world.listing());
    if left.is_empty() { Ok(()) } else { Err(format!("left behind: {}", left.join(", "))) }
}

fn ended(ran: &Ran, wish: &[i32]) -> Result<(), String> {
    if wish.contains(&ran.code) { Ok(()) } else { Err(format!("exit {wish:?} was wished: {}", ran.brief())) }
}

#[test]
fn a_verb_that_succeeds_leaves_all_else_as_it_was() {
    let mut table = Table::default();
    table.try_all("success", &VERBS, Desk::new, |desk, verb| {
        desk.restore();
        let before = desk.world.listing();
        let ran = desk.world.run(verb.args);
        ended(&ran, &[0])?;
        unharmed(&before, &desk.world, verb.own)?;
        tidy(&desk.world)
    });
    table.hold();
}

#[test]
fn a_verb_that_is_killed_or_has_no_room_leaves_all_else_as_it_was() {
    let mut table = Table::default();
    let desk = Desk::new();
    let counts = VERBS.each_ref().map(|verb| {
        if verb.args[0] == "auto" && !disk::all() {
            return 0; // seconds each
        }
        desk.restore();
        let (ran, operations) = desk.world.count(verb.args);
        assert_eq!(ran.code, 0, "{:?}: {}", verb.args, ran.said);
        operations.len()
    });
    for (what, few) in [("kill", 4), ("half", 3), ("ENOSPC-on", 4), ("EIO-once", 3)] {
        let spread = |(verb, count)| spread(count, few).into_iter().map(move |at| (verb, Fault::new(at, what)));
        let cases: Vec<(&Verb, Fault)> = VERBS.iter().zip(counts).flat_map(spread).collect();
        table.try_all(what, &cases, Desk::new, |desk, (verb, fault)| {
            desk.restore();
            let before = desk.world.listing();
            let ran = desk.world.run_with(verb.args, fault);
            if desk.world.operations().len() < fault.at {
                return Ok(()); // a calibration takes as many trials as it needs, and was done before that
            }
            let killed = matches!(fault.what.as_str(), "kill" | "half");
            ended(&ran, if killed { &[137] } else { &[0, 2] })?;
            unharmed(&before, &desk.world, verb.own)?;
            // What was being written is cleared when it is done again; one that is refused then clears nothing.
            let again = desk.world.run(verb.args);
            ended(&again, &[0, 2])?;
            unharmed(&before, &desk.world, verb.own)?;
            if again.code == 0 { tidy(&desk.world) } else { Ok(()) }
        });
    }
    table.hold();
}
