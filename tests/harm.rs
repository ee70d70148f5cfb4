//! What is in the folder before and after each verb, however it ended: nothing that was there is gone or changed, and
//! nothing is new but what the verb is for. More moments by `HEADROOM_FAULTS=all cargo test --release --test harm --
//! --nocapture`.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of tests are tests too

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
    verb(&["sweep", "grid.toml"], &["reports/grid/sweep.csv", "reports/grid/index.html"]),
    verb(
        &["sweep", "grid.toml", "--measure", "--script", "script.json"],
        &["reports/grid/sweep.csv", "reports/grid/index.html", "results"],
    ),
    verb(&["calibrate", "exp.toml", "--script", "script.json", "--time-limit", "20s"], &["results"]),
    verb(&["launch", "exp.toml", "--save-every", "2"], &["runs/exp", "results"]),
    verb(&["launch", "exp.toml", "--out", "fresh", "--save-every", "2"], &["fresh", "results"]),
    verb(&["launch", "exp.toml", "--out", "empty"], &["empty", "results"]),
    verb(&["launch", "exp.toml", "--out", "deep/er", "--results", "there"], &["deep/er", "there"]),
    verb(&["report", "runs/done"], &["reports/done/index.html", "reports/done/data.csv"]),
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
    &["runs/auto", "runs/auto.toml", "results", "reports/auto/index.html", "reports/auto/data.csv"],
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

/// Ways in which a training fails: before its first step, and after it.
const FAILURES: [&str; 10] = [
    "weights cut short",
    "a shard gone",
    "no number in the weights",
    "too long for the model",
    "no adapter to begin with",
    "no data",
    "no tokenizer",
    "a learning rate of 1e30",
    "no room",
    "too little memory",
];

/// Makes the next launch fail, and says how to call it.
fn spoil(world: &World, failure: &str) -> (Vec<&'static str>, Option<Fault>) {
    let (first, second) = ("model/model-00001-of-00002.safetensors", "model/model-00002-of-00002.safetensors");
    let run = |from: &str, to: &str| world.put("exp.toml", run_file(4, "", "").replace(from, to));
    let mut more = vec![];
    let mut fault = None;
    match failure {
        "weights cut short" => {
            let bytes = world.bytes(first);
            world.put(first, &bytes[..bytes.len() / 2]);
        }
        "a shard gone" => world.remove(second),
        "no number in the weights" => {
            let mut bytes = world.bytes(first);
            let from = bytes.len() - 20_000;
            bytes[from..].chunks_exact_mut(2).for_each(|b| b.copy_from_slice(&[0xc0, 0x7f]));
            world.put(first, bytes);
        }
        "too long for the model" => run("max_seq_length = 48", "max_seq_length = 300"),
        "no adapter to begin with" => run("rank = 3", "rank = 3\ninit_adapter = \"adaptor\""),
        "no data" => world.remove("data/train.jsonl"),
        "no tokenizer" => world.put("model/tokenizer.json", "{}"),
        "a learning rate of 1e30" => run("5e-3\nwarmup_steps = 2", "1e30\nwarmup_steps = 0\nmax_grad_norm = 0.0"),
        "no room" => fault = Some(Fault::new(12, "ENOSPC-on")),
        "too little memory" => more.extend(["--memory-limit", "5M"]),
        other => panic!("{other}"),
    }
    (more, fault)
}

#[test]
fn a_training_that_fails_takes_nothing_with_it() {
    let mut table = Table::default();
    for out in ["fresh", "empty", "mine", "states", "."] {
        table.try_all(&format!("launch --out {out}"), &FAILURES, Desk::new, |desk, failure| {
            desk.restore();
            let (more, fault) = spoil(&desk.world, failure);
            let before = desk.world.listing();
            let args = [&["launch", "exp.toml", "--out", out][..], &more].concat();
            let fault = fault.unwrap_or(Fault::new(0, "nothing"));
            let ran = desk.world.run_with(&args, &fault);
            ended(&ran, &[1, 2])?;
            let own: &[&str] =
                if matches!(out, "fresh" | "empty") { &["fresh", "empty/", "results"] } else { &["results"] };
            let inside = |path: &String| out == "empty" && path.starts_with("empty/");
            let mut after = desk.world.listing();
            after.retain(|path, _| !inside(path));
            let found = harm(&before, &after, own);
            if !found.is_empty() {
                return Err(format!("{}; {}", found.join(", "), ran.brief()));
            }
            tidy(&desk.world)
        });
    }
    table.hold();
}

