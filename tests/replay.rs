//! The ledger of Metal against a replay: what the Metal back end takes and gives back, recorded without its numbers and
//! played through candle's allocator.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of tests are tests too

mod shapes;

use std::path::Path;

use headroom::cost::candle::{Micro, ledger};
use headroom::cost::ledger::Phase;
use headroom::cost::pool::{Replay, replay};
use headroom::cost::time::step_cost;
use headroom::spec::machine::processor::Processor;
use headroom::spec::machine::{Accelerator, Machine};
use headroom::spec::model::{ModelSpec, catalogue};
use headroom::spec::run::RunConfig;
use headroom::trainer::candle::replay::{Recording, batch, record};
use headroom::units::Bytes;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::shapes::{FAMILIES, Sizes};

#[global_allocator]
static ALLOCATOR: headroom::memory::Counting = headroom::memory::Counting;

/// Random cases that the prediction is held to.
const CASES: u64 = 300;

/// A random model, of sizes that people train: nothing is computed of it.
fn spec(family: &str, rng: &mut ChaCha8Rng) -> ModelSpec {
    let kv = [1, 2, 4, 8][rng.random_range(0..4)];
    let heads = kv * [1, 2, 4][rng.random_range(0..3)];
    let head_dim = [64, 96, 128][rng.random_range(0..3)];
    let (layers, vocab, hidden) = (rng.random_range(1..30), rng.random_range(20_000..160_000), heads * head_dim);
    let sizes = Sizes {
        heads: [kv, heads, head_dim],
        layers,
        vocab,
        intermediate: rng.random_range(hidden..5 * hidden),
        tied: rng.random_bool(0.5),
        window: if rng.random_bool(0.5) { None } else { Some(rng.random_range(100..1500)) },
        gemma_window: 512,
        positions: 8192,
    };
    ModelSpec::from_config(&sizes.config(family)).unwrap()
}

fn run(rng: &mut ChaCha8Rng, spec: &ModelSpec) -> RunConfig {
    let batch = rng.random_range(1..4);
    let names: Vec<String> = spec.projections().iter().map(|p| format!("\"{}\"", p.name())).collect();
    let some = names[rng.random_range(0..names.len())].clone();
    let targets = if rng.random_bool(0.7) { "\"all-linear\"".into() } else { format!("[{some}]") };
    let text = format!(
        r#"
        model = "m"
        data = "d"
        [recipe]
        max_seq_length = {seq}
        effective_batch_size = {effective}
        optimizer = "{optimizer}"
        [recipe.lora]
        rank = {rank}
        target_modules = {targets}
        num_layers = {layers}
        use_dora = {dora}
        dropout = {dropout}
        [execution]
        batch_size = {batch}
        grad_checkpoint = {checkpoint}
        weights = "{weights}"
        loss_chunk = {loss}
        attention_chunk = {attention}
        mlp_chunk = {mlp}
        "#,
        seq = rng.random_range(64..3000),
        effective = batch * rng.random_range(1..3),
        optimizer = ["adamw", "adamw", "adamw_8bit", "adafactor"][rng.random_range(0..4)],
        rank = [1, 4, 8, 16, 33, 64, 150][rng.random_range(0..7)],
        layers = if rng.random_bool(0.7) { -1 } else { 1 },
        dora = rng.random_bool(0.3),
        dropout = [0.0, 0.1][usize::from(rng.random_bool(0.3))],
        checkpoint = rng.random_bool(0.7),
        weights = ["f32", "f16", "bf16", "4bit", "int8", "q8_0", "q4_k", "stored"][rng.random_range(0..8)],
        loss = rng.random_range(16..600),
        attention = rng.random_range(32..600),
        mlp = rng.random_range(64..3000),
    );
    RunConfig::from_toml(&text, Path::new("run.toml")).unwrap()
}

fn micro(examples: &[usize], targets: usize) -> Micro {
    Micro {
        examples: examples.to_vec(),
        targets,
        accelerator: Accelerator::Metal,
        threads: 1,
        processor: Processor::default(),
    }
}

/// (predicted, replayed) peaks of two steps and of an evaluation after them, and what was run.
fn case(number: u64) -> ([(f64, f64); 2], String) {
    let mut rng = ChaCha8Rng::seed_from_u64(number);
    let family = FAMILIES[number as usize % FAMILIES.len()];
    let spec = spec(family, &mut rng);
    let run = run(&mut rng, &spec);
    let mut rows =
        || Vec::from_iter((0..run.execution.batch_size).map(|_| rng.random_range(1..run.recipe.max_seq_length)));
    let (trained, validated) = (rows(), rows());
    let total = |rows: &[usize]| rows.iter().sum::<usize>();
    let learned = total(&trained) * 2 / 3 + 1;
    let seen = record(&spec, &run, &batch(&trained, learned), None).unwrap();
    let both = record(&spec, &run, &batch(&trained, learned), Some(&batch(&validated, total(&validated)))).unwrap();
    let predicted =
        ledger(&spec, &run, &micro(&trained, learned), Some(&micro(&validated, total(&validated)))).unwrap();
    let highest = |validation: bool| {
        let of = predicted.phases.iter().filter(|p| validation || p.name != "validation");
        (predicted.resident_total() + of.map(Phase::total).max().unwrap()).as_f64()
    };
    let peak = |r: &Recording| replay(&r.events).peak_bytes.as_f64();
    let what = format!("case {number} {family}: {trained:?} {:?} {:?}", run.recipe, run.execution);
    ([(highest(false), peak(&seen)), (highest(true), peak(&both))], what)
}

