//! The training loop as a whole, on a small model folder that transformers wrote: it repeats itself, goes on where it
//! stopped, stops before a broken number, and refuses what does not belongs to another model.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of tests are tests too

mod common;

use std::path::Path;

use common::fixture;
use headroom::checkpoint::adapter::Layout;
use headroom::error::{Error, Result};
use headroom::spec::record::{Job, Outcome};
use headroom::spec::run::RunConfig;
use headroom::trainer::candle::CandleTrainer;
use headroom::trainer::{Flow, TrainEvent, Trainer};

fn config(more: &str) -> RunConfig {
    let folder = fixture("hf_folder");
    let text = format!(
        r#"
        model = "{folder}"
        data = "{folder}/train.jsonl"
        seed = 5
        {more}
        "#,
        folder = folder.display()
    );
    RunConfig::from_toml(&text, Path::new("run.toml")).unwrap()
}

const RECIPE: &str = r#"
[recipe]
max_seq_length = 48
effective_batch_size = 4
steps = 6
learning_rate = 5e-3
warmup_steps = 2
[recipe.lora]
rank = 3
alpha = 5
dropout = 0.1
[execution]
batch_size = 2
attention_chunk = 7
"#;

fn job(config: RunConfig, out: Option<&Path>) -> Job {
    Job { out: out.map(Into::into), save_every: 2, ..Job::new(config) }
}

fn run(job: &Job) -> Result<(Outcome, Vec<f64>)> {
    let mut losses = Vec::new();
    let outcome = CandleTrainer.train(job, &mut |event| {
        if let TrainEvent::Step(step) = event {
            losses.push(step.loss);
        }
        Flow::Continue
    })?;
    Ok((outcome, losses))
}

fn adapter_bytes(out: &Path) -> Vec<u8> {
    std::fs::read(out.join("adapter").join(Layout::Peft.weights_file())).unwrap()
}

#[test]
fn a_run_repeats_itself_and_goes_on_where_it_stopped() {
    let (whole, again, parts) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (outcome, losses) = run(&job(config(RECIPE), Some(whole.path()))).unwrap();
    assert_eq!((outcome, losses.len()), (Outcome::Finished, 6));
    assert!(losses[5] < losses[0], "{losses:?}");
    assert_eq!(run(&job(config(RECIPE), Some(again.path()))).unwrap().1, losses);
    assert_eq!(adapter_bytes(whole.path()), adapter_bytes(again.path()));

    let mut first = job(config(RECIPE), Some(parts.path()));
    first.stop_after = Some(3);
    let (outcome, head) = run(&first).unwrap();
    assert_eq!((outcome, &head[..]), (Outcome::Stopped { at_step: 3 }, &losses[..3]));
    let mut second = job(config(RECIPE), Some(parts.path()));
    second.resume = true;
    let (outcome, tail) = run(&second).unwrap();
    assert_eq!((outcome, &tail[..]), (Outcome::Finished, &losses[3..]));
    assert_eq!(adapter_bytes(parts.path()), adapter_bytes(whole.path()));

    // The same recipe may go on in another execution, another recipe may not.
    let mut other = config(RECIPE);
    other.recipe.learning_rate *= 2.0;
    let mut other = job(other, Some(parts.path()));
    other.resume = true;
    assert!(matches!(run(&other), Err(Error::Mismatch { .. })));
}

/// With a rank at which every matrix is large enough to be held in eight bits.
fn wide(optimizer: &str, dora: bool) -> RunConfig {
    let mut config = config(&RECIPE.replace("steps = 6", &format!("steps = 6\noptimizer = \"{optimizer}\"")));
    config.recipe.lora.rank = 64;
    config.recipe.lora.use_dora = dora;
    config
}

#[test]
fn every_optimizer_goes_on_where_it_stopped() {
    for (optimizer, dora) in [("adamw_8bit", false), ("adamw_8bit", true), ("adafactor", true)] {
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (_, losses) = run(&job(wide(optimizer, dora), Some(whole.path()))).unwrap();
        let mut first = job(wide(optimizer, dora), Some(parts.path()));
        first.stop_after = Some(3);
        run(&first).unwrap();
        let mut second = job(wide(optimizer, dora), Some(parts.path()));
        second.resume = true;
        assert_eq!(run(&second).unwrap().1, losses[3..], "{optimizer}");
        assert_eq!(adapter_bytes(parts.path()), adapter_bytes(whole.path()), "{optimizer}");
        assert!(losses[5] < losses[0], "{optimizer} {losses:?}");
    }
}

