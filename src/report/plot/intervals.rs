//! Predicted intervals beside measured values.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::error::Result;
use crate::report::compare::{Comparison, Quantity};
use crate::report::plot::axes::*;
use crate::units::Estimate;

/// A row of a picture of intervals: a prediction and a measurement.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Interval {
    /// Name of the run.
    pub label: String,
    /// Predicted value with its interval.
    pub predicted: Estimate<f64>,
    /// Measured value, if there is one.
    pub measured: Option<f64>,
}

impl Interval {
    /// The row of a comparison, under this label.
    pub(crate) fn of(label: &str, comparison: &Comparison) -> Self {
        Self { label: label.into(), predicted: comparison.predicted, measured: comparison.measured }
    }
}

/// Predicted intervals as bars with a mark at the point, and the measured value as a dot: filled where it
/// lies inside, in the colour of a miss where it does not.
pub(crate) fn intervals(quantity: Quantity, rows: &[Interval]) -> Result<String> {
    const ROW: i32 = 34;
    const LEFT: i32 = 190;
    const RIGHT: i32 = WIDTH as i32 - 90;
    let bottom = 8 + ROW * rows.len() as i32;
    let ends = rows.iter().flat_map(|r| [r.predicted.high, r.measured.unwrap_or(0.0)]);
    let highest = ends.filter(|v| v.is_finite()).fold(0.0, f64::max).clamp(1e-9, LONGEST_AXIS) * 1.05;
    let x = |value: f64| LEFT + ((RIGHT - LEFT) as f64 * (value / highest).clamp(0.0, 1.0)) as i32;
    svg((bottom + 34) as u32, &format!("{}: predicted intervals and measured values", quantity.name()), |root| {
        scale(root, quantity, highest, (x(0.0), x(highest), bottom))?;
        for (i, row) in rows.iter().enumerate() {
            let y = 8 + ROW * i as i32 + ROW / 2;
            let label = style(13).pos(Pos::new(HPos::Right, VPos::Center));
            root.draw(&Text::new(shorten(&row.label, 26), (LEFT - 10, y), label)).map_err(failed)?;
            let (low, high) = (x(row.predicted.low), x(row.predicted.high).max(x(row.predicted.low) + 2));
            root.draw(&Rectangle::new([(low, y - 7), (high, y + 7)], PREDICTED.filled())).map_err(failed)?;
            let point = x(row.predicted.point);
            root.draw(&PathElement::new([(point, y - 11), (point, y + 11)], TEXT.stroke_width(1))).map_err(failed)?;
            let Some(measured) = row.measured else { continue };
            let inside = (row.predicted.low..=row.predicted.high).contains(&measured);
            let colour = if inside { MEASURED } else { BAD };
            root.draw(&Circle::new((x(measured), y), 6, SURFACE.filled())).map_err(failed)?;
            root.draw(&Circle::new((x(measured), y), 5, colour.filled())).map_err(failed)?;
            let value = style(13).pos(Pos::new(HPos::Left, VPos::Center));
            let after = x(measured).max(high) + 12;
            root.draw(&Text::new(quantity.show(measured), (after, y), value)).map_err(failed)?;
        }
        Ok(())
    })
}
