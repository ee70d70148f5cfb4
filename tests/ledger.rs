//! Our engine's ledger against the counting allocator, over random shapes of every family and lever.
//! One test alone in its process: the allocator counts everything that the process does.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of tests are tests too

mod folders;
mod shapes;

use std::path::Path;

use candle_core::Device;
use headroom::checkpoint::source::ModelSource;
use headroom::cost::candle::{Micro, SLABS, ledger};
use headroom::cost::ledger::Phase;
use headroom::data::batches::{MicroBatch, pack};
use headroom::data::example::Example;
use headroom::measure::probe::this_machine;
use headroom::ops::Backend;
use headroom::spec::machine::Accelerator;
use headroom::spec::machine::processor::Processor;
use headroom::spec::model::ModelSpec;
use headroom::spec::run::{RunConfig, Weights};
use headroom::trainer::candle::nn::adapter;
use headroom::trainer::candle::nn::decoder::{Buffers, Decoder};
use headroom::trainer::candle::optim::{self, Optimizer};
use headroom::{memory, ops};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::shapes::{FAMILIES, Sizes};

#[global_allocator]
static ALLOCATOR: headroom::memory::Counting = headroom::memory::Counting;

/// Random shapes; each is held to its peak in a step and in an evaluation. `HEADROOM_LEDGER_CASES` sets another number.
const CASES: u64 = 300;

/// A random config.json of a family.
fn config(family: &str, rng: &mut ChaCha8Rng) -> String {
    let kv = [1, 2, 4][rng.random_range(0..3)];
    let heads = kv * [1, 2, 3][rng.random_range(0..3)];
    let sizes = Sizes {
        heads: [kv, heads, [32, 48, 64][rng.random_range(0..3)]],
        layers: rng.random_range(1..5),
        vocab: rng.random_range(2000..20000),
        intermediate: rng.random_range(300..1800),
        tied: rng.random_bool(0.5),
        window: if rng.random_bool(0.5) { None } else { Some(rng.random_range(20..200)) },
        gemma_window: 64,
        positions: 2048,
    };
    sizes.config(family)
}

fn run(rng: &mut ChaCha8Rng, spec: &ModelSpec) -> RunConfig {
    // Drawn apart, so that what was there before stays as it was.
    let more = &mut rng.clone();
    more.set_stream(1);
    let batch = rng.random_range(1..4);
    let names: Vec<String> = spec.projections().iter().map(|p| format!("\"{}\"", p.name())).collect();
    let some = names[rng.random_range(0..names.len())].clone();
    let targets = if rng.random_bool(0.7) { "\"all-linear\"".into() } else { format!("[{some}]") };
    let layers = if rng.random_bool(0.7) { -1 } else { 1 };
    let text = format!(
        r#"
        model = "m"
        data = "d"
        [recipe]
        max_seq_length = {seq}
        effective_batch_size = {effective}
        shuffle = false
        packing = {packing}
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
        seq = rng.random_range(200..900),
        effective = batch * rng.random_range(1..3),
        rank = rng.random_range(1..20),
        optimizer = ["adamw", "adamw_8bit", "adafactor"][more.random_range(0..3)],
        packing = more.random_bool(0.3),
        dora = more.random_bool(0.4),
        dropout = [0.0, 0.1][usize::from(more.random_bool(0.3))],
        checkpoint = rng.random_bool(0.7),
        weights = ["f32", "f16", "bf16", "8bit", "4bit", "int8", "q8_0", "q6_k", "q4_k", "q4_0", "stored", "stored"]
            [rng.random_range(0..12)],
        loss = rng.random_range(16..400),
        attention = rng.random_range(16..300),
        mlp = rng.random_range(40..1200),
    );
    RunConfig::from_toml(&text, Path::new("run.toml")).unwrap()
}

/// A model folder with random weights: where they are held as stored, one of MLX's or of transformers'.
fn folder(spec: &ModelSpec, config: &str, run: &RunConfig, rng: &mut ChaCha8Rng, at: &Path) {
    if run.execution.weights == Weights::Stored && rng.random_bool(0.8) {
        folders::mlx(spec, config, ([4, 8][rng.random_range(0..2)], [32, 64][rng.random_range(0..2)]), at);
    } else {
        folders::dense(spec, config, at);
    }
}

