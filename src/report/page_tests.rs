use super::*;
use crate::measure::{Measured, Place};
use crate::plan::prediction_file::{LedgerLine, LimitLine, RESIDENT};
use crate::plan::{LimitKind, Verdict};
use crate::predict::Basis;
use crate::report::compare::{Activity, Change};
use crate::spec::record::{Job, Outcome, Step};
use crate::spec::run::RunConfig;

fn estimate(point: f64) -> Estimate<f64> {
    Estimate { point, low: 0.9 * point, high: 1.1 * point, level: 0.99 }
}

fn line(name: &str, mib: u64, phase: &str) -> LedgerLine {
    LedgerLine { name: name.into(), bytes: Bytes::from_mib(mib), phase: phase.into() }
}

fn prediction() -> PredictionFile {
    PredictionFile {
        peak_memory_bytes: estimate(7e8).map(Bytes::from_f64),
        footprint_bytes: estimate(8e8).map(Bytes::from_f64),
        tokens_per_s: estimate(900.0),
        step_time_s: estimate(2.0).map(Seconds),
        total_time_s: estimate(240.0).map(Seconds),
        ledger: vec![
            line("base weights", 260, RESIDENT),
            line("adapters", 9, RESIDENT),
            line("optimizer moments", 18, RESIDENT),
            line("block inputs", 120, "forward"),
            line("attention scores", 90, "forward"),
            line("block inputs", 120, "loss"),
            line("logits", 190, "loss"),
            line("block inputs", 120, "backward"),
            line("MLP activations", 240, "backward"),
            line("gradients", 9, "backward"),
        ],
        energy_wh: None,
        steps: 120,
        timeline: vec![],
        verdict: Verdict::Fits,
        confidence: 0.99,
        basis: Basis::Formula,
        outside_what_was_checked: false,
        surely_fails: false,
        limits: vec![LimitLine {
            name: LimitKind::FreeMemory,
            limit: Bytes::from_mib(900),
            predicted: Bytes::from_mib(762),
        }],
        trainable_params: 4_884_480,
        total_params: 139_399_488,
    }
}

fn step(n: usize) -> Step {
    let wave = (n as f64 * 1.7).sin() * 0.1;
    Step {
        step: n,
        loss: 1.2 + 2.0 * (-(n as f64) / 30.0).exp() + wave,
        learning_rate: 1e-4,
        grad_norm: 1.0,
        padded_tokens: 2000,
        tokens: 1800,
        step_time_s: 2.1 + 0.1 * wave,
        tokens_per_s: 1800.0 / 2.1,
        allocated_peak_bytes: Bytes(690_000_000),
        footprint_bytes: Bytes(905_000_000),
    }
}

fn run(name: &str) -> RunReport {
    let text = "model = \"HuggingFaceTB/SmolLM2-135M\"\ndata = \"/home/somebody/<script>alert(1).jsonl\"";
    let config = RunConfig::from_toml(text, "run.toml".as_ref()).unwrap();
    let steps: Vec<Step> = (1..=120).map(step).collect();
    let observed = crate::measure::observe::Observed {
        ready: None,
        steps: steps.clone(),
        outcome: Outcome::Finished,
        footprint: Bytes(905_000_000),
        garbage: 0,
        wall_time: Seconds(252.0),
    };
    let job = Job::new(config.clone());
    let place = Place { machine: "a machine".into(), os: "an OS".into(), engine_version: "0.11.1".into() };
    let mut record = Measurement::new(&place, &job, &observed, Default::default(), Default::default());
    record.measured = Measured::of(&observed);
    let change = |quantity, p: f64| Change {
        quantity,
        before: Estimate { low: 0.4 * p, high: 2.2 * p, ..estimate(p) },
        after: estimate(1.1 * p),
    };
    RunReport {
        activity: Activity::Idle,
        name: name.into(),
        config,
        prediction: Some(prediction()),
        record: Some(record),
        steps,
        validations: vec![Validation { step: 120, validation_loss: 1.31, best_step: 100, best_validation_loss: 1.29 }],
        calibration: vec![change(Quantity::Footprint, 8e8), change(Quantity::Speed, 900.0)],
    }
}

