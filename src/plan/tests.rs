use super::*;
use crate::predict::Request;
use crate::predict::calibration::Calibration;
use crate::spec::machine::Machine;
use crate::spec::model::{Model, catalogue};
use crate::spec::run::{Engine, Prefer, RunConfig, TokenLengths};
use crate::units::Bytes;

fn base() -> RunConfig {
    RunConfig::from_toml("model = \"m\"\ndata = \"train.jsonl\"", "run.toml".as_ref()).unwrap()
}

struct Case {
    lengths: TokenLengths,
    machine: Machine,
    calibration: Calibration,
}

impl Case {
    fn new(gib: f64) -> Self {
        Self::on(Machine::plainest(Bytes::from_gib(gib)).unwrap())
    }

    fn on(machine: Machine) -> Self {
        let calibration = Calibration::prior(&machine, Engine::Candle);
        Self { machine, calibration, lengths: TokenLengths::assumed(2000, 2048) }
    }

    fn ask(&self) -> Ask<'_> {
        Ask {
            machine: &self.machine,
            calibration: &self.calibration,
            run: base(),
            held: Held::default(),
            model: None,
            lengths: &self.lengths,
            prefer: Prefer::default(),
            hours: 8.0,
            confidence: 0.99,
            budget: None,
        }
    }
}

#[test]
fn the_plan_fits_and_finishes_and_more_memory_or_time_is_never_worse() {
    let size = |gib, hours| {
        let case = Case::new(gib);
        let plan = plan(&Ask { hours, ..case.ask() }).unwrap();
        assert!(plan.best.assessment.fits());
        assert!(plan.best.assessment.prediction.total_time.high.hours() <= hours);
        assert!(plan.best.assessment.limits.iter().all(|l| l.high <= l.limit));
        plan.best.assessment.prediction.total_params
    };
    assert!(size(8.0, 8.0) <= size(8.0, 24.0));
    assert!(size(8.0, 200.0) <= size(16.0, 200.0));
    assert!(size(16.0, 8.0) <= size(64.0, 8.0));
}

#[test]
fn the_recipe_follows_the_data() {
    let case = Case::new(16.0);
    let short = TokenLengths::new((0..1000).map(|i| 20 + i % 180).collect());
    let found = plan(&Ask { lengths: &short, ..case.ask() }).unwrap();
    // 99 % are at most 198 tokens, which is 224 as a multiple of 32.
    assert_eq!(found.best.run.recipe.max_seq_length, 224);
    let without = plan(&case.ask()).unwrap();
    assert!(found.best.assessment.prediction.total_params > without.best.assessment.prediction.total_params);
}

#[test]
fn what_was_given_is_kept() {
    let case = Case::new(16.0);
    let mut run = base();
    run.recipe.lora.rank = 4;
    run.execution.batch_size = 2;
    let entry = catalogue::find("Qwen2.5-0.5B-Instruct").unwrap();
    let model = Some(Model::new(&entry.id, entry.spec.clone()));
    let held = Held { rank: true, batch_size: true, ..Held::default() };
    let found = plan(&Ask { run, held, model, ..case.ask() }).unwrap().best.run;
    assert_eq!((found.model.as_str(), found.recipe.lora.rank), ("Qwen/Qwen2.5-0.5B-Instruct", 4));
    assert_eq!(found.execution.batch_size, 2);
}

#[test]
fn an_honest_no_says_what_is_needed() {
    let case = Case::new(8.0);
    let entry = catalogue::find("Llama-3.3-70B-Instruct").unwrap();
    let model = Some(Model::new(&entry.id, entry.spec.clone()));
    let no = plan(&Ask { model, ..case.ask() }).unwrap_err();
    assert_eq!(no.exit_code(), 1);
    assert!(no.to_string().contains("`meta-llama/Llama-3.3-70B-Instruct` at 128 tokens"), "{no}");
    let slow = plan(&Ask { hours: 0.001, ..case.ask() }).unwrap_err();
    assert!(matches!(slow, crate::error::Error::TooSlow { .. }), "{slow}");
}

#[test]
fn a_budget_below_the_machine_binds() {
    let case = Case::new(16.0);
    let budget = Some(Bytes::from_gib(2.0));
    let found = plan(&Ask { budget, ..case.ask() }).unwrap();
    assert_eq!(found.best.assessment.binding().unwrap().kind, LimitKind::MemoryLimit);
    assert!(found.best.assessment.prediction.footprint.high <= Bytes::from_gib(2.0));
}

