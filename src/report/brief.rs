//! Comparisons as lines for a terminal.

use crate::predict::Prediction;
use crate::predict::calibration::Calibration;
use crate::predict::coefficients::Coefficient;
use crate::report::columns::{self, Side, indented};
use crate::report::compare::{Change, Comparison, Quantity};
use crate::units::Bytes;

/// Columns side by side: the first to the left, the others to the right.
fn aligned(rows: &[Vec<String>]) -> String {
    indented(&columns::lines(rows, &[Side::Left, Side::Right]), 2).trim_end().to_owned()
}

fn cells<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(String::from).to_vec()
}

/// Predicted and measured values as a table for a terminal.
pub(crate) fn comparisons(comparisons: &[Comparison]) -> String {
    let mut rows = vec![cells(["", "predicted", "interval", "measured", "error", "inside"])];
    for c in comparisons.iter().filter(|c| c.measured.is_some()) {
        let q = c.quantity;
        rows.push(vec![
            q.name().into(),
            q.show(c.predicted.point),
            format!("{} to {}", q.show(c.predicted.low), q.show(c.predicted.high)),
            c.measured.map_or_else(String::new, |m| q.show(m)),
            c.error().map_or_else(String::new, |e| format!("{:+.1} %", e * 100.0)),
            c.inside().map_or("", |inside| if inside { "yes" } else { "no" }).into(),
        ]);
    }
    aligned(&rows)
}

/// The figures of a run that a calibration moves, before and after it.
pub(crate) fn changes(before: &Prediction, after: &Prediction) -> Vec<Change> {
    let change = |quantity, before, after| Change { quantity, before, after };
    vec![
        change(Quantity::Peak, before.peak_memory.map(Bytes::as_f64), after.peak_memory.map(Bytes::as_f64)),
        change(Quantity::Footprint, before.footprint.map(Bytes::as_f64), after.footprint.map(Bytes::as_f64)),
        change(Quantity::Speed, before.tokens_per_s, after.tokens_per_s),
        change(Quantity::TotalTime, before.total_time.map(|s| s.0), after.total_time.map(|s| s.0)),
    ]
}

/// Predictions before and after a calibration as a table for a terminal.
pub(crate) fn change_table(changes: &[Change]) -> String {
    let mut rows = vec![cells(["", "before", "interval", "after", "interval"])];
    for c in changes {
        let q = c.quantity;
        let interval = |e: &crate::units::Estimate<f64>| format!("{} to {}", q.show(e.low), q.show(e.high));
        rows.push(vec![
            q.name().into(),
            q.show(c.before.point),
            interval(&c.before),
            q.show(c.after.point),
            interval(&c.after),
        ]);
    }
    aligned(&rows)
}

/// The coefficient that moved furthest, by how much, and how sure it was and is.
pub(crate) fn moved(before: &Calibration, after: &Calibration) -> String {
    let pairs = before.coefficients.list().into_iter().zip(after.coefficients.list());
    let far = |b: &Coefficient, a: &Coefficient| (a.value / b.value).ln().abs();
    let most = pairs.max_by(|((_, b), (_, a)), ((_, d), (_, c))| far(b, a).total_cmp(&far(d, c)));
    most.map_or_else(String::new, |((name, b), (_, a))| {
        format!(
            "largest update: {name} x{:.2} (relative error {:.0} % -> {:.0} %)",
            a.value / b.value,
            b.relative_sd * 100.0,
            a.relative_sd * 100.0
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Estimate;

    #[test]
    fn lines_are_aligned_and_only_hold_what_was_measured() {
        let predicted = Estimate { point: 100.0, low: 90.0, high: 120.0, level: 0.9 };
        let rows = [
            Comparison { quantity: Quantity::Speed, predicted, measured: Some(110.0) },
            Comparison { quantity: Quantity::StepTime, predicted, measured: None },
        ];
        let text = comparisons(&rows);
        assert_eq!(text.lines().count(), 2);
        assert!(text.ends_with("speed  100 tok/s  90.0 tok/s to 120 tok/s  110 tok/s  -9.1 %     yes"), "{text}");
    }
}
