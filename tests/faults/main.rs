//! What a run survives: every operation on the disk is a moment at which it is killed, stopped, signalled or refused by
//! the disk, and whatever it reads back is damaged. A spread of the moments is tried; all of them by
//! `HEADROOM_FAULTS=all cargo test --release --test faults -- --nocapture`, in some minutes, which prints the tables.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of tests are tests too

mod damage;
mod together;

#[allow(unused_imports)] // some hold tests alone
use self::damage::*;
#[allow(unused_imports)] // some hold tests alone
use self::together::*;

#[path = "../disk/mod.rs"]
mod disk;

use std::path::{Path, PathBuf};
use std::{fmt, fs};

use disk::{Fault, Ran, Table, World, all, copy_tree, harm, moments, run_file, temporary, with_model};

const LAUNCH: [&str; 4] = ["launch", "run.toml", "--save-every", "3"];
const RESUME: [&str; 5] = ["launch", "run.toml", "--save-every", "3", "--resume"];
/// What a launch may write.
const OWN: [&str; 2] = ["runs", "results"];

/// A run that nothing happened to.
struct Whole {
    run: String,
    adapter: Vec<u8>,
    losses: Vec<(u64, String)>,
    operations: Vec<String>,
}

fn world(run: &str) -> World {
    let world = with_model();
    world.put("run.toml", run);
    world.put("thesis.txt", "seven years");
    world
}

fn adapter(world: &World, out: &str) -> Result<Vec<u8>, String> {
    fs::read(world.at(out).join("adapter/adapter_model.safetensors")).map_err(|e| format!("no adapter: {e}"))
}

/// Step and loss of every line.
fn losses(world: &World, out: &str) -> Result<Vec<(u64, String)>, String> {
    let text = fs::read_to_string(world.at(out).join("metrics.jsonl")).map_err(|e| format!("no metrics: {e}"))?;
    let read = |line: &str| -> Option<(u64, String)> {
        let value: serde_json::Value = serde_json::from_str(line).ok()?;
        Some((value["step"].as_u64()?, value["loss"].to_string()))
    };
    text.lines().map(|line| read(line).ok_or_else(|| format!("a line of metrics.jsonl is `{line}`"))).collect()
}

impl Whole {
    fn of(run: String) -> Self {
        let world = world(&run);
        let (ran, operations) = world.count(&LAUNCH);
        assert_eq!(ran.code, 0, "{}", ran.said);
        assert!(operations.len() > 50, "the library saw {} operations only", operations.len());
        let (adapter, losses) = (adapter(&world, "runs/run").unwrap(), losses(&world, "runs/run").unwrap());
        let steps: Vec<u64> = losses.iter().map(|l| l.0).collect();
        assert_eq!(steps, (1..=losses.len() as u64).collect::<Vec<_>>());
        Self { run, adapter, losses, operations }
    }

    fn world(&self) -> World {
        world(&self.run)
    }

    /// The operation, counted from 1, that comes after the line of `step` was written.
    fn after_line(&self, step: usize) -> usize {
        let lines = self.operations.iter().enumerate().filter(|(_, o)| is_line(o));
        lines.map(|(i, _)| i).nth(step - 1).unwrap() + 2
    }

    /// Whether a folder holds what it would if nothing had happened.
    fn held(&self, world: &World, out: &str) -> Result<(), String> {
        if adapter(world, out)? != self.adapter {
            return Err("ANOTHER ADAPTER".into());
        }
        let found = losses(world, out)?;
        if found != self.losses {
            let steps: Vec<u64> = found.iter().map(|l| l.0).collect();
            return Err(format!("metrics.jsonl holds other lines than the whole run's: steps {steps:?}"));
        }
        let left = temporary(&world.listing());
        if !left.is_empty() {
            return Err(format!("left behind: {}", left.join(", ")));
        }
        let outcome = fs::read_to_string(world.at(out).join("outcome.json")).map_err(|e| format!("no outcome: {e}"))?;
        if !["finished", "early_stopped"].iter().any(|end| outcome.contains(end)) {
            return Err(format!("outcome.json does not say that it finished: {outcome}"));
        }
        tables(world).map(drop)
    }
}