#[test]
fn eight_bits_of_state_follow_f32() {
    let mut losses = ["adamw", "adamw_8bit"].map(|optimizer| {
        let mut config = wide(optimizer, false);
        config.recipe.steps = Some(20);
        run(&job(config, None)).unwrap().1
    });
    let [eight, full] = [losses[1].split_off(0), losses[0].split_off(0)];
    let off = full.iter().zip(&eight).map(|(a, b)| ((a - b) / a).abs()).fold(0.0, f64::max);
    println!("eight bits differ by up to {:.4} %: {full:?} {eight:?}", 100.0 * off);
    assert!(full[19] < 0.9 * full[0], "{full:?}");
    // The states are really rounded, and it hardly matters.
    assert!(off > 1e-7 && off < 5e-3, "{off}");
}

/// A job that looks at the validation rows after every step, and learns too fast for its own good.
fn hasty(patience: Option<usize>, out: &Path) -> Job {
    let mut config = config(&RECIPE.replace("5e-3", "6e-2").replace("steps = 6", "steps = 40"));
    config.data = headroom::spec::run::Data::Split(headroom::spec::run::DataSplit {
        train: fixture("hf_folder/train.jsonl"),
        valid: Some(fixture("hf_folder/train.jsonl")),
    });
    config.recipe.eval_steps = Some(1);
    config.recipe.early_stopping_patience = patience;
    job(config, Some(out))
}

fn validations(job: &Job) -> (Outcome, Vec<headroom::spec::record::Validation>) {
    let mut seen = Vec::new();
    let outcome = CandleTrainer.train(job, &mut |event| {
        if let TrainEvent::Validation(validation) = event {
            seen.push(*validation);
        }
        Flow::Continue
    });
    (outcome.unwrap(), seen)
}

#[test]
fn a_run_that_stops_improving_ends_with_its_best_adapter() {
    let (whole, parts, best_only) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (outcome, seen) = validations(&hasty(Some(2), whole.path()));
    let last = seen[seen.len() - 1];
    println!("{seen:?}");
    assert_eq!(outcome, Outcome::EarlyStopped { at_step: last.best_step + 2 });
    assert!(last.best_step > 1 && last.best_validation_loss < seen[0].validation_loss);
    assert_eq!(seen[last.best_step - 1].validation_loss, last.best_validation_loss);
    // Asked to go on, it stays stopped.
    let mut again = hasty(Some(2), whole.path());
    again.resume = true;
    assert_eq!(validations(&again), (outcome.clone(), vec![]));

    // A run that was interrupted while it waited still knows what was best.
    let mut first = hasty(Some(2), parts.path());
    first.stop_after = Some(last.best_step + 1);
    assert_eq!(validations(&first).0, Outcome::Stopped { at_step: last.best_step + 1 });
    let mut second = hasty(Some(2), parts.path());
    second.resume = true;
    assert_eq!(validations(&second), (outcome, vec![last]));
    assert_eq!(adapter_bytes(parts.path()), adapter_bytes(whole.path()));

    // The adapter is that of the best step.
    let mut until_best = hasty(None, best_only.path());
    until_best.stop_after = Some(last.best_step);
    run(&until_best).unwrap();
    let step = format!("checkpoints/step-{:06}/state.safetensors", last.best_step);
    let load = |path: &Path| candle_core::safetensors::load(path, &candle_core::Device::Cpu).unwrap();
    let (state, kept) =
        (load(&best_only.path().join(step)), load(&whole.path().join("adapter/adapter_model.safetensors")));
    for (name, tensor) in &kept {
        let path = name.strip_prefix("base_model.model.").unwrap();
        let path = path.replace("lora_A.weight", "a").replace("lora_B.weight", "b");
        let same = state[&path].to_vec2::<f32>().unwrap() == tensor.to_vec2::<f32>().unwrap();
        assert!(same, "{name}");
    }
}

#[test]
fn a_stop_by_the_caller_leaves_a_checkpoint() {
    let out = tempfile::tempdir().unwrap();
    let mut saved = Vec::new();
    let outcome = CandleTrainer
        .train(&job(config(RECIPE), Some(out.path())), &mut |event| match event {
            TrainEvent::Step(_) => Flow::Stop,
            TrainEvent::Saved { path } => {
                saved.push(path.clone());
                Flow::Continue
            }
            _ => Flow::Continue,
        })
        .unwrap();
    assert_eq!(outcome, Outcome::Stopped { at_step: 1 });
    assert!(saved[0].ends_with("checkpoints/step-000001"));
    assert!(!out.path().join("adapter").exists());
}

