//! What a run survives: every operation on the disk is a moment at which it is killed, stopped, signalled or refused by
//! the disk, and whatever it reads back is damaged. A spread of the moments is tried; all of them by
//! `HEADROOM_FAULTS=all cargo test --release --test faults -- --nocapture`, in some minutes, which prints the tables.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of tests are tests too

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

// ---- damaged ----

/// What is done to a run that was killed, and what is wished of the resume.
struct Damage {
    name: String,
    wish: Wish,
    apply: Box<dyn Fn(&World) + Send + Sync>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Wish {
    /// The bytes of the whole run, from this checkpoint or the one before it; or a refusal that changes nothing.
    SameOrRefused,
    /// The bytes of the whole run.
    Same,
    /// Exit 2, and nothing changed.
    Refused,
}

impl fmt::Debug for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)
    }
}

fn damage(name: impl Into<String>, wish: Wish, apply: impl Fn(&World) + Send + Sync + 'static) -> Damage {
    Damage { name: name.into(), wish, apply: Box::new(apply) }
}

/// Something done to the bytes of a file.
fn bytes(file: &str, name: &str, wish: Wish, change: impl Fn(&mut Vec<u8>) + Send + Sync + 'static) -> Damage {
    let path = file.to_owned();
    damage(format!("{file}: {name}"), wish, move |world| {
        let mut bytes = world.bytes(&path);
        change(&mut bytes);
        fs::write(world.at(&path), bytes).unwrap();
    })
}

/// Something done to the lines of a file.
fn lines(file: &str, name: &str, wish: Wish, change: impl Fn(&mut Vec<String>) + Send + Sync + 'static) -> Damage {
    bytes(file, name, wish, move |bytes| {
        let mut lines: Vec<String> = String::from_utf8(bytes.clone()).unwrap().lines().map(str::to_owned).collect();
        change(&mut lines);
        *bytes = lines.iter().map(|l| format!("{l}\n")).collect::<String>().into_bytes();
    })
}

fn replaced(file: &str, from: &'static str, to: &'static str, wish: Wish) -> Damage {
    bytes(file, &format!("`{from}` is `{to}`"), wish, move |bytes| {
        let text = String::from_utf8(bytes.clone()).unwrap();
        assert!(text.contains(from), "`{from}` is not there to be replaced");
        *bytes = text.replacen(from, to, 1).into_bytes();
    })
}

/// What can happen to the bytes of any file of a checkpoint, at places that are spread over it.
fn of_a_file(file: &str, length: usize) -> Vec<Damage> {
    use Wish::SameOrRefused;
    let few = if all() { length.div_ceil(1024).clamp(24, 70) } else { 6 };
    let places = (0..few).map(|i| i * (length - 1) / (few - 1));
    let mut found = Vec::new();
    for at in places {
        found.push(bytes(file, &format!("cut at {at}"), SameOrRefused, move |b| b.truncate(at)));
        found.push(bytes(file, &format!("a bit at {at}"), SameOrRefused, move |b| b[at] ^= 1 << (at % 8)));
        found.push(bytes(file, &format!("512 zeros at {at}"), SameOrRefused, move |b| {
            let end = b.len().min(at + 512);
            b[at..end].fill(0);
        }));
    }
    found.push(bytes(file, "100 bytes more", SameOrRefused, |b| b.extend([7; 100])));
    let path = file.to_owned();
    found.push(damage(format!("{file}: gone"), SameOrRefused, move |world| world.remove(&path)));
    found
}

const NEWEST: &str = "runs/run/checkpoints/step-000009";
const OLDER: &str = "runs/run/checkpoints/step-000006";

/// Flips a bit of a weight in a checkpoint.
fn flip(world: &World, checkpoint: &str) {
    let files = fs::read_dir(world.at(checkpoint)).unwrap().map(|e| e.unwrap().path());
    let tensors = files.max_by_key(|f| f.metadata().unwrap().len()).unwrap();
    let mut bytes = fs::read(&tensors).unwrap();
    let place = bytes.len() - 1000;
    bytes[place] ^= 64;
    fs::write(tensors, bytes).unwrap();
}

