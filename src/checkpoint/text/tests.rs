use std::path::{Path, PathBuf};

use serde_json::json;

use super::*;

pub(super) fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf_folder")
}

/// Every row of the fixture as transformers rendered and tokenised it; `make.py` beside it made the file.
#[test]
fn rows_equal_transformers() {
    let folder = fixture();
    let source = ModelSource::Folder(folder.clone());
    let spec = source.spec().unwrap();
    let text = Text::open(&source, &spec, "fixture").unwrap();
    let rows: Vec<Value> = crate::store::read_text(&folder.join("train.jsonl"))
        .unwrap()
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let expected: Value = crate::store::load_json(&folder.join("rendered.json")).unwrap();
    let of = |kind: &str| expected[kind].as_array().unwrap().clone();
    for case in of("messages") {
        let row = &rows[case["row"].as_u64().unwrap() as usize];
        let messages: Vec<Message> = serde_json::from_value(row["messages"].clone()).unwrap();
        assert_eq!(text.render(&messages, false).unwrap(), case["text"].as_str().unwrap());
        assert_eq!(text.chat(&messages).unwrap().tokens, ids(&case["ids"]), "row {}", case["row"]);
    }
    for case in of("prompt_completion") {
        let row = &rows[case["row"].as_u64().unwrap() as usize];
        let (prompt, completion) = (row["prompt"].as_str().unwrap(), row["completion"].as_str().unwrap());
        let encoded = text.completion(prompt, completion).unwrap();
        let mut tokens = ids(&case["ids"]);
        tokens.extend(text.inside.end);
        assert_eq!(encoded.tokens, tokens, "row {}", case["row"]);
        let straddling = case["straddling_token"].as_u64().map(|n| n as usize);
        assert_eq!(encoded.prompt, straddling.unwrap_or(case["prefix_tokens"].as_u64().unwrap() as usize));
    }
    for case in of("text") {
        let row = &rows[case["row"].as_u64().unwrap() as usize];
        let encoded = text.plain(row["text"].as_str().unwrap()).unwrap();
        assert_eq!(encoded.tokens[..encoded.tokens.len() - 1], ids(&case["ids"]), "row {}", case["row"]);
    }
}

/// A model folder whose tokenizer and template are to be tried.
pub(super) struct Tried {
    pub(super) folder: tempfile::TempDir,
    pub(super) spec: ModelSpec,
    pub(super) tokenizer: Value,
    pub(super) config: Value,
}

impl Tried {
    pub(super) fn new() -> Self {
        let load = |file: &str| crate::store::load_json(&fixture().join(file)).unwrap();
        let spec = ModelSource::Folder(fixture()).spec().unwrap();
        let (tokenizer, config) = (load("tokenizer.json"), load("tokenizer_config.json"));
        Self { folder: tempfile::tempdir().unwrap(), spec, tokenizer, config }
    }

    /// The text of a folder with these two files.
    pub(super) fn open(&self, tokenizer: &Value, config: &Value) -> Result<Text> {
        for (file, value) in [("tokenizer.json", tokenizer), ("tokenizer_config.json", config)] {
            std::fs::write(self.folder.path().join(file), value.to_string()).unwrap();
        }
        Text::open(&ModelSource::Folder(self.folder.path().into()), &self.spec, "m")
    }

    /// Opens the text with one value of tokenizer.json replaced.
    pub(super) fn with(&self, pointer: &str, value: Value) -> Result<Text> {
        let mut tokenizer = self.tokenizer.clone();
        *tokenizer.pointer_mut(pointer).unwrap() = value;
        self.open(&tokenizer, &self.config)
    }

    pub(super) fn with_template(&self, template: &str) -> Result<Text> {
        let mut config = self.config.clone();
        config["chat_template"] = json!(template);
        self.open(&self.tokenizer, &config)
    }
}

pub(super) fn turn(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into(), rest: Default::default() }
}

pub(super) fn chat() -> [Message; 2] {
    [turn("user", "What sound does a cow make?"), turn("assistant", "A cow says moo.")]
}

pub(super) fn everything(text: &Text) -> Result<()> {
    let tokens = text.plain("Hello, all of you!")?.tokens;
    text.decode(&tokens)?;
    text.completion("Hello, ", "you!")?;
    text.chat(&chat()).map(drop)
}

