//! What is in memory in each phase of a step.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::cost::ledger::{Item, Phase};
use crate::error::Result;
use crate::report::compare::Quantity;
use crate::report::plot::axes::*;
use crate::units::Bytes;

/// Phases that are drawn; of more, the tallest.
pub(super) const PHASES: usize = 30;

/// Things in memory that are drawn of a phase; those after them are one.
pub(super) const PIECES: usize = 60;

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
pub(super) fn drawn(phases: &[Phase]) -> (Vec<&Phase>, usize) {
    let mut tallest: Vec<(usize, &Phase)> = phases.iter().enumerate().collect();
    tallest.sort_by_key(|(_, phase)| std::cmp::Reverse(phase.total()));
    tallest.truncate(PHASES);
    tallest.sort_by_key(|(i, _)| *i);
    let hidden = phases.len() - tallest.len();
    (tallest.into_iter().map(|(_, phase)| phase).collect(), hidden)
}

/// What is in memory in a phase, by name, as it is drawn.
pub(super) fn pieces<'a>(resident: &'a [Item], phase: &'a Phase) -> Vec<(&'a str, Bytes)> {
    let items = || resident.iter().chain(&phase.items).filter(|item| item.bytes > Bytes(0));
    let mut pieces: Vec<_> = items().take(PIECES).map(|item| (item.name.as_str(), item.bytes)).collect();
    let rest: Bytes = items().skip(PIECES).map(|item| item.bytes).sum();
    if rest > Bytes(0) {
        pieces.push(("", rest));
    }
    pieces
}
