//! Rotary positions as config.json writes them: `rope_parameters`, `rope_scaling`, `rope_theta`.

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::spec::model::architecture::{Attention, ModelType, Positions, Rope, RopeScaling};
use crate::spec::model::config::{Config, LARGEST_LENGTH, shown};

/// A table of parameters. A key of another type than its own is refused by its name, never taken as absent.
#[derive(Clone, Copy)]
struct Table<'a> {
    /// Key under which the table stands in config.json.
    name: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Table<'a> {
    fn of(name: &'a str, value: &'a Value) -> Result<Self> {
        value.as_object().map(|map| Self { name, map }).ok_or_else(|| Config::wrong(name, value, "a table"))
    }

    /// The parameters, under their newer or their older key; transformers takes the two for one thing.
    fn written(config: &Config<'a>) -> Result<Option<Self>> {
        let keys = ["rope_parameters", "rope_scaling"];
        match keys.map(|key| config.get(&[key])) {
            [Some(new), Some(old)] if new != old => {
                Err(Config::wrong(keys[1], old, "absent, or the same as `rope_parameters`"))
            }
            [Some(new), _] => Self::of(keys[0], new).map(Some),
            [None, Some(old)] => Self::of(keys[1], old).map(Some),
            [None, None] => Ok(None),
        }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn typed<T>(&self, key: &str, must: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let wrong = |v| Config::wrong(&format!("{}.{key}", self.name), v, must);
        self.get(key).map(|v| read(v).ok_or_else(|| wrong(v))).transpose()
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    fn positive(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number above 0", |v| v.as_f64().filter(|x| *x > 0.0))
    }

    fn need(&self, key: &str) -> Result<f64> {
        self.positive(key)?.ok_or_else(|| self.absent(key, "a number above 0"))
    }

    fn absent(&self, key: &str, must: &str) -> Error {
        Error::invalid(format!("{}.{key}` in `config.json", self.name), "absent", must)
    }

    /// A length, which some writers give as 8192.0.
    fn length(&self, key: &str) -> Result<Option<usize>> {
        let whole = |x: &f64| *x >= 1.0 && *x <= LARGEST_LENGTH as f64;
        let must = format!("a whole number between 1 and {LARGEST_LENGTH}");
        Ok(self.typed(key, &must, |v| v.as_f64().filter(whole))?.map(|x| x as usize))
    }

    /// A list of `count` positive numbers that frequencies are divided by.
    fn factors(&self, key: &str, count: usize) -> Result<Vec<f64>> {
        let must = format!("a list of {count} numbers above 0");
        let list = self.get(key).ok_or_else(|| self.absent(key, &must))?;
        let numbers: Option<Vec<f64>> =
            list.as_array().and_then(|all| all.iter().map(|v| v.as_f64().filter(|x| *x > 0.0)).collect());
        numbers.filter(|all| all.len() == count).ok_or_else(|| {
            let got = list.as_array().map_or_else(|| shown(&list.to_string()), |all| format!("{} long", all.len()));
            Error::invalid(format!("{}.{key}` in `config.json", self.name), got, must)
        })
    }
}

/// Where tokens stand, for a model with rotary positions.
pub(super) fn positions(
    config: &Config<'_>,
    model_type: ModelType,
    attention: &Attention,
    max_positions: usize,
) -> Result<Positions> {
    use ModelType::*;
    let written = Table::written(config)?;
    let dims = rotated(config, written, model_type, attention.head_dim)?;
    let default_theta = if model_type == Gemma3 { 1e6 } else { 1e4 };
    // Gemma 3 in transformers 5: one set of parameters a layer type.
    let kinds = ["full_attention", "sliding_attention"];
    if let Some(table) = written.filter(|table| kinds.iter().any(|kind| table.get(kind).is_some())) {
        let [full, sliding] = kinds.map(|kind| match table.get(kind) {
            Some(value) if model_type == Gemma3 => Table::of(kind, value),
            Some(value) => Err(Config::wrong(kind, value, "absent from the rope parameters of this family")),
            None => Err(table.absent(kind, "a table, as the other kind of layers has one")),
        });
        let make = |table: Table<'_>, theta| {
            let theta = table.positive("rope_theta")?.unwrap_or(theta);
            Ok::<_, Error>(Rope { theta, dims, scaling: scaling(table, dims, max_positions, None)? })
        };
        return Ok(Positions::Rope { global: make(full?, default_theta)?, local: Some(make(sliding?, 1e4)?) });
    }
    let theta = match written.map(|table| table.positive("rope_theta")).transpose()?.flatten() {
        Some(theta) => theta,
        None => config.positive(&["rope_theta"])?.unwrap_or(default_theta),
    };
    // Longrope keeps its original length outside of rope_scaling.
    let original = config.usize_opt(&["original_max_position_embeddings"])?.filter(|n| *n > 0);
    let scaling = written.map(|table| scaling(table, dims, max_positions, original)).transpose()?.flatten();
    let local = match model_type {
        Gemma3 => Some(Rope { theta: config.positive(&["rope_local_base_freq"])?.unwrap_or(1e4), dims, scaling: None }),
        _ => None,
    };
    Ok(Positions::Rope { global: Rope { theta, dims, scaling }, local })
}

