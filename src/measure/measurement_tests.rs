use super::*;
use crate::spec::run::RunConfig;

/// A trial that ended like this, having taken so many MiB, of which at most 100 were expected and 900 were free.
fn ended(outcome: Outcome, mib: u64) -> Measurement {
    let config = RunConfig::from_toml("model = \"m\"\ndata = \"d\"", "run.toml".as_ref()).unwrap();
    let job = Job { pad_to_max: true, ..Job::new(config) };
    let place = Place { machine: "m".into(), os: "o".into(), engine_version: "v".into() };
    let observed = Observed {
        ready: None,
        steps: Vec::new(),
        outcome,
        footprint: Bytes::from_mib(mib),
        garbage: 0,
        wall_time: crate::units::Seconds(1.0),
    };
    let [low, point, high] = [60, 80, 100].map(Bytes::from_mib);
    let footprint_bytes = Some(Estimate { point, low, high, level: 0.9 });
    let state = MachineState { available_bytes: Some(Bytes::from_mib(900)), ..MachineState::default() };
    Measurement::new(&place, &job, &observed, Predicted { footprint_bytes, ..Predicted::default() }, state)
}

#[test]
fn what_ended_tells_of_memory() {
    let crashed = |reason: &str| Outcome::Crashed { at_step: 0, reason: reason.into() };
    // (how it ended, died of memory, killed, says something)
    for (outcome, expected) in [
        (Outcome::OutOfMemory { at_step: 0 }, (true, false, true)),
        (crashed("signal 9 (SIGKILL, sent when memory runs out)"), (false, true, true)),
        (crashed("signal 6 (SIGABRT)"), (false, false, false)),
        (crashed("exit code 9"), (false, false, false)),
        (Outcome::TimedOut { at_step: 0 }, (false, false, false)),
        (Outcome::Stopped { at_step: 0 }, (false, false, false)),
    ] {
        let m = ended(outcome, 50);
        assert_eq!((m.died_of_memory(), m.was_killed(), m.says_something()), expected, "{:?}", m.outcome);
    }
}

#[test]
fn what_a_dead_run_ran_into_is_its_limit_or_all_that_was_free() {
    // (had taken, ran into), MiB
    for (had_taken, ran_into) in [(50, 900), (100, 900), (120, 120), (880, 880), (950, 950), (0, 900)] {
        let m = ended(Outcome::OutOfMemory { at_step: 0 }, had_taken);
        assert_eq!(m.ran_into(), Bytes::from_mib(ran_into), "{had_taken}");
    }
    // Ended before it was looked at, it is taken to have been as large as expected.
    assert_eq!(ended(Outcome::OutOfMemory { at_step: 0 }, 0).had_taken(), Bytes::from_mib(100));
}
