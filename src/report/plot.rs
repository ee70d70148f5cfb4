//! Pictures, as SVG text to be put inside a page.
//!
//! plotters writes fixed colours. Here each colour stands for a role, and after drawing is replaced by
//! the page's variable of that role, so that one picture is right on a light and on a dark page.

use std::collections::HashMap;
use std::ops::Range;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::cost::ledger::{Item, Phase};
use crate::error::{Error, Result};
use crate::report::compare::{Comparison, Quantity};
use crate::units::{Bytes, Estimate};

const TEXT: RGBColor = RGBColor(1, 1, 1);
const GRID: RGBColor = RGBColor(2, 2, 2);
const PREDICTED: RGBColor = RGBColor(3, 3, 3);
const MEASURED: RGBColor = RGBColor(4, 4, 4);
const BAD: RGBColor = RGBColor(5, 5, 5);
const FAINT: RGBColor = RGBColor(6, 6, 6);
const SURFACE: RGBColor = RGBColor(7, 7, 7);

/// Colours of things in memory; the last is for all that is too small to name.
pub(crate) const SERIES: usize = 7;

fn series(i: usize) -> RGBColor {
    let n = 16 + i.min(SERIES) as u8;
    RGBColor(n, n, n)
}

const WIDTH: u32 = 760;
const FONT: &str = "sans-serif";

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn failed(e: impl std::fmt::Display) -> Error {
    Error::Serialise { what: "picture", reason: e.to_string() }
}

/// Draws, and turns stand-in colours into the page's variables.
fn svg(height: u32, title: &str, draw: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<String> {
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

fn style(size: u32) -> TextStyle<'static> {
    (FONT, size).into_font().color(&TEXT)
}

/// Points of a curve; of a longer run every second step is drawn, or every third.
const POINTS: usize = 20_000;

/// Losses beyond this are drawn at it: an axis up to 1e308 has no length.
const HIGHEST_LOSS: f64 = 1e9;

/// Phases that are drawn; of more, the tallest.
const PHASES: usize = 30;

/// Things in memory that are drawn of a phase; those after them are one.
const PIECES: usize = 60;

/// The largest value that an axis reaches: beyond it, 1 is as good as nothing.
const LONGEST_AXIS: f64 = 1e18;

/// Lines of a scale: a step is a quarter of the axis or more.
const MARKS: usize = 5;

/// Loss over the optimizer steps: each step faint, a running mean over a twentieth of the run on top.
pub(crate) fn loss_curve(losses: &[(usize, f64)]) -> Result<String> {
    let every = losses.len().div_ceil(POINTS).max(1);
    let seen = losses.iter().step_by(every).filter(|(_, loss)| loss.is_finite());
    let losses: Vec<_> = seen.map(|&(step, loss)| (step, loss.clamp(-HIGHEST_LOSS, HIGHEST_LOSS))).collect();
    let smooth = running_mean(&losses);
    svg(300, "loss over the steps of the run", |root| {
        let last = losses.last().map_or(1, |l| l.0).max(2) as f64;
        let mut chart = ChartBuilder::on(root)
            .margin(10)
            .margin_right(24)
            .x_label_area_size(38)
            .y_label_area_size(58)
            .build_cartesian_2d(1.0..last, padded(losses.iter().map(|l| l.1)))
            .map_err(failed)?;
        let mut mesh = chart.configure_mesh();
        mesh.disable_x_mesh().light_line_style(TRANSPARENT).bold_line_style(GRID).axis_style(GRID);
        mesh.label_style(style(13)).axis_desc_style(style(13)).x_desc("optimizer step").y_desc("loss");
        mesh.y_labels(6).x_labels(8).x_label_formatter(&|step| format!("{step:.0}"));
        mesh.draw().map_err(failed)?;
        let points = losses.iter().map(|&(step, loss)| (step as f64, loss));
        chart.draw_series(LineSeries::new(points, FAINT.stroke_width(1))).map_err(failed)?;
        let points = smooth.iter().map(|&(step, loss)| (step as f64, loss));
        chart.draw_series(LineSeries::new(points, MEASURED.stroke_width(2))).map_err(failed)?;
        Ok(())
    })
}

/// Mean over a twentieth of the points, centred, shorter at the ends.
fn running_mean(points: &[(usize, f64)]) -> Vec<(usize, f64)> {
    let half = points.len() / 40;
    let around = |i: usize| &points[i.saturating_sub(half)..(i + half + 1).min(points.len())];
    let mean = |part: &[(usize, f64)]| part.iter().map(|p| p.1).sum::<f64>() / part.len() as f64;
    (0..points.len()).map(|i| (points[i].0, mean(around(i)))).collect()
}

/// A range around values, never empty.
fn padded(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        return 0.0..1.0;
    }
    let margin = ((high - low) * 0.06).max(high.abs() * 1e-3).max(1e-9);
    low - margin..high + margin
}

