//! A grid: a run file in which any value may be several, and the machines to ask about.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use toml::{Table, Value};

use crate::error::{Error, Result};
use crate::spec::machine::Machine;
use crate::spec::run::config::RunConfig;
use crate::spec::run::names::{public_name, toml_error};
use crate::units::Bytes;

/// Largest number of combinations that a grid may have.
const MOST: usize = 100_000;

/// The one field that is a list by itself; several of them are a list of lists.
const LIST: &str = "target_modules";

/// A machine by its chip and its memory, or by either.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GridMachine {
    /// Name of the chip, such as `M2 Pro`.
    pub chip: Option<String>,
    /// Installed memory, such as `8G`.
    pub ram: Option<String>,
    /// Number of GPU cores, where the chip was sold with several.
    pub gpu_cores: Option<usize>,
}

impl GridMachine {
    /// Looks the machine up in the chip table.
    ///
    /// # Errors
    /// Where it was never sold, or nothing is said of it.
    pub(crate) fn find(&self) -> Result<Machine> {
        let read = |ram: &String| ram.parse::<Bytes>().map_err(|must| Error::invalid("machine.ram", ram, must));
        let ram = self.ram.as_ref().map(read).transpose()?;
        match (&self.chip, ram) {
            (Some(chip), ram) => Machine::named(chip, ram, self.gpu_cores),
            (None, Some(ram)) => Machine::plainest(ram),
            (None, None) => Err(Error::invalid("machine", "empty", "a `chip`, a `ram`, or both")),
        }
    }
}

/// The runs of a grid file and the machines to plan them for.
#[derive(Clone, Debug)]
pub(crate) struct Grid {
    /// Machines to plan for; empty for the machine that was asked about on the command line.
    pub machines: Vec<GridMachine>,
    /// Fields that take several values, what is learned before how it is run, such as `recipe.lora.rank`.
    pub varied: Vec<String>,
    /// Every combination that is a run, the last field turning fastest, and its values of the varied fields.
    pub runs: Vec<(RunConfig, Vec<String>)>,
    /// Combinations that are no runs, such as a batch that does not divide the effective one, and why the first is not.
    pub refused: Option<(usize, String)>,
}

/// `{ from = 1, to = 64, factor = 2 }` or `{ from = 512, to = 4096, step = 512 }`, both ends included.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Range {
    from: i64,
    to: i64,
    step: Option<i64>,
    factor: Option<i64>,
}

impl Grid {
    /// Parses the text of the grid file at `path`; relative paths in it are taken relative to it.
    ///
    /// # Errors
    /// For TOML that is none, a range that never ends, more than 100,000 combinations, or none that is a run.
    pub(crate) fn from_toml(text: &str, path: &Path) -> Result<Self> {
        let mut table: Table = toml::from_str(text).map_err(|e| toml_error(&e, text, path))?;
        let fail = |message: String| Error::Parse { path: path.into(), line: None, message, hint: None };
        let machines: Vec<GridMachine> = match table.remove("machine") {
            Some(value) => value.try_into().map_err(|e: toml::de::Error| fail(format!("machine: {}", e.message())))?,
            None => Vec::new(),
        };
        let mut axes = Vec::new();
        collect(&table, &mut Vec::new(), &mut axes).map_err(fail)?;
        axes.sort_by_key(Axis::place);
        let size = axes.iter().try_fold(1usize, |n, axis: &Axis| n.checked_mul(axis.values.len()));
        // Each is asked of every machine.
        if size.and_then(|n| n.checked_mul(machines.len().max(1))).is_none_or(|n| n > MOST) {
            let of = if machines.is_empty() { "" } else { " of runs and machines" };
            return Err(fail(format!("more than {MOST} combinations{of}: vary fewer fields at a time")));
        }
        let mut grid =
            Self { machines, varied: axes.iter().map(Axis::name).collect(), runs: Vec::new(), refused: None };
        for i in 0..size.unwrap_or(1) {
            let (mut run, mut values, mut rest) = (table.clone(), Vec::new(), i);
            // The last axis turns fastest.
            for axis in axes.iter().rev() {
                let at = rest % axis.values.len();
                let value = &axis.values[at];
                rest /= axis.values.len();
                set(&mut run, &axis.at, value.clone());
                values.push(axis.shown[at].clone());
            }
            values.reverse();
            grid.add(&run, values, path)?;
        }
        match (&grid.refused, grid.runs.is_empty()) {
            (Some((_, why)), true) => Err(fail(format!("no combination is a valid run: {why}"))),
            _ => Ok(grid),
        }
    }

