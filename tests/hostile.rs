//! Files from strangers: whatever is in them, `headroom` answers or says what is wrong. It does not crash, hang or take
//! all memory. A few inputs of each kind are tried; as many as wanted by
//! `HEADROOM_HOSTILE=1000 cargo test --release --test hostile -- --nocapture`, which prints a table of what became of
//! them. Inputs that did not hold are kept under `target/tmp/hostile`.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of tests are tests too

mod disk;
mod mutate;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use disk::{Ran, Table, World, copy_tree, run_file, with_model};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// Inputs of each kind, where nothing else is asked for.
const FEW: usize = 24;
/// Of all draws.
const SEED: u64 = 11;

fn inputs() -> usize {
    std::env::var("HEADROOM_HOSTILE").ok().and_then(|n| n.parse().ok()).unwrap_or(FEW)
}

/// Where a command has 4 GiB, ten seconds of a processor and a little more by the clock.
fn bounded(mut world: World) -> World {
    world.memory = Some(4 << 30);
    world.processor = Some(10);
    world.patience = Duration::from_secs(30);
    world
}

/// What became of a call that should have been answered or refused.
fn fault(ran: &Ran) -> Option<&'static str> {
    match ran.code {
        0 | 1 if ran.said.contains("panicked at") => Some("panic"),
        2 if ran.said.contains("panicked at") => Some("panic"),
        0 | 1 => None,
        2 if ran.said.contains("error:") => None,
        2 => Some("silent"),
        101 => Some("panic"),
        // Over its time, by the processor or by the clock.
        -1 | 152 | 137 => Some("hang"),
        _ => Some("abort"),
    }
}