#[test]
fn truncation_and_padding_are_left_out_as_transformers_does() {
    let tried = Tried::new();
    let plain = tried.with("/truncation", Value::Null).unwrap().plain("Hello, all of you!").unwrap();
    assert!(plain.tokens.len() > 6);
    let truncation = |max: u64, stride: u64| json!({"direction": "Right", "max_length": max, "strategy": "LongestFirst", "stride": stride});
    let padding = |strategy: Value, multiple: Value| {
        json!({"strategy": strategy, "direction": "Right", "pad_to_multiple_of": multiple, "pad_id": 0,
               "pad_type_id": 0, "pad_token": "!"})
    };
    let cases = [
        ("/truncation", truncation(4, 0)),
        ("/truncation", truncation(4, 9)),
        ("/truncation", truncation(0, 0)),
        ("/padding", padding(json!({"Fixed": 400}), Value::Null)),
        ("/padding", padding(json!({"Fixed": 1u64 << 62}), Value::Null)),
        ("/padding", padding(json!("BatchLongest"), json!(1u64 << 40))),
    ];
    for (pointer, value) in cases {
        let said = format!("{pointer} {value}");
        assert_eq!(tried.with(pointer, value).unwrap().plain("Hello, all of you!").unwrap(), plain, "{said}");
    }
}

/// Whether an error says what is expected; on a machine that is busy with other things the time may be up before.
pub(super) fn said(error: &str, expected: &str) -> bool {
    error.contains(expected) || error.contains("takes longer than")
}

#[test]
fn hostile_tokenizers_are_refused() {
    let tried = Tried::new();
    let many = |one: Value, n: usize| json!({"type": "Sequence", "normalizers": vec![one; n]});
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let charsmap = |map: &str| json!({"type": "Precompiled", "precompiled_charsmap": map});
    let prepend = |text: &str| json!({"type": "Prepend", "prepend": text});
    let template = |single: Value, pair: Value, tokens: Value| json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens});
    let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let pair = json!([sequence("A"), sequence("B")]);
    let absent = json!([{"SpecialToken": {"id": "<s>", "type_id": 0}}, sequence("A")]);

    let cases = [
        ("/normalizer", charsmap(""), "tokenizer.json"),
        ("/normalizer", charsmap("AAAA"), "tokenizer.json"),
        ("/normalizer", charsmap("/////w=="), "tokenizer.json"),
        ("/normalizer", charsmap("/////wAAAAD/////"), "tokenizer.json takes more than"),
        ("/normalizer", many(replace("l", "llllllllll"), 9), "the tokenizer takes"),
        ("/normalizer", many(prepend(&"x".repeat(5000)), 1000), "the tokenizer takes"),
        ("/normalizer", many(prepend("xxxxxxxx"), 1000), "it makes"),
        ("/post_processor", template(json!([sequence("A"), sequence("B")]), pair.clone(), json!({})), "the tokenizer"),
        ("/post_processor", template(absent, pair, json!({})), "the tokenizer"),
        ("/decoder", json!({"type": "Sequence"}), "tokenizer.json"),
        ("/decoder", json!({"type": 5}), "tokenizer.json"),
        ("/model/merges", json!([["H", "no such"]]), "tokenizer.json"),
        ("/model/vocab", json!({"a": 1u64 << 40}), "tokenizer.json"),
    ];
    for (pointer, value, expected) in cases {
        let what: String = format!("{pointer} {value}").chars().take(120).collect();
        let error = tried.with(pointer, value).and_then(|text| everything(&text));
        let error = error.map_err(|e| e.to_string());
        assert!(error.as_ref().is_err_and(|e| said(e, expected)), "{what}: expected `{expected}`, got {error:?}");
    }
}

