//! The whole loop on a machine whose truth is known: the scripted trainer in the place of the engine, the
//! real program around it.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests too

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use headroom::checkpoint::source::ModelSource;
use headroom::cost;
use headroom::cost::time::{StepCost, step_cost};
use headroom::measure::Measurement;
use headroom::measure::probe::this_machine;
use headroom::spec::record::{Outcome, Step};
use headroom::spec::run::{Engine, RunConfig};
use headroom::trainer::scripted::{Mishap, Script, ScriptedTrainer};
use headroom::units::Bytes;

fn full(tokens_per_row: usize) -> cost::Heaviest {
    cost::Heaviest { tokens_per_row, learned: 1.0, validation_tokens: None }
}

/// What is run: the model that ships, on short rows.
fn run(length: usize, batch: usize) -> RunConfig {
    let text = format!(
        "model = \"builtin\"\ndata = \"builtin\"\n[recipe]\nmax_seq_length = {length}\n\
         effective_batch_size = {batch}\n[execution]\nbatch_size = {batch}\n"
    );
    RunConfig::from_toml(&text, Path::new("run.toml")).unwrap()
}

/// A machine that keeps to the formulas, with coefficients of its own: arithmetic at 0.3 of the nominal rate, bytes
/// at 0.6 of theirs, 2 us a launch, 40 MiB beside the tensors.
fn script() -> Script {
    let machine = this_machine().unwrap();
    let spec = ModelSource::find("builtin").unwrap().spec().unwrap();
    let runs = [run(32, 1), run(64, 4)];
    let costs = runs.each_ref().map(|r| step_cost(&spec, &machine, r, None).unwrap());
    let peaks = runs
        .each_ref()
        .map(|r| cost::ledger(&spec, r, &machine, full(r.recipe.max_seq_length)).unwrap().peak().as_f64());
    // A line through two micro-batches of 32 and of 256 tokens: its value at none, and its slope.
    let line = |[low, high]: [f64; 2]| {
        let slope = (high - low) / (256.0 - 32.0);
        [low - 32.0 * slope, slope]
    };
    let (flops_per_s, bytes_per_s) = (0.3 * machine.peak_flops.0, 0.6 * machine.bandwidth);
    let time = |c: &StepCost| c.flops() / flops_per_s + c.bytes() / bytes_per_s + c.launches() * 2e-6;
    let [overhead_s, per_token] = line(costs.each_ref().map(time));
    let [fixed_memory, memory_per_token] = line(peaks);
    Script {
        flops_per_token: per_token * flops_per_s,
        flops_per_token_pair: 0.0,
        flops_per_s,
        bytes_per_micro_batch: 0.0,
        overhead_s,
        fixed_memory: Bytes::from_f64(fixed_memory),
        memory_per_token,
        process_memory: Bytes::from_mib(40),
        noise: 0.02,
        lengths: vec![64; 10],
        ..Script::default()
    }
}

struct Place(tempfile::TempDir);

