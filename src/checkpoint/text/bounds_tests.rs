//! Files that are too large or scrambled are refused.

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::tests::*;
use super::*;

#[test]
fn a_gguf_file_whose_tokens_do_not_fit_its_merges_is_refused() {
    let mut file = std::fs::read(fixture().with_file_name("gguf").join("chat.gguf")).unwrap();
    let key = b"tokenizer.ggml.merges";
    let at = file.windows(key.len()).position(|w| w == key).unwrap() + key.len();
    // The kinds of value and of element, the number of elements, and the length of the first, before its text.
    let (length, text) = (at + 16, at + 24);
    let length = u64::from_le_bytes(file[length..text].try_into().unwrap()) as usize;
    let merge = &mut file[text..text + length];
    let space = merge.iter().position(|b| *b == b' ').unwrap();
    merge.fill(1);
    merge[space] = b' ';
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.gguf");
    std::fs::write(&path, file).unwrap();
    let error = ModelSource::Gguf(path).tokenizer().unwrap_err().to_string();
    assert!(error.contains("put the model's tokenizer.json beside the file"), "{error}");
}

#[test]
fn files_that_are_too_large_are_named() {
    let tried = Tried::new();
    let (mut tokenizer, mut config) = (tried.tokenizer.clone(), tried.config.clone());
    config["x"] = json!("x".repeat(8 << 20));
    tokenizer["x"] = json!("x".repeat(64 << 20));
    let cases = [
        (&tried.tokenizer, &config, "tokenizer_config.json is 8.0 MiB, and at most 8.0 MiB are allowed"),
        (&tokenizer, &tried.config, "tokenizer.json is 64 MiB, and at most 64 MiB are allowed"),
    ];
    for (tokenizer, config, expected) in cases {
        let error = tried.open(tokenizer, config).map(drop).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let text = tried.open(&tried.tokenizer, &tried.config).unwrap();
    let error = text.plain(&"x".repeat(LONGEST_TEXT + 1)).unwrap_err().to_string();
    assert!(error.contains("a text of 4.0 MiB is too long to be tokenised: at most 4.0 MiB are allowed"), "{error}");
}

#[test]
fn tokens_that_the_tokenizer_lacks_render_as_nothing() {
    let tried = Tried::new();
    assert_eq!(tried.config.get("bos_token"), None);
    let template = "[{{ bos_token }}|{{ eos_token }}|{{ bos_token is defined }}|{{ pad_token }}]";
    let text = tried.with_template(template).unwrap();
    assert_eq!(text.render(&chat(), false).unwrap(), "[|<|im_end|>|False|]");
}

/// Changes a value somewhere inside: drops, doubles, wraps, or puts something else in its place.
fn mutate(value: &mut Value, rng: &mut ChaCha8Rng) {
    let children = match value {
        Value::Array(list) => list.len(),
        Value::Object(map) => map.len(),
        _ => 0,
    };
    if children > 0 && rng.random_bool(0.8) {
        let i = rng.random_range(0..children);
        let child = match value {
            Value::Array(list) if rng.random_bool(0.1) => return drop(list.remove(i)),
            Value::Array(list) if rng.random_bool(0.1) => return list.push(list[i].clone()),
            Value::Array(list) => &mut list[i],
            Value::Object(map) => {
                let key = map.keys().nth(i).unwrap().clone();
                if rng.random_bool(0.1) {
                    map.remove(&key);
                    return;
                }
                &mut map[&key]
            }
            _ => return,
        };
        return mutate(child, rng);
    }
    let long = "x".repeat(300);
    let others = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(u64::MAX),
        json!(1e300),
        json!(""),
        json!("\u{feff}\u{1f469}\u{200d}"),
        json!(long),
        json!([value.clone()]),
        json!({"type": value.clone()}),
        json!({}),
    ];
    *value = others.choose(rng).unwrap().clone();
}

/// Puts pieces of templates together, whole ones and broken ones.
fn scrambled(rng: &mut ChaCha8Rng) -> String {
    let pieces = [
        "{% for m in messages %}",
        "{% endfor %}",
        "{{ m.content }}",
        "{{ m['role'] ~ loop.index }}",
        "{% if m %}",
        "{% else %}",
        "{% endif %}",
        "{% set n = namespace(a=1) %}",
        "{% set n.a = [n.a, n] %}",
        "{{ n.a }}",
        "{{ messages|tojson }}",
        "{{ messages[-1:]|length * 7 }}",
        "{{ '%s'|format(m) }}",
        "{% macro f(x) %}",
        "{% endmacro %}",
        "{{ f(f) }}",
        "{{ messages|map(attribute='content')|join('|') }}",
        "{{ range(9)|list }}",
        "{{ messages[0].content.split('o')[5] }}",
        "{{- 1 // 0 }}",
        "{{ 9 ** 99 }}",
        "{% set a %}",
        "{% endset %}",
        "{{ a|indent(3) }}",
        "{{ (a ~ a)[::-2] }}",
        "{{ undefined.x }}",
        "{{ messages|groupby('role') }}",
        "{{",
        "}}",
        "{%",
        "|",
        "(",
        "'",
        "{#",
        "#}",
        "\u{1f469}",
    ];
    (0..rng.random_range(1..14)).map(|_| *pieces.choose(rng).unwrap()).collect()
}

#[test]
fn whatever_is_in_the_files_is_an_answer_or_an_error() {
    let tried = Tried::new();
    let mut rng = ChaCha8Rng::seed_from_u64(16);
    let (mut answered, mut refused) = (0, 0);
    for i in 0..200 {
        let text = if i % 2 == 0 {
            let mut tokenizer = tried.tokenizer.clone();
            (0..rng.random_range(1..4)).for_each(|_| mutate(&mut tokenizer, &mut rng));
            tried.open(&tokenizer, &tried.config)
        } else {
            tried.with_template(&scrambled(&mut rng))
        };
        match text.and_then(|text| text.at_once(everything)) {
            Ok(()) => answered += 1,
            Err(Error::Tokenizer { .. }) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(answered > 5 && refused > 40, "{answered} answered, {refused} refused");
}