/// A row of an interval picture.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Interval {
    /// Which run.
    pub label: String,
    /// What was expected.
    pub predicted: Estimate<f64>,
    /// What came.
    pub measured: Option<f64>,
}

impl Interval {
    /// Of a comparison.
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

/// A few round values with faint lines, along the bottom.
fn scale(root: &Area<'_>, quantity: Quantity, highest: f64, (left, right, bottom): (i32, i32, i32)) -> Result<()> {
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
fn round_step(quantity: Quantity, at_least: f64) -> f64 {
    if matches!(quantity, Quantity::Peak | Quantity::Footprint) {
        return at_least.log2().ceil().exp2();
    }
    let power = 10f64.powf(at_least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].iter().map(|m| m * power).find(|s| *s >= at_least).unwrap_or(10.0 * power)
}

fn shorten(text: &str, longest: usize) -> String {
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

/// The phases of a step as stacked bars on a common base of what is always there, and the limit.
pub(crate) fn ledger(resident: &[Item], phases: &[Phase], limit: Option<Bytes>) -> Result<String> {
    const ROW: i32 = 34;
    const LEFT: i32 = 110;
    const RIGHT: i32 = WIDTH as i32 - 90;
    let names = named(resident, phases);
    let base: Bytes = resident.iter().map(|i| i.bytes).sum();
    let tallest = base + phases.iter().map(Phase::total).max().unwrap_or_default();
    let limit = limit.filter(|l| is_near(*l, tallest));
    let highest = tallest.max(limit.unwrap_or_default()).as_f64().max(1.0) * 1.03;
    let (phases, hidden) = drawn(phases);
    let bottom = 8 + ROW * (phases.len() + usize::from(hidden > 0)) as i32;
    let width = |bytes: Bytes| (f64::from(RIGHT - LEFT) * bytes.as_f64() / highest).round() as i32;
    svg((bottom + 34) as u32, "what is in memory in each phase of a step", |root| {
        scale(root, Quantity::Peak, highest, (LEFT, RIGHT, bottom))?;
        for (i, phase) in phases.iter().enumerate() {
            let y = 8 + ROW * i as i32;
            let label = style(13).pos(Pos::new(HPos::Right, VPos::Center));
            root.draw(&Text::new(shorten(&phase.name, 20), (LEFT - 10, y + ROW / 2), label)).map_err(failed)?;
            let mut sum = Bytes(0);
            for (name, bytes) in pieces(resident, phase) {
                let colour = series(names.iter().position(|n| n.name == name).unwrap_or(SERIES));
                // Ends are rounded and not widths, so that small items do not add up to a wrong bar.
                let (from, to) = (LEFT + width(sum), LEFT + width(sum + bytes));
                sum += bytes;
                root.draw(&Rectangle::new([(from, y + 5), (to, y + ROW - 5)], colour.filled())).map_err(failed)?;
                root.draw(&PathElement::new([(to, y + 5), (to, y + ROW - 5)], SURFACE.stroke_width(1)))
                    .map_err(failed)?;
            }
            let value = style(13).pos(Pos::new(HPos::Left, VPos::Center));
            root.draw(&Text::new(sum.to_string(), (LEFT + width(sum) + 8, y + ROW / 2), value)).map_err(failed)?;
        }
        if hidden > 0 {
            let place = (LEFT, 8 + ROW * phases.len() as i32 + ROW / 2);
            let label = style(13).pos(Pos::new(HPos::Left, VPos::Center));
            root.draw(&Text::new(format!("and {hidden} more phases, none of them larger"), place, label))
                .map_err(failed)?;
        }
        if let Some(limit) = limit {
            let x = LEFT + width(limit);
            root.draw(&PathElement::new([(x, 2), (x, bottom)], BAD.stroke_width(2))).map_err(failed)?;
        }
        Ok(())
    })
}

/// The phases that are drawn, in their order, and the number of those that are not.
fn drawn(phases: &[Phase]) -> (Vec<&Phase>, usize) {
    let mut tallest: Vec<(usize, &Phase)> = phases.iter().enumerate().collect();
    tallest.sort_by_key(|(_, phase)| std::cmp::Reverse(phase.total()));
    tallest.truncate(PHASES);
    tallest.sort_by_key(|(i, _)| *i);
    let hidden = phases.len() - tallest.len();
    (tallest.into_iter().map(|(_, phase)| phase).collect(), hidden)
}

/// What is in memory in a phase, by name, as it is drawn.
fn pieces<'a>(resident: &'a [Item], phase: &'a Phase) -> Vec<(&'a str, Bytes)> {
    let items = || resident.iter().chain(&phase.items).filter(|item| item.bytes > Bytes(0));
    let mut pieces: Vec<_> = items().take(PIECES).map(|item| (item.name.as_str(), item.bytes)).collect();
    let rest: Bytes = items().skip(PIECES).map(|item| item.bytes).sum();
    if rest > Bytes(0) {
        pieces.push(("", rest));
    }
    pieces
}

/// Points of one kind.
pub(crate) struct Cloud {
    /// What they are.
    pub label: &'static str,
    /// Their role on the page.
    pub role: Role,
    /// Where they stand.
    pub points: Vec<(f64, f64)>,
}

/// What a colour means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the page's variables of the same names
pub(crate) enum Role {
    Faint,
    Predicted,
    Measured,
    Bad,
}

impl Role {
    fn colour(self) -> RGBColor {
        match self {
            Self::Faint => FAINT,
            Self::Predicted => PREDICTED,
            Self::Measured => MEASURED,
            Self::Bad => BAD,
        }
    }

    /// The page's variable.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Faint => "faint",
            Self::Predicted => "predicted",
            Self::Measured => "measured",
            Self::Bad => "bad",
        }
    }
}

