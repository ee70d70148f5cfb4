//! Errors of predictions, grouped by engine, quantity and chip.

use polars::prelude::{DataFrame, df};

use crate::error::Result;
use crate::tables::frame::{broken, first_text, parts, quantile, sum};

/// Error of one figure that was predicted and measured.
#[derive(Clone, Debug)]
pub(crate) struct ErrorRow<'a> {
    /// Name of the engine that trained.
    pub engine: &'a str,
    /// Name of the quantity that is compared.
    pub quantity: &'a str,
    /// Name of the chip it ran on.
    pub chip: &'a str,
    /// Relative error: predicted over measured, less one.
    pub error: f64,
    /// Whether the measured value lies within the predicted interval.
    pub inside: bool,
}

/// Errors of an engine and a quantity, all together or on one chip.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ErrorGroup {
    /// Name of the engine that trained.
    pub engine: String,
    /// Name of the quantity that is compared.
    pub quantity: String,
    /// Name of the chip; `None` for all together.
    pub chip: Option<String>,
    /// Number of figures.
    pub n: usize,
    /// Median of the absolute relative errors.
    pub median: f64,
    /// 95th percentile of the absolute relative errors.
    pub p95: f64,
    /// Number of figures that lie within their intervals.
    pub inside: usize,
}

/// Each engine and quantity, all together and then by chip in alphabetical order; in the order in which they first appear.
pub(crate) fn by_engine_and_chip(rows: &[ErrorRow<'_>]) -> Result<Vec<ErrorGroup>> {
    let column = |of: fn(&ErrorRow<'_>) -> f64| rows.iter().map(of).collect::<Vec<f64>>();
    let frame = df!(
        "engine" => rows.iter().map(|r| r.engine).collect::<Vec<_>>(),
        "quantity" => rows.iter().map(|r| r.quantity).collect::<Vec<_>>(),
        "chip" => rows.iter().map(|r| r.chip).collect::<Vec<_>>(),
        "error" => column(|r| r.error.abs()),
        "inside" => column(|r| f64::from(u8::from(r.inside))),
    );
    let mut groups = Vec::new();
    for part in parts(&frame.map_err(broken)?, &["engine", "quantity"])? {
        groups.push(group(&part, None)?);
        let mut chips = Vec::new();
        for chip in parts(&part, &["chip"])? {
            chips.push(group(&chip, Some(first_text(&chip, "chip")?))?);
        }
        chips.sort_by(|a, b| a.chip.cmp(&b.chip));
        groups.extend(chips);
    }
    Ok(groups)
}

fn group(part: &DataFrame, chip: Option<String>) -> Result<ErrorGroup> {
    Ok(ErrorGroup {
        engine: first_text(part, "engine")?,
        quantity: first_text(part, "quantity")?,
        chip,
        n: part.height(),
        median: quantile(part, "error", 0.5)?,
        p95: quantile(part, "error", 0.95)?,
        inside: sum(part, "inside")? as usize,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_come_all_together_and_by_chip() {
        let row = |engine, chip, error, inside| ErrorRow { engine, quantity: "peak", chip, error, inside };
        let rows = [row("mlx-lm", "M4", -0.3, false), row("mlx-lm", "M1", 0.1, true), row("candle", "M1", 0.2, true)];
        let groups = by_engine_and_chip(&rows).unwrap();
        let chips: Vec<_> = groups.iter().map(|g| (g.engine.as_str(), g.chip.as_deref(), g.n, g.inside)).collect();
        let expected = [
            ("mlx-lm", None, 2, 1),
            ("mlx-lm", Some("M1"), 1, 1),
            ("mlx-lm", Some("M4"), 1, 0),
            ("candle", None, 1, 1),
            ("candle", Some("M1"), 1, 1),
        ];
        assert_eq!(chips, expected);
        assert!((groups[0].median - 0.2).abs() < 1e-12 && (groups[0].p95 - 0.29).abs() < 1e-12);
    }
}
