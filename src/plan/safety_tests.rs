//! Chosen runs under a real memory limit. `results/safety/plans.csv` holds what happened; it is made by
//! `HEADROOM=target/release/headroom cargo test --release --lib safety_tests -- --ignored --nocapture`, as root on Linux with the memory controller of
//! control groups, in about half an hour.
//!
//! Each case draws a model, an execution, a recipe and a budget, and asks for the longest rows whose upper bound stays
//! under the budget. It takes two steps of that in a control group of that budget, where the kernel ends whoever goes
//! over it. Rows can be longer by a few tokens at a time, so whatever is left of the budget could have been used.

#[path = "../../tests/folders/mod.rs"]
mod folders;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::experiment::session;
use crate::measure::observe::Line;
use crate::measure::probe::this_machine;
use crate::plan::{DEFAULT_CONFIDENCE, assess};
use crate::predict::Request;
use crate::predict::calibration::Calibration;
use crate::spec::machine::Machine;
use crate::spec::model::ModelSpec;
use crate::spec::record::Job;
use crate::spec::run::{Engine, RunConfig, TokenLengths};
use crate::store;
use crate::trainer::TrainEvent;
use crate::units::Bytes;

const CASES: usize = 110;
/// Memory limits to draw from, bytes: the least and the most.
const BUDGETS: [f64; 2] = [256e6, 4e9];
/// Rows are a multiple of this, tokens, and at most that.
const STEP: usize = 16;
const LONGEST: usize = 8192;
/// Cases whose steps would take longer than this are drawn again, s.
const PATIENCE: f64 = 12.0;

const COLUMNS: [&str; 14] = [
    "case",
    "budget",
    "hidden",
    "layers",
    "vocab",
    "rank",
    "batch_size",
    "grad_checkpoint",
    "weights",
    "max_seq_length",
    "predicted",
    "bound",
    "footprint",
    "killed",
];

fn results() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("results")
}

fn table() -> PathBuf {
    results().join("safety").join("plans.csv")
}

/// How two steps ended under a limit.
struct Ended {
    killed: bool,
    footprint: Bytes,
}

