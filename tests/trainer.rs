//! The training loop as a whole, on a small model folder that transformers wrote: it repeats itself, goes on where it
//! stopped, stops before a broken number, and refuses what does not belong together.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of tests are tests too

use std::path::{Path, PathBuf};

use headroom::error::{Error, Result};
use headroom::spec::run::RunConfig;
use headroom::trainer::candle::CandleTrainer;
use headroom::trainer::candle::adapter_file::Layout;
use headroom::trainer::{Flow, Job, Outcome, TrainEvent, Trainer};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

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
    Job { config, out: out.map(Into::into), stop_after: None, resume: false, save_every: 2, pad_to_max: false }
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
    for part in ["its rank is 4, the run's is 3", "its alpha is 6, the run's is 5", "q_proj.lora_A.weight` is [4, 48]"]
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
        ("tokenizer.json", Box::new(|p| std::fs::remove_file(p).unwrap()), "cannot read"),
        ("config.json", Box::new(edit("\"vocab_size\": 336", "\"vocab_size\": 300")), "they do not belong together"),
        ("train.jsonl", Box::new(|p| std::fs::write(p, "").unwrap()), "holds no example"),
        (
            "train.jsonl",
            Box::new(|p| std::fs::write(p, "{\"text\":\"a b c\"}\nnot json\n").unwrap()),
            "train.jsonl`, line 2: is no JSON",
        ),
        (
            "train.jsonl",
            Box::new(|p| std::fs::write(p, "{\"txt\":\"a b c\"}\n").unwrap()),
            "line 1: has none of the known forms",
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