#[test]
fn verdicts_tell_tight_paging_and_impossible_apart() {
    let entry = catalogue::find("Qwen2.5-1.5B-Instruct").unwrap();
    let run = base();
    let verdict = |mut machine: Machine, free: f64, working_set: f64| {
        machine.available = Bytes::from_gib(free);
        machine.working_set = Bytes::from_gib(working_set);
        machine.max_buffer = Bytes::from_gib(64.0);
        let calibration = Calibration::prior(&machine, Engine::Candle);
        let request =
            Request { spec: &entry.spec, machine: &machine, run: &run, lengths: None, calibration: &calibration };
        assess(&request, 0.99, None).unwrap()
    };
    let machine = Machine::plainest(Bytes::from_gib(16.0)).unwrap();
    let at_ease = verdict(machine.clone(), 64.0, 64.0);
    let point = at_ease.prediction.footprint.point.gib();
    assert_eq!(at_ease.verdict, Verdict::Fits);
    assert_eq!(verdict(machine.clone(), 1.05 * point, 64.0).verdict, Verdict::Tight);
    assert_eq!(verdict(machine.clone(), 0.8 * point, 64.0).verdict, Verdict::Pages);
    assert_eq!(verdict(machine.clone(), 64.0, 0.5 * point).verdict, Verdict::Pages);
    // Over what is installed nothing can page; a little over it may still be wrong, five times over it is not.
    let with = |share: f64| Machine { memory: Bytes::from_gib(share * point), ..machine.clone() };
    let (over, far_over) = (verdict(with(0.95), 0.5 * point, 64.0), verdict(with(0.2), 0.1 * point, 64.0));
    assert_eq!((over.verdict, over.surely_fails), (Verdict::DoesNotFit, false));
    assert_eq!((far_over.verdict, far_over.surely_fails), (Verdict::DoesNotFit, true));
}

#[test]
fn prediction_json_has_the_keys_that_others_read() {
    let case = Case::new(16.0);
    let best = plan(&case.ask()).unwrap().best;
    let json = serde_json::to_value(&best.assessment).unwrap();
    for key in ["peak_memory_bytes", "footprint_bytes", "tokens_per_s", "step_time_s", "total_time_s"] {
        for part in ["point", "low", "high", "level"] {
            assert!(json[key][part].is_number(), "{key}.{part}");
        }
    }
    for key in ["energy_wh", "ledger", "verdict", "limits", "trainable_params", "total_params", "basis"] {
        assert!(!json[key].is_null(), "{key}");
    }
    assert!(json["ledger"][0]["bytes"].is_u64() && json["limits"][0]["predicted"].is_u64());
}

#[test]
#[ignore = "a stopwatch: cargo test --release -- --ignored stopwatch --nocapture"]
fn stopwatch() {
    let case = Case::new(16.0);
    let ask = case.ask();
    let t = std::time::Instant::now();
    let found = plan(&ask).unwrap();
    println!("plan {:?}, {} considered", t.elapsed(), found.considered);
    let spec = &catalogue::find(&found.best.run.model).unwrap().spec;
    let request = Request {
        spec,
        machine: &case.machine,
        run: &found.best.run,
        lengths: Some(&case.lengths),
        calibration: &case.calibration,
    };
    let t = std::time::Instant::now();
    for _ in 0..100 {
        std::hint::black_box(request.step_time().unwrap());
    }
    println!("step_time {:?}", t.elapsed() / 100);
    let t = std::time::Instant::now();
    for _ in 0..100 {
        std::hint::black_box(
            crate::cost::ledger(
                spec,
                &found.best.run,
                &case.machine,
                crate::cost::Heaviest { tokens_per_row: 2048, learned: 1.0, validation_tokens: None },
            )
            .unwrap(),
        );
    }
    println!("ledger {:?}", t.elapsed() / 100);
    let t = std::time::Instant::now();
    for _ in 0..100 {
        std::hint::black_box(assess(&request, 0.99, None).unwrap());
    }
    println!("assess {:?}", t.elapsed() / 100);
}

#[test]
fn the_table_says_how_far_each_model_goes_in_each_format() {
    let lengths = TokenLengths::assumed(200, 512);
    let of = |gib| {
        let case = Case::new(gib);
        let mut run = base();
        run.recipe.max_seq_length = 512;
        let held = Held { max_seq_length: true, ..Held::default() };
        table::table(&Ask { run, held, lengths: &lengths, ..case.ask() }).unwrap()
    };
    let (small, large) = (of(8.0), of(16.0));
    assert_eq!(small.len(), large.len());
    let (mut yes, mut no) = (0, 0);
    for (a, b) in small.iter().zip(&large) {
        assert_eq!((&a.model, a.weights), (&b.model, b.weights));
        // More memory never shortens, and what fits has no reason against it.
        assert!(a.longest_seq <= b.longest_seq && a.largest_rank <= b.largest_rank, "{a:?} {b:?}");
        assert_eq!(a.why_not.is_some(), a.total_time_s.is_none(), "{a:?}");
        match a.longest_seq {
            Some(longest) => {
                yes += 1;
                assert!(longest < 512 || a.largest_batch.is_some(), "{a:?}");
            }
            None => no += 1,
        }
    }
    assert!(yes > 10 && no > 10, "{yes} {no}");
    for pair in small.windows(2).filter(|pair| pair[0].model == pair[1].model) {
        assert!(pair[0].bits > pair[1].bits && pair[0].longest_seq <= pair[1].longest_seq, "{pair:?}");
        assert!(pair[0].least_memory_bytes >= pair[1].least_memory_bytes, "{pair:?}");
    }
}