/// Clouds of positive points, the first at the bottom, over axes with these titles that start at nothing; with
/// `diagonal` both axes are the same, and a line stands where they are equal.
pub(crate) fn scatter(title: &str, [x, y]: [&str; 2], all: &[Cloud], diagonal: bool) -> Result<String> {
    let points = || all.iter().flat_map(|c| &c.points);
    let end = |most: f64| if most > 0.0 { 1.06 * most.min(LONGEST_AXIS) } else { 1.0 };
    let mut ends = [end(points().map(|p| p.0).fold(0.0, f64::max)), end(points().map(|p| p.1).fold(0.0, f64::max))];
    if diagonal {
        ends = [ends[0].max(ends[1]); 2];
    }
    svg(360, title, |root| {
        let mut chart = ChartBuilder::on(root)
            .margin(10)
            .margin_right(24)
            .x_label_area_size(44)
            .y_label_area_size(72)
            .build_cartesian_2d(0.0..ends[0], 0.0..ends[1])
            .map_err(failed)?;
        let mut mesh = chart.configure_mesh();
        mesh.light_line_style(TRANSPARENT).bold_line_style(GRID).axis_style(GRID);
        mesh.label_style(style(13)).axis_desc_style(style(13)).x_desc(x).y_desc(y).x_labels(8).y_labels(6);
        mesh.x_label_formatter(&|v| v.to_string()).y_label_formatter(&|v| v.to_string());
        mesh.draw().map_err(failed)?;
        if diagonal {
            let line = [(0.0, 0.0), (ends[0], ends[0])];
            chart.draw_series(LineSeries::new(line, TEXT.stroke_width(1))).map_err(failed)?;
        }
        for cloud in all {
            let colour = cloud.role.colour();
            let inside = cloud.points.iter().map(|p| (p.0.min(ends[0]), p.1.min(ends[1])));
            chart.draw_series(inside.map(|p| Circle::new(p, 4, colour.filled()))).map_err(failed)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_stand_in_colour_is_left() {
        let losses: Vec<_> = (1..200).map(|i| (i, 3.0 / i as f64)).chain([(200, f64::NAN)]).collect();
        let estimate = Estimate { point: 2e9, low: 1.9e9, high: 2.2e9, level: 0.9 };
        let rows = [Some(2e9), Some(9e9), None].map(|measured| Interval {
            label: "a <run>".into(),
            predicted: estimate,
            measured,
        });
        let resident: Vec<_> = (1..12).map(|i| Item::new(&format!("thing {i}"), i << 28)).collect();
        let phases = vec![Phase::new("loss", vec![Item::new("logits", 7 << 28)]), Phase::new("save", vec![])];
        let points = vec![(1e9, 20.0), (2e9, 40.0)];
        let clouds = [Cloud { label: "front", role: Role::Measured, points }];
        let pictures = [
            loss_curve(&losses).unwrap(),
            loss_curve(&[]).unwrap(),
            intervals(Quantity::Peak, &rows).unwrap(),
            intervals(Quantity::Speed, &[]).unwrap(),
            ledger(&resident, &phases, Some(Bytes(20 << 30))).unwrap(),
            ledger(&[], &[], None).unwrap(),
            scatter("a <run>", ["memory", "speed"], &clouds, true).unwrap(),
            scatter("none", ["memory", "speed"], &[], false).unwrap(),
        ];
        for picture in pictures {
            assert!(picture.contains("role=\"img\"") && picture.contains("viewBox"), "{picture}");
            assert!(!picture.contains("=\"#0") && !picture.contains("=\"#1"), "{picture}");
            assert!(!picture.contains("NaN") && !picture.contains("<run>"), "{picture}");
        }
        assert_eq!(named(&resident, &phases).len(), SERIES);
    }

    #[test]
    fn nonsense_is_drawn_at_the_end_of_a_bounded_axis() {
        const HUGE: [f64; 6] = [f64::MAX, 9e307, 1e18, f64::INFINITY, f64::NAN, 5e-324];
        let short = |picture: String| assert!(picture.len() < 100_000, "{}", picture.len());
        for huge in HUGE {
            let estimate = Estimate { point: 1.0, low: -huge, high: huge, level: 0.9 };
            for measured in [None, Some(huge), Some(-huge)] {
                let row = Interval { label: "x".repeat(1000), predicted: estimate, measured };
                for quantity in [Quantity::Peak, Quantity::Speed, Quantity::TotalTime] {
                    short(intervals(quantity, std::slice::from_ref(&row)).unwrap());
                }
            }
            short(loss_curve(&[(1, huge), (2, -huge), (usize::MAX, 1.0)]).unwrap());
            let clouds = [Cloud { label: "c", role: Role::Bad, points: vec![(huge, 1.0), (1.0, huge)] }];
            short(scatter("s", ["x", "y"], &clouds, true).unwrap());
        }
    }

    #[test]
    fn what_is_drawn_does_not_grow_with_the_file() {
        let items = |n: usize, prefix: &str| (0..n).map(|i| Item::new(&format!("{prefix}{i}"), u64::MAX)).collect();
        let mut phases: Vec<Phase> = (0..100_000).map(|i| Phase::new(&format!("p{i}"), items(1, "i"))).collect();
        phases[70_000].items = items(10_000, "many");
        let picture = ledger(&items(10_000, "r"), &phases, Some(Bytes(1))).unwrap();
        assert!(picture.contains("and 99970 more phases") && picture.len() < 1_000_000, "{}", picture.len());
        let losses: Vec<_> = (0..200_000).map(|i| (i, 1.0)).collect();
        assert!(loss_curve(&losses).unwrap().len() < 1_000_000);
        // The tallest is among them, and they stay in their order.
        let phases: Vec<Phase> = (0..40).map(|i| Phase::new(&i.to_string(), vec![Item::new("x", i)])).collect();
        let (shown, hidden) = drawn(&phases);
        assert_eq!((hidden, &*shown[0].name, &*shown[29].name), (10, "10", "39"));
    }

    #[test]
    fn steps_are_round() {
        assert_eq!([0.3, 1.0, 3.0, 180.0].map(|v| round_step(Quantity::Speed, v)), [0.5, 1.0, 5.0, 200.0]);
        assert_eq!(round_step(Quantity::Peak, 700.0 * 1048576.0), 1073741824.0);
        assert_eq!([shorten("abcdef", 4), shorten("abc", 4)], ["abc…", "abc"]);
    }
}