#[test]
fn predicted_peaks_equal_replayed_peaks() {
    let cases = std::env::var("HEADROOM_REPLAY_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(CASES);
    let mut errors: Vec<(f64, String)> = (0..cases)
        .flat_map(|number| {
            let (peaks, what) = case(number);
            peaks.map(|(predicted, seen)| {
                ((predicted - seen) / seen, format!("{what}: predicted {predicted}, replayed {seen}"))
            })
        })
        .collect();
    errors.sort_by(|a, b| a.0.abs().total_cmp(&b.0.abs()));
    let (p95, worst) = (&errors[errors.len() * 95 / 100], &errors[errors.len() - 1]);
    println!("{} peaks: p95 {:+.2} %, worst {:+.2} %", errors.len(), 100.0 * p95.0, 100.0 * worst.0);
    for (e, what) in errors.iter().rev().take(8) {
        println!("{:+.2} % {what}", 100.0 * e);
    }
    assert!(p95.0.abs() < 0.01, "p95 {}: {}", p95.0, p95.1);
    assert!(worst.0.abs() < 0.03, "worst {}: {}", worst.0, worst.1);
}

#[test]
fn a_recording_is_of_one_kind_each_time() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let spec = spec("llama", &mut rng);
    let run = run(&mut rng, &spec);
    let once = || record(&spec, &run, &batch(&[40, 60], 90), None).unwrap();
    let (a, b) = (once(), once());
    assert_eq!(a.events, b.events);
    // A wait for the loss, one for the gradients' norm, and one at the end.
    let step: Replay = replay(&a.events[a.step.clone()]);
    assert_eq!(step.waits, 2 + run.accumulation().min(2) as u64);
    assert!(a.micro_batch.start >= a.step.start && a.micro_batch.end <= a.step.end);
}

/// What a run of the catalogue's model takes in the replay, for a micro-batch of these rows.
fn seen(spec: &ModelSpec, run: &RunConfig, rows: &[usize]) -> (Replay, Replay, Replay) {
    let recording = record(spec, run, &batch(rows, rows.iter().sum()), None).unwrap();
    let part = |range: std::ops::Range<usize>| replay(&recording.events[range]);
    (replay(&recording.events), part(recording.micro_batch.clone()), part(recording.step.clone()))
}

fn qwen(execution: &str) -> (Replay, Replay, Replay) {
    let text = format!(
        "model = \"m\"\ndata = \"d\"\n[recipe]\nmax_seq_length = 2048\neffective_batch_size = 1\n[recipe.lora]\nrank = \
         32\n[execution]\nweights = \"int8\"\n{execution}"
    );
    let run = RunConfig::from_toml(&text, Path::new("run.toml")).unwrap();
    seen(&catalogue::find("Qwen2.5-1.5B-Instruct").unwrap().spec, &run, &[2047])
}

/// Rows of at most `rows` that fill a power of two, as `plan` chooses them for Metal.
fn filling(rows: usize, width: usize) -> usize {
    (1 << (rows * width * 4).ilog2()) / (width * 4)
}

/// Peak and bytes in use of every model of the catalogue at its leanest, the farthest apart first.
fn leanest() -> Vec<(String, Replay)> {
    let of = |entry: &catalogue::Entry| {
        let spec = &entry.spec;
        let length = spec.max_position_embeddings.min(2048);
        let text = format!(
            "model = \"m\"\ndata = \"d\"\n[recipe]\nmax_seq_length = {length}\n[execution]\nloss_chunk = {}\nmlp_chunk = \
             {}\nattention_chunk = 128",
            filling(128, spec.vocab_size),
            filling(1024, spec.intermediate_size),
        );
        let run = RunConfig::from_toml(&text, Path::new("run.toml")).unwrap();
        (entry.id.clone(), seen(spec, &run, &[length - 1]).0)
    };
    // Many are sisters, of one shape.
    let mut shapes = std::collections::HashSet::new();
    let shape =
        |e: &&catalogue::Entry| (e.parameters, e.spec.num_hidden_layers, e.spec.vocab_size, e.spec.part_of.clone());
    let ours = catalogue::all().iter().filter(|e| e.spec.experts.is_none());
    let mut all: Vec<_> = ours.filter(|e| shapes.insert(shape(e))).map(of).collect();
    all.sort_by(|a, b| beside(&b.1).total_cmp(&beside(&a.1)));
    all
}