/// Leading dimensions of a head that are rotated: all of them in every family but Phi-3.
fn rotated(config: &Config<'_>, written: Option<Table<'_>>, model_type: ModelType, head_dim: usize) -> Result<usize> {
    let key = "partial_rotary_factor";
    let nested = written.map(|table| table.positive(key)).transpose()?.flatten();
    let factor = nested.or(config.positive(&[key])?).unwrap_or(1.0);
    let wrong = |must| Error::invalid(format!("{key}` in `config.json"), factor, must);
    match model_type {
        _ if factor == 1.0 => Ok(head_dim),
        ModelType::Phi3 if factor < 1.0 => Ok((head_dim as f64 * factor) as usize),
        ModelType::Phi3 => Err(wrong("above 0 and at most 1")),
        _ => Err(wrong("1: this family rotates whole heads")),
    }
}

/// The stretching, by the table's `rope_type` (older: `type`).
fn scaling(
    table: Table<'_>,
    dims: usize,
    max_positions: usize,
    original: Option<usize>,
) -> Result<Option<RopeScaling>> {
    let kind = match table.typed("rope_type", "a text", Value::as_str)? {
        Some(kind) => kind,
        None => table.typed("type", "a text", Value::as_str)?.unwrap_or("default"),
    };
    let original = table.length("original_max_position_embeddings")?.or(original).unwrap_or(max_positions);
    Ok(match kind {
        // Qwen-VL's rotation by time, height and width is the ordinary one where all three are a token's place in a text.
        "default" | "mrope" => None,
        "linear" => Some(RopeScaling::Linear { factor: table.need("factor")? }),
        "llama3" => Some(llama3(table, original)?),
        "yarn" => Some(yarn(table, original)?),
        "longrope" | "su" => Some(longrope(table, dims, max_positions, original)?),
        other => {
            let must = "default, linear, llama3, yarn or longrope";
            return Err(Error::invalid("rope_type` in `config.json", shown(other), must));
        }
    })
}

fn llama3(table: Table<'_>, original: usize) -> Result<RopeScaling> {
    let (low, high) = (table.need("low_freq_factor")?, table.need("high_freq_factor")?);
    if high <= low {
        let field = format!("{}.high_freq_factor` in `config.json", table.name);
        return Err(Error::invalid(field, high, format!("above low_freq_factor ({low})")));
    }
    Ok(RopeScaling::Llama3 {
        factor: table.need("factor")?,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position_embeddings: original,
    })
}

fn yarn(table: Table<'_>, original: usize) -> Result<RopeScaling> {
    let factor = table.need("factor")?;
    let get_mscale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    // Transformers takes a 0 as absent.
    let mscale = |key| Ok::<_, Error>(table.number(key)?.filter(|m| *m != 0.0));
    let attention_factor = match (table.positive("attention_factor")?, mscale("mscale")?, mscale("mscale_all_dim")?) {
        (Some(a), _, _) => a,
        (None, Some(m), Some(all)) => get_mscale(m) / get_mscale(all),
        _ => get_mscale(1.0),
    };
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast: table.positive("beta_fast")?.unwrap_or(32.0),
        beta_slow: table.positive("beta_slow")?.unwrap_or(1.0),
        attention_factor,
        original_max_position_embeddings: original,
        truncate: table.typed("truncate", "true or false", Value::as_bool)?.unwrap_or(true),
    })
}

fn longrope(table: Table<'_>, dims: usize, max_positions: usize, original: usize) -> Result<RopeScaling> {
    if original < 2 {
        let field = "original_max_position_embeddings` in `config.json";
        return Err(Error::invalid(field, original, "at least 2 with longrope"));
    }
    let factor = max_positions as f64 / original as f64;
    let attention = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
    Ok(RopeScaling::LongRope {
        short_factor: table.factors("short_factor", dims / 2)?,
        long_factor: table.factors("long_factor", dims / 2)?,
        attention_factor: table.positive("attention_factor")?.unwrap_or(attention),
        original_max_position_embeddings: original,
    })
}