fn is_line(operation: &str) -> bool {
    operation.starts_with("write ") && operation.ends_with("/metrics.jsonl")
}

/// Rows of all tables of measurements, each of which has one header.
fn tables(world: &World) -> Result<usize, String> {
    let mut rows = 0;
    for machine in fs::read_dir(world.at("results")).into_iter().flatten() {
        let Ok(text) = fs::read_to_string(machine.unwrap().path().join("measurements.csv")) else { continue };
        let headers = text.lines().filter(|l| l.starts_with("schema,")).count();
        if headers != 1 || !text.starts_with("schema,") {
            return Err(format!("measurements.csv has {headers} headers"));
        }
        rows += text.lines().count() - 1;
    }
    Ok(rows)
}

/// Goes on with a run, or begins it where it had not begun.
fn go_on(world: &World) -> Result<Ran, String> {
    let mut ran = world.run(&RESUME);
    if ran.code == 2 && !world.at("runs/run/run.toml").exists() {
        ran = world.run(&LAUNCH);
    }
    if ran.code == 0 { Ok(ran) } else { Err(format!("it cannot be gone on with: {}", ran.brief())) }
}

fn fresh(world: &World) {
    OWN.iter().for_each(|name| world.remove(name));
}

fn nothing_else(before: &disk::Listing, world: &World) -> Result<(), String> {
    let harm = harm(before, &world.listing(), &OWN);
    if harm.is_empty() { Ok(()) } else { Err(harm.join(", ")) }
}

/// A short run, one that stops early, and ones whose optimizers remember other things; only the first in CI.
fn recipes() -> Vec<(&'static str, String)> {
    let mut recipes = vec![("adamw", run_file(8, "", ""))];
    if all() {
        let early = run_file(40, "eval_steps = 1\nearly_stopping_patience = 2", "").replace("5e-3", "6e-2");
        recipes.push(("early stopping", early));
        let wide = |text: String| text.replace("rank = 3", "rank = 64");
        recipes.push(("adamw_8bit", wide(run_file(8, "optimizer = \"adamw_8bit\"", ""))));
        let factored = run_file(8, "optimizer = \"adafactor\"\npacking = true", "use_dora = true\nuse_rslora = true");
        recipes.push(("adafactor, DoRA, rsLoRA, packing", wide(factored)));
    }
    recipes
}

// ---- killed ----

#[test]
fn a_run_that_is_killed_goes_on_to_the_same_bytes() {
    let mut table = Table::default();
    for (name, run) in recipes() {
        let whole = Whole::of(run);
        for (what, moment) in [("kill", "before"), ("half", "in the middle of")] {
            let faults: Vec<Fault> =
                moments(whole.operations.len(), 12).into_iter().map(|n| Fault::new(n, what)).collect();
            let row = format!("kill -9 {moment} an operation, {name}");
            table.try_all(&row, &faults, || whole.world(), |world, fault| killed(&whole, world, fault));
        }
    }
    table.hold();
}

fn killed(whole: &Whole, world: &World, fault: &Fault) -> Result<(), String> {
    fresh(world);
    let before = world.listing();
    let ran = world.run_with(&LAUNCH, fault);
    if ran.code != 128 + libc::SIGKILL {
        return Err(format!("it was not killed: {}", ran.brief()));
    }
    nothing_else(&before, world)?;
    go_on(world)?;
    whole.held(world, "runs/run")?;
    nothing_else(&before, world)
}

/// A run of 12 steps with checkpoints after 6 and 9, killed after step 11.
struct Cut {
    whole: Whole,
    world: World,
    /// What the killed run left, and what it was made of.
    saved: PathBuf,
}

