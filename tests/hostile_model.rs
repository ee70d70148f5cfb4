//! Model folders, GGUF files and adapters from a stranger: what is wrong is refused by name, and nothing that a file says
//! stops the program or takes memory out of proportion. `HEADROOM_MUTATIONS=100000 cargo test --release --test
//! hostile_model -- --nocapture` tries longer. One test alone runs at a time: the allocator counts for all.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of tests are tests too

mod common;

use std::path::Path;
use std::time::Instant;

use candle_core::Device;
use common::fixture;
use headroom::checkpoint::adapter::AdapterFile;
use headroom::checkpoint::source::ModelSource;
use headroom::memory;
use headroom::ops::Backend;
use headroom::spec::model::ModelSpec;
use headroom::spec::run::{RunConfig, Weights};
use headroom::trainer::candle::nn::decoder::Decoder;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

#[global_allocator]
static ALLOCATOR: headroom::memory::Counting = headroom::memory::Counting;

/// Bytes that one mutated file may take beside its own size. The lists of a model of 2048 layers take most of it.
const MOST_MEMORY: f64 = 96e6;

/// Numbers at which sums and products run over, and those that are no sizes.
const EXTREMES: [&str; 16] = [
    "0",
    "1",
    "-1",
    "2",
    "3",
    "0.5",
    "2048",
    "65536",
    "16777216",
    "2147483648",
    "4294967296",
    "9007199254740993",
    "9223372036854775808",
    "18446744073709551615",
    "1e30",
    "-1e308",
];

/// Every value inside a JSON value, by its pointer.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    let escaped = |key: &str| key.replace('~', "~0").replace('/', "~1");
    match value {
        Value::Object(map) => map.iter().for_each(|(k, v)| pointers(v, &format!("{at}/{}", escaped(k)), found)),
        Value::Array(all) => all.iter().enumerate().for_each(|(i, v)| pointers(v, &format!("{at}/{i}"), found)),
        _ => {}
    }
}

/// The text of a JSON value with one to three things in it changed.
fn mutated_json(original: &Value, rng: &mut ChaCha8Rng) -> String {
    let mut value = original.clone();
    for _ in 0..rng.random_range(1..4) {
        let mut all = Vec::new();
        pointers(&value, "", &mut all);
        let other = value.pointer(&all[rng.random_range(0..all.len())]).cloned().unwrap_or_default();
        let at = &all[rng.random_range(0..all.len())];
        let Some(target) = value.pointer_mut(at) else { continue };
        let extreme = serde_json::from_str(EXTREMES[rng.random_range(0..EXTREMES.len())]).unwrap();
        match (rng.random_range(0..9), &mut *target) {
            (0..4, _) => *target = extreme,
            (4, _) => *target = other,
            (5, Value::Array(list)) => *list = list.iter().cycle().take(list.len() * 2 + 1).cloned().collect(),
            (5, _) => *target = json!([extreme, [], {}]),
            (6, Value::Object(map)) => {
                if let Some(key) = map.keys().nth(rng.random_range(0..map.len().max(1))).cloned() {
                    map.remove(&key);
                }
            }
            (6, Value::Array(list)) => drop(list.pop()),
            (7, _) => {
                *target =
                    Value::String("sliding_attention".chars().rev().cycle().take(rng.random_range(0..300)).collect())
            }
            _ => *target = [Value::Null, true.into(), "".into(), json!({"": 0})][rng.random_range(0..4)].clone(),
        }
    }
    let mut text = value.to_string();
    match rng.random_range(0..20) {
        0 => text.truncate(text.floor_char_boundary(rng.random_range(0..=text.len()))),
        1 => text = format!("{}{text}{}", "[".repeat(1000), "]".repeat(1000)),
        2 => text = text.replacen(':', ":1e999,\"x\":", 1),
        _ => {}
    }
    text
}

/// Figures of a loop.
#[derive(Default)]
struct Tried {
    cases: usize,
    accepted: usize,
    memory: f64,
    slowest: f64,
}

impl Tried {
    /// Tries one case: what it takes is counted, and a panic ends the test.
    fn case(&mut self, size: usize, what: &dyn Fn() -> String, try_it: impl FnOnce() -> bool) {
        let (before, start) = (memory::live(), Instant::now());
        memory::reset_peak();
        self.accepted += usize::from(try_it());
        let taken = memory::peak().saturating_sub(before).as_f64();
        assert!(taken < MOST_MEMORY + 8.0 * size as f64, "{taken} bytes for {size}: {}", what());
        (self.cases, self.memory) = (self.cases + 1, self.memory.max(taken));
        self.slowest = self.slowest.max(start.elapsed().as_secs_f64());
    }

