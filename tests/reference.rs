//! Our decoder, gradients and training loop against transformers and PEFT, for every family.
//! `tests/fixtures/reference/make.py` made the models and the numbers.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of tests are tests too

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
    // The same tests once more, by candle's operations alone: see tests/composed.rs.
    if env!("CARGO_CRATE_NAME") == "composed" {
        headroom::ops::compose_everything();
    }
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
    let decoder = Decoder::load(&source.weights().unwrap(), &spec, &run, &Device::Cpu).unwrap();
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
    let (mut loss, mut grads) = (0.0, fixture.decoder.no_grads());
    for batch in &micro_batches {
        loss += scale * fixture.decoder.loss_and_grads(batch, scale, (0, 0), &mut grads).unwrap();
    }
    (loss, grads)
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
            let (mut loss, mut grads) = (0.0, fixture.decoder.no_grads());
            for batch in &micro_batches {
                loss += scale * fixture.decoder.loss_and_grads(batch, scale, (0, 0), &mut grads).unwrap();
            }
            let norm = optim::grad_norm(&grads).unwrap();
            let relative = |a: f64, b: f64| ((a - b) / b).abs();
            assert!(relative(loss, *expected_loss) < 1e-4, "{family} step {step}: loss {loss}, PEFT {expected_loss}");
            assert!(relative(norm, *expected_norm) < 1e-3, "{family} step {step}: norm {norm}, PEFT {expected_norm}");
            let grads = optim::clip(grads, norm, fixture.run.recipe.max_grad_norm).unwrap();
            optimizer.step(&mut fixture.decoder, grads, learning_rate(&fixture.run, step, 20)).unwrap();
        }
        assert_eq!(losses.len(), 20);
    }
}

#[test]
fn micro_batches_and_chunks_do_not_change_what_is_learned() {
    let run = |execution: &str| first_step(&adapted("qwen2", execution));
    let (loss, grads) = run("weights = \"f32\"\nbatch_size = 1\nloss_chunk = 3\nattention_chunk = 2\nmlp_chunk = 4");
    let (whole_loss, whole) = run("weights = \"f32\"\nbatch_size = 4\nloss_chunk = 512\nattention_chunk = 256");
    assert!((loss - whole_loss).abs() < 1e-5, "{loss} {whole_loss}");
    for (a, b) in grads.iter().zip(&whole) {
        let (a, b) = (a.as_ref().unwrap(), b.as_ref().unwrap());
        for (a, b) in [(&a.a, &b.a), (&a.b, &b.b)] {
            let worst = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(worst < 1e-5, "{worst}");
        }
    }
}

/// Sum of the cross-entropies and its gradients, of micro-batches one after the other.
fn losses_and_grads(fixture: &Fixture, batches: &[MicroBatch], scale: f64) -> (f64, Grads) {
    let mut grads = fixture.decoder.no_grads();
    let of = |batch| fixture.decoder.loss_and_grads(batch, scale, (3, 4), &mut grads).unwrap();
    (batches.iter().map(of).sum(), grads)
}

/// Packing changes nothing for an example: it stands at its own positions and sees only itself.
#[test]
fn a_packed_row_is_its_examples_one_by_one() {
    for family in all() {
        let mut fixture = adapted(family, ODD);
        fixture.run.recipe.packing = true;
        let packed = Batches::new(&fixture.rows, &fixture.run, false).step(0);
        let examples: Vec<&Example> = {
            let rows = batches::rows(&fixture.rows, &fixture.run);
            rows[..4].iter().flatten().map(|&i| &fixture.rows[i]).collect()
        };
        assert!(packed.iter().map(|b| b.examples.len()).sum::<usize>() == examples.len() && examples.len() > 4);
        let alone: Vec<MicroBatch> = examples.iter().map(|e| pack(&[e], &fixture.run, false)).collect();
        let (loss, grads) = losses_and_grads(&fixture, &packed, 0.01);
        let (expected_loss, expected) = losses_and_grads(&fixture, &alone, 0.01);
        assert!((loss / expected_loss - 1.0).abs() < 1e-6, "{family}: {loss} {expected_loss}");
        for (a, b) in grads.iter().flatten().zip(expected.iter().flatten()) {
            for (a, b) in a.tensors().zip(b.tensors()) {
                let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
                let error = norm(&(a - b).unwrap()) / norm(b);
                assert!(error < 1e-4, "{family}: {error}");
            }
        }
    }
}

