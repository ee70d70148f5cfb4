//! The loss over the steps of a run.

use std::ops::Range;

use plotters::prelude::*;

use crate::error::Result;
use crate::report::plot::axes::*;

/// Most points of a curve; of a longer run every second step is drawn, or every third.
pub(super) const POINTS: usize = 20_000;

/// Loss at which larger ones are drawn: an axis up to 1e308 has no length.
pub(super) const HIGHEST_LOSS: f64 = 1e9;

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
pub(super) fn running_mean(points: &[(usize, f64)]) -> Vec<(usize, f64)> {
    let half = points.len() / 40;
    let around = |i: usize| &points[i.saturating_sub(half)..(i + half + 1).min(points.len())];
    let mean = |part: &[(usize, f64)]| part.iter().map(|p| p.1).sum::<f64>() / part.len() as f64;
    (0..points.len()).map(|i| (points[i].0, mean(around(i)))).collect()
}

/// A range around the values with a margin, never empty.
pub(super) fn padded(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        return 0.0..1.0;
    }
    let margin = ((high - low) * 0.06).max(high.abs() * 1e-3).max(1e-9);
    low - margin..high + margin
}