/// One kind of file: where it is, how it is changed, and the commands that read it.
struct Kind {
    name: &'static str,
    world: fn() -> World,
    change: fn(&World, &mut ChaCha8Rng) -> (String, Vec<u8>),
    calls: &'static [&'static [&'static str]],
}

fn text(world: &World, name: &str) -> String {
    String::from_utf8(world.bytes(name)).unwrap()
}

/// What a file held before it was changed for the first time.
fn base(world: &World, name: &str) -> Vec<u8> {
    let kept = format!("kept/{name}");
    if !world.at(&kept).exists() {
        let bytes = world.bytes(name);
        world.put(&kept, bytes);
    }
    world.bytes(&kept)
}

fn base_json(world: &World, name: &str) -> Value {
    serde_json::from_slice(&base(world, name)).unwrap()
}

fn base_toml(world: &World, name: &str) -> Value {
    let table: toml::Table = toml::from_str(std::str::from_utf8(&base(world, name)).unwrap()).unwrap();
    serde_json::to_value(table).unwrap()
}

fn a_model() -> World {
    let world = bounded(with_model());
    world.put("run.toml", run_file(1, "", ""));
    world
}

/// Configurations of every family, with the vocabulary of the tokenizer that is there.
fn configs() -> World {
    let world = a_model();
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reference");
    for family in ["llama3_rope", "llama_yarn", "gemma3", "gpt2", "phi3", "starcoder2"] {
        let text = fs::read_to_string(reference.join(family).join("config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config["vocab_size"] = 336.into();
        world.put(&format!("configs/{family}.json"), config.to_string());
    }
    world.put("configs/qwen2.json", world.bytes("model/config.json"));
    let mut longrope: Value = serde_json::from_slice(&world.bytes("configs/phi3.json")).unwrap();
    longrope["rope_parameters"] = json!({"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
        "long_factor": [1.0, 1.5, 2.0], "short_factor": [1.0, 1.0, 1.0], "original_max_position_embeddings": 64});
    world.put("configs/longrope.json", longrope.to_string());
    let mut quantised: Value = serde_json::from_slice(&world.bytes("configs/qwen2.json")).unwrap();
    quantised["quantization"] = json!({"group_size": 32, "bits": 4});
    world.put("configs/quantised.json", quantised.to_string());
    world
}

fn a_config(world: &World, rng: &mut ChaCha8Rng) -> (String, Vec<u8>) {
    let mut files: Vec<_> = fs::read_dir(world.at("configs")).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    let file = &files[rand::Rng::random_range(rng, 0..files.len())];
    let config: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    ("model/config.json".into(), mutate::json(&config, rng))
}

/// A run that was stopped in the middle, with its page's and its table's sources.
fn a_run() -> World {
    let world = with_model();
    world.put("run.toml", run_file(4, "", ""));
    let ran = world.run(&["launch", "run.toml", "--save-every", "2"]);
    assert_eq!(ran.code, 0, "{}", ran.said);
    bounded(world)
}

/// The table of the machine that this is.
fn table_of(world: &World) -> String {
    let machine = fs::read_dir(world.at("results")).unwrap().next().unwrap().unwrap();
    format!("results/{}/measurements.csv", machine.file_name().to_string_lossy())
}

fn a_gguf() -> World {
    let world = bounded(with_model());
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf/chat.gguf");
    world.put("m.gguf", fs::read(fixture).unwrap());
    world.put("run.toml", run_file(1, "", "").replace("./model", "./m.gguf"));
    world
}

fn chats() -> World {
    let world = a_model();
    let row = json!({"messages": [{"role": "user", "content": "How many days?"}, {"role": "assistant", "content": "Seven."}]});
    world.put("data/train.jsonl", format!("{row}\n").repeat(2));
    world.put("data/valid.jsonl", format!("{row}\n"));
    world
}

const PREDICT: &[&str] = &["predict", "run.toml"];
const LAUNCH: &[&str] = &["launch", "run.toml", "--out", "o", "--results", "r"];
const GENERATE: &[&str] = &["generate", "Hello", "--model", "./model", "--max-tokens", "2"];

const KINDS: [Kind; 15] = [
    Kind { name: "config.json", world: configs, change: a_config, calls: &[PREDICT, GENERATE] },
    Kind {
        name: "safetensors header",
        world: a_model,
        change: |world, rng| {
            let name = "model/model-00001-of-00002.safetensors";
            (name.into(), mutate::safetensors(&base(world, name), rng))
        },
        calls: &[LAUNCH, &["export", "--model", "./model", "--format", "gguf", "--out", "o/m.gguf", "--force"]],
    },
    Kind {
        name: "safetensors index",
        world: a_model,
        change: |world, rng| {
            let name = "model/model.safetensors.index.json";
            (name.into(), mutate::json(&base_json(world, name), rng))
        },
        calls: &[LAUNCH],
    },
    Kind {
        name: "GGUF header",
        world: a_gguf,
        change: |world, rng| ("m.gguf".into(), mutate::gguf(&base(world, "m.gguf"), rng)),
        calls: &[PREDICT, &["generate", "Hello", "--model", "./m.gguf", "--max-tokens", "2"]],
    },
    Kind {
        name: "tokenizer.json",
        world: a_model,
        change: |world, rng| {
            ("model/tokenizer.json".into(), mutate::tokenizer(&base_json(world, "model/tokenizer.json"), rng))
        },
        calls: &[PREDICT, GENERATE],
    },
    Kind {
        name: "tokenizer_config.json",
        world: chats,
        change: |world, rng| {
            let name = "model/tokenizer_config.json";
            (name.into(), mutate::json(&base_json(world, name), rng))
        },
        calls: &[PREDICT],
    },
    Kind {
        name: "chat template",
        world: chats,
        change: |world, rng| {
            let mut config = base_json(world, "model/tokenizer_config.json");
            let template = config["chat_template"].as_str().unwrap().to_owned();
            config["chat_template"] = mutate::template(&template, rng).into();
            ("model/tokenizer_config.json".into(), config.to_string().into_bytes())
        },
        calls: &[PREDICT],
    },
    Kind {
        name: "rows",
        world: a_model,
        change: |world, rng| {
            let text = String::from_utf8(base(world, "data/train.jsonl")).unwrap();
            let rows: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
            ("data/train.jsonl".into(), mutate::json_lines(&rows, rng))
        },
        calls: &[PREDICT, LAUNCH],
    },
    Kind {
        name: "run.toml",
        world: a_model,
        change: |world, rng| {
            let full = "seed = 1\nengine = 'candle'\n[recipe.lora]\nuse_dora = false\ntarget_modules = ['q_proj']\n\
                        [execution]\ngrad_checkpoint = true\nweights = 'stored'\nloss_chunk = 64\nattention_chunk = 16\n";
            let mut run = base_toml(world, "run.toml");
            let full: toml::Table = toml::from_str(full).unwrap();
            let full = serde_json::to_value(full).unwrap();
            run["execution"] = full["execution"].clone();
            run["recipe"]["lora"]["target_modules"] = full["recipe"]["lora"]["target_modules"].clone();
            ("run.toml".into(), mutate::toml(&run, rng))
        },
        calls: &[PREDICT],
    },
    Kind {
        name: "grids",
        world: || {
            let world = a_model();
            let grids = Path::new(env!("CARGO_MANIFEST_DIR")).join("grids/m1-8g.toml");
            world.put("grid.toml", fs::read(grids).unwrap());
            world
        },
        change: |world, rng| ("grid.toml".into(), mutate::toml(&base_toml(world, "grid.toml"), rng)),
        calls: &[&["sweep", "grid.toml"]],
    },
    Kind {
        name: "guides",
        world: || {
            let world = a_model();
            let guides = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("grids/guides.toml")).unwrap();
            let guides: toml::Table = toml::from_str(&guides).unwrap();
            let claims: Vec<toml::Value> = guides["claim"].as_array().unwrap().iter().take(6).cloned().collect();
            let few: toml::Table =
                [("guide".into(), guides["guide"].clone()), ("claim".into(), claims.into())].into_iter().collect();
            world.put("guides.toml", toml::to_string(&few).unwrap());
            world
        },
        change: |world, rng| ("guides.toml".into(), mutate::toml(&base_toml(world, "guides.toml"), rng)),
        calls: &[&["report", "guides", "--claims", "guides.toml"]],
    },
    Kind {
        name: "measurements",
        world: a_run,
        change: |world, rng| {
            let name = table_of(world);
            let table = String::from_utf8(base(world, &name)).unwrap();
            (name, mutate::csv(&table, rng))
        },
        calls: &[PREDICT, &["report", "runs/run"]],
    },
    Kind {
        name: "prediction.json",
        world: a_run,
        change: |world, rng| {
            let name = "runs/run/prediction.json";
            (name.into(), mutate::json(&base_json(world, name), rng))
        },
        calls: &[&["report", "runs/run"]],
    },
    Kind {
        name: "metrics.jsonl",
        world: a_run,
        change: |world, rng| {
            let name = "runs/run/metrics.jsonl";
            let text = String::from_utf8(base(world, name)).unwrap();
            let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
            (name.into(), mutate::json_lines(&lines, rng))
        },
        calls: &[&["report", "runs/run"], &["launch", "runs/run", "--resume"]],
    },
    Kind {
        name: "adapter_config.json",
        world: || {
            let world = a_run();
            copy_tree(&world.at("runs/run/adapter"), &world.at("adapter"));
            // As it comes from somebody else: with no checksums.
            world.remove("adapter/SHA256SUMS");
            world
        },
        change: |world, rng| {
            let name = "adapter/adapter_config.json";
            (name.into(), mutate::json(&base_json(world, name), rng))
        },
        calls: &[
            &["generate", "Hello", "--adapter", "adapter", "--model", "./model", "--max-tokens", "1"],
            &["export", "adapter", "--model", "./model", "--format", "mlx-lm", "--out", "o", "--force"],
        ],
    },
];

/// Calls of a kind, by what became of them.
#[derive(Default)]
struct Figures {
    calls: BTreeMap<&'static str, usize>,
    faults: Vec<String>,
}

fn try_kind(kind: &Kind) -> Figures {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hostile");
    fs::create_dir_all(&kept).unwrap();
    let (next, figures) = (Mutex::new(0..inputs()), Mutex::new(Figures::default()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let world = (kind.world)();
                for call in kind.calls {
                    let ran = world.run(call);
                    assert!(matches!(ran.code, 0 | 1), "{}, unchanged: {}", kind.name, ran.brief());
                    ["o", "r"].iter().for_each(|name| world.remove(name));
                }
                loop {
                    let Some(input) = next.lock().unwrap().next() else { break };
                    let mut rng = ChaCha8Rng::seed_from_u64((SEED << 32) | input as u64);
                    let (file, bytes) = (kind.change)(&world, &mut rng);
                    for call in kind.calls {
                        ["o", "r"].iter().for_each(|name| world.remove(name));
                        world.put(&file, &bytes);
                        let ran = world.run(call);
                        let mut figures = figures.lock().unwrap();
                        let fate = fault(&ran);
                        let column = fate.unwrap_or(if ran.code == 2 { "refused" } else { "answered" });
                        *figures.calls.entry(column).or_default() += 1;
                        if let Some(fate) = fate {
                            let name = format!("{}-{input}", kind.name.replace(' ', "-"));
                            fs::write(kept.join(&name), &bytes).unwrap();
                            figures.faults.push(format!("{fate}: {name} in `{}`: {}", call.join(" "), ran.brief()));
                        }
                    }
                }
            });
        }
    });
    figures.into_inner().unwrap()
}

