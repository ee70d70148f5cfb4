//! Files as somebody with bad intentions or a bad disk has them: changed where their structure is, drawn with a seed.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

/// Numbers at which something overflows, is no number, or takes all memory.
const NUMBERS: [&str; 32] = [
    "0",
    "1",
    "-1",
    "2",
    "3",
    "7",
    "255",
    "256",
    "1000",
    "64000",
    "65536",
    "1000000",
    "16777216",
    "16777217",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "1000000000000",
    "4611686018427387904",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775808",
    "0.5",
    "-0.0",
    "1e-300",
    "1e30",
    "1e300",
    "1.5e308",
    "1e999",
];

const STRINGS: [&str; 16] = [
    "",
    " ",
    "x",
    "builtin",
    "../../etc/passwd",
    "/dev/zero",
    "null",
    "\u{0}",
    "\u{1b}]52;c;aGVsbG8=\u{7}",
    "<script>alert(1)</script>",
    "=1+1",
    "{{ x }}",
    "\u{feff}",
    "\u{202e}txt",
    "ﷺ",
    "a\nb",
];

/// A token that is written into the text as it is, though JSON knows no such value.
fn raw(token: &str) -> Value {
    Value::String(format!("@raw:{token}@"))
}

fn any_value(rng: &mut ChaCha8Rng) -> Value {
    match rng.random_range(0..10) {
        0 => Value::Null,
        1 => Value::Bool(rng.random()),
        2 => serde_json::json!([]),
        3 => serde_json::json!({}),
        4 | 5 => Value::String((*STRINGS.choose(rng).unwrap()).into()),
        6 => serde_json::json!([1, "a", null]),
        7 => serde_json::json!({"a": {"b": 1}}),
        _ => raw(NUMBERS.choose(rng).unwrap()),
    }
}

/// A value inside, drawn from the top down, so that a long list does not outweigh all else.
fn inside<'a>(value: &'a mut Value, rng: &mut ChaCha8Rng) -> &'a mut Value {
    let children = match value {
        Value::Array(items) => items.len(),
        Value::Object(map) => map.len(),
        _ => 0,
    };
    if children == 0 || rng.random_range(0..5) == 0 {
        return value;
    }
    let i = rng.random_range(0..children);
    match value {
        Value::Array(items) => inside(&mut items[i], rng),
        Value::Object(map) => inside(map.values_mut().nth(i).unwrap(), rng),
        leaf => leaf,
    }
}

/// Changes one value: its number, its type, its length, its keys.
fn change(value: &mut Value, rng: &mut ChaCha8Rng) {
    if rng.random_range(0..8) == 0 {
        *value = match rng.random_range(0..3) {
            0 => raw(&format!("{}1{}", "[".repeat(3000), "]".repeat(3000))),
            1 => raw(&format!("{}1{}", "{\"a\":".repeat(3000), "}".repeat(3000))),
            _ => any_value(rng),
        };
        return;
    }
    match value {
        Value::Number(_) if rng.random_range(0..5) > 0 => *value = raw(NUMBERS.choose(rng).unwrap()),
        Value::String(text) if rng.random_range(0..3) > 0 => {
            *text = match rng.random_range(0..6) {
                0 => text.repeat(times(2000, text.len())),
                1 => text.chars().take(text.chars().count() / 2).collect(),
                2 => text.to_uppercase(),
                3 => format!("{text}{}", STRINGS.choose(rng).unwrap()),
                4 => "a".repeat(100_000),
                _ => (*STRINGS.choose(rng).unwrap()).into(),
            }
        }
        Value::Array(items) if !items.is_empty() => {
            let i = rng.random_range(0..items.len());
            match rng.random_range(0..5) {
                0 => drop(items.remove(i)),
                1 => items.insert(i, items[i].clone()),
                2 => items.clear(),
                3 => *items = vec![items[i].clone(); times(5000, items[i].to_string().len())],
                _ => items[i] = any_value(rng),
            }
        }
        Value::Object(map) if !map.is_empty() => {
            let keys: Vec<String> = map.keys().cloned().collect();
            let key = keys.choose(rng).unwrap();
            let (inside, other) = (map[key].clone(), keys.choose(rng).unwrap());
            match rng.random_range(0..6) {
                0 | 1 => drop(map.remove(key)),
                2 => drop(map.insert(format!("@dup:{key}@"), any_value(rng))),
                3 => {
                    map.remove(key);
                    map.insert(format!("{key}x"), inside);
                }
                4 => {
                    let moved = map.insert(other.clone(), inside).unwrap_or_default();
                    map.insert(key.clone(), moved);
                }
                _ => drop(map.insert(key.clone(), any_value(rng))),
            }
        }
        _ => *value = any_value(rng),
    }
}

