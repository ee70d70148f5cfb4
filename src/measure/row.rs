//! A [`Measurement`] as a flat row, and back.
//!
//! The columns are not listed by hand: a measurement with every option filled in is flattened, and the
//! paths of its leaves are the columns (`config.recipe.lora.rank`, `measured.tokens_per_s`). A field
//! added to the configuration becomes a column by itself, and can not be forgotten.

use std::path::PathBuf;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::measure::measurement::{Measured, Measurement, Predicted, SCHEMA, data_as_split};
use crate::measure::probe::MachineState;
use crate::spec::record::Outcome;
use crate::spec::run::{Data, DataSplit, Engine, Execution, Lora, Recipe, RunConfig};
use crate::units::{Bytes, Estimate};

/// Path and example of every leaf, in the order of the columns.
static COLUMNS: LazyLock<Vec<(String, Value)>> = LazyLock::new(|| {
    let value = serde_json::to_value(example()).expect("a measurement is plain data");

    let mut leaves = Vec::new();

    flatten("", &value, &mut leaves);

    // What names a row comes first; the sections follow in the order of reading.
    leaves.sort_by_key(|(path, _)| {
        let first = ["schema", "unix_time", "machine", "os", "engine_version", "tool_version"];
        let place = first.iter().position(|f| f == path).unwrap_or(first.len());
        let section = ["config", "predicted", "measured", "outcome"];
        let name = path.split('.').next().unwrap_or_default();
        (place, section.iter().position(|s| *s == name).unwrap_or(section.len()))
    });
    leaves
});

/// A measurement with no value left out, whose leaves are the columns.
fn example() -> Measurement {
    let split = DataSplit { train: "t".into(), valid: Some("v".into()) };
    let lora = Lora { init_adapter: Some(PathBuf::from("a")), ..Lora::default() };
    let recipe = Recipe {
        steps: Some(1),
        epochs: Some(1.0),
        eval_steps: Some(1),
        early_stopping_patience: Some(1),
        lora,
        ..Recipe::default()
    };
    let number = Estimate { point: 1.0, low: 1.0, high: 1.0, level: 0.9 };
    let bytes = number.map(Bytes::from_f64);
    Measurement {
        schema: SCHEMA,
        unix_time: 0,
        machine: "m".into(),
        os: "o".into(),
        engine_version: "v".into(),
        tool_version: "t".into(),
        config: RunConfig {
            model: "m".into(),
            data: Data::Split(split),
            engine: Engine::Candle,
            seed: 0,
            recipe,
            execution: Execution::default(),
        },
        pad_to_max: true,
        predicted: Predicted {
            peak_memory_bytes: Some(bytes),
            footprint_bytes: Some(bytes),
            tokens_per_s: Some(number),
            step_time_s: Some(number),
        },
        measured: Measured {
            peak_memory_bytes: Some(Bytes(1)),
            footprint_bytes: Some(Bytes(1)),
            load_time_s: Some(1.0),
            step_time_s: Some(1.0),
            step_time_spread: Some(1.0),
            tokens_per_s: Some(1.0),
            tokens_per_step: Some(1.0),
            padded_tokens_per_step: Some(1.0),
            best_validation_loss: Some(1.0),
            best_step: Some(1),
            ..Measured::default()
        },
        outcome: Outcome::Crashed { at_step: 0, reason: "r".into() },
        state: MachineState::filled(),
    }
}

fn flatten(path: &str, value: &Value, leaves: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            flatten(&path, value, leaves);
        }),
        leaf => leaves.push((path.into(), leaf.clone())),
    }
}

/// Names of the columns, in their order.
pub(crate) fn header() -> Vec<String> {
    COLUMNS.iter().map(|(path, _)| path.clone()).collect()
}

impl Measurement {
    /// The measurement as cells, in the order of [`header`].
    pub(crate) fn to_row(&self) -> Result<Vec<String>> {
        let broken = |reason: String| Error::Serialise { what: "measurement", reason };
        let flat = Self { config: data_as_split(self.config.clone()), ..self.clone() };
        let value = serde_json::to_value(flat).map_err(|e| broken(e.to_string()))?;
        let mut leaves = Vec::new();
        flatten("", &value, &mut leaves);
        let mut row = vec![String::new(); COLUMNS.len()];
        for (path, value) in leaves {
            let column = COLUMNS.iter().position(|(p, _)| *p == path);
            let cell = match value {
                Value::Null => continue,
                Value::String(text) => text,
                other => other.to_string(),
            };
            // A leaf without a column would be lost without a word.
            row[column.ok_or_else(|| broken(format!("`{path}` has no column")))?] = cell;
        }
        Ok(row)
    }