    fn say(&self, what: &str) {
        let Self { cases, accepted, memory, slowest } = self;
        println!("{what}: {cases} cases, {accepted} accepted, at most {:.1} MB and {slowest:.3} s", memory / 1e6);
    }
}

/// Cases of a loop: some of `short`, or those that are asked for.
fn cases(short: usize) -> std::ops::Range<u64> {
    let asked = std::env::var("HEADROOM_MUTATIONS").ok().and_then(|n| n.parse().ok());
    0..asked.unwrap_or(short as u64)
}

/// What every verb makes of a model that it accepted.
fn used(spec: &ModelSpec) {
    let shapes = spec.tensors().into_iter().map(|t| t.shape.iter().map(|n| *n as u128).product::<u128>());
    let sum: u128 = shapes.sum();
    assert!(sum <= 1 << 46, "{spec:?}");
    assert!(sum < 1 << 46);
    for weights in [Weights::Stored, Weights::F32, Weights::Q4K] {
        assert!(spec.matrices_bytes(weights) < 1 << 49, "{spec:?}");
    }
    assert_eq!(spec.attention.windows.len(), spec.num_hidden_layers);
}

fn read_json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn configs() -> Vec<Value> {
    let mut all: Vec<Value> =
        common::FAMILIES.map(|f| read_json(&fixture("reference").join(f).join("config.json"))).into();
    all.extend(["phi3", "qwen2_mixed", "gemma3"].map(|f| read_json(&fixture("mlx").join(f).join("config.json"))));
    let factors = vec![1.5; 3];
    let mut long = read_json(&fixture("reference/phi3/config.json"));
    long["rope_parameters"] = json!({"rope_type": "longrope", "short_factor": factors, "long_factor": factors,
        "partial_rotary_factor": 0.75, "original_max_position_embeddings": 32});
    let mut moe = read_json(&fixture("reference/qwen3/config.json"));
    moe["model_type"] = "qwen3_moe".into();
    for (key, value) in [("num_experts", 16), ("num_experts_per_tok", 2), ("moe_intermediate_size", 48)] {
        moe[key] = value.into();
    }
    all.extend([long, moe]);
    all
}

fn mutate_configs() {
    let configs = configs();
    for config in &configs {
        if let Err(e) = ModelSpec::from_config(&config.to_string()) {
            panic!("{config}: {e}");
        }
    }
    let mut tried = Tried::default();
    for case in cases(1500) {
        let mut rng = ChaCha8Rng::seed_from_u64(case);
        let text = mutated_json(&configs[rng.random_range(0..configs.len())], &mut rng);
        tried.case(text.len(), &|| text.clone(), || ModelSpec::from_config(&text).map(|spec| used(&spec)).is_ok());
    }
    tried.say("config.json");
}

/// A file of a checkpoint opened and looked over, and all of it read where it is accepted.
fn opened(source: &ModelSource) -> bool {
    let Ok(spec) = source.spec() else { return false };
    used(&spec);
    let tokenizer = source.tokenizer().is_ok();
    let _ = (tokenizer, source.tokenizer_config());
    let Ok(store) = source.weights() else { return false };
    if store.check(&spec).is_err() {
        return false;
    }
    // What is accepted has the shapes that were described, and those of a small model.
    let text = "model = \"m\"\ndata = \"d\"\n[recipe]\nmax_seq_length = 8";
    let run = RunConfig::from_toml(text, Path::new("run.toml")).unwrap();
    Decoder::load(&store, &spec, &run, (&Device::Cpu, Backend::Fused)).is_ok()
}