/// So many times, or as often as makes a few megabytes: what grew may be put into what grows.
fn times(most: usize, bytes: usize) -> usize {
    most.min((4 << 20) / bytes.max(1)).max(2)
}

/// One to three changes anywhere inside.
pub fn value(base: &Value, rng: &mut ChaCha8Rng) -> Value {
    let mut value = base.clone();
    for _ in 0..[1, 1, 1, 2, 3].choose(rng).copied().unwrap_or(1) {
        change(inside(&mut value, rng), rng);
    }
    value
}

/// Puts tokens and doubled keys into the text as they are meant; what was changed once more stays as it is.
fn as_meant(mut text: String) -> String {
    for (mark, quote) in [("\"@raw:", ""), ("\"@dup:", "\"")] {
        let mut from = 0;
        while let Some(start) = text[from..].find(mark).map(|at| from + at) {
            let Some(end) = text[start..].find("@\"").map(|at| start + at) else { break };
            let inside = text[start + mark.len()..end].replace("\\\"", "\"");
            text.replace_range(start..end + 2, &format!("{quote}{inside}{quote}"));
            from = start + quote.len();
        }
    }
    text
}

/// A JSON text, now and then cut or with a byte changed.
pub fn json(base: &Value, rng: &mut ChaCha8Rng) -> Vec<u8> {
    let text = as_meant(serde_json::to_string(&value(base, rng)).unwrap());
    torn(text.into_bytes(), 30, rng)
}

/// One in `rarely` is cut, another has a byte changed.
fn torn(mut bytes: Vec<u8>, rarely: usize, rng: &mut ChaCha8Rng) -> Vec<u8> {
    if bytes.is_empty() {
        return bytes;
    }
    let at = rng.random_range(0..bytes.len());
    match rng.random_range(0..rarely) {
        0 => bytes.truncate(at),
        1 => bytes[at] = rng.random(),
        _ => {}
    }
    bytes
}

/// Lines of JSON, of which one is changed, or the lines themselves.
pub fn json_lines(base: &[Value], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut lines: Vec<String> = base.iter().map(Value::to_string).collect();
    let i = rng.random_range(0..lines.len());
    match rng.random_range(0..10) {
        0 => drop(lines.remove(i)),
        1 => lines.insert(i, lines[i].clone()),
        2 => lines.insert(i, "\u{0}\u{0}\u{0}".into()),
        _ => lines[i] = as_meant(serde_json::to_string(&value(&base[i], rng)).unwrap()),
    }
    torn(lines.iter().flat_map(|l| format!("{l}\n").into_bytes()).collect(), 30, rng)
}

/// As TOML, with every table inline, which is the same to a reader.
fn inline(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let inside: Vec<String> =
                map.iter().map(|(k, v)| format!("{} = {}", Value::from(k.as_str()), inline(v))).collect();
            format!("{{ {} }}", inside.join(", "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(inline).collect::<Vec<_>>().join(", ")),
        Value::Null => "nan".into(),
        other => other.to_string(),
    }
}

pub fn toml(base: &Value, rng: &mut ChaCha8Rng) -> Vec<u8> {
    let text = match value(base, rng) {
        Value::Object(map) => {
            map.iter().map(|(k, v)| format!("{} = {}\n", Value::from(k.as_str()), inline(v))).collect::<String>()
        }
        other => inline(&other),
    };
    torn(as_meant(text).into_bytes(), 30, rng)
}

