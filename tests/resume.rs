//! What a run survives between its steps: a stop in the midst of one, damage to what it wrote, and changes to what it is
//! made from. Whatever goes on ends with the bytes of the uninterrupted run, and what cannot is refused.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of tests are tests too

mod common;

use std::path::{Path, PathBuf};

use common::fixture;
use headroom::error::{Error, Result};
use headroom::spec::record::{Job, Outcome};
use headroom::spec::run::RunConfig;
use headroom::trainer::candle::CandleTrainer;
use headroom::trainer::{Flow, TrainEvent, Trainer};

const STEPS: usize = 6;

/// A model folder, rows and a run of six steps, saved after each second, whose evaluations take several batches.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(fixture("hf_folder")).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
        std::fs::copy(fixture("hf_folder/train.jsonl"), dir.path().join("valid.jsonl")).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn out(&self) -> PathBuf {
        self.path("out")
    }

    fn job(&self, resume: bool) -> Job {
        let text = format!(
            r#"
            model = "{0}"
            seed = 5
            [data]
            train = "{0}/train.jsonl"
            valid = "{0}/valid.jsonl"
            [recipe]
            max_seq_length = 48
            effective_batch_size = 4
            steps = {STEPS}
            learning_rate = 5e-3
            [recipe.lora]
            rank = 3
            alpha = 5
            dropout = 0.1
            [execution]
            batch_size = 1
            "#,
            self.dir.path().display()
        );
        Job {
            config: RunConfig::from_toml(&text, Path::new("run.toml")).unwrap(),
            out: Some(self.out()),
            stop_after: None,
            resume,
            accept_changes: false,
            save_every: 2,
            pad_to_max: false,
        }
    }

    /// Runs until the event number `n`, to which `flow` is the answer; all others are answered with "go on".
    fn run(&self, resume: bool, n: usize, flow: Flow) -> Result<(Outcome, Vec<TrainEvent>)> {
        let mut events = Vec::new();
        let outcome = CandleTrainer.train(&self.job(resume), &mut |event| {
            events.push(event.clone());
            if events.len() == n { flow } else { Flow::Continue }
        })?;
        Ok((outcome, events))
    }

    fn whole(&self, resume: bool) -> Result<(Outcome, Vec<TrainEvent>)> {
        self.run(resume, 0, Flow::Continue)
    }

    fn adapter(&self) -> Vec<u8> {
        std::fs::read(self.path("out/adapter/adapter_model.safetensors")).unwrap()
    }

    fn checkpoints(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.path("out/checkpoints"))
            .map(|all| all.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect())
            .unwrap_or_default();
        names.sort();
        names
    }
}

/// Losses, in order; of a step that was told twice the later.
fn losses(events: &[TrainEvent]) -> Vec<(usize, f64)> {
    let steps = events.iter().filter_map(|e| if let TrainEvent::Step(s) = e { Some((s.step, s.loss)) } else { None });
    steps.collect()
}

#[test]
fn a_stop_at_any_event_loses_no_step_and_changes_no_byte() {
    let place = Place::new();
    let (_, all) = place.whole(false).unwrap();
    let (adapter, whole) = (place.adapter(), losses(&all));
    assert!(all.iter().filter(|e| **e == TrainEvent::Working).count() > 3 * STEPS);
    for n in 1..=all.len() {
        let place = Place::new();
        let (outcome, first) = place.run(false, n, Flow::Stop).unwrap();
        let done = losses(&first).len();
        let ended = losses(&first).len() == STEPS && outcome == Outcome::Finished;
        assert!(ended || outcome == Outcome::Stopped { at_step: done }, "{n}: {outcome:?}");
        // Whatever was told is in a checkpoint, which the rest goes on from.
        let (outcome, second) = place.whole(true).unwrap();
        assert_eq!(outcome, Outcome::Finished, "{n}");
        assert_eq!([losses(&first), losses(&second)].concat(), whole, "{n}");
        assert_eq!(place.adapter(), adapter, "{n}: {:?}", all[n - 1]);
        let evaluations = |events: &[TrainEvent]| {
            events.iter().filter(|e| matches!(e, TrainEvent::Validation(_))).cloned().collect::<Vec<_>>()
        };
        assert_eq!([evaluations(&first), evaluations(&second)].concat(), evaluations(&all), "{n}");
    }
}