    /// Reads a measurement from cells under the columns that a file has; cells with a default may be missing.
    pub(crate) fn from_row(columns: &[String], row: &[String]) -> Result<Self, String> {
        let mut value = Value::Object(Map::new());
        for (column, cell) in columns.iter().zip(row).filter(|(_, cell)| !cell.is_empty()) {
            let Some((_, example)) = COLUMNS.iter().find(|(path, _)| path == column) else {
                return Err(format!("unknown column `{column}`"));
            };
            let leaf = match example {
                Value::String(_) => Value::String(cell.clone()),
                _ => serde_json::from_str(cell).map_err(|e| format!("`{column}` is `{cell}`: {e}"))?,
            };
            if example.is_u64() && !leaf.is_u64() {
                return Err(format!("`{column}` is `{cell}`: it must be a whole number"));
            }
            put(&mut value, column, leaf);
        }
        let mut this: Self = serde_json::from_value(value).map_err(|e| e.to_string())?;
        this.check_schema()?;
        if let Data::Split(DataSplit { train, valid: None }) = this.config.data {
            this.config.data = Data::Train(train);
        }
        this.config.check().map_err(|e| e.to_string())?;
        this.measured.check()?;
        Ok(this)
    }

    /// Refuses a row of another version, whose columns have another meaning.
    pub(crate) fn check_schema(&self) -> Result<(), String> {
        if self.schema == SCHEMA {
            return Ok(());
        }
        Err(format!("`schema` is {}, but this version of headroom reads {SCHEMA}", self.schema))
    }
}

/// What a measurement can show, from the least to the most: a nanosecond to thirty years, in seconds; up to a petabyte,
/// in bytes; a token in thirty years to more than any machine can count.
const TIME: (f64, f64) = (1e-9, 1e9);

const MEMORY: (f64, f64) = (1.0, 1e15);

const SPEED: (f64, f64) = (1e-9, 1e15);

const TOKENS: (f64, f64) = (0.0, 1e15);

const SPREAD: (f64, f64) = (0.0, 1e9);

const LOSS: (f64, f64) = (-1e9, 1e9);

/// Trials that show nothing may have taken none of it.
const WHOLE: (f64, f64) = (0.0, 1e9);

impl Measured {
    /// Refuses figures that cannot have been measured and would distort a calibration.
    fn check(&self) -> Result<(), String> {
        let bytes = |b: Option<Bytes>| b.map(Bytes::as_f64);
        let figures = [
            ("step_time_s", self.step_time_s, TIME),
            ("tokens_per_s", self.tokens_per_s, SPEED),
            ("peak_memory_bytes", bytes(self.peak_memory_bytes), MEMORY),
            ("footprint_bytes", bytes(self.footprint_bytes), MEMORY),
            ("load_time_s", self.load_time_s, WHOLE),
            ("wall_time_s", Some(self.wall_time_s), WHOLE),
            ("step_time_spread", self.step_time_spread, SPREAD),
            ("tokens_per_step", self.tokens_per_step, TOKENS),
            ("padded_tokens_per_step", self.padded_tokens_per_step, TOKENS),
            ("best_validation_loss", self.best_validation_loss, LOSS),
        ];
        for (name, figure, (least, most)) in figures {
            // Written so that NaN is nonsense too.
            if let Some(value) = figure.filter(|f| !(least..=most).contains(f)) {
                return Err(format!("`measured.{name}` is {value:?}: not a possible value; remove the line"));
            }
        }
        Ok(())
    }
}