/// A table of which cells, columns or lines are changed.
pub fn csv(base: &str, rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut lines: Vec<Vec<String>> = base.lines().map(|l| l.split(',').map(str::to_owned).collect()).collect();
    for _ in 0..rng.random_range(1..4) {
        let row = if rng.random_range(0..4) == 0 { 0 } else { rng.random_range(0..lines.len()) };
        let columns = lines[row].len();
        let column = rng.random_range(0..columns);
        match rng.random_range(0..12) {
            0 => drop(lines[row].remove(column)),
            1 => lines[row].insert(column, "x".into()),
            2 => lines.insert(row, lines[row].clone()),
            3 => lines[row][column] = "\"".into(),
            4 => lines[row][column] = (*STRINGS.choose(rng).unwrap()).into(),
            5 => lines.iter_mut().for_each(|l| drop(l.get(column).is_some().then(|| l.remove(column)))),
            6 => lines[row][column] = String::new(),
            _ => lines[row][column] = (*NUMBERS.choose(rng).unwrap()).into(),
        }
        if lines[row].is_empty() {
            lines[row].push(String::new());
        }
    }
    torn(lines.iter().flat_map(|l| format!("{}\n", l.join(",")).into_bytes()).collect(), 15, rng)
}

/// A safetensors file whose header is changed, or said to be of another length.
pub fn safetensors(base: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let length = u64::from_le_bytes(base[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&base[8..8 + length]).unwrap();
    let header = json(&header, rng);
    let said: u64 = match rng.random_range(0..8) {
        0 => *[0, 1, 7, 100_000_001, u64::from(u32::MAX), u64::MAX, 1 << 63].choose(rng).unwrap(),
        _ => header.len() as u64,
    };
    let rest = &base[8 + length..];
    let rest = if rng.random_range(0..8) == 0 { &rest[..rng.random_range(0..rest.len())] } else { rest };
    [&said.to_le_bytes()[..], &header, rest].concat()
}

/// Places of the numbers in a GGUF file's header: where, and how many bytes.
fn gguf_fields(bytes: &[u8]) -> Vec<(usize, usize)> {
    struct At<'a>(&'a [u8], usize, Vec<(usize, usize)>);
    impl At<'_> {
        fn number(&mut self, size: usize) -> u64 {
            let mut eight = [0; 8];
            eight[..size].copy_from_slice(&self.0[self.1..self.1 + size]);
            self.2.push((self.1, size));
            self.1 += size;
            u64::from_le_bytes(eight)
        }
        fn text(&mut self) {
            self.1 += self.number(8) as usize;
        }
        fn of_type(&mut self, kind: u64) {
            match kind {
                8 => self.text(),
                9 => {
                    let (kind, length) = (self.number(4), self.number(8));
                    let known = self.2.len();
                    (0..length).for_each(|_| self.of_type(kind));
                    self.2.truncate(known + 4); // its first items will do
                }
                0 | 1 | 7 => drop(self.number(1)),
                2 | 3 => drop(self.number(2)),
                4..=6 => drop(self.number(4)),
                _ => drop(self.number(8)),
            }
        }
    }
    let mut at = At(bytes, 4, Vec::new());
    at.number(4);
    let (tensors, values) = (at.number(8), at.number(8));
    for _ in 0..values {
        at.text();
        let kind = at.number(4);
        at.of_type(kind);
    }
    for _ in 0..tensors {
        at.text();
        let dimensions = at.number(4);
        (0..dimensions).for_each(|_| _ = at.number(8));
        at.number(4);
        at.number(8);
    }
    at.2
}

/// A GGUF file of which one or two numbers of the header are changed.
pub fn gguf(base: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let fields = gguf_fields(base);
    let mut bytes = base.to_vec();
    for _ in 0..rng.random_range(1..3) {
        let &(at, size) = fields.choose(rng).unwrap();
        let number: u64 = match rng.random_range(0..10) {
            0 => 0,
            1 => 1,
            2 => u64::MAX,
            3 => 1 << 63,
            4 => 1 << 40,
            5 => 1 << 31,
            6 => rng.random_range(0..16),
            7 => rng.random(),
            8 => 1_000_000_000_000,
            _ => 1 << rng.random_range(0..30),
        };
        bytes[at..at + size].copy_from_slice(&number.to_le_bytes()[..size]);
    }
    let last = fields.last().unwrap().0;
    match rng.random_range(0..15) {
        0 => bytes.truncate(rng.random_range(0..last)),
        1 => bytes[rng.random_range(0..last)] = rng.random(),
        _ => {}
    }
    bytes
}

/// Parts of a tokenizer, as the library names them, and where they go.
const PARTS: [(&str, &str); 24] = [
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
const FRAGMENTS: [&str; 40] = [
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