/// Damages of a checkpoint, file by file, and of checkpoints as a whole.
fn of_checkpoints(cut: &Cut) -> Vec<Damage> {
    use Wish::SameOrRefused;
    let mut found = Vec::new();
    let mut names = Vec::new();
    for entry in fs::read_dir(cut.world.at(NEWEST)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        found.extend(of_a_file(&format!("{NEWEST}/{name}"), entry.metadata().unwrap().len() as usize));
        names.push(name);
    }
    for name in names {
        let (from, to) = (format!("{OLDER}/{name}"), format!("{NEWEST}/{name}"));
        found.push(damage(format!("{name} of step 6 under step 9"), SameOrRefused, move |world| {
            fs::copy(world.at(&from), world.at(&to)).unwrap();
        }));
    }
    for step in ["8", "10", "6", "11", "0", "18446744073709551615"] {
        found.push(bytes(&format!("{NEWEST}/state.json"), &format!("step is {step}"), SameOrRefused, move |b| {
            let text = String::from_utf8(b.clone()).unwrap().replace("\"step\":9", "\"step\": 9");
            *b = text.replacen("\"step\": 9", &format!("\"step\": {step}"), 1).into_bytes();
        }));
    }
    found.push(damage("step 6 again as step 12", SameOrRefused, |world| {
        copy_tree(&world.at(OLDER), &world.at("runs/run/checkpoints/step-000012"));
    }));
    found.push(damage("both checkpoints damaged", SameOrRefused, |world| {
        [OLDER, NEWEST].iter().for_each(|folder| flip(world, folder));
    }));
    found.push(damage("no checkpoint", SameOrRefused, |world| world.remove("runs/run/checkpoints")));
    found
}

/// What belongs to a run and is not its state.
fn of_the_folder() -> Vec<Damage> {
    use Wish::{Refused, Same, SameOrRefused};
    let metrics = "runs/run/metrics.jsonl";
    let insert = |at: usize, line: &'static str| {
        lines(metrics, &format!("`{line}` before line {at}"), SameOrRefused, move |l| l.insert(at - 1, line.into()))
    };
    vec![
        bytes(metrics, "torn last line", Same, |b| b.extend(b"{\"step\": 12, \"lo")),
        bytes(metrics, "zeros at its end", Same, |b| b.extend([0; 100])),
        insert(4, "garbage"),
        insert(4, "{}"),
        insert(11, ""),
        bytes(metrics, "zeros in the middle", SameOrRefused, |b| b[300..400].fill(0)),
        bytes(metrics, "not UTF-8 in the middle", SameOrRefused, |b| b[300] = 0xff),
        lines(metrics, "line 4 gone", SameOrRefused, |l| drop(l.remove(3))),
        lines(metrics, "line 4 twice", SameOrRefused, |l| l.insert(3, l[3].clone())),
        lines(metrics, "lines 4 and 5 changed places", SameOrRefused, |l| l.swap(3, 4)),
        lines(metrics, "empty", SameOrRefused, Vec::clear),
        damage("metrics.jsonl gone", SameOrRefused, move |world| world.remove(metrics)),
        replaced("runs/run/run.toml", "rank = 3", "rank = 4", Refused),
        replaced("runs/run/run.toml", "seed = 5", "seed = 6", Refused),
        bytes("runs/run/run.toml", "cut in half", Refused, |b| b.truncate(b.len() / 2)),
        bytes("runs/run/run.toml", "empty", Refused, Vec::clear),
        replaced("run.toml", "5e-3", "6e-3", Refused),
        bytes("runs/run/prediction.json", "cut in half", SameOrRefused, |b| b.truncate(b.len() / 2)),
    ]
}