impl Place {
    fn new(script: &Script) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        place.play(script);
        let run = "model = \"builtin\"\ndata = \"builtin\"\n[recipe]\nmax_seq_length = 64\neffective_batch_size = 8\n\
                   steps = 40\n[execution]\nbatch_size = 4\n";
        fs::write(place.path("my.toml"), run).unwrap();
        place
    }

    fn play(&self, script: &Script) {
        fs::write(self.path("script.json"), serde_json::to_string(script).unwrap()).unwrap();
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn headroom(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headroom"));
        command.args(args).current_dir(self.0.path()).env("HEADROOM_RESULTS", "results");
        if args[0] != "report" {
            command.args(["--script", "script.json"]);
        }
        command.output().unwrap()
    }

    /// Of a command that answers, what it says.
    fn ask(&self, args: &[&str]) -> String {
        let output = self.headroom(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Of a command that does not, the exit code and what it says.
    fn refused(&self, args: &[&str]) -> (i32, String) {
        let output = self.headroom(args);
        assert!(!output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    fn measurements(&self) -> Vec<Measurement> {
        let machine = fs::read_dir(self.path("results")).unwrap().next().unwrap().unwrap().path();
        headroom::measure::table::read_measurements(&machine.join("measurements.csv")).unwrap()
    }

    fn outcome(&self, run: &str) -> Measurement {
        read(&self.path(run).join("outcome.json"))
    }

    fn steps(&self, run: &str) -> Vec<Step> {
        std::fs::read_to_string(self.path(run).join("metrics.jsonl"))
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn calibrating_learns_the_truth_and_remembers_it() {
    let place = Place::new(&script());
    let first: serde_json::Value = serde_json::from_str(&place.ask(&["calibrate", "my.toml", "--json"])).unwrap();
    let measured = first["measured"].as_u64().unwrap();
    assert!(measured >= 3, "{first}");
    assert_eq!(place.measurements().len() as u64, measured);
    // Process memory, and speed: the two that a prior knows little of.
    for change in [1, 2].map(|i| &first["changes"][i]) {
        let width = |i: usize| {
            let e = &change[1][i];
            (e["high"].as_f64().unwrap() / e["low"].as_f64().unwrap()).ln()
        };
        assert!(width(1) < width(0), "calibrating narrows: {change}");
    }
    // The truth of the planned run lies in the interval afterwards.
    let truth = ScriptedTrainer::new(script(), Engine::Candle);
    let speed = &first["changes"][2];
    let tokens_per_s = 4.0 * 64.0 / truth.true_micro_batch_time(4, 64).0;
    let (low, high) = (speed[1][1]["low"].as_f64().unwrap(), speed[1][1]["high"].as_f64().unwrap());
    assert!(low < tokens_per_s && tokens_per_s < high, "{tokens_per_s} in {low} to {high}");

    let again: serde_json::Value = serde_json::from_str(&place.ask(&["calibrate", "my.toml", "--json"])).unwrap();
    assert_eq!((again["measured"].as_u64(), again["reused"].as_u64()), (Some(0), Some(measured)));
    place.ask(&["calibrate", "my.toml", "--again"]);
    assert_eq!(place.measurements().len() as u64, 2 * measured);
}

#[test]
fn a_torn_table_is_mended_and_a_foreign_one_refused() {
    let place = Place::new(&script());
    place.ask(&["calibrate", "my.toml"]);
    let table = fs::read_dir(place.path("results")).unwrap().next().unwrap().unwrap().path().join("measurements.csv");
    let whole = fs::read_to_string(&table).unwrap();
    fs::write(&table, &whole[..whole.len() - 20]).unwrap();
    // The torn one is gone, and the others are known.
    let rows = place.measurements().len();
    assert_eq!(rows, whole.lines().count() - 2);
    assert!(place.ask(&["calibrate", "my.toml"]).contains(&format!("{rows} earlier ones reused")));
    let mended = fs::read_to_string(&table).unwrap();
    let (columns, mut cells) = common::read_csv(&table);
    cells[0][columns.iter().position(|c| c == "measured.step_time_s").unwrap()] = "-0.5".into();
    common::write_csv(&table, &columns, &cells);
    let nonsense = fs::read_to_string(&table).unwrap();
    let (code, says) = place.refused(&["calibrate", "my.toml"]);
    assert!(code == 2 && says.contains("line 2") && says.contains("step_time_s` is -0.5"), "{says}");
    assert_eq!(fs::read_to_string(&table).unwrap(), nonsense);
    // What was measured elsewhere, or under another system, says nothing of here.
    let foreign = mended.replace("Linux", "Another system");
    fs::write(&table, &foreign).unwrap();
    assert!(place.ask(&["calibrate", "my.toml"]).contains("0 earlier ones reused"));
    fs::write(&table, "schema,dance\n9,1\n").unwrap();
    let (code, says) = place.refused(&["calibrate", "my.toml"]);
    assert!(code == 2 && says.contains("measurements.csv") && says.contains("dance"), "{says}");
    assert_eq!(fs::read_to_string(&table).unwrap(), "schema,dance\n9,1\n");
}

#[test]
fn trials_that_go_wrong_are_recorded_and_do_not_stop_the_rest() {
    let place = Place::new(&Script { mishap: Some(Mishap::Crash(3)), ..script() });
    place.ask(&["calibrate", "my.toml"]);
    let seen = place.measurements();
    assert!(seen.len() >= 3 && seen.iter().all(|m| matches!(m.outcome, Outcome::Crashed { .. })));
    // Far more memory than the formula can know of: the watch ends it, and the bound is learned from what came before.
    place.play(&Script { process_memory: Bytes::from_gib(3.0), ..script() });
    place.ask(&["calibrate", "my.toml", "--again", "--memory-limit", "2G"]);
    assert!(place.measurements().iter().any(|m| m.outcome.name() == "out_of_memory"));
}

#[test]
fn a_launched_run_leaves_everything_and_is_never_overwritten() {
    let place = Place::new(&script());
    place.ask(&["calibrate", "my.toml"]);
    let says = place.ask(&["launch", "my.toml", "--save-every", "10"]);
    assert!(says.contains("It fit and it finished"), "{says}");
    let measurement = place.outcome("runs/my");
    assert_eq!((measurement.outcome.name(), place.steps("runs/my").len()), ("finished", 40));
    let predicted: serde_json::Value = read(&place.path("runs/my/prediction.json"));
    let filled = |key: &str| predicted[key].as_array().is_some_and(|all| !all.is_empty());
    assert!(filled("timeline") && filled("limits"));
    let speed = measurement.measured.tokens_per_s.unwrap();
    assert!(
        predicted["tokens_per_s"]["low"].as_f64().unwrap() < speed
            && speed < predicted["tokens_per_s"]["high"].as_f64().unwrap(),
        "{speed} {:?}",
        predicted["tokens_per_s"]
    );
    assert_eq!(place.measurements().last(), Some(&measurement));

    let before = fs::read(place.path("runs/my/metrics.jsonl")).unwrap();
    let (code, says) = place.refused(&["launch", "my.toml"]);
    assert!(code == 2 && says.contains("already holds a run") && says.contains("--resume"), "{says}");
    assert_eq!(fs::read(place.path("runs/my/metrics.jsonl")).unwrap(), before);
}

#[test]
fn a_resumed_run_is_the_run_it_would_have_been() {
    let whole = Place::new(&Script { first_step: 1.0, ..script() });
    whole.ask(&["launch", "my.toml"]);
    let torn = Place::new(&Script { first_step: 1.0, mishap: Some(Mishap::Crash(25)), ..script() });
    let (code, says) = torn.refused(&["launch", "my.toml", "--save-every", "10"]);
    assert!(code == 2 && says.contains("died after step 24"), "{says}");
    assert_eq!(torn.steps("runs/my").len(), 24);
    torn.play(&Script { first_step: 1.0, ..script() });
    // The folder alone is enough; the steps after the checkpoint of step 20 are taken again.
    torn.ask(&["launch", "runs/my", "--resume"]);
    assert_eq!(torn.steps("runs/my"), whole.steps("runs/my"));
    // Another run is not this run.
    let other = fs::read_to_string(torn.path("my.toml")).unwrap().replace("steps = 40", "steps = 50");
    fs::write(torn.path("other.toml"), other).unwrap();
    let (_, says) = torn.refused(&["launch", "other.toml", "--out", "runs/my", "--resume"]);
    assert!(says.contains("`steps = 40` there, `steps = 50` here"), "{says}");
}

#[test]
fn what_does_not_fit_is_refused_before_and_stopped_while_it_runs() {
    let place = Place::new(&script());
    let (code, says) = place.refused(&["launch", "my.toml", "--memory-limit", "20M"]);
    assert!(code == 1 && says.contains("20 MiB is available") && says.contains("--force"), "{says}");
    assert!(!place.path("runs/my/metrics.jsonl").exists());
    place.play(&Script { process_memory: Bytes::from_gib(3.0), ..script() });
    let (code, says) = place.refused(&["launch", "my.toml", "--memory-limit", "2G", "--out", "runs/guarded"]);
    assert!(code == 1 && says.contains("checkpoint"), "{says}");
    assert!(place.path("runs/guarded/checkpoints/scripted.json").exists());
    assert_eq!(place.outcome("runs/guarded").outcome, Outcome::OutOfMemory { at_step: 1 });
}

#[test]
fn a_diverging_run_says_so_and_keeps_its_record() {
    let place = Place::new(&Script { mishap: Some(Mishap::Diverge(7)), ..script() });
    let (code, says) = place.refused(&["launch", "my.toml"]);
    assert!(code == 2 && says.contains("step 7 is NaN") && says.contains("learning_rate"), "{says}");
    assert!(matches!(place.outcome("runs/my").outcome, Outcome::Crashed { at_step: 6, .. }));
}

#[test]
fn what_the_gpu_says_is_explained() {
    let place = Place::new(&Script { mishap: Some(Mishap::GpuMemory(7)), ..script() });
    let (code, says) = place.refused(&["launch", "my.toml"]);
    assert!(code == 1 && says.contains("error: memory ran out after step 6"), "{says}");
    assert!(says.contains("Insufficient Memory") && says.contains("hint: close other programs"), "{says}");
    assert_eq!(place.outcome("runs/my").outcome, Outcome::OutOfMemory { at_step: 6 });
    assert_eq!(place.measurements().last().unwrap().outcome, Outcome::OutOfMemory { at_step: 6 });
    let place = Place::new(&Script { mishap: Some(Mishap::Watchdog(7)), ..script() });
    let (code, says) = place.refused(&["launch", "my.toml"]);
    assert!(code == 2 && says.contains("error: the GPU watchdog of macOS ended a command"), "{says}");
    assert!(says.contains("kIOGPU") && says.contains("hint: turn the display off"), "{says}");
    assert!(matches!(place.outcome("runs/my").outcome, Outcome::Crashed { at_step: 6, .. }));
}

#[test]
fn reports_are_the_same_for_the_same_runs() {
    let place = Place::new(&script());
    place.ask(&["calibrate", "my.toml"]);
    place.ask(&["launch", "my.toml"]);
    place.ask(&["launch", "my.toml", "--out", "runs/second"]);
    place.ask(&["report", "runs/my"]);
    let read = || ["index.html", "data.csv"].map(|f| fs::read(place.path("reports/my").join(f)).unwrap());
    let first = read();
    place.ask(&["report", "runs/my"]);
    assert_eq!(first, read());
    let page = String::from_utf8(first[0].clone()).unwrap();
    assert!(page.contains("What calibrating changed") && page.contains("Memory through a step"));
    let says = place.ask(&["report"]);
    assert!(says.contains("reports/runs/index.html"), "{says}");
    let (code, says) = place.refused(&["report", "absent"]);
    assert!(code == 2 && says.contains("is not a run folder"), "{says}");
}

#[test]
fn auto_goes_all_the_way() {
    let place = Place::new(&script());
    let says = place.ask(&["auto"]);
    for part in ["1. Plan", "2. Calibrate", "3. Plan", "4. Launch", "5. Report", "page: reports/builtin-1/index.html"] {
        assert!(says.contains(part), "{part} in {says}");
    }
    let answer: serde_json::Value = serde_json::from_str(&place.ask(&["auto", "--json"])).unwrap();
    assert!(place.path(answer["page"].as_str().unwrap()).exists());
}
