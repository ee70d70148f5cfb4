//! Files as somebody with bad intentions or a bad disk has them: changed where their structure is, drawn with a seed.

mod binary;
mod texts;

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

#[allow(unused_imports)] // some hold tests alone
pub use self::binary::*;
#[allow(unused_imports)] // some hold tests alone
pub use self::texts::*;

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