/// (predicted, counted) peak of one optimizer step, and of a look at validation rows of other lengths.
fn measure(case: u64, processor: Processor) -> ([(f64, f64); 2], String) {
    let mut rng = ChaCha8Rng::seed_from_u64(case);
    let family = FAMILIES[case as usize % FAMILIES.len()];
    let config = config(family, &mut rng);
    let spec = ModelSpec::from_config(&config).unwrap();
    let run = run(&mut rng, &spec);
    let at = tempfile::tempdir().unwrap();
    folder(&spec, &config, &run, &mut rng, at.path());
    let source = ModelSource::Folder(at.path().into());
    let spec = source.spec().unwrap();
    let micro = run.execution.batch_size;
    let lengths: Vec<usize> = (0..micro).map(|_| rng.random_range(2..=run.recipe.max_seq_length)).collect();
    // Packed: the same rows, each of several examples.
    let parts = if run.recipe.packing { rng.random_range(1..5) } else { 1 };
    let lengths: Vec<usize> = lengths.iter().flat_map(|n| vec![(n / parts).max(2); parts]).collect();
    let example = |n: &usize| Example { tokens: (0..*n as u32).map(|t| t % 500).collect(), prompt: 0 };
    let examples: Vec<Example> = lengths.iter().map(example).collect();
    let unseen: Vec<Example> = (0..micro).map(|_| example(&rng.random_range(2..=run.recipe.max_seq_length))).collect();

    let before = memory::live();
    let mut decoder = Decoder::load(&source.weights().unwrap(), &spec, &run, (&Device::Cpu, Backend::Fused)).unwrap();
    for i in 0..decoder.sites.len() {
        let fresh =
            adapter::fresh(&decoder.sites[i], i, run.recipe.lora.rank, 0, (&Device::Cpu, Backend::Fused)).unwrap();
        decoder.set_adapter(i, fresh).unwrap();
    }
    let mut optimizer = Optimizer::new(&decoder, &run.recipe).unwrap();
    let batch = pack(&examples.iter().collect::<Vec<_>>(), &run, false);
    let validation = pack(&unseen.iter().collect::<Vec<_>>(), &run, false);
    let step = |decoder: &mut Decoder, optimizer: &mut Optimizer, buffers: &mut Buffers| {
        optim::clear(decoder, &buffers.grads).unwrap();
        for _ in 0..run.accumulation() {
            decoder.loss_and_grads(&batch, 1e-3, (0, 0), buffers).unwrap();
        }
        optim::grad_norm(decoder, &buffers.grads).unwrap();
        optimizer.step(decoder, &buffers.grads, 0.1, 1e-4).unwrap();
    };
    // The first step warms the product's packing buffers, which stay.
    let mut buffers = decoder.buffers().unwrap();
    step(&mut decoder, &mut optimizer, &mut buffers);
    drop((decoder, optimizer, buffers));
    let packing = memory::live().saturating_sub(before);
    let mut decoder = Decoder::load(&source.weights().unwrap(), &spec, &run, (&Device::Cpu, Backend::Fused)).unwrap();
    for i in 0..decoder.sites.len() {
        let fresh =
            adapter::fresh(&decoder.sites[i], i, run.recipe.lora.rank, 0, (&Device::Cpu, Backend::Fused)).unwrap();
        decoder.set_adapter(i, fresh).unwrap();
    }
    let mut optimizer = Optimizer::new(&decoder, &run.recipe).unwrap();
    let mut buffers = decoder.buffers().unwrap();
    memory::reset_peak();
    step(&mut decoder, &mut optimizer, &mut buffers);
    let counted = || memory::peak().saturating_sub(before).saturating_sub(packing).as_f64();
    let stepped = counted();
    memory::reset_peak();
    decoder.loss(&validation).unwrap();
    let validated = counted();
    let threads = rayon::current_num_threads();
    let micro = |batch: &MicroBatch| {
        let rows = batch.examples.iter().map(std::ops::Range::len).collect();
        Micro { examples: rows, targets: batch.targets.len(), accelerator: Accelerator::Cpu, threads, processor }
    };
    let predicted = ledger(&spec, &run, &micro(&batch), Some(&micro(&validation))).unwrap();
    let phase = predicted.tallest().map(|p| p.name.clone()).unwrap_or_default();
    // The product's buffers depend on the processor's cache and were taken off the count.
    let slabs: f64 = predicted.resident.iter().filter(|i| i.name == SLABS).map(|i| i.bytes.as_f64()).sum();
    let highest = |seen: bool| {
        let of = predicted.phases.iter().filter(|p| (p.name == "validation") == seen);
        (predicted.resident_total() + of.map(Phase::total).max().unwrap()).as_f64() - slabs
    };
    let what = format!(
        "case {case} {family} {phase} {:?} {:?} {:?} {:?}",
        run.recipe.packing, run.recipe.optimizer, run.recipe.lora, run.execution
    );
    ([(highest(false), stepped), (highest(true), validated)], what)
}

#[test]
fn predicted_peaks_equal_counted_peaks() {
    ops::device::compute_here();
    let cases = std::env::var("HEADROOM_LEDGER_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(CASES);
    let processor = this_machine().unwrap().processor;
    ops::device::prepare_products();
    let mut errors: Vec<(f64, String)> = (0..cases)
        .flat_map(|case| {
            let (both, what) = measure(case, processor);
            let of = |name, (predicted, counted)| {
                ((predicted - counted) / counted, format!("{what}: {name} predicted {predicted}, counted {counted}"))
            };
            [of("step", both[0]), of("validation", both[1])]
        })
        .collect();
    errors.sort_by(|a, b| a.0.abs().total_cmp(&b.0.abs()));
    let p95 = &errors[errors.len() * 95 / 100];
    let worst = &errors[errors.len() - 1];
    println!(
        "{} peaks: p95 {:+.2} % ({}), worst {:+.2} % ({})",
        errors.len(),
        100.0 * p95.0,
        p95.1,
        100.0 * worst.0,
        worst.1
    );
    for (e, what) in errors.iter().rev().take(8) {
        println!("{:+.2} % {what}", 100.0 * e);
    }
    assert!(p95.0.abs() < 0.015, "p95 {}: {}", p95.0, p95.1);
    assert!(worst.0.abs() < 0.04, "worst {}: {}", worst.0, worst.1);
}