fn put(value: &mut Value, path: &str, leaf: Value) {
    let mut at = value;
    for key in path.split('.') {
        let map = match at {
            Value::Object(map) => map,
            _ => return,
        };
        at = map.entry(key).or_insert_with(|| Value::Object(Map::new()));
    }
    *at = leaf;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_reads_back_as_it_was_written() {
        let mut full = example();
        // A run is as long as one of both says.
        for (steps, epochs) in [(Some(1), None), (None, Some(1.0))] {
            (full.config.recipe.steps, full.config.recipe.epochs) = (steps, epochs);
            assert_eq!(Measurement::from_row(&header(), &full.to_row().unwrap()).unwrap(), full);
        }
        let mut bare = example();
        (bare.predicted, bare.measured) = (Predicted::default(), Measured::default());
        bare.outcome = Outcome::Finished;
        bare.state = MachineState::default();
        bare.config.data = Data::Train("rows, \"quoted\".jsonl".into());
        (bare.config.recipe.steps, bare.config.recipe.epochs) = (None, None);
        (bare.config.recipe.eval_steps, bare.config.recipe.early_stopping_patience) = (None, None);
        bare.config.recipe.lora.init_adapter = None;
        bare.config.model = "123".into();
        bare.config.recipe.lora.target_modules = vec!["q_proj".into(), "v_proj".into()];
        assert_eq!(Measurement::from_row(&header(), &bare.to_row().unwrap()).unwrap(), bare);
    }

    #[test]
    fn every_setting_is_a_column() {
        let header = header();
        assert_eq!(header[..3], ["schema", "unix_time", "machine"]);
        for column in [
            "config.recipe.lora.rank",
            "config.execution.batch_size",
            "config.recipe.max_seq_length",
            "predicted.footprint_bytes.high",
            "measured.tokens_per_s",
            "outcome.outcome",
            "state.available_bytes",
        ] {
            assert!(header.iter().any(|c| c == column), "{column} in {header:?}");
        }
    }

    #[test]
    fn broken_rows_say_where() {
        let mut whole = example();
        whole.config.recipe.epochs = None;
        let (columns, row) = (header(), whole.to_row().unwrap());
        let with = |column: &str, cell: &str| {
            let mut row = row.clone();
            row[columns.iter().position(|c| c == column).unwrap()] = cell.into();
            Measurement::from_row(&columns, &row)
        };
        assert!(with("measured.steps", "many").unwrap_err().contains("measured.steps"));
        assert!(with("machine", "").unwrap_err().contains("machine"));
        let nonsense = "not a possible value";
        for (column, cell, said) in [
            ("schema", "999", "`schema` is 999, but this version of headroom reads 1"),
            ("schema", "", "schema"),
            ("schema", "-1", "`-1`"),
            ("measured.step_time_s", "1e-300", nonsense),
            ("measured.step_time_s", "1e300", "`measured.step_time_s` is 1e300"),
            ("measured.step_time_s", "0", nonsense),
            ("measured.step_time_s", "-1", nonsense),
            ("measured.step_time_s", "NaN", "measured.step_time_s"),
            ("measured.step_time_s", "1e999", "measured.step_time_s"),
            ("measured.tokens_per_s", "1e300", nonsense),
            ("measured.tokens_per_s", "1e-300", nonsense),
            ("measured.peak_memory_bytes", "0", nonsense),
            ("measured.footprint_bytes", "18446744073709551615", nonsense),
            ("measured.footprint_bytes", "1e300", "`measured.footprint_bytes` is `1e300`"),
            ("measured.load_time_s", "-1", nonsense),
            ("measured.wall_time_s", "1e300", nonsense),
            ("measured.tokens_per_step", "1e300", nonsense),
            ("measured.best_validation_loss", "-1e300", nonsense),
            ("config.execution.batch_size", "0", "`batch_size` is 0"),
            ("config.recipe.lora.rank", "4000000000", "`rank` is 4000000000"),
            ("config.recipe.learning_rate", "-1", "`learning_rate` is -1"),
        ] {
            let wrong = with(column, cell).unwrap_err();
            assert!(wrong.contains(said), "{column} {cell}: {wrong}");
        }
        assert!(Measurement::from_row(&["dance".into()], &["1".into()]).unwrap_err().contains("dance"));
    }

    #[test]
    fn steps_and_seed_change_neither_speed_nor_memory() {
        let one = example();
        let mut config = one.config.clone();
        (config.seed, config.recipe.steps, config.recipe.learning_rate) = (9, Some(500), 1e-3);
        assert!(one.answers(&config, true, "v"));
        assert!(!one.answers(&config, false, "v") && !one.answers(&config, true, "w"));
        config.recipe.lora.rank += 1;
        assert!(!one.answers(&config, true, "v"));
    }
}
