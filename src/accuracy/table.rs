//! Everything together: the table of accuracy, and what was to be reached.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::accuracy::field::{Ending, FieldRun};
use crate::accuracy::other_planners::{self, PlannerScore, Said};
use crate::accuracy::rules::Rule;
use crate::accuracy::score::{self, Bracket, Figure, Judged, Quantity, Summary, UnderstoodRun};
use crate::accuracy::spread::{Residual, Spread, prior_with, source};
use crate::error::Result;
use crate::measure::Measurement;
use crate::predict::coefficients::FANLESS_SD;
use crate::spec::run::Engine;
use crate::tables::{ErrorGroup, ErrorRow, by_engine_and_chip};

/// Comparison of all predictions with published runs and local measurements.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Accuracy {
    /// Number of published runs.
    pub published: usize,
    /// Number of local measurements.
    pub measured: usize,
    /// Predictions beside measurements, of all runs.
    pub figures: Vec<Figure>,
    /// Figures of published runs with the width of each interval from the rows of other sources alone.
    pub out_of_sample: Vec<Figure>,
    /// Peaks of runs that state no more than an average length.
    pub brackets: Vec<Bracket>,
    /// Verdicts beside how the runs ended.
    pub judged: Vec<Judged>,
    /// Number of runs or figures that each rule left out.
    pub left_out: BTreeMap<Rule, usize>,
    /// Errors of other planners on the same runs.
    pub neighbours: Vec<PlannerScore>,
    /// Runs behind the published peaks whose longest batch is known.
    pub cases: Vec<UnderstoodRun>,
}

/// A line of the table of accuracy: one engine and one quantity.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Line {
    /// Engine that trained.
    pub engine: Engine,
    /// Quantity that is compared.
    pub quantity: Quantity,
    /// Chip that the figures are of; `None` for all together.
    pub chip: Option<String>,
    /// Errors and coverage of the figures.
    #[serde(flatten)]
    pub summary: Summary,
}

/// A goal for the accuracy of predictions, and whether it is reached.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Goal {
    /// Name of the goal.
    pub what: &'static str,
    /// Value to reach, with its unit.
    pub wanted: String,
    /// Value that is reached, with its unit.
    pub got: String,
    /// Whether the goal is reached.
    pub reached: bool,
}

/// Coverage that 90 % intervals are to have.
const COVERAGE: std::ops::RangeInclusive<f64> = 0.85..=0.97;

/// Goal for the median error of the peak where the longest batch is known.
const PEAK: f64 = 0.10;

/// Goal for the median error of the speed without calibration.
const SPEED: f64 = 0.20;

/// Goal for the share of average-only rows that lie between the two predictions.
const BRACKETED: f64 = 0.90;

/// A share in percent, for tables.
fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share).replace(".0 %", " %")
}

impl Accuracy {
    /// Compares predictions with these published runs and measurements, and with other planners.
    pub(crate) fn of(field: &[FieldRun], measurements: &[Measurement], said: &[Said]) -> Result<Self> {
        let mut all = Self { published: field.len(), measured: measurements.len(), ..Self::default() };
        for row in field {
            let scored = score::score(row)?;
            all.figures.extend(scored.figures);
            all.brackets.extend(scored.brackets);
            all.judged.extend(scored.judged);
            all.cases.extend(scored.case);
            for rule in scored.left_out {
                *all.left_out.entry(rule).or_default() += 1;
            }
        }
        all.out_of_sample = out_of_sample(field, &all.figures)?;
        all.neighbours = other_planners::compare(said, &all.figures)?;
        for (i, m) in measurements.iter().enumerate() {
            let figures = score::of_measurement(m, i + 1);
            if figures.is_empty() {
                *all.left_out.entry(Rule::NotPredicted).or_default() += 1;
            }
            all.figures.extend(figures);
        }
        Ok(all)
    }

