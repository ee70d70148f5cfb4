//! Files that somebody made by hand.

use super::*;

// ---- by hand ----

/// What somebody thought of, and how it is called.
pub(crate) struct Made {
    pub(crate) name: String,
    pub(crate) make: Box<dyn Fn(&World) + Send + Sync>,
    pub(crate) args: Vec<&'static str>,
}

impl std::fmt::Debug for Made {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.name)
    }
}

pub(crate) fn made(
    name: impl Into<String>,
    args: &[&'static str],
    make: impl Fn(&World) + Send + Sync + 'static,
) -> Made {
    Made { name: name.into(), make: Box::new(make), args: args.to_vec() }
}

/// Sets values of a JSON file by their pointers; where the last part is not there, it is made.
pub(crate) fn set(world: &World, file: &str, changes: &[(&str, Value)]) {
    let mut json: Value = serde_json::from_str(&text(world, file)).unwrap();
    for (path, value) in changes {
        let (above, key) = path.rsplit_once('/').unwrap();
        json.pointer_mut(above).unwrap()[key] = value.clone();
    }
    world.put(file, json.to_string());
}

pub(crate) fn config_of(name: &str, changes: &[(&'static str, Value)]) -> Made {
    let changes = changes.to_vec();
    made(format!("config.json: {name}"), PREDICT, move |world| set(world, "model/config.json", &changes))
}

/// Numbers as they are written, for what JSON's values cannot hold.
pub(crate) fn config_text(name: &str, from: &'static str, to: &'static str) -> Made {
    made(format!("config.json: {name}"), PREDICT, move |world| {
        let text = text(world, "model/config.json");
        assert!(text.contains(from));
        world.put("model/config.json", text.replacen(from, to, 1));
    })
}

pub(crate) fn sizes() -> Vec<Made> {
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

pub(crate) fn padding(strategy: Value, multiple: Value) -> Value {
    json!({"strategy": strategy, "direction": "Right", "pad_to_multiple_of": multiple, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "x"})
}

pub(crate) fn tokenizers() -> Vec<Made> {
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

pub(crate) fn templates() -> Vec<Made> {
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

pub(crate) fn pipes() -> Vec<Made> {
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

pub(crate) fn ggufs() -> Vec<Made> {
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

pub(crate) fn own_files() -> Vec<Made> {
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