    fn add(&mut self, run: &Table, values: Vec<String>, path: &Path) -> Result<()> {
        let text = toml::to_string(run).map_err(|e| Error::Serialise { what: "a run", reason: e.to_string() })?;
        match RunConfig::from_toml(&text, path) {
            Ok(run) => self.runs.push((run, values)),
            // The line is one of the combination and not of the file.
            Err(Error::Parse { message, hint, .. }) => {
                return Err(Error::Parse { path: path.into(), line: None, message, hint });
            }
            Err(why) => self.refused.get_or_insert((0, why.to_string())).0 += 1,
        }
        Ok(())
    }
}

/// A field and the values it takes.
struct Axis {
    at: Vec<String>,
    values: Vec<Value>,
    /// The values as tables show them.
    shown: Vec<String>,
}

impl Axis {
    fn new(at: Vec<String>, values: Vec<Value>) -> Self {
        let typed: Vec<String> = values.iter().map(shown).collect();
        let path =
            matches!(&*at.join("."), "model" | "data" | "data.train" | "data.valid" | "recipe.lora.init_adapter");
        let public: Vec<String> = typed.iter().map(|name| public_name(name)).collect();
        let shown = if path && public != typed { distinct(public) } else { typed };
        Self { at, values, shown }
    }

    fn name(&self) -> String {
        self.at.join(".")
    }

    /// What is learned comes before how it is run.
    fn place(&self) -> usize {
        let order = ["model", "data", "recipe"];
        order.iter().position(|o| *o == self.at[0]).unwrap_or(order.len())
    }
}

/// Finds the fields of a grid that have several values.
fn collect(table: &Table, at: &mut Vec<String>, axes: &mut Vec<Axis>) -> Result<(), String> {
    for (key, value) in table {
        at.push(key.clone());
        let values = match value {
            Value::Table(inner) if inner.contains_key("from") => Some(range(inner).map_err(|e| at.join(".") + &e)?),
            Value::Table(inner) => {
                collect(inner, at, axes)?;
                None
            }
            Value::Array(all) if key != LIST || all.iter().any(Value::is_array) => Some(all.clone()),
            _ => None,
        };
        if let Some(values) = values {
            if values.is_empty() {
                return Err(format!("{}: no values", at.join(".")));
            }
            axes.push(Axis::new(at.clone(), values));
        }
        at.pop();
    }
    Ok(())
}

fn range(table: &Table) -> Result<Vec<Value>, String> {
    let Range { from, to, step, factor } =
        table.clone().try_into().map_err(|e: toml::de::Error| format!(": {}", e.message()))?;
    let next: Box<dyn Fn(i64) -> Option<i64>> = match (step, factor) {
        (step, None) if step.is_none_or(|s| s > 0) => Box::new(move |n| n.checked_add(step.unwrap_or(1))),
        (None, Some(factor)) if factor > 1 && from > 0 => Box::new(move |n| n.checked_mul(factor)),
        _ => return Err(": a range has a `step` of at least 1, or a `factor` of at least 2 and starts above 0".into()),
    };
    let all = std::iter::successors(Some(from), |n| next(*n)).take_while(|n| *n <= to).take(MOST + 1);
    Ok(all.map(Value::Integer).collect())
}

fn set(table: &mut Table, at: &[String], value: Value) {
    match at {
        [key] => _ = table.insert(key.clone(), value),
        [key, rest @ ..] => {
            if let Some(Value::Table(inner)) = table.get_mut(key) {
                set(inner, rest, value);
            }
        }
        [] => {}
    }
}

/// Names of which several may have become the same, such as those of two folders called `model`: numbered from the second
/// on.
fn distinct(names: Vec<String>) -> Vec<String> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let number = |name: String| {
        let n = seen.entry(name.clone()).or_insert(0);
        *n += 1;
        if *n == 1 { name } else { format!("{name} ({n})") }
    };
    names.into_iter().map(number).collect()
}

