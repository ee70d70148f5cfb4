//! Colours, axes and labels that the charts share.

use std::collections::HashMap;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::cost::ledger::{Item, Phase};
use crate::error::{Error, Result};
use crate::report::compare::Quantity;
use crate::units::Bytes;

/// The largest value that an axis reaches: beyond it, 1 is as good as nothing.
pub(super) const LONGEST_AXIS: f64 = 1e18;

/// Lines of a scale: a step is a quarter of the axis or more.
pub(super) const MARKS: usize = 5;

pub(super) const TEXT: RGBColor = RGBColor(1, 1, 1);

pub(super) const GRID: RGBColor = RGBColor(2, 2, 2);

pub(super) const PREDICTED: RGBColor = RGBColor(3, 3, 3);

pub(super) const MEASURED: RGBColor = RGBColor(4, 4, 4);

pub(super) const BAD: RGBColor = RGBColor(5, 5, 5);

pub(super) const FAINT: RGBColor = RGBColor(6, 6, 6);

pub(super) const SURFACE: RGBColor = RGBColor(7, 7, 7);

/// Colours of things in memory; the last is for all that is too small to name.
pub(crate) const SERIES: usize = 7;

pub(super) fn series(i: usize) -> RGBColor {
    let n = 16 + i.min(SERIES) as u8;
    RGBColor(n, n, n)
}

pub(super) const WIDTH: u32 = 760;

pub(super) const FONT: &str = "sans-serif";

pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

pub(super) fn failed(e: impl std::fmt::Display) -> Error {
    Error::Serialise { what: "picture", reason: e.to_string() }
}

/// Draws, and turns stand-in colours into the page's variables.
pub(super) fn svg(height: u32, title: &str, draw: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<String> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        draw(&root)?;
        root.present().map_err(failed)?;
    }
    let mut roles = vec![
        (TEXT, "ink".to_owned()),
        (GRID, "grid".to_owned()),
        (PREDICTED, "predicted".to_owned()),
        (MEASURED, "measured".to_owned()),
        (BAD, "bad".to_owned()),
        (FAINT, "faint".to_owned()),
        (SURFACE, "surface".to_owned()),
    ];
    roles.extend((0..=SERIES).map(|i| (series(i), format!("s{i}"))));
    for (RGBColor(r, g, b), role) in roles {
        let hex = format!("#{r:02X}{g:02X}{b:02X}");
        for attribute in ["fill", "stroke"] {
            let plain = format!("{attribute}=\"{hex}\"");
            text = text.replace(&plain, &format!("style=\"{attribute}:var(--{role})\""));
        }
    }
    // The page sets the width; the picture keeps its shape and says what it shows to those who cannot see it.
    let label = title.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;");
    let size = format!("<svg width=\"{WIDTH}\" height=\"{height}\"");
    Ok(text.replacen(&size, &format!("<svg role=\"img\" aria-label=\"{label}\""), 1))
}

pub(super) fn style(size: u32) -> TextStyle<'static> {
    (FONT, size).into_font().color(&TEXT)
}

/// A few round values with faint lines, along the bottom.
pub(super) fn scale(
    root: &Area<'_>,
    quantity: Quantity,
    highest: f64,
    (left, right, bottom): (i32, i32, i32),
) -> Result<()> {
    let step = round_step(quantity, highest / 4.0);
    let mut value = 0.0;
    for _ in 0..MARKS {
        if value > highest {
            break;
        }
        let x = left + ((right - left) as f64 * value / highest) as i32;
        root.draw(&PathElement::new([(x, 4), (x, bottom)], GRID.stroke_width(1))).map_err(failed)?;
        let label = style(12).pos(Pos::new(HPos::Center, VPos::Top));
        let text = if value == 0.0 { "0".into() } else { quantity.show(value) };
        root.draw(&Text::new(text, (x, bottom + 8), label)).map_err(failed)?;
        value += step;
    }
    Ok(())
}

/// The next of 1, 2 or 5 times a power of ten; in memory, of a power of two.
pub(super) fn round_step(quantity: Quantity, at_least: f64) -> f64 {
    if matches!(quantity, Quantity::Peak | Quantity::Footprint) {
        return at_least.log2().ceil().exp2();
    }
    let power = 10f64.powf(at_least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].iter().map(|m| m * power).find(|s| *s >= at_least).unwrap_or(10.0 * power)
}

pub(super) fn shorten(text: &str, longest: usize) -> String {
    if text.chars().count() <= longest {
        return text.into();
    }
    let kept: String = text.chars().take(longest - 1).collect();
    format!("{kept}…")
}

/// The things that get a colour of their own: the largest of any phase, with their largest size.
pub(crate) fn named(resident: &[Item], phases: &[Phase]) -> Vec<Item> {
    let mut largest: Vec<Item> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for item in resident.iter().chain(phases.iter().flat_map(|p| &p.items)).filter(|i| i.bytes > Bytes(0)) {
        let place = *places.entry(&item.name).or_insert(largest.len());
        match largest.get_mut(place) {
            Some(seen) => seen.bytes = seen.bytes.max(item.bytes),
            None => largest.push(item.clone()),
        }
    }
    largest.sort_by_key(|i| std::cmp::Reverse(i.bytes));
    largest.truncate(SERIES);
    largest
}

/// A limit that can be drawn: one far away would press all that matters into a corner.
pub(crate) fn is_near(limit: Bytes, tallest: Bytes) -> bool {
    limit.as_f64() < 3.0 * tallest.as_f64()
}
