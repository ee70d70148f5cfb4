//! Our decoder, gradients and training loop against transformers and PEFT, for every family.
//! `tests/fixtures/reference/make.py` made the models and the numbers.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of tests are tests too

mod laws;

#[allow(unused_imports)] // some hold tests alone
use self::laws::*;

#[path = "../common/mod.rs"]
mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use common::{FAMILIES, fixture};
use headroom::checkpoint::adapter::Adapter;
use headroom::checkpoint::source::ModelSource;
use headroom::data::batches::{self, Batches, MicroBatch, pack};
use headroom::data::example::Example;
use headroom::spec::model::ModelSpec;
use headroom::spec::run::{Recipe, RunConfig};
use headroom::trainer::candle::nn::adapter;
use headroom::trainer::candle::nn::block::Grads;
use headroom::trainer::candle::nn::decoder::Decoder;
use headroom::trainer::candle::optim::schedule::learning_rate;
use headroom::trainer::candle::optim::{self, Optimizer};
use serde_json::Value;

/// Other adapters and another optimizer on some of these: name, model, and what `run.toml` says of them.
const VARIANTS: [(&str, &str, &str); 6] = [
    ("llama_rslora", "llama", "lora = { rank = 4, alpha = 6, use_rslora = true }"),
    ("qwen2_dora", "qwen2", "lora = { rank = 4, alpha = 6, use_dora = true }"),
    ("gpt2_dora", "gpt2", "lora = { rank = 4, alpha = 6, use_dora = true }"),
    ("gemma3_dora", "gemma3", "lora = { rank = 4, alpha = 6, use_dora = true }"),
    ("phi3_dora_rslora", "phi3", "lora = { rank = 4, alpha = 6, use_dora = true, use_rslora = true }"),
    ("qwen2_dora_adafactor", "qwen2", "lora = { rank = 4, alpha = 6, use_dora = true }\noptimizer = \"adafactor\""),
];

/// Every fixture with an adapter.
fn all() -> impl Iterator<Item = &'static str> {
    FAMILIES.into_iter().chain(VARIANTS.into_iter().map(|(name, ..)| name))
}