    /// The lines of the table: each engine and quantity, all together and by chip.
    pub(crate) fn lines(&self) -> Result<Vec<Line>> {
        let mut figures: Vec<&Figure> = self.figures.iter().collect();
        figures.sort_by(|a, b| (a.engine.name(), a.quantity).cmp(&(b.engine.name(), b.quantity)));
        let row = |f: &&Figure| (f.engine, f.quantity, f.chip.clone(), f.error(), f.inside());
        let owned: Vec<_> = figures.iter().map(row).collect();
        let rows: Vec<ErrorRow<'_>> = owned
            .iter()
            .map(|(engine, quantity, chip, error, inside)| ErrorRow {
                engine: engine.name(),
                quantity: quantity.name(),
                chip,
                error: *error,
                inside: *inside,
            })
            .collect();
        let quantity = |name: &str| owned.iter().find(|(_, q, ..)| q.name() == name).map(|(_, q, ..)| *q);
        let engine = |name: &str| Engine::ALL.into_iter().find(|e| e.name() == name);
        let line = |g: ErrorGroup| {
            let summary = Summary { n: g.n, median: g.median, p95: g.p95, inside: g.inside };
            Some(Line { engine: engine(&g.engine)?, quantity: quantity(&g.quantity)?, chip: g.chip, summary })
        };
        Ok(by_engine_and_chip(&rows)?.into_iter().filter_map(line).collect())
    }

    /// Number of measured peaks that lie between the predictions at the average and at the cap.
    pub(crate) fn bracketed(&self) -> usize {
        self.brackets.iter().filter(|b| b.inside()).count()
    }

    /// Runs that died and were said to fit; runs that finished and were said to fail; each with confidence.
    pub(crate) fn unsafe_verdicts(&self) -> (usize, usize) {
        let count = |f: fn(&Judged) -> bool| self.judged.iter().filter(|j| f(j)).count();
        (count(Judged::unsafe_fit), count(Judged::refused_success))
    }

    /// What was to be reached on published runs, and whether it is.
    pub(crate) fn goals(&self) -> Vec<Goal> {
        let of = |quantity| {
            Summary::of(self.figures.iter().filter(move |f| f.engine == Engine::MlxLm && f.quantity == quantity))
        };
        let mut goals = Vec::new();
        let mut goal = |what, wanted: String, got: String, reached| goals.push(Goal { what, wanted, got, reached });
        let inside_of = |s: Summary| format!("{} ({} of {})", percent(s.coverage()), s.inside, s.n);
        for (what, inside, elsewhere, quantity, most) in [
            (
                "peak: median error",
                "peak: inside 90 % intervals",
                "peak: the same, widths from others",
                Quantity::PeakMemory,
                PEAK,
            ),
            (
                "speed, cold: median error",
                "speed, cold: inside 90 % intervals",
                "speed: the same, widths from others",
                Quantity::Speed,
                SPEED,
            ),
        ] {
            let Some(s) = of(quantity) else { continue };
            goal(what, format!("at most {}", percent(most)), percent(s.median), s.median <= most);
            let range = format!("{:.0} to {:.0} %", 100.0 * COVERAGE.start(), 100.0 * COVERAGE.end());
            goal(inside, range.clone(), inside_of(s), COVERAGE.contains(&s.coverage()));
            let others = Summary::of(self.out_of_sample.iter().filter(|f| f.quantity == quantity));
            if let Some(s) = others {
                goal(elsewhere, range, inside_of(s), COVERAGE.contains(&s.coverage()));
            }
        }
        if !self.brackets.is_empty() {
            let (n, inside) = (self.brackets.len(), self.bracketed());
            let share = inside as f64 / n as f64;
            let got = format!("{} ({inside} of {n})", percent(share));
            goal("peak: between average and cap", format!("at least {}", percent(BRACKETED)), got, share >= BRACKETED);
        }
        let (fits, fails) = self.unsafe_verdicts();
        let died = self.judged.iter().filter(|j| j.outcome == Ending::Oom).count();
        let ok = self.judged.iter().filter(|j| j.outcome == Ending::Ok).count();
        goal("out of memory, but said to fit", "none".into(), format!("{fits} of {died}"), fits == 0);
        goal("finished, but said to fail", "none".into(), format!("{fails} of {ok}"), fails == 0);
        goals
    }
}

/// What the published figures say of the formulas; `known` is what the model widens a row's interval by for heat.
pub(crate) fn residuals(field: &[FieldRun], figures: &[Figure], quantity: Quantity) -> Vec<Residual> {
    let residual = |row: &FieldRun| {
        let figure = figures.iter().find(|f| f.id == row.id && f.quantity == quantity)?;
        Some(Residual {
            id: row.id.clone(),
            source: source(row),
            value: (figure.measured / figure.predicted.point).ln(),
            known: if quantity == Quantity::Speed && row.fanless() { FANLESS_SD } else { 0.0 },
        })
    };
    field.iter().filter_map(residual).collect()
}

/// Sources that are to be left when one is taken away: how far they lie apart cannot be told from one.
const TELLING: usize = 2;