/// Takes two steps of `run` where the kernel allows `limit` bytes.
fn limited(run: &RunConfig, limit: Bytes) -> Ended {
    let group = PathBuf::from(format!("/sys/fs/cgroup/memory/headroom-{}", std::process::id()));
    fs::create_dir_all(&group).expect("a control group can be made: root, and version 1 of the memory controller");
    fs::write(group.join("memory.limit_in_bytes"), limit.0.to_string()).unwrap();
    let mut config = run.clone();
    config.recipe.effective_batch_size = config.execution.batch_size;
    config.recipe.steps = Some(2);
    config.recipe.epochs = None;
    let job = Job { pad_to_max: true, ..Job::new(config) };
    let script = format!("echo $$ > {}/tasks && exec {} trial", group.display(), std::env::var("HEADROOM").unwrap());
    let mut child = Command::new("sh")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(serde_json::to_string(&job).unwrap().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let footprint = said.lines().filter_map(|line| match serde_json::from_str(line) {
        Ok(Line::Event(TrainEvent::Step(step))) => Some(step.footprint_bytes),
        _ => None,
    });
    let footprint = footprint.max().unwrap_or(Bytes(0));
    let killed = std::os::unix::process::ExitStatusExt::signal(&output.status) == Some(9);
    assert!(killed || output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::remove_dir(&group).unwrap();
    Ended { killed, footprint }
}

/// A model with random weights and the tokenizer that ships.
fn model(rng: &mut ChaCha8Rng, at: &Path) -> ModelSpec {
    let hidden = [128, 192, 256][rng.random_range(0..3)];
    let (layers, vocab) = (rng.random_range(4..=16), rng.random_range(1024..16_000));
    let config = format!(
        r#"{{"model_type":"llama","hidden_size":{hidden},"intermediate_size":{},"num_hidden_layers":{layers},"num_attention_heads":{},"num_key_value_heads":2,"vocab_size":{vocab},"max_position_embeddings":8192,"tie_word_embeddings":true}}"#,
        3 * hidden,
        hidden / 32
    );
    let spec = ModelSpec::from_config(&config).unwrap();
    folders::dense(&spec, &config, at);
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/model");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(assets.join(name), at.join(name)).unwrap();
    }
    let row = serde_json::json!({ "text": "the quick brown fox jumps over the lazy dog ".repeat(40) }).to_string();
    fs::write(at.join("train.jsonl"), format!("{row}\n").repeat(64)).unwrap();
    spec
}

fn run(rng: &mut ChaCha8Rng, at: &Path, length: usize) -> RunConfig {
    let batch = [1, 2, 4, 8, 16][rng.random_range(0..5)];
    let text = format!(
        "model = \"{0}\"\ndata = \"{0}/train.jsonl\"\n[recipe]\nmax_seq_length = {length}\neffective_batch_size = {batch}\n\
         [recipe.lora]\nrank = {1}\n[execution]\nbatch_size = {batch}\ngrad_checkpoint = {2}\nweights = \"{3}\"\n",
        at.display(),
        [4, 8, 16, 32, 64][rng.random_range(0..5)],
        rng.random_bool(0.5),
        ["stored", "bf16", "int8"][rng.random_range(0..3)],
    );
    RunConfig::from_toml(&text, Path::new("run.toml")).unwrap()
}

/// One row of the table; `None` where nothing fits the budget, or what does is not bound by it or takes too long.
fn case(number: u64, machine: &Machine, calibration: &Calibration) -> Option<Vec<String>> {
    let mut rng = ChaCha8Rng::seed_from_u64(number);
    let at = tempfile::tempdir().unwrap();
    let spec = model(&mut rng, at.path());
    let [least, most] = BUDGETS.map(f64::ln);
    let budget = Bytes::from_f64(rng.random_range(least..most).exp());
    let assessed = |steps: usize| {
        let run = run(&mut rng.clone(), at.path(), STEP * steps);
        let lengths = TokenLengths::filled();
        let request = Request { spec: &spec, machine, run: &run, lengths: Some(&lengths), calibration };
        let assessment = assess(&request, DEFAULT_CONFIDENCE, Some(budget)).unwrap();
        (run, assessment)
    };
    // The longest rows that fit: more never take less.
    let (mut low, mut high) = (0, LONGEST / STEP + 1);
    while high - low > 1 {
        let middle = (low + high) / 2;
        if assessed(middle).1.fits() { low = middle } else { high = middle }
    }
    if low < 2 || low == LONGEST / STEP {
        return None;
    }
    let (chosen, assessment) = assessed(low);
    if assessment.prediction.step_time.point.0 > PATIENCE {
        return None;
    }
    let (ended, p) = (limited(&chosen, budget), &assessment.prediction);
    let e = &chosen.execution;
    Some(vec![
        number.to_string(),
        budget.0.to_string(),
        spec.hidden_size.to_string(),
        spec.num_hidden_layers.to_string(),
        spec.vocab_size.to_string(),
        chosen.recipe.lora.rank.to_string(),
        e.batch_size.to_string(),
        e.grad_checkpoint.to_string(),
        e.weights.name().to_string(),
        chosen.recipe.max_seq_length.to_string(),
        p.footprint.point.0.to_string(),
        p.footprint.high.0.to_string(),
        ended.footprint.0.to_string(),
        ended.killed.to_string(),
    ])
}

#[test]
#[ignore = "half an hour, as root, with control groups"]
fn measure_plans_under_a_limit() {
    let machine = this_machine().unwrap();
    let calibration = session::known(Engine::Candle, &machine, &results()).unwrap();
    assert!(calibration.runs > 0, "this machine was never calibrated");
    let header: Vec<String> = COLUMNS.map(String::from).to_vec();
    fs::remove_file(table()).ok();
    let rows = (1000..).filter_map(|number| case(number, &machine, &calibration));
    for row in rows.take(CASES) {
        println!("{}", row.join(","));
        store::append_csv(&table(), &header, &row).unwrap();
    }
}

#[test]
fn no_chosen_run_was_killed_and_little_was_left_unused() {
    let (columns, rows) = store::read_csv(&table()).unwrap();
    assert_eq!(columns, COLUMNS);
    let number = |row: &Vec<String>, name: &str| -> f64 {
        row[COLUMNS.iter().position(|c| *c == name).unwrap()].parse().unwrap()
    };
    let killed = rows.iter().filter(|row| row[13] == "true").count();
    let unused = |row| 1.0 - number(row, "footprint") / number(row, "budget");
    let unused: f64 = rows.iter().map(unused).sum::<f64>() / rows.len() as f64;
    let errors: Vec<f64> = rows.iter().map(|r| (number(r, "predicted") / number(r, "footprint") - 1.0).abs()).collect();
    println!(
        "{} plans, {killed} killed, {:.1} % of the budget unused; footprint error median {:.1} % p95 {:.1} %",
        rows.len(),
        100.0 * unused,
        100.0 * crate::stats::median(&errors),
        100.0 * crate::stats::quantile(&errors, 0.95)
    );
    assert!(rows.len() >= 100 && killed == 0 && unused <= 0.12);
}
