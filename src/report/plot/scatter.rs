//! Points with two axes: sweeps, memory against speed, predictions against measurements.

use plotters::prelude::*;

use crate::error::Result;
use crate::report::plot::axes::*;

/// Points of one kind in a scatter plot.
pub(crate) struct Cloud {
    /// Name of the points in the legend.
    pub label: &'static str,
    /// Meaning of the points, which decides their colour.
    pub role: Role,
    /// Places of the points, (x, y).
    pub points: Vec<(f64, f64)>,
}

/// Meaning of a colour on the page.
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

    /// Name of the page's variable for the colour.
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