/// Each row's figures, with what is believed of mlx-lm as if its source had published nothing. Of a quantity that too few
/// others have published there are none.
fn out_of_sample(field: &[FieldRun], figures: &[Figure]) -> Result<Vec<Figure>> {
    let of = |quantity| residuals(field, figures, quantity);
    let (peaks, speeds) = (of(Quantity::PeakMemory), of(Quantity::Speed));
    let mut all = Vec::new();
    for row in field.iter().filter(|row| figures.iter().any(|f| f.id == row.id)) {
        let others = |of: &[Residual]| {
            let rest = || of.iter().filter(|r| r.source != source(row));
            (Spread::of(rest()), rest().map(|r| &r.source).collect::<BTreeSet<_>>().len() >= TELLING)
        };
        let ((Some(peak), peak_told), (Some(speed), speed_told)) = (others(&peaks), others(&speeds)) else { continue };
        let mut scored = score::score_with(row, &|machine| prior_with(machine, speed, peak))?;
        scored.figures.retain(|f| if f.quantity == Quantity::Speed { speed_told } else { peak_told });
        all.extend(scored.figures);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Verdict;
    use crate::units::Estimate;

    fn figure(chip: &str, point: f64, measured: f64) -> Figure {
        Figure {
            id: format!("{chip} {measured}"),
            engine: Engine::MlxLm,
            chip: chip.into(),
            quantity: Quantity::PeakMemory,
            predicted: Estimate { point, low: 0.9 * point, high: 1.1 * point, level: 0.9 },
            measured,
        }
    }

    fn judged(outcome: Ending, verdict: Verdict, surely_fails: bool) -> Judged {
        Judged { id: "j".into(), machine: "m".into(), outcome, verdict, surely_fails }
    }

    #[test]
    fn the_table_counts_what_it_says() {
        // Errors of 0, 0, 0, +25 % (outside) and, on the other chip, -50 % (outside).
        let mut figures = vec![figure("A", 10.0, 10.0); 3];
        figures.extend([figure("A", 10.0, 8.0), figure("B", 10.0, 20.0)]);
        let bracket = |measured| Bracket { id: "b".into(), chip: "A".into(), at_average: 1.0, at_cap: 2.0, measured };
        let all = Accuracy {
            figures,
            brackets: vec![bracket(1.5), bracket(2.5)],
            judged: vec![
                judged(Ending::Oom, Verdict::Fits, false),
                judged(Ending::Oom, Verdict::Tight, false),
                judged(Ending::Ok, Verdict::DoesNotFit, true),
                judged(Ending::Swap, Verdict::DoesNotFit, true),
            ],
            ..Accuracy::default()
        };
        let lines = all.lines().unwrap();
        assert_eq!(lines.iter().map(|l| l.chip.as_deref()).collect::<Vec<_>>(), [None, Some("A"), Some("B")]);
        let s = lines[0].summary;
        assert_eq!((s.n, s.median, s.inside), (5, 0.0, 3));
        assert!((s.p95 - (0.25 + 0.8 * 0.25)).abs() < 1e-12, "{}", s.p95);
        assert_eq!(lines[2].summary.median, 0.5);
        assert_eq!((all.bracketed(), all.unsafe_verdicts()), (1, (1, 1)));
        let reached: Vec<bool> = all.goals().iter().map(|g| g.reached).collect();
        // Median 0 %, coverage 60 %, half of the brackets, one of each wrong verdict.
        assert_eq!(reached, [true, false, false, false, false]);
    }

    #[test]
    fn a_neighbour_is_compared_on_the_rows_that_both_answer() {
        let figures = vec![figure("A", 10.0, 10.0), figure("A", 12.0, 15.0), figure("B", 5.0, 4.0)];
        let said = |id: &str, peak_gb: Option<f64>| Said {
            id: id.into(),
            tool: "t 1".into(),
            peak_gb,
            refused: String::new(),
        };
        let n = other_planners::compare(
            &[said("A 10", Some(20e-9)), said("A 15", None), said("B 4", Some(5e-9))],
            &figures,
        )
        .unwrap();
        assert_eq!((n[0].n, n[0].refused, n[0].ours.n), (2, 1, 2));
        // 20 for 10 and 5 for 4.
        assert!((n[0].median - 0.625).abs() < 1e-9 && (n[0].bias - 0.625).abs() < 1e-9, "{n:?}");
        assert!((n[0].ours.median - 0.125).abs() < 1e-9);
    }
}