/// In every family, with dropout drawn, every tensor that learns has a gradient that is not zero, and along it the
/// loss rises as the gradient says. DoRA's A and B have the norm held, so there it is the magnitude that is tried.
#[test]
fn the_loss_rises_along_every_gradient() {
    let kinds = [
        "lora = { rank = 4, alpha = 6, dropout = 0.3 }",
        "lora = { rank = 4, alpha = 6, dropout = 0.3, use_dora = true }",
    ];
    for (family, kind) in FAMILIES.into_iter().flat_map(|family| kinds.map(|kind| (family, kind))) {
        let dora = kind.contains("use_dora");
        let mut fixture = opened(family, Some(kind), ODD);
        let start = adapted(family, ODD);
        for i in 0..start.decoder.sites.len() {
            fixture.decoder.set_adapter(i, start.decoder.adapter(i).unwrap().clone()).unwrap();
        }
        let batch = [pack(&[&fixture.rows[1], &fixture.rows[2]], &fixture.run, false)];
        let scale = 1.0 / batch[0].targets.len() as f64;
        let (_, grads) = losses_and_grads(&fixture, &batch, scale);
        let old: Vec<Adapter> =
            (0..fixture.decoder.sites.len()).map(|i| fixture.decoder.adapter(i).unwrap().clone()).collect();
        let grads: Vec<&Adapter> = (0..old.len()).map(|i| grads[fixture.decoder.place(i)].as_ref().unwrap()).collect();
        let square = |t: &Tensor| f64::from(t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
        for (grad, site) in grads.iter().zip(&fixture.decoder.sites) {
            assert_eq!(grad.tensors().count(), if dora { 3 } else { 2 });
            assert!(grad.tensors().all(|t| square(t) > 1e-12), "{family} {}: a gradient of nothing", site.path);
        }
        for part in if dora { 2..3 } else { 0..2 } {
            let length = grads.iter().map(|g| square(g.tensors().nth(part).unwrap())).sum::<f64>().sqrt();
            let mut loss_at = |by: f64| {
                for (i, (old, grad)) in old.iter().zip(&grads).enumerate() {
                    let mut parts = grad.tensors().enumerate();
                    let new = old.map(|p| {
                        let (at, g) = parts.next().unwrap();
                        if at == part { p + (g * (by / length))? } else { Ok(p.clone()) }
                    });
                    fixture.decoder.set_adapter(i, new.unwrap()).unwrap();
                }
                scale * losses_and_grads(&fixture, &batch, scale).0
            };
            let (h, slope) = (0.02, |a: f64, b: f64, h: f64| (a - b) / (2.0 * h));
            // Two steps, extrapolated, so that curvature falls out.
            let near = slope(loss_at(h), loss_at(-h), h);
            let far = slope(loss_at(2.0 * h), loss_at(-2.0 * h), 2.0 * h);
            let rise = (4.0 * near - far) / 3.0;
            assert!((rise / length - 1.0).abs() < 0.02, "{family} {kind} part {part}: {rise}, gradient {length}");
        }
    }
}

#[test]
fn adapters_on_the_last_layers_only_get_the_same_gradients() {
    let mut fixture = open("llama", ODD);
    fixture.run.recipe.lora.num_layers = 1;
    let source = ModelSource::Folder(fixture.folder.clone());
    let mut few = Decoder::load(&source.weights().unwrap(), &fixture.spec, &fixture.run, &Device::Cpu).unwrap();
    let all = adapted("llama", ODD);
    // The same adapters everywhere; the first layers' are part of the base of neither run, so compare at B = start.
    let offset = all.decoder.sites.len() - few.sites.len();
    for i in 0..few.sites.len() {
        few.set_adapter(i, all.decoder.adapter(offset + i).unwrap().clone()).unwrap();
    }
    let mut bare = adapted("llama", ODD);
    for i in 0..offset {
        let old = bare.decoder.adapter(i).unwrap().clone();
        bare.decoder.set_adapter(i, Adapter { b: old.b.zeros_like().unwrap(), ..old }).unwrap();
    }
    let batch = pack(&[&fixture.rows[0], &fixture.rows[1]], &fixture.run, false);
    let (mut grads, mut expected) = (few.no_grads(), bare.decoder.no_grads());
    let loss = few.loss_and_grads(&batch, 0.1, (0, 0), &mut grads).unwrap();
    let expected_loss = bare.decoder.loss_and_grads(&batch, 0.1, (0, 0), &mut expected).unwrap();
    assert_eq!(loss, expected_loss);
    assert!(grads[..offset].iter().all(Option::is_none));
    for (a, b) in grads.iter().zip(&expected).skip(offset) {
        let (a, b) = (a.as_ref().unwrap(), b.as_ref().unwrap());
        assert_eq!(a.a.to_vec2::<f32>().unwrap(), b.a.to_vec2::<f32>().unwrap());
        assert_eq!(a.b.to_vec2::<f32>().unwrap(), b.b.to_vec2::<f32>().unwrap());
    }
}

/// The weights rounded to bf16 must give what the same run gives whose f32 weights were rounded before: the format is
/// storage only. GPT-2 keeps its matrices the other way round.
#[test]
fn a_half_precision_base_computes_in_f32() {
    for family in ["qwen2", "gpt2"] {
        let mut losses = Vec::new();
        for weights in ["bf16", "f16"] {
            let fixture = adapted(family, &format!("batch_size = 2\nweights = \"{weights}\""));
            losses.push(first_step(&fixture).0);
        }
        let full = first_step(&adapted(family, "batch_size = 2\nweights = \"f32\"")).0;
        let (bf16, f16) = ((losses[0] - full).abs() / full, (losses[1] - full).abs() / full);
        assert!(bf16 > 1e-7 && bf16 < 1e-2, "{family} bf16 {bf16}");
        assert!(f16 < 2e-3 && f16 < bf16, "{family} f16 {f16}");
    }
}

/// With adapters on a few projections only, each update must reach its own adapter.
#[test]
fn a_step_with_few_targets_moves_each_adapter_against_its_gradient() {
    let mut fixture = open("qwen2", ODD);
    fixture.run.recipe.lora.target_modules = vec!["v_proj".into(), "down_proj".into()];
    fixture.run.recipe.lora.num_layers = 2;
    let source = ModelSource::Folder(fixture.folder.clone());
    let mut decoder = Decoder::load(&source.weights().unwrap(), &fixture.spec, &fixture.run, &Device::Cpu).unwrap();
    assert_eq!(decoder.sites.len(), 4);
    let all = adapted("qwen2", ODD);
    for i in 0..decoder.sites.len() {
        let same = all.decoder.sites.iter().position(|s| s.path == decoder.sites[i].path).unwrap();
        decoder.set_adapter(i, all.decoder.adapter(same).unwrap().clone()).unwrap();
    }
    let batch = pack(&[&fixture.rows[0], &fixture.rows[1]], &fixture.run, false);
    let mut grads = decoder.no_grads();
    let before = decoder.loss_and_grads(&batch, 0.1, (0, 0), &mut grads).unwrap();
    assert_eq!(grads.iter().flatten().count(), 4);
    let old: Vec<Adapter> = (0..4).map(|i| decoder.adapter(i).unwrap().clone()).collect();
    let signs: Vec<Tensor> = (0..4).map(|i| grads[decoder.place(i)].as_ref().unwrap().b.sign().unwrap()).collect();
    Optimizer::new(&decoder, &Recipe::default()).unwrap().step(&mut decoder, grads, 1e-3).unwrap();
    for i in 0..4 {
        // Adam's first step is the learning rate against the gradient's sign.
        let moved = ((&decoder.adapter(i).unwrap().b - &old[i].b).unwrap() / -1e-3).unwrap();
        let worst = (moved - &signs[i]).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(worst < 1e-2, "{}: {worst}", decoder.sites[i].path);
    }
    assert!(decoder.loss(&batch).unwrap() < before);
}