/// A launch that failed before its first step does not stand in the way of the next one.
#[test]
fn what_failed_before_it_began_can_be_tried_again() {
    let mut table = Table::default();
    let early: Vec<&str> = FAILURES.iter().copied().filter(|f| *f != "a learning rate of 1e30").collect();
    for out in ["fresh", "empty"] {
        table.try_all(&format!("again into {out}"), &early, Desk::new, |desk, failure| {
            desk.restore();
            let (more, fault) = spoil(&desk.world, failure);
            let args = ["launch", "exp.toml", "--out", out];
            let ran = desk.world.run_with(&[&args[..], &more].concat(), &fault.unwrap_or(Fault::new(0, "nothing")));
            ended(&ran, &[1, 2])?;
            for name in ["model", "data", "exp.toml"] {
                desk.world.remove(name);
            }
            copy_tree(&desk.saved.join("model"), &desk.world.at("model"));
            copy_tree(&desk.saved.join("data"), &desk.world.at("data"));
            fs::copy(desk.saved.join("exp.toml"), desk.world.at("exp.toml")).unwrap();
            let again = desk.world.run(&args);
            // With no room it has begun, and says so: then it is gone on with.
            match (again.code, *failure) {
                (2, "no room") if again.said.contains("--resume") => {
                    ended(&desk.world.run(&[&args[..], &["--resume"]].concat()), &[0])
                }
                _ => ended(&again, &[0]),
            }
        });
    }
    table.hold();
}

/// Places where a verb has no business: it says so, and nothing changes there.
const REFUSED: [&[&str]; 34] = [
    &["launch", "exp.toml", "--out", "."],
    &["launch", "exp.toml", "--out", "mine"],
    &["launch", "exp.toml", "--out", "states"],
    &["launch", "exp.toml", "--out", "model"],
    &["launch", "exp.toml", "--out", "data"],
    &["launch", "exp.toml", "--out", "runs"],
    &["launch", "exp.toml", "--out", "runs/done"],
    &["launch", "exp.toml", "--out", "thesis.txt"],
    &["launch", "exp.toml", "--out", "linked"],
    &["launch", "exp.toml", "--out", "home"],
    &["plan", "--ram", "8G", "--data", "data/train.jsonl", "--out", "data/train.jsonl"],
    &["plan", "--ram", "8G", "--data", "data/train.jsonl", "--out", "data/train.jsonl", "--force"],
    &["plan", "--ram", "8G", "--out", "thesis.txt"],
    &["plan", "--ram", "8G", "--out", "exp.toml"],
    &["plan", "--ram", "8G", "--out", "runs/done/run.toml"],
    &["plan", "--ram", "8G", "--out", "model/config.json"],
    &["plan", "--ram", "8G", "--out", "mine"],
    &["plan", "--ram", "8G", "--out", "linked.toml"],
    &["export", "runs/done", "--format", "fused", "--out", "mine"],
    &["export", "runs/done", "--format", "fused", "--out", "mine", "--force"],
    &["export", "runs/done", "--format", "fused", "--out", "paper", "--force"],
    &["export", "runs/done", "--format", "peft", "--out", "paper", "--force"],
    &["export", "runs/done", "--format", "mlx-lm", "--out", "paper", "--force"],
    &["export", "runs/done", "--format", "fused", "--out", "model", "--force"],
    &["export", "runs/done", "--format", "peft", "--out", "runs/done", "--force"],
    &["export", "runs/done", "--format", "peft", "--out", "runs/done/adapter", "--force"],
    &["export", "runs/done", "--format", "peft", "--out", "runs/dora/adapter", "--force"],
    &["export", "runs/done", "--format", "fused", "--out", ".", "--force"],
    &["export", "runs/done", "--format", "fused", "--out", "runs", "--force"],
    &["export", "runs/done", "--format", "gguf", "--out", "thesis.txt"],
    &["export", "runs/done", "--format", "gguf", "--out", "thesis.txt", "--force"],
    &["export", "runs/done", "--format", "gguf", "--out", "model/model-00001-of-00002.safetensors", "--force"],
    &["export", "runs/done", "--format", "gguf", "--out", "empty", "--force"],
    &["export", "runs/dora", "--format", "mlx-lm", "--out", "out"],
];