/// Peak over bytes in use.
fn beside(r: &Replay) -> f64 {
    r.peak_bytes.as_f64() / r.alive_bytes.as_f64()
}

fn gib(bytes: Bytes) -> String {
    format!("{:.2} GiB", bytes.as_f64() / 2f64.powi(30))
}

/// The time model counts the launches and the traffic of the same recording.
#[test]
fn launches_and_traffic_are_those_of_the_recording() {
    let machine = Machine::named("M2 Pro", None, None).unwrap();
    for (name, extra) in [
        ("Qwen2.5-1.5B-Instruct", "weights = \"int8\""),
        ("Qwen2.5-1.5B-Instruct", "weights = \"f32\"\ngrad_checkpoint = false"),
        ("Qwen3-1.7B", "weights = \"q4_k\"\nmlp_chunk = 300\nattention_chunk = 100"),
        ("gemma-3-1b-it", "weights = \"bf16\"\nloss_chunk = 100"),
        ("gpt2", "weights = \"q8_0\""),
        ("Phi-3-mini-4k-instruct", "weights = \"bf16\""),
        ("Llama-3.1-8B-Instruct", "weights = \"q4_0\"\n[recipe.lora]\nnum_layers = 16"),
    ] {
        let spec = &catalogue::find(name).unwrap().spec;
        let text = format!(
            "model = \"m\"\ndata = \"d\"\n[recipe]\nmax_seq_length = 1024\neffective_batch_size = 1\n[execution]\n{extra}"
        );
        let run = RunConfig::from_toml(&text, Path::new("run.toml")).unwrap();
        let cost = step_cost(spec, &machine, &run, None).unwrap();
        // The time model's rows are all learned from; a batch has a row less than tokens.
        let recording = record(spec, &run, &batch(&[1024], 1024), None).unwrap();
        let step = replay(&recording.events[recording.step]);
        let (launches, bytes) = (cost.launches() / step.launches as f64, cost.bytes() / step.moved_bytes.as_f64());
        println!("{name} {extra:?}: launches {launches:.3}, bytes {bytes:.3}");
        assert!((launches - 1.0).abs() < 0.05 && (bytes - 1.0).abs() < 0.1, "{name} {extra}: {launches} {bytes}");
    }
}

/// The tables of docs/metal.md, which this writes anew where `HEADROOM_WRITE_DOCS` is set.
#[test]
fn docs_metal_says_what_the_replay_says() {
    let mut text =
        String::from("| run | peak | in use | launches | waits | bytes beside products |\n|---|---|---|---|---|---|\n");
    for (name, execution, limits) in [
        ("the default chunks", "", false),
        ("one chunk of the MLP", "mlp_chunk = 2048", true),
        ("chunks that fill a power of two", "loss_chunk = 441\nmlp_chunk = 936", false),
    ] {
        let (all, micro, step) = qwen(execution);
        assert!(all.peak_bytes.as_f64() <= 3.8 * 2f64.powi(30) && step.waits == 3, "{name}: {all:?}");
        if limits {
            assert!(micro.launches <= 12_000 && micro.moved_bytes.as_f64() <= 150e9, "{name}: {micro:?}");
        }
        text += &format!(
            "| {name} | {} | {} | {} | {} | {:.0} GB |\n",
            gib(all.peak_bytes),
            gib(all.alive_bytes),
            micro.launches,
            step.waits,
            micro.moved_bytes.as_f64() / 1e9
        );
    }
    let all = leanest();
    let widest = beside(&all[0].1);
    assert!(widest <= 1.25 && all.len() > 80, "{}: {widest}", all[0].0);
    text += &format!("\n{} models at their leanest; the farthest apart, and the middle:\n\n", all.len());
    text += "| model | peak | in use | peak over use |\n|---|---|---|---|\n";
    for (name, r) in all[..4].iter().chain([&all[all.len() / 2]]) {
        text += &format!("| {name} | {} | {} | {:.2} |\n", gib(r.peak_bytes), gib(r.alive_bytes), beside(r));
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metal.md");
    let old = std::fs::read_to_string(&page).unwrap();
    let (start, end) = ("<!-- replay -->\n", "<!-- /replay -->");
    let (first, last) = (old.find(start).unwrap() + start.len(), old.find(end).unwrap());
    if std::env::var_os("HEADROOM_WRITE_DOCS").is_some() {
        std::fs::write(&page, format!("{}{text}{}", &old[..first], &old[last..])).unwrap();
    } else {
        assert_eq!(&old[first..last], text, "write it anew with `HEADROOM_WRITE_DOCS=1 cargo test --test replay`");
    }
}