struct Fixture {
    /// Where the model is, and where the adapter and what it gives.
    folder: PathBuf,
    adapter: PathBuf,
    reference: Value,
    rows: Vec<Example>,
    run: RunConfig,
    spec: ModelSpec,
    decoder: Decoder,
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn tokens(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

/// `execution` is TOML for `[execution]`: small odd chunks, so that every seam is crossed.
fn open(family: &str, execution: &str) -> Fixture {
    opened(family, None, execution)
}

/// The same, with this in `[recipe]` in the place of what the fixture was made with.
fn opened(family: &str, learning: Option<&'static str>, execution: &str) -> Fixture {
    let fixtures = fixture("reference");
    let plain = (family, family, "lora = { rank = 4, alpha = 6 }");
    let (name, family, made_with) = VARIANTS.into_iter().find(|(name, ..)| *name == family).unwrap_or(plain);
    let learning = learning.unwrap_or(made_with);
    let folder = fixtures.join(family);
    let text = format!(
        r#"
        model = "{family}"
        data = "rows.jsonl"
        [recipe]
        max_seq_length = 64
        effective_batch_size = 4
        steps = 20
        learning_rate = 1e-2
        warmup_steps = 3
        weight_decay = 0.01
        max_grad_norm = 1.0
        shuffle = false
        {learning}
        [execution]
        {execution}
        "#
    );
    let run = RunConfig::from_toml(&text, Path::new("run.toml")).unwrap();
    let source = ModelSource::Folder(folder.clone());
    let spec = source.spec().unwrap();
    let decoder = Decoder::load(&source.weights().unwrap(), &spec, &run, (&Device::Cpu, common::backend())).unwrap();
    let rows = std::fs::read_to_string(folder.join("rows.jsonl")).unwrap();
    let rows = rows
        .lines()
        .map(|l| Example { tokens: tokens(&serde_json::from_str::<Value>(l).unwrap()["tokens"]), prompt: 0 });
    let reference = json(&fixtures.join(name).join("reference.json"));
    Fixture { reference, rows: rows.collect(), adapter: fixtures.join(name), folder, run, spec, decoder }
}

const ODD: &str = "weights = \"f32\"\nbatch_size = 2\nloss_chunk = 7\nattention_chunk = 5\nmlp_chunk = 11";

fn adapted(family: &str, execution: &str) -> Fixture {
    let mut fixture = open(family, execution);
    adapter::load(&mut fixture.decoder, &fixture.run, &fixture.adapter.join("adapter")).unwrap();
    fixture
}

fn worst_logit(fixture: &Fixture, expected: &str) -> f64 {
    let row = tokens(&fixture.reference["logits_tokens"]);
    let n = row.len();
    let batch = MicroBatch { tokens: row, examples: std::iter::once(0..n).collect(), targets: vec![] };
    let all: Vec<u32> = (0..n as u32).collect();
    let logits = fixture.decoder.logits(&batch, &all).unwrap().to_vec2::<f32>().unwrap();
    let expected = fixture.reference[expected].as_array().unwrap();
    let pairs = logits.iter().zip(expected).flat_map(|(a, e)| a.iter().copied().zip(numbers(e)).collect::<Vec<_>>());
    pairs.map(|(a, e)| (f64::from(a) - e).abs()).fold(0.0, f64::max)
}

#[test]
fn logits_equal_transformers() {
    for family in FAMILIES {
        let error = worst_logit(&open(family, ODD), "base_logits");
        assert!(error < 1e-4, "{family}: base logits differ by {error}");
    }
    for family in all() {
        let error = worst_logit(&adapted(family, ODD), "adapter_logits");
        assert!(error < 1e-4, "{family}: adapted logits differ by {error}");
    }
}

#[test]
fn the_old_spelling_of_config_json_is_the_same_model() {
    for family in FAMILIES {
        let folder = fixture("reference").join(family);
        let read = |file| ModelSpec::from_config(&std::fs::read_to_string(folder.join(file)).unwrap()).unwrap();
        assert_eq!(read("config.json"), read("old_config.json"), "{family}");
    }
}

/// Loss, gradients and the pieces of the first optimizer step.
fn first_step(fixture: &Fixture) -> (f64, Grads) {
    let mut batches = Batches::new(&fixture.rows, &fixture.run, false);
    let micro_batches = batches.step(0);
    let targets: usize = micro_batches.iter().map(|b| b.targets.len()).sum();
    let scale = 1.0 / targets as f64;
    let (mut loss, mut buffers) = (0.0, fixture.decoder.buffers().unwrap());
    for batch in &micro_batches {
        loss += scale * fixture.decoder.loss_and_grads(batch, scale, (0, 0), &mut buffers).unwrap();
    }
    (loss, buffers.grads)
}

/// How many tensors of a site learn.
fn parts(fixture: &Fixture, site: usize) -> usize {
    fixture.decoder.adapter(site).unwrap().tensors().count()
}

#[test]
fn every_adapter_gets_the_gradient_that_peft_gets() {
    for family in all() {
        for checkpoint in [true, false] {
            let fixture = adapted(family, &format!("{ODD}\ngrad_checkpoint = {checkpoint}"));
            let expected: HashMap<String, Tensor> =
                candle_core::safetensors::load(fixture.adapter.join("grads.safetensors"), &Device::Cpu).unwrap();
            let (_, grads) = first_step(&fixture);
            let ours: usize = (0..fixture.decoder.sites.len()).map(|i| parts(&fixture, i)).sum();
            assert_eq!(expected.len(), ours, "{family}: number of tensors that learn");
            for (i, site) in fixture.decoder.sites.iter().enumerate() {
                let grad = grads[fixture.decoder.place(i)]
                    .as_ref()
                    .unwrap_or_else(|| panic!("{family}: {} has no gradient", site.path));
                assert_eq!(grad.tensors().count(), parts(&fixture, i));
                for (part, ours) in ["lora_A", "lora_B", "lora_magnitude_vector"].into_iter().zip(grad.tensors()) {
                    let name = format!("base_model.model.{}.{part}", site.path);
                    let found = expected.iter().find(|(n, _)| n.starts_with(&name)).unwrap_or_else(|| panic!("{name}"));
                    let theirs = found.1.to_dtype(DType::F32).unwrap();
                    let norm =
                        |t: &Tensor| f64::from(t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sqrt();
                    let error = norm(&(ours - &theirs).unwrap()) / norm(&theirs);
                    assert!(error < 1e-4, "{family} (checkpoint {checkpoint}) {name}: relative error {error}");
                }
            }
        }
    }
}

#[test]
fn twenty_steps_equal_peft() {
    for family in all() {
        let mut fixture = adapted(family, ODD);
        let mut optimizer = Optimizer::new(&fixture.decoder, &fixture.run.recipe).unwrap();
        let (losses, norms) = (numbers(&fixture.reference["losses"]), numbers(&fixture.reference["grad_norms"]));
        let mut batches = Batches::new(&fixture.rows, &fixture.run, false);
        for (step, (expected_loss, expected_norm)) in losses.iter().zip(&norms).enumerate() {
            let micro_batches = batches.step(step);
            let scale = 1.0 / micro_batches.iter().map(|b| b.targets.len()).sum::<usize>() as f64;
            let (mut loss, mut buffers) = (0.0, fixture.decoder.buffers().unwrap());
            for batch in &micro_batches {
                loss += scale * fixture.decoder.loss_and_grads(batch, scale, (0, 0), &mut buffers).unwrap();
            }
            let norm = optim::grad_norm(&fixture.decoder, &buffers.grads).unwrap();
            let relative = |a: f64, b: f64| ((a - b) / b).abs();
            assert!(relative(loss, *expected_loss) < 1e-4, "{family} step {step}: loss {loss}, PEFT {expected_loss}");
            assert!(relative(norm, *expected_norm) < 1e-3, "{family} step {step}: norm {norm}, PEFT {expected_norm}");
            let (factor, rate) =
                (optim::clip(norm, fixture.run.recipe.max_grad_norm), learning_rate(&fixture.run, step, 20));
            optimizer.step(&mut fixture.decoder, &buffers.grads, factor, rate).unwrap();
        }
        assert_eq!(losses.len(), 20);
    }
}
