//! Trials and those who started them, ended by force: who outlives whom, what is written down, and what is made of it.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of tests are tests too

mod figures;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use headroom::measure::Measurement;
use headroom::measure::guard::Guard;
use headroom::measure::table::read_measurements;
use headroom::spec::record::{Job, Outcome};
use headroom::spec::run::RunConfig;
use headroom::trainer::scripted::{Mishap, Script};

#[allow(unused_imports)] // some hold tests alone
use self::figures::*;

/// Whatever is waited for comes far sooner.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with `grid.toml`: one run of the model that ships, with a step of so many examples.
struct Place(tempfile::TempDir);

impl Place {
    fn new(examples: usize) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        place.write("grid.toml", &run("4", examples));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headroom"));
        command
            .args(args)
            .current_dir(self.0.path())
            .env("HEADROOM_RESULTS", "results")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn sweep(&self) -> Command {
        self.command(&["sweep", "grid.toml", "--measure", "--trial-time", "60s", "--quiet"])
    }

    fn measurements(&self) -> Vec<Measurement> {
        let Ok(mut machines) = fs::read_dir(self.path("results")) else { return Vec::new() };
        read_measurements(&machines.next().unwrap().unwrap().path().join("measurements.csv")).unwrap()
    }
}

/// A run file, or a grid with several micro-batches.
fn run(batch: &str, examples: usize) -> String {
    format!(
        "model = \"builtin\"\ndata = \"builtin\"\n[recipe]\nmax_seq_length = 64\neffective_batch_size = {examples}\n\
         steps = 1000\n[execution]\nbatch_size = {batch}\n"
    )
}