/// What a run is made of: changed, it is another run.
fn of_the_inputs() -> Vec<Damage> {
    use Wish::Refused;
    let (train, valid) = ("data/train.jsonl", "data/valid.jsonl");
    let weights = "model/model-00002-of-00002.safetensors";
    vec![
        replaced(train, "harbour", "market", Refused),
        lines(train, "a row less", Refused, |l| drop(l.remove(5))),
        lines(train, "a row more", Refused, |l| l.push(l[2].clone())),
        lines(train, "in another order", Refused, |l| l.reverse()),
        lines(train, "other rows", Refused, |l| {
            l.iter_mut().for_each(|l| *l = "{\"text\": \"something else\"}".into());
        }),
        lines(valid, "doubled", Refused, |l| l.extend(l.clone())),
        replaced(valid, "harbour", "market", Refused),
        bytes(weights, "a bit of a weight", Refused, |b| {
            let middle = b.len() / 2;
            b[middle] ^= 64;
        }),
        bytes(weights, "the last weight", Refused, |b| {
            let last = b.len() - 1;
            b[last] ^= 1;
        }),
        replaced("model/config.json", "1000000.0", "10000.0", Refused),
        replaced("model/tokenizer.json", "\"NFC\"", "\"NFKC\"", Refused),
        replaced("model/tokenizer_config.json", "You are a helpful", "You are a careful", Refused),
    ]
}

/// Resumes what was damaged, and says what became of it where that is not as wished.
fn resumed(cut: &Cut, damage: &Damage) -> Result<(), String> {
    cut.restore();
    (damage.apply)(&cut.world);
    let before = cut.world.listing();
    let ran = cut.world.run(&RESUME);
    let changed = || harm(&before, &cut.world.listing(), &[]);
    match (ran.code, damage.wish) {
        (0, Wish::Same | Wish::SameOrRefused) => match cut.whole.held(&cut.world, "runs/run") {
            // Lines that were lost do not come back; then that is said.
            Err(_) if damage.name.contains("metrics") && said_of_metrics(cut, &ran) => Ok(()),
            held => held,
        },
        (0, Wish::Refused) => Err("NOT SEEN: it went on".into()),
        (2, Wish::Refused | Wish::SameOrRefused) if changed().is_empty() => Ok(()),
        (2, Wish::Refused | Wish::SameOrRefused) => {
            Err(format!("refused, but {}; {}", changed().join(", "), ran.brief()))
        }
        _ => Err(format!("{:?} was wished: {}", damage.wish, ran.brief())),
    }
}

fn said_of_metrics(cut: &Cut, ran: &Ran) -> bool {
    ran.said.contains("metrics.jsonl") && adapter(&cut.world, "runs/run").is_ok_and(|a| a == cut.whole.adapter)
}

