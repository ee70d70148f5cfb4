use super::*;
use crate::spec::run::RunConfig;

fn job(steps: usize) -> Job {
    let text = format!("model = \"m\"\ndata = \"d\"\n[recipe]\nsteps = {steps}\nmax_seq_length = 128");
    let config = RunConfig::from_toml(&text, std::path::Path::new("run.toml")).unwrap();
    Job { save_every: 3, ..Job::new(config) }
}

fn play(script: Script, job: &Job) -> (Result<Outcome>, Vec<Step>) {
    let mut steps = Vec::new();
    let outcome = ScriptedTrainer::new(script, Engine::Candle).train(job, &mut |event| {
        if let TrainEvent::Step(step) = event {
            steps.push(step.clone());
        }
        Flow::Continue
    });
    (outcome, steps)
}

#[test]
fn without_noise_it_tells_the_truth() {
    let script = Script { noise: 0.0, ..Script::default() };
    let trainer = ScriptedTrainer::new(script.clone(), Engine::Candle);
    let job = Job { pad_to_max: true, ..job(3) };
    let (outcome, steps) = play(script, &job);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    let time = trainer.true_micro_batch_time(1, 128).0 * 16.0;
    assert!((steps[0].step_time_s - 1.5 * time).abs() < 1e-9 && (steps[2].step_time_s - time).abs() < 1e-9);
    assert_eq!(steps[2].padded_tokens, 16 * 128);
    assert_eq!(steps[2].footprint_bytes, trainer.true_footprint(128));
}

#[test]
fn mishaps_are_outcomes() {
    let at = |mishap| play(Script { mishap: Some(mishap), ..Script::default() }, &job(5));
    assert_eq!(at(Mishap::OutOfMemory(3)).0.unwrap(), Outcome::OutOfMemory { at_step: 2 });
    assert_eq!(at(Mishap::Hang(1)).0.unwrap(), Outcome::TimedOut { at_step: 0 });
    assert!(matches!(at(Mishap::Crash(2)).0.unwrap(), Outcome::Crashed { at_step: 1, .. }));
    assert!(matches!(at(Mishap::Diverge(2)).0, Err(Error::NotFinite { step: 2, .. })));
    assert!(at(Mishap::Garbage(2)).1[1].loss.is_nan());
    let limited = Script { memory_limit: Some(Bytes::from_mib(100)), ..Script::default() };
    assert_eq!(play(limited, &job(5)).0.unwrap(), Outcome::OutOfMemory { at_step: 0 });
}

#[test]
fn a_resumed_run_takes_the_steps_of_an_uninterrupted_one() {
    let dir = tempfile::tempdir().unwrap();
    let heat = Some(Heat { after: Seconds(1.0), slowdown: 1.5 });
    let script = Script { heat, first_step: 1.0, ..Script::default() };
    let whole = play(script.clone(), &job(8)).1;
    let part = Job { out: Some(dir.path().into()), stop_after: Some(5), ..job(8) };
    let (outcome, mut steps) = play(script.clone(), &part);
    assert_eq!(outcome.unwrap(), Outcome::Stopped { at_step: 5 });
    let rest = Job { resume: true, stop_after: None, ..part };
    steps.extend(play(script, &rest).1);
    assert_eq!(steps, whole);
}