#[test]
fn changed_files_are_answered_or_refused() {
    let columns = ["answered", "refused", "silent", "panic", "abort", "hang"];
    println!("\n{:24} {:>7} {}", "", "inputs", columns.map(|c| format!("{c:>9}")).concat());
    let mut faults = Vec::new();
    let mut sums = [0; 6];
    for kind in &KINDS {
        let figures = try_kind(kind);
        let row = columns.map(|c| figures.calls.get(c).copied().unwrap_or(0));
        sums.iter_mut().zip(row).for_each(|(sum, n)| *sum += n);
        println!("{:24} {:>7} {}", kind.name, inputs(), row.map(|n| format!("{n:>9}")).concat());
        // A change that is always refused, or never, would try nothing.
        assert!(row[1] > 0, "{}: nothing was refused", kind.name);
        faults.extend(figures.faults);
    }
    println!("{:24} {:>7} {}", "all", KINDS.len() * inputs(), sums.map(|n| format!("{n:>9}")).concat());
    let shown: Vec<String> =
        faults.iter().take(60).map(|f| format!("  {}", f.chars().take(300).collect::<String>())).collect();
    assert!(faults.is_empty(), "{} calls did not hold:\n{}", faults.len(), shown.join("\n"));
}

// ---- by hand ----

/// What somebody thought of, and how it is called.
struct Made {
    name: String,
    make: Box<dyn Fn(&World) + Send + Sync>,
    args: Vec<&'static str>,
}

