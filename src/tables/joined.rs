//! Measured figures joined with what other planners say of the same runs.

use polars::prelude::{DataFrame, DataFrameJoinOps, df};

use crate::error::Result;
use crate::tables::frame::{broken, first_text, parts, quantile};

/// A measured figure of a published run.
#[derive(Clone, Debug)]
pub(crate) struct Measured<'a> {
    /// Id of the published run.
    pub id: &'a str,
    /// Measured value, in the unit of the claims.
    pub value: f64,
}

/// Prediction of another planner for a published run.
#[derive(Clone, Debug)]
pub(crate) struct Claimed<'a> {
    /// Id of the published run.
    pub id: &'a str,
    /// Name and version of the planner.
    pub tool: &'a str,
    /// Predicted value, in the unit of the measurements; `None` where the planner refuses.
    pub value: Option<f64>,
}

/// Errors of a planner on the runs that are in both tables.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PlannerErrors {
    /// Name and version of the planner.
    pub tool: String,
    /// Number of runs that the planner refuses.
    pub refused: usize,
    /// Ids of the runs that the planner answers.
    pub answered: Vec<String>,
    /// Median of its absolute relative errors.
    pub median: f64,
    /// 95th percentile of its absolute relative errors.
    pub p95: f64,
    /// Median of its relative errors: above 0 where it claims too much.
    pub bias: f64,
}

/// Every planner that answers any of the measured runs, in the order in which they first appear.
pub(crate) fn against_planners(measured: &[Measured<'_>], claimed: &[Claimed<'_>]) -> Result<Vec<PlannerErrors>> {
    let ours = df!(
        "id" => measured.iter().map(|m| m.id).collect::<Vec<_>>(),
        "measured" => measured.iter().map(|m| m.value).collect::<Vec<_>>(),
    );
    let theirs = df!(
        "id" => claimed.iter().map(|c| c.id).collect::<Vec<_>>(),
        "tool" => claimed.iter().map(|c| c.tool).collect::<Vec<_>>(),
        "claimed" => claimed.iter().map(|c| c.value).collect::<Vec<_>>(),
    );
    let both = theirs.map_err(broken)?.inner_join(&ours.map_err(broken)?, ["id"], ["id"]).map_err(broken)?;
    let mut planners = Vec::new();
    for part in parts(&both, &["tool"])? {
        planners.extend(planner(&part)?);
    }
    Ok(planners)
}

fn planner(part: &DataFrame) -> Result<Option<PlannerErrors>> {
    let column = |name: &str| part.column(name).and_then(|c| c.f64().cloned()).map_err(broken);
    let (claims, values) = (column("claimed")?, column("measured")?);
    let ids = part.column("id").and_then(|c| c.str().cloned()).map_err(broken)?;
    let error = |(claim, value): (Option<f64>, Option<f64>)| Some(claim? / value? - 1.0);
    let errors: Vec<Option<f64>> = claims.iter().zip(values.iter()).map(error).collect();
    let answered: Vec<String> =
        ids.iter().zip(&errors).filter(|(_, e)| e.is_some()).filter_map(|(id, _)| id.map(str::to_owned)).collect();
    if answered.is_empty() {
        return Ok(None);
    }
    let known: Vec<f64> = errors.iter().flatten().copied().collect();
    let frame = df!("error" => known.clone(), "size" => known.iter().map(|e| e.abs()).collect::<Vec<_>>());
    let frame = frame.map_err(broken)?;
    Ok(Some(PlannerErrors {
        tool: first_text(part, "tool")?,
        refused: errors.len() - known.len(),
        answered,
        median: quantile(&frame, "size", 0.5)?,
        p95: quantile(&frame, "size", 0.95)?,
        bias: quantile(&frame, "error", 0.5)?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planners_are_held_to_the_runs_that_both_know() {
        let measured =
            [Measured { id: "a", value: 2.0 }, Measured { id: "b", value: 4.0 }, Measured { id: "c", value: 1.0 }];
        let claim = |id, tool, value| Claimed { id, tool, value };
        let claimed = [
            claim("a", "one", Some(3.0)),
            claim("b", "one", Some(2.0)),
            claim("x", "one", Some(9.0)),
            claim("c", "one", None),
            claim("a", "none", None),
        ];
        let planners = against_planners(&measured, &claimed).unwrap();
        assert_eq!(planners.len(), 1);
        assert_eq!(
            (planners[0].refused, planners[0].answered.as_slice()),
            (1, ["a".to_owned(), "b".to_owned()].as_slice())
        );
        assert_eq!((planners[0].median, planners[0].bias), (0.5, 0.0));
    }
}
