//! Fuzz targets: everything that reads a text or a header of somebody else's. Each takes a valid one, puts words of another
//! kind and numbers of another size into it, and asks that it is answered or refused: no panic, no hang, no flood.
//!
//! `cargo test` tries a thousand random inputs each, from the seed in `.cargo/config.toml`. Guided by coverage, for as long as
//! one likes:
//! `cargo install cargo-bolero`, then `cargo bolero test config_json --test fuzz --sanitizer NONE`.

use std::path::Path;

use bolero::check;

use crate::checkpoint::adapter::AdapterFile;
use crate::checkpoint::gguf::GgufFile;
use crate::checkpoint::safetensors::CheckpointFile;
use crate::guides;
use crate::measure::{Measurement, row};
use crate::spec::model::ModelSpec;
use crate::spec::run::RunConfig;
use crate::spec::run::grid::Grid;

/// A file or folder of the fixtures.
fn fixture(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// What is put in the place of a word.
const WORDS: [&str; 24] = [
    "0",
    "1",
    "-1",
    "2",
    "255",
    "65536",
    "4294967296",
    "9223372036854775807",
    "18446744073709551616",
    "1e300",
    "-1e-300",
    "nan",
    "null",
    "true",
    "\"\"",
    "\"x\"",
    "[]",
    "{}",
    "[[]]",
    "{\"\":0}",
    "\"\u{1b}[2J\"",
    "../../x",
    "=",
    "\n",
];

/// One change: where, as a share of all words, and to what.
type Edits = Vec<(u16, u8)>;

/// `text` with some of its words (numbers, names, marks) replaced, left out or said twice.
fn edited(text: &str, edits: &Edits) -> String {
    let ends = |c: char| !(c.is_alphanumeric() || c == '_' || c == '.');
    let mut words: Vec<String> = text.split_inclusive(ends).map(str::to_owned).collect();
    for &(place, what) in edits {
        let at = usize::from(place) % words.len();
        let word = words[at].trim_end_matches(ends).to_owned();
        let mark = words[at][word.len()..].to_owned();
        words[at] = match usize::from(what) % (WORDS.len() + 3) {
            n if n < WORDS.len() => format!("{}{mark}", WORDS[n]),
            n if n == WORDS.len() => mark,
            n if n == WORDS.len() + 1 => word,
            _ => format!("{word}{mark}{word}{mark}"),
        };
    }
    words.concat()
}

/// `bytes` with some of them replaced, or cut off.
fn broken(bytes: &[u8], edits: &[(u16, u8)], cut: u16) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for &(place, value) in edits {
        let at = usize::from(place) % bytes.len();
        bytes[at] = value;
    }
    // Mostly whole: what is cut is refused at once.
    if cut < 1 << 13 {
        bytes.truncate(usize::from(cut) % bytes.len());
    }
    bytes
}

fn text(name: &str) -> String {
    std::fs::read_to_string(fixture(name)).unwrap()
}

#[test]
fn config_json() {
    let seeds = ["hf_folder/config.json", "reference/gemma3/model/config.json", "reference/phi3/model/config.json"]
        .into_iter()
        .filter(|name| fixture(name).is_file())
        .map(text)
        .collect::<Vec<_>>();
    check!().with_type::<(u8, Edits)>().for_each(|(seed, edits)| {
        let _ = ModelSpec::from_config(&edited(&seeds[usize::from(*seed) % seeds.len()], edits));
    });
}

const RUN: &str = r#"
model = "Qwen/Qwen2.5-0.5B"
data = "train.jsonl"
seed = 3
[recipe]
max_seq_length = 512
effective_batch_size = 8
epochs = 1.5
learning_rate = 2e-4
optimizer = "adamw_8bit"
[recipe.lora]
rank = 8
alpha = 16
target_modules = ["q_proj", "v_proj"]
[execution]
batch_size = 4
weights = "int8"
loss_chunk = 256
"#;

#[test]
fn run_toml() {
    check!().with_type::<Edits>().for_each(|edits| {
        if let Ok(run) = RunConfig::from_toml(&edited(RUN, edits), Path::new("run.toml")) {
            let again = RunConfig::from_toml(&run.to_toml().unwrap(), Path::new("run.toml")).unwrap();
            assert_eq!(again.to_toml().unwrap(), run.to_toml().unwrap());
        }
    });
}

#[test]
fn grid_toml() {
    let seed = format!("{RUN}\n[[machine]]\nchip = \"M1\"\nram = \"8G\"\n").replace("rank = 8", "rank = [8, 16, 32]");
    check!().with_type::<Edits>().for_each(|edits| {
        let _ = Grid::from_toml(&edited(&seed, edits), Path::new("grid.toml"));
    });
}

#[test]
fn guides_toml() {
    let seed = include_str!("../grids/guides.toml");
    let seed: String = seed.split_inclusive("\n[[").take(4).collect();
    let seed = seed.trim_end_matches("[[").to_owned();
    check!().with_type::<Edits>().for_each(|edits| {
        let _ = guides::read(&edited(&seed, edits), Path::new("guides.toml"));
    });
}

#[test]
fn measurement_row() {
    let columns = row::header();
    check!().with_type::<Edits>().for_each(|edits| {
        let mut cells = vec![String::new(); columns.len()];
        for &(place, what) in edits {
            cells[usize::from(place) % columns.len()] = WORDS[usize::from(what) % WORDS.len()].into();
        }
        let _ = Measurement::from_row(&columns, &cells);
    });
}

#[test]
fn safetensors_header() {
    let bytes = std::fs::read(fixture("hf_folder/model-00002-of-00002.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    check!().with_type::<(Vec<(u16, u8)>, u16)>().for_each(|(edits, cut)| {
        let mut changed = broken(&bytes[..header], edits, *cut);
        changed.extend(&bytes[header..]);
        std::fs::write(&path, changed).unwrap();
        let _ = CheckpointFile::open(&path);
    });
}

#[test]
fn gguf_header() {
    let bytes = std::fs::read(fixture("gguf/chat.gguf")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    check!().with_type::<(Vec<(u16, u8)>, u16)>().for_each(|(edits, cut)| {
        let edits: Vec<(u16, u8)> = edits.iter().map(|(place, value)| (place % 4096, *value)).collect();
        std::fs::write(&path, broken(&bytes, &edits, *cut)).unwrap();
        let _ = GgufFile::open(&path);
    });
}

#[test]
fn adapter_config_json() {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture("reference/llama/adapter")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let seed = text("reference/llama/adapter/adapter_config.json");
    check!().with_type::<Edits>().for_each(|edits| {
        std::fs::write(folder.path().join("adapter_config.json"), edited(&seed, edits)).unwrap();
        let _ = AdapterFile::read(folder.path());
    });
}
