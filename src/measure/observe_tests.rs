use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::spec::run::RunConfig;

const READY: &str =
    r#"{"event":"ready","trainable_params":1,"total_params":2,"total_steps":9,"done_steps":0,"load_time":0.1}"#;

fn step(n: usize, time: f64) -> String {
    format!(
        "{{\"event\":\"step\",\"step\":{n},\"loss\":2.0,\"learning_rate\":0.1,\"grad_norm\":1.0,\"padded_tokens\":64,\
         \"tokens\":60,\"step_time_s\":{time},\"tokens_per_s\":600.0,\"allocated_peak_bytes\":1000,\"footprint_bytes\":2000}}"
    )
}

fn limits() -> Limits {
    Limits {
        memory: Bytes::from_gib(1.0),
        time: Seconds(20.0),
        silence: Seconds(10.0),
        min_steps: 3,
        min_time: Seconds(0.0),
        max_steps: 100,
        precision: 0.0,
    }
}

fn job() -> Job {
    let config = RunConfig::from_toml("model = \"m\"\ndata = \"d\"", Path::new("run.toml")).unwrap();
    Job { pad_to_max: true, ..Job::new(config) }
}

/// Runs a shell script in the place of the trial.
fn watch(script: &str, limits: &Limits, stop: &AtomicBool) -> Result<Observed> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trial");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    observe(Command::new("/bin/sh").arg(&path), &job(), limits, stop, &mut |_| {})
}

fn see(script: &str) -> Observed {
    watch(script, &limits(), &AtomicBool::new(false)).unwrap()
}

fn echo(lines: &[&str]) -> String {
    lines.iter().map(|l| format!("echo '{l}'\n")).collect()
}

