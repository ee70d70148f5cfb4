//! The ledger of Metal against a replay: what the Metal back end takes and gives back, recorded without its numbers and
//! played through candle's allocator.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of tests are tests too

use std::path::Path;

use headroom::cost::candle::{Micro, ledger};
use headroom::cost::ledger::Phase;
use headroom::cost::pool::{Replay, replay};
use headroom::spec::machine::Accelerator;
use headroom::spec::machine::processor::Processor;
use headroom::spec::model::ModelSpec;
use headroom::spec::run::RunConfig;
use headroom::trainer::candle::replay::{Recording, batch, record};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[global_allocator]
static ALLOCATOR: headroom::memory::Counting = headroom::memory::Counting;

/// Random cases that the prediction is held to.
const CASES: u64 = 300;

const FAMILIES: [&str; 9] =
    ["llama", "mistral", "qwen2", "qwen3", "starcoder2", "gpt2", "gemma2", "gemma3_text", "phi3"];

/// A random model, of sizes that people train: nothing is computed of it.
fn spec(family: &str, rng: &mut ChaCha8Rng) -> ModelSpec {
    let kv = [1, 2, 4, 8][rng.random_range(0..4)];
    let heads = kv * [1, 2, 4][rng.random_range(0..3)];
    let head_dim = [64, 96, 128][rng.random_range(0..3)];
    let hidden = heads * head_dim;
    let layers = rng.random_range(1..30);
    let vocab = rng.random_range(20_000..160_000);
    let intermediate = rng.random_range(hidden..5 * hidden);
    let tied = rng.random_bool(0.5);
    let window = if rng.random_bool(0.5) { "null".into() } else { rng.random_range(100..1500).to_string() };
    let window = if family.starts_with("gemma") { "512".to_string() } else { window };
    let config = if family == "gpt2" {
        format!(
            r#"{{"model_type":"gpt2","n_embd":{hidden},"n_layer":{layers},"n_head":{heads},"n_positions":8192,"n_inner":{intermediate},"vocab_size":{vocab}}}"#
        )
    } else {
        format!(
            r#"{{"model_type":"{family}","hidden_size":{hidden},"intermediate_size":{intermediate},"num_hidden_layers":{layers},"num_attention_heads":{heads},"num_key_value_heads":{kv},"head_dim":{head_dim},"vocab_size":{vocab},"tie_word_embeddings":{tied},"sliding_window":{window},"max_position_embeddings":8192,"attn_logit_softcapping":20.0,"attention_bias":true}}"#
        )
    };
    ModelSpec::from_config(&config).unwrap()
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
        weights = ["f32", "f16", "bf16", "int8", "q8_0", "q4_k", "stored"][rng.random_range(0..7)],
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
    let both =
        record(&spec, &run, &batch(&trained, learned), Some(&batch(&validated, total(&validated)))).unwrap();
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
    assert!(p95.0.abs() < 0.02, "p95 {}: {}", p95.0, p95.1);
    assert!(worst.0.abs() < 0.06, "worst {}: {}", worst.0, worst.1);
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

#[test]
#[ignore]
fn catalogue_probe() {
    use headroom::spec::model::catalogue;
    for weights in ["stored", "q4_k"] {
    let mut rows = vec![];
    for e in catalogue::all() {
        let text = format!("model = \"m\"\ndata = \"d\"\n[recipe]\nmax_seq_length=2048\neffective_batch_size=8\n[recipe.lora]\nrank=8\n[execution]\nweights=\"{weights}\"\nloss_chunk=128\nattention_chunk=128");
        let mut run = RunConfig::from_toml(&text, Path::new("run.toml")).unwrap();
        run.recipe.max_seq_length = run.recipe.max_seq_length.min(e.spec.max_position_embeddings);
        let n = run.recipe.max_seq_length - 1;
        if e.spec.experts.is_some() { continue; }
        for fill in [false, true] {
            if fill { run.execution.mlp_chunk = (1usize << (usize::ilog2(run.execution.mlp_chunk * e.spec.intermediate_size * 4))) / (4 * e.spec.intermediate_size);
             run.execution.loss_chunk = (1usize << (usize::ilog2(run.execution.loss_chunk * e.spec.vocab_size * 4))) / (4 * e.spec.vocab_size); }
            let r = replay(&record(&e.spec, &run, &batch(&[n], n), None).unwrap().events);
            rows.push((r.peak_bytes.as_f64() / r.alive_bytes.as_f64(), fill, e.id.clone(), r.peak_bytes, r.alive_bytes));
        }
    }
    rows.sort_by(|a, b| b.0.total_cmp(&a.0));
    println!("{weights}: {} rows", rows.len());
    for r in rows.iter().filter(|r| !r.1).take(6).chain(rows.iter().filter(|r| r.1).take(12)) { println!("{r:?}"); }
    }
}