impl std::fmt::Debug for Made {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.name)
    }
}

fn made(name: impl Into<String>, args: &[&'static str], make: impl Fn(&World) + Send + Sync + 'static) -> Made {
    Made { name: name.into(), make: Box::new(make), args: args.to_vec() }
}

/// Sets values of a JSON file by their pointers; where the last part is not there, it is made.
fn set(world: &World, file: &str, changes: &[(&str, Value)]) {
    let mut json: Value = serde_json::from_str(&text(world, file)).unwrap();
    for (path, value) in changes {
        let (above, key) = path.rsplit_once('/').unwrap();
        json.pointer_mut(above).unwrap()[key] = value.clone();
    }
    world.put(file, json.to_string());
}

fn config_of(name: &str, changes: &[(&'static str, Value)]) -> Made {
    let changes = changes.to_vec();
    made(format!("config.json: {name}"), PREDICT, move |world| set(world, "model/config.json", &changes))
}

/// Numbers as they are written, for what JSON's values cannot hold.
fn config_text(name: &str, from: &'static str, to: &'static str) -> Made {
    made(format!("config.json: {name}"), PREDICT, move |world| {
        let text = text(world, "model/config.json");
        assert!(text.contains(from));
        world.put("model/config.json", text.replacen(from, to, 1));
    })
}

fn sizes() -> Vec<Made> {
    let longrope = |more: Value| {
        let mut rope = json!({"rope_type": "longrope", "rope_theta": 10000.0, "long_factor": [1.0], "short_factor": [1.0],
            "original_max_position_embeddings": 64});
        rope.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        rope
    };
    let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    let mut found: Vec<Made> = [64_000u64, 1_000_000, 16_777_216, 1_000_000_000_000, 1 << 63]
        .into_iter()
        .map(|n| config_of(&format!("{n} layers"), &[("/num_hidden_layers", n.into()), ("/layer_types", Value::Null)]))
        .collect();
    found.push(config_of(
        "2^24 layers, quantised",
        &[
            ("/num_hidden_layers", 16_777_216.into()),
            ("/layer_types", Value::Null),
            ("/quantization", json!({"group_size": 32, "bits": 4})),
        ],
    ));
    found.push(config_of(
        "rotary factor of 1e30",
        &[("/model_type", "phi3".into()), ("/rope_parameters", longrope(json!({"partial_rotary_factor": 1e30})))],
    ));
    found.push(config_of(
        "a head of 10^10",
        &[
            ("/model_type", "phi3".into()),
            ("/head_dim", 10_000_000_000u64.into()),
            ("/rope_parameters", longrope(json!({}))),
        ],
    ));
    found.push(config_of(
        "heads x head x hidden of 2^72",
        &[
            ("/num_attention_heads", (1 << 24).into()),
            ("/num_key_value_heads", (1 << 24).into()),
            ("/head_dim", (1 << 24).into()),
            ("/hidden_size", (1 << 24).into()),
        ],
    ));
    found.push(config_text("layers of 1e999", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1e999"));
    found.push(made("config.json: nested 10^5 deep", PREDICT, move |world| {
        world.put("model/config.json", format!("{{\"x\":{}}}", nested(100_000)));
    }));
    found.push(made("config.json: 28 MB of small objects", PREDICT, |world| {
        world.put("model/config.json", format!("{{\"x\":[{}0]}}", "{\"\":0},".repeat(3_500_000)));
    }));
    found.push(made("a row of 100 MB", PREDICT, |world| {
        world.put("data/train.jsonl", format!("{{\"text\":\"{}\"}}\n", "the end of it ".repeat(7_000_000)));
    }));
    found.push(made("safetensors header of 98 MB", LAUNCH, |world| {
        let header = format!("{{\"__metadata__\":{{}},\"x\":[{}0]}}", "{\"\":0},".repeat(12_000_000));
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        world.put("model/model-00001-of-00002.safetensors", bytes);
    }));
    found.push(made("generate with 2^24 positions", GENERATE, |world| {
        set(world, "model/config.json", &[("/max_position_embeddings", 16_777_216.into())]);
    }));
    found.push(made("a model name of 1 MB", &["predict", "long.toml"], |world| {
        world.put("long.toml", run_file(1, "", "").replace("./model", &"Qwen".repeat(250_000)));
    }));
    found
}

fn padding(strategy: Value, multiple: Value) -> Value {
    json!({"strategy": strategy, "direction": "Right", "pad_to_multiple_of": multiple, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "x"})
}

fn tokenizers() -> Vec<Made> {
    let tokenizer = |name: &str, path: &'static str, value: Value| {
        let calls: &[&str] = if path == "/decoder" { GENERATE } else { PREDICT };
        made(format!("tokenizer.json: {name}"), calls, move |world| {
            set(world, "model/tokenizer.json", &[(path, value.clone())]);
        })
    };
    let charsmap = |map: &str| json!({"type": "Precompiled", "precompiled_charsmap": map});
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let many = |each: Value, n: usize| json!({"type": "Sequence", "normalizers": vec![each; n]});
    let padding = |strategy: Value, multiple: Value| json!({"strategy": strategy, "direction": "Right", "pad_to_multiple_of": multiple, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"});
    let processor =
        |single: Value| json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}});
    vec![
        tokenizer("an empty charsmap", "/normalizer", charsmap("")),
        tokenizer("a broken charsmap", "/normalizer", charsmap("AAAA")),
        tokenizer("a charsmap of 8 GB", "/normalizer", charsmap("/////wAAAAD/////")),
        tokenizer(
            "stride over the length",
            "/truncation",
            json!({"max_length": 4, "stride": 9, "strategy": "LongestFirst", "direction": "Right"}),
        ),
        tokenizer("padding to 10^9", "/padding", padding(json!({"Fixed": 1_000_000_000}), Value::Null)),
        tokenizer("padding to 2^62", "/padding", padding(json!({"Fixed": 1u64 << 62}), Value::Null)),
        tokenizer("padding to multiples of 2^40", "/padding", padding(json!("BatchLongest"), json!(1u64 << 40))),
        tokenizer(
            "$B in a template for one",
            "/post_processor",
            processor(json!([{"Sequence": {"id": "B", "type_id": 0}}])),
        ),
        tokenizer(
            "a special token that is not listed",
            "/post_processor",
            processor(json!([{"SpecialToken": {"id": "[X]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}])),
        ),
        tokenizer("Replace of nothing", "/normalizer", replace("", "x")),
        tokenizer("Prepend of nothing", "/normalizer", json!({"type": "Prepend", "prepend": ""})),
        tokenizer("nine times ten", "/normalizer", many(replace("e", "eeeeeeeeee"), 9)),
        tokenizer(
            "a thousand Prepends of 5 kB",
            "/normalizer",
            many(json!({"type": "Prepend", "prepend": "a".repeat(5000)}), 1000),
        ),
        tokenizer("a broken decoder", "/decoder", json!({"type": "Sequence"})),
        tokenizer(
            "a decoder of another kind",
            "/decoder",
            json!({"type": "Replace", "pattern": {"Regex": "("}, "content": ""}),
        ),
        tokenizer(
            "a regular expression that backtracks",
            "/pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "(?:(?:\\w+)+)+(?=!!!)"}, "behavior": "Isolated", "invert": false}),
        ),
    ]
}

fn templates() -> Vec<Made> {
    let template = |name: &str, text: String| {
        made(format!("template: {name}"), PREDICT, move |world| {
            let row = json!({"messages": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Seven."}]});
            world.put("data/train.jsonl", format!("{row}\n"));
            set(world, "model/tokenizer_config.json", &[("/chat_template", text.clone().into())]);
        })
    };
    let doubling =
        "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}";
    let deep = |from: &str, n: usize| from.repeat(n);
    vec![
        template("two ranges", "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}".into()),
        template("a macro that calls itself twice", "{% macro m(d) %}{% if d %}{{ m(d-1) }}{{ m(d-1) }}{% endif %}{% endmacro %}{{ m(40) }}".into()),
        template("unique of many", "{{ (range(100000)|list * 1000)|unique|list|length }}".into()),
        template("doubling", doubling.into()),
        template("replace", "{% set n = namespace(s='aaaa') %}{% for i in range(20) %}{% set n.s = n.s.replace('a', 'aaaa') %}{% endfor %}{{ n.s }}".into()),
        template("indent", "{{ 'a\nb'|indent(4000000000) }}".into()),
        template("tojson", "{{ messages|tojson(indent=4000000000) }}".into()),
        template("batch", "{{ [1]|batch(1000000000000, 0)|list|length }}".into()),
        template("slice", "{{ [1]|slice(4611686018427387904)|list|length }}".into()),
        template("format", "{{ '%999999999d'|format(1) }}".into()),
        template("split by nothing", "{{ 'a'.split('') }}".into()),
        template("not", format!("{{{{ {}x }}}}", deep("not ", 100_000))),
        template("minus", format!("{{{{ {}1 }}}}", deep("-", 100_000))),
        template("upper", format!("{{{{ 'a'{} }}}}", deep("|upper", 100_000))),
        template("items", format!("{{{{ messages{} }}}}", deep("[0]", 100_000))),
        template("joined", format!("{{{{ 'a'{} }}}}", deep(" ~ 'a'", 100_000))),
        template("elif", format!("{{% if x %}}{}{{% endif %}}", deep("{% elif x %}a", 50_000))),
        template("brackets", format!("{{{{ {}1{} }}}}", deep("(", 100_000), deep(")", 100_000))),
        template("itself inside", "{% set n = namespace() %}{% set n.a = n %}{{ n }}".into()),
        template("deep value", "{% set n = namespace(a=[]) %}{% for i in range(100000) %}{% set n.a = [n.a] %}{% endfor %}{{ n.a }}".into()),
        template("a file", "{% include '/etc/passwd' %}".into()),
    ]
}

fn pipes() -> Vec<Made> {
    let pipe = |file: &'static str, args: &[&'static str]| {
        made(format!("{file} is a pipe"), args, move |world| {
            world.remove(file);
            let path = std::ffi::CString::new(world.at(file).to_str().unwrap()).unwrap();
            // SAFETY: the path is a string that ends with zero.
            assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
        })
    };
    let device = |file: &'static str, args: &[&'static str]| {
        made(format!("{file} leads to /dev/zero"), args, move |world| {
            world.remove(file);
            symlink("/dev/zero", world.at(file)).unwrap();
        })
    };
    let files = ["model/config.json", "model/tokenizer.json", "model/tokenizer_config.json", "data/train.jsonl"];
    let mut found: Vec<Made> = files.iter().flat_map(|file| [pipe(file, PREDICT), device(file, PREDICT)]).collect();
    found.push(pipe("run.toml", PREDICT));
    found.push(device("run.toml", PREDICT));
    found.push(pipe("model/model-00001-of-00002.safetensors", LAUNCH));
    found.push(device("model/model-00001-of-00002.safetensors", LAUNCH));
    found.push(device("model/model.safetensors.index.json", LAUNCH));
    found.push(pipe("model/generation_config.json", GENERATE));
    found
}

fn ggufs() -> Vec<Made> {
    let gguf = |name: &str, key: &'static str, number: u32| {
        made(format!("GGUF: {name}"), &["predict", "gguf.toml"], move |world| {
            let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf/chat.gguf");
            world.put("m.gguf", mutate::gguf_with(&fs::read(fixture).unwrap(), key, number));
            world.put("gguf.toml", run_file(1, "", "").replace("./model", "./m.gguf"));
        })
    };
    vec![
        gguf("alignment of 0", "general.alignment", 0),
        gguf("alignment of 3", "general.alignment", 3),
        gguf("alignment of 2^32 - 1", "general.alignment", u32::MAX),
        gguf("2^32 - 1 blocks", "llama.block_count", u32::MAX),
        gguf("10^6 blocks", "llama.block_count", 1_000_000),
        gguf("no heads", "llama.attention.head_count", 0),
        gguf("2^32 - 1 heads", "llama.attention.head_count", u32::MAX),
    ]
}

fn own_files() -> Vec<Made> {
    let guide = |claim: &str| {
        let text = format!(
            "[[guide]]\nkey = \"g\"\nname = \"g\"\n[[claim]]\nguide = \"g\"\nmodel = \"Qwen2.5-1.5B-Instruct\"\n\
             machine = \"M2\"\nram_gib = 8\nweights = \"f16\"\n{claim}\nsays = {{ memory_gb = 5.2 }}\n"
        );
        made(format!("guides: {claim}"), &["report", "guides", "--claims", "guides.toml"], move |world| {
            world.put("guides.toml", &text);
        })
    };
    let report = |name: &'static str, path: &'static str, value: Value| {
        made(format!("prediction.json: {name}"), &["report", "runs/run"], move |world| {
            set(world, "runs/run/prediction.json", &[(path, value.clone())]);
        })
    };
    vec![
        guide("batch_size = 0"),
        guide("seq = 1000000000"),
        guide("batch_size = 9223372036854775807"),
        guide("rank = 9223372036854775807"),
        report("a speed of 1.75e308", "/tokens_per_s/high", 1.75e308.into()),
        report("a step of 0 s", "/step_time_s/low", 0.0.into()),
        made("metrics.jsonl: losses of 9e307", &["report", "runs/run"], |world| {
            let lines: Vec<String> = text(world, "runs/run/metrics.jsonl")
                .lines()
                .enumerate()
                .map(|(i, line)| {
                    let mut value: Value = serde_json::from_str(line).unwrap();
                    value["loss"] = (if i % 2 == 0 { 9e307 } else { -9e307 }).into();
                    format!("{value}\n")
                })
                .collect();
            world.put("runs/run/metrics.jsonl", lines.concat());
        }),
        made("1000 runs on 10,000 machines", &["sweep", "grid.toml"], |world| {
            let numbers: Vec<String> = (1..=1000).map(|n| n.to_string()).collect();
            let grid =
                format!("model = \"Qwen/Qwen2.5-0.5B-Instruct\"\ndata = \"builtin\"\nseed = [{}]\n", numbers.join(","));
            world.put("grid.toml", grid + &"[[machine]]\nchip = \"M1\"\nram = \"8G\"\n".repeat(10_000));
        }),
        made("a report with a name of 100 wide letters", &["report", "runs/run", "--name", WIDE], |_| {}),
        made(
            "as many tokens as there are",
            &["generate", "Hi", "--model", "./model", "--max-tokens", "18446744073709551615"],
            |_| {},
        ),
        made("a row of 1e-300 s", PREDICT, |world| {
            let name = table_of(world);
            let table = text(world, &name);
            let header: Vec<&str> = table.lines().next().unwrap().split(',').collect();
            let column = header.iter().position(|c| *c == "measured.step_time_s").unwrap();
            let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(table.as_bytes());
            let mut writer = csv::Writer::from_writer(Vec::new());
            for (i, row) in reader.records().enumerate() {
                let mut cells: Vec<String> = row.unwrap().iter().map(str::to_owned).collect();
                if i > 0 {
                    cells[column] = "1e-300".into();
                }
                writer.write_record(cells).unwrap();
            }
            world.put(&name, writer.into_inner().unwrap());
        }),
    ]
}

const WIDE: &str = "漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢";

/// A world that is put back before every case.
struct Bench {
    world: World,
    saved: std::path::PathBuf,
}

impl Bench {
    fn new() -> Self {
        let world = a_run();
        let saved = world.path.with_file_name("saved");
        copy_tree(&world.path, &saved);
        Self { world, saved }
    }

    fn restore(&self) {
        for entry in fs::read_dir(&self.world.path).unwrap() {
            disk::remove(&entry.unwrap().path());
        }
        copy_tree(&self.saved, &self.world.path);
    }
}

#[test]
fn what_somebody_made_by_hand_is_answered_or_refused() {
    let mut table = Table::default();
    let rows = [
        ("sizes", sizes()),
        ("tokenizers", tokenizers()),
        ("chat templates", templates()),
        ("pipes and devices", pipes()),
        ("GGUF", ggufs()),
        ("files of one's own", own_files()),
    ];
    for (what, cases) in rows {
        table.try_all(what, &cases, Bench::new, |bench, case| {
            bench.restore();
            (case.make)(&bench.world);
            let ran = bench.world.run(&case.args);
            match fault(&ran) {
                None => Ok(()),
                Some(fate) => Err(format!("{fate}: {}", ran.brief().chars().take(300).collect::<String>())),
            }
        });
    }
    table.hold();
}

/// transformers ignores both: left in a file after somebody's training, they would cut and fill rows here.
#[test]
fn truncation_and_padding_of_a_tokenizer_change_nothing() {
    let bench = Bench::new();
    let world = &bench.world;
    let cut = json!({"max_length": 4, "stride": 0, "strategy": "LongestFirst", "direction": "Right"});
    for change in [("/truncation", cut), ("/padding", padding(json!({"Fixed": 40}), Value::Null))] {
        bench.restore();
        world.remove("results");
        set(world, "model/tokenizer.json", std::slice::from_ref(&change));
        let after = world.run(LAUNCH);
        assert_eq!(after.code, 0, "{}", after.said);
        let tokens = |metrics: String| -> Vec<Value> {
            metrics.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["tokens"].clone()).collect()
        };
        let (here, there) = (tokens(text(world, "o/metrics.jsonl")), tokens(text(world, "runs/run/metrics.jsonl")));
        assert_eq!(here, there, "{} is obeyed", change.0);
    }
}

/// What a file says does not reach the terminal as a command, a page as a script, or a table as a formula.
#[test]
fn text_of_others_stays_text() {
    let bench = Bench::new();
    let mut table = Table::default();
    let spoken = "\u{1b}]52;c;aGVsbG8=\u{7}\u{1b}[2J\u{9b}31m";
    let cases: [(&str, &[&str]); 4] = [
        ("model_type", PREDICT),
        ("model of a run file", PREDICT),
        ("raise_exception", PREDICT),
        ("a key of the run file", PREDICT),
    ];
    for (what, args) in cases {
        bench.restore();
        let world = &bench.world;
        match what {
            "model_type" => set(world, "model/config.json", &[("/model_type", spoken.into())]),
            "model of a run file" => {
                let escaped = "\\u001b]52;c;aGVsbG8=\\u0007\\u001b[2J\\u009b31m";
                world.put("run.toml", run_file(1, "", "").replace("./model", escaped));
            }
            "raise_exception" => {
                let row =
                    json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]});
                world.put("data/train.jsonl", format!("{row}\n"));
                let template = format!("{{{{ raise_exception('{spoken}') }}}}");
                set(world, "model/tokenizer_config.json", &[("/chat_template", template.into())]);
            }
            _ => world.put("run.toml", format!("\"{}\" = 1\n{}", "\\u001b]0;a\\u0007\\u009b", run_file(1, "", ""))),
        }
        // As on a terminal: where there is none, the colours are taken out, and these with them.
        let child = world.command(args, None).env("CLICOLOR_FORCE", "1").spawn().unwrap();
        let ran = world.end(child);
        let reached =
            ["\u{1b}]", "\u{7}", "\u{1b}[2J", "\u{9b}"].iter().any(|c| ran.said.contains(c) || ran.answer.contains(c));
        let result = match (reached, ran.code) {
            (false, 2) => Ok(()),
            (true, _) => Err(format!("{what}: a control sequence is said")),
            _ => Err(format!("{what}: {}", ran.brief())),
        };
        table.add("control sequences", result);
    }
    for url in [
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        " javascript:alert(1)",
        "java\\tscript:alert(1)",
        "data:text/html,x",
        "vbscript:x",
    ] {
        bench.restore();
        let guides = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("grids/guides.toml")).unwrap();
        let address = "https://github.com/HueCodes/Qwen-Finetune-Air/blob/main/MAXIMUM_TRAINING.md";
        assert!(guides.contains(address));
        bench.world.put("guides.toml", guides.replacen(address, url, 1));
        let ran = bench.world.run(&["report", "guides", "--claims", "guides.toml"]);
        let page = fs::read_to_string(bench.world.at("reports/guides/index.html")).unwrap_or_default().to_lowercase();
        let page = page.replace("&#x2f;", "/").replace("&#x3a;", ":");
        let links: Vec<&str> =
            page.split("<a href=\"").skip(1).map(|l| l.split('"').next().unwrap_or_default()).collect();
        let bad = links.iter().any(|l| !["http://", "https://", "#"].iter().any(|p| l.starts_with(p)));
        let result = match (ran.code, bad) {
            (2, _) => Ok(()),
            (0, false) if page.contains("<html") => Ok(()),
            _ => Err(format!("`{url}` is linked; {}", ran.brief())),
        };
        table.add("addresses", result);
    }
    for formula in ["=1+1", "+1+1", "-1+1", "@SUM(1)", "=HYPERLINK(\"x\")"] {
        bench.restore();
        let world = &bench.world;
        fs::rename(world.at("runs/run"), world.at("runs").join(formula)).unwrap();
        let ran = world.run(&["report", &format!("runs/{formula}"), "--name", "page"]);
        let csv = fs::read_to_string(world.at("reports/page/data.csv")).unwrap_or_default();
        let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(csv.as_bytes());
        let bare = reader.records().flatten().any(|row| row.iter().any(|cell| cell == formula));
        let result = match (ran.code, bare) {
            (0, false) | (2, _) => Ok(()),
            _ => Err(format!("`{formula}` stands bare in data.csv; {}", ran.brief())),
        };
        table.add("formulas", result);
    }
    table.hold();
}