#[test]
fn a_good_run_is_seen_whole() {
    let lines = [READY, &step(1, 3.0), &step(2, 1.0), r#"{"outcome":"finished"}"#];
    let seen = see(&format!("read job\ncase \"$job\" in *max_seq_length*) ;; *) exit 3;; esac\n{}", echo(&lines)));
    assert_eq!(seen.outcome, Outcome::Finished);
    assert_eq!((seen.steps.len(), seen.garbage), (2, 0));
    assert!(matches!(seen.ready, Some(TrainEvent::Ready { total_params: 2, .. })));
    assert!(seen.footprint >= Bytes(2000));
}

#[test]
fn garbage_is_skipped_and_counted() {
    let no_time = step(3, 0.0);
    let no_number = step(3, 1.0).replace("600.0", "null");
    let lines =
        [READY, "Downloading 40%", &step(1, 1.0), "{\"event\":\"dance\"}", "{", &no_time, &no_number, &step(2, 1.0)];
    let seen = see(&format!("{}printf '\\377\\376\\n'\n{}", echo(&lines), echo(&[r#"{"outcome":"finished"}"#])));
    assert_eq!((seen.steps.len(), seen.garbage), (2, 6));
    assert_eq!(seen.outcome, Outcome::Finished);
}

#[test]
fn a_torn_last_line_is_garbage_and_the_end_a_crash() {
    let seen = see(&format!("{}printf '{{\"event\":\"st'\nkill -SEGV $$", echo(&[READY, &step(1, 1.0)])));
    assert_eq!((seen.steps.len(), seen.garbage), (1, 1));
    let Outcome::Crashed { at_step: 1, reason } = seen.outcome else { panic!("{:?}", seen.outcome) };
    assert!(reason.contains("signal 11"), "{reason}");
}

#[test]
fn the_last_words_are_kept() {
    let seen = see(&format!("{}echo first >&2; echo 'it broke' >&2; exit 7", echo(&[READY])));
    assert_eq!(seen.outcome, Outcome::Crashed { at_step: 0, reason: "exit code 7: it broke".into() });
    let seen = see(&format!("{}echo 'error: too hot' >&2; echo 'hint: cool it' >&2; exit 2", echo(&[READY])));
    assert_eq!(seen.outcome, Outcome::Crashed { at_step: 0, reason: "exit code 2: too hot".into() });
    let seen = see(&format!("{}kill -KILL $$", echo(&[READY])));
    let Outcome::Crashed { reason, .. } = seen.outcome else { panic!("{:?}", seen.outcome) };
    assert!(reason.starts_with("signal 9"), "{reason}");
    let seen = see(&format!("{}echo 'memory allocation of 99 bytes failed' >&2; kill -ABRT $$", echo(&[READY])));
    assert_eq!(seen.outcome, Outcome::OutOfMemory { at_step: 0 });
}

#[test]
fn a_trial_that_cannot_begin_is_an_error() {
    let result = watch("echo 'error: no such model' >&2; exit 2", &limits(), &AtomicBool::new(false));
    let error = result.unwrap_err().to_string();
    assert!(error.contains("candle") && error.contains("no such model"), "{error}");
    let absent = observe(&mut Command::new("/absent/trial"), &job(), &limits(), &AtomicBool::new(false), &mut |_| {});
    assert!(matches!(absent, Err(Error::Engine { .. })));
}

#[test]
fn a_hang_is_ended_even_if_it_ignores_the_request() {
    let short = Limits { silence: Seconds(0.3), ..limits() };
    let script = format!("trap '' TERM\n{}while true; do sleep 0.05; echo noise; done", echo(&[READY, &step(1, 1.0)]));
    let seen = watch(&script, &short, &AtomicBool::new(false));
    assert_eq!(seen.unwrap().outcome, Outcome::TimedOut { at_step: 1 });
}

#[test]
fn the_gpus_last_words_are_understood() {
    let dies = |line: &str| {
        see(&format!("{}echo 'error: tensor operation failed' >&2; echo '  {line}' >&2; exit 2", echo(&[READY])))
    };
    let seen = dies("Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)");
    assert_eq!(seen.outcome, Outcome::OutOfMemory { at_step: 0 });
    let seen = dies("Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)");
    let reason = "exit code 2: the GPU watchdog of macOS ended a command that took too long".into();
    assert_eq!(seen.outcome, Outcome::Crashed { at_step: 0, reason });
}

#[test]
fn too_much_memory_is_ended() {
    // `tail` keeps the whole of a line that does not end; it is not the shell itself but what that started.
    let limit = Limits { memory: Bytes::from_mib(100), ..limits() };
    let script = format!("{}head -c 3000000000 /dev/zero | tail -n 1 | sleep 30", echo(&[READY, &step(1, 1.0)]));
    let seen = watch(&script, &limit, &AtomicBool::new(false));
    let seen = seen.unwrap();
    assert_eq!(seen.outcome, Outcome::OutOfMemory { at_step: 1 });
    assert!(seen.footprint > limit.memory && seen.footprint < Bytes::from_mib(1500), "{}", seen.footprint);
}

#[test]
fn what_it_tells_of_its_memory_counts_too() {
    let limit = Limits { memory: Bytes::from_mib(500), ..limits() };
    let heavy = step(2, 1.0).replace("2000", "600000000");
    let seen = watch(&format!("{}sleep 30", echo(&[READY, &step(1, 1.0), &heavy])), &limit, &AtomicBool::new(false));
    assert_eq!(seen.unwrap().outcome, Outcome::OutOfMemory { at_step: 2 });
}

#[test]
fn a_kill_near_the_limit_was_for_memory() {
    // Told from inside, as a look from outside may come too late: 0.95 and 0.5 of the limit.
    for (told, died) in [(950, true), (500, false)] {
        let limit = Limits { memory: Bytes::from_mib(1000), ..limits() };
        let step = step(1, 1.0).replace("2000", &(told << 20).to_string());
        let seen = watch(&format!("{}kill -KILL $$", echo(&[READY, &step])), &limit, &AtomicBool::new(false));
        let seen = seen.unwrap();
        assert_eq!(seen.outcome == Outcome::OutOfMemory { at_step: 1 }, died, "{:?}", seen.outcome);
        assert_eq!(seen.footprint, Bytes::from_mib(told));
    }
}

#[test]
fn enough_is_enough() {
    let steps: Vec<String> = (1..=6).map(|n| step(n, 1.0)).collect();
    let script = format!("{}{}sleep 30", echo(&[READY]), echo(&steps.iter().map(String::as_str).collect::<Vec<_>>()));
    // Equal times: known well as soon as there are enough.
    let seen = watch(&script, &limits(), &AtomicBool::new(false));
    assert!(matches!(seen.unwrap().outcome, Outcome::Stopped { at_step } if at_step >= 4));
    // The time ends a measured trial; one that has nothing yet is waited for while it lives.
    let hasty = Limits { time: Seconds(0.4), min_steps: 50, ..limits() };
    assert!(matches!(watch(&script, &hasty, &AtomicBool::new(false)).unwrap().outcome, Outcome::Stopped { .. }));
    let late = format!("{}sleep 0.6\n{}sleep 30", echo(&[READY]), echo(&[&step(1, 1.0), &step(2, 1.0)]));
    assert_eq!(watch(&late, &hasty, &AtomicBool::new(false)).unwrap().outcome, Outcome::Stopped { at_step: 2 });
    let hasty = Limits { silence: Seconds(0.6), ..hasty };
    let slow = format!("{}sleep 30", echo(&[READY]));
    assert_eq!(watch(&slow, &hasty, &AtomicBool::new(false)).unwrap().outcome, Outcome::TimedOut { at_step: 0 });
}

#[test]
fn an_interrupt_keeps_what_was_measured() {
    let stop = AtomicBool::new(false);
    let script = format!("{}sleep 30", echo(&[READY, &step(1, 1.0), &step(2, 1.0)]));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(400));
            stop.store(true, Ordering::Relaxed);
        });
        let seen = watch(&script, &limits(), &stop).unwrap();
        assert_eq!((seen.outcome, seen.steps.len()), (Outcome::Stopped { at_step: 2 }, 2));
    });
}
