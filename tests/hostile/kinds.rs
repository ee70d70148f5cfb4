//! The kinds of files that are changed at random.

use super::*;

pub(crate) fn a_model() -> World {
    let world = bounded(with_model());
    world.put("run.toml", run_file(1, "", ""));
    world
}

/// Configurations of every family, with the vocabulary of the tokenizer that is there.
pub(crate) fn configs() -> World {
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

pub(crate) fn a_config(world: &World, rng: &mut ChaCha8Rng) -> (String, Vec<u8>) {
    let mut files: Vec<_> = fs::read_dir(world.at("configs")).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    let file = &files[rand::Rng::random_range(rng, 0..files.len())];
    let config: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    ("model/config.json".into(), mutate::json(&config, rng))
}

/// A run that was stopped in the middle, with its page's and its table's sources.
pub(crate) fn a_run() -> World {
    let world = with_model();
    world.put("run.toml", run_file(4, "", ""));
    let ran = world.run(&["launch", "run.toml", "--save-every", "2"]);
    assert_eq!(ran.code, 0, "{}", ran.said);
    bounded(world)
}

/// The table of the machine that this is.
pub(crate) fn table_of(world: &World) -> String {
    let machine = fs::read_dir(world.at("results")).unwrap().next().unwrap().unwrap();
    format!("results/{}/measurements.csv", machine.file_name().to_string_lossy())
}

pub(crate) fn a_gguf() -> World {
    let world = bounded(with_model());
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf/chat.gguf");
    world.put("m.gguf", fs::read(fixture).unwrap());
    world.put("run.toml", run_file(1, "", "").replace("./model", "./m.gguf"));
    world
}

pub(crate) fn chats() -> World {
    let world = a_model();
    let row = json!({"messages": [{"role": "user", "content": "How many days?"}, {"role": "assistant", "content": "Seven."}]});
    world.put("data/train.jsonl", format!("{row}\n").repeat(2));
    world.put("data/valid.jsonl", format!("{row}\n"));
    world
}

pub(crate) const PREDICT: &[&str] = &["predict", "run.toml"];

pub(crate) const LAUNCH: &[&str] = &["launch", "run.toml", "--out", "o", "--results", "r"];

pub(crate) const GENERATE: &[&str] = &["generate", "Hello", "--model", "./model", "--max-tokens", "2"];

pub(crate) const KINDS: [Kind; 15] = [
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