fn until<T>(mut seen: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(seen) = seen() {
            return seen;
        }
        assert!(started.elapsed() < PATIENCE, "it did not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// State, parent and command of a process.
fn stat(pid: u32) -> Option<(char, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// The trial that this process has started.
fn trial_of(parent: u32) -> u32 {
    until(|| {
        let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
        let mut children = pids.filter(|pid: &u32| stat(*pid).is_some_and(|(_, of)| of == parent));
        children.find(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.contains("\0trial")))
    })
}

/// It computes: it has read its job and loaded its model.
fn at_work(pid: u32) {
    until(|| {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let ticks: u64 = text.rsplit_once(") ")?.1.split(' ').nth(11)?.parse().ok()?;
        (ticks > 50).then_some(())
    });
}

fn gone(pid: u32) {
    until(|| stat(pid).is_none_or(|(state, _)| state == 'Z').then_some(()));
}

fn kill(pid: u32, signal: i32) {
    // SAFETY: `kill` touches no memory of ours.
    assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
}

fn text(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_trial_ends_with_a_parent_that_is_killed() {
    // A step that nobody waits for the end of.
    let place = Place::new(1_000_000);
    let mut sweep = place.sweep().spawn().unwrap();
    let trial = trial_of(sweep.id());
    at_work(trial);
    sweep.kill().unwrap();
    sweep.wait().unwrap();
    gone(trial);
}

/// A trial started by hand, as the other commands start it, whose parent goes on living.
fn tethered(place: &Place, job: &str) -> Child {
    let trial = place.command(&["trial", "--tethered"]).stdin(Stdio::piped()).spawn().unwrap();
    writeln!(trial.stdin.as_ref().unwrap(), "{job}").unwrap();
    trial
}

fn job(examples: usize) -> String {
    let config = RunConfig::from_toml(&run("4", examples), Path::new("run.toml")).unwrap();
    let job = Job { pad_to_max: true, ..Job::new(config) };
    serde_json::to_string(&job).unwrap()
}

#[test]
fn a_trial_ends_when_its_stdin_is_closed() {
    let place = Place::new(4);
    let mut trial = tethered(&place, &job(1_000_000));
    let mut lines = BufReader::new(trial.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("\"ready\""));
    assert_eq!(trial.try_wait().unwrap(), None);
    drop(trial.stdin.take());
    assert_eq!(until(|| trial.try_wait().unwrap()).code(), Some(1));
    // By hand there is no tether: the job is all of stdin, over as many lines as it likes.
    let value: serde_json::Value = serde_json::from_str(&job(4)).unwrap();
    let mut short = value;
    short["stop_after"] = 1.into();
    let mut trial = place.command(&["trial"]).stdin(Stdio::piped()).spawn().unwrap();
    let pretty = serde_json::to_string_pretty(&short).unwrap();
    trial.stdin.take().unwrap().write_all(pretty.as_bytes()).unwrap();
    let (code, said, _) = text(&trial.wait_with_output().unwrap());
    assert!(code == Some(0) && said.contains("\"outcome\":\"stopped\""), "{said}");
}

#[test]
fn a_killed_trial_is_written_down_and_never_called_fitting() {
    let place = Place::new(16);
    let sweep = place.sweep().spawn().unwrap();
    kill(trial_of(sweep.id()), libc::SIGKILL);
    let (code, said, _) = text(&sweep.wait_with_output().unwrap());
    assert!(said.contains("0 of 1 runs fit") && said.contains("1 run did not fit when it was measured"), "{said}");
    assert_eq!(code, Some(1));
    let seen = place.measurements();
    assert!(matches!(&seen[..], [m] if m.was_killed() && !m.has_speed()), "{seen:?}");
    // Asked without measuring, it is remembered; asked to measure, it is tried again, and ends better.
    let (code, said, _) = text(&place.command(&["sweep", "grid.toml", "--quiet"]).output().unwrap());
    assert!(code == Some(1) && said.contains("0 of 1 runs fit"), "{said}");
    let (code, said, _) = text(&place.sweep().output().unwrap());
    assert!(code == Some(0) && said.contains("1 of 1 runs fit") && !said.contains("did not fit"), "{said}");
    assert_eq!(place.measurements().len(), 2);
}

#[test]
fn what_died_of_memory_is_not_tried_again_and_larger_runs_do_not_fit() {
    let place = Place::new(4);
    let play = |mishap| {
        let script = Script { mishap, lengths: vec![64; 10], ..Script::default() };
        place.write("script.json", &serde_json::to_string(&script).unwrap());
    };
    let sweep = |more: &[&str]| {
        let args = ["sweep", "grid.toml", "--measure", "--script", "script.json", "--quiet"];
        text(&place.command(&[&args, more].concat()).output().unwrap())
    };
    play(Some(Mishap::OutOfMemory(1)));
    let (code, said, _) = sweep(&[]);
    assert!(code == Some(1) && said.contains("0 of 1 runs fit"), "{said}");
    assert!(matches!(place.measurements()[..], [Measurement { outcome: Outcome::OutOfMemory { at_step: 0 }, .. }]));
    // Twice as many examples at once need more; half of them may do.
    play(None);
    place.write("grid.toml", &run("[2, 4, 8]", 8));
    let (code, said, _) = sweep(&[]);
    assert!(code == Some(0) && said.contains("1 of 3 runs fit"), "{said}");
    let batches = |all: &[Measurement]| all.iter().map(|m| m.config.execution.batch_size).collect::<Vec<_>>();
    assert_eq!(batches(&place.measurements()), [4, 2]);
    // Nor are they launched, and a plan passes them over.
    place.write("my.toml", &run("4", 4));
    let (code, _, said) =
        text(&place.command(&["launch", "my.toml", "--script", "script.json", "--quiet"]).output().unwrap());
    assert!(code == Some(1) && said.contains("like one that ran out of memory here with"), "{said}");
    let calibrate = ["calibrate", "my.toml", "--script", "script.json", "--json"];
    let (code, said, _) = text(&place.command(&calibrate).output().unwrap());
    let answer: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, answer["calibration"]["died"].is_object()), (Some(0), true), "{said}");
    assert!(answer["choice"]["execution"]["batch_size"].as_u64().unwrap() < 4, "{said}");
    let filled = |m: &Measurement| m.config.execution.batch_size * m.config.recipe.max_seq_length;
    assert!(place.measurements()[2..].iter().all(|m| filled(m) < 4 * 64));
}

#[test]
fn what_is_recommended_has_not_died() {
    let place = Place::new(4);
    place.write("my.toml", &run("4", 8));
    let script = Script { mishap: Some(Mishap::OutOfMemory(1)), lengths: vec![64; 10], ..Script::default() };
    place.write("script.json", &serde_json::to_string(&script).unwrap());
    // Three die, and the second time others.
    for _ in 0..2 {
        let (code, said, _) =
            text(&place.command(&["calibrate", "my.toml", "--script", "script.json", "--json"]).output().unwrap());
        let answer: serde_json::Value = serde_json::from_str(&said).unwrap();
        let seen = place.measurements();
        assert!(code == Some(0) && seen.iter().all(Measurement::died_of_memory), "{said}");
        let micro_batch = |config: &RunConfig| {
            let e = &config.execution;
            (config.recipe.max_seq_length, config.recipe.lora.rank, e.batch_size, e.grad_checkpoint, e.weights)
        };
        let choice: Option<RunConfig> = serde_json::from_value(answer["choice"].clone()).unwrap();
        if let Some(choice) = &choice {
            assert!(seen.iter().all(|m| micro_batch(&m.config) != micro_batch(choice)), "{said}");
        }
    }
    assert!(place.measurements().len() >= 3);
}

#[test]
fn a_trial_without_a_figure_is_tried_again() {
    let place = Place::new(4);
    let sweep = |mishap| {
        let script = Script { mishap, lengths: vec![64; 10], ..Script::default() };
        place.write("script.json", &serde_json::to_string(&script).unwrap());
        let args = ["sweep", "grid.toml", "--measure", "--script", "script.json", "--quiet"];
        assert_eq!(place.command(&args).output().unwrap().status.code(), Some(0));
        place.measurements().iter().map(Measurement::has_speed).collect::<Vec<_>>()
    };
    assert_eq!(sweep(Some(Mishap::Hang(1))), [false]);
    assert_eq!(sweep(None), [false, true]);
    assert_eq!(sweep(None), [false, true]);
}

#[test]
fn an_interrupted_sweep_says_how_to_go_on_and_leaves_no_empty_row() {
    let place = Place::new(1_000_000);
    let mut sweep = place.sweep().spawn().unwrap();
    let trial = trial_of(sweep.id());
    at_work(trial);
    kill(sweep.id(), libc::SIGINT);
    let mut said = String::new();
    sweep.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let output = sweep.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(
        said.contains("interrupted: 0 of 1 trials") && said.contains("`headroom sweep grid.toml --measure"),
        "{said}"
    );
    assert!(output.stdout.is_empty(), "no ranking: {:?}", output.stdout);
    assert_eq!(place.measurements(), []);
    assert!(!place.path("reports").exists());
    gone(trial);
}

#[test]
fn an_interrupted_calibration_keeps_what_was_measured() {
    let place = Place::new(4);
    place.write("my run.toml", &run("4", 8));
    let mut calibrate = place.command(&["calibrate", "my run.toml", "--again"]).spawn().unwrap();
    trial_of(calibrate.id());
    kill(calibrate.id(), libc::SIGINT);
    let mut said = String::new();
    calibrate.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let (code, out, _) = text(&calibrate.wait_with_output().unwrap());
    assert_eq!(code, Some(130), "{said}");
    assert!(said.contains("hint: continue with `headroom calibrate 'my run.toml'`"), "{said}");
    assert!(out.contains("Interrupted; the measurements are kept"), "{out}");
    assert!(place.measurements().iter().all(Measurement::says_something));
}

#[test]
fn results_that_cannot_be_written_are_found_out_before_a_trial() {
    let place = Place::new(4);
    place.write("results", "a file");
    let (code, _, said) = text(&place.command(&["calibrate", "grid.toml", "--quiet"]).output().unwrap());
    assert!(code == Some(2) && said.contains("results"), "{said}");
    fs::remove_file(place.path("results")).unwrap();
    // An older table, with a column less.
    let script = Script { lengths: vec![64; 10], ..Script::default() };
    place.write("script.json", &serde_json::to_string(&script).unwrap());
    let calibrate = ["calibrate", "grid.toml", "--script", "script.json", "--quiet"];
    assert!(place.command(&calibrate).output().unwrap().status.success());
    let table = fs::read_dir(place.path("results")).unwrap().next().unwrap().unwrap().path().join("measurements.csv");
    let older =
        fs::read_to_string(&table).unwrap().lines().next().unwrap().rsplit_once(',').unwrap().0.to_owned() + "\n";
    fs::write(&table, &older).unwrap();
    let (code, said, why) = text(&place.command(&calibrate).output().unwrap());
    assert!(code == Some(2) && why.contains("cannot add to") && !said.contains("a step"), "{said}{why}");
    assert_eq!(fs::read_to_string(&table).unwrap(), older);
}

/// Touches new memory with so many threads until it is ended.
fn fill(threads: usize) -> ! {
    let fill = || {
        let mut held = Vec::new();
        loop {
            held.push(std::hint::black_box(vec![1u8; 1 << 20]));
        }
    };
    std::thread::scope(|scope| {
        (1..threads).for_each(|_| _ = scope.spawn(fill));
        fill()
    })
}