#[test]
fn a_broken_number_stops_the_run_before_the_update() {
    let text = RECIPE.replace("5e-3", "1e30").replace("warmup_steps = 2", "warmup_steps = 0\nmax_grad_norm = 0.0");
    match run(&job(config(&text), None)) {
        Err(Error::NotFinite { step, .. }) => assert!(step >= 2),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_adapter_of_another_run_is_refused_with_every_difference() {
    let mut config = config(RECIPE);
    config.recipe.lora.init_adapter = Some(fixture("reference/llama/adapter"));
    let error = run(&job(config, None)).unwrap_err().to_string();
    for part in
        ["its rank is 4, the run's is 3", "its alpha is 6, the run's is 5", "q_proj.lora_A.weight` has shape [4, 48]"]
    {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
}

/// A copy of the model folder with one file changed.
fn spoiled(file: &str, change: impl Fn(&Path)) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture("hf_folder")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    change(&folder.path().join(file));
    let mut config = config(RECIPE);
    config.model = folder.path().to_string_lossy().into_owned();
    config.data = headroom::spec::run::Data::Train(folder.path().join("train.jsonl"));
    let error = run(&job(config, None)).unwrap_err();
    let sources = std::iter::successors(std::error::Error::source(&error), |e| e.source()).map(|e| format!(": {e}"));
    let text = format!("{error}{}", sources.collect::<String>());
    (folder, text)
}

fn edit(from: &'static str, to: &'static str) -> impl Fn(&Path) {
    move |path| {
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains(from), "{from} is not in {}", path.display());
        std::fs::write(path, text.replacen(from, to, 1)).unwrap();
    }
}

fn truncate(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

#[test]
fn what_does_not_belong_together_is_refused_by_name() {
    type Change = Box<dyn Fn(&Path)>;
    let cases: Vec<(&str, Change, &str)> = vec![
        ("config.json", Box::new(edit("\"qwen2\"", "\"t5\"")), "unknown architecture `t5`"),
        (
            "config.json",
            Box::new(edit("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3")),
            "`layer_types` is 2 long, but must be as long as num_hidden_layers (3)",
        ),
        (
            "config.json",
            Box::new(|path: &Path| {
                edit("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3")(path);
                edit("\"layer_types\": [", "\"layer_types\": [\"full_attention\",")(path);
            }),
            "`model.layers.2.input_layernorm.weight` is missing",
        ),
        ("config.json", Box::new(edit("\"intermediate_size\": ", "\"intermediate_size\": 1")), "but config.json says"),
        ("config.json", Box::new(truncate), "EOF while parsing"),
        ("model-00001-of-00002.safetensors", Box::new(truncate), "is the download complete?"),
        (
            "model-00002-of-00002.safetensors",
            Box::new(|p| std::fs::remove_file(p).unwrap()),
            "is missing, though the index names it",
        ),
        (
            "model.safetensors.index.json",
            Box::new(edit("\"model-00001-of-00002", "\"../model-00001-of-00002")),
            "which is not a file in the folder",
        ),
        ("tokenizer.json", Box::new(truncate), "tokenizer of"),
        ("tokenizer.json", Box::new(|p| std::fs::remove_file(p).unwrap()), "has no tokenizer.json"),
        (
            "config.json",
            Box::new(edit("\"vocab_size\": 336", "\"vocab_size\": 300")),
            "has token 307, but the model's vocabulary ends at 299",
        ),
        ("train.jsonl", Box::new(|p| std::fs::write(p, "").unwrap()), "it has no example"),
        (
            "train.jsonl",
            Box::new(|p| std::fs::write(p, "{\"text\":\"a b c\"}\nnot json\n").unwrap()),
            "train.jsonl`, line 2: is not valid JSON",
        ),
        (
            "train.jsonl",
            Box::new(|p| std::fs::write(p, "{\"txt\":\"a b c\"}\n").unwrap()),
            "line 1: has an unrecognised row format",
        ),
        ("train.jsonl", Box::new(|p| std::fs::write(p, "{\"tokens\":[1,2,999]}\n").unwrap()), "has token 999"),
        ("train.jsonl", Box::new(|p| std::fs::remove_file(p).unwrap()), "cannot read"),
        ("tokenizer_config.json", Box::new(edit("\"chat_template\"", "\"no_template\"")), "no chat template"),
    ];
    for (file, change, expected) in cases {
        let (_folder, error) = spoiled(file, change);
        assert!(error.contains(expected), "{file}: expected `{expected}` in `{error}`");
    }
}