#[test]
fn what_is_there_already_is_not_written_over() {
    let mut table = Table::default();
    table.try_all("places of others", &REFUSED, Desk::new, |desk, args| {
        desk.restore();
        symlink("mine", desk.world.at("linked")).unwrap();
        symlink("thesis.txt", desk.world.at("linked.toml")).unwrap();
        let before = desk.world.listing();
        let ran = desk.world.run(args);
        let harm = harm(&before, &desk.world.listing(), &[]);
        match (ran.code, harm.is_empty()) {
            (2, true) => Ok(()),
            _ => Err(format!("{}; {}", harm.join(", "), ran.brief())),
        }
    });
    table.hold();
}

#[test]
fn auto_leaves_what_has_the_names_it_would_take() {
    let auto = |out: &[&'static str]| {
        let given = ["auto", "--model", "./model", "--data", "data/train.jsonl", "--script", "script.json"];
        [&given[..], out].concat()
    };
    // What is there, what is asked, what may come.
    type Case = (&'static str, Vec<&'static str>, &'static [&'static str]);
    let cases: [Case; 6] = [
        ("runs/mine.toml", auto(&["--out", "runs/mine"]), &["runs/mine", "reports/mine", "results"]),
        ("exp.toml", auto(&["--out", "exp.v2"]), &["exp.v2", "exp.v2.toml", "reports/exp.v2", "results"]),
        ("runs/model-1.toml", auto(&[]), &["runs/model-1", "runs/model-2", "runs/model-2.toml", "reports", "results"]),
        ("runs/notes-2.txt", auto(&["--out", "mine"]), &["results"]),
        ("runs/notes-2.txt", auto(&["--out", "."]), &["results"]),
        ("runs/notes-2.txt", auto(&["--out", "runs/done"]), &["results"]),
    ];
    let mut table = Table::default();
    table.try_all("auto", &cases, Desk::new, |desk, (there, args, own)| {
        desk.restore();
        desk.world.put(there, run_file(7, "", ""));
        let before = desk.world.listing();
        let ran = desk.world.run(args);
        unharmed(&before, &desk.world, own).map_err(|why| format!("{why}; {}", ran.brief()))?;
        ended(&ran, if *there == "runs/model-1.toml" { &[0] } else { &[0, 2] })
    });
    table.hold();
}

/// `--force` replaces an earlier export of the same kind, and nothing that came into its folder since.
#[test]
fn an_export_replaces_its_own_and_no_more() {
    let mut table = Table::default();
    let formats =
        [("peft", "out"), ("mlx-lm", "out"), ("fused", "out"), ("gguf", "out.gguf"), ("gguf-adapter", "out.gguf")];
    table.try_all("export --force", &formats, Desk::new, |desk, (format, out)| {
        desk.restore();
        let args = ["export", "runs/done", "--format", format, "--out", out];
        let force = [&args[..], &["--force"]].concat();
        ended(&desk.world.run(&args), &[0])?;
        let made = desk.world.listing();
        ended(&desk.world.run(&args), &[2])?;
        ended(&desk.world.run(&force), &[0])?;
        let own: Vec<&str> = made.keys().map(String::as_str).filter(|p| p.starts_with(out) && *p != "out").collect();
        unharmed(&made, &desk.world, &own)?;
        if out.ends_with(".gguf") {
            return tidy(&desk.world);
        }
        for foreign in ["out/thesis.tex", "out/notes/a.md"] {
            desk.world.put(foreign, "seven years");
            let before = desk.world.listing();
            ended(&desk.world.run(&force), &[0, 2])?;
            unharmed(&before, &desk.world, &own)?;
        }
        tidy(&desk.world)
    });
    table.hold();
}