#[test]
fn damage_is_seen() {
    let first = Cut::new();
    let mut table = Table::default();
    let rows = [
        ("a checkpoint", of_checkpoints(&first)),
        ("the run's folder", of_the_folder()),
        ("the inputs", of_the_inputs()),
    ];
    for (what, damages) in rows {
        table.try_all(&format!("damage to {what}, then --resume"), &damages, Cut::new, resumed);
    }
    table.hold();
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_it_used() {
    let cut = Cut::new();
    flip(&cut.world, NEWEST);
    let ran = cut.world.run(&RESUME);
    assert_eq!(ran.code, 0, "{}", ran.said);
    assert!(ran.said.contains("step-000009"), "the damaged checkpoint is not named:\n{}", ran.said);
    cut.whole.held(&cut.world, "runs/run").unwrap();
}

/// What refuses to go on with changed inputs goes on once they are as they were.
#[test]
fn inputs_that_are_put_back_are_gone_on_with() {
    let cut = Cut::new();
    let row = "{\"text\": \"one more\"}\n";
    let rows = cut.world.bytes("data/train.jsonl");
    cut.world.put("data/train.jsonl", [&rows[..], row.as_bytes()].concat());
    let ran = cut.world.run(&RESUME);
    assert_eq!(ran.code, 2, "{}", ran.said);
    assert!(ran.said.contains("train"), "{}", ran.said);
    cut.world.put("data/train.jsonl", rows);
    go_on(&cut.world).unwrap();
    cut.whole.held(&cut.world, "runs/run").unwrap();
}

#[test]
fn a_damaged_adapter_is_not_handed_on() {
    let whole = Whole::of(run_file(3, "", ""));
    let world = whole.world();
    assert_eq!(world.run(&LAUNCH).code, 0);
    let file = "runs/run/adapter/adapter_model.safetensors";
    let mut bytes = world.bytes(file);
    let place = bytes.len() - 50;
    bytes[place] ^= 64;
    world.put(file, bytes);
    let mut table = Table::default();
    for args in [
        &["export", "runs/run", "--format", "peft", "--out", "a"][..],
        &["export", "runs/run", "--format", "fused", "--out", "b"],
        &["export", "runs/run", "--format", "gguf", "--out", "c.gguf"],
        &["generate", "Hello", "--adapter", "runs/run", "--max-tokens", "3"],
    ] {
        let ran = world.run(args);
        let seen = ran.code == 2 && ran.said.contains("adapter");
        table.add("a bit of the adapter", if seen { Ok(()) } else { Err(format!("{args:?}: {}", ran.brief())) });
    }
    table.hold();
}

// ---- twice ----

/// Stops the first command at an operation, does the second meanwhile, and lets the first go on. Where the second waits
/// for the first, both go on together.
fn interleaved(world: &World, first: &[&str], second: &[&str], at: usize) -> (Ran, Ran) {
    let mut one = world.command(first, Some(&Fault::new(at, "stop"))).spawn().unwrap();
    disk::wait_until_stopped(&mut one);
    let mut two = world.command(second, None).spawn().unwrap();
    let mut waited = 0;
    while two.try_wait().unwrap().is_none() && waited < 750 {
        std::thread::sleep(std::time::Duration::from_millis(2));
        waited += 1;
    }
    disk::signal(&one, libc::SIGCONT);
    let two = world.end(two);
    (world.end(one), two)
}

fn one_of_two(ran: &(Ran, Ran)) -> Result<usize, String> {
    match (ran.0.code, ran.1.code) {
        (0, 2) => Ok(0),
        (2, 0) => Ok(1),
        _ => Err(format!("first: {}; second: {}", ran.0.brief(), ran.1.brief())),
    }
}

#[test]
fn a_folder_holds_one_run() {
    let mut table = Table::default();
    let whole = Whole::of(run_file(8, "", ""));
    let stops = moments(whole.operations.len(), 16);
    table.try_all(
        "two launches at once",
        &stops,
        || whole.world(),
        |world, at| {
            fresh(world);
            let ran = interleaved(world, &LAUNCH, &LAUNCH, *at);
            one_of_two(&ran)?;
            whole.held(world, "runs/run")
        },
    );

    // `a/run.toml` and `b/run.toml` have one default folder.
    let seeds = [5, 6].map(|seed| {
        let text = run_file(8, "", "").replace("seed = 5", &format!("seed = {seed}"));
        (text.replace("\"data/", "\"../data/").replace("./model", "../model"), Whole::of(text))
    });
    let two = || {
        let world = with_model();
        world.put("a/run.toml", &seeds[0].0);
        world.put("b/run.toml", &seeds[1].0);
        world
    };
    table.try_all("two runs of one name at once", &stops, two, |world, at| {
        fresh(world);
        let launch = |file| ["launch", file, "--save-every", "3"];
        let ran = interleaved(world, &launch("a/run.toml"), &launch("b/run.toml"), *at);
        let winner = one_of_two(&ran)?;
        let run = String::from_utf8(world.bytes("runs/run/run.toml")).unwrap();
        if !run.contains(&format!("seed = {}", 5 + winner)) {
            return Err("run.toml is of the run that was refused".into());
        }
        seeds[winner].1.held(world, "runs/run")
    });

    let (_, resumed) = Cut::new().world.count(&RESUME);
    let stops = moments(resumed.len(), 12);
    table.try_all("two --resume at once", &stops, Cut::new, |cut, at| {
        cut.restore();
        let ran = interleaved(&cut.world, &RESUME, &RESUME, *at);
        // Both may answer 0, where one found what the other had finished; the lines say whether both trained.
        if ![ran.0.code, ran.1.code].contains(&0) || ran.0.crashed() || ran.1.crashed() {
            one_of_two(&ran)?;
        }
        cut.whole.held(&cut.world, "runs/run")
    });

    let training: Vec<usize> = (1..=8).map(|step| whole.after_line(step)).collect();
    table.try_all(
        "--resume beside a run",
        &training[..],
        || whole.world(),
        |world, at| {
            fresh(world);
            let ran = interleaved(world, &LAUNCH, &RESUME, *at);
            if one_of_two(&ran)? != 0 {
                return Err("the run was refused, and the resume went on".into());
            }
            whole.held(world, "runs/run")
        },
    );
    table.hold();
}

#[test]
fn a_table_that_two_begin_has_one_header() {
    let whole = Whole::of(run_file(2, "", ""));
    let of_the_table = |(i, o): (usize, &String)| o.contains("/results/").then_some(i + 1);
    let stops: Vec<usize> = whole.operations.iter().enumerate().filter_map(of_the_table).collect();
    assert!(stops.len() > 3);
    let mut table = Table::default();
    table.try_all(
        "two launches that begin a table",
        &stops,
        || whole.world(),
        |world, at| {
            fresh(world);
            let launch = |out| ["launch", "run.toml", "--out", out];
            let ran = interleaved(world, &launch("runs/a"), &launch("runs/b"), *at);
            if (ran.0.code, ran.1.code) != (0, 0) {
                return Err(format!("first: {}; second: {}", ran.0.brief(), ran.1.brief()));
            }
            match tables(world)? {
                2 => Ok(()),
                rows => Err(format!("{rows} rows")),
            }
        },
    );
    table.hold();
}

// ---- signalled ----

#[test]
fn an_interrupted_run_says_so_and_goes_on() {
    let whole = Whole::of(run_file(60, "", ""));
    let steps: Vec<usize> = if all() { (1..=40).collect() } else { vec![1, 4, 9] };
    let mut table = Table::default();
    for (name, number) in [("SIGINT", libc::SIGINT), ("SIGTERM", libc::SIGTERM), ("SIGHUP", libc::SIGHUP)] {
        let faults: Vec<Fault> =
            steps.iter().map(|&step| Fault::new(whole.after_line(step), &format!("signal-{number}"))).collect();
        table.try_all(
            name,
            &faults,
            || whole.world(),
            |world, fault| {
                fresh(world);
                let ran = world.run_with(&LAUNCH, fault);
                if ran.code != 128 + number {
                    return Err(format!("exit {} was wished: {}", 128 + number, ran.brief()));
                }
                if !ran.said.contains("--resume") {
                    return Err(format!("no way on is said: {}", ran.brief()));
                }
                go_on(world)?;
                whole.held(world, "runs/run")
            },
        );
    }
    // Before the first step too, and whatever the run is about to do.
    let early = whole.after_line(1);
    let faults: Vec<Fault> = moments(early, 6).into_iter().map(|n| Fault::new(n, "signal-2")).collect();
    table.try_all(
        "SIGINT before the first step",
        &faults,
        || whole.world(),
        |world, fault| {
            fresh(world);
            let ran = world.run_with(&LAUNCH, fault);
            if ran.code != 130 {
                return Err(format!("exit 130 was wished: {}", ran.brief()));
            }
            go_on(world)?;
            whole.held(world, "runs/run")
        },
    );
    let world = whole.world();
    let fault = Fault::new(whole.after_line(3), "signal-2");
    let ran = world.shell("$HEADROOM launch run.toml --save-every 3 && echo went on", &fault);
    let stopped = !ran.answer.contains("went on") && !world.at("runs/run/adapter").exists();
    table.add("launch && export", if stopped { Ok(()) } else { Err(ran.brief()) });
    table.hold();
}

/// A folder with a space in its name is typed with quotes.
#[test]
fn the_way_on_can_be_typed() {
    let whole = Whole::of(run_file(60, "", ""));
    let world = whole.world();
    let out = "runs/Bob's first run";
    let fault = Fault::new(whole.after_line(3), "signal-2");
    let ran = world.run_with(&["launch", "run.toml", "--save-every", "3", "--out", out], &fault);
    let hint = ran.said.lines().find(|l| l.contains("--resume")).unwrap_or_else(|| panic!("no hint: {}", ran.said));
    let start = hint.find("headroom launch").unwrap_or_else(|| panic!("no command: {hint}"));
    let typed = hint[start..].rsplit_once("--resume").unwrap().0;
    let line = format!("{} --resume", typed.replacen("headroom", "$HEADROOM", 1));
    let again = world.shell(&line, &Fault::new(0, "nothing"));
    assert_eq!(again.code, 0, "`{line}`: {}", again.said);
    assert!(Path::new(&world.at(out)).join("adapter").exists());
    whole.held(&world, out).unwrap();
}