#[test]
fn what_could_not_be_written_down_is_not_in_a_checkpoint() {
    let place = Place::new();
    let (_, all) = place.whole(false).unwrap();
    for (n, event) in all.iter().enumerate().filter(|(_, e)| matches!(e, TrainEvent::Step(_))) {
        let TrainEvent::Step(step) = event else { continue };
        let place = Place::new();
        let (outcome, first) = place.run(false, n + 1, Flow::Abort).unwrap();
        assert_eq!(outcome, Outcome::Stopped { at_step: step.step });
        let newest = place.checkpoints().pop();
        assert!(newest < Some(format!("step-{:06}", step.step)), "{newest:?} after {}", step.step);
        // The step comes again, and so does what came after the checkpoint.
        let (_, second) = place.whole(true).unwrap();
        let from = losses(&second)[0].0;
        assert!(from <= step.step && from + 2 > step.step, "{from}");
        let told: Vec<_> = losses(&first).into_iter().filter(|(step, _)| *step < from).collect();
        assert_eq!([told, losses(&second)].concat(), losses(&all));
    }
}

fn resumed(events: &[TrainEvent]) -> (Option<PathBuf>, Vec<String>, Vec<String>) {
    match &events[0] {
        TrainEvent::Resumed { from, damaged, changed } => (from.clone(), damaged.clone(), changed.clone()),
        other => panic!("{other:?}"),
    }
}

fn edit(path: &Path, change: impl Fn(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

/// A run that was stopped after step 5 and has checkpoints of steps 4 and 5.
fn stopped() -> Place {
    let place = Place::new();
    let mut job = place.job(false);
    job.stop_after = Some(5);
    CandleTrainer.train(&job, &mut |_| Flow::Continue).unwrap();
    assert_eq!(place.checkpoints(), ["step-000004", "step-000005"]);
    place
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_it_used() {
    let reference = Place::new();
    reference.whole(false).unwrap();
    type Damage = Box<dyn Fn(&Path)>;
    let in_file = |name: &'static str, change: fn(&mut Vec<u8>)| -> Damage {
        Box::new(move |folder: &Path| edit(&folder.join(name), change))
    };
    let cases: Vec<(&str, Damage)> = vec![
        ("one bit of a tensor", in_file("state.safetensors", |b| *b.last_mut().unwrap() ^= 1)),
        ("zeros", in_file("state.safetensors", |b| b[1000..1512].fill(0))),
        ("cut", in_file("state.safetensors", |b| b.truncate(b.len() / 2))),
        ("longer", in_file("state.safetensors", |b| b.extend([0; 100]))),
        ("header", in_file("state.safetensors", |b| b[20] ^= 4)),
        (
            "a digit of the seed",
            in_file("state.json", |b| {
                let text = String::from_utf8(b.clone()).unwrap();
                *b = text.replace("\"step\": 5", "\"step\": 4").into_bytes();
            }),
        ),
        ("the sums", in_file("SHA256SUMS", |b| b[3] ^= 1)),
        (
            "tensors of another step",
            Box::new(|folder| {
                std::fs::copy(
                    folder.with_file_name("step-000004").join("state.safetensors"),
                    folder.join("state.safetensors"),
                )
                .unwrap();
            }),
        ),
        ("tensors gone", Box::new(|folder| std::fs::remove_file(folder.join("state.safetensors")).unwrap())),
        (
            "all of another step",
            Box::new(|folder| {
                for name in ["state.safetensors", "state.json", "SHA256SUMS"] {
                    std::fs::copy(folder.with_file_name("step-000004").join(name), folder.join(name)).unwrap();
                }
            }),
        ),
    ];
    for (what, damage) in cases {
        let place = stopped();
        damage(&place.path("out/checkpoints/step-000005"));
        let (outcome, events) = place.whole(true).unwrap();
        let (from, damaged, _) = resumed(&events);
        assert!(from.unwrap().ends_with("step-000004"), "{what}");
        assert!(damaged.len() == 1 && damaged[0].contains("step-000005"), "{what}: {damaged:?}");
        assert_eq!((outcome, losses(&events)[0].0), (Outcome::Finished, 5), "{what}");
        assert_eq!(place.adapter(), reference.adapter(), "{what}");
        assert_eq!(place.checkpoints(), ["step-000004", "step-000006"], "{what}");
    }
    // One that was never finished counts for nothing.
    let place = stopped();
    std::fs::remove_file(place.path("out/checkpoints/step-000005/SHA256SUMS")).unwrap();
    let (from, damaged, _) = resumed(&place.whole(true).unwrap().1);
    assert!(from.unwrap().ends_with("step-000004") && damaged.is_empty());
    assert_eq!(place.adapter(), reference.adapter());
    // One that an earlier version wrote is not taken for one of those.
    let place = stopped();
    for step in [4, 5] {
        let folder = place.path(&format!("out/checkpoints/step-00000{step}"));
        std::fs::remove_file(folder.join("SHA256SUMS")).unwrap();
        std::fs::write(folder.join("state.json"), "{\"step\": 5}").unwrap();
    }
    let error = place.whole(true).unwrap_err().to_string();
    assert!(error.contains("earlier version"), "{error}");
    // With no good one left the run is refused, and nothing is changed.
    let place = stopped();
    for step in [4, 5] {
        edit(&place.path(&format!("out/checkpoints/step-00000{step}/state.safetensors")), |b| b[900] ^= 1);
    }
    let error = place.whole(true).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }) && error.hint().is_some(), "{error}");
    assert_eq!(place.checkpoints(), ["step-000004", "step-000005"]);
}