/// Old checkpoints are removed file by file, and temporary files by a name that only they have.
#[test]
fn a_resumed_run_clears_only_what_a_run_wrote() {
    let desk = Desk::new();
    let args = ["launch", "long.toml", "--save-every", "3"];
    desk.world.put("long.toml", run_file(12, "", ""));
    let (_, operations) = desk.world.count(&args);
    let line = operations.iter().enumerate().filter(|(_, o)| o.starts_with("write") && o.ends_with("/metrics.jsonl"));
    let seventh = line.map(|(i, _)| i).nth(6).unwrap() + 2;
    desk.world.remove("runs/long");
    assert_eq!(desk.world.run_with(&args, &Fault::new(seventh, "kill")).code, 137);
    desk.world.put("runs/long/thesis.txt", "seven years");
    desk.world.put("runs/long/.thesis.tex.tmp", "seven years");
    desk.world.put("runs/long/checkpoints/notes.txt", "the sixth was best");
    desk.world.put("runs/long/checkpoints/step-000003/notes.txt", "this one was bad");
    copy_tree(&desk.world.at("runs/long/checkpoints/step-000003"), &desk.world.at("runs/long/checkpoints/backup"));
    copy_tree(&desk.world.at("runs/long/checkpoints/step-000003"), &desk.world.at("runs/long/checkpoints/a-backup"));
    let kept = ["thesis.txt", ".thesis.tex.tmp", "checkpoints/notes.txt", "checkpoints/step-000003/notes.txt"];
    let before = desk.world.listing();
    let ran = desk.world.run(&[&args[..], &["--resume"]].concat());
    assert_eq!(ran.code, 0, "{}", ran.said);
    let after = desk.world.listing();
    let mut table = Table::default();
    let backups = before.keys().filter(|p| p.contains("backup")).cloned();
    for path in kept.iter().map(|k| format!("runs/long/{k}")).chain(backups) {
        let same = before[&path] == *after.get(&path).unwrap_or(&"gone".into());
        table.add("kept", if same { Ok(()) } else { Err(format!("`{path}` is gone or changed")) });
    }
    table.add(
        "no old checkpoint",
        match after.contains_key("runs/long/checkpoints/step-000003/state.json") {
            false => Ok(()),
            true => Err("step 3 is still there".into()),
        },
    );
    table.hold();
}

/// A page or a table that a verb did not make is not replaced by it.
#[test]
fn pages_of_others_stay() {
    let cases: [(&str, &[&str]); 3] = [
        ("reports/done/index.html", &["report", "runs/done"]),
        ("reports/done/data.csv", &["report", "runs/done"]),
        ("reports/grid/sweep.csv", &["sweep", "grid.toml"]),
    ];
    let mut table = Table::default();
    table.try_all("pages of others", &cases, Desk::new, |desk, (there, args)| {
        desk.restore();
        desk.world.put(there, "my own notes, for years\n");
        let ran = desk.world.run(args);
        ended(&ran, &[0, 2])?;
        let same = desk.world.bytes(there) == b"my own notes, for years\n";
        if same { Ok(()) } else { Err(format!("`{there}` was written over")) }
    });
    table.hold();
}

/// What is handed over names no folder of this machine, and holds nothing from outside the model's folder.
#[test]
fn what_is_handed_over_holds_nothing_of_the_home_folder() {
    let mut table = Table::default();
    let cases: [(&str, &[&str]); 6] = [
        ("runs/done/adapter", &["predict", "exp.toml"]),
        ("out", &["export", "runs/done", "--format", "peft", "--out", "out"]),
        ("out", &["export", "runs/done", "--format", "mlx-lm", "--out", "out"]),
        ("out", &["export", "runs/done", "--format", "fused", "--out", "out"]),
        ("out", &["export", "runs/done", "--format", "gguf", "--out", "out/m.gguf"]),
        ("reports/done", &["report", "runs/done"]),
    ];
    table.try_all("paths and secrets", &cases, Desk::new, |desk, (folder, args)| {
        desk.restore();
        for name in ["notes.txt", "LICENSE-x", "generation_config.json", "merges.txt"] {
            desk.world.remove(&format!("model/{name}"));
            symlink("../home/.netrc", desk.world.at("model").join(name)).unwrap();
        }
        let ran = desk.world.run(args);
        // A model with such a link may be refused as a whole.
        if ran.code != 0 && folder == &"out" {
            return ended(&ran, &[2]);
        }
        ended(&ran, &[0])?;
        let home = desk.world.path.to_string_lossy().into_owned();
        for (path, _) in desk.world.listing().iter().filter(|(p, what)| is_in(p, &[folder]) && what.contains("bytes")) {
            let bytes = desk.world.bytes(path);
            let text = String::from_utf8_lossy(&bytes);
            if text.contains(&home) {
                return Err(format!("`{path}` names {home}"));
            }
            if text.contains("password secret") {
                return Err(format!("`{path}` holds what a link led to"));
            }
        }
        Ok(())
    });
    table.hold();
}

/// Both ends are among the moments that are tried.
#[test]
fn moments_are_spread() {
    if !disk::all() {
        assert_eq!(spread(100, 4), [1, 34, 67, 100]);
    }
    assert_eq!(spread(3, 4), [1, 2, 3]);
    assert_eq!(spread(0, 4), [0; 0]);
}