#[test]
fn a_page_is_whole_safe_and_always_the_same() {
    let page = render("run one", &[run("one")]).unwrap();
    assert_eq!(page, render("run one", &[run("one")]).unwrap());
    assert!(!page.contains("<script") && page.contains("&lt;script&gt;"), "the data's name is escaped");
    // The name of SVG's language is the only address in it.
    assert_eq!(page.matches("://").count(), page.matches("http://www.w3.org/2000/svg").count());
    assert!(page.contains("It fit and it finished; 4 of 5 measured figures"), "{page}");
    assert!(page.contains("763 MiB") && page.contains("peak is 656 MiB in \u{201c}backward\u{201d}"));
    assert!(page.contains("lowest validation loss was 1.290, after step 100"));
    assert_eq!(page.matches("<svg").count(), 4);
    if let Ok(folder) = std::env::var("HEADROOM_TEST_PAGES") {
        std::fs::write(format!("{folder}/one.html"), &page).unwrap();
        let two = render("two runs", &[run("one"), run("two")]).unwrap();
        std::fs::write(format!("{folder}/two.html"), two).unwrap();
    }
}

#[test]
fn a_page_names_no_folder_and_no_other_process() {
    let mut run = run("one");
    run.config.model = "/home/somebody/models/mine".into();
    run.config.recipe.lora.init_adapter = Some("/home/somebody/adapter".into());
    let record = run.record.as_mut().unwrap();
    let reason = "cannot write `/home/somebody/my runs/x/state.json`: panicked at /home/somebody/src/x.rs:1".into();
    record.outcome = Outcome::Crashed { at_step: 120, reason };
    record.config = run.config.clone();
    record.state = crate::measure::probe::MachineState::filled();
    record.state.largest_other = Some("secret-browser".into());
    let page = render("run one", &[run.clone(), run]).unwrap();
    for told in ["somebody", "secret-browser", "my runs"] {
        assert!(!page.contains(told), "{told} in {page}");
    }
    for kept in [
        "model = &quot;mine&quot;",
        "init_adapter = &quot;adapter&quot;",
        "cannot write `state.json`: panicked at x.rs:1",
    ] {
        assert!(page.contains(kept), "{kept} is not in {page}");
    }
}

#[test]
fn a_run_that_went_on_has_no_end_yet() {
    let mut run = run("resumed");
    let ended = |run: &RunReport| run.answer();
    run.record.as_mut().unwrap().outcome = Outcome::Stopped { at_step: 5 };
    assert_eq!(ended(&run), "It has not ended, or ended without a report, after step 120.");
    run.record.as_mut().unwrap().outcome = Outcome::OutOfMemory { at_step: 119 };
    assert!(ended(&run).contains("after step 120"));
    run.record.as_mut().unwrap().outcome = Outcome::Stopped { at_step: 120 };
    assert!(ended(&run).starts_with("It was stopped after step 120"));
    // It died before its first step: nothing has happened since.
    run.record.as_mut().unwrap().outcome = Outcome::Crashed { at_step: 0, reason: "signal 9".into() };
    assert!(ended(&run).starts_with("It died after step 0"));
    run.record = None;
    assert!(ended(&run).contains("ended without a report, after step 120"));
}

#[test]
fn a_run_without_an_end_or_a_prediction_still_has_a_page() {
    let bare = RunReport { prediction: None, record: None, steps: vec![], calibration: vec![], ..run("bare") };
    let page = render("bare", &[bare]).unwrap();
    assert!(page.contains("It has not ended yet.") && !page.contains("<svg"), "{page}");
    render("none", &[]).unwrap();
}
