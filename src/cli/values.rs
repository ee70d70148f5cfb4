//! How values are read from the command line.

use clap::ValueEnum;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use jiff::SignedDuration;

use crate::spec::machine::Accelerator;
use crate::spec::model::catalogue::SAME_SIZE;
use crate::spec::run::export_format::ExportFormat;
use crate::spec::run::{Engine, Prefer, Weights};
use crate::units::Seconds;

/// Longest time that may be asked for: eleven years.
const MOST_HOURS: i64 = 100_000;

/// Weight formats, which clap lists.
pub(super) fn weights() -> impl TypedValueParser<Value = Weights> {
    let names = Weights::ALL.map(Weights::name);
    PossibleValuesParser::new(names).try_map(|name| {
        let found = Weights::ALL.into_iter().find(|w| w.name() == name);
        found.ok_or_else(|| format!("`{name}` is not a weight format"))
    })
}

impl ValueEnum for Engine {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let about = match self {
            Self::Candle => "Headroom's own trainer",
            Self::MlxLm => "The user's mlx-lm",
        };
        Some(PossibleValue::new(self.name()).help(about))
    }
}

impl ValueEnum for Accelerator {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let about = match self {
            Self::Cpu => "The processor",
            Self::Metal => "The GPU of a Mac with Apple silicon and macOS 15 or later",
        };
        Some(PossibleValue::new(self.name()).help(about))
    }
}

impl ValueEnum for Prefer {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()).help(self.about()))
    }
}

impl ValueEnum for ExportFormat {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()).help(self.about()))
    }
}

/// A time with its units, such as `90s`, `8h` or `1h 30m`.
pub(super) fn duration(text: &str) -> Result<Seconds, String> {
    let time: SignedDuration =
        text.parse().map_err(|_| format!("`{text}` is not a time such as 90s, 30m, 8h or 1h30m"))?;
    if time > SignedDuration::from_hours(MOST_HOURS) {
        return Err(format!("it must be at most {MOST_HOURS}h"));
    }
    if time <= SignedDuration::ZERO {
        return Err("it must be more than 0s".into());
    }
    Ok(Seconds(time.as_secs_f64()))
}

/// A number for which `ok` holds, which is never so for NaN.
fn number(text: &str, ok: impl Fn(f64) -> bool, must: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    if ok(value) { Ok(value) } else { Err(format!("it must be {must}")) }
}

pub(super) fn probability(text: &str) -> Result<f64, String> {
    number(text, |p| (0.5..1.0).contains(&p), "at least 0.5 and less than 1")
}

pub(super) fn share(text: &str) -> Result<f64, String> {
    number(text, |p| p > 0.0 && p <= 1.0, "more than 0 and at most 1")
}

pub(super) fn temperature(text: &str) -> Result<f64, String> {
    number(text, |t| (0.0..=10.0).contains(&t), "between 0 and 10")
}

/// A whole number from 1 to `most`.
fn up_to(text: &str, most: usize) -> Result<usize, String> {
    let value: usize = text.parse().map_err(|_| format!("`{text}` is not a whole number"))?;
    if (1..=most).contains(&value) { Ok(value) } else { Err(format!("it must be between 1 and {most}")) }
}

pub(super) fn count(text: &str) -> Result<usize, String> {
    up_to(text, 1_000_000_000)
}

pub(super) fn repeats(text: &str) -> Result<usize, String> {
    up_to(text, 1000)
}

pub(super) fn tokens(text: &str) -> Result<usize, String> {
    up_to(text, 1 << 20)
}

/// Numbers of parameters from one to another, both in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sizes {
    /// Fewest parameters.
    pub(crate) least: f64,
    /// Most parameters.
    pub(crate) most: f64,
}

/// A size as people name it, within a quarter, or a range of sizes.
pub(super) fn sizes(text: &str) -> Result<Sizes, String> {
    let one = |text: &str| {
        let upper = text.trim().to_uppercase();
        let unit = [("B", 1e9), ("M", 1e6)].into_iter().find_map(|(u, f)| Some((upper.strip_suffix(u)?, f)));
        let number = unit.and_then(|(digits, factor)| Some(digits.parse::<f64>().ok().filter(|n| *n > 0.0)? * factor));
        number.ok_or_else(|| format!("`{text}` is not a size such as 8B, 270M or 3B..9B"))
    };
    let Some((least, most)) = text.split_once("..") else {
        let size = one(text)?;
        return Ok(Sizes { least: size / SAME_SIZE, most: size * SAME_SIZE });
    };
    let or = |text: &str, open: f64| if text.trim().is_empty() { Ok(open) } else { one(text) };
    let range = Sizes { least: or(least, 0.0)?, most: or(most, f64::INFINITY)? };
    if range.least > range.most { Err("its ends are the wrong way round".into()) } else { Ok(range) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_one_or_a_range() {
        let within = |text: &str, size: f64| sizes(text).map(|s| (s.least..=s.most).contains(&size));
        for (text, size) in
            [("8B", 8.19e9), ("270m", 268e6), ("3B..9B", 3e9), ("..4B", 1e6), ("30B..", 70e9), ("1.7B", 1.72e9)]
        {
            assert_eq!(within(text, size), Ok(true), "{text}");
        }
        assert_eq!(within("8B", 14e9), Ok(false));
        for bad in ["", "8", "B", "-1B", "nanB", "9B..3B", "3B..x", "..x"] {
            assert!(sizes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_have_units() {
        for (text, seconds) in [("90s", 90.0), ("3m", 180.0), ("0.5h", 1800.0), ("1h30m", 5400.0), ("2h 5m", 7500.0)] {
            assert_eq!(duration(text), Ok(Seconds(seconds)), "{text}");
        }
        for bad in ["", "m", "3", "-3m", "3x", "infs", "nans", "0s", "1e308h", "1e300s", "100001h", "\u{e9}", "3\u{e9}"]
        {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