#[test]
fn hostile_templates_are_refused() {
    let tried = Tried::new();
    let repeated = |start: &str, part: &str, n: usize, end: &str| format!("{start}{}{end}", part.repeat(n));
    let long = |start: &str, part: &str, end: &str| repeated(start, part, 120_000 / part.len(), end);
    let grown = |how: &str| {
        format!(
            "{{% set n = namespace(s='ab' * 1000) %}}{{% for i in range(40) %}}{{% set n.s = {how} %}}{{% endfor %}}{{{{ n.s|length }}}}"
        )
    };
    let cases: Vec<(String, &str)> = vec![
        // For ever.
        ("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}".into(), "instructions"),
        ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}".into(), "instructions"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".into(), "recursion limit"),
        // Gigabytes.
        (grown("n.s ~ n.s"), "of memory"),
        (grown("n.s + n.s"), "of memory"),
        (grown("n.s|replace('a', n.s)"), "instructions"),
        (grown("n.s.replace('a', n.s)"), "instructions"),
        (grown("[n.s, n.s, n.s]|join(n.s)"), "of memory"),
        (grown("n.s.join([n.s, n.s])"), "the chat template takes"),
        (grown("n.s.join(n.s)"), "the chat template takes"),
        (grown("'{0}{0}'.format(n.s)"), "the chat template takes"),
        ("{{ '{:>4000000000}'.format(1) }}".into(), "the chat template"),
        (grown("(n.s ~ n.s).title()"), "the chat template takes"),
        (grown("[n.s ~ n.s, n.s.split('a')][0]"), "the chat template takes"),
        (grown("[n.s, n.s]|string"), "of memory"),
        (grown("n.s|list|join(',')"), "of memory"),
        ("{{ 'a\nb'|indent(4000000000) }}".into(), "the chat template takes"),
        ("{{ [1]|tojson(indent=4000000000) }}".into(), "the chat template takes"),
        ("{{ [1]|batch(1000000000000, 0)|list }}".into(), "the chat template"),
        ("{{ [1]|slice(4611686018427387904)|list }}".into(), "the chat template"),
        ("{{ '%999999999d'|format(1) }}".into(), "the chat template"),
        ("{{ ('a' * 99999999).split('a')|length }}".into(), "the chat template takes"),
        ("{% for i in range(100000) %}{{ 'a' * 1000 }}{% endfor %}".into(), "renders more than 4.0 MiB for one chat"),
        // Depth.
        (long("{{ ", "not ", "1 }}"), ""),
        (long("{{ ", "-", "1 }}"), ""),
        (long("{{ 'a'", "|upper", " }}"), ""),
        (long("{{ a", "[0]", " }}"), ""),
        (long("{{ a", ".b", " }}"), ""),
        (long("{{ 'a'", " ~ 'a'", " }}"), ""),
        (long("{{ ", "(", "1"), ""),
        (long("{{ ", "[", "1"), ""),
        (long("{% if a %}", "{% elif a %}", "{% endif %}"), ""),
        (long("", "{% if 1 %}", ""), ""),
        ("{% set n = namespace() %}{% set n.a = n %}{{ n }}".into(), "nested too deeply"),
        ("{% set n = namespace() %}{% set n.a = n %}{{ n|tojson }}".into(), "nested too deeply"),
        ("{% set n = namespace() %}{% set n.a = n %}{% set m = namespace() %}{% set m.a = m %}{{ n == m }}".into(), ""),
        ("{% set n = namespace() %}{% set n.a = [n] %}{{ n.a|string|length }}".into(), "nested too deeply"),
        ("{% set n = namespace() %}{% set n.a = n %}{% set n.b = messages[0].content * 10000 %}".into(), "contains itself"),
        ("{% set n = namespace(a=[]) %}{% for i in range(100000) %}{% set n.a = [n.a] %}{% endfor %}{{ n.a }}".into(), ""),
        ("{% set n = namespace(a=[]) %}{% for i in range(40) %}{% set n.a = [n.a, n.a] %}{% endfor %}{{ n.a|string|length }}".into(), "of memory"),
        ("{% set n = namespace(a=[], b=[]) %}{% for i in range(40) %}{% set n.a = [n.a, n.a] %}{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.a == n.b }}".into(), "takes longer than"),
        // Size, and what it says itself.
        ("a".repeat(129 << 10), "129 KiB"),
        ("{{ raise_exception('no ' * 100000) }}".into(), "no no no ..."),
        ("{% include 'chat template' %}".into(), "the chat template"),
        ("{{ messages[0].content.no_such_method() }}".into(), "has no method named no_such_method"),
        ("{% endfor %}".into(), "the chat template fails"),
    ];
    let mut wrong = Vec::new();
    for (template, expected) in cases {
        let what: String = template.chars().take(100).collect();
        let answer = tried.with_template(&template).and_then(|text| text.chat(&chat()).map(drop));
        let answer = answer.map_err(|e| e.to_string());
        if !expected.is_empty() && !answer.as_ref().is_err_and(|e| said(e, expected)) {
            wrong.push(format!("{what}: expected `{expected}`, got {answer:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_tokenizer_may_have_tokens_that_the_model_has_not() {
    let mut tried = Tried::new();
    // The tokenizers' library numbers added tokens as they come.
    let whole = tried.open(&tried.tokenizer, &tried.config).unwrap();
    let beyond = u64::from(*whole.inside.tokenizer.get_vocab(true).values().max().unwrap()) + 1;
    tried.spec.vocab_size = beyond as usize;
    let mut tokenizer = tried.tokenizer.clone();
    tokenizer["added_tokens"].as_array_mut().unwrap().push(json!({"id": beyond, "content": "<image_soft_token>",
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}));
    let config = tried.config.clone();
    let text = tried.open(&tokenizer, &config).unwrap();
    assert!(text.question(&chat()[..1]).is_ok());
    let seen = text.plain("look: <image_soft_token>").unwrap().tokens.into_iter().max().unwrap();
    assert!(seen as usize >= tried.spec.vocab_size);
    let error = text.beginning("look: <image_soft_token>").unwrap_err().to_string();
    assert!(error.contains(&format!("has token {seen}")), "{error}");
    tried.spec.vocab_size += 1;
    assert!(tried.open(&tokenizer, &config).unwrap().beginning("look: <image_soft_token>").is_ok());
}

#[test]
fn the_end_of_text_is_found_wherever_the_folder_names_it() {
    let tried = Tried::new();
    let (folder, end) = (tried.folder.path(), tried.config["eos_token"].clone());
    let name = end.as_str().or(end["content"].as_str()).unwrap().to_owned();
    let whole = tried.open(&tried.tokenizer, &tried.config).unwrap();
    let id = *whole.plain("a").unwrap().tokens.last().unwrap();
    let bare = json!({"model_max_length": 64});
    let ends = |text: &Text| text.plain("a").unwrap().tokens.last() == Some(&id);
    let open = || tried.open(&tried.tokenizer, &bare).unwrap();
    assert!(!open().has_end() && !ends(&open()));
    for (file, value) in [
        ("special_tokens_map.json", json!({"eos_token": {"content": name}})),
        ("generation_config.json", json!({"eos_token_id": [id, 0]})),
        ("config.json", json!({"eos_token_id": id})),
    ] {
        std::fs::write(folder.join(file), value.to_string()).unwrap();
        let text = open();
        assert!(text.has_end() && ends(&text), "{file}");
        assert!(text.eos_ids.contains(&id), "{file}");
        std::fs::remove_file(folder.join(file)).unwrap();
    }
}

#[test]
fn what_an_assistant_says_may_be_marked_and_the_date_be_asked() {
    let tried = Tried::new();
    let render = |template: &str| tried.with_template(template).unwrap().render(&chat(), false).unwrap();
    let body = "{{ m.content }}";
    let plain = "{%- for m in messages %}\n{%- if m.role == 'assistant' %}[A]{% if true %}{{ m.content }}{% endif %}\n{%- endif %}{%- endfor %}";
    for (open, close) in [("{% generation %}", "{% endgeneration %}"), ("{%- generation -%}", "{%- endgeneration -%}")]
    {
        let marked =
            plain.replace("{% if true %}", open).replace(&format!("{body}{{% endif %}}"), &format!("{body}{close}"));
        assert!(marked.contains(open) && marked.contains(close));
        assert!(render(&marked).contains("[A]A cow says moo."), "{}", render(&marked));
    }
    // A word in a text is no mark, and a mark that is not closed is an error.
    assert_eq!(render("a {{ '{% generation %}' }} generation"), "a {% if true %} generation");
    assert!(tried.with_template("{% generation %}x").unwrap().render(&chat(), false).is_err());
    let today = jiff::ZonedDateTime::now().strftime("%Y").to_string();
    assert!(render("{{ strftime_now('%d %b %Y') }}").ends_with(&today));
    assert!(tried.with_template("{{ strftime_now('%!') }}").unwrap().render(&chat(), false).is_err());
}