/// A value as a table shows it: text without its quotes.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().map(shown).collect::<Vec<_>>().join("+"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(text: &str) -> Result<Grid> {
        Grid::from_toml(text, Path::new("grids/g.toml"))
    }

    #[test]
    fn every_combination_once_and_the_last_field_turns_fastest() {
        let text = r#"
            model = ["a", "./b"]
            data = "d.jsonl"
            [recipe]
            effective_batch_size = 8
            max_seq_length = { from = 512, to = 2048, factor = 2 }
            [recipe.lora]
            target_modules = ["q_proj", "v_proj"]
            [execution]
            batch_size = { from = 2, to = 4 }
            [[machine]]
            chip = "M1"
            ram = "8G"
            [[machine]]
            ram = "16G"
        "#;
        let grid = grid(text).unwrap();
        assert_eq!(grid.varied.len(), 3);
        // 3 does not divide 8.
        assert_eq!(grid.runs.len(), 2 * 3 * 2);
        let (refused, why) = grid.refused.unwrap();
        assert_eq!(refused, 6);
        assert!(why.contains("divisor"), "{why}");
        let mut seen: Vec<_> =
            grid.runs.iter().map(|(r, _)| (r.model.clone(), r.recipe.max_seq_length, r.execution.batch_size)).collect();
        let of = |name: &str| grid.varied.iter().position(|v| v.ends_with(name)).unwrap();
        assert_eq!(grid.runs[0].1[of("max_seq_length")], "512");
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 12);
        assert!(seen.contains(&("grids/./b".into(), 2048, 4)), "{seen:?}");
        assert_eq!(grid.machines[0].chip.as_deref(), Some("M1"));
        let machines: Vec<Machine> = grid.machines.iter().map(|m| m.find().unwrap()).collect();
        assert_eq!(machines.iter().map(|m| m.memory.gib()).collect::<Vec<_>>(), [8.0, 16.0]);
        assert_eq!(format!("{:?}", grid.runs[0].0.recipe.lora.target_modules).matches("_proj").count(), 2);
    }

    #[test]
    fn mistakes_are_named() {
        let base = "model = \"m\"\ndata = \"d\"\n";
        for (text, expected) in [
            ("[execution]\nbatch_size = []", "execution.batch_size: no values"),
            ("[recipe.lora]\nrank = { from = 8, to = 64, factor = 1 }", "recipe.lora.rank: a range has"),
            ("[recipe.lora]\nrank = { from = 8, to = 64, by = 2 }", "unknown field `by`"),
            ("[recipe.lora]\nrnak = [8, 16]", "unknown field `rnak`"),
            ("[recipe]\nmax_seq_length = [1]", "no combination is a valid run"),
            ("[recipe]\nsteps = { from = 1, to = 1000 }\n[recipe.lora]\nrank = { from = 1, to = 1000 }", "more than"),
            ("[[machine]]\nrom = \"8G\"", "unknown field `rom`"),
        ] {
            let error = grid(&format!("{base}{text}")).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn machines_count_as_combinations() {
        let of = |runs: usize, machines: usize| {
            let text = format!("model = \"m\"\ndata = \"d\"\nseed = {{ from = 1, to = {runs} }}\n");
            grid(&(text + &"[[machine]]\nram = \"8G\"\n".repeat(machines)))
        };
        assert_eq!(of(100, 1000).unwrap().machines.len(), 1000);
        let error = of(100, 1001).unwrap_err().to_string();
        assert!(error.contains("more than 100000 combinations of runs and machines"), "{error}");
    }

    #[test]
    fn tables_name_no_folder_of_this_machine() {
        let text = "model = [\"/home/somebody/a/model\", \"/home/somebody/b/model\", \"Qwen/Qwen3-8B\", \"./c\"]\n\
                    data = [\"/home/somebody/rows.jsonl\", \"rows/more.jsonl\"]";
        let grid = grid(text).unwrap();
        let shown = |field: &str| {
            let at = grid.varied.iter().position(|v| v == field).unwrap();
            let mut all: Vec<&str> = grid.runs.iter().map(|(_, values)| &*values[at]).collect();
            all.sort_unstable();
            all.dedup();
            all.join(", ")
        };
        assert_eq!(shown("model"), "./c, Qwen/Qwen3-8B, model, model (2)");
        assert_eq!(shown("data"), "rows.jsonl, rows/more.jsonl");
        assert!(grid.runs.iter().any(|(run, _)| run.model == "/home/somebody/b/model"));
    }

    #[test]
    fn machines_that_were_never_sold_are_refused() {
        for machine in ["ram = \"8 potatoes\"", "chip = \"M99\"", "gpu_cores = 8", "chip = \"M1\"\nram = \"128G\""] {
            let grid = grid(&format!("model = \"m\"\ndata = \"d\"\n[[machine]]\n{machine}")).unwrap();
            assert!(grid.machines[0].find().is_err(), "{machine}");
        }
    }

    #[test]
    fn a_run_file_is_a_grid_of_one() {
        let grid = grid("model = \"m\"\ndata = \"d\"").unwrap();
        assert_eq!((grid.runs.len(), grid.varied.len(), grid.refused), (1, 0, None));
    }
}