fn mutate_safetensors() {
    let model = fixture("reference/qwen2");
    let whole = std::fs::read(model.join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&whole[8..8 + length]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(model.join("config.json"), folder.path().join("config.json")).unwrap();
    let source = ModelSource::Folder(folder.path().into());
    let mut tried = Tried::default();
    for case in cases(300) {
        let mut rng = ChaCha8Rng::seed_from_u64(case);
        let text = if case == 0 { header.to_string() } else { mutated_json(&header, &mut rng) };
        let mut said = text.len() as u64;
        if rng.random_range(0..20) == 0 {
            said = [0, 1, said / 2, 1 << 24, 1 << 27, 1 << 63, u64::MAX][rng.random_range(0..7)];
        }
        let bytes = [&said.to_le_bytes()[..], text.as_bytes(), &whole[8 + length..]].concat();
        std::fs::write(folder.path().join("model.safetensors"), &bytes).unwrap();
        tried.case(bytes.len(), &|| text.clone(), || opened(&source));
        assert!(case > 0 || tried.accepted == 1);
    }
    tried.say("safetensors");
}

/// Places and widths of the numbers in the header of a GGUF file.
fn gguf_numbers(bytes: &[u8]) -> Vec<(usize, usize)> {
    struct Walk<'a>(&'a [u8], usize, Vec<(usize, usize)>);
    impl Walk<'_> {
        fn number(&mut self, width: usize) -> u64 {
            let mut padded = [0; 8];
            padded[..width].copy_from_slice(&self.0[self.1..self.1 + width]);
            self.2.push((self.1, width));
            self.1 += width;
            u64::from_le_bytes(padded)
        }
        fn string(&mut self) {
            self.1 += self.number(8) as usize;
        }
        fn value(&mut self, kind: u64) {
            match kind {
                8 => self.string(),
                9 => {
                    let (kind, length) = (self.number(4), self.number(8));
                    (0..length).for_each(|_| self.value(kind));
                }
                0 | 1 | 7 => _ = self.number(1),
                2 | 3 => _ = self.number(2),
                4..=6 => _ = self.number(4),
                _ => _ = self.number(8),
            }
        }
    }
    let mut walk = Walk(bytes, 4, Vec::new());
    walk.number(4);
    let (tensors, keys) = (walk.number(8), walk.number(8));
    for _ in 0..keys {
        walk.string();
        let kind = walk.number(4);
        walk.value(kind);
    }
    for _ in 0..tensors {
        walk.string();
        let dimensions = walk.number(4);
        (0..dimensions).for_each(|_| _ = walk.number(8));
        walk.number(4);
        walk.number(8);
    }
    walk.2
}

fn mutate_gguf() {
    let file = |name| {
        let bytes = std::fs::read(fixture("gguf").join(format!("{name}.gguf"))).unwrap();
        let numbers = gguf_numbers(&bytes);
        (bytes, numbers)
    };
    let files = ["chat", "llama_k", "gemma3", "phi3", "gpt2"].map(file);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    let source = ModelSource::Gguf(path.clone());
    let mut tried = Tried::default();
    for case in cases(400) {
        let mut rng = ChaCha8Rng::seed_from_u64(case);
        let (whole, numbers) = &files[rng.random_range(0..files.len())];
        let (mut bytes, mut done) = (whole.clone(), String::new());
        for _ in 0..if case == 0 { 0 } else { rng.random_range(1..4) } {
            // The numbers before the tokens count for as much as all of those.
            let end = if rng.random_bool(0.5) { numbers.len().min(120) } else { numbers.len() };
            let (at, width) = numbers[rng.random_range(0..end)];
            let extreme = [0, 1, 2, 3, 9, 255, 65_535, 1 << 24, 1 << 31, 1 << 40, 1 << 63, u64::MAX, rng.random()];
            let to = extreme[rng.random_range(0..extreme.len())].to_le_bytes();
            bytes[at..at + width].copy_from_slice(&to[..width]);
            done += &format!("{to:?} at {at} ");
        }
        match rng.random_range(0..20) {
            0 if case > 0 => bytes.truncate(rng.random_range(0..bytes.len())),
            1 if case > 0 => {
                let at = bytes.windows(12).position(|w| w == b"general.name").unwrap_or(0);
                bytes.splice(at..at + 12, *b"general.nan\0");
            }
            _ => {}
        }
        std::fs::write(&path, &bytes).unwrap();
        tried.case(bytes.len(), &|| done.clone(), || opened(&source));
        assert!(case > 0 || tried.accepted == 1);
    }
    tried.say("GGUF");
}

fn mutate_adapters() {
    let from = fixture("reference/qwen2/adapter");
    let config = read_json(&from.join("adapter_config.json"));
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(from.join("adapter_model.safetensors"), folder.path().join("adapter_model.safetensors")).unwrap();
    let mut tried = Tried::default();
    for case in cases(200) {
        let mut rng = ChaCha8Rng::seed_from_u64(case);
        let text = mutated_json(&config, &mut rng);
        std::fs::write(folder.path().join("adapter_config.json"), &text).unwrap();
        tried.case(text.len(), &|| text.clone(), || AdapterFile::read(folder.path()).map(|file| file.lora()).is_ok());
    }
    tried.say("adapter_config.json");
}

#[test]
fn mutated_files_are_refused_or_used_and_take_no_more_than_their_size() {
    mutate_configs();
    mutate_safetensors();
    mutate_gguf();
    mutate_adapters();
}