impl Cut {
    fn of(whole: Whole) -> Self {
        let world = whole.world();
        let ran = world.run_with(&LAUNCH, &Fault::new(whole.after_line(11), "kill"));
        assert_eq!(ran.code, 128 + libc::SIGKILL, "{}", ran.said);
        let saved = world.path.with_file_name("saved");
        copy_tree(&world.path, &saved);
        let cut = Self { whole, world, saved };
        assert_eq!(cut.checkpoints(), ["step-000006", "step-000009"]);
        cut
    }

    fn new() -> Self {
        Self::of(Whole::of(run_file(12, "", "")))
    }

    fn checkpoints(&self) -> Vec<String> {
        let entries = fs::read_dir(self.world.at("runs/run/checkpoints")).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn restore(&self) {
        for entry in fs::read_dir(&self.world.path).unwrap() {
            disk::remove(&entry.unwrap().path());
        }
        copy_tree(&self.saved, &self.world.path);
    }
}

#[test]
fn a_resumed_run_that_is_killed_goes_on_too() {
    let first = Cut::new();
    let (ran, operations) = first.world.count(&RESUME);
    assert_eq!(ran.code, 0, "{}", ran.said);
    let faults: Vec<Fault> = moments(operations.len(), 10).into_iter().map(|n| Fault::new(n, "kill")).collect();
    let mut table = Table::default();
    table.try_all("kill -9 before an operation of the resumed run", &faults, Cut::new, |cut, fault| {
        cut.restore();
        let ran = cut.world.run_with(&RESUME, fault);
        if ran.code != 128 + libc::SIGKILL {
            return Err(format!("it was not killed: {}", ran.brief()));
        }
        go_on(&cut.world)?;
        cut.whole.held(&cut.world, "runs/run")
    });
    table.hold();
}

// ---- refused by the disk ----

#[test]
fn a_disk_that_is_full_or_broken_loses_nothing() {
    let mut table = Table::default();
    let whole = Whole::of(run_file(8, "", ""));
    for what in ["ENOSPC-on", "ENOSPC-once", "EIO-on", "EIO-once"] {
        let faults: Vec<Fault> = moments(whole.operations.len(), 12).into_iter().map(|n| Fault::new(n, what)).collect();
        table.try_all(what, &faults, || whole.world(), |world, fault| refused(&whole, world, fault));
    }
    // A line that cannot be written once is the one that is easiest to lose.
    let lines: Vec<Fault> = (0..8)
        .flat_map(|step| {
            let write = whole.after_line(step + 1) - 1;
            [write - 1, write, write + 1].map(|n| Fault::new(n, "ENOSPC-once"))
        })
        .collect();
    let lines = if all() { &lines[..] } else { &lines[6..12] };
    table.try_all(
        "ENOSPC once at a line of metrics.jsonl",
        lines,
        || whole.world(),
        |world, fault| refused(&whole, world, fault),
    );
    table.hold();
}

fn refused(whole: &Whole, world: &World, fault: &Fault) -> Result<(), String> {
    fresh(world);
    let before = world.listing();
    let ran = world.run_with(&LAUNCH, fault);
    let operation = world.operations().get(fault.at - 1).cloned().unwrap_or_default();
    let fail = |why: String| Err(format!("at `{operation}`: {why}"));
    match ran.code {
        // What was refused did not matter: an old checkpoint could not be removed.
        0 => {}
        2 => {
            let reason = if fault.what.starts_with("ENOSPC") { "No space left" } else { "Input/output" };
            let named = ["runs/run", "results"].iter().any(|path| ran.said.contains(path));
            if !named || !ran.said.contains(reason) {
                return fail(format!("neither path nor reason is said: {}", ran.brief()));
            }
            if let Err(why) = go_on(world) {
                return fail(why);
            }
        }
        _ => return fail(ran.brief()),
    }
    whole.held(world, "runs/run").or_else(fail)?;
    nothing_else(&before, world)
}