#[test]
fn a_run_goes_on_only_with_what_it_began_with() {
    let reference = Place::new();
    reference.whole(false).unwrap();
    let swap_lines = |b: &mut Vec<u8>| {
        let text = String::from_utf8(b.clone()).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.reverse();
        *b = (lines.join("\n") + "\n").into_bytes();
    };
    type Change = (&'static str, &'static str, fn(&mut Vec<u8>));
    let cases: [Change; 6] = [
        ("train.jsonl", "data/train", swap_lines),
        ("train.jsonl", "data/train", |b| b.extend(b"{\"text\":\"one more row\"}\n")),
        ("valid.jsonl", "data/valid", swap_lines),
        ("model-00002-of-00002.safetensors", "model/model-00002-of-00002.safetensors", |b| *b.last_mut().unwrap() ^= 1),
        ("config.json", "model/config.json", |b| b.push(b'\n')),
        ("tokenizer.json", "model/tokenizer.json", |b| b.push(b'\n')),
    ];
    for (file, part, change) in cases {
        let place = stopped();
        edit(&place.path(file), change);
        let error = place.whole(true).unwrap_err();
        assert!(matches!(&error, Error::Changed { what, .. } if what[0].contains(part)), "{file}: {error}");
        assert!(error.hint().unwrap().contains("--accept-changes"));
        assert_eq!(place.checkpoints(), ["step-000004", "step-000005"], "{file}");
        let mut job = place.job(true);
        job.accept_changes = true;
        let mut said = Vec::new();
        CandleTrainer
            .train(&job, &mut |event| {
                said.push(event.clone());
                Flow::Continue
            })
            .unwrap();
        assert!(resumed(&said).2[0].contains(part), "{file}");
    }
    // What is not read is nobody's business.
    let place = stopped();
    std::fs::write(place.path("README.md"), "notes").unwrap();
    place.whole(true).unwrap();
    assert_eq!(place.adapter(), reference.adapter());
}

#[test]
fn files_that_somebody_put_into_a_checkpoint_stay() {
    let place = stopped();
    std::fs::write(place.path("out/checkpoints/step-000004/notes.txt"), "mine").unwrap();
    std::fs::create_dir_all(place.path("out/checkpoints/best")).unwrap();
    place.whole(true).unwrap();
    assert!(place.path("out/checkpoints/step-000004/notes.txt").exists());
    assert!(!place.path("out/checkpoints/step-000004/state.json").exists());
    assert_eq!(place.checkpoints(), ["best", "step-000004", "step-000005", "step-000006"]);
}
