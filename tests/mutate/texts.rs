//! Changed tokenizers and templates.

use super::*;

/// Parts of a tokenizer, as the library names them, and where they go.
pub const PARTS: [(&str, &str); 24] = [
    ("normalizer", r#"{"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}"#),
    ("normalizer", r#"{"type": "Replace", "pattern": {"Regex": "(a|e)+"}, "content": "x"}"#),
    ("normalizer", r#"{"type": "Prepend", "prepend": "aa"}"#),
    ("normalizer", r#"{"type": "Strip", "strip_left": true, "strip_right": true}"#),
    (
        "normalizer",
        r#"{"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": true, "lowercase": true}"#,
    ),
    ("normalizer", r#"{"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}"#),
    (
        "normalizer",
        r#"{"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}, {"type": "Lowercase"}]}"#,
    ),
    ("pre_tokenizer", r#"{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": false}"#),
    ("pre_tokenizer", r#"{"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": true}"#),
    ("pre_tokenizer", r#"{"type": "Split", "pattern": {"Regex": "\\w+|\\s"}, "behavior": "Isolated", "invert": true}"#),
    ("pre_tokenizer", r#"{"type": "Punctuation", "behavior": "MergedWithNext"}"#),
    ("pre_tokenizer", r#"{"type": "Digits", "individual_digits": true}"#),
    ("pre_tokenizer", r#"{"type": "CharDelimiterSplit", "delimiter": "a"}"#),
    ("pre_tokenizer", r#"{"type": "FixedLength", "length": 3}"#),
    (
        "post_processor",
        r#"{"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {"x": {"id": "x", "ids": [3], "tokens": ["x"]}}}"#,
    ),
    ("post_processor", r#"{"type": "BertProcessing", "sep": ["x", 3], "cls": ["y", 4]}"#),
    (
        "post_processor",
        r#"{"type": "RobertaProcessing", "sep": ["x", 3], "cls": ["y", 4], "trim_offsets": true, "add_prefix_space": true}"#,
    ),
    ("decoder", r#"{"type": "WordPiece", "prefix": "aa", "cleanup": true}"#),
    (
        "decoder",
        r#"{"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": "a", "start": 1, "stop": 1}]}"#,
    ),
    ("decoder", r#"{"type": "CTC", "pad_token": "a", "word_delimiter_token": "b", "cleanup": true}"#),
    ("decoder", r#"{"type": "BPEDecoder", "suffix": "a"}"#),
    ("truncation", r#"{"max_length": 9, "stride": 2, "strategy": "LongestFirst", "direction": "Right"}"#),
    (
        "padding",
        r#"{"strategy": {"Fixed": 30}, "direction": "Right", "pad_to_multiple_of": 8, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}"#,
    ),
    (
        "padding",
        r#"{"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}"#,
    ),
];

/// A tokenizer with another part, and that part or the whole of it changed.
pub fn tokenizer(base: &Value, rng: &mut ChaCha8Rng) -> Vec<u8> {
    if rng.random_range(0..3) == 0 {
        return json(base, rng);
    }
    let (place, part) = PARTS.choose(rng).unwrap();
    let part: Value = serde_json::from_str(part).unwrap();
    let mut changed = base.clone();
    changed[*place] = if rng.random_range(0..3) == 0 { part } else { value(&part, rng) };
    as_meant(changed.to_string()).into_bytes()
}

/// What a GGUF file says before everything else: a key with a 32-bit number.
pub fn gguf_with(base: &[u8], key: &str, number: u32) -> Vec<u8> {
    let values = u64::from_le_bytes(base[16..24].try_into().unwrap()) + 1;
    let said =
        [&(key.len() as u64).to_le_bytes()[..], key.as_bytes(), &4u32.to_le_bytes(), &number.to_le_bytes()].concat();
    [&base[..16], &values.to_le_bytes(), &said, &base[24..]].concat()
}

/// Statements and expressions that take long, grow or fail.
pub const FRAGMENTS: [&str; 40] = [
    "{% for i in range(N) %}{% endfor %}",
    "{% for i in range(N) %}{% for j in range(N) %}{% endfor %}{% endfor %}",
    "{% for i in range(N) %}{{ i }}{% endfor %}",
    "{{ 'a' * N }}",
    "{{ ['a'] * N }}",
    "{{ range(N)|list|length }}",
    "{{ range(N)|unique|list|length }}",
    "{{ range(N)|join(',') }}",
    "{{ range(N)|map('string')|join }}",
    "{{ range(N)|batch(N)|list|length }}",
    "{{ range(9)|slice(N)|list|length }}",
    "{{ 'a'|indent(N) }}",
    "{{ 'a'|center(N) }}",
    "{{ messages|tojson(indent=N) }}",
    "{{ '%Nd'|format(1) }}",
    "{{ messages|groupby('role')|list }}",
    "{{ messages|sort(attribute='role')|list }}",
    "{{ 'a'.split('') }}",
    "{{ 'aaaa'.replace('a', 'aaaaaaaa') }}",
    "{{ 'aaaa'|replace('a', 'aaaaaaaa') }}",
    "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "{% set n = namespace(a=1) %}{% set n.a = n %}{{ n }}",
    "{% macro m(d) %}{% if d %}{{ m(d - 1) }}{{ m(d - 1) }}{% endif %}{% endmacro %}{{ m(N) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ raise_exception('\\u001b]0;title\\u0007') }}",
    "{{ messages[N] }}",
    "{{ messages[-N:N] }}",
    "{{ 'abc'[::N] }}",
    "{{ 1 // 0 }}",
    "{{ N % 0 }}",
    "{{ N ** N }}",
    "{{ N * N * N * N }}",
    "{{ -N - N - N }}",
    "{{ messages[0]['content'][N] }}",
    "{{ bos_token + eos_token }}",
    "{{ lipsum(N) }}",
    "{{ messages.__class__.__mro__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.environ }}",
    "{% block b %}{{ self.b() }}{% endblock %}",
];

/// A template with one to three fragments put into it, repeated or nested.
pub fn template(base: &str, rng: &mut ChaCha8Rng) -> String {
    let mut text = base.to_owned();
    for _ in 0..rng.random_range(1..4) {
        let number =
            ["0", "3", "40", "1000", "100000", "100000000", "4000000000", "1000000000000", "4611686018427387904"];
        let fragment = FRAGMENTS.choose(rng).unwrap().replace('N', number.choose(rng).unwrap());
        text = match rng.random_range(0..4) {
            0 => format!("{text}{fragment}"),
            1 => format!("{{% for x in messages %}}{fragment}{{% endfor %}}{text}"),
            2 => format!("{{% if {}messages %}}{fragment}{{% endif %}}{text}", "not ".repeat(rng.random_range(0..50))),
            _ => format!("{fragment}{text}"),
        };
    }
    text
}
